"""Recovery of a large WAL: ``python -m tests.faults.big_wal --records 1000000``.

A dead process's folder with that many records is written, and then a fresh process recovers it:
once into a database that takes everything at once, to see what reading costs, and once into SQLite.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from logbun_logging import AuditTrail
from logbun_logging._storage.wal import WalWriter
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.event import AuditEvent, Entry, encode_event, new_event_id, utc_now
from logbun_logging.options import WalOptions
from tests.faults.memory import peak_memory, reset_peak_memory
from tests.faults.rig import ROOT, print_table


class Nowhere:
    """Takes everything, and counts it."""

    def __init__(self):
        self.count = 0

    def init(self):
        return

    def bulk_insert(self, tenant_id, events):
        self.count += len(events)
        return True

    def bulk_insert_many(self, batches):
        self.count += sum(len(events) for _, events in batches)
        return True

    def query(self, tenant_id, filters, pagination):
        return []

    def prune(self, days, *, tenants=None, dry_run=False, now=None):
        return {}

    def close(self):
        return


def leave(folder, records, *, tenants=20):
    """Leave the WAL of a process that has died; return its bytes."""
    wal = WalWriter(Path(folder) / "big" / "wal", "never", WalOptions(), lambda *_: None)
    wal.open()
    for number in range(records):
        tenant = f"tenant-{number % tenants}"
        event = AuditEvent(
            new_event_id(),
            utc_now(),
            "course.created",
            "user-42",
            tenant,
            entity_id=str(number),
            new_values={"title": "Advanced Python", "pad": "x" * 100},
            ip_address="203.0.113.9",
        )
        wal.append(Entry(tenant, encode_event(event)))
        if number % 10_000 == 0:
            wal.maintain()
    size = wal.usage()[1]
    wal.close()
    return size


def recover(folder, records, adapter):
    """Recover it here; return seconds and peak memory before and after, in MiB."""
    trail = AuditTrail(namespace="big", data_dir=folder, mode="durable", adapter=adapter)
    reset_peak_memory()
    idle = peak_memory()
    started = time.monotonic()
    assert trail.ready(60)
    assert trail.flush(3600)
    seconds = time.monotonic() - started
    peak = peak_memory()
    assert trail.stats()["recovered"] == records
    assert trail.shutdown(60)
    assert not list((Path(folder) / "big" / "wal").iterdir())
    return seconds, idle, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--recover", choices=["nowhere", "sqlite"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    records = arguments.records
    if arguments.recover:
        path = Path(arguments.folder) / "audit.db"
        adapter = Nowhere() if arguments.recover == "nowhere" else SQLiteAdapter(path)
        print(json.dumps(recover(arguments.folder, records, adapter)))
        return
    table, failed = [], False
    for kind in ("nowhere", "sqlite"):
        with tempfile.TemporaryDirectory() as folder:
            size = leave(folder, records)
            command = [sys.executable, "-m", "tests.faults.big_wal", "--records", str(records)]
            found = subprocess.check_output(
                [*command, "--recover", kind, "--folder", folder], cwd=ROOT
            )
            seconds, idle, peak = json.loads(found)
            if kind == "sqlite":
                with closing(sqlite3.connect(Path(folder) / "audit.db")) as connection:
                    (rows,) = connection.execute("SELECT count(*) FROM audit_logs").fetchone()
                failed |= rows != records
        rate = f"{records / seconds:,.0f}/s"
        sizes = [f"{idle:.0f} MiB", f"{peak:.0f} MiB"]
        figures = [f"{size / 2**20:,.0f} MiB", f"{seconds:.1f} s", rate]
        table.append([kind, f"{records:,}", *figures, *sizes])
    heads = "into, records, WAL, time, rate, memory before, peak"
    print_table(heads.split(", "), table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
