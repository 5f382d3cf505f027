"""What the services show their clients: certificates read anew for every configuration, and a place for session keys.

Decides: that a configuration with a certificate that cannot be used is not applied, and which service has which place
in the pool of contexts.
Refuses to know: TLS itself (`tls`), and when a configuration is applied.
"""

from __future__ import annotations

from mailbalancer.errors import MailbalancerError
from mailbalancer.ipc.messages import Front
from mailbalancer.model import Config, Service
from mailbalancer.tls.context_pool import ContextPool
from mailbalancer.tls.material import Material, read_all, read_authorities
from mailbalancer.tls.offer import owner_name


class Certificates:
    """Reads what a configuration lists. `running` is what the workers show now, by certificate name."""

    def __init__(self, contexts: ContextPool) -> None:
        self._contexts = contexts
        self.running: dict[str, Material] = {}

    def read(self, config: Config) -> dict[str, Material]:
        """Every certificate listed.

        Raises:
            MailbalancerError: one of them cannot be used; the first is named.
        """
        materials, errors = read_all(config.certificates)
        if errors:
            raise errors[0]
        return materials

    def fronts(self, config: Config, materials: dict[str, Material]) -> dict[str, Front]:
        """What each service that speaks TLS to its clients shows them.

        Raises:
            MailbalancerError: the authorities for client certificates cannot be read, or a certificate is not listed.
        """
        authorities = {
            service.name: read_authorities(service.client_tls.client_ca_file)
            if service.client_tls.client_ca_file
            else ""
            for service in config.services
            if service.client_tls is not None
        }
        owners = {
            service.name: owner_name(service.name, authorities[service.name], service.client_tls.client_must_show)
            for service in config.services
            if service.client_tls is not None
        }
        places = self._contexts.place(list(owners.values()))
        return {
            service.name: Front(owner, places[owner], _materials(service, materials), authorities[service.name])
            for service in config.services
            if (owner := owners.get(service.name)) is not None
        }


def _materials(service: Service, materials: dict[str, Material]) -> tuple[Material, ...]:
    """The certificates of one service, the default first."""
    assert service.client_tls is not None
    missing = [name for name in service.client_tls.certificates if name not in materials]
    if missing or not service.client_tls.certificates:
        wanted = f"certificate '{missing[0]}'" if missing else "a certificate"
        raise MailbalancerError(f"service {service.name} needs {wanted}", "list it under `certificates:`")
    return tuple(materials[name] for name in service.client_tls.certificates)
