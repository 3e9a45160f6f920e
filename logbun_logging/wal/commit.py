"""Group commit: concurrent callers share one sync of the disk.

While one sync runs, everyone who arrives joins the next round; its first member leads it, and
starts the sync as soon as the one before has ended. A sync therefore always begins after the write
of everyone whom it serves, and N callers cost two syncs, not N. (DeWitt et al., "Implementation
Techniques for Main Memory Database Systems", SIGMOD 1984, section 5.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["GroupCommit"]


class _Round:
    __slots__ = ("callbacks", "done", "joined", "ok", "previous")

    def __init__(self, previous: threading.Event) -> None:
        self.previous = previous
        self.done = threading.Event()
        self.joined = False
        self.ok = False
        self.callbacks: list[Callable[[bool], None]] = []


class GroupCommit:
    """Shares the calls of one sync function.

    Args:
        sync: makes everything written so far survive a power cut; returns whether it did, and never
            raises.
        lead: called when callers that must not block wait for a round that nobody leads: some
            thread has to call :meth:`lead` soon.
    """

    def __init__(self, sync: Callable[[], bool], lead: Callable[[], None]) -> None:
        self._sync = sync
        self._ask_for_leader = lead
        self._lock = threading.Lock()
        before = threading.Event()
        before.set()
        self._open = _Round(before)

    def wait(self) -> bool:
        """Return once a sync that began after this call has ended: whether it succeeded."""
        with self._lock:
            joined = self._open
            leading, joined.joined = not joined.joined, True
        if leading:
            self._run(joined)
        else:
            joined.done.wait()
        return joined.ok

    def notify(self, callback: Callable[[bool], None]) -> None:
        """Call *callback* with the outcome once a sync that begins after now has ended."""
        with self._lock:
            joined = self._open
            joined.callbacks.append(callback)
            leaderless = not joined.joined
        if leaderless:
            self._ask_for_leader()

    def lead(self) -> None:
        """Run the open round if somebody waits for it and nobody leads it."""
        with self._lock:
            joined = self._open
            if joined.joined or not joined.callbacks:
                return
            joined.joined = True
        self._run(joined)

    def _run(self, joined: _Round) -> None:
        joined.previous.wait()
        with self._lock:
            self._open = _Round(joined.done)
        try:
            joined.ok = self._sync()
        finally:
            joined.done.set()
            for callback in joined.callbacks:
                callback(joined.ok)
