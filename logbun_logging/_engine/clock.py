"""Whether the wall clock can be believed, asked before something is removed because it is old.

A clock may be set to a wrong time: by a bad time server, by a machine without a battery, after a
virtual machine was moved. So the last time that was believed is kept. A clock that is far from it
is in doubt until it is back, or until it has stayed for :data:`PROBATION`. That is what a service
looks like that was off for long: it cannot be told from a wrong clock by any other means.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

__all__ = ["PROBATION", "Belief", "ClockWatch", "running_time", "utc_clock"]

#: How long a clock in doubt must go on before it is believed.
PROBATION: Final = timedelta(days=7)

#: What goes on while the machine sleeps, where there is such a clock.
_RUNNING_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utc_clock() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)


def running_time() -> float:
    """Return seconds of a clock that nobody sets."""
    return time.clock_gettime(_RUNNING_CLOCK)


class Belief(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the wall clock.

    Attributes:
        believed: the last time that was believed.
        doubted_since: the first time that a clock in doubt has shown; None if it is believed.
    """

    believed: datetime
    doubted_since: datetime | None = None


class ClockWatch:
    """Looks at the wall clock.

    Args:
        clock: returns the time, in UTC.
        running: seconds of a clock that nobody sets.
        leap: how far a clock may be from where it is expected and still be believed.
    """

    def __init__(
        self, clock: Callable[[], datetime], running: Callable[[], float], leap: timedelta
    ) -> None:
        self._clock = clock
        self._running = running
        self.leap: Final = leap
        self._lock = threading.Lock()
        self._last = (clock(), running())  # written under the lock

    def look(self, belief: Belief | None) -> tuple[datetime, Belief]:
        """Return the time, and what is known of the clock now.

        Args:
            belief: what was known before; None of a clock that nobody has looked at.
        """
        with self._lock:
            before, at = self._last
            now, running = self._last = (self._clock(), self._running())
        passed = timedelta(seconds=running - at)
        if belief is None:
            belief = Belief(believed=before)
        if abs(now - belief.believed) <= self.leap:
            return now, Belief(believed=now)
        since = belief.doubted_since
        if abs(now - before - passed) > self.leap:
            since = now - passed  # it was set after the last look, by which it would be that
        elif since is None or now < since:
            since = now
        if now - since >= PROBATION:
            return now, Belief(believed=now)
        return now, Belief(believed=belief.believed, doubted_since=since)
