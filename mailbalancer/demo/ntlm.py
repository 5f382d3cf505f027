"""A stand-in for NTLM: three legs that authenticate the connection, for any user with any password.

Decides: what the challenge looks like, and whose name a client gives in the third leg (MS-NLMP 2.2.1).
Refuses to know: secrets. Nothing is verified: what the demo shows is that the login belongs to the connection.
"""

from __future__ import annotations

import base64
import binascii
import struct

_SIGNATURE = b"NTLMSSP\0"
_NEGOTIATE, _CHALLENGE, _AUTHENTICATE = 1, 2, 3
_UNICODE = 0x00000001
#: Unicode, ask for the target, NTLM, always sign, extended session security, target information.
_FLAGS = _UNICODE | 0x00000004 | 0x00000200 | 0x00008000 | 0x00080000 | 0x00800000
_HEAD_BYTES = 48
_DOMAIN = "DEMO"
_END_OF_LIST = b"\0\0\0\0"


class NotNtlm(ValueError):
    """The words after `NTLM` are no message of a client."""


def leg(field: str) -> tuple[str, str]:
    """Read an `Authorization` field: ("negotiate", "") or ("authenticate", the user's name).

    Raises:
        NotNtlm: it is neither.
    """
    scheme, _, text = field.partition(" ")
    if scheme.upper() not in ("NTLM", "NEGOTIATE"):
        raise NotNtlm(f"{scheme} is not NTLM")
    try:
        message = base64.b64decode(text.strip(), validate=True)
        (kind,) = struct.unpack_from("<I", message, len(_SIGNATURE))
    except (binascii.Error, struct.error) as error:
        raise NotNtlm("it cannot be read") from error
    if not message.startswith(_SIGNATURE) or kind not in (_NEGOTIATE, _AUTHENTICATE):
        raise NotNtlm("it is no message of a client")
    return ("negotiate", "") if kind == _NEGOTIATE else ("authenticate", _user(message))


def challenge(nonce: bytes) -> str:
    """The answer to the first leg, for `WWW-Authenticate`. `nonce`: eight bytes."""
    target = _DOMAIN.encode("utf-16-le")
    information = struct.pack("<HH", 2, len(target)) + target + _END_OF_LIST  # 2: the domain's name
    at = _HEAD_BYTES
    message = _SIGNATURE + struct.pack("<IHHII", _CHALLENGE, len(target), len(target), at, _FLAGS) + nonce + bytes(8)
    message += struct.pack("<HHI", len(information), len(information), at + len(target))
    return "NTLM " + base64.b64encode(message + target + information).decode()


def _user(message: bytes) -> str:
    try:
        length, _, at = struct.unpack_from("<HHI", message, 36)
        (flags,) = struct.unpack_from("<I", message, 60)
    except struct.error as error:
        raise NotNtlm("the third leg is too short") from error
    name = message[at : at + length]
    user = name.decode("utf-16-le" if flags & _UNICODE else "latin-1", errors="replace")
    if not user or not user.isprintable():
        raise NotNtlm("the third leg names nobody")
    return user
