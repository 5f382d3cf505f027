"""The nouns: what a valid configuration says, in the words of the documentation.

Decides: nothing; these are frozen facts, built by `config` and read by everybody.
Refuses to know: YAML, sockets, health, time. Runtime state (up, sessions, ramp) lives on the board and in `control`.

Units: seconds are floats named `…_s`, sizes are integers named `…_bytes`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Mode(StrEnum):
    """How a service handles a connection. All but `l4` end it here (layer 7)."""

    TCP = "tcp"
    TLS = "tls"
    HTTP = "http"
    SMTP = "smtp"
    IMAP = "imap"
    POP3 = "pop3"
    L4 = "l4"


#: Modes this version can run. The schema knows all of them; a service in another one is refused, never ignored.
AVAILABLE_MODES: frozenset[Mode] = frozenset({Mode.TCP, Mode.TLS, Mode.HTTP, Mode.SMTP, Mode.IMAP, Mode.POP3, Mode.L4})


class Schedule(StrEnum):
    """Who gets a new session."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED_ROUND_ROBIN = "weighted_round_robin"
    LEAST_CONNECTIONS = "least_connections"
    WEIGHTED_LEAST_CONNECTIONS = "weighted_least_connections"
    SOURCE_HASH = "source_hash"
    PRIORITY = "priority"


class Forward(StrEnum):
    """How the kernel forwards a layer 4 service."""

    TRANSPARENT = "transparent"
    SNAT = "snat"
    DSR = "dsr"
    TUNNEL = "tunnel"


class AdminState(StrEnum):
    """What the operator wants of a real server in a service."""

    ENABLED = "enabled"
    DRAINING = "draining"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One IP address and port. `host` is an IP literal, never a name: mail must not depend on DNS to be delivered."""

    host: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Verify:
    """How the certificate of a server is verified (`full`, `ca: file`, `pin: sha256`, or `none`, spelled out)."""

    kind: str = "full"
    ca_file: str = ""
    pin_sha256: str = ""  # one or more, comma-separated: a renewed certificate can be announced before it is used
    name: str = ""  # name expected in the certificate and sent as SNI; empty: the real server's address is expected


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of ours: the files it is read from. What is in them never stands in the configuration."""

    name: str
    chain_file: str  # PEM: the certificate, then its issuers; with the key when `key_file` is empty
    key_file: str = ""
    ocsp_file: str = ""  # DER answer of the issuer, stapled to handshakes


