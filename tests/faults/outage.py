"""The database goes away under load and comes back: ``python -m tests.faults.outage --down 30``.

Threads log at a steady rate before, during and after the outage. Nothing may be lost or doubled,
and memory must stay bounded. ``--hang`` lets calls of the database hang instead of fail.
"""

from __future__ import annotations

import argparse
import logging
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from logbun_logging import AdapterUnavailableError, AuditTrail, get_audit_logger
from logbun_logging.adapters import SQLiteAdapter
from tests.faults.memory import peak_memory, reset_peak_memory
from tests.faults.rig import print_table


class SwitchedSQLite(SQLiteAdapter):
    """A database with a switch."""

    def __init__(self, path, *, hang=False):
        super().__init__(path)
        self.hang = hang
        self.up = threading.Event()
        self.up.set()

    def insert_encoded(self, batches):
        if self.hang:
            self.up.wait()
        if not self.up.is_set():
            raise AdapterUnavailableError("the switch is off")
        return super().insert_encoded(batches)


class Result(NamedTuple):
    fired: int
    rows: int
    distinct: int
    stats: dict[str, int]
    peaks: list[float]
    drained: float
    slowest: float

    @property
    def right(self):
        delivered = self.fired == self.rows == self.distinct and not self.stats["lost"]
        return delivered and self.away > 0

    @property
    def away(self):
        """Events that went through the DLQ, or were left to the WAL for a while."""
        return sum(self.stats[name] for name in ("dead_lettered", "spilled", "deferred"))


def run(folder, *, mode, before, down, after, rate, hang=False, threads=4, tenants=10):
    """Log for so many seconds before, during and after an outage."""
    database = Path(folder) / "audit.db"
    adapter = SwitchedSQLite(database, hang=hang)
    trail = AuditTrail(
        namespace=f"outage-{mode}",
        data_dir=folder,
        mode=mode,
        adapter=adapter,
        insert_timeout=2.0,
        retry={"scan_interval": 5.0},
    )
    logger = logging.getLogger(f"outage.{mode}.{hang}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(trail.handler)
    audit = get_audit_logger(logger.name)
    stop = threading.Event()
    counts, slowest = [0] * threads, [0.0] * threads

    def work(number):
        started = time.monotonic()
        while not stop.is_set():
            ahead = counts[number] - (time.monotonic() - started) * rate / threads
            if ahead > 0:
                stop.wait(min(0.02, ahead * threads / rate))
                continue
            at = time.monotonic()
            audit.fire(
                "a.b",
                tenant_id=f"t{counts[number] % tenants}",
                entity_id=f"{number}-{counts[number]}",
                new_values={"pad": "x" * 200},
            )
            slowest[number] = max(slowest[number], time.monotonic() - at)
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    peaks = []
    for worker in workers:
        worker.start()
    for seconds, up in ((before, True), (down, False), (after, True)):
        (adapter.up.set if up else adapter.up.clear)()
        reset_peak_memory()
        time.sleep(seconds)
        peaks.append(peak_memory())
    stop.set()
    for worker in workers:
        worker.join()
    ended = time.monotonic()
    while not (trail.flush(60) and trail.dlq.is_empty()):
        trail.dlq.retry()
        time.sleep(0.05)
        if time.monotonic() - ended > 300:
            break
    drained = time.monotonic() - ended
    stats = trail.stats()
    trail.shutdown()
    logger.removeHandler(trail.handler)
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT count(*), count(DISTINCT entity_id) FROM audit_logs"
        rows, distinct = connection.execute(query).fetchone()
    return Result(sum(counts), rows, distinct, stats, peaks, drained, max(slowest))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", type=float, default=30.0, help="seconds without a database")
    parser.add_argument("--rate", type=int, default=2000, help="events a second")
    parser.add_argument("--hang", action="store_true")
    arguments = parser.parse_args()
    table, failed = [], False
    for mode in ("durable", "volatile"):
        with tempfile.TemporaryDirectory() as folder:
            result = run(
                folder,
                mode=mode,
                before=10.0,
                down=arguments.down,
                after=10.0,
                rate=arguments.rate,
                hang=arguments.hang,
            )
        failed |= not result.right
        table.append(
            [
                mode,
                f"{result.fired:,}",
                f"{result.fired - result.distinct:,}",
                f"{result.rows - result.distinct:,}",
                f"{result.away:,}",
                *(f"{peak:.0f} MiB" for peak in result.peaks),
                f"{result.drained:.1f} s",
                f"{result.slowest * 1000:.0f} ms",
            ]
        )
    heads = "mode, fired, lost, doubled, through files, peak before, during, after"
    print_table([*heads.split(", "), "drained after", "slowest call"], table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
