"""What a million events in ClickHouse cost to read and to prune.

::

    python -m tests.benchmarks.clickhouse_million

The engine is chdb, in this process, on this machine's disk. Events go in through the adapter,
ten thousand at a time, for a hundred tenants over five months; copies of a hundredth of them go in
again, as retries would bring them. Times are medians of several runs, in milliseconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.query import ALL_TENANTS, Pagination, make_filters
from logbun_logging.testing import samples

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 150
BATCH = 10_000
TENANTS = 100
RUNS = 15


def event(number, rng, moment):
    return samples.event_at(
        moment,
        rng,
        action=rng.choice(("course.created", "course.deleted", "user.invited", "user.removed")),
        tenant_id=f"tenant_{rng.randrange(TENANTS)}",
        actor_id=f"user_{rng.randrange(5000)}",
        entity_type="course",
        entity_id=f"course_{rng.randrange(50_000)}",
        outcome=rng.choice(("success", "denied")),
        request_id=f"request_{number}",
        new_values={"title": "Advanced Python", "seats": rng.randrange(50)},
        metadata={"plan": "pro"},
        ip_address="203.0.113.9",
        user_agent="Mozilla/5.0 (X11; Linux x86_64)",
    )


def insert(adapter, events):
    by_tenant = {}
    for one in events:
        by_tenant.setdefault(one.tenant_id, []).append(one)
    adapter.bulk_insert_many(list(by_tenant.items()))


def fill(adapter, count):
    rng = random.Random(1)
    step = timedelta(days=DAYS) / count
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        events = [event(start + n, rng, START + (start + n) * step) for n in range(size)]
        insert(adapter, events)
        insert(adapter, events[: BATCH // 100])


def settle(adapter):
    """Wait until the engine merges no parts, which takes both cores here."""
    quiet = 0
    while quiet < 5:
        merging = adapter._query("SELECT count() FROM system.merges", {})
        quiet = 0 if merging != [(0,)] else quiet + 1
        time.sleep(0.2)


def timed(call):
    """Return the median time of *call* in milliseconds, and what it returned at last."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        found = call()
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times), 1), found


def read(adapter, count):
    """Yield the name of each query and its time."""
    first = Pagination(limit=50)

    def page(tenant="tenant_7", pagination=first, **filters):
        return adapter.query(tenant, make_filters(**filters), pagination)

    yield "first page", timed(page)[0]
    yield "filtered by action", timed(lambda: page(action="user.removed"))[0]
    yield "filtered by prefix", timed(lambda: page(action="user.*"))[0]
    yield "filtered by actor", timed(lambda: page(actor_id="user_42"))[0]
    yield "filtered by entity", timed(lambda: page(entity_id="course_42"))[0]
    yield "filtered by request", timed(lambda: page(request_id=f"request_{count // 2}"))[0]
    yield "first page of all tenants", timed(lambda: page(ALL_TENANTS))[0]
    small = Pagination(limit=min(5, max(1, count // TENANTS // 1000)))
    pages = 0
    while pages < 999:
        found = page(pagination=small)
        if not found:
            break
        last = found[-1]
        small = Pagination(limit=small.limit, after=(last.created_at, last.id))
        pages += 1
    after = Pagination(limit=50, after=(last.created_at, last.id))
    yield f"page after {pages} pages", timed(lambda: page(pagination=after))[0]


def prune(adapter, sizes):
    """Yield the number of rows in a month and the time that it takes to drop them."""
    for size in sizes:
        times = []
        for _ in range(5):
            adapter._command(
                "INSERT INTO default.audit_logs (id, created_at, action, tenant_id, metadata) "
                "SELECT toString(generateUUIDv7()), toDateTime64('2025-06-15 12:00:00', 6, 'UTC'), "
                "'course.created', concat('tenant_', toString(number % 100)), repeat('x', 200) "
                f"FROM numbers({size:d})"
            )
            # As a month is when it is old: merged. What is dropped costs by parts, not by rows.
            adapter._command("OPTIMIZE TABLE default.audit_logs PARTITION ID '202506' FINAL")
            settle(adapter)
            started = time.perf_counter()
            removed = adapter.prune(90, now=datetime(2025, 12, 1, tzinfo=UTC))
            times.append((time.perf_counter() - started) * 1000)
            assert removed == {None: size}, removed
        yield size, round(statistics.median(times), 1)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--months", nargs="+", type=int, default=[50_000, 500_000])
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="logbun-chdb-") as folder:
        adapter = ClickHouseAdapter(path=Path(folder) / "chdb")
        adapter.init()
        started = time.perf_counter()
        fill(adapter, options.rows)
        seconds = time.perf_counter() - started
        figures = {"rows": options.rows, "rows_per_s": round(options.rows / seconds)}
        settle(adapter)
        figures["ms"] = dict(read(adapter, options.rows))
        figures["prune_ms"] = dict(prune(adapter, options.months))
        january = datetime(2026, 2, 1, tzinfo=UTC) + timedelta(days=90)
        started = time.perf_counter()
        removed = adapter.prune(90, now=january)[None]
        figures["prune_of_january"] = {
            "rows": removed,
            "ms": round((time.perf_counter() - started) * 1000, 1),
        }
        adapter.close()
    print(f"{options.rows:,} rows inserted at {figures['rows_per_s']:,} rows/s")
    for name, milliseconds in figures["ms"].items():
        print(f"{name:<32}{milliseconds:>8.1f} ms")
    for rows, milliseconds in itertools.chain(
        figures["prune_ms"].items(), [figures["prune_of_january"].values()]
    ):
        print(f"{f'prune of a month of {rows:,} rows':<32}{milliseconds:>8.1f} ms")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
