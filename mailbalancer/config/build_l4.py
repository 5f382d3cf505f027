"""What only an `l4` service has: from what the operator wrote to the model.

Decides: which combinations cannot work in any network, and why.
Refuses to know: this machine and its network (`control` asks those), pools (`build_service`).
"""

from __future__ import annotations

from collections.abc import Sequence

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.problems import Path
from mailbalancer.config.report import Report
from mailbalancer.model import Forward

_LOOP = "answers would come back to the balancer and be sent out again: a loop"


#: The IP version inside and outside of tunnels of IP in IP.
_CARRIED = {"ipip": 4, "ip6ip6": 6}


def build_l4(report: Report, path: Path, written: schema.L4Service) -> model.L4:
    """Everything of the service that is not its pool."""
    forward = Forward(written.forward)
    _refuse_combinations(report, path, written, forward)
    return model.L4(
        listen=_listen(report, path, written.listen),
        protocol=written.protocol,
        forward=forward,
        snat_address=values.address(written.snat_address) if written.snat_address else "",
        interface=written.interface or "",
        masquerade_outbound=values.address(written.masquerade_outbound) if written.masquerade_outbound else "",
        tunnel=model.Tunnel(
            written.tunnel.encapsulation, tuple(values.network(text) for text in written.tunnel.allow_peers)
        ),
    )


def refuse_unreachable(report: Report, path: Path, l4: model.L4, pool: model.Pool) -> None:
    """Ports that cannot be translated, and families in which nobody answers."""
    single = len(l4.listen) == 1 and l4.listen[0].first == l4.listen[0].last
    for member in pool.members:
        where = (*path, "real_servers", member.real_server)
        if member.endpoint.port != l4.listen[0].first:
            if l4.forward in (Forward.DSR, Forward.TUNNEL):
                report.problem(where, f"forward: {l4.forward} cannot change the port: the server answers the client")
            elif not single:
                report.problem(where, "several ports cannot become one; leave the real server's port out")
    for key, address in (("snat_address", l4.snat_address), ("masquerade_outbound", l4.masquerade_outbound)):
        if address and pool.members and (":" in address) not in {m.endpoint.is_ipv6 for m in pool.members}:
            version = "IPv6" if ":" in address else "IPv4"
            report.problem((*path, key), f"{address} is {version} and no real server is; remove it")
    _refuse_outside_of_tunnel(report, path, l4, pool)
    families = {member.endpoint.is_ipv6 for member in pool.members}
    for at, port in enumerate(l4.listen):
        if families and (":" in port.address) not in families:
            version = "IPv6" if ":" in port.address else "IPv4"
            report.problem(
                (*path, "listen", at),
                f"{port} is {version} and no real server is: the kernel does not translate between IPv4 and IPv6; "
                "add a real server with such an address, or use mode tcp",
            )


def _refuse_outside_of_tunnel(report: Report, path: Path, l4: model.L4, pool: model.Pool) -> None:
    """IP in IP carries one version, in the same."""
    version = _CARRIED.get(l4.tunnel.encapsulation)
    if l4.forward is not Forward.TUNNEL or version is None:
        return
    for member in pool.members:
        if member.endpoint.is_ipv6 != (version == 6):
            report.problem(
                (*path, "real_servers", member.real_server),
                f"{member.endpoint.host} is IPv{10 - version}, and encapsulation: {l4.tunnel.encapsulation} carries "
                f"IPv{version} in IPv{version}; write a service for each, or encapsulation: vxlan",
            )


def _listen(report: Report, path: Path, texts: Sequence[str]) -> tuple[model.PortRange, ...]:
    ranges = [model.PortRange(*values.listen_range(text)) for text in texts]
    for at, one in enumerate(ranges):
        for other in ranges[:at]:
            if overlap(one, other):
                report.problem((*path, "listen", at), f"{one} is in {other} already")
    return tuple(ranges)


def overlap(one: model.PortRange, other: model.PortRange) -> bool:
    """Whether a packet could be for both."""
    return one.address == other.address and one.first <= other.last and other.first <= one.last


def _refuse_combinations(report: Report, path: Path, written: schema.L4Service, forward: Forward) -> None:
    past_us = forward in (Forward.DSR, Forward.TUNNEL)
    if written.snat_address and forward is not Forward.SNAT:
        reason = _LOOP if past_us else "it keeps the client's address; write forward: snat to replace it"
        report.problem((*path, "snat_address"), f"forward: {forward} has no source address of its own: {reason}")
    if past_us and written.source.balancer_for:
        report.problem(
            (*path, "source", "balancer_for"), f"forward: {forward} cannot replace the source address: {_LOOP}"
        )
    if past_us and written.masquerade_outbound:
        report.problem(
            (*path, "masquerade_outbound"), f"with forward: {forward} the balancer is not the servers' gateway"
        )
    if forward is Forward.SNAT and written.source.balancer_for:
        report.problem(
            (*path, "source", "balancer_for"), "forward: snat shows the balancer's address for every client; remove it"
        )
    if written.persist is not None and "warn_share" in written.persist.model_fields_set:
        report.problem((*path, "persist", "warn_share"), "the kernel does not count sessions by client; remove it")
    if written.tunnel.model_fields_set and forward is not Forward.TUNNEL:
        report.problem((*path, "tunnel"), "is for forward: tunnel; remove it")
    if "use" in written.source.model_fields_set:
        report.problem((*path, "source"), "mode l4 says it with forward: transparent (the client's) or snat (ours)")
    if written.max_sessions:
        report.problem((*path, "max_sessions"), "the kernel forwards without counting first; limit the real servers")
    if written.drop_after_drain:
        report.problem((*path, "drop_after_drain"), "is for sessions that end here; flows of mode l4 go on")
