"""Many tenants with little each share dead letters, in an outage, in a flood and at the end."""

from __future__ import annotations

import logging
import threading

import pytest

from logbun_logging import AdapterUnavailableError, AuditLogger
from logbun_logging._engine.packing import packed
from logbun_logging._engine.tenant_queue import TenantQueue
from logbun_logging.event import Entry
from tests.fakes import MemoryAdapter, SharedMemoryAdapter, wait_until

QUICK = {"max_retries": 1, "base_delay": 0.01, "scan_interval": 60.0, "first_scan": 60.0}


def part(tenant, size):
    return TenantQueue(tenant), [Entry(tenant, b"x" * size)]


def test_small_parts_share_a_file_until_it_is_full_and_large_ones_have_their_own():
    small = [part(f"t{number}", 100_000) for number in range(15)]
    large = part("large", 300_000)
    files = [*packed([*small[:5], large, *small[5:]])]
    assert files[0] == [large]
    assert [len(file) for file in files[1:]] == [11, 4]
    assert [found for file in files[1:] for found in file] == small
    assert [*packed([])] == []


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_an_outage_fills_a_few_files_however_many_tenants_there_are(make_trail, make_logger, mode):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter, mode=mode, retry=QUICK, dlq={"max_files": 50})
    audit = AuditLogger(make_logger(trail.handler), level=logging.INFO)
    for number in range(3000):
        audit.fire("a", tenant_id=f"t{number % 1000}", entity_id=str(number))
    assert trail.flush(30)
    stats = trail.stats()
    assert (stats["dlq"]["pending_events"], stats["lost"], stats["wal"]["deferred"]) == (3000, 0, 0)
    assert any(file.envelope.mixed for file in trail.dlq.list())
    adapter.down = False
    assert wait_until(lambda: trail.run_maintenance() and len(adapter.events) == 3000, 30)
    assert wait_until(trail.dlq.is_empty)
    of_one = [int(e.entity_id) for e in adapter.events.values() if e.tenant_id == "t7"]
    assert of_one == [7, 1007, 2007]


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_databases_that_are_all_down_fill_a_few_files(make_trail, make_logger, mode):
    adapters = {}
    down = threading.Event()
    down.set()

    def resolve(tenant):
        if down.is_set():
            raise AdapterUnavailableError("the control plane is down")
        return adapters.setdefault(tenant, MemoryAdapter())

    trail = make_trail(
        adapter=None,
        mode=mode,
        tenancy={"mode": "database_per_tenant", "resolve_connection": resolve},
        batching={"max_size": 10, "flush_interval": 0.5},
        retry=QUICK,
        dlq={"max_files": 60},
    )
    audit = AuditLogger(make_logger(trail.handler), level=logging.INFO)
    for number in range(3000):
        audit.fire("a", tenant_id=f"t{number % 300}", entity_id=str(number))

    def outcome():
        stats = trail.stats()
        return (stats["dlq"]["pending_events"], stats["lost"], stats["wal"]["deferred"])

    assert wait_until(lambda: outcome() == (3000, 0, 0), 60), outcome()
    assert trail.stats()["dlq"]["pending"] < 60
    assert any(file.envelope.mixed for file in trail.dlq.list())
    down.clear()

    def stored():
        return sum(len(adapter.events) for adapter in adapters.values())

    assert wait_until(lambda: trail.run_maintenance() and stored() == 3000, 60)
    assert wait_until(trail.dlq.is_empty)
    stats = trail.stats()
    assert (stats["inserted"], stats["redelivered"], stats["queued"]) == (3000, 3000, 0)
    for name, adapter in adapters.items():
        numbers = [int(event.entity_id) for event in adapter.events.values()]
        assert numbers == [*range(int(name[1:]), 3000, 300)]


def test_what_is_left_at_the_end_fills_a_few_files(make_trail, make_logger):
    adapter = MemoryAdapter()  # takes one tenant at a time
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, dlq={"max_files": 20})
    audit = AuditLogger(make_logger(trail.handler), level=logging.INFO)
    for number in range(300):
        audit.fire("a", tenant_id=f"t{number}")
    assert not trail.shutdown(0.2)
    stats = trail.stats()
    assert (stats["dlq"]["pending_events"], stats["lost"]) == (300, 0)
    assert stats["dlq"]["pending"] < 20
    adapter.gate.set()


def test_one_tenant_s_outage_still_has_a_file_of_its_own(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter, retry=QUICK)
    AuditLogger(make_logger(trail.handler), level=logging.INFO).fire("a", tenant_id="t")
    assert trail.flush(30)
    (file,) = trail.dlq.list()
    assert (file.envelope.tenant_id, file.envelope.mixed) == ("t", False)


def test_what_is_refused_for_its_missing_tenant_says_so(make_trail, make_logger):
    trail = make_trail(adapter=SharedMemoryAdapter(), retry=QUICK, require_tenant_id=True)
    AuditLogger(make_logger(trail.handler), level=logging.INFO).fire("a")
    assert trail.flush(30)
    (file,) = trail.dlq.list()
    assert file.envelope.tenant_required
