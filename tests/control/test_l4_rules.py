"""From a configuration file to the kernel's rules: every setting does something or is refused, and no text gets in."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.config import schema
from mailbalancer.config.load import load_text
from mailbalancer.control.host_plan import plan, tunnel_devices
from mailbalancer.control.l4_rules import examined_script
from mailbalancer.errors import ConfigError, MailbalancerError
from mailbalancer.model import Config
from mailbalancer.network import Interface, Network, Route

MAC = "02:00:00:00:00:01"
NETWORK = Network(
    (
        Interface("lo", 1, addresses=(ip_interface("127.0.0.1/8"),)),
        Interface("eth0", 2, MAC, addresses=(ip_interface("10.0.1.1/24"), ip_interface("fd00:1::1/64"))),
        Interface("eth1", 3, MAC, addresses=(ip_interface("10.0.2.1/24"), ip_interface("fd00:2::1/64"))),
        Interface("mbvxlan4", 4, MAC, 1450),
        Interface("mbvxlan6", 5, MAC, 1430),
    ),
    (
        Route(ip_network("10.0.1.0/24"), "eth0"),
        Route(ip_network("10.0.2.0/24"), "eth1"),
        Route(ip_network("fd00:2::/64"), "eth1"),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.254")),
    ),
)
SERVERS = {"s1": {"address": "10.0.2.11"}, "s2": {"address": "10.0.2.12"}, "s6": {"address": "fd00:2::11"}}
MAIL = {"mode": "l4", "forward": "transparent", "listen": ["10.0.1.100:25"], "real_servers": {"s1": {}, "s2": {}}}


def loaded(service: dict[str, Any], servers: dict[str, Any] | None = None, name: str = "mail") -> Config:
    text = json.dumps({"version": 1, "real_servers": servers or SERVERS, "services": {name: {**MAIL, **service}}})
    return load_text(text, "x.yaml")


def effect(config: Config) -> object:
    """Everything that a configuration of layer 4 comes to: rules, changes, and how real servers are chosen."""
    service = config.services[0]
    steps = plan(config, NETWORK, lambda key: "0").steps
    pool = service.pool
    chosen = (pool.members, pool.schedule, pool.ramp_s, pool.drain_s, pool.check)
    probed = (service.source.probe_failed, service.source.probe_addresses)
    limits = tuple(server.max_sessions for server in config.real_servers)
    kept = (limits, service.minimum_ready)
    return examined_script(config, NETWORK), list(map(str, steps)), chosen, probed, kept


#: A service in which each key does something, or `None`: it is refused.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "mode": {},
    "forward": {"forward": "snat"},
    "listen": {"listen": ["10.0.1.100:26"]},
    "protocol": {"protocol": "udp"},
    "real_servers": {"real_servers": {"s1": {}}},
    "real_server_port": {"real_server_port": 2525},
    "schedule": {"schedule": "source_hash"},
    "persist": {"persist": {"by": "source", "timeout_s": 60, "max_entries": 500}},
    "ramp_s": {"ramp_s": 1},
    "drain_s": {"drain_s": 1},
    "drop_after_drain": None,
    "check": {"check": "smtp"},
    "max_sessions": None,
    "minimum_ready": {"minimum_ready": 2},
    "allow": {"allow": "10.0.0.0/8"},
    "deny": {"deny": "10.9.0.0/16"},
    "source": {"source": {"balancer_for": "10.30.0.0/16"}},
    "interface": {"interface": "eth1"},
    "snat_address": {"forward": "snat", "snat_address": "10.0.1.1"},
    "masquerade_outbound": {"masquerade_outbound": "10.0.1.100"},
    "tunnel": {"forward": "tunnel", "tunnel": {"allow_peers": "10.8.0.0/24"}},
}
REFUSED: dict[str, list[dict[str, Any]]] = {
    "drop_after_drain": [{"drop_after_drain": True}],
    "max_sessions": [{"max_sessions": 5}],
    "source": [
        {"source": {"use": "client"}},
        {"source": {"use": "balancer"}},
        {"source": {"classes": []}},
        {"source": {"per_source_limit": 5}},
        {"source": {"when_full": "queue"}},
        {"forward": "snat", "source": {"balancer_for": "10.30.0.0/16"}},
        {"forward": "snat", "source": {"probe_failed": "take_out_of_service"}},
        {"forward": "snat", "source": {"probe_address": "198.18.0.1"}},
        {"forward": "dsr", "source": {"probe_address": "198.18.0.1"}},
        {"forward": "dsr", "source": {"probe_failed": "fall_back_to_balancer_address"}},
        {"source": {"probe_failed": "keep_in_service"}},
        {"source": {"probe_address": ["198.18.0.1", "198.18.0.2"]}},
    ],
    "persist": [{"persist": {"by": "source", "warn_share": 0.5}}],
    "snat_address": [
        {"snat_address": "10.0.1.1"},
        {"forward": "dsr", "snat_address": "10.0.1.1"},
        {"forward": "snat", "snat_address": "fd00:1::1"},
    ],
    "masquerade_outbound": [
        {"forward": "dsr", "masquerade_outbound": "10.0.1.100"},
        {"masquerade_outbound": "fd00:1::1"},
    ],
    "tunnel": [{"tunnel": {"allow_peers": "10.8.0.0/24"}}, {"forward": "dsr", "tunnel": {"encapsulation": "vxlan"}}],
}
#: The same inside of what has keys of its own.
SOURCE = {"balancer_for": "10.30.0.0/16", "probe_failed": "take_out_of_service", "probe_address": "198.18.0.1"}
MEMBER = {"port": 2525, "weight": 3.0, "priority": 1, "max_sessions": 5, "state": "disabled"}
PERSIST = {"group": "together", "timeout_s": 60.0, "max_entries": 500}


@pytest.mark.parametrize(
    ("encapsulation", "server", "listen", "family", "protocol"),
    [("ipip", "10.0.2.11", "10.0.1.100:25", "ip", 4), ("ip6ip6", "fd00:2::11", "[fd00:2::100]:25", "ip6", 41)],
)
def test_a_tunnel_of_ip_in_ip(encapsulation: str, server: str, listen: str, family: str, protocol: int) -> None:
    name = "s6" if protocol == 41 else "s1"
    tunnel = {"encapsulation": encapsulation, "allow_peers": server}
    config = loaded({"forward": "tunnel", "listen": [listen], "real_servers": {name: {}}, "tunnel": tunnel})
    (device,) = tunnel_devices(config.services[0])
    assert len(device) <= 15
    assert "fwd" not in examined_script(config, NETWORK)  # it is not there yet
    made = replace(NETWORK, interfaces=(*NETWORK.interfaces, Interface(device, 9, mtu=1480)))
    script = examined_script(config, made)
    assert f'fwd {family} to {server} device "{device}"' in script
    strangers = f"meta l4proto {protocol} {family} saddr {{ {server} }} {family} saddr != {{ {server}/"
    assert strangers in script
    assert "4789" not in script
    assert f'device "{device}" priority' not in script


def test_every_setting_of_a_service_is_here() -> None:
    assert set(SETTINGS) == set(schema.L4Service.model_fields)
    assert set(SOURCE) | {"use", "classes", "per_source_limit", "when_full", "server_connections"} >= set(
        schema.Source.model_fields
    )
    assert set(MEMBER) == set(schema.Member.model_fields)
    assert set(PERSIST) | {"by", "warn_share"} == set(schema.Persist.model_fields)
    assert set(schema.Tunnel.model_fields) == {"encapsulation", "allow_peers"}
    assert set(schema.RealServer.model_fields) == {"address", "weight", "max_sessions"}


@pytest.mark.parametrize("key", [key for key, changed in SETTINGS.items() if changed])
def test_every_setting_does_something(key: str) -> None:
    changed = dict(SETTINGS[key] or {})
    without = {one: value for one, value in changed.items() if one != key}
    assert effect(loaded(changed)) != effect(loaded(without))


@pytest.mark.parametrize("key", SOURCE)
def test_every_setting_of_source_does_something(key: str) -> None:
    assert effect(loaded({"source": {key: SOURCE[key]}})) != effect(loaded({}))


@pytest.mark.parametrize("key", MEMBER)
def test_every_setting_of_a_real_server_in_it_does_something(key: str) -> None:
    changed = {
        "real_servers": {"s1": {key: MEMBER[key]}},
        "schedule": "priority" if key == "priority" else "round_robin",
    }
    assert effect(loaded(changed)) != effect(loaded({**changed, "real_servers": {"s1": {}}}))


@pytest.mark.parametrize("key", PERSIST)
def test_every_setting_of_persistence_does_something(key: str) -> None:
    changed = loaded({"persist": {"by": "source", key: PERSIST[key]}})
    assert effect(changed) != effect(loaded({"persist": "source"}))


@pytest.mark.parametrize("service", [service for found in REFUSED.values() for service in found], ids=json.dumps)
def test_what_would_do_nothing_is_refused(service: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        loaded(service)


# ---------------------------------------------------------------- no text of the operator's gets to nft

NASTY = st.one_of(
    st.text(alphabet="aZ09.:/-_ \n\r\t\"'\\;{}()#@$|&*,=<>é²", min_size=1, max_size=24),
    st.sampled_from(
        [
            "x; flush ruleset",
            "eth0\nflush ruleset",
            'eth0" drop',
            "10.0.0.0/8 } accept",
            "a}b",
            "$x",
            "@clients",
            "::1%x;y",
        ]
    ),
)
#: Where text can be written, as a change to the service, the servers or the service's name.
PLACES: dict[str, Any] = {
    "name": lambda text: ({}, None, text),
    "real server": lambda text: ({"real_servers": {text: {}}}, {text: {"address": "10.0.2.11"}}, "mail"),
    "address": lambda text: ({}, {**SERVERS, "s1": {"address": text}}, "mail"),
    "group": lambda text: ({"persist": {"by": "source", "group": text}}, None, "mail"),
    "listen": lambda text: ({"listen": [text]}, None, "mail"),
    "listen port": lambda text: ({"listen": [f"10.0.1.100:{text}"]}, None, "mail"),
    "interface": lambda text: ({"interface": text}, None, "mail"),
    "allow": lambda text: ({"allow": [text]}, None, "mail"),
    "deny": lambda text: ({"deny": [f"10.0.0.0/{text}"]}, None, "mail"),
    "balancer_for": lambda text: ({"source": {"balancer_for": text}}, None, "mail"),
    "snat_address": lambda text: ({"forward": "snat", "snat_address": text}, None, "mail"),
    "masquerade_outbound": lambda text: ({"masquerade_outbound": text}, None, "mail"),
    "allow_peers": lambda text: ({"forward": "tunnel", "tunnel": {"allow_peers": text}}, None, "mail"),
    "probe_address": lambda text: ({"source": {"probe_address": text}}, None, "mail"),
}
_PLACE = re.compile(r'[0-9a-f.:/x\[\]-]+[,;]?\Z|"(?:eth0|eth1|lo|mbvxlan[46])"[;]?\Z')


def words_of(script: str) -> set[str]:
    """Words that are no number, no address, no interface of this machine."""
    return {word for word in re.split(r"[ \n]+", script) if word and not _PLACE.match(word)}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PLACES)), NASTY)
def test_no_text_of_the_operators_gets_to_nft(place: str, text: str) -> None:
    service, servers, name = PLACES[place](text)
    try:
        config = loaded(service, servers, name)
        script = examined_script(config, NETWORK)
        told = [str(step) for step in plan(config, NETWORK, lambda key: "0").steps]
    except (ConfigError, MailbalancerError):
        return
    plain = {key: value for key, value in service.items() if key in ("forward", "tunnel", "persist", "source")}
    known = words_of(examined_script(loaded({**plain, **_PLAIN.get(place, {})}), NETWORK))
    strange = {_shape(word) for word in words_of(script)} - {_shape(word) for word in known}
    assert strange == set(), f"{place}: {text!r}"
    assert all("\n" not in line for line in told)


#: What stands in the place of the nasty text in the script that this one is compared with.
_PLAIN: dict[str, dict[str, Any]] = {
    "group": {"persist": {"by": "source", "group": "plain"}},
    "allow": {"allow": ["10.0.0.0/8"]},
    "deny": {"deny": ["10.0.0.0/8"]},
    "balancer_for": {"source": {"balancer_for": "10.30.0.0/16"}},
    "snat_address": {"snat_address": "10.0.1.1"},
    "masquerade_outbound": {"masquerade_outbound": "10.0.1.1"},
    "allow_peers": {"tunnel": {"allow_peers": "10.8.0.0/24"}},
    "probe_address": {"source": {"probe_address": "198.18.0.1"}},
}


def _shape(word: str) -> str:
    """A name of ours with its numbers left out: `member_17` and `member_4` are alike."""
    return re.sub(r"[0-9]+", "N", word)
