"""The ports of one demo, all on 127.0.0.1, kept for it from the first moment to the last.

Decides: who listens where, and that no other program gets one of these ports while a killed server is away: a socket
that is bound but does not listen holds the place, and with SO_REUSEADDR on both sides the server can listen there.
Refuses to know: what is spoken on them.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from mailbalancer.errors import MailbalancerError

NAMES = ("ex1", "ex2", "ex3")
#: The RPC services and the ports of Exchange 2010 they stand for.
RPC_SERVICES = {"rpc-mapper": 135, "rpc-cas": 59531, "rpc-ab": 59532}
#: The services for mail programs, and their modes.
MAILBOX_SERVICES = {"imap": "imap", "imaps": "imap", "pop3": "pop3"}
#: Below the range that the kernel gives to outgoing connections.
_RANGE = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Ports:
    """Every port of one demo.

    Attributes:
        smtp: where the balancer listens for mail.
        rpc: where the balancer listens for each RPC service.
        mail_servers: the real mail servers by name.
        rpc_servers: the real RPC stand-ins by name, one port per RPC service, in the order of `RPC_SERVICES`.
        web: where the balancer listens for browsers and mail programs.
        web_servers: the real web servers by name: their port, and that of their RPC proxy.
        page: where the balancer shows its page.
        mailboxes: where the balancer listens for mail programs, in the order of `MAILBOX_SERVICES`.
        mailbox_servers: the real mailboxes by name: their IMAP port, and that of POP3.
    """

    smtp: int
    rpc: Mapping[str, int]
    mail_servers: Mapping[str, int]
    rpc_servers: Mapping[str, tuple[int, ...]]
    web: int
    web_servers: Mapping[str, tuple[int, int]]
    page: int
    mailboxes: tuple[int, ...]
    mailbox_servers: Mapping[str, tuple[int, int]]


@contextmanager
def reserved() -> Iterator[Ports]:
    """Free ports, held until the block ends.

    Raises:
        MailbalancerError: there are not enough.
    """
    kinds = len(RPC_SERVICES)
    with ExitStack() as held:
        services = 3 + kinds + len(MAILBOX_SERVICES)
        ports = iter(_hold(services + len(NAMES) * (5 + kinds), held))
        yield Ports(
            smtp=next(ports),
            rpc={service: next(ports) for service in RPC_SERVICES},
            mail_servers={name: next(ports) for name in NAMES},
            rpc_servers={name: tuple(next(ports) for _ in range(kinds)) for name in NAMES},
            web=next(ports),
            web_servers={name: (next(ports), next(ports)) for name in NAMES},
            page=next(ports),
            mailboxes=tuple(next(ports) for _ in MAILBOX_SERVICES),
            mailbox_servers={name: (next(ports), next(ports)) for name in NAMES},
        )


def _hold(count: int, held: ExitStack) -> list[int]:
    found: list[int] = []
    for port in random.sample(_RANGE, k=50 * count):
        place = held.enter_context(socket.socket())
        try:
            place.bind(("127.0.0.1", port))  # without SO_REUSEADDR, so that two demos cannot hold one port
        except OSError:
            continue
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.append(port)
        if len(found) == count:
            return found
    raise MailbalancerError(f"the demo needs {count} free ports on 127.0.0.1 and found only {len(found)}")
