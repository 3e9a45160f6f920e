"""Events that come after the end: no thread delivers them any more, but nothing is lost.

From ``shutdown`` to the process's end daemon threads and exit handlers go on logging. In durable
mode such an event goes to a write-ahead log of its own, opened with the first one and left for the
next start. In volatile mode, or when the disk takes nothing, it stays in memory for the next trail
of its namespace, and counts as lost until that takes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from logbun_logging._process.counters import Counters
from logbun_logging._storage.wal import WalWriter
from logbun_logging.event import Entry
from logbun_logging.options import TrailOptions

__all__ = ["LateEvents"]


class LateEvents:
    """Keeps the late events of one pipeline; safe to call from any thread.

    Args:
        options: the trail's.
        counters: told of what is kept, and of what is lost.
        make_log: returns a write-ahead log that is not open yet.
    """

    def __init__(
        self, options: TrailOptions, counters: Counters, make_log: Callable[[], WalWriter]
    ) -> None:
        self._options = options
        self._counters = counters
        self._make_log = make_log
        # Guards everything below. Re-entrant: a signal handler may log.
        self._lock = threading.RLock()
        self._log: WalWriter | None = None
        self._maintain_at = 0.0
        self._memory: list[Entry] = []
        self._bytes = 0
        #: How many are on the disk, for the next start.
        self.deferred = 0

    @property
    def waiting(self) -> bool:
        """Some are in memory, for the namespace's next trail."""
        return bool(self._memory)

    def keep(self, entry: Entry) -> bool:
        """Keep *entry*; return whether it is on the disk. Then :meth:`sync` is to be called."""
        counted = entry.admitted  # and discarded as lost
        entry.admitted = entry.buffered = False
        with self._lock:
            if self._options.mode == "durable" and self._write(entry):
                amounts = {"lost": -1} if counted else {"accepted": 1}
                self._counters.add_all({**amounts, "deferred": 1})
                self.deferred += 1
                return True
            if not counted:
                self._counters.add_all({"accepted": 1, "lost": 1})
            limits = self._options.limits
            size = self._bytes + len(entry.payload)
            if len(self._memory) < limits.max_total_queued and size <= limits.max_queued_bytes:
                self._memory.append(entry)
                self._bytes = size
        return False

    def _write(self, entry: Entry) -> bool:
        options = self._options
        log = self._log
        if log is None:
            log = self._log = self._make_log()
            log.open()
        now = time.monotonic()
        if now >= self._maintain_at:  # it has no WAL thread
            self._maintain_at = now + options.wal.sync_interval
            log.maintain()
        if log.append(entry) and log.defer(entry):
            return True
        log.acknowledge([entry])
        return False

    def sync(self) -> None:
        """Under ``fsync="always"``: return once everything kept before is on the disk."""
        log = self._log
        options = self._options
        if log is not None and options.fsync == "always" and not log.commit():
            self._counters.add("wal_failures")

    def take(self) -> list[Entry]:
        """Leave what is on the disk to the next recovery, and return what is in memory.

        Whoever takes that counts it.
        """
        with self._lock:
            log, self._log, self.deferred = self._log, None, 0
            late, self._memory, self._bytes = self._memory, [], 0
        if log is not None:
            log.close()
        self._counters.add_all({"accepted": -len(late), "lost": -len(late)})
        return late

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors. The files stay the parent's."""
        if self._log is not None:
            self._log.abandon()
