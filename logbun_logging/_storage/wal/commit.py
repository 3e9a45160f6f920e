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

#: How long somebody waits before looking whether the leader is still there, in seconds.
_DOUBT: Final = 1.0


class _Round:
    """One sync and those whom it serves.

    Who waits for it passes through its gate, one after the other: that costs half of what an Event
    does, which wakes all at once to queue for the interpreter.

    Attributes:
        ok: whether the sync succeeded; None if there was none.
    """

    __slots__ = ("callbacks", "ended", "gate", "leader", "ok", "previous", "size")

    def __init__(self, previous: _Round | None) -> None:
        self.previous = previous
        self.gate = threading.Lock()
        self.gate.acquire()
        self.leader: int | None = None
        self.size = 0
        self.ok: bool | None = None
        self.ended = False
        self.callbacks: list[Callable[[bool], None]] = []


class GroupCommit:
    """Shares the calls of one sync function.

    A signal handler may interrupt a thread anywhere in here. If it logs, it must not wait for
    others: they may wait for the thread that it has interrupted. If it raises, that thread goes
    away in the midst of things: what it led is ended by others then.

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
        self._inside: dict[int, _Round | None] = {}  # threads in here, and what they lead
        self._took = 0.0

    def wait(self) -> bool:
        """Return once a sync that began after this call has ended: whether it succeeded."""
        me = threading.get_ident()
        if me in self._inside:  # a signal handler has interrupted it
            return self._sync()
        try:
            while True:
                self._inside[me] = None
                with self._lock:
                    joined = self._open
                    joined.size += 1
                    leading = joined.leader is None or joined.leader == me  # we have left it
                    if leading:
                        self._inside[me] = joined
                        joined.leader = me
                if leading:
                    self._run(joined)
                    self._inside[me] = None
                else:
                    with joined.gate:
                        pass
                if joined.ok is not None:
                    return joined.ok
        finally:
            led = self._inside.pop(me, None)  # in one step, before another signal is looked at
            if led is not None:
                self._end(led)

    def notify(self, callback: Callable[[bool], None]) -> None:
        """Call *callback* with the outcome once a sync that begins after now has ended."""
        me = threading.get_ident()
        interrupted = me in self._inside
        try:
            if not interrupted:
                self._inside[me] = None
            with self._lock:
                joined = self._open
                joined.size += 1
                joined.callbacks.append(callback)
                leaderless = joined.leader is None
        finally:
            if not interrupted:
                self._inside.pop(me, None)
        if leaderless:
            self._ask_for_leader()

    def lead(self) -> None:
        """Run the open round if somebody waits for it and nobody leads it.

        To be called now and then also if nobody has asked for it: it looks after abandoned rounds.
        """
        me = threading.get_ident()
        if me in self._inside:
            return
        try:
            self._inside[me] = None
            self._end_if_abandoned(self._open.previous)
            self._end_if_abandoned(self._open)
            with self._lock:
                joined = self._open
                if joined.leader is not None or not joined.callbacks:
                    return
                self._inside[me] = joined
                joined.leader = me
            self._run(joined)
            self._inside[me] = None
        finally:
            led = self._inside.pop(me, None)
            if led is not None:
                self._end(led)

    def _run(self, joined: _Round) -> None:
        """Lead a round."""
        previous = joined.previous
        if previous is not None:
            try:
                while not (previous.ended or previous.gate.acquire(timeout=_DOUBT)):
                    self._end_if_abandoned(previous)
            finally:  # also if a signal handler has raised just when we held it
                if previous.ended:
                    _release(previous.gate)
            self._wait_for_company(joined, previous.size)
        with self._lock:
            if self._open is joined:
                self._open = _Round(joined)
            joined.previous = None  # or every round would be kept by the one after it
        started = time.monotonic()
        joined.ok = self._sync()
        self._took = time.monotonic() - started
        self._end(joined)

    def _end(self, joined: _Round) -> None:
        """Let everybody go whom the round serves; those whom it has not served join the next."""
        with self._lock:
            if self._open is joined:
                joined.previous = None
                self._open = _Round(joined)
            joined.ended = True
            _release(joined.gate)
        while joined.callbacks:
            joined.callbacks.pop(0)(bool(joined.ok))

    def _end_if_abandoned(self, found: _Round | None) -> None:
        """End a round that its leader has left without ending it."""
        if found is None or found.ended or found.leader is None:
            return
        if self._inside.get(found.leader) is not found:
            self._end(found)

    def _wait_for_company(self, joined: _Round, expected: int) -> None:
        """Let those who have just been served come back, or their next sync would be another one.

        Whoever wakes first would lead a round of its own while all others miss it: of N callers
        each second sync would serve one. (PostgreSQL's ``commit_delay`` does the same.)
        """
        deadline = time.monotonic() + self._took * _PATIENCE
        while joined.size < expected and time.monotonic() < deadline:
            time.sleep(_LOOK)


def _release(gate: threading.Lock) -> None:
    """Open a gate that may be open already, because what a signal handler broke off is repeated."""
    try:
        gate.release()
    except RuntimeError:
        return
