"""What a test asks about the events that were logged, and what it is told when they were not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from logbun_logging._encoding.values import Normalizer
from logbun_logging.event import FIELD_NAMES, AuditEvent
from logbun_logging.logger import AuditLogger
from logbun_logging.query import make_filters

__all__ = ["AuditLog"]

#: Events that a failure lists, and characters that it shows of a value.
_MOST_LISTED: Final = 20
_MOST_SHOWN: Final = 120

#: Expected values take the form of stored ones, but are not cut.
_NO_LIMIT: Final = 1 << 40

#: What a listed event is told apart by.
_TELLING: Final = ("tenant_id", "actor_id", "entity_type", "entity_id", "outcome", "request_id")


class _Absent:
    def __repr__(self) -> str:
        return "not there"


_ABSENT: Final = _Absent()


class AuditLog:
    """The events that were captured, in the order of the calls.

    Made by the fixture ``audit_log`` or by :func:`~logbun_logging.testing.capture_events`.

    Args:
        attach: what :meth:`attach` calls.
    """

    def __init__(
        self, attach: Callable[[logging.Logger, int, tuple[str, ...] | None], None]
    ) -> None:
        self._attach = attach
        self._events: list[AuditEvent] = []
        self._refused: list[AuditEvent] = []

    def __repr__(self) -> str:
        return f"AuditLog({len(self._events)} events)"

    @property
    def events(self) -> list[AuditEvent]:
        """Everything that was logged and would have been stored."""
        return list(self._events)

    @property
    def refused(self) -> list[AuditEvent]:
        """What came without a tenant to a trail with ``require_tenant_id``: it is not stored."""
        return list(self._refused)

    def add(self, event: AuditEvent, *, refused: bool = False) -> None:
        """Take up an event; for the capture."""
        (self._refused if refused else self._events).append(event)

    def clear(self) -> None:
        """Forget what was logged so far."""
        self._events.clear()
        self._refused.clear()

    def attach(
        self,
        logger: str | logging.Logger | AuditLogger[Any] = "audit",
        *,
        level: int = logging.INFO,
        redact: tuple[str, ...] | None = None,
    ) -> None:
        """Capture from a logger that has no audit handler in the test, until the test ends.

        Where an audit handler of the application takes the record, this one does not.

        Args:
            logger: the logger, or its name.
            level: the logger's level meanwhile.
            redact: as the option of that name.
        """
        if isinstance(logger, AuditLogger):
            logger = logger.logger
        found = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._attach(found, level, redact)

    def find(self, action: str | None = None, /, **fields: Any) -> list[AuditEvent]:
        """Return the events that match, in the order of the calls.

        Args:
            action: the action, or a prefix like ``"course.*"``; None for any.
            **fields: values of the event's fields; other names are looked for in the metadata, as
                a call puts them there. Of objects, only the keys that are named must match.

        Raises:
            QueryError: *action* is a pattern that no query knows, such as ``"*.created"``: it would
                never match, and a test that nothing was logged would always pass.
        """
        make_filters(action=action)
        return [event for event in self._events if not _differences(event, action, fields)]

    def assert_logged(
        self, action: str | None = None, /, *, times: int | None = None, **fields: Any
    ) -> list[AuditEvent]:
        """Assert that matching events were logged, and return them.

        Args:
            action: as for :meth:`find`.
            times: how many there must be; one or more by default.
            **fields: as for :meth:`find`.

        Raises:
            AssertionError: there are none, or not so many. The message shows the event that comes
                nearest, with what is different, and what else was logged.
        """
        __tracebackhide__ = True
        found = self.find(action, **fields)
        if len(found) == times or (times is None and found):
            return found
        wanted = _shown_query(action, fields)
        if times is None:
            lines = [f"no event matches {wanted}"]
        else:
            lines = [f"{_count(len(found))} instead of {times} match {wanted}"]
        if times is None or len(found) < times:
            lines += self._nearest(action, fields)
        raise AssertionError("\n".join([*lines, *self._listing()]))

    def assert_not_logged(self, action: str | None = None, /, **fields: Any) -> None:
        """Assert that no event matches; takes the arguments of :meth:`find`.

        Raises:
            AssertionError: some do; the message shows them.
        """
        __tracebackhide__ = True
        found = self.find(action, **fields)
        if found:
            lines = [f"{_count(len(found))} match {_shown_query(action, fields)}", ""]
            lines += [f"  {event!r}" for event in found[:_MOST_LISTED]]
            raise AssertionError("\n".join(lines))

    def _nearest(self, action: str | None, fields: Mapping[str, Any]) -> list[str]:
        missed: list[tuple[bool, int, int, dict[str, tuple[Any, Any]]]] = []
        for number, event in enumerate(self._events):
            different = _differences(event, action, fields)
            if different:
                # The latest of those that are equally near.
                missed.append(("action" in different, len(different), -number, different))
        if not missed:
            return []
        *_, number, different = min(missed, key=lambda miss: miss[:3])
        event = self._events[-number]
        lines = ["", f"nearest is event {1 - number} of {len(self._events)}, {event.action!r}:"]
        width = max(map(len, different))
        lines += [
            f"  {name:<{width}}  expected {_shown(expected)}, was {_shown(actual)}"
            for name, (expected, actual) in different.items()
        ]
        return lines

    def _listing(self) -> list[str]:
        lines = [""]
        if self._events:
            lines.append("logged:")
        else:
            lines.append("logged: nothing (is there an audit handler, or an audit_log.attach()?)")
        first = max(0, len(self._events) - _MOST_LISTED)
        if first:
            lines.append(f"  ... {first} before these")
        for number, event in enumerate(self._events[first:], first + 1):
            told = [
                f"{name}={_shown(getattr(event, name))}"
                for name in _TELLING
                if getattr(event, name) is not None
            ]
            lines.append("  ".join([f"  {number}. {event.action!r}", *told]))
        if self._refused:
            lines.append(f"refused, because they have no tenant: {len(self._refused)}")
            lines += [f"  {event.action!r}" for event in self._refused[-_MOST_LISTED:]]
        return lines


def _differences(
    event: AuditEvent, action: str | None, fields: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return what is different, by its path: what was expected, and what is there."""
    different: dict[str, tuple[Any, Any]] = {}
    if action is not None:
        matches = (
            event.action.startswith(action[:-1]) if action.endswith("*") else event.action == action
        )
        if not matches:
            different["action"] = (action, event.action)
    for name, expected in fields.items():
        if name in FIELD_NAMES:
            _compare(name, expected, getattr(event, name), different)
        else:
            _compare("metadata", {name: expected}, event.metadata, different)
    return different


def _compare(path: str, expected: Any, actual: Any, different: dict[str, tuple[Any, Any]]) -> None:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping | None) and expected:
        for key, value in expected.items():
            _compare(f"{path}.{key}", value, (actual or {}).get(key, _ABSENT), different)
    elif not _equal(expected, actual):
        different[path] = (expected, actual)


def _equal(expected: Any, actual: Any) -> bool:
    if actual == expected:
        return True
    if expected is None or actual is None or actual is _ABSENT:
        return False
    # What was logged as a UUID, say, is stored as text: expecting the UUID is as good.
    plain = Normalizer(_NO_LIMIT).value(expected)
    return bool(actual == plain or (type(actual) is str and actual == str(plain)))


def _shown_query(action: str | None, fields: Mapping[str, Any]) -> str:
    parts = [] if action is None else [repr(action)]
    parts += [f"{name}={_shown(value)}" for name, value in fields.items()]
    return ", ".join(parts) or "anything"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _count(number: int) -> str:
    return "1 event" if number == 1 else f"{number or 'no'} events"
