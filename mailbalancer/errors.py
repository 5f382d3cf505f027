"""The errors this program raises on purpose.

Decides: which failures are told to a person in one sentence and end the command with exit code 1.
Refuses to know: where the sentence is printed. Anything that is not one of these is a bug and shows a traceback.
"""

from __future__ import annotations


class MailbalancerError(Exception):
    """A failure with a cause and a remedy, written for an administrator.

    Args:
        message: what is wrong, naming the thing (file, service, address) and its value.
        remedy: what to do about it; empty when the message says it already.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigError(MailbalancerError):
    """A configuration that cannot be used; carries every problem found, never only the first."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ListenError(MailbalancerError):
    """An address:port that cannot be opened: taken, not on this machine, or not permitted."""


class PrivilegeError(MailbalancerError):
    """A capability or user that is needed and not there."""


class ControlError(MailbalancerError):
    """The running balancer refused a command, or no balancer answers on the control socket."""
