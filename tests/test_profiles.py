"""The shipped profiles: each loads, each of its services means what the documents say, each checklist is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbalancer import model
from mailbalancer.config.build_service import unavailable
from mailbalancer.config.load import load_text, search_dirs, tree
from mailbalancer.config.profiles import Profile, checklist, export, load_profile, profile_files
from mailbalancer.errors import ConfigError
from mailbalancer.model import AVAILABLE_MODES, Config, Mode, Service
from tests.support.certs import Authority

SHIPPED = [search_dirs()[-1]]
NAMES = ["dns", "exchange-2010", "exchange-2013", "exchange-2016", "exchange-2019", "exchange-se", "postfix-dovecot",
         "smtp-relay", "webmail"]  # fmt: skip
EXCHANGE = [name for name in NAMES if name.startswith("exchange-")]
NEWER = [name for name in EXCHANGE if name != "exchange-2010"]

#: What the profile cannot know, for each.
GIVEN = {name: {"host": "mail.example.com"} for name in [*EXCHANGE, "postfix-dovecot", "webmail"]} | {
    "smtp-relay": {"senders": "10.1.20.0/24"},
    "dns": {},
}
#: What services that end TLS need beyond that.
CERTIFICATE = "    certificate: mail\n"
CERTIFIED = model.Verify("full", name="mail.example.com")
HEALTH_PAGE = model.HttpCheck(tls=True, path="/owa/healthcheck.htm", host="mail.example.com", verify=CERTIFIED)
OWA_2010 = model.HttpCheck(
    tls=True, path="/owa/", host="mail.example.com", statuses=(*range(200, 400), 401), verify=CERTIFIED
)
SMTP = model.SmtpCheck(starttls=True, verify=CERTIFIED)
#: Port, silence in seconds and check of services that many profiles have.
MAIL: dict[str, tuple[int, float, model.CheckOptions]] = {
    "smtp": (25, 330.0, SMTP),
    "submission": (587, 330.0, SMTP),
    "imap": (143, 1860.0, model.ImapCheck(starttls=True, verify=CERTIFIED)),
    "imaps": (993, 1860.0, model.ImapCheck(tls=True, verify=CERTIFIED)),
    "pop3": (110, 1860.0, model.Pop3Check(starttls=True, verify=CERTIFIED)),
    "pop3s": (995, 1860.0, model.Pop3Check(tls=True, verify=CERTIFIED)),
    "smtp-passthrough": (25, 330.0, model.SmtpCheck()),
    "submission-passthrough": (587, 330.0, model.SmtpCheck()),
    "imap-passthrough": (143, 1860.0, model.ImapCheck()),
    "imaps-passthrough": (993, 1860.0, model.ImapCheck(tls=True, verify=CERTIFIED)),
    "pop3-passthrough": (110, 1860.0, model.Pop3Check()),
    "pop3s-passthrough": (995, 1860.0, model.Pop3Check(tls=True, verify=CERTIFIED)),
}
SUBMISSIONS = (465, 330.0, model.SmtpCheck(tls=True, verify=CERTIFIED))
DOCUMENTED: dict[str, dict[str, tuple[int, float, model.CheckOptions]]] = {
    **{name: MAIL | {"https-passthrough": (443, 3700.0, HEALTH_PAGE)} for name in NEWER},
    "exchange-2010": MAIL
    | {
        "https-passthrough": (443, 3700.0, OWA_2010),
        "rpc-mapper": (135, 3600.0, model.TcpCheck()),
        "rpc-cas": (59531, 3600.0, model.TcpCheck()),
        "rpc-ab": (59532, 3600.0, model.TcpCheck()),
    },
    "postfix-dovecot": MAIL
    | {
        "submissions": SUBMISSIONS,
        "submissions-passthrough": SUBMISSIONS,
        "managesieve": (4190, 1860.0, model.TcpCheck(expect=b"OK")),
    },
    "smtp-relay": {"smtp": (25, 330.0, model.SmtpCheck())},
    "dns": {"tcp": (53, 60.0, model.DnsCheck(protocol="tcp"))},
    "webmail": {},
}
#: When TLS begins, with clients and with servers; both "" in services that pass it on.
STARTTLS = {
    "smtp": ("offer", "require"),
    "submission": ("require", "require"),
    "submissions": ("implicit", "implicit"),
    "imap": ("require", "require"),
    "imaps": ("implicit", "implicit"),
    "pop3": ("require", "require"),
    "pop3s": ("implicit", "implicit"),
}
#: Who comes back to the same real server; nobody in services that are not here.
PERSISTENT = {
    ("exchange-2010", "https-passthrough"): ("in", 3600.0),
    ("exchange-2010", "rpc-mapper"): ("cas", 3600.0),
    ("exchange-2010", "rpc-cas"): ("cas", 3600.0),
    ("exchange-2010", "rpc-ab"): ("cas", 3600.0),
}
#: Modes that were built after these profiles, with the services in them.
LATER = {
    **{name: {"https": "http", "https-l4": "l4", "smtp-l4": "l4", "imaps-l4": "l4"} for name in EXCHANGE},
    "postfix-dovecot": {"webmail": "http"},
    "webmail": {"https": "http", "https-offload": "http", "http": "http"},
    "smtp-relay": {},
    "dns": {"udp": "l4", "tcp-l4": "l4", "udp-dsr": "l4", "tcp-dsr": "l4"},
}


def services(*, later: bool) -> Iterator[Any]:
    """Every service of every profile; with `later`, those of modes that were built later too."""
    for name in NAMES:
        for part in load_profile(name, SHIPPED).written.services:
            if later or part not in LATER[name]:
                yield pytest.param(name, part, id=f"{name}-{part}")


def one_service(name: str, part: str, given: dict[str, str], more: str = "") -> str:
    """A full configuration with one service of a profile."""
    lines = "".join(f"    {key}: {value}\n" for key, value in given.items())
    lines += CERTIFICATE if given and name != "smtp-relay" and part in STARTTLS else ""
    return (
        "real_servers: {a: 10.0.2.11, b: 10.0.2.12}\nservices:\n  in:\n"
        f"    profile: {name}-{part}\n    vip: 10.0.1.100\n    real_servers: [a, b]\n{lines}{more}"
    )


def whole(name: str, more: str = "") -> Config:
    """A full configuration with a whole profile."""
    lines = "".join(f"    {key}: {value}\n" for key, value in GIVEN[name].items())
    lines += CERTIFICATE if "host" in GIVEN[name] else ""
    head = f"real_servers: {{a: 10.0.2.11, b: 10.0.2.12}}\nprofiles:\n  {name}:\n    vip: 10.0.1.100\n"
    return load(f"{head}    real_servers: [a, b]\n{lines}{more}")


@pytest.fixture(autouse=True)
def here(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate lies beside the configuration."""
    monkeypatch.chdir(authority)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    pem = Authority(folder).issue("mail.example.com").pem.rename(folder / "mail.pem")
    pem.chmod(0o600)
    return folder


