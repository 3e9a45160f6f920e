"""``dictConfig`` of Python 3.12 and queue handlers.

Early releases of 3.12 refuse an entry whose class is a ``QueueHandler`` unless it names
``handlers``, and drop all its other keys (cpython gh-111615, gh-124653, mended in later ones). An
entry that names none is therefore handed a factory there: an object that ``issubclass`` can look
at, and that is no subclass of anything. Entries in the stdlib's own form, and everybody else, get
the class.
"""

from __future__ import annotations

from types import FrameType
from typing import Any

from logbun_logging.handlers import AuditQueueHandler

__all__ = ["queue_handler_for_caller"]


class _Factory:
    """Looks enough like a class for ``issubclass``, and makes the handler."""

    __bases__: tuple[type, ...] = ()

    def __call__(self, **options: Any) -> AuditQueueHandler:
        return AuditQueueHandler(**options)


def queue_handler_for_caller(frame: FrameType) -> Any:
    """Return what the attribute ``AuditQueueHandler`` is to the code that runs in *frame*."""
    if frame.f_globals.get("__name__") == "logging.config" and frame.f_code.co_name == "resolve":
        caller = frame.f_back
        config = caller.f_locals.get("config") if caller is not None else None
        if isinstance(config, dict) and "handlers" not in config and "queue" not in config:
            return _Factory()
    return AuditQueueHandler
