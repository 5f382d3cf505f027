"""When silence means hung: the table, and real processes in the states it speaks of."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mailbalancer.control.pulse import PATIENT_S, SILENT_S, SPUN_S, STOPPED_S, Pulse, judge
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("state", "age_s", "spun_s", "patient", "hung"),
    [
        ("T", STOPPED_S, 0.0, False, True),
        ("T", STOPPED_S, 0.0, True, True),
        ("T", STOPPED_S / 2, 0.0, False, False),
        ("S", SILENT_S, 0.0, False, True),
        ("S", SILENT_S / 2, 0.0, False, False),
        ("S", SILENT_S, 0.0, True, False),
        ("S", PATIENT_S, 0.0, True, True),
        ("R", SILENT_S, SPUN_S, False, True),
        ("R", SILENT_S, SPUN_S, True, False),
        ("R", PATIENT_S, SPUN_S, True, True),
        ("R", 100 * PATIENT_S, 0.0, False, False),  # it waits for a processor: killing it would not help
        ("D", SILENT_S, 0.0, False, False),
        ("D", PATIENT_S, 0.0, False, True),
        ("t", SILENT_S, 0.0, False, False),
        ("Z", PATIENT_S, 0.0, False, False),
        ("?", PATIENT_S, 0.0, False, False),
    ],
)
def test_the_table(state: str, age_s: float, spun_s: float, patient: bool, hung: bool) -> None:
    assert judge(state, age_s, spun_s, patient=patient) is hung


@contextmanager
def process(job: Callable[[], object]) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        while True:
            job()
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(") ")[2][0]


def test_a_stopped_process_is_hung() -> None:
    with process(lambda: time.sleep(60)) as pid:
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: state_of(pid) == "T")
        pulse = Pulse(pid, now=100.0)
        assert "stopped by a signal" in pulse.silence(0.0, 100.0 + STOPPED_S, patient=True)


def test_a_sleeping_process_is_hung_after_a_while_and_not_after_a_beat() -> None:
    with process(lambda: time.sleep(60)) as pid:
        eventually(lambda: state_of(pid) == "S")
        pulse = Pulse(pid, now=100.0)
        assert not pulse.silence(0.0, 100.0 + SILENT_S / 2, patient=False)
        assert pulse.silence(0.0, 100.0 + SILENT_S, patient=False)
        assert not pulse.silence(100.0 + SILENT_S, 100.0 + SILENT_S, patient=False)


def test_a_delayed_observer_starts_again() -> None:
    with process(lambda: time.sleep(60)) as pid:
        eventually(lambda: state_of(pid) == "S")
        pulse = Pulse(pid, now=100.0)
        pulse.excuse(105.0)
        assert not pulse.silence(0.0, 105.0 + SILENT_S / 2, patient=False)
        assert pulse.silence(0.0, 105.0 + SILENT_S, patient=False)


def test_a_busy_process_is_hung_only_after_it_has_used_the_processor() -> None:
    with process(lambda: None) as pid:
        eventually(lambda: state_of(pid) == "R")
        pulse = Pulse(pid, now=100.0)
        assert not pulse.silence(0.0, 101.0, patient=False), "from here on its processor time counts"
        assert eventually(lambda: pulse.silence(0.0, 101.0, patient=False), what="it has spun for a while")


def test_a_process_that_is_gone_is_not_hung() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert not Pulse(pid, now=100.0).silence(0.0, 200.0, patient=False)
