"""Puts profiles in place of their names: a tree with profiles becomes a tree of services only.

Decides: what of a service comes from its profile and what the operator changed: mappings are merged, lists and single
values replace, and a check of another type (or a persistence by another key) replaces the whole of it.
Refuses to know: what the settings mean; the result is validated like everything else.

Values that come from a profile stand, for problems, at the line of the configuration that named the profile, with the
profile's own line beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from mailbalancer.config.problems import Path, Place, Problem, hint, quoted
from mailbalancer.config.profiles import (
    BUILT_IN,
    RESERVED,
    Library,
    Profile,
    complete,
    needed,
    placeholders,
    substitute,
    wrong_value,
)
from mailbalancer.config.schema import WholeProfile
from mailbalancer.config.yaml_lines import Node, Scalar


@dataclass(slots=True)
class Expanded:
    """The tree without profiles. `profiles` says which one a service came from."""

    root: Node
    profiles: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    #: Services that could not be expanded; their problems are told.
    dropped: set[Path] = field(default_factory=set)


def expand(root: Node, dirs: Sequence[FilePath]) -> Expanded:
    """Expand every profile of a configuration."""
    return _Expander(root, Library(dirs)).run()


class _Expander:
    def __init__(self, root: Node, library: Library) -> None:
        self._root = root
        self._library = library
        self._result = Expanded(root)

    def run(self) -> Expanded:
        written = self._root.get("services")
        services = dict(written.items()) if written else {}
        self._add_whole_profiles(services)
        expanded: dict[str, Node] = {}
        for name, service in services.items():
            done = self._service(name, service) if service.get("profile") else service
            if done is not None:
                expanded[name] = done
            else:
                self._result.dropped.add(("services", name))
        if services:
            place = written.place if written else self._root.place
            self._result.root = Node(self._root.place, {**self._root.items(), "services": Node(place, expanded)})
        self._result.problems.extend(self._library.problems)
        return self._result

    def _problem(self, place: Place, path: Path, text: str) -> None:
        self._result.problems.append(Problem(place, path, text))

    # whole profiles

    def _add_whole_profiles(self, services: dict[str, Node]) -> None:
        whole = self._root.get("profiles")
        for key, entry in whole.items().items() if whole else ():
            named = entry.get("profile")
            name = named.value if named and isinstance(named.value, str) else key
            path: Path = ("profiles", key)
            profile = self._library.get(name)
            if profile is None:
                if name not in self._library.files:  # else its own problems are told
                    self._no_profile(entry.place, path, name, self._library.files)
                self._result.dropped.add(path)
            elif isinstance(entry.value, dict):
                self._add_whole(services, path, entry, profile)

    def _add_whole(self, services: dict[str, Node], path: Path, entry: Node, profile: Profile) -> None:
        shared = {key: node for key, node in entry.items().items() if key not in _WHOLE_ONLY}
        self._refuse_unknown_keys(path, shared, profile)
        prefix = entry.get("prefix")
        before = prefix.value if prefix and isinstance(prefix.value, str) else ""
        for part, overrides in self._wanted_parts(path, entry, profile).items():
            name = f"{before}{part}"
            if name in services:
                first = services[name].place
                text = f"its service {quoted(name)} is already there (line {first.line}); write a prefix"
                self._problem(entry.place, path, text)
                continue
            reference = Node(entry.place, f"{profile.name}/{part}")
            services[name] = Node(entry.place, {"profile": reference, **shared, **overrides.items()})

    def _wanted_parts(self, path: Path, entry: Node, profile: Profile) -> dict[str, Node]:
        """The parts of the profile to use, with what each should have differently."""
        asked = entry.get("services")
        nothing = Node(entry.place, {})
        if asked is None:
            return dict.fromkeys(profile.written.default_services or profile.written.services, nothing)
        if isinstance(asked.value, dict):
            parts = dict(asked.value)
        elif isinstance(asked.value, list):
            parts = {node.value: nothing for node in asked.value if isinstance(node.value, str)}
        else:
            return {}  # the schema says what is wrong with it
        known = profile.written.services
        for part in parts:
            if part not in known:
                text = f"{quoted(part)} is not a service of profile {profile.name}{hint(part, known)}"
                self._problem(asked.place, (*path, "services"), text)
        return {part: overrides for part, overrides in parts.items() if part in known}

    def _refuse_unknown_keys(self, path: Path, shared: Mapping[str, Node], profile: Profile) -> None:
        known = set(profile.written.parameters) | RESERVED - BUILT_IN | {"vip"}
        for key, node in shared.items():
            if key not in known:
                text = f"{quoted(key)} is neither a parameter of profile {profile.name} nor a setting of services"
                meant = hint(key, [*profile.written.parameters, "vip", "services", "prefix", "real_servers"])
                self._problem(node.place, (*path, key), f"{text}{meant}")

    def _no_profile(self, place: Place, path: Path, name: str, known: Iterable[str]) -> None:
        there = list(known)
        folders = ", ".join(str(folder) for folder in self._library.dirs)
        remedy = hint(name, there) if there else f"; no profile was found in {folders}"
        self._problem(place, path, f"there is no profile {quoted(name)}{remedy}")

    # one service

    def _service(self, name: str, service: Node) -> Node | None:
        path: Path = ("services", name)
        found = self._find(path, service)
        if found is None:
            return None
        profile, part, template = found
        own = {key: node for key, node in service.items().items() if key not in ("profile", "vip")}
        given = {key: own.pop(key) for key in list(own) if key in profile.written.parameters}
        if not self._parameters_fit(path, service, profile, given):
            return None
        named = service.items()["profile"].place
        filler = _Filler(named, self._values(name, service, profile, given), given)
        filled = filler.fill(template) or Node(named, {})
        port = filled.items().pop("port", None)
        merged = merge(filled, Node(service.place, own))
        if "listen" not in merged.items() and port:
            listen = self._listen(path, service, port)
            if listen is None:
                return None
            merged.items()["listen"] = listen
        self._result.profiles[name] = f"{profile.name}-{part}"
        return merged

    def _find(self, path: Path, service: Node) -> tuple[Profile, str, Node] | None:
        reference = service.items()["profile"]
        if not isinstance(reference.value, str):
            self._problem(reference.place, (*path, "profile"), "must be the name of a profile")
            return None
        where: Path = (*path, "profile")
        found = self._library.find(reference.value)
        if found is None:
            self._no_profile(reference.place, where, reference.value, self._every_reference())
            return None
        profile = self._library.get(found[0])
        if profile is None:
            return None  # its own problems are told
        template = profile.part(found[1])
        if template is None:
            known = [f"{profile.name}-{part}" for part in profile.written.services]
            self._no_profile(reference.place, where, reference.value, known)
            return None
        return profile, found[1], template

    def _every_reference(self) -> list[str]:
        profiles = [profile for name in self._library.files if (profile := self._library.get(name))]
        return [f"{profile.name}-{part}" for profile in profiles for part in profile.written.services]

    def _parameters_fit(self, path: Path, service: Node, profile: Profile, given: Mapping[str, Node]) -> bool:
        fit = True
        for name, parameter in profile.written.parameters.items():
            node = given.get(name)
            if node is None or node.value is None:
                if parameter.must_be_given:
                    text = f"profile {profile.name} needs {needed(name, parameter)}"
                    self._problem(service.place, path, text)
                    fit = False
                continue
            for place, reason in _unfit(parameter.type, node):
                self._problem(place, (*path, name), reason)
                fit = False
        return fit

    def _values(self, name: str, service: Node, profile: Profile, given: Mapping[str, Node]) -> dict[str, Scalar]:
        plain = {key: _as_text(node) for key, node in given.items()}
        vips = _vips(service)
        return complete(profile, plain) | {"service": name, "vip": str(vips[0].value) if vips else None}

    def _listen(self, path: Path, service: Node, port: Node) -> Node | None:
        """`vip` and the template's port."""
        vips = _vips(service)
        if not vips:
            text = (
                f"'listen' is missing; write listen: 10.0.1.100:{port.value}, or vip: 10.0.1.100 for the profile's port"
            )
            self._problem(service.place, path, text)
            return None
        entries: list[Node] = []
        for vip in vips:
            host = f"[{vip.value}]" if ":" in str(vip.value) else str(vip.value)
            entries.append(Node(vip.place, f"{host}:{port.value}"))
        return Node(vips[0].place, entries)


