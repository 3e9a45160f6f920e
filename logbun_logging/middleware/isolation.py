"""Keeping the requests of one connection apart.

A server may begin a request inside the context of another one. asyncio runs a callback in the
context in which it was registered; so once a connection's reading was paused and resumed within a
request (a large body), or as soon as requests are pipelined, uvicorn starts what follows on that
connection in a copy of an earlier request's context, and a proxy sends different people's requests
over one connection. Whatever the earlier request had bound, its tenant among it, would be in force.

The invariant: a request begins with what was in force before the first request of its context. The
mark that tells a request from another one lies in its ASGI scope, where a middleware of a mounted
application finds it again and lets the outer values be.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, Final, NamedTuple, Self

from logbun_logging.context import current_context, replace_audit_context, reset_audit_context

__all__ = ["begin_request", "end_request"]

_MARK: Final = "logbun_logging.request"


class _Request:
    """One request being served.

    Args:
        before: what was in force outside of it.
    """

    __slots__ = ("before",)

    def __init__(self, before: Mapping[str, str | None]) -> None:
        self.before = before

    def __deepcopy__(self, memo: object) -> Self:
        """Return itself: whoever copies a scope copies the same request."""
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, str | None]]]:
        """Pickle without the context: a request is served in one process."""
        return type(self), ({},)


class _Undo(NamedTuple):
    """What :func:`end_request` needs to put things back."""

    serving: Token[_Request | None]
    context: Token[Mapping[str, str | None]] | None


_serving: ContextVar[_Request | None] = ContextVar("logbun_request", default=None)


def begin_request(scope: MutableMapping[str, Any]) -> _Undo | None:
    """Let go of what another request has left bound; call before binding anything.

    Args:
        scope: the request's ASGI scope; it gets one entry more.
    """
    serving = _serving.get()
    if serving is None:
        before, token = current_context(), None
    elif scope.get(_MARK) is serving:
        return None  # we are inside of it, in a mounted application
    else:
        before, token = serving.before, replace_audit_context(serving.before)
    request = scope[_MARK] = _Request(before)
    return _Undo(_serving.set(request), token)


def end_request(undo: _Undo | None) -> None:
    """Put back what was in force before :func:`begin_request`, which returned *undo*."""
    if undo is None:
        return
    _serving.reset(undo.serving)
    if undo.context is not None:
        reset_audit_context(undo.context)
