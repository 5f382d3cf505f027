"""Profiles in a configuration: filled in, overridden, and told about with both places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.model import Config, Endpoint

Load = Callable[..., Config]
Told = Callable[..., list[str]]

PROFILE = Path(__file__).parent / "profiles" / "little-mail.yaml"
HEAD = "real_servers: {mx1: 10.0.2.21, mx2: 10.0.2.22}\nservices:\n"


def test_a_service_from_a_profile(load: Load) -> None:
    (service,) = load(
        HEAD + "  in: {profile: little-mail-smtp, listen: '10.0.1.1:2525', host: m.example, real_servers: [mx1, mx2]}\n"
    ).services
    assert service.name == "in"
    assert service.profile == "little-mail-smtp"
    assert service.listen == (Endpoint("10.0.1.1", 2525),)
    assert service.idle_timeout_s == 330.0
    assert service.pool.check == model.Check(type="smtp", interval_s=7.0, options=model.SmtpCheck("probe.m.example"))
    assert service.line == 3


@pytest.mark.parametrize("reference", ["little-mail-smtp", "little-mail/smtp"])
def test_what_the_service_says_wins(load: Load, reference: str) -> None:
    (service,) = load(
        HEAD
        + f"  in: {{profile: {reference}, vip: ['10.0.1.1', '2001:db8::1'], host: m.example, real_servers: [mx1, mx2],"
        " silence: 12.5, probe: me@m.example, check: {interval_s: 9, helo: other.example}, schedule: priority}\n"
    ).services
    assert service.listen == (Endpoint("10.0.1.1", 25), Endpoint("2001:db8::1", 25))
    assert service.idle_timeout_s == 12.5
    assert service.pool.schedule is model.Schedule.PRIORITY
    assert service.pool.check.interval_s == 9.0
    assert service.pool.check.options == model.SmtpCheck("other.example", mail_from="<>", rcpt_to="me@m.example")


def test_another_type_of_check_replaces_the_whole_check(load: Load) -> None:
    text = HEAD + "  in: {profile: little-mail-smtp, vip: 10.0.1.1, host: m.example, real_servers: [mx1, mx2], check: "
    for written, check in [
        ("tcp", model.Check()),
        ("{type: tcp, rise: 4}", model.Check(rise=4)),
        ("none", model.Check(type="none")),
    ]:
        (service,) = load(f"{text}{written}}}\n").services
        assert service.pool.check == check


def test_a_whole_profile_on_one_address(load: Load) -> None:
    config = load(
        """
        real_servers: {mx1: 10.0.2.21, mx2: 10.0.2.22}
        profiles:
          little-mail: {vip: 10.0.1.1, real_servers: [mx1, mx2], host: m.example}
          second:
            profile: little-mail
            vip: 10.0.1.2
            real_servers: {mx1: 2525}
            host: n.example
            prefix: n-
            services: {smtp: {ramp_s: 0}}
          third:
            {profile: little-mail, vip: 10.0.1.3, real_servers: [mx2], host: o.example, prefix: o-, services: [https]}
        """
    )
    assert [(s.name, str(s.listen[0]), s.profile) for s in config.services] == [
        ("smtp", "10.0.1.1:25", "little-mail-smtp"),
        ("https", "10.0.1.1:443", "little-mail-https"),
        ("n-smtp", "10.0.1.2:25", "little-mail-smtp"),
        ("o-https", "10.0.1.3:443", "little-mail-https"),
    ]
    https = config.services[1]
    assert https.routes[0].hosts == ("m.example", "autodiscover.m.example")
    assert config.services[2].pool.ramp_s == 0.0
    assert config.services[2].pool.members[0].endpoint == Endpoint("10.0.2.21", 2525)


@pytest.mark.parametrize(
    ("service", "lines"),
    [
        (
            "{profile: little-mail-smtp, vip: 10.0.1.1, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in: profile little-mail needs 'host' (name that clients use), for example host:"
             " mail.example.com"],
        ),
        (
            "{profile: little-mail-smtp, vip: 10.0.1.1, host: a_b.., silence: soon, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in.host: 'a_b..' is not a host name such as mail.example.com",
             "x.yaml:3: services.in.silence: 'soon' is not a number"],
        ),
        (
            "{profile: little-mail-smpt, vip: 10.0.1.1, host: m.example, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in.profile: there is no profile 'little-mail-smpt' (did you mean little-mail-smtp?)"],
        ),
        (
            "{profile: litle-mail/smtp, vip: 10.0.1.1, host: m.example, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in.profile: there is no profile 'litle-mail/smtp' (did you mean little-mail-smtp?)"],
        ),
        (
            "{profile: little-mail-smtp, host: m.example, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in: 'listen' is missing; write listen: 10.0.1.100:25, or vip: 10.0.1.100 for the"
             " profile's port"],
        ),
        (
            "{profile: little-mail-smtp, vip: mail, host: m.example, real_servers: [mx1, mx2]}",
            ["x.yaml:3: services.in.listen[0]: 'mail' is not an IP address; write the address to listen on, or * for"
             " all"],
        ),
        (
            "{profile: little-mail-smtp, vip: 10.0.1.1, host: m.example, real_servers: [mx1, mx2], hosst: m.example}",
            ["x.yaml:3: services.in.hosst: unknown key 'hosst' (one of: "],
        ),
        ("{profile: [a], vip: 10.0.1.1}", ["x.yaml:3: services.in.profile: must be the name of a profile"]),
    ],
    ids=range(8),
)  # fmt: skip
def test_told(told: Told, service: str, lines: list[str]) -> None:
    found = told(HEAD + f"  in: {service}\n")
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


def test_a_problem_of_the_profile_names_both_places(told: Told) -> None:
    text = HEAD + "  in:\n    profile: little-mail-smtp\n    vip: 10.0.1.1\n    host: m.example\n    silence: 9999999\n"
    assert told(text + "    real_servers: [mx1, mx2]\n") == [
        f"x.yaml:7: services.in.idle_timeout_s: 9999999 is too large (at most 604800) [from {PROFILE}:12]"
    ]


def test_a_mode_that_is_not_built_names_both_places(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "AVAILABLE_MODES", model.AVAILABLE_MODES - {model.Mode.L4})
    (line,) = told(HEAD + "  in:\n    vip: 10.0.1.1\n    real_servers: [mx1, mx2]\n    profile: later\n")
    later = PROFILE.with_name("later.yaml")
    there = ", ".join(sorted(model.AVAILABLE_MODES))
    assert line == (
        f"x.yaml:6: services.in.mode: 'l4' is not available in this version (available: {there}) [from {later}:6]"
    )


def test_nothing_a_parameter_says_becomes_structure(told: Told) -> None:
    text = (
        HEAD + "  in: {profile: little-mail-smtp, vip: 10.0.1.1, host: m.example, real_servers: [mx1], probe: PROBE}\n"
    )
    (line,) = told(text.replace("PROBE", '"a@b\\n    mode: tls"'))
    assert line.startswith("x.yaml:3: services.in.check.rcpt_to: 'a@b\\n    mode: tls' is not a mail address")
    (line,) = told(text.replace("PROBE", "'${silence}'"))
    assert "'${silence}' is not a mail address" in line
    (line,) = told(text.replace("PROBE", "[a, b]"))
    assert line == "x.yaml:3: services.in.probe: must be one value"


@pytest.mark.parametrize(
    ("profiles", "line"),
    [
        ("little-mal: {vip: 10.0.1.1, real_servers: [mx1, mx2], host: m.example}",
         "profiles.little-mal: there is no profile 'little-mal' (did you mean little-mail?)"),
        ("little-mail: {vip: 10.0.1.1, real_servers: [mx1, mx2], host: m.example, services: [smpt]}",
         "profiles.little-mail.services: 'smpt' is not a service of profile little-mail (did you mean smtp?)"),
        ("little-mail: {vip: 10.0.1.1, real_servers: [mx1, mx2], host: m.example, hots: m.example}",
         "profiles.little-mail.hots: 'hots' is neither a parameter of profile little-mail nor a setting of services"),
        ("little-mail: {real_servers: [mx1, mx2], host: m.example, services: [smtp]}",
         "services.smtp: 'listen' is missing; write listen: 10.0.1.100:25, or vip"),
        ("little-mail: {vip: 10.0.1.1, real_servers: [mx1, mx2], services: [smtp]}",
         "services.smtp: profile little-mail needs 'host'"),
        ("little-mail: 3", "profiles.little-mail: '3' is not a mapping"),
    ],
    ids=range(6),
)  # fmt: skip
def test_wrong_whole_profiles(told: Told, profiles: str, line: str) -> None:
    lines = told(f"real_servers: {{mx1: 10.0.2.21, mx2: 10.0.2.22}}\nprofiles:\n  {profiles}\n")
    assert any(found.startswith((f"x.yaml:3: {line}", f"x.yaml:2: {line}")) for found in lines), lines


def test_a_whole_profile_beside_a_service_of_the_same_name(told: Told) -> None:
    (line,) = told(
        HEAD + "  smtp: {mode: tcp, listen: ':26', real_servers: [mx1, mx2]}\n"
        "profiles: {little-mail: {vip: 10.0.1.1, real_servers: [mx1, mx2], host: m.example, services: [smtp]}}\n"
    )
    assert line == ("x.yaml:4: profiles.little-mail: its service 'smtp' is already there (line 3); write a prefix")


def test_the_operators_folder_comes_first(load: Load, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "little-mail.yaml").write_text(
        "profile: little-mail\ntitle: own\nservices: {smtp: {mode: tcp, port: 2626}}\n"
    )
    text = HEAD + "  in: {profile: little-mail-smtp, vip: 10.0.1.1, real_servers: [mx1, mx2]}\nprofiles_dir: own\n"
    (service,) = load(text, tmp_path).services
    assert service.listen == (Endpoint("10.0.1.1", 2626),)


FENCED = """profile: fenced
title: Networks as a parameter
parameters: {senders: {description: who may, type: networks}}
services:
  smtp: {port: 25, mode: tcp, allow: "${senders}", check: {type: tcp, send: "for ${senders}"}}
  other: {port: 25, mode: tcp}
