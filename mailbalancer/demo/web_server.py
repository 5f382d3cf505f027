"""One Exchange server's web of the demo: every virtual directory, and its name in every answer.

Decides: what /owa, /ews, /mapi, /Microsoft-Server-ActiveSync and /autodiscover answer, that each has a health page
that can be broken and mended, and that a login by NTLM holds for its connection and no other.
Refuses to know: the balancer, and RPC over HTTP, whose methods this HTTP library refuses (`rpc_proxy`). Run as
`python -m mailbalancer.demo.web_server NAME PORT RPC_PORT PEM_FILE`; says `ready` on stdout once.
"""

from __future__ import annotations

import asyncio
import html
import os
import ssl
import sys
import weakref

from aiohttp import web

from mailbalancer.demo import ntlm
from mailbalancer.demo.rpc_proxy import RpcProxy

#: Virtual directories with a health page, by their lower-case names.
DIRECTORIES = ("owa", "ecp", "ews", "mapi", "rpc", "oab", "autodiscover", "microsoft-server-activesync")
SESSION = "cadata"
LONGEST_WAIT_S = 3540
#: How often something is said on a stream that has no news (MS-OXCMAPIHTTP calls it PENDING).
PENDING_S = 5.0
#: The page asks five times more and shows who answers.
_AGAIN = """<p>Asked again: <b id="again"></b></p><script>
(async () => {
  for (let i = 0; i < 5; i++) {
    const answer = await fetch("/owa/server");
    document.getElementById("again").textContent += (await answer.text()).trim() + " ";
  }
})();
</script>"""
_FORM = (
    '<form method="post" action="/owa/auth.owa"><input name="username" placeholder="user">'
    '<input name="password" type="password"><button>sign in</button></form>'
)


