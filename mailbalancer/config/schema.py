"""The whole file as pydantic models: every key of every mode, its type, its bounds and its default.

Decides: which keys exist where, what a value may be on its own, and which short forms stand for which long ones
(`listen: A` for `[A]`, `check: smtp` for `{type: smtp}`, a list of real servers for a mapping of them).
Refuses to know: other parts of the file (`build` compares them), and which modes this version runs.

Keys are refused unless they are here. The descriptions are what an editor shows with the schema.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from mailbalancer.config import values
from mailbalancer.model import AdminState, Schedule

MAX_WEIGHT = 1000
DAY_S = 86400


class Strict(BaseModel):
    """A mapping in which every key is known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# kinds of values


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    """Refuse what `parse` refuses; keep the text, because `build` reads it with the same function."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | dict) or value is None else [value]


def _short(key: str, *, none: Any = ...) -> Callable[[Any], Any]:
    """A word alone stands for a mapping with the word under `key`; `none` may stand for something else."""

    def expand(value: Any) -> Any:
        if value == "none" and none is not ...:
            return none
        return value if isinstance(value, dict) or value is None else {key: value}

    return expand


def _text(value: Any) -> Any:
    """A number where text is meant (`min_version: 1.2`)."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Bool = Annotated[bool, Field(strict=False)]  # yes, no, on and off are words here, and mean what they say
