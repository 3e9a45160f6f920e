"""Which tenants' events share a dead letter: many tenants with little each fill no folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from logbun_logging.batching import Shipment
from logbun_logging.event import Entry
from logbun_logging.lane import Lane

__all__ = ["packed"]

#: A tenant with so many bytes has a file of its own.
_OWN_FILE: Final = 256 * 1024

#: About the most bytes that several tenants have in one file.
_SHARED_FILE: Final = 1024 * 1024


def packed(parts: Iterable[tuple[Lane, list[Entry]]]) -> Iterator[Shipment]:
    """Yield what goes into one file, file by file, as soon as it is full."""
    together: Shipment = []
    total = 0
    for lane, entries in parts:
        size = sum(len(entry.payload) for entry in entries)
        if size >= _OWN_FILE:
            yield [(lane, entries)]
            continue
        together.append((lane, entries))
        total += size
        if total >= _SHARED_FILE:
            yield together
            together, total = [], 0
    if together:
        yield together
