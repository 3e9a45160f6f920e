"""Audit logging for multi-tenant services, as a handler for :mod:`logging`.

>>> import logging
>>> from logbun_logging import AuditTrail
>>> trail = AuditTrail(namespace="my-app", adapter="sqlite:///.logbun/audit.db")  # doctest: +SKIP
>>> logging.getLogger("audit").addHandler(trail.handler)  # doctest: +SKIP

See the documentation for ``dictConfig``, structlog and the web frameworks.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from logbun_logging._encoding.record import AuditRecord
from logbun_logging.adapters.base import Adapter
from logbun_logging.context import (
    AuditContextFilter,
    audit_context,
    bind_audit_context,
    clear_audit_context,
    get_audit_context,
    reset_audit_context,
)
from logbun_logging.errors import (
    AdapterUnavailableError,
    BatchTooLargeError,
    ClockError,
    ConfigurationError,
    LogbunError,
    NotReadyError,
    PruneError,
    QueryError,
    RejectedEventsError,
    TenantRequiredError,
)
from logbun_logging.event import AuditEvent
from logbun_logging.formatting import AuditFormatter
from logbun_logging.handlers import AuditQueueListener, BatchingAuditHandler
from logbun_logging.logger import AuditFields, AuditLogger, get_audit_logger
from logbun_logging.query import ALL_TENANTS, Page, QueryFilters
from logbun_logging.reader import TenantReader
from logbun_logging.signals import shutdown_on_signals
from logbun_logging.trail import AuditTrail, get_trail

__version__ = "0.1.0"

__all__ = [
    "ALL_TENANTS",
    "Adapter",
    "AdapterUnavailableError",
    "AuditContextFilter",
    "AuditEvent",
    "AuditFields",
    "AuditFormatter",
    "AuditLogger",
    "AuditQueueHandler",
    "AuditQueueListener",
    "AuditRecord",
    "AuditTrail",
    "BatchTooLargeError",
    "BatchingAuditHandler",
    "ClockError",
    "ConfigurationError",
    "LogbunError",
    "NotReadyError",
    "Page",
    "PruneError",
    "QueryError",
    "QueryFilters",
    "RejectedEventsError",
    "TenantReader",
    "TenantRequiredError",
    "audit_context",
    "bind_audit_context",
    "clear_audit_context",
    "get_audit_context",
    "get_audit_logger",
    "get_trail",
    "reset_audit_context",
    "shutdown_on_signals",
]

# Type checkers see the class on every version: __getattr__ would give every name the type Any.
if TYPE_CHECKING or sys.version_info < (3, 12) or sys.version_info >= (3, 13):
    from logbun_logging.handlers import AuditQueueHandler
else:
    # Releases of 3.12 refuse a QueueHandler's dictConfig entry without "handlers".
    def __getattr__(name: str) -> Any:
        if name == "AuditQueueHandler":
            from logbun_logging._dictconfig312 import queue_handler_for_caller  # noqa: PLC0415

            return queue_handler_for_caller(sys._getframe(1))  # noqa: SLF001
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
