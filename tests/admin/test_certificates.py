"""Who shows which certificate to whom, and how Extended Protection is told."""

from __future__ import annotations

from typing import Any

from mailbalancer.admin import certificates
from mailbalancer.model import Admin, ClientTls, Config, Endpoint, Mode, Pool, Service


def service(name: str, *shown: str, **bindings: list[str]) -> dict[str, Any]:
    """A service of the report; `ex1=["match", ""]`: what is known of a real server in each of its routes."""
    pools = [
        {
            "route": f"route{number}",
            "real_servers": [
                {"name": server, "extended_protection": found and {"binding": found, "text": f"{server} {found}"}}
                for server, each in bindings.items()
                for found in each[number : number + 1]
            ],
        }
        for number in range(2)
    ]
    return {"name": name, "client_tls": {"certificates": list(shown)} if shown else None, "pools": pools}


def report(*services: dict[str, Any], **names: list[str]) -> dict[str, Any]:
    return {"services": list(services), "certificates": [{"name": n, "names": list(s)} for n, s in names.items()]}


def listed(told: dict[str, Any], door: str = "") -> dict[str, Any]:
    config = Config("x.yaml", (), (), 1, "", "", "", admin=Admin(certificate=door))
    return {one["name"]: one for one in certificates.listed(told, config)}


def test_a_name_belongs_to_the_certificate_that_is_chosen_for_it() -> None:
    told = report(
        service("owa", "mail", "wild", "gone"),
        service("plain"),
        service("pop", "wild"),
        mail=["mail.example.com"],
        wild=["*.example.com", "mail.example.com"],
    )
    found = listed(told, door="wild")
    assert found["mail"]["shown_by"] == [{"service": "owa", "default": True, "sni": ["mail.example.com"]}]
    assert found["wild"]["shown_by"] == [
        {"service": "owa", "default": False, "sni": ["*.example.com"]},
        {"service": "pop", "default": True, "sni": ["*.example.com", "mail.example.com"]},
    ]
    assert (found["mail"]["door"], found["wild"]["door"]) == (False, True)


def test_the_worst_of_a_server_s_routes_is_told() -> None:
    told = report(
        service("owa", "mail", ex1=["match", "MISMATCH"], ex2=["unknown", "match"], ex3=["match", ""], ex4=["", ""]),
        mail=["mail.example.com"],
    )
    found = listed(told)["mail"]["extended_protection"]
    assert [(one["real_server"], one["binding"]) for one in found] == [
        ("ex1", "MISMATCH"),
        ("ex2", "unknown"),
        ("ex3", "match"),
    ]


def test_users_are_services_and_the_door() -> None:
    endpoint = (Endpoint("127.0.0.1", 443),)
    services = tuple(
        Service(name, Mode.HTTP, endpoint, Pool(name, "", ()), client_tls=ClientTls(("mail",))) for name in ("a", "b")
    )
    config = Config("x.yaml", services, (), 1, "", "", "", admin=Admin(certificate="mail"))
    assert certificates.users(config, "mail") == ["service a", "service b", "the page and the API"]
    assert certificates.users(config, "none") == []
