"""How long a client's connection may take over what, and what follows when it takes longer.

Decides: at any moment which deadline holds: of the handshake, of a head, of a body's rate, of silence.
Refuses to know: clocks (`wheel`) and bytes. Traffic only notes when it came; it never touches the wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mailbalancer.worker.http_lifetime import Stage
from mailbalancer.worker.http_own_answers import OwnAnswers

#: The answer is complete, the request is not: a client that does not go on with it holds the connection for nothing.
UNFINISHED_S: Final = 30.0
#: A client that has ended its half may wait for its answer this long; whether it is still there nobody knows.
AFTER_CLIENT_CLOSED_S: Final = 60.0
#: How often the rate of a body is looked at.
RATE_WINDOW_S: Final = 10.0


class Deadlines(OwnAnswers):
    """Gives up what takes too long."""

    __slots__ = ()

    def due(self, now: float) -> None:
        """The wheel says that a deadline may have come; most are old."""
        deadline_at, act = self._deadline(now)
        if deadline_at <= now:
            act()
        if self.stage is not Stage.OVER:
            deadline_at, _ = self._deadline(now)
            self.poll.lasts(deadline_at)
            self._wheel_at = max(deadline_at, now + 0.1)
            self._wheel_key = self._engine.wheel.add(self, self._wheel_at)

    def _deadline(self, now: float) -> tuple[float, Callable[[], None]]:
        limits = self.service.http.limits
        match self.stage:
            case Stage.SHAKING:
                return self.started_at + limits.head_timeout_s, self._give_up_waiting
            case Stage.IDLE if not self.requests:
                return self.started_at + limits.head_timeout_s, self._give_up_waiting
            case Stage.IDLE:
                return self.active_at + self.service.config.idle_timeout_s, self._give_up_waiting
            case Stage.HEAD:
                return self.head_at + limits.head_timeout_s, self._head_too_slow
            case Stage.SEEKING:  # the link has deadlines of its own
                return now + self._idle_s(), self._give_up_waiting
            case Stage.CLOSING:
                # what is still on its way to a slow client is not cut off
                slow = self._client.blocked
                return self.active_at + self._idle_s() if slow else self._lingers_until, self._give_up_waiting
        return self._exchange_deadline()

    def _exchange_deadline(self) -> tuple[float, Callable[[], None]]:
        idle_s = self._idle_s()
        if self._finished or (self.in_tunnel and not self.expects_answer):
            idle_s = min(idle_s, AFTER_CLIENT_CLOSED_S)
        elif not self.expects_answer:
            idle_s = min(idle_s, UNFINISHED_S)
        silent = self.active_at + idle_s
        if self._body is not None and self._rate_at and not self.in_tunnel:
            checked = self._rate_at + RATE_WINDOW_S
            if checked < silent:
                return checked, self._check_rate
        return silent, self._exchange_silent

    def _idle_s(self) -> float:
        return self.asked.route.idle_timeout_s if self.asked is not None else self.service.config.idle_timeout_s

    def _watch_rate(self) -> None:
        """A body has a least rate; not that of an RPC channel, whose nature it is to say little for hours."""
        head = self.head
        if self.service.http.limits.body_bytes_per_s and head is not None and not head.method.startswith(b"RPC_"):
            self._rate_at = self._engine.reactor.now
            self._rate_bytes = self._body_bytes
            self._by(self._rate_at + RATE_WINDOW_S)
        else:
            self._rate_at = 0.0

    # ------------------------------------------------------------ too late

    def _give_up_waiting(self) -> None:
        self.end("idle_timeout")

    def _head_too_slow(self) -> None:
        self._refuse(408, f"the head was not complete in {self.service.http.limits.head_timeout_s:g} s")

    def _check_rate(self) -> None:
        """A body that trickles; while its server takes nothing the client is not to blame."""
        now = self._engine.reactor.now
        least = self.service.http.limits.body_bytes_per_s * (now - self._rate_at)
        if self._body_bytes - self._rate_bytes < least and not (self.link is not None and self.link.blocked):
            self._refuse_exchange(408, f"the body came slower than {self.service.http.limits.body_bytes_per_s} bytes/s")
        else:
            self._rate_at, self._rate_bytes = now, self._body_bytes

    def _exchange_silent(self) -> None:
        if self.in_tunnel or self._finished or not self.expects_answer:
            self._log("")
            self.end("idle_timeout")
        else:
            self._refuse_exchange(504, f"no byte in {self._idle_s():g} s")
