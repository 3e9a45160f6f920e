"""Appending, sealing, healing: the live end of the write-ahead log.

:meth:`WalWriter.append` runs on the application's threads and takes no lock: it claims a place in
the current segment, makes sure that the segment is still current, and writes one line to a file
that is open with ``O_APPEND``, which the kernel keeps whole. Everything else runs on the writer's
own thread, the WAL thread: syncs under ``fsync="interval"``, sealing, deleting, and healing after
errors.

After a failed write or sync a segment is never trusted again: the kernel may have dropped the pages
and reports the error only once (the PostgreSQL "fsyncgate" of 2018). Its pending entries, which are
still in memory, are written to a new file; the old one is kept until that one has been synced,
because part of it may have reached the disk. The same is done for a file that somebody has removed
or moved, and beyond ``wal.max_bytes`` entries stay in memory as if the disk were full.

Cost of an append: about 2 µs, of which the ``write`` system call is more than half.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from zlib import crc32

from logbun_logging._process.wakeup import Wakeup
from logbun_logging._process.worker import WorkerThread
from logbun_logging._storage.files import PRIVATE_FILE, sync_folder
from logbun_logging._storage.wal.commit import GroupCommit
from logbun_logging._storage.wal.instance import InstanceFolder
from logbun_logging._storage.wal.rescue import copy_entries, move_entries
from logbun_logging._storage.wal.segment import AppendFile, Segment
from logbun_logging.event import Entry
from logbun_logging.options import FsyncPolicy, WalOptions

__all__ = ["WalRemovedError", "WalWriter"]

#: How often the WAL thread looks at the size of the segment while events come in, in seconds.
_TICK = 0.05

#: A thread that claimed a place just before sealing still writes to the sealed file. The WAL thread
#: waits so long for it, in seconds, before it syncs that file, and any newer one after it: else a
#: power cut could take the late record, and not the thread's next ones. A thread takes longer only
#: if it is stopped, or left its frame in a traceback; then the file takes part in each sync.
_LATE = 0.5

#: How often the WAL thread looks whether such a thread has written, in seconds.
_LOOK = 0.001

#: A file smaller than this is not worth replacing when everything in it is acknowledged.
_MIN_SEAL = 64 * 1024

#: How often a shared sync that fails is rescued in one go: a disk that goes on like this is broken.
_TRIES = 3

#: How long a caller waits for its turn at that, in seconds.
_RESCUE = 5.0

#: How often the WAL thread looks whether the files' names still stand for them, in seconds.
_NAME_LOOK = 1.0

#: The part of ``wal.max_bytes`` that is reported, and the part below which it may be once more.
_NEARLY_FULL = 0.8
_CALM = 0.5

_write = os.write


class WalRemovedError(OSError):
    """Somebody has removed or moved the WAL's folder or a file in it."""


