"""Context for ASGI applications: Starlette, FastAPI, Litestar, Quart, Django under ASGI.

Speaks the protocol (https://asgi.readthedocs.io/en/latest/specs/main.html) and imports no
framework. The invariant: the context is bound in the task that serves the request, for exactly as
long as the application's coroutine runs, which covers streaming bodies, background tasks and
websockets; tasks and threads that the application starts get a copy of it from the interpreter.
``receive`` and ``send`` pass through untouched; a request's ``scope`` gets one entry, see
:mod:`~logbun_logging.middleware.isolation`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from logbun_logging.context import bind_audit_context, reset_audit_context
from logbun_logging.middleware.client_ip import (
    UNREADABLE,
    ClientIPRule,
    ForwardedHeader,
    TrustedProxies,
)
from logbun_logging.middleware.isolation import begin_request, end_request
from logbun_logging.middleware.lookup import Lookup
from logbun_logging.middleware.request import cgi_name, headers_read, request_fields

__all__ = ["AuditASGIMiddleware"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


#: Headers that proxies write. Of others, which are the client's word, the first lines are read.
_FORWARDING: Final = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")

#: Lines of one header that are read: no chain of proxies writes more, and a client can send many.
_MAX_LINES: Final = 64


class AuditASGIMiddleware:
    """Binds address, user agent, request id, tenant and actor for each HTTP request and websocket.

    Put it outside everything that logs audit events, but inside the authentication if a lookup
    needs what that leaves in the scope. It may stand at several levels (a mounted
    sub-application): inner values win, and the outer ones are back afterwards.

    Args:
        app: the application to wrap.
        trusted_proxies: whose forwarding headers to believe: a count of proxies, an iterable of
            addresses, CIDR networks and ``"unix"``, or ``"first-forwarded"``; nobody's by default.
            See :class:`~logbun_logging.middleware.client_ip.ClientIPRule`.
        get_tenant_id: given the scope, returns the tenant or None; may be a coroutine function. If
            it raises, the request goes on without a tenant and the failure is logged.
        get_actor_id: the same for the actor. Without these the values in force around stay.
        forwarded_header: the one header that the proxies write, ``"x-forwarded-for"``,
            ``"forwarded"`` or ``"x-real-ip"``; by default all are read and must agree.

    Raises:
        ConfigurationError: an argument is not allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_proxies: TrustedProxies = 0,
        get_tenant_id: Callable[[Scope], object] | None = None,
        get_actor_id: Callable[[Scope], object] | None = None,
        forwarded_header: ForwardedHeader | None = None,
    ) -> None:
        self.app = app
        self._client_ip = ClientIPRule(trusted_proxies, forwarded_header=forwarded_header)
        self._names = {name.encode(): cgi_name(name) for name in headers_read(self._client_ip)}
        self._tenant_id = (
            None
            if get_tenant_id is None
            else Lookup("get_tenant_id", get_tenant_id, may_await=True)
        )
        self._actor_id = (
            None if get_actor_id is None else Lookup("get_actor_id", get_actor_id, may_await=True)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope; those that are not requests (``lifespan``) pass through."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        undo = begin_request(scope)
        try:
            await self._serve(scope, receive, send)
        finally:
            end_request(undo)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")  # None for a unix socket
        fields = request_fields(
            _cgi_headers(scope["headers"], self._names),
            client[0] if client else None,
            self._client_ip,
        )
        if self._tenant_id is not None:
            fields["tenant_id"] = await self._tenant_id.ask(scope)
        if self._actor_id is not None:
            fields["actor_id"] = await self._actor_id.ask(scope)
        token = bind_audit_context(**fields)
        try:
            await self.app(scope, receive, send)
        finally:
            reset_audit_context(token)


def _cgi_headers(
    headers: Iterable[tuple[bytes, bytes]], names: Mapping[bytes, str]
) -> dict[str, str]:
    """Return the headers that are read; several lines of one become a list, as RFC 9110 has it."""
    lines: dict[str, list[bytes]] = {}
    for name, value in headers:
        key = names.get(name)
        if key is not None:
            lines.setdefault(key, []).append(value)
    return {
        key: UNREADABLE
        if len(found) > _MAX_LINES and key in _FORWARDING
        else b",".join(found[:_MAX_LINES]).decode("latin-1")
        for key, found in lines.items()
    }
