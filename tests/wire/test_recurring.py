"""What comes again is remembered, whole or not at all, and never without bound."""

from __future__ import annotations

from mailbalancer.wire.recurring import LONGEST, Recurring


def test_what_comes_twice_is_remembered() -> None:
    memory: Recurring[int] = Recurring()
    assert memory.came(b"head", 1) is None
    assert memory.get(b"head") is None
    assert memory.came(b"head", 2) == 2
    assert memory.get(b"head") == 2
    assert memory.get(b"hea") is None


def test_what_is_too_long_is_not() -> None:
    memory: Recurring[int] = Recurring()
    for _ in range(3):
        assert memory.came(bytes(LONGEST + 1), 1) is None
        assert memory.came(bytes(LONGEST), 1) in (None, 1)
    assert memory.get(bytes(LONGEST + 1)) is None
    assert memory.get(bytes(LONGEST)) == 1


def test_memory_is_bounded() -> None:
    memory: Recurring[int] = Recurring()
    for number in range(5000):
        memory.came(b"%d" % number, number)
        memory.came(b"%d" % number, number)
    assert memory.get(b"4999") == 4999
    assert sum(memory.get(b"%d" % number) is not None for number in range(5000)) <= 256


def test_what_came_once_pushes_nothing_out() -> None:
    memory: Recurring[int] = Recurring()
    memory.came(b"often", 1)
    memory.came(b"often", 1)
    for number in range(20000):
        memory.came(b"once %d" % number, number)
    assert memory.get(b"often") == 1
