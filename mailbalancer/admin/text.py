"""What the command line shows: status, rates, sessions, persistence and events as tables for a terminal or a pipe.

Decides: which facts stand in which column, what is left out on a narrow terminal, what is red and what is yellow.
Refuses to know: how the facts were fetched, the terminal itself, and time. PURE: the control socket's answers in,
`rich` renderables out. Texts are made of `rich.text.Text`, never of markup, so no name can be taken for a style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mailbalancer.admin import attention, encryption, network_words, words
from mailbalancer.admin.words import Facts, Tone, plain
from mailbalancer.model import Config

if TYPE_CHECKING:
    from mailbalancer.config.profiles import ChecklistItem

_STYLES = {Tone.GOOD: "green", Tone.WARNING: "yellow", Tone.BAD: "bold red", Tone.QUIET: "dim"}
_LEVEL_TONES = {"error": Tone.BAD, "warning": Tone.WARNING}
#: Below this many columns the tables leave out bytes and the last check; the facts are still in `--json`.
WIDE_COLUMNS = 110
_INDENT = 2
#: `top` has a screen and no more.
MOST_TROUBLES = 6
#: Longest state that stands in its column, on a narrow terminal and on a wide one; longer ones stand below the table.
_STATE_COLUMNS = (24, 32)
_FOLDED_STATE = 16
#: Longest name of a route in `top`.
_ROUTE_COLUMNS = 14


def status(report: Facts, *, wide: bool) -> RenderableType:
    """Everything `mailbalancer status` says: what is wrong, then one block per service, certificates, workers."""
    parts: list[RenderableType] = [*_headline(report, wide=wide), *_attention(report)]
    for service in report["services"]:
        parts += [Text(), *_service_block(service, wide=wide)]
    parts.append(Text())
    if report.get("certificates"):
        parts += [_certificates(report["certificates"]), Text()]
    parts.append(_workers(report["workers"]))
    return Group(*parts)


def top(before: Facts, after: Facts, elapsed_s: float, *, wide: bool) -> RenderableType:
    """Rates between two status reports taken `elapsed_s` seconds apart, and the newest events."""
    earlier = _counters(before) if before["started_at"] == after["started_at"] else {}
    table = _table("service / real server", "state", "sessions >", "new/s >", "share >", "failed/s >")
    if wide:
        for heading in ("in/s", "out/s"):
            table.add_column(heading, justify="right", no_wrap=True)
    for service in sorted(after["services"], key=attention.is_well):
        for row in _top_rows(service, earlier, elapsed_s, _STATE_COLUMNS[wide]):
            table.add_row(*(row if wide else row[:6]))
    parts: list[RenderableType] = [*_headline(after, wide=wide), *_attention(after, MOST_TROUBLES), Text(), table]
    parts += [Text(), _workers(after["workers"]), Text(), *_event_lines(after["events"][-5:])]
    return Group(*parts)


def sessions(result: Facts, *, wide: bool) -> RenderableType:
    """Open sessions: who, where to, why there, for how long."""
    rows = result["sessions"]
    if not rows:
        return Text("no sessions")
    table = _table("service", "client", "real server", "why", "age >", "idle >")
    if wide:
        _columns(table, "in >", "out >", "state", "worker >")
    for row in rows:
        cells = [plain(row[key]) for key in ("service", "client", "server", "why")]
        if wide:
            cells[2] += f" ({plain(row['server_address'])})" if row["server_address"] else ""
        cells += [words.span(row["age_s"]), words.span(row["idle_s"])]
        if wide:
            cells += [
                words.size(row["bytes_in"]),
                words.size(row["bytes_out"]),
                plain(row["state"]),
                str(row["worker"]),
            ]
        table.add_row(*(Text(cell) for cell in cells))
    return _with_more(table, result["more"])


def persistence(result: Facts) -> RenderableType:
    """Which client goes back to which real server, by group."""
    parts: list[RenderableType] = []
    for group in result["groups"]:
        timeout = words.span(group["timeout_s"])
        parts.append(Text.assemble((plain(group["group"]), "bold"), f"  timeout {timeout}"))
        table = _table("client", "real server", "expires in >")
        for entry in group["entries"]:
            cells = plain(entry["key"]), plain(entry["real_server"]), words.span(entry["expires_in_s"])
            table.add_row(*(Text(cell) for cell in cells))
        listing = _with_more(table, group["more"]) if group["entries"] else Text("no clients remembered")
        parts.append(_indented(listing))
    return Group(*parts) if parts else Text("no service persists")


def events(rows: Iterable[Facts]) -> RenderableType:
    """What happened, oldest first."""
    lines = _event_lines(rows)
    return Group(*lines) if lines else Text("no events since the start")


def maintenance(facts: Facts) -> RenderableType:
    """What is in maintenance, what is planned, and what Exchange servers say of their components."""
    parts: list[RenderableType] = [
        _toned(one["says"], Tone.GOOD if one["stage"] == "empty" else Tone.WARNING) for one in facts["active"]
    ]
    parts = parts or [Text("no real server is in maintenance")]
    parts += [Text(f"planned: {_window_words(one)}") for one in facts["windows"]]
    if facts["components"]:
        table = _table("real server", "component", "state", "seen by the check")
        for name, found in facts["components"].items():
            for one in found:
                cells = Text(plain(name)), Text(one["component"]), _toned(one["state"], COMPONENT_TONES[one["state"]])
                table.add_row(*cells, Text(one["why"]))
        parts += [Text(), table]
    return Group(*parts)


COMPONENT_TONES = {"active": Tone.GOOD, "inactive": Tone.WARNING, "unknown": Tone.QUIET}


def _window_words(window: Facts) -> str:
    words = plain(window["says"])
    if window["under_way"]:
        return f"{words}; under way, ends {window['ends_at']}"
    return f"{words}; begins {window['begins_at']}" if window["begins_at"] else f"{words}; over"


def configuration(config: Config) -> RenderableType:
    """What a valid configuration says, one line per service."""
    table = _table("service", "mode", "listen", "schedule", "persist", "check", "real servers")
    for service in config.services:
        for pool in service.pools():
            route = next((r for r in service.routes if r.pool is pool), None)
            name = f"{service.name} / {route.name}" if route else service.name
            persist = f"{pool.persist.by}, group {pool.persist.group}" if pool.persist else "none"
            members = ", ".join(f"{member.real_server} {member.endpoint}" for member in pool.members)
            listen = ", ".join(service.places)
            cells = (name, str(service.mode), listen, str(pool.schedule), persist, pool.check.type, members)
            table.add_row(*(Text(plain(cell)) for cell in cells))
        for route in (route for route in service.routes if not route.pool.members):
            where = ", ".join(service.places)
            cells = (f"{service.name} / {route.name}", str(service.mode), where, "", "", "", "answered here")
            table.add_row(*(Text(plain(cell)) for cell in cells))
    return table


def profiles(rows: Iterable[Facts]) -> RenderableType:
    """Profiles and the services in them; in parentheses those that this version cannot run."""
    table = _table("profile", "services", "title")
    later = False
    for row in rows:
        missing = row["not_available"]
        later = later or bool(missing)
        services = [f"({plain(name)})" if name in missing else plain(name) for name in row["services"]]
        table.add_row(*(Text(cell) for cell in (plain(row["profile"]), ", ".join(services), plain(row["title"]))))
    if not table.row_count:
        return Text("no profiles were found")
    note = Text("(…): its mode is not available in this version", style=_STYLES[Tone.QUIET])
    return Group(table, note) if later else table


def checklist(items: Sequence[ChecklistItem]) -> str:
    """Things to do by platform, numbered through. Plain text and never folded: the commands are there to be copied.

    Words around the commands are comments of the platform, so that a whole block can be pasted.
    """
    platforms = dict.fromkeys(item.platform for item in items)
    ordered = [item for platform in platforms for item in items if item.platform == platform]
    blocks: list[str] = []
    for number, item in enumerate(ordered, 1):
        if number == 1 or ordered[number - 2].platform != item.platform:
            mark = _COMMENTS.get(item.platform, "#")
            blocks.append(f"{mark} ===== {_PLATFORMS.get(item.platform, item.platform)} =====\n")
        blocks.append("\n".join(_checklist_lines(number, item)) + "\n")
    return "\n".join(blocks) or "nothing is to be done\n"


_COMMENTS = {"dns": ";"}
_PLATFORMS = {
    "dns": "DNS: records to make",
    "exchange": "Exchange Management Shell: once, on any server",
    "registry": "Windows command prompt as administrator: on every real server",
    "windows": "PowerShell as administrator: on every real server",
    "postfix": "Postfix: as root, on every real server",
    "dovecot": "Dovecot: as root, on every real server",
    "linux": "Linux: as root, on every real server",
    "balancer": "On the balancer: does it work?",
}


def _checklist_lines(number: int, item: ChecklistItem) -> Iterator[str]:
    mark = _COMMENTS.get(item.platform, "#")
    yield f"{mark} {number}. {plain(item.title)}"
    yield f"{mark}    {plain(' '.join(item.why.split()))}"
    for command in item.commands:
        yield from (plain(line) for line in command.split("\n") if line)
    if item.missing:
        options = " ".join("--vip ADDRESS" if name == "vip" else f"--set {plain(name)}=…" for name in item.missing)
        yield f"{mark}    more commands with: {options}"


# ---------------------------------------------------------------- status


def _headline(report: Facts, *, wide: bool) -> Iterator[Text]:
    """One line, or two on a narrow terminal; the name of the file is never folded."""
    file = f"{plain(report['config'])} (version {report['config_version']})"
    middle = f" · {file}" if wide else ""
    first = f" {plain(report['version'])} · pid {report['pid']}{middle} · up {words.span(report['uptime_s'])}"
    yield Text.assemble(("mailbalancer", "bold"), first)
    if not wide:
        yield Text(file, style=_STYLES[Tone.QUIET])


def _attention(report: Facts, most: int = 1000) -> Iterator[RenderableType]:
    """The verdict, and every trouble below it; a sentence that is folded goes on under itself."""
    words_of_all, tone = attention.verdict(report)
    yield Text()
    yield _toned(words_of_all, tone)
    troubles = attention.troubles(report)
    for sentence, how_bad in troubles[:most]:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(Text(_SIGNS[how_bad], style=_STYLES[how_bad]), _toned(sentence, how_bad))
        yield _indented(grid)
    if len(troubles) > most:
        yield _indented(_toned(f"  and {len(troubles) - most} more: mailbalancer status", Tone.QUIET))


_SIGNS = {Tone.BAD: "✕", Tone.WARNING: "!"}


def _service_block(service: Facts, *, wide: bool) -> Iterator[RenderableType]:
    listen = " ".join(plain(address) for address in service["listen"])
    title = Text.assemble((plain(service["name"]), "bold"), f"  {plain(service['mode'])}  {listen}")
    if service["profile"]:
        title.append(f"  profile {plain(service['profile'])}")
    yield title
    yield _indented(_service_counts(service))
    for sentence, tone in encryption.service_words(service):
        yield _indented(_toned(sentence, tone) if tone else Text(sentence))
    for sentence, tone in network_words.service_words(service):
        yield _indented(_toned(sentence, tone) if tone else Text(sentence))
    everybody = [server for pool in service["pools"] for server in pool["real_servers"]]
    for number, pool in enumerate(service["pools"]):
        yield _indented(Text(_pool_words(pool)))
        yield _indented(_server_table(pool["real_servers"], everybody, wide=wide, headed=not number))
        for sentence, tone in _below(pool["real_servers"], wide=wide):
            yield _indented(_indented(_toned(sentence, tone)))
    for route in service.get("answers", ()):
        yield _indented(Text(f"{_route_words(route)} {plain(route['does'])}"))


def _service_counts(service: Facts) -> Text:
    line = Text(f"{words.count(service['sessions'], 'session')}, {service['total']} in all, ")
    line.append(f"{service['refused']} refused", style=_STYLES[Tone.WARNING] if service["refused"] else "")
    if service["queued"]:
        line.append(f", {service['queued']} waiting", style=_STYLES[Tone.WARNING])
    line.append(f", {words.size(service['bytes_in'])} in, {words.size(service['bytes_out'])} out")
    return line.append_text(_http_counts(service)) if "requests" in service else line


def _http_counts(service: Facts) -> Text:
    line = Text(f"\n{words.count(service['requests'], 'request')}, {words.count(service['long_polls'], 'long poll')}")
    line.append(f", {words.count(service['pinned'], 'connection')} pinned to one client")
    if service["reused"]:
        line.append(f", {service['reused']} reused across clients")
    if service["pinned_reused"]:
        line.append(f", {service['pinned_reused']} PINNED ONES REUSED: report this", style=_STYLES[Tone.BAD])
    return line


def _pool_words(pool: Facts) -> str:
    route = f"{_route_words(pool)} " if pool["route"] else ""
    persist = pool["persist"]
    if not persist:
        return f"{route}{plain(pool['schedule'])}, no persistence"
    by = ", then ".join(plain(kind) for kind in (persist["by"], *persist.get("fallback", ())))
    group, timeout = plain(persist["group"]), words.span(persist["timeout_s"])
    return f"{route}{plain(pool['schedule'])}, persistence by {by} for {timeout} in group {group}"


def _route_words(route: Facts) -> str:
    """`route ews (mail.example.com /ews /autodiscover):`."""
    matched = " ".join(plain(word) for word in (*route["hosts"], *route.get("paths", ())))
    return f"route {plain(route['route'])} ({matched}):"


def _below(servers: Sequence[Facts], *, wide: bool) -> Iterator[tuple[str, Tone]]:
    """What is to be said of a real server and is too long for its line in the table."""
    for server in servers:
        state, tone = words.server_state(server)
        if words.split_state(state, _STATE_COLUMNS[wide])[1]:
            yield f"{plain(server['name'])}: {state}", tone
        yield from network_words.server_words(server)
        if sentence := encryption.mismatch(server):
            yield f"Extended Protection: {sentence}", Tone.BAD
        if told := encryption.expiry(server):
            yield told


def _certificates(certificates: Sequence[Facts]) -> RenderableType:
    """Those in use, with the days they have left."""
    table = _table("certificate", "for", "days left >", "services")
    for one in certificates:
        days = Text(str(one["days_left"]), style=_STYLES[encryption.days_tone(one["days_left"])])
        cells = (
            plain(one["name"]),
            " ".join(plain(name) for name in one["names"]),
            ", ".join(map(plain, one["services"])),
        )
        table.add_row(Text(cells[0]), Text(cells[1]), days, Text(cells[2] or "none"))
    warnings = [
        _toned(f"warning: {plain(sentence)}", Tone.WARNING) for one in certificates for sentence in one["warnings"]
    ]
    return Group(table, *warnings)


def _server_table(servers: Sequence[Facts], everybody: Sequence[Facts], *, wide: bool, headed: bool) -> Table:
    """The real servers of one pool, in columns as wide as all of the service need them: the pools stand in line."""
    weighted = any(s["weight"] != 1 or s["configured_weight"] != 1 for s in everybody)
    table = _table("real server", "address", "state", "sessions >", "total >", "failed >")
    if wide:
        _columns(table, *(["weight >"] if weighted else []), "in >", "out >", "last check")
    table.show_header = headed
    shown = [words.split_state(words.server_state(s)[0], _STATE_COLUMNS[wide])[0] for s in everybody]
    keys = ("name", "endpoint", "", "sessions", "total", "connect_failed")
    texts = [[plain(s[key]) for s in everybody] if key else shown for key in keys]
    for column, cells in zip(table.columns, texts, strict=False):
        needed = max(map(len, [str(column.header), *cells]))
        # a long state may be folded where the last check would not fit any more
        column.min_width = needed if cells is not shown or not wide else min(needed, _FOLDED_STATE)
    for server in servers:
        state, tone = words.server_state(server)
        state, _ = words.split_state(state, _STATE_COLUMNS[wide])
        failed = Text(str(server["connect_failed"]), style=_STYLES[Tone.WARNING] if server["connect_failed"] else "")
        row = [Text(plain(server["name"])), Text(plain(server["endpoint"])), _toned(state, tone)]
        row += [Text(str(server["sessions"])), Text(str(server["total"])), failed]
        if wide:
            row += [Text(f"{server['weight']:g}")] if weighted else []
            row += [Text(words.size(server["bytes_in"])), Text(words.size(server["bytes_out"]))]
            row.append(Text(words.last_check(server)))
        table.add_row(*row)
    return table


def _workers(workers: Sequence[Facts]) -> Text:
    alive = sum(1 for worker in workers if worker["alive"])
    shared = ", ".join(str(worker["sessions"]) for worker in workers)
    return Text(f"workers: {alive} of {len(workers)} running, sessions {shared or 'none'}")


# ---------------------------------------------------------------- rates

_COUNTERS = ("total", "connect_failed", "bytes_in", "bytes_out")
_SERVICE_COUNTERS = ("total", "refused", "bytes_in", "bytes_out")


def _counters(report: Facts) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """Every counter of a report by service, and by service, route and real server."""
    found: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for service in report["services"]:
        found[(service["name"],)] = tuple(service[name] for name in _SERVICE_COUNTERS)
        for pool in service["pools"]:
            for server in pool["real_servers"]:
                key = (service["name"], pool["route"], server["name"])
                found[key] = tuple(server[name] for name in _COUNTERS)
    return found


def _rates(now: Sequence[int], before: Sequence[int] | None, elapsed_s: float) -> list[float]:
    """Per second. A counter that went back (a real server removed and added again) counts from zero."""
    if before is None or elapsed_s <= 0:
        return [0.0 for _ in now]
    return [(new - old if new >= old else new) / elapsed_s for new, old in zip(now, before, strict=True)]


def _top_rows(
    service: Facts, earlier: dict[tuple[Any, ...], tuple[int, ...]], elapsed_s: float, longest_state: int
) -> Iterator[list[Text]]:
    """The service's own line, then one per real server with its share of the service's new sessions."""
    now = tuple(service[name] for name in _SERVICE_COUNTERS)
    rates = _rates(now, earlier.get((service["name"],)), elapsed_s)
    yield [
        Text(plain(service["name"]), style="bold"),
        Text(f"{plain(service['mode'])} {' '.join(plain(a) for a in service['listen'])}", style="dim"),
        Text(str(service["sessions"])),
        *_rate_cells(rates, share=""),
    ]
    lines = []
    for pool in service["pools"]:
        for server in pool["real_servers"]:
            key = (service["name"], pool["route"], server["name"])
            lines.append((pool, server, _rates([server[n] for n in _COUNTERS], earlier.get(key), elapsed_s)))
    all_new = sum(rates[0] for _, _, rates in lines)
    idle = [line for line in lines if len(service["pools"]) > 1 and _is_idle(line[1], line[2])]
    for pool, server, rates in (line for line in lines if line not in idle):
        route = f"{_cut(plain(pool['route']), _ROUTE_COLUMNS)}/" if pool["route"] else ""
        state, tone = words.server_state(server)
        state, _ = words.split_state(state, longest_state)
        share = f"{rates[0] / all_new * 100:.0f} %" if all_new else "-"
        name = Text(f"  {route}{plain(server['name'])}")
        yield [name, _toned(state, tone), Text(str(server["sessions"])), *_rate_cells(rates, share)]
    if idle:
        yield [Text(f"  {len(idle)} more, up and idle", style=_STYLES[Tone.QUIET]), *([Text()] * 7)]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _is_idle(server: Facts, rates: Sequence[float]) -> bool:
    """Whether a line about it would say nothing."""
    return not server["sessions"] and not any(rates[:2]) and words.server_state(server)[1] is Tone.GOOD


def _rate_cells(rates: Sequence[float], share: str) -> list[Text]:
    new, failed, bytes_in, bytes_out = rates
    return [
        Text(words.rate(new)),
        Text(share),
        Text(words.rate(failed), style=_STYLES[Tone.WARNING] if failed else ""),
        Text(words.size(bytes_in)),
        Text(words.size(bytes_out)),
    ]


# ---------------------------------------------------------------- pieces


def _event_lines(rows: Iterable[Facts]) -> list[Text]:
    lines = []
    for row in rows:
        tone = _LEVEL_TONES.get(row["level"])
        line = Text(f"{plain(row['at'])}  ", style="dim")
        lines.append(line.append(plain(row["text"]), style=f"not dim {_STYLES[tone]}" if tone else "not dim"))
    return lines


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    _columns(table, *headings)
    return table


def _columns(table: Table, *headings: str) -> None:
    """Add columns; a heading that ends in ` >` is a number and stands on the right. Only sentences wrap at spaces."""
    for heading in headings:
        name, right, _ = heading.partition(" >")
        table.add_column(name, justify="right" if right else "left", no_wrap=bool(right), overflow="fold")


def _with_more(table: Table, more: int) -> RenderableType:
    return Group(table, Text(f"and {more} more; --limit N shows more", style="dim")) if more else table


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, _INDENT), expand=False)


def _toned(text: str, tone: Tone) -> Text:
    return Text(text, style=_STYLES[tone])
