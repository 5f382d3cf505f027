from __future__ import annotations

import ipaddress

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
    def test_first_come_first_served_up_to_its_size(self):
        queue = WaitQueue(3)
        assert [queue.push(item) for item in "abcd"] == [True, True, True, False]
        assert list(queue.waiting) == ["a", "b", "c"]

    def test_size_zero_lets_nobody_wait(self):
        assert not WaitQueue(0).push("a")

    def test_who_waits_keeps_the_place(self):
        queue = WaitQueue(2)
        queue.push("a")
        queue.push("b")
        assert queue.push("a")
        assert list(queue.waiting) == ["a", "b"]

    def test_a_place_given_up_is_free(self):
        queue = WaitQueue(1)
        queue.push("a")
        assert queue.remove("a")
        assert not queue.remove("a")
        assert queue.push("b")

    def test_a_smaller_size_holds_for_those_who_come(self):
        queue = WaitQueue(2)
        queue.push("a")
        queue.push("b")
        queue.size = 1
        assert not queue.push("c")
        assert list(queue.waiting) == ["a", "b"]
        queue.remove("a")
        assert not queue.push("c")
        queue.remove("b")
        assert queue.push("c")

    @given(st.lists(st.tuples(st.sampled_from(["push", "remove"]), st.integers(0, 6)), max_size=60))
    def test_against_a_plain_list(self, steps):
        queue, model = WaitQueue(3), []
        for step, item in steps:
            if step == "push":
                fits = item in model or len(model) < 3
                assert queue.push(item) is fits
                if fits and item not in model:
                    model.append(item)
            else:
                assert queue.remove(item) is (item in model)
                model = [waiting for waiting in model if waiting != item]
            assert list(queue.waiting) == model
