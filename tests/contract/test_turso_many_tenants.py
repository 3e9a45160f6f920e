"""Hundreds of tenants share fifty connections to namespaces of a real libSQL server.

How many is ``LOGBUN_TEST_NAMESPACES``; 1,000 have been tried.
"""

from __future__ import annotations

import os

import pytest

from logbun_logging.adapters import TursoAdapter
from tests.contract import sqld
from tests.many_tenants import Tenants

pytestmark = sqld.needs_driver

NAMESPACES = int(os.environ.get("LOGBUN_TEST_NAMESPACES", "200"))


@pytest.fixture
def tenants(start_sqld, tmp_path, names_of_localhost):
    server = start_sqld(namespaces=True, options=["--max-active-namespaces", str(NAMESPACES)])
    names = [f"t{number:04}" for number in range(NAMESPACES)]
    for name in names:
        server.create(name)

    def actions(tenant):
        (rows,) = server.run("SELECT tenant_id, action FROM audit_logs", tenant=tenant)
        return sorted(rows)

    yield Tenants(
        names,
        tmp_path / "data",
        make_adapter=lambda watched, tenant: watched(server.url(tenant=tenant)),
        adapter_class=TursoAdapter,
        actions=actions,
    )
    server.stop()


def test_what_several_threads_log_for_hundreds_of_tenants_is_in_their_namespaces(tenants):
    tenants.live(rounds=8)


def test_a_kill_an_outage_redelivery_and_pruning_bring_no_tenant_to_another(tenants):
    tenants.outlive()