class Exchange:
    """What one server knows: which of its directories are broken, who is logged in, and on which connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.broken: set[str] = set()
        self._sessions: dict[str, str] = {}
        self._users: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()

    def application(self) -> web.Application:
        """Everything this server answers, by path and without regard to case."""
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{directory}{rest:.*}", self._answer)
        return application

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        directory, _, rest = request.path.lower().strip("/").partition("/")
        if rest == "healthcheck.htm" and directory in DIRECTORIES:
            return self._health(directory)
        match directory:
            case "owa" | "ecp":
                return await self._owa(request, rest)
            case "ews":
                return await self._ews(request)
            case "mapi":
                return await self._mapi(request)
            case "microsoft-server-activesync":
                return await self._activesync(request)
            case "autodiscover":
                return self._says(f"<Autodiscover><Server>{self.name}</Server></Autodiscover>", "text/xml")
            case "demo":
                return self._operate(request, rest)
        return self._says(f"{self.name} has no {request.path}\n", status=404)

    def _says(self, text: str, kind: str = "text/plain", status: int = 200) -> web.Response:
        return web.Response(text=text, content_type=kind, status=status, headers={"X-FEServer": self.name})

    def _health(self, directory: str) -> web.Response:
        """As Exchange's: the page is not there while its component is not active."""
        if directory in self.broken:
            return self._says("not found\n", status=404)
        return self._says(f"200 OK<br/>{self.name.upper()}.DEMO", "text/html")

    def _operate(self, request: web.Request, order: str) -> web.Response:
        directory = request.query.get("vdir", "").lower()
        if order not in ("break", "mend") or directory not in DIRECTORIES:
            ways = f"/demo/break?vdir=ews, /demo/mend?vdir=ews; there are {', '.join(DIRECTORIES)}"
            return self._says(f"{self.name}: {ways}\n", status=404)
        (self.broken.add if order == "break" else self.broken.discard)(directory)
        return self._says(f"/{directory} of {self.name} is {'broken' if order == 'break' else 'well'} now\n")

    # ------------------------------------------------------------ web mail

    async def _owa(self, request: web.Request, rest: str) -> web.StreamResponse:
        if rest == "auth.owa" and request.method == "POST":
            return await self._log_in(request)
        if rest == "server":
            return self._says(f"{self.name}\n")
        cookie = request.cookies.get(SESSION, "")
        user = self._sessions.get(cookie)
        if user is not None:
            return self._page(f"<p>Mailbox of {html.escape(user)}, opened by <b>{self.name}</b>.</p>")
        strange = f"<p>{self.name} does not know your session.</p>" if cookie else ""
        return self._page(f"{strange}<p>Sign in at <b>{self.name}</b>, with any name:</p>{_FORM}")

    async def _log_in(self, request: web.Request) -> web.Response:
        """Whoever says a name is let in; only this server knows the session, as with Exchange 2010."""
        user = str((await request.post()).get("username", "")) or "nobody"
        cookie = os.urandom(16).hex()
        self._sessions[cookie] = user[:64]
        answer = web.Response(status=302, headers={"Location": "/owa/", "X-FEServer": self.name})
        answer.set_cookie(SESSION, cookie, path="/", secure=True, httponly=True)
        return answer

    def _page(self, body: str) -> web.Response:
        head = f"<!doctype html><title>{self.name}</title><h1>Outlook</h1>"
        return self._says(f"{head}{body}{_AGAIN}\n", "text/html")

    # ------------------------------------------------------------ logins by connection

    async def _ews(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if b"GetStreamingEvents" in body:
            return await self._stream(request, b"<StreamingEvents/>\n", 30 * 60.0)
        user = self._users.get(request.transport)
        field = request.headers.get("Authorization", "")
        if user is None or field:
            try:
                step, user = ntlm.leg(field)
            except ntlm.NotNtlm:
                return self._unauthorized("NTLM")
            if step == "negotiate":
                return self._unauthorized(ntlm.challenge(os.urandom(8)))
            self._users[request.transport] = user
        return self._says(f"<EWS><User>{html.escape(user)}</User><Server>{self.name}</Server></EWS>\n", "text/xml")

    def _unauthorized(self, words: str) -> web.Response:
        answer = self._says("who is it?\n", status=401)
        answer.headers["WWW-Authenticate"] = words
        return answer

    # ------------------------------------------------------------ long polls

    async def _activesync(self, request: web.Request) -> web.StreamResponse:
        if request.method == "OPTIONS":
            answer = self._says("")
            answer.headers["MS-ASProtocolVersions"] = "14.1,16.1"
            return answer
        await request.read()
        if request.query.get("Cmd", "").lower() == "ping":
            await asyncio.sleep(_wait_s(request))
        return self._says(f"nothing new, says {self.name}\n")

    async def _mapi(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.headers.get("X-RequestType", "").lower() == "notificationwait":
            return await self._stream(request, b"PENDING\r\n", _wait_s(request))
        return self._says(f"PROCESSING\r\nDONE\r\n\r\n{self.name}\n", "application/mapi-http")

    async def _stream(self, request: web.Request, sign: bytes, length_s: float) -> web.StreamResponse:
        """Say `sign` now and then, and at the end who it was."""
        answer = web.StreamResponse(headers={"X-FEServer": self.name})
        await answer.prepare(request)
        ends_at = asyncio.get_running_loop().time() + length_s
        await answer.write(sign)
        while (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(PENDING_S, left_s))
            await answer.write(sign)
        await answer.write(f"DONE {self.name}\n".encode())
        return answer


def _wait_s(request: web.Request) -> float:
    """How long to wait for news: `wait` in the query, else as a phone asks for."""
    text = request.query.get("wait", "")
    return min(float(text), LONGEST_WAIT_S) if text.isascii() and text.isdigit() else LONGEST_WAIT_S


async def serve(name: str, port: int, rpc_port: int, pem_file: str) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem_file)
    exchange = Exchange(name)
    runner = web.AppRunner(exchange.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, backlog=512, reuse_address=True).start()
    proxy = RpcProxy(name, lambda: "rpc" not in exchange.broken)
    server = await asyncio.start_server(proxy.session, "127.0.0.1", rpc_port, ssl=context, backlog=512)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
