"""Answers of our own: what a client is told when no server can or may answer.

Decides: the bytes of a response that has no server behind it: refusals, redirects, the operator's pages.
Refuses to know: why it is given, and whether the connection goes on; both come in as arguments.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

#: What a person is told whose browser shows our answer; every other status shows its name alone.
_WORDS: Final = {
    400: "The request could not be understood. If it came from a browser or a mail program, please report it.",
    403: "You are not allowed to use this from where you are.",
    408: "The request did not arrive in time.",
    414: "The address of the page is too long.",
    417: "The request expects something that is not offered here.",
    429: "Too many requests from your address. Please wait a moment.",
    431: "The request's header fields are too large.",
    502: "The mail server gave no usable answer. Please try again.",
    503: "The service is not available at the moment. Please try again later.",
    504: "The mail server did not answer in time. Please try again later.",
}
PLAIN: Final = "text/plain; charset=utf-8"
_CLOSE: Final = b"Connection: close\r\n"
#: RFC 9110 section 10.2.3: when a client that was told 429 or 503 may come again.
_RETRY: Final = {429: b"Retry-After: 1\r\n", 503: b"Retry-After: 10\r\n"}


def reason(status: int) -> str:
    """The words of a status line."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


def answer(
    status: int,
    body: bytes | None = None,
    content_type: str = PLAIN,
    *,
    fields: bytes = b"",
    close: bool = True,
    without_body: bool = False,
) -> bytes:
    """A whole response.

    Args:
        body: None: words for this status.
        fields: further complete field lines.
        close: the connection ends after it, and the client is told so.
        without_body: the answer to HEAD: with the length, without the bytes.
    """
    if body is None:
        body = f"{status} {reason(status)}\n{_WORDS.get(status, '')}".rstrip().encode() + b"\n"
    bodiless = status in (204, 304)
    described = b"" if bodiless else b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type.encode(), len(body))
    head = b"HTTP/1.1 %d %b\r\n%bCache-Control: no-store\r\n%b%b%b\r\n" % (
        status,
        reason(status).encode(),
        described,
        _RETRY.get(status, b""),
        fields,
        _CLOSE if close else b"",
    )
    return head if without_body or bodiless else head + body


def redirect(status: int, location: bytes, *, fields: bytes = b"", close: bool) -> bytes:
    """Send the client elsewhere."""
    return answer(status, b"", fields=b"Location: %b\r\n%b" % (location, fields), close=close)
