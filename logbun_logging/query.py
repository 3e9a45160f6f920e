"""What a query asks for and what it answers: filters, paging and the cursor.

Everything a caller gives is normalised here once, so that adapters compare like with like: times
are UTC text with microseconds, actions are split into exact ones and prefixes, limits are clamped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, TypeAlias, Unpack

import msgspec

from logbun_logging._encoding.messages import shown
from logbun_logging._encoding.values import clean_text, plain_text
from logbun_logging.errors import QueryError
from logbun_logging.event import (
    FILTER_FIELDS,
    AuditEvent,
    FieldFilters,
    Identifier,
    utc_text,
)

__all__ = [
    "ALL_TENANTS",
    "AllTenants",
    "Cursor",
    "Filters",
    "Page",
    "Pagination",
    "QueryFilters",
    "TenantScope",
    "decode_cursor",
    "encode_cursor",
    "make_filters",
    "read_time",
]

MAX_LIMIT: Final = 1000

#: Actions and prefixes in one query, together.
MAX_ACTIONS: Final = 100


class AllTenants:
    """The type of :data:`ALL_TENANTS`."""

    def __repr__(self) -> str:
        return "ALL_TENANTS"


#: Asks for the events of every tenant: for operators, never for a tenant's own view.
ALL_TENANTS: Final = AllTenants()

#: A tenant id, None for the events of no tenant, or :data:`ALL_TENANTS`.
TenantScope: TypeAlias = str | AllTenants | None

#: The place behind the last event of a page: its ``created_at`` and ``id``.
Cursor: TypeAlias = tuple[str, str]


class QueryFilters(FieldFilters, total=False):
    """What the events of a query must match, every part of it; for wrappers of one's own, too.

    Beside these, the fields of :class:`~logbun_logging.event.FieldFilters`.

    ::

        def query(**filters: Unpack[QueryFilters]) -> Page:
            return reader.query(**filters)

    Attributes:
        action: an action, several, or prefixes like ``"course.*"``; at most 100.
        start_date: not before; ISO 8601 or datetime, UTC where it names no offset.
        end_date: not after.
    """

    action: str | Iterable[str] | None
    start_date: str | datetime | None
    end_date: str | datetime | None


_FILTERS: Final = ("action", *FILTER_FIELDS, "start_date", "end_date")


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """What events must match, every part of it.

    Attributes:
        actions: the action is one of these; None for any.
        action_prefixes: or starts with one of these.
        equal: fields that must have exactly this value.
        start: ``created_at`` is not before this.
        end: ``created_at`` is not after this.
    """

    actions: tuple[str, ...] = ()
    action_prefixes: tuple[str, ...] = ()
    equal: tuple[tuple[str, str], ...] = ()
    start: str | None = None
    end: str | None = None


class Pagination(msgspec.Struct, frozen=True, kw_only=True):
    """How many events to return, newest first, and after which place.

    Attributes:
        limit: at most so many.
        after: only events older than this place.
    """

    limit: int
    after: Cursor | None = None


class Page(msgspec.Struct, frozen=True):
    """One page of events, newest first.

    Attributes:
        logs: the events.
        next_cursor: pass it as ``cursor=`` for the page after; None at the end.
    """

    logs: list[AuditEvent]
    next_cursor: str | None


def make_filters(**asked: Unpack[QueryFilters]) -> Filters:
    """Normalise what a caller asks for.

    Raises:
        QueryError: a date cannot be read, an action has a ``*`` before its end, there are more
            than 100 of them, or a value has the wrong type.
        TypeError: there is no filter of that name.
    """
    for name in asked.keys() - set(_FILTERS):
        raise TypeError(f"a query has no argument {name!r}; its filters are {', '.join(_FILTERS)}")
    exact, prefixes = _actions(asked.get("action"))
    pairs: list[tuple[str, str]] = []
    for field in FILTER_FIELDS:
        value = asked.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Identifier):
            allowed = "a string, or an id that is a number or a UUID"
            raise QueryError(f"{field}={shown(field, value)}: allowed is {allowed}")
        pairs.append((field, clean_text(plain_text(value))))
    return Filters(
        actions=exact,
        action_prefixes=prefixes,
        equal=tuple(pairs),
        start=read_time("start_date", asked.get("start_date")),
        end=read_time("end_date", asked.get("end_date")),
    )


def _actions(action: str | Iterable[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the exact actions and the prefixes among *action*, none of either for any action."""
    if action is None:
        return (), ()
    if not isinstance(action, Iterable):
        allowed = "one or more strings, e.g. 'course.*'"
        raise QueryError(f"action={shown('action', action)}: allowed are {allowed}")
    exact: list[str] = []
    prefixes: list[str] = []
    for number, item in enumerate([action] if isinstance(action, str) else action):
        if number == MAX_ACTIONS:
            raise QueryError(f"action: allowed are at most {MAX_ACTIONS} actions and prefixes")
        if not isinstance(item, str):
            raise QueryError(
                f"action={shown('action', item)}: allowed are strings, e.g. 'course.*'"
            )
        text = clean_text(plain_text(item))
        if "*" in text[:-1]:
            allowed = "whole actions, or a prefix with one '*' at its end, e.g. 'course.*'"
            raise QueryError(f"action={shown('action', item)}: allowed are {allowed}")
        if text.endswith("*"):
            prefixes.append(text[:-1])
        else:
            exact.append(text)
    if not exact and not prefixes:
        raise QueryError("action=[]: allowed are one or more actions, or None for any")
    if "" in prefixes:
        return (), ()
    return tuple(dict.fromkeys(exact)), tuple(dict.fromkeys(prefixes))


def clamp_limit(limit: int) -> int:
    """Return *limit* within 1 and 1,000."""
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise QueryError(
            f"limit={shown('limit', limit)}: allowed is a whole number; it is clamped to 1…1000"
        )
    return min(max(limit, 1), MAX_LIMIT)


def read_time(name: str, value: str | datetime | None) -> str | None:
    """Return a time as events carry theirs; without an offset it is taken as UTC.

    Raises:
        QueryError: it cannot be read; the message calls it *name*.
    """
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return utc_text(moment)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        allowed = "an ISO 8601 string or a datetime, e.g. '2026-01-01T00:00:00Z'"
        raise QueryError(f"{name}={shown(name, value)}: allowed is {allowed}") from error


def encode_cursor(event: AuditEvent) -> str:
    """Return the opaque cursor of the place behind *event*."""
    place = msgspec.json.encode([event.created_at, event.id])
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> Cursor | None:
    """Return the place that a cursor stands for.

    Raises:
        QueryError: it is not a cursor that a query returned.
    """
    if cursor is None:
        return None
    try:
        place = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        return msgspec.json.decode(place, type=tuple[str, str])
    except (ValueError, AttributeError, msgspec.MsgspecError) as error:
        raise QueryError(
            f"cursor={shown('cursor', cursor)}: allowed is a next_cursor of this trail"
        ) from error
