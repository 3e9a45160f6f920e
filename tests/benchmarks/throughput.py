"""From the first call to the last row: ``python -m tests.benchmarks.throughput``.

One thread makes the calls as fast as it can, for 100 tenants, while the pipeline carries them into
SQLite with all indexes. The baseline is a bare ``sqlite3.executemany`` of the same rows into the
same table in batches of the same size, with nothing else running. It gets the rows ready-made, and
does nothing for the events' safety before they are in the database.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path

from logbun_logging import AuditLogger
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.adapters._sql import table
from tests.benchmarks.calls import FIELDS, logger_with, ours
from tests.benchmarks.harness import Figure, interleave, report

EVENTS = 50_000
TENANTS = 100
ROUNDS = 5
BATCH = 5_000  # what the pipeline puts into one transaction under load

#: What the original of this design, on Bun, moves on such a machine, in events/s.
BUN_END_TO_END = 13_000


def calls(number: int) -> dict[str, object]:
    """Return the fields of one event."""
    return {
        **FIELDS,
        "tenant_id": f"tenant_{number % TENANTS}",
        "actor_id": f"user_{number % 42}",
        "entity_id": f"course_{number % 700}",
        "request_id": f"{number:032x}",
    }


PREPARED = [calls(number) for number in range(EVENTS)]
ACTIONS = [
    ("course.created", "course.updated", "course.deleted", "user.login")[n % 4] for n in range(4)
]


def end_to_end(mode: str) -> float:
    """Return the events in a second, from the first call to the last commit."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ours(folder, mode) as trail,
    ):
        fire = AuditLogger(logger_with("throughput", trail.handler)).fire
        started = time.perf_counter()
        for number, fields in enumerate(PREPARED):
            fire(ACTIONS[number & 3], **fields)
        assert trail.flush(120)
        took = time.perf_counter() - started
        stats = trail.stats()
        assert stats["inserted"] == EVENTS, stats
    return EVENTS / took


def executemany() -> float:
    """Return the rows in a second of the bare driver."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "bare.db"
        adapter = SQLiteAdapter(path)
        adapter.init()
        adapter.close()
        rows = stored_rows()
        connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA wal_autocheckpoint = 8192")
        marks = ", ".join("?" * len(table.COLUMNS))
        statement = f"INSERT OR IGNORE INTO {table.TABLE} VALUES ({marks})"
        started = time.perf_counter()
        for start in range(0, EVENTS, BATCH):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, rows[start : start + BATCH])
            connection.execute("COMMIT")
        took = time.perf_counter() - started
        connection.close()
    return EVENTS / took


_rows: list[tuple[object, ...]] = []


def stored_rows() -> list[tuple[object, ...]]:
    """Return the rows that the pipeline has made of the same calls, in the order of its inserts."""
    if not _rows:
        with (
            tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
            ours(folder, "volatile") as trail,
        ):
            fire = AuditLogger(logger_with("rows", trail.handler)).fire
            for number, fields in enumerate(PREPARED):
                fire(ACTIONS[number & 3], **fields)
            assert trail.flush(120)
            connection = sqlite3.connect(Path(folder) / "volatile.db")
            _rows.extend(connection.execute(f"SELECT * FROM {table.TABLE} ORDER BY id"))
            connection.close()
        for start in range(0, EVENTS, BATCH):  # a batch has each tenant's rows together, as ours
            _rows[start : start + BATCH] = sorted(
                _rows[start : start + BATCH], key=lambda row: str(row[4])
            )
    return _rows


def measure() -> list[Figure]:
    """Return the rates end to end."""
    found = interleave(
        {
            "bare": executemany,
            "volatile": lambda: end_to_end("volatile"),
            "durable": lambda: end_to_end("durable"),
        },
        ROUNDS,
    )
    bare = found["bare"]
    return [
        Figure("bare executemany, nothing else running: the baseline", bare, "rows/s"),
        Figure("volatile, end to end", found["volatile"], "events/s", at_least=2 * BUN_END_TO_END),
        Figure("durable, end to end", found["durable"], "events/s", at_least=2.5 * BUN_END_TO_END),
        Figure("durable to the baseline", found["durable"] / bare, "x", at_least=0.5),
    ]


if __name__ == "__main__":
    raise SystemExit(not report("From the first call to the last row", measure()))