def complete(text: str) -> str:
    """With the certificate that its services name."""
    return text + "certificates: {mail: mail.pem}\n" if CERTIFICATE in text else text


def load(text: str) -> Config:
    return load_text(complete(text), "x.yaml", profile_dirs=SHIPPED)


def told(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return caught.value.problems


# ---------------------------------------------------------------- services


def test_every_promised_profile_is_shipped() -> None:
    assert sorted(profile_files(SHIPPED)) == NAMES
    for name in NAMES:
        written = load_profile(name, SHIPPED).written
        assert set(written.services) == set(DOCUMENTED[name]) | set(LATER[name])
        assert len(written.description) > 60


@pytest.mark.parametrize(("name", "part"), [*services(later=False)])
def test_a_service_means_what_the_documents_say(name: str, part: str) -> None:
    port, idle_s, options = DOCUMENTED[name][part]
    (service,) = load(one_service(name, part, GIVEN[name])).services
    assert (service.profile, service.mode) == (
        f"{name}-{part}",
        mode_of(name, part),
    )
    assert [str(endpoint) for endpoint in service.listen] == [f"10.0.1.100:{port}"]
    assert [str(member.endpoint) for member in service.pool.members] == [f"10.0.2.11:{port}", f"10.0.2.12:{port}"]
    assert service.idle_timeout_s == idle_s
    assert service.pool.check.options == options
    assert (service.pool.ramp_s, service.pool.schedule) == (300.0, model.Schedule.LEAST_CONNECTIONS)
    assert returning(service) == PERSISTENT.get((name, part))
    client, server = service.client_tls, service.server_tls
    found = (client.starttls if client else "", server.starttls if server else "")
    assert found == (("", "") if name == "smtp-relay" else STARTTLS.get(part, ("", "")))
    assert server is None or server.verify == CERTIFIED


def mode_of(name: str, part: str) -> Mode:
    if part == "https-passthrough":
        return Mode.TLS
    if part not in STARTTLS:
        return Mode.TCP
    return Mode.SMTP if part.startswith(("smtp", "submission")) else Mode(part.removesuffix("s"))


@pytest.mark.parametrize("part", STARTTLS)
def test_tls_cannot_end_here_without_a_certificate(part: str) -> None:
    (line,) = told(one_service("postfix-dovecot", part, {"host": "mail.example.com"}).replace(CERTIFICATE, ""))
    assert "services.in.client_tls: 'certificate' is missing" in line


def returning(service: Service) -> tuple[str, float] | None:
    persist = service.pool.persist
    assert persist is None or persist.by == "source"
    return None if persist is None else (persist.group, persist.timeout_s)


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in NAMES for part in LATER[name]])
def test_a_service_of_a_mode_that_is_not_built_says_so_and_nothing_else(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = LATER[name][part]
    monkeypatch.setattr(model, "AVAILABLE_MODES", AVAILABLE_MODES - {Mode(mode)})
    monkeypatch.setattr("mailbalancer.config.profiles._LATER_MODES", frozenset({mode}))
    text = one_service(name, part, GIVEN[name])
    (line,) = told(text)
    assert line.startswith(f"x.yaml:4: services.in.mode: {unavailable(mode)} [from ")
    assert re.search(rf"{name}\.yaml:\d+\]$", line)


@pytest.mark.parametrize(("name", "part"), [*services(later=True)])
def test_a_missing_parameter_is_one_line_with_an_example(name: str, part: str) -> None:
    required = [key for key, parameter in load_profile(name, SHIPPED).written.parameters.items()
                if parameter.must_be_given]  # fmt: skip
    assert required == list(GIVEN[name])
    if required:
        (line,) = told(one_service(name, part, {}))
        assert line.startswith(f"x.yaml:3: services.in: profile {name} needs '{required[0]}' (")
        assert f"for example {required[0]}: " in line


# ---------------------------------------------------------------- whole profiles and parameters


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_profile_runs_in_this_version(name: str) -> None:
    built = {service.name for service in whole(name).services}
    written = load_profile(name, SHIPPED).written
    assert built == set(written.default_services or written.services)
    everything = [
        part for part in written.services if part not in LATER[name] and part.split("-pass")[0] not in STARTTLS
    ]
    everything += [part for part in STARTTLS if part in written.services]
    more = f"    services: [{', '.join(everything)}]\n"
    if everything:
        assert [service.name for service in whole(name, more).services] == everything


def test_rpc_of_exchange_2010_shares_one_table() -> None:
    found = {service.name: service for service in whole("exchange-2010").services}
    group = [found[name] for name in ("rpc-mapper", "rpc-cas", "rpc-ab")]
    assert [service.listen[0].port for service in group] == [135, 59531, 59532]
    assert {service.pool.persist for service in group} == {model.Persist("source", "cas", 3600.0)}
    assert all(service.pinned_to_worker for service in group)
    others = {service.pool.persist.group for name, service in found.items()
              if service not in group and service.pool.persist}  # fmt: skip
    assert others == {"https-passthrough"}


def test_ports_and_group_of_rpc_are_parameters() -> None:
    parts = "    rpc_cas_port: 60001\n    rpc_ab_port: 60002\n    rpc_group: second\n    services: [rpc-cas, rpc-ab]\n"
    group = whole("exchange-2010", parts).services
    assert [service.listen[0].port for service in group] == [60001, 60002]
    assert [service.pool.members[0].endpoint.port for service in group] == [60001, 60002]
    assert {service.pool.persist.group for service in group if service.pool.persist} == {"second"}


@pytest.mark.parametrize(("given", "sent"), [("", ""), ("none", ""), ("v1", "v1"), ("v2", "v2")])
@pytest.mark.parametrize("name", ["postfix-dovecot", "smtp-relay"])
def test_the_proxy_header_is_a_parameter_and_the_check_sends_it_too(name: str, given: str, sent: str) -> None:
    more = f"    proxy_header: {given}\n" if given else ""
    for service in whole(name, more).services:
        assert (service.proxy_protocol.send, service.pool.check.proxy_header) == (sent, sent)


def test_another_port_behind_keeps_tls_in_the_check() -> None:
    text = one_service("postfix-dovecot", "imaps", GIVEN["postfix-dovecot"], "    real_server_port: 10993\n")
    (service,) = load(text).services
    assert service.pool.members[0].endpoint.port == 10993
    assert service.pool.check.options == MAIL["imaps"][2]


def test_a_wrong_proxy_header_is_told_where_it_was_written() -> None:
    text = one_service("postfix-dovecot", "smtp", GIVEN["postfix-dovecot"], "    proxy_header: v3\n")
    (line,) = told(text)
    assert line.startswith("x.yaml:9: services.in.proxy_protocol.send: 'v3' is not a PROXY protocol version")


@pytest.mark.parametrize(
    ("senders", "allowed"),
    [("10.1.20.0/24", ["10.1.20.0/24"]), ("[10.1.20.0/24, '2001:db8:20::/64']", ["10.1.20.0/24", "2001:db8:20::/64"])],
)
def test_only_the_named_senders_may_use_the_relay(senders: str, allowed: list[str]) -> None:
    (service,) = load(one_service("smtp-relay", "smtp", {"senders": senders})).services
    assert [str(network) for network in service.allow] == allowed


def test_postscreen_has_time_to_greet_the_check() -> None:
    (service,) = load(one_service("postfix-dovecot", "smtp", GIVEN["postfix-dovecot"])).services
    assert service.pool.check.timeout_s == 9.0
    assert not load(one_service("postfix-dovecot", "smtp", GIVEN["postfix-dovecot"])).warnings


def test_an_authority_of_the_company_is_believed_by_the_checks(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    for part in ("https-passthrough", "imaps", "pop3s"):
        (service,) = load(
            one_service("exchange-2019", part, GIVEN["exchange-2019"], f"    ca_file: {authority}\n")
        ).services
        options = service.pool.check.options
        assert isinstance(options, model.HttpCheck | model.ImapCheck | model.Pop3Check)
        assert options.verify == model.Verify("ca", ca_file=str(authority), name="mail.example.com")


# ---------------------------------------------------------------- and back


@pytest.mark.parametrize(("name", "part"), [*services(later=False)])
def test_an_exported_service_is_the_same_service(name: str, part: str, tmp_path: Path) -> None:
    text = one_service(name, part, GIVEN[name])
    (tmp_path / "x.yaml").write_text(complete(text))
    exported = export(tree(tmp_path / "x.yaml", profile_dirs=SHIPPED), "in")
    assert not re.search(r"10\.0\.[12]\.", exported)
    (tmp_path / "in.yaml").write_text(exported)
    host = "    host: mail.example.com\n" if "${host}" in exported else ""
    host += CERTIFICATE if "${certificate}" in exported else ""
    assert ("mail.example.com" in exported) == ("${host}" in exported)
    again = (
        "real_servers: {a: 10.0.2.11, b: 10.0.2.12}\nservices:\n  in:\n    profile: in\n    vip: 10.0.1.100\n"
        f"    real_servers: [a, b]\n{host}"
    )
    (before,) = load(text).services
    (after,) = load_text(complete(again), "y.yaml", profile_dirs=[tmp_path]).services
    assert after.profile == "in-in"
    for fact in ("mode", "listen", "pool", "idle_timeout_s", "allow", "proxy_protocol", "routes"):
        assert getattr(after, fact) == getattr(before, fact)


# ---------------------------------------------------------------- checklists

EVERYTHING = {
    "host": "mail.example.com",
    "domain": "example.com",
    "outgoing_ip": "198.51.100.25",
    "balancer": "10.0.2.5,10.0.2.6",
    "senders": "10.1.20.0/24,10.1.21.0/24",
}


def commands(name: str, **more: str) -> str:
    """Every command of a profile's checklist, one per line."""
    profile = load_profile(name, SHIPPED)
    items = checklist(profile, known(profile) | more, vip="10.0.1.100")
    return "\n".join(command for item in items for command in item.commands)


def known(profile: Profile) -> dict[str, str]:
    return {key: value for key, value in EVERYTHING.items() if key in profile.written.parameters}


@pytest.mark.parametrize("name", NAMES)
def test_a_checklist_is_complete(name: str) -> None:
    profile = load_profile(name, SHIPPED)
    items = checklist(profile, known(profile), vip="10.0.1.100")
    assert len(items) >= 4
    for item in items:
        assert (item.missing, "\n" in item.why) == ((), False)
        assert item.commands
        assert "${" not in "".join([item.title, item.why, *item.commands])
    covered = {service for item in items for service in item.services}
    assert covered <= set(profile.written.services)
    assert items[-1].platform == "balancer"
    assert any("mailbalancer smoke" in command for item in items for command in item.commands)


@pytest.mark.parametrize("name", NAMES)
def test_a_checklist_with_the_least_says_what_it_misses(name: str) -> None:
    profile = load_profile(name, SHIPPED)
    items = checklist(profile, GIVEN[name])
    assert "${" not in "".join(text for item in items for text in (item.title, item.why, *item.commands))
    assert {"vip"} <= {word for item in items for word in item.missing}
    assert all(item.commands or item.missing for item in items)


@pytest.mark.parametrize("name", EXCHANGE)
def test_exchange_is_told_the_name_of_the_service(name: str) -> None:
    said = commands(name)
    for cmdlet, path in [
        ("OwaVirtualDirectory", "owa"),
        ("EcpVirtualDirectory", "ecp"),
        ("WebServicesVirtualDirectory", "EWS/Exchange.asmx"),
        ("ActiveSyncVirtualDirectory", "Microsoft-Server-ActiveSync"),
        ("OabVirtualDirectory", "OAB"),
    ]:
        url = f"https://mail.example.com/{path}"
        assert f"Set-{cmdlet} -InternalUrl {url} -ExternalUrl {url}" in said
    assert "-AutoDiscoverServiceInternalUri https://mail.example.com/Autodiscover/Autodiscover.xml" in said
    assert "-SSLOffloading $false" in said
    assert "-MaxInboundConnectionPerSource Unlimited -MaxInboundConnectionPercentagePerSource 100" in said
    assert "ExtendedProtectionTokenChecking" in said
    assert "/v KeepAliveTime /t REG_DWORD /d 1800000" in said
    assert "RemoteIPRanges, alone or inside a range: 10.0.2.5,10.0.2.6" in said
    assert ("Set-MapiVirtualDirectory" in said) == (name != "exchange-2010")
    later = name in ("exchange-2016", "exchange-2019", "exchange-se")
    assert ("Set-ClientAccessService " in said, "Set-ClientAccessServer " in said) == (later, not later)


def test_exchange_2010_has_static_rpc_ports_of_the_right_types() -> None:
    said = commands("exchange-2010", rpc_host="outlook.example.local")
    assert r'MSExchangeRPC\ParametersSystem" /v "TCP/IP Port" /t REG_DWORD /d 59531 ' in said
    assert r'MSExchangeAB\Parameters" /v RpcTcpPort /t REG_SZ /d 59532 ' in said
    assert "Set-MailboxDatabase -RpcClientAccessServer outlook.example.local" in said
    assert "Set-MailboxDatabase -RpcClientAccessServer mail.example.com" in commands("exchange-2010")
    assert all("RpcClientAccessServer" not in commands(name) for name in NEWER)


def test_dns_records_are_there() -> None:
    for name in [*EXCHANGE, "postfix-dovecot"]:
        said = commands(name)
        assert "mail.example.com. IN A 10.0.1.100" in said
        assert "example.com. IN MX 10 mail.example.com." in said
        assert "v=spf1 ip4:198.51.100.25" in said
        assert "dig +short -x 198.51.100.25" in said
        assert ("autodiscover.example.com. IN A 10.0.1.100" in said) == (name in EXCHANGE)


def test_postfix_and_dovecot_are_told_about_the_header() -> None:
    said = commands("postfix-dovecot")
    for line in (
        "postconf -Pe '10025/inet/smtpd_upstream_proxy_protocol=haproxy'",
        "postconf -e 'postscreen_upstream_proxy_protocol = haproxy'",
        "haproxy_trusted_networks = 10.0.2.5,10.0.2.6",
        "must not be in mynetworks, alone or inside a network: 10.0.2.5,10.0.2.6",
        "postconf smtpd_authorized_xclient_hosts",
    ):
        assert line in said
    assert len(re.findall(r"inet_listener \w+ {\n *port = \d+\n(?: *ssl = yes\n)? *haproxy = yes\n", said)) == 5