@dataclass(frozen=True, slots=True)
class ClientTls:
    """TLS on the client side.

    `starttls`: "implicit" (from the first byte, as HTTPS and port 465), "offer", "require", or "none".
    """

    certificates: tuple[str, ...]  # names; the first is the default, the others are chosen by SNI
    starttls: str = "implicit"
    min_version: str = "1.2"
    client_ca_file: str = ""  # ask clients for a certificate of one of these authorities
    client_must_show: bool = False  # one who shows none is refused


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS on the server side. `starttls`: "implicit", "require", "opportunistic", or "none"."""

    verify: Verify = Verify()
    starttls: str = "implicit"
    min_version: str = "1.2"


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """Connect; optionally send `send` and find `expect` in the answer."""

    send: bytes = b""
    expect: bytes = b""


@dataclass(frozen=True, slots=True)
class TlsCheck:
    """Handshake; verify the certificate; `warn_days` before it expires the result says so, expired is down."""

    verify: Verify = Verify()
    warn_days: int = 14


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """One request over HTTP, or HTTPS when `tls`; the answer must have an expected status and match `body`."""

    tls: bool = False
    method: str = "GET"
    path: str = "/"
    host: str = ""
    statuses: tuple[int, ...] = (200,)
    body: str = ""  # regular expression searched in the first 64 KiB; empty: any
    verify: Verify = Verify()


@dataclass(frozen=True, slots=True)
class SmtpCheck:
    """Banner, EHLO, optional STARTTLS, optional MAIL/RCPT/RSET, always QUIT."""

    helo: str = "mailbalancer.invalid"
    starttls: bool = False
    tls: bool = False  # implicit TLS (465)
    verify: Verify = Verify()
    mail_from: str = ""  # with rcpt_to: MAIL, RCPT, RSET are tried; `<>` is the null sender
    rcpt_to: str = ""


@dataclass(frozen=True, slots=True)
class ImapCheck:
    """Greeting, optional STARTTLS, CAPABILITY, LOGOUT."""

    starttls: bool = False
    tls: bool = False
    verify: Verify = Verify()


@dataclass(frozen=True, slots=True)
class Pop3Check:
    """Greeting, optional STLS, CAPA, QUIT."""

    starttls: bool = False
    tls: bool = False
    verify: Verify = Verify()


@dataclass(frozen=True, slots=True)
class DnsCheck:
    """One query over UDP or TCP; the answer must be ours, not truncated over TCP, and have the expected rcode."""

    name: str = "."
    record: str = "SOA"
    protocol: str = "udp"
    rcode: str = "NOERROR"


CheckOptions = TcpCheck | TlsCheck | HttpCheck | SmtpCheck | ImapCheck | Pop3Check | DnsCheck


@dataclass(frozen=True, slots=True)
class Check:
    """The active health check of a pool. `timeout_s` is an absolute deadline for the whole conversation."""

    type: str = "tcp"  # tcp tls http https smtp imap pop3 dns none
    interval_s: float = 10.0
    timeout_s: float = 5.0
    rise: int = 2
    fall: int = 3
    port: int = 0  # 0: the member's own port
    proxy_header: str = ""  # "", "v1" or "v2": sent first when the service sends it too
    options: CheckOptions = TcpCheck()


@dataclass(frozen=True, slots=True)
class Persist:
    """Who gets a returning client. Services with the same `group` share one table."""

    by: str = "source"  # in tcp: source; in tls: source or tls_session_id; in http: any of HttpKind in config.schema
    group: str = ""  # always filled in: the service's own name when the operator named none
    timeout_s: float = 3600.0
    max_entries: int = 100_000  # per table and worker; the oldest entry goes first
    warn_share: float = 0.25  # one source address with more than this share of the sessions is reported
    fallback: tuple[str, ...] = ()  # http: tried in this order when a request has no key of kind `by`
    cookie: str = ""  # http: name of the cookie, ours or the server's
    same_site: str = ""  # http: of a cookie of ours: strict, lax or none
    key_file: str = ""  # http: keys of the cookies; empty: they hold until the next start
    field: str = ""  # http: name of the request header
    parameter: str = ""  # http: name in the query

    @property
    def kinds(self) -> tuple[str, ...]:
        """How a client is recognised, in the order in which it is tried."""
        return (self.by, *self.fallback)

    @property
    def only_by_address(self) -> bool:
        """Whether a table of this persistence holds nothing but addresses (a cookie needs no table)."""
        return not set(self.kinds) - {"source", "cookie", "cookie_prefix"}


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """PROXY protocol: from whom it is believed, and whether it is sent."""

    accept_from: tuple[IPNetwork, ...] = ()
    send: str = ""  # "", "v1" or "v2"
    header_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Queue:
    """Sessions that wait when every ready server is full: at most `size` per worker, for at most `timeout_s`."""

    size: int = 0
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RealServer:
    """A machine behind."""

    name: str
    address: str
    weight: float = 1.0
    max_sessions: int = 0  # over all services; 0: no limit
    line: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A real server as one pool uses it."""

    real_server: str
    endpoint: Endpoint
    weight: float = 1.0
    priority: int = 0  # schedule priority: the lowest number that is ready takes all
    max_sessions: int = 0  # in this pool; 0: no limit
    state: AdminState = AdminState.ENABLED  # as configured; the operator's command wins over it


