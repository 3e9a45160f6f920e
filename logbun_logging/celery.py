"""Context for Celery tasks: what is bound where a task is sent is bound where it runs.

:func:`celery_signals` connects to Celery's signals. The context travels as one message header, a
mapping of context fields to text and nothing else. The invariant: a task run by a worker has the
context of its message, or none, and never one that an earlier task has left behind; a task run in
place (``apply``, ``task_always_eager``) has its caller's, and leaves that as it was. Whatever a
header holds, the task runs.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, Final

from celery import signals  # type: ignore[import-untyped]

from logbun_logging._encoding.values import clean_text, cut_text, plain_text
from logbun_logging.context import (
    CONTEXT_FIELDS,
    current_context,
    replace_audit_context,
    reset_audit_context,
)
from logbun_logging.event import UNKNOWN_ACTOR
from logbun_logging.trail import running_trails

__all__ = ["celery_signals"]

#: The header of a task's message.
HEADER: Final = "logbun_audit_context"

#: A longer value is cut, in bytes of UTF-8: brokers limit what all headers may take together.
MAX_VALUE: Final = 2048

#: A tenant's id is not carried at all beyond this, in characters.
MAX_TENANT: Final = 16_384

#: What undoes the bindings of the tasks under way here, the innermost last: eager tasks nest.
_bound: ContextVar[tuple[Token[Mapping[str, str | None]], ...]] = ContextVar(
    "logbun_celery_bound", default=()
)


def celery_signals() -> None:
    """Carry the audit context from whoever sends a task to the worker that runs it.

    Call it once where the Celery application is made, a module that both sides import; further
    calls do nothing. Retries, chains, groups and tasks sent by tasks carry it on. In a worker
    process of the prefork pool it also shuts the trails down when that process ends, because Celery
    ends it without what Python does at exit.
    """
    signals.before_task_publish.connect(_write, dispatch_uid=HEADER)
    signals.task_prerun.connect(_bind, dispatch_uid=HEADER)
    signals.task_postrun.connect(_unbind, dispatch_uid=HEADER)
    signals.worker_process_shutdown.connect(_deliver, dispatch_uid=HEADER)


def _write(headers: MutableMapping[str, Any] | None = None, **_: Any) -> None:
    """Put the context in force into a message; what a retried message had is replaced."""
    if headers is None:
        return
    headers.pop(HEADER, None)
    fields = {
        # Where something else than text is bound it knows its text now, and not in the worker.
        name: cut_text(clean_text(plain_text(value)), MAX_VALUE)
        for name, value in current_context().items()
        if name != "tenant_id"
    }
    tenant = _whole(current_context().get("tenant_id"))
    if tenant is not None:
        fields["tenant_id"] = tenant
    if fields.get("actor_id") == UNKNOWN_ACTOR:
        del fields["actor_id"]
    if fields:
        headers[HEADER] = fields


def _whole(tenant_id: str | None) -> str | None:
    """Return a tenant's id as it is, or None if a message cannot carry it.

    An id that is cleaned or cut is that of another tenant: better none than a wrong one.
    """
    if tenant_id is None or len(tenant_id) > MAX_TENANT:
        return None
    try:
        tenant_id.encode()
    except UnicodeEncodeError:
        return None
    return tenant_id


def _bind(task: Any, **_: Any) -> None:
    """Bind what a task's message carries, and only that; an eager task keeps its caller's."""
    request = task.request
    fields = current_context() if request.is_eager else _read(getattr(request, HEADER, None))
    _bound.set((*_bound.get(), replace_audit_context(fields)))


def _read(header: Any) -> dict[str, str | None]:
    if not isinstance(header, Mapping):
        return {}
    return {
        name: value
        for name, value in header.items()
        if name in CONTEXT_FIELDS and isinstance(value, str) and value
    }


def _unbind(**_: Any) -> None:
    """Put back what was in force before the task, whatever it has bound and how it ended."""
    tokens = _bound.get()
    if tokens:  # else the signals were connected while the task ran
        _bound.set(tokens[:-1])
        reset_audit_context(tokens[-1])


def _deliver(**_: Any) -> None:
    """Shut the trails of this worker process down: Celery is about to call ``os._exit``."""
    for trail in running_trails():
        trail.shutdown()
