from __future__ import annotations

import pytest

from mailbalancer.wire.auth_taint import ties_request, ties_response
from mailbalancer.wire.http_head import RequestReader, ResponseReader


def request_ties(*fields: bytes) -> bool:
    head = RequestReader().read(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n")
    assert head is not None
    return ties_request(head)


def response_ties(*fields: bytes) -> bool:
    head = ResponseReader().read(b"HTTP/1.1 401 No\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n")
    assert head is not None
    return ties_response(head)


@pytest.mark.parametrize(
    "value",
    [
        b"NTLM",
        b"NTLM TlRMTVNTUAABAAAA",
        b"ntlm TlRMTVNTUAABAAAA",
        b"NtLm\tTlRMTVNTUAABAAAA",
        b"Negotiate YIIabc==",
        b"negotiate",
        b"NEGOTIATE  YIIabc==",
        b"Nego2 abc",
        b"Kerberos abc",
        b"  Negotiate YII",
        b",Negotiate YII",
        b"Basic dTpw, Negotiate YII",
    ],
)
def test_a_client_that_authenticates_its_connection(value):
    assert request_ties(b"Authorization: " + value)
    assert request_ties(b"aUTHORIZATION:" + value)
    assert request_ties(b"Proxy-Authorization: " + value)
    assert request_ties(b"Authorization: Basic dTpw", b"Authorization: " + value)


@pytest.mark.parametrize(
    "value",
    [
        b"Basic bnRsbTpuZWdvdGlhdGU=",
        b"Bearer ntlm.negotiate.kerberos",
        b"Digest username=x",
        b"NTLMv2x abc",
        b"X-Negotiate abc",
        b"",
    ],
)
def test_a_client_that_authenticates_a_request(value):
    assert not request_ties(b"Authorization: " + value)


def test_other_fields_of_a_request_tie_nothing():
    assert not request_ties(b"X-Authorization: Negotiate YII", b"User-Agent: NTLM", b"Cookie: Negotiate")


@pytest.mark.parametrize(
    "fields",
    [
        [b"WWW-Authenticate: Negotiate"],
        [b"www-authenticate:NTLM"],
        [b"WWW-Authenticate: NTLM TlRMTVNTUAACAAAA"],
        [b'WWW-Authenticate: Basic realm="x"', b"WWW-Authenticate: Negotiate", b"WWW-Authenticate: NTLM"],
        [b'WWW-Authenticate: Basic realm="a, b", NTLM, Negotiate'],
        [b'WWW-Authenticate: Basic realm="x",nEGOTIATE'],
        [b"WWW-Authenticate: Nego2"],
        [b"WWW-Authenticate: Kerberos"],
        [b"Proxy-Authenticate: NTLM"],
        [b"Persistent-Auth: true"],
        [b"persistent-auth: TRUE"],
        [b"Persistent-Auth: 1"],
        [b"Persistent-Auth: false", b"Persistent-Auth: true"],
        [b"Proxy-Support: Session-Based-Authentication"],
    ],
)
def test_a_server_that_authenticates_the_connection(fields):
    assert response_ties(*fields)


def test_a_quoted_word_ties_for_nothing_but_ties():
    assert response_ties(b'WWW-Authenticate: Basic realm="NTLM"')


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [b'WWW-Authenticate: Basic realm="mail"'],
        [b"WWW-Authenticate: Bearer authorization_uri=x"],
        [b"Persistent-Auth: false"],
        [b"Persistent-Auth: False"],
        [b"X-Auth: Negotiate"],
        [b"Server: NTLM"],
    ],
)
def test_a_server_that_does_not(fields):
    assert not response_ties(*fields)
