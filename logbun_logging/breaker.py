"""The circuit breaker: while a database is down, only one call now and then goes to see.

(Michael Nygard, "Release It!", chapter "Stability Patterns".) It opens after a few outages in a
row, lets one caller try after a pause that doubles, with jitter, and closes when that succeeds.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Counts outages of one database.

    Args:
        threshold: outages in a row that open it.
        first_pause: seconds until the first try after it opened; doubles up to *longest_pause*.
        longest_pause: the longest pause, in seconds.
        clock: monotonic seconds.
        rng: returns a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        *,
        threshold: int = 3,
        first_pause: float = 1.0,
        longest_pause: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._threshold = threshold
        self._first_pause = first_pause
        self._longest_pause = longest_pause
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._outages = 0
        self._pause = first_pause
        self._try_at = 0.0

    @property
    def is_open(self) -> bool:
        """Calls are being kept from the database."""
        return self._outages >= self._threshold

    def allow(self) -> bool:
        """Tell whether a call may go through; when open, at most one for each pause."""
        with self._lock:
            if self._outages < self._threshold:
                return True
            now = self._clock()
            if now < self._try_at:
                return False
            self._try_at = now + self._pause  # whoever comes next waits for this one's outcome
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
            return was_open

    def failed(self) -> bool:
        """Count an outage; return True if that opened it."""
        with self._lock:
            self._outages += 1
            if self._outages < self._threshold:
                return False
            if self._outages > self._threshold:
                self._pause = min(self._pause * 2, self._longest_pause)
            self._try_at = self._clock() + self._pause * (0.5 + self._rng())
            return self._outages == self._threshold
