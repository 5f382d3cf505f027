"""The keys of persistence, found in requests."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.http_keys import (
    Asked,
    activesync_device,
    cookie_key,
    cookie_value,
    finder,
    needed_fields,
    query_value,
)


def asked(path: bytes = b"/", **values: str) -> Asked:
    return Asked(
        "192.0.2.1", "mail.example.com", path, {k.replace("_", "-").encode(): [v.encode()] for k, v in values.items()}
    )


@pytest.mark.parametrize(
    ("kind", "request_", "key"),
    [
        ("source", asked(), "192.0.2.1"),
        ("host", asked(), "host:mail.example.com"),
        ("url", asked(b"/a/b?c"), "url:/a/b"),
        ("exchange", asked(b"/Microsoft-Server-ActiveSync?Cmd=Ping&deviceid=ab%41"), "device:abA"),
        ("exchange", asked(b"/mapi/emsmdb/?MailboxId=Guid%40Example.com"), "mailbox:guid@example.com"),
        ("exchange", asked(b"/ews/", x_anchormailbox="User@Example.com"), "mailbox:user@example.com"),
        ("exchange", asked(b"/owa/"), ""),
        ("exchange", asked(b"/Microsoft-Server-ActiveSync", x_anchormailbox="a@b"), "mailbox:a@b"),
        ("super_http", asked(user_agent="x", authorization="Negotiate abc"), ""),
        ("super_http", asked(user_agent="x"), ""),
    ],
)
def test_keys(kind: str, request_: Asked, key: str) -> None:
    assert finder(kind)(request_) == key


def test_super_http_is_program_and_credentials_together() -> None:
    find = finder("super_http")
    keys = {find(asked(user_agent=a, authorization=b)) for a in ("x", "y") for b in ("Basic QQ==", "BASIC Qg==")}
    assert len(keys) == 4
    assert not any("QQ" in key for key in keys)
    assert find(asked(authorization="basic QQ==")) == find(asked(authorization="Basic  QQ=="))


def test_names_of_the_operators_choice() -> None:
    assert finder("header", field="X-Sid")(asked(x_sid="1")) == "header:1"
    assert finder("header", field="X-Sid")(asked()) == ""
    assert finder("query", parameter="sid")(asked(b"/?a&SID=1+2%33&sid=4")).startswith("query:")
    assert finder("query", parameter="sid")(asked(b"/?asid=1")) == ""
    found = finder("server_cookie", cookie="sid")(asked(cookie="a=b; sid=secret"))
    assert found == cookie_key(b"secret")
    assert "secret" not in found


def test_a_key_is_short_and_printable_whatever_a_client_sends() -> None:
    find = finder("header", field="X")
    assert len(find(asked(x="a" * 5000))) < 100
    assert find(asked(x="a b")).isprintable()
    assert find(asked(x="a" * 5000)) != find(asked(x="a" * 5001))


def test_cookies() -> None:
    fields = [b"a=1;  b=x=y ; c", b"b=second"]
    assert cookie_value(fields, b"b") == b"x=y"
    assert cookie_value(fields, b"c") == b""
    assert cookie_value(fields, b"B") == b""
    assert cookie_key(b"") == ""


def test_queries() -> None:
    assert query_value(b"/?a=1&B=%20+x&b=2", b"b") == b"  x"
    assert query_value(b"/a=1", b"a") == b""


def test_the_base64_form_of_activesync() -> None:
    query = bytes((141, 18, 4, 9, 5)) + b"\x01\x02abc" + bytes((0, 2)) + b"SP"
    encoded = base64.b64encode(query)
    assert activesync_device(b"/Microsoft-Server-ActiveSync?" + encoded) == b"0102616263"
    assert activesync_device(b"/x?" + base64.b64encode(query[:8])) == b""  # cut within the id
    assert activesync_device(b"/x?notbase64!") == b""
    assert activesync_device(b"/x") == b""


@given(st.binary(max_size=60))
def test_no_query_makes_it_fail(query: bytes) -> None:
    activesync_device(b"/Microsoft-Server-ActiveSync?" + query)
    finder("exchange")(Asked("192.0.2.1", "m", b"/Microsoft-Server-ActiveSync?" + query, {}))


def test_the_fields_a_reader_must_pick() -> None:
    assert needed_fields(("header", "cookie", "exchange", "source"), "X-A") == ("X-A", "cookie", "x-anchormailbox")
