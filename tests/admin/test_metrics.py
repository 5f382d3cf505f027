from __future__ import annotations

import re
import subprocess
from typing import Any

from mailbalancer.admin import metrics
from tests.support.tools import require


def server(name: str, **more: Any) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("sessions", "total", "connect_ok", "connect_failed", "bytes_in", "bytes_out", "moved", "retried"), 0
    )
    states = {"up": True, "admin": "enabled", "availability": "ready", "maintenance": False, "back_pressure": False}
    return {"name": name, "ramp_percent": 100, "weight": 1.0, "check": None, **counts, **states, **more}


def report(*servers: dict[str, Any], name: str = "smtp") -> dict[str, Any]:
    pool = {"route": "", "real_servers": list(servers)}
    service = {"name": name, "sessions": 1, "total": 2, "refused": 3, "queued": 0, "imbalance": None, "pools": [pool]}
    worker = {
        "index": 0,
        "alive": True,
        "sessions": 1,
        "open_files": 9,
        "paused": False,
        "restarts": 0,
        "beat_age_s": 0.1,
    }
    running = {"version": "1", "uptime_s": 1.0, "config_version": 1, "warnings": []}
    return {**running, "services": [service], "workers": [worker]}


def value(text: str, name: str, labels: str = "") -> str | None:
    found = re.search(rf"^mailbalancer_{name}{re.escape(labels)} (\S+)$", text, re.MULTILINE)
    return found[1] if found else None


def test_states_are_numbers_and_the_unknown_is_left_out() -> None:
    check = {"type": "smtp", "ago_s": 1.5, "took_s": 0.25, "detail": {"cert_days": 9}}
    text = metrics.exposition(
        report(server("a", up=False, availability="closed", check=check), server("b", up=None, ramp_percent=25))
    )
    a, b = (f'{{service="smtp",route="",real_server="{name}"}}' for name in "ab")
    assert value(text, "real_server_up", a) == "0"
    assert value(text, "real_server_ready", a) == "0"
    assert value(text, "real_server_check_duration_seconds", a) == "0.25"
    assert value(text, "real_server_certificate_remaining_seconds", a) == str(9 * 86400)
    assert value(text, "real_server_up", b) is None
    assert value(text, "real_server_ramp_ratio", b) == "0.25"
    assert value(text, "service_sessions_refused_total", '{service="smtp"}') == "3"


def test_a_name_cannot_leave_its_label() -> None:
    text = metrics.exposition(report(server("a"), name='x"} 1\nevil{a="\\'))
    assert 'service="x\\"} 1\\nevil{a=\\"\\\\"' in text
    assert "\nevil" not in text


BOUNDS_S = [0.01, 1.0]


def place(real_server: str, service: str = "smtp", **phases: tuple[list[int], float]) -> dict[str, Any]:
    return {"service": service, "route": "", "real_server": real_server, "phases": phases}


def timings(*places: dict[str, Any]) -> dict[str, Any]:
    return {"bounds_s": BOUNDS_S, "places": list(places)}


def test_times_of_a_service_are_those_of_its_places() -> None:
    text = metrics.exposition(
        report(server("a"), server("b")),
        timings=timings(
            place("", queue=([0, 1, 0], 0.5), total=([1, 0, 0], 0.001)),
            place("a", connect=([2, 0, 0], 0.01), total=([0, 1, 1], 9.0)),
            place("b", connect=([0, 0, 0], 0.0)),
        ),
    )
    name, all_of_it = "service_phase_seconds", '{service="smtp",phase="total"'
    found = [value(text, f"{name}_bucket", f'{all_of_it},le="{le}"}}') for le in ("0.01", "1", "+Inf")]
    assert found == ["1", "2", "3"]
    assert value(text, f"{name}_sum", all_of_it + "}") == "9.001"
    assert value(text, f"{name}_count", '{service="smtp",phase="queue"}') == "1"
    a = '{service="smtp",route="",real_server="a",phase="total"'
    assert value(text, "real_server_phase_seconds_bucket", a + ',le="1"}') == "1"
    assert 'real_server="b",phase' not in text, "nothing has happened there"


def test_many_real_servers_lose_their_buckets_and_keep_count_and_sum() -> None:
    names = [f"ex{number}" for number in range(metrics.MOST_DETAILED + 1)]
    text = metrics.exposition(
        report(*map(server, names)), timings=timings(*(place(name, total=([1, 0, 0], 0.001)) for name in names))
    )
    lines = [line for line in text.split("\n") if line.startswith("mailbalancer_real_server_phase_seconds_bucket")]
    assert len(lines) == len(names)
    assert all('le="+Inf"' in line for line in lines)
    assert value(text, "service_phase_seconds_bucket", '{service="smtp",phase="total",le="0.01"}') == str(len(names))


def full() -> dict[str, Any]:
    """Everything that a service and a real server can be told of."""
    check = {"type": "smtp", "ago_s": 1.5, "took_s": 0.25, "detail": {"cert_days": 9}}
    told = report(
        server(
            "a", check=check, way_back={"verdict": "bad"}, extended_protection={"binding": "match"},
            drain_ends_in_s=9.5, long_polls=3, requests=4, messages=1, messages_refused=0,
        )
    )  # fmt: skip
    source = {"class": "relay", "address": "10.0.0.1", "real_server": "a", "sessions": 4, "limit": 20}
    counts = dict.fromkeys(("1.3", "1.2", "older", "resumed", "failed"), 5)
    http = dict.fromkeys(("requests", "long_polls", "pinned", "reused", "pinned_reused"), 0)
    told["services"][0] |= {"handshakes": counts, "sources": [source], **http}
    return told


def test_what_is_known_of_tls_sources_and_the_way_back() -> None:
    text = metrics.exposition(full())
    a = '{service="smtp",route="",real_server="a"}'
    assert value(text, "real_server_way_back_good", a) == "0"
    assert value(text, "real_server_extended_protection_match", a) == "1"
    assert value(text, "real_server_drain_remaining_seconds", a) == "9.5"
    assert value(text, "service_tls_handshakes_total", '{service="smtp",version="1.3"}') == "5"
    assert value(text, "service_pinned_reused_total", '{service="smtp"}') == "0"
    source = '{service="smtp",class="relay",address="10.0.0.1",real_server="a"}'
    assert (value(text, "source_sessions", source), value(text, "source_sessions_limit", source)) == ("4", "20")


def test_promtool_finds_nothing_to_say() -> None:
    times = timings(place("a", connect=([1, 1, 1], 2.0)))
    text = metrics.exposition(full(), [{"name": "mail", "days_left": 3}], times)
    said = subprocess.run(
        [require("promtool"), "check", "metrics"], input=text.encode(), capture_output=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, b"")
    assert value(text, "certificate_remaining_seconds", '{certificate="mail"}') == str(3 * 86400)
