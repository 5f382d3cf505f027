from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire import http_body
from mailbalancer.wire.http_body import CHUNKED, NO_BODY, TUNNEL, UNTIL_CLOSE, Framing, Kind, open_body
from mailbalancer.wire.http_head import BadMessage, RequestReader, ResponseReader


def fed(body: http_body.Body, *arrivals: bytes) -> tuple[bytes, bytes]:
    """What was passed on of these arrivals, and what was left over."""
    out, rest = b"", b""
    for data in arrivals:
        got = body.feed(data)
        out += b"".join(got.pieces)
        rest += data[got.taken :]
    return out, rest


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def test_a_length_takes_its_share_and_no_more():
    body = open_body(Framing(Kind.LENGTH, 5))
    assert fed(body, b"hel") == (b"hel", b"")
    assert not body.done
    assert fed(body, b"loNEXT") == (b"lo", b"NEXT")
    assert body.done
    assert fed(body, b"x") == (b"", b"x")
    assert not body.ends_at_close


def test_no_body_is_done_at_once():
    body = open_body(NO_BODY)
    assert body.done
    assert fed(body, b"x") == (b"", b"x")


@pytest.mark.parametrize("framing", [UNTIL_CLOSE, TUNNEL])
def test_the_rest_of_a_connection(framing):
    body = open_body(framing)
    assert fed(body, b"abc", b"", b"def") == (b"abcdef", b"")
    assert (body.done, body.ends_at_close) == (False, True)


def test_pieces_are_views_not_copies():
    data = bytearray(b"5\r\nhello\r\n0\r\n\r\n")
    pieces = open_body(CHUNKED).feed(data).pieces
    assert isinstance(pieces[0], memoryview)
    assert pieces[0].obj is data


REWRITTEN = [
    (b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    (b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    (b"0005\r\nhello\r\n000\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    (b"1\r\na\r\n2;x\r\nbc\r\n1\r\nd\r\n0\r\n\r\n", b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n"),
    (b"0\r\nX-Checksum: abc\r\nETag: y\r\n\r\n", b"0\r\nX-Checksum: abc\r\nETag: y\r\n\r\n"),
    (b"0\r\nHost: evil\r\nX: y\r\nCONTENT-length: 5\r\n\r\n", b"0\r\nX: y\r\n\r\n"),
]


@pytest.mark.parametrize(("data", "out"), REWRITTEN)
def test_chunks_go_on_without_what_could_be_misread(data, out):
    assert fed(open_body(CHUNKED), data + b"NEXT") == (out, b"NEXT")
    assert fed(open_body(CHUNKED), *byte_by_byte(data)) == (out, b"")


@pytest.mark.parametrize(
    "name",
    (
        b"Transfer-Encoding Content-Length Trailer TE Connection Keep-Alive Proxy-Connection Upgrade Host Forwarded "
        b"X-Forwarded-For X-Forwarded-Proto X_Forwarded_For Authorization Proxy-Authorization WWW-Authenticate Cookie "
        b"Set-Cookie Content-Type Content-Encoding Content-Range Cache-Control Expect Range If-Match Max-Forwards Age "
        b"Date Expires Location Retry-After Vary Persistent-Auth Content_Length HOST Origin Sec-WebSocket-Key"
    ).split(),
)
def test_forbidden_trailers_are_dropped(name):
    data = b"0\r\n" + name + b": x\r\nX: y\r\n\r\n"
    assert fed(open_body(CHUNKED), data) == (b"0\r\nX: y\r\n\r\n", b"")


def test_decoded_chunks_are_content_alone():
    data = b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\nX: y\r\n\r\nNEXT"
    assert fed(open_body(CHUNKED, decode=True), data) == (b"hello", b"NEXT")


def test_a_cut_body_is_not_done():
    body = open_body(CHUNKED)
    fed(body, b"5\r\nhello\r\n0\r\n")
    assert (body.done, body.ends_at_close) == (False, False)


def test_extensions_are_bounded_over_the_whole_body():
    chunk = b"1;" + b"x" * 200 + b"\r\na\r\n"
    body = open_body(CHUNKED)
    fed(body, chunk * 20)
    with pytest.raises(BadMessage, match="more than 4096"):
        fed(body, chunk)


def test_trailers_are_bounded_to_the_last_byte():
    line = b"X: " + b"y" * 1019 + b"\r\n"
    assert len(line) * 8 == http_body.MAX_TRAILER_BYTES
    assert fed(open_body(CHUNKED), b"0\r\n" + line * 8 + b"\r\n")[0].endswith(line + b"\r\n")
    for arrivals in ([b"0\r\n" + line * 8 + b"X: y\r\n\r\n"], byte_by_byte(b"0\r\n" + line * 8 + b"X: y\r\n\r\n")):
        with pytest.raises(BadMessage, match="trailers of more than"):
            fed(open_body(CHUNKED), *arrivals)


def test_one_trailer_may_take_all_the_room():
    line = b"X:" + b"y" * (http_body.MAX_TRAILER_BYTES - 2) + b"\r\n"
    assert fed(open_body(CHUNKED), b"0\r\n" + line + b"\r\nNEXT") == (b"0\r\n" + line + b"\r\n", b"NEXT")
    with pytest.raises(BadMessage, match="trailers of more than"):
        fed(open_body(CHUNKED), b"0\r\n" + line + b"X: y\r\n\r\n")


def test_a_malformed_chunk_names_its_side():
    with pytest.raises(BadMessage, match=r"^chunk header b'x'") as caught:
        fed(open_body(CHUNKED), b"x\r\n")
    assert caught.value.status == 400
    with pytest.raises(BadMessage, match=r"^the server's body: chunk longer than its size") as caught:
        fed(open_body(CHUNKED, status=502), b"1\r\nab\r\n")
    assert caught.value.status == 502


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.integers(1, 300), max_size=8),
    st.sampled_from([b"%x", b"%X", b"00%x", b"%x;e=1"]),
    st.booleans(),
)
def test_chunks_survive_every_split(chunks, cuts, header, decode):
    data = b"".join((header + b"\r\n%b\r\n") % (len(chunk), chunk) for chunk in chunks) + b"0\r\nX: y\r\n\r\n"
    whole = data + b"NEXT"
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(whole)]
    body = open_body(CHUNKED, decode)
    out, rest = fed(body, *(whole[a:b] for a, b in itertools.pairwise(ends)))
    assert rest == b"NEXT"
    assert body.done
    if not decode:
        out, rest = fed(open_body(CHUNKED, decode=True), out)
        assert rest == b""
    assert out == b"".join(chunks)


