"""The model behind `explain`, and its two arrangements."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from mailbalancer.l4.paths import Known, Outcome, explain, svg, text
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import L4, Endpoint, Forward, Member, Mode, Pool, PortRange, Service, Source
from mailbalancer.network import Interface, Network, Route

NETWORK = Network(
    interfaces=(
        Interface("eth0", 2, "02:00:00:00:00:01", addresses=(ip_interface("10.0.1.1/24"),)),
        Interface("eth1", 3, "02:00:00:00:00:02", addresses=(ip_interface("10.0.2.1/24"),)),
    ),
    routes=(
        Route(ip_network("10.0.1.0/24"), "eth0"),
        Route(ip_network("10.0.2.0/24"), "eth1"),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.254")),
    ),
)
MEMBER = Member("s1", Endpoint("10.0.2.11", 25))
GOOD = Known(True, WayBack(Verdict.GOOD, "it answers"))
BAD = Known(True, WayBack(Verdict.BAD, "its answers go elsewhere; set its gateway"))


def service(forward: Forward, **source: str) -> Service:
    l4 = L4((PortRange("10.0.1.100", 25, 25),), forward=forward)
    return Service("mail", Mode.L4, (), Pool("mail", "", (MEMBER,)), l4=l4, source=Source(**source))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forward", "client", "known", "outcome", "seen_as"),
    [
        (Forward.TRANSPARENT, "10.9.0.5", GOOD, Outcome.WORKS, "10.9.0.5"),
        (Forward.TRANSPARENT, "10.9.0.5", BAD, Outcome.WORKS, "10.0.2.1"),
        (Forward.TRANSPARENT, "10.9.0.5", Known(True), Outcome.UNKNOWN, "10.9.0.5"),
        (Forward.TRANSPARENT, "10.0.2.50", Known(True), Outcome.WORKS, "10.0.2.1"),
        (Forward.TRANSPARENT, "10.9.0.5", Known(False), Outcome.FAILS, "10.9.0.5"),
        (Forward.SNAT, "10.9.0.5", BAD, Outcome.WORKS, "10.0.2.1"),
        (Forward.DSR, "10.9.0.5", Known(True), Outcome.UNKNOWN, "10.9.0.5"),
        (Forward.TRANSPARENT, "fd00::5", GOOD, Outcome.FAILS, "10.0.2.1"),
    ],
)
def test_outcomes(forward: Forward, client: str, known: Known, outcome: Outcome, seen_as: str) -> None:
    path = explain(service(forward), client, MEMBER, NETWORK, known)
    assert (path.outcome, path.seen_as) == (outcome, seen_as)


def test_a_server_that_is_taken_out_serves_nobody() -> None:
    out = service(Forward.TRANSPARENT, probe_failed="take_out_of_service")
    for client in ("10.9.0.5", "10.0.2.50"):
        path = explain(out, client, MEMBER, NETWORK, BAD)
        assert path.outcome is Outcome.FAILS
        assert "set its gateway" in path.sentence


def test_a_server_far_away_cannot_be_reached_by_frames() -> None:
    far = replace(MEMBER, endpoint=Endpoint("10.8.0.11", 25))
    path = explain(service(Forward.DSR), "10.9.0.5", far, NETWORK, Known(True))
    assert path.outcome is Outcome.FAILS
    assert "write forward: tunnel" in path.sentence


def test_arranged_as_text() -> None:
    lines = text(explain(service(Forward.TRANSPARENT), "10.9.0.5", MEMBER, NETWORK, GOOD)).splitlines()
    assert lines[0] == "10.9.0.5 -> mail -> s1 10.0.2.11:25: works"
    assert lines[-1] == "  s1 sees 10.9.0.5, and its answer comes back through the balancer"
    assert [line[:5] for line in lines if re.match(r"  \d\.", line)] == ["  1. ", "  2. ", "  3. ", "  4. "]


@pytest.mark.parametrize("forward", [Forward.TRANSPARENT, Forward.DSR])
def test_arranged_as_a_picture(forward: Forward) -> None:
    odd = Known(True, WayBack(Verdict.UNKNOWN, 'a <b> & "c"'))
    path = explain(service(forward), "10.9.0.5", MEMBER, NETWORK, odd)
    root = ET.fromstring(svg(path))
    arrows = root.findall("{http://www.w3.org/2000/svg}line")
    assert len(arrows) == len(path.hops)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="mail"):
        explain(service(Forward.SNAT), "mail.example.com", MEMBER, NETWORK, GOOD)
