"""Mail and web servers from Debian, each an instance of its own: private folders, free ports, nothing of the system's.

Decides: how such an instance is configured, when it counts as ready, and that none of its processes outlives the test.
Refuses to know: the balancer. What a server says of its clients is in its log: `log_text()`.

They run as root, because they become users of their own (Postfix refuses anything else); `require_root` says so.

    with Postfix("mx1") as mx1:
        mx1.port            # speaks SMTP
        mx1.proxied_port    # expects a PROXY header first
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.certs import Issued
from tests.support.ports import free_port
from tests.support.tools import cannot_run, require, require_root
from tests.support.waiting import eventually

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


class RealServer:
    """One instance. It can be stopped and started again: folder, ports and log stay.

    Attributes:
        name: what it calls itself.
        folder: everything it reads and writes, readable for users that it becomes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"mb-{name}-", dir="/tmp"))
        self.folder.chmod(0o755)  # its processes give root up and still look for their files
        self.log_file = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """What is started; it stays in the foreground."""
        raise NotImplementedError

    def listening_ports(self) -> Sequence[int]:
        """Ports that must accept connections before it is ready."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            eventually(self._ready, START_TIMEOUT_S, f"{self.name} listens")
        except BaseException as error:
            self.kill()
            if isinstance(error, AssertionError | RuntimeError):
                raise AssertionError(f"{self.name} did not start: {error}\n{self.said()}") from None
            raise

    def stop(self) -> None:
        """Ask it to stop, and end what is left of it."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
            self.kill()

    def kill(self) -> None:
        """End every process of it now, as a machine that loses its power does."""
        if self._process is None:
            return
        session = self._process.pid
        for pid in _of_session(session):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        eventually(lambda: not _of_session(session), what=f"no process of {self.name} is left")
        self._process = None

    def log_text(self) -> str:
        """All that it has logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def said(self) -> str:
        """Log and output, for a test that failed."""
        return (self.folder / "output").read_text(errors="replace") + self.log_text()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"it ended with exit code {code}")
        return all(_is_listened_on(port) for port in self.listening_ports())


def _of_session(session: int) -> list[int]:
    """Living processes of a session: an instance starts others, and they stay in the session it was given."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, sid = stat.read_text(errors="replace").rpartition(") ")[2].split()[:4]
            if int(sid) == session and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _is_listened_on(port: int) -> bool:
    """Asked of the kernel, because a connection to see whether it answers would stand in the server's log."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(fields[3] == "0A" and fields[1].endswith(f":{port:04X}") for fields in sockets)


class Postfix(RealServer):
    """Takes mail for example.com and throws it away.

    `proxied_port` wants a PROXY header first, `tls_port` begins with TLS. XCLIENT from 127.0.0.1 is believed.

    Args:
        certificate: offers STARTTLS with it; without one, `tls_port` is closed.
    """

    LARGEST = 80 * 1024 * 1024

    def __init__(self, name: str, certificate: Issued | None = None) -> None:
        require_root("Postfix changes to users of its own")
        self._master = str(Path(_asked(require("postconf"), "-h", "daemon_directory")) / "master")
        super().__init__(name)
        self.port, self.proxied_port = free_port(), free_port()
        self.tls_port = free_port() if certificate is not None else 0
        self._etc, self._queue, data = (self.folder / part for part in ("etc", "queue", "data"))
        for folder in (self._etc, self._queue, data):
            folder.mkdir()
        shutil.chown(data, "postfix")
        _make_queue(self._queue)
        (self._etc / "main.cf").write_text(self._main(data, certificate))
        (self._etc / "master.cf").write_text(self._services())

    def command(self) -> Sequence[str]:
        # it closes every descriptor it might have inherited, one by one: where a million are allowed that takes seconds
        return ["sh", "-c", f"ulimit -n 4096; exec {self._master} -c {self._etc} -s"]

    def listening_ports(self) -> Sequence[int]:
        ports = [self.port, self.proxied_port]
        return [*ports, self.tls_port] if self.tls_port else ports

    def clients(self) -> list[str]:
        """The address of each client that gave it a message, in order."""
        lines = [line for line in self.log_text().splitlines() if ": client=" in line]
        return [line.rpartition("[")[2].rstrip("]") for line in lines]

    def _main(self, data: Path, certificate: Issued | None) -> str:
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self._queue,
            "data_directory": data,
            "maillog_file": self.log_file,
            "maillog_file_prefixes": self.folder,
            "myhostname": f"{self.name}.example.com",
            "mydestination": "example.com",
            "mynetworks": "127.0.0.1/32",
            "local_recipient_maps": "",
            "local_transport": "discard:",
            "default_transport": "discard:",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "smtpd_peername_lookup": "no",  # nothing here may ask a name server
            "smtpd_authorized_xclient_hosts": "127.0.0.1",
            "smtpd_recipient_restrictions": "permit_auth_destination, reject",
            # a load of many messages is what some tests are about
            "smtpd_client_connection_count_limit": "0",
            "message_size_limit": self.LARGEST,
        }
        if certificate is not None:
            settings |= {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_chain_files": certificate.pem,
                "smtpd_tls_session_cache_database": "",
                "smtpd_tls_loglevel": "1",
            }
        return "".join(f"{key} = {value}\n" for key, value in settings.items())

    def _services(self) -> str:
        proxied = "smtpd -o smtpd_upstream_proxy_protocol=haproxy -o syslog_name=postfix/proxied"
        tls = f"127.0.0.1:{self.tls_port} inet n - n - - smtpd -o smtpd_tls_wrappermode=yes\n"
        return (
            f"127.0.0.1:{self.port} inet n - n - - smtpd\n"
            f"127.0.0.1:{self.proxied_port} inet n - n - - {proxied}\n" + (tls if self.tls_port else "") + _MASTER
        )


#: The services without which a message is not taken.
_MASTER = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
discard unix - - n - - discard
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""
_QUEUES = "active bounce corrupt defer deferred flush hold incoming private saved trace"


def _make_queue(queue: Path) -> None:
    """The folders that `postfix check` would make, which takes seconds."""
    (queue / "pid").mkdir()
    for name in _QUEUES.split():
        (queue / name).mkdir(0o700)
        shutil.chown(queue / name, "postfix")
    for name, mode in (("public", 0o710), ("maildrop", 0o730)):
        (queue / name).mkdir()
        shutil.chown(queue / name, "postfix", "postdrop")
        (queue / name).chmod(mode)


class Dovecot(RealServer):
    """IMAP, POP3 and submission for anybody who knows PASSWORD; the `proxied_…` ports want a PROXY header first.

    Args:
        certificate: what `imaps_port` and `pop3s_port` show, and STARTTLS.
        relay_port: where submission hands messages on; 0: no submission.
    """

    PASSWORD = "correct-horse"

    def __init__(self, name: str, certificate: Issued, relay_port: int = 0) -> None:
        require_root("Dovecot changes to users of its own")
        self._dovecot = require("dovecot")
        for package, program in (("imapd", "imap"), ("pop3d", "pop3"), ("submissiond", "submission")):
            if not (Path("/usr/lib/dovecot") / program).exists() and (program != "submission" or relay_port):
                cannot_run(f"dovecot has no {program} (Debian: apt-get install dovecot-{package})")
        super().__init__(name)
        self._relay_port = relay_port
        self.imap_port, self.proxied_imap_port, self.imaps_port = (free_port() for _ in range(3))
        self.pop3_port, self.proxied_pop3_port, self.pop3s_port = (free_port() for _ in range(3))
        self.submission_port, self.proxied_submission_port = free_port(), free_port()
        for part in ("run", "state", "mail"):
            (self.folder / part).mkdir()
        shutil.chown(self.folder / "mail", "nobody", "nogroup")
        self._config = self.folder / "dovecot.conf"
        self._config.write_text(self._settings(certificate) + self._services())

    def command(self) -> Sequence[str]:
        return [self._dovecot, "-F", "-c", str(self._config)]

    def listening_ports(self) -> Sequence[int]:
        ports = [self.imap_port, self.proxied_imap_port, self.imaps_port]
        ports += [self.pop3_port, self.proxied_pop3_port, self.pop3s_port]
        return [*ports, self.submission_port, self.proxied_submission_port] if self._relay_port else ports

    def logins(self, protocol: str) -> list[str]:
        """The client's address of each login so far: `imap`, `pop3` or `submission`."""
        lines = [line for line in self.log_text().splitlines() if f"{protocol}-login: Info: Login:" in line]
        return [line.partition("rip=")[2].partition(",")[0] for line in lines]

    def _settings(self, certificate: Issued) -> str:
        return f"""\
protocols = imap pop3{" submission" if self._relay_port else ""}
base_dir = {self.folder}/run
state_dir = {self.folder}/state
log_path = {self.log_file}
listen = 127.0.0.1
ssl = yes
ssl_cert = <{certificate.chain}
ssl_key = <{certificate.key}
ssl_client_ca_dir =
disable_plaintext_auth = no
auth_mechanisms = plain login cram-md5
haproxy_trusted_networks = 127.0.0.1/32
login_trusted_networks = 127.0.0.1/32
login_greeting = {self.name} ready
hostname = {self.name}.example.com
first_valid_uid = 1
mail_location = maildir:{self.folder}/mail/%u
default_vsz_limit = 0
submission_relay_host = 127.0.0.1
submission_relay_port = {self._relay_port}
submission_relay_trusted = yes
passdb {{
  driver = static
  args = password={self.PASSWORD}
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={self.folder}/mail/%u allow_all_users=yes
}}
"""

    def _services(self) -> str:
        imap = [
            _inet("imap", self.imap_port),
            _inet("imap_proxied", self.proxied_imap_port, "haproxy = yes"),
            _inet("imaps", self.imaps_port, "ssl = yes"),
        ]
        pop3 = [
            _inet("pop3", self.pop3_port),
            _inet("pop3_proxied", self.proxied_pop3_port, "haproxy = yes"),
            _inet("pop3s", self.pop3s_port, "ssl = yes"),
        ]
        submission = [
            _inet("submission", self.submission_port),
            _inet("submission_proxied", self.proxied_submission_port, "haproxy = yes"),
        ]
        wanted = {"imap": imap, "pop3": pop3} | ({"submission": submission} if self._relay_port else {})
        return "".join(f"service {name}-login {{\n{''.join(inets)}}}\n" for name, inets in wanted.items())


