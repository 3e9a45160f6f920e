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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from logbun_logging._storage.files import open_locked, open_regular, sync_folder, writing_atomically
from logbun_logging._storage.wal.codec import entry_of, read_records
from logbun_logging._storage.wal.segment import Segment
from logbun_logging.event import Entry, decode_event

__all__ = ["AdoptedLog", "adopt_abandoned", "read_segment"]


def adopt_abandoned(
    folder: Path, own: Path | None, failed: Callable[[Path, OSError], None]
) -> Iterator[AdoptedLog]:
    """Lock and yield every abandoned instance folder in the ``wal`` folder, oldest first.

    Args:
        folder: the namespace's ``wal`` folder.
        own: the instance folder of this process.
        failed: told of each folder that cannot be opened; the others are yielded all the same.
    """
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    except OSError as error:
        failed(folder, error)
        return
    for name in names:
        path = folder / name
        if path == own:
            continue
        try:
            log = _adopt(path)
        except OSError as error:
            failed(path, error)
            continue
        if log is not None:
            yield log


def _adopt(path: Path) -> AdoptedLog | None:
    descriptor = open_locked(path, _open_folder)
    if descriptor is None:
        return None
    try:
        return AdoptedLog(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


class AdoptedLog:
    """A dead process's WAL folder, ours as long as it holds anything.

    Args:
        path: the folder.
        descriptor: the folder, open and locked.

    Raises:
        OSError: the folder cannot be read.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        files = sorted(file for file in path.iterdir() if file.suffix == ".aof")
        files.sort(key=lambda file: file.name == "current.aof")  # the newest comes last
        self.segments = [Segment(file, unread=True) for file in files]
        for segment, file in zip(self.segments, files, strict=True):
            first = _first_created(file)
            segment.doubtful = first is None
            if segment is self.segments[0]:
                segment.deferred_since = first

    @property
    def pending(self) -> bool:
        """Some of it is in memory."""
        return any(segment.pending for segment in self.segments)

    def delete_finished(self) -> bool:
        """Delete the segments that are finished, and the folder after the last; return if it is.

        The folder is synced then: were a file to come back after a power cut, its events would come
        back as well, those that have been pruned among them.
        """
        finished = [segment for segment in self.segments if segment.finished]
        for segment in finished:
            with suppress(OSError):  # it is found again, and inserts are idempotent
                segment.delete()
            self.segments.remove(segment)
        if self.segments or self._descriptor < 0:
            if finished:
                _sync(self.path)
            return not self.segments
        with suppress(OSError):
            self.path.rmdir()
        _sync(self.path.parent)
        self.abandon()
        return True

    def abandon(self) -> None:
        """Let go of the lock; whatever is left can be adopted by others."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _first_created(path: Path) -> str | None:
    """Return when the first event in a file was created; None if that cannot be read."""
    with suppress(OSError), os.fdopen(open_regular(path), "rb") as file:
        payload, whole = next(read_records(file), (b"", False))
        if whole and entry_of(payload, check=True) is not None:
            return decode_event(payload).created_at
    return None


def _sync(folder: Path) -> None:
    with suppress(OSError):  # it has gone, or its disk has: then the next process delivers again
        sync_folder(folder)


def read_segment(segment: Segment, damaged: Callable[[Path, int], None]) -> Iterator[Entry]:
    """Yield the entries of a segment's file in order, already pending in it.

    Damaged records are written to a ``.corrupt`` file as they are found, without the zero bytes
    that a power cut leaves at the end of a file.

    Args:
        segment: sealed; its user notes when all that it yields has been taken over.
        damaged: told of the ``.corrupt`` file and the number of damaged records set aside in it.

    Raises:
        OSError: the file cannot be read, or damaged records cannot be set aside; the file stays as
            it is and can be read again.
    """
    if segment.path is None:
        return
    try:
        descriptor = open_regular(segment.path)
    except FileNotFoundError:  # somebody has removed it by hand
        return
    # Beside the folder, which goes when its last segment does.
    folder = segment.path.parent
    corrupt_file = folder.with_name(f"{folder.name}.{segment.path.stem}.corrupt")
    corrupt: BinaryIO | None = None
    count = 0
    hole = False
    with os.fdopen(descriptor, "rb") as file, ExitStack() as stack:
        for payload, whole in read_records(file):
            entry = entry_of(payload, check=True) if whole else None
            if entry is not None:
                entry.segment = segment
                segment.pending[entry] = None
                yield entry
                continue
            if corrupt is None:
                corrupt = stack.enter_context(writing_atomically(corrupt_file))
            content = payload.strip(b"\0\n")
            count += bool(content or not hole)
            hole = not content
            if content:
                corrupt.write(content + b"\n")
    if count:
        damaged(corrupt_file, count)
