"""Recovery and queries: ``python -m tests.benchmarks.reading [--full]``.

Recovery is measured from the start of a process that finds a WAL until its last row is committed,
beside the live rate from the first call to the last row. Pages are read from a file with one
million rows of 100 tenants (100,000 without ``--full``).
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from uuid_utils import uuid7

from logbun_logging import AuditLogger, AuditTrail
from logbun_logging.adapters import EncodedBatch, SQLiteAdapter
from logbun_logging.event import AuditEvent, utc_timestamp
from tests.benchmarks.calls import FIELDS, logger_with, ours
from tests.benchmarks.harness import Figure, interleave, report
from tests.benchmarks.throughput import end_to_end, executemany

RECORDS = 100_000
TENANTS = 100


class Counting(SQLiteAdapter):
    """A database that takes no time: what is left is recovery itself."""

    def insert_encoded(self, batches: Sequence[EncodedBatch]) -> bool:
        """Take everything and keep nothing."""
        del batches
        return True


def recovery(adapter_class: type[SQLiteAdapter]) -> float:
    """Return the events in a second that a new process recovers from a WAL."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        pid = os.fork()
        if pid == 0:
            leave_a_log(folder)
        os.waitpid(pid, 0)
        started = time.perf_counter()
        adapter = adapter_class(Path(folder) / "recovered.db")
        with ours(folder, "durable", adapter=adapter) as trail:
            assert trail.flush(600)
            took = time.perf_counter() - started
            assert trail.stats()["recovered"] == RECORDS, trail.stats()
            assert trail.stats()["inserted"] == RECORDS
    return RECORDS / took


def leave_a_log(folder: str) -> None:
    """Log to a database that never answers, and die."""

    class Hanging(SQLiteAdapter):
        def init(self) -> None:
            time.sleep(3600)

    trail = AuditTrail(
        namespace=Path(folder).name,
        data_dir=folder,
        mode="durable",
        adapter=Hanging(Path(folder) / "never.db"),
        limits={"max_total_queued": 10 * RECORDS, "max_queued_bytes": 2**34},
        batching={"max_queue_size": 10 * RECORDS, "flush_interval": 3600.0, "max_size": 10_000},
    )
    fire = AuditLogger(logger_with("recovery", trail.handler)).fire
    fields = {name: value for name, value in FIELDS.items() if name != "tenant_id"}
    for number in range(RECORDS):
        fire("course.created", tenant_id=f"tenant_{number % TENANTS}", **fields)
    os._exit(0)


def pages(rows: int) -> list[Figure]:
    """Return how long pages take in a file of *rows* rows."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        path = Path(folder) / "large.db"
        fill(path, rows)
        with AuditTrail(
            namespace="pages", data_dir=folder, adapter=SQLiteAdapter(path=path)
        ) as trail:
            assert trail.ready()
            tenants = [f"tenant_{number}" for number in range(TENANTS)]
            rng = random.Random(1)
            first = [
                timed(lambda: trail.query(tenant_id=rng.choice(tenants), limit=50))[0]
                for _ in range(200)
            ]
            filtered = [
                timed(
                    lambda: trail.query(
                        tenant_id=rng.choice(tenants), actor_id=f"user_{rng.randrange(42)}"
                    )
                )[0]
                for _ in range(200)
            ]
            number = min(1000, rows // TENANTS // 10)
            deep = deep_pages(trail, number)
    return [
        Figure(
            f"first page of 50, one of {TENANTS} tenants, {rows:,} rows: p50",
            median(first),
            "ms",
            at_most=2,
        ),
        Figure("first page of an actor: p50", median(filtered), "ms"),
        Figure("first page of 10: p50", deep[0], "ms"),
        Figure(f"page {number:,} of 10: p50", deep[1], "ms"),
        Figure("far page to first page", deep[1] / deep[0], "x", at_most=1.25),
    ]


def deep_pages(trail: AuditTrail, number: int) -> tuple[float, float]:
    """Return how long the first pages and those before page *number* take, p50."""
    starts, ends = [], []
    for tenant in ("tenant_3", "tenant_4", "tenant_5"):
        cursor = None
        for place in range(number):
            took, page = timed(partial(trail.query, tenant_id=tenant, limit=10, cursor=cursor))
            cursor = page.next_cursor
            if place < 50:
                starts.append(took)
            elif place >= number - 50:
                ends.append(took)
            if cursor is None:
                break
    return median(starts), median(ends)


def timed(call):
    """Return the milliseconds that *call* takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return (time.perf_counter() - started) * 1000, result


def fill(path: Path, rows: int) -> None:
    """Put *rows* events into a new file."""
    adapter = SQLiteAdapter(path=path)
    adapter.init()
    fields = {
        name: value for name, value in FIELDS.items() if name not in {"tenant_id", "actor_id"}
    }
    now = time.time()
    step = 20_000
    for start in range(0, rows, step):
        batches: dict[str, list[AuditEvent]] = {}
        for number in range(start, min(start + step, rows)):
            tenant = f"tenant_{number % TENANTS}"
            batches.setdefault(tenant, []).append(
                AuditEvent(
                    str(uuid7()),
                    utc_timestamp(now - rows + number),
                    f"course.{number % 7}",
                    tenant_id=tenant,
                    actor_id=f"user_{number // TENANTS % 42}",
                    **fields,
                )
            )
        adapter.bulk_insert_many(list(batches.items()))
    adapter.close()


def measure(rows: int) -> list[Figure]:
    """Return the rate of recovery and the times of pages."""
    found = interleave(
        {
            "recovery": partial(recovery, Counting),
            "stored": partial(recovery, SQLiteAdapter),
            "live": partial(end_to_end, "durable"),
            "bare": executemany,
        },
        3,
    )
    live = found["live"]
    return [
        Figure("live, durable, end to end", live, "events/s"),
        Figure(
            f"recovery of {RECORDS:,} records, handed to a database", found["recovery"], "events/s"
        ),
        Figure("that to live", found["recovery"] / live, "x", at_least=3),
        Figure("the same, into SQLite with all indexes", found["stored"], "events/s"),
        Figure("that to live", found["stored"] / live, "x"),
        Figure("that to a bare executemany, which bounds it", found["stored"] / found["bare"], "x"),
        *pages(rows),
    ]


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    rows = 1_000_000 if parser.parse_args().full else 100_000
    return not report("Recovery and queries", measure(rows))


if __name__ == "__main__":
    raise SystemExit(main())
