"""The structlog face: :class:`AuditProcessor`.

In front of the stdlib's loggers it is the last processor of the chain and turns the event
dictionary into a call with ``extra``; as a terminal processor without them it hands the event to a
trail itself. Either way the same event comes out. structlog itself is not imported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from logbun_logging._encoding.event_dict import EventDictCall, level_of, read_event_dict
from logbun_logging._encoding.record import AuditRecord
from logbun_logging._encoding.values import safe_str
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging.trail import AuditTrail, get_trail

__all__ = ["AuditProcessor"]

#: What to do where a renderer comes first.
_MISPLACED: Final = (
    "AuditProcessor gets a %s from the processor before it, which renders: let AuditProcessor"
    " stand in its place"
)


class AuditProcessor:
    """A structlog processor that makes audit events.

    Args:
        trail: for use without stdlib loggers: the trail, or its namespace. Without it, the
            processor must be the last one before a stdlib logger
            (``structlog.stdlib.LoggerFactory``).
        logger_name: for use without stdlib loggers: the name in the records. Where a level was set
            for the stdlib logger of that name, and for the trail's handler, it holds.
    """

    def __init__(
        self, trail: AuditTrail | str | None = None, *, logger_name: str = "audit"
    ) -> None:
        self._trail = trail
        self._logger_name = logger_name
        self._told = False

    def __call__(
        self, logger: Any, method_name: str, event_dict: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Process one event dictionary; returns the arguments of the stdlib logger's method.

        Raises:
            structlog.DropEvent: as the terminal processor, to say that nothing is left to do.
        """
        if not isinstance(event_dict, Mapping):
            event_dict = self._unrendered(event_dict)
        name = getattr(logger, "name", self._logger_name)
        call = read_event_dict(event_dict, method_name, name)
        if self._trail is None:
            return (call.action, *call.args), {**call.options, "extra": call.fields}
        trail = get_trail(self._trail) if isinstance(self._trail, str) else self._trail
        self._record(trail, level_of(method_name), call)
        from structlog import DropEvent  # noqa: PLC0415 - whoever calls a processor has it loaded

        raise DropEvent

    def _unrendered(self, rendered: object) -> Mapping[str, Any]:
        """Return the event dictionary that was rendered, as far as it can be read.

        The application is told once that its processors stand in the wrong order.
        """
        if not self._told:
            self._told = True
            logging.getLogger(LOGGER_NAME).warning(_MISPLACED, type(rendered).__name__)
        found = rendered
        if isinstance(rendered, tuple) and rendered and isinstance(rendered[0], tuple):
            found = rendered[0][0] if rendered[0] else None  # of wrap_for_formatter
        elif isinstance(rendered, str | bytes):
            try:
                found = msgspec.json.decode(rendered)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                found = None
        return found if isinstance(found, Mapping) else {"event": safe_str(rendered)}

    def _record(self, trail: AuditTrail, level: int, call: EventDictCall) -> None:
        handler = trail.handler
        if level < max(handler.level, logging.getLogger(self._logger_name).level):
            return
        options = call.options
        if not options.get("exc_info") and not options.get("stack_info") and not call.args:
            handler.handle(
                AuditRecord(self._logger_name, level, call.action, call.fields, time.time())
            )
            return
        # The stdlib knows what every form of exc_info, stack_info and arguments means.
        logger = logging.Logger(self._logger_name)  # noqa: LOG001 - of this one call
        logger.addHandler(handler)
        logger.log(level, call.action, *call.args, extra=call.fields, **options)
