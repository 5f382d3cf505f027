"""Profiles: service templates with parameters, and the checklist of what the servers need.

Decides: the format of a profile file, where profiles are found and in which order, how placeholders are filled in, and
how a configured service becomes a profile again.
Refuses to know: the rest of the configuration; `expand` puts services in place.

A profile file `exchange-2019.yaml`:

    profile: exchange-2019                  # the file's name
    title: Exchange 2019
    description: what it is for, and what it assumes
    parameters:
      host: {description: name that clients use, type: host, example: mail.example.com}
    services:
      https:
        port: 443                           # the service listens on vip:443 when it has no listen of its own
        mode: tls
        check: {type: https, path: /owa/healthcheck.htm, host: "${host}"}
    checklist:
      - title: Virtual directories
        why: clients are told these addresses by Autodiscover
        platform: exchange
        services: [https]                   # empty: for all of them
        commands: ["Set-OwaVirtualDirectory -InternalUrl https://${host}/owa ..."]

A value that is one placeholder becomes the parameter's value with its type; inside longer text it is written out;
`$${` is a literal `${`. A parameter is required unless it says `required: false` or has a default; whatever uses an
optional parameter without value is left out. `${service}` and `${vip}` are always known. Placeholders are filled in on
parsed data, never on YAML text, so no value can become structure. A default may use parameters that stand before it;
a parameter of type `networks` is a list when it is a whole value, and its entries with commas inside longer text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from mailbalancer.config import values
from mailbalancer.config.problems import Path, Place, Problem, formatted, hint, quoted, why_unread
from mailbalancer.config.schema import SERVICE_MODELS, Bool, Name, Strict, WholeProfile
from mailbalancer.config.validate import validate_as
from mailbalancer.config.yaml_lines import Node, Scalar, read_yaml
from mailbalancer.errors import ConfigError
from mailbalancer.model import AVAILABLE_MODES, Mode

Platform = Literal["dns", "exchange", "registry", "postfix", "dovecot", "linux", "windows", "balancer"]
ParameterType = Literal["host", "certificate", "ip", "network", "networks", "port", "text", "seconds"]

#: Always known to placeholders.
BUILT_IN = frozenset({"service", "vip"})
#: A parameter is given as a key of the service, so it cannot have the name of one.
RESERVED = (
    frozenset(key for model in SERVICE_MODELS.values() for key in model.model_fields)
    | frozenset(WholeProfile.model_fields)
    | BUILT_IN
)
_LATER_MODES = frozenset(str(mode) for mode in Mode if mode not in AVAILABLE_MODES)
_PLACEHOLDER = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
_SHIPPED = FilePath(__file__).resolve().parent.parent / "shipped_profiles"


# the format


class Parameter(Strict):
    """Something that a profile cannot know."""

    description: str
    required: Bool | None = None
    type: ParameterType = "text"
    example: str | int | float | None = None
    default: str | int | float | None = None

    @property
    def must_be_given(self) -> bool:
        return self.default is None if self.required is None else self.required


class ChecklistEntry(Strict):
    """Something to do outside the balancer."""

    title: str
    why: str
    platform: Platform
    services: list[Name] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list)


def _parameter_name(text: str) -> str:
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z", text):
        raise ValueError(f"{quoted(text)} cannot be a parameter: letters, digits and '_', beginning with a letter")
    if text in RESERVED:
        raise ValueError(f"{quoted(text)} cannot be a parameter, because it is a setting of services")
    return text


class ProfileFile(Strict):
    """A profile as it is written."""

    profile: Name
    title: str
    description: str = ""
    parameters: dict[Annotated[str, AfterValidator(_parameter_name)], Parameter] = Field(default_factory=dict)
    services: dict[Name, dict[str, Any]] = Field(min_length=1)
    #: What a whole profile means that names no services: alternatives of one port cannot all be had. Absent: all.
    default_services: list[Name] = Field(default_factory=list)
    checklist: list[ChecklistEntry] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile that was read and found right."""

    file: FilePath
    written: ProfileFile
    root: Node

    @property
    def name(self) -> str:
        return self.written.profile

    def not_available(self) -> list[str]:
        """Its services whose mode this version does not run."""
        return [name for name, body in self.written.services.items() if body.get("mode") in _LATER_MODES]

    def part(self, service: str) -> Node | None:
        """The template of one of its services, with places."""
        services = self.root.get("services")
        return services.get(service) if services else None


