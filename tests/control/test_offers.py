"""Which lists of capabilities count, and when every worker is told."""

from __future__ import annotations

import pytest

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.events import Events
from mailbalancer.control.offers import OfferedLists
from mailbalancer.ipc.messages import Offered, Offers
from mailbalancer.log import Log
from mailbalancer.model import (
    Check,
    Config,
    Endpoint,
    Logging,
    Mail,
    Member,
    MemberKey,
    Mode,
    Pool,
    ServerTls,
    Service,
    SmtpCheck,
)


class Told:
    """The lists, and what workers and operators were told."""

    def __init__(self, *names: str, check: Check | None = None, server_tls: ServerTls | None = None) -> None:
        self.messages: list[Offers] = []
        self.events = Events(Log(Logging(level="error")))
        self.lists = OfferedLists(self.events, self.messages.append)
        self.check = check or Check("smtp", options=SmtpCheck())
        self.server_tls = server_tls
        self.follow(*names)

    def follow(self, *names: str, port: int = 25) -> None:
        members = tuple(Member(name, Endpoint("127.0.0.1", port)) for name in names)
        mx = Service(
            "mx",
            Mode.SMTP,
            (Endpoint("127.0.0.1", 2525),),
            Pool("mx", "", members, check=self.check),
            server_tls=self.server_tls,
            mail=Mail("lb.test"),
        )
        other = Service("other", Mode.TCP, (Endpoint("127.0.0.1", 2526),), Pool("other", "", members))
        self.lists.follow(Config("", (mx, other), (), 1, "", "", ""))

    def checked(self, name: str, *lines: str, verdict: Verdict = Verdict.UP) -> None:
        self.lists.checked(MemberKey("mx", "", name), Result(verdict, "", detail={"capabilities": "\n".join(lines)}))

    def heard(self, name: str, *lines: str) -> None:
        self.lists.heard(Offered("mx", name, list(lines)))

    @property
    def last(self) -> dict[str, tuple[bytes, ...]]:
        return self.messages[-1].lines

    def said(self) -> list[str]:
        return [event["text"] for event in self.events.listed()]


def test_checks_say_what_every_server_has_before_any_client_comes() -> None:
    told = Told("a", "b")
    told.checked("a", "SIZE 1000", "CHUNKING", "PIPELINING")
    told.checked("b", "PIPELINING", "SIZE 500")
    assert told.last == {"a": (b"SIZE 1000", b"CHUNKING", b"PIPELINING"), "b": (b"PIPELINING", b"SIZE 500")}
    assert told.lists.common("mx") == ["SIZE 500", "PIPELINING"]
    assert told.said() == ["mx: clients are not shown CHUNKING, because b does not offer it"]
    before = len(told.messages)
    told.checked("b", "PIPELINING", "SIZE 500")
    assert len(told.messages) == before, "nothing new, nobody is told"
    told.checked("b", "PIPELINING", "SIZE 500", "CHUNKING")
    assert told.lists.common("mx") == ["SIZE 500", "CHUNKING", "PIPELINING"]


def test_what_sessions_hear_is_added_until_the_check_hears_something_else() -> None:
    told = Told("a")
    told.checked("a", "SIZE 1000")
    told.heard("a", "SIZE 1000", "AUTH PLAIN")
    told.heard("a", "AUTH LOGIN")
    assert told.lists.common("mx") == ["SIZE 1000", "AUTH PLAIN LOGIN"]
    told.checked("a", "SIZE 1000")
    assert told.lists.common("mx") == ["SIZE 1000", "AUTH PLAIN LOGIN"]
    told.checked("a", "SIZE 2000")
    assert told.lists.common("mx") == ["SIZE 2000"]


@pytest.mark.parametrize(
    ("check", "inner", "counts"),
    [
        (SmtpCheck(), "none", True),
        (SmtpCheck(), "require", False),
        (SmtpCheck(starttls=True), "require", True),
        (SmtpCheck(starttls=True), "none", False),
        (SmtpCheck(tls=True), "implicit", True),
        (SmtpCheck(), "implicit", False),
        (SmtpCheck(starttls=True), "opportunistic", True),
        (SmtpCheck(), "opportunistic", False),
    ],
)
def test_a_check_counts_when_it_hears_what_sessions_do(check: SmtpCheck, inner: str, counts: bool) -> None:
    tls = ServerTls(starttls=inner) if inner != "none" else None
    told = Told("a", check=Check("smtp", options=check), server_tls=tls)
    told.checked("a", "SIZE 1000", "STARTTLS")
    assert bool(told.lists.common("mx")) is counts


def test_a_check_without_starttls_counts_where_none_is_offered() -> None:
    told = Told("a", server_tls=ServerTls(starttls="opportunistic"))
    told.checked("a", "SIZE 1000")
    assert told.lists.common("mx") == ["SIZE 1000"]


def test_a_check_elsewhere_or_in_trouble_does_not_count() -> None:
    elsewhere = Told("a", check=Check("smtp", port=2500, options=SmtpCheck()))
    elsewhere.checked("a", "SIZE 1000")
    assert elsewhere.lists.common("mx") == []
    down = Told("a")
    down.checked("a", "SIZE 1000", verdict=Verdict.DOWN)
    down.lists.checked(MemberKey("mx", "", "nobody"), Result(Verdict.UP, "", detail={"capabilities": "SIZE 1"}))
    down.lists.checked(MemberKey("other", "", "a"), Result(Verdict.UP, "", detail={"capabilities": "SIZE 1"}))
    down.lists.checked(MemberKey("mx", "", "a"), Result(Verdict.UP, "no capabilities in it"))
    assert down.lists.common("mx") == down.lists.common("other") == []


def test_a_reload_keeps_what_checks_know_of_the_servers_that_stay() -> None:
    told = Told("a", "b")
    told.checked("a", "SIZE 1000")
    told.checked("b", "SIZE 500")
    told.heard("a", "SIZE 1000", "DSN")
    told.follow("a", "c")
    assert told.last == {"a": (b"SIZE 1000",)}
    assert [message.service for message in told.lists.messages()] == ["mx"]
    told.follow("a", port=26)
    assert told.last == {}, "another port is another server"


@pytest.mark.parametrize("lines", [["SIZE"] * 129, ["S" * 1001], ["SIZE é"], [1], "SIZE"])
def test_what_cannot_be_is_refused(lines: list[str]) -> None:
    told = Told("a")
    with pytest.raises(ValueError, match="capabilities"):
        told.lists.heard(Offered("mx", "a", lines))


def test_a_report_about_a_server_that_is_gone_is_forgotten() -> None:
    told = Told("a")
    told.heard("b", "SIZE 1")
    told.lists.heard(Offered("nothing", "a", ["SIZE 1"]))
    assert told.lists.common("mx") == []


def test_what_is_never_shown_is_not_missed() -> None:
    told = Told("a", "b")
    told.checked("a", "STARTTLS", "XCLIENT ADDR", "DSN")
    told.checked("b", "DSN")
    assert told.said() == []
