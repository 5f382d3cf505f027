"""The part of the API that changes certificates: upload, request, self-signed, delete.

Decides: what an uploaded certificate is joined with (the key it brought, the key that waits for it, or the key of the
certificate it renews), that nothing unusable takes the place of what works, and that no key ever leaves: there is no
operation that answers with one.
Refuses to know: how a configuration is applied (`configuration`), file names (`certificate_folder`), formats (`tls`).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from mailbalancer.admin import certificates, edit
from mailbalancer.admin.aside import Facts, aside
from mailbalancer.admin.certificate_folder import CertificateFolder, Request
from mailbalancer.admin.configuration import Configuration
from mailbalancer.admin.desk import Desk
from mailbalancer.admin.gate import Refused
from mailbalancer.admin.operation import Call, DryRun, Given, Operation
from mailbalancer.admin.tokens import Role
from mailbalancer.errors import MailbalancerError
from mailbalancer.tls import issue
from mailbalancer.tls import upload as uploads
from mailbalancer.tls.certificate import today
from mailbalancer.tls.issue import KeyKind
from mailbalancer.tls.material import CertificateError, Material, material_of

MOST_CHARACTERS = 200_000
#: Beyond this, browsers refuse certificates of any authority (CA/Browser Forum, ballot SC-22); so do many programs.
MOST_DAYS = 398
_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = rf"^(([*]\.)?({_LABEL}\.)*{_LABEL}|[0-9A-Fa-f:.]{{2,45}})$"
Host = Annotated[str, Field(pattern=_HOST, max_length=253)]


def _secret(description: str) -> Any:
    return Field(default=SecretStr(""), max_length=MOST_CHARACTERS, description=description)


class Sent(Given):
    """A certificate: as PEM, or as PFX."""

    pem: str = Field(default="", max_length=MOST_CHARACTERS, repr=False, description="certificate and issuers; the key "
                     "may stand with them")  # fmt: skip
    key: SecretStr = _secret("the key as PEM, where it is in a file of its own")
    pfx: SecretStr = _secret("instead of pem: the file in base64; PFX, or certificates alone as .cer or .p7b")
    password: SecretStr = _secret("of the key or the PFX")


class Presence(DryRun):
    only: Literal["", "new", "existing"] = Field(default="", description="Refuse when it is there, or is not")


class NewKey(Given):
    """A key that is made here, and whom it is for."""

    names: list[Host] = Field(min_length=1, max_length=100, description="DNS names or IP addresses")
    key: Literal["rsa-2048", "rsa-3072", "ecdsa-p256"] = "rsa-2048"


class SelfSigned(NewKey):
    days: int = Field(default=90, ge=1, le=MOST_DAYS)


class Certifying:
    """Certificates of one configuration."""

    def __init__(self, desk: Desk, configuration: Configuration, owner: tuple[int, int] | None = None) -> None:
        self._desk = desk
        self._configuration = configuration
        self._owner = owner

    def operations(self) -> list[Operation]:
        here = "/api/v1/certificates"
        one, request = f"{here}/{{certificate}}", f"{here}/{{certificate}}/request"
        return [
            Operation("GET", here, "certificates", "Our certificates: for whom, until when, who shows them; and keys "
                      "that wait for theirs", Role.READ, self.listed, ("certificates", "waiting")),
            Operation("GET", request, "certificate_requested", "The request again that waits for its certificate",
                      Role.READ, self.requested, ("csr", "names")),
            Operation("PUT", one, "certificate_upload", "Add or renew a certificate; its key may wait here already",
                      Role.ADMIN, self.upload, ("certificate", "warnings", "applied"), Presence, Sent, audited=True),
            Operation("POST", request, "certificate_request", "Make a key, which stays here, and a signing request",
                      Role.ADMIN, self.request, ("csr", "names"), body=NewKey, audited=True),
            Operation("DELETE", request, "certificate_forget", "Destroy a key that waits", Role.ADMIN, self.forget,
                      ("state",), audited=True),
            Operation("POST", f"{one}/self-signed", "certificate_self_signed", "Make a key and a certificate that "
                      "nobody vouches for", Role.ADMIN, self.self_signed, ("certificate", "warnings", "applied"),
                      Presence, SelfSigned, audited=True),
            Operation("DELETE", one, "certificate_remove", "Remove a certificate that nobody shows, with its key",
                      Role.ADMIN, self.remove, ("diff", "applied"), DryRun, audited=True),
        ]  # fmt: skip

    # ------------------------------------------------------------ looking

    async def listed(self, call: Call) -> dict[str, Any]:
        found = certificates.listed(self._desk.report(), self._desk.config)
        return {"certificates": found, "waiting": [_waiting(request) for request in self._folder.requests()]}

    async def requested(self, call: Call) -> dict[str, Any]:
        name = call.path["certificate"]
        request = self._folder.request(name)
        if request is None:
            raise Refused(404, f"no key waits for a certificate '{name}'")
        return {**_waiting(request), "csr": request.pem.decode("ascii", "replace")}

    # ------------------------------------------------------------ changing

    async def upload(self, call: Call) -> dict[str, Any]:
        name = call.path["certificate"]
        self._refuse_by_presence(name, call.query.only)
        sent = await _read(call.body)
        key, waited = self._key_for(name, sent)
        material = _usable(name, key + b"\n" + sent.chain)
        told = await self._install(call, material, f"certificate {name}", sent.remarks)
        if waited and told["applied"]:
            self._folder.forget(name)
        return told

    async def self_signed(self, call: Call) -> dict[str, Any]:
        name, wanted = call.path["certificate"], call.body
        self._refuse_by_presence(name, call.query.only)
        made = await aside(partial(_self_signed, wanted.key, _hosts(wanted.names), wanted.days))
        material = _usable(name, (made["key"] + made["certificate"]).encode())
        remark = "nobody vouches for it: clients warn of it or refuse it"
        return await self._install(call, material, f"self-signed certificate {name}", (remark,))

    async def request(self, call: Call) -> dict[str, Any]:
        name, wanted = call.path["certificate"], call.body
        if self._folder.request(name) is not None:
            raise Refused(
                409, f"a key waits for its certificate '{name}' already", "upload that, or forget the request first"
            )
        made = await aside(partial(_requested, wanted.key, _hosts(wanted.names)))
        self._folder.wait(name, made["key"].encode(), made["csr"].encode())
        return {"name": name, "names": list(wanted.names), "key": wanted.key, "csr": made["csr"]}

    async def forget(self, call: Call) -> dict[str, Any]:
        name = call.path["certificate"]
        if self._folder.request(name) is None:
            raise Refused(404, f"no key waits for a certificate '{name}'")
        self._folder.forget(name)
        return {"state": f"the key that waited for '{name}' is gone"}

    async def remove(self, call: Call) -> dict[str, Any]:
        name = call.path["certificate"]
        users = certificates.users(self._desk.config, name)
        if users:
            raise Refused(409, f"certificate '{name}' is used by {', '.join(users)}", "give them another one first")
        file = self._folder.kept_in(self._configuration.text(), name)
        told = await self._configuration.change(
            partial(_without, name=name), "*", call.visitor.name, f"certificate {name} removed", call.query.dry_run
        )
        if told["applied"] and file is not None:
            self._folder.remove(file)
        return told

    # ------------------------------------------------------------ inside

    @property
    def _folder(self) -> CertificateFolder:
        config = self._desk.config
        return CertificateFolder(Path(config.certificates_dir), Path(config.path).absolute().parent, self._owner)

    def _refuse_by_presence(self, name: str, only: str) -> None:
        there = edit.has(self._configuration.text(), ("certificates", name))
        if only == "new" and there:
            raise Refused(409, f"there is a certificate '{name}' already", "replace it, or take another name")
        if only == "existing" and not there:
            raise Refused(404, f"there is no certificate '{name}' to replace")

    def _key_for(self, name: str, sent: uploads.Upload) -> tuple[bytes, bool]:
        """The key of what was sent, and whether it is the one that waited."""
        if sent.key:
            return sent.key, False
        wanted, waiting = uploads.public_of(sent.chain), self._folder.waiting_key(name)
        if waiting and uploads.public_of(waiting) == wanted:
            return waiting, True
        current = self._folder.current_key(self._configuration.text(), name)
        if current and uploads.public_of(current) == wanted:
            return uploads.key_in(current), False
        known = "neither the key that waits nor the one in use belongs to it" if waiting else "none waits here for it"
        raise Refused(422, f"the key of this certificate did not come with it, and {known}",
                      "send the key too, or the certificate that was issued for the request made here")  # fmt: skip

    async def _install(self, call: Call, material: Material, what: str, remarks: tuple[str, ...]) -> dict[str, Any]:
        name, folder = material.name, self._folder
        warnings = [*material.warnings, *remarks]
        facts = {"certificate": certificates.facts(material, today()), "warnings": warnings}

        def change(text: str) -> str:
            target = folder.target(text, name)
            path = ("certificates", name)
            same = edit.has(text, path) and edit.value_at(text, path) == target.written
            return text if same else edit.with_value(text, path, target.written)

        if call.query.dry_run:
            text = self._configuration.text()
            return {**facts, "applied": False, "diff": edit.difference(text, change(text)), "changes": []}
        told = await self._configuration.change(
            change, "*", call.visitor.name, what,
            beside=lambda text: folder.placed(folder.target(text, name).file, material.pem),
        )  # fmt: skip
        return {**told, **facts, "warnings": list(dict.fromkeys([*warnings, *told["warnings"]]))}


def _waiting(request: Request) -> dict[str, Any]:
    return {"name": request.name, "names": issue.requested_names(request.pem)}


def _without(text: str, name: str) -> str:
    """Without this certificate; the last one takes the heading along."""
    listed = edit.value_at(text, ("certificates",)) if edit.has(text, ("certificates",)) else None
    if isinstance(listed, dict) and list(listed) == [name]:
        return edit.without(text, ("certificates",))
    return edit.without(text, ("certificates", name))


def _hosts(names: list[str]) -> list[str]:
    for name in names:
        if ":" in name:
            try:
                ipaddress.ip_address(name)
            except ValueError:
                raise Refused(400, f"{name} is neither a host name nor an address") from None
    return list(dict.fromkeys(name.lower() for name in names))


def _usable(name: str, pem: bytes) -> Material:
    """What the workers would get.

    Raises:
        Refused: 422 with the reason it cannot be used.
    """
    try:
        return material_of(name, pem)
    except CertificateError as error:
        raise Refused(422, error.message, error.remedy) from error


async def _read(sent: Sent) -> uploads.Upload:
    pfx = sent.pfx.get_secret_value()
    if bool(pfx) == bool(sent.pem):
        raise Refused(400, "send the certificate either as pem or as pfx")
    password = sent.password.get_secret_value().encode()
    key = sent.key.get_secret_value().encode()
    if pfx:
        work = partial(_facts, uploads.from_binary, _decoded(pfx), key, password)
    else:
        work = partial(_facts, uploads.from_pem, sent.pem.encode(), key, password)
    try:
        told = await aside(work)
    except MailbalancerError as error:
        raise Refused(422, error.message, error.remedy) from error
    remarks = tuple(told["remarks"].splitlines())
    return uploads.Upload(told["chain"].encode(), told["key"].encode(), remarks)


def _decoded(pfx: str) -> bytes:
    try:
        return base64.b64decode(pfx, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "pfx is not base64") from None


# ---------------------------------------------------------------- done aside


def _facts(read: Any, *sent: bytes) -> Facts:
    found: uploads.Upload = read(*sent)
    return {"chain": found.chain.decode(), "key": found.key.decode(), "remarks": "\n".join(found.remarks)}


def _requested(kind: str, names: list[str]) -> Facts:
    key = issue.new_key(KeyKind(kind))
    return {"key": key.decode(), "csr": issue.request(key, names).decode()}


def _self_signed(kind: str, names: list[str], days: int) -> Facts:
    key = issue.new_key(KeyKind(kind))
    return {"key": key.decode(), "certificate": issue.self_signed(key, names, days, today()).decode()}
