"""Numbers for names."""

from __future__ import annotations

import pytest

from mailbalancer.l4.numbers import Numbers, first_choice


def test_a_name_has_its_number_after_a_restart() -> None:
    one, other = Numbers(), Numbers()
    one.follow(["mail/s1", "mail/s2"])
    other.follow(["mail/s2", "dns/s1", "mail/s1"])
    assert one["mail/s1"] == other["mail/s1"] == first_choice("mail/s1")


def test_no_two_names_share_one() -> None:
    numbers = Numbers()
    names = [f"service/server{n}" for n in range(20_000)]
    numbers.follow(names)
    assert len({numbers[name] for name in names}) == len(names)


def test_who_is_not_wanted_has_none() -> None:
    numbers = Numbers()
    numbers.follow(["a"])
    numbers.follow(["b"])
    assert numbers.get("a") is None
    with pytest.raises(KeyError):
        numbers["a"]
