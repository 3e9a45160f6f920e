"""The log record of an audit event.

Handlers, filters and formatters meet a complete :class:`logging.LogRecord`, but its standard
attributes are made only when somebody asks for them: an audit handler does not, and a stock record
costs the caller more than everything else in an audit call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from logbun_logging._encoding.values import plain_text, safe_str
from logbun_logging.event import AuditEvent, Entry, decode_event

if TYPE_CHECKING:
    from logbun_logging._encoding.encoder import EventEncoder

__all__ = ["STANDARD_ATTRIBUTES", "AuditRecord", "message_of", "own_attributes", "trace_text"]

#: What every record has, whoever logged it, and what formatters leave in it.
STANDARD_ATTRIBUTES: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "exc_text"}
)

_formatter = logging.Formatter()

#: Reads an instance's real attribute dictionary, which AuditRecord hides behind a property.
own_attributes: Final[Callable[[object], dict[str, Any]]] = vars(logging.LogRecord)[
    "__dict__"
].__get__


class AuditRecord(logging.LogRecord):
    """A log record that carries an audit event.

    Args:
        name: the logger's name.
        level: the numeric level.
        action: the message.
        fields: what was given with the call; also set as attributes, as ``extra`` would.
        created: POSIX time of the call; now by default.
    """

    __slots__ = (
        "awaited",
        "complete",
        "encoder",
        "entry",
        "fields",
        "prepared",
        "safe",
        "taken_by",
        "unknown_action",
    )

    #: What was given with the call.
    fields: Mapping[str, Any]
    #: The encoded event, once an audit handler has taken the record over.
    entry: Entry | None
    #: Under whose limits and redaction that was; None in an unpickled record.
    encoder: EventEncoder | None
    #: The pipelines that a ``fire_async`` call has yet to wait for; None for other calls.
    awaited: list[Any] | None
    #: Every audit handler has it where it promises to keep it.
    safe: bool
    #: The namespace whose trail has the event, in a copy for the handlers behind the queue.
    taken_by: str | None
    #: What a subclass of the handler has made of the record, to be queued in its place.
    prepared: Any
    #: The action is not one of the logger's.
    unknown_action: bool

    def __init__(  # the base class does at once what is done here on demand
        self,
        name: str,
        level: int,
        action: Any,
        fields: Mapping[str, Any],
        created: float | None = None,
    ) -> None:
        self.fields = fields
        self.entry = None
        self.encoder = None
        self.awaited = None
        self.safe = True
        self.taken_by = None
        self.prepared = None
        self.unknown_action = False
        self.complete = False
        self.name = name
        self.levelno = level
        self.msg = action
        self.created = time.time() if created is None else created

    @classmethod
    def of(cls, record: logging.LogRecord) -> AuditRecord:
        """Return a copy of *record* for other threads; never raises.

        It is what ``QueueHandler.prepare`` of the standard library makes, but for the traceback and
        the stack: they stay attributes of their own and do not join the message. A message that is
        a mapping (structlog's) stays one.
        """
        attributes = dict(record.__dict__)
        attributes["message"] = message_of(record)
        if record.args:
            attributes["msg"] = attributes["message"]
        elif type(record.msg) is dict:
            attributes["msg"] = dict(record.msg)
        else:
            attributes["msg"] = plain_text(record.msg)
        attributes["args"] = None
        attributes["exc_text"] = trace_text(record)
        if isinstance(record, AuditRecord):
            fields = record.fields
        else:
            names = attributes.keys() - STANDARD_ATTRIBUTES
            fields = {name: attributes[name] for name in attributes if name in names}
        copied = cls(record.name, record.levelno, attributes["msg"], fields, record.created)
        copied.complete = True
        own_attributes(copied).update(attributes)
        if isinstance(record, AuditRecord):
            copied.unknown_action = record.unknown_action
            copied.taken_by = record.taken_by
        return copied

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """All attributes; formatters read them here."""
        attributes = own_attributes(self)
        if not self.complete:
            self.complete = True
            standard = logging.LogRecord(
                self.name, self.levelno, "(audit)", 0, self.msg, None, None, "fire"
            )
            moment = {
                "created": self.created,
                "msecs": self.created % 1 * 1000 // 1,  # whole, as the standard library has it
                "relativeCreated": standard.relativeCreated
                + (self.created - standard.created) * 1000,
            }
            found = {**self.fields, **vars(standard), **moment, **attributes}
            attributes.update(found)
        return attributes

    def __getattr__(self, name: str) -> Any:
        """Complete the record when an attribute is missing."""
        if name.startswith("__") or self.complete:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what the record says; a place in the pipeline is not copied."""
        payload = self.entry and self.entry.payload
        return _restore, (dict(self.__dict__), dict(self.fields), payload, self.taken_by)

    @property
    def event(self) -> AuditEvent:
        """The event as it was stored.

        Raises:
            LookupError: no audit handler has taken the record over yet.
        """
        if self.entry is None:
            raise LookupError("no audit handler has taken this record over yet")
        return decode_event(self.entry.payload)


def _restore(
    attributes: dict[str, Any],
    fields: dict[str, Any],
    payload: bytes | None,
    taken_by: str | None,
) -> AuditRecord:
    record = AuditRecord(
        attributes["name"], attributes["levelno"], attributes["msg"], fields, attributes["created"]
    )
    record.complete = True
    record.taken_by = taken_by
    own_attributes(record).update(attributes)
    if payload is not None:
        record.entry = Entry(decode_event(payload).tenant_id, payload)
    return record


def message_of(record: logging.LogRecord) -> str:
    """Return the message with its arguments; the raw message if they do not fit."""
    try:
        return record.getMessage()
    except Exception:  # the raw message is better than none
        return safe_str(record.msg)


def trace_text(record: logging.LogRecord) -> str | None:
    """Return the traceback of *record* as text, leaving the record as it is."""
    with suppress(Exception):
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            return _formatter.formatException(record.exc_info)
    return record.exc_text
