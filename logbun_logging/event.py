"""The audit event, its identity and its time: what everything else speaks.

An event is born on the calling thread, is encoded there once, and travels as an :class:`Entry`
(the encoded bytes and what the pipeline must know without decoding them).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

import msgspec
import uuid_utils

from logbun_logging._process.forks import notice_fork

__all__ = [
    "ACTION_AT",
    "FIELDS",
    "UNKNOWN_ACTOR",
    "UNREADABLE",
    "AuditEvent",
    "Entry",
    "Identifier",
    "decode_event",
    "decode_object",
    "encode_event",
    "new_event_id",
    "utc_now",
    "utc_timestamp",
]

#: The actor of an event that names none (counted in the statistics).
UNKNOWN_ACTOR: Final = "unknown"

#: What names a thing: it is stored as text.
Identifier: TypeAlias = str | int | UUID


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
        prev_hash: the hash of the tenant's event before, where the integrity chain is on.
        content_hash: the hash of this event, where the integrity chain is on.
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


#: The only key of an object that could not be read back; its value says why.
UNREADABLE: Final = "[UNREADABLE]"

#: The event's field names in column order.
FIELDS: Final = AuditEvent.__struct_fields__

encode_event = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(AuditEvent).decode

#: Where the action's text begins in an encoded event: ids and times are of one length.
ACTION_AT: Final = encode_event(AuditEvent(" " * 36, " " * 27, "", "")).index(b'"action":"') + 10


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


_second: tuple[int, str] = (-1, "")


def utc_timestamp(seconds: float) -> str:
    """Format a POSIX time as ISO 8601 in UTC with microseconds: ``2026-01-31T12:00:00.000001Z``.

    The text of the current second is kept, because consecutive events share it.

    Raises:
        ValueError: the time is not a moment of the years 1 to 9999.
    """
    global _second  # noqa: PLW0603 - one tuple, replaced as a whole: safe without a lock
    whole, text = _second
    micros = round((seconds - whole) * 1_000_000)  # as datetime does
    if not 0 <= micros < 1_000_000:
        try:
            moment = datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, OSError) as error:
            raise ValueError(f"not a time of the years 1 to 9999: {seconds!r}") from error
        text = moment.strftime("%Y-%m-%dT%H:%M:%S.").rjust(20, "0")
        _second = (int(seconds // 1), text)
        micros = moment.microsecond
    return f"{text}{micros:06d}Z"


def utc_now() -> str:
    """Return the time now, as :func:`utc_timestamp` writes it."""
    return utc_timestamp(time.time())
