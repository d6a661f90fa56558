"""Access: loopback addresses need no token, all other addresses do. And the headers of every answer.

A page of another site can make a browser send requests to 127.0.0.1, and by DNS rebinding even read the answers. So
without a token the ``Host`` must name this machine, and requests that a browser marks as coming from another site are
refused.
"""

import asyncio
import hmac
import secrets
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Final

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.serve import answers
from pipeline.errors import SettingsError
from pipeline.loopback import is_loopback
from pipeline.settings.serve import ServeSettings

COOKIE: Final = "streamgru_session"
# Without them the page could be framed, run foreign scripts, or tell its address to other sites.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Paths without data: the page's code, probes, and the way to log in.
OPEN_PATHS: Final = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/api/login", "/api/logout")
OPEN_FOLDER: Final = "/page/"
FAILED_LOGIN_S: Final = 1.0  # slows down guessing
_MOST_LOGIN_BYTES: Final = 4_096


def check_reachable(serve: ServeSettings) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        SettingsError: with the remedy.
    """
    if serve.token is None and not is_loopback(serve.host):
        raise SettingsError(
            f"`streamgru serve` would listen on {serve.host} without a token, so that anyone in the network could read "
            "readings and forecasts. Set a token (STREAMGRU_SERVE__TOKEN, serve.token or --token), or listen on "
            "127.0.0.1 (--host)"
        )


class Guard:
    """ASGI middleware: checks host and token, and adds the headers. Answers that are refused carry a ``Problem``."""

    def __init__(self, app: ASGIApp, serve: ServeSettings) -> None:
        self._app = app
        self._token = serve.token
        self._hosts = frozenset(name.lower() for name in serve.allowed_hosts)
        # One session for all browsers; it dies with the process. The cookie does not hold the token.
        self._session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope)
        if refused is not None and refused.status_code == 401 and "authorization" in Headers(scope=scope):
            await asyncio.sleep(FAILED_LOGIN_S)
        if refused is None and scope["path"] == "/api/login" and scope["method"] == "POST":
            refused = await self._log_in(Request(scope, receive))
        try:
            await (refused or self._app)(scope, receive, send_with_headers)
        except Exception:
            # The server logs the error; its own answer would lack the headers.
            if not has_begun:
                failed = problem(500, "the answer could not be made", "the log of `streamgru serve` says why")
                await failed(scope, receive, send_with_headers)
            raise

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_host_known(headers.get("host", "")):
            return problem(
                403,
                "the host in the address is not known",
                "open the address that `streamgru serve` printed, or name the host in serve.allowed_hosts",
            )
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return problem(403, "the request comes from a page of another site", "open the page itself")
        path = scope["path"]
        if self._token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER) or self._is_known(headers):
            return None
        return problem(
            401,
            "a token is needed",
            "log in on the page, or send the header `Authorization: Bearer TOKEN`",
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_host_known(self, host: str) -> bool:
        """With a token any host will do: a rebound name has no cookie and no token."""
        name = _host_name(host)
        if self._token is not None and not self._hosts:
            return True
        return is_loopback(name) or name in self._hosts

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._token is not None and _is_equal(given.strip(), self._token):
            return True
        return any(_is_equal(value, self._session) for value in _cookies(headers.getlist("cookie")))

    async def _log_in(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return problem(422, "a login is JSON", 'send {"token": "..."} as application/json')
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_LOGIN_BYTES:
                return problem(422, "a login is short")
        try:
            token = msgspec.json.decode(body, type=answers.Login).token
        except (msgspec.MsgspecError, UnicodeError) as error:
            return problem(422, f"not a login: {error}", 'send {"token": "..."}')
        if self._token is not None and not _is_equal(token, self._token):
            await asyncio.sleep(FAILED_LOGIN_S)
            return problem(401, "the token is wrong", "it is the setting serve.token of `streamgru serve`")
        response = Response(status_code=204)
        # Behind a proxy with TLS the cookie shall not travel in plain text.
        is_secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, self._session, httponly=True, samesite="strict", path="/", secure=is_secure)
        return response


def problem(status: int, error: str, remedy: str = "", headers: dict[str, str] | None = None) -> Response:
    """An answer that says why a request was refused."""
    return Response(answers.encode(answers.Problem(error, remedy)), status, headers, media_type="application/json")


def _host_name(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _cookies(headers: Iterable[str]) -> list[str]:
    found = []
    for header in headers:
        try:
            parsed = SimpleCookie(header)
        except CookieError:
            continue
        if COOKIE in parsed:
            found.append(parsed[COOKIE].value)
    return found


def _is_equal(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), known.encode())
