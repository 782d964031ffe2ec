"""Admission to a page's server: the browser that was given its address, and nobody else.

Other programs and other users of this machine reach a port of loopback, and so does each page in
the browser. So the address that is printed has a random token, which a cookie then replaces. A page
elsewhere whose name is made to resolve to this machine (DNS rebinding) has another name in the Host
header. The policy of each response allows nothing from elsewhere, and no script within.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors {ancestors}"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
#: The header by which a page in a frame, which has no cookie, shows its token.
TOKEN_HEADER = "X-Cah-Token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """The requirements that requests must meet."""

    host: str = "127.0.0.1"  #: the address that it listens at
    framed: bool = False  #: other pages of this machine may show it in a frame
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def middleware(self) -> Middleware:
        """Return the middleware that refuses what may not ask, and sets the headers."""

        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self._is_own(request.headers.get("Host", "")):
                return self._refusal("This address is not the one that the page is served at.")
            if not self._is_known(request):
                return self._refusal(
                    "The token is missing or has changed: open the whole address that `cah browse` "
                    "printed."
                )
            if request.method != "GET" and not self._is_same_origin(request):
                return self._refusal("Another page may not change anything here.")
            response = await handler(request)
            self._finish(request, response)
            return response

        return guarded

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this machine by its address, not by any name."""
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if name in ("localhost", self.host):
            return True
        address = _address(name.strip("[]"))
        if address is None:
            return False
        bound = _address(self.host)
        return address.is_loopback or bound is None or not bound.is_loopback

    def _is_known(self, request: web.Request) -> bool:
        given = (
            request.query.get("token"),
            request.headers.get(TOKEN_HEADER),
            request.cookies.get(self._cookie(request)),
        )
        own = self.token.encode()
        return any(
            hmac.compare_digest(each.encode("utf-8", "replace"), own) for each in given if each
        )

    def _is_same_origin(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        return origin is None or origin == f"{request.scheme}://{request.headers.get('Host')}"

    def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        own = "http://localhost:* http://127.0.0.1:* 'self'"
        response.headers.update(_HEADERS)
        response.headers["Content-Security-Policy"] = _POLICY.format(
            ancestors=own if self.framed else "'none'"
        )
        response.headers.setdefault("Cache-Control", "no-store")
        if request.query.get("token") and request.path == "/":
            response.set_cookie(
                self._cookie(request), self.token, httponly=True, samesite="Strict", path="/"
            )

    def _refusal(self, sentence: str) -> web.Response:
        return web.Response(
            status=403, text=sentence + "\n",
            headers={**_HEADERS, "Content-Security-Policy": _POLICY.format(ancestors="'none'")},
        )  # fmt: skip

    def _cookie(self, request: web.Request) -> str:
        """Return the cookie's name: browsers send cookies to all ports of a host."""
        return f"cah-browse-{request.url.port or 80}"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
