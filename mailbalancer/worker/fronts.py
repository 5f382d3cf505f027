"""The certificates that this worker shows, one offer per service that speaks TLS to its clients.

Decides: that an offer lives as long as its owner is configured, so that handshakes and session keys survive reloads.
Refuses to know: files and places in the pool (the supervisor), handshakes (`tls.offer`, `stream`).
"""

from __future__ import annotations

from collections.abc import Mapping

from mailbalancer.ipc.messages import Front
from mailbalancer.model import Config
from mailbalancer.tls.context_pool import ContextPool
from mailbalancer.tls.offer import PROTOCOLS, Offer


class Fronts:
    """Offers by owner. A service whose client authorities change is another owner and begins with fresh keys."""

    def __init__(self, contexts: ContextPool) -> None:
        self._contexts = contexts
        self._offers: dict[str, Offer] = {}

    def follow(self, config: Config, fronts: Mapping[str, Front]) -> dict[str, Offer]:
        """Show what this configuration says, from the next handshake on; returns each service's offer.

        Raises:
            CertificateError: OpenSSL refuses one; the services before it show their new certificates already, which
                the configuration that is taken back sets right.
        """
        offers = {}
        for service in config.services:
            front = fronts.get(service.name)
            if front is None or service.client_tls is None:
                continue
            offer = self._offers.get(front.owner)
            if offer is None:
                offer = self._offers[front.owner] = Offer(self._contexts.take(front.place))
            offer.show(service.client_tls, front.materials, PROTOCOLS.get(service.mode, ()), front.authorities)
            offers[service.name] = offer
        kept = {front.owner for front in fronts.values()}
        self._offers = {owner: offer for owner, offer in self._offers.items() if owner in kept}
        return offers
