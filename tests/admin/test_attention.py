"""What is wrong comes first, once, and in few words."""

from __future__ import annotations

from typing import Any

from mailbalancer.admin import attention
from mailbalancer.admin.words import Tone
from tests.admin.test_text import report, server, service, worker

DOWN = {"up": False, "availability": "closed", "last_flip": {"up": False, "reason": "connection refused", "at": ""}}
DRAINING = {"admin": "draining", "availability": "returning", "drain_ends_in_s": 60.0}


def said(facts: dict[str, Any]) -> list[str]:
    return [sentence for sentence, _ in attention.troubles(facts)]


def test_when_all_is_well_it_says_so_and_nothing_more() -> None:
    facts = report(service("smtp"), service("imap"))
    assert attention.verdict(facts) == ("all is well: 2 services", Tone.GOOD)
    assert attention.troubles(facts) == []


def test_servers_that_serve_do_not_hide_a_warning() -> None:
    facts = report(service("smtp"), service("imap"), warnings=["certificate mail has expired"])
    assert attention.verdict(facts) == ("2 services, all serve; 1 warning", Tone.WARNING)


def test_one_machine_is_one_sentence_however_many_services_it_has() -> None:
    names = [f"s{number}" for number in range(6)]
    services = [service(name, server("ex1", **DOWN), server("ex2")) for name in names]
    facts = report(*services)
    assert attention.verdict(facts) == ("6 of 6 services need a look; all of them serve", Tone.WARNING)
    assert said(facts) == ["ex1 down: connection refused (s0, s1, s2, s3 and 2 more)"]


def test_a_service_without_a_server_is_the_worst() -> None:
    facts = report(service("smtp", server("ex1", **DOWN)), service("imap", server("ex1", **DRAINING), server("ex2")))
    words = "no real server is ready, new sessions are refused: smtp"
    assert attention.verdict(facts) == (words, Tone.BAD)


def test_bad_comes_before_what_only_wants_a_look() -> None:
    mismatch = {"binding": "MISMATCH", "text": "another certificate"}
    facts = report(
        service("smtp", server("ex1", **DRAINING), server("ex2", ramp_percent=40), server("ex3", **DOWN)),
        service("owa", server("ex1"), server("ex2", extended_protection=mismatch)),
        workers=[worker(0, alive=False)],
        warnings=["runs as root"],
    )
    assert said(facts) == [
        "ex3 down: connection refused (smtp)",
        "ex2 Extended Protection: another certificate (owa)",
        "ex1 draining (smtp)",
        "ex2 ramping 40 % (smtp)",
        "worker 0 (pid 100) is not running; it is being replaced",
        "runs as root",
    ]


def test_its_own_word_for_maintenance_is_told_apart_from_the_operators() -> None:
    own = server("ex1", maintenance=True, availability="returning", availability_reason="in maintenance: 421 4.3.2")
    assert said(report(service("smtp", own, server("ex2")))) == ["ex1 says that it is in maintenance (smtp)"]


def test_components_of_exchange_that_are_off_are_named() -> None:
    def asked(page: str, verdict: str, status: int) -> dict[str, Any]:
        detail = {"status": status}
        return {
            "type": "https",
            "verdict": verdict,
            "reason": "",
            "asks": page,
            "ago_s": 1,
            "took_s": 0,
            "detail": detail,
        }

    off = server("ex1", **DOWN | {"check": asked("/ews/healthcheck.htm", "down", 503)})
    on = server("ex1", check=asked("/owa/healthcheck.htm", "up", 200))
    told = said(report(service("ews", off, server("ex2")), service("owa", on, server("ex2"))))
    assert told[-1] == "ex1 has Exchange components that are not active: EwsProxy"


def test_what_is_disabled_on_purpose_is_no_trouble() -> None:
    disabled = server("ex1", admin="disabled", availability="closed")
    assert said(report(service("smtp", disabled, server("ex2")))) == []