@dataclass(frozen=True, slots=True)
class MemberKey:
    """Health, counts and slots belong to (service, route, real server); `route` is empty for the service's own pool."""

    service: str
    route: str
    real_server: str

    def __str__(self) -> str:
        middle = f"{self.route}/" if self.route else ""
        return f"{self.service}/{middle}{self.real_server}"


@dataclass(frozen=True, slots=True)
class Pool:
    """Real servers that share one schedule, one persistence and one check."""

    service: str
    route: str
    members: tuple[Member, ...]
    schedule: Schedule = Schedule.LEAST_CONNECTIONS
    persist: Persist | None = None
    check: Check = Check()
    ramp_s: float = 300.0
    drain_s: float = 3600.0
    drop_after_drain: bool = False

    def key(self, member: Member) -> MemberKey:
        return MemberKey(self.service, self.route, member.real_server)


@dataclass(frozen=True, slots=True)
class HeaderEdits:
    """Fields to set (instead of any that are there) and to remove; names as written, values checked."""

    set: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Redirect:
    """Send the client elsewhere. `{host}` and `{path}` in `to` stand for what was asked for."""

    to: str
    status: int = 302


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the operator's, given without a real server."""

    status: int = 503
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """What a route of an `http` service does besides choosing from its pool."""

    idle_timeout_s: float = 0.0  # 0: the service's
    allow: tuple[IPNetwork, ...] = ()
    deny: tuple[IPNetwork, ...] = ()
    redirect: Redirect | None = None
    respond: Answer | None = None
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds against slow and hostile clients; 0: none.

    Those per source hold for all workers together, because one address stays with one worker; where others tell who
    the client is (PROXY header, X-Forwarded-For) it cannot, and each worker counts for itself.
    """

    head_bytes: int = 98304
    target_bytes: int = 16384
    head_timeout_s: float = 30.0
    body_bytes_per_s: int = 100
    connections_per_source: int = 0
    requests_per_source_s: int = 0

    @property
    def counts_sources(self) -> bool:
        """Whether there is a limit per source."""
        return bool(self.connections_per_source or self.requests_per_source_s)


@dataclass(frozen=True, slots=True)
class Http:
    """What an `http` service has that others have not."""

    forwarded: str = "x_forwarded"  # x_forwarded | forwarded | both | none: how the servers are told of the client
    trust: tuple[IPNetwork, ...] = ()  # whose X-Forwarded-For (or Forwarded) is believed
    limits: HttpLimits = HttpLimits()
    shared: bool = False  # idle connections to servers may serve another client
    hsts_s: int = 0
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    sorry: Answer | None = None
    access_log: bool = True
    extended_protection: str = ""  # "on", "off", or "" when the operator did not say


@dataclass(frozen=True, slots=True)
class SourceClass:
    """Clients whose connections to servers leave from addresses of their own, the first with room."""

    name: str
    clients: tuple[IPNetwork, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceKey:
    """One of our addresses towards one place of a real server: servers count sessions by it, whatever service of ours
    they belong to, so we do."""

    address: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Source:
    """Which address the real servers see. Without classes: whichever the kernel takes, or the client's.

    `use`: "balancer" or "client"; clients in `balancer_for` are given our address whatever it says. `probe_failed`:
    what happens to a real server whose answers to clients are known not to come back through us:
    "fall_back_to_balancer_address", "take_out_of_service", or "keep_in_service" where nothing can be fallen back to.
    `near`: the real servers' own networks, whose clients they would answer directly; filled in when it is applied.
    """

    classes: tuple[SourceClass, ...] = ()
    per_source_limit: int = 0  # sessions of one address at one real server; 0: no limit
    per_source_percent: float = 0.0  # the same, of the connections that the real server has left; 0: no limit
    server_connections: int = 5000  # that the real server takes altogether
    when_full: str = "spill"  # spill: next address, then the service's queue | queue: the same | refuse: never wait
    use: str = "balancer"
    balancer_for: tuple[IPNetwork, ...] = ()
    near: tuple[IPNetwork, ...] = ()
    probe_failed: str = "fall_back_to_balancer_address"
    probe_addresses: tuple[str, ...] = ()  # at most one of each IP version; empty: a documentation network's

    def limit_at(self, sessions: int) -> int:
        """How many sessions one address may have at a real server that has `sessions` now; 0: no limit.

        The percentage is of what is left, as Exchange's MaxInboundConnectionPercentagePerSource is. It lets one in
        always, because 0 would mean that there is no limit.
        """
        if not self.per_source_percent:
            return self.per_source_limit
        left = max(0, self.server_connections - sessions)
        share = max(1, int(left * self.per_source_percent / 100))
        return min(self.per_source_limit, share) if self.per_source_limit else share


@dataclass(frozen=True, slots=True)
class MailPolicy:
    """Who may send what to whom through an `smtp` service; 0 and empty: no limit. Domains are in lower case."""

    recipient_domains: frozenset[str] | None = None  # `*.example.com` matches one label; None: every domain
    relay_clients: tuple[IPNetwork, ...] = ()  # may send to every domain
    senders_allow: frozenset[str] = frozenset()  # `user@example.com`, `example.com`, `*.example.com`, `<>`
    senders_deny: frozenset[str] = frozenset()
    connections_per_source: int = 0
    connections_per_source_minute: int = 0
    messages_per_source_minute: int = 0
    recipients_per_source_minute: int = 0
    tarpit_s: float = 0.0  # a refusal by this policy is held back for so long
    greeting_delay_s: float = 0.0  # whoever speaks before it is over is cut off
    max_message_bytes: int = 0

    @property
    def counts_sources(self) -> bool:
        """Whether what one address does is counted, so that it should always land on one worker."""
        return bool(
            self.connections_per_source
            or self.connections_per_source_minute
            or self.messages_per_source_minute
            or self.recipients_per_source_minute
        )


@dataclass(frozen=True, slots=True)
class ReverseNames:
    """How clients' names are looked up. Without `resolvers` those of this machine are asked (/etc/resolv.conf)."""

    timeout_s: float = 2.0
    resolvers: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Smtp:
    """What an `smtp` service has that the other mail modes have not."""

    banner: str = "ESMTP"  # behind the host name in the greeting
    bare_newlines: str = "reject"  # reject | normalise | pass
    exchange: bool = False  # Exchange servers talk to each other through this service
    capabilities: tuple[str, ...] = ()  # stated: shown instead of what the servers have in common
    policy: MailPolicy = MailPolicy()
    log_addresses: bool = False
    reverse_names: ReverseNames | None = None  # told to servers with XCLIENT; None: nobody is asked


