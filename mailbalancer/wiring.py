"""The only file that knows both process kinds: it gives the supervisor the function its workers run.

Decides: what is built, and in which order.
Refuses to know: what any of it does.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mailbalancer.admin.server import AdminServer
from mailbalancer.config.load import load
from mailbalancer.control.supervisor import Supervisor
from mailbalancer.ipc.board import Board
from mailbalancer.log import Log
from mailbalancer.tls.context_pool import ContextPool
from mailbalancer.worker import main as worker


def run(config_path: Path) -> int:
    """Be the balancer until a signal ends it; returns the exit code.

    Raises:
        MailbalancerError: it cannot start.
    """
    loaded = load(config_path)
    log = Log(loaded.log)
    board = Board(loaded.workers, loaded.board_slots)
    contexts = ContextPool()
    worker_main = partial(worker.run, contexts=contexts)
    return Supervisor(config_path, loaded, board, log, worker_main, load, contexts, AdminServer(log)).run()
