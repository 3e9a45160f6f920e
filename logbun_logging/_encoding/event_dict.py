"""structlog's event dictionaries, read as audit calls.

They come by two ways: to :class:`~logbun_logging.structlog.AuditProcessor`, and as the message of a
log record, where ``ProcessorFormatter.wrap_for_formatter`` is the last processor. Either way the
same event comes out. structlog itself is not imported.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from logbun_logging._encoding.record import message_of, trace_text

__all__ = ["EventDictCall", "is_event_dict", "level_of", "read_event_dict"]

#: Where the action is; the last two are what ``EventRenamer`` usually calls it.
_ACTION_KEYS: Final = ("event", "message", "msg")

#: Where structlog's stdlib loggers keep the arguments of a message.
_ARGS: Final = "positional_args"

#: What the stdlib's ``Logger.log`` takes beside ``extra``.
_CALL_KEYS: Final = ("exc_info", "stack_info", "stacklevel")

#: ``extra`` keys that the stdlib refuses with a KeyError.
_RESERVED: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})

#: A time stamp that is no further from now than this, in seconds, is that of the call.
_NOW: Final = 2.0

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


class EventDictCall(NamedTuple):
    """One call of a structlog logger.

    Attributes:
        action: the message.
        args: its arguments, if nobody has formatted them yet.
        fields: what ``logging`` takes as ``extra``.
        options: ``exc_info``, ``stack_info`` and ``stacklevel``, where they were given.
    """

    action: Any
    args: tuple[Any, ...]
    fields: dict[str, Any]
    options: dict[str, Any]

    def message(self) -> Any:
        """Return the action with its arguments; without them if they do not fit."""
        if not self.args:
            return self.action
        return message_of(logging.LogRecord("", 0, "", 0, self.action, self.args, None))

    def trace_text(self) -> str | None:
        """Return the traceback as text, if the call was given an exception."""
        given = self.options.get("exc_info")
        if isinstance(given, str):
            return given
        if isinstance(given, BaseException):
            given = (type(given), given, given.__traceback__)
        elif given and not isinstance(given, tuple):
            given = sys.exc_info()
        return trace_text(logging.LogRecord("", 0, "", 0, "", None, given or None))


def level_of(method_name: str) -> int:
    """Return the level of a structlog logger's method."""
    return _LEVELS.get(method_name, logging.INFO)


def is_event_dict(record: logging.LogRecord) -> bool:
    """Tell whether the message of *record* is what ``wrap_for_formatter`` makes of a call."""
    return (
        isinstance(record.msg, Mapping) and hasattr(record, "_logger") and hasattr(record, "_name")
    )


def read_event_dict(
    event_dict: Mapping[str, Any], method_name: str, logger_name: str | None
) -> EventDictCall:
    """Read a call from its event dictionary, which stays as it is.

    What structlog's own processors add is left out, because an event has another place for it: the
    level, the logger's name, and the time of the call. Under the same names, everything else is the
    caller's, and stays. A name that ``logging`` refuses gets a ``_`` behind it.

    Args:
        event_dict: as it comes from the processors.
        method_name: the method that was called.
        logger_name: the name of the logger, if it has one.
    """
    rest = dict(event_dict)
    action = None
    for key in _ACTION_KEYS:
        if key in rest:
            action = rest.pop(key)
            break
    args = rest.pop(_ARGS) if isinstance(rest.get(_ARGS), tuple) else ()
    options: dict[str, Any] = {key: rest.pop(key) for key in _CALL_KEYS if key in rest}
    levels = {method_name, logging.getLevelName(level_of(method_name)).lower()}
    for key, known in (("level", levels), ("log_level", levels), ("logger", {logger_name})):
        if isinstance(rest.get(key), str) and rest[key] in known:
            del rest[key]
    if _is_now(rest.get("timestamp")):
        del rest["timestamp"]
    fields: dict[str, Any] = {}
    for key, value in rest.items():
        name = key
        while name in _RESERVED or (name != key and name in rest):
            name += "_"
        fields[name] = value
    return EventDictCall(action, args, fields, options)


def _is_now(stamp: object) -> bool:
    try:
        if isinstance(stamp, str):
            moment = datetime.fromisoformat(stamp)
            if moment.tzinfo is None:  # local time, or UTC without saying so
                return _is_now(moment.timestamp()) or _is_now(
                    moment.replace(tzinfo=UTC).timestamp()
                )
            stamp = moment.timestamp()
        return isinstance(stamp, float) and abs(stamp - time.time()) <= _NOW
    except (ValueError, OverflowError):
        return False