@dataclass(frozen=True, slots=True)
class Mail:
    """What the mail modes have that others have not."""

    host: str  # what we call ourselves, to clients and to servers
    greeting_timeout_s: float = 10.0  # from the connect to the server being ready for the client's commands
    client_address: str = ""  # "", "xclient" (smtp, pop3) or "id" (imap): how servers are told who the client is
    hide: tuple[str, ...] = ()  # capabilities
    keep: tuple[str, ...] = ()
    login_timeout_s: float = 60.0  # imap and pop3: silence before the login
    smtp: Smtp = Smtp()  # mode smtp


@dataclass(frozen=True, slots=True)
class Route:
    """A part of a service with a pool of its own.

    In a `tls` service: connections whose SNI matches one of `hosts` (`*.example.com` matches one label).
    In an `http` service: requests whose Host matches and whose path begins with one of `paths` (empty: all).
    """

    name: str
    hosts: tuple[str, ...]
    pool: Pool
    paths: tuple[str, ...] = ()
    http: HttpRoute | None = None


@dataclass(frozen=True, slots=True)
class PortRange:
    """An address of a layer 4 service and its ports, `first` to `last`."""

    address: str
    first: int
    last: int

    def __str__(self) -> str:
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"[{self.address}]:{ports}" if ":" in self.address else f"{self.address}:{ports}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """How packets reach real servers in other networks: `vxlan`, `ipip` or `ip6ip6`."""

    encapsulation: str = "vxlan"
    allow_peers: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True, slots=True)
class L4:
    """What a service has that the kernel forwards."""

    listen: tuple[PortRange, ...]
    protocol: str = "tcp"  # tcp | udp
    forward: Forward = Forward.TRANSPARENT
    snat_address: str = ""  # forward snat: what the servers see; empty: the address of the interface
    interface: str = ""  # where the addresses belong; empty: the interface in whose network they lie
    masquerade_outbound: str = ""  # address with which the real servers' own connections leave; empty: unchanged
    tunnel: Tunnel = Tunnel()


@dataclass(frozen=True, slots=True)
class Service:
    """The addresses it listens on, one mode, its real servers."""

    name: str
    mode: Mode
    listen: tuple[Endpoint, ...]
    pool: Pool
    routes: tuple[Route, ...] = ()
    unknown_sni: str = "default"  # tls mode: "default" sends them to the service's own pool, "refuse" closes
    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 660.0
    max_sessions: int = 0
    queue: Queue = Queue()
    minimum_ready: int = 1  # real servers that maintenance must leave ready, in each pool
    allow: tuple[IPNetwork, ...] = ()  # empty: everybody
    deny: tuple[IPNetwork, ...] = ()
    proxy_protocol: ProxyProtocol = ProxyProtocol()
    client_tls: ClientTls | None = None
    server_tls: ServerTls | None = None
    buffer_bytes: int = 65536  # per direction of one session: the most that waits in the balancer
    http: Http | None = None  # mode http
    l4: L4 | None = None  # mode l4; `listen` is empty then: no socket of ours is there
    mail: Mail | None = None  # modes smtp, imap, pop3
    source: Source = Source()
    profile: str = ""
    line: int = 0

    @property
    def places(self) -> tuple[str, ...]:
        """Where clients find it, as text: its listeners, or the addresses that the kernel forwards for it."""
        return tuple(map(str, self.l4.listen if self.l4 else self.listen))

    @property
    def doors(self) -> tuple[Endpoint, ...]:
        """Addresses to try it at: its listeners, or the first port of each range that the kernel forwards."""
        return tuple(Endpoint(port.address, port.first) for port in self.l4.listen) if self.l4 else self.listen

    def pools(self) -> Iterator[Pool]:
        """The service's own pool first, then those of its routes."""
        if self.pool.members:
            yield self.pool
        for route in self.routes:
            if route.pool.members:
                yield route.pool

    def source_keys(self) -> Iterator[SourceKey]:
        """Every pair of an address that a source class leaves from and a real server."""
        addresses = dict.fromkeys(address for one in self.source.classes for address in one.addresses)
        endpoints = dict.fromkeys(member.endpoint for pool in self.pools() for member in pool.members)
        for address in addresses:
            for endpoint in endpoints:
                yield SourceKey(address, endpoint)

    @property
    def pinned_to_worker(self) -> bool:
        """Whether one client address must always land on one worker (a classic BPF program on its sockets).

        True when clients are remembered or counted by the peer's address. When a PROXY header names the client, the
        kernel cannot see the address, so the table is shared through the supervisor instead.
        """
        counts_sources = self.mail is not None and self.mail.smtp.policy.counts_sources
        counts_sources |= self.http is not None and self.http.limits.counts_sources
        return not self._told_of_clients and (
            counts_sources
            or any(
                p.persist is not None
                and (self.http is None or (p.persist.only_by_address and "source" in p.persist.kinds))
                for p in self.pools()
            )
        )

    def shares_bindings(self, pool: Pool) -> bool:
        """Whether this pool's persistence table must be the same in every worker.

        So it is where the kernel cannot see the key: an address inside a PROXY header or X-Forwarded-For, a TLS session
        that a client resumes from another address, and whatever else is found in a request.
        """
        return pool.persist is not None and (self._told_of_clients or not pool.persist.only_by_address)

    @property
    def _told_of_clients(self) -> bool:
        """Whether others may tell us who the client is."""
        return bool(self.proxy_protocol.accept_from) or (self.http is not None and bool(self.http.trust))


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the page, the API and the metrics are served."""

    listen: Endpoint | None = None
    tokens_file: str = ""
    certificate: str = ""  # name of the certificate; empty: plain HTTP
    client_ca_file: str = ""  # visitors must show a certificate of one of these authorities
    hosts: tuple[str, ...] = ()  # names under which the page may be asked for


@dataclass(frozen=True, slots=True)
class AlarmMail:
    """Alarms as messages, handed to a mail server of the house."""

    server: Endpoint
    sender: str
    recipients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlarmWebhook:
    """Alarms as JSON to an address of the web; `url_file` instead of `url` where the address is the secret."""

    url: str = ""
    url_file: str = ""
    address: str = ""  # the IP address behind the name in `url`: nothing is looked up
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Alarms:
    """Who is told what happens, and how often at most."""

    level: str = "warning"
    group_s: float = 30.0
    most_per_hour: int = 20
    mail: AlarmMail | None = None
    webhook: AlarmWebhook | None = None
    syslog: str = ""

    @property
    def ways(self) -> int:
        """How many ways there are to tell."""
        return sum((self.mail is not None, self.webhook is not None, bool(self.syslog)))


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which a real server is in maintenance: once or every week, in local time without a zone.

    Attributes:
        begins: for a weekly one in some week of the past.
    """

    real_server: str
    begins: datetime
    length: timedelta
    weekly: bool

    def __str__(self) -> str:
        begin, end = self.begins, self.begins + self.length
        if self.weekly:
            return f"{self.real_server} every {begin:%A %H:%M} to {end:%A %H:%M}"
        return f"{self.real_server} {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"

    def current(self, now: datetime) -> datetime | None:
        """When the occurrence began that is under way now."""
        weeks = (now - self.begins) // timedelta(weeks=1) if self.weekly else 0
        began = self.begins + weeks * timedelta(weeks=1)
        return began if began <= now < began + self.length else None

    def next(self, now: datetime) -> datetime | None:
        """When the next one begins; None: never again."""
        if not self.weekly:
            return self.begins if self.begins > now else None
        weeks = (now - self.begins) // timedelta(weeks=1) + 1
        return self.begins + weeks * timedelta(weeks=1)


