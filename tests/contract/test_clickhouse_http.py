"""ClickHouse over HTTP: the real client and the real engine; see ``clickhouse_http``."""

from __future__ import annotations

import importlib.util

import pytest

from logbun_logging.adapters import ClickHouseAdapter
from logbun_logging.testing import ServerContract
from tests.contract.clickhouse_http import PASSWORD, USER, ClickHouseServer
from tests.contract.postgres import free_port

if importlib.util.find_spec("chdb") is None:
    pytest.skip("chdb is missing: pip install chdb", allow_module_level=True)


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory):
    server = ClickHouseServer(tmp_path_factory.mktemp("clickhouse"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(clickhouse):
    clickhouse.run("DROP TABLE IF EXISTS audit_logs SYNC")
    yield clickhouse
    clickhouse.let_in(PASSWORD)


@pytest.fixture
def make_adapter(server):
    def make(**options):
        options = {"password": PASSWORD, "timeout": 3, **options}
        return ClickHouseAdapter(host="127.0.0.1", port=server.port, username=USER, **options)

    return make


class TestClickHouseOverHTTP(ServerContract):
    prunes_rows = False

    @pytest.fixture
    def server(self, server):
        return server

    @pytest.fixture
    def make_adapter(self, make_adapter):
        return make_adapter

    @pytest.fixture
    def unreachable_adapter(self):
        return ClickHouseAdapter(host="127.0.0.1", port=free_port(), timeout=3)

    @pytest.fixture
    def denied_adapter(self, make_adapter):
        return make_adapter(password="wrong")
