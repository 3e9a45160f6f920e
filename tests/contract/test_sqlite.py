"""SQLite keeps the contract, and what is its own: one file, several processes, older tables."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from logbun_logging import AdapterUnavailableError
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.testing import AdapterContract, samples
from logbun_logging.testing.contract import read
from tests.contract.older_tables import INSERT, OLDER_TABLES, old_events, old_row


class TestSQLiteAdapter(AdapterContract):
    @pytest.fixture
    def make_adapter(self, tmp_path):
        return lambda: SQLiteAdapter(tmp_path / "audit.db")

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, tmp_path):
        def make():
            old = old_events()
            with closing(sqlite3.connect(tmp_path / "audit.db")) as database, database:
                database.execute(request.param)
                database.executemany(INSERT, map(old_row, old))
            return old

        return make


INSERTING = """
import sys
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.testing import samples

path, tenant = sys.argv[1:]
adapter = SQLiteAdapter(path)
adapter.init()
for batch in range(20):
    events = [samples.encode("from.process", tenant_id=tenant) for _ in range(10)]
    adapter.bulk_insert(tenant, events)
    adapter.bulk_insert(tenant, events)
adapter.close()
"""

HOLDING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("holding", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


class Holder:
    """Another process that keeps the file's write lock until it is told to let go."""

    def __init__(self, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDING, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "holding\n"

    def let_go(self):
        self.process.communicate("now\n", timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def test_several_processes_fill_one_file(tmp_path):
    path = tmp_path / "audit.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", INSERTING, str(path), f"t{number}"])
        for number in range(4)
    ]
    assert [process.wait(120) for process in processes] == [0] * 4
    adapter = SQLiteAdapter(path)
    adapter.init()
    found = Counter(event.tenant_id for event in read(adapter))
    adapter.close()
    assert found == {f"t{number}": 200 for number in range(4)}


def test_a_file_that_another_process_holds_is_unavailable_until_it_lets_go(tmp_path):
    adapter = SQLiteAdapter(tmp_path / "audit.db", busy_timeout=0.05)
    adapter.init()
    before, event = samples.encode("before"), samples.encode("event")
    adapter.bulk_insert(None, [before])
    with Holder(adapter.path) as holder:
        with pytest.raises(AdapterUnavailableError, match="locked"):
            adapter.bulk_insert(None, [event])
        assert read(adapter) == [before]  # readers do not wait for writers
        holder.let_go()
    adapter.bulk_insert(None, [event])
    assert read(adapter) == [event, before]
    adapter.close()


def test_opening_waits_for_a_process_that_holds_a_file_without_a_wal_journal(tmp_path):
    path = tmp_path / "audit.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
    with pytest.raises(AdapterUnavailableError, match="locked"), Holder(path):
        SQLiteAdapter(path, busy_timeout=0.05).init()
    adapter = SQLiteAdapter(path, busy_timeout=60)
    with Holder(path) as holder, ThreadPoolExecutor(1) as pool:
        opening = pool.submit(adapter.init)
        with pytest.raises(TimeoutError):
            opening.result(0.2)
        holder.let_go()
        opening.result(60)
    adapter.close()
