"""Adopting what a dead process left in its WAL folder.

A folder is abandoned when its flock can be had: the kernel drops the lock with the process, however
that ended. Recovered entries stay in their files until they are acknowledged, so recovery may be
killed and started again any number of times; inserts are idempotent, so that costs nothing but
time.

Reading streams: memory is bounded by what the caller of :func:`read_segment` lets in.
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
    """Lock and yield every abandoned instance folder in the ``wal`` folder, oldest first.

    Raises:
        OSError: some folder could not be opened; all others have been yielded before.
    """
    problem: OSError | None = None
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except FileNotFoundError:
        return
    for name in names:
        path = folder / name
        if path == own:
            continue
        try:
            descriptor = open_locked(path, _open_folder)
        except OSError as error:
            problem = error
            continue
        if descriptor is not None:
            yield AdoptedLog(path, descriptor)
    if problem is not None:
        raise problem


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


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
        self.segments = [Segment(file, unread=True) for file in files]

    def release(self) -> bool:
        """Delete the segments that are finished, and the folder after the last; return if it is."""
        for segment in [*self.segments]:
            if segment.finished:
                with suppress(OSError):  # it is found again, and inserts are idempotent
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


def read_segment(segment: Segment, damaged: Callable[[Path, int], None]) -> Iterator[Entry]:
    """Yield the entries of a segment's file in order, already pending in it.

    Args:
        segment: sealed; it counts as read when the iterator has come to its end.
        damaged: told of the ``.corrupt`` file and the number of damaged records set aside in it.

    Raises:
        OSError: the file cannot be read, or damaged records cannot be set aside; the file stays as
            it is and can be read again.
    """
    if segment.path is None:
        return
    bad: list[bytes] = []
    try:
        file = segment.path.open("rb")
    except FileNotFoundError:  # somebody has removed it by hand
        segment.unread = False
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
        # Beside the folder, which goes when its last segment does.
        folder = segment.path.parent
        corrupt_file = folder.with_name(f"{folder.name}.{segment.path.stem}.corrupt")
        write_atomically(corrupt_file, bad)
        damaged(corrupt_file, len(bad))
    segment.unread = False
