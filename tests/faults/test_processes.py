"""Several processes: forks while locks are held, killed children, survivors that take over."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest

from logbun_logging import ALL_TENANTS, AuditLogger
from logbun_logging import trail as trail_module
from tests.fakes import wait_until
from tests.faults.rig import Workload
from tests.faults.workload import make_trail as make_workload_trail

#: CPython 3.12 and newer warn of what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def wait_for(pid, timeout=60):
    """Return the exit status of a child, or say that it hung."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "it hung"


def locks_of(trail):
    parts = trail.pipeline
    yield trail_module._registry_lock
    yield parts._lifecycle
    yield parts.maintenance._pass_lock
    yield parts.wal._files_lock
    yield parts.wal._sync_lock
    yield parts.wal._swap_lock
    yield parts.wal._pending_lock
    yield parts.wal._group._lock
    yield parts.dlq._lock
    yield parts.delivery._calls._lock
    yield parts.databases.breaker(None)._lock
    yield parts.buffers._lock
    yield parts.threads._maintaining
    yield parts.counters._lock


def test_a_child_forked_while_every_lock_is_held_goes_on(make_trail, make_logger):
    trail = make_trail(mode="durable", fsync="always")
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("parent", tenant_id="t")
    assert trail.flush(20)
    held, release = threading.Event(), threading.Event()

    def hold():
        with ExitStack() as stack:
            for lock in locks_of(trail):
                stack.enter_context(lock)
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        audit.fire("child", tenant_id="t")
        os._exit(0 if trail.flush(20) and trail.stats()["lost"] == 0 and trail.shutdown(20) else 1)
    status = wait_for(child)
    release.set()
    thread.join()
    assert status == 0
    audit.fire("parent", tenant_id="t")
    assert trail.flush(20)
    assert [event.action for event in trail.iter(tenant_id="t")].count("parent") == 2
    assert [event.action for event in trail.iter(tenant_id="t")].count("child") == 1


def test_children_forked_by_one_thread_while_others_sync_each_call(make_trail, make_logger):
    trail = make_trail(
        mode="durable",
        fsync="always",
        batching={"flush_interval": 300.0, "max_size": 10_000, "max_queue_size": 10_000},
        wal={"segment_bytes": 1 << 30},
    )
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("parent", tenant_id="t", entity_id="first")
    own = trail.pipeline.wal.instance
    stop = threading.Event()
    fired = [[] for _ in range(3)]
    statuses = []

    def log(number):
        while not stop.wait(0.001):
            name = f"{number}-{len(fired[number])}"
            audit.fire("parent", tenant_id=f"t{number}", entity_id=name)
            fired[number].append(name)

    def child(number):
        for event in range(20):
            audit.fire("child", tenant_id="t", entity_id=f"{number}-{event}")
        if trail.pipeline.wal.instance == own or trail.stats()["wal_failures"]:
            os._exit(1)
        if number % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0 if trail.shutdown(20) else 1)

    def fork():
        for number in range(9):
            pid = os.fork()
            if pid == 0:
                child(number)
            statuses.append(wait_for(pid))

    threads = [threading.Thread(target=log, args=(number,)) for number in range(3)]
    forker = threading.Thread(target=fork)
    for thread in (*threads, forker):
        thread.start()
    forker.join()
    before = [len(names) for names in fired]
    went_on = wait_until(lambda: all(map(int.__lt__, before, map(len, fired))))
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses == [-signal.SIGKILL, 0, 0] * 3
    assert went_on
    records = b"".join(path.read_bytes() for path in own.glob("*.aof"))
    assert records.count(b'"action":"child"') == 0
    assert records.count(b'"action":"parent"') == 1 + sum(map(len, fired))
    assert trail.run_maintenance()
    assert trail.flush(20)
    rows = [(event.action, event.entity_id) for event in trail.iter(tenant_id=ALL_TENANTS)]
    children = [("child", f"{n}-{event}") for n in range(9) for event in range(20)]
    parents = [("parent", name) for name in ("first", *itertools.chain(*fired))]
    assert sorted(rows) == sorted(children + parents)


