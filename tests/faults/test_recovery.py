"""What brings events back: recovery, deferred records, DLQ scans; and what must not stop it."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import pytest

from logbun_logging import AuditLogger, BatchingAuditHandler
from logbun_logging._storage.dlq import Claim
from logbun_logging._storage.wal import adopt_abandoned, read_segment, recovery
from logbun_logging._storage.wal.codec import encode_line
from logbun_logging.event import AuditEvent, encode_event, new_event_id, utc_now
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
        (log,) = adopt_abandoned(instance.parent, None, lambda *_: None)
        log.segments[0].unread = False
        back = [entry.payload for entry in read_segment(log.segments[0], lambda *_: None)]
        expected = [payload for payload, good in zip(found, whole, strict=True) if good]
        assert [payload for payload in back if payload in expected] == expected
        assert len(back) <= len(expected) + 1, "the damage may be in the last newline alone"
        log.segments[0].pending.clear()
        assert log.delete_finished()


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


def test_what_is_deferred_while_its_segment_is_being_read_is_not_forgotten(
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
    assert wait_until(lambda: trail.stats()["wal"]["deferred"] > 0, 20)
    assert not trail.flush(0.3), "it keeps to its time, and says that not everything is delivered"
    adapter.down = False
    (folder / "dlq").unlink()
    assert wait_until(lambda: len(adapter.events) == 600, 30)
    assert wait_until(lambda: trail.stats()["wal"]["deferred"] == 0)
    assert wait_until(lambda: len(list((folder / "wal").iterdir())) == 1)


def test_a_segment_that_cannot_be_read_hides_no_other_and_is_read_later(
    make_trail, leave_behind, monkeypatch
):
    instance = leave_behind(payloads(5), payloads(5, 5), payloads(5, 10))
    bad, real = instance / "seg-000002.aof", recovery.open_regular

    def open_(path):
        if path == bad:
            raise OSError(5, "EIO")
        return real(path)

    happened = []
    adapter = SharedMemoryAdapter()
    with monkeypatch.context() as patched:
        patched.setattr(recovery, "open_regular", open_)
        trail = make_trail(
            adapter=adapter, mode="durable", on_event=lambda name, _: happened.append(name)
        )
        assert trail.ready()
        assert trail.flush(20)
        assert len(adapter.events) == 10
        assert trail.pipeline.reporter.drain(20)
        assert "recovery_failed" in happened
    assert wait_until(trail.run_maintenance)  # unless the thread makes a pass just now
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


@pytest.mark.parametrize("count", [1, 13, 20, 21, 63, 64, 65, 84, 127, 128, 129, 192])
def test_a_recovery_stopped_before_its_last_record_leaves_the_file(make_trail, leave_behind, count):
    instance = leave_behind(payloads(count))
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    options = {"adapter": adapter, "mode": "durable"}
    first = make_trail(**options, limits={"max_total_queued": 20})
    assert first.ready()
    assert wait_until(lambda: first.stats()["recovered"] == min(20, count))
    assert first.stats()["wal"]["oldest"] is not None
    assert first.stats()["wal"]["adopted_bytes"] > 0
    assert not first.shutdown(timeout=0.1), "it has not delivered what it had adopted"
    assert list(instance.iterdir())
    adapter.gate.set()
    second = make_trail(**options)
    assert second.ready()
    assert second.flush(20)
    assert sorted(map(int, entity_ids(adapter))) == list(range(count))
    assert second.shutdown()
    assert not instance.exists()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_a_process_whose_database_is_away_leaves_dead_logs_to_others(
    make_trail, leave_behind, folder, count
):
    instance = leave_behind(payloads(count))
    away = SharedMemoryAdapter()
    away.down = True
    sick = make_trail(adapter=away, mode="durable", retry=QUICK)
    assert not sick.ready(0.1)
    assert wait_until(lambda: sick.pipeline.bootstrap_error is not None)
    assert sick.stats()["wal"]["adopted_bytes"] == 0
    (log,) = adopt_abandoned(folder / "wal", sick.pipeline.wal.instance, lambda *_: None)
    log.abandon()
    assert sick.shutdown(5), "it has taken nothing on"
    assert list(instance.iterdir())


def test_a_log_is_given_back_when_an_outage_begins_while_it_is_read(
    make_trail, leave_behind, folder
):
    leave_behind(payloads(300))
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        limits={"max_total_queued": 100},
        retry={**QUICK, "max_retries": 3},
    )
    assert trail.ready()
    assert adapter.called.wait(10)
    adapter.down = True
    adapter.gate.set()

    def others():
        return list(adopt_abandoned(folder / "wal", trail.pipeline.wal.instance, lambda *_: None))

    found = []
    assert wait_until(lambda: found.extend(others()) or found, 20)
    assert found[0].segments
    found[0].abandon()
    adapter.down = False
    assert wait_until(lambda: len(adapter.events) == 300, 20)
    assert trail.flush(20)


def test_a_log_that_was_given_back_is_taken_again_before_the_next_scan(
    make_trail, leave_behind, folder
):
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable", retry={**QUICK, "scan_interval": 3600.0})
    assert trail.ready()
    recovery = trail.pipeline.recovery
    assert wait_until(lambda: not recovery.running)
    leave_behind(payloads(5))
    recovery.running = True  # as when an outage has made us give back a log that was read
    assert wait_until(lambda: len(adapter.events) == 5, 20)


@pytest.mark.parametrize("damage", ["cut to nothing", "cut in half", "removed"])
def test_deferred_records_that_their_file_has_no_more_are_lost_and_reported(
    make_trail, make_logger, folder, damage
):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    happened = []
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        limits={"max_total_queued": 50},
        on_event=lambda name, details: happened.append((name, str(details.get("reason")))),
    )
    audit = AuditLogger(make_logger(trail.handler))
    for number in range(200):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    assert trail.stats()["wal"]["deferred"] == 150
    (file,) = (folder / "wal").glob("*/current.aof")
    if damage == "removed":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "cut to nothing" else file.stat().st_size // 2)
    adapter.gate.set()
    assert not trail.flush(20)
    stats = trail.stats()
    assert stats["lost"] > 90
    assert stats["accepted"] == len(adapter.events) + stats["lost"]
    assert wait_until(lambda: any(n == "recovery_failed" and "cut" in r for n, r in happened))
    assert wait_until(lambda: any(name == "lost" for name, _ in happened))
    assert trail.flush(20), "it has been told once"


def planted(instance, kind):
    """Put something into a log that no process writes."""
    instance.mkdir(parents=True)
    path = instance / "seg-000001.aof"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        target = instance.parent.parent / "elsewhere"
        target.write_bytes(encode_line(payloads(1)[0]))
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        deep = payloads(1)[0][:-1] + b',"metadata":{"x":' + b"[" * 5000 + b"]" * 5000 + b"}}"
        path.write_bytes(encode_line(deep))
    return path


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "deep"])
def test_one_bad_file_holds_up_no_other(make_trail, leave_behind, folder, kind):
    bad = planted(folder / "wal" / "20250101T000000-bad", kind)
    instance = leave_behind(payloads(5))
    happened = []
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        retry=QUICK,
        on_event=lambda name, details: happened.append((name, details.get("file"))),
    )
    assert trail.ready()
    assert trail.flush(20)
    assert len(adapter.events) == 5
    assert wait_until(lambda: not instance.exists())
    for _ in range(3):
        assert wait_until(trail.run_maintenance)
    told = [file for name, file in happened if name in {"recovery_failed", "corrupt"}]
    corrupt = str(folder / "wal" / "20250101T000000-bad.seg-000001.corrupt")
    assert told == [corrupt if kind == "deep" else str(bad)]
    assert trail.stats()["corrupt"] == (kind == "deep")


def test_a_folder_of_another_user_is_reported_and_holds_up_nothing(
    make_trail, leave_behind, folder, monkeypatch
):
    closed = leave_behind(payloads(1), name="20250101T000000-root")
    leave_behind(payloads(5))
    real, happened = os.open, []

    def open_(path, *arguments, **keywords):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(recovery.os, "open", open_)
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        on_event=lambda name, details: happened.append((name, details.get("file"))),
    )
    assert trail.flush(20)
    for _ in range(2):
        assert wait_until(trail.run_maintenance)
    assert len(adapter.events) == 5
    assert trail.stats()["wal"]["adopted_bytes"] == 0
    assert happened.count(("recovery_failed", str(closed))) == 1
    assert "maintenance_failed" not in {name for name, _ in happened}


def test_a_file_that_does_not_begin_with_a_record_is_read_last(make_trail, leave_behind):
    late, early = payloads(1), payloads(1, 1)
    instance = leave_behind([], late, name="20250101T000000-odd")
    damaged = instance / "seg-000001.aof"
    damaged.write_bytes(b"x" * 1000 + b"\n" + encode_line(payloads(1, 2)[0]))
    leave_behind(early)
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter, mode="durable", batching={"max_size": 1}, limits={"max_total_queued": 1}
    )
    assert wait_until(lambda: len(adapter.events) == 3, 20)
    assert entity_ids(adapter) == ["0", "1", "2"]
    assert trail.stats()["corrupt"] == 1


def test_a_hole_is_neither_kept_in_memory_nor_written_out(leave_behind):
    found = payloads(2)
    instance = leave_behind(found[:1])
    file = instance / "seg-000001.aof"
    with file.open("r+b") as hole:
        hole.truncate(200 << 20)
        hole.seek(0, os.SEEK_END)
        hole.write(b"\n" + encode_line(found[1]) + b"torn")
    (log,) = adopt_abandoned(instance.parent, None, lambda *_: None)
    damaged = []
    entries = read_segment(log.segments[0], lambda *what: damaged.append(what))
    assert [entry.payload for entry in entries] == found
    ((corrupt, records),) = damaged
    assert records == 2
    assert corrupt.read_bytes() == b"torn\n"
    log.abandon()


def test_a_log_whose_folder_cannot_be_read_is_let_go(leave_behind, monkeypatch):
    instance = leave_behind(payloads(1))
    failed = []
    with monkeypatch.context() as patched:
        patched.setattr(
            Path, "iterdir", lambda _: (_ for _ in ()).throw(OSError(24, "Too many open files"))
        )
        assert list(adopt_abandoned(instance.parent, None, lambda *what: failed.append(what))) == []
    assert [path for path, _ in failed] == [instance]
    (log,) = adopt_abandoned(instance.parent, None, lambda *_: None)
    log.abandon()


def test_an_event_larger_than_all_memory_is_recovered_and_holds_up_none(make_trail, leave_behind):
    large = encode_event(
        AuditEvent(new_event_id(), utc_now(), "a", entity_id="large", metadata={"x": "x" * 300_000})
    )
    leave_behind([*payloads(50), large, *payloads(50, 50)])
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable", limits={"max_queued_bytes": 100_000})
    assert trail.flush(20)
    assert len(adapter.events) == 101


def test_no_record_is_left_out_when_its_place_is_read_again_after_an_outage(
    make_trail, leave_behind, make_logger
):
    leave_behind(payloads(500))
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        limits={"max_total_queued": 100},
        retry={**QUICK, "max_retries": 0},
    )
    log = make_logger(trail.handler, level=logging.INFO)
    assert trail.ready()
    for number in range(6):
        adapter.down = not adapter.down
        log.info("live", extra={"tenant_id": "t", "entity_id": f"live-{number}"})
        trail.flush(0.3)
    adapter.down = False
    assert wait_until(lambda: len(adapter.events) == 506, 30)
    assert wait_until(lambda: trail.flush(5) and trail.dlq.is_empty(), 20)


def all_kept(trail):
    """Tell whether everything that waits is in the current file."""
    wal = trail.pipeline.wal
    return len(wal._current.pending) == trail.stats()["queued"] and not wal._current.failed


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_in_memory_when_its_folder_was_taken_away_survives_a_kill(
    make_trail, make_logger, folder, moved
):
    pid = os.fork()
    if pid == 0:
        away = SharedMemoryAdapter()
        away.down = True
        trail = make_trail(adapter=away, mode="durable", retry={**QUICK, "base_delay": 60.0})
        audit = AuditLogger(make_logger(trail.handler))
        for number in range(50):
            audit.fire("a", tenant_id="t", entity_id=str(number))
        if moved:
            folder.parent.rename(folder.parent.with_name("moved"))
        else:
            shutil.rmtree(folder.parent)
        for number in range(50, 100):
            audit.fire("a", tenant_id="t", entity_id=str(number))
        told = wait_until(lambda: trail.stats()["wal_removed"] == 1)
        written = wait_until(lambda: list(folder.glob("wal/*/current.aof")) and all_kept(trail))
        audit.fire("a", tenant_id="t", entity_id="100")
        os._exit(0 if told and written else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter, mode="durable")
    assert trail.flush(20)
    assert set(entity_ids(adapter)) == {str(number) for number in range(101)}
