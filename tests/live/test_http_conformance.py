"""What a checker of HTTP/1.1 servers asks, asked of the whole program with an echo behind it.

The subjects are those of h1spec: heads that stop anywhere are waited for, good requests are answered with their own
body, and what the RFCs forbid is refused. RFC 9112 sections 2.2, 3, 3.2, 5.1, 6; RFC 9110 sections 5.5, 8.6, 10.1.1.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.web import Message, Web, Wire, reply

pytestmark = pytest.mark.live

TIMEOUT_S = 20.0
WHOLE = b"GET /stops HTTP/1.1\r\nHost: a.example\r\n\r\n"


@dataclass
class Site:
    """One worker with one server behind, which gives back the body it is sent."""

    port: int
    web: Web

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def head(self, data: bytes) -> Message:
        """The head of the first answer to this, also of an interim one."""
        with self.connect() as client:
            client.sendall(data)
            head = Wire(client).head()
        assert head is not None, "closed without an answer"
        return head

    def answer(self, data: bytes) -> Message:
        """The final answer to this."""
        with self.connect() as client:
            client.sendall(data)
            return Wire(client).answer()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = free_port()
    with Web("echo", lambda asked: reply(asked.request.body)) as web:
        service = {
            "mode": "http",
            "listen": f"127.0.0.1:{port}",
            "check": "none",
            "real_servers": {"echo": web.port},
        }
        config = {"real_servers": {"echo": "127.0.0.1"}, "services": {"web": service}, "workers": 1}
        with Balancer(config, tmp_path_factory.mktemp("conformance")):
            yield Site(port, web)


#: How much of a head has come when it stops: in every part of the request line and of a field.
STOPS = {
    "method": b"G",
    "method and space": b"GET ",
    "target": b"GET /stops",
    "target and space": b"GET /stops ",
    "protocol": b"GET /stops HTTP",
    "version": b"GET /stops HTTP/1.1",
    "CR of the request line": b"GET /stops HTTP/1.1\r",
    "request line": b"GET /stops HTTP/1.1\r\n",
    "half a field name": b"GET /stops HTTP/1.1\r\nHos",
    "colon": b"GET /stops HTTP/1.1\r\nHost:",
    "space before a value": b"GET /stops HTTP/1.1\r\nHost: ",
    "value": b"GET /stops HTTP/1.1\r\nHost: a.example",
    "CR of a field": b"GET /stops HTTP/1.1\r\nHost: a.example\r",
    "field": b"GET /stops HTTP/1.1\r\nHost: a.example\r\n",
    "CR of the end": b"GET /stops HTTP/1.1\r\nHost: a.example\r\n\r",
}


@pytest.mark.parametrize("beginning", STOPS.values(), ids=STOPS)
def test_a_head_that_stops_is_waited_for(site: Site, beginning: bytes) -> None:
    with site.connect() as slow:
        slow.sendall(beginning)
        assert site.answer(WHOLE).status == 200  # by now the one worker has seen what came before
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.recv(1)
        slow.settimeout(TIMEOUT_S)
        slow.sendall(WHOLE[len(beginning) :])
        assert Wire(slow).answer().status == 200


GOOD = {
    "plain": (b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n", b""),
    "odd case, a tab, an empty field": (b"GET / HTTP/1.1\r\nhOsT:\tb.example\r\nnothing:\r\n\r\n", b""),
    "a field of one space": (b"GET / HTTP/1.1\r\nHost: b.example\r\nX-Nothing: \r\n\r\n", b""),
    "a length": (b"POST / HTTP/1.1\r\nHost: b.example\r\nContent-Length: 7\r\n\r\nseven !", b"seven !"),
    "chunks": (
        b"POST / HTTP/1.1\r\nHost: b.example\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nten bytes.\r\n0\r\n\r\n",
        b"ten bytes.",
    ),
}


@pytest.mark.parametrize(("data", "body"), GOOD.values(), ids=GOOD)
def test_what_is_good_is_answered(site: Site, data: bytes, body: bytes) -> None:
    answer = site.answer(data)
    assert (answer.status, answer.body) == (200, body)


def test_an_expectation_is_met(site: Site) -> None:
    assert site.head(b"GET / HTTP/1.1\r\nHost: b.example\r\nExpect: 100-continue\r\n\r\n").status in (100, 200)


BAD = {
    "no version": b"GET / \r\n\r\n",
    "brackets in a name": b"GET / HTTP/1.1\r\nHost: b.example\r\nX-List[]: y\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\nContent-Length: 7\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: b.example\r\nHost: c.example\r\n\r\n",
    "a length below any integer": b"GET / HTTP/1.1\r\nHost: b.example\r\nContent-Length: -99999999999999999999\r\n\r\n",
    "a negative length": b"GET / HTTP/1.1\r\nHost: b.example\r\nContent-Length: -77\r\n\r\n",
    "a length in letters": b"GET / HTTP/1.1\r\nHost: b.example\r\nContent-Length: seven\r\n\r\n",
    "a bell in a value": b"GET / HTTP/1.1\r\nHost: b.example\r\nX-Bell: ding\x07\r\n\r\n",
    "an unknown version": b"GET / HTTP/7.7\r\nHost: b.example\r\n\r\n",
    "words before the method": b"Something moreGET / HTTP/1.1\r\nHost: b.example\r\n\r\n",
    "a CR before a name": b"GET / HTTP/1.1\r\nHost: b.example\r\n\rX-Name: y\r\n\r\n",
    "a length beside chunks": (
        b"POST / HTTP/1.1\r\nHost: b.example\r\nconTENT-LENgth: 7\r\ntransFER-encoDING: chunked\r\n\r\n"
        b"A\r\nten bytes.\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_bad_is_refused_and_goes_no_further(site: Site, data: bytes) -> None:
    before = len(site.web.requests)
    with site.connect() as client:
        client.sendall(data)
        wire = Wire(client)
        assert wire.answer().status == 400
        assert not wire.more(), "the connection ends"
    assert len(site.web.requests) == before


def test_these_are_as_many_as_the_checker_asks() -> None:
    assert len(STOPS) + len(GOOD) + 1 + len(BAD) == 33
