"""TursoAdapter keeps the contract with a real libSQL server, and for a file."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing, contextmanager, suppress

import pytest

from logbun_logging import AdapterUnavailableError
from logbun_logging.adapters import TursoAdapter
from logbun_logging.testing import AdapterContract, ServerContract, samples
from logbun_logging.testing.contract import read
from tests.contract import sqld
from tests.contract.older_tables import INSERT, OLDER_TABLES, old_events, old_row

pytestmark = sqld.needs_driver

#: Well below what the contract waits for an answer.
TIMEOUT = 3.0


@pytest.fixture(scope="module")
def guarded_server(start_sqld):
    return start_sqld(key=sqld.new_key())


@pytest.fixture(scope="module")
def namespaces_server(start_sqld):
    server = start_sqld(namespaces=True)
    server.create(0)
    return server


class TestOverHTTP(ServerContract):
    """The server takes no call without a token."""

    @pytest.fixture
    def server(self, guarded_server):
        guarded_server.empty()
        return guarded_server

    def adapter_of(self, url, **options):
        return TursoAdapter(url, timeout=TIMEOUT, **options)

    @pytest.fixture
    def make_adapter(self, server):
        return lambda: self.adapter_of(server.url(), auth_token=server.token())

    @pytest.fixture
    def unreachable_adapter(self):
        return self.adapter_of("http://127.0.0.1:1")

    @pytest.fixture(params=["another's", "expired", "nonsense", "none", "read-only"])
    def denied_adapter(self, request, guarded_server):
        token = {
            "another's": sqld.jwt.encode({"a": "rw"}, sqld.new_key(), algorithm="EdDSA"),
            "expired": guarded_server.token(exp=1),
            "nonsense": "nonsense",
            "none": None,
            "read-only": guarded_server.token(a="ro"),
        }[request.param]
        return self.adapter_of(guarded_server.url(), auth_token=token)

    @pytest.fixture
    def revoked(self, server):
        @contextmanager
        def revoke():
            old = server.key
            server.stop()
            server.key = sqld.new_key()
            server.start()
            yield
            server.stop()
            server.key = old
            server.start()

        return revoke()

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, server):
        def make():
            old = old_events()
            server.run(request.param, *((INSERT, *old_row(event)) for event in old))
            return old

        return make


class TestNamespace(TestOverHTTP):
    """One tenant's namespace of many."""

    @pytest.fixture
    def server(self, namespaces_server):
        namespaces_server.empty(0)
        return namespaces_server

    @pytest.fixture
    def make_adapter(self, server):
        return lambda: self.adapter_of(server.url(tenant=0))

    @pytest.fixture
    def older_table(self):
        pytest.skip("migration is tested without namespaces")

    @pytest.fixture
    def revoked(self):
        pytest.skip("tokens are tested without namespaces")


class TestFile(AdapterContract):
    @pytest.fixture
    def make_adapter(self, tmp_path):
        return lambda: TursoAdapter(f"file:{tmp_path}/audit.db")

    @pytest.fixture(params=OLDER_TABLES.values(), ids=OLDER_TABLES)
    def older_table(self, request, tmp_path):
        def make():
            old = old_events()
            with closing(sqlite3.connect(tmp_path / "audit.db")) as database, database:
                database.execute(request.param)
                database.executemany(INSERT, map(old_row, old))
            return old

        return make


def file_is_moved(path, _database):
    for end in ("", "-wal", "-shm"):
        if path.with_name(path.name + end).exists():
            path.with_name(path.name + end).rename(path.with_name("moved" + end))


def table_is_dropped(_path, database):
    database.execute("DROP TABLE audit_logs")


def column_is_dropped(_path, database):
    database.execute("ALTER TABLE audit_logs DROP COLUMN content_hash")


@pytest.mark.parametrize("happens", [file_is_moved, table_is_dropped, column_is_dropped])
def test_a_file_without_its_name_table_or_column_takes_events_without_a_restart(tmp_path, happens):
    path = tmp_path / "audit.db"
    adapter = TursoAdapter(f"file:{path}")
    adapter.init()
    adapter.bulk_insert(None, [samples.encode("before")])
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        happens(path, database)
    event = samples.encode("after")
    with suppress(AdapterUnavailableError):  # at most once
        adapter.bulk_insert(None, [event])
    adapter.bulk_insert(None, [event])
    assert read(adapter)[0] == event
    adapter.close()
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT count(*) FROM audit_logs WHERE action = 'after'")
        assert found.fetchone() == (1,)


def test_a_file_is_private_to_its_user(tmp_path):
    adapter = TursoAdapter(f"file:{tmp_path}/audit.db")
    adapter.init()
    adapter.bulk_insert(None, [samples.encode("a")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    adapter.close()
