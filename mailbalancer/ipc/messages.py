"""What supervisor and workers tell each other.

Decides: the vocabulary. Downwards (supervisor to worker) a message is a pickled dataclass: the worker trusts the
process that made it. Upwards it is JSON, because a worker handles bytes from strangers and the supervisor must not run
anything that a worker could have been made to send.
Refuses to know: sockets (`channel`) and what anybody does on receipt.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from mailbalancer.model import Config, Endpoint, MemberKey, SourceKey
from mailbalancer.tls.material import Material

# ---------------------------------------------------------------- down


@dataclass(frozen=True, slots=True)
class Configure:
    """Run this configuration. Descriptors of listeners not yet known to the worker travel with the message.

    Attributes:
        version: counts up with every applied configuration.
        slots: the slot of every member on the board.
        service_slots: the slot of every service on the board (its own sums: sessions, refused, queued).
        listeners: every address that must be listened on after this, by listener id.
        passed: listener ids of the attached descriptors, in order.
        bindings: persistence known to the supervisor, for a worker that starts empty.
        fronts: what the services that speak TLS show their clients.
        source_slots: where sessions from one of our addresses to one real server are counted.
    """

    version: int
    config: Config
    slots: dict[MemberKey, int]
    service_slots: dict[str, int]
    listeners: dict[int, Listening]
    passed: tuple[int, ...] = ()
    bindings: tuple[Binding, ...] = ()
    fronts: dict[str, Front] = field(default_factory=dict)
    source_slots: dict[SourceKey, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listening:
    """One listening address and the service that owns it."""

    service: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Front:
    """What a service shows its clients, read and validated by the supervisor: what was checked is what is served.

    Attributes:
        owner, place: whose session keys, and where they lie (`tls.context_pool`).
        materials: the default certificate first.
        authorities: PEM; whose client certificates are welcome. Empty: none is asked for.
    """

    owner: str
    place: int
    materials: tuple[Material, ...]
    authorities: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """One entry of a persistence table: this key's clients go to that real server until `expires_at` (monotonic)."""

    group: str
    key: str
    real_server: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Bind:
    """Another worker learned a binding in a table that is shared between workers."""

    binding: Binding


@dataclass(frozen=True, slots=True)
class Unbind:
    """Forget bindings: all of a group, or one key, or everything (group empty)."""

    group: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Offers:
    """What the real servers of an `smtp` service offer after EHLO, as far as it is known: lines by real server."""

    service: str
    lines: dict[str, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class EndChannels:
    """A channel of this session of RPC over HTTP broke in another worker: end those that are here."""

    service: str
    cookie: bytes


@dataclass(frozen=True, slots=True)
class DropSessions:
    """End the sessions counted on this slot (drain time is over, or the operator asked)."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class ListSessions:
    """Ask for at most `limit` live sessions of a service (empty: all); a `SessionList` with this `ask` comes back."""

    ask: int
    service: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop accepting, let sessions finish until `deadline_at` (monotonic), then end."""

    deadline_at: float


Down = Configure | Bind | Unbind | Offers | EndChannels | DropSessions | ListSessions | Stop


def pack_down(message: Down) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def unpack_down(data: bytes) -> Down:
    message: Down = pickle.loads(data)
    return message


# ---------------------------------------------------------------- up


@dataclass(frozen=True, slots=True)
class Configured:
    """The worker now runs this version; `error` says why it does not."""

    version: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """The worker bound a key (new, or moved, or refreshed after half its time)."""

    group: str
    key: str
    real_server: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Imbalance:
    """One source address carries `sessions` of `total` sessions of a source-persistent service; 0: no longer."""

    service: str
    source: str
    sessions: int
    total: int


@dataclass(frozen=True, slots=True)
class Remark:
    """What a real server said to a session about itself.

    Attributes:
        kind: `maintenance` (421 4.3.2), `back_pressure` (452 4.3.1) or `failure` (it could not be connected to, or
            would not serve the session, which is counted on the board; these are the words for it).
        reason: one phrase for an administrator.
    """

    service: str
    route: str
    real_server: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Offered:
    """A real server offered a session something after EHLO that was not known of it; one line each."""

    service: str
    real_server: str
    lines: list[str]


@dataclass(frozen=True, slots=True)
class ChannelBroke:
    """A channel of a session of RPC over HTTP ended as it should not; its other half may be in another worker.

    Attributes:
        cookie: of the virtual connection, 16 bytes in hexadecimal.
    """

    service: str
    cookie: str


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """In this worker the first client of a network was given our address, although the service uses clients' own.

    Attributes:
        network: as in `Source`; or `IPv4`, `IPv6`: clients of that version at a server without an address of it.
    """

    service: str
    network: str


@dataclass(frozen=True, slots=True)
class SessionList:
    """Answer to `ListSessions`: one dict per session, `more` when the limit cut it."""

    ask: int
    sessions: list[dict[str, Any]] = field(default_factory=list)
    more: int = 0


@dataclass(frozen=True, slots=True)
class Stopped:
    """All sessions are over, or the deadline passed with `left` still open; the worker ends now."""

    left: int


Up = Configured | Bound | ChannelBroke | Imbalance | Remark | Offered | OwnAddress | SessionList | Stopped

_UP: dict[str, type[Any]] = {t.__name__: t for t in get_args(Up)}


def pack_up(message: Up) -> bytes:
    return json.dumps({"type": type(message).__name__, **asdict(message)}, separators=(",", ":")).encode()


def unpack_up(data: bytes) -> Up:
    """Raises ValueError when it is no message of ours."""
    try:
        fields = json.loads(data)
        message: Up = _UP[fields.pop("type")](**fields)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a message: {data[:80]!r}") from error
    return message