@dataclass(frozen=True, slots=True)
class Logging:
    """Where log lines go and what they look like."""

    to: str = "stderr"  # stderr | syslog
    format: str = "text"  # text | json
    sessions: bool = True  # one line per session
    level: str = "info"
    syslog_address: str = "/dev/log"


@dataclass(frozen=True, slots=True)
class Config:
    """One valid configuration file, with every default filled in and every profile expanded."""

    path: str
    services: tuple[Service, ...]
    real_servers: tuple[RealServer, ...]
    workers: int
    control_socket: str
    state_file: str  # empty: operator states are forgotten at restart
    user: str  # to become when started as root; empty: stay
    log: Logging = Logging()
    admin: Admin = Admin()
    alarms: Alarms = Alarms()
    windows: tuple[Window, ...] = ()  # planned maintenance
    certificates: tuple[Certificate, ...] = ()
    certificates_dir: str = ""  # where certificates are written that come in through the door
    stop_timeout_s: float = 30.0  # SIGTERM: sessions may finish for this long
    board_slots: int = 4096
    warnings: tuple[str, ...] = ()

    def service(self, name: str) -> Service | None:
        return next((s for s in self.services if s.name == name), None)

    def pools(self) -> Iterator[Pool]:
        for service in self.services:
            yield from service.pools()
