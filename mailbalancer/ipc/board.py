"""The board: one anonymous shared-memory array of numbers, made before the first fork.

Decides: where each number lies. Every cell is eight bytes, aligned, and has exactly one writer: a worker owns its
column, the supervisor owns the rest. Readers never wait; a total is the sum over the columns at the time of reading.
Refuses to know: what a slot means (the supervisor gives slots to members and services) and what follows from a number.

Layout, in cells of eight bytes (an integer and a float view lie over the same memory):

    header        HEADER cells               written by the supervisor
    beats         workers × BEAT cells       written by worker i
    slots         slots × SLOT cells         written by the supervisor: availability, weight, ramp
    columns       workers × slots × COUNT    written by worker i: sessions, totals, bytes, ramp credit
    timings       workers × slots × TIMING   written by worker i: how long each phase took, as histograms

A dead worker's column is written by the supervisor until a new worker takes it over.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from typing import NamedTuple

CELL = 8
HEADER = 8


class Beat(IntEnum):
    """Cells of one worker's heartbeat."""

    AT = 0  # float: monotonic instant of the last turn of its event loop
    PID = 1
    OPEN_FILES = 2
    PAUSED = 3  # 1 while accepting pauses at the descriptor limit
    LOG_DROPPED = 4
    CONFIG_VERSION = 5  # the configuration it runs
    SPARE_6 = 6
    SPARE_7 = 7


class Slot(IntEnum):
    """Cells of one slot that the supervisor writes."""

    AVAILABILITY = 0  # int, see Availability
    WEIGHT = 1  # float: effective weight (configuration, operator, back pressure)
    RAMP_AT = 2  # float: monotonic instant at which the ramp began; 0.0: not ramping
    RAMP_S = 3  # float: length of the ramp
    OWN_ADDRESS = 4  # int: 1 while its answers to clients do not come back through us, so that it is shown our address
    FORWARDED = 5  # int: flows of a layer 4 service that the kernel forwards to it now
    SPARE_6 = 6
    SPARE_7 = 7


class Count(IntEnum):
    """Cells of one slot that each worker writes in its own column."""

    SESSIONS = 0  # now, counted from the moment of selection
    TOTAL = 1  # ever selected
    CONNECT_OK = 2
    CONNECT_FAILED = 3
    BYTES_IN = 4  # client to server
    BYTES_OUT = 5  # server to client
    RAMP_CREDIT = 6  # float: share of new sessions granted to a ramping member, summed up
    RAMP_TAKEN = 7  # new sessions it took against that credit
    REFUSED = 8  # service slots: sessions refused (limits, deny, no server left)
    QUEUED = 9  # service slots: sessions waiting now
    MOVED = 10  # persistent clients that were moved because their server was not available
    RETRIED = 11  # sessions that went to the next server after a failed connect
    REQUESTS = 12  # http: requests answered, by a server or by us (the service's slot) and by this server (its slot)
    LONG_POLLS = 13  # http: requests that wait for news now
    PINNED = 14  # http: server-side connections now that belong to one client because they carried NTLM or the like
    REUSED = 15  # http: times that a server-side connection went from one client to another
    PINNED_REUSED = 16  # http: times that happened to a pinned one; must stay 0
    MESSAGES = 17  # smtp: messages that this server has accepted
    MESSAGES_REFUSED = 18  # smtp: messages that were sent to the end, or broke off, and were not accepted
    OWN_ADDRESS = 19  # sessions of a `source: client` service that were given our address all the same
    POLLS_END_AT = 20  # float, http: monotonic instant at which the longest wait at this server ends, if nothing comes
    TLS_1_3 = 21  # service slots: handshakes with clients, by version
    TLS_1_2 = 22
    TLS_OLDER = 23
    TLS_RESUMED = 24  # of these, the ones that went on with an earlier session
    TLS_FAILED = 25


class Phase(IntEnum):
    """Parts of a session or request that are timed. `first_byte` and `total` mean what the mode's log line means."""

    QUEUE = 0  # waiting for a place, of those that had to wait
    CONNECT = 1  # from the choice of a server until it can be spoken to
    FIRST_BYTE = 2  # until the server's first word: the greeting, or the head of the answer
    TOTAL = 3  # the whole request (http) or session


#: Upper bounds of the buckets, in seconds: a mail server's answer takes a millisecond, a long poll a minute and more.
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class Availability(IntEnum):
    """What a member may be given, worked out by the supervisor from health, operator and drain deadline."""

    CLOSED = 0  # nothing: down, disabled, or drained
    RETURNING = 1  # only clients that persistence brings back (draining, until `drain_s`)
    READY = 2  # new sessions


