"""A world for pools to look at: the board's numbers as plain lists, shared by however many pools a test makes."""

from __future__ import annotations

import random

import pytest

from mailbalancer.balance.pool import Pool, PoolMember


class World:
    """Implements `balance.pool.View`. Slots are 0, 1, 2, …; everything is ready, empty and of weight 1 at first."""

    def __init__(self, members: int) -> None:
        self.availabilities = [2] * members
        self.weights = [1.0] * members
        self.counts = [0] * members
        self.rooms = [True] * members
        self.limited = range(members)
        self.ramps = [(0.0, 0.0)] * members
        self.credits = [0.0] * members
        self.taken = [0] * members

    def look(self, slot):
        return self.availabilities[slot], self.weights[slot], self.counts[slot], self.ramps[slot][0]

    def availability(self, slot):
        return self.availabilities[slot]

    def sessions(self, slot):
        return self.counts[slot]

    def room(self, slot):
        return self.rooms[slot]

    def ramp(self, slot):
        return self.ramps[slot]

    def ramp_credit(self, slot):
        return self.credits[slot]

    def ramp_taken(self, slot):
        return self.taken[slot]

    def grant(self, slot, share):
        self.credits[slot] += share

    def take(self, slot):
        self.taken[slot] += 1

    def pool(self, schedule, seed=1, **attributes):
        """A pool of all slots, named ex1, ex2, …; each attribute is a list with one value per member."""
        members = [
            PoolMember(f"ex{slot + 1}", slot, **{name: values[slot] for name, values in attributes.items()})
            for slot in range(len(self.counts))
        ]
        return Pool(members, schedule, random.Random(seed).random)


@pytest.fixture(scope="session")
def make_world():
    return World