@dataclass(frozen=True, slots=True)
class ChecklistItem:
    """One thing to do, with every placeholder filled in."""

    title: str
    why: str
    platform: str
    services: tuple[str, ...]
    commands: tuple[str, ...]
    #: Parameters that commands were left out for, because they have no value: `vip` or one of the profile's own.
    missing: tuple[str, ...] = ()


# finding them


def search_dirs() -> tuple[FilePath, ...]:
    """Where profiles are looked for: $MAILBALANCER_PROFILES, then /etc/mailbalancer/profiles, then the shipped ones."""
    named = os.environ.get("MAILBALANCER_PROFILES", "")
    own = [FilePath(folder) for folder in named.split(os.pathsep) if folder]
    return (*own, FilePath("/etc/mailbalancer/profiles"), _SHIPPED)


def profile_files(dirs: Sequence[FilePath]) -> dict[str, FilePath]:
    """The file of every profile by name; the first folder that has one wins."""
    found: dict[str, FilePath] = {}
    for folder in dirs:
        try:
            files = sorted(folder.glob("*.yaml"))
        except OSError:
            continue  # a folder that may not be read has no profiles for this user
        for file in files:
            if values.NAME.match(file.stem):
                found.setdefault(file.stem, file)
    return found


def read_profile(file: FilePath, problems: list[Problem]) -> Profile | None:
    """Read one profile file; None, with its problems added, when it is not right."""
    found: list[Problem] = []
    try:
        root = read_yaml(file.read_bytes(), str(file), found)
    except OSError as error:
        problems.append(Problem(Place(str(file), 1), (), f"the profile cannot be read: {why_unread(error)}"))
        return None
    written = validate_as(ProfileFile, root, found) if root else None
    if root and written:
        _examine(file, root, written, found)
    problems.extend(found)
    return Profile(file, written, root) if root and written and not found else None


def _examine(file: FilePath, root: Node, written: ProfileFile, problems: list[Problem]) -> None:
    """What the schema cannot see: the name, the checklist's services, the placeholders."""

    def problem(path: Path, text: str) -> None:
        place, there = root.locate(path)
        problems.append(Problem(place, there, text))

    if written.profile != file.stem:
        problem(("profile",), f"{quoted(written.profile)} must be the file's name, {quoted(file.stem)}")
    known = set(written.parameters) | BUILT_IN
    for path, node in _scalars(root, ()):
        for word in placeholders(node.value):
            if word not in known and path[0] in ("services", "checklist"):
                problem(path, f"${{{word}}} is not a parameter of this profile{hint(word, known)}")
    for at, entry in enumerate(written.checklist):
        for service in entry.services:
            if service not in written.services:
                problem(("checklist", at, "services"), f"{quoted(service)} is not a service of this profile")
    for service in written.default_services:
        if service not in written.services:
            problem(("default_services",), f"{quoted(service)} is not a service of this profile")
    before: set[str] = set()
    for name, parameter in written.parameters.items():
        for reason in _unfit_values(parameter, before):
            problem(("parameters", name), reason)
        before.add(name)


def _unfit_values(parameter: Parameter, before: Collection[str]) -> Iterator[str]:
    """What is wrong with a parameter's own default and example; `before`: what its default may use."""
    words = placeholders(parameter.default)
    for word in words:
        if word not in before:
            yield f"${{{word}}} is not a parameter that stands before this one{hint(word, before)}"
    for value in (None if words else parameter.default, parameter.example):
        reason = "" if value is None else wrong_value(parameter.type, value)
        if reason:
            yield reason


def _scalars(node: Node, path: Path) -> Iterator[tuple[Path, Node]]:
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _scalars(child, (*path, key))
    elif isinstance(node.value, list):
        for at, child in enumerate(node.value):
            yield from _scalars(child, (*path, at))
    else:
        yield path, node


@dataclass(slots=True)
class Library:
    """The profiles of some folders, each read once."""

    dirs: Sequence[FilePath]
    problems: list[Problem] = field(default_factory=list)
    _files: dict[str, FilePath] | None = None
    _read: dict[str, Profile | None] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, FilePath]:
        if self._files is None:
            self._files = profile_files(self.dirs)
        return self._files

    def get(self, name: str) -> Profile | None:
        """The profile of this name; None when there is none, or when it has problems (added once)."""
        if name not in self._read:
            file = self.files.get(name)
            self._read[name] = read_profile(file, self.problems) if file else None
        return self._read[name]

    def find(self, reference: str) -> tuple[str, str] | None:
        """Profile and service that `exchange-2019-https`, `exchange-2019/https` or a one-service `dns` names.

        The longest profile name that fits is meant. None when no file fits.
        """
        name, slash, part = reference.partition("/")
        if slash:
            return (name, part) if name in self.files else None
        if name in self.files:
            profile = self.get(name)
            return name, (
                next(iter(profile.written.services)) if profile and len(profile.written.services) == 1 else ""
            )
        fitting = [known for known in self.files if name.startswith(f"{known}-")]
        best = max(fitting, key=len, default="")
        return (best, name[len(best) + 1 :]) if best else None