@given(
    st.lists(st.sampled_from([b"5", b"0", b"\r\n", b"\r", b"\n", b"hello", b";", b"a=b", b"X: y", b" ", b"f", b"\0"]))
)
def test_any_chunks_give_one_answer_at_any_split_and_no_other_error(parts):
    data = b"".join(parts)

    def judged(*arrivals: bytes) -> tuple[bytes, bytes] | str:
        try:
            return fed(open_body(CHUNKED, decode=True), *arrivals)
        except BadMessage:
            return "refused"

    assert judged(*byte_by_byte(data)) == judged(data)


def test_expectations():
    reader = RequestReader()
    head = reader.read(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-CONTINUE\r\n\r\n")
    assert head is not None
    assert http_body.expects_continue(head)
    head = reader.read(b"POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    assert head is not None
    assert not http_body.expects_continue(head)


@pytest.mark.parametrize(
    ("line", "method", "upgrading", "framing"),
    [
        (b"200 OK\r\nContent-Length: 7", b"GET", False, Framing(Kind.LENGTH, 7)),
        (b"200 OK\r\nTransfer-Encoding: chunked", b"GET", False, CHUNKED),
        (b"200 OK", b"GET", False, UNTIL_CLOSE),
        (b"200 OK\r\nContent-Length: 7", b"HEAD", False, NO_BODY),
        (b"304 x\r\nContent-Length: 7", b"GET", False, NO_BODY),
        (b"204 x", b"GET", False, NO_BODY),
        (b"100 x", b"POST", False, NO_BODY),
        (b"101 x\r\nConnection: upgrade\r\nUpgrade: websocket", b"GET", True, TUNNEL),
        (b"200 OK", b"CONNECT", False, TUNNEL),
        (b"407 OK", b"CONNECT", False, UNTIL_CLOSE),
    ],
)
def test_how_an_answer_ends(line, method, upgrading, framing):
    head = ResponseReader().read(b"HTTP/1.1 " + line + b"\r\n\r\n")
    assert head is not None
    assert http_body.response_framing(head, method, upgrading) == framing
