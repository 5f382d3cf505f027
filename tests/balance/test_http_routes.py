"""Which route a request takes, and which paths are refused because they could take two."""

from __future__ import annotations

import pytest

from mailbalancer.balance.http_routes import REMEMBERED, Ambiguous, Routes, Rule

RULES = [
    Rule((), ("/owa", "/ecp/"), "owa"),
    Rule((), ("/owa/auth",), "auth"),
    Rule(("auto.example.com",), (), "auto"),
    Rule(("auto.example.com",), ("/deep",), "auto deep"),
    Rule(("*.example.com",), ("/wild",), "wild"),
]


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        ("m", b"/owa", "owa"),
        ("m", b"/OWA/", "owa"),
        ("m", b"/owa?x=/ecp", "owa"),
        ("m", b"/owaxyz", "own"),
        ("m", b"/ecp", "owa"),
        ("m", b"/ECP/x", "owa"),
        ("m", b"/owa/auth/logon.aspx", "auth"),
        ("m", b"/owa/authx", "owa"),
        ("m", b"/", "own"),
        ("m", b"*", "own"),
        ("m", b"", "own"),
        ("auto.example.com", b"/owa", "auto"),
        ("auto.example.com", b"*", "auto"),
        ("auto.example.com", b"/deep/er", "auto deep"),
        ("other.example.com", b"/wild", "wild"),
        ("other.example.com", b"/owa", "owa"),
        ("a.b.example.com", b"/wild", "own"),
        ("m", b"/owa/%20x", "owa"),
        ("m", b"/owa/./x", "owa"),
        ("m", b"/owa/x/../y", "owa"),
        ("m", b"/owa/a;b=c", "owa"),
        ("m", b"/x?y=../owa", "own"),
    ],
)
def test_found(host: str, path: bytes, found: str) -> None:
    routes = Routes(RULES, "own")
    assert routes.find(host, path) == found
    assert routes.find(host, path) == found  # remembered


@pytest.mark.parametrize(
    "path",
    [
        b"/owa/../ews", b"/x/../owa", b"/%6fwa/", b"/%256fwa/", b"/%25256fwa", b"//owa", b"/.//owa", b"/x/%2e%2e/owa",
        b"/x\\..\\owa", b"/owa\\..\\..\\x", b"/x/..%2fowa", b"/owa;x", b"/x/..;/owa", b"/owa%2f..%2f..%2fx",
        b"/owa/auth/../x", b"/%6Fwa", b"/owa%5c..%5c..%5cecp/../ews",
    ],
)  # fmt: skip
def test_ambiguous(path: bytes) -> None:
    with pytest.raises(Ambiguous, match="belongs to another route"):
        Routes(RULES, "own").find("m", path)


def test_without_rules_for_paths_no_path_is_ambiguous() -> None:
    assert Routes([Rule(("a",), (), "a")], "own").find("a", b"/x/../y") == "a"
    assert Routes([], "own").find("a", b"/x/../y") == "own"


def test_what_is_remembered_has_a_bound() -> None:
    routes = Routes(RULES, "own")
    for number in range(3 * REMEMBERED):
        assert routes.find("m", b"/owa/%d" % number) == "owa"
    assert len(routes._remembered) <= REMEMBERED
