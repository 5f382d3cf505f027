"""The `imap` check: greeting, optional STARTTLS, CAPABILITY, LOGOUT (RFC 9051).

Decides: which greetings are good. A server that greets with PREAUTH cannot be asked for STARTTLS any more.
Refuses to know: users and mailboxes; no check ever logs in.
The steps are public: `smoke` strings the same ones together.
"""

from __future__ import annotations

from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import ImapCheck, Verify

LOGOUT = b"z LOGOUT\r\n"
ANSWER_LINES = 128


async def converse(options: ImapCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    greeting = await greet(talk)
    capabilities = await list_capabilities(talk)
    if options.starttls:
        if greeting == "PREAUTH":
            raise Failed("the server greets with PREAUTH, so STARTTLS is impossible")
        await start_tls(talk, capabilities, options.verify)
        await list_capabilities(talk)
    return f"greeting, {'STARTTLS and ' * options.starttls}CAPABILITY answered well"


async def greet(talk: Conversation) -> str:
    """Wait for the greeting, OK or PREAUTH; from then on the conversation ends with LOGOUT."""
    line = await talk.line("greeting")
    talk.detail["banner"] = shown(line)
    star, _, rest = line.partition(" ")
    word = rest.partition(" ")[0].upper()
    if star != "*" or word not in ("OK", "PREAUTH"):
        raise Failed(f"greeting was '{shown(line)}'")
    talk.farewell = LOGOUT
    return word


async def list_capabilities(talk: Conversation) -> tuple[str, ...]:
    """CAPABILITY; the result is what the server offers."""
    offered: list[str] = []
    for line in await ask(talk, "CAPABILITY"):
        if line.upper().startswith("* CAPABILITY "):
            offered += (shown(word) for word in line.split(" ")[2:] if word)
    return tuple(offered)


async def start_tls(talk: Conversation, capabilities: tuple[str, ...], verify: Verify) -> None:
    """STARTTLS and the handshake. What the server offered before it no longer counts."""
    if "STARTTLS" not in (word.upper() for word in capabilities):
        raise Failed(f"STARTTLS is not offered, only {', '.join(capabilities) or 'nothing'}")
    await ask(talk, "STARTTLS")
    await talk.start_tls(verify)


async def ask(talk: Conversation, command: str) -> list[str]:
    """Say a command; the result is the untagged lines before its OK. Raises Failed for NO, BAD and BYE."""
    tag, what = "a", f"answer to {command}"
    await talk.command(f"{tag} {command}")
    untagged: list[str] = []
    for _ in range(ANSWER_LINES):
        line = await talk.line(f"rest of the {what}" if untagged else what)
        first, _, rest = line.partition(" ")
        word = rest.partition(" ")[0].upper()
        if first == tag and word == "OK":
            return untagged
        if first != "*" or word == "BYE":
            raise Failed(f"{what} was '{shown(line)}'")
        untagged.append(line)
    raise Failed(f"{what} has more than {ANSWER_LINES} lines")
