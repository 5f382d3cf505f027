"""The folder for certificates that come in through the door, and for keys that wait for theirs.

Decides: what its files are called, that every one with a key in it is readable for its owner alone, and which file a
certificate of the configuration goes to: the one it is read from if that is in this folder, else a new one. Files
elsewhere belong to the administrator, or to a program such as certbot, and are never written.
Refuses to know: what makes a certificate usable, and who asks.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailbalancer.admin import edit, files
from mailbalancer.errors import MailbalancerError

#: NAME.pem holds key, certificate and issuers; these two hold what waits for an authority.
_KEY_ENDS, _REQUEST_ENDS = ".waiting.key", ".waiting.csr"
_PRIVATE, _PUBLIC, _FOLDER = 0o600, 0o644, 0o750


@dataclass(frozen=True, slots=True)
class Target:
    """Where a certificate goes. `written`: what the configuration file says of it then."""

    file: Path
    written: Any


@dataclass(frozen=True, slots=True)
class Request:
    """What was made for an authority; its key stays in the folder."""

    name: str
    pem: bytes


class CertificateFolder:
    """One folder.

    Args:
        folder: absolute; made when the first file is written.
        config_folder: what paths in the configuration file are relative to.
        owner: user and group id of who reads the files; None: who writes them.
    """

    def __init__(self, folder: Path, config_folder: Path, owner: tuple[int, int] | None = None) -> None:
        self._folder = folder
        self._config_folder = config_folder
        self._owner = owner

    def target(self, text: str, name: str) -> Target:
        """Where a certificate of this name goes, by what the configuration file says now.

        Raises:
            MailbalancerError: a file that belongs to nobody we know is in the way.
        """
        listed = listed_in(text)
        chain, key, ocsp = paths_of(listed.get(name))
        mine = self._folder / f"{name}.pem"
        used = self._absolute(chain) if chain else None
        shared = any(used == self._absolute(paths_of(other)[0]) for at, other in listed.items() if at != name)
        if used is not None and not shared and (used == mine or (not key and self._is_inside(used))):
            return Target(used, self._named(used, ocsp) if key else listed[name])
        if mine.exists() or mine.is_symlink():
            raise MailbalancerError(
                f"{mine} is there already, and the configuration does not use it for '{name}'",
                "move it away, or take another name",
            )
        return Target(mine, self._named(mine, ocsp))

    def kept_in(self, text: str, name: str) -> Path | None:
        """The file of a certificate, if it is in this folder and of no other use."""
        listed = listed_in(text)
        chain, _, _ = paths_of(listed.get(name))
        file = self._absolute(chain) if chain else None
        others = [
            self._absolute(part) for at, other in listed.items() if at != name for part in paths_of(other) if part
        ]
        return file if file is not None and self._is_inside(file) and file not in others else None

    def current_key(self, text: str, name: str) -> bytes:
        """The file that has the key of a certificate now; empty when there is none that can be read."""
        chain, key, _ = paths_of(listed_in(text).get(name))
        try:
            return self._absolute(key or chain).read_bytes() if chain else b""
        except OSError:
            return b""

    def placed(self, file: Path, pem: bytes) -> AbstractContextManager[None]:
        """Put a certificate with its key there; taken back when the block raises."""
        self._make()
        return files.replaced(file, pem, _PRIVATE, self._owner or _ourselves(), keep=False)

    def remove(self, file: Path) -> None:
        """Raises MailbalancerError when it cannot be removed."""
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise MailbalancerError(f"{file} cannot be removed: {error.strerror}", "remove it by hand") from error

    # ------------------------------------------------------------ what waits for an authority

    def wait(self, name: str, key: bytes, request: bytes) -> None:
        """Keep a key until its certificate comes."""
        self._make()
        files.replace(self._folder / f"{name}{_KEY_ENDS}", key, _PRIVATE, self._owner)
        files.replace(self._folder / f"{name}{_REQUEST_ENDS}", request, _PUBLIC, self._owner)

    def requests(self) -> list[Request]:
        """What waits, by name."""
        with suppress(OSError):
            found = sorted(path.name.removesuffix(_REQUEST_ENDS) for path in self._folder.glob(f"*{_REQUEST_ENDS}"))
            return [request for name in found if (request := self.request(name))]
        return []

    def request(self, name: str) -> Request | None:
        """The one of this name, as long as its key is there."""
        try:
            pem = (self._folder / f"{name}{_REQUEST_ENDS}").read_bytes()
        except OSError:
            return None
        return Request(name, pem) if (self._folder / f"{name}{_KEY_ENDS}").exists() else None

    def waiting_key(self, name: str) -> bytes:
        """PEM; empty when none waits."""
        try:
            return (self._folder / f"{name}{_KEY_ENDS}").read_bytes()
        except OSError:
            return b""

    def forget(self, name: str) -> None:
        """The key has its certificate, or is not wanted any more."""
        self.remove(self._folder / f"{name}{_REQUEST_ENDS}")
        self.remove(self._folder / f"{name}{_KEY_ENDS}")

    # ------------------------------------------------------------ inside

    def _make(self) -> None:
        try:
            self._folder.mkdir(mode=_FOLDER)
            if self._owner is not None:
                os.chown(self._folder, *self._owner)
        except FileExistsError:
            return
        except OSError as error:
            raise MailbalancerError(
                f"the folder for certificates {self._folder} cannot be made: {error.strerror}",
                f"make it: `install -d -m 750 -o mailbalancer -g mailbalancer {self._folder}`, "
                "or name another one with `certificates_dir`",
            ) from error

    def _absolute(self, written: str) -> Path:
        return (self._config_folder / written).resolve()

    def _is_inside(self, file: Path) -> bool:
        return file.parent == self._folder.resolve()

    def _named(self, file: Path, ocsp: str) -> Any:
        """As the configuration file says it: relative where it can be."""
        inside = file.is_relative_to(self._config_folder)
        name = str(file.relative_to(self._config_folder)) if inside else str(file)
        return {"chain": name, "ocsp": ocsp} if ocsp else name


def listed_in(text: str) -> dict[str, Any]:
    """What stands under `certificates` in a configuration file, by name."""
    listed = edit.value_at(text, ("certificates",)) if edit.has(text, ("certificates",)) else None
    return listed if isinstance(listed, dict) else {}


def paths_of(entry: Any) -> tuple[str, str, str]:
    """Chain, key and OCSP answer of an entry under `certificates`."""
    if isinstance(entry, dict):
        chain, key, ocsp = (str(entry.get(word) or "") for word in ("chain", "key", "ocsp"))
        return chain, key, ocsp
    return (entry, "", "") if isinstance(entry, str) else ("", "", "")


def _ourselves() -> tuple[int, int]:
    return os.geteuid(), os.getegid()
