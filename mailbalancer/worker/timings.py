"""How long things took, added up on the board as they end.

Decides: which bucket a time falls into. One call at the end of a phase or exchange, whose two instants are known
anyway; nothing is kept here.
Refuses to know: what took so long, and who reads it (`/metrics`).
"""

from __future__ import annotations

import ssl
from bisect import bisect_left
from typing import Final

from mailbalancer.ipc.board import BOUNDS_S, PHASE, TIMING, Board, Count, Phase

_SUM: Final = PHASE - 1
_FIRST_BYTE: Final = int(Phase.FIRST_BYTE) * PHASE
_TOTAL: Final = int(Phase.TOTAL) * PHASE
_TLS: Final = {"TLSv1.3": Count.TLS_1_3, "TLSv1.2": Count.TLS_1_2}


class Timings:
    """One worker's part of the board's timings."""

    __slots__ = ("_at", "_floats", "_ints")

    def __init__(self, board: Board, worker: int) -> None:
        self._ints = board.ints
        self._floats = board.floats
        self._at = board.timing(worker, 0, Phase.QUEUE)

    def took(self, slot: int, phase: int, seconds: float) -> None:
        """One more that took so long there; `phase` as in `ipc.board.Phase`."""
        at = self._at + slot * TIMING + phase * PHASE
        self._ints[at + bisect_left(BOUNDS_S, seconds)] += 1
        self._floats[at + _SUM] += seconds

    def exchanged(self, slot: int, first_byte_s: float, total_s: float) -> None:
        """A request was answered, or was not (`first_byte_s` below 0: no server has said anything)."""
        ints, floats = self._ints, self._floats
        at = self._at + slot * TIMING
        ints[at + _TOTAL + bisect_left(BOUNDS_S, total_s)] += 1
        floats[at + _TOTAL + _SUM] += total_s
        if first_byte_s >= 0.0:
            ints[at + _FIRST_BYTE + bisect_left(BOUNDS_S, first_byte_s)] += 1
            floats[at + _FIRST_BYTE + _SUM] += first_byte_s


def tls_counts(tls: ssl.SSLSocket) -> tuple[Count, ...]:
    """What a finished handshake with a client adds one to."""
    version = _TLS.get(tls.version() or "", Count.TLS_OLDER)
    return (version, Count.TLS_RESUMED) if tls.session_reused else (version,)
