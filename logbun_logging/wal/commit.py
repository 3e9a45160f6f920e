"""Group commit: concurrent callers share one sync of the disk.

While one sync runs, everyone who arrives joins the next round; its first member leads it, and
starts the sync soon after the one before has ended. A sync therefore always begins after the write
of everyone whom it serves, and N callers cost one or two syncs, not N. (DeWitt et al.,
"Implementation Techniques for Main Memory Database Systems", SIGMOD 1984, section 5.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["GroupCommit"]


#: How long a leader waits for those who were in the round before, as a part of what a sync takes.
_PATIENCE: Final = 0.5

#: How long it sleeps between looks, in seconds; the kernel makes about 0.1 ms of it.
_LOOK: Final = 0.00002


class _Round:
    """One sync and those whom it serves.

    Who waits for it passes through its gate, one after the other: that costs half of what an Event
    does, which wakes all at once to queue for the interpreter.
    """

    __slots__ = ("aborted", "callbacks", "ended", "gate", "leader", "ok", "previous", "size")

    def __init__(self, previous: _Round | None) -> None:
        self.previous = previous
        self.gate = threading.Lock()
        self.gate.acquire()
        self.leader: int | None = None
        self.size = 0
        self.ok = False
        self.aborted = False
        self.ended = False
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
        self._lock = threading.RLock()  # re-entrant: a signal handler may log
        self._open = _Round(None)
        self._took = 0.0

    def wait(self) -> bool:
        """Return once a sync that began after this call has ended: whether it succeeded."""
        me = threading.get_ident()
        joined = None
        leading = False
        try:
            with self._lock:
                joined = self._open
                running = joined.previous
                if joined.leader == me or (
                    running is not None and running.leader == me and running.gate.locked()
                ):
                    # A signal handler has interrupted the leader: it would wait for itself.
                    return self._sync()
                joined.size += 1
                leading = joined.leader is None
                if leading:
                    joined.leader = me
            if leading:
                self._run(joined)
            else:
                with joined.gate:
                    pass
        finally:
            if leading and joined is not None:
                self._end(joined)  # also if a signal handler has raised anywhere on the way
        return self.wait() if joined.aborted else joined.ok

    def notify(self, callback: Callable[[bool], None]) -> None:
        """Call *callback* with the outcome once a sync that begins after now has ended."""
        with self._lock:
            joined = self._open
            joined.size += 1
            joined.callbacks.append(callback)
            leaderless = joined.leader is None
        if leaderless:
            self._ask_for_leader()

    def lead(self) -> None:
        """Run the open round if somebody waits for it and nobody leads it."""
        with self._lock:
            joined = self._open
            if joined.leader is not None or not joined.callbacks:
                return
            joined.leader = threading.get_ident()
        try:
            self._run(joined)
        finally:
            self._end(joined)

    def _run(self, joined: _Round) -> None:
        previous = joined.previous
        if previous is not None:
            with previous.gate:
                pass
            self._wait_for_company(joined, previous.size)
        joined.aborted = True
        with self._lock:
            self._open = _Round(joined)
            joined.previous = None  # or every round would be kept by the one after it
        started = time.monotonic()
        joined.ok = self._sync()
        joined.aborted = False
        self._took = time.monotonic() - started

    def _end(self, joined: _Round) -> None:
        """Let everybody go whom the round serves; if its leader did not come to the end, again."""
        with self._lock:
            if joined.ended:
                return
            joined.ended = True
            if self._open is joined:
                joined.aborted = True
                joined.previous = None
                self._open = _Round(joined)
        joined.gate.release()
        for callback in joined.callbacks:
            callback(joined.ok)

    def _wait_for_company(self, joined: _Round, expected: int) -> None:
        """Let those who have just been served come back, or their next sync would be another one.

        Whoever wakes first would lead a round of its own while all others miss it: of N callers
        each second sync would serve one. (PostgreSQL's ``commit_delay`` does the same.)
        """
        deadline = time.monotonic() + self._took * _PATIENCE
        while joined.size < expected and time.monotonic() < deadline:
            time.sleep(_LOOK)