def _unfit(kind: str, node: Node) -> Iterator[tuple[Place, str]]:
    """What is wrong with the value given for a parameter of this type, and where."""
    if kind == "networks" and isinstance(node.value, list):
        for entry in node.value:
            yield from _unfit("network", entry)
        return
    value = node.value
    reason = "must be one value" if isinstance(value, list | dict) else wrong_value(kind, value)
    if reason:
        yield node.place, reason


def _as_text(node: Node) -> Scalar:
    """A parameter's value as it stands inside longer text."""
    if isinstance(node.value, list):
        return ",".join(str(entry.value) for entry in node.value)
    return None if isinstance(node.value, dict) else node.value


_WHOLE_ONLY = frozenset(WholeProfile.model_fields) - {"vip", "real_servers"}


def _vips(service: Node) -> list[Node]:
    vip = service.get("vip")
    if vip is None:
        return []
    return vip.value if isinstance(vip.value, list) else [vip]


@dataclass(frozen=True, slots=True)
class _Filler:
    """Copies a template into the configuration: placeholders filled in, places moved to the line that named it."""

    named: Place
    values: Mapping[str, Scalar]
    given: Mapping[str, Node]

    def fill(self, node: Node) -> Node | None:
        """None: it used an optional parameter that has no value."""
        place = Place(self.named.file, self.named.line, f"{node.place.file}:{node.place.line}")
        if isinstance(node.value, dict):
            entries = {key: self.fill(child) for key, child in node.value.items()}
            return Node(place, {key: child for key, child in entries.items() if child is not None})
        if isinstance(node.value, list):
            return Node(place, [child for entry in node.value if (child := self.fill(entry)) is not None])
        if self._names_a_list(node.value):
            return self.given[placeholders(node.value)[0]]
        usable, value = substitute(node.value, self.values)
        if not usable:
            return None
        # what an operator's value spoils is shown where the operator wrote it
        words = [word for word in placeholders(node.value) if word in self.given]
        if words:
            own = self.given[words[0]].place
            place = Place(own.file, own.line, place.origin)
        return Node(place, value)

    def _names_a_list(self, value: Scalar) -> bool:
        """Whether the value is nothing but a parameter that the operator gave as a list."""
        words = placeholders(value)
        given = self.given.get(words[0]) if words else None
        return given is not None and isinstance(given.value, list) and value == f"${{{words[0]}}}"


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or _another_kind(base, over):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        below = merged.get(key)
        merged[key] = merge(below, node) if below is not None else node
    return Node(over.place, merged)


def _another_kind(base: Node, over: Node) -> bool:
    """A check of another type has other options; nothing of the profile's check fits it any more."""
    return any(
        (mine := over.get(key)) is not None and (theirs := base.get(key)) is not None and mine.value != theirs.value
        for key in ("type", "by")
    )
