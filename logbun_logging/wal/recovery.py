"""Adopting what a dead process left in its WAL folder.

A folder is abandoned when its flock can be had: the kernel drops the lock with the process, however
that ended. Recovered entries stay in their files until they are acknowledged, so recovery may be
killed and started again any number of times; inserts are idempotent, so that costs nothing but
time.

Reading streams: memory is bounded by what the caller of :meth:`AdoptedLog.entries` lets in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from logbun_logging.event import Entry
from logbun_logging.files import open_locked, write_atomically
from logbun_logging.wal.codec import entry_of, read_records
from logbun_logging.wal.segment import Segment

__all__ = ["AdoptedLog", "adopt_abandoned", "read_segment"]


def adopt_abandoned(folder: Path, own: Path | None) -> Iterator[AdoptedLog]:
    """Lock and yield every abandoned instance folder in the ``wal`` folder, oldest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        path = folder / name
        if path == own:
            continue
        descriptor = open_locked(path, _open_folder)
        if descriptor is not None:
            yield AdoptedLog(path, descriptor)


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class AdoptedLog:
    """A dead process's WAL folder, ours as long as it holds anything.

    Args:
        path: the folder.
        descriptor: the folder, open and locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        files = sorted(path.glob("seg-*.aof")) + sorted(path.glob("current.aof"))
        self.segments = [Segment(file, sealed=True) for file in files]
        for segment in self.segments:
            segment.parked = 1  # unread: not finished

    def entries(self, damaged: Callable[[Path, int], None]) -> Iterator[Entry]:
        """Yield every entry that is not acknowledged, in order, already pending in its segment.

        Args:
            damaged: told of the ``.corrupt`` file and the number of damaged records set aside in
            it.

        Raises:
            OSError: a file cannot be read, or the damaged records cannot be set aside; the folder
                stays as it is and can be adopted again.
        """
        for segment in [*self.segments]:
            yield from read_segment(segment, self._corrupt_file(segment), damaged)
            segment.parked = 0
            self.release()

    def release(self) -> bool:
        """Delete the segments that are finished, and the folder after the last; return if it is."""
        for segment in [*self.segments]:
            if segment.finished:
                segment.delete()
                self.segments.remove(segment)
        if self.segments or self._descriptor < 0:
            return not self.segments
        with suppress(OSError):
            self.path.rmdir()
        self.abandon()
        return True

    def abandon(self) -> None:
        """Let go of the lock; whatever is left can be adopted by others."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _corrupt_file(self, segment: Segment) -> Path:
        assert segment.path is not None  # noqa: S101 - for the type checker
        return self.path.with_name(f"{self.path.name}.{segment.path.stem}.corrupt")


def read_segment(
    segment: Segment, corrupt_file: Path, damaged: Callable[[Path, int], None]
) -> Iterator[Entry]:
    """Yield the entries of a segment's file, pending in it; set damaged records aside."""
    assert segment.path is not None  # noqa: S101 - for the type checker
    bad: list[bytes] = []
    try:
        file = segment.path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for payload, whole in read_records(file):
            entry = entry_of(payload, check=True) if whole else None
            if entry is None:
                bad.append(payload if payload.endswith(b"\n") else payload + b"\n")
                continue
            entry.segment = segment
            segment.pending[entry] = None
            yield entry
    if bad:
        write_atomically(corrupt_file, bad)
        damaged(corrupt_file, len(bad))
