"""What an operator does, on flows that the kernel forwards: persistence, drain, ramp, dying servers, many changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, VIP, Farm, Segment, Talk, ask
from tests.support.netns import Machine
from tests.support.program import Balancer
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.4, "rise": 1, "fall": 3}
NEAR = {"s1": "10.0.1.11", "s2": "10.0.1.12"}
FORWARDS = ["transparent", "snat", "dsr"]


class Place:
    """The topology that a way of forwarding needs, with servers that answer."""

    def __init__(self, world: Any, folder: Any, forward: str) -> None:
        self.forward = forward
        self.at: Farm | Segment = Segment(world, folder) if forward == "dsr" else Farm(world, folder)
        self.at.serve()

    @property
    def client(self) -> Machine:
        return self.at.client

    def config(self, **more: Any) -> dict[str, Any]:
        service = {"mode": "l4", "listen": f"{VIP}:{PORT}", "forward": self.forward, "real_servers": ["s1", "s2"]}
        servers = NEAR if self.forward == "dsr" else SERVERS
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
        eventually(lambda: set(place.drawn(3)) == {other}, 5.0, "the client has moved")
        balancer.command("enable", real_server=home, service="mail")
        eventually(lambda: balancer.real_server("mail", home)["availability"] == "ready", 5.0, "it is back")
        assert set(place.drawn(20)) == {other}


def test_drain_lets_flows_go_on(place: Place) -> None:
    with place.balanced() as balancer:
        talks = [Talk(place.client, VIP) for _ in range(12)]
        assert {talk.server for talk in talks} == {"s1", "s2"}
        balancer.command("disable", real_server="s1", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s2"}, 5.0, "no new flow goes to s1")
        for talk in talks:
            assert talk.say("still here") == f"{talk.server} still here"


def test_a_dead_server_gets_nothing(place: Place) -> None:
    with place.balanced() as balancer:
        place.at.servers["s1"].end()
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is False, 10.0, "it is down")
        eventually(lambda: set(place.drawn(12)) == {"s2"}, 5.0, "only s2 is used")


def test_least_connections_come_level(place: Place) -> None:
    """One server begins with many flows; new ones go to the other until both are level."""
    with place.balanced(schedule="least_connections") as balancer:
        balancer.command("disable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s1"}, 5.0, "s2 is out")
        held = [Talk(place.client, VIP) for _ in range(30)]
        eventually(lambda: balancer.real_server("mail", "s1")["sessions"] >= 30, 10.0, "they are counted")
        balancer.command("enable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(10)) == {"s2"}, 5.0, "new ones go to s2")
        assert len(held) == 30


def test_a_ramping_server_gets_little(place: Place) -> None:
    with place.balanced(ramp_s=600, schedule="round_robin") as balancer:
        balancer.command("disable", real_server="s2", service="mail")
        eventually(lambda: set(place.drawn(12)) == {"s1"}, 5.0, "s2 is out")
        balancer.command("enable", real_server="s2", service="mail")
        eventually(lambda: balancer.real_server("mail", "s2")["availability"] == "ready", 5.0, "it is back")
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
        assert {ask(place.client, VIP, "q")[0] for _ in range(20)} == {"s1", "s2"}
        place.at.servers["s1"].end()
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is False, 10.0, "s1 is down")
        eventually(lambda: _only(place, "s2"), 5.0, "only s2 answers")


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
