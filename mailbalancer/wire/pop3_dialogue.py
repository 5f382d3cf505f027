"""A POP3 session up to the login; behind it bytes are relayed as they come (RFC 1939, RFC 2449, RFC 5034).

Decides: which command of a client goes on to the server and which is answered here, where an answer of several lines
ends, which capabilities the client sees, and when the login is complete.
Refuses to know: bytes off the line, TLS, and everything after the login.

How a worker drives it: lines of the client (`mail_lines.Lines`, without CRLF) go to `client`, lines of the server to
`server`; send what they give. One command is under way at a time: `expects` says WAIT until it is answered, and what a
client has pipelined stays where it is. On RELAY pass on what is left in the line readers, then all bytes, unseen.
"""

from __future__ import annotations

import re
from typing import Final

from mailbalancer.wire import mailbox
from mailbalancer.wire.mailbox import BadServer, Expect, Rules, Turn
from mailbalancer.wire.pop3_greeting import Own, positive, show

#: RFC 2449 section 4 says 255; AUTH with an initial response and its lines are longer (RFC 5034: 12288 as in SMTP).
MAX_CLIENT_LINE_BYTES: Final = 12288
#: Lines of one CAPA answer.
MAX_CAPABILITIES: Final = 128

_COMMAND: Final = re.compile(rb"([A-Za-z]{3,10})(?: (.*))?", re.DOTALL)
_LOGINS: Final = frozenset((b"PASS", b"APOP", b"AUTH"))
_WITH_PASSWORD: Final = _LOGINS | {b"USER"}
#: Answered with one line. What else there may be is answered with who knows how many, and nobody needs it before login.
_SIMPLE: Final = frozenset((b"USER", b"QUIT", b"NOOP", b"UTF8", b"LANG"))


class Dialogue(mailbox.Dialogue):
    """One POP3 session before its login."""

    __slots__ = ("_capabilities", "_verb")

    def __init__(self, rules: Rules, *, secured: bool = False) -> None:
        super().__init__(rules, secured=secured)
        self._verb = b""  # of the command under way
        self._capabilities: list[bytes] | None = None  # lines of a CAPA answer that has begun

    @property
    def idle(self) -> bool:
        return not self._verb

    def greeting(self, line: bytes) -> bytes:
        return line + b"\r\n"

    # ------------------------------------------------------------ the client

    def client(self, line: bytes) -> Turn:
        if self.expects is Expect.AUTH_LINE:
            self.expects = Expect.WAIT
            return Turn(line + b"\r\n")
        match = _COMMAND.fullmatch(line)
        if match is None:
            return Turn(to_client=Own.UNKNOWN.render())
        verb, argument = match[1].upper(), match[2] or b""
        own = self._ruling(verb, argument)
        if own is not None:
            if own is Own.TLS_READY:
                self.expects = Expect.TLS
            return Turn(to_client=own.render())
        self._verb = verb
        self.expects = Expect.WAIT
        return Turn(line + b"\r\n")

    def _ruling(self, verb: bytes, argument: bytes) -> Own | None:
        """The answer of our own that this command gets; None: the server answers."""
        if verb == b"STLS":
            return self._on_stls(argument)
        if verb == b"XCLIENT":
            return Own.NOT_ALLOWED
        if verb in _WITH_PASSWORD and not self.showing.login:
            return Own.TLS_REQUIRED
        # a bare AUTH or LANG asks for a list
        known = verb in _SIMPLE or verb in _LOGINS or verb == b"CAPA"
        return None if known and (argument or verb not in (b"AUTH", b"LANG")) else Own.UNKNOWN

    def _on_stls(self, argument: bytes) -> Own:
        if self.secured:
            return Own.TLS_ALREADY
        return Own.TLS_READY if self._rules.starttls and not argument else Own.TLS_NOT_OFFERED

    # ------------------------------------------------------------ the server

    def server(self, line: bytes) -> Turn:
        """A line of the server.

        Raises:
            BadServer: it answers what nobody asked, or breaks the grammar.
        """
        if self._capabilities is not None:
            return self._listed(line)
        if not self._verb:
            return self._unasked(line)
        if self._verb == b"AUTH" and line.split(b" ", 1)[0] == b"+":
            self.expects = Expect.AUTH_LINE
            return Turn(to_client=line + b"\r\n")
        accepted = positive(line)
        if accepted and self._verb == b"CAPA":
            self._capabilities = []
            return Turn(to_client=line + b"\r\n")
        return self._answered(line, accepted)

    def _answered(self, line: bytes, accepted: bool) -> Turn:
        verb, self._verb = self._verb, b""
        self.expects = Expect.COMMAND
        if verb in _LOGINS:
            self.logins += not accepted
            self.expects = Expect.RELAY if accepted else Expect.COMMAND
        elif verb == b"QUIT":
            self.expects = Expect.END
        return Turn(to_client=line + b"\r\n", closes=verb == b"QUIT")

    def _listed(self, line: bytes) -> Turn:
        """A line of CAPA; all of them are shown when the dot has come."""
        assert self._capabilities is not None
        if line != b".":
            self._capabilities.append(line)
            if len(self._capabilities) > MAX_CAPABILITIES:
                raise BadServer(f"more than {MAX_CAPABILITIES} capabilities")
            return Turn()
        lines, self._capabilities, self._verb = self._capabilities, None, b""
        self.expects = Expect.COMMAND
        return Turn(to_client=b"".join(b"%b\r\n" % shown for shown in [*show(lines, self.showing), b"."]))

    def _unasked(self, line: bytes) -> Turn:
        """A server may say why it leaves."""
        if positive(line):
            raise BadServer(f"answer to nothing: {line[:80]!r}")
        self.expects = Expect.END
        return Turn(to_client=line + b"\r\n", closes=True)
