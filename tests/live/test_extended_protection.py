"""Extended Protection behind an Exchange profile: nginx plays a server with our certificate, and one with another."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.real_servers import Nginx
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

NAME = "mail.example.com"


def test_a_mismatch_is_told_before_users_find_out(authority: Authority, tmp_path: Path) -> None:
    ours, theirs = authority.issue(NAME), authority.issue(NAME)
    with Nginx("ex1", ours) as ex1, Nginx("ex2", theirs) as ex2:
        service: dict[str, Any] = {
            "profile": "exchange-2019-https",
            "listen": f"127.0.0.1:{free_port()}",
            "host": NAME,
            "certificate": "mail",
            "ca_file": str(authority.file),
            "check": {"type": "https", "host": NAME, "interval_s": 0.5, "verify": {"ca": str(authority.file)}},
            "real_servers": {"ex1": ex1.https_port, "ex2": ex2.https_port},
        }
        config = {
            "certificates": {"mail": str(ours.pem)},
            "real_servers": dict.fromkeys(("ex1", "ex2"), "127.0.0.1"),
            "services": {"owa": service},
        }
        with Balancer(config, tmp_path) as balancer:

            def binding(server: str) -> str:
                return str(balancer.real_server("owa", server)["extended_protection"]["binding"])

            eventually(lambda: binding("ex1") == "match", what="the same certificate matches")
            eventually(lambda: binding("ex2") == "MISMATCH", what="another one does not")
            assert balancer.real_server("owa", "ex2")["up"] is True, "health is another matter"
            page = " ".join(balancer.cli("status").stdout.split())
            assert "Extended Protection: ex1 match, ex2 MISMATCH" in page
            assert "ex2 shows another certificate" in page
            alarms = [event for event in balancer.command("events")["events"] if "Extended Protection" in event["text"]]
            assert alarms
            assert {event["level"] for event in alarms} == {"error"}
            assert all("ex2" in event["text"] for event in alarms)
            shutil.copyfile(ours.chain, theirs.chain)
            shutil.copyfile(ours.key, theirs.key)
            assert ex2._process is not None
            ex2._process.send_signal(signal.SIGHUP)
            eventually(lambda: binding("ex2") == "match", what="with the same certificate it matches too")
            assert "ex2 shows the certificate that clients are served again" in balancer.log_text()
