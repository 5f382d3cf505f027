"""An IMAP session up to the login; behind it bytes are relayed as they come (RFC 3501, RFC 9051, RFC 7888).

Decides: which command of a client goes on to the server and which is answered here, where literals and the lines of
AUTHENTICATE end, which capabilities the client sees, and when the login is complete.
Refuses to know: bytes off the line, TLS, and everything after the login.

How a worker drives it: lines of the client (`mail_lines.Lines`, without CRLF) go to `client`, lines of the server to
`server`; send what they give. `expects` says what the next bytes of the client are. On RELAY pass on what is left in
the line readers of both sides, then all bytes, unseen.
"""

from __future__ import annotations

import re
from typing import Final

from mailbalancer.wire import mailbox
from mailbalancer.wire.imap_greeting import Own, show
from mailbalancer.wire.mailbox import BadServer, Expect, Rules, Turn

#: Longest line of a client before the login: AUTHENTICATE with an initial response (a Kerberos ticket).
MAX_CLIENT_LINE_BYTES: Final = 65536
#: Literals of one LOGIN together: a name and a password.
MAX_LITERAL_BYTES: Final = 8192
MAX_OUTSTANDING: Final = 32

_COMMAND: Final = re.compile(
    rb"([^\x00-\x20\x7f(){%*\"\\+\x80-\xff]{1,64}) ([A-Za-z][A-Za-z0-9.-]*)(?: (.*))?", re.DOTALL
)
_LITERAL: Final = re.compile(rb"\{(0|[1-9][0-9]{0,8})(\+?)\}\Z")
_LOGINS: Final = frozenset((b"LOGIN", b"AUTHENTICATE"))
#: Fields by which a server is told who the client is: only the balancer may, whom the server trusts.
#: A backslash may hide one from us: servers drop it in front of any character.
_FORWARDING_FIELD: Final = re.compile(rb"\\|x-(?:originating|connected|proxy|session|forward)", re.IGNORECASE)


