from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.http_head import BadMessage, Limits, RequestHead, RequestReader, ResponseReader
from tests.wire.feeding import feed, outcome

READER = RequestReader(extra=["Cookie", "User-Agent"])
ANSWERS = ResponseReader(extra=["Set-Cookie"])
SMALL = Limits(head_bytes=200, target_bytes=50, fields=4)
HEAD = (
    b"POST /owa/auth.owa?x=1 HTTP/1.1\r\nHost: Mail.Example.com:443\r\nUser-Agent:\tOutlook \r\n"
    b"Cookie: a=1\r\nX-Other: untouched \r\ncookie: b=2\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n"
)


def read(data) -> RequestHead:
    head = READER.read(data)
    assert head is not None
    return head


def rewritten(head: RequestHead, removed, added=b"") -> bytes:
    return head.without([(start, end) for name, start, end in head.picked if name in removed], added)


def test_a_request_in_full():
    head = feed(lambda data: READER.read(bytes(data)), HEAD, BadMessage)
    assert (head.method, head.target, head.path, head.minor) == (b"POST", b"/owa/auth.owa?x=1", b"/owa/auth.owa?x=1", 1)
    assert (head.authority, head.host) == (b"Mail.Example.com:443", "mail.example.com")
    assert (head.raw, head.length) == (HEAD, len(HEAD))
    assert head.values == {
        b"host": [b"Mail.Example.com:443"],
        b"user-agent": [b"Outlook"],
        b"cookie": [b"a=1", b"b=2"],
        b"connection": [b"keep-alive"],
        b"content-length": [b"3"],
    }
    assert [head.raw[start:end] for _, start, end in head.picked][1] == b"User-Agent:\tOutlook \r\n"
    assert [name for name, _, _ in head.picked].count(b"cookie") == 2


def test_a_response_in_full():
    fields = b"WWW-Authenticate: NTLM\r\nwww-authenticate: Basic\r\nX: y\r\nSet-Cookie: a\r\n"
    data = b"HTTP/1.1 401 Not Authorized\r\n" + fields + b"\r\n"
    head = feed(lambda data: ANSWERS.read(bytes(data)), data, BadMessage)
    assert (head.status, head.reason, head.minor, head.length) == (401, b"Not Authorized", 1, len(data))
    assert head.values == {b"www-authenticate": [b"NTLM", b"Basic"], b"set-cookie": [b"a"]}


def test_rewriting_leaves_every_other_byte_as_it_was():
    out = rewritten(read(HEAD), {b"cookie", b"connection"}, b"X-Forwarded-For: 192.0.2.1\r\n")
    assert out == (
        b"POST /owa/auth.owa?x=1 HTTP/1.1\r\nHost: Mail.Example.com:443\r\nUser-Agent:\tOutlook \r\n"
        b"X-Other: untouched \r\nContent-Length: 3\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    )
    assert rewritten(read(HEAD), ()) == HEAD


def test_lines_that_were_not_picked_can_be_found():
    head = read(HEAD)
    lines = head.lines_named({b"x-other", b"cookie", b"post /owa/auth.owa?x=1 http/1.1"})
    assert [head.raw[start:end] for start, end in lines] == [
        b"Cookie: a=1\r\n",
        b"X-Other: untouched \r\n",
        b"cookie: b=2\r\n",
    ]


def test_an_empty_line_before_counts_for_the_input_only():
    head = read(b"\r\n" + HEAD + b"abc")
    assert (head.raw, head.length) == (HEAD, len(HEAD) + 2)


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        (b"/a?b", "a.example", b"/a?b"),
        (b"http://A.example", "a.example", b"/"),
        (b"http://a.example?q", "a.example", b"/?q"),
        (b"https://a.example/x", "a.example", b"/x"),
        (b"*", "a.example", b"*"),
    ],
)
def test_the_path_that_is_asked_for(target, host, path):
    head = read(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert (head.host, head.path, head.target) == (host, path, target)


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"Mail.Example.COM.", "mail.example.com"),
        (b"a.example.:8443", "a.example"),
        (b"[2001:DB8::1]:443", "2001:db8::1"),
        (b"192.0.2.1:80", "192.0.2.1"),
    ],
)
def test_the_name_to_route_by(authority, host):
    assert read(b"GET / HTTP/1.1\r\nHost: " + authority + b"\r\n\r\n").host == host


def test_a_url_names_the_host_of_an_old_request():
    head = read(b"GET http://Old.example:81/x HTTP/1.0\r\n\r\n")
    assert (head.authority, head.host, head.path) == (b"Old.example:81", "old.example", b"/x")
    assert read(b"GET /x HTTP/1.0\r\n\r\n").host == ""


