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


def test_promtool_finds_nothing_to_say() -> None:
    text = metrics.exposition(report(server("a")), [{"name": "mail", "days_left": 3}])
    said = subprocess.run(
        [require("promtool"), "check", "metrics"], input=text.encode(), capture_output=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, b"")
    assert value(text, "certificate_remaining_seconds", '{certificate="mail"}') == str(3 * 86400)
