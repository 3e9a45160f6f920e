"""Whether cost grows with the load alone: ``python -m tests.benchmarks.scaling [--full]``.

Ten times the events may take more than ten times the time only as far as SQLite does, a thousand
times the tenants hardly more, and memory must not grow with what has been logged. Without
``--full`` everything is a tenth as large.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from logbun_logging import AuditLogger
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.adapters._sql import table
from logbun_logging.event import new_event_id, utc_now
from tests.benchmarks.calls import FIELDS, logger_with, ours
from tests.benchmarks.harness import Figure, report
from tests.benchmarks.throughput import BATCH

FULL = {"events": 1_000_000, "tenants": 10_000, "memory": 5_000_000}
SHORT = {name: size // 10 for name, size in FULL.items()} | {"tenants": 10_000}


def run(events: int, tenants: int, *, memory: bool = False) -> dict[str, float]:
    """Log *events* for *tenants*; return the seconds, and the memory at the end and a tenth in."""
    names = [f"tenant_{number}" for number in range(tenants)]
    resident: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ours(folder, "durable", retry={"first_scan": 3600.0}) as trail,
    ):
        fire = AuditLogger(logger_with("scaling", trail.handler)).fire
        fields = dict(FIELDS)
        del fields["tenant_id"]
        step = max(1, events // 10)
        started = time.perf_counter()
        for number in range(events):
            fire("course.created", tenant_id=names[number % tenants], **fields)
            if (number + 1) % step == 0:
                if memory:
                    assert trail.flush(600)
                    gc.collect()
                resident.append(resident_mib())
        assert trail.flush(600)
        took = time.perf_counter() - started
        stats = trail.stats()
        assert stats["lost"] == stats["dropped"] == 0, stats
        with closing(sqlite3.connect(Path(folder) / "durable.db")) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM audit_logs").fetchone()
        assert rows == events, (rows, stats)
    return {"seconds": took, "early_mib": resident[0], "late_mib": resident[-1]}


def bare(events: int) -> float:
    """Return the seconds of a bare ``executemany`` of rows of 100 tenants, in the same batches.

    SQLite's trees grow deeper, and its journal and cache have more to do: that is not ours.
    """
    fields = [FIELDS.get(name) for name in table.COLUMNS]
    fields = [json.dumps(value) if isinstance(value, dict) else value for value in fields]
    marks = ", ".join("?" * len(fields))
    took = 0.0
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        adapter = SQLiteAdapter(Path(folder) / "bare.db")
        adapter.init()
        connection = adapter._connections._writer.raw
        for start in range(0, events, BATCH):
            rows = []
            for number in range(start, min(start + BATCH, events)):
                row = [*fields]
                row[:3] = new_event_id(), utc_now(), "course.created"
                row[table.COLUMNS.index("tenant_id")] = f"tenant_{number % 100}"
                rows.append(row)
            rows.sort(key=lambda row: row[table.COLUMNS.index("tenant_id")])
            started = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(f"INSERT OR IGNORE INTO {table.TABLE} VALUES ({marks})", rows)
            connection.execute("COMMIT")
            took += time.perf_counter() - started
        adapter.close()
    return took


def resident_mib() -> float:
    """Return the process's resident memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def apart(events: int, tenants: int, *, memory: bool = False) -> dict[str, float]:
    """Do :func:`run` in a process of its own, so that no run inherits another's heap."""
    command = [sys.executable, "-m", "tests.benchmarks.scaling", "--run", str(events), str(tenants)]
    done = subprocess.run([*command, str(int(memory))], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(sizes: dict[str, int]) -> list[Figure]:
    """Return how cost and memory grow."""
    events, tenants, total = sizes["events"], sizes["tenants"], sizes["memory"]
    small = apart(events // 10, 100)["seconds"]
    large = apart(events, 100)["seconds"]
    bare_growth = bare(events) / bare(events // 10)
    few = apart(events // 5, 10)["seconds"]
    many = apart(events // 5, tenants)["seconds"]
    memory = apart(total, 100, memory=True)
    growth = memory["late_mib"] / memory["early_mib"]
    return [
        Figure(f"{events // 10:,} events, 100 tenants", small, "s"),
        Figure(f"{events:,} events, 100 tenants", large, "s"),
        Figure("time to time, for ten times the events", growth_in_time := large / small, "x"),
        Figure("the same of a bare executemany", bare_growth, "x"),
        Figure("the one to the other", growth_in_time / bare_growth, "x", at_most=1.2),
        Figure(f"{events // 5:,} events, 10 tenants", few, "s"),
        Figure(f"{events // 5:,} events, {tenants:,} tenants", many, "s"),
        Figure("time to time, for many tenants", many / few, "x", at_most=1.5),
        Figure(f"resident after {total // 10:,} events", memory["early_mib"], "MiB"),
        Figure(f"resident after {total:,} events", memory["late_mib"], "MiB"),
        Figure("memory to memory, for ten times the events", growth, "x", at_most=1.1),
    ]


def main() -> int:
    """Run as a script; ``--run`` is one measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--run", nargs=3, type=int)
    arguments = parser.parse_args()
    if arguments.run:
        events, tenants, memory = arguments.run
        print(json.dumps(run(events, tenants, memory=bool(memory))))
        return 0
    return not report("Growth", measure(FULL if arguments.full else SHORT))


if __name__ == "__main__":
    raise SystemExit(main())