default_services: [smtp]
"""


@pytest.mark.parametrize(
    ("senders", "allowed", "text"),
    [
        ("10.1.20.0/24", ["10.1.20.0/24"], b"for 10.1.20.0/24"),
        ("[10.1.20.0/24, '2001:db8::/32']", ["10.1.20.0/24", "2001:db8::/32"], b"for 10.1.20.0/24,2001:db8::/32"),
    ],
)
def test_networks_are_one_or_a_list(load: Load, tmp_path: Path, senders: str, allowed: list[str], text: bytes) -> None:
    (tmp_path / "fenced.yaml").write_text(FENCED)
    (service,) = load(
        "real_servers: {a: 10.0.0.1}\nprofiles_dir: .\n"
        f"profiles: {{fenced: {{vip: 10.0.1.1, real_servers: [a], senders: {senders}}}}}\n",
        tmp_path,
    ).services
    assert (service.name, [str(network) for network in service.allow]) == ("smtp", allowed)
    assert service.pool.check.options == model.TcpCheck(send=text)


def test_each_network_of_a_list_is_looked_at(told: Told, tmp_path: Path) -> None:
    (tmp_path / "fenced.yaml").write_text(FENCED)
    lines = told(
        "real_servers: {a: 10.0.0.1}\nprofiles_dir: .\nservices:\n  in:\n    profile: fenced-smtp\n    vip: 10.0.1.1\n"
        "    real_servers: [a]\n    senders:\n      - 10.1.20.0/24\n      - ten\n      - [10.0.0.0/8]\n",
        tmp_path,
    )
    assert [line.partition(" is not")[0] for line in lines] == [
        "x.yaml:10: services.in.senders: 'ten'",
        "x.yaml:11: services.in.senders: must be one value",
    ]
