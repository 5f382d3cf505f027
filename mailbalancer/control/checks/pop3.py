"""The `pop3` check: greeting, optional STLS, CAPA, QUIT (RFC 1939, 2449, 2595).

Decides: which answers are good. CAPA is an extension: a server that does not know it is not down.
Refuses to know: users and maildrops; no check ever logs in.
The steps are public: `smoke` strings the same ones together.
"""

from __future__ import annotations

from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import Pop3Check, Verify

QUIT = b"QUIT\r\n"
LIST_LINES = 128


async def converse(options: Pop3Check, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    await greet(talk)
    capabilities = await list_capabilities(talk)
    if options.starttls:
        await start_tls(talk, capabilities, options.verify)
        await list_capabilities(talk)
    return f"greeting{' and STLS' * options.starttls} answered well"


async def greet(talk: Conversation) -> None:
    """Wait for the greeting; from then on the conversation ends with QUIT."""
    line = await talk.line("greeting")
    talk.detail["banner"] = shown(line)
    if not _is_ok(line):
        raise Failed(f"greeting was '{shown(line)}'")
    talk.farewell = QUIT


async def list_capabilities(talk: Conversation) -> tuple[str, ...] | None:
    """CAPA; the result is what the server offers, None when it does not know CAPA."""
    await talk.command("CAPA")
    if not _is_ok(await _status(talk, "answer to CAPA")):
        return None
    offered: list[str] = []
    for _ in range(LIST_LINES):
        line = await talk.line("rest of the answer to CAPA")
        if line == ".":
            return tuple(offered)
        offered.append(shown(line))
    raise Failed(f"answer to CAPA has more than {LIST_LINES} lines")


async def start_tls(talk: Conversation, capabilities: tuple[str, ...] | None, verify: Verify) -> None:
    """STLS and the handshake. A server without CAPA is asked all the same."""
    if capabilities is not None and "STLS" not in (word.upper() for word in capabilities):
        raise Failed(f"STLS is not offered, only {', '.join(capabilities) or 'nothing'}")
    await talk.command("STLS")
    answer = await _status(talk, "answer to STLS")
    if not _is_ok(answer):
        raise Failed(f"answer to STLS was '{shown(answer)}'")
    await talk.start_tls(verify)


async def _status(talk: Conversation, what: str) -> str:
    line = await talk.line(what)
    if not (_is_ok(line) or line.partition(" ")[0] == "-ERR"):
        raise Failed(f"{what} is not POP3: '{shown(line)}'")
    return line


def _is_ok(line: str) -> bool:
    return line.partition(" ")[0] == "+OK"
