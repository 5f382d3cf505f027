"""`top`: the rates of a running balancer, drawn again every interval until the reader has seen enough.

Decides: when to fetch and draw, that `q` and Ctrl-C end it, and that a pipe gets one table instead of a moving one.
Refuses to know: how a report is fetched and what the table says (`text`).
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from mailbalancer.admin import text
from mailbalancer.admin.words import Facts


def show(fetch: Callable[[], Facts], console: Console, interval_s: float) -> None:
    """Show rates over `interval_s` seconds: once where nothing can be redrawn, again and again on a terminal."""
    before, before_at = fetch(), time.monotonic()
    if not console.is_terminal or console.is_dumb_terminal or not sys.stdin.isatty():
        time.sleep(interval_s)
        after = fetch()
        wide = console.width >= text.WIDE_COLUMNS
        console.print(text.top(before, after, time.monotonic() - before_at, wide=wide))
        return
    with _single_keys(), Live(console=console, auto_refresh=False, screen=True) as live:
        while not _quit_pressed(interval_s):
            after, after_at = fetch(), time.monotonic()
            wide = console.width >= text.WIDE_COLUMNS
            live.update(text.top(before, after, after_at - before_at, wide=wide), refresh=True)
            before, before_at = after, after_at


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys arrive one by one, without Return and unseen, until the block ends."""
    settings = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)


def _quit_pressed(wait_s: float) -> bool:
    """Wait so long; whether `q` was pressed or the keyboard went away meanwhile. Other keys redraw at once."""
    if not select.select([sys.stdin], [], [], wait_s)[0]:
        return False
    keys = os.read(sys.stdin.fileno(), 64)
    return not keys or b"q" in keys.lower()
