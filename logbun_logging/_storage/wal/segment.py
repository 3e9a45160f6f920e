"""One segment: a file, and the entries in it that are not acknowledged yet."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from logbun_logging.event import Entry, decode_event

__all__ = ["AppendFile", "Segment"]

#: References to a file that no appending thread holds: the segment's and ``getrefcount``'s own.
_UNHELD: Final = 2


class AppendFile:
    """A descriptor that is closed by whoever lets go of it last.

    A thread that has been stopped just before its ``write`` still holds the file. Were the
    descriptor closed under it, its number could mean another file by then: the database, say.

    Attributes:
        number: the descriptor.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> NoReturn:
        raise TypeError("a descriptor has one owner: a copy would close it, too")

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        try:
            close(self.number)
        except OSError:
            return


class Segment:
    """A WAL file and what it is still needed for.

    Appending threads add to :attr:`pending` without a lock (one dict operation is atomic), the
    writer's owner removes under its own. A segment may be deleted when it is sealed and read, and
    nothing is pending or deferred.

    Attributes:
        path: the file; None for a segment that keeps entries in memory while no file can be
            written.
        file: open for appending; None when there is none.
        pending: entries in memory that are not acknowledged, oldest first.
        deferred: hashes of the records whose only copy is this file; they have to be read back.
            Eight bytes each, and what else is in the file is not delivered again.
        deferred_since: when the first of those was created, or the first record of an unread file.
        sealed: nothing is appended any more.
        unread: left by a dead process, and not read to its end yet.
        doubtful: it does not begin with a record: it may be anything, of any size.
        failed: a write or sync failed, so what is pending must be written again elsewhere.
        sealed_at: monotonic seconds, if its file was open then.
        sealed_size: the bytes in the file then; 0 before.
    """

    __slots__ = (
        "deferred",
        "deferred_since",
        "doubtful",
        "failed",
        "file",
        "path",
        "pending",
        "sealed",
        "sealed_at",
        "sealed_size",
        "unread",
    )

    def __init__(
        self, path: Path | None, file: AppendFile | None = None, *, unread: bool = False
    ) -> None:
        self.path = path
        self.file = file
        self.pending: dict[Entry, None] = {}
        self.deferred = array("q")
        self.deferred_since: str | None = None
        self.sealed = unread
        self.unread = unread
        self.doubtful = False
        self.failed = path is None
        self.sealed_at = 0.0
        self.sealed_size = 0

    @property
    def finished(self) -> bool:
        """Nothing needs this file any more."""
        return self.sealed and not self.unread and not self.pending and not self.deferred

    def seal(self) -> None:
        """Note that nothing is appended any more, but by those who have claimed a place."""
        self.sealed_at = time.monotonic()
        self.sealed_size = self.size()
        self.sealed = True

    @property
    def late(self) -> bool:
        """A thread that claimed a place before the sealing still holds the file, and may write.

        Only for a sealed segment with a file: others get hold of the current one all the time.
        """
        return sys.getrefcount(self.file) > _UNHELD

    @property
    def gone(self) -> bool:
        """Its path is missing, or stands for another file."""
        file = self.file
        try:
            named = self.path.lstat() if self.path else None
            return bool(file and named and not os.path.samestat(os.fstat(file.number), named))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # the disk, not the name
            return False

    def size(self) -> int:
        """Return the bytes in the file."""
        file = self.file
        try:
            if file is not None:
                return os.fstat(file.number).st_size
            return self.path.stat().st_size if self.path else 0
        except OSError:
            return 0

    def defer(self, payload: bytes) -> None:
        """Note that from now on the file alone has a record."""
        if not self.deferred:
            self.deferred_since = decode_event(payload).created_at
        self.deferred.append(hash(payload))

    def oldest(self) -> str | None:
        """Return when the oldest event was created that is pending or deferred."""
        deferred = self.deferred_since if self.deferred or self.unread else None
        while self.pending:
            with suppress(RuntimeError, StopIteration):  # another thread appended just now
                pending = decode_event(next(iter(self.pending)).payload).created_at
                return min(deferred, pending) if deferred else pending
        return deferred

    def delete(self) -> None:
        """Remove the file."""
        self.file = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)
