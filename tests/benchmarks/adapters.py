"""How fast adapters insert, beside their bare driver doing the same.

::

    python -m tests.benchmarks.adapters sqlite --json figures.json

Both store the same events into the same table, with the same indexes and the same promise about
power cuts, a batch at a time. Each is given them as it gets them: the adapter encoded, as they
travel (unless it takes objects only), the driver as rows. Rounds alternate, each on a database of
its own; the medians count. Another database is another :class:`Backend` in :data:`BACKENDS`.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from logbun_logging.adapters import (
    ClickHouseAdapter,
    SQLiteAdapter,
    TursoAdapter,
)
from logbun_logging.adapters._sql import table
from logbun_logging.adapters.base import EncodedAdapter
from logbun_logging.adapters.clickhouse import table as clickhouse_sql
from logbun_logging.event import encode_event
from logbun_logging.testing import samples
from tests.contract import clickhouse_http, postgres, sqld

#: Batch size to the number of batches in a round.
SIZES = {100: 50, 1_000: 20, 10_000: 3}


class Backend:
    """One database, made anew for each round.

    Args:
        folder: an empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def adapter(self):
        """Return an adapter of an empty database, not open yet."""
        raise NotImplementedError

    def rows(self, events):
        """Return *events* as the bare driver wants them; this is not measured."""
        return [table.to_row(event) for event in events]

    def open_bare(self):
        """Connect the bare driver to the database in which the adapter has made the table."""
        raise NotImplementedError

    def bare(self, rows):
        """Store one batch by the bare driver, as durably as the adapter does."""
        raise NotImplementedError

    def close_bare(self):
        """Close the bare driver's connection."""

    def end(self):
        """End what runs for it besides."""


class SQLite(Backend):
    def adapter(self):
        return SQLiteAdapter(self.folder / "audit.db")

    def open_bare(self):
        self.connection = sqlite3.connect(self.folder / "audit.db", isolation_level=None)
        self.connection.execute("PRAGMA synchronous = FULL")

    def bare(self, rows):
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(table.insert_statement(1), rows)
        self.connection.execute("COMMIT")

    def close_bare(self):
        self.connection.close()


class LibSQL(Backend):
    """A libSQL server, over HTTP; the bare driver inserts 500 rows a statement, all in a batch."""

    def __init__(self, folder):
        super().__init__(folder)
        self.server = sqld.Sqld(sqld.binary(), folder)

    def end(self):
        self.server.stop()

    def adapter(self):
        return TursoAdapter(self.server.url())

    def rows(self, events):
        parts = [events[start : start + 500] for start in range(0, len(events), 500)]
        return [
            (
                table.insert_statement(len(part)),
                tuple(value for event in part for value in table.to_row(event)),
            )
            for part in parts
        ]

    def open_bare(self):
        import libsql_client

        self.connection = libsql_client.create_client_sync(self.server.url())

    def bare(self, rows):
        self.connection.batch(rows)

    def close_bare(self):
        self.connection.close()


class Chdb(Backend):
    def adapter(self):
        return ClickHouseAdapter(path=self.folder / "chdb")

    def rows(self, events):
        return list(zip(*clickhouse_sql.to_columns(events), strict=True))

    def open_bare(self):
        import clickhouse_connect

        self.client = clickhouse_connect.get_client(
            interface="chdb", path=str(self.folder / "chdb"), database="default"
        )

    def bare(self, rows):
        self.client.insert(
            "audit_logs",
            rows,
            column_names=clickhouse_sql.COLUMNS,
            column_type_names=list(clickhouse_sql.COLUMN_TYPES.values()),
        )

    def close_bare(self):
        self.client.close()


class ClickHouseHTTP(Chdb):
    """The tests' endpoint: what it adds is the same for the adapter and the driver."""

    def __init__(self, folder):
        super().__init__(folder)
        self.server = clickhouse_http.ClickHouseServer(folder)
        self.server.start()
        self.login = {
            "host": "127.0.0.1",
            "port": self.server.port,
            "username": clickhouse_http.USER,
            "password": clickhouse_http.PASSWORD,
        }

    def end(self):
        self.server.stop()

    def adapter(self):
        return ClickHouseAdapter(**self.login)

    def open_bare(self):
        import clickhouse_connect

        self.client = clickhouse_connect.get_client(
            **self.login, compress="lz4", autogenerate_session_id=False
        )