Name = Annotated[str, _checked(values.name)]
ListenText = Annotated[str, _checked(values.listen)]
ListenRange = Annotated[str, _checked(values.listen_range)]
EndpointText = Annotated[str, _checked(values.endpoint)]
Address = Annotated[str, _checked(values.address)]
ServerAddress = Annotated[str, _checked(values.real_server_address)]
Network = Annotated[str, _checked(values.network)]
HostName = Annotated[str, _checked(values.host_name)]
HostPattern = Annotated[str, _checked(values.host_pattern)]
FilePath = Annotated[str, _checked(values.file_path)]
Fingerprint = Annotated[str, _checked(values.sha256)]
Target = Annotated[str, _checked(values.target)]
Pattern = Annotated[str, _checked(values.pattern)]
MailAddress = Annotated[str, _checked(values.mail_address)]
Url = Annotated[str, _checked(values.web_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[
    float,
    Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False, description="Share of new sessions; use `state` to give none."),
]
Limit = Annotated[int, Field(ge=0, le=10_000_000, description="0: no limit")]
TlsVersion = Annotated[
    Literal["1.2", "1.3"], BeforeValidator(_text, json_schema_input_type=Literal["1.2", "1.3", 1.2, 1.3])
]

Names = Annotated[list[Name], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Listens = Annotated[
    list[ListenText], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
]
ListenRanges = Annotated[
    list[ListenRange], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
]
Networks = Annotated[list[Network], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
HostPatterns = Annotated[list[HostPattern], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Fingerprints = Annotated[
    list[Fingerprint], Field(min_length=1), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
]
FilePaths = Annotated[list[FilePath], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Keywords = Annotated[
    list[Annotated[str, _checked(values.keyword)]],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
SenderPatterns = Annotated[
    list[Annotated[str, _checked(values.sender_pattern)]],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
Words = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


def _any_network(value: Any) -> Any:
    return ["0.0.0.0/0", "::/0"] if value == "any" else _as_list(value)


Clients = Annotated[list[Network], BeforeValidator(_any_network, json_schema_input_type=str | list[str])]


# TLS


class Verify(Strict):
    """How a server's certificate is verified. `none` must be written to be had."""

    kind: Literal["full", "none"] = "full"
    ca: FilePath | None = Field(
        default=None, description="Certificates of the authorities that may have signed it (PEM)"
    )
    pin: Fingerprints | None = Field(default=None, description="SHA-256 of the certificate itself")
    name: HostName | None = Field(default=None, description="Name expected in the certificate and sent as SNI")


VerifyField = Annotated[
    Verify, BeforeValidator(_short("kind"), json_schema_input_type=Literal["full", "none"] | Verify)
]


class ClientTls(Strict):
    """TLS on the client side."""

    certificate: Names = Field(default_factory=list, description="Certificates by name, chosen by SNI")
    min_version: TlsVersion = "1.2"
    client_ca: FilePath | None = None
    client_certificate: Literal["optional", "required"] = Field(
        default="optional", description="Whether a client may come without one, where `client_ca` asks for it"
    )


class MailClientTls(ClientTls):
    """TLS on the client side of a mail protocol."""

    starttls: Literal["none", "offer", "require", "implicit"] | None = Field(
        default=None, description="By default implicit on the ports 465, 993 and 995, else offer"
    )


class ServerTls(Strict):
    """TLS on the server side; verified unless `none` is written."""

    verify: VerifyField = Field(default_factory=Verify)
    min_version: TlsVersion = "1.2"


class MailServerTls(ServerTls):
    """TLS on the server side of a mail protocol."""

    starttls: Literal["none", "opportunistic", "require", "implicit"] | None = Field(
        default=None, description="By default implicit on the servers' ports 465, 993 and 995, else require"
    )


# checks


class CheckBase(Strict):
    """What every check has. `timeout_s` is a deadline for the whole conversation."""

    interval_s: float = Field(default=10.0, ge=0.5, le=3600, allow_inf_nan=False)
    timeout_s: float = Field(default=5.0, ge=0.1, le=300, allow_inf_nan=False)
    rise: int = Field(default=2, ge=1, le=100, description="Good results in a row that bring a real server back")
    fall: int = Field(default=3, ge=1, le=100, description="Bad results in a row that take it out")
    port: Port | None = Field(default=None, description="Another port than the real server's own")
    proxy_header: Literal["v1", "v2", "none"] | None = Field(
        default=None, description="PROXY header in front of the check; by default what the service sends"
    )


class NoCheck(Strict):
    """No check: the real server counts as up until its connections fail."""

    type: Literal["none"]


class TcpCheck(CheckBase):
    """Connects; sends and expects bytes if asked."""

    type: Literal["tcp"] = "tcp"
    send: str = Field(default="", max_length=4096)
    expect: str = Field(default="", max_length=4096)


class TlsCheck(CheckBase):
    """Shakes hands and verifies the certificate."""

    type: Literal["tls"]
    verify: VerifyField = Field(default_factory=Verify)
    warn_days: int = Field(default=14, ge=0, le=365)


Statuses = Annotated[
    list[Annotated[int | str, AfterValidator(lambda entry: (values.statuses(entry), entry)[1])]],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=int | str | list[int | str]),
]


class HttpCheck(CheckBase):
    """One request and its answer."""

    type: Literal["http"]
    method: Annotated[str, _checked(values.method)] = "GET"
    path: Target = "/"
    host: HostName | None = None
    status: Statuses = [200]
    body: Pattern = Field(default="", description="Regular expression searched in the first 64 KiB of the answer")


class HttpsCheck(HttpCheck):
    """One request over TLS and its answer."""

    type: Literal["https"]  # type: ignore[assignment]  # the discriminator differs, nothing else does
    verify: VerifyField = Field(default_factory=Verify)


class MailCheck(CheckBase):
    """What the mail checks have in common. `tls` by default on the ports 465, 993 and 995."""

    starttls: Bool = False
    tls: Bool | None = None
    verify: VerifyField = Field(default_factory=Verify)


class SmtpCheck(MailCheck):
    """Banner, EHLO, and what is asked for."""

    type: Literal["smtp"]
    helo: Annotated[str, _checked(values.helo)] = "mailbalancer.invalid"
    mail_from: Annotated[str, _checked(values.mailbox)] | None = None
    rcpt_to: Annotated[str, _checked(values.mailbox)] | None = None


class ImapCheck(MailCheck):
    """Greeting, CAPABILITY, LOGOUT."""

    type: Literal["imap"]


class Pop3Check(MailCheck):
    """Greeting, CAPA, QUIT."""

    type: Literal["pop3"]


class DnsCheck(CheckBase):
    """One question to a DNS server."""

    type: Literal["dns"]
    name: Annotated[str, _checked(values.dns_name)] = "."
    record: Literal["A", "AAAA", "CAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"] = "SOA"
    protocol: Literal["udp", "tcp"] = "udp"
    rcode: Literal["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"] = "NOERROR"


def _check_type(value: Any) -> str:
    return str(value.get("type", "tcp")) if isinstance(value, dict) else str(getattr(value, "type", "tcp"))


AnyCheck = Annotated[
    Annotated[TcpCheck, Tag("tcp")]
    | Annotated[TlsCheck, Tag("tls")]
    | Annotated[HttpCheck, Tag("http")]
    | Annotated[HttpsCheck, Tag("https")]
    | Annotated[SmtpCheck, Tag("smtp")]
    | Annotated[ImapCheck, Tag("imap")]
    | Annotated[Pop3Check, Tag("pop3")]
    | Annotated[DnsCheck, Tag("dns")]
    | Annotated[NoCheck, Tag("none")],
    Discriminator(_check_type),
]
CheckWord = Literal["tcp", "tls", "http", "https", "smtp", "imap", "pop3", "dns", "none"]
CheckField = Annotated[AnyCheck, BeforeValidator(_short("type"), json_schema_input_type=CheckWord | AnyCheck)]


# persistence


class Persist(Strict):
    """Who gets a returning client."""

    by: Literal["source"] = "source"
    group: Name | None = Field(default=None, description="Services of one group send a client to the same real server")
    timeout_s: float = Field(default=3600.0, ge=1, le=30 * DAY_S, allow_inf_nan=False)
    max_entries: int = Field(default=100_000, ge=1, le=10_000_000, description="Per worker; the oldest goes first")
    warn_share: float = Field(
        default=0.25, gt=0, le=1, allow_inf_nan=False, description="Warn when one source has more than this share"
    )


class TlsPersist(Persist):
    """Persistence of mode tls."""

    by: Literal["source", "tls_session_id"] = "source"  # type: ignore[assignment]  # wider than in tcp on purpose


HttpKind = Literal[
    "source",
    "cookie",
    "cookie_prefix",
    "server_cookie",
    "super_http",
    "header",
    "url",
    "host",
    "query",
    "exchange",
]


class HttpPersist(Persist):
    """Persistence of mode http."""

    by: HttpKind = "source"  # type: ignore[assignment]  # wider than in tcp on purpose
    fallback: Annotated[list[HttpKind], BeforeValidator(_as_list, json_schema_input_type=HttpKind | list[HttpKind])] = (
        Field(default_factory=list, description="Tried in this order when the request has no such key")
    )
    cookie: str | None = Field(default=None, max_length=64, description="Name of the cookie")
    same_site: Literal["strict", "lax", "none"] = "lax"
    key_file: FilePath | None = Field(default=None, description="Keys of the cookies, kept over a restart")
    header: str | None = Field(default=None, max_length=64, description="Name of the header")
    parameter: str | None = Field(default=None, max_length=64, description="Name in the query")


PersistField = Annotated[
    Persist | None,
    BeforeValidator(_short("by", none=None), json_schema_input_type=Literal["source", "none"] | Persist | None),
]
TlsPersistField = Annotated[
    TlsPersist | None,
    BeforeValidator(
        _short("by", none=None), json_schema_input_type=Literal["source", "tls_session_id", "none"] | TlsPersist | None
    ),
]
HttpPersistField = Annotated[
    HttpPersist | None,
    BeforeValidator(_short("by", none=None), json_schema_input_type=HttpKind | Literal["none"] | HttpPersist | None),
]


# source addresses


class SourceClass(Strict):
    """Clients whose connections leave from their own address."""

    name: Name
    clients: Clients
    address: Annotated[list[Address], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class PerSourceLimit(Strict):
    """How many sessions of one address a real server takes; the smaller of both counts."""

    count: Limit = 0
    percent: float = Field(
        default=0.0, ge=0, le=100, allow_inf_nan=False, description="Of the connections that are left; 0: no limit"
    )
    connections: int = Field(default=5000, ge=1, le=10_000_000, description="That the real server takes altogether")


def _per_source_limit(value: Any) -> Any:
    """A number is the count, and `2%` the percentage; the word stands for Exchange's defaults."""
    if value == "exchange":
        return {"count": 20, "percent": 2.0}
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})? ?%", value):
        return {"percent": float(value.rstrip("% "))}
    return _short("count")(value)


class Source(Strict):
    """Which address the real server sees."""

    use: Literal["balancer", "client"] = "balancer"
    classes: list[SourceClass] | None = None
    per_source_limit: Annotated[
        PerSourceLimit,
        BeforeValidator(_per_source_limit, json_schema_input_type=int | str | PerSourceLimit),
    ] = Field(default_factory=PerSourceLimit)
    when_full: Literal["spill", "queue", "refuse"] = "spill"
    balancer_for: Networks = Field(default_factory=list, description="Clients that are always given our address")
    probe_failed: Literal["fall_back_to_balancer_address", "take_out_of_service", "keep_in_service"] | None = Field(
        default=None, description="What becomes of a real server that is known not to answer clients"
    )
    probe_address: Annotated[
        list[Address], Field(max_length=2), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
    ] = Field(
        default_factory=list,
        description="Address in no network here from which the way back is tried; by default 192.0.2.1 and 2001:db8::1",
    )


SourceField = Annotated[
    Source, BeforeValidator(_short("use"), json_schema_input_type=Literal["balancer", "client"] | Source)
]


# real servers


class RealServer(Strict):
    """A machine behind."""

    address: ServerAddress
    weight: Weight = 1.0
    max_sessions: Limit = 0


RealServerField = Annotated[RealServer, BeforeValidator(_short("address"), json_schema_input_type=str | RealServer)]


class Member(Strict):
    """A real server as this service uses it."""

    port: Port | None = None
    weight: Weight | None = Field(default=None, description="Instead of the real server's own")
    priority: int = Field(
        default=0, ge=0, le=1000, description="schedule priority: the lowest number that is ready takes all"
    )
    max_sessions: Limit = 0
    state: Literal["enabled", "draining", "disabled"] = AdminState.ENABLED.value


def _member(value: Any) -> Any:
    return {} if value is None else _short("port")(value)


def _members(value: Any) -> Any:
    if isinstance(value, str):
        return {value: None}
    if not isinstance(value, list):
        return value
    if not all(isinstance(entry, str) for entry in value):
        raise ValueError("must be a list of names, or a mapping from names to ports or settings")
    twice = next((entry for at, entry in enumerate(value) if entry in value[:at]), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is named twice")
    return dict.fromkeys(value)


MemberField = Annotated[Member, BeforeValidator(_member, json_schema_input_type=Port | Member | None)]
Members = Annotated[
    dict[Name, MemberField],
    Field(min_length=1),
    BeforeValidator(_members, json_schema_input_type=str | list[str] | dict[str, MemberField]),
]
ScheduleWord = Literal[
    "round_robin",
    "weighted_round_robin",
    "least_connections",
    "weighted_least_connections",
    "source_hash",
    "priority",
]


# services


class Queue(Strict):
    """Sessions that wait while every real server is full."""

    size: int = Field(default=0, ge=0, le=100_000)
    timeout_s: float = Field(default=10.0, ge=0.1, le=300, allow_inf_nan=False)


class ProxyProtocol(Strict):
    """From whom a PROXY header is believed, and whether one is sent."""

    accept_from: Networks = Field(default_factory=list)
    send: Literal["v1", "v2", "none"] = "none"
    header_timeout_s: float = Field(default=5.0, ge=0.1, le=60, allow_inf_nan=False)


class Balanced(Strict):
    """What every service has, in every mode."""

    real_servers: Members | None = None
    real_server_port: Port | None = Field(
        default=None, description="Port of real servers that name none; else the listen port"
    )
    schedule: ScheduleWord = Schedule.LEAST_CONNECTIONS.value
    persist: PersistField = None
    ramp_s: float = Field(
        default=300.0, ge=0, le=DAY_S, allow_inf_nan=False, description="Slow return of a real server"
    )
    drain_s: float = Field(default=3600.0, ge=0, le=30 * DAY_S, allow_inf_nan=False)
    drop_after_drain: Bool = False
    minimum_ready: int = Field(default=1, ge=0, le=1000, description="Ready real servers that maintenance must leave")
    check: CheckField = Field(default_factory=TcpCheck)
    max_sessions: Limit = 0
    allow: Networks = Field(default_factory=list)
    deny: Networks = Field(default_factory=list)
    source: SourceField = Field(default_factory=Source)


class Layer7(Balanced):
    """What a service has whose connections end here."""

    listen: Listens
    queue: Annotated[Queue, BeforeValidator(_short("size"), json_schema_input_type=int | Queue)] = Field(
        default_factory=Queue
    )
    connect_timeout_s: float = Field(default=5.0, ge=0.1, le=300, allow_inf_nan=False)
    idle_timeout_s: float | None = Field(
        default=None,
        ge=1,
        le=7 * DAY_S,
        allow_inf_nan=False,
        description="By default what the protocol of the port needs",
    )
    proxy_protocol: ProxyProtocol = Field(default_factory=ProxyProtocol)
    buffer_bytes: int = Field(default=65536, ge=4096, le=1024 * 1024, description="Per direction of one session")


class TcpService(Layer7):
    """Bytes are passed on unchanged."""

    mode: Literal["tcp"]


class TlsRoute(Strict):
    """Connections that ask for one of these names."""

    name: Name | None = None
    host: HostPatterns = Field(min_length=1)
    real_servers: Members | None = None
    real_server_port: Port | None = None
    schedule: ScheduleWord | None = None
    persist: TlsPersistField = None
    check: CheckField | None = None


def _routes(value: Any) -> Any:
    """A mapping from names to routes is the list of them, in its order."""
    if not isinstance(value, dict):
        return value
    return [{"name": name, **entry} if isinstance(entry, dict) else entry for name, entry in value.items()]


def _hosts(value: Any) -> Any:
    """`hosts` is the plural of `host`; either may be written, not both."""
    if isinstance(value, dict) and "hosts" in value and "host" not in value:
        return {("host" if key == "hosts" else key): entry for key, entry in value.items()}
    return value


TlsRouteField = Annotated[TlsRoute, BeforeValidator(_hosts, json_schema_input_type=TlsRoute | dict[str, Any])]
TlsRoutes = Annotated[
    list[TlsRouteField],
    BeforeValidator(_routes, json_schema_input_type=list[TlsRouteField] | dict[str, TlsRouteField]),
]


class TlsService(Layer7):
    """TLS is passed through; only the first message is read, for its SNI."""

    mode: Literal["tls"]
    persist: TlsPersistField = None
    routes: TlsRoutes = Field(default_factory=list)
    unknown_sni: Literal["default", "refuse"] = "default"


class Redirect(Strict):
    """Send the client elsewhere."""

    to: str = Field(min_length=1, max_length=2048)
    status: Literal[301, 302, 303, 307, 308] = 302


class Respond(Strict):
    """Answer without a real server."""

    status: int = Field(default=503, ge=200, le=599)
    file: FilePath | None = None
    text: str | None = Field(default=None, max_length=65536)


class Headers(Strict):
    """Headers to set and to remove."""

    set: dict[str, str] = Field(default_factory=dict)
    remove: Words = Field(default_factory=list)


class HttpRoute(Strict):
    """Requests for these hosts and paths."""

    name: Name | None = None
    host: HostPatterns = Field(default_factory=list)
    path: Annotated[list[Target], BeforeValidator(_as_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list, description="Beginnings of paths, without regard to case"
    )
    real_servers: Members | None = None
    real_server_port: Port | None = None
    schedule: ScheduleWord | None = None
    persist: HttpPersistField = None
    check: CheckField | None = None
    idle_timeout_s: float | None = Field(default=None, ge=1, le=7 * DAY_S, allow_inf_nan=False)
    allow: Networks = Field(default_factory=list)
    deny: Networks = Field(default_factory=list)
    redirect: Annotated[Redirect, BeforeValidator(_short("to"), json_schema_input_type=str | Redirect)] | None = None
    respond: Annotated[Respond, BeforeValidator(_short("status"), json_schema_input_type=int | Respond)] | None = None
    request_headers: Headers | None = None
    response_headers: Headers | None = None


HttpRouteField = Annotated[HttpRoute, BeforeValidator(_hosts, json_schema_input_type=HttpRoute | dict[str, Any])]
HttpRoutes = Annotated[
    list[HttpRouteField],
    BeforeValidator(_routes, json_schema_input_type=list[HttpRouteField] | dict[str, HttpRouteField]),
]


class Forwarded(Strict):
    """How the client's address is told to the servers, and from whom it is believed."""

    style: Literal["x_forwarded", "forwarded", "both", "none"] = "x_forwarded"
    trust: Networks = Field(default_factory=list)


class HttpLimits(Strict):
    """Bounds against slow and hostile clients."""

    head_bytes: int = Field(default=98304, ge=4096, le=1024 * 1024)
    target_bytes: int = Field(default=16384, ge=256, le=65536)
    head_timeout_s: float = Field(default=30.0, ge=1, le=600, allow_inf_nan=False)
    body_bytes_per_s: int = Field(default=100, ge=0, le=1024 * 1024, description="Least rate of a body; 0: none")
    connections_per_source: Limit = 0
    requests_per_source_s: Limit = 0


class HttpService(Layer7):
    """HTTP/1.1 ends here and goes on to a real server."""

    mode: Literal["http"]
    persist: HttpPersistField = None
    routes: HttpRoutes = Field(default_factory=list)
    client_tls: ClientTls | None = None
    server_tls: ServerTls | None = Field(
        default=None, description="Re-encrypt; without it the servers are spoken to in clear"
    )
    server_connections: Literal["per_client", "shared"] = "per_client"
    extended_protection: Literal["on", "off"] | None = Field(
        default=None, description="`off` states that Exchange's Extended Protection is off, so that TLS may end here"
    )
    forwarded: Forwarded = Field(default_factory=Forwarded)
    limits: HttpLimits = Field(default_factory=HttpLimits)
    hsts_s: int = Field(default=0, ge=0, le=2 * 366 * DAY_S)
    request_headers: Headers | None = None
    response_headers: Headers | None = None
    sorry: Annotated[Respond, BeforeValidator(_short("file"), json_schema_input_type=str | Respond)] | None = None
    access_log: Bool = True


class Capabilities(Strict):
    """What of the servers' capabilities clients are shown."""

    hide: Keywords = Field(default_factory=list)
    keep: Keywords = Field(default_factory=list, description="smtp: of those between Exchange servers")
    stated: Annotated[
        list[Annotated[str, _checked(values.capability)]],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ] = Field(
        default_factory=list,
        description="smtp: shown instead of what the servers have in common, such as SIZE 37748736",
    )


class MailService(Layer7):
    """What the mail protocols have in common."""

    hostname: HostName | None = Field(
        default=None, description="What the balancer calls itself; else this machine's name"
    )

    client_tls: MailClientTls | None = None
    server_tls: MailServerTls | None = None
    capabilities: Capabilities = Field(default_factory=Capabilities)
    greeting_timeout_s: float = Field(default=10.0, ge=0.5, le=300, allow_inf_nan=False)


class Policy(Strict):
    """Who may send what to whom, and how fast."""

    recipient_domains: HostPatterns = Field(default_factory=list)
    recipient_domains_file: FilePath | None = None
    relay_clients: Networks = Field(default_factory=list, description="Clients that may send to every domain")
    senders_allow: SenderPatterns = Field(default_factory=list)
    senders_deny: SenderPatterns = Field(default_factory=list)
    connections_per_source: Limit = 0
    connections_per_source_minute: Limit = 0
    messages_per_source_minute: Limit = 0
    recipients_per_source_minute: Limit = 0
    tarpit_s: float = Field(default=0.0, ge=0, le=60, allow_inf_nan=False)
    greeting_delay_s: float = Field(default=0.0, ge=0, le=60, allow_inf_nan=False)
    max_message_bytes: int = Field(default=0, ge=0, le=2**31)


class ReverseNames(Strict):
    """Looking up what clients are called, for XCLIENT."""

    timeout_s: float = Field(default=2.0, ge=0.1, le=30, allow_inf_nan=False)
    resolvers: Annotated[list[EndpointText], BeforeValidator(_as_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list, description="Name servers to ask; else those of /etc/resolv.conf"
    )


def _reverse_names(value: Any) -> Any:
    """`true` stands for the defaults."""
    return {True: {}, False: None}.get(value, value) if isinstance(value, bool) else value


class SmtpService(MailService):
    """SMTP ends here and goes on to a real server."""

    mode: Literal["smtp"]
    client_address: Literal["none", "xclient"] = "none"
    reverse_names: Annotated[
        ReverseNames | None,
        BeforeValidator(_reverse_names, json_schema_input_type=bool | ReverseNames),
    ] = Field(default=None, description="Tell servers clients' names, too, with XCLIENT")
    banner: Annotated[str, _checked(values.banner)] | None = Field(
        default=None, max_length=200, description="Behind the host name in the greeting"
    )
    bare_newlines: Literal["reject", "normalise", "pass"] = "reject"
    exchange_to_exchange: Bool = Field(default=False, description="Show X-EXPS and X-ANONYMOUSTLS")
    policy: Policy = Field(default_factory=Policy)
    log_addresses: Bool = False


class ImapService(MailService):
    """IMAP ends here and goes on to a real server."""

    mode: Literal["imap"]
    client_address: Literal["none", "id"] = "none"
    login_timeout_s: float = Field(default=60.0, ge=1, le=3600, allow_inf_nan=False)


class Pop3Service(MailService):
    """POP3 ends here and goes on to a real server."""

    mode: Literal["pop3"]
    client_address: Literal["none", "xclient"] = "none"
    login_timeout_s: float = Field(default=60.0, ge=1, le=3600, allow_inf_nan=False)


class Tunnel(Strict):
    """How packets are carried to real servers in other networks."""

    encapsulation: Literal["vxlan", "ipip", "ip6ip6"] = "vxlan"
    allow_peers: Networks = Field(default_factory=list)


class L4Service(Balanced):
    """The kernel forwards."""

    mode: Literal["l4"]
    listen: ListenRanges
    protocol: Literal["tcp", "udp"] = "tcp"
    forward: Literal["transparent", "snat", "dsr", "tunnel"]
    tunnel: Tunnel = Field(default_factory=Tunnel)
    snat_address: Address | None = None
    interface: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]{1,15}$")
    masquerade_outbound: Address | None = Field(
        default=None, description="Address with which the real servers' own connections leave"
    )


class ProfileService(BaseModel):
    """A service from a profile: the profile's parameters and whatever it should have differently."""

    model_config = ConfigDict(extra="allow", strict=True)

    profile: str
    listen: Words | None = None
    vip: Words | None = None
    real_servers: Members | None = None


def _mode(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "tcp"  # refused by every model with the same words
    if value.get("mode") is None:
        return "profile" if "profile" in value else None
    return str(value["mode"])


AnyService = Annotated[
    Annotated[TcpService, Tag("tcp")]
    | Annotated[TlsService, Tag("tls")]
    | Annotated[HttpService, Tag("http")]
    | Annotated[SmtpService, Tag("smtp")]
    | Annotated[ImapService, Tag("imap")]
    | Annotated[Pop3Service, Tag("pop3")]
    | Annotated[L4Service, Tag("l4")]
    | Annotated[ProfileService, Tag("profile")],
    Discriminator(_mode),
]


# the file


class Admin(Strict):
    """Page, API and metrics."""

    listen: EndpointText | None = None
    tokens_file: FilePath | None = None
    certificate: Name | None = None
    client_ca: FilePath | None = None
    hosts: HostPatterns = Field(default_factory=list, description="Names under which the page may be asked for")


class Certificate(Strict):
    """A certificate with its chain, and its key when that is in a file of its own."""

    chain: FilePath
    key: FilePath | None = None
    ocsp: FilePath | None = None


class Log(Strict):
    """Where log lines go and what they look like."""

    to: Literal["stderr", "syslog"] = "stderr"
    format: Literal["text", "json"] = "text"
    sessions: Bool = True
    level: Literal["debug", "info", "warning", "error"] = "info"
    syslog_address: FilePath = "/dev/log"


class AlarmMail(Strict):
    """Alarms as messages, handed to a mail server of the house."""

    server: EndpointText
    sender: MailAddress
    recipients: Annotated[
        list[MailAddress],
        Field(min_length=1),
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ]


class AlarmWebhook(Strict):
    """Alarms as JSON to an address of the web."""

    url: Url | None = None
    url_file: FilePath | None = Field(default=None, description="Instead of url, where the address itself is a secret")
    address: Address | None = Field(default=None, description="IP address behind the name; nothing is looked up")
    ca: FilePath | None = None


class Alarms(Strict):
    """Who is told what happens."""

    level: Literal["info", "warning", "error"] = "warning"
    group_s: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)
    most_per_hour: int = Field(default=20, ge=1, le=1000)
    mail: AlarmMail | None = None
    webhook: AlarmWebhook | None = None
    syslog: FilePath | None = None


class Window(Strict):
    """A time in which a real server is taken out of every service: once (`2026-11-28 22:00`) or every week
    (`sunday 01:00`), in the time zone of the balancer."""

    real_server: Name
    begins: Annotated[str, _checked(values.moment)] = Field(alias="from")
    until: Annotated[str, _checked(values.moment)]


class Maintenance(Strict):
    """Planned maintenance."""

    windows: list[Window] = Field(default_factory=list)


def _parts(value: Any) -> Any:
    """A list of parts is a mapping from parts to what they should have differently: nothing."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return {part: {} for part in value}
    if isinstance(value, dict):
        return {part: {} if overrides is None else overrides for part, overrides in value.items()}
    return value


class WholeProfile(BaseModel):
    """A whole profile on one address; its parameters are keys here too."""

    model_config = ConfigDict(extra="allow", strict=True)

    profile: str | None = None
    vip: Words
    real_servers: Members
    services: Annotated[
        dict[str, dict[str, Any]], BeforeValidator(_parts, json_schema_input_type=list[str] | dict[str, Any])
    ] = Field(default_factory=dict)
    prefix: str = ""


CertificateField = Annotated[Certificate, BeforeValidator(_short("chain"), json_schema_input_type=str | Certificate)]
WorkerCount = Annotated[int, Field(ge=1, le=64)]
Workers = Annotated[
    WorkerCount | None,
    BeforeValidator(lambda v: None if v == "auto" else v, json_schema_input_type=Literal["auto"] | WorkerCount),
]


class Document(Strict):
    """mailbalancer's configuration file."""

    version: Literal[1] = 1
    admin: Admin = Field(default_factory=Admin)
    alarms: Alarms = Field(default_factory=Alarms)
    maintenance: Maintenance = Field(default_factory=Maintenance)
    workers: Workers = Field(default=None, description="auto: one per core")
    certificates: dict[Name, CertificateField] = Field(default_factory=dict)
    certificates_dir: FilePath = "certs"
    real_servers: dict[Name, RealServerField] = Field(default_factory=dict)
    services: dict[Name, AnyService] = Field(default_factory=dict)
    profiles: dict[Name, WholeProfile] = Field(default_factory=dict)
    profiles_dir: FilePaths = Field(default_factory=list)
    control_socket: FilePath = "/run/mailbalancer/control.sock"
    state_file: Annotated[str, _checked(lambda text: text and values.file_path(text))] = Field(
        default="/var/lib/mailbalancer/state.json", description="Empty: operator's states are forgotten at restart"
    )
    user: Annotated[
        str,
        _checked(values.user),
        Field(description="To become when started as root; auto: mailbalancer if there is such a user; empty: stay"),
    ] = "auto"
    log: Log = Field(default_factory=Log)
    stop_timeout_s: float = Field(default=30.0, ge=0, le=DAY_S, allow_inf_nan=False)


SERVICE_MODELS: dict[str, type[Balanced]] = {
    "tcp": TcpService,
    "tls": TlsService,
    "http": HttpService,
    "smtp": SmtpService,
    "imap": ImapService,
    "pop3": Pop3Service,
    "l4": L4Service,
}
CHECK_MODELS: dict[str, type[Strict]] = {
    "tcp": TcpCheck,
    "tls": TlsCheck,
    "http": HttpCheck,
    "https": HttpsCheck,
    "smtp": SmtpCheck,
    "imap": ImapCheck,
    "pop3": Pop3Check,
    "dns": DnsCheck,
    "none": NoCheck,
}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the file, for editors that complete and check YAML."""
    schema = Document.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "mailbalancer configuration"}
