"""What docs/monitoring ships fits what /metrics says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from mailbalancer.admin import metrics
from tests.support.tools import require

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
WRITTEN = set(
    re.findall(
        r'"((?:service|real_server|worker|source)_\w+)",? ', Path(metrics.__file__).read_text().replace("\n", " ")
    )
)
KNOWN = {
    *WRITTEN,
    *(f"{name}_{part}" for name in WRITTEN if name.endswith("_phase_seconds") for part in ("bucket", "sum", "count")),
    *("certificate_remaining_seconds", "build_info", "uptime_seconds", "config_version", "warnings"),
}


def named(text: str) -> set[str]:
    return {name.removeprefix("mailbalancer_") for name in re.findall(r"\bmailbalancer_[a-z_]+", text)}


def test_the_rules_pass_promtool() -> None:
    said = subprocess.run(
        [require("promtool"), "check", "rules", FOLDER / "alerts.yaml"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_rules_dashboard_and_page_name_metrics_that_exist() -> None:
    for file in ("alerts.yaml", "dashboard.json", "README.md"):
        names = named((FOLDER / file).read_text())
        assert len(names) > 5
        assert names <= KNOWN, f"{file}: {names - KNOWN}"


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers) > 10


def test_rules_say_what_to_do(tmp_path: Path) -> None:
    """A service whose last real server goes wakes somebody; one of two that goes does not."""
    test = tmp_path / "test.yaml"
    series = [
        {
            "series": f'mailbalancer_real_server_ready{{instance="lb",service="{s}",route="",real_server="{r}"}}',
            "values": v,
        }
        for s, r, v in (("gone", "a", "1 0x9"), ("gone", "b", "0x10"), ("fine", "a", "1x10"), ("fine", "b", "1 0x9"))
    ]
    expected = {
        "exp_labels": {"severity": "critical", "instance": "lb", "service": "gone", "route": ""},
        "exp_annotations": {
            "summary": "gone: no real server is ready",
            "description": "New sessions are refused. `mailbalancer status` says why each real server is not ready.",
        },
    }
    del expected["exp_labels"]["route"]  # an empty label is none
    alert = {"eval_time": "5m", "alertname": "MailServiceDown", "exp_alerts": [expected]}
    case = {"interval": "1m", "input_series": series, "alert_rule_test": [alert]}
    test.write_text(json.dumps({"rule_files": [str(FOLDER / "alerts.yaml")], "tests": [case]}))
    said = subprocess.run([require("promtool"), "test", "rules", test], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
