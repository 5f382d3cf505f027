"""What clients are called in the DNS, for servers that are told who the client is (XCLIENT NAME).

Decides: that a name counts when it is confirmed (one of the name's addresses is the client's: anybody may call his own
address mail.example.com), how long an answer is remembered, and that nothing waits longer than the deadline.
Refuses to know: DNS itself (dnspython does), and what a server makes of the name.

A lookup runs while the connection to the server is made, and is asked once however many sessions wait for it. It is a
task on the worker's loop, no thread; sessions only leave a callback.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.reversename

from mailbalancer import model
from mailbalancer.wire.smtp_xclient import NO_NAME, NOT_NOW, host_name
from mailbalancer.worker.engine import Engine

#: Addresses whose names are remembered in one worker; the one asked longest ago goes first.
MOST_NAMES = 10_000
#: Lookups at once, each a socket of those held back for such things; more clients than that are not looked up now.
MOST_LOOKUPS = 32
#: Of the names that one address has, those that are tried.
MOST_POINTERS = 4
#: How long an answer holds, and how long no answer does: a name server that is down delays nobody twice.
HOLDS_S = 300.0
NOT_NOW_HOLDS_S = 30.0

Tell = Callable[[str], None]


class ReverseNames:
    """Of one service in one worker.

    Raises:
        OSError: there is no name server to ask.

    Attributes:
        config: by which it asks.
    """

    def __init__(self, engine: Engine, config: model.ReverseNames) -> None:
        self._engine = engine
        self.config = config
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._waiting: dict[str, list[Tell]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not config.resolvers)
        except dns.resolver.NoResolverConfiguration as error:
            raise OSError(f"no name server can be asked: {error}") from error
        if config.resolvers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(one.host, one.port) for one in config.resolvers]
        self._resolver.lifetime = config.timeout_s
        # one that is silent leaves time for the next
        self._resolver.timeout = max(0.2, config.timeout_s / (len(self._resolver.nameservers) + 1))

    def known(self, address: str) -> str | None:
        """The client's name, NO_NAME or NOT_NOW; None: it must be asked for."""
        found = self._known.get(address)
        if found is None or found[1] <= self._engine.reactor.now:
            return None
        return found[0]

    def ask(self, address: str, tell: Tell) -> None:
        """Call `tell` with the client's name, NO_NAME or NOT_NOW; at once, or within the deadline."""
        known = self.known(address)
        if known is None and address not in self._waiting and len(self._waiting) >= MOST_LOOKUPS:
            known = NOT_NOW
        if known is not None:
            tell(known)
            return
        waiting = self._waiting.setdefault(address, [])
        waiting.append(tell)
        if len(waiting) == 1:
            task = self._engine.loop.create_task(self._look_up(address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look_up(self, address: str) -> None:
        name = NOT_NOW
        try:
            async with asyncio.timeout(self.config.timeout_s):
                name = await self._confirmed(address)
        except (TimeoutError, OSError, dns.exception.DNSException):
            name = NOT_NOW
        finally:
            self._learn(address, name)

    def _learn(self, address: str, name: str) -> None:
        holds_s = NOT_NOW_HOLDS_S if name == NOT_NOW else HOLDS_S
        self._known[address] = name, self._engine.reactor.now + holds_s
        self._known.move_to_end(address)
        if len(self._known) > MOST_NAMES:
            self._known.popitem(last=False)
        for tell in self._waiting.pop(address, []):
            try:
                tell(name)
            except Exception as error:  # a fault in one session must not keep the others waiting
                self._engine.session_fault(None, error)

    async def _confirmed(self, address: str) -> str:
        """The name of an address that has this address itself; of several the first in the alphabet."""
        pointers = await self._records(dns.reversename.from_address(address), dns.rdatatype.PTR)
        kind = dns.rdatatype.AAAA if ":" in address else dns.rdatatype.A
        for name in sorted(pointers)[:MOST_POINTERS]:
            if host_name(name) != NO_NAME and address in await self._records(name, kind):
                return host_name(name)
        return NO_NAME

    async def _records(self, name: dns.name.Name | str, kind: dns.rdatatype.RdataType) -> list[str]:
        """What there is under a name, as text; nothing, if that is the answer."""
        try:
            found = await self._resolver.resolve(name, kind, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        return [record.to_text() for record in found]
