"""The `tcp` check: connect; send what is configured; find what is expected in the answer.

Decides: how much of an answer is searched.
Refuses to know: what the bytes mean. A server that speaks first needs no `send`.
"""

from __future__ import annotations

from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import TcpCheck

SEARCHED_BYTES = 65536


async def converse(options: TcpCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    if options.send:
        talk.note(">", shown(options.send))
        await talk.send(options.send)
    if not options.expect:
        return "connected"
    await find(options.expect, talk)
    return f"connected, '{shown(options.expect)}' found in the answer"


async def find(expected: bytes, talk: Conversation) -> None:
    """Read until `expected` has come. Raises Failed when it is not in the first 64 KiB."""
    heard = bytearray()
    what = f"'{shown(expected)}'"
    while expected not in heard:
        data = await talk.read(f"{what} after '{shown(heard[:80])}'" if heard else what)
        talk.note("<", shown(data))
        heard += data
        if not data or len(heard) > SEARCHED_BYTES:
            raise Failed(f"{what} expected, the answer was '{shown(heard)}'")