def test_both_spellings_of_an_identity_field_are_one():
    head = read(b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 192.0.2.1\r\nX-FORWARDED_for: 192.0.2.2\r\n\r\n")
    assert head.values[b"x-forwarded-for"] == [b"192.0.2.1", b"192.0.2.2"]
    assert rewritten(head, {b"x-forwarded-for"}) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_an_underscore_in_an_extra_name_is_itself():
    reader = RequestReader(extra=["X_Device"])
    head = reader.read(b"GET / HTTP/1.1\r\nHost: a\r\nX_Device: 1\r\nX-Device: 2\r\n\r\n")
    assert head is not None
    assert head.values[b"x_device"] == [b"1"]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb"])
def test_an_extra_name_has_to_be_one(name):
    with pytest.raises(ValueError, match="not a header field name"):
        RequestReader(extra=[name])


LIMITED = [
    (b"GET /" + b"a" * 50 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"GET /" + b"a" * 50, 414),
    (b"GET /" + b"a" * 49 + b" HTTP/1.1\r\nHost: a\r\nX:", None),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 180, 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 180 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 4 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 4 + b"Z : y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n\0" + b"a" * 180, 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 180 + b"\0", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (200 - 29) + b"\r", None),
]


@pytest.mark.parametrize(("data", "status"), LIMITED)
@pytest.mark.parametrize("blank", [b"", b"\r\n"])
def test_limits(data, status, blank):
    reader = RequestReader(limits=SMALL)
    try:
        assert reader.read(blank + data) is None
        found = None
    except BadMessage as bad:
        found = bad.status
    assert found == status


def test_a_head_of_exactly_the_limit_passes():
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (200 - 32) + b"\r\n\r\n"
    assert len(data) == 200
    assert RequestReader(limits=SMALL).read(data) is not None
    with pytest.raises(BadMessage, match="more than 200 bytes"):
        RequestReader(limits=SMALL).read(data.replace(b"X: ", b"X: b"))
    answer = b"HTTP/1.1 200 OK\r\nX: " + b"a" * (200 - 24) + b"\r\n\r\n"
    assert ResponseReader(limits=SMALL).read(answer) is not None
    with pytest.raises(BadMessage, match="more than 200 bytes"):
        ResponseReader(limits=SMALL).read(answer.replace(b"X: ", b"X: b"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x16\x03\x01\x02", "TLS handshake on a plain HTTP port"),
        (b"PRI * HTTP/2.0\r\n\r\n", "HTTP/2"),
        (b"GET /\r\n", "HTTP/0.9"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0", "NUL byte"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb", "CR without LF"),
        (b"GET / HTTP/1.1\nHost: a", "not an HTTP/1.x request line"),
        (b"GET / HTTP/1.1\r\nHost: a\n", "LF without CR"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", "obs-fold"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", "not a header field: b'X : y'"),
        (b"GET / HTTP/1.1\r\n\r\n", "without Host"),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "names b'b', Host names b'a'"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n", "content_length"),
    ],
)
def test_the_refusal_says_what_is_wrong(data, words):
    with pytest.raises(BadMessage, match=words) as caught:
        READER.read(data)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"220 mail.example.com ESMTP\r\n", "status line"),
        (b"HTTP/1.1 200 OK\r\nX: \0", "NUL"),
        (b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", "not a header field"),
        (b"HTTP/1.1 200 OK\r\nContent_Length: 5\r\n\r\n", "content_length"),
    ],
)
def test_a_servers_mistake_is_answered_with_502(data, words):
    with pytest.raises(BadMessage, match=words) as caught:
        ANSWERS.read(data)
    assert caught.value.status == 502


@pytest.mark.parametrize("head", [b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\nX: y"])
def test_what_was_seen_is_not_judged_again_but_what_is_new_is(head):
    assert READER.read(head) is None
    for tail in (b"\0", b"\n", b"\rx"):
        with pytest.raises(BadMessage):
            READER.read(head + tail, seen=len(head))
    with pytest.raises(BadMessage):
        READER.read(head + b"\rx", seen=len(head) + 1)  # the CR was seen, but not what follows it
    if head.endswith(b"y"):
        assert READER.read(head + b"\r\n\r", seen=len(head)) is None
        assert READER.read(head + b"\r\n\r\n", seen=len(head) + 3) is not None


near = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from(
            [
                b"GET / HTTP/1.1",
                b"GET ",
                b"/x",
                b" HTTP/1.1",
                b"HTTP/1.1 200 OK",
                b"\r\n",
                b"\r\n",
                b"Host: a",
                b"X: y",
                b":",
                *(b" ", b"\r", b"\n", b"\0", b"\t", b"Connection: close", b"a" * 30, b"\xff", b"Host: b"),
            ]
        ),
        max_size=12,
    ).map(b"".join),
)