def test_a_child_forked_while_the_parent_shuts_down_has_a_trail_of_its_own(make_trail, make_logger):
    trail = make_trail(mode="durable")
    log = make_logger(trail.handler)
    log.info("parent", extra={"tenant_id": "t"})
    assert trail.flush(20)
    trail.pipeline.closing = True  # another thread has just begun
    child = os.fork()
    if child == 0:
        log.info("child", extra={"tenant_id": "t"})
        os._exit(0 if trail.shutdown(20) else 1)
    trail.pipeline.closing = False
    assert wait_for(child) == 0
    assert {event.action for event in trail.iter(tenant_id="t")} == {"parent", "child"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_killed_child_s_events_are_delivered_by_its_parent(make_trail, tmp_path, method):
    trail = make_trail(mode="durable")
    assert trail.ready()
    process = multiprocessing.get_context(method).Process(target=fire_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert trail.run_maintenance()
    assert trail.flush(20)
    assert sum(1 for _ in trail.iter(tenant_id="child")) == 50
    assert wait_until(lambda: len(list((tmp_path / "data" / "test" / "wal").iterdir())) == 1)


def fire_and_die(folder):
    from logbun_logging import AuditTrail

    trail = AuditTrail(
        namespace="test",
        data_dir=folder / "data",
        mode="durable",
        adapter=f"sqlite:///{folder}/audit.db",
        batching={"flush_interval": 60.0},
    )
    import logging

    logger = logging.getLogger("child")
    logger.setLevel(logging.INFO)
    logger.addHandler(trail.handler)
    for number in range(50):
        logger.info("child", extra={"tenant_id": "child", "entity_id": str(number)})
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_next_scan_of_a_process_that_lives_on_delivers_what_a_killed_one_has_left(
    tmp_path, monkeypatch
):
    survivor = make_workload_trail(tmp_path)
    parts = survivor.pipeline
    done = {"run": 0, "_scan": 0}

    def counted(name, original):
        def count():
            outcome = original()
            done[name] += 1
            return outcome

        return count

    monkeypatch.setattr(parts.recovery, "run", counted("run", parts.recovery.run))
    monkeypatch.setattr(parts.maintenance, "_scan", counted("_scan", parts.maintenance._scan))
    try:
        assert survivor.ready(30)
        workload = Workload(tmp_path, "r", "--outages", "0.5", "--flush-interval", "30")
        workload.read(200)
        workload.kill()
        names = {found.name for found in workload.end()}
        # One of each may have been under way when the process died; the next one was not.
        before = dict(done)
        assert wait_until(lambda: all(done[name] >= before[name] + 2 for name in done), 30)
        assert survivor.flush(30)
        rows = [event.entity_id for n in range(2) for event in survivor.iter(tenant_id=f"t{n}")]
    finally:
        survivor.shutdown(10)
    assert len(rows) == len(set(rows))
    assert names <= set(rows)


def test_two_processes_share_a_dlq(tmp_path):
    workloads = [
        Workload(tmp_path, f"r{n}", "--events", "100", "--pause", "0.01", "--outages", "0.7")
        for n in range(2)
    ]
    names = {found.name for workload in workloads for found in workload.end()}
    assert len(names) == 400
    assert all("dead_lettered" in workload.happened for workload in workloads)
    trail = make_workload_trail(tmp_path)
    try:
        assert trail.ready(30)
        assert wait_until(lambda: trail.flush(5) and trail.dlq.is_empty(), 30)
        rows = [event.entity_id for n in range(2) for event in trail.iter(tenant_id=f"t{n}")]
    finally:
        trail.shutdown(10)
    assert len(rows) == len(set(rows))
    assert set(rows) == names
