"""What a problem in a file looks like: where it is, which setting it is about, and one sentence.

Decides: the form `FILE:LINE: services.smtp.schedule: sentence`, that it is always exactly one line, and which known
word an unknown one probably means.
Refuses to know: YAML, the schema, and which problems there are.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]

#: What other products call our words (design: one word per thing). difflib cannot guess these.
_SYNONYMS = {
    "rr": "round_robin",
    "wrr": "weighted_round_robin",
    "lc": "least_connections",
    "wlc": "weighted_least_connections",
    "leastconn": "least_connections",
    "sh": "source_hash",
    "ip_hash": "source_hash",
    "fixed": "priority",
    "snat": "balancer",
    "transparent": "client",
    "backends": "real_servers",
    "servers": "real_servers",
    "members": "real_servers",
    "pool": "real_servers",
    "upstream": "real_servers",
    "bind": "listen",
    "vip": "listen",
    "scheduler": "schedule",
    "algorithm": "schedule",
    "balance": "schedule",
    "sticky": "persist",
    "affinity": "persist",
    "persistence": "persist",
    "slow_start": "ramp_s",
    "slowstart": "ramp_s",
    "healthcheck": "check",
    "health_check": "check",
    "monitor": "check",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands. `origin` is `FILE:LINE` in a profile when the value came from there."""

    file: str
    line: int
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong (or, as a warning, unwise), with the path of the setting; an empty path is the file."""

    place: Place
    path: Path
    text: str

    def __str__(self) -> str:
        setting = f" {path_text(self.path)}:" if self.path else ""
        origin = f" [from {self.place.origin}]" if self.place.origin else ""
        return visible(f"{self.place.file}:{self.place.line}:{setting} {self.text}{origin}")


def formatted(problems: Iterable[Problem]) -> list[str]:
    """Every problem as a line, in the order of the file, each once."""
    ordered = sorted(problems, key=lambda problem: (problem.place.file, problem.place.line))
    return list(dict.fromkeys(str(problem) for problem in ordered))


def path_text(path: Path) -> str:
    """`services.smtp.listen[1]` for ("services", "smtp", "listen", 1)."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def visible(text: str) -> str:
    """The text with everything escaped that is not printable, so that a value from a file stays on its line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def quoted(value: object) -> str:
    """A value as a sentence shows it: quoted, and cut when it is long."""
    text = "true" if value is True else "false" if value is False else str(value)
    return f"'{text[:77]}...'" if len(text) > 80 else f"'{text}'"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The known word that `word` probably stands for, or an empty text."""
    known = list(choices)
    lowered = word.lower().replace("-", "_").replace(" ", "_")
    for guess in (lowered, _SYNONYMS.get(lowered, "")):
        if guess in known:
            return guess
    close = difflib.get_close_matches(lowered[:100], known, n=1, cutoff=0.6)
    return close[0] if close else ""


def hint(word: str, choices: Iterable[str]) -> str:
    """` (did you mean X?)` when there is a likely X, else ` (one of: …)` with what is known."""
    known = sorted(set(choices))
    meant = did_you_mean(word, known)
    if meant:
        return f" (did you mean {meant}?)"
    if not known:
        return ""
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f" (one of: {shown})"


_REMEDIES = {
    errno.ENOENT: "correct the path, or put the file there",
    errno.EISDIR: "name a file in it",
    errno.EACCES: "let the user that mailbalancer runs as read it, and enter its directory",
}


def why_unread(error: OSError | ValueError) -> str:
    """Why a file could not be read, and what to do about it."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "")
        return f"{reason}; {remedy}" if remedy else reason
    return str(error)
