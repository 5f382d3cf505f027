from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.hop_by_hop import PROTECTED, Connection, cuts, read_connection, upgrade_fields
from mailbalancer.wire.http_head import BadMessage, RequestHead, RequestReader, ResponseReader


def head(*fields: bytes, version: bytes = b"HTTP/1.1") -> RequestHead:
    lines = b"".join(field + b"\r\n" for field in fields)
    read = RequestReader().read(b"GET / " + version + b"\r\nHost: a\r\n" + lines + b"\r\n")
    assert read is not None
    return read


def passed_on(*fields: bytes, dropped: frozenset[bytes] = frozenset()) -> list[bytes]:
    read = head(*fields)
    return read.without(cuts(read, read_connection(read), dropped)).split(b"\r\n")[2:-2]


@pytest.mark.parametrize(
    ("version", "fields", "persistent"),
    [
        (b"HTTP/1.1", [], True),
        (b"HTTP/1.0", [], False),
        (b"HTTP/1.1", [b"Connection: close"], False),
        (b"HTTP/1.1", [b"Connection: CLOSE"], False),
        (b"HTTP/1.1", [b"Connection: keep-alive"], True),
        (b"HTTP/1.0", [b"Connection: Keep-Alive"], True),
        (b"HTTP/1.0", [b"Connection: x, keep-alive"], True),
        (b"HTTP/1.1", [b"Connection: keep-alive, close"], False),
        (b"HTTP/1.0", [b"Connection: keep-alive", b"connection: close"], False),
        (b"HTTP/1.1", [b"Connection: closed"], True),
        (b"HTTP/1.1", [b"Connection:"], True),
        (b"HTTP/1.1", [b"Proxy-Connection: close"], True),
        (b"HTTP/1.0", [b"Proxy-Connection: keep-alive"], False),
    ],
)
def test_whether_the_connection_goes_on(version, fields, persistent):
    assert read_connection(head(*fields, version=version)).persistent is persistent


@pytest.mark.parametrize("value", [b"a b", b"close x", b"a=b", b"close;q", b'"close"', b"a/b", b"\xe4", b"close, (x)"])
def test_an_option_is_a_token(value):
    with pytest.raises(BadMessage, match="Connection names") as caught:
        read_connection(head(b"Connection: " + value))
    assert caught.value.status == 400
    response = ResponseReader().read(b"HTTP/1.1 200 OK\r\nConnection: " + value + b"\r\n\r\n")
    assert response is not None
    with pytest.raises(BadMessage) as caught:
        read_connection(response, 502)
    assert caught.value.status == 502


def test_what_ends_here():
    assert passed_on(
        b"Connection: keep-alive, X-One,x-two",
        b"Keep-Alive: timeout=5",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"X-One: 1",
        b"X-Three: 3",
        b"X-TWO: 2",
        b"x-one: again",
        b"X-One-And-More: 1",
        b"Transfer-Encoding: chunked",
        b"Trailer: X-Checksum",
    ) == [b"X-Three: 3", b"X-One-And-More: 1", b"Transfer-Encoding: chunked", b"Trailer: X-Checksum"]


def test_what_is_dropped_besides_goes_in_both_spellings_and_with_named_fields():
    dropped = frozenset([b"x-forwarded-for"])
    fields = [b"X-Forwarded-For: 192.0.2.1", b"X: y", b"X_Forwarded_For: 192.0.2.2"]
    assert passed_on(*fields, dropped=dropped) == [b"X: y"]
    assert passed_on(b"Connection: z", b"Z: z", *fields, dropped=dropped) == [b"X: y"]


@pytest.mark.parametrize("name", sorted(PROTECTED - {b"host", b"expect", b"content-length", b"transfer-encoding"}))
def test_a_protected_field_cannot_be_named_away(name):
    fields = [name + b": value", b"X-Other: 1"]
    assert passed_on(b"Connection: X-Other, " + name.upper(), *fields) == [name + b": value"]
    assert read_connection(head(b"Connection: " + name)).named == frozenset()


@pytest.mark.parametrize(
    "name", [b"Host", b"Content-Length", b"Transfer-Encoding", b"Authorization", b"Cookie", b"Expect"]
)
def test_the_fields_everything_rests_on_are_protected(name):
    assert name.lower() in PROTECTED


@pytest.mark.parametrize(
    ("fields", "protocol"),
    [
        ([b"Connection: Upgrade", b"Upgrade: websocket"], b"websocket"),
        ([b"Connection: keep-alive, uPgrade", b"Upgrade: WebSocket"], b"websocket"),
        ([b"Upgrade: websocket"], b""),
        ([b"Connection: close", b"Upgrade: websocket"], b""),
        ([b"Connection: Upgrade"], b""),
        ([b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"], b""),
        ([b"Connection: Upgrade", b"Upgrade: websocket, h2c"], b""),
        ([b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c"], b""),
        ([b"Connection: Upgrade", b"Upgrade: TLS/1.0"], b""),
    ],
)
def test_only_a_websocket_is_an_upgrade(fields, protocol):
    connection = read_connection(head(*fields))
    assert connection.upgrade == protocol
    written = b"Connection: upgrade\r\nUpgrade: websocket\r\n" if protocol else b""
    assert upgrade_fields(connection) == written
    assert passed_on(*fields) == []


def test_http_1_0_cannot_upgrade():
    old = head(b"Connection: Upgrade", b"Upgrade: websocket", version=b"HTTP/1.0")
    assert read_connection(old) == Connection(persistent=False)


words = st.lists(st.sampled_from([b"close", b"keep-alive", b"upgrade", b"X-A", b"x-b", b"cookie", b""]), max_size=5)


@given(words, st.sampled_from([b",", b" , ", b",\t"]), st.booleans())
def test_one_line_or_several_say_the_same(members, comma, several):
    lines = [b"Connection: " + member for member in members] if several else [b"Connection: " + comma.join(members)]
    found = read_connection(head(*lines))
    assert found.named == {member.lower() for member in members if member.lower() in (b"x-a", b"x-b")}
    assert found.persistent is (b"close" not in members)
