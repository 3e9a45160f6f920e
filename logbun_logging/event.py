"""The audit event: its fields, its identity and its time.

:data:`FIELDS` is the one table of the event's fields. Columns and their types, context names, call
fields, filters, command-line options, row conversion, test samples and the documentation are
derived from it. Static types cannot be derived: the struct and the two typed dictionaries below
spell the same names out, and a test compares them with the table.

An event is encoded once, on the calling thread, and travels as an :class:`Entry`: the encoded bytes
and what the pipeline must know without decoding them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypedDict
from uuid import UUID

import msgspec
import uuid_utils

from logbun_logging._process.forks import notice_fork

__all__ = [
    "ACTION_AT",
    "CALL_FIELDS",
    "CONTEXT_FIELDS",
    "FIELDS",
    "FIELD_NAMES",
    "FILTER_FIELDS",
    "OBJECT_FIELDS",
    "REQUIRED_FIELDS",
    "TEXT_FIELDS",
    "UNKNOWN_ACTOR",
    "UNREADABLE",
    "AuditContextFields",
    "AuditEvent",
    "AuditFields",
    "Entry",
    "Field",
    "FieldFilters",
    "Identifier",
    "decode_event",
    "decode_object",
    "encode_event",
    "new_event_id",
    "utc_now",
    "utc_text",
    "utc_timestamp",
]

#: The actor of an event that names none (counted in the statistics).
UNKNOWN_ACTOR: Final = "unknown"

#: What names a thing: it is stored as text.
Identifier: TypeAlias = str | int | UUID


class Field(NamedTuple):
    """One field of the event.

    Attributes:
        name: the name of the field, its column and its filter.
        meaning: what it holds, in one line.
        kind: a text, a UTC time as text, or a JSON object.
        source: who supplies it: the library, the log message, the call (``extra`` or ``fire``), or
            the call and, if that has none, the context.
        filter: how a query can ask for it: not at all, by its value, by a prefix as well, between
            two dates, or as the scope of the whole query.
        events_per_value: about how many of a tenant's events have the same value. Databases choose
            indexes and the packing of columns by it.
        listed: whether the event has it where it is shown on one line.
    """

    name: str
    meaning: str
    kind: Literal["text", "time", "object"] = "text"
    source: Literal["library", "message", "call", "context"] = "context"
    filter: Literal["none", "exact", "prefix", "range", "scope"] = "none"
    events_per_value: int = 100
    listed: bool = False


#: The fields, in the order of the columns.
FIELDS: Final = (
    Field("id", "UUIDv7, in the order of the calls of a process", "text", "library", "none", 1),
    Field(
        "created_at",
        "time of the call in UTC, as text: 2026-01-31T12:00:00.000001Z",
        "time",
        "library",
        "range",
        1,
        listed=True,
    ),
    Field(
        "action",
        "what happened, e.g. course.created",
        source="message",
        filter="prefix",
        events_per_value=1_000,
        listed=True,
    ),
    Field("actor_id", "who did it", filter="exact", listed=True),
    Field("tenant_id", "whose data it belongs to; NULL: no tenant's", filter="scope", listed=True),
    Field(
        "entity_type",
        "the kind of thing that was acted on",
        filter="exact",
        events_per_value=1_000,
        listed=True,
    ),
    Field("entity_id", "which one", filter="exact", events_per_value=10, listed=True),
    Field(
        "outcome",
        "e.g. success or denied",
        filter="exact",
        events_per_value=10_000,
        listed=True,
    ),
    Field("request_id", "the request or trace", filter="exact", events_per_value=1),
    Field("old_values", "JSON object: the entity before", "object", "call"),
    Field("new_values", "JSON object: the entity after", "object", "call"),
    Field("metadata", "JSON object: everything else", "object", "call"),
    Field("ip_address", "where the request came from", listed=True),
    Field("user_agent", "with what it was made", events_per_value=1_000),
    Field("prev_hash", "reserved", source="library"),
    Field("content_hash", "reserved", source="library"),
)


class AuditEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened: who did what, to what, from where, and when.

    Attributes:
        id: UUIDv7 (RFC 9562), strictly increasing within a process.
        created_at: ISO 8601 in UTC with microseconds and a ``Z``: sorts as text.
        action: what happened, e.g. ``"course.created"``.
        actor_id: who did it; ``"unknown"`` if nobody said.
        tenant_id: whose data it belongs to; None for events of no tenant.
        entity_type: the kind of thing that was acted on.
        entity_id: which one.
        outcome: e.g. ``"success"`` or ``"denied"``.
        request_id: what ties it to a request or trace.
        old_values: the entity before, a JSON object.
        new_values: the entity after, a JSON object.
        metadata: everything else that was given, a JSON object.
        ip_address: where the request came from.
        user_agent: with what it was made.
        prev_hash: reserved.
        content_hash: reserved.
    """

    id: str
    created_at: str
    action: str
    actor_id: str = UNKNOWN_ACTOR
    tenant_id: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    outcome: str | None = None
    request_id: str | None = None
    old_values: dict[str, Any] | None = None
    new_values: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    prev_hash: str | None = None
    content_hash: str | None = None


