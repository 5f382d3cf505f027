"""Certificates from the file to what each service shows: refused whole, or shipped as read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mailbalancer.control.certificates import Certificates
from mailbalancer.errors import MailbalancerError
from mailbalancer.ipc.messages import Configure, pack_down, unpack_down
from mailbalancer.model import Certificate, ClientTls, Config, Endpoint, Mode, Pool, Service
from mailbalancer.tls.context_pool import NOWHERE, ContextPool
from tests.support.certs import Authority


def _config(*services: Service, certificates: tuple[Certificate, ...]) -> Config:
    return Config("x.yaml", services, (), 1, "", "", "", certificates=certificates)


def _service(name: str, *shown: str, client_ca: str = "") -> Service:
    tls = ClientTls(shown, client_ca_file=client_ca)
    return Service(name, Mode.HTTP, (Endpoint("127.0.0.1", 443),), Pool(name, "", ()), client_tls=tls)


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Certificate, Certificate]:
    authority = Authority(tmp_path)
    return (
        Certificate("mail", str(authority.issue("mail.example.com").pem)),
        Certificate("web", str(authority.issue("web.example.com").pem)),
    )


def test_each_service_gets_its_certificates_default_first(listed: tuple[Certificate, Certificate]) -> None:
    certificates = Certificates(ContextPool(4))
    config = _config(_service("owa", "web", "mail"), _service("ews", "mail"), certificates=listed)
    fronts = certificates.fronts(config, certificates.read(config))
    assert [m.name for m in fronts["owa"].materials] == ["web", "mail"]
    assert [m.name for m in fronts["ews"].materials] == ["mail"]
    assert len({fronts["owa"].place, fronts["ews"].place}) == 2


def test_places_stay_over_reloads_and_client_authorities_make_another_owner(
    listed: tuple[Certificate, Certificate], tmp_path: Path
) -> None:
    certificates = Certificates(ContextPool(4))
    plain = _config(_service("owa", "mail"), certificates=listed)
    first = certificates.fronts(plain, certificates.read(plain))["owa"]
    again = certificates.fronts(plain, certificates.read(plain))["owa"]
    asking = replace(plain, services=(_service("owa", "mail", client_ca=str(tmp_path / "authority.pem")),))
    other = certificates.fronts(asking, certificates.read(asking))["owa"]
    assert (first.owner, first.place) == (again.owner, again.place)
    assert other.owner != first.owner
    assert other.authorities.startswith("-----BEGIN CERTIFICATE-----")


def test_more_services_than_places_still_run(listed: tuple[Certificate, Certificate]) -> None:
    certificates = Certificates(ContextPool(1))
    config = _config(_service("a", "mail"), _service("b", "mail"), certificates=listed)
    places = [front.place for front in certificates.fronts(config, certificates.read(config)).values()]
    assert sorted(places) == [NOWHERE, 0]


@pytest.mark.parametrize("shown", [(), ("absent",)])
def test_a_certificate_that_is_not_there_is_named(
    listed: tuple[Certificate, Certificate], shown: tuple[str, ...]
) -> None:
    certificates = Certificates(ContextPool(1))
    config = _config(_service("owa", *shown), certificates=listed)
    with pytest.raises(MailbalancerError, match="service owa needs"):
        certificates.fronts(config, certificates.read(config))


def test_a_pair_that_does_not_match_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one.example.com"), authority.issue("two.example.com")
    config = _config(certificates=(Certificate("mail", str(one.chain), str(other.key)),))
    with pytest.raises(MailbalancerError):
        Certificates(ContextPool(1)).read(config)


def test_keys_travel_to_the_workers_and_are_never_printed(listed: tuple[Certificate, Certificate]) -> None:
    certificates = Certificates(ContextPool(1))
    config = _config(_service("owa", "mail"), certificates=listed)
    fronts = certificates.fronts(config, certificates.read(config))
    message = Configure(1, config, {}, {}, {}, fronts=fronts)
    arrived = unpack_down(pack_down(message))
    assert isinstance(arrived, Configure)
    assert b"PRIVATE KEY" in arrived.fronts["owa"].materials[0].pem
    assert "PRIVATE" not in repr(arrived)
