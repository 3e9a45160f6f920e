"""A namespace of a libSQL server for each tenant: nothing mixes, whatever happens."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from logbun_logging import NotReadyError, PruneError
from logbun_logging.adapters import TursoAdapter
from logbun_logging.testing import samples
from logbun_logging.testing.contract import logger_of, read
from tests.contract import sqld
from tests.contract.test_turso_faults import QUICK
from tests.fakes import wait_until

pytestmark = sqld.needs_driver

TENANTS = 6


@pytest.fixture(scope="module")
def module_server(start_sqld):
    server = start_sqld(namespaces=True)
    for tenant in range(TENANTS):
        server.create(tenant)
    return server


@pytest.fixture
def server(module_server):
    module_server.empty(*range(TENANTS))
    return module_server


@pytest.fixture
def connections():
    """Return how many databases may be open: fewer than there are tenants."""
    return 3


@pytest.fixture
def trail(server, connections, make_trail):
    """Return a trail whose tenants ``0``, ``1``, … have the namespaces of their numbers."""

    async def resolve(tenant_id):
        url = server.url(tenant=int(tenant_id))
        return {"type": "turso", "url": url, "timeout": 5}

    return make_trail(
        adapter=None,
        mode="durable",
        tenancy={"mode": "database_per_tenant", "resolve_connection": resolve},
        pool={"max_active_connections": connections},
        retry=QUICK,
        retention={"days": 90, "tenants": {"1": 36_500}},
    )


def log(trail, actions, tenants=TENANTS):
    logger = logger_of(trail)
    for action in actions:
        for tenant in range(tenants):
            logger.info(action, extra={"tenant_id": str(tenant)})


def stored(server, tenant):
    """Return tenant and action of each row in a namespace, asked for behind the trail's back."""
    adapter = TursoAdapter(server.url(tenant=tenant))
    try:
        return sorted((event.tenant_id, event.action) for event in read(adapter))
    finally:
        adapter.close()


def test_every_tenant_s_events_are_in_the_tenant_s_namespace(trail, server):
    actions = [f"a{number:02}" for number in range(20)]
    log(trail, actions)
    assert trail.flush(60)
    for tenant in range(TENANTS):
        assert stored(server, tenant) == [(str(tenant), action) for action in actions]
        assert len(list(trail.iter(tenant_id=str(tenant)))) == 20


def test_after_an_outage_every_event_finds_its_own_namespace(trail, server):
    log(trail, ["before"])
    assert trail.flush(60)
    server.stop()
    log(trail, ["during"])
    assert trail.flush(60)
    assert trail.stats()["dlq"]["pending_events"] == TENANTS
    server.start()
    log(trail, ["after"])

    def all_there():
        trail.run_maintenance()
        return all(len(stored(server, tenant)) == 3 for tenant in range(TENANTS))

    assert wait_until(all_there, 60)
    for tenant in range(TENANTS):
        expected = [(str(tenant), action) for action in ("after", "before", "during")]
        assert stored(server, tenant) == expected


def test_a_tenant_without_a_namespace_waits_alone(trail, server):
    log(trail, ["first"], TENANTS + 1)
    assert trail.flush(60)
    for tenant in range(TENANTS):
        assert stored(server, tenant) == [(str(tenant), "first")]
    with pytest.raises(NotReadyError):
        trail.query(tenant_id=str(TENANTS))
    assert trail.stats()["dlq"]["pending_events"] == 1


def test_pruning_reaches_every_namespace_with_the_days_of_its_tenant(trail, server):
    log(trail, ["new"])
    assert trail.flush(60)
    old = datetime(2020, 1, 1, tzinfo=UTC)
    for tenant in range(TENANTS):
        adapter = TursoAdapter(server.url(tenant=tenant))
        event = samples.encode("old", tenant_id=str(tenant))
        event = msgspec.structs.replace(event, created_at=f"{old:%Y-%m-%dT%H:%M:%S}.000000Z")
        adapter.bulk_insert(str(tenant), [event])
        adapter.close()
    expected = {str(tenant): 1 for tenant in range(TENANTS)} | {"1": 0}
    assert trail.prune(dry_run=True) == expected
    assert trail.prune() == expected
    for tenant in range(TENANTS):
        kept = ["new", "old"] if tenant == 1 else ["new"]
        assert stored(server, tenant) == [(str(tenant), action) for action in kept]


def test_pruning_names_the_namespaces_that_it_could_not_reach(trail, server):
    log(trail, ["new"])
    assert trail.flush(60)
    server.delete(0)
    try:
        with pytest.raises(PruneError) as caught:
            trail.prune()
    finally:
        server.create(0)
    assert list(caught.value.failures) == ["0"]
    assert set(caught.value.report) == {str(tenant) for tenant in range(1, TENANTS)}


all_stay_open = pytest.mark.parametrize("connections", [TENANTS])


@all_stay_open
def test_a_namespace_that_is_deleted_and_made_again_gets_what_has_waited_for_it(trail, server):
    log(trail, ["before"])
    assert trail.flush(60)
    server.delete(0)
    try:
        log(trail, ["meanwhile"])
        assert trail.flush(60)
        assert trail.stats()["dlq"]["pending_events"] == 1
    finally:
        server.create(0)

    def delivered():
        trail.run_maintenance()
        return not trail.stats()["dlq"]["pending_events"]

    assert wait_until(delivered, 60)
    log(trail, ["after"])
    assert trail.flush(60)
    assert stored(server, 0) == [("0", "after"), ("0", "meanwhile")]
    for tenant in range(1, TENANTS):
        expected = [(str(tenant), action) for action in ("after", "before", "meanwhile")]
        assert stored(server, tenant) == expected


@all_stay_open
def test_a_namespace_made_again_is_queried_and_pruned_though_nothing_was_logged_since(
    trail, server
):
    log(trail, ["before"])
    assert trail.flush(60)
    for tenant in range(2):
        server.delete(tenant)
        server.create(tenant)
    assert list(trail.iter(tenant_id="0")) == []
    assert trail.prune() == {str(tenant): 0 for tenant in range(TENANTS)}
