"""`mailbalancer capture`: both sides of a client's connections, in a file and in words."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.l4.pcap import packet, records
from tests.support.farm import PORT, SERVERS, VIP, Farm, Segment, Talk
from tests.support.netns import Machine, World
from tests.support.program import Balancer, run_cli
from tests.support.tools import require
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 1.0, "timeout_s": 2.0, "rise": 1, "fall": 3}
ONE = {"s1": SERVERS["s1"]}


def config(forward: str, servers: dict[str, str], **more: Any) -> dict[str, Any]:
    service: dict[str, Any] = {"real_servers": [*servers], "check": FAST, "ramp_s": 0, **more}
    if forward in ("client", "balancer"):
        service |= {"mode": "tcp", "listen": f"10.0.1.1:{PORT}", "source": {"use": forward}}
    else:
        service |= {"mode": "l4", "listen": f"{VIP}:{PORT}", "forward": forward}
    return {"real_servers": servers, "services": {"mail": service}}


class Running:
    """A capture on the balancer that has begun."""

    def __init__(self, machine: Machine, balancer: Balancer, *words: str, seconds: float = 30.0) -> None:
        require("tcpdump")
        options = ["--seconds", str(seconds), "--json", "-c", str(balancer.config_file), *words]
        command = [sys.executable, "-m", "mailbalancer", "capture", "mail", *options]
        self._errors = balancer.folder / "capture.err"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(machine.inside(*command), stdout=subprocess.PIPE, stderr=errors)
        eventually(self._began, 15.0, "the capture begins")

    def _began(self) -> bool:
        assert self._process.poll() is None, self.errors()
        return "capturing on" in self.errors()

    def errors(self) -> str:
        """What it has told so far, beside its result."""
        return self._errors.read_text()

    def end(self) -> dict[str, Any]:
        """Ctrl-C; what it said."""
        self._process.send_signal(signal.SIGINT)
        said, _ = self._process.communicate(timeout=20)
        assert self._process.returncode == 0, self.errors()
        found: dict[str, Any] = json.loads(said)
        return found


def test_the_puzzle_in_words(world: World, tmp_path: Path) -> None:
    """Nobody checks, so nobody has probed, and the client's address is used without the gateway."""
    farm = Farm(world, tmp_path, gateway=False)
    farm.serve()
    with farm.balanced(config("transparent", ONE, check="none")) as balancer:
        running = Running(farm.balancer, balancer, "--client", "10.9.0.5")
        with pytest.raises(OSError, match="timed out"):
            Talk(farm.far, VIP, timeout_s=1.5)
        seen = running.end()
    assert seen["sentences"][:2] == [
        "SYN from 10.9.0.5 to 10.0.1.100:25 came 2 times, no answer went back",
        "SYN to s1 10.0.2.11:25 sent 2 times with the client's address, no answer came back here",
    ]
    assert "its gateway must be the balancer" in seen["sentences"][2]
    assert seen["devices"] == ["eth0", "eth1"]


@pytest.mark.parametrize("forward", ["transparent", "snat", "client", "balancer"])
def test_both_sides_in_one_file(farm: Farm, tmp_path: Path, forward: str) -> None:
    farm.serve()
    file = tmp_path / "client.pcap"
    with farm.balanced(config(forward, ONE)) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        if forward in ("transparent", "client"):
            eventually(lambda: _is_good(balancer), 20.0, "s1 is known to answer through us")
        running = Running(farm.balancer, balancer, "--client", "10.9.0.5", "--write", str(file))
        vip = VIP if forward in ("transparent", "snat") else "10.0.1.1"
        other, talk = Talk(farm.client, vip), Talk(farm.far, vip)
        for number in range(8):
            assert talk.say(f"hello {number}") == f"s1 hello {number}"
        if forward == "balancer":
            eventually(lambda: "goes on to s1 from port" in running.errors(), 10.0, "the session is found")
        talk.close()
        other.close()
        seen = running.end()
    whose = "the client's address" if forward in ("transparent", "client") else "the balancer's address 10.0.2.1"
    assert f"1 connection from 10.9.0.5 to {vip}:25 came about" in seen["sentences"][0]
    assert f"s1 10.0.2.11:25 answered 1 connection with {whose}" in seen["sentences"][1]
    packets = [packet(record) for record in records(file.read_bytes())]
    assert len(packets) == seen["packets"] > 20
    addresses = {p.source for p in packets if p} | {p.destination for p in packets if p}
    assert {"10.9.0.5", vip, "10.0.2.11"} <= addresses
    assert "10.0.1.5" not in addresses
    assert file.stat().st_mode & 0o777 == 0o600


