"""What settings mean to each other, and every default."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.model import Config, Endpoint
from tests.support.certs import Authority

Load = Callable[..., Config]
Told = Callable[..., list[str]]

HEAD = "real_servers: {ex1: 10.0.2.11, ex2: {address: 10.0.2.12, weight: 2, max_sessions: 5000}}\nservices:\n"


def only(config: Config) -> model.Service:
    (service,) = config.services
    return service


# defaults


def test_the_smallest_file_has_safe_defaults(load: Load, tmp_path: Path) -> None:
    config = load(HEAD + "  smtp: {mode: tcp, listen: 10.0.1.100:25, real_servers: [ex1, ex2]}\n", tmp_path)
    service = only(config)
    assert service == model.Service(
        name="smtp",
        mode=model.Mode.TCP,
        listen=(Endpoint("10.0.1.100", 25),),
        pool=model.Pool(
            service="smtp",
            route="",
            members=(
                model.Member("ex1", Endpoint("10.0.2.11", 25)),
                model.Member("ex2", Endpoint("10.0.2.12", 25), weight=2.0),
            ),
        ),
        idle_timeout_s=330.0,
        line=3,
    )
    assert config.real_servers == (
        model.RealServer("ex1", "10.0.2.11", line=1),
        model.RealServer("ex2", "10.0.2.12", 2.0, 5000, line=1),
    )
    assert config.workers == min(len(os.sched_getaffinity(0)), 64)
    assert config.control_socket == "/run/mailbalancer/control.sock"
    assert config.state_file == "/var/lib/mailbalancer/state.json"
    assert config.user == "auto"
    assert config.log == model.Logging()
    assert config.warnings == ()
    assert config.path == "x.yaml"


@pytest.mark.parametrize(
    ("port", "seconds"),
    [(25, 330), (587, 330), (143, 1860), (995, 1860), (443, 3700), (135, 3600), (59531, 3600), (8025, 660)],
)
def test_the_idle_timeout_follows_the_port(load: Load, port: int, seconds: float) -> None:
    text = HEAD + f"  s: {{mode: tcp, listen: ':{port}', real_servers: [ex1, ex2]}}\n"
    assert only(load(text)).idle_timeout_s == seconds


def test_everything_that_can_be_written_arrives(load: Load, tmp_path: Path) -> None:
    config = load(
        """
        version: 1
        workers: 3
        admin: {tokens_file: tokens}
        control_socket: run/control.sock
        state_file: ""
        user: ""
        log: {to: syslog, format: json, sessions: no, level: debug, syslog_address: /run/log}
        stop_timeout_s: 5
        real_servers: {a: 10.0.0.1, b: "2001:db8::2"}
        services:
          s:
            mode: tcp
            listen: ["*:2525", "[2001:db8::100]:25"]
            real_servers: {a: 26, b: {port: 27, weight: 0.5, priority: 3, max_sessions: 7, state: draining}}
            schedule: priority
            persist: {by: source, group: g, timeout_s: 60, max_entries: 10, warn_share: 0.5}
            ramp_s: 0
            drain_s: 1.5
            drop_after_drain: yes
            connect_timeout_s: 1
            idle_timeout_s: 10
            max_sessions: 100
            queue: {size: 5, timeout_s: 2}
            allow: [10.0.0.0/8, "2001:db8::/32"]
            deny: 10.9.9.9
            proxy_protocol: {accept_from: [10.1.0.0/16], send: v2, header_timeout_s: 3}
            buffer_bytes: 8192
            check: {type: tcp, interval_s: 3, timeout_s: 2, rise: 4, fall: 5, send: "A\\r\\n", expect: B}
        """,
        tmp_path,
    )
    network = ipaddress.ip_network
    service = only(config)
    assert service == model.Service(
        name="s",
        mode=model.Mode.TCP,
        listen=(Endpoint("0.0.0.0", 2525), Endpoint("::", 2525), Endpoint("2001:db8::100", 25)),
        pool=model.Pool(
            service="s",
            route="",
            members=(
                model.Member("a", Endpoint("10.0.0.1", 26)),
                model.Member("b", Endpoint("2001:db8::2", 27), 0.5, 3, 7, model.AdminState.DRAINING),
            ),
            schedule=model.Schedule.PRIORITY,
            persist=model.Persist("source", "g", 60.0, 10, 0.5),
            check=model.Check("tcp", 3.0, 2.0, 4, 5, 0, "v2", model.TcpCheck(b"A\r\n", b"B")),
            ramp_s=0.0,
            drain_s=1.5,
            drop_after_drain=True,
        ),
        connect_timeout_s=1.0,
        idle_timeout_s=10.0,
        max_sessions=100,
        queue=model.Queue(5, 2.0),
        allow=(network("10.0.0.0/8"), network("2001:db8::/32")),
        deny=(network("10.9.9.9/32"),),
        proxy_protocol=model.ProxyProtocol((network("10.1.0.0/16"),), "v2", 3.0),
        buffer_bytes=8192,
        line=11,
    )
    assert config.workers == 3
    assert config.control_socket == str(tmp_path / "run/control.sock")
    assert config.state_file == ""
    assert config.user == ""
    assert config.log == model.Logging("syslog", "json", False, "debug", "/run/log")
    assert config.admin == model.Admin(None, str(tmp_path / "tokens"))
    assert config.stop_timeout_s == 5.0


def test_short_forms(load: Load) -> None:
    service = only(load(HEAD + "  s: {mode: tcp, listen: ':25', real_servers: {ex1: , ex2: 26}, persist: source,"
                               " check: none, queue: 9, real_server_port: 2525}\n"))  # fmt: skip
    assert [str(member.endpoint) for member in service.pool.members] == ["10.0.2.11:2525", "10.0.2.12:26"]
    assert service.pool.persist == model.Persist(group="s")
    assert service.pool.check == model.Check(type="none")
    assert service.queue == model.Queue(9, 10.0)


def test_persist_none_is_no_persistence(load: Load) -> None:
    text = HEAD + "  s: {mode: tcp, listen: ':25', real_servers: [ex1, ex2], persist: none}\n"
    assert only(load(text)).pool.persist is None


# routes of mode tls

ROUTES = """
real_servers: {a: 10.0.0.1, b: 10.0.0.2, c: 10.0.0.3}
services:
  s:
    mode: tls
    listen: 10.0.1.100:443
    real_servers: [a, b]
    persist: tls_session_id
    routes:
      - {host: "*.example.com"}
      - {name: own, hosts: [Mail.example.com, owa.example.com], real_servers: {c: 8443}, schedule: source_hash}
      - {host: plain.example.com, persist: none, check: {type: tls, port: 444}}
