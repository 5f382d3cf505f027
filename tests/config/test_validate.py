"""The sentences an operator reads: (what is written, every line that is told)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

HEAD = """\
real_servers:
  ex1: 10.0.2.11
  ex2: 10.0.2.12
services:
"""
SMTP = HEAD + "  smtp:\n    mode: tcp\n    listen: 10.0.1.100:25\n    real_servers: [ex1, ex2]\n"

ROWS: list[tuple[str, list[str]]] = [
    # words
    (
        SMTP + "    schedule: leastconn\n",
        ["x.yaml:9: services.smtp.schedule: 'leastconn' is not a schedule (did you mean least_connections?)"],
    ),
    (
        SMTP + "    schedule: wrr\n",
        ["x.yaml:9: services.smtp.schedule: 'wrr' is not a schedule (did you mean weighted_round_robin?)"],
    ),
    (
        SMTP + "    check: smtps\n",
        ["x.yaml:9: services.smtp.check: 'smtps' is not a check type (did you mean smtp?)"],
    ),
    (
        SMTP + "    real_servers: {ex1: {state: draning}}\n".replace("real_servers", "persist"),
        [
            "x.yaml:9: services.smtp.persist.ex1: unknown key 'ex1' (one of: by, group, max_entries, timeout_s,"
            " warn_share)"
        ],
    ),
    (HEAD + "  x: {mode: htp}\n", ["x.yaml:5: services.x.mode: 'htp' is not a mode (did you mean http?)"]),
    ("version: 2\n" + SMTP, ["x.yaml:1: version: '2' is not a version of this file format (one of: 1)"]),
    (
        "log: {level: verbose}\n" + SMTP,
        ["x.yaml:1: log.level: 'verbose' is not a log level (one of: debug, error, info, warning)"],
    ),
    # keys
    (SMTP + "    lisen: 5\n", ["x.yaml:9: services.smtp.lisen: unknown key 'lisen' (did you mean listen?)"]),
    (
        SMTP + "    backends: []\n",
        ["x.yaml:9: services.smtp.backends: unknown key 'backends' (did you mean real_servers?)"],
    ),
    ("servics: {}\n" + SMTP, ["x.yaml:1: servics: unknown key 'servics' (did you mean services?)"]),
    (
        SMTP + "    client_tls: {certificate: mail}\n",
        [
            "x.yaml:9: services.smtp.client_tls: 'client_tls' belongs to mode http, smtp, imap or pop3, not to tcp; "
            "remove it or change the mode"
        ],
    ),
    (
        SMTP + "    unknown_sni: refuse\n",
        [
            "x.yaml:9: services.smtp.unknown_sni: 'unknown_sni' belongs to mode tls, not to tcp;"
            " remove it or change the"
            " mode"
        ],
    ),
    (
        SMTP + "    check: {rcpt_to: a@b}\n",
        [
            "x.yaml:9: services.smtp.check.rcpt_to: 'rcpt_to' belongs to a check of type smtp; write"
            " that type or remove"
            " it"
        ],
    ),
    (
        SMTP + "    check: {type: smtp, interval: 5}\n",
        ["x.yaml:9: services.smtp.check.interval: unknown key 'interval' (did you mean interval_s?)"],
    ),
    # persistence of other modes
    (
        SMTP + "    persist: {by: cookie}\n",
        ["x.yaml:9: services.smtp.persist.by: 'cookie' is a persistence of mode http; a tcp service has source"],
    ),
    (
        SMTP + "    persist: tls_session_id\n",
        ["x.yaml:9: services.smtp.persist: 'tls_session_id' is a persistence of mode tls; a tcp service has source"],
    ),
    # missing
    (
        HEAD + "  x: {mode: tcp, real_servers: [ex1]}\n",
        ["x.yaml:5: services.x: 'listen' is missing; write an address and port such as 10.0.1.100:25"],
    ),
    (
        HEAD + "  x: {listen: ':25'}\n",
        [
            "x.yaml:5: services.x: 'mode' is missing; write tcp (bytes pass unchanged), tls (passed"
            " through by name), http,"
            " smtp, imap, pop3 or l4, or a profile"
        ],
    ),
    (
        HEAD + "  x: {mode: tcp, listen: ':25'}\n",
        ["x.yaml:5: services.x: 'real_servers' is missing; name at least one real server"],
    ),
    # types and bounds
    (
        SMTP + "    ramp_s: 5m\n",
        ["x.yaml:9: services.smtp.ramp_s: '5m' is not a number of seconds, written without a unit"],
    ),
    (SMTP + "    ramp_s: -1\n", ["x.yaml:9: services.smtp.ramp_s: -1 is too small (at least 0)"]),
    (
        SMTP + "    idle_timeout_s: 1e300\n",
        ["x.yaml:9: services.smtp.idle_timeout_s: 1e+300 is too large (at most 604800)"],
    ),
    (SMTP + "    max_sessions: 1.5\n", ["x.yaml:9: services.smtp.max_sessions: '1.5' is not a whole number"]),
    (SMTP + "    max_sessions: '5'\n", ["x.yaml:9: services.smtp.max_sessions: '5' is not a whole number"]),
    (SMTP + "    max_sessions: true\n", ["x.yaml:9: services.smtp.max_sessions: 'true' is not a whole number"]),
    (
        SMTP + "maintenance: {windows: [{real_server: ex9, from: sunday 01:00, until: 2026-11-28 22:00}]}\n",
        [
            "x.yaml:9: maintenance.windows[0].real_server: there is no real server 'ex9' (did you mean ex2?)",
            "x.yaml:9: maintenance.windows[0].until: write both as dates or both as weekdays",
        ],
    ),
    (
        SMTP + "    drop_after_drain: maybe\n",
        ["x.yaml:9: services.smtp.drop_after_drain: 'maybe' is neither true nor false"],
    ),
    (
        SMTP + "    schedule:\n",
        [
            "x.yaml:9: services.smtp.schedule: is empty; write one of: round_robin,"
            " weighted_round_robin, least_connections, weighted_least_connections, source_hash,"
            " priority"
        ],
    ),
    (
        SMTP + "    max_sessions:\n",
        ["x.yaml:9: services.smtp.max_sessions: is empty; write a value or remove the line"],
    ),
    (
        SMTP + "    proxy_protocol: v2\n",
        ["x.yaml:9: services.smtp.proxy_protocol: 'v2' is not a mapping (lines of 'key: value')"],
    ),
    ("services: [a]\n", ["x.yaml:1: services: a list is not a mapping (lines of 'key: value')"]),
    ("workers: 0\n" + SMTP, ["x.yaml:1: workers: 0 is too small (at least 1)"]),
    ("workers: many\n" + SMTP, ["x.yaml:1: workers: 'many' is not a whole number"]),
    ("workers: 65\n" + SMTP, ["x.yaml:1: workers: 65 is too large (at most 64)"]),
    ("- a\n", ["x.yaml:1: this is not a configuration: it must be a mapping with version, real_servers and services"]),
    # values
    (
        "real_servers: {ex1: ex1.example.com}\nservices:\n  a: {mode: tcp, listen: ':25', real_servers: [ex1]}\n",
        [
            "x.yaml:1: real_servers.ex1: 'ex1.example.com' is not an IP address; write its IP address:"
            " a load balancer must"
            " not depend on DNS"
        ],
    ),
    (
        SMTP + "    deny: [10.0.0.5/24]\n",
        [
            "x.yaml:9: services.smtp.deny[0]: '10.0.0.5/24' is a host with a mask; write 10.0.0.0/24 for the network or"
            " 10.0.0.5 for the host"
        ],
    ),
    (
        HEAD + "  x: {mode: tcp, listen: ':25', real_servers: {ex1: {weight: 0}}}\n",
        [
            "x.yaml:5: services.x.real_servers.ex1.weight: 0 is not a weight (more than 0); to give it"
            " no new sessions write"
            " state: draining"
        ],
    ),
    (
        HEAD + "  x: {mode: tcp, listen: ':25', real_servers: [ex1, ex1]}\n",
        ["x.yaml:5: services.x.real_servers: 'ex1' is named twice"],
    ),
    (
        HEAD + "  x: {mode: tcp, listen: ':25', real_servers: []}\n",
        ["x.yaml:5: services.x.real_servers: is empty; name at least one"],
    ),
    (
        HEAD + "  x y: {mode: tcp, listen: ':25', real_servers: [ex1]}\n",
        [
            "x.yaml:5: services.x y: 'x y' cannot be a name: letters, digits, '.', '_' and '-', at"
            " most 64, beginning with a"
            " letter or digit"
        ],
    ),
]


@pytest.mark.parametrize(("text", "lines"), ROWS, ids=range(len(ROWS)))
def test_told(told: Callable[[str], list[str]], text: str, lines: list[str]) -> None:
    assert told(text) == lines


def test_every_problem_at_once_in_the_order_of_the_file(told: Callable[[str], list[str]]) -> None:
    lines = told(
        """
        workers: 100
        real_servers: {ex1: 10.0.2.11, bad: mail.example.com}
        services:
          a:
            mode: tcp
            listen: 127.0.0.1:25
            ramp_s: x
            real_servers: [ex1, bad, ex2]
            check: {type: smtp, rise: 0, fall: 0}
          b: {mode: tcp, listen: 127.0.0.1:25, real_servers: [ex1], shedule: priority}
          c: {mode: smtp, listen: 127.0.0.1:26, real_servers: [ex1], check: {starttls: 3}}
        """
    )
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in lines] == [
        "x.yaml:1 workers",
        "x.yaml:2 real_servers.bad",
        "x.yaml:7 services.a.ramp_s",
        "x.yaml:8 services.a.real_servers.ex2",
        "x.yaml:9 services.a.check.rise",
        "x.yaml:9 services.a.check.fall",
        "x.yaml:10 services.b.shedule",
        "x.yaml:10 services.b.listen",
        "x.yaml:11 services.c.check.starttls",
    ]


def test_a_value_cannot_make_a_second_line(told: Callable[[str], list[str]]) -> None:
    lines = told(HEAD + '  x: {mode: "tcp\\nx.yaml:1: all is well\\e[2J"}\n')
    assert len(lines) == 1
    assert lines[0].isprintable()


def test_a_long_value_is_cut(told: Callable[[str], list[str]]) -> None:
    (line,) = told(SMTP + f"    schedule: {'x' * 5000}\n")
    assert len(line) < 400


@pytest.mark.parametrize("name", ["tcp", "mode", "[key]", "services", "check", "0"])
def test_names_that_are_words_of_the_schema_confuse_nothing(told: Callable[[str], list[str]], name: str) -> None:
    lines = told(HEAD + f"  {name!r}: {{mode: tcp, listen: ':25', real_servers: [ex1], rampe_s: 3}}\n")
    assert lines
    assert all(line.startswith("x.yaml:5: services") for line in lines)
