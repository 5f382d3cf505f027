"""What clients are shown: by name, by protocol, with an OCSP answer, and through replacements under load."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from mailbalancer.model import ClientTls, Mode
from mailbalancer.tls import openssl
from mailbalancer.tls.material import CertificateError, Material, read_authorities, read_material
from mailbalancer.tls.offer import PROTOCOLS, ClientSocket, Offer, owner_name
from tests.support.certs import Authority
from tests.support.tools import require
from tests.tls.handshake import Shake, listed, material

TLS = ClientTls(("mail",))


def offer_of(*materials: Material, protocols: tuple[str, ...] = (), client_authorities: str = "") -> Offer:
    made = Offer(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    made.show(TLS, materials, protocols, client_authorities)
    return made


def sha256(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


@pytest.fixture(scope="module")
def mail(authority: Authority) -> Material:
    return material(authority.issue("mail.example.com"), "mail")


@pytest.fixture(scope="module")
def wild(authority: Authority) -> Material:
    return material(authority.issue("*.example.net", rsa_bits=2048), "wild")


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def client(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    """A client that speaks one version."""
    made = authority.client_context()
    made.minimum_version = made.maximum_version = request.param
    return made


@pytest.fixture
def credulous(client: ssl.SSLContext) -> ssl.SSLContext:
    """A client that takes any certificate, and may ask for nobody."""
    client.check_hostname = False
    return client


@pytest.mark.parametrize(
    ("name", "shown"),
    [("mail.example.com", "mail"), ("owa.example.net", "wild"), ("elsewhere.test", "mail"), (None, "mail")],
)
def test_certificate_by_name(
    mail: Material, wild: Material, credulous: ssl.SSLContext, shake: Shake, name: str | None, shown: str
) -> None:
    offer = offer_of(mail, wild)
    handshake = shake(offer.context, credulous, name)
    assert sha256(handshake.shown) == {"mail": mail, "wild": wild}[shown].seen.sha256
    assert isinstance(handshake.server, ClientSocket)
    assert handshake.server.shown == shown
    assert handshake.server.asked_name == (name or "")


def test_before_anything_is_shown_a_handshake_fails(credulous: ssl.SSLContext, shake: Shake) -> None:
    offer = Offer(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert shake(offer.context, credulous, "mail.example.com").client_error is not None


@pytest.mark.parametrize("mode", list(PROTOCOLS))
def test_protocols_of_each_mode(mail: Material, client: ssl.SSLContext, shake: Shake, mode: Mode) -> None:
    offer = offer_of(mail, protocols=PROTOCOLS[mode])
    client.set_alpn_protocols(["h2", *PROTOCOLS[mode]])
    handshake = shake(offer.context, client, "mail.example.com")
    assert handshake.server is not None
    assert handshake.server.selected_alpn_protocol() == PROTOCOLS[mode][0]


def test_a_browser_is_not_talked_into_speaking_to_a_mail_server(
    mail: Material, client: ssl.SSLContext, shake: Shake
) -> None:
    client.set_alpn_protocols(["h2", "http/1.1"])
    handshake = shake(offer_of(mail, protocols=PROTOCOLS[Mode.IMAP]).context, client, "mail.example.com")
    assert handshake.server_error is not None
    assert handshake.client_error is not None


def test_protocols_without_the_addition(
    mail: Material, client: ssl.SSLContext, shake: Shake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openssl, "_library", lambda: "no reason")
    client.set_alpn_protocols(["h2", "imap"])
    handshake = shake(offer_of(mail, protocols=PROTOCOLS[Mode.IMAP]).context, client, "mail.example.com")
    assert handshake.server is not None
    assert handshake.server.selected_alpn_protocol() == "imap"


def test_minimum_version(mail: Material, authority: Authority, shake: Shake) -> None:
    offer = offer_of(mail)
    offer.show(ClientTls(("mail",), min_version="1.3"), [mail])
    old = authority.client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake(offer.context, old, "mail.example.com").client_error is not None
    assert shake(offer.context, authority.client_context(), "mail.example.com").client_error is None


# ------------------------------------------------------------ client certificates


def test_client_certificates_are_optional_and_verified(
    authority: Authority, stranger: Authority, mail: Material, client: ssl.SSLContext, shake: Shake
) -> None:
    offer = offer_of(mail, client_authorities=read_authorities(str(authority.file)))
    assert shake(offer.context, client, "mail.example.com").server_error is None
    known = authority.issue("printer", for_clients=True)
    client.load_cert_chain(known.chain, known.key)
    handshake = shake(offer.context, client, "mail.example.com")
    assert handshake.server is not None
    assert handshake.server.getpeercert(binary_form=True) is not None
    unknown = stranger.issue("printer", for_clients=True)
    client.load_cert_chain(unknown.chain, unknown.key)
    assert isinstance(shake(offer.context, client, "mail.example.com").server_error, ssl.SSLCertVerificationError)


def test_client_certificates_can_be_required(
    authority: Authority, mail: Material, client: ssl.SSLContext, shake: Shake
) -> None:
    offer = offer_of(mail)
    must = ClientTls(("mail",), client_must_show=True)
    offer.show(must, [mail], client_authorities=read_authorities(str(authority.file)))
    assert isinstance(shake(offer.context, client, "mail.example.com").server_error, ssl.SSLError)
    known = authority.issue("printer", for_clients=True)
    client.load_cert_chain(known.chain, known.key)
    assert shake(offer.context, client, "mail.example.com").server_error is None


def test_nobody_is_asked_without_authorities(
    authority: Authority, mail: Material, client: ssl.SSLContext, shake: Shake
) -> None:
    offer = offer_of(mail, client_authorities=read_authorities(str(authority.file)))
    offer.show(TLS, [mail])
    known = authority.issue("printer", for_clients=True)
    client.load_cert_chain(known.chain, known.key)
    handshake = shake(offer.context, client, "mail.example.com")
    assert handshake.server is not None
    assert handshake.server.getpeercert(binary_form=True) is None


def test_other_authorities_are_another_owner_of_sessions() -> None:
    assert owner_name("owa") == owner_name("owa", "")
    others = {owner_name("owa"), owner_name("owa", "a"), owner_name("owa", "a", True), owner_name("owa", "b")}
    assert len({*others, owner_name("ow")}) == 5


# ------------------------------------------------------------ replacement


def test_a_new_certificate_also_of_another_kind_of_key_replaces_the_old(
    authority: Authority, client: ssl.SSLContext, shake: Shake
) -> None:
    rsa = material(authority.issue("mail.example.com", rsa_bits=2048))
    ec = material(authority.issue("mail.example.com"))
    offer = offer_of(rsa)
    context = offer.context
    for replacement in (ec, rsa, ec):
        offer.show(TLS, [replacement])
        assert offer.context is context
        assert sha256(shake(context, client, "mail.example.com").shown) == replacement.seen.sha256


def test_what_openssl_refuses_changes_nothing(mail: Material, client: ssl.SSLContext, shake: Shake) -> None:
    offer = offer_of(mail, protocols=("imap",))
    bad = Material("bad", ("mail.example.com",), mail.seen, pem=b"nothing")
    with pytest.raises(CertificateError, match="'bad'"):
        offer.show(ClientTls(("mail",), min_version="1.3"), [mail, bad])
    with pytest.raises(CertificateError):
        offer.show(TLS, [mail], client_authorities="nothing")
    client.set_alpn_protocols(["imap"])
    handshake = shake(offer.context, client, "mail.example.com")
    assert sha256(handshake.shown) == mail.seen.sha256
    assert handshake.client is not None
    assert handshake.client.selected_alpn_protocol() == "imap"


def test_a_handshake_under_way_ends_with_what_it_began(authority: Authority, client: ssl.SSLContext) -> None:
    """The replacement comes after the client's first flight has been answered."""
    old, new = (material(authority.issue("mail.example.com")) for _ in range(2))
    offer = offer_of(old)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = offer.context.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server, server_hostname="mail.example.com")
    for side in (asking, server):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    offer.show(TLS, [new])
    if client.maximum_version is ssl.TLSVersion.TLSv1_2:
        with pytest.raises(ssl.SSLWantReadError):
            asking.do_handshake()
        server.do_handshake()
        asking.do_handshake()
    else:
        asking.do_handshake()
        server.do_handshake()
    assert sha256(asking.getpeercert(binary_form=True) or b"") == old.seen.sha256


