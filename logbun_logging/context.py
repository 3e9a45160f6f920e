"""Who is acting, from where: one context variable that the calling side reads.

Middleware or application code binds it; every audit call made in the same thread, task or copied
context picks the values up. The pipeline's own threads never read it, so a value can neither leak
into another request nor be lost on the way to the listener.

The variable holds an immutable mapping that is replaced as a whole, which makes it right under
threads, ``asyncio`` tasks, ``asyncio.to_thread`` and ``contextvars.copy_context`` alike.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import Any, Unpack

from logbun_logging._encoding.values import plain_text
from logbun_logging.event import CONTEXT_FIELDS, AuditContextFields

__all__ = [
    "CONTEXT_FIELDS",
    "AuditContextFields",
    "AuditContextFilter",
    "audit_context",
    "bind_audit_context",
    "clear_audit_context",
    "get_audit_context",
    "replace_audit_context",
    "reset_audit_context",
]

_EMPTY: Mapping[str, str | None] = MappingProxyType({})
_current: ContextVar[Mapping[str, str | None]] = ContextVar("logbun_audit_context", default=_EMPTY)

#: What the hot path calls: the mapping in force, never None.
current_context = _current.get


def get_audit_context() -> Mapping[str, str | None]:
    """Return the values in force here, read-only."""
    return MappingProxyType(dict(_current.get()))


def bind_audit_context(
    **fields: Unpack[AuditContextFields],
) -> Token[Mapping[str, str | None]]:
    """Add *fields* to the context from here on; a value of None unsets a field.

    What is no string (a UUID, say, or a primary key) is kept as its text.

    Returns a token for :func:`reset_audit_context`. Prefer :func:`audit_context`, which cannot be
    left bound by mistake.

    Raises:
        TypeError: a name is not one of :class:`AuditContextFields`.
    """
    unknown = fields.keys() - CONTEXT_FIELDS
    if unknown:
        names = ", ".join(sorted(unknown))
        allowed = ", ".join(sorted(CONTEXT_FIELDS))
        msg = f"unknown audit context field(s) {names}: allowed are {allowed}"
        raise TypeError(msg)
    merged: dict[str, Any] = {**_current.get(), **fields}
    # Who acts may be known only at the call, as Django's lazy user: the encoder asks for its text.
    texts = {
        name: value if name == "actor_id" else plain_text(value)
        for name, value in merged.items()
        if value is not None
    }
    return _current.set(texts)


def replace_audit_context(
    fields: Mapping[str, str | None],
) -> Token[Mapping[str, str | None]]:
    """Put *fields* in the place of whatever is in force.

    For whoever begins work of its own (a task, a request) where another's may have left something.
    Returns a token for :func:`reset_audit_context`.
    """
    return _current.set(fields)


def reset_audit_context(token: Token[Mapping[str, str | None]]) -> None:
    """Put back what was in force before the bind that returned *token*.

    A token from another context (a generator finished in another task, say) cannot be reset there;
    the context is then cleared, which is the safe side: better no tenant than a wrong one.
    """
    try:
        _current.reset(token)
    except ValueError:
        _current.set(_EMPTY)


def clear_audit_context() -> None:
    """Forget every bound field in this thread or task."""
    _current.set(_EMPTY)


@contextmanager
def audit_context(**fields: Unpack[AuditContextFields]) -> Iterator[None]:
    """Bind *fields* for the length of a ``with`` block; blocks nest, inner values win.

    >>> with audit_context(tenant_id="t1", ip_address="203.0.113.9"):
    ...     get_audit_context()["tenant_id"]
    't1'
    """
    token = bind_audit_context(**fields)
    try:
        yield
    finally:
        reset_audit_context(token)


class AuditContextFilter(logging.Filter):
    """Writes the context into a record, on the thread that logs.

    An audit handler reads the context itself when it is called by the thread that logs. Behind
    another handler's queue or buffer it is called by another thread, or later. Add this filter to
    the handler in front (``logging.handlers.QueueHandler``, ``MemoryHandler``): the values become
    attributes of the record, as ``extra`` does, unless it has its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what the record does not say itself."""
        said = record.__dict__
        for name, value in _current.get().items():
            if said.get(name) is None:
                setattr(record, name, plain_text(value))
        return bool(super().filter(record))
