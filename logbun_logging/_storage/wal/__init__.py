r"""The write-ahead log: an event is on disk before the call that made it returns.

::

    {data_dir}/{namespace}/wal/
    ├── {instance}/            one folder per process, held by flock for as long as it lives
    │   ├── current.aof        what is appended to now
    │   └── seg-000001.aof     sealed; deleted once every record in it is acknowledged
    └── {instance}.seg-000001.corrupt    damaged bytes that recovery set aside

A segment is NDJSON, one record a line::

    {"v": 1, "crc": "89abcdef", "event": {"id":"01...","created_at":"...",...}}\n

``crc`` is the CRC-32 of the bytes of ``event``. The encoder of events writes no white space, so the
text ``{"v": `` cannot stand inside an event: wherever it is found, a record begins. A reader can
therefore find the next record behind any damage, even on the same line.

The parts: ``codec`` knows the line, ``segment`` one file and what is not yet acknowledged in it,
``commit`` shares one sync between many callers, ``instance`` is the process's locked folder,
``writer`` appends, seals and heals, ``rescue`` writes what a failed file holds to a new one,
``recovery`` adopts what a dead process left. All of them know entries and files, nothing of
logging.
"""

from __future__ import annotations

from logbun_logging._storage.wal.recovery import AdoptedLog, adopt_abandoned, read_segment
from logbun_logging._storage.wal.segment import Segment
from logbun_logging._storage.wal.writer import WalRemovedError, WalWriter

__all__ = [
    "AdoptedLog",
    "Segment",
    "WalRemovedError",
    "WalWriter",
    "adopt_abandoned",
    "read_segment",
]
