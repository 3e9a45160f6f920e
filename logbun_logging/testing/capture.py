"""Takes audit events away from their pipelines for as long as a test runs.

The methods by which every handler hands its records over are replaced, on their classes, and the
shorter ways round them are hidden, so it does not matter when and how the application makes its
handlers. What comes before still happens: levels, filters, context, redaction, encoding. What comes
after does not: no thread, no file, no database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, Final
from unittest.mock import patch

from logbun_logging._encoding.record import AuditRecord
from logbun_logging._engine.intake import encode_record
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging.adapters.base import PruneReport
from logbun_logging.event import AuditEvent, decode_event
from logbun_logging.handlers import AuditQueueHandler, BatchingAuditHandler
from logbun_logging.query import Filters, Pagination, TenantScope
from logbun_logging.testing.audit_log import AuditLog
from logbun_logging.testing.memory import MemoryAdapter
from logbun_logging.trail import AuditTrail

__all__ = ["capture_events"]

_AUDIT_HANDLERS: Final = (AuditQueueHandler, BatchingAuditHandler)
_numbers = count(1)


@contextmanager
def capture_events() -> Iterator[AuditLog]:
    """Capture the audit events of this process, of every trail, for the length of a ``with`` block.

    Meanwhile ``trail.query`` and its kin answer from what was captured of that trail, ``ready`` is
    true, and pruning and maintenance do nothing. The fixture ``audit_log`` does the same::

        with capture_events() as audit_log:
            application.create_course("Advanced Python")
            audit_log.assert_logged("course.created", actor_id="user_42")
    """
    with ExitStack() as stack:
        capture = _Capture(stack)
        for owner, replacements in capture.replacements().items():
            for name, method in replacements.items():
                stack.enter_context(patch.object(owner, name, method))
        for name in ("_take_record", "take_call"):
            hidden = patch.object(AuditQueueHandler, name, _Hidden(name), create=True)
            stack.enter_context(hidden)
        yield capture.log


class _Hidden:
    """Hides an attribute that handlers have: a running pipeline's own way in.

    Args:
        name: the attribute's.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, handler: object, owner: type) -> None:
        """Return None, as for a pipeline that does not run."""

    def __set__(self, handler: object, value: object) -> None:
        """Keep what is set for afterwards."""
        vars(handler)[self._name] = value


class _Capture:
    """The replaced methods, and where their events go."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._stores: dict[str, MemoryAdapter] = {}
        self.log = AuditLog(self._attach)

    def replacements(self) -> dict[type, dict[str, Callable[..., Any]]]:
        """Return, by class, the methods to replace."""

        def emit(handler: Any, record: logging.LogRecord) -> None:
            if record.name != LOGGER_NAME and not _left_to_others(handler, record):
                self._take(handler.trail, record)

        def fetch(
            trail: AuditTrail, tenant_id: TenantScope, filters: Filters, pagination: Pagination
        ) -> list[AuditEvent]:
            return self._store(trail).query(tenant_id, filters, pagination)

        def ready(_trail: AuditTrail, timeout: float = 0) -> bool:  # noqa: ARG001 - as its original
            return True

        def prune(_trail: AuditTrail, **_options: bool) -> PruneReport:
            return {}

        def run_maintenance(_trail: AuditTrail) -> bool:
            return True

        return {
            AuditQueueHandler: {"emit": emit},
            # What was queued before the test began still goes where it was to go.
            BatchingAuditHandler: {"emit": emit},
            AuditTrail: {
                "_fetch": fetch,
                "ready": ready,
                "prune": prune,
                "run_maintenance": run_maintenance,
            },
        }

    def _take(self, trail: AuditTrail, record: logging.LogRecord) -> None:
        entry = encode_record(trail.pipeline.encoder, record)
        if isinstance(record, AuditRecord) and record.entry is None:
            record.entry = entry
            record.encoder = trail.pipeline.encoder
        event = decode_event(entry.payload)
        refused = trail.options.require_tenant_id and event.tenant_id is None
        if not refused:
            self._store(trail).bulk_insert(event.tenant_id, [event])
        self.log.add(event, refused=refused)

    def _store(self, trail: AuditTrail) -> MemoryAdapter:
        return self._stores.setdefault(trail.options.namespace, MemoryAdapter())

    def _attach(self, logger: logging.Logger, level: int, redact: tuple[str, ...] | None) -> None:
        trail = AuditTrail(
            namespace=f"audit_log_{next(_numbers)}", adapter=MemoryAdapter(), redact=redact
        )
        handler = _AttachedHandler(trail=trail)
        logger.addHandler(handler)
        self._stack.callback(handler.close)
        self._stack.callback(trail.shutdown)
        self._stack.callback(logger.removeHandler, handler)
        self._stack.callback(logger.setLevel, logger.level)
        logger.setLevel(level)


class _AttachedHandler(AuditQueueHandler):
    """The handler that a test has attached, not the application."""


def _left_to_others(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Tell whether *handler* is a test's, and the application has one for the same record."""
    if not isinstance(handler, _AttachedHandler):
        return False
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None:
        for other in logger.handlers:
            if isinstance(other, _AUDIT_HANDLERS) and not isinstance(other, _AttachedHandler):
                return True
        logger = logger.parent if logger.propagate else None
    return False
