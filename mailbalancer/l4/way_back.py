"""Do a real server's answers to clients come back through us? The judgement, from what two probes have met.

Decides: known good, known bad, or unknown, and the sentence that says why.
Refuses to know: how probes are sent (`control.gateway_probe`).

The first probe connects from an address that is in no network here, as a client from far away would. The second one,
where we have another arm, from our own address over there: its answer comes straight back only if the server's gateway
is us, and if it comes back through somebody else, that somebody is the server's gateway.

    far probe        hardware address it came from    second probe           verdict
    answered         the server's (or the way's)      not needed             good
    answered         another machine's                not needed             unknown: a router in between sends it back
    refused          any                              not needed             unknown: the server turns the probe away
    rewritten        none seen                        not needed             unknown: this machine replaces addresses
    no answer        none                             straight back          unknown: the probe's address is filtered
    no answer        none                             through another one    bad: the gateway is another machine
    no answer        none                             no answer, or none     bad
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_ANOTHER = "try another `probe_address` under `source`"


class Verdict(StrEnum):
    """What is known."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"


class Met(StrEnum):
    """What became of a connect."""

    ANSWERED = "answered"
    REFUSED = "refused"
    SILENCE = "silence"
    LOCAL = "local"  # it could not be sent


@dataclass(frozen=True, slots=True)
class Probe:
    """One connect. `through`: hardware address of whoever handed us the answer; empty: none was seen on its way in."""

    source: str
    met: Met
    through: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class WayBack:
    """The judgement on one real server; `far_only`: it holds for clients of other networks than the server's."""

    verdict: Verdict
    reason: str
    far_only: bool = False


def judge(server: str, expected: str, far: Probe, near: Probe | None) -> WayBack:
    """The table at the head of this module.

    Args:
        server: address of the real server.
        expected: hardware address from which its answers come when nothing stands between: its own on our segment, the
            router's on the way to it otherwise; empty: not known.
        near: the second probe; None where we have no other arm.
    """
    match far.met:
        case Met.LOCAL:
            return WayBack(Verdict.UNKNOWN, f"the probe from {far.source} could not be sent: {far.error}")
        case Met.REFUSED:
            return WayBack(
                Verdict.UNKNOWN,
                f"{server} refuses connections from {far.source}; {_ANOTHER}",
            )
        case Met.ANSWERED:
            return _answered(server, expected, far)
    return _silent(server, expected, far, near)


def _answered(server: str, expected: str, far: Probe) -> WayBack:
    if not far.through:
        return WayBack(
            Verdict.UNKNOWN, f"rules of others on this machine replace the address of the probe to {server} with ours"
        )
    if expected and far.through != expected:
        return WayBack(
            Verdict.UNKNOWN,
            f"the answer of {server} came through another machine ({far.through}): answers to other clients may go "
            "another way",
        )
    return WayBack(Verdict.GOOD, f"{server} answers {far.source} through the balancer")


def _silent(server: str, expected: str, far: Probe, near: Probe | None) -> WayBack:
    remedy = "set its gateway to the balancer's address in its network"
    if near is None or near.met is not Met.ANSWERED:
        return WayBack(
            Verdict.BAD, f"{server} answers us, and its answer to {far.source} does not come back through us; {remedy}"
        )
    if near.through and near.through == expected:
        return WayBack(
            Verdict.UNKNOWN,
            f"{server} answers {near.source} straight through us, and {far.source} not at all: that address is "
            f"filtered, or only the network of the former is routed through us; {_ANOTHER}",
        )
    by = f" ({near.through})" if near.through else ""
    return WayBack(Verdict.BAD, f"the gateway of {server} is another machine{by}; {remedy}")
