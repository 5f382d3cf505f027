"""Names of clients in the log of a real Postfix, as if they had come to it directly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.dns_server import SERVFAIL, NameServer
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.real_servers import Postfix
from tests.support.swaks import deliver
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


def test_postfix_logs_the_clients_name(mx1: Postfix, tmp_path: Path) -> None:
    port = free_port()
    with NameServer() as names:
        names.pointer("127.0.0.71", "printer.example.com.")
        names.records["printer.example.com.", "A"] = ["127.0.0.71"]
        names.pointer("127.0.0.72", "mail.example.com.")  # not confirmed
        names.records["73.0.0.127.in-addr.arpa.", "PTR"] = SERVFAIL
        mx = {
            "mode": "smtp",
            "listen": f"127.0.0.1:{port}",
            "real_servers": {"mx1": mx1.port},
            "client_address": "xclient",
            "reverse_names": {"resolvers": f"127.0.0.1:{names.port}"},
        }
        config = {"real_servers": {"mx1": "127.0.0.1"}, "services": {"mx": mx}}
        with Balancer(config, tmp_path):
            for source, name in {71: "printer.example.com", 72: "unknown", 73: "unknown"}.items():
                address = f"127.0.0.{source}"
                deliver(port, source=address)
                eventually(lambda name=name, address=address: f"client={name}[{address}]" in mx1.log_text())
