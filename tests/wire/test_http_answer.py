"""Our own answers, read by another parser."""

from __future__ import annotations

import h11
import pytest

from mailbalancer.wire.http_answer import answer, reason, redirect


def read(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    head = connection.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert not connection.trailing_data[0]
    return head, body


@pytest.mark.parametrize("status", [400, 403, 404, 408, 414, 417, 429, 431, 502, 503, 504, 599])
def test_words_for_people(status: int) -> None:
    head, body = read(answer(status))
    assert head.status_code == status
    assert body.startswith(f"{status} {reason(status)}".encode())
    assert (b"connection", b"close") in list(head.headers)


def test_pages() -> None:
    head, body = read(answer(200, b"<p>", "text/html", fields=b"X: y\r\n", close=False))
    assert body == b"<p>"
    assert dict(head.headers)[b"content-type"] == b"text/html"
    assert dict(head.headers)[b"x"] == b"y"
    assert b"connection" not in dict(head.headers)


def test_without_body() -> None:
    head, body = read(answer(503, b"12345", without_body=True), "HEAD")
    assert (dict(head.headers)[b"content-length"], body) == (b"5", b"")
    head, body = read(answer(204, b"ignored"))
    assert b"content-length" not in dict(head.headers)


def test_redirect() -> None:
    head, body = read(redirect(301, b"/owa/", close=False))
    assert (head.status_code, dict(head.headers)[b"location"], body) == (301, b"/owa/", b"")
