"""The `smtp` check: banner, EHLO, optional STARTTLS, optional MAIL/RCPT/RSET, always QUIT (RFC 5321, 3207).

Decides: what each refusal means. `421 4.3.2` at any step is an Exchange server in maintenance, `452 4.3.1` is its
back pressure; every other 4yz and 5yz is down, with the server's own words.
Refuses to know: message content. DATA and BDAT are never sent, so no check ever leaves a message.
The steps are public: `smoke` strings the same ones together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import SmtpCheck, Verify

QUIT = b"QUIT\r\n"
REPLY_LINES = 128
#: RFC 5321 section 4.2, the code alone or followed by "-" (more lines) or a space and words.
_LINE = re.compile(r"([2-5][0-9]{2})(?:([- ])(.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole reply. `words`: the text of each line, without the code."""

    code: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shown(f"{self.code} {self.words[0]}")

    @property
    def positive(self) -> bool:
        return 200 <= self.code < 300

    def refusal(self, what: str) -> Failed:
        """What this reply to `what` means for the server."""
        enhanced = self.words[-1].partition(" ")[0]
        if (self.code, enhanced) == (421, "4.3.2"):
            return Failed(f"in maintenance: {what} was '{self}'", Verdict.MAINTENANCE)
        if (self.code, enhanced) == (452, "4.3.1"):
            return Failed(f"back pressure: {what} was '{self}'", Verdict.BACK_PRESSURE)
        return Failed(f"{what} was '{self}'")


async def converse(options: SmtpCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    await greet(talk)
    capabilities = await hello(talk, options.helo)
    if options.starttls:
        await start_tls(talk, capabilities, options.verify)
        await hello(talk, options.helo)
    if options.mail_from or options.rcpt_to:
        await try_envelope(talk, options.mail_from, options.rcpt_to)
    done = ["banner", "EHLO"] + ["STARTTLS"] * options.starttls + ["MAIL"] * bool(options.mail_from or options.rcpt_to)
    return f"{', '.join(done[:-1])} and {done[-1]} answered well"


async def greet(talk: Conversation) -> Reply:
    """Wait for the banner; from then on the conversation ends with QUIT."""
    banner = await _reply(talk, "banner")
    talk.farewell = QUIT
    talk.detail["banner"] = str(banner)
    if banner.code != 220:
        raise banner.refusal("banner")
    return banner


async def hello(talk: Conversation, name: str) -> tuple[str, ...]:
    """EHLO; the result is what the server offers, one extension with its parameters each."""
    reply = await ask(talk, f"EHLO {name}")
    offered = tuple(shown(words) for words in reply.words[1:])
    talk.detail["capabilities"] = "\n".join(offered)
    return offered


async def start_tls(talk: Conversation, capabilities: tuple[str, ...], verify: Verify) -> None:
    """STARTTLS and the handshake. What the server offered before it no longer counts."""
    if "STARTTLS" not in (words.upper() for words in capabilities):
        raise Failed(f"STARTTLS is not offered, only {', '.join(capabilities) or 'nothing'}")
    await ask(talk, "STARTTLS")
    await talk.start_tls(verify)


async def try_envelope(talk: Conversation, mail_from: str, rcpt_to: str) -> None:
    """MAIL, RCPT when there is a recipient, and RSET: what a sender would hear, without a message."""
    await ask(talk, f"MAIL FROM:<{mail_from.strip('<>')}>")
    if rcpt_to:
        await ask(talk, f"RCPT TO:<{rcpt_to.strip('<>')}>")
    await ask(talk, "RSET")


async def ask(talk: Conversation, command: str) -> Reply:
    """Say a command; the result is its positive reply. Raises Failed for any other."""
    await talk.command(command)
    verb = command.partition(" ")[0]
    reply = await _reply(talk, f"answer to {verb}")
    if not reply.positive:
        raise reply.refusal(f"answer to {verb}")
    return reply


async def _reply(talk: Conversation, what: str) -> Reply:
    words: list[str] = []
    first_code = ""
    for _ in range(REPLY_LINES):
        line = await talk.line(f"rest of the {what}" if words else what)
        match = _LINE.match(line)
        if match is None or (first_code and match[1] != first_code):
            raise Failed(f"{what} is not SMTP: '{shown(line)}'")
        first_code = match[1]
        words.append(match[3] or "")
        if match[2] != "-":
            return Reply(int(first_code), tuple(words))
    raise Failed(f"{what} has more than {REPLY_LINES} lines")
