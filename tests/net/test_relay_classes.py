"""Source classes between machines: printers leave from the relay address and may relay, others never, whatever happens.

The servers relay for 10.0.2.6 alone, as an Exchange receive connector with one address in its RemoteIPRanges does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tests.support.callers import Callers
from tests.support.farm import SERVERS, Farm
from tests.support.netns import Machine
from tests.support.smtp_client import Talk
from tests.support.waiting import eventually

PORT = 25
RELAY, INTERNET = "10.0.2.6", "10.0.2.7"
RELOADS = 10
FAST = {"type": "smtp", "interval_s": 0.5, "timeout_s": 0.4, "rise": 1, "fall": 1}


def config(base: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The far network's machines are printers."""
    classes = [
        {"name": "relay", "clients": "10.9.0.0/24", "address": RELAY},
        {"name": "internet", "clients": "any", "address": INTERNET},
    ]
    service = {
        "mode": "smtp",
        "listen": f"10.0.1.1:{PORT}",
        "real_servers": ["s1", "s2"],
        "check": FAST,
        "ramp_s": 0,
        "source": {"classes": classes, "per_source_limit": 20},
        **more,
    }
    return {**base, "services": {"mx": service}}


def relays(farm: Farm) -> None:
    """A server on each machine, and the classes' addresses on the balancer."""
    for address in (RELAY, INTERNET):
        farm.balancer.address("eth1", f"{address}/24")
    for name, machine in farm.servers.items():
        machine.python("tests.support.relay_server", name, str(farm.log(name)), str(PORT), RELAY)
        eventually(functools.partial(_listens, machine), what=f"{name} listens")


def _listens(machine: Machine) -> bool:
    machine.connect("127.0.0.1", PORT, 1.0).close()
    return True


def send_outside(machine: Machine, sender: bytes) -> Callable[[], str]:
    """A call that sends one message to a foreign domain; the answer is what became of it."""

    def call() -> str:
        client = Talk(machine.connect("10.0.1.1", PORT, 10.0))
        try:
            client.begin()
            assert client.say(b"MAIL FROM:<%b>" % sender).startswith(b"250")
            verdict = client.say(b"RCPT TO:<you@elsewhere.example>")
            if verdict.startswith(b"550 5.7.54 "):
                return "denied"
            assert client.say(b"DATA").startswith(b"354")
            client.sock.sendall(b"Subject: x\r\n\r\nx\r\n.\r\n")
            assert client.reply().startswith(b"250")
            return "sent"
        finally:
            client.sock.close()

    return call


def test_printers_relay_and_others_never_under_load_and_reload(farm: Farm, base: dict[str, Any]) -> None:
    relays(farm)
    with farm.balanced(config(base)) as balancer:
        eventually(lambda: all(balancer.real_server("mx", name)["up"] for name in SERVERS), what="both are up")
        printers = Callers(send_outside(farm.far, b"printer@example.com"), 4)
        strangers = Callers(send_outside(farm.client, b"stranger@example.net"), 4)
        with printers, strangers:
            for number in range(RELOADS):
                balancer.reload(config(base, idle_timeout_s=300 + number))
                printers.more(20)
                strangers.more(20)
        assert (printers.failures, strangers.failures) == ([], [])
        assert set(printers.answers) == {"sent"}
        assert set(strangers.answers) == {"denied"}
        lines = [line.split() for name in SERVERS for line in farm.log(name).read_text().splitlines()]
        assert {tuple(line) for line in lines} == {
            (RELAY, "printer@example.com", "taken"),
            (INTERNET, "stranger@example.net", "denied"),
        }
        assert len(lines) >= 2 * 20 * RELOADS
        assert all(farm.log(name).read_text() for name in SERVERS), "both servers had work"
        classes = {line.partition("class=")[2].split()[0] for line in _of_messages(balancer.log_text())}
        assert classes == {"relay"}, "messages that went through"


def _of_messages(log: str) -> list[str]:
    return [line for line in log.splitlines() if " message service=mx " in line]
