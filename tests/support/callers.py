"""Clients that call without a pause, each on a thread, and remember everything that went wrong.

Decides: that a failure is kept with its words instead of ending the client, and that all of them can be held still
between two calls while a test breaks something.
Refuses to know: what one call is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from tests.support.waiting import eventually


class Callers:
    """`count` threads that repeat `call`, which returns a word (who answered) or raises.

    Attributes:
        answers: what the calls returned, in order.
        failures: what they raised.
    """

    def __init__(self, call: Callable[[], str], count: int = 4) -> None:
        self._call = call
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._gates = [threading.Lock() for _ in range(count)]
        self._threads = [threading.Thread(target=self._run, args=(gate,), daemon=True) for gate in self._gates]

    def more(self, count: int, timeout_s: float = 30.0) -> list[str]:
        """Wait for `count` more answers, and return them."""
        start = len(self.answers)
        eventually(lambda: len(self.answers) >= start + count or self.failures, timeout_s, f"{count} more answers")
        return self.answers[start:]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody is in the middle of a call."""
        with ExitStack() as gates:
            for gate in self._gates:
                gates.enter_context(gate)
            yield

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)
        assert not any(thread.is_alive() for thread in self._threads), "a call does not end"

    def _run(self, gate: threading.Lock) -> None:
        while not self._stop.is_set():
            with gate:
                try:
                    self.answers.append(self._call())
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
