"""The three things that OpenSSL can do on the server side and Python's `ssl` has no word for.

These are: the list of key exchange groups (Python sets one group or leaves all), a stapled OCSP answer (RFC 6066
section 8), and the refusal of a client that offers only application protocols we do not speak (RFC 7301 section 3.2;
Python goes on without one, which lets a browser be talked into speaking to a mail server).

Decides: whether it is safe to reach OpenSSL's object behind an `ssl.SSLContext`, and refuses in words when it is not.
The address is believed only after everything that both Python and OpenSSL tell about several scratch contexts was
equal in several states: options, verification mode, number of tickets, and lastly the oldest version. The functions
come from the library that Python's `_ssl` itself is linked with; where that is a static part of `_ssl`, or another
library than OpenSSL 3, they are not there, and nothing is tried. Before an address is used for the first time it is
shown to be readable memory by asking the kernel, not by looking. Callbacks live as long as the process and are handed
a number, never an address, so a context may vanish at any time. Tried on CPython 3.11, 3.12 and 3.13.

Refuses to know: which groups, answers and protocols. All of this is an addition: without it TLS works and is safe.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import ssl
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

# Numbers of OpenSSL 3, ssl.h and tls1.h
_SET_STATUS_CALLBACK = 63
_SET_STATUS_ARGUMENT = 64
_SET_STATUS_ANSWER = 71
_SET_GROUPS_LIST = 92
_GET_MIN_VERSION = 130
_CALLBACK_OK = 0
_CALLBACK_FATAL = 2
_CALLBACK_NOTHING = 3

_POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
#: More of SSL_CTX than the fields that are read from it before it is believed.
_LOOKED_AT_BYTES = 1024

_StatusCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_AlpnCallback = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_ubyte),
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.c_void_p,
)

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "OpenSSL_version_num": (ctypes.c_ulong, []),
    "SSL_CTX_get_options": (ctypes.c_uint64, [ctypes.c_void_p]),
    "SSL_CTX_get_verify_mode": (ctypes.c_int, [ctypes.c_void_p]),
    "SSL_CTX_get_num_tickets": (ctypes.c_size_t, [ctypes.c_void_p]),
    "SSL_CTX_ctrl": (ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]),
    "SSL_CTX_callback_ctrl": (ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, _StatusCallback]),
    "SSL_CTX_set_alpn_select_cb": (None, [ctypes.c_void_p, _AlpnCallback, ctypes.c_void_p]),
    "SSL_ctrl": (ctypes.c_long, [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]),
    "CRYPTO_malloc": (ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]),
    "CRYPTO_free": (None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]),
}


class Impossible(Exception):
    """What was asked cannot be done with this Python; the text says why."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the callbacks of one context answer. `until`: wall clock, seconds; a later staple is not shown."""

    protocols: tuple[bytes, ...] = ()
    answer: bytes = b""
    until: float = 0.0


_numbers = itertools.count(1)
_shown: dict[int, _Shown] = {}
_number_of: weakref.WeakKeyDictionary[ssl.SSLContext, int] = weakref.WeakKeyDictionary()


def set_groups(context: ssl.SSLContext, groups: str) -> None:
    """Allow these key exchange groups only, first choice first, colon-separated (`X25519:P-256`).

    Raises:
        Impossible: this Python does not let us, or OpenSSL does not know one of them.
    """
    address, library = _reach(context)
    names = ctypes.create_string_buffer(groups.encode("ascii"))
    if library.SSL_CTX_ctrl(address, _SET_GROUPS_LIST, 0, ctypes.cast(names, ctypes.c_void_p)) != 1:
        raise Impossible(f"{ssl.OPENSSL_VERSION} does not know the groups {groups}")


def staple(context: ssl.SSLContext, answer: bytes, until: float) -> None:
    """Show `answer` (an OCSP response, DER) to clients that ask for one, until `until` (wall clock, seconds).

    Raises:
        Impossible: this Python does not let us.
    """
    address, library = _reach(context)
    number = _number(context)
    _shown[number] = replace(_shown[number], answer=answer, until=until)
    library.SSL_CTX_callback_ctrl(address, _SET_STATUS_CALLBACK, _STATUS_CALLBACK)
    library.SSL_CTX_ctrl(address, _SET_STATUS_ARGUMENT, 0, number)


def insist_on_protocols(context: ssl.SSLContext, protocols: tuple[str, ...]) -> None:
    """End the handshake of a client that offers application protocols, but none of these, with the alert for it.

    Raises:
        Impossible: this Python does not let us.
    """
    address, library = _reach(context)
    number = _number(context)
    _shown[number] = replace(_shown[number], protocols=tuple(p.encode("ascii") for p in protocols))
    library.SSL_CTX_set_alpn_select_cb(address, _ALPN_CALLBACK, number)


def why_impossible() -> str:
    """Why this Python does not let us; empty when it does."""
    found = _library()
    return found if isinstance(found, str) else ""


def _number(context: ssl.SSLContext) -> int:
    known = _number_of.get(context)
    if known is not None:
        return known
    number = _number_of[context] = next(_numbers)
    _shown[number] = _Shown()
    weakref.finalize(context, _shown.pop, number, None)
    return number


# ------------------------------------------------------------ called by OpenSSL, inside a handshake


def _on_status_request(connection: int | None, number: int | None) -> int:
    library = _library()
    shown = _shown.get(number or 0)
    if connection is None or shown is None or isinstance(library, str) or time.time() >= shown.until:
        return _CALLBACK_NOTHING
    size = len(shown.answer)
    copy = library.CRYPTO_malloc(size, b"", 0)  # OpenSSL frees it with the connection
    if copy is None:
        return _CALLBACK_NOTHING
    ctypes.memmove(copy, shown.answer, size)
    if library.SSL_ctrl(connection, _SET_STATUS_ANSWER, size, copy) != 1:
        library.CRYPTO_free(copy, b"", 0)
        return _CALLBACK_NOTHING
    return _CALLBACK_OK


