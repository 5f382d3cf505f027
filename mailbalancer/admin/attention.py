"""What is wrong, first: the few sentences that somebody reads at three in the morning before anything else.

Decides: what deserves a look, what comes first, and that the same trouble in many places is one sentence.
Refuses to know: terminals and pages. PURE: facts of the status report in, words out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mailbalancer.admin import encryption, maintenance, network_words, views, words
from mailbalancer.admin.components import components
from mailbalancer.admin.words import Facts, Tone, count, plain, server_state

#: Places that are named; what is beyond is counted.
_NAMED = 4
Sentence = tuple[str, Tone]


def verdict(report: Facts) -> Sentence:
    """Everything in one sentence."""
    services = report["services"]
    without = [_place(one, pool) for one in services for pool in one["pools"] if _is_without(pool)]
    if without:
        return f"no real server is ready, new sessions are refused: {_named(without)}", Tone.BAD
    unwell = [one for one in services if not is_well(one)]
    if unwell:
        needs = "needs" if len(unwell) == 1 else "need"
        return f"{len(unwell)} of {count(len(services), 'service')} {needs} a look; all of them serve", Tone.WARNING
    warned = troubles(report)
    if warned:
        return f"{count(len(services), 'service')}, all serve; {count(len(warned), 'warning')}", Tone.WARNING
    return f"all is well: {count(len(services), 'service')}", Tone.GOOD


def troubles(report: Facts) -> list[Sentence]:
    """Every trouble once, the worst first."""
    found = [
        *_states(report),
        *((words.imbalance(one), Tone.WARNING) for one in report["services"] if one["imbalance"]),
        *((told, Tone.WARNING) for worker in report["workers"] for told in words.worker_troubles(worker)),
        *_under_way(report),
        *_components(report),
        *network_words.report_words(report),
        *((plain(warning), Tone.WARNING) for warning in report["warnings"]),
    ]
    return sorted(found, key=lambda sentence: sentence[1] is not Tone.BAD)


def is_well(service: Facts) -> bool:
    """Whether nothing of it deserves a look."""
    return not any(_is_unwell(server) for server in _servers(service))


def _servers(service: Facts) -> Iterator[Facts]:
    for pool in service["pools"]:
        yield from pool["real_servers"]


def _is_without(pool: Facts) -> bool:
    """Whether nobody is left for new sessions."""
    return bool(pool["real_servers"]) and not any(s["availability"] == "ready" for s in pool["real_servers"])


def _is_unwell(server: Facts) -> bool:
    return server_state(server)[1] in (Tone.BAD, Tone.WARNING) or bool(encryption.mismatch(server))


def _place(service: Facts, pool: Facts) -> str:
    return plain(f"{service['name']}/{pool['route']}".rstrip("/"))


def _states(report: Facts) -> Iterator[Sentence]:
    """`ex2 down: connection refused (smtp, imap)`: one sentence for a machine, not one for each of its services."""
    places: dict[tuple[str, str, Tone], list[str]] = {}
    for one in report["services"]:
        for pool in one["pools"]:
            for server in pool["real_servers"]:
                for said, tone in _of_server(server):
                    places.setdefault((plain(server["name"]), said, tone), []).append(_place(one, pool))
    for (name, said, tone), where in places.items():
        yield f"{name} {said} ({_named(where)})", tone


def _of_server(server: Facts) -> Iterator[Sentence]:
    state, tone = server_state(server)
    if tone is Tone.BAD:
        yield state, tone
    elif tone is Tone.WARNING:  # counts and countdowns differ from place to place: the table has them
        says_so = server["maintenance"] and server["admin"] == "enabled"
        yield "says that it is in maintenance" if says_so else words.split_state(state, 0)[0], tone
    if sentence := encryption.mismatch(server):
        yield f"Extended Protection: {sentence}", Tone.BAD


def _under_way(report: Facts) -> Iterator[Sentence]:
    for one in report.get("maintenance", {"active": []})["active"]:
        yield f"maintenance: {maintenance.told(report, one)['says']}", Tone.WARNING


def _components(report: Facts) -> Iterator[Sentence]:
    """Components that Exchange servers have switched off, as the checks read them."""
    for one in views.real_servers(report):
        inactive = [found["component"] for found in components(one["services"]) if found["state"] == "inactive"]
        out = [name for name in inactive if name != "HubTransport"]  # which has said so itself
        if out:
            yield f"{plain(one['name'])} has Exchange components that are not active: {', '.join(out)}", Tone.WARNING


def _named(places: Iterable[str]) -> str:
    listed = list(places)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
