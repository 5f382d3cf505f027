from __future__ import annotations

import ipaddress
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.admit import CACHE_ENTRIES, AddressLists, WaitQueue


def networks(*texts):
    return [ipaddress.ip_network(text) for text in texts]


class TestAddressLists:
    @pytest.mark.parametrize(
        ("allow", "deny", "address", "admitted"),
        [
            ([], [], "192.0.2.1", True),
            (["192.0.2.0/24"], [], "192.0.2.1", True),
            (["192.0.2.0/24"], [], "192.0.3.1", False),
            (["192.0.2.0/24"], [], "2001:db8::1", False),
            (["192.0.2.0/24", "2001:db8::/32"], [], "2001:db8::1", True),
            ([], ["192.0.2.0/24"], "192.0.2.1", False),
            ([], ["192.0.2.0/24"], "192.0.3.1", True),
            ([], ["192.0.2.0/24"], "2001:db8::1", True),
            (["192.0.2.0/24"], ["192.0.2.7/32"], "192.0.2.7", False),  # deny wins
            (["192.0.2.7/32"], ["192.0.2.0/24"], "192.0.2.7", False),  # even when it is the wider one
            (["0.0.0.0/0"], [], "192.0.2.1", True),
            (["0.0.0.0/0"], [], "2001:db8::1", False),
            (["::/0"], [], "192.0.2.1", False),
            (["192.0.2.0/24"], [], "::ffff:192.0.2.1", True),  # an IPv4 client of a socket on [::]
            ([], ["192.0.2.1/32"], "::ffff:c000:201", False),
            ([], ["::ffff:192.0.2.0/120"], "192.0.2.1", False),
            ([], ["::ffff:192.0.2.0/120"], "::ffff:192.0.2.1", False),
            (["::/0"], [], "::ffff:192.0.2.1", False),
            (["fe80::/10"], [], "fe80::1%eth0", True),
            ([], ["fe80::1/128"], "fe80::1%eth0", False),
            (["0.0.0.0/0", "::/0"], [], "mail.example.com", False),
            ([], ["192.0.2.1/32"], "", False),
        ],
    )
    def test_table(self, allow, deny, address, admitted):
        assert AddressLists(networks(*allow), networks(*deny)).admits(address) is admitted

    @given(
        st.lists(st.ip_addresses(v=4), max_size=5),
        st.lists(st.integers(0, 32), min_size=5, max_size=5),
        st.ip_addresses(v=4),
    )
    def test_as_the_standard_library_would_say(self, starts, lengths, address):
        denied = [ipaddress.ip_network((start, length), False) for start, length in zip(starts, lengths, strict=False)]
        assert AddressLists([], denied).admits(str(address)) is not any(address in n for n in denied)
        expected = not denied or any(address in n for n in denied)
        assert AddressLists(denied, []).admits(str(address)) is expected

    def test_answers_stay_right_when_more_addresses_come_than_are_remembered(self):
        lists = AddressLists(networks("10.0.0.0/8"), networks("10.1.0.0/16"))
        for n in range(2 * CACHE_ENTRIES):
            assert lists.admits(f"10.2.{n >> 8}.{n & 255}")
            assert not lists.admits(f"10.1.{n >> 8}.{n & 255}")


class TestWaitQueue:
    def test_first_come_first_served(self):
        queue = WaitQueue(3, 10.0)
        assert [queue.push(item, 0.0) for item in "abcd"] == [True, True, True, False]
        assert queue.first() == "a"
        assert [queue.pop() for _ in range(4)] == ["a", "b", "c", None]
        assert queue.first() is None

    def test_of_size_zero_takes_nobody(self):
        assert not WaitQueue(0, 10.0).push("a", 0.0)

    def test_patience_ends(self):
        queue = WaitQueue(3, 10.0)
        queue.push("a", 0.0)
        queue.push("b", 5.0)
        assert queue.expire(9.9) == []
        assert queue.expire(10.0) == ["a"]
        assert queue.expire(99.0) == ["b"]
        assert len(queue) == 0

    def test_waiting_twice_gains_nothing(self):
        queue = WaitQueue(2, 10.0)
        queue.push("a", 0.0)
        queue.push("b", 0.0)
        assert queue.push("a", 9.0)
        assert len(queue) == 2
        assert queue.first() == "a"
        assert queue.expire(10.0) == ["a", "b"]

    def test_who_gives_up_makes_room(self):
        queue = WaitQueue(1, 10.0)
        queue.push("a", 0.0)
        assert queue.remove("a")
        assert not queue.remove("a")
        assert queue.push("b", 0.0)
        assert "b" in queue

    def test_a_reload_holds_for_those_who_come(self):
        queue = WaitQueue(2, 100.0)
        queue.push("a", 0.0)
        queue.push("b", 0.0)
        queue.resize(1, 10.0)
        assert not queue.push("c", 0.0)
        assert queue.expire(50.0) == []
        assert queue.pop() == "a"
        assert queue.pop() == "b"
        assert queue.push("c", 50.0)
        assert queue.expire(60.0) == ["c"]

    def test_a_shorter_patience_overtakes_a_longer_one(self):
        queue = WaitQueue(3, 100.0)
        queue.push("a", 0.0)
        queue.resize(3, 10.0)
        queue.push("b", 0.0)
        assert queue.expire(10.0) == ["b"]

    @given(
        st.lists(
            st.tuples(st.sampled_from(["push", "pop", "remove", "expire"]), st.integers(0, 6), st.integers(0, 4)),
            max_size=60,
        )
    )
    def test_against_a_plain_list(self, steps):
        queue, model, now = WaitQueue(3, 5.0), OrderedDict(), 0.0
        for step, item, seconds in steps:
            now += seconds
            if step == "push":
                fits = item in model or len(model) < 3
                assert queue.push(item, now) is fits
                if fits:
                    model.setdefault(item, now + 5.0)
            elif step == "pop":
                assert queue.pop() == (model.popitem(last=False)[0] if model else None)
            elif step == "remove":
                assert queue.remove(item) is (model.pop(item, None) is not None)
            else:
                late = [waiting for waiting, deadline in model.items() if deadline <= now]
                assert queue.expire(now) == late
                for waiting in late:
                    del model[waiting]
            assert len(queue) == len(model)
