"""Small configurations for tests of the supervisor's parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mailbalancer.model import Check, Config, Endpoint, Member, Mode, Persist, Pool, RealServer, Route, Service

#: Ports that nothing in these tests connects to.
SOMEWHERE = Endpoint("127.0.0.1", 9)


def pool(service: str = "smtp", names: Iterable[str] = ("ex1", "ex2"), route: str = "", **settings: object) -> Pool:
    members = tuple(Member(name, SOMEWHERE) for name in names)
    base = Pool(service, route, members, check=Check(rise=2, fall=3))
    return replace(base, **settings)  # type: ignore[arg-type]


def service(
    name: str = "smtp", listen: Iterable[Endpoint] = (), names: Iterable[str] = ("ex1", "ex2"), **settings: object
) -> Service:
    """A tcp service; settings of its pool and of the service itself may be mixed."""
    of_pool = {key: value for key, value in settings.items() if key in Pool.__dataclass_fields__}
    rest = {key: value for key, value in settings.items() if key not in of_pool}
    base = Service(name, Mode.TCP, tuple(listen), pool(name, names, **of_pool))  # type: ignore[arg-type]
    return replace(base, **rest)  # type: ignore[arg-type]


def route(service: str, name: str, names: Iterable[str] = ("ex1",)) -> Route:
    return Route(name, (f"{name}.example.com",), pool(service, names, route=name))


def config(*services: Service, workers: int = 2, **settings: object) -> Config:
    names = {member.real_server for one in services for each in one.pools() for member in each.members}
    servers = tuple(RealServer(name, "127.0.0.1") for name in sorted(names))
    base = Config("mailbalancer.yaml", services, servers, workers, "/nowhere/control", "", "")
    return replace(base, **settings)  # type: ignore[arg-type]


def persist(group: str = "cas", **settings: object) -> Persist:
    return replace(Persist(group=group), **settings)  # type: ignore[arg-type]
