"""Our HTTP reader against h11 and llhttp (httptools): where we accept a message, they must read the same one.

Two questions are asked of each of them. What we pass on they must accept, but for the reasons in `excused`, and read as
we did. What came in they may refuse (trailers that we drop, an empty line that we skip), but if they accept it, they
must have read the same start, fields and body. What we refuse is of no concern: being stricter is the intent.
"""

from __future__ import annotations

from typing import NamedTuple

import h11
import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.wire.hop_by_hop import cuts, read_connection
from mailbalancer.wire.http_body import open_body, request_framing, response_framing
from mailbalancer.wire.http_head import BadMessage, RequestReader, ResponseReader
from tests.wire.damage import edited, edits
from tests.wire.http_corpus import REQUESTS, RESPONSES

REQUEST_READER = RequestReader()
RESPONSE_READER = ResponseReader()

#: llhttp knows a fixed list of methods; RPC_IN_DATA, RPC_OUT_DATA and much of WebDAV are not on it.
LLHTTP_METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK "
    b"UNLINK SOURCE QUERY".split()
)


class Read(NamedTuple):
    """One message as a reader understood it. `start` is (method, target) or (status,)."""

    start: tuple[bytes, ...]
    fields: list[tuple[bytes, bytes]]
    body: bytes


class Refusal(NamedTuple):
    why: str


def fields_of(raw: bytes) -> list[tuple[bytes, bytes]]:
    parts = (line.partition(b":") for line in raw[:-4].split(b"\r\n")[1:])
    return [normal(name, value) for name, _, value in parts]


