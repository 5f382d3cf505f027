"""The replica of the workers' tables: what is believed, what is kept, what is handed on."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from mailbalancer.control.persistence import Bindings
from mailbalancer.ipc.messages import Binding, Bound
from mailbalancer.model import ProxyProtocol
from tests.control.configurations import config, persist, service

NOW = 1000.0
GOOD = Bound("cas", "10.0.0.1", "ex1", NOW + 60)


@pytest.fixture
def bindings() -> Bindings:
    known = Bindings()
    known.follow(config(service(persist=persist(timeout_s=600.0, max_entries=2)), workers=2))
    return known


def bound(key: str, real_server: str = "ex1", expires_at: float = NOW + 60) -> Bound:
    return Bound("cas", key, real_server, expires_at)


def test_what_a_worker_learned_goes_to_a_new_one(bindings: Bindings) -> None:
    bindings.learn(GOOD, NOW)
    bindings.learn(bound("10.0.0.2", "ex2"), NOW)
    bindings.learn(bound("10.0.0.1", "ex2", NOW + 90), NOW)  # it was moved
    assert set(bindings.valid(NOW)) == {
        Binding("cas", "10.0.0.1", "ex2", NOW + 90),
        Binding("cas", "10.0.0.2", "ex2", NOW + 60),
    }
    assert list(bindings.valid(NOW + 60)) == [Binding("cas", "10.0.0.1", "ex2", NOW + 90)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": "other"}, "no persistence group 'other'"),
        ({"group": ["cas"]}, "needs a group"),
        ({"real_server": "ex9"}, "has no real server 'ex9'"),
        ({"real_server": None}, "needs a group"),
        ({"key": ""}, "needs a group"),
        ({"key": "x" * 257}, "needs a group"),
        ({"key": 5}, "needs a group"),
        ({"expires_at": "tomorrow"}, "needs an instant"),
        ({"expires_at": float("nan")}, "needs an instant"),
        ({"expires_at": float("inf")}, "needs an instant"),
        ({"expires_at": True}, "needs an instant"),
    ],
)
def test_a_worker_is_not_believed_everything(bindings: Bindings, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bindings.learn(replace(GOOD, **change), NOW)
    assert len(bindings) == 0


def test_no_entry_outlives_the_timeout(bindings: Bindings) -> None:
    assert bindings.learn(bound("10.0.0.1", expires_at=NOW + 10_000), NOW).expires_at == NOW + 600


def test_the_longest_unused_goes_first(bindings: Bindings) -> None:
    for number in range(4):
        bindings.learn(bound(str(number)), NOW)
    bindings.learn(bound("0"), NOW)  # used again
    bindings.learn(bound("4"), NOW)
    assert [binding.key for binding in bindings.valid(NOW)] == ["2", "3", "0", "4"]


def test_expired_entries_are_swept(bindings: Bindings) -> None:
    bindings.learn(bound("1", expires_at=NOW + 5), NOW)
    bindings.learn(bound("2"), NOW)
    bindings.expire(NOW + 5)
    assert len(bindings) == 1


def test_forgetting_a_key_a_group_everything(bindings: Bindings) -> None:
    for key in ("1", "2", "3"):
        bindings.learn(bound(key), NOW)
    assert bindings.forget("cas", "1") == 1
    assert bindings.forget("", "2") == 1
    assert bindings.forget("nobody") == 0
    assert bindings.forget() == 1


def test_a_reload_keeps_what_still_fits(bindings: Bindings) -> None:
    bindings.learn(bound("1", "ex1"), NOW)
    bindings.learn(bound("2", "ex2"), NOW)
    bindings.follow(config(service(names=["ex2", "ex3"], persist=persist())))
    assert [binding.key for binding in bindings.valid(NOW)] == ["2"]
    bindings.follow(config(service()))
    assert len(bindings) == 0
    assert bindings.groups() == []


def test_while_a_configuration_is_tried_both_are_believed(bindings: Bindings) -> None:
    bindings.prepare(config(service(names=["ex3"], persist=persist()), service("imap", persist=persist("imap"))))
    for report in (bound("1", "ex1"), bound("2", "ex3"), replace(GOOD, group="imap")):
        bindings.learn(report, NOW)
    assert len(bindings) == 3


def test_services_of_one_group_bring_their_servers_together(bindings: Bindings) -> None:
    bindings.follow(
        config(
            service("mapper", names=["ex1"], persist=persist(timeout_s=60.0)),
            service("rpc", names=["ex2"], persist=persist(timeout_s=3600.0)),
        )
    )
    assert bindings.learn(bound("1", "ex2", NOW + 9999), NOW).expires_at == NOW + 3600
    assert bindings.learn(bound("2", "ex1"), NOW)


def test_which_tables_every_worker_must_know() -> None:
    networks = ProxyProtocol(accept_from=(ip_network("10.0.0.0/8"),))
    bindings = Bindings()
    bindings.follow(
        config(
            service("direct", persist=persist("direct")),
            service("behind", persist=persist("behind"), proxy_protocol=networks),
            service("session", persist=persist("session", by="tls_session_id")),
        )
    )
    assert [group for group in bindings.groups() if bindings.is_shared(group)] == ["behind", "session"]
    assert not bindings.is_shared("unknown")


def test_listing_says_how_many_more_there_are(bindings: Bindings) -> None:
    for key in ("1", "2", "3"):
        bindings.learn(bound(key), NOW)
    (group,) = bindings.listed("", 2, NOW)
    assert group["group"] == "cas"
    assert group["entries"] == [
        {"key": "3", "real_server": "ex1", "expires_in_s": 60.0},
        {"key": "2", "real_server": "ex1", "expires_in_s": 60.0},
    ]
    assert group["more"] == 1
    assert bindings.listed("nobody", 2, NOW) == []


def test_what_was_saved_is_taken_as_far_as_it_fits(bindings: Bindings) -> None:
    saved = [bound("1"), bound("2", "gone"), Bound("gone", "3", "ex1", NOW + 60), bound("4")]
    assert bindings.restore(saved, NOW) == 2
