"""What an operator does, on flows that the kernel forwards: persistence, drain, ramp, dying servers, many changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, SERVERS6, VIP, VIP6, Farm, Segment, Site, Talk, ask, ask_both, with_both
from tests.support.netns import Machine
from tests.support.program import Balancer, run_cli
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}
FORWARDS = ["transparent", "snat", "dsr", "tunnel"]
#: Real servers' addresses in the topology of each.
BEHIND = {"dsr": {"s1": "10.0.1.11", "s2": "10.0.1.12"}, "tunnel": {"s1": "10.8.0.11", "s2": "10.8.0.12"}}


class Place:
    """The topology that a way of forwarding needs, with servers that answer."""

    def __init__(self, world: Any, folder: Any, forward: str) -> None:
        self.forward = forward
        topology: type[Farm | Segment] = {"dsr": Segment, "tunnel": Site}.get(forward, Farm)
        self.at: Farm | Segment = topology(world, folder)
        self.at.serve()

    @property
    def client(self) -> Machine:
        return self.at.client

    def config(self, **more: Any) -> dict[str, Any]:
        service = {"mode": "l4", "listen": f"{VIP}:{PORT}", "forward": self.forward, "real_servers": ["s1", "s2"]}
        servers = BEHIND.get(self.forward, SERVERS)
        service |= {"check": FAST, "ramp_s": 0, **more}
        return {"real_servers": dict(servers), "services": {"mail": service}}

    def balanced(self, **more: Any) -> Balancer:
        return self.at.balanced(self.config(**more))

    def drawn(self, count: int = 16) -> list[str]:
        """The servers of so many new flows, one after another."""
        names = []
        for _ in range(count):
            talk = Talk(self.client, VIP)
            names.append(talk.server)
            talk.close()
        return names


@pytest.fixture(params=FORWARDS)
def place(request: pytest.FixtureRequest, world: Any, tmp_path: Any) -> Place:
    return Place(world, tmp_path, request.param)


def test_persistence_and_what_becomes_of_it(place: Place) -> None:
    with place.balanced(persist="source") as balancer:
        home = place.drawn(1)[0]
        other = "s2" if home == "s1" else "s1"
        assert set(place.drawn(100)) == {home}
        balancer.command("drain", real_server=home, service="mail")
        assert set(place.drawn(5)) == {home}  # a returning client may come back while it drains
        balancer.command("disable", real_server=home, service="mail")
        eventually(lambda: set(place.drawn(3)) == {other}, 15.0, "the client has moved")
        balancer.command("enable", real_server=home, service="mail")
        eventually(lambda: balancer.real_server("mail", home)["availability"] == "ready", 15.0, "it is back")
        assert set(place.drawn(20)) == {other}


def test_remembered_clients_are_shown_and_forgotten(place: Place) -> None:
    with place.balanced(persist={"by": "source", "timeout_s": 600}) as balancer:
        home = place.drawn(1)[0]
        client = "10.0.1.5"
        (group,) = balancer.command("persistence")["groups"]
        (entry,) = group["entries"]
        assert (group["group"], entry["key"], entry["real_server"]) == ("mail", client, home)
        assert 500 < entry["expires_in_s"] <= 600
        assert f"{client}  {home}" in run_cli("persistence", "list", "-c", str(balancer.config_file)).stdout
        assert balancer.command("persistence_clear", group="mail", key="10.77.0.1")["cleared"] == 0
        assert balancer.command("persistence_clear", group="mail", key="nobody } flush ruleset")["cleared"] == 0
        assert balancer.command("persistence_clear", group="mail", key=client)["cleared"] == 1
        assert balancer.command("persistence")["groups"][0]["entries"] == []
        place.drawn(1)
        assert balancer.command("persistence_clear")["cleared"] == 1
        assert balancer.command("persistence", group="mail")["groups"][0]["entries"] == []


BEHIND6 = {
    "transparent": SERVERS6,
    "snat": SERVERS6,
    "dsr": {"s1": "fd00:1::11", "s2": "fd00:1::12"},
    "tunnel": {"s1": "fd00:8::11", "s2": "fd00:8::12"},
}


def test_the_same_in_ipv6(place: Place) -> None:
    """Persistence, a drain, and a dying server."""
    config = place.config(persist="source", listen=f"[{VIP6}]:{PORT}")
    config["real_servers"] = BEHIND6[place.forward]

    def drawn(count: int) -> set[str]:
        return {Talk(place.client, VIP6, timeout_s=2.0).server for _ in range(count)}

    with place.at.balanced(config) as balancer:
        held = Talk(place.client, VIP6)
        home, other = held.server, "s2" if held.server == "s1" else "s1"
        assert drawn(20) == {home}
        balancer.command("drain", real_server=home, service="mail")
        assert drawn(3) == {home}
        balancer.command("disable", real_server=home, service="mail")
        eventually(lambda: drawn(3) == {other}, 15.0, "the client has moved")
        assert held.say("still here") == f"{home} still here"
        balancer.command("enable", real_server=home, service="mail")
        eventually(lambda: balancer.real_server("mail", home)["availability"] == "ready", 15.0, "it is back")
        place.at.servers[other].end()
        eventually(lambda: balancer.real_server("mail", other)["up"] is False, 15.0, f"{other} is down")
        eventually(lambda: drawn(6) == {home}, 15.0, "its clients have moved")


def test_drain_lets_flows_go_on(place: Place) -> None:
    with place.balanced() as balancer:
        talks = with_both(place.client, VIP, 12)
        balancer.command("disable", real_server="s1", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s2"}, 15.0, "no new flow goes to s1")
        for talk in talks:
            assert talk.say("still here") == f"{talk.server} still here"


def test_a_dead_server_gets_nothing(place: Place) -> None:
    with place.balanced() as balancer:
        place.at.servers["s1"].end()
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is False, 10.0, "it is down")
        eventually(lambda: set(place.drawn(12)) == {"s2"}, 15.0, "only s2 is used")


def test_a_full_server_gets_no_more(place: Place) -> None:
    """Its own limit counts over all services; here there is one."""
    config = place.config()
    config["real_servers"]["s1"] = {"address": config["real_servers"]["s1"], "max_sessions": 5}
    with place.at.balanced(config) as balancer:
        held = [Talk(place.client, VIP) for _ in range(12)]
        eventually(lambda: balancer.service("mail")["sessions"] == len(held), 10.0, "they are counted")
        mine = balancer.real_server("mail", "s1")["sessions"]
        while mine < 5:
            held.append(Talk(place.client, VIP))
            mine += held[-1].server == "s1"
        eventually(lambda: balancer.real_server("mail", "s1")["sessions"] == mine, 10.0, "they are counted")
        eventually(lambda: set(place.drawn(8)) == {"s2"}, 10.0, "s1 gets no more")
        for talk in held:
            talk.close()
        if place.forward in ("transparent", "snat"):  # of the others a flow is remembered for two minutes after its end
            eventually(lambda: "s1" in place.drawn(16), 20.0, "s1 has room again")


def test_a_limit_holds_over_both_layers(farm: Farm) -> None:
    """What the kernel forwards counts for services of layer 7 too, and the other way round."""
    farm.serve()
    servers = {"s1": {"address": SERVERS["s1"], "max_sessions": 3}}
    kernel = {"mode": "l4", "listen": f"{VIP}:{PORT}", "forward": "snat", "real_servers": ["s1"], "check": FAST}
    ours = {"mode": "tcp", "listen": "10.0.1.1:2525", "real_servers": {"s1": PORT}, "check": FAST}
    with farm.balanced({"real_servers": servers, "services": {"kernel": kernel, "ours": ours}}) as balancer:
        held = [Talk(farm.client, VIP) for _ in range(3)]
        eventually(lambda: balancer.service("kernel")["sessions"] == 3, 10.0, "they are counted")
        with pytest.raises((OSError, ValueError)):
            Talk(farm.client, "10.0.1.1", 2525)
        for talk in held:
            talk.close()
        held = eventually(lambda: [Talk(farm.client, "10.0.1.1", 2525) for _ in range(3)], 20.0, "there is room")
        eventually(lambda: _refused(farm), 10.0, "the kernel's service has none")
        assert len(held) == 3


def _refused(farm: Farm) -> bool:
    try:
        Talk(farm.client, VIP, timeout_s=1.0).close()
    except ConnectionRefusedError:
        return True
    return False


def test_clients_beside_the_servers_are_counted(farm: Farm) -> None:
    farm.serve()
    neighbour = farm.world.machine("neighbour")
    neighbour.plug(farm.farm, "eth0", "10.0.2.50/24")
    neighbour.route("default", "10.0.2.1")
    service = {"mode": "l4", "listen": f"{VIP}:{PORT}", "forward": "transparent", "real_servers": ["s1"], "check": FAST}
    service["source"] = {"balancer_for": "10.9.0.0/24"}
    with farm.balanced({"real_servers": {"s1": SERVERS["s1"]}, "services": {"mail": service}}) as balancer:
        assert [Talk(neighbour, VIP).seen_as for _ in range(3)] == ["10.0.2.1"] * 3
        assert Talk(farm.far, VIP).seen_as == "10.0.2.1"
        assert Talk(farm.client, VIP).seen_as == "10.0.1.5"
        own = eventually(lambda: _of(balancer.service("mail")["own_address"], 4), 10.0, "they are counted")
        assert [(one["network"], one["sessions"]) for one in own["networks"]] == [
            ("10.0.2.0/24", 3),
            ("10.9.0.0/24", 1),
        ]
        log = balancer.log_text()
        assert log.count("clients in 10.0.2.0/24 are shown with the balancer's address (real servers would answer") == 1
        assert log.count("clients in 10.9.0.0/24 are shown with the balancer's address (they are listed") == 1
        shown = " ".join(run_cli("status", "-c", str(balancer.config_file)).stdout.split())
        assert "4 sessions with the balancer's address instead of the client's: 10.0.2.0/24, 3 sessions" in shown


def _of(own: dict[str, Any], sessions: int) -> dict[str, Any] | None:
    return own if own["sessions"] == sessions else None


def test_least_connections_come_level(place: Place) -> None:
    """One server begins with many flows; new ones go to the other until both are level."""
    with place.balanced(schedule="least_connections") as balancer:
        balancer.command("disable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s1"}, 15.0, "s2 is out")
        held = [Talk(place.client, VIP) for _ in range(30)]
        eventually(lambda: balancer.real_server("mail", "s1")["sessions"] >= 30, 10.0, "they are counted")
        balancer.command("enable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(10)) == {"s2"}, 20.0, "new ones go to s2")
        assert len(held) == 30


def test_a_ramping_server_gets_little(place: Place) -> None:
    with place.balanced(ramp_s=600, schedule="round_robin") as balancer:
        balancer.command("disable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s1"}, 15.0, "s2 is out")
        balancer.command("enable", real_server="s2", service="mail")
        eventually(lambda: balancer.real_server("mail", "s2")["availability"] == "ready", 15.0, "it is back")
        assert place.drawn(60).count("s2") <= 12  # its fair half, times a share near the beginning of the ramp


def test_a_hundred_changes_break_no_flow(place: Place) -> None:
    with place.balanced() as balancer:
        held = [Talk(place.client, VIP) for _ in range(20)]
        stop, failures, made = threading.Event(), [], []

        def load() -> None:
            while not stop.is_set():
                try:
                    talk = Talk(place.client, VIP)
                    assert talk.say("x") == f"{talk.server} x"
                    talk.close()
                    made.append(1)
                except (OSError, AssertionError, ValueError) as error:
                    failures.append(error)

        loader = threading.Thread(target=load)
        loader.start()
        for turn in range(50):
            balancer.command("drain" if turn % 2 else "enable", real_server="s2", service="mail")
            balancer.write_config(
                place.config(deny=[f"192.0.2.{turn}"], schedule=["round_robin", "source_hash"][turn % 2])
            )
            balancer.command("reload")
        stop.set()
        loader.join()
        assert failures == []
        assert made
        for talk in held:
            assert talk.say("after") == f"{talk.server} after"


@pytest.mark.parametrize("forward", ["transparent", "snat"])
def test_datagrams_leave_a_dead_server(world: Any, tmp_path: Any, forward: str) -> None:
    place = Place(world, tmp_path, forward)
    with place.balanced(protocol="udp") as balancer:
        ask_both(place.client, VIP)
        place.at.servers["s1"].end()
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is False, 10.0, "s1 is down")
        eventually(lambda: _only(place, "s2"), 15.0, "only s2 answers")


def _only(place: Place, name: str) -> bool:
    try:
        return {ask(place.client, VIP, "q", timeout_s=0.5)[0] for _ in range(10)} == {name}
    except OSError:
        return False


def test_allow_and_deny(world: Any, tmp_path: Any) -> None:
    place = Place(world, tmp_path, "transparent")
    with place.balanced(deny=["10.0.1.5"]):
        with pytest.raises(TimeoutError):
            Talk(place.client, VIP, timeout_s=1.0)
        assert isinstance(place.at, Farm)
        Talk(place.at.far, VIP).close()


def test_the_servers_own_connections_leave_with_the_chosen_address(world: Any, tmp_path: Any) -> None:
    """Mail must leave with the address of the MX."""
    place = Place(world, tmp_path, "transparent")
    from tests.support.farm import serve

    assert isinstance(place.at, Farm)
    serve(place.at.far, "outside", place.at.log("outside"))
    with place.balanced(masquerade_outbound=VIP):
        assert Talk(place.at.servers["s1"], "10.9.0.5").seen_as == VIP
        assert Talk(place.at.servers["s1"], "10.0.2.12").seen_as == "10.0.2.11"