def test_no_handshake_fails_while_certificates_change(authority: Authority, client: ssl.SSLContext) -> None:
    """Non-blocking sockets as a worker has them, handshakes in one thread and replacements in another."""
    pair = [material(authority.issue("mail.example.com", rsa_bits=bits)) for bits in (0, 2048)]
    offer = offer_of(pair[0])
    failures: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def shake_many() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for count in range(5000):
                if count >= 150 and len(seen) == 2:
                    break
                with socket.create_connection(listener.getsockname()) as near, listener.accept()[0] as far:
                    try:
                        seen.add(_drive(offer.context, client, near, far))
                    except OSError as error:
                        failures.append(str(error))
        done.set()

    thread = threading.Thread(target=shake_many)
    thread.start()
    replaced = 0
    while not done.is_set():
        replaced += 1
        offer.show(TLS, [pair[replaced % 2]])
    thread.join()
    assert failures == []
    assert seen == {one.seen.sha256 for one in pair}


def _drive(server: ssl.SSLContext, client: ssl.SSLContext, near: socket.socket, far: socket.socket) -> str:
    near.setblocking(False)
    far.setblocking(False)
    shaking = [
        client.wrap_socket(near, server_hostname="mail.example.com", do_handshake_on_connect=False),
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    ]
    try:
        pending = list(shaking)
        while pending:
            for side in list(pending):
                try:
                    side.do_handshake()
                    pending.remove(side)
                except ssl.SSLWantReadError:
                    continue
        return sha256(shaking[0].getpeercert(binary_form=True) or b"")
    finally:
        for side in shaking:
            side.close()


