"""Context for Django: ``"logbun_logging.django.AuditMiddleware"`` in ``MIDDLEWARE``.

Runs in synchronous and asynchronous chains and takes its options from the setting ``LOGBUN_AUDIT``.
The invariant: the context belongs to one request and is unbound with it; the actor is whoever
``request.user`` is *at the audit call*, because login views and API frameworks that authenticate
inside the view replace it long after the middlewares have run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, Final, cast

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings  # type: ignore[import-untyped]
from django.http import FileResponse  # type: ignore[import-untyped]
from django.utils.functional import SimpleLazyObject, empty  # type: ignore[import-untyped]
from django.utils.module_loading import import_string  # type: ignore[import-untyped]

from logbun_logging.context import (
    AuditContextFields,
    audit_context,
    bind_audit_context,
    get_audit_context,
    reset_audit_context,
)
from logbun_logging.errors import ConfigurationError
from logbun_logging.event import UNKNOWN_ACTOR
from logbun_logging.middleware.client_ip import ClientIPRule
from logbun_logging.middleware.lookup import Lookup
from logbun_logging.middleware.request import request_fields
from logbun_logging.middleware.wsgi import ContextIterator

__all__ = ["AuditMiddleware", "user_id"]

_OPTIONS: Final = ("trusted_proxies", "forwarded_header", "get_tenant_id", "get_actor_id")


def user_id(request: Any) -> object:
    """Return the primary key of ``request.user``, or None if nobody is logged in."""
    user = getattr(request, "user", None)
    return user.pk if user is not None and user.is_authenticated else None


class AuditMiddleware:
    """Binds address, user agent, request id, tenant and actor for each request.

    Put it after ``AuthenticationMiddleware`` and whatever else sets ``request.user``. The setting
    ``LOGBUN_AUDIT`` is a mapping, empty by default, of these options:

    - ``trusted_proxies``, ``forwarded_header``: see
      :class:`~logbun_logging.middleware.client_ip.ClientIPRule`. By default nobody is trusted.
    - ``get_tenant_id``: a callable, a coroutine function, or the dotted path of one. Given the
      request before the view runs, it returns the tenant or None. No tenant by default.
    - ``get_actor_id``: a callable or its dotted path. Given the request at each audit call, on the
      calling thread, it returns the actor or None; :func:`user_id` by default. In asynchronous
      chains and views ``request.user`` is loaded beforehand.

    If one of the callables raises, the request goes on without the value and the failure is logged.

    Raises:
        ConfigurationError: an option is unknown or not allowed.
        ImportError: a dotted path leads nowhere.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        else:
            # Django would run it in a thread, for each request of an asynchronous chain.
            self.process_view = self._prepare_view
        options = _options()
        self._client_ip = ClientIPRule(
            options.get("trusted_proxies", 0), forwarded_header=options.get("forwarded_header")
        )
        self._actor_id = Lookup("get_actor_id", options.get("get_actor_id") or user_id)
        self._tenant_id = self._tenant_lookup(options.get("get_tenant_id"))
        self._load_user = Lookup("request.user", _load_user)

    def __call__(self, request: Any) -> Any:
        """Serve one request; a coroutine in an asynchronous chain."""
        if self._is_async:
            return self._serve(request)
        token = bind_audit_context(**self._fields(request))
        try:
            if self._tenant_id is not None:
                bind_audit_context(tenant_id=self._tenant_id(request))
            response = self.get_response(request)
            if response.streaming and response.is_async:
                self._load_user(request)
            return _hold(response)
        finally:
            reset_audit_context(token)

    async def _serve(self, request: Any) -> Any:
        token = bind_audit_context(**self._fields(request))
        try:
            if _has_lazy_user(request):
                await sync_to_async(self._load_user)(request)
            if self._tenant_id is not None:
                bind_audit_context(tenant_id=await self._tenant_id.ask(request))
            return _hold(await self.get_response(request))
        finally:
            reset_audit_context(token)

    def _prepare_view(self, request: Any, view: Any, _args: Any, _kwargs: Any) -> None:
        if iscoroutinefunction(view):
            self._load_user(request)

    def _fields(self, request: Any) -> AuditContextFields:
        fields = request_fields(request.META, request.META.get("REMOTE_ADDR"), self._client_ip)
        # The encoder turns what is not text into text, when and where the audit call is made.
        fields["actor_id"] = cast("str", _Actor(self._actor_id, request))
        return fields

    def _tenant_lookup(self, function: Any) -> Lookup | None:
        if function is None:
            return None
        if callable(function) and iscoroutinefunction(function) != self._is_async:
            # A plain function may query the database, which Django refuses in an event loop.
            function = (sync_to_async if self._is_async else async_to_sync)(function)
        return Lookup("get_tenant_id", function, may_await=self._is_async)