@given(near, st.lists(st.integers(0, 150), max_size=6), st.sampled_from([SMALL, Limits(head_bytes=40, target_bytes=5)]))
def test_any_bytes_give_one_answer_at_any_split_and_no_other_error(data, cuts, limits):
    for reader in (RequestReader(limits=limits), ResponseReader(limits=limits)):
        whole = outcome(reader.read, data, BadMessage)
        seen = 0
        for cut in [*sorted(cuts), len(data)]:
            arrived = bytearray(data[:cut])
            found = outcome(lambda piece, seen=seen, read=reader.read: read(piece, seen), arrived, BadMessage)
            if found is not None:
                assert found == whole
                break
            seen = len(arrived)
        else:
            assert whole is None


# --- fields that come again ------------------------------------------------------------------------------------------

AGAIN = b"\r\nHost: mail.example.com\r\nCookie: a=1\r\nX-Other: y\r\n\r\n"


def test_the_same_fields_behind_another_first_line_mean_the_same():
    reader = RequestReader(("cookie",))
    for line in (b"GET / HTTP/1.1", b"GET /long/er?x HTTP/1.1", b"POST /%41 HTTP/1.1", b"DELETE /x HTTP/1.1"):
        fresh = RequestReader(("cookie",)).read(line + AGAIN)
        known = reader.read(line + AGAIN)
        assert known == fresh
        assert rewritten(known, {b"cookie"}, b"A: b\r\n") == rewritten(fresh, {b"cookie"}, b"A: b\r\n")
    assert known.fields is not None
    assert known.fields is reader.read(b"GET / HTTP/1.1" + AGAIN).fields


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.0", b"GET http://mail.example.com/ HTTP/1.1", b"OPTIONS * HTTP/1.1",
        b"CONNECT mail.example.com:443 HTTP/1.1",
    ],
)  # fmt: skip
def test_first_lines_that_the_fields_depend_on_are_judged_with_them(line):
    reader = RequestReader(("cookie",))
    for _ in range(3):
        reader.read(b"GET / HTTP/1.1" + AGAIN)
    try:
        expected = RequestReader(("cookie",)).read(line + AGAIN)
    except BadMessage as bad:
        with pytest.raises(BadMessage, match=re.escape(str(bad))):
            reader.read(line + AGAIN)
    else:
        found = reader.read(line + AGAIN)
        assert found == expected
        assert found.fields is None


@pytest.mark.parametrize(
    "line",
    [
        b"GET /#x HTTP/1.1", b"GET  / HTTP/1.1", b"GET /\x7f HTTP/1.1", b"G@T / HTTP/1.1", b"GET / HTTP/1.2",
        b"GET http://other.example.com/ HTTP/1.1", b"CONNECT / HTTP/1.1", b"A" * 65 + b" / HTTP/1.1",
        b"GET / HTTP/1.1 ", b"GET /" + b"a" * 16384 + b" HTTP/1.1",
    ],
    ids=range(10),
)  # fmt: skip
def test_no_first_line_passes_because_its_fields_are_known(line):
    reader = RequestReader(("cookie",))
    for _ in range(3):
        reader.read(b"GET / HTTP/1.1" + AGAIN)
    with pytest.raises(BadMessage) as fresh:
        RequestReader(("cookie",)).read(line + AGAIN)
    with pytest.raises(BadMessage) as known:
        reader.read(line + AGAIN)
    assert (known.value.status, str(known.value)) == (fresh.value.status, str(fresh.value))


def test_what_follows_from_fields_is_kept_with_them():
    reader = RequestReader()
    heads = [reader.read(b"GET / HTTP/1.1" + AGAIN) for _ in range(3)]
    assert heads[0].fields is None  # once is no habit
    assert heads[1].fields is heads[2].fields
    heads[1].fields.keep("key", 1)
    assert heads[2].fields.made("key") == 1
    assert heads[2].fields.made("other") is None
    for number in range(100):
        heads[1].fields.keep(number, number)
    assert sum(heads[1].fields.made(number) is not None for number in range(100)) <= 16


def test_answers_are_remembered_too():
    reader = ResponseReader()
    for line in (b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 304"):
        for _ in range(2):
            assert reader.read(line + AGAIN) == ResponseReader().read(line + AGAIN)
    assert reader.read(b"HTTP/1.1 200 OK" + AGAIN).fields is not None
    assert reader.read(b"HTTP/1.0 200 OK" + AGAIN).fields is None
    with pytest.raises(BadMessage):
        reader.read(b"HTTP/1.1 600 No" + AGAIN)


def test_the_memory_has_a_bound():
    reader = RequestReader()
    for number in range(2000):
        for _ in range(2):
            reader.read(b"GET / HTTP/1.1\r\nHost: a\r\nX: %d\r\n\r\n" % number)
    assert len(reader._memory._known) <= 256
    large = b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 5000)
    assert all(reader.read(large).fields is None for _ in range(4))
