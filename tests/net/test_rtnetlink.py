"""What the kernel says itself is what `ip` says of it."""

from __future__ import annotations

from dataclasses import replace

from mailbalancer.host.commands import RealCommands
from mailbalancer.host.network import read_network
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.network import Network
from tests.support.netns import World


def test_the_same_as_ip(world: World) -> None:
    lan = world.switch("lan")
    one, other = world.machine("one"), world.machine("other")
    one.plug(lan, "eth0", "10.0.1.1/24", "fd00:1::1/64", "10.0.9.1/32")
    other.plug(lan, "eth0", "10.0.1.2/24", "fd00:1::2/64")
    one.run("ip", "link", "add", "off0", "mtu", "1400", "type", "veth")
    one.route("default", "10.0.1.2")
    one.route("default", "fd00:1::2")
    one.run("ip", "route", "add", "10.5.0.0/16", "via", "10.0.1.2", "metric", "7")
    one.run("ip", "route", "add", "10.6.0.0/16", "via", "10.0.1.2", "table", "77")
    one.run("ip", "route", "add", "blackhole", "10.7.0.0/16")
    one.run("ip", "neighbour", "add", "10.0.1.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    asked, told = one.call(lambda: read_network(RealCommands())), one.call(network_now)
    assert _settled(told) == _settled(asked)
    assert told.neighbours
    assert len(told.routes) >= 6


def test_of_several_ways_the_first_counts(world: World) -> None:
    lan = world.switch("lan")
    one = world.machine("one")
    one.plug(lan, "eth0", "10.0.1.1/24")
    hops = ["nexthop", "via", "10.0.1.2", "nexthop", "via", "10.0.1.3"]
    one.run("ip", "route", "add", "10.5.0.0/16", *hops)
    routes = {str(route.network): str(route.via) for route in one.call(network_now).routes}
    assert routes["10.5.0.0/16"] == "10.0.1.2"


def _settled(network: Network) -> Network:
    """Without what changes by itself from one moment to the next, and in one order."""
    neighbours = sorted((n for n in network.neighbours if n.state == "permanent"), key=lambda n: str(n.address))
    return replace(network, neighbours=tuple(neighbours), routes=tuple(sorted(network.routes, key=str)))