def _inet(name: str, port: int, more: str = "") -> str:
    return f"  inet_listener {name} {{\n    port = {port}\n    {more}\n  }}\n"


class Nginx(RealServer):
    """A web server that answers every request with its name; behind a PROXY header, with the address in it.

    Args:
        certificate: what `https_port` shows.
    """

    def __init__(self, name: str, certificate: Issued) -> None:
        self._nginx = require("nginx")
        super().__init__(name)
        self.http_port, self.https_port = free_port(), free_port()
        self.proxied_http_port, self.proxied_https_port = free_port(), free_port()
        self._config = self.folder / "nginx.conf"
        self._config.write_text(f"""\
daemon off;
pid {self.folder}/pid;
error_log {self.log_file} info;
worker_processes 1;
events {{}}
http {{
  access_log {self.log_file};
  client_body_temp_path {self.folder}/body;
  proxy_temp_path {self.folder}/proxy;
  fastcgi_temp_path {self.folder}/fastcgi;
  uwsgi_temp_path {self.folder}/uwsgi;
  scgi_temp_path {self.folder}/scgi;
  server {{
    listen 127.0.0.1:{self.http_port};
    listen 127.0.0.1:{self.https_port} ssl;
    ssl_certificate {certificate.chain};
    ssl_certificate_key {certificate.key};
    default_type text/plain;
    location / {{ return 200 "{self.name} $ssl_server_name\\n"; }}
    location = /broken {{ return 500 "broken\\n"; }}
  }}
  server {{
    listen 127.0.0.1:{self.proxied_http_port} proxy_protocol;
    listen 127.0.0.1:{self.proxied_https_port} ssl proxy_protocol;
    ssl_certificate {certificate.chain};
    ssl_certificate_key {certificate.key};
    default_type text/plain;
    location / {{ return 200 "$proxy_protocol_addr\\n"; }}
  }}
}}
""")

    def command(self) -> Sequence[str]:
        return [self._nginx, "-c", str(self._config), "-e", str(self.log_file)]

    def listening_ports(self) -> Sequence[int]:
        return [self.http_port, self.https_port, self.proxied_http_port, self.proxied_https_port]


def _asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def speaks(port: int, greeting: bytes) -> bool:
    """Whether somebody on this port of 127.0.0.1 begins with these bytes."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        return client.recv(len(greeting)) == greeting