def _is_good(balancer: Balancer) -> bool:
    way = balancer.real_server("mail", "s1")["way_back"]
    return way is not None and way["verdict"] == "good"


def test_sessions_of_mail_and_web_say_from_which_port_they_go_on(farm: Farm) -> None:
    """Their server is silent, so they wait for it."""
    farm.serve()
    silent = farm.servers["s1"].call(lambda: socket.create_server(("10.0.2.11", 2525)))
    shared = {"check": {**FAST, "port": PORT}, "ramp_s": 0, "real_servers": {"s1": 2525}}
    services = {
        "mail": {"mode": "smtp", "listen": f"10.0.1.1:{PORT}", "server_tls": {"starttls": "none"}, **shared},
        "web": {"mode": "http", "listen": "10.0.1.1:80", **shared},
    }
    with silent, farm.balanced({"real_servers": ONE, "services": services}) as balancer:
        mail, web = farm.far.connect("10.0.1.1", PORT), farm.far.connect("10.0.1.1", 80)
        web.sendall(b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n")
        for name in services:
            listed = eventually(lambda n=name: _left_from(balancer, n), 15.0, f"a session of {name} has its server")  # type: ignore[misc]
            assert listed.startswith("10.0.2.1:")
        mail.close()
        web.close()


def _left_from(balancer: Balancer, service: str) -> str:
    sessions = balancer.command("sessions", service=service)["sessions"]
    return str(sessions[0]["left_from"]) if sessions else ""


def test_a_tunnel_in_words(farm: Farm) -> None:
    """Nobody ends it: the frames go on into it, and the client asks again."""
    farm.router.plug(farm.world.switch("site"), "eth2", "10.8.0.1/24")
    with farm.balanced(config("tunnel", {"s1": "10.8.0.11"}, check="none")) as balancer:
        running = Running(farm.balancer, balancer, "--client", "10.9.0.5")
        with pytest.raises(OSError, match="timed out"):
            Talk(farm.far, VIP, timeout_s=1.5)
        seen = running.end()
    assert "mbvxlan4" in seen["devices"]
    assert "2 packets of 1 connection passed on to s1, SYN 2 times among them" in seen["sentences"]
    assert seen["sentences"][-1].startswith("the client asks again, so no answer of s1 reaches it")


def test_direct_server_return_in_words(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    segment.serve()
    with segment.balanced(config("dsr", {"s1": "10.0.1.11"})) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        running = Running(segment.balancer, balancer, "--client", "10.9.0.5")
        assert Talk(segment.far, VIP).say("hello") == "s1 hello"
        good = running.end()
        assert any("passed on to s1, SYN once" in line for line in good["sentences"])
        assert not any("asks again" in line for line in good["sentences"])


def test_what_is_missing_is_named(farm: Farm, tmp_path: Path) -> None:
    balancer = farm.balanced(config("snat", ONE))
    wrong = run_cli("capture", "mail", "--client", "mail.example.com", "-c", str(balancer.config_file))
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "mailbalancer: 'mail.example.com' is not an IP address; name the client by its address\n",
    )
    there = farm.balancer.attempt(
        *(
            sys.executable,
            "-m",
            "mailbalancer",
            "capture",
            "mail",
            "--client",
            "10.9.0.5",
            "--write",
            "/nowhere/x.pcap",
        ),
        *("-c", str(balancer.config_file)),
    )
    assert "/nowhere/x.pcap cannot be written: No such file or directory" in there.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_the_right_to_capture(farm: Farm, tmp_path: Path) -> None:
    require("tcpdump")
    script = (
        "import os, sys; from mailbalancer.host.tcpdump import capturing; os.setresuid(65534, 65534, 65534);\n"
        "from mailbalancer.host.commands import HostError\n"
        "try:\n    with capturing(['eth0'], 'icmp'): pass\nexcept HostError as error: print(error)"
    )
    assert "capturing needs root, or CAP_NET_RAW" in farm.balancer.run(sys.executable, "-c", script)
