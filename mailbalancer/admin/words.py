"""The state of the balancer in an administrator's words: sizes, times, and one phrase for how a real server is.

Decides: how a number is written, which of several facts about a real server is said first, and how bad it is.
Refuses to know: tables, colours, terminals, clocks. PURE: facts of the status report in, words out. Every text in that
report is foreign (banners, reasons, addresses): whatever could move a cursor or turn text around is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

Facts = Mapping[str, Any]


class Tone(StrEnum):
    """How bad it is; the renderer decides what that looks like."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    QUIET = "quiet"


def plain(value: object) -> str:
    """Text that can be shown anywhere: control, direction and unassigned characters become `?`."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def size(number: float) -> str:
    """Bytes for a person: `0 B`, `1.2 KiB`, `34 MiB`."""
    if number < 1024:
        return f"{int(number)} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 999.5:
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{number / 1024:.1f} TiB"


def span(seconds: float) -> str:
    """A length of time as a clock shows it: `0:07`, `14:59`, `1:02:03`, `3 d 04:05:06`."""
    whole = max(0, int(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def rate(per_second: float) -> str:
    """Events per second: one decimal while it is small."""
    return f"{per_second:.1f}" if per_second < 99.95 else f"{per_second:.0f}"


def count(number: int, one: str) -> str:
    """`1 session`, `412 sessions`."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def server_state(server: Facts) -> tuple[str, Tone]:
    """How a real server is, in words, and how bad that is.

    What the operator asked for comes first, because it explains everything else; then down; then what limits it.
    """
    if server["admin"] == "disabled":
        return _with_sessions("disabled", server), Tone.QUIET
    if server["admin"] == "draining":
        return _draining(server)
    if server["up"] is False:
        return f"down: {_down_reason(server)}", Tone.BAD
    if server.get("out_of_service"):
        return _with_sessions(f"out of service: {plain(server['out_of_service'])}", server), Tone.BAD
    if server["maintenance"]:
        said = plain(server.get("availability_reason") or "it says it is in maintenance")
        return _with_sessions(f"draining: {said}", server), Tone.WARNING
    return _ready(server)


def split_state(words: str, longest: int) -> tuple[str, bool]:
    """The words of a state for a column of `longest` characters, and whether the rest must be said elsewhere."""
    if len(words) <= longest:
        return words, False
    return re.split(r"[:,;] ", words, maxsplit=1)[0], True


def _draining(server: Facts) -> tuple[str, Tone]:
    words = _with_sessions("draining", server)
    polls, polls_end_in_s = server.get("long_polls") or 0, server.get("long_polls_end_in_s")
    if polls:
        words += f", {count(polls, 'long poll')}"
    if polls and polls_end_in_s is not None:
        words += f", the last ends in {span(polls_end_in_s)} at the latest"
    elif server["drain_ends_in_s"] is not None:
        words += f", ends in {span(server['drain_ends_in_s'])}"
    if server["up"] is False:
        return f"{words}; down: {_down_reason(server)}", Tone.BAD
    return words, Tone.WARNING


def _ready(server: Facts) -> tuple[str, Tone]:
    """The words for a real server that is open to new sessions."""
    limits = []
    if server["ramp_percent"] < 100:
        limits.append(f"ramping {server['ramp_percent']:.0f} %")
    if server["back_pressure"]:
        said = f" ({plain(server['back_pressure_reason'])})" if server.get("back_pressure_reason") else ""
        limits.append(f"back pressure: weight {server['weight']:g} of {server['configured_weight']:g}{said}")
    if server["max_sessions"] and server["sessions"] >= server["max_sessions"]:
        limits.append(f"full at {count(server['max_sessions'], 'session')}")
    if limits:
        return ", ".join(limits), Tone.WARNING
    return ("up", Tone.GOOD) if server["up"] else ("not checked", Tone.QUIET)


def _with_sessions(word: str, server: Facts) -> str:
    return f"{word}, {count(server['sessions'], 'session')}" if server["sessions"] else word


def _down_reason(server: Facts) -> str:
    """Why it is down: what the newest check found, as long as checks fail; else why it went (traffic has seen it)."""
    check, flip = server["check"], server["last_flip"]
    if check and check["verdict"] == "down" and check["reason"]:
        return plain(check["reason"])
    return plain(flip["reason"]) if flip and flip["reason"] and not flip.get("up") else "no reason known"


def last_check(server: Facts) -> str:
    """The newest check in a few words: type, outcome, age and duration."""
    check = server["check"]
    if check is None:
        return "no check"
    outcome = "ok" if check["verdict"] == "up" else plain(check["verdict"])
    return f"{plain(check['type'])} {outcome} {span(check['ago_s'])} ago, {check['took_s'] * 1000:.0f} ms"


def imbalance(service: Facts) -> str:
    """The sentence about one source address that carries too much of a service; empty when none does."""
    found = service["imbalance"]
    if not found:
        return ""
    return (
        f"{plain(found['source'])} carries {found['share'] * 100:.0f} % of the sessions of {plain(service['name'])}: "
        "probably a NAT device; see docs/balancing.md"
    )


def worker_troubles(worker: Facts) -> list[str]:
    """What is wrong with a worker; nothing for one that works."""
    who = f"worker {worker['index']} (pid {worker['pid']})"
    troubles = []
    if not worker["alive"]:
        troubles.append(f"{who} is not running; it is being replaced")
    elif (worker["beat_age_s"] or 0.0) > 1.0:  # none yet: it is just starting
        troubles.append(f"{who} has shown no heartbeat for {worker['beat_age_s']:.1f} s")
    if worker["paused"]:
        troubles.append(f"{who} accepts nothing: it has {worker['open_files']} files open; raise LimitNOFILE")
    if worker["restarts"]:
        troubles.append(f"{who} has been replaced {count(worker['restarts'], 'time')}; the log says why")
    return troubles
