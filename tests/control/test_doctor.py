"""What is found wrong, and in which order it is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control.doctor import Finding, Severity, examined, text
from mailbalancer.host.condition import Clock, Condition, Process
from mailbalancer.model import (
    L4,
    Certificate,
    ClientTls,
    Config,
    Endpoint,
    Forward,
    Member,
    Mode,
    Pool,
    PortRange,
    RealServer,
    Service,
)
from mailbalancer.network import Interface, Network, Route
from mailbalancer.tls.material import read_material
from tests.support.certs import Authority

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NETWORK = Network(
    (
        Interface("eth0", 2, addresses=(ip_interface("10.0.1.1/24"), ip_interface("10.0.1.100/32"))),
        Interface("eth1", 3, addresses=(ip_interface("10.0.2.1/24"),)),
    ),
    (
        Route(ip_network("10.0.1.0/24"), "eth0"),
        Route(ip_network("10.0.2.0/24"), "eth1"),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.254")),
    ),
)
WELL = Condition(
    settings={
        "net.netfilter.nf_conntrack_count": 10,
        "net.netfilter.nf_conntrack_max": 1000,
        "net.core.somaxconn": 4096,
        "net.ipv4.conf.eth1.forwarding": 1,
    },
    port_range=(10240, 65535),
    clock=Clock(True, 0.01),
    programs=frozenset({"nft", "ip", "tcpdump"}),
    processes={1: Process(1000, 1 << 10 | 1 << 12 | 1 << 13), 2: Process(1000, 0)},
    tables=frozenset({"inet"}),
)
MEMBER = Member("s1", Endpoint("10.0.2.11", 25))


def config(forward: Forward = Forward.TRANSPARENT, **more: Any) -> Config:
    l4 = L4((PortRange("10.0.1.100", 25, 25),), forward=forward)
    service = Service("mail", Mode.L4, (), Pool("mail", "", (MEMBER,)), l4=l4)
    return Config("x.yaml", (service,), (RealServer("s1", "10.0.2.11"),), 1, "/run/x.sock", "", "", **more)


def server(**more: Any) -> dict[str, Any]:
    return {
        "name": "s1",
        "endpoint": "10.0.2.11:25",
        "up": True,
        "admin": "enabled",
        "availability": "ready",
        "sessions": 0,
        "way_back": {"verdict": "good", "reason": "it answers"},
        "check": {"reason": "", "detail": {}},
        **more,
    }


def status(*servers: dict[str, Any], mode: str = "l4", **more: Any) -> dict[str, Any]:
    worker = {"index": 0, "pid": 2, "alive": True, "beat_age_s": 0.1, "paused": False, "restarts": 0, "open_files": 9}
    pool = {"route": "", "real_servers": [*servers]}
    return {
        "pid": 1,
        "warnings": [],
        "workers": [{**worker, **more.pop("worker", {})}],
        "services": [{"name": "mail", "mode": mode, "imbalance": None, "pools": [pool], **more}],
    }


def found(
    facts: dict[str, Any] | None = None,
    condition: Condition = WELL,
    of: Config | None = None,
    network: Network = NETWORK,
) -> list[Finding]:
    return examined(of or config(), network, condition, facts or status(server()), NOW)


def test_all_is_well() -> None:
    assert found() == []
    assert text(found()) == "nothing is wrong"


BAD = {"verdict": "bad", "reason": "10.0.2.11 answers another way; set its gateway"}
UNKNOWN = {"verdict": "unknown", "reason": "filtered"}


@pytest.mark.parametrize(
    ("facts", "severity", "says", "remedy"),
    [
        (
            status(server(way_back=BAD)),
            Severity.RISK,
            "Internet: served, but not with their address",
            "set its gateway",
        ),
        (status(server(way_back=UNKNOWN)), Severity.RISK, "not known whether they are served: filtered", "explain"),
        (status(server(up=False, availability="closed")), Severity.BROKEN, "no real server is ready", "see below"),
        (status(server(up=False)), Severity.RISK, "s1 is down", "`mailbalancer smoke mail`"),
        (status(server(admin="draining")), Severity.NOTE, "s1 is draining", "`mailbalancer enable s1`"),
        (status(server(), worker={"alive": False}), Severity.BROKEN, "does not run", "log"),
        (status(server(), worker={"paused": True}), Severity.BROKEN, "accepts nobody", "LimitNOFILE"),
        (status(server(), worker={"restarts": 3}), Severity.RISK, "replaced 3 times", "log"),
        (status(server(), worker={"open_files": 900}), Severity.RISK, "900 of 1000 file descriptors", "LimitNOFILE"),
        (status(server(sessions=40000), mode="tcp"), Severity.RISK, "40000 of 55296 ports", "by class"),
        (
            status(server(check={"detail": {"cert_days": 3}})),
            Severity.RISK,
            "certificate of s1 ends in 3 days",
            "renew",
        ),
        (
            status(server(), imbalance={"source": "10.9.0.5", "sessions": 90, "total": 100}),
            Severity.RISK,
            "10.9.0.5 has 90 of 100 sessions",
            "persist by something else",
        ),
    ],
)
def test_what_the_balancer_says(facts: dict[str, Any], severity: Severity, says: str, remedy: str) -> None:
    hits = [one for one in found(facts) if says in one.text]
    assert [(one.severity, remedy in one.remedy) for one in hits] == [(severity, True)]


@pytest.mark.parametrize(
    ("network", "severity", "says"),
    [
        ({"claims": [{"address": "10.0.1.100", "mac": "02:00:00:00:00:12", "who": "real server s2"}]}, Severity.BROKEN,
         "real server s2 (02:00:00:00:00:12) answers for 10.0.1.100"),
        ({"guards": [{"device": "eth0", "own_mac": 7, "own_address": 0}]}, Severity.RISK, "there is a loop"),
        ({"guards": [{"device": "eth0", "own_mac": 0, "own_address": 9}]}, Severity.RISK, "answers through us"),
        ({"tunnel": {"strangers": 3, "too_big": 0}}, Severity.NOTE, "3 packets of strangers"),
        ({"tunnel": {"strangers": 0, "too_big": 4}}, Severity.RISK, "4 packets did not fit"),
    ],
)  # fmt: skip
def test_what_goes_wrong_on_the_segments(network: dict[str, Any], severity: Severity, says: str) -> None:
    hits = [one for one in found({**status(server()), "network": network}) if says in one.text]
    assert [one.severity for one in hits] == [severity]


@pytest.mark.parametrize(
    ("change", "severity", "says"),
    [
        ({"clock": Clock(False, 16.0)}, Severity.RISK, "no time service"),
        ({"clock": Clock(True, 4.0)}, Severity.NOTE, "may be wrong by 4.0 s"),
        ({"programs": frozenset({"ip", "tcpdump"})}, Severity.BROKEN, "nft is missing, which mail need"),
        ({"programs": frozenset({"ip", "nft"})}, Severity.NOTE, "tcpdump is missing"),
        ({"tables": frozenset()}, Severity.BROKEN, "our nftables rules are gone"),
        ({"tables": None}, Severity.NOTE, "shown to root alone"),
        ({"dropping": ("inet filter forward",)}, Severity.NOTE, "chain inet filter forward drops forwarded packets"),
        ({"port_range": (32768, 40000)}, Severity.NOTE, "7233 ports are free"),
        ({"processes": {1: Process(1000, 1 << 12)}}, Severity.BROKEN, "it lacks CAP_NET_RAW"),
    ],
)
def test_what_the_machine_lacks(change: dict[str, Any], severity: Severity, says: str) -> None:
    hits = [one for one in found(condition=replace(WELL, **change)) if says in one.text]
    assert [one.severity for one in hits] == [severity]
    assert all(one.remedy for one in hits)


@pytest.mark.parametrize(
    ("settings", "severity", "says"),
    [
        ({"net.netfilter.nf_conntrack_count": 800}, Severity.RISK, "800 of at most 1000"),
        ({"net.netfilter.nf_conntrack_count": 990}, Severity.BROKEN, "990 of at most 1000"),
        ({"net.core.somaxconn": 128}, Severity.NOTE, "somaxconn is 128"),
        ({"net.ipv4.conf.eth1.forwarding": 0}, Severity.BROKEN, "forwarding is off on eth1"),
    ],
)
def test_settings_of_the_kernel(settings: dict[str, int], severity: Severity, says: str) -> None:
    hits = [one for one in found(condition=replace(WELL, settings={**WELL.settings, **settings})) if says in one.text]
    assert [one.severity for one in hits] == [severity]


def test_reverse_path_filtering_where_ways_differ() -> None:
    strict = replace(WELL, settings={**WELL.settings, "net.ipv4.conf.all.rp_filter": 1})
    assert found(condition=strict) == [], "answers go out where packets come in"
    elsewhere = replace(
        NETWORK, routes=(*NETWORK.routes, Route(ip_network("10.5.0.0/16"), "eth1", ip_address("10.0.2.9")))
    )
    hits = [one.text for one in found(condition=strict, network=elsewhere) if "rp_filter is 1" in one.text]
    assert len(hits) == 1
    assert "come in on eth0, they are dropped" in hits[0]
    loose = replace(strict, settings={**strict.settings, "net.ipv4.conf.eth0.rp_filter": 2})
    assert found(condition=loose, network=elsewhere) == []


def test_kinds_of_clients_that_share_a_fate_share_a_sentence() -> None:
    hits = [one for one in found(status(server(way_back=UNKNOWN))) if "not known" in one.text]
    assert len(hits) == 1
    assert hits[0].text.startswith("clients in 10.0.1.0/24 (eth0), clients of other networks and the Internet: ")


def test_without_a_running_balancer() -> None:
    hits = examined(config(), NETWORK, WELL, None, NOW)
    assert any("judged from the file" in one.text for one in hits)
    assert {one.severity for one in hits} == {Severity.NOTE}
    island = replace(NETWORK, routes=NETWORK.routes[:1])
    broken = examined(config(), island, WELL, None, NOW)[0]
    assert (broken.severity, broken.remedy) == (Severity.BROKEN, "give it an address in that network or a route")


def test_the_worst_comes_first() -> None:
    bad = replace(WELL, clock=Clock(False, 16.0), programs=frozenset({"ip"}))
    hits = found(condition=bad)
    assert [one.severity for one in hits] == sorted(one.severity for one in hits)
    lines = text(hits).splitlines()
    assert lines[0].startswith("broken  machine: nft is missing")
    assert lines[1] == "        -> apt-get install nftables"
    assert lines[-1] == "1 broken, 1 risk, 1 note"


@pytest.mark.parametrize(("days", "severity"), [(-2, Severity.BROKEN), (3, Severity.RISK), (20, Severity.NOTE)])
def test_certificates(tmp_path: Path, days: int, severity: Severity) -> None:
    pem = Authority(tmp_path).issue("mail.example.com").pem
    pem.chmod(0o600)
    one = Certificate("mail", str(pem))
    ends_at = read_material(one).seen.not_after  # time is moved, and not the date in the file
    tls = replace(
        config(Forward.SNAT).services[0],
        mode=Mode.TCP,
        l4=None,
        listen=(Endpoint("10.0.1.1", 443),),
        client_tls=ClientTls(("mail",)),
    )
    of = Config("x.yaml", (tls,), (), 1, "/run/x.sock", "", "", certificates=(one, Certificate("gone", "/nowhere.pem")))
    hits = examined(of, NETWORK, WELL, status(server(), mode="tcp"), ends_at - timedelta(days=days, hours=-1))
    about = {finding.about: finding for finding in hits}
    assert about["certificate mail"].severity is severity
    assert about["certificate gone"].severity is Severity.RISK, "nobody uses it"
