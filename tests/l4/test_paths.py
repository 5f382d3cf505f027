"""The model behind `explain`, and its two arrangements."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from mailbalancer.l4.paths import Known, Outcome, Takes, explain, text, together
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import (
    L4,
    AdminState,
    Endpoint,
    Forward,
    Member,
    Mode,
    Pool,
    PortRange,
    Service,
    Source,
    SourceClass,
)
from mailbalancer.network import Interface, Neighbour, Network, Route

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
GOOD = Known(True, way=WayBack(Verdict.GOOD, "it answers"))
BAD = Known(True, way=WayBack(Verdict.BAD, "its answers go elsewhere; set its gateway"))


def service(forward: Forward, **source: Any) -> Service:
    l4 = L4((PortRange("10.0.1.100", 25, 25),), forward=forward)
    return Service("mail", Mode.L4, (), Pool("mail", "", (MEMBER,)), l4=l4, source=Source(**source))


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


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="mail"):
        explain(service(Forward.SNAT), "mail.example.com", MEMBER, NETWORK, GOOD)


# what the operator and the checks say


@pytest.mark.parametrize(
    ("known", "takes", "outcome", "says"),
    [
        (replace(GOOD, admin=AdminState.DRAINING), Takes.RETURNING, Outcome.WORKS, "s1 is draining: only returning"),
        (replace(GOOD, admin=AdminState.DISABLED), Takes.NOBODY, Outcome.FAILS, "`mailbalancer enable s1`"),
        (Known(False, check="connection refused"), Takes.NOBODY, Outcome.FAILS, "down: its check fails (connection r"),
    ],
)
def test_who_is_sent_there(known: Known, takes: Takes, outcome: Outcome, says: str) -> None:
    path = explain(service(Forward.TRANSPARENT), "10.9.0.5", MEMBER, NETWORK, known)
    assert (path.takes, path.outcome) == (takes, outcome)
    assert says in path.sentence


def test_all_servers_together() -> None:
    def path(name: str, known: Known) -> Any:
        return explain(service(Forward.TRANSPARENT), "10.9.0.5", replace(MEMBER, real_server=name), NETWORK, known)

    works, fails = path("s1", GOOD), path("s2", Known(False))
    assert together([works, fails]) == "10.9.0.5 is served by s1"
    assert "no real server takes new sessions" in together([fails])
    assert "not known yet" in together([path("s1", Known(True))])
    away = replace(works, real_server="s3", outcome=Outcome.FAILS)
    assert together([works, away]) == "10.9.0.5 is served by s1, and not when it is sent to s3"
    assert together([away]) == "10.9.0.5 is not served by mail"


# where it ends


@pytest.mark.parametrize(
    ("changed", "client", "known", "at", "says"),
    [
        ({"deny": (ip_network("10.9.0.0/24"),)}, "10.9.0.5", GOOD, 0, "is in `deny`"),
        ({"allow": (ip_network("10.8.0.0/24"),)}, "10.9.0.5", GOOD, 0, "not in `allow`"),
        ({}, "fd00::5", GOOD, 0, "has no IPv6 address; add one to its `listen`"),
        ({}, "10.0.1.1", GOOD, 0, "is the balancer itself"),
        ({}, "10.9.0.5", Known(False), 1, "is down"),
        ({}, "10.9.0.5", Known(True), 2, "when it has been probed"),
    ],
)
def test_the_hop_where_it_ends(changed: dict[str, Any], client: str, known: Known, at: int, says: str) -> None:
    path = explain(replace(service(Forward.TRANSPARENT), **changed), client, MEMBER, NETWORK, known)
    assert says in path.sentence
    assert [hop.outcome for hop in path.hops[:at]] == [Outcome.WORKS] * at
    assert path.hops[at].outcome is path.outcome
    assert all(hop.outcome is Outcome.UNKNOWN for hop in path.hops[at + 1 :])


def test_no_way_to_the_client() -> None:
    island = replace(NETWORK, routes=NETWORK.routes[:2])
    path = explain(service(Forward.SNAT), "10.9.0.5", MEMBER, island, GOOD)
    assert (path.outcome, path.hops[3].outcome) == (Outcome.FAILS, Outcome.FAILS)
    assert "the balancer has no route to 10.9.0.5" in path.sentence


@pytest.mark.parametrize("address", ["10.0.2.1", "127.0.0.1"])
def test_a_mail_server_on_the_balancer_itself(address: str) -> None:
    """Layer 7 reaches it as any program on the machine does."""
    own = replace(MEMBER, endpoint=Endpoint(address, 25))
    ended_here = Service("mail", Mode.TCP, (Endpoint("10.0.1.100", 25),), Pool("mail", "", (own,)))
    path = explain(ended_here, "10.9.0.5", own, NETWORK, GOOD)
    assert (path.outcome, path.seen_as) == (Outcome.WORKS, address)
    assert path.hops[1].rests_on == "source of service mail; on this machine; check: up"
    own_client = explain(ended_here, "127.0.0.1", own, NETWORK, GOOD)
    assert (own_client.outcome, own_client.hops[-1].rests_on) == (Outcome.WORKS, "on this machine")


def test_a_real_server_that_is_ourselves() -> None:
    own = replace(MEMBER, endpoint=Endpoint("10.0.2.1", 25))
    assert (
        "an address of the balancer itself" in explain(service(Forward.SNAT), "10.9.0.5", own, NETWORK, GOOD).sentence
    )


def test_real_servers_and_clients_on_this_machine() -> None:
    """In the modes of layer 7 that is nothing special: so is the demo."""
    local = replace(MEMBER, endpoint=Endpoint("127.0.0.2", 25))
    relay = Service("mail", Mode.TCP, (Endpoint("127.0.0.1", 25),), Pool("mail", "", (local,)))
    path = explain(relay, "127.0.0.1", local, NETWORK, Known(True))
    assert (path.outcome, path.seen_as) == (Outcome.WORKS, "127.0.0.1")
    assert "on this machine" in path.hops[1].rests_on
    own = replace(MEMBER, endpoint=Endpoint("10.0.2.1", 25))
    assert explain(relay, "10.9.0.5", own, NETWORK, Known(True)).outcome is Outcome.WORKS


def test_an_address_that_nobody_has_gets_no_answers() -> None:
    odd = service(Forward.SNAT)
    assert odd.l4 is not None
    for address, outcome in (("10.0.2.77", Outcome.FAILS), ("10.0.2.1", Outcome.WORKS)):
        named = replace(odd, l4=replace(odd.l4, snat_address=address))
        path = explain(named, "10.9.0.5", MEMBER, NETWORK, GOOD)
        assert (path.outcome, path.seen_as) == (outcome, address)


# direct server return


@pytest.mark.parametrize(
    ("known", "outcome", "says"),
    [
        (Known(True, on_vip=WayBack(Verdict.GOOD, "")), Outcome.WORKS, "answers 10.9.0.5 itself, past us"),
        (Known(True, on_vip=WayBack(Verdict.BAD, "black hole")), Outcome.FAILS, "black hole"),
        (Known(True, on_vip=WayBack(Verdict.GOOD, ""), claims="s2 answers ARP"), Outcome.UNKNOWN, "s2 answers ARP"),
    ],
)
def test_through_the_address_of_the_service(known: Known, outcome: Outcome, says: str) -> None:
    near = replace(MEMBER, endpoint=Endpoint("10.0.1.11", 25))
    path = explain(service(Forward.DSR), "10.9.0.5", near, NETWORK, known)
    assert path.outcome is outcome
    assert says in path.sentence


def test_a_gateway_does_not_matter_on_the_segment() -> None:
    near = replace(MEMBER, endpoint=Endpoint("10.0.1.11", 25))
    through_us = Known(True, on_vip=WayBack(Verdict.BAD, "through us; its gateway", far_only=True))
    outcomes = [explain(service(Forward.DSR), c, near, NETWORK, through_us).outcome for c in ("10.0.1.5", "10.9.0.5")]
    assert outcomes == [Outcome.WORKS, Outcome.FAILS]


def test_a_real_server_is_no_client_of_its_own_service() -> None:
    near = replace(MEMBER, endpoint=Endpoint("10.0.1.11", 25))
    assert "never leaves it" in explain(service(Forward.DSR), "10.0.1.11", near, NETWORK, GOOD).sentence


def test_a_tunnel_says_which_segments_fit() -> None:
    path = explain(service(Forward.TUNNEL), "10.9.0.5", MEMBER, NETWORK, replace(GOOD, mss=1410))
    assert "`advmss 1410`" in path.notes[0]


# layer 7


def test_addresses_of_a_class() -> None:
    scanners = SourceClass("scanners", (ip_network("10.9.0.0/24"),), ("10.0.2.101", "10.0.2.102"))
    relay = Service(
        "mail", Mode.TCP, (Endpoint("10.0.1.1", 25),), Pool("mail", "", (MEMBER,)), source=Source((scanners,))
    )
    assert explain(relay, "10.9.0.5", MEMBER, NETWORK, GOOD).seen_as == "10.0.2.101"
    assert explain(relay, "10.8.0.5", MEMBER, NETWORK, GOOD).seen_as == "10.0.2.1"


def test_every_hop_names_what_it_rests_on() -> None:
    seen = replace(NETWORK, neighbours=(Neighbour(ip_address("10.0.2.11"), "eth1", "02:00:00:00:00:11", "reachable"),))
    hops = explain(service(Forward.TRANSPARENT), "10.9.0.5", MEMBER, seen, GOOD).hops
    assert "address 10.0.1.100 is not on this machine" in hops[0].rests_on
    for fact in ("rule of service mail", "10.0.2.11 through eth1", "10.0.2.11 is 02:00:00:00:00:11", "check: up"):
        assert fact in hops[1].rests_on
    assert hops[2].rests_on == "gateway probe: good"
    assert "10.9.0.5 through eth0 by 10.0.1.254" in hops[3].rests_on