class Postgres(Backend):
    """The documentation's adapter; the bare driver's executemany pipelines its statements."""

    def __init__(self, folder):
        super().__init__(folder)
        self.server = postgres.PostgresServer(postgres.binaries())
        self.server.start()

    def end(self):
        self.server.remove()

    def adapter(self):
        return postgres.load_example().PostgresAdapter(self.server.dsn())

    def open_bare(self):
        import psycopg

        self.connection = psycopg.connect(self.server.dsn())

    def bare(self, rows):
        marks = ", ".join(["%s"] * len(table.COLUMNS))
        statement = f"INSERT INTO audit_logs ({', '.join(table.COLUMNS)}) VALUES ({marks})"
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(f"{statement} ON CONFLICT (id) DO NOTHING", rows)

    def close_bare(self):
        self.connection.close()


BACKENDS: dict[str, type[Backend]] = {
    "sqlite": SQLite,
    "postgres": Postgres,
    "libsql": LibSQL,
    "chdb": Chdb,
    "clickhouse-http": ClickHouseHTTP,
}


def batches(size, count):
    """Return *count* batches of one tenant each, as an application makes them."""
    rng = random.Random(1)
    made = []
    for number in range(count):
        tenant = f"tenant_{number % 10}"
        made.append(
            [
                samples.event_at(
                    samples.BASE + timedelta(milliseconds=number * size + place),
                    rng,
                    action=rng.choice(("course.created", "course.deleted", "user.invited")),
                    tenant_id=tenant,
                    actor_id=f"user_{rng.randrange(200)}",
                    entity_type="course",
                    entity_id=f"course_{rng.randrange(2000)}",
                    new_values={"title": "Advanced Python", "seats": rng.randrange(50)},
                    metadata={"plan": "pro", "text": "x" * 200},
                    ip_address="203.0.113.9",
                    user_agent="Mozilla/5.0 (X11; Linux x86_64)",
                )
                for place in range(size)
            ]
        )
    return made


def adapter_rate(backend, made):
    """Return rows per second through the adapter."""
    adapter = backend.adapter()
    adapter.init()
    encoded = isinstance(adapter, EncodedAdapter)
    prepared = [[*map(encode_event, batch)] if encoded else batch for batch in made]
    try:
        started = time.perf_counter()
        for number, batch in enumerate(prepared):
            tenant = made[number][0].tenant_id
            if encoded:
                stored = adapter.insert_encoded([(tenant, batch)])
            else:
                stored = adapter.bulk_insert(tenant, batch)
            if stored is False:
                raise RuntimeError("the adapter has not stored a batch")
        seconds = time.perf_counter() - started
    finally:
        adapter.close()
    return sum(map(len, made)) / seconds


def bare_rate(backend, made):
    """Return rows per second through the bare driver."""
    adapter = backend.adapter()
    adapter.init()
    adapter.close()
    prepared = [backend.rows(batch) for batch in made]
    backend.open_bare()
    try:
        started = time.perf_counter()
        for rows in prepared:
            backend.bare(rows)
        seconds = time.perf_counter() - started
    finally:
        backend.close_bare()
    return sum(map(len, made)) / seconds


def measure(name, size, count, rounds):
    """Return the median rates of one adapter and its driver at one batch size."""
    made = batches(size, count)
    rates = {adapter_rate: [], bare_rate: []}
    for _ in range(rounds):
        for rate, found in rates.items():
            with tempfile.TemporaryDirectory(prefix=f"logbun-{name}-") as folder:
                backend = BACKENDS[name](Path(folder))
                try:
                    found.append(rate(backend, made))
                finally:
                    backend.end()
    adapter, bare = (statistics.median(found) for found in rates.values())
    return {
        "adapter": name,
        "batch": size,
        "rows_per_s": round(adapter),
        "bare_rows_per_s": round(bare),
        "ratio": round(adapter / bare, 2),
    }


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backends", nargs="+", choices=BACKENDS)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args(arguments)
    print(f"{'adapter':<14}{'batch':>8}{'rows/s':>12}{'bare rows/s':>14}{'ratio':>8}")
    figures = []
    for name in options.backends:
        for size in options.sizes:
            figure = measure(name, size, SIZES.get(size, 10), options.rounds)
            figures.append(figure)
            print(
                f"{name:<14}{size:>8,}{figure['rows_per_s']:>12,}"
                f"{figure['bare_rows_per_s']:>14,}{figure['ratio']:>8.2f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
