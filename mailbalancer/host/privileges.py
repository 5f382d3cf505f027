"""Least privilege: from root to an ordinary user that may open ports below 1024, and from that to nothing.

Decides: which capabilities remain, and in which order they are given up.
Refuses to know: who needs which file afterwards (the caller says what the new user must own).
"""

from __future__ import annotations

import codecs
import ctypes
import os
import pwd
from collections.abc import Collection, Iterable
from pathlib import Path

from mailbalancer.errors import PrivilegeError

CAP_NET_BIND_SERVICE = 10
CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
DEFAULT_USER = "mailbalancer"

_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def service_user(wanted: str) -> str:
    """The user to become: `auto` is the one the package documentation tells to make, if it was made.

    A machine without it still runs, as root and with a warning, rather than refuse to carry mail.
    """
    if wanted != "auto":
        return wanted
    try:
        return pwd.getpwnam(DEFAULT_USER).pw_name
    except KeyError:
        return ""


def become(user: str, needed: Collection[int] = ()) -> bool:
    """Started as root: be this user from now on, with CAP_NET_BIND_SERVICE, what is `needed`, and no other capability.

    Programs that are started (`nft`, `ip`) get what is needed too.

    Returns:
        Whether anything changed: an ordinary user stays who it is, and so does root when `user` is empty or `root`.

    Raises:
        PrivilegeError: the user does not exist, or the kernel refuses.
    """
    if os.geteuid() != 0 or user in ("", "root"):
        return False
    entry = _look_up(user)
    codecs.lookup("idna")  # sockets load it at their first address; by then Python's own files may be out of reach
    try:
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setgroups(os.getgrouplist(entry.pw_name, entry.pw_gid))
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
        wanted = _bits((CAP_NET_BIND_SERVICE, *needed))
        _set_capabilities(
            wanted & _permitted(), _bits(needed)
        )  # a container may not have them: whoever needs one says so
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise PrivilegeError(
            f"cannot become user {user}: {error.strerror}",
            "start as root with CAP_SETUID and CAP_SETGID, or directly as that user (User= in the systemd unit)",
        ) from error
    return True


def own_directories(paths: Iterable[Path], user: str) -> None:
    """While still root: create these directories and give them to `user`, who will write there.

    A directory that exists and is not root's is left as it is: somebody decided about it. So is one that others share
    (/run, /tmp): only a directory made here changes hands.

    Raises:
        PrivilegeError: one of them cannot be made.
    """
    as_root = os.geteuid() == 0 and user not in ("", "root")
    entry = _look_up(user) if as_root else None
    for path in paths:
        try:
            if path.is_dir():
                continue
            path.mkdir(mode=0o755, parents=True)
            if entry is not None:
                os.chown(path, entry.pw_uid, entry.pw_gid)
        except OSError as error:
            raise PrivilegeError(
                f"directory {path} cannot be made: {error.strerror}",
                f"make it (`install -d -o {user or 'mailbalancer'} {path}`) or name another one in the configuration",
            ) from error


def drop_everything(but: Collection[int] = ()) -> None:
    """In a worker: no capability (`but` these), whoever it runs as, and none to be had by running something."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _set_capabilities(_bits(but) & _permitted())


def have(capability: int) -> bool:
    """Whether this process may use a capability."""
    return bool(_permitted() & 1 << capability)


def _permitted() -> int:
    data = (_CapData * 2)()
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    _checked(_libc.capget(ctypes.byref(header), data))
    return int(data[0].permitted) | int(data[1].permitted) << 32


def _look_up(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise PrivilegeError(
            f"user {user} does not exist, and mailbalancer does not stay root",
            f"make it with `adduser --system --group --no-create-home {user}`, or name another one as `user`",
        ) from None


def _bits(capabilities: Collection[int]) -> int:
    return sum(1 << capability for capability in set(capabilities))


def _set_capabilities(bits: int, inherited: int = 0) -> None:
    """`inherited`: also for programs that are started (ambient, capabilities(7))."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    for half in range(2):
        data[half].permitted = data[half].effective = bits >> (32 * half) & 0xFFFFFFFF
        data[half].inheritable = (bits & inherited) >> (32 * half) & 0xFFFFFFFF
    _checked(_libc.capset(ctypes.byref(header), data))
    for capability in range(64):
        if bits & inherited & 1 << capability:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def _prctl(option: int, value: int, more: int = 0) -> None:
    _checked(_libc.prctl(option, value, more, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
