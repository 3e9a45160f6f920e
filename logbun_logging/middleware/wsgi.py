"""Context for WSGI applications: Flask, Bottle, Pyramid, Django under WSGI.

Speaks PEP 3333 and imports no framework. WSGI code runs on the server's threads, and a streaming
body runs on long after the application has returned, a piece at a time, between which the thread
may do anything. The invariant: all of a request's code (the call, each step of the body, its
``close``) runs in one copy of the thread's context that is the request's own, so nothing it binds
is seen by anybody else and no unbinding can be missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, Token, copy_context
from typing import Any, Final

from logbun_logging.context import bind_audit_context, reset_audit_context
from logbun_logging.middleware.client_ip import ClientIPRule, ForwardedHeader, TrustedProxies
from logbun_logging.middleware.lookup import Lookup
from logbun_logging.middleware.request import request_fields

__all__ = ["AuditWSGIMiddleware", "ContextIterator"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

#: In the environ where Flask's test client keeps contexts open after the request, see below.
_PRESERVE: Final = "werkzeug.debug.preserve_context"


class AuditWSGIMiddleware:
    """Binds address, user agent, request id, tenant and actor for each request.

    >>> app.wsgi_app = AuditWSGIMiddleware(app.wsgi_app, trusted_proxies=1)  # doctest: +SKIP

    It may stand at several levels (a mounted sub-application): inner values win, and the outer ones
    are back afterwards.

    Args:
        app: the application to wrap.
        trusted_proxies: whose forwarding headers to believe: a count of proxies, an iterable of
            addresses, CIDR networks and ``"unix"``, or ``"first-forwarded"``; nobody's by default.
            See :class:`~logbun_logging.middleware.client_ip.ClientIPRule`.
        get_tenant_id: given the environ, returns the tenant or None. If it raises, the request goes
            on without a tenant and the failure is logged.
        get_actor_id: the same for the actor. Without these the values in force around stay.
        forwarded_header: the one header that the proxies write, ``"x-forwarded-for"``,
            ``"forwarded"`` or ``"x-real-ip"``; by default all are read and must agree.

    Raises:
        ConfigurationError: an argument is not allowed.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        trusted_proxies: TrustedProxies = 0,
        get_tenant_id: Callable[[Environ], object] | None = None,
        get_actor_id: Callable[[Environ], object] | None = None,
        forwarded_header: ForwardedHeader | None = None,
    ) -> None:
        self.app = app
        self._client_ip = ClientIPRule(trusted_proxies, forwarded_header=forwarded_header)
        self._tenant_id = None if get_tenant_id is None else Lookup("get_tenant_id", get_tenant_id)
        self._actor_id = None if get_actor_id is None else Lookup("get_actor_id", get_actor_id)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        if _PRESERVE in environ:
            return self._serve_in_test(environ, start_response)
        context = copy_context()
        body = context.run(self._start, environ, start_response)
        file_wrapper = environ.get("wsgi.file_wrapper")
        if (isinstance(body, list | tuple) and not hasattr(body, "close")) or (
            # PEP 3333: the server sends the file itself only if it gets its own wrapper back.
            isinstance(file_wrapper, type) and isinstance(body, file_wrapper)
        ):
            return body  # no code of the application is left to run
        return ContextIterator(body, context)

    def _serve_in_test(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request of Flask's test client, in the test's own context.

        In a ``with`` block the client closes the view's contexts later, in the test. Python allows
        that only in the context in which they were opened.
        """
        before = bind_audit_context()
        try:
            return _Unbinding(self._start(environ, start_response), before)
        except BaseException:
            reset_audit_context(before)
            raise

    def _start(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        fields = request_fields(environ, environ.get("REMOTE_ADDR"), self._client_ip)
        if self._tenant_id is not None:
            fields["tenant_id"] = self._tenant_id(environ)
        if self._actor_id is not None:
            fields["actor_id"] = self._actor_id(environ)
        bind_audit_context(**fields)
        return self.app(environ, start_response)


class ContextIterator(Iterator[bytes]):
    """Iterates over a body, and closes it, inside a context.

    Args:
        body: any iterable; its ``close``, if it has one, is called by :meth:`close`.
        context: entered for each step and left again before the piece is handed out.
    """

    def __init__(self, body: Iterable[bytes], context: Context) -> None:
        self._body = body
        self._run = context.run
        self._steps = context.run(iter, body)

    def __next__(self) -> bytes:
        return self._run(next, self._steps)

    def close(self) -> None:
        """Close the body: servers call this once, whether they came to its end or not."""
        close = getattr(self._body, "close", None)
        if close is not None:
            self._run(close)


class _Unbinding(Iterator[bytes]):
    """Iterates over a body, and resets the audit context at its end or when it is closed.

    Args:
        body: any iterable.
        before: what :func:`~logbun_logging.bind_audit_context` returned before the request.
    """

    def __init__(self, body: Iterable[bytes], before: Token[Any]) -> None:
        self._body = body
        self._before: Token[Any] | None = before
        self._steps = iter(body)

    def __next__(self) -> bytes:
        try:
            return next(self._steps)
        except BaseException:
            self._unbind()
            raise

    def close(self) -> None:
        """Close the body, and reset the context."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._unbind()

    def _unbind(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            reset_audit_context(before)
