"""Recovery: what only a WAL file has comes back into memory, as there is room and a database.

That is what dead processes have left, whose folders are adopted, and what was deferred in our own
log. A record stays in its file until it is acknowledged, so recovery may stop at any moment: a
segment counts as read only after its last record has been let in.

A process whose database is down adopts nothing, and gives back what it has not read: another one
may be able to deliver it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from logbun_logging._engine.reporting import Reporter
from logbun_logging._engine.scheduler import Buffers
from logbun_logging._process.counters import Counters
from logbun_logging._storage.files import remove_leftovers
from logbun_logging._storage.wal import (
    AdoptedLog,
    Segment,
    WalWriter,
    adopt_abandoned,
    read_segment,
)
from logbun_logging.event import Entry

__all__ = ["Recovery"]

#: How often recovery looks whether there is room again, in seconds.
_LOOK = 0.02

#: Recovered events that are let in together, between two looks at the database's health.
_PORTION = 64


class Recovery:
    """Reads WAL files back.

    Only one thread at a time may call :meth:`run`, :meth:`read_deferred` and :meth:`maintain`.

    Args:
        folder: the namespace's folder.
        check: raises if what waits there is not for our database.
        buffers: recovered events go the way of all others.
        wal: our own log.
        healthy: tells whether the database takes events.
        counters: what happened.
        reporter: told of problems.
        stopping: set when whoever reads is to come to an end.
    """

    def __init__(
        self,
        *,
        folder: Path,
        check: Callable[[], None],
        buffers: Buffers,
        wal: WalWriter,
        healthy: Callable[[], bool],
        counters: Counters,
        reporter: Reporter,
        stopping: threading.Event,
    ) -> None:
        self._folder = folder
        self.check = check
        self._buffers = buffers
        self._wal = wal
        self._healthy = healthy
        self._counters = counters
        self._reporter = reporter
        self._stopping = stopping
        self._adopted: list[AdoptedLog] = []
        self._reported: dict[Path, str] = {}
        #: What dead processes have left has still to be looked for, or to be read.
        self.running = False
        #: Monotonic seconds when deferred records were read back last.
        self.read_deferred_at = -math.inf

    # ── seen from outside ──

    def deferred(self) -> int:
        """Return how many records wait in WAL files alone, to be read back."""
        adopted = sum(len(segment.deferred) for segment in self._segments())
        return self._wal.deferred() + adopted

    def unfinished(self) -> bool:
        """Tell whether files have records that we have taken on and not delivered."""
        return bool(self._adopted or self._wal.deferred())

    def adopted(self) -> tuple[int, str | None]:
        """Return the bytes in adopted logs, and when the oldest event in them was created."""
        segments = self._segments()
        oldest = min(filter(None, (segment.oldest() for segment in segments)), default=None)
        return sum(segment.size() for segment in segments), oldest

    def _segments(self) -> list[Segment]:
        return [segment for log in [*self._adopted] for segment in [*log.segments]]

    # ── the maintenance thread ──

    def run(self) -> bool:
        """Adopt and read what dead processes have left; return False if that has to go on later.

        Raises:
            ConfigurationError: it is for another database.
        """
        if not self._healthy():
            return False
        try:
            self.check()
            if not self._adopt():
                return False
            for folder in (self._folder, self._folder / "wal", self._folder / "dlq"):
                remove_leftovers(folder)
            self.read_deferred()
        except BaseException:
            self.running = False
            raise
        self.running = False
        return True

    def _adopt(self) -> bool:
        # First what an earlier run has left. Doubtful files may take long: they come last.
        if not self._read_unread(self._segments(), doubtful=False):
            return False
        for log in adopt_abandoned(self._folder / "wal", self._wal.instance, self._failed):
            self._adopted.append(log)
            if not self._read_unread(log.segments, doubtful=False):
                return False
            log.delete_finished()
        return self._read_unread(self._segments(), doubtful=True)

    def _read_unread(self, segments: Sequence[Segment], *, doubtful: bool) -> bool:
        """Read those not read yet that are *doubtful*, or those that are not; False if stopped."""
        found = [s for s in segments if s.unread and s.doubtful == doubtful]
        return all(map(self._read, found))

    def read_deferred(self, deliver: Callable[[], None] | None = None) -> None:
        """Read back what was left to the WAL alone, now that there is room and a database.

        Args:
            deliver: makes room, where no other thread does.
        """
        if not self._buffers.spacious() or not self._healthy():
            return
        self.read_deferred_at = time.monotonic()
        adopted = [
            segment for segment in self._segments() if segment.deferred and not segment.unread
        ]
        for segment in (*self._wal.take_deferred(), *adopted):
            if not self._read(segment, deliver):
                return

    def _read(self, segment: Segment, deliver: Callable[[], None] | None = None) -> bool:
        """Let into memory what only the segment's file has; return False if we are to stop."""
        deferred = segment.deferred[:]
        wanted = None if segment.unread else {*deferred}
        missing = {*deferred}
        known = {entry.payload for entry in [*segment.pending]}
        entries = read_segment(segment, self._damaged)
        problem: OSError | None = None
        while problem is None:
            portion: list[Entry] = []
            try:
                portion.extend(islice(entries, _PORTION))
            except OSError as error:  # what was read before is in the portion
                problem = error
            if not portion:
                break
            missing.difference_update(hash(entry.payload) for entry in portion)
            fresh = [
                entry
                for entry in portion
                if entry.payload not in known and (wanted is None or hash(entry.payload) in wanted)
            ]
            left = self._readmit(fresh, deliver)
            for entry in {*portion}.difference(fresh) | {*left}:
                segment.pending.pop(entry, None)  # it is in the file alone, as before
            if left:
                return False
        if problem is not None:  # the other files are to be had
            self._failed(segment.path or self._folder, problem)
            return True
        segment.unread = False
        if missing:
            self._lost(segment, sum(record in missing for record in deferred))
        self._wal.forget_deferred(segment, len(deferred))
        return True

    def _readmit(
        self, entries: Sequence[Entry], deliver: Callable[[], None] | None
    ) -> deque[Entry]:
        """Let recovered entries into memory as there is room; return what is left if we stop.

        An outage is a reason to stop: a record is nowhere safer than in the WAL.
        """
        waiting = deque(entries)
        while waiting and not self._stopping.is_set() and self._healthy():
            admitted: list[Entry] = []
            if self._buffers.spacious():
                refused: dict[str | None, list[Entry]] = {}  # one tenant's holds up no other's
                while waiting and not (admitted and self._buffers.would_wait(waiting[0])):
                    entry = waiting.popleft()
                    if entry.tenant_id in refused or self._buffers.readmit(entry) != "admitted":
                        refused.setdefault(entry.tenant_id, []).append(entry)
                    else:
                        admitted.append(entry)
                for left in refused.values():
                    waiting.extendleft(reversed(left))
                self._buffers.put(admitted)
            if not waiting or admitted:
                continue
            if deliver is None:
                self._stopping.wait(_LOOK)
                continue
            deliver()
            if not self._buffers.spacious():
                break
        return waiting

    def maintain(self) -> None:
        """Remove adopted files that are done; in an outage, give back those that are not ours yet.

        A log of which nothing is in our memory is complete in its files, and whoever adopts it
        reads it from its beginning.
        """
        outage = not self._healthy()
        for log in [*self._adopted]:
            if log.delete_finished():
                self._adopted.remove(log)
            elif outage and not log.pending:
                self._adopted.remove(log)
                log.abandon()
                self.running = True

    # ── the end ──

    def close(self) -> None:
        """Remove what is done; leave what is not to others."""
        for log in [*self._adopted]:
            if log.delete_finished():
                self._adopted.remove(log)
            log.abandon()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's locks."""
        for log in self._adopted:
            log.abandon()

    # ── what goes wrong ──

    def _damaged(self, path: Path, records: int) -> None:
        self._counters.add("corrupt", records)
        self._reporter.report("corrupt", records=records, file=str(path))

    def _failed(self, path: Path, error: OSError) -> None:
        """Report what cannot be read, once: it is tried again with every scan."""
        reason = f"{type(error).__name__}: {error}"
        if self._reported.get(path) != reason:
            self._reported[path] = reason
            self._reporter.report("recovery_failed", file=str(path), reason=reason)

    def _lost(self, segment: Segment, records: int) -> None:
        self._counters.add("lost", records)
        reason = f"{records} records are no longer in it: it was cut, damaged or removed"
        self._reporter.report("recovery_failed", file=str(segment.path), reason=reason)