class AuditContextFields(TypedDict, total=False):
    """The event fields that a context can supply; explicit ``extra`` values win over them."""

    actor_id: Identifier | None
    tenant_id: Identifier | None
    entity_type: str | None
    entity_id: Identifier | None
    outcome: str | None
    request_id: Identifier | None
    ip_address: str | None
    user_agent: str | None


class AuditFields(AuditContextFields, total=False):
    """What :meth:`AuditLogger.fire` takes beside the action, for wrappers of one's own.

    ::

        def log(action: Actions, **fields: Unpack[AuditFields]) -> None:
            audit.fire(action, **fields)
    """

    old_values: Mapping[str, Any] | None
    new_values: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None


class FieldFilters(TypedDict, total=False):
    """The event fields that a query can ask for by their value.

    Attributes:
        actor_id: who did it.
        entity_type: the kind of thing.
        entity_id: the thing.
        outcome: how it ended.
        request_id: the request or trace.
    """

    actor_id: Identifier | None
    entity_type: str | None
    entity_id: Identifier | None
    outcome: str | None
    request_id: Identifier | None


#: The event's field names in column order.
FIELD_NAMES: Final = tuple(field.name for field in FIELDS)

#: What a context can supply.
CONTEXT_FIELDS: Final = frozenset(field.name for field in FIELDS if field.source == "context")

#: What a call may name, texts and objects; every other name is metadata.
TEXT_FIELDS: Final = tuple(
    field.name for field in FIELDS if field.source in {"call", "context"} and field.kind != "object"
)
OBJECT_FIELDS: Final = tuple(field.name for field in FIELDS if field.kind == "object")
CALL_FIELDS: Final = frozenset((*TEXT_FIELDS, *OBJECT_FIELDS))

#: What a query can ask for by its value.
FILTER_FIELDS: Final = tuple(field.name for field in FIELDS if field.filter == "exact")

#: What every event has.
REQUIRED_FIELDS: Final = frozenset(
    field.name for field in msgspec.structs.fields(AuditEvent) if field.default is not None
)

encode_event = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(AuditEvent).decode

#: Where the action's text begins in an encoded event: ids and times are of one length.
ACTION_AT: Final = encode_event(AuditEvent(" " * 36, " " * 27, "", "")).index(b'"action":"') + 10

#: The only key of an object that could not be read back; its value says why.
UNREADABLE: Final = "[UNREADABLE]"

_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


def decode_object(text: str | bytes | None) -> dict[str, Any] | None:
    """Return the JSON object of a column; one that cannot be read as an object with a mark.

    So one row that somebody else has written, or that is nested deeper than the stack has room for,
    fails no page of others.
    """
    if text is None:
        return None
    try:
        return _decode_object(text)
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        return {UNREADABLE: f"{type(error).__name__}: {error}"}


class Entry(msgspec.Struct, eq=False, gc=False):
    """An accepted event on its way: encoded once, decoded only to be inserted.

    Entries are told apart by identity. The garbage collector does not look at them: tens of
    thousands may wait, and the one cycle they are in (with their segment) ends when they are
    acknowledged.

    Attributes:
        tenant_id: the buffer that it belongs to.
        payload: the event as one line of JSON.
        segment: the WAL segment that holds it; None if it is in memory alone.
        admitted: the buffers have made room for it.
        buffered: the buffers have it, or had it.
    """

    tenant_id: str | None
    payload: bytes
    segment: Any = None
    admitted: bool = False
    buffered: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the event alone: its place in the WAL and the buffers is not copied."""
        return Entry, (self.tenant_id, self.payload)


def new_event_id() -> str:
    """Return a UUIDv7 greater than every one that this process made before.

    The counter of RFC 9562, section 6.2, method 1 carries the order within a millisecond and while
    the clock runs backwards.
    """
    notice_fork()
    return str(uuid_utils.uuid7())


def utc_text(moment: datetime) -> str:
    """Return an aware *moment* as events carry theirs: ``2026-01-31T12:00:00.000001Z``."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"


def utc_timestamp(seconds: float) -> str:
    """Return a POSIX time as :func:`utc_text` does, rounded to microseconds.

    Raises:
        ValueError: the time is not a moment of the years 1 to 9999.
    """
    try:
        return utc_text(datetime.fromtimestamp(seconds, UTC))
    except (OverflowError, OSError) as error:
        raise ValueError(f"not a time of the years 1 to 9999: {seconds!r}") from error


def utc_now() -> str:
    """Return the time now, as :func:`utc_text` writes it."""
    return utc_text(datetime.now(UTC))