def list_profiles(dirs: Sequence[FilePath] | None = None) -> list[Profile]:
    """Every profile that can be found, by name.

    Raises:
        ConfigError: a profile file has problems.
    """
    library = Library(dirs if dirs is not None else search_dirs())
    found = [profile for name in sorted(library.files) if (profile := library.get(name))]
    if library.problems:
        raise ConfigError(formatted(library.problems))
    return found


def load_profile(name: str, dirs: Sequence[FilePath] | None = None) -> Profile:
    """One profile by name.

    Raises:
        ConfigError: there is no such profile, or it has problems.
    """
    library = Library(dirs if dirs is not None else search_dirs())
    profile = library.get(name)
    if profile is None:
        problems = formatted(library.problems) or [f"there is no profile {quoted(name)}{hint(name, library.files)}"]
        raise ConfigError(problems)
    return profile


# filling them in


def placeholders(value: object) -> list[str]:
    """The parameters that a text uses."""
    if not isinstance(value, str):
        return []
    return [found[2] for found in _PLACEHOLDER.finditer(value) if not found[1]]


def substitute(value: Scalar, given: Mapping[str, Scalar]) -> tuple[bool, Scalar]:
    """A value with its placeholders filled in, and whether all of them have a value."""
    if not isinstance(value, str):
        return True, value
    if any(given.get(word) is None for word in placeholders(value)):
        return False, None
    whole = _PLACEHOLDER.fullmatch(value)
    if whole and not whole[1]:
        return True, given[whole[2]]
    return True, _PLACEHOLDER.sub(lambda found: found[0][1:] if found[1] else str(given[found[2]]), value)


