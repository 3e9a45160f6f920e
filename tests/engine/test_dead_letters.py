"""Scans of the dead-letter queue: what is tried, what counts, and what blocks nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import msgspec
import pytest

from logbun_logging import AdapterUnavailableError, RejectedEventsError
from logbun_logging._engine.dead_letters import DeadLetterScanner
from logbun_logging._engine.delivery import Delivery
from logbun_logging._engine.reporting import Reporter
from logbun_logging._process.counters import Counters
from logbun_logging._storage.dlq import DeadLetterQueue
from logbun_logging._storage.wal.codec import encode_line
from logbun_logging._tenancy.breaker import CircuitBreaker
from logbun_logging._tenancy.databases import SingleDatabase
from logbun_logging.event import AuditEvent, encode_event, new_event_id, utc_now, utc_timestamp
from logbun_logging.options import DlqOptions, RetryOptions
from tests.fakes import MemoryAdapter, SharedMemoryAdapter


def payload(action="a", tenant="t"):
    return encode_event(AuditEvent(new_event_id(), utc_now(), action, tenant_id=tenant))


class PoisonOutage(SharedMemoryAdapter):
    """Breaks the connection for a row whose action is *poison*; a larger insert than *most* too."""

    most = 10_000

    def bulk_insert_many(self, batches):
        events = [event for _, part in batches for event in part]
        if len(events) > self.most or any(event.action == "poison" for event in events):
            raise AdapterUnavailableError("connection reset")
        return super().bulk_insert_many(batches)


class TenantDatabases(SingleDatabase):
    """One adapter that counts as a database of its own for each tenant."""

    per_tenant = True
    shared = False

    def __init__(self, adapter):
        super().__init__(adapter)
        self.breakers = {}

    def breaker(self, tenant_id):
        return self.breakers.setdefault(tenant_id, CircuitBreaker())


def make(folder, adapter, *, databases=None, tenant_required=False, **retry):
    """What a process has that scans."""
    counters = Counters()
    happened = []
    queue = DeadLetterQueue(folder, DlqOptions())
    databases = databases or SingleDatabase(adapter)
    delivery = Delivery(databases, counters, 10.0, lambda: None)
    reporter = Reporter("test", lambda name, details: happened.append((name, details)), counters)
    scanner = DeadLetterScanner(
        dlq=queue,
        delivery=delivery,
        retry=RetryOptions(**{"scan_interval": 60.0, "max_scan_attempts": 3, **retry}),
        tenant_required=tenant_required,
        counters=counters,
        reporter=reporter,
        stopping=threading.Event(),
    )

    def scan(**how):
        inserted = scanner.scan(**how)
        assert reporter.drain(20)  # a thread of its own tells what happened
        return inserted

    return SimpleNamespace(
        scan=scan,
        retry=scanner.retry,
        queue=queue,
        delivery=delivery,
        counters=counters,
        happened=happened,
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "dlq"


def let_time_pass(queue, seconds):
    """Make every file as old as it would be then."""
    for file in queue.list("pending"):
        claim = queue.claim(file.name, "pending")
        envelope = claim.envelope()
        was = utc_seconds(envelope.last_failed_at)
        envelope = msgspec.structs.replace(envelope, last_failed_at=utc_timestamp(was - seconds))
        claim.fail(envelope, lambda _: True, dead=False)


def utc_seconds(text):
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def attempts(queue):
    return [(file.state, file.envelope.attempts) for file in queue.list()]


def test_the_scans_of_several_processes_count_as_one(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    workers = [make(folder, adapter) for _ in range(5)]
    queue = workers[0].queue
    queue.put("t", [payload("poison")], "x")
    for worker in workers:
        worker.scan()
    assert attempts(queue) == [("pending", 1)]
    assert len(adapter.batches) == 2, "the one that tried bisects; the others leave it alone"
    let_time_pass(queue, 30)
    workers[1].scan()
    assert attempts(queue) == [("pending", 1)]
    let_time_pass(queue, 30)
    workers[1].scan()
    workers[2].scan()
    assert attempts(queue) == [("pending", 2)]
    let_time_pass(queue, 60)
    workers[3].scan()
    assert attempts(queue) == [("dead", 3)]


def test_a_clock_that_was_set_back_delays_no_file(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    worker = make(folder, adapter)
    worker.queue.put("t", [payload("poison")], "x")
    worker.scan()
    let_time_pass(worker.queue, -1_000_000)
    worker.scan()
    assert attempts(worker.queue) == [("pending", 2)]
    worker.scan()
    assert attempts(worker.queue) == [("pending", 2)], "it has failed just now"


def test_an_error_that_the_database_has_for_everything_is_not_held_against_a_file(folder):
    adapter = MemoryAdapter(RuntimeError)
    adapter.poison = "poison"
    worker = make(folder, adapter)
    worker.queue.put("t", [payload("poison")], "x")
    for _ in range(5):
        worker.scan()
        let_time_pass(worker.queue, 60)
    assert attempts(worker.queue) == [("pending", 0)]
    for number in range(3):
        worker.delivery.attempt([("t", [payload(str(number))])])
        worker.scan()
        let_time_pass(worker.queue, 60)
    assert attempts(worker.queue) == [("pending", 3)] or attempts(worker.queue) == [("dead", 3)]


def test_a_row_that_looks_like_an_outage_keeps_no_other_waiting_and_dies_alone(folder):
    adapter = PoisonOutage()
    worker = make(folder, adapter)
    for _ in range(2):  # two that follow each other: the second takes the first's evidence away
        worker.queue.put("t", [payload("poison" if n == 50 else "a") for n in range(100)], "x")
    for _ in range(3):
        worker.queue.put("other", [payload("b", "other") for _ in range(20)], "x")
    for _ in range(15):
        worker.scan()
        let_time_pass(worker.queue, 60)
        assert not worker.delivery.is_down("t")
    assert len(adapter.events) == 2 * 99 + 60
    found = worker.queue.list()
    assert [(file.state, file.envelope.count) for file in found] == [("dead", 1)] * 2
    assert worker.counters["poisoned"] == 2


def test_an_outage_counts_against_no_file_and_ends_the_scan(folder):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    worker = make(folder, adapter)
    for number in range(10):
        worker.queue.put(f"t{number}", [payload(tenant=f"t{number}")], "x")
    for _ in range(5):
        worker.scan()
    assert attempts(worker.queue) == [("pending", 0)] * 10
    assert worker.counters["insert_failures"] <= 4


def test_a_file_that_is_too_large_for_the_time_out_comes_in_parts(folder):
    adapter = PoisonOutage()
    adapter.most = 30
    worker = make(folder, adapter)
    worker.queue.put("t", [payload(str(n)) for n in range(200)], "x")
    worker.queue.put("t", [payload(f"b{n}") for n in range(10)], "x")
    for _ in range(10):
        worker.scan()
        let_time_pass(worker.queue, 60)
    assert worker.queue.list() == []
    assert len(adapter.events) == 210


def test_what_was_delivered_before_an_outage_leaves_the_file(folder):
    adapter = SharedMemoryAdapter()
    worker = make(folder, adapter)
    name = worker.queue.put("t", [payload(str(n)) for n in range(12_000)], "x")
    real = adapter.bulk_insert_many

    def down_after_the_first(batches):
        done = real(batches)
        adapter.down = True
        return done

    adapter.bulk_insert_many = down_after_the_first
    worker.scan()
    stored = len(adapter.events)
    assert 0 < stored < 12_000
    assert [event.action for event in worker.queue.show(name)] == [
        str(n) for n in range(stored, 12_000)
    ]
    assert attempts(worker.queue) == [("pending", 0)]
    assert worker.counters["redelivered"] == stored


@pytest.mark.parametrize("shared", [True, False])
def test_a_mixed_file_is_delivered_tenant_by_tenant(folder, shared):
    adapter = SharedMemoryAdapter() if shared else MemoryAdapter()
    worker = make(folder, adapter)
    mixed = [payload(str(n), f"t{n % 7}" if n % 7 else None) for n in range(70)]
    name = worker.queue.put(None, mixed, "x", mixed=True)
    assert name.startswith("mixed_")
    assert worker.scan() == 70
    assert worker.queue.list() == []
    assert {tenant for tenant, _ in adapter.batches} == {None, *(f"t{n}" for n in range(1, 7))}
    of_one = [int(e.action) for e in adapter.events.values() if e.tenant_id == "t3"]
    assert of_one == sorted(of_one)


def test_what_a_tenant_s_database_takes_leaves_a_mixed_file_and_the_rest_stays(folder):
    adapter = MemoryAdapter()
    real = adapter.bulk_insert

    def bulk_insert(tenant_id, events):
        if tenant_id == "down":
            raise AdapterUnavailableError("down")
        return real(tenant_id, events)

    adapter.bulk_insert = bulk_insert
    worker = make(folder, adapter, databases=TenantDatabases(adapter))
    tenants = ["up", "down", "poison", "up", "down"]
    rows = [payload("poison" if tenant == "poison" else "a", tenant) for tenant in tenants]
    adapter.poison = "poison"
    name = worker.queue.put(None, rows, "x", mixed=True)
    worker.scan()
    assert len(adapter.events) == 2
    assert [event.tenant_id for event in worker.queue.show(name)] == ["down", "poison", "down"]
    for _ in range(10):
        worker.scan()
        let_time_pass(worker.queue, 60)
    assert [file.state for file in worker.queue.list()] == ["pending"], "an outage gives nobody up"
    adapter.bulk_insert = real
    for breaker in worker.delivery._databases.breakers.values():
        breaker.succeeded()
    worker.scan()
    assert [event.tenant_id for event in worker.queue.show(name)] == ["poison"]


def test_a_mixed_file_that_fails_often_gives_up_no_tenant_whose_database_flaps(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    real = adapter.bulk_insert
    flaps = False

    def bulk_insert(tenant_id, events):
        if flaps and tenant_id == "flaps":
            raise AdapterUnavailableError("down")
        return real(tenant_id, events)

    adapter.bulk_insert = bulk_insert
    worker = make(folder, adapter, databases=TenantDatabases(adapter))
    rows = [payload("poison", "poison"), payload("good", "flaps")]
    name = worker.queue.put(None, rows, "x", mixed=True)
    claim = worker.queue.claim(name, "pending")
    failed = msgspec.structs.replace(claim.envelope(), attempts=2)
    claim.fail(failed, lambda _: True, dead=False)
    let_time_pass(worker.queue, 60)
    for _ in range(4):
        flaps = True
        worker.scan()
        flaps = False
        worker.delivery.attempt([("flaps", [payload("live", "flaps")])])
        let_time_pass(worker.queue, 60)
    assert attempts(worker.queue) == [("pending", 4)]
    worker.scan()
    assert attempts(worker.queue) == [("dead", 5)]
    assert [event.action for event in worker.queue.show(name)] == ["poison"]


def test_a_tenant_s_part_of_a_mixed_file_is_no_larger_than_its_database_takes(folder):
    adapter = MemoryAdapter()
    sizes = []

    def bulk_insert(tenant_id, events):
        sizes.append(len(events))
        if len(events) > 30:
            raise AdapterUnavailableError("connection reset")
        for event in events:
            adapter.events[event.id] = event

    adapter.bulk_insert = bulk_insert
    worker = make(folder, adapter, databases=TenantDatabases(adapter))
    worker.delivery.attempt([("slow", [payload(str(n), "slow") for n in range(50)])])
    rows = [payload(str(n), "slow" if n % 2 else "other") for n in range(50)]
    worker.queue.put(None, rows, "x", mixed=True)
    assert worker.scan() == 50
    assert max(sizes[1:]) == 25
    assert worker.queue.list() == []


def test_an_envelope_that_lies_brings_no_event_into_another_tenant_s_database(folder):
    adapter = MemoryAdapter()
    worker = make(folder, adapter, databases=TenantDatabases(adapter))
    worker.queue.put("victim", [payload("forged", "other"), payload("own", "victim")], "x")
    for _ in range(3):
        worker.scan()
        let_time_pass(worker.queue, 60)
    assert [event.action for event in adapter.events.values()] == ["own"]
    (file,) = worker.queue.list()
    assert (file.state, file.envelope.count) == ("dead", 1)
    assert "'other'" in file.envelope.reason
    assert worker.counters["poisoned"] == 1


def test_what_is_wrong_with_one_file_keeps_no_other_from_being_delivered(folder, tmp_path):
    adapter = MemoryAdapter()
    worker = make(folder, adapter)
    deep = b'{"id":"x","created_at":"x","action":"deep","tenant_id":"t","metadata":{"x":' + (
        b"[" * 2000 + b"]" * 2000 + b"}}"
    )
    names = [worker.queue.put("t", [deep], "x"), worker.queue.put("t", [payload("good")], "x")]
    os.mkfifo(folder / "t_20200101_0.batch")
    (folder / "t_20200101_1.batch").symlink_to(folder / f"{names[1]}.batch")
    with (folder / "t_20200101_2.batch").open("wb") as file:
        file.write(b"x" * 3_000_000)
    (folder / "t_20200101_3.batch").mkdir()
    assert worker.queue.counts()["pending"] == 3
    worker.scan()
    assert [event.action for event in adapter.events.values()] == ["good"]
    irregular = {d["file"] for n, d in worker.happened if n == "redelivery_failed"}
    assert irregular == {f"t_20200101_{n}.batch" for n in (0, 1, 3)}
    assert worker.queue.list() == []
    assert worker.counters["corrupt"] == 2
    corrupt = {details["file"] for name, details in worker.happened if name == "corrupt"}
    assert corrupt == {str(folder / f"{name}.corrupt") for name in (names[0], "t_20200101_2")}


def test_damage_is_reported_once_although_the_file_stays(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    worker = make(folder, adapter)
    name = worker.queue.put("t", [payload("poison")], "x")
    with (folder / f"{name}.batch").open("ab") as file:
        file.write(encode_line(payload("damaged")).replace(b"damaged", b"DAMAGED"))
    worker.scan()
    let_time_pass(worker.queue, 60)
    worker.scan()
    assert [name for name, _ in worker.happened if name == "corrupt"] == ["corrupt"]
    assert worker.counters["corrupt"] == 1
    assert attempts(worker.queue) == [("pending", 2)]


def test_a_file_is_tried_by_name_whenever_somebody_asks(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    worker = make(folder, adapter, max_scan_attempts=2)
    name = worker.queue.put("t", [payload("poison")], "x")
    assert [worker.retry(name) for _ in range(2)] == [0, 0]
    assert attempts(worker.queue) == [("dead", 2)]
    adapter.poison = None
    assert worker.retry(name) == 1
    assert worker.retry(name) == 0


def test_scans_by_hand_try_every_file_and_count_once_an_interval(folder):
    adapter = MemoryAdapter(RejectedEventsError)
    adapter.poison = "poison"
    workers = [make(folder, adapter) for _ in range(5)]
    queue = workers[0].queue
    queue.put("t", [payload("poison")], "x")
    for worker in workers:
        tried = len(adapter.batches)
        worker.scan(by_hand=True)
        assert len(adapter.batches) > tried
    assert attempts(queue) == [("pending", 1)]
    let_time_pass(queue, 60)
    for worker in workers:
        worker.scan(by_hand=True)
    assert attempts(queue) == [("pending", 2)]


def test_a_scan_by_hand_counts_no_error_that_the_database_has_for_everything(folder):
    adapter = MemoryAdapter(RuntimeError)
    adapter.poison = "poison"
    worker = make(folder, adapter)
    name = worker.queue.put("t", [payload("poison")], "x")
    worker.scan(by_hand=True)
    assert attempts(worker.queue) == [("pending", 0)]
    worker.retry(name)
    assert attempts(worker.queue) == [("pending", 1)]


#: Scans a folder, and prints by how many MiB that has raised the peak of its memory.
_SCAN = """
import sys
from pathlib import Path
from tests.fakes import MemoryAdapter
from tests.faults.memory import peak_memory
from tests.engine.test_dead_letters import make
class Nowhere(MemoryAdapter):
    stored = 0
    def bulk_insert(self, tenant_id, events):
        Nowhere.stored += len(events)
        return True
worker = make(Path(sys.argv[1]), Nowhere())
before = peak_memory()
assert worker.scan() == Nowhere.stored
print(Nowhere.stored, peak_memory() - before)
"""


@pytest.mark.parametrize("mixed", [False, True])
def test_a_file_of_250_mib_is_delivered_in_a_fraction_of_that_memory(folder, mixed):
    big = AuditEvent(new_event_id(), utc_now(), "a", tenant_id="t", metadata={"x": "x" * 60_000})
    line = encode_line(encode_event(big))
    rows = 250 * 1024 * 1024 // len(line)
    queue = DeadLetterQueue(folder, DlqOptions())
    name = queue.put(None if mixed else "t", [encode_event(big)], "x", mixed=mixed)
    with (folder / f"{name}.batch").open("ab") as file:
        for _ in range(rows):
            file.write(line)
    done = subprocess.run(
        [sys.executable, "-c", _SCAN, str(folder)], check=True, capture_output=True, text=True
    )
    stored, grown = done.stdout.split()
    assert int(stored) == rows + 1
    assert float(grown) < 100
    assert queue.list() == []
