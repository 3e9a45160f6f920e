"""A thousand tenants share fifty connections to SQLite files of their own, whatever happens."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from logbun_logging.adapters import SQLiteAdapter
from tests.many_tenants import Tenants

TENANTS = 1_000


@pytest.fixture
def tenants(tmp_path):
    def path(tenant):
        return tmp_path / "databases" / f"{tenant}.db"

    def actions(tenant):
        with closing(sqlite3.connect(path(tenant))) as database:
            return sorted(database.execute("SELECT tenant_id, action FROM audit_logs"))

    return Tenants(
        [f"t{number:04}" for number in range(TENANTS)],
        tmp_path / "data",
        make_adapter=lambda watched, tenant: watched(path(tenant)),
        adapter_class=SQLiteAdapter,
        actions=actions,
    )


def test_what_several_threads_log_for_a_thousand_tenants_is_in_their_databases(tenants):
    tenants.live(rounds=8)


def test_a_kill_an_outage_redelivery_and_pruning_bring_no_tenant_to_another(tenants):
    tenants.outlive()
