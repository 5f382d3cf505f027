"""The web part of the demo on paper: one https service in front of three Exchange stand-ins, and what to try with it.

Decides: TLS that ends here and begins anew, verified, a route with a check of its own for every virtual directory, and
a cookie that keeps web mail on one server.
Refuses to know: whether anything runs. Facts in, text out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from mailbalancer.demo.authority import Papers
from mailbalancer.demo.ports import Ports

#: Routes that differ in nothing but their directory and how long they may be silent.
_PLAIN = {"ews": 1900, "mapi": 300, "autodiscover": 60, "Microsoft-Server-ActiveSync": 3700}


def certificates(papers: Papers) -> Iterator[str]:
    """The certificate that clients are shown."""
    yield "certificates:"
    yield f"  web: {papers.server}"


def service(ports: Ports, papers: Papers, folder: str, pace: str) -> Iterator[str]:
    """The service's lines. `pace`: settings that its checks share."""
    yield "  web:"
    yield "    mode: http"
    yield f"    listen: 127.0.0.1:{ports.web}"
    yield "    client_tls: {certificate: web}"
    yield f"    server_tls: {{verify: {_verify(papers)}}}"
    yield "    persist: none"
    yield "    ramp_s: 30"
    yield f"    check: {_check('owa', papers, pace)}"
    yield f"    real_servers: {_members({name: own[0] for name, own in ports.web_servers.items()})}"
    yield "    routes:"
    yield "      start: {path: /, redirect: /owa/}"
    yield "      owa:"
    yield "        path: [/owa, /ecp, /demo]"
    yield f"        persist: {{by: cookie, key_file: {folder}/cookie-keys}}"
    yield f"        check: {_check('owa', papers, pace)}"
    for directory, idle_s in _PLAIN.items():
        yield f"      {directory.lower()}:"
        yield f"        path: /{directory}"
        yield f"        idle_timeout_s: {idle_s}"
        yield f"        check: {_check(directory, papers, pace)}"
    yield "      rpc:  # both channels of a session on one server; the stand-in for it has a port of its own"
    yield "        path: /rpc"
    yield "        idle_timeout_s: 3600"
    yield "        persist: {by: source, timeout_s: 3600}"
    yield f"        check: {_check('rpc', papers, pace)}"
    yield f"        real_servers: {_members({name: own[1] for name, own in ports.web_servers.items()})}"


def _verify(papers: Papers) -> str:
    return f"{{ca: {papers.authority}}}"


def _check(directory: str, papers: Papers, pace: str) -> str:
    return f"{{type: https, path: /{directory}/healthcheck.htm, verify: {_verify(papers)}, {pace}}}"


def _members(ports: dict[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {port}" for name, port in ports.items()) + "}"


def to_try(ports: Ports, papers: Papers, folder: str, command: str) -> Iterator[str]:
    """Lines for a shell; every curl trusts the demo's own authority and nobody else."""
    curl = f"curl -sS --cacert {shlex.quote(str(papers.authority))}"
    url, jar = f"https://127.0.0.1:{ports.web}", shlex.quote(f"{folder}/jar")
    socket_option = f"--socket {shlex.quote(folder + '/control.sock')}"
    yield ""
    yield "Web mail: with the cookie of the first answer, the second comes from the same server:"
    yield f"  {curl} -c {jar} -b {jar} {url}/owa/  # names its server; again: the same one"
    yield f"  {curl} -c {jar} -b {jar} -L -d username=me {url}/owa/auth.owa"
    yield "A login by NTLM belongs to its connection; the second request needs none:"
    yield f"  {curl} --ntlm -u me:secret {url}/ews/exchange.asmx {url}/ews/exchange.asmx"
    yield "A phone waits for news; it is counted as a long poll:"
    yield f"  {curl} -d '' '{url}/Microsoft-Server-ActiveSync?Cmd=Ping&wait=20' &"
    yield "Break one directory of one server: its /ews is taken out, its /owa stays in; then mend it:"
    yield f"  {curl} -c {jar} -b {jar} '{url}/demo/break?vdir=ews'"
    yield f"  {command} status {socket_option}"
    yield f"  {curl} -c {jar} -b {jar} '{url}/demo/mend?vdir=ews'"
    yield "The servers' certificate, as the balancer sees it:"
    yield f"  {command} tls pin -c {shlex.quote(folder)}/mailbalancer.yaml web ex1"
