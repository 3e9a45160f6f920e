"""Waking one thread from any other, also from a signal handler.

A ``threading.Event`` holds a plain lock while it is set: a signal handler that interrupts just that
and logs would wait for the thread that it has interrupted, for ever. A ``SimpleQueue`` may be put
to at any moment, also in the midst of another put.
"""

from __future__ import annotations

import queue
from contextlib import suppress

__all__ = ["Wakeup"]


class Wakeup:
    """A bell for one waiting thread: it rings on until it has been heard."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Wake the waiting thread, or the next one that waits. Re-entrant, and never blocks."""
        if self._rings.empty():  # who has not heard the one before looks later than now anyway
            self._rings.put(None)

    def wait(self, timeout: float | None = None) -> None:
        """Return once it has rung since the last wait, or after *timeout* seconds; None: never."""
        with suppress(queue.Empty):
            self._rings.get(timeout=timeout)
            while True:  # several threads may have rung at the same moment
                self._rings.get_nowait()
