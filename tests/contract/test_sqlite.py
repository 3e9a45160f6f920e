"""SQLite keeps the contract, and what is its own: one file, several processes, older tables."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from logbun_logging import AdapterUnavailableError
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.adapters._sql import table
from logbun_logging.adapters.sqlite import connections as sqlite_connections
from logbun_logging.errors import BusyError
from logbun_logging.testing import AdapterContract, samples
from logbun_logging.testing.contract import newest_first, read
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


def opened(path, **options):
    adapter = SQLiteAdapter(path, **options)
    adapter.init()
    return adapter


def rows(path):
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT action FROM audit_logs ORDER BY id").fetchall()


def move(path, target):
    """Move a database away, with its journal if it has one."""
    for end in ("", "-wal", "-shm"):
        source = path.with_name(path.name + end)
        if source.exists():
            source.rename(target.with_name(target.name + end))


def moved(path):
    move(path, path.with_name("moved.db"))


def moved_without_its_journal(path):
    path.rename(path.with_name("moved.db"))


def removed(path):
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def removed_with_its_folder(path):
    shutil.rmtree(path.parent)


def replaced_by_a_backup(path):
    backup = path.with_name("backup.db")
    with closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM INTO ?", [str(backup)])
    backup.replace(path)  # and its journal stays where it is


GONE = (
    moved,
    moved_without_its_journal,
    removed,
    removed_with_its_folder,
    replaced_by_a_backup,
)


@pytest.mark.parametrize("happens", GONE, ids=lambda case: case.__name__)
def test_what_is_inserted_goes_to_the_file_that_the_path_names(tmp_path, happens):
    path = tmp_path / "folder" / "audit.db"
    adapter = opened(path)
    adapter.bulk_insert(None, [samples.encode("before")])
    happens(path)
    event = samples.encode("after")
    with pytest.raises(AdapterUnavailableError, match="was moved, removed or replaced"):
        adapter.bulk_insert(None, [event])
    adapter.bulk_insert(None, [event])
    assert read(adapter)[0] == event
    adapter.close()
    before = [("before",)] if happens is replaced_by_a_backup else []
    assert rows(path) == [*before, ("after",)]
    if happens in {moved, moved_without_its_journal}:
        assert rows(path.with_name("moved.db")) == [("before",)]


def test_a_file_that_is_moved_within_a_transaction_gets_no_acknowledgement(tmp_path, monkeypatch):
    adapter = opened(tmp_path / "audit.db")
    statement = table.insert_statement

    def meanwhile(rows):
        moved(adapter.path)
        return statement(rows)

    event = samples.encode("a")
    with monkeypatch.context() as patch:
        patch.setattr(table, "insert_statement", meanwhile)
        with pytest.raises(AdapterUnavailableError, match="was moved, removed or replaced"):
            adapter.bulk_insert(None, [event])
    adapter.bulk_insert(None, [event])
    adapter.close()
    assert rows(adapter.path) == rows(tmp_path / "moved.db") == [("a",)]


def test_readers_read_the_file_that_the_path_names_and_make_none(tmp_path):
    adapter = opened(tmp_path / "audit.db")
    adapter.bulk_insert(None, [samples.encode("before")])
    assert len(read(adapter)) == 1
    moved(adapter.path)
    with pytest.raises(AdapterUnavailableError, match="No such file"):
        read(adapter)
    assert not adapter.path.exists()
    event = samples.encode("of another")
    another = opened(adapter.path)
    another.bulk_insert(None, [event])
    assert read(adapter) == [event]
    adapter.close()
    another.close()


def drop_the_table(database, _path):
    database.execute("DROP TABLE audit_logs")


def drop_a_column(database, _path):
    database.execute("ALTER TABLE audit_logs DROP COLUMN content_hash")


def cut_the_file_off(database, path):
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(path, 0)


@pytest.mark.parametrize(
    "damage", [drop_the_table, drop_a_column, cut_the_file_off], ids=lambda case: case.__name__
)
@pytest.mark.parametrize("call", ["insert", "query"])
def test_a_damaged_table_is_told_of_once_and_made_again(tmp_path, damage, call):
    adapter = opened(tmp_path / "audit.db")
    adapter.bulk_insert(None, [samples.encode("before")])
    assert len(read(adapter)) == 1
    with closing(sqlite3.connect(adapter.path, isolation_level=None)) as database:
        damage(database, adapter.path)
    event = samples.encode("after")
    with pytest.raises(AdapterUnavailableError, match="opened anew, or made if missing"):
        adapter.bulk_insert(None, [event]) if call == "insert" else read(adapter)
    adapter.bulk_insert(None, [event])
    assert read(adapter)[0] == event
    adapter.close()
    assert rows(adapter.path)[-1] == ("after",)


def test_a_file_that_is_no_database_stays_unavailable(tmp_path):
    adapter = opened(tmp_path / "audit.db")
    adapter.close()
    adapter.path.write_bytes(b"no database" * 1000)
    with pytest.raises(AdapterUnavailableError, match="not a database"):
        adapter.init()
    assert adapter.path.read_bytes() == b"no database" * 1000


def test_a_file_that_others_write_to_is_busy_and_not_down(tmp_path):
    adapter = opened(tmp_path / "audit.db", busy_timeout=0.01)
    with Holder(adapter.path), pytest.raises(BusyError, match="locked"):
        adapter.bulk_insert(None, [samples.encode("a")])
    adapter.close()


def cache_of(connection):
    return -connection.raw.execute("PRAGMA cache_size").fetchone()[0]


def test_page_caches_have_a_bound_however_many_readers_and_files(tmp_path):
    adapter = opened(tmp_path / "audit.db")
    adapter.bulk_insert(None, [samples.encode("a")])
    all_read = threading.Barrier(12)

    def page(_):
        with adapter._connections.reading() as connection:
            all_read.wait(60)
            return -connection.execute("PRAGMA cache_size").fetchone()[0]

    with ThreadPoolExecutor(12) as pool:
        caches = sorted(pool.map(page, range(12)))
    assert caches[0] == 32 * 1024 // 12
    assert caches[-4:] == [8 * 1024] * 4
    assert len(adapter._connections._idle) == 4
    others = [opened(tmp_path / f"{number}.db") for number in range(3)]
    writers = [each._connections._writer for each in (adapter, *others)]
    assert sum(map(cache_of, writers)) <= 64 * 1024
    for other in others:
        other.close()
    adapter.bulk_insert(None, [samples.encode("b")])
    assert cache_of(writers[0]) > 64 * 1024 // 4
    adapter.close()


def test_the_journal_is_cut_again_after_a_long_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_connections, "_JOURNAL_SIZE_LIMIT", 2**19)
    adapter = opened(tmp_path / "audit.db")
    journal = tmp_path / "audit.db-wal"
    with adapter._connections.reading() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM audit_logs").fetchall()
        adapter.bulk_insert(None, [samples.encode("a") for _ in range(3000)])
        assert journal.stat().st_size > 2**20
        reader.execute("ROLLBACK")
        reader.execute("PRAGMA wal_checkpoint(PASSIVE)")
    adapter.bulk_insert(None, [samples.encode("b")])
    assert journal.stat().st_size <= 2**19
    adapter.close()


def test_what_was_pruned_is_not_in_the_file_any_more(tmp_path):
    adapter = opened(tmp_path / "audit.db")
    events = [
        samples.encode("a", tenant_id="leaver" if number % 2 else "stays", entity_id=f"id-{number}")
        for number in range(1000)
    ]
    adapter.bulk_insert(None, events)
    after = datetime.now(UTC) + timedelta(days=3)
    assert adapter.prune(None, tenants={"leaver": 1}, now=after) == {"leaver": 500}
    assert len(read(adapter)) == 500
    adapter.close()
    left = adapter.path.read_bytes()
    assert not any(event.id.encode() in left for event in events[1::2])


IMPORTING = """
import sys
from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.testing import samples