# ------------------------------------------------------------ OCSP


def stapled(authority: Authority, tmp_path: Path, name: str) -> Material:
    issued = authority.issue(name)
    file = tmp_path / f"{name}.der"
    file.write_bytes(authority.answer(issued))
    return read_material(listed(issued, name, file))


def ask_status(authority: Authority, offer: Offer, name: str, version: str) -> str:
    """What `openssl s_client -status` says about one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        port = listener.getsockname()[1]
        command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name, version]
        command += ["-status", "-CAfile", str(authority.file)]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as client:
            sock, _ = listener.accept()
            sock.settimeout(10)
            with offer.context.wrap_socket(sock, server_side=True) as server, contextlib.suppress(ConnectionError):
                server.recv(1)  # its input is at an end, so it may leave before it has read our tickets
            return client.communicate(timeout=10)[0]


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_each_certificate_with_its_own_answer(
    authority: Authority, mail: Material, tmp_path: Path, version: str
) -> None:
    one, two = (stapled(authority, tmp_path, name) for name in ("one.example.com", "two.example.com"))
    offer = offer_of(mail, one, two)
    serials = []
    for name in ("one.example.com", "two.example.com"):
        said = ask_status(authority, offer, name, version)
        assert "OCSP Response Status: successful" in said
        assert "Cert Status: good" in said
        serials.append(next(line for line in said.splitlines() if "Serial Number" in line))
    assert serials[0] != serials[1]
    assert "OCSP response: no response sent" in ask_status(authority, offer, "mail.example.com", version)


def test_an_answer_that_has_run_out_is_shown_no_more(authority: Authority, tmp_path: Path) -> None:
    one = stapled(authority, tmp_path, "one.example.com")
    offer = offer_of(one)
    number = max(openssl._shown)
    assert openssl._shown[number].answer
    openssl._shown[number] = openssl._Shown(answer=openssl._shown[number].answer, until=1.0)
    assert "no response sent" in ask_status(authority, offer, "one.example.com", "-tls1_3")


def test_without_the_addition_it_is_said(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_library", lambda: "no reason")
    made = stapled(authority, tmp_path, "one.example.com")
    assert made.staple is None
    assert any("OCSP stapling is not possible with this Python: no reason" in warning for warning in made.warnings)
