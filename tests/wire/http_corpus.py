"""HTTP/1.1 payloads and what must become of them: the table behind the promise that nobody can desynchronise us.

A request payload ends in `Ok` (the bodies a server behind would receive, in order, and what stands at the end), or in
the status with which it is refused before anything of it reaches a server. A response payload ends in `Ok` with its one
body, or is refused with 502.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MORE: Final = -1


@dataclass(frozen=True)
class Ok:
    """Passed on: these bodies; `then` is 0 (all consumed), MORE (waits for more) or the status that refuses the rest.

    A body that is refused on its way is not among them: how much of it had gone depends on how it arrived.
    """

    bodies: tuple[bytes, ...]
    then: int = 0


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    verdict: Ok | int
    method: bytes = b"GET"  # responses: of the request that is answered
    upgrading: bool = False
    closed: bool = False  # responses: the body ends with the connection


HOST: Final = b"Host: mail.example.com\r\n"
EMPTY: Final = Ok((b"",))


def request(line: bytes = b"GET / HTTP/1.1", *fields: bytes, body: bytes = b"", host: bytes = HOST) -> bytes:
    return line + b"\r\n" + host + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return request(b"POST /owa/ HTTP/1.1", *fields, body=body)


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


def named(prefix: str, verdict: Ok | int, payloads: dict[str, bytes]) -> list[Case]:
    return [Case(f"{prefix}: {name}", data, verdict) for name, data in payloads.items()]


def each(prefix: str, verdict: Ok | int, payloads: list[bytes]) -> list[Case]:
    return [Case(f"{prefix} {number}: {data[:60]!r}", data, verdict) for number, data in enumerate(payloads)]


CONTROLS: Final = [bytes((n,)) for n in (*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)]
FULLWIDTH: Final = "１２".encode()

REQUEST_LINES: Final = [
    *each(
        "good line",
        EMPTY,
        [
            request(line)
            for line in (
                b"GET / HTTP/1.1",
                b"GET /owa/?a=b&c=%20d HTTP/1.1",
                b"RPC_IN_DATA /rpc/rpcproxy.dll?ex1.example.com:6001 HTTP/1.1",
                b"RPC_OUT_DATA /rpc/rpcproxy.dll?ex1.example.com:6001 HTTP/1.1",
                b"PROPFIND /public HTTP/1.1",
                b"BPROPPATCH /x HTTP/1.1",
                b"X-MS-ENUMATTS /x HTTP/1.1",
                b"MKCOL / HTTP/1.1",
                b"M-SEARCH / HTTP/1.1",
                b"get / HTTP/1.1",
                b"OPTIONS * HTTP/1.1",
                b"OPTIONS /Microsoft-Server-ActiveSync HTTP/1.1",
                b"GET //double/slash HTTP/1.1",
                b'GET /back\\slash|pipe{brace}"quote HTTP/1.1',
                b"GET http://mail.example.com/owa HTTP/1.1",
                b"GET HTTPS://MAIL.EXAMPLE.COM HTTP/1.1",
                b"GET http://mail.example.com?q=1 HTTP/1.1",
                b"GET / HTTP/1.0",
                b"!#$%&'*+-.^_`|~ / HTTP/1.1",
                b"A" * 64 + b" / HTTP/1.1",
                b"GET /" + b"a" * 16383 + b" HTTP/1.1",
            )
        ],
    ),
    *each(
        "bad line",
        400,
        [
            request(line)
            for line in (
                b"GET  / HTTP/1.1",
                b"GET /  HTTP/1.1",
                b" GET / HTTP/1.1",
                b"GET / HTTP/1.1 ",
                b"GET\t/ HTTP/1.1",
                b"GET /\tHTTP/1.1",
                b"GET / HTTP/1.1\t",
                b"GET / a HTTP/1.1",
                b"GET /",
                b"GET",
                b"GET / ",
                b"/ HTTP/1.1",
                b"GET HTTP/1.1",
                b"GET / HTTP/1.2",
                b"GET / HTTP/1.10",
                b"GET / HTTP/1.1x",
                b"GET / HTTP/01.1",
                b"GET / HTTP/1.",
                b"GET / HTTP/1",
                b"GET / HTTP/2.0",
                b"GET / HTTP/0.9",
                b"GET / HTTP/3",
                b"GET / http/1.1",
                b"GET / HTTPS/1.1",
                b"GET / HTTP/+1.1",
                b"GET / HTTP/1,1",
                b"GET / HTTP /1.1",
                b"GET / ICAP/1.0",
                b"GET / HTTP/" + FULLWIDTH,
                b"G(T / HTTP/1.1",
                b"GET: / HTTP/1.1",
                b"G\xc3\x8bT / HTTP/1.1",
                b"GET /\xc3\xa4 HTTP/1.1",
                b"GET /\xff HTTP/1.1",
                b"GET /#fragment HTTP/1.1",
                b"GET http://mail.example.com/#f HTTP/1.1",
                b"GET * HTTP/1.1",
                b"GET owa/ HTTP/1.1",
                b"GET mail.example.com HTTP/1.1",
                b"GET mail.example.com:443 HTTP/1.1",
                b"GET ../etc/passwd HTTP/1.1",
                b"GET ?q HTTP/1.1",
                b"GET http:/mail.example.com/ HTTP/1.1",
                b"GET http:// HTTP/1.1",
                b"GET http:///path HTTP/1.1",
                b"GET ftp://mail.example.com/ HTTP/1.1",
                b"GET file:///etc/passwd HTTP/1.1",
                b"GET http://user@mail.example.com/ HTTP/1.1",
                b"GET http://other.example.com/ HTTP/1.1",
                b"GET http://mail.example.com:443/ HTTP/1.1",
                b"GET http://mail.example.com./ HTTP/1.1",
                b"GET http://mail.example.com\\@evil.example/ HTTP/1.1",
                b"CONNECT / HTTP/1.1",
                b"CONNECT mail.example.com HTTP/1.1",
                b"CONNECT other.example.com:443 HTTP/1.1",
                b"CONNECT mail.example.com:443 HTTP/1.1",  # its authority is not Host's
                b"CONNECT http://mail.example.com:443 HTTP/1.1",
                b"OPTIONS ** HTTP/1.1",
                b"A" * 65 + b" / HTTP/1.1",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            )
        ],
    ),
    *each("control in line", 400, [request(b"GET /a" + c + b"b HTTP/1.1") for c in CONTROLS]),
    *named(
        "line",
        400,
        {
            "HTTP/0.9": b"GET /\r\n\r\n",
            "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "two empty lines before": b"\r\n\r\n" + request(),
            "bare LF before": b"\n" + request(),
            "bare CR before": b"\r" + request(),
            "SMTP": b"EHLO client.example\r\nMAIL FROM:<a@b>\r\n\r\n",
            "bare LF at the end of the line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
            "bare CR at the end of the line": b"GET / HTTP/1.1\r" + HOST + b"\r\n",
            "CR CR LF": b"GET / HTTP/1.1\r\r\n" + HOST + b"\r\n",
            "bare LF everywhere": b"GET / HTTP/1.1\nHost: mail.example.com\n\n",
            "PROXY header": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request(),
        },
    ),
    *named("line", EMPTY, {"one empty line before": b"\r\n" + request()}),
    *named(
        "line",
        414,
        {"target too long": request(b"GET /" + b"a" * 16384 + b" HTTP/1.1"), "endless": b"GET /" + b"a" * 20000},
    ),
]

FIELDS: Final = [
    *each(
        "good field",
        EMPTY,
        [
            request(b"GET / HTTP/1.1", field)
            for field in (
                b"X:",
                b"X: ",
                b"X:\t",
                b"X:y",
                b"X:  y  z \t ",
                b"X: a:b:c",
                b"X: \xe4\xf6\xfc \xc3\xa4",
                b"!#$%&'*+-.^_`|~09AZaz: y",
                b'X: "quoted, list"; a=b',
                b"X: " + b"k" * 65536,
                b"Authorization: Negotiate " + b"YII" * 21333,
                b"Connection: close",
                b"Connection: keep-alive, Upgrade",
                b"Connection: , ,close,",
                b"Connection: Authorization, Cookie, Host",
                b"TE: trailers",
                b"Content_Type: text/plain",
            )
        ],
    ),
    *each(
        "bad field",
        400,
        [
            request(b"GET / HTTP/1.1", field)
            for field in (
                b"X : y",
                b"X\t: y",
                b" X: y",
                b"\tX: y",
                b": y",
                b":",
                b"X",
                b"X y",
                b"X;: y",
                b"X(1): y",
                b"X[]: y",
                b"X/Y: z",
                b"X@Y: z",
                b'"X": y',
                b"X,Y: z",
                b"X=Y: z",
                b"X\x80: y",
                b"X\xc3\xa4: y",
                b"\xe2\x84\xaa: y",
                b"\xef\xbb\xbfX: y",
                b"X: y\r\n folded",
                b"X: y\r\n\tfolded",
                b"X: y\r\n ",
                b"X: y\r\n\r",
                b"X: y\nZ: w",
                b"X: y\rZ: w",
                b"X: y\r\rZ: w",
                b"X: y\n",
                b"X: y\r",
                b"X: y\n\r",
                b"\nX: y",
                b"\rX: y",
                b"X\r: y",
                b"X\n: y",
                b"X:\n y",
                b"X:\r y",
                b"X:\r\n y",
                b"Connection: close, a b",
                b'Connection: "close"',
                b"Connection: close;x",
                b"Connection: a=b",
                b"Content_Length: 5",
                b"Transfer_Encoding: chunked",
                b"CONTENT_LENGTH: 5",
                b"Transfer\xadEncoding: chunked",
            )
        ],
    ),
    *each("control in a value", 400, [request(b"GET / HTTP/1.1", b"X: a" + c + b"b") for c in CONTROLS]),
    *each("control in a name", 400, [request(b"GET / HTTP/1.1", b"X" + c + b"Y: b") for c in (*CONTROLS, b"\t", b" ")]),
    *named(
        "first line",
        400,
        {
            "folded": b"GET / HTTP/1.1\r\n " + HOST + b"\r\n",
            "folded with a tab": b"GET / HTTP/1.1\r\n\t" + HOST + b"\r\n",
            "empty name": b"GET / HTTP/1.1\r\n: x\r\n" + HOST + b"\r\n",
        },
    ),
    *named(
        "limit",
        431,
        {
            "head too large": request(b"GET / HTTP/1.1", b"X: " + b"k" * 73728),
            "endless field": request(b"GET / HTTP/1.1", b"X: " + b"k" * 80000)[:-2],
            "many large fields": request(b"GET / HTTP/1.1", *[b"X: " + b"k" * 1000] * 80),
            "too many fields": request(b"GET / HTTP/1.1", *[b"X: y"] * 256),
            "no end in sight": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 13000,
        },
    ),
    *named("limit", EMPTY, {"as many fields as there may be": request(b"GET / HTTP/1.1", *[b"X: y"] * 255)}),
    *named(
        "cut",
        Ok((), MORE),
        {
            "nothing": b"",
            "half an empty line": b"\r",
            "an empty line": b"\r\n",
            "method": b"GE",
            "line": b"GET / HTTP/1.1\r\n",
            "before the last LF": request()[:-1],
            "before the last CR": request()[:-2],
            "in a field": request(b"GET / HTTP/1.1", b"X: y")[:-5],
        },
    ),
]


def hosted(value: bytes) -> bytes:
    return request(host=b"Host:" + value + b"\r\n")


HOSTS: Final = [
    *each(
        "good host",
        EMPTY,
        [
            hosted(value)
            for value in (
                b" mail.example.com",
                b"mail.example.com",
                b"\tmail.example.com \t",
                b" MAIL.example.COM:443",
                b" mail.example.com.",
                b" mail.example.com.:443",
                b" ex1",
                b" ex_1.corp",
                b" 192.0.2.1",
                b" 192.0.2.1:8443",
                b" [2001:db8::1]",
                b" [2001:db8::1]:443",
                b" a:0",
            )
        ],
    ),
    *each(
        "bad host",
        400,
        [
            hosted(value)
            for value in (
                b"",
                b" ",
                b" .",
                b" a..b",
                b" .a",
                b" a b",
                b" a,b",
                b" a, a",
                b" a/b",
                b" a\\b",
                b" a?b",
                b" a#b",
                b" a@b",
                b" user:pw@a",
                b" http://a",
                b" a:",
                b" a:b",
                b" a:80:80",
                b" a:65536",
                b" a:999999",
                b" a:+80",
                b" a:-1",
                b" a:8_0",
                b" a: 80",
                b" a :80",
                b" a:\xef\xbc\x91",
                b" :80",
                b" 2001:db8::1",
                b" [2001:db8::1",
                b" [::1]x",
                b" [::1]:",
                b" []",
                b" [fe80::1%25eth0]",
                b" [v1.x]",
                b" [localhost]",
                b" a%41",
                b" m\xc3\xbcller.example",
                b" a;b",
                b" a'b",
                b' a"b',
                b" <a>",
                b" a*b",
                b" *",
                b" a&b",
                b" a=b",
                b" a$b",
                b" a!b",
                b" a(b)",
                b" a|b",
                b" a~b",
                b" " + b"a" * 300,
            )
        ],
    ),
    *named(
        "host",
        400,
        {
            "missing": b"GET / HTTP/1.1\r\n\r\n",
            "missing with a URL": b"GET http://mail.example.com/ HTTP/1.1\r\n\r\n",
            "twice": request(b"GET / HTTP/1.1", b"Host: evil.example"),
            "twice the same": request(b"GET / HTTP/1.1", b"Host: mail.example.com"),
            "twice in other letters": request(b"GET / HTTP/1.1", b"hOST: mail.example.com"),
            "twice in HTTP/1.0": request(b"GET / HTTP/1.0", b"Host: mail.example.com"),
            "bad in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n",
        },
    ),
    *named(
        "host",
        EMPTY,
        {
            "missing in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
            "of CONNECT": request(b"CONNECT mail.example.com:443 HTTP/1.1", host=b"Host: Mail.example.com:443\r\n"),
            "in a URL of HTTP/1.0": b"GET http://mail.example.com/ HTTP/1.0\r\n\r\n",
        },
    ),
]

LENGTHS: Final = [
    *named(
        "length",
        Ok((b"hello",)),
        {
            "plain": post(b"Content-Length: 5", body=b"hello"),
            "other letters": post(b"cONTENT-lENGTH:5", body=b"hello"),
            "blanks around": post(b"Content-Length: \t 5 \t", body=b"hello"),
            "with GET": request(b"GET / HTTP/1.1", b"Content-Length: 5", body=b"hello"),
            "with HEAD": request(b"HEAD / HTTP/1.1", b"Content-Length: 5", body=b"hello"),
            "with HTTP/1.0": request(b"POST / HTTP/1.0", b"Content-Length: 5", body=b"hello"),
            "with RPC_IN_DATA": request(b"RPC_IN_DATA /rpc HTTP/1.1", b"Content-Length: 5", body=b"hello"),
            "expected": post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello"),
            "expected loudly": post(b"Content-Length: 5", b"Expect: 100-Continue", body=b"hello"),
        },
    ),
    *named("length", EMPTY, {"zero": post(b"Content-Length: 0"), "none with POST": post()}),
    *named(
        "length",
        Ok((b"hello", b"")),
        {"pipelined": post(b"Content-Length: 5", body=b"hello" + request())},
    ),
    *named(
        "length",
        Ok((b"", b""), 0),
        {"zero and another": post(b"Content-Length: 0", body=request()), "none and another": post(body=request())},
    ),
    *named("length", Ok((b"hello",), 400), {"rubbish behind": post(b"Content-Length: 5", body=b"hello\0\r\n\r\n")}),
    *named(
        "length",
        Ok((b"hel",), MORE),
        {
            "cut": post(b"Content-Length: 5", body=b"hel"),
            "huge but countable": post(b"Content-Length: 999999999999999999", body=b"hel"),
            "2 GiB": post(b"Content-Length: 2147483648", body=b"hel"),
        },
    ),
    *each(
        "bad length",
        400,
        [
            post(b"Content-Length:" + value, body=b"hello")
            for value in (
                b"",
                b" ",
                b" +5",
                b" -5",
                b" -0",
                b" 5,5",
                b" 5, 5",
                b" 5,",
                b" ,5",
                b" 5, 6",
                b" 5;5",
                b" 5 5",
                b" 05",
                b" 00",
                b" 0x5",
                b" 5h",
                b" five",
                b" 5.0",
                b" 5e0",
                b" 1_0",
                b' "5"',
                b" 1000000000000000000",
                b" 18446744073709551621",
                b" 99999999999999999999999999",
                b" 9223372036854775808",
                b" " + FULLWIDTH,
                b" \xb2",
                b" \xd9\xa5",
                b" 5\xa0",
                b" \xa05",
                b" %35",
                b" '5'",
                b" chunked",
                b" null",
            )
        ],
    ),
    *named(
        "bad length",
        400,
        {
            "twice": post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
            "twice the same": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
            "twice, far apart": post(b"Content-Length: 5", b"X: y", b"content-length: 0", body=b"hello"),
            "with CONNECT": request(
                b"CONNECT mail.example.com:443 HTTP/1.1",
                b"Content-Length: 5",
                body=b"hello",
                host=b"Host: mail.example.com:443\r\n",
            ),
            "behind a vertical tab": post(b"Content-Length:\x0b5", body=b"hello"),
            "and an underscored one": post(b"Content-Length: 5", b"Content_Length: 6", body=b"hello"),
        },
    ),
    *each(
        "bad expectation",
        417,
        [
            post(b"Content-Length: 5", b"Expect:" + value, body=b"hello")
            for value in (
                b"",
                b" 200-ok",
                b" 100-continue, x",
                b" y 100-continue",
                b" 100-continue;q=1",
                b" 100 -continue",
            )
        ],
    ),
    *named(
        "bad expectation",
        417,
        {"twice": post(b"Content-Length: 5", b"Expect: 100-continue", b"Expect: 100-continue", body=b"hello")},
    ),
]

HELLO: Final = b"5\r\nhello\r\n0\r\n\r\n"
CODINGS: Final = [
    *named(
        "coding",
        Ok((b"hello",)),
        {
            "plain": chunked(HELLO),
            "other letters": post(b"tRANSFER-eNCODING:\tChunKed ", body=HELLO),
            "with GET": request(b"GET / HTTP/1.1", b"Transfer-Encoding: chunked", body=HELLO),
            "with RPC_IN_DATA": request(b"RPC_IN_DATA /rpc HTTP/1.1", b"Transfer-Encoding: chunked", body=HELLO),
            "expected": chunked(HELLO, b"Expect: 100-continue"),
        },
    ),
    *named("coding", Ok((b"hello", b"")), {"pipelined": chunked(HELLO + request())}),
    *each(
        "bad coding",
        400,
        [
            post(b"Transfer-Encoding:" + value, body=HELLO)
            for value in (
                b"",
                b" ",
                b" chunke",
                b" chunkedd",
                b" xchunked",
                b" chunked,",
                b" ,chunked",
                b" chunked, chunked",
                b" chunked chunked",
                b" chunked;q=1",
                b" chunked; x",
                b' "chunked"',
                b" 'chunked'",
                b" identity",
                b" identity, chunked",
                b" chunked, identity",
                b" gzip",
                b" gzip, chunked",
                b" chunked, gzip",
                b" x-gzip",
                b" deflate, chunked",
                b" trailers",
                b" cow",
                b" chunked\x0b",
                b" \x0bchunked",
                b"\x0cchunked",
                b" chunked\xa0",
                b" \xa0chunked",
                b" chun\xc2\xadked",
                b" chun\xe2\x84\xaaed",
                b" chunked\0",
                b" chunked\r\n ",
                b"\r\n chunked",
                b"\n chunked",
                b" chunked\rX",
                b" x\nTransfer-Encoding: chunked",
            )
        ],
    ),
    *named(
        "bad coding",
        400,
        {
            "beside a length": post(b"Transfer-Encoding: chunked", b"Content-Length: 15", body=HELLO),
            "behind a length": post(b"Content-Length: 15", b"Transfer-Encoding: chunked", body=HELLO),
            "beside a length of zero": post(b"Content-Length: 0", b"Transfer-Encoding: chunked", body=HELLO),
            "unknown beside a length": post(b"Content-Length: 5", b"Transfer-Encoding: x", body=b"hello"),
            "empty beside a length": post(b"Content-Length: 5", b"Transfer-Encoding:", body=b"hello"),
            "identity beside a length": post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"hello"),
            "twice": chunked(HELLO, b"Transfer-Encoding: chunked"),
            "twice, second unknown": chunked(HELLO, b"Transfer-Encoding: cow"),
            "twice, first unknown": post(b"Transfer-Encoding: cow", b"Transfer-Encoding: chunked", body=HELLO),
            "blank before the colon": post(b"Transfer-Encoding : chunked", body=HELLO),
            "blank before the name": post(b" Transfer-Encoding: chunked", body=HELLO),
            "tab before the colon": post(b"Transfer-Encoding\t: chunked", body=HELLO),
            "no colon": post(b"Transfer-Encoding chunked", body=HELLO),
            "with HTTP/1.0": request(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked", body=HELLO),
            "with HTTP/1.0 and keep-alive": request(
                b"POST / HTTP/1.0", b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=HELLO
            ),
            "behind a bare CR": post(b"X: y\rTransfer-Encoding: chunked", body=HELLO),
            "behind a bare LF": post(b"X: y\nTransfer-Encoding: chunked", body=HELLO),
            "underscored beside a length": post(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"hello"),
            "with CONNECT": request(
                b"CONNECT mail.example.com:443 HTTP/1.1",
                b"Transfer-Encoding: chunked",
                body=HELLO,
                host=b"Host: mail.example.com:443\r\n",
            ),
        },
    ),
]

CHUNKS: Final = [
    *each(
        "good chunks",
        Ok((b"hello",)),
        [
            chunked(body)
            for body in (
                b"5\r\nhello\r\n0\r\n\r\n",
                b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
                b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n",
                b"05\r\nhello\r\n00\r\n\r\n",
                b"000000000000005\r\nhello\r\n000000000000000\r\n\r\n",
                b"5;a\r\nhello\r\n0\r\n\r\n",
                b"5;a=b;c=d\r\nhello\r\n0;last\r\n\r\n",
                b'5;a="b;c\\"d"\r\nhello\r\n0\r\n\r\n',
                b"5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n",
                b"5\r\nhello\r\n0\r\nContent-Length: 7\r\nHost: evil\r\nX: y\r\n\r\n",
                b"5;" + b"a" * 254 + b"\r\nhello\r\n0\r\n\r\n",
            )
        ],
    ),
    *named(
        "good chunks",
        Ok((b"h" * 0xAF,)),
        {
            "capital digits": chunked(b"AF\r\n" + b"h" * 0xAF + b"\r\n0\r\n\r\n"),
            "small digits": chunked(b"af\r\n" + b"h" * 0xAF + b"\r\n0\r\n\r\n"),
        },
    ),
    *named("good chunks", EMPTY, {"none": chunked(b"0\r\n\r\n"), "none, one trailer": chunked(b"0\r\nX: y\r\n\r\n")}),
    *named("good chunks", Ok((b"0\r\n\r\n",)), {"that look like an end": chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n")}),
    *named(
        "cut chunks",
        Ok((b"hello",), MORE),
        {
            "before CRLF": chunked(b"5\r\nhello"),
            "in CRLF": chunked(b"5\r\nhello\r"),
            "after CRLF": chunked(b"5\r\nhello\r\n"),
            "in the last": chunked(b"5\r\nhello\r\n0"),
            "after the last": chunked(b"5\r\nhello\r\n0\r\n"),
            "in the end": chunked(b"5\r\nhello\r\n0\r\n\r"),
            "in a trailer": chunked(b"5\r\nhello\r\n0\r\nX: y\r\n"),
            "huge": chunked(b"fffffffffffffff\r\nhello"),
        },
    ),
    *each(
        "bad chunks",
        Ok((), 400),
        [
            chunked(body)
            for body in (
                b"\r\nhello\r\n0\r\n\r\n",
                b" 5\r\nhello\r\n0\r\n\r\n",
                b"5 \r\nhello\r\n0\r\n\r\n",
                b"5\t\r\nhello\r\n0\r\n\r\n",
                b"+5\r\nhello\r\n0\r\n\r\n",
                b"-5\r\nhello\r\n0\r\n\r\n",
                b"0x5\r\nhello\r\n0\r\n\r\n",
                b"5h\r\nhello\r\n0\r\n\r\n",
                b"5_0\r\nhello\r\n0\r\n\r\n",
                b"5.0\r\nhello\r\n0\r\n\r\n",
                b"g\r\nhello\r\n0\r\n\r\n",
                b"five\r\nhello\r\n0\r\n\r\n",
                FULLWIDTH + b"\r\nhello\r\n0\r\n\r\n",
                b"\xb2\r\nhello\r\n0\r\n\r\n",
                b"1000000000000005\r\nhello\r\n0\r\n\r\n",
                b"10000000000000005\r\nhello\r\n0\r\n\r\n",
                b"0000000000000005\r\nhello\r\n0\r\n\r\n",
                b"5\nhello\r\n0\r\n\r\n",
                b"5\rhello\r\n0\r\n\r\n",
                b"5\r\rhello\r\n0\r\n\r\n",
                b"5\n\rhello\r\n0\r\n\r\n",
                b"5;\r\nhello\r\n0\r\n\r\n",
                b"5;;a\r\nhello\r\n0\r\n\r\n",
                b"5; a\r\nhello\r\n0\r\n\r\n",
                b"5 ;a\r\nhello\r\n0\r\n\r\n",
                b"5;a=\r\nhello\r\n0\r\n\r\n",
                b"5;=b\r\nhello\r\n0\r\n\r\n",
                b"5;a = b\r\nhello\r\n0\r\n\r\n",
                b'5;a="b\r\nhello\r\n0\r\n\r\n',
                b'5;a="b"c\r\nhello\r\n0\r\n\r\n',
                b"5;a=b c\r\nhello\r\n0\r\n\r\n",
                b"5;a\0\r\nhello\r\n0\r\n\r\n",
                b"5;a\nb\r\nhello\r\n0\r\n\r\n",
                b"5;a\rb\r\nhello\r\n0\r\n\r\n",
                b'5;a="\n"\r\nhello\r\n0\r\n\r\n',
                b"5,5\r\nhello\r\n0\r\n\r\n",
                b"5 5\r\nhello\r\n0\r\n\r\n",
                b"5;" + b"a" * 255 + b"\r\nhello\r\n0\r\n\r\n",
                b"5;" + b"a" * 100000,
                b"5" * 300,
            )
        ],
    ),
    *each(
        "bad chunk ends",
        Ok((), 400),
        [
            chunked(body)
            for body in (
                b"5\r\nhello!\r\n0\r\n\r\n",
                b"5\r\nhelloXX0\r\n\r\n",
                b"5\r\nhello\n0\r\n\r\n",
                b"5\r\nhello\r0\r\n\r\n",
                b"5\r\nhello\r\r\n0\r\n\r\n",
                b"5\r\nhello\n\r0\r\n\r\n",
                b"5\r\nhello\0\r\n0\r\n\r\n",
                b"5\r\nhello0\r\n\r\n",
                b"5\r\nhello \r\n0\r\n\r\n",
                b"5\r\nhello\r\n\r\n0\r\n\r\n",
                b"5\r\nhello\r\n0\n\r\n",
                b"5\r\nhello\r\n0\r\n\n",
                b"5\r\nhello\r\n0\r\n\r\r\n",
                b"5\r\nhello\r\n0\r\n: y\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
                b"5\r\nhello\r\n0\r\n X: y\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX: y\r\n folded\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX: y\n\r\n",
                b"5\r\nhello\r\n0\r\nX: y\rZ: w\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX: \0\r\n\r\n",
                b"5\r\nhello\r\n0\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
                b"5\r\nhello\r\n0\r\n" + b"X: yyy\r\n" * 1100 + b"\r\n",
                b"5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n",
                b"5\r\nhello\r\n-1\r\n\r\n",
                b"5\r\nhello\r\n0 \r\n\r\n",
            )
        ],
    ),
]

REQUESTS: Final = [*REQUEST_LINES, *FIELDS, *HOSTS, *LENGTHS, *CODINGS, *CHUNKS]


def response(line: bytes = b"HTTP/1.1 200 OK", *fields: bytes, body: bytes = b"") -> bytes:
    return line + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


OK_LINE: Final = b"HTTP/1.1 200 OK"
CL5: Final = b"Content-Length: 5"
TE: Final = b"Transfer-Encoding: chunked"
SWITCHES: Final = (b"Connection: Upgrade", b"Upgrade: websocket")
RESPONSES: Final = [
    *[
        Case(f"good status line {line!r}", response(line, CL5, body=b"hello"), Ok((b"hello",)))
        for line in (
            OK_LINE,
            b"HTTP/1.1 200 ",
            b"HTTP/1.1 200",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 449 Retry after sending a PROVISION command",
            b"HTTP/1.1 599 \xe4\tx",
            b"HTTP/1.1 401 Unauthorized",
        )
    ],
    *[
        Case(f"bad status line {line!r}", response(line, CL5, body=b"hello"), 502)
        for line in (
            b"HTTP/1.1",
            b"HTTP/1.1 ",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 099 OK",
            b"HTTP/1.1 600 OK",
            b"HTTP/1.1 +20 OK",
            b"HTTP/1.1 2_0 OK",
            b"HTTP/1.1 200OK",
            b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 " + FULLWIDTH + b" OK",
            b"HTTP/1.1 abc OK",
            b"HTTP/2 200",
            b"HTTP/2.0 200 OK",
            b"HTTP/1.2 200 OK",
            b"HTTP/0.9 200 OK",
            b"http/1.1 200 OK",
            b" HTTP/1.1 200 OK",
            b"ICY 200 OK",
            b"HTTP/1.1 200 O\0K",
            b"HTTP/1.1 200 OK\r",
            b"HTTP/1.1 200 OK\nX: y",
            b"<html>no head at all</html>",
            b"220 mail.example.com ESMTP",
            b"\x15\x03\x01\x00\x02\x02\x46",
        )
    ],
    Case("empty line before", b"\r\n" + response(OK_LINE, CL5, body=b"hello"), 502),
    *[
        Case(f"bad response field {field!r}", response(OK_LINE, field, CL5, body=b"hello"), 502)
        for field in (
            b"X : y",
            b" X: y",
            b"X",
            b": y",
            b"X: y\r\n folded",
            b"X: a\nb",
            b"X: a\rb",
            b"X: \0",
            b"X: \x7f",
            b"X\xe4: y",
        )
    ],
    *[
        Case(f"bad response framing {fields!r}", response(OK_LINE, *fields, body=b"hello"), 502)
        for fields in (
            (CL5, CL5),
            (CL5, b"Content-Length: 6"),
            (b"Content-Length: 5, 5",),
            (b"Content-Length: +5",),
            (b"Content-Length: 0x5",),
            (b"Content-Length: 05",),
            (b"Content-Length: -1",),
            (b"Content-Length:",),
            (b"Content-Length: 5 5",),
            (b"Content-Length: " + FULLWIDTH,),
            (b"Content-Length: 99999999999999999999",),
            (b"Content_Length: 5",),
            (CL5, TE),
            (TE, b"Content-Length: 0"),
            (TE, TE),
            (b"Transfer-Encoding: gzip, chunked",),
            (b"Transfer-Encoding: chunked, chunked",),
            (b"Transfer-Encoding: identity",),
            (b"Transfer-Encoding:",),
            (b"Transfer-Encoding: xchunked",),
            (b"Transfer_Encoding: chunked",),
        )
    ],
    Case("response coding with HTTP/1.0", response(b"HTTP/1.0 200 OK", TE, body=HELLO), 502),
    Case("HEAD with both", response(OK_LINE, CL5, TE), 502, method=b"HEAD"),
    Case("304 with a bad length", response(b"HTTP/1.1 304 Not Modified", b"Content-Length: x"), 502),
    Case("204 with a body", response(b"HTTP/1.1 204 No Content", CL5, body=b"hello"), 502),
    Case("204 chunked", response(b"HTTP/1.1 204 No Content", TE, body=HELLO), 502),
    Case("100 with a body", response(b"HTTP/1.1 100 Continue", CL5, body=b"hello"), 502),
    Case("101 nobody asked for", response(b"HTTP/1.1 101 Switching Protocols"), 502),
    *[
        Case(
            f"101 {name}", response(b"HTTP/1.1 101 Switching Protocols", *fields, body=b"\x81\x00"), 502, upgrading=True
        )
        for name, fields in {
            "to nothing": (),
            "to a protocol it does not name": (b"Connection: Upgrade",),
            "to another protocol": (b"Connection: Upgrade", b"Upgrade: h2c"),
            "to one of two": (b"Connection: Upgrade", b"Upgrade: websocket, h2c"),
            "to two": (*SWITCHES, b"Upgrade: h2c"),
            "by the way": (b"Upgrade: websocket",),
            "with a length": (*SWITCHES, CL5),
            "with chunks": (*SWITCHES, TE),
        }.items()
    ],
    Case("101 in HTTP/1.0", response(b"HTTP/1.0 101 Switching Protocols", *SWITCHES), 502, upgrading=True),
    Case("response head too large", response(OK_LINE, b"X: " + b"k" * 74000), 502),
    Case("response with too many fields", response(OK_LINE, *[b"X: y"] * 257), 502),
    Case("endless response head", response(OK_LINE, *[b"X: y"] * 14000)[:-2], 502),
    Case("response with length", response(OK_LINE, CL5, body=b"hello"), Ok((b"hello",))),
    Case("response with length of zero", response(OK_LINE, b"Content-Length: 0"), EMPTY),
    Case("response cut", response(OK_LINE, CL5, body=b"hel"), Ok((b"hel",), MORE)),
    Case("response chunked", response(OK_LINE, TE, body=HELLO), Ok((b"hello",))),
    Case("response chunked and cut", response(OK_LINE, TE, body=HELLO[:-2]), Ok((b"hello",), MORE)),
    Case("response with a bad chunk", response(OK_LINE, TE, body=b"5 \r\nhello\r\n0\r\n\r\n"), Ok((), 502)),
    Case("response with a longer chunk", response(OK_LINE, TE, body=b"5\r\nhello!\r\n0\r\n\r\n"), Ok((), 502)),
    Case("response until close", response(OK_LINE, body=b"hello"), Ok((b"hello",), MORE), closed=True),
    Case("HTTP/1.0 until close", response(b"HTTP/1.0 200 OK", body=b"hello"), Ok((b"hello",), MORE), closed=True),
    Case(
        "401 until close", response(b"HTTP/1.1 401 No", b"Connection: close", body=b"x"), Ok((b"x",), MORE), closed=True
    ),
    Case("HEAD with length", response(OK_LINE, CL5), EMPTY, method=b"HEAD"),
    Case("HEAD chunked", response(OK_LINE, TE), EMPTY, method=b"HEAD"),
    Case("HEAD with nothing", response(OK_LINE), EMPTY, method=b"HEAD"),
    Case("304 with length", response(b"HTTP/1.1 304 Not Modified", CL5), EMPTY),
    Case("304 with nothing", response(b"HTTP/1.1 304 Not Modified"), EMPTY),
    Case("204", response(b"HTTP/1.1 204 No Content"), EMPTY),
    Case("204 with length of zero", response(b"HTTP/1.1 204 No Content", b"Content-Length: 0"), EMPTY),
    Case("100", response(b"HTTP/1.1 100 Continue"), EMPTY),
    Case("103", response(b"HTTP/1.1 103 Early Hints", b"Link: </a>"), EMPTY),
    Case(
        "101 asked for",
        response(b"HTTP/1.1 101 Switching Protocols", *SWITCHES, body=b"\x81\x00"),
        Ok((b"\x81\x00",), MORE),
        upgrading=True,
        closed=True,
    ),
    Case("CONNECT", response(OK_LINE, CL5, body=b"raw"), Ok((b"raw",), MORE), method=b"CONNECT", closed=True),
    Case("CONNECT refused", response(b"HTTP/1.1 403 No", CL5, body=b"hello"), Ok((b"hello",)), method=b"CONNECT"),
]