def wrong_value(kind: str, value: Scalar) -> str:
    """Why a value cannot be that of a parameter of this type; empty when it can."""
    if kind in ("port", "seconds"):
        return _wrong_number(kind, value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return f"{quoted(value)} is not text"
    try:
        match kind:
            case "host":
                values.host_pattern(str(value))
            case "certificate":
                values.name(str(value))
            case "ip":
                values.address(str(value))
            case "network":
                values.network(str(value))
            case "networks":
                for entry in str(value).split(","):
                    values.network(entry.strip(" "))
    except ValueError as error:
        return str(error)
    return ""


def _wrong_number(kind: str, value: Scalar) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{quoted(value)} is not a number"
    if kind == "port" and not (isinstance(value, int) and 1 <= value <= 65535):
        return f"{value} is not a port (1 to 65535)"
    return f"{value} is not a number of seconds" if value < 0 else ""


def needed(name: str, parameter: Parameter) -> str:
    """The sentence about a parameter that was not given."""
    example = f", for example {name}: {parameter.example}" if parameter.example is not None else ""
    return f"{quoted(name)} ({parameter.description}){example}"


def complete(profile: Profile, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The given values with the profile's defaults; optional parameters without a value are None."""
    filled: dict[str, Scalar] = {}
    for name, parameter in profile.written.parameters.items():
        value = given.get(name)
        filled[name] = substitute(parameter.default, filled)[1] if value is None else value
    return filled


def checklist(
    profile: Profile, given: Mapping[str, Scalar], services: Sequence[str] = (), *, service: str = "", vip: str = ""
) -> tuple[ChecklistItem, ...]:
    """What is to be done on the servers and around them.

    Args:
        given: values of the profile's parameters.
        services: only entries for these parts of the profile; empty: all.
        service: fills in `${service}`; the profile's name when empty.
        vip: fills in `${vip}`; commands with it are left out when empty.

    Raises:
        ConfigError: a parameter is unknown, missing or of the wrong type.
    """
    parameters = profile.written.parameters
    problems = [f"{quoted(name)} is not a parameter of profile {profile.name}{hint(name, parameters)}"
                for name in given if name not in parameters]  # fmt: skip
    filled = complete(profile, given)
    for name, parameter in parameters.items():
        if filled[name] is None and parameter.must_be_given:
            problems.append(f"profile {profile.name} needs {needed(name, parameter)}")
        elif filled[name] is not None and wrong_value(parameter.type, filled[name]):
            problems.append(f"{name}: {wrong_value(parameter.type, filled[name])}")
    if problems:
        raise ConfigError(problems)
    filled |= {"service": service or profile.name, "vip": vip or None}
    wanted = set(services)
    return tuple(
        _item(entry, filled)
        for entry in profile.written.checklist
        if not wanted or not entry.services or wanted & set(entry.services)
    )


def _item(entry: ChecklistEntry, filled: Mapping[str, Scalar]) -> ChecklistItem:
    missing = dict.fromkeys(w for command in entry.commands for w in placeholders(command) if filled.get(w) is None)
    return ChecklistItem(
        _filled(entry.title, filled) or entry.title,
        _filled(entry.why, filled) or entry.why,
        entry.platform,
        tuple(entry.services),
        tuple(text for command in entry.commands if (text := _filled(command, filled)) is not None),
        tuple(missing),
    )


def _filled(text: str, given: Mapping[str, Scalar]) -> str | None:
    """The text with its placeholders filled in; None when one has no value."""
    usable, value = substitute(text, given)
    return str(value) if usable else None


# and back


def export(root: Node, service: str) -> str:
    """A configured service as a profile, YAML text: its addresses, names, certificates and real servers taken out.

    Args:
        root: the configuration with its profiles expanded (`load.tree`).

    Raises:
        ConfigError: there is no such service.
    """
    services = root.get("services")
    node = services.get(service) if services else None
    if services is None or node is None or not isinstance(node.value, dict):
        known = services.items() if services else {}
        raise ConfigError([f"there is no service {quoted(service)} in {root.place.file}{hint(service, known)}"])
    template = _Template()
    body = {
        key: template.take(key, value)
        for key, value in node.plain().items()
        if key not in ("listen", "vip", "real_servers", "profile", "real_server_port")
    }
    profile = {
        "profile": service,
        "title": f"Service {service}",
        "description": f"Made from service {service}; real servers and addresses are left out.",
        "parameters": template.parameters,
        "services": {service: _ports(node) | body},
    }
    return str(yaml.safe_dump(profile, sort_keys=False, allow_unicode=True, width=110))


def _ports(node: Node) -> dict[str, int]:
    """The port to listen on, and that of the real servers when all have the same other one."""
    listen = node.get("listen")
    first = listen.value if listen else ""
    text = first[0].value if isinstance(first, list) and first else first
    try:
        listening = values.port(values.split_port(str(text))[1])
    except ValueError:
        return {}
    behind = _member_ports(node, listening)
    return {"port": listening} | ({"real_server_port": behind.pop()} if behind not in ({listening}, set()) else {})


def _member_ports(node: Node, listening: int) -> set[int]:
    """The one port of all real servers; empty when they have none or differ."""
    general = node.get("real_server_port")
    usual = general.value if general and isinstance(general.value, int) else listening
    members = node.get("real_servers")
    ports: set[int] = set()
    for member in members.items().values() if members else ():
        own = member.get("port") if isinstance(member.value, dict) else member
        ports.add(own.value if own and isinstance(own.value, int) else usual)
    return ports if len(ports) == 1 else (set() if ports else {usual})


class _Template:
    """Puts placeholders where a service has names of its own."""

    def __init__(self) -> None:
        self.parameters: dict[str, dict[str, Any]] = {}
        self._names: dict[tuple[str, str], str] = {}

    def take(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            # the name in a server's certificate is one that clients use too
            return {
                name: self.take("host" if (key, name) == ("verify", "name") else name, child)
                for name, child in value.items()
            }
        if isinstance(value, list):
            return [self.take(key, child) for child in value]
        if not isinstance(value, str):
            return value
        if key in ("host", "hosts") and values.NAME.match(value.removeprefix("*.")):
            return self._parameter("host", value, "name that clients use")
        if key == "certificate":
            return self._parameter("certificate", value, "name of the certificate")
        return value.replace("${", "$${")

    def _parameter(self, kind: str, value: str, description: str) -> str:
        name = self._names.get((kind, value))
        if name is None:
            count = sum(1 for known, _ in self._names if known == kind)
            name = self._names[kind, value] = f"{kind}_{count + 1}" if count else kind
            self.parameters[name] = {"description": description, "type": kind, "example": value}
        return "${" + name + "}"
