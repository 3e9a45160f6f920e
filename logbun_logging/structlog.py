"""The structlog face: :class:`AuditProcessor`.

In front of the stdlib's loggers it is the last processor of the chain and turns the event
dictionary into a call with ``extra``; as a terminal processor without them it hands the event to a
trail itself. Either way the same event comes out. structlog itself is not imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from logbun_logging.handlers import AuditQueueHandler
from logbun_logging.record import AuditRecord
from logbun_logging.trail import AuditTrail, get_trail

__all__ = ["AuditProcessor"]

#: What structlog's own processors add, and an audit event has another place for.
_STRUCTLOG_KEYS: Final = ("level", "logger", "timestamp", "log_level")

#: Where its stdlib loggers keep the arguments of a message.
_ARGS: Final = "positional_args"

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "err": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}

#: What the stdlib's ``Logger.log`` takes beside ``extra``.
_CALL_KEYS: Final = ("exc_info", "stack_info", "stacklevel")

#: ``extra`` keys that the stdlib refuses with a KeyError.
_RESERVED: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})


class AuditProcessor:
    """A structlog processor that makes audit events.

    Args:
        trail: for use without stdlib loggers: the trail, or its namespace. Without it, the
        processor
            must be the last one before a stdlib logger (``structlog.stdlib.LoggerFactory``).
        logger_name: for use without stdlib loggers: the name in the records.
    """

    def __init__(
        self, trail: AuditTrail | str | None = None, *, logger_name: str = "audit"
    ) -> None:
        self._trail = trail
        self._logger_name = logger_name

    def __call__(
        self, _logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Process one event dictionary; returns the arguments of the stdlib logger's method.

        Raises:
            structlog.DropEvent: as the terminal processor, to say that nothing is left to do.
        """
        fields = dict(event_dict)
        action = fields.pop("event", None)
        for key in _STRUCTLOG_KEYS:
            fields.pop(key, None)
        # structlog's stdlib loggers leave it to a processor to format the message.
        args = fields.pop(_ARGS) if isinstance(fields.get(_ARGS), tuple) else ()
        call: dict[str, Any] = {key: fields.pop(key) for key in _CALL_KEYS if key in fields}
        if self._trail is None:
            extra = {f"{key}_" if key in _RESERVED else key: fields[key] for key in fields}
            return (action, *args), {**call, "extra": extra}
        trail = get_trail(self._trail) if isinstance(self._trail, str) else self._trail
        self._record(trail.handler, method_name, (action, *args), fields, call)
        from structlog import DropEvent  # noqa: PLC0415 - whoever calls a processor has it loaded

        raise DropEvent

    def _record(
        self,
        handler: AuditQueueHandler,
        method_name: str,
        message: tuple[Any, ...],
        fields: Mapping[str, Any],
        call: Mapping[str, Any],
    ) -> None:
        level = _LEVELS.get(method_name, logging.INFO)
        extra = {f"{key}_" if key in _RESERVED else key: fields[key] for key in fields}
        exc_info = call.get("exc_info")
        if not exc_info and not call.get("stack_info") and len(message) == 1:
            handler.handle(AuditRecord(self._logger_name, level, message[0], extra, time.time()))
            return
        # The stdlib knows what every form of exc_info, stack_info and arguments means.
        logger = logging.Logger(self._logger_name)  # noqa: LOG001 - of this one call
        logger.addHandler(handler)
        logger.log(level, *message, extra=extra, **call)
