"""Ways to damage a good message: bytes removed, bytes put in, also such that mean something."""

from __future__ import annotations

from hypothesis import strategies as st

NOISE = [
    *(bytes((n,)) for n in range(256)),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\n ", b"\r\n\t", b" \t", b", ", b"; ", b"0\r\n\r\n", b"chunked", b"identity"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: evil.example\r\n", b"Connection: close\r\n"),
    *(b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Trailer: X\r\n", b"HTTP/1.1", b"GET /x HTTP/1.1\r\n\r\n"),
]
edits = st.lists(
    st.tuples(st.integers(0, 2000), st.sampled_from([0, 0, 1, 1, 2, 5]), st.sampled_from([b"", *NOISE])), max_size=3
)


def edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, removed, added in changes:
        place %= len(data) + 1
        data = data[:place] + added + data[place + removed :]
    return data