BEAT = len(Beat)
SLOT = len(Slot)
COUNT = len(Count)
#: One phase: a cell for each bound, one for what is beyond, and the sum of all times (float).
PHASE = len(BOUNDS_S) + 2
TIMING = len(Phase) * PHASE

#: Cells that say what is now and not what ever was: they die with their worker.
GAUGES = (Count.SESSIONS, Count.QUEUED, Count.LONG_POLLS, Count.PINNED, Count.POLLS_END_AT)


_NOTHING = memoryview(bytes(TIMING * CELL)).cast("q")


class Timing(NamedTuple):
    """One phase: how many took at most each of `BOUNDS_S` and more than the one before, the last: more than all."""

    counts: list[int]
    sum_s: float


class Board:
    """The shared array. Make it before forking; every process then uses the same object.

    Attributes:
        secret: known to this program's processes and to nobody else, and new at each start.
    """

    def __init__(self, workers: int, slots: int) -> None:
        self.secret = os.urandom(32)
        self.workers = workers
        self.slots = slots
        self._beats_at = HEADER
        self._slots_at = self._beats_at + workers * BEAT
        self._columns_at = self._slots_at + slots * SLOT
        self.column_cells = slots * COUNT
        self._columns = tuple(worker * self.column_cells for worker in range(workers))
        self._timings_at = self._columns_at + workers * self.column_cells
        self.timing_cells = slots * TIMING
        cells = self._timings_at + workers * self.timing_cells
        self._memory = mmap.mmap(-1, cells * CELL)
        self.ints = memoryview(self._memory).cast("q")
        self.floats = memoryview(self._memory).cast("d")

    # where things lie; hot paths keep these indices and use `ints`/`floats` directly

    def beat(self, worker: int, cell: Beat) -> int:
        """Index of a cell of a worker's heartbeat."""
        return self._beats_at + worker * BEAT + cell

    def slot(self, slot: int, cell: Slot) -> int:
        """Index of a cell that the supervisor writes for a slot."""
        return self._slots_at + slot * SLOT + cell

    def count(self, worker: int, slot: int, cell: Count) -> int:
        """Index of a cell in a worker's column."""
        return self._columns_at + worker * self.column_cells + slot * COUNT + cell

    def timing(self, worker: int, slot: int, phase: Phase) -> int:
        """Index of the first bucket of a phase in a worker's timings; the sum follows the last one."""
        return self._timings_at + worker * self.timing_cells + slot * TIMING + phase * PHASE

    # sums over the columns

    def total(self, slot: int, cell: Count) -> int:
        """Sum of an integer cell of one slot over all workers."""
        ints = self.ints
        at = self._columns_at + slot * COUNT + cell
        return sum([ints[at + column] for column in self._columns])

    def latest(self, slot: int, cell: Count) -> float:
        """Largest value of a float cell of one slot over all workers."""
        floats = self.floats
        at = self._columns_at + slot * COUNT + cell
        return max(floats[at + w * self.column_cells] for w in range(self.workers))

    def timings(self, slot: int) -> list[Timing]:
        """How long each phase took at one slot, over all workers."""
        columns = [self.timing(worker, slot, Phase.QUEUE) for worker in range(self.workers)]
        cells = list(map(sum, zip(*[self.ints[at : at + TIMING].tolist() for at in columns], strict=True)))
        return [self._timing(columns, cells, phase * PHASE) for phase in Phase]

    def _timing(self, columns: list[int], cells: list[int], at: int) -> Timing:
        counts = cells[at : at + PHASE - 1]
        floats, sum_at = self.floats, at + PHASE - 1
        return Timing(counts, sum(floats[column + sum_at] for column in columns) if any(counts) else 0.0)

    # the supervisor's care for slots and columns

    def clear_gauges(self, worker: int) -> None:
        """A worker died: nothing is in session there any more. Totals stay; its successor goes on counting."""
        for slot in range(self.slots):
            for cell in GAUGES:
                self.ints[self.count(worker, slot, cell)] = 0

    def clear_slot(self, slot: int) -> None:
        """A slot is about to mean another member: every cell to zero. Only while no session is counted on it."""
        for cell in Slot:
            self.ints[self.slot(slot, cell)] = 0
        for worker in range(self.workers):
            for count in Count:
                self.ints[self.count(worker, slot, count)] = 0
            begin = self.timing(worker, slot, Phase.QUEUE)
            self.ints[begin : begin + TIMING] = _NOTHING
