"""What is known of one database's health: its circuit breaker, and the batch size that it takes.

While a database is down, the breaker lets only one call now and then go to see (Michael Nygard,
"Release It!", chapter "Stability Patterns"). It opens after a few outages in a row, or at once when
a call has hung. It lets one caller try after a pause that doubles, with jitter, and closes when
that succeeds.

A batch may fail for its size alone: the database needs longer than the time-out for it, or a proxy
refuses it. So a failure halves the size, and success doubles it again, as TCP does with its window.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["LARGEST_BATCH", "BatchSize", "CircuitBreaker"]

#: The most rows that anybody sends in one insert.
LARGEST_BATCH: Final = 5000

#: How long a size that has failed is not tried again, in seconds, at first and at most. It doubles
#: each time that the size fails once more.
_FIRST_HOLD: Final = 60.0
_LONGEST_HOLD: Final = 3600.0


class BatchSize:
    """The most rows that are sent to one database in one insert. Used under the breaker's lock.

    A failure after a success is taken for the size's, and such a size is left alone for a while.
    After a failure it may as well be an outage, so then the size only halves.

    Attributes:
        rows: the size.
    """

    __slots__ = ("_ceiling", "_clock", "_hold", "_until", "_worked", "rows")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._worked = False  # the last insert did
        self._ceiling = math.inf  # so many rows have failed
        self._hold = _FIRST_HOLD
        self._until = 0.0  # when so many may be tried again
        self.rows = LARGEST_BATCH

    def failed(self, rows: int, *, sure: bool = False) -> None:
        """Note that an insert of *rows* failed for what may be its size, or is for *sure*."""
        if rows > 1 and (self._worked or sure):
            again = rows >= self._ceiling
            self._hold = min(2 * self._hold, _LONGEST_HOLD) if again else _FIRST_HOLD
            self._ceiling, self._until = rows, self._clock() + self._hold
        self._worked = False
        self.rows = max(1, min(self.rows, rows // 2))

    def stored(self, rows: int) -> None:
        """Note that an insert of *rows* worked."""
        self._worked = True
        if rows >= self._ceiling:
            self._ceiling, self._hold = math.inf, _FIRST_HOLD
        if rows < self.rows or self.rows >= LARGEST_BATCH:
            return
        if 2 * self.rows < self._ceiling or self._clock() >= self._until:
            self.rows = min(2 * self.rows, LARGEST_BATCH)


class CircuitBreaker:
    """Counts outages of one database.

    Args:
        threshold: outages in a row that open it.
        first_pause: seconds until the first try after it opened; doubles up to *longest_pause*.
        longest_pause: the longest pause, in seconds.
        longest_hung_pause: the same after a call that has hung: each one may cost a thread.
        clock: monotonic seconds.
        rng: returns a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        *,
        threshold: int = 3,
        first_pause: float = 1.0,
        longest_pause: float = 10.0,
        longest_hung_pause: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._threshold = threshold
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._longest_hung_pause = longest_hung_pause
        self._clock = clock
        self._rng = rng
        # The lock guards everything below; any thread that calls the database writes it.
        self._lock = threading.Lock()
        self._outages = 0
        self._pause = first_pause
        self._try_at = 0.0
        self._trying = False  # somebody was let through although it is open
        self._stored_at = -math.inf
        self._size = BatchSize(clock)
        #: The last call reached the database. False as long as there was none.
        self.proven = False

    @property
    def is_open(self) -> bool:
        """Calls are being kept from the database."""
        return self._outages >= self._threshold

    @property
    def batch_size(self) -> int:
        """The most rows that an insert should have."""
        return self._size.rows

    def stored_since(self, moment: float) -> bool:
        """Tell whether an insert has worked after *moment* (monotonic seconds)."""
        return self._stored_at > moment

    def allow(self) -> bool:
        """Tell whether a call may go through; when open, at most one for each pause."""
        with self._lock:
            if self._outages < self._threshold:
                return True
            now = self._clock()
            if now < self._try_at:
                return False
            self._try_at = now + self._pause  # whoever comes next waits for this one's outcome
            self._trying = True
            return True

    def wait_time(self) -> float:
        """Return the seconds until a call may go through."""
        with self._lock:
            return max(0.0, self._try_at - self._clock()) if self.is_open else 0.0

    def succeeded(self) -> bool:
        """Close; return True if it was open."""
        with self._lock:
            was_open = self._outages >= self._threshold
            self._outages = 0
            self._pause = self._first_pause
            self._trying = False
            self.proven = True
            return was_open

    def reached(self) -> None:
        """Note that a call has reached the database, for whatever it was made."""
        with self._lock:
            self.proven = self._outages < self._threshold

    def failed(self, *, hung: bool = False) -> bool:
        """Count an outage; return True if that opened it. A call that has *hung* opens it."""
        with self._lock:
            self.proven = False
            before = self._outages
            self._outages = max(before + 1, self._threshold if hung else 0)
            if self._outages < self._threshold:
                return False
            if before >= self._threshold and self._trying:  # no call from before it opened
                longest = self._longest_hung_pause if hung else self._longest_pause
                self._pause = min(self._pause * 2, longest)
            self._trying = False
            self._try_at = self._clock() + self._pause * (0.5 + self._rng())
            return before < self._threshold

    def stored(self, rows: int) -> None:
        """Note that an insert of *rows* worked."""
        with self._lock:
            self._stored_at = self._clock()
            self._size.stored(rows)

    def too_large(self, rows: int, *, sure: bool) -> None:
        """Note that an insert of *rows* failed for what may be its size, or is for *sure*."""
        with self._lock:
            self._size.failed(rows, sure=sure)

    def try_now(self) -> None:
        """Let the next call through: one that had hung has worked after all."""
        with self._lock:
            self._try_at = min(self._try_at, self._clock())