class Dialogue(mailbox.Dialogue):
    """One IMAP session before its login."""

    __slots__ = ("_literal_asked", "_login", "_logout", "_starttls", "_under_way", "_used")

    def __init__(self, rules: Rules, *, secured: bool = False) -> None:
        super().__init__(rules, secured=secured)
        self._under_way: list[bytes] = []  # tags of commands the server has not answered
        self._login = b""  # the tag of LOGIN or AUTHENTICATE
        self._logout = b""  # the tag of LOGOUT
        self._starttls = b""  # the tag of a STARTTLS that waits for the answers before it
        self._literal_asked = False  # a literal waits for the server's `+`
        self._used = 0  # bytes of literals in this command

    @property
    def idle(self) -> bool:
        return not self._under_way

    def greeting(self, line: bytes) -> bytes:
        return show(line, self.showing) + b"\r\n"

    # ------------------------------------------------------------ the client

    def client(self, line: bytes) -> Turn:
        if self.expects is Expect.AUTH_LINE:
            self.expects = Expect.WAIT
            return Turn(line + b"\r\n")
        if self.expects is Expect.REST:
            return self._pass_login(line)
        match = _COMMAND.fullmatch(line)
        if match is None:
            return Turn(to_client=Own.BAD.render(_tag_of(line)))
        return self._command(line, match[1], match[2].upper(), match[3] or b"")

    def _command(self, line: bytes, tag: bytes, name: bytes, argument: bytes) -> Turn:
        literal = _LITERAL.search(line)
        if name == b"STARTTLS":
            return self._on_starttls(tag, argument)
        if name in _LOGINS:
            if not self.showing.login:
                return self._refuse(tag, Own.TLS_REQUIRED, literal)
            self._login = tag
            self._used = 0
            self._under_way.append(tag)
            return self._pass_login(line)
        if literal is not None:
            return self._refuse(tag, Own.BAD, literal)
        if name == b"ID" and _FORWARDING_FIELD.search(argument):
            return Turn(to_client=b"* ID NIL\r\n" + Own.ID_IGNORED.render(tag))
        if name == b"LOGOUT":
            self._logout = tag
        self._under_way.append(tag)
        self.expects = Expect.WAIT if len(self._under_way) >= MAX_OUTSTANDING else Expect.COMMAND
        return Turn(line + b"\r\n")

    def _on_starttls(self, tag: bytes, argument: bytes) -> Turn:
        if argument:
            return Turn(to_client=Own.BAD.render(tag))
        if self.secured:
            return Turn(to_client=Own.TLS_ALREADY.render(tag))
        if not self._rules.starttls:
            return Turn(to_client=Own.TLS_NOT_OFFERED.render(tag))
        self._starttls = tag
        self.expects = Expect.STARTTLS
        return Turn(to_client=self._begin_tls())

    def _begin_tls(self) -> bytes:
        """Our OK, once nothing of the server is outstanding: it would be read as part of the handshake."""
        if not self._starttls or self._under_way:
            return b""
        tag, self._starttls = self._starttls, b""
        self.expects = Expect.TLS
        return Own.TLS_READY.render(tag)

    def _refuse(self, tag: bytes, own: Own, literal: re.Match[bytes] | None) -> Turn:
        """A client does not wait with `{n+}`: its literal would be read as commands."""
        if literal is None or not literal[2]:
            return Turn(to_client=own.render(tag))
        self.expects = Expect.END
        return Turn(to_client=own.render(tag) + Own.BAD_LITERAL.render(), closes=True)

    def _pass_login(self, line: bytes) -> Turn:
        """A piece of LOGIN or AUTHENTICATE up to a line end, which a literal may continue."""
        literal = _LITERAL.search(line)
        self.expects = Expect.WAIT
        if literal is not None:
            self.literal_bytes = int(literal[1])
            self._used += self.literal_bytes
            if self._used > MAX_LITERAL_BYTES:
                self.expects = Expect.END
                return Turn(to_client=Own.BAD_LITERAL.render(), closes=True)
            self._literal_asked = not literal[2]
            if literal[2]:
                self._begin_literal()
        return Turn(line + b"\r\n")

    def _begin_literal(self) -> None:
        self.expects = Expect.LITERAL if self.literal_bytes else Expect.REST

    # ------------------------------------------------------------ the server

    def server(self, line: bytes) -> Turn:
        """A line of the server.

        Raises:
            BadServer: it answers what nobody asked, or sends a literal, which none has a reason to before the login.
        """
        if _LITERAL.search(line):
            raise BadServer(f"literal before the login: {line[:80]!r}")
        if line.startswith(b"+"):
            return self._continued(line)
        tag, _, rest = line.partition(b" ")
        if tag == b"*":
            closes = rest[:3].upper() == b"BYE" and not self._under_way
            return Turn(to_client=show(line, self.showing) + b"\r\n", closes=closes)
        if tag not in self._under_way:
            raise BadServer(f"answer to nothing: {line[:80]!r}")
        self._under_way.remove(tag)
        if tag == self._login:
            return self._login_answered(line, rest)
        if self.expects is Expect.WAIT and not self._login:
            self.expects = Expect.COMMAND
        if tag == self._logout:
            self.expects = Expect.END
            return Turn(to_client=line + b"\r\n", closes=True)
        return Turn(to_client=show(line, self.showing) + b"\r\n" + self._begin_tls())

    def _continued(self, line: bytes) -> Turn:
        """`+`: the server wants the literal, or the next line of AUTHENTICATE."""
        if not self._login or self.expects is not Expect.WAIT:
            raise BadServer(f"continuation that nobody waits for: {line[:80]!r}")
        if self._literal_asked:
            self._literal_asked = False
            self._begin_literal()
        else:
            self.expects = Expect.AUTH_LINE
        return Turn(to_client=line + b"\r\n")

    def _login_answered(self, line: bytes, rest: bytes) -> Turn:
        self._login = b""
        self._literal_asked = False
        in_literal = self.expects in (Expect.LITERAL, Expect.REST)
        self.literal_bytes = 0
        if rest[:3].upper() in (b"OK ", b"OK") and not in_literal:
            self.expects = Expect.RELAY
            return Turn(to_client=line + b"\r\n")
        self.logins += 1
        # refused in the middle of `{n+}`: what the client still sends cannot be told from commands
        self.expects = Expect.END if in_literal else Expect.COMMAND
        return Turn(to_client=show(line, self.showing) + b"\r\n", closes=in_literal)


def _tag_of(line: bytes) -> bytes:
    """The tag of a line that is no command, if it has one; else the answer is untagged."""
    match = re.match(rb"([A-Za-z0-9._-]{1,64})(?: |\Z)", line)
    return match[1] if match else b"*"
