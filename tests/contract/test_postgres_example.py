"""The adapter that the documentation writes, on a real PostgreSQL."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest

from logbun_logging.testing import ServerContract, samples
from tests.contract.postgres import PostgresServer, binaries, free_port, load_example

if binaries() is None:
    pytest.skip("PostgreSQL is missing: apt-get install postgresql", allow_module_level=True)

example = load_example()


@pytest.fixture(scope="session")
def postgres():
    server = PostgresServer(binaries())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def empty(postgres):
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS audit_logs")
    return postgres


class TestPostgresAdapter(ServerContract):
    @pytest.fixture
    def server(self, empty):
        return empty

    @pytest.fixture
    def make_adapter(self, empty):
        return lambda: example.PostgresAdapter(empty.dsn(), timeout=2)

    @pytest.fixture
    def unreachable_adapter(self, postgres):
        return example.PostgresAdapter(postgres.dsn(port=free_port()), timeout=2)

    @pytest.fixture
    def denied_adapter(self, postgres):
        return example.PostgresAdapter(postgres.dsn(password="wrong"), timeout=2)

    @pytest.fixture
    def revoked(self, empty):
        @contextmanager
        def revoke():
            with psycopg.connect(empty.dsn(), autocommit=True) as admin:
                admin.execute("ALTER ROLE audit NOLOGIN")
                try:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE usename = 'audit' AND pid <> pg_backend_pid()"
                    )
                    yield
                finally:
                    admin.execute("ALTER ROLE audit LOGIN")

        return revoke()

    @pytest.fixture
    def older_table(self, empty):
        def make():
            old = [
                samples.encode("old", tenant_id="t", metadata={"a": 1}),
                samples.encode("old", actor_id="u"),
            ]
            with psycopg.connect(empty.dsn(), autocommit=True) as connection:
                connection.execute(
                    "CREATE TABLE audit_logs (id uuid PRIMARY KEY, created_at timestamptz NOT NULL,"
                    " action text NOT NULL, tenant_id text, metadata json, actor_id text NOT NULL)"
                )
                for event in old:
                    metadata = event.metadata and '{"a": 1}'
                    connection.execute(
                        "INSERT INTO audit_logs VALUES (%s, %s, %s, %s, %s, %s)",
                        (
                            *(event.id, event.created_at, event.action, event.tenant_id, metadata),
                            event.actor_id,
                        ),
                    )
            return old

        return make