class _Actor:
    """Whoever acts in a request, as of the moment when it is asked for."""

    __slots__ = ("_lookup", "_request")

    def __init__(self, lookup: Lookup, request: Any) -> None:
        self._lookup = lookup
        self._request = request

    def __str__(self) -> str:
        # Loading a user may itself be audited: that call must not come here again.
        with audit_context(actor_id=UNKNOWN_ACTOR), _unnoticed(self._request):
            return self._lookup(self._request) or UNKNOWN_ACTOR


def _options() -> Mapping[str, Any]:
    given = getattr(settings, "LOGBUN_AUDIT", {})
    if not isinstance(given, Mapping):
        raise ConfigurationError("LOGBUN_AUDIT", given, f"a mapping of {', '.join(_OPTIONS)}")
    for name in given:
        if name not in _OPTIONS:
            raise ConfigurationError("LOGBUN_AUDIT", name, f"one of {', '.join(_OPTIONS)}")
    return {
        name: import_string(value) if name.startswith("get_") and isinstance(value, str) else value
        for name, value in given.items()
    }


def _has_lazy_user(request: Any) -> bool:
    # type(), because isinstance() would load it.
    return type(getattr(request, "user", None)) is SimpleLazyObject


def _load_user(request: Any) -> None:
    """Load ``request.user`` while it can be: Django refuses to query in an event loop.

    It is this object that is asked, not the session: it may come from a token, or a remote server.
    """
    if _has_lazy_user(request):
        with _unnoticed(request):
            bool(request.user)


@contextmanager
def _unnoticed(request: Any) -> Iterator[None]:
    """Look at ``request.user`` without making the response depend on it.

    Whoever reads the session makes Django send ``Vary: Cookie``, and then no cache serves the page
    to others. The audit trail is not part of the page. Whoever asks for the user afterwards gets
    the one that is loaded, and that counts: so the same object, which a view may have kept, is made
    lazy again.
    """
    session: Any = getattr(request, "session", None)
    if getattr(session, "accessed", True) or not _has_lazy_user(request):
        yield
        return
    user = request.user
    try:
        yield
    finally:
        if session.accessed and request.user is user:
            session.accessed = False
            loaded = vars(user)["_wrapped"]
            if loaded is not empty:  # else it could not be loaded, and is asked again
                SimpleLazyObject.__init__(user, partial(_first_use, session, loaded))


def _first_use(session: Any, user: Any) -> Any:
    session.accessed = True
    return user


def _hold(response: Any) -> Any:
    """Let the body of a streaming response run in the context of its request."""
    if not response.streaming or isinstance(response, FileResponse):
        return response
    # Not response.streaming_content: that would make the response refer to itself, and the view's
    # generator be closed by the garbage collector, in the context of whoever is interrupted by it.
    body = response._iterator  # noqa: SLF001
    if response.is_async:
        response.streaming_content = _steps(body, get_audit_context())
    else:
        context = copy_context()
        response.streaming_content = ContextIterator(body, context)
        # It closes the view's generator, which may have something to do at its end.
        response.close = partial(context.run, response.close)
    return response


async def _steps(
    body: AsyncIterator[bytes], context: Mapping[str, str | None]
) -> AsyncGenerator[bytes, None]:
    """Iterate over a body with a context bound during each step, and only then."""
    fields = cast("AuditContextFields", context)
    try:
        while True:
            with audit_context(**fields):
                piece = await anext(body, None)
                fields = cast("AuditContextFields", get_audit_context())
            if piece is None:
                return
            yield piece
    finally:
        if isinstance(body, AsyncGenerator):
            with audit_context(**fields):
                await body.aclose()
