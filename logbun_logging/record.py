"""The log record of an audit event.

Handlers, filters and formatters meet a complete :class:`logging.LogRecord`, but its standard
attributes are made only when somebody asks for them: an audit handler does not, and a stock record
costs the caller more than everything else in an audit call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from logbun_logging.event import AuditEvent, Entry, decode_event

__all__ = ["AuditRecord", "own_attributes"]

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

    __slots__ = ("awaited", "complete", "entry", "fields", "safe", "unknown_action")

    #: What was given with the call.
    fields: Mapping[str, Any]
    #: The encoded event, once an audit handler has taken the record over.
    entry: Entry | None
    #: The pipelines that a ``fire_async`` call has yet to wait for; None for other calls.
    awaited: list[Any] | None
    #: Every audit handler has it where it promises to keep it.
    safe: bool
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
        self.awaited = None
        self.safe = True
        self.unknown_action = False
        self.complete = False
        self.name = name
        self.levelno = level
        self.msg = action
        self.created = time.time() if created is None else created

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
                "msecs": self.created % 1 * 1000,
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
        return _restore, (dict(self.__dict__), dict(self.fields), self.entry and self.entry.payload)

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
    attributes: dict[str, Any], fields: dict[str, Any], payload: bytes | None
) -> AuditRecord:
    record = AuditRecord(
        attributes["name"], attributes["levelno"], attributes["msg"], fields, attributes["created"]
    )
    record.complete = True
    own_attributes(record).update(attributes)
    if payload is not None:
        record.entry = Entry(decode_event(payload).tenant_id, payload)
    return record
