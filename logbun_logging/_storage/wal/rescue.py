"""Writing what a failed segment holds to a new one: first a copy, then the move.

Between the two the new file is synced. Until then the old one is needed, and nothing is taken from
it. Both take the lock under which entries leave and change segments.
"""

from __future__ import annotations

import os
from array import array
from contextlib import AbstractContextManager, suppress
from typing import NamedTuple

from logbun_logging._storage.files import open_regular
from logbun_logging._storage.wal.codec import encode_line, read_records
from logbun_logging._storage.wal.segment import Segment
from logbun_logging.event import Entry

__all__ = ["copy_entries", "move_entries"]


class Copy(NamedTuple):
    """What a new file has of an old one: the entries, and the hashes of deferred records."""

    entries: frozenset[Entry]
    deferred: frozenset[int]


def copy_entries(
    source: Segment, target: Segment, pending_lock: AbstractContextManager[object]
) -> Copy:
    """Write everything that only *source* has to *target* as well."""
    with pending_lock:
        deferred = frozenset(source.deferred)
    entries = list(source.pending)
    lines = [encode_line(entry.payload) for entry in entries]
    if deferred and source.path is not None:
        known = {hash(entry.payload) for entry in entries}
        found: dict[int, bytes] = {}
        with suppress(OSError), os.fdopen(open_regular(source.path), "rb") as file:
            found = {
                hash(data): encode_line(data)
                for data, whole in read_records(file)
                if whole and hash(data) in deferred and hash(data) not in known
            }
        lines += found.values()
        deferred &= known.union(found)  # the rest stays, to be read back and reported
    for line in lines:
        _write_all(target, line)
    return Copy(frozenset(entries), deferred)


def move_entries(
    source: Segment, target: Segment, copy: Copy, pending_lock: AbstractContextManager[object]
) -> None:
    """Make *target* the home of what *source* has; write what came after the copy."""
    with pending_lock:
        moved = array("q", (record for record in source.deferred if record in copy.deferred))
        if moved:
            rest = (record for record in source.deferred if record not in copy.deferred)
            source.deferred = array("q", rest)
            target.deferred += moved
            target.deferred_since = min(
                filter(None, (source.deferred_since, target.deferred_since))
            )
    while source.pending:
        entries = list(source.pending)
        for entry in entries:
            if entry not in copy.entries:
                _write_all(target, encode_line(entry.payload))
        with pending_lock:
            for entry in entries:
                if entry in source.pending:
                    del source.pending[entry]
                    target.pending[entry] = None
                    entry.segment = target


def _write_all(target: Segment, line: bytes) -> None:
    assert target.file is not None  # noqa: S101 - for the type checker
    if os.write(target.file.number, line) != len(line):
        raise OSError("short write: no space is left")