def _on_protocols(
    _connection: int | None, chosen: Any, chosen_bytes: Any, offered: int | None, offered_bytes: int, number: int | None
) -> int:
    shown = _shown.get(number or 0)
    if shown is None or offered is None:
        return _CALLBACK_NOTHING
    places = dict(_protocols(ctypes.string_at(offered, offered_bytes)))
    for protocol in shown.protocols:
        if protocol in places:  # the answer points into the offer, which OpenSSL holds while it copies
            chosen[0] = offered + places[protocol]
            chosen_bytes[0] = len(protocol)
            return _CALLBACK_OK
    return _CALLBACK_FATAL


_STATUS_CALLBACK = _StatusCallback(_on_status_request)
_ALPN_CALLBACK = _AlpnCallback(_on_protocols)


def _protocols(offer: bytes) -> Iterator[tuple[bytes, int]]:
    """Each protocol of an offer (one byte of length, then the name; RFC 7301 section 3.1) and where its name begins."""
    at = 0
    while at < len(offer):
        begins, ends = at + 1, at + 1 + offer[at]
        if ends > len(offer):
            return
        yield offer[begins:ends], begins
        at = ends


# ------------------------------------------------------------ reaching OpenSSL's object


def _reach(context: ssl.SSLContext) -> tuple[int, Any]:
    library = _library()
    if isinstance(library, str):
        raise Impossible(library)
    address = _address(context)
    if not _agree(library, address, context):
        raise Impossible("Python and OpenSSL disagree about a TLS context")
    return address, library


@cache
def _library() -> Any:
    """OpenSSL as Python uses it, or the reason (`str`) why it cannot be used."""
    if sys.implementation.name != "cpython" or not ssl.OPENSSL_VERSION.startswith("OpenSSL 3."):
        return f"{sys.implementation.name} with {ssl.OPENSSL_VERSION} is not CPython with OpenSSL 3"
    try:
        import _ssl

        library = ctypes.CDLL(_ssl.__file__)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (AttributeError, ImportError, OSError) as error:
        return f"this Python is not linked with a shared OpenSSL ({error})"
    if library.OpenSSL_version_num() != ssl.OPENSSL_VERSION_NUMBER:
        return "this Python reports another OpenSSL than it is linked with"
    return library if _proven(library, _ssl._SSLContext) else "this Python keeps OpenSSL's object in an unknown place"


def _address(context: ssl.SSLContext) -> int:
    """The word after the object's head, where CPython keeps the SSL_CTX; only `_proven` makes it believable."""
    return ctypes.c_size_t.from_address(id(context) + object.__basicsize__).value


def _proven(library: Any, kind: type) -> bool:
    if kind.__basicsize__ < object.__basicsize__ + _POINTER_BYTES:
        return False
    return all(_tells_the_same(library, protocol) for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))


def _tells_the_same(library: Any, protocol: Any) -> bool:
    scratch = ssl.SSLContext(protocol)
    address = _address(scratch)
    if not _readable(address) or not _agree(library, address, scratch):
        return False
    for change in _CHANGES:
        change(scratch)
        if not _agree(library, address, scratch):
            return False
    scratch.minimum_version = ssl.TLSVersion.TLSv1_3
    return bool(library.SSL_CTX_ctrl(address, _GET_MIN_VERSION, 0, None) == ssl.TLSVersion.TLSv1_3)


def _no_tickets(scratch: ssl.SSLContext) -> None:
    scratch.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION


def _tickets(scratch: ssl.SSLContext) -> None:
    scratch.options &= ~ssl.OP_NO_TICKET


def _optional(scratch: ssl.SSLContext) -> None:
    scratch.check_hostname = False
    scratch.verify_mode = ssl.CERT_OPTIONAL


def _required(scratch: ssl.SSLContext) -> None:
    scratch.verify_mode = ssl.CERT_REQUIRED


def _unverified(scratch: ssl.SSLContext) -> None:
    scratch.verify_mode = ssl.CERT_NONE


_CHANGES: tuple[Callable[[ssl.SSLContext], None], ...] = (_no_tickets, _tickets, _optional, _required, _unverified)


def _agree(library: Any, address: int, context: ssl.SSLContext) -> bool:
    """Whether OpenSSL tells the same about the object at `address` as Python about `context`."""
    mode = library.SSL_CTX_get_verify_mode(address) & 3  # with a bit of OpenSSL's own for CERT_REQUIRED
    python_mode = {ssl.CERT_NONE: 0, ssl.CERT_OPTIONAL: 1, ssl.CERT_REQUIRED: 3}[context.verify_mode]
    return bool(
        mode == python_mode
        and library.SSL_CTX_get_options(address) == context.options
        and library.SSL_CTX_get_num_tickets(address) == context.num_tickets
    )


def _readable(address: int) -> bool:
    """Whether there is memory at this address: the kernel is asked to read it, and says no where we would crash."""
    if address % _POINTER_BYTES or not address:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.write.restype, libc.write.argtypes = ctypes.c_ssize_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    with _pipe() as into:
        return bool(libc.write(into, address, _LOOKED_AT_BYTES) == _LOOKED_AT_BYTES)


@contextmanager
def _pipe() -> Iterator[int]:
    out, into = os.pipe()
    try:
        yield into
    finally:
        os.close(out)
        os.close(into)
