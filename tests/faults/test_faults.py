"""The rows of the failure table, each caused for real.

Here, unless a module is named; ``scripts`` are those that ``test_disks`` runs in short.

======================================= ======================================================
row                                     tests
======================================= ======================================================
WAL append fails                        scripts disk_faults (full disk, EIO, ENOSPC, EMFILE,
                                        RLIMIT_FSIZE, read-only and missing folders, fsync that
                                        fails and then lies); test_wal
insert fails                            a_database_that_is_down…, an_outage_is_never_held…;
                                        script outage
one bad row in a batch                  a_poison_row_costs_nobody_else…
database hangs                          a_hanging_database…, a_burst_on_a_healthy_database…;
                                        script outage --hang
DLQ write fails while spilling          a_dlq_that_cannot_be_written_leaves_what_is_to_be_spilled…
adapter and DLQ both fail               a_database_and_a_dlq_that_both_fail…; with the WAL as
                                        well: what_neither_database_nor_dlq_nor_wal…;
                                        volatile: what_has_nowhere_to_go…
call before the pipeline is ready       a_database_that_cannot_be_opened…
bootstrap fails                         a_database_that_cannot_be_opened…
kill -9 at any moment                   kill_minus_nine…; scripts kill_loop, syscall_kills,
                                        power_cuts; test_processes
torn or corrupt WAL tail or record      test_wal, test_recovery (each byte, 10,000 flips)
interpreter exit without shutdown()     a_program_that_just_ends…, a_first_call_at_the_very_end…
shutdown() twice, or concurrently       shutdown_keeps_its_time…, threads_that_shut_down_together…
poison batch                            a_poison_row…, attempts_survive_a_restart
retention fails                         test_retention
======================================= ======================================================
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

import logbun_logging
from logbun_logging import ALL_TENANTS, AuditLogger, NotReadyError
from logbun_logging._storage.wal import recovery
from tests.fakes import MemoryAdapter, SharedMemoryAdapter, wait_until
from tests.faults.kill_loop import run

QUICK = {"base_delay": 0.01, "scan_interval": 60.0, "first_scan": 60.0}


def audit_for(trail, make_logger):
    return AuditLogger(make_logger(trail.handler))


def test_kill_minus_nine_loses_and_doubles_nothing(tmp_path):
    acknowledged, lost, doubled = run(8, tmp_path, random.Random(3))
    assert acknowledged > 100
    assert (lost, doubled) == (0, 0)


@pytest.mark.parametrize("adapter_class", [MemoryAdapter, SharedMemoryAdapter])
@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_a_database_that_is_down_sends_batches_to_the_dlq_and_gets_them_back(
    make_trail, make_logger, adapter_class, mode
):
    adapter = adapter_class()
    happened = []
    trail = make_trail(
        adapter=adapter, mode=mode, retry=QUICK, on_event=lambda name, _: happened.append(name)
    )
    audit = audit_for(trail, make_logger)
    adapter.down = True
    for number in range(30):
        audit.fire("a", tenant_id=f"t{number % 3}", entity_id=str(number))
    assert trail.flush(20)
    stats = trail.stats()
    assert stats["dead_lettered"] == 30
    assert stats["dlq"]["pending_events"] == 30
    assert trail.pipeline.reporter.drain(20)
    assert {"insert_failed", "dead_lettered"} <= set(happened)
    with pytest.raises(NotReadyError):
        trail.query(tenant_id="t1")
    adapter.down = False
    assert wait_until(lambda: trail.run_maintenance() and len(adapter.events) == 30, 20)
    assert trail.stats()["redelivered"] == 30
    assert trail.stats()["dlq"]["pending"] == 0


def test_an_outage_is_never_held_against_a_batch(make_trail, make_logger):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter, retry={**QUICK, "max_retries": 0, "max_scan_attempts": 2})
    adapter.down = True
    audit_for(trail, make_logger).fire("a")
    assert trail.flush(20)
    for _ in range(5):
        trail.run_maintenance()
    ((file),) = trail.dlq.list()
    assert (file.state, file.envelope.attempts) == ("pending", 0)


@pytest.mark.parametrize("error", [logbun_logging.RejectedEventsError, RuntimeError])
def test_a_poison_row_costs_nobody_else_and_ends_up_dead(make_trail, make_logger, error):
    adapter = MemoryAdapter(error)
    adapter.poison = "poison"
    retry = {**QUICK, "scan_interval": 0.05, "max_scan_attempts": 3}
    trail = make_trail(adapter=adapter, retry=retry)
    audit = audit_for(trail, make_logger)
    for number in range(100):
        audit.fire("poison" if number == 61 else "good", tenant_id="t")
    assert trail.flush(20)
    assert len(adapter.events) == 99
    assert trail.stats()["dlq"]["pending_events"] == 1

    def dead():
        audit.fire("later", tenant_id="t")  # the database takes other events meanwhile
        done = trail.flush(20) and trail.run_maintenance()
        return done and trail.stats()["dlq"]["dead_events"] == 1

    assert wait_until(dead, 20)
    assert trail.stats()["poisoned"] == 1
    (file,) = trail.dlq.list("dead")
    assert file.envelope.attempts == 3
    assert "poison" in file.envelope.reason
    adapter.poison = None
    assert trail.dlq.requeue(file.name)
    trail.run_maintenance()
    actions = [event.action for event in adapter.events.values()]
    assert (actions.count("good"), actions.count("poison")) == (99, 1)


def test_one_tenants_poison_is_found_without_an_insert_for_each_other(make_trail, make_logger):
    class Counting(SharedMemoryAdapter):
        calls = 0

        def bulk_insert_many(self, batches):
            self.calls += 1
            return super().bulk_insert_many(batches)

    adapter = Counting()
    adapter.poison = "poison"
    trail = make_trail(adapter=adapter, retry={**QUICK, "max_retries": 0})
    audit = audit_for(trail, make_logger)
    for number in range(200):
        audit.fire("poison" if number == 61 else "good", tenant_id=f"t{number}")
    assert trail.flush(20)
    assert len(adapter.events) == 199
    assert trail.stats()["dlq"]["pending_events"] == 1
    assert adapter.calls < 50


def test_what_is_left_to_the_wal_brings_nothing_else_back_with_it(make_trail, make_logger):
    adapter = MemoryAdapter()
    adapter.poison = "poison"
    trail = make_trail(
        adapter=adapter, mode="durable", dlq={"max_files": 1}, retry={**QUICK, "max_retries": 0}
    )
    audit = audit_for(trail, make_logger)
    for number in range(3):
        audit.fire("poison", tenant_id=f"bad{number}")
        audit.fire("good", tenant_id="good")
    assert wait_until(lambda: trail.stats()["wal"]["deferred"] == 2, 20)
    assert wait_until(lambda: len(adapter.events) == 3, 20)
    assert not trail.flush(5)  # two have nowhere to go
    assert trail.run_maintenance()  # reads them back
    assert wait_until(lambda: trail.stats()["wal"]["deferred"] == 2, 20)
    stats = trail.stats()
    assert stats["recovered"] == 2
    assert stats["inserted"] == 3
    assert stats["dlq"]["pending_events"] == stats["dead_lettered"] == 1
    adapter.poison = None
    assert wait_until(lambda: trail.run_maintenance() and len(adapter.events) == 6, 20)


def test_a_slow_disk_gets_the_time_that_the_last_events_need(make_trail, make_logger, monkeypatch):
    adapter = MemoryAdapter()
    trail = make_trail(adapter=adapter)
    adapter.down = True
    audit = audit_for(trail, make_logger)
    for number in range(40):
        audit.fire("a", tenant_id=f"t{number}")
    real = os.fsync
    slow = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda file: (slow.wait(0.05), real(file)))
    assert not trail.shutdown(0.1)
    stats = trail.stats()
    assert (stats["lost"], stats["queued"]) == (0, 0)
    assert stats["dlq"]["pending_events"] == 40


def test_databases_that_hang_while_they_are_opened_keep_nothing_from_being_closed(
    make_trail, make_logger
):
    adapter = MemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter)
    release = threading.Event()
    calls = trail.pipeline._own_calls
    for _ in range(16):
        with pytest.raises(logbun_logging.AdapterUnavailableError):
            calls.run(lambda: release.wait(30), 0.0, "opening")
    audit_for(trail, make_logger).fire("a")
    assert not trail.shutdown(0.1)
    assert trail.stats()["lost"] == 0
    assert trail.stats()["dlq"]["pending_events"] == 1
    release.set()


def test_what_comes_after_the_end_is_bounded_in_bytes(make_trail, make_logger):
    trail = make_trail(adapter=MemoryAdapter(), limits={"max_queued_bytes": 100_000})
    audit = audit_for(trail, make_logger)
    trail.shutdown()
    for _ in range(200):
        audit.fire("late", new_values={"text": "x" * 1_000})
    assert trail.stats()["lost"] == 200
    kept = [len(entry.payload) for entry in trail.pipeline.late.take()]
    assert 100_000 - max(kept) < sum(kept) <= 100_000


@pytest.mark.parametrize("cap", [2, 1000])
def test_a_log_that_cannot_be_read_to_its_end_at_once_strands_nothing(
    make_trail, make_logger, tmp_path, monkeypatch, cap
):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    options = {
        "adapter": adapter,
        "mode": "durable",
        "batching": {"on_queue_full": "block", "max_queue_size": cap, "block_timeout": 0.05},
    }
    trail = make_trail(**options)
    audit = audit_for(trail, make_logger)
    for number in range(30):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    left = [path.read_bytes() for path in (tmp_path / "data" / "test" / "wal").glob("*/*.aof")]
    trail.shutdown(0)
    dead = tmp_path / "data" / "test" / "wal" / "20200101T000000-0123456789ab"
    dead.mkdir()
    (dead / "seg-000001.aof").write_bytes(b"".join(left) + b"torn")
    real = recovery.writing_atomically
    failures = iter([OSError(28, "ENOSPC")])

    def write(*arguments):
        for error in failures:
            raise error
        return real(*arguments)

    monkeypatch.setattr(recovery, "writing_atomically", write)
    adapter.down = False
    trail = make_trail(**options)
    assert trail.ready(20)
    assert wait_until(lambda: trail.run_maintenance() and len(adapter.events) == 30, 20)
    assert wait_until(lambda: trail.run_maintenance() and not dead.exists(), 20)
    assert trail.stats()["corrupt"] == 1


def test_attempts_survive_a_restart(make_trail, make_logger):
    adapter = MemoryAdapter()
    adapter.poison = "poison"
    retry = {**QUICK, "scan_interval": 0.05, "max_retries": 0, "max_scan_attempts": 3}
    trail = make_trail(adapter=adapter, retry=retry)
    audit_for(trail, make_logger).fire("poison")
    assert trail.flush(20)
    for attempts in range(1, 4):
        audit_for(trail, make_logger).fire("good")  # the database takes other events meanwhile
        assert trail.flush(20)

        def counted(trail=trail, attempts=attempts):
            trail.run_maintenance()
            return [file.envelope.attempts for file in trail.dlq.list()] == [attempts]

        assert wait_until(counted)
        trail = make_trail(adapter=adapter, retry=retry)
    assert trail.stats()["dlq"]["dead"] == 1


def test_a_hanging_database_never_makes_the_caller_wait_and_memory_stays_bounded(
    make_trail, make_logger
):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, mode="durable", batching={"max_queue_size": 100})
    audit = audit_for(trail, make_logger)
    for number in range(100):
        audit.fire("a", tenant_id="noisy", entity_id=str(number))
    assert adapter.called.wait(10)  # it hangs with these
    for number in range(100, 5_000):
        audit.fire("a", tenant_id="noisy", entity_id=str(number))
    audit.fire("b", tenant_id="quiet")
    assert wait_until(lambda: trail.stats()["spilled"] > 0, 20)
    assert wait_until(lambda: trail.stats()["queued_by_tenant"].get("noisy", 0) <= 5_000, 20)
    assert not any(file.envelope.tenant_id == "quiet" for file in trail.dlq.list() if file.envelope)
    adapter.gate.set()
    assert wait_until(
        lambda: trail.flush(5) and trail.run_maintenance() and len(adapter.events) == 5_001, 30
    )


def test_dropping_is_counted_and_reported(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    happened = []
    trail = make_trail(
        adapter=adapter,
        batching={"max_queue_size": 10, "on_queue_full": "drop"},
        on_event=lambda name, details: happened.append((name, details.get("events"))),
    )
    audit = audit_for(trail, make_logger)
    fired = 0

    def fire_until_dropped():
        nonlocal fired
        fired += 1
        audit.fire("a", tenant_id="t")
        return trail.stats()["dropped"] > 0

    assert wait_until(fire_until_dropped, 30)
    adapter.gate.set()
    assert trail.flush(20)
    stats = trail.stats()
    assert stats["accepted"] == fired == len(adapter.events) + stats["dropped"]
    assert wait_until(lambda: sum(n for name, n in happened if name == "dropped") > 0)


def test_blocking_waits_and_then_spills(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(
        adapter=adapter,
        batching={"max_queue_size": 5, "on_queue_full": "block", "block_timeout": 0.05},
    )
    audit = audit_for(trail, make_logger)
    for _ in range(10):
        audit.fire("a", tenant_id="t")
    assert wait_until(lambda: trail.stats()["spilled"] > 0, 20)
    adapter.gate.set()
    assert wait_until(lambda: trail.run_maintenance() and len(adapter.events) == 10, 20)


def test_more_than_fits_into_memory_waits_in_the_wal(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(
        adapter=adapter,
        mode="durable",
        batching={"max_queue_size": 100_000},
        limits={"max_total_queued": 50},
    )
    audit = audit_for(trail, make_logger)
    for number in range(1_000):
        audit.fire("a", tenant_id=f"t{number % 7}", entity_id=str(number))
    stats = trail.stats()
    assert stats["queued"] <= 50
    assert stats["deferred"] >= 950
    adapter.gate.set()
    assert trail.flush(30)
    assert len({event.entity_id for event in adapter.events.values()}) == 1_000
    assert trail.stats()["lost"] == 0


def test_a_burst_on_a_healthy_database_spills_nothing(make_trail, make_logger):
    trail = make_trail(mode="durable", batching={"max_queue_size": 100})
    audit = audit_for(trail, make_logger)
    for number in range(5_000):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    assert trail.flush(30)
    stats = trail.stats()
    assert (stats["spilled"], stats["dead_lettered"]) == (0, 0)
    assert sum(1 for _ in trail.iter(tenant_id="t")) == 5_000


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_shutdown_keeps_its_time_and_nothing_is_lost(make_trail, make_logger, mode):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    trail = make_trail(adapter=adapter, mode=mode)
    audit = audit_for(trail, make_logger)
    for _ in range(10):
        audit.fire("a", tenant_id="t")
    assert not trail.shutdown(timeout=0.5)
    assert trail.shutdown(timeout=1)
    kept = {event.id for file in trail.dlq.list() for event in trail.dlq.show(file.name)}
    if mode == "volatile":
        assert len(kept) == 10
    adapter.gate.set()
    again = make_trail(adapter=adapter, mode=mode)
    assert again.ready()
    assert wait_until(
        lambda: again.flush(5) and again.run_maintenance() and len(adapter.events) == 10, 20
    )


def test_a_database_and_a_dlq_that_both_fail_leave_events_to_the_wal(
    make_trail, make_logger, tmp_path
):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter, mode="durable", retry={**QUICK, "max_retries": 0})
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "dlq").write_text("a file where the folder should be")
    audit = audit_for(trail, make_logger)
    for number in range(20):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    assert wait_until(lambda: trail.stats()["deferred"] == 20, 20)
    assert trail.stats()["lost"] == 0
    adapter.down = False
    (tmp_path / "data" / "test" / "dlq").unlink()
    assert wait_until(lambda: len(adapter.events) == 20, 30)


def test_a_database_that_cannot_be_opened_stops_no_call_and_no_journal(
    make_trail, make_logger, tmp_path
):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    happened = []
    trail = make_trail(
        adapter=adapter, mode="durable", on_event=lambda name, _: happened.append(name)
    )
    audit = audit_for(trail, make_logger)
    for number in range(20):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    (file,) = (tmp_path / "data" / "test" / "wal").glob("*/current.aof")
    assert file.read_bytes().count(b"\n") == 20
    assert not trail.ready(0.2)
    with pytest.raises(NotReadyError, match="down"):
        trail.query(tenant_id="t")
    assert wait_until(lambda: "bootstrap_failed" in happened)
    adapter.down = False
    assert wait_until(trail.pipeline.opened.is_set, 20)
    assert wait_until(lambda: trail.flush(5) and len(adapter.events) == 20, 20)
    assert len(trail.query(tenant_id="t").logs) == 20


def test_a_dlq_that_cannot_be_written_leaves_what_is_to_be_spilled_in_memory(
    make_trail, make_logger, tmp_path
):
    adapter = SharedMemoryAdapter()
    adapter.gate.clear()
    happened = []
    trail = make_trail(
        adapter=adapter,
        batching={"max_queue_size": 10, "flush_interval": 0.01},
        on_event=lambda name, _: happened.append(name),
    )
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "dlq").write_text("a file where the folder should be")
    audit = audit_for(trail, make_logger)
    audit.fire("a", tenant_id="t", entity_id="first")
    assert adapter.called.wait(20)
    for number in range(50):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    assert wait_until(lambda: "spill_failed" in happened, 20)
    assert trail.stats()["queued"] == 51
    (tmp_path / "data" / "test" / "dlq").unlink()
    assert wait_until(lambda: trail.stats()["spilled"] == 50, 20)
    adapter.gate.set()
    assert wait_until(lambda: trail.flush(5) and len(adapter.events) == 51, 20)
    assert trail.stats()["lost"] == 0


def test_what_has_nowhere_to_go_in_volatile_mode_is_counted_as_lost(
    make_trail, make_logger, tmp_path
):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    happened = []
    trail = make_trail(
        adapter=adapter,
        retry={**QUICK, "max_retries": 0},
        on_event=lambda name, _: happened.append(name),
    )
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "dlq").write_text("a file where the folder should be")
    audit_for(trail, make_logger).fire("a", tenant_id="t")
    assert not trail.flush(20), "it is neither in the database nor in a file"
    assert trail.stats()["lost"] == 1
    assert wait_until(lambda: {"dlq_failed", "lost"} <= {*happened})


def test_threads_that_shut_down_together_wait_for_each_other(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter)
    audit = audit_for(trail, make_logger)
    for _ in range(50):
        audit.fire("a", tenant_id="t")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(trail.shutdown(20))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    assert len(adapter.events) == 50
    assert adapter.closed == 1


def test_the_books_balance_whatever_became_of_an_event(make_trail, make_logger):
    adapter = SharedMemoryAdapter()
    trail = make_trail(
        adapter=adapter,
        retry={**QUICK, "max_retries": 0, "max_scan_attempts": 1},
        batching={"max_queue_size": 20, "flush_interval": 0.01},
        dlq={"max_files": 12},
    )
    audit = audit_for(trail, make_logger)
    adapter.poison = "poison"
    rng = random.Random(3)
    for number in range(600):
        if number % 100 == 50:
            adapter.down = not adapter.down
            trail.flush(5)
            trail.dlq.retry()
        action = "poison" if rng.random() < 0.02 else "good"
        audit.fire(action, tenant_id=f"t{number % 4}", entity_id=str(number))
    trail.flush(20)
    assert trail.shutdown(20)
    stats = trail.stats()
    dlq = sum(stats["dlq"][f"{state}_events"] for state in ("pending", "processing", "dead"))
    kept = stats["inserted"] + stats["queued"] + stats["dropped"] + stats["lost"] + dlq
    assert stats["accepted"] == 600 == kept
    assert stats["queued"] == 0
    assert stats["inserted"] == len(adapter.events)


def test_what_neither_database_nor_dlq_nor_wal_can_take_waits_in_memory(
    make_trail, make_logger, tmp_path
):
    adapter = SharedMemoryAdapter()
    adapter.down = True
    trail = make_trail(adapter=adapter, mode="durable", retry={**QUICK, "max_retries": 0})
    folder = tmp_path / "data" / "test"
    folder.mkdir(parents=True)
    for name in ("dlq", "wal"):
        (folder / name).write_text("a file where the folder should be")
    audit = audit_for(trail, make_logger)
    for number in range(20):
        audit.fire("a", tenant_id="t", entity_id=str(number))
    trail.flush(0.2)
    assert wait_until(lambda: trail.stats()["insert_failures"] > 0, 20)
    stats = trail.stats()
    assert (stats["lost"], stats["queued"], stats["wal_failures"]) == (0, 20, 20)
    for name in ("dlq", "wal"):
        (folder / name).unlink()
    adapter.down = False
    assert wait_until(lambda: len(adapter.events) == 20, 30)
    assert trail.stats()["accepted"] == 20


def test_a_forked_child_delivers_its_own_and_leaves_the_parent_s(make_trail, make_logger):
    trail = make_trail(mode="durable")
    audit = audit_for(trail, make_logger)
    stop = threading.Event()
    counts = [0, 0]

    def work(number):
        while not stop.wait(0.0005):
            audit.fire("parent", tenant_id="t", entity_id=f"{number}-{counts[number]}")
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    children = []
    for child in range(5):
        pid = os.fork()
        if pid == 0:
            for number in range(50):
                audit.fire("child", tenant_id="t", entity_id=f"{child}-{number}")
            os._exit(0 if trail.shutdown(20) else 1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 5
    assert trail.flush(20)
    found = [(event.action, event.entity_id) for event in trail.iter(tenant_id="t")]
    assert len(found) == len(set(found)) == 250 + sum(counts)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_delivers_before_it_ends(
    make_trail, make_logger, method, tmp_path
):
    trail = make_trail()
    audit = audit_for(trail, make_logger)
    audit.fire("parent")
    context = multiprocessing.get_context(method)
    target = _fire_here if method == "fork" else _fire_there
    arguments = (audit,) if method == "fork" else (str(tmp_path),)
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert trail.flush(20)
    assert {event.action for event in trail.iter()} == {"parent", "child"}


def _fire_here(audit):
    audit.fire("child")


def _fire_there(folder):
    trail = logbun_logging.AuditTrail(
        namespace="test", data_dir=f"{folder}/data", adapter=f"sqlite:///{folder}/audit.db"
    )
    logger = logging.getLogger("spawned")
    logger.addHandler(trail.handler)
    AuditLogger(logger, level=logging.WARNING).fire("child")


def script(tmp_path, body, *, wait=True):
    """Run a program of its own that has a trail and a logger."""
    code = f"""
