"""What brings events back: recovery, parked records, DLQ scans; and what must not stop it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from logbun_logging import AuditLogger, BatchingAuditHandler
from logbun_logging.dlq import Claim
from logbun_logging.event import AuditEvent, encode_event, new_event_id, utc_now
from logbun_logging.wal import adopt_abandoned, read_segment
from logbun_logging.wal.codec import encode_line
from tests.fakes import MemoryAdapter, SharedMemoryAdapter, wait_until

QUICK = {"base_delay": 0.01, "scan_interval": 60.0, "first_scan": 60.0}


def payloads(count, start=0):
    return [
        encode_event(AuditEvent(new_event_id(), utc_now(), "a", tenant_id="t", entity_id=str(n)))
        for n in range(start, start + count)
    ]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "test"


@pytest.fixture
def leave_behind(folder):
    """Leave the WAL folder of a process that has died."""

    def leave(*segments, name="20260101T000000-dead"):
        instance = folder / "wal" / name
        instance.mkdir(parents=True)
        for number, found in enumerate(segments, 1):
            data = b"".join(map(encode_line, found))
            (instance / f"seg-{number:06d}.aof").write_bytes(data)
        return instance

    return leave


def entity_ids(adapter):
    return [event.entity_id for event in adapter.events.values()]


def test_recovered_events_come_oldest_first_without_a_new_call(make_trail, leave_behind):
    leave_behind(payloads(300), payloads(300, 300))
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable")
    assert trail.ready()
    assert trail.flush(20)
    assert entity_ids(adapter) == [str(n) for n in range(600)]
    assert trail.stats()["recovered"] == 600
    assert trail.stats()["accepted"] == 0


def test_a_folder_cut_or_damaged_anywhere_is_recovered_but_for_the_damaged_record(leave_behind):
    found = payloads(3)
    lines = [encode_line(payload) for payload in found]
    data = b"".join(lines)
    ends = [len(b"".join(lines[: number + 1])) for number in range(3)]
    rng = random.Random(5)
    variants = [(data[:cut], [end <= cut for end in ends]) for cut in range(len(data) + 1)]
    for _ in range(500):
        at = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= rng.randrange(1, 256)
        start = [0, *ends]
        whole = [not start[n] <= at < ends[n] for n in range(3)]
        variants.append((bytes(flipped), whole))
    instance = leave_behind(found)
    segment = instance / "seg-000001.aof"
    for variant, whole in variants:
        instance.mkdir(exist_ok=True)
        segment.write_bytes(variant)
        (log,) = adopt_abandoned(instance.parent, None)
        back = [entry.payload for entry in read_segment(log.segments[0], lambda *_: None)]
        expected = [payload for payload, good in zip(found, whole, strict=True) if good]
        assert [payload for payload in back if payload in expected] == expected
        assert len(back) <= len(expected) + 1, "the damage may be in the last newline alone"
        log.segments[0].pending.clear()
        assert log.release()


def test_recovered_events_stay_in_the_wal_while_the_database_is_down(
    make_trail, leave_behind, folder
):
    leave_behind(payloads(300))
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter, mode="durable", retry=QUICK)
    assert not trail.ready(0.2)
    assert wait_until(lambda: trail.pipeline.bootstrap_error is not None)
    assert trail.flush(5), "what was accepted here is nothing"
    assert trail.stats()["dlq"]["pending_events"] == 0
    adapter.down = False
    assert wait_until(lambda: len(adapter.events) == 300, 20)
    assert wait_until(trail.pipeline.opened.is_set)


def test_what_is_parked_while_its_segment_is_being_read_is_not_forgotten(
    make_trail, leave_behind, folder
):
    leave_behind(payloads(300), payloads(300, 300))
    (folder / "dlq").write_text("a file where the folder should be")
    adapter = SharedMemoryAdapter()
    adapter.init = lambda: None
    adapter.down = True
    trail = make_trail(adapter=adapter, mode="durable", retry={**QUICK, "max_retries": 0})
    assert trail.ready()
    trail.flush(5)
    assert wait_until(lambda: trail.stats()["wal"]["parked"] > 0, 20)
    assert not trail.flush(0.3), "it keeps to its time, and says that not everything is delivered"
    adapter.down = False
    (folder / "dlq").unlink()
    assert wait_until(lambda: len(adapter.events) == 600, 30)
    assert wait_until(lambda: trail.stats()["wal"]["parked"] == 0)
    assert wait_until(lambda: len(list((folder / "wal").iterdir())) == 1)


def test_a_segment_that_cannot_be_read_hides_no_other_and_is_read_later(
    make_trail, leave_behind, monkeypatch
):
    instance = leave_behind(payloads(5), payloads(5, 5), payloads(5, 10))
    bad, real = instance / "seg-000002.aof", Path.open

    def open_(self, *args, **keywords):
        if self == bad:
            raise OSError(5, "EIO")
        return real(self, *args, **keywords)

    happened = []
    adapter = SharedMemoryAdapter()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_)
        trail = make_trail(
            adapter=adapter, mode="durable", on_event=lambda name, _: happened.append(name)
        )
        assert trail.ready()
        assert trail.flush(20)
        assert len(adapter.events) == 10
        assert "recovery_failed" in happened
    assert trail.run_maintenance()
    assert trail.flush(20)
    assert len(adapter.events) == 15
    assert wait_until(lambda: not instance.exists())


def test_a_recovery_that_is_stopped_halfway_is_taken_up_by_the_next(make_trail, leave_behind):
    leave_behind(payloads(500))
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    options = {"adapter": adapter, "mode": "durable", "limits": {"max_total_queued": 50}}
    first = make_trail(**options)
    assert first.ready()
    assert wait_until(lambda: first.stats()["recovered"] == 50)
    assert not first.shutdown(timeout=0.2)
    adapter.gate.set()
    second = make_trail(**options)
    assert second.ready()
    assert second.flush(20)
    assert sorted(map(int, entity_ids(adapter))) == list(range(500))


def test_a_dlq_file_that_cannot_be_read_keeps_no_other_from_being_delivered(
    make_trail, monkeypatch
):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter, retry=QUICK)
    names = [trail.dlq.put("t", payloads(1, number), "x") for number in range(3)]
    real = Claim.entries

    def entries(self):
        if self.name == names[0]:
            raise OSError(5, "EIO")
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Claim, "entries", entries)
        assert trail.dlq.retry() == 2
    assert [(file.name, file.state) for file in trail.dlq.list()] == [(names[0], "pending")]
    assert trail.dlq.retry(names[0]) == 1
    assert entity_ids(adapter) == ["1", "2", "0"]


def test_an_operator_can_have_a_file_tried_at_once(make_trail, make_logger):
    adapter = MemoryAdapter()
    adapter.poison = "poison"
    trail = make_trail(adapter=adapter, retry={**QUICK, "max_retries": 0, "max_scan_attempts": 1})
    audit = AuditLogger(make_logger(trail.handler))
    for number in range(2):
        audit.fire("poison", tenant_id="t", entity_id=str(number))
        assert trail.flush(20)
    first, second = trail.dlq.list()
    assert trail.dlq.retry(first.name) == 0
    trail.dlq.retry(second.name)
    assert [file.state for file in trail.dlq.list()] == ["dead", "dead"]
    adapter.poison = None
    assert trail.dlq.retry() == 0, "dead files are tried by name alone"
    assert trail.dlq.retry(second.name) == 1
    assert trail.dlq.requeue(first.name)
    assert trail.dlq.retry() == 1
    assert trail.dlq.list() == []
    assert trail.dlq.retry(first.name) == 0


def test_an_outage_in_the_middle_of_a_bisection_is_not_held_against_the_rows(
    make_trail, make_logger
):
    adapter = MemoryAdapter()
    adapter.poison = "a"
    trail = make_trail(adapter=adapter, retry={**QUICK, "max_retries": 0})
    audit = AuditLogger(make_logger(trail.handler))
    for _ in range(8):
        audit.fire("a", tenant_id="t")
    assert trail.flush(20)
    (file,) = trail.dlq.list()
    real = adapter.bulk_insert

    def bulk_insert(tenant_id, events):
        adapter.down = len(events) < 8
        return real(tenant_id, events)

    adapter.bulk_insert = bulk_insert
    assert trail.dlq.retry(file.name) == 0
    (file,) = trail.dlq.list()
    assert (file.state, file.envelope.attempts) == ("pending", 0)


def test_an_event_in_wal_and_dlq_is_one_row(make_trail, leave_behind, folder):
    found = payloads(10)
    leave_behind(found)
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable")
    trail.dlq.put("t", found, "the process was killed before it could acknowledge")
    assert trail.ready()
    assert wait_until(lambda: trail.flush(5) and trail.run_maintenance() and trail.dlq.is_empty())
    assert len(adapter.events) == 10
    assert wait_until(lambda: len(list((folder / "wal").iterdir())) == 1)


def test_a_handler_without_a_queue_keeps_its_wal_and_its_memory_small(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        wal={"segment_bytes": 4096},
        batching={"max_queue_size": 10},
        retry={**QUICK, "base_delay": 30.0},
    )
    log = make_logger(BatchingAuditHandler(trail=trail))
    log.info("a")
    assert trail.flush(20)
    adapter.down = True
    log.info("a", extra={"tenant_id": "t"})
    trail.flush(0.1)
    assert wait_until(lambda: trail.stats()["insert_failures"] > 0, 20)
    for _ in range(500):
        log.info("a", extra={"tenant_id": "t"})
    assert wait_until(lambda: trail.stats()["spilled"] > 300, 20)
    assert wait_until(lambda: trail.stats()["wal"]["bytes"] < 100_000, 20)


def test_leftovers_of_killed_writers_go(make_trail, folder):
    for name in ("x.tmp", "wal/x.corrupt.tmp", "dlq/x.batch.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"half")
    trail = make_trail(mode="durable")
    assert trail.ready()
    assert wait_until(lambda: not list(folder.glob("**/*.tmp")))
    assert os.listdir(folder / "dlq") == []


def test_what_a_dead_process_has_left_is_delivered_without_a_new_event(
    make_trail, make_logger, tmp_path
):
    pid = os.fork()
    if pid == 0:
        trail = make_trail(mode="durable", batching={"flush_interval": 60.0})
        audit = AuditLogger(make_logger(trail.handler))
        for number in range(50):
            audit.fire("a", tenant_id="t", entity_id=str(number))
        os._exit(0)
    os.waitpid(pid, 0)
    trail = make_trail(mode="durable")
    assert trail.flush(20)
    found = [event.entity_id for event in trail.iter(tenant_id="t")]
    assert found == [str(number) for number in reversed(range(50))]
