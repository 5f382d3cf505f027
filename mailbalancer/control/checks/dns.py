"""The `dns` check: one question over UDP or TCP (RFC 1035), and whether the answer is an answer to it.

Decides: what makes an answer ours (identifier, response bit, question) and good (expected rcode, whole over TCP).
Refuses to know: the records inside; a health check asks whether the server answers, not what.
"""

from __future__ import annotations

import re
import secrets
import struct

from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import DnsCheck

_HEAD = struct.Struct("!6H")  # identifier, flags, counts of questions, answers, authorities, additionals
_QUERY_FLAGS = 0x0100  # recursion desired: what a mail server's resolver would ask
_RESPONSE, _OPCODE, _TRUNCATED, _RCODE = 0x8000, 0x7800, 0x0200, 0x000F
_CLASS_IN = 1
_TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33}
_RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_UNKNOWN_TYPE = re.compile(r"TYPE([0-9]{1,5})\Z")  # RFC 3597 section 5
_MESSAGE_BYTES = 65535


class NotOurs(ValueError):
    """A message that does not answer our question."""


async def converse(options: DnsCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    identifier = secrets.randbits(16)
    asked = question(options.name, options.record)
    query = asked_in_one_datagram(options, identifier)
    over_tcp = options.protocol == "tcp"
    await talk.connect(datagrams=not over_tcp)
    talk.note(">", f"{options.record} {shown(options.name)} over {options.protocol}")
    flags, answers = await (_ask_tcp if over_tcp else _ask_udp)(talk, query, identifier, asked)
    rcode = rcode_name(flags & _RCODE)
    talk.detail["rcode"], talk.detail["answers"] = rcode, answers
    talk.note("<", f"{rcode}, answers: {answers}")
    if over_tcp and flags & _TRUNCATED:
        raise Failed("the answer is truncated, which cannot be over TCP")
    if rcode != options.rcode.upper():
        raise Failed(f"answer was {rcode}, expected {options.rcode.upper()}")
    return f"{options.record} {shown(options.name)}: {rcode}, answers: {answers}"


def asked_in_one_datagram(options: DnsCheck, identifier: int) -> bytes:
    """The check's question as it goes over UDP.

    Raises:
        Failed: the name or type cannot be asked for.
    """
    return _HEAD.pack(identifier, _QUERY_FLAGS, 1, 0, 0, 0) + question(options.name, options.record)


async def _ask_udp(talk: Conversation, query: bytes, identifier: int, asked: bytes) -> tuple[int, int]:
    """Ask in one datagram; those that are not ours (late, forged) are passed over until the deadline."""
    await talk.send(query)
    while True:
        try:
            return decode(await talk.read("answer over UDP"), identifier, asked)
        except NotOurs as stray:
            talk.note("*", f"passed over: {stray}")


async def _ask_tcp(talk: Conversation, query: bytes, identifier: int, asked: bytes) -> tuple[int, int]:
    """Ask with the length in front (RFC 7766 section 8)."""
    await talk.send(len(query).to_bytes(2, "big") + query)
    heard = bytearray()
    while len(heard) < 2 or len(heard) < 2 + int.from_bytes(heard[:2], "big"):
        data = await talk.read("rest of the answer over TCP" if heard else "answer over TCP")
        if not data:
            raise Failed("connection closed by the server, no whole answer over TCP")
        heard += data
    try:
        return decode(bytes(heard[2 : 2 + int.from_bytes(heard[:2], "big")]), identifier, asked)
    except NotOurs as error:
        raise Failed(f"{error}") from error


def question(name: str, record: str) -> bytes:
    """The question section for a name ("." is the root) and a record type, by name or as TYPE123.

    Raises:
        Failed: the name or type cannot be asked for.
    """
    labels = [label.encode("ascii", "replace") for label in name.rstrip(".").split(".")] if name.strip(".") else []
    encoded = b"".join(bytes((len(label),)) + label for label in labels if len(label) < 64) + b"\0"
    if not all(0 < len(label) < 64 for label in labels) or len(encoded) > 255 or not name.isascii():
        raise Failed(f"'{shown(name)}' is not a name that DNS can be asked for")
    return encoded + struct.pack("!2H", _type_number(record.upper()), _CLASS_IN)


def decode(message: bytes, identifier: int, asked: bytes) -> tuple[int, int]:
    """Flags and number of answers of a message that answers our question.

    Names are compared without regard to case. A refusal may leave the question out (FORMERR often does).

    Raises:
        NotOurs: it is too short, no response, or to another question.
    """
    if len(message) < _HEAD.size:
        raise NotOurs(f"a message of {len(message)} bytes is too short for DNS")
    seen, flags, questions, answers, _, _ = _HEAD.unpack_from(message)
    if seen != identifier or not flags & _RESPONSE or flags & _OPCODE:
        raise NotOurs("the message does not answer our question: other identifier, or no response")
    echoed = message[_HEAD.size : _HEAD.size + len(asked)]
    refused_bare = questions == 0 and flags & _RCODE
    if not refused_bare and (questions != 1 or echoed.lower() != asked.lower()):
        raise NotOurs("the message answers another question than ours")
    return flags, answers


def rcode_name(code: int) -> str:
    return _RCODES[code] if code < len(_RCODES) else f"RCODE{code}"


def _type_number(record: str) -> int:
    if record in _TYPES:
        return _TYPES[record]
    match = _UNKNOWN_TYPE.match(record)
    if match is None or int(match[1]) > 65535:
        raise Failed(f"'{shown(record)}' is not a record type; known are {', '.join(_TYPES)} and TYPE0 to TYPE65535")
    return int(match[1])
