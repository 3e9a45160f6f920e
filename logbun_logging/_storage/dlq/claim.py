"""One file of the dead-letter queue in the hands of one process.

**A file has one name at any moment.** Whoever renames, replaces or removes it holds its lock. New
content is written to a temporary file, which is locked, takes the place of ``.processing``, and
only then gets its final name; the locks go last. A process that is killed between two of these
steps leaves the old or the new content: the package says under which names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate, count
from pathlib import Path
from typing import Final

import msgspec

from logbun_logging._storage.dlq.envelope import (
    MAX_HEAD,
    Envelope,
    State,
    decode_head,
    encode_file,
    new_envelope,
    renamed,
    split_name,
    suffix_of,
)
from logbun_logging._storage.files import (
    link,
    move,
    open_locked,
    open_regular,
    replace_locked,
    sync_folder,
    unlock,
    write_atomically,
)
from logbun_logging._storage.wal.codec import entry_of, read_records
from logbun_logging.event import Entry

__all__ = ["Claim", "claim_file", "read_pieces"]

#: Damaged bytes that are copied; of a file with more, the whole is kept, where it can be linked.
_MAX_DAMAGE: Final = 16 * 1024 * 1024

#: Bytes that are read at once: lines that are damaged may be very long.
_BUFFER: Final = 1024 * 1024


class Claim:
    """A file that this process works on, and nobody else.

    It ends with the first call of :meth:`done`, :meth:`fail` or :meth:`put_back`; later ones do
    nothing.

    Attributes:
        name: the file's name, without its state.
        damaged: damaged records that the last complete :meth:`entries` has met.
        corrupt: the file where those are kept since :meth:`done` or :meth:`fail`.
    """

    def __init__(
        self, path: Path, descriptor: int, was: State, on_end: Callable[[Claim, bool], None]
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._was = was
        self._on_end = on_end
        self.name = split_name(path.name)[0]
        self.damaged = 0
        self.corrupt: Path | None = None

    def envelope(self) -> Envelope:
        """Return the envelope; where it is damaged, each event says whose it is.

        Raises:
            OSError: the file cannot be read.
        """
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            found = decode_head(file.readline(MAX_HEAD))
        if found is not None:
            return found
        return new_envelope(None, 0, "the envelope was damaged", mixed=True)

    def entries(self) -> Iterator[Entry]:
        """Yield the undamaged events in order.

        Raises:
            OSError: the file cannot be read.
        """
        damaged = 0
        for piece in read_pieces(self._descriptor):
            if isinstance(piece, Entry):
                yield piece
            else:
                damaged += 1
        self.damaged = damaged

    def done(self) -> None:
        """Remove the file: its events are in the database.

        Raises:
            OSError: damaged records could not be kept, or it cannot be removed; the claim goes on.
        """
        if self._descriptor >= 0:
            self._keep_damage()
            self._path.unlink(missing_ok=True)
            self._close(gone=True)

    def put_back(self) -> None:
        """Leave the file as it was; where even that fails, as one whose claimant has died."""
        if self._descriptor >= 0:
            with suppress(OSError):
                move(self._path, self._path.with_name(self.name + suffix_of(self._was)))
            self._close()

    def fail(self, envelope: Envelope, keep: Callable[[int], bool], *, dead: bool) -> int:
        """Write what is left, with a new envelope, leave it pending or dead; return how much it is.

        Args:
            envelope: the new one; its count is put right.
            keep: told the place of an event among the undamaged ones, tells whether it is left.
            dead: leave it to an operator.

        Raises:
            OSError: it cannot be written; the claim goes on.
        """
        if self._descriptor < 0:
            return 0
        events = sum(1 for number, _ in enumerate(self.entries()) if keep(number))
        self._keep_damage()
        left = (entry.payload for number, entry in enumerate(self.entries()) if keep(number))
        chunks = encode_file(msgspec.structs.replace(envelope, count=events), left)
        old, self._descriptor = self._descriptor, replace_locked(self._path, chunks)
        os.close(old)  # nothing has its name any more, and no child that has inherited it matters
        with suppress(OSError):  # then it is as one whose claimant has died, and is tried again
            move(
                self._path, self._path.with_name(self.name + (".batch.dead" if dead else ".batch"))
            )
            sync_folder(self._path.parent)
        self._close()
        return events

    def _keep_damage(self) -> None:
        """Keep the damaged records in a file of their own; if they are large, the whole file."""
        if not self.damaged or self.corrupt is not None:
            return
        target = next(path for path in self._corrupt_names() if not os.path.lexists(path))
        sizes = accumulate(map(len, _damage(self._descriptor)))
        large = any(size > _MAX_DAMAGE for size in sizes)
        if not (large and link(self._path, target)):
            write_atomically(target, _damage(self._descriptor))
        self.corrupt = target

    def _corrupt_names(self) -> Iterator[Path]:
        yield self._path.with_name(f"{self.name}.corrupt")
        for number in count(2):
            yield self._path.with_name(f"{self.name}.{number}.corrupt")

    def close(self, *, inherited: bool = False) -> None:
        """Give up the lock; one that a forked child has *inherited* stays the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if not inherited:
                unlock(descriptor)
            os.close(descriptor)

    def _close(self, *, gone: bool = False) -> None:
        self.close()
        self._on_end(self, gone)


def claim_file(
    folder: Path, name: str, state: State, on_end: Callable[[Claim, bool], None]
) -> Claim | None:
    """Claim one file; None if another process has it or it is gone.

    Raises:
        OSError: it is no regular file, or cannot be opened or renamed.
    """
    path = folder / (name + suffix_of(state))
    processing = folder / (name + suffix_of("processing"))
    descriptor = open_locked(path, open_regular)
    if descriptor is None:
        return None
    try:
        if state == "processing":
            processing = _only_name(folder, name, descriptor)
        else:
            move(path, processing)
    except FileExistsError:  # an older version or a killed process has left two: the other is first
        os.close(descriptor)
        return claim_file(folder, name, "processing", on_end)
    except BaseException:
        os.close(descriptor)
        raise
    return Claim(processing, descriptor, "dead" if state == "dead" else "pending", on_end)


def _only_name(folder: Path, name: str, descriptor: int) -> Path:
    """See to it that a locked ``.processing`` file is the only one of its name.

    A process was killed while it renamed the file, which then has two names; or one of an older
    version had written the outcome beside it, which then are two files.
    """
    path = folder / (name + suffix_of("processing"))
    for state in ("pending", "dead"):
        other = folder / (name + suffix_of(state))
        with suppress(FileNotFoundError):
            if os.path.samestat(other.lstat(), os.fstat(descriptor)):
                other.unlink()
                continue
            target = folder / (renamed(name) + suffix_of("processing"))
            move(path, target)
            path = target
    return path


def read_pieces(descriptor: int) -> Iterator[Entry | bytes]:
    """Yield what is in an open file of the DLQ, in order: events, and damaged bytes.

    Raises:
        OSError: it cannot be read.
    """
    with open(descriptor, "rb", buffering=_BUFFER, closefd=False) as file:
        file.seek(0)
        if decode_head(file.readline(MAX_HEAD)) is None:
            file.seek(0)  # it may be a record, and is damaged otherwise
        for payload, whole in read_records(file):
            entry = entry_of(payload, check=True) if whole else None
            yield payload if entry is None else entry


def _damage(descriptor: int) -> Iterator[bytes]:
    for piece in read_pieces(descriptor):
        if not isinstance(piece, Entry):
            yield piece if piece.endswith(b"\n") else piece + b"\n"