def normal(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """h11 writes the coding in small letters, as it may: it is case-insensitive."""
    value = value.strip(b" \t")
    return name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value


class Accepted(NamedTuple):
    """A complete message we accept: as it came in, as it goes out, and what we understood of both."""

    came_in: Read
    goes_out: Read
    passed_on: bytes


def ours(data: bytes, method: bytes = b"") -> Accepted | None:
    """The first message of `data`, when it is complete and we accept it. With `method`: the response to that."""
    try:
        head = RESPONSE_READER.read(data) if method else REQUEST_READER.read(data)
        if head is None:
            return None
        connection = read_connection(head)
        framing = response_framing(head, method) if method else request_framing(head)
        bodies = [open_body(framing, decode) for decode in (True, False)]
        plain, framed = (b"".join(body.feed(data[head.length :]).pieces) for body in bodies)
    except BadMessage:
        return None
    if not bodies[0].done:
        return None
    start = (b"%d" % head.status,) if method else (head.method, head.target)
    out = head.without(cuts(head, connection))
    return Accepted(Read(start, fields_of(head.raw), plain), Read(start, fields_of(out), plain), out + framed)


def by_h11(data: bytes, method: bytes = b"") -> Read | Refusal | None:
    connection = h11.Connection(h11.CLIENT if method else h11.SERVER, max_incomplete_event_size=1 << 20)
    if method:
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        connection.send(h11.EndOfMessage())
    start, fields, body = (), [], b""
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                start, fields = (event.method, event.target), list(event.headers)
            elif isinstance(event, h11.Response):
                start, fields = (b"%d" % event.status_code,), list(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Read(start, [normal(bytes(name), bytes(value)) for name, value in fields], body)
            elif isinstance(event, h11.InformationalResponse):
                return Read((b"%d" % event.status_code,), [normal(*map(bytes, field)) for field in event.headers], b"")
            else:
                return None
    except h11.RemoteProtocolError as error:
        return Refusal(str(error))


class Llhttp:
    """Keeps the first message llhttp reports."""

    def __init__(self, answers: bool) -> None:
        self.url, self.body, self.fields, self.complete = b"", b"", [], 0
        self.trailers = False
        self._heads = 0
        self._parser = httptools.HttpResponseParser(self) if answers else httptools.HttpRequestParser(self)
        self.start: tuple[bytes, ...] = ()

    def on_url(self, url: bytes) -> None:
        if not self.complete:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete and not self._heads:
            self.fields.append(normal(name, value))

    def on_headers_complete(self) -> None:
        self._heads += 1
        if self._heads == 1:
            status = isinstance(self._parser, httptools.HttpResponseParser)
            self.start = (b"%d" % self._parser.get_status_code(),) if status else (self._parser.get_method(), self.url)

    def on_body(self, body: bytes) -> None:
        if not self.complete:
            self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)


def by_llhttp(data: bytes, method: bytes = b"") -> Read | Refusal | None:
    reader = Llhttp(bool(method))
    try:
        reader.feed(data)
    except httptools.HttpParserUpgrade:
        return Refusal("upgrade")
    except httptools.HttpParserError as error:
        if not reader.complete:
            return Refusal(f"{type(error).__name__}: {error}")
    return Read(reader.start, reader.fields, reader.body) if reader.complete else None


def excused(accepted: Accepted, who: str, theirs: Refusal) -> bool:
    """Whether a refusal of what we pass on has a reason that desynchronises nobody."""
    unknown_method = accepted.came_in.start[0] not in LLHTTP_METHODS
    return who == "llhttp" and ((unknown_method and "InvalidMethod" in theirs.why) or theirs.why == "upgrade")


def compare(data: bytes, method: bytes = b"") -> bool:
    """Whether we accepted it; then the other two must have understood the same."""
    accepted = ours(data, method)
    if accepted is None:
        return False
    for who, read in (("h11", by_h11), ("llhttp", by_llhttp)):
        if who == "llhttp" and method == b"HEAD":  # httptools has no way to say what was asked
            continue
        theirs = read(accepted.passed_on, method)
        if not (isinstance(theirs, Refusal) and excused(accepted, who, theirs)):
            assert theirs == accepted.goes_out, f"{who} on what we pass on"
        theirs = read(data, method)
        if isinstance(theirs, Read):
            assert theirs == accepted.came_in, f"{who} on what came in"
    return True


SMALL_REQUESTS = [case.data for case in REQUESTS if len(case.data) < 2000]
SMALL_RESPONSES = [case for case in RESPONSES if len(case.data) < 2000 and case.method != b"CONNECT"]


def test_the_corpus_is_read_alike():
    assert sum(compare(case.data) for case in REQUESTS) > 90


def test_the_response_corpus_is_read_alike():
    assert sum(compare(case.data, case.method) for case in SMALL_RESPONSES) > 15


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(SMALL_REQUESTS), edits)
def test_damaged_requests_are_read_alike_or_refused(data, changes):
    compare(edited(data, changes))


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(SMALL_RESPONSES), edits)
def test_damaged_responses_are_read_alike_or_refused(case, changes):
    compare(edited(case.data, changes), case.method)


tokens = st.text("abcXYZ019-_.~!", min_size=1, max_size=12).map(str.encode)
values = st.text('abc019 \t,;:"=äß', max_size=20).map(lambda text: text.encode("latin-1"))
bodies = st.one_of(
    st.just(b"\r\n"),
    st.binary(max_size=40).map(lambda body: b"Content-Length: %d\r\n\r\n%b" % (len(body), body)),
    st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(
        lambda chunks: (
            b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n"
            % b"".join(b"%x;e=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        )
    ),
)


@given(
    st.sampled_from([b"GET", b"POST", b"RPC_IN_DATA", b"PROPFIND", b"HEAD"]),
    tokens,
    st.lists(st.tuples(tokens.map(lambda token: b"x-" + token), values), max_size=5),
    bodies,
)
def test_sound_requests_are_accepted_and_read_alike(method, path, fields, body):
    lines = b"".join(b"%b:%b\r\n" % field for field in fields)
    assert compare(b"%b /%b HTTP/1.1\r\nHost: a.example\r\n%b%b" % (method, path, lines, body))