import logging, os, signal, sys, threading
import logbun_logging
from logbun_logging import AuditTrail
trail = AuditTrail(namespace="test", data_dir={str(tmp_path / "data")!r}, mode=sys.argv[1],
                   adapter="sqlite:///{tmp_path}/audit.db")
log = logging.getLogger("audit"); log.setLevel(logging.INFO); log.addHandler(trail.handler)
{body}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "volatile"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if wait:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        assert err == b"", err.decode()
        return out
    return process


def rows(make_trail):
    return [event.action for event in make_trail().iter(tenant_id=ALL_TENANTS)][::-1]


def test_a_program_that_just_ends_has_delivered_everything(tmp_path, make_trail):
    script(tmp_path, "for n in range(500): log.info('a')")
    assert rows(make_trail) == ["a"] * 500


def test_a_first_call_at_the_very_end_is_delivered(tmp_path, make_trail):
    script(tmp_path, "import atexit; atexit.register(log.info, 'at exit')")
    assert rows(make_trail) == ["at exit"]


def test_a_program_that_dies_of_an_exception_has_delivered_everything(tmp_path, make_trail):
    script(tmp_path, "log.info('a')\nsys.exit(0)")
    assert rows(make_trail) == ["a"]


def test_a_plain_script_ends_in_order_on_sigterm(tmp_path, make_trail):
    process = script(
        tmp_path,
        "logbun_logging.shutdown_on_signals()\n"
        "log.info('a'); print('ready', flush=True)\n"
        # Not without a time-out: a signal between Python's last look and the kernel's wait would
        # only be looked at after that.
        "while not threading.Event().wait(0.05): pass",
        wait=False,
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert rows(make_trail) == ["a"]


def test_a_dlq_that_cannot_be_read_is_reported_and_stops_nothing_else(
    make_trail, make_logger, monkeypatch
):
    adapter, happened = MemoryAdapter(), []
    trail = make_trail(
        adapter=adapter,
        retry=QUICK,
        on_event=lambda name, details: happened.append((name, str(details.get("reason")))),
    )
    audit_for(trail, make_logger).fire("a", tenant_id="t")
    assert trail.flush(20)
    (trail.options.folder / "dlq").mkdir(parents=True, exist_ok=True)
    real = os.scandir

    def scandir(path="."):  # another user's folder, which root could read
        if str(path).endswith("dlq"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert trail.run_maintenance()
    assert "Permission denied" in trail.stats()["dlq"]["error"]
    assert wait_until(
        lambda: any(n == "redelivery_failed" and "Permission" in reason for n, reason in happened)
    )