adapter = SQLiteAdapter(sys.argv[1])
adapter.init()
adapter.bulk_insert(None, [samples.encode("a")])
adapter.prune(1)
adapter.close()
print("sqlite_utils" in sys.modules, "pandas" in sys.modules)
"""


def test_what_reads_older_tables_is_imported_only_where_there_is_one(tmp_path):
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas" / "__init__.py").write_text("class Timestamp: pass\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-c", IMPORTING, str(tmp_path / "audit.db")]
    for imported in ("False False", "False False", "True True"):
        if imported == "True True":
            with closing(sqlite3.connect(tmp_path / "audit.db")) as database:
                database.execute(f"DROP INDEX {next(iter(table.INDEXES))}")
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == imported


def deep_in_the_stack(call, frames=100):
    """Return what *call* returns with *frames* more of the stack in use."""
    return deep_in_the_stack(call, frames - 1) if frames else call()


UNREADABLE_ROWS = {
    "no JSON": b"{no JSON",
    "no object": b"[1, 2]",
    "no text": b'{"a": "\xff"}',
    "nested": b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("name", UNREADABLE_ROWS)
def test_a_row_that_cannot_be_read_back_fails_no_page(tmp_path, name):
    adapter = opened(tmp_path / "audit.db")
    events = [samples.encode("a", metadata={"a": 1}) for _ in range(3)]
    adapter.bulk_insert(None, events)
    with closing(sqlite3.connect(adapter.path)) as database, database:
        statement = "UPDATE audit_logs SET metadata = CAST(? AS TEXT) WHERE id = ?"
        database.execute(statement, [UNREADABLE_ROWS[name], events[1].id])
    found = deep_in_the_stack(lambda: read(adapter))
    assert [event.id for event in found] == [event.id for event in newest_first(events)]
    assert found[0].metadata == found[2].metadata == {"a": 1}
    if name == "no text":
        assert found[1].metadata == {"a": "\ufffd"}
    elif name != "nested" or sys.version_info < (3, 12):  # where the stack is Python code's as well
        assert [*found[1].metadata] == ["[UNREADABLE]"]
    adapter.close()


def test_the_file_says_its_version_and_the_table_what_its_columns_hold(tmp_path):
    adapter = opened(tmp_path / "audit.db")
    adapter.close()
    with closing(sqlite3.connect(adapter.path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        ((made,),) = database.execute("SELECT sql FROM sqlite_master WHERE name = 'audit_logs'")
        for column in table.COLUMNS:
            assert re.search(rf"^    {column} TEXT.*  -- \w", made, re.MULTILINE), made
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(AdapterUnavailableError, match=r"newer version .*user_version 2"):
        adapter.init()


def test_a_version_of_the_application_s_own_is_left_alone(tmp_path):
    path = tmp_path / "app.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE users (id)")
        database.execute("PRAGMA user_version = 7")
    for _ in range(2):
        opened(path).close()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (7,)