class WalWriter:
    """One process's write-ahead log.

    Args:
        folder: the namespace's ``wal`` folder.
        fsync: ``"always"``, ``"interval"`` or ``"never"``.
        options: sizes and times.
        failed: called on the WAL thread, or on that which calls :meth:`close`, with an error
            and the number of events that were kept in memory only because of it.
        nearly_full: called there with the bytes in files and ``max_bytes`` when they come near it.
        prepare: returns what is entered while this process's folder is made.
    """

    def __init__(
        self,
        folder: Path,
        fsync: FsyncPolicy,
        options: WalOptions,
        failed: Callable[[OSError, int], None],
        nearly_full: Callable[[int, int], None] = lambda *_: None,
        *,
        prepare: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._fsync = fsync
        self._options = options
        self._failed = failed
        self._nearly_full = nearly_full
        self._instance = InstanceFolder(folder, prepare)
        self._current = Segment(None)
        # All are re-entrant: a signal handler may log.
        self._swap_lock = (
            threading.RLock()
        )  # guards replacing _current; held for a few instructions
        self._pending_lock = threading.RLock()  # guards leaving and changing segments
        self._sync_lock = threading.RLock()  # an error is reported to one sync of a file alone
        self._files_lock = threading.RLock()  # guards the list of segments and all file operations
        self._segments: list[Segment] = []
        self._number = 0
        self._missed = 0
        self._error: OSError | None = None
        # The WAL thread's, under the files lock:
        self._synced_at = time.monotonic()
        self._looked_at = time.monotonic()
        self._removed_at: float | None = None  # since when a removal has not been synced
        self._warned = False  # of the files' size
        self._synced: tuple[Segment, int] | None = None  # the current one, and its size then
        #: As it was when there was nothing to do; the WAL thread alone writes it.
        self._rested: tuple[Segment, int, int] | None = None
        self._wake = Wakeup()
        self._closed = False
        self._ended = False
        self._thread: WorkerThread | None = None  # written by start alone
        self._group = GroupCommit(self._sync_for_group, self._wake.ring)

    # ── the application's threads ──

    def append(self, entry: Entry) -> bool:
        """Write *entry*; return False if it is in memory only, for now. Never raises."""
        payload = entry.payload
        line = b'{"v": 1, "crc": "%08x", "event": %b}\n' % (crc32(payload), payload)
        while True:
            segment = self._current
            file = segment.file
            entry.segment = segment
            segment.pending[entry] = None
            if segment is self._current:
                break
            self._withdraw(entry)  # sealed meanwhile: it may be deleted any time
        if file is not None:
            try:
                if _write(file.number, line) == len(line):
                    return True
                error = OSError("short write")
            except OSError as caught:
                error = caught
            self._mark_failed(segment, error)
        self._missed += 1  # an approximate figure for the report; the exact one is counted above us
        return False

    def commit(self) -> bool:
        """Under ``fsync="always"``: return once everything appended before is on the disk."""
        return self._group.wait()

    def notify(self, callback: Callable[[bool], None]) -> None:
        """Under ``fsync="always"``: call *callback* once everything appended before is on disk."""
        self._group.notify(callback)
        if self._ended:  # there is no WAL thread any more
            self._group.lead()

    def _withdraw(self, entry: Entry) -> None:
        with self._pending_lock:  # healing may have moved it meanwhile
            entry.segment.pending.pop(entry, None)

    def _mark_failed(self, segment: Segment, error: OSError) -> None:
        """Keep entries in memory until the WAL thread has a file that can be written."""
        segment.failed = True
        self._error = error
        with self._swap_lock:
            # One without a file stays: what is pending in it is nowhere else, and no list has it.
            if self._current is segment and segment.path is not None:
                self._current = Segment(None)
        self._wake.ring()

    # ── the pipeline's threads ──

    def open(self) -> None:
        """Make and lock this process's folder, and start a segment.

        A failure is reported and mended in the background; entries stay in memory until then.
        """
        with self._files_lock:
            self._heal()

    @property
    def ended(self) -> bool:
        """It has been closed: what is appended now is in memory only, and stays there."""
        return self._ended

    @property
    def instance(self) -> Path | None:
        """The folder that this process holds."""
        return self._instance.path

    def start(self, start_thread: Callable[[str, Callable[[], None]], WorkerThread]) -> None:
        """Start the WAL thread."""
        self._thread = start_thread("logbun-wal", self._run)

    def wake(self) -> None:
        """Tell the WAL thread that there may be work: called by the listener, never by a caller.

        It is let sleep while all is as it was when it found nothing to do.
        """
        files = [*self._segments, self._current]
        if self._rested != self._state() or any(s.pending or s.failed or s.finished for s in files):
            self._wake.ring()

    def _state(self) -> tuple[Segment, int, int]:
        """Return what changes when something is appended, or read back from the file."""
        current = self._current
        return current, current.size(), len(current.deferred)

    def acknowledge(self, entries: Iterable[Entry]) -> None:
        """Let go of *entries*: they are in the database or the DLQ."""
        with self._pending_lock:
            for entry in entries:
                segment = entry.segment
                if segment is not None:
                    segment.pending.pop(entry, None)
                    entry.segment = None

    def defer(self, entry: Entry) -> bool:
        """Leave *entry* to the file alone; return False if there is no file that has it."""
        with self._pending_lock:
            segment: Segment | None = entry.segment
            if segment is None or segment.failed:
                return False
            if entry in segment.pending:
                segment.defer(entry.payload)  # first: a segment with neither is deleted
                del segment.pending[entry]
                entry.segment = None
            return True

    def forget_deferred(self, segment: Segment, records: int) -> None:
        """Note that the first *records* of what was deferred in *segment* are in memory again."""
        with self._pending_lock:
            del segment.deferred[:records]

    def keeps(self, entry: Entry) -> bool:
        """Tell whether a file has *entry*, so that the next start will find it."""
        segment: Segment | None = entry.segment
        return segment is not None and not segment.failed

    def take_deferred(self) -> list[Segment]:
        """Return the sealed segments with deferred records; seal the current one if it has some.

        The caller reads them back, marks what it re-admits as pending, and then calls
        :meth:`forget_deferred`.
        """
        with self._files_lock:
            if self._current.deferred:
                self._seal()
            return [s for s in self._segments if s.sealed and s.deferred and not s.failed]

    def deferred(self) -> int:
        """Return how many records have to be read back."""
        return sum(len(segment.deferred) for segment in [*self._segments])

    def usage(self) -> tuple[int, int, str | None]:
        """Return segments, bytes, and when the oldest un-acknowledged event was created."""
        segments = [*self._segments]  # without the lock: a slow disk must not stop the metrics
        size = sum(segment.size() for segment in segments)
        if self._current not in segments:
            segments.append(self._current)
        oldest = min(filter(None, (segment.oldest() for segment in segments)), default=None)
        return len(segments), size, oldest

    def maintain(self) -> None:
        """Do the WAL thread's work once, now: heal, seal, sync, delete."""
        with self._files_lock:
            self._fail_removed()
        self._report()
        with self._files_lock:
            if any(s.failed for s in self._segments) or self._current.failed:
                self._heal()
            current = self._current
            if current.file is not None:
                size = current.size()
                idle = not current.pending and not current.deferred
                if size >= self._options.segment_bytes or (idle and size >= _MIN_SEAL):
                    self._seal()
                if self._full():
                    self._write_no_more()
            self._close_sealed()
            due = self._synced_at + self._options.sync_interval
            if self._fsync == "interval" and time.monotonic() >= due:
                self._synced_at = time.monotonic()
                self._sync()
            self._delete_finished()
            removed = self._removed_at
            if removed is not None and time.monotonic() >= removed + self._options.sync_interval:
                self._removed_at = None
                self._instance.sync()
        self._warn()

    def _fail_removed(self) -> None:
        """Mark files as failed that were removed or moved; what is pending is written again."""
        now = time.monotonic()
        if now < self._looked_at + _NAME_LOOK:
            return
        self._looked_at = now
        needed = [s for s in self._segments if not s.failed and (s.pending or not s.sealed)]
        for segment in needed:
            if segment.gone:
                self._instance.forget_if_gone()
                text = "removed, moved or replaced; what is in memory is written again"
                self._mark_failed(segment, WalRemovedError(errno.ENOENT, text, str(segment.path)))

    def _used(self) -> int:
        """Return the bytes in files; a sealed one's size is known."""
        return sum(segment.sealed_size or segment.size() for segment in self._segments)

    def _full(self) -> bool:
        limit = self._options.max_bytes
        return limit is not None and self._used() >= limit

    def _write_no_more(self) -> None:
        """Keep entries in memory until acknowledged files have made room."""
        with self._swap_lock:
            before, self._current = self._current, Segment(None)
        before.seal()
        self._error = OSError(errno.ENOSPC, f"wal.max_bytes={self._options.max_bytes:,} is reached")

    def _warn(self) -> None:
        """Report once when the files come near their bound."""
        limit = self._options.max_bytes
        if limit is None:
            return
        used = self._used()
        if used < _CALM * limit:
            self._warned = False
        elif used >= _NEARLY_FULL * limit and not self._warned:
            self._warned = True
            self._nearly_full(used, limit)

    def _close_sealed(self) -> None:
        """Sync and close sealed files to which nobody writes any more, oldest first."""
        for segment in self._segments:
            if not segment.sealed or segment.file is None or segment.failed or segment.finished:
                continue
            if self._fsync == "interval":  # with others no record's safety hangs on an older file
                while segment.late and time.monotonic() < segment.sealed_at + _LATE:
                    time.sleep(_LOOK)
            if not segment.late and (self._fsync == "never" or self._sync_segment(segment)):
                segment.file = None

    def close(self) -> None:
        """Stop the WAL thread; delete what is finished, sync the rest, and unlock the folder."""
        with self._files_lock:
            self._closed = True
        self._wake.ring()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        with self._files_lock:
            if self._segments or self._current.pending:  # a volatile trail has never written
                self.maintain()
                if self._fsync != "never" and not self._sync():
                    self._heal()
            self._ended = True
            current = self._current
            with self._swap_lock:
                self._current = Segment(None)
            current.sealed = True
            self._delete_finished()
            for segment in self._segments:
                segment.file = None
            self._instance.close()
            self._segments = []
        self._report()
        self._group.lead()  # whoever still waits is told

    def abandon(self) -> None:
        """In a forked child: let go of the parent's descriptors. The files stay the parent's."""
        for segment in self._segments:
            segment.file = None
        self._instance.abandon()

    # ── the WAL thread ──

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            while not self._closed:
                self._group.lead()
                self.maintain()
                state = self._state()
                if self._quiet():
                    self._rested = state
                    break
                self._wake.wait(_TICK)

    def _quiet(self) -> bool:
        """Tell whether nothing can change until somebody appends again."""
        with self._files_lock:
            if any(s.pending or s.failed for s in [*self._segments, self._current]):
                return False
            if any(s.sealed and s.file is not None for s in self._segments):
                return False  # somebody is late
            if self._removed_at is not None:
                return False
            current = self._current
            return self._fsync != "interval" or self._synced == (current, current.size())

    def _report(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            missed, self._missed = self._missed, 0
            self._failed(error, missed)

    def _heal(self) -> bool:
        """Write what failed segments hold to a new file, and append there from now on.

        Nothing is taken from the old files before the new one has been synced. Returns whether
        everything that is pending is in files now.
        """
        failed = [s for s in (*self._segments, self._current) if s.failed]
        in_memory = all(s.path is None for s in failed)  # and not in a file that is trusted no more
        if self._ended or self._instance.pausing or (in_memory and self._full()):
            return False
        fresh: Segment | None = None
        try:
            fresh = self._create()
            copies = [copy_entries(segment, fresh, self._pending_lock) for segment in failed]
            synced = self._fsync == "never" or self._sync_segment(fresh)
        except OSError as error:
            self._error = error
            synced = False
        if fresh is None or not synced:
            if fresh is not None:
                fresh.sealed = True  # nothing is in it that is not elsewhere
            self._delete_finished()
            return False
        with self._swap_lock:
            before, self._current = self._current, fresh
        before.seal()
        if before.path is None:
            self._segments.append(before)  # not forgotten if the next step fails
        try:
            for segment, copy in zip(failed, copies, strict=True):
                move_entries(segment, fresh, copy, self._pending_lock)
        except OSError as error:
            self._mark_failed(fresh, error)
            return False
        for segment in failed:
            segment.failed = False
            segment.sealed = True
        self._delete_finished()
        return True

    def _create(self) -> Segment:
        try:
            segment = self._open(self._instance.claim())
        except FileNotFoundError:  # somebody has removed or moved the folder
            self._instance.forget_if_gone()
            segment = self._open(self._instance.claim())
        self._segments.append(segment)
        try:
            if self._fsync != "never":
                sync_folder(self._instance.claim())
        except OSError:
            segment.sealed = True  # empty, and so finished
            raise
        return segment

    def _open(self, folder: Path) -> Segment:
        path = folder / "current.aof"
        self._put_aside(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return Segment(path, AppendFile(os.open(path, flags, PRIVATE_FILE)))

    def _put_aside(self, path: Path) -> None:
        """Give the file called current its number; its segment as well if the file is gone.

        A segment is deleted by its path, which from now on is another one's.
        """
        named = [segment for segment in self._segments if segment.path == path]
        if named or path.exists():
            self._number += 1
            target = path.with_name(f"seg-{self._number:06d}.aof")
            with suppress(FileNotFoundError):
                path.rename(target)
            for segment in named:
                segment.path = target

    def _seal(self) -> None:
        """Put a new file in the place of the current one."""
        before = self._current
        try:
            fresh = self._create()
        except OSError as error:
            self._mark_failed(before, error)
            return
        with self._swap_lock:
            self._current = fresh
        before.seal()

    def _sync(self) -> bool:
        """Sync every file that may have records that have not been synced; return success."""
        segments = tuple(self._segments)  # in one step: the WAL thread may seal meanwhile
        current = self._current
        # Nobody asks for the size under other policies, and it would cost each call a system call.
        size = current.size() if self._fsync == "interval" else 0
        results = [
            self._sync_segment(segment)
            for segment in (*segments, *([] if current in segments else [current]))
            if segment is current or not segment.finished
        ]
        self._synced = (current, size)
        return all(results)

    def _sync_segment(self, segment: Segment) -> bool:
        with self._sync_lock:
            file = segment.file
            if file is None and segment.sealed and not segment.failed:
                return True  # synced when nobody could write to it any more
            if segment.failed:
                return False  # it has been reported, and is being mended
            try:
                if file is None:
                    raise OSError("the WAL cannot be written")
                os.fdatasync(file.number)
            except OSError as error:
                self._mark_failed(segment, error)
                return False
            return True

    def _sync_for_group(self) -> bool:
        # Without the lock, so that the WAL thread's work delays no caller.
        for _ in range(_TRIES):
            if self._sync():
                return True
            # The callers wait for the rescue, which is their durability. But not for ever: a signal
            # handler may call, and have interrupted what the WAL thread waits for.
            if not self._files_lock.acquire(timeout=_RESCUE):
                return False
            try:
                if not self._heal():
                    return False
            finally:
                self._files_lock.release()
        return False

    def _delete_finished(self) -> None:
        for segment in [*self._segments]:
            if segment.finished:
                try:
                    segment.delete()
                except OSError as error:  # tried again at the next round
                    self._error = error
                else:
                    self._segments.remove(segment)
                    if self._fsync != "never" and self._removed_at is None:
                        self._removed_at = time.monotonic()
