"""One segment: a file, and the entries in it that are not acknowledged yet."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from logbun_logging.event import Entry, decode_event

__all__ = ["Segment"]


class Segment:
    """A WAL file and what it is still needed for.

    Appending threads add to :attr:`pending` without a lock (one dict operation is atomic), the
    writer's owner removes under its own. A segment may be deleted when it is sealed, nothing is
    pending and nothing is parked.

    Attributes:
        path: the file; None for a segment that keeps entries in memory while no file can be
        written. descriptor: open for appending; -1 when there is none.
        pending: entries in memory that are not acknowledged, oldest first.
        parked: records whose only copy is this file; they have to be read back.
        sealed: nothing is appended any more.
        failed: a write or sync failed, so what is pending must be written again elsewhere.
        rounds: how often the keeper has seen it sealed.
    """

    __slots__ = ("descriptor", "failed", "parked", "path", "pending", "rounds", "sealed")

    def __init__(self, path: Path | None, descriptor: int = -1, *, sealed: bool = False) -> None:
        self.path = path
        self.descriptor = descriptor
        self.pending: dict[Entry, None] = {}
        self.parked = 0
        self.sealed = sealed
        self.failed = path is None
        self.rounds = 0

    @property
    def finished(self) -> bool:
        """Nothing needs this file any more."""
        return self.sealed and not self.pending and not self.parked

    def size(self) -> int:
        """Return the bytes in the file."""
        if self.descriptor >= 0:
            return os.fstat(self.descriptor).st_size
        try:
            return self.path.stat().st_size if self.path else 0
        except OSError:
            return 0

    def oldest(self) -> str | None:
        """Return when the oldest pending event was created."""
        while self.pending:
            with suppress(RuntimeError, StopIteration):  # another thread appended just now
                return decode_event(next(iter(self.pending)).payload).created_at
        return None

    def delete(self) -> None:
        """Close and remove the file."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the descriptor."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