"""


def test_routes_have_what_the_service_has_except_what_they_say(load: Load) -> None:
    service = only(load(ROUTES))
    any_name, own, plain = service.routes
    assert any_name.name == "wildcard.example.com"
    assert any_name.hosts == ("*.example.com",)
    assert any_name.pool.members == service.pool.members
    assert any_name.pool.persist == service.pool.persist == model.Persist("tls_session_id", "s")
    assert own.hosts == ("mail.example.com", "owa.example.com")
    assert own.pool == model.Pool(
        "s",
        "own",
        (model.Member("c", Endpoint("10.0.0.3", 8443)),),
        model.Schedule.SOURCE_HASH,
        model.Persist("tls_session_id", "s/own"),
        model.Check(),
    )
    assert plain.pool.persist is None
    assert plain.pool.check == model.Check(type="tls", port=444, options=model.TlsCheck())
    assert service.unknown_sni == "default"


def test_routes_may_be_a_mapping(load: Load) -> None:
    text = "real_servers: {a: 10.0.0.1}\nservices:\n  s: {mode: tls, listen: ':443', unknown_sni: refuse, routes: "
    service = only(load(text + "{web: {host: w.example.com, real_servers: [a]}}}\n"))
    assert service.pool.members == ()
    assert [(route.name, route.pool.members[0].real_server) for route in service.routes] == [("web", "a")]


@pytest.mark.parametrize(
    ("routes", "line"),
    [
        ("[{host: a.b}, {name: x, host: A.B}]", "routes[1].host: 'a.b' already goes to route 'a.b'"),
        ("[{name: x, host: a.b}, {name: x, host: c.d}]", "routes[1]: two routes are called 'x'; give one of them a"),
        ("[{host: a.b, real_servers: [nobody]}]", "routes[0].real_servers.nobody: 'nobody' is not in real_servers"),
        ("[{host: []}]", "routes[0].host: is empty; name at least one"),
        ("{web: {host: a_*.b}}", "routes.web.host: 'a_*.b': a * stands only for the whole first label"),
    ],
)
def test_wrong_routes(told: Told, routes: str, line: str) -> None:
    (problem,) = told(HEAD + f"  s: {{mode: tls, listen: ':443', real_servers: [ex1, ex2], routes: {routes}}}\n")
    assert problem.startswith(f"x.yaml:3: services.s.{line}")


def test_a_tls_service_without_real_servers_must_refuse_unknown_names(told: Told) -> None:
    (problem,) = told(HEAD + "  s: {mode: tls, listen: ':443', routes: [{host: a.b, real_servers: [ex1, ex2]}]}\n")
    assert problem.endswith("'real_servers' is missing; name at least one real server, or write unknown_sni: refuse")


# what is not built yet


@pytest.mark.parametrize("mode", ["http", "smtp", "imap", "pop3", "l4"])
def test_a_mode_that_is_not_built_is_refused(told: Told, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "AVAILABLE_MODES", model.AVAILABLE_MODES - {model.Mode(mode)})
    forward = ", forward: dsr" if mode == "l4" else ""
    (problem,) = told(HEAD + f"  s:\n    {{mode: {mode}, listen: '10.0.1.1:443', real_servers: [ex1, ex2]{forward}}}\n")
    there = ", ".join(sorted(model.AVAILABLE_MODES))
    assert problem == f"x.yaml:4: services.s.mode: '{mode}' is not available in this version (available: {there})"


ONE_CLASS = "classes: [{name: all, clients: any, address: 10.0.2.6}]"


@pytest.mark.parametrize(
    ("mode", "source", "said"),
    [
        ("l4, forward: snat", f"{{{ONE_CLASS}}}", "services.s.source.classes: 'classes' is not available in mode l4"),
        ("l4, forward: snat", "{per_source_limit: 20}", "source.per_source_limit: 'per_source_limit' is not available"),
        ("tcp", "{use: balancer, per_source_limit: 20}", "services.s.source.per_source_limit: it is about sessions by"),
        ("tcp", "{when_full: refuse}", "services.s.source.when_full: it is about sessions by source address; it needs"),
        ("tcp", f"{{use: client, {ONE_CLASS}}}", "services.s.source.classes: with use: client every client leaves"),
        ("http, server_connections: shared", f"{{{ONE_CLASS}}}", "the address of one class cannot serve another"),
        ("tls", "{classes: [{name: all, clients: any, address: '::1'}]}", "class 'all' has no IPv4 address"),
    ],
)
def test_sources_that_cannot_be_are_refused(told: Told, mode: str, source: str, said: str) -> None:
    lines = told(HEAD + f"  s: {{mode: {mode}, listen: '10.0.1.1:25', real_servers: [ex1, ex2], source: {source}}}\n")
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("limit", "count", "percent", "connections"),
    [
        ("20", 20, 0.0, 5000),
        ("2%", 0, 2.0, 5000),
        ("0.5 %", 0, 0.5, 5000),
        ("exchange", 20, 2.0, 5000),
        ("{count: 50, percent: 4, connections: 1000}", 50, 4.0, 1000),
        ("{percent: 100}", 0, 100.0, 5000),
    ],
)
def test_a_limit_per_source_is_a_count_a_percentage_or_both(
    load: Load, limit: str, count: int, percent: float, connections: int
) -> None:
    source = f"{{{ONE_CLASS}, per_source_limit: {limit}}}"
    text = HEAD + f"  s: {{mode: tcp, listen: '10.0.1.1:25', real_servers: [ex1], source: {source}}}\n"
    built = only(load(text)).source
    assert (built.per_source_limit, built.per_source_percent, built.server_connections) == (count, percent, connections)


@pytest.mark.parametrize("limit", ["101%", "-1", "2 percent", "{percent: 2, of: 5}", "2%%"])
def test_a_limit_per_source_that_is_none(told: Told, limit: str) -> None:
    source = f"{{{ONE_CLASS}, per_source_limit: {limit}}}"
    assert told(HEAD + f"  s: {{mode: tcp, listen: '10.0.1.1:25', real_servers: [ex1], source: {source}}}\n")


# services among each other


@pytest.mark.parametrize(
    ("services", "lines"),
    [
        (
            ["a: {mode: tcp, listen: 10.0.1.1:25, real_servers: [ex1]}",
             "b: {mode: tls, listen: [10.0.1.2:25, 10.0.1.1:25], real_servers: [ex2]}"],
            ["x.yaml:4: services.b.listen: 10.0.1.1:25 already belongs to service a (line 3)"],
        ),
        (
            ["a: {mode: tcp, listen: [10.0.1.1:25, 10.0.1.1:25], real_servers: [ex1, ex2]}"],
            ["x.yaml:3: services.a.listen[1]: 10.0.1.1:25 is listed twice"],
        ),
        (
            ["a: {mode: tcp, listen: ':25', real_servers: [ex1]}",
             "b: {mode: tcp, listen: '*:25', real_servers: [ex2]}"],
            ["x.yaml:4: services.b.listen: 0.0.0.0:25 already belongs to service a (line 3)",
             "x.yaml:4: services.b.listen: [::]:25 already belongs to service a (line 3)"],
        ),
        (
            ["a: {mode: tcp, listen: 10.0.2.11:25, real_servers: [ex1, ex2]}"],
            ["x.yaml:3: services.a.real_servers: a loop: connections of a would come back to itself"],
        ),
        (
            ["a: {mode: tcp, listen: 10.0.2.12:25, real_servers: {ex1: 26}}",
             "b: {mode: tcp, listen: 10.0.2.11:26, real_servers: {ex2: 25}}"],
            ["x.yaml:3: services.a.real_servers: a loop: connections of a would come back to itself (through b)",
             "x.yaml:4: services.b.real_servers: a loop: connections of b would come back to itself (through a)"],
        ),
        (
            ["a: {mode: tcp, listen: ':25', real_servers: [ex1, ex2], persist: {group: g}}",
             "b: {mode: tcp, listen: ':26', real_servers: [ex1], persist: {group: g}}"],
            ["x.yaml:4: services.b.persist: group 'g' is shared with service a, but their real servers differ (ex2)"],
        ),
        (
            ["a: {mode: tcp, listen: ':25', real_servers: [ex1, ex2], persist: {group: g}}",
             "b: {mode: tcp, listen: ':26', real_servers: [ex2, ex1], persist: {group: g, timeout_s: 60}}"],
            ["x.yaml:4: services.b.persist: group 'g' is shared with service a, but timeout_s is 60 here and 3600"
             " there"],
        ),
        (
            ["a: {mode: tcp, listen: ':25', real_servers: [ex3, ex2]}"],
            ["x.yaml:3: services.a.real_servers.ex3: 'ex3' is not in real_servers (did you mean ex2?)"],
        ),
    ],
    ids=range(8),
)  # fmt: skip
def test_services_that_do_not_agree(told: Told, services: list[str], lines: list[str]) -> None:
    assert told(HEAD + "".join(f"  {service}\n" for service in services)) == lines


def test_services_that_do_agree(load: Load) -> None:
    """A wildcard beside a specific address, a group over three ports, a service in front of another."""
    config = load(
        """
        real_servers: {ex1: 10.0.2.11, ex2: 10.0.2.12, us: 127.0.0.1}
        services:
          every: {mode: tcp, listen: "0.0.0.0:25", real_servers: [ex1]}
          one: {mode: tcp, listen: "10.0.1.1:25", real_servers: [ex2]}
          chain: {mode: tcp, listen: "10.0.1.1:26", real_servers: {us: 25}}
          rpc: {mode: tcp, listen: ":135", real_servers: [ex1, ex2], persist: {group: cas}}
          cas: {mode: tcp, listen: ":59531", real_servers: [ex2, ex1], persist: {group: cas}}
        """
    )
    assert len(config.services) == 5
    groups = [pool.persist.group for pool in config.pools() if pool.persist]
    assert groups == ["cas", "cas"]


def test_a_loop_over_a_wildcard_and_loopback(told: Told) -> None:
    (line,) = told("real_servers: {us: 127.0.0.2}\nservices:\n  a: {mode: tcp, listen: ':25', real_servers: [us]}\n")
    assert line == "x.yaml:3: services.a.real_servers: a loop: connections of a would come back to itself"


def test_the_administration_address_is_kept_free(told: Told, load: Load) -> None:
    service = HEAD + "  a: {mode: tcp, listen: 127.0.0.1:8404, real_servers: [ex1, ex2]}\n"
    (line,) = told("admin: {listen: 127.0.0.1:8404}\n" + service)
    assert line == "x.yaml:4: services.a.listen: 127.0.0.1:8404 already belongs to admin.listen (line 1)"
    config = load("admin: {listen: 127.0.0.1:8405}\n" + service)
    assert config.admin.listen == Endpoint("127.0.0.1", 8405)


def test_nothing_to_do_is_refused(told: Told) -> None:
    assert told("version: 1\n") == ["x.yaml:1: there is no service; name at least one under services:"]


def test_more_than_the_board_holds_is_refused(told: Told) -> None:
    servers = "".join(f"  r{n}: 10.{n // 250}.0.{n % 250 + 1}\n" for n in range(410))
    names = ", ".join(f"r{n}" for n in range(410))
    services = "".join(
        f"  s{n}: {{mode: tcp, listen: ':{1000 + n}', real_servers: &m{n} [{names}]}}\n" for n in range(10)
    )
    (line,) = told(f"real_servers:\n{servers}services:\n{services}")
    assert "services: 4110 services and real servers in services are more than this program counts (4096)" in line


def test_warnings_do_not_stop_it(load: Load) -> None:
    config = load(HEAD + "  a: {mode: tcp, listen: ':25', real_servers: [ex1], check: {interval_s: 1, timeout_s: 3}}\n")
    assert config.warnings == (
        "x.yaml:1: real_servers.ex2: real server 'ex2' is in no service",
        "x.yaml:3: services.a.check: timeout_s 3 is longer than interval_s 1: a real server that hangs is checked only"
        " that often",
    )


# certificates


ONE = HEAD + "  a: {mode: tcp, listen: ':25', real_servers: [ex1, ex2]}\n"


def test_certificate_files_are_looked_into(told: Told, load: Load, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("mail.example.com")
    for source, name in ((issued.chain, "chain.pem"), (issued.key, "key.pem"), (issued.pem, "both.pem")):
        (tmp_path / name).write_bytes(source.read_bytes())
        (tmp_path / name).chmod(0o600)
    (tmp_path / "folder").mkdir()
    config = load("certificates: {a: both.pem, b: {chain: chain.pem, key: key.pem}}\n" + ONE, tmp_path)
    assert config.certificates == (
        model.Certificate("a", str(tmp_path / "both.pem")),
        model.Certificate("b", str(tmp_path / "chain.pem"), str(tmp_path / "key.pem")),
    )
    keyless = "chain.pem holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)"
    lines = told(
        "certificates:\n  a: none.pem\n  b: chain.pem\n  c: {chain: chain.pem, key: chain.pem}\n  d: folder\n" + ONE,
        tmp_path,
    )
    assert lines == [
        f"x.yaml:2: certificates.a: {tmp_path}/none.pem cannot be read: No such file or directory; "
        "correct the path, or put the file there",
        f"x.yaml:3: certificates.b: {tmp_path}/{keyless}",
        f"x.yaml:4: certificates.c: {tmp_path}/{keyless}",
        f"x.yaml:5: certificates.d: {tmp_path}/folder is not a file",
    ]


def test_a_key_must_belong_to_its_certificate(told: Told, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one.example.com"), authority.issue("two.example.com")
    [line] = told(f"certificates: {{a: {{chain: {one.chain.name}, key: {other.key.name}}}}}\n" + ONE, tmp_path)
    assert line.startswith("x.yaml:1: certificates.a: ")
    assert one.chain.name in line
    assert other.key.name in line


def test_an_expired_certificate_is_served_and_warned_about(load: Load, tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("mail.example.com", days=-2)
    issued.pem.chmod(0o600)
    [warning] = load(f"certificates: {{a: {issued.pem.name}}}\n" + ONE, tmp_path).warnings
    assert "expired" in warning


def test_a_socket_path_that_linux_does_not_take(told: Told, load: Load, tmp_path: Path) -> None:
    long = "/run/" + "a" * 103
    assert told(f"control_socket: {long}\n" + ONE, tmp_path) == [
        f"x.yaml:1: control_socket: {long} is longer than the 107 bytes that Linux allows for a socket; "
        "choose a shorter path"
    ]
    assert load(f"control_socket: {long[:-1]}\n" + ONE, tmp_path).control_socket == long[:-1]
