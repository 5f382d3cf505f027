"""What a client is told in a server's place: by the configuration, or because something is wrong.

Decides: the words, and that the connection ends wherever what follows on it could be misread.
Refuses to know: how it was found out that no server answers this.
"""

from __future__ import annotations

from typing import Final

from mailbalancer.wire.http_answer import answer, redirect
from mailbalancer.wire.http_body import Framing, Kind
from mailbalancer.wire.http_head import RequestHead
from mailbalancer.worker.http_lifetime import Lifetime, Stage
from mailbalancer.worker.http_rewrite import plain_host
from mailbalancer.worker.http_route import Route
from mailbalancer.worker.http_server import ServerLink

_HEAD: Final = Stage.HEAD


class OwnAnswers(Lifetime):
    """Answers of our own, whole and in one piece."""

    __slots__ = ()

    def _answer_by_rule(self, route: Route, head: RequestHead, framing: Framing) -> bool:
        """What the configuration answers in a server's place. The connection goes on where no body is in the way."""
        closes = self._closes or framing != (Kind.NONE, 0)
        without_body = head.method == b"HEAD"
        if route.redirect is not None:
            to = route.redirect.to.encode("latin-1")
            to = to.replace(b"{host}", plain_host(head.authority)).replace(b"{path}", head.path)
            self.status = route.redirect.status
            data = redirect(self.status, to, fields=route.own_fields, close=closes)
        elif route.respond is not None:
            page = route.respond
            self.status = page.status
            data = answer(
                page.status,
                page.body,
                page.content_type,
                fields=route.own_fields,
                close=closes,
                without_body=without_body,
            )
        else:
            self.status = 404
            data = answer(404, close=closes, without_body=without_body)
        return self._say(data, closes)

    def _refuse(self, status: int, words: str) -> None:
        """Answer with an error and close: what follows on this connection may be anything."""
        self.status = status
        if self.head is None or (self.stage <= _HEAD and words):
            self._distrust()
        without_body = self.head is not None and self.head.method == b"HEAD"
        self._say(answer(status, without_body=without_body), closes=True, failure=words)

    def _distrust(self) -> None:
        """Nothing is known of the request at hand, also not for the log; least of all what the one before it was."""
        self.head = self.asked = None
        self.asked_at = self.sent_at = self.first_at = 0.0
        self.bytes_in, self.bytes_out = len(self._in), 0
        if self.stage is Stage.IDLE:
            self.head_at = self._engine.reactor.now

    def _say(self, data: bytes, closes: bool, failure: str = "") -> bool:
        """Our own answer, whole. False: the connection ends with it."""
        self.bytes_out += len(data)
        self._log(failure)
        try:
            self._client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return False
        if closes:
            self._close_politely()
            return False
        self._begin_idle()
        return True

    # ------------------------------------------------------------ in the middle of an exchange

    def unlinked(self, reason: str) -> None:
        """No server is left."""
        link = self.link
        assert link is not None
        failure = link.last_failure or reason
        timed_out = reason == "no_server" and "no answer in" in link.last_failure
        self._forget_link()
        if timed_out:
            self._refuse_exchange(504, failure)
        else:
            self._closes = True
            head = self.head
            page = self.service.sorry_page(close=True, without_body=head is not None and head.method == b"HEAD")
            self.status = self.service.sorry.status if self.service.sorry else 503
            self._say(page, closes=True, failure=failure)

    def server_broke(self, failure: str) -> None:
        """The server is of no use for this request, which it may have seen: nobody else is asked."""
        link = self.link
        assert link is not None
        words = f"{link.target.name}: {failure}" if link.target else failure
        if self.has_answer:
            self._log(words)
            self.end("server_reset", reset=True)
        else:
            self._refuse_exchange(502, words)

    def _refuse_exchange(self, status: int, failure: str) -> None:
        """End the exchange with an error, or with a reset where an answer has begun."""
        self.poll.over(self, broken=True)
        if self.has_answer:
            self._log(failure)
            self.end("bad_message", reset=True)
            return
        self.expects_answer = False
        self.status = status
        self._body = None
        without_body = self.head is not None and self.head.method == b"HEAD"
        data = answer(status, without_body=without_body)
        link, self.link = self.link, None
        self._say_with(link, data, failure)

    def _say_with(self, link: ServerLink | None, data: bytes, failure: str) -> None:
        """Our own answer in the place of a server's, whose name still belongs into the log."""
        self.link = link
        self.bytes_out += len(data)
        self._log(failure)
        self._drop_link()
        try:
            self._client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return
        self._close_politely()
