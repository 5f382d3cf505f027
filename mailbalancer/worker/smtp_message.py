"""One message on its way, for the log line that is written when its fate is known.

Decides: what that line says. No address of a person is in it, unless the operator asked for that.
Refuses to know: how a message is passed on (`smtp_session`).
"""

from __future__ import annotations

from mailbalancer.log import Value, one_line


class Message:
    """From MAIL to the verdict.

    Attributes:
        recipients: RCPT commands of the client.
        accepted: those that the server has accepted.
        size: bytes of the content, as the client sent it.
        strays: bare CR, bare LF and NUL in it.
        at, data_at, sent_at: instants of MAIL, of the first byte of content, and of its end; 0.0: not yet.
    """

    __slots__ = ("_sender", "_to", "accepted", "at", "data_at", "recipients", "sent_at", "size", "strays")

    def __init__(self, at: float, sender: str | None) -> None:
        """`sender`: None where addresses are not logged."""
        self.at = at
        self.data_at = self.sent_at = 0.0
        self.recipients = self.accepted = self.size = self.strays = 0
        self._sender = sender
        self._to: list[str] = []

    def names_recipient(self, recipient: str) -> None:
        """Where addresses are logged: the first ten."""
        if len(self._to) < 10:
            self._to.append(recipient)

    def line(self, verdict: str, now: float) -> dict[str, Value]:
        """The fields that are the message's own."""
        fields: dict[str, Value] = {
            "size": self.size,
            "recipients": self.recipients,
            "accepted": self.accepted,
            "reply": one_line(verdict),
            "data_s": (self.sent_at or now) - self.data_at if self.data_at else 0.0,
            "reply_s": now - self.sent_at if self.sent_at else 0.0,
            "duration_s": now - self.at,
        }
        if self.strays:
            fields["bare_newlines"] = self.strays
        if self._sender is not None:
            fields["from"] = one_line(self._sender)
            fields["to"] = one_line(",".join(self._to))
        return fields
