"""The services of the shipped profiles that end HTTPS at the balancer: what each of their routes means."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.config.load import load_text, search_dirs
from mailbalancer.errors import ConfigError
from mailbalancer.model import Config, Service
from tests.support.certs import Authority

SHIPPED = [search_dirs()[-1]]
NEWER = ["exchange-2013", "exchange-2016", "exchange-2019", "exchange-se"]
#: Directory to the silence it allows, in seconds.
DIRECTORIES = {
    "/owa": 0.0,
    "/ecp": 0.0,
    "/ews": 1900.0,
    "/mapi": 0.0,
    "/rpc": 3600.0,
    "/oab": 0.0,
    "/autodiscover": 0.0,
    "/Microsoft-Server-ActiveSync": 3700.0,
}
HOST = "mail.example.com"


@pytest.fixture(autouse=True)
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mail` lies beside the configuration."""
    monkeypatch.chdir(tmp_path)
    pem = Authority(tmp_path).issue(HOST).pem.rename(tmp_path / "mail.pem")
    pem.chmod(0o600)


def load(profile: str, more: str = "") -> Config:
    text = f"""real_servers: {{a: 10.0.2.11, b: 10.0.2.12}}
certificates: {{mail: mail.pem}}
services:
  in: {{profile: {profile}, host: {HOST}, certificate: mail, vip: 10.0.1.100, real_servers: [a, b]{more}}}
"""
    return load_text(text, "x.yaml", profile_dirs=SHIPPED)


def only(profile: str, more: str = "") -> Service:
    (service,) = load(profile, more).services
    return service


@pytest.mark.parametrize("name", NEWER)
def test_every_directory_has_a_health_page_and_a_silence_of_its_own(name: str) -> None:
    service = only(f"{name}-https")
    assert service.server_tls is not None
    assert service.server_tls.verify == model.Verify("full", name=HOST)
    assert service.client_tls is not None
    assert service.client_tls.certificates == ("mail",)
    found = {route.paths[0].lower(): route for route in service.routes if route.paths}
    for directory, idle_s in DIRECTORIES.items():
        route = found[directory.lower()]
        assert route.http is not None
        assert route.http.idle_timeout_s == idle_s
        assert isinstance(route.pool.check.options, model.HttpCheck)
        assert route.pool.check.options.path.lower() == f"{directory.lower()}/healthcheck.htm"
        assert route.pool.check.options.verify == service.server_tls.verify
        assert [str(member.endpoint) for member in route.pool.members] == ["10.0.2.11:443", "10.0.2.12:443"]


@pytest.mark.parametrize("name", ["exchange-2019", "exchange-se"])
def test_tls_does_not_end_before_extended_protection_unless_it_is_off(name: str) -> None:
    with pytest.raises(ConfigError, match="Extended Protection") as caught:
        load(f"{name}-https", ", server_tls: null")
    assert len(caught.value.problems) == 1
    service = only(f"{name}-https", ", server_tls: null, extended_protection: 'off'")
    assert service.server_tls is None


def test_exchange_2010_brings_clients_back() -> None:
    service = only("exchange-2010-https")
    persistent = [pool.persist for pool in service.pools() if pool.persist is not None]
    assert persistent
    assert {persist.by for persist in persistent} <= {"cookie", "source", "header"}


def test_web_mail_comes_back_by_cookie_over_a_restart() -> None:
    service = only("webmail-https")
    assert service.pool.persist is not None
    assert (service.pool.persist.by, service.pool.persist.timeout_s) == ("cookie", 28800.0)
    assert service.pool.persist.key_file == "/var/lib/mailbalancer/webmail-cookies"
    assert service.http is not None
    assert service.http.hsts_s == 31536000
    (phones,) = service.routes
    assert phones.http is not None
    assert phones.http.idle_timeout_s == 3700.0
    assert phones.pool.persist is not None
    assert phones.pool.persist.kinds == ("exchange", "source")


def test_web_mail_in_clear_behind() -> None:
    service = only("webmail-https-offload", ", health_path: /SOGo/")
    assert service.server_tls is None
    assert [member.endpoint.port for member in service.pool.members] == [80, 80]
    assert isinstance(service.pool.check.options, model.HttpCheck)
    assert (service.pool.check.options.tls, service.pool.check.options.path) == (False, "/SOGo/")


def test_web_mail_without_tls_is_sent_to_tls() -> None:
    service = only("webmail-http")
    (everything,) = service.routes
    assert everything.http is not None
    assert everything.http.redirect == model.Redirect(f"https://{HOST}{{path}}", 308)
    assert [endpoint.port for endpoint in service.listen] == [80]


@pytest.mark.parametrize("profile", ["exchange-2019-https", "exchange-2019-https-passthrough", "exchange-2016-https"])
def test_no_shipped_profile_cuts_a_phone_off(profile: str) -> None:
    assert not [warning for warning in load(profile).warnings if "ActiveSync" in warning]


def test_a_shorter_silence_than_phones_ask_for_is_warned_of() -> None:
    (said,) = [
        w for w in load("exchange-2019-https-passthrough", ", idle_timeout_s: 900").warnings if "ActiveSync" in w
    ]
    assert "services.in.idle_timeout_s: it is 900: phones ask to wait up to 3540 s" in said
