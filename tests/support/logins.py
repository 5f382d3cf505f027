"""Servers that log in connections, as IIS does with NTLM and Kerberos, and users who notice when they are answered as
somebody else.

Decides: how logins work (one token, as Kerberos pre-authenticated; two legs, as NTLM), and what is a wrong answer: the
name of anybody else. Nobody's name is none: a login that was lost with its connection costs another one, nothing more.
Refuses to know: the balancer.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.lone_worker import reset
from tests.support.web import Asked, Cut, Handler, Message, Wire, reply

HOWS = ("Negotiate", "NTLM", "nobody")


def logging_in(name: str, breaks: random.Random | None = None, cookie: bool = False) -> Handler:
    """Answers with the name of who has logged in on this connection.

    Args:
        name: of the server, in `X-Server`.
        breaks: now and then it resets a connection instead of answering.
        cookie: every answer sets a session cookie of the server's own.
    """
    fields = [f"X-Server: {name}"] + ([f"Set-Cookie: sid={name}; Path=/"] if cookie else [])

    def answer(asked: Asked) -> bytes | None:
        scheme, _, token = asked.request.value("Authorization").partition(" ")
        if breaks is not None and breaks.random() < 0.03:
            reset(asked.wire.socket)
            return None
        if scheme == "NTLM" and token == "one":
            asked.notes["challenged"] = "yes"
            return reply("", "401 Unauthorized", "WWW-Authenticate: NTLM challenge", *fields)
        if scheme == "NTLM" and not asked.notes.get("challenged"):
            return reply("", "401 Unauthorized", "WWW-Authenticate: NTLM", *fields)  # its first leg went elsewhere
        if scheme in ("NTLM", "Negotiate"):
            asked.notes["user"] = token
        return reply(asked.notes.get("user", "nobody"), "200 OK", *fields)

    return answer


@dataclass
class Tally:
    """What a number of users met with.

    Attributes:
        right: answers to somebody who had logged in, under his own name.
        wrong: every answer under somebody else's name.
        other: statuses and breaks that cost a login or a request, and how often.
    """

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)

    def add(self, more: Tally) -> None:
        self.right += more.right
        self.wrong += more.wrong
        for what, times in more.other.items():
            self.note(what, times)

    def note(self, what: str, times: int = 1) -> None:
        self.other[what] = self.other.get(what, 0) + times


class User:
    """One user with a connection that is renewed when it breaks, as mail programs do.

    Args:
        connect: opens a connection to the service.
        how: `Negotiate` (logs in with the first request), `NTLM` (is challenged first) or `nobody`.
        fields: header lines of every request, such as what persistence knows the user by.
    """

    def __init__(
        self, connect: Callable[[], socket.socket], name: str, how: str, target: str = "/", fields: Sequence[str] = ()
    ) -> None:
        self._connect = connect
        self.name = name
        self.how = how
        self.target = target
        self._fields = list(fields)
        self._cookies: dict[str, str] = {}
        self.wire: Wire | None = None
        self.logged_in = False
        self.tally = Tally()

    def act(self) -> None:
        """One request, with a login where there was none on this connection."""
        try:
            if self.wire is None:
                self.wire = Wire(self._connect())
                self.logged_in = False
            if self.how == "nobody":
                self._judge(self.ask(), "nobody")
            elif self.logged_in:
                self._judge(self.ask(), self.name)
            elif self.how == "Negotiate":
                self._judge(self.ask(f"Authorization: Negotiate {self.name}"), self.name)
            else:
                self._answer_a_challenge()
        except (OSError, Cut, AssertionError) as error:
            self.tally.note(type(error).__name__)
            self.close()

    def _answer_a_challenge(self) -> None:
        first = self.ask("Authorization: NTLM one")
        if first.status == 401 and not first.value("Connection"):
            self._judge(self.ask(f"Authorization: NTLM {self.name}"), self.name)

    def ask(self, *fields: str) -> Message:
        """The answer to one request on the connection at hand."""
        assert self.wire is not None
        cookies = [f"Cookie: {'; '.join(f'{k}={v}' for k, v in self._cookies.items())}"] if self._cookies else []
        lines = "".join(f"{line}\r\n" for line in (*self._fields, *cookies, *fields))
        self.wire.socket.sendall(f"GET {self.target} HTTP/1.1\r\nHost: mail.example.com\r\n{lines}\r\n".encode())
        answer = self.wire.answer()
        for setting in answer.values("Set-Cookie"):
            name, _, value = setting.split(";")[0].partition("=")
            self._cookies[name] = value
        if answer.value("Connection") == "close":
            self.close()
        return answer

    def _judge(self, answer: Message, expected: str) -> None:
        if answer.status != 200:  # 401: the server-side connection was renewed, so the login is gone
            self.tally.note(str(answer.status))
            self.logged_in = False
            return
        said = answer.body.decode()
        if said == expected:
            self.tally.right += self.how != "nobody"
            self.logged_in = self.how != "nobody" and self.wire is not None
        elif said == "nobody":
            self.tally.note("nobody")  # nobody's rights are nobody's mail
            self.logged_in = False
        else:
            self.tally.wrong.append(f"{self.name} was answered as {said}")

    def close(self) -> None:
        if self.wire is not None:
            self.wire.socket.close()
            self.wire = None


def take_turns(users: Sequence[User], rng: random.Random, turns: int = 8) -> Tally:
    """Users who ask in random order, and now and then end their connection; what they met with."""
    for _ in range(turns):
        rng.choice(users).act()
        if rng.random() < 0.1:
            rng.choice(users).close()
    tally = Tally()
    for user in users:
        user.close()
        tally.add(user.tally)
    return tally
