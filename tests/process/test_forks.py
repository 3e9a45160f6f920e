"""Forks that Python is not told about, and the servers that make them."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from logbun_logging import (
    ALL_TENANTS,
    AuditLogger,
    AuditQueueHandler,
    AuditQueueListener,
    BatchingAuditHandler,
)
from logbun_logging._engine.queue import RecordQueue
from logbun_logging._process import forks
from tests.fakes import SharedMemoryAdapter, wait_until

#: CPython 3.12 and newer warn of what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

_notice = forks.notice


def fork_unnoticed(work):
    """Run *work* in a child where none of our at-fork hooks has run; return its process id.

    Those of Python itself run: its own lock does not always survive a fork in C beside threads.
    """
    forks.notice = lambda: 0
    child = os.fork()
    forks.notice = _notice
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def end_of(child):
    """Return the exit status of a child; it is killed if it hangs."""
    found = []

    def ended():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            found.append(os.waitstatus_to_exitcode(status))
        return pid

    if not wait_until(ended, 20):
        os.kill(child, 9)
        os.waitpid(child, 0)
        return "it hung"
    return found[0]


def at_once(work, number=4):
    """Run *work* in several threads at the same time; raise what one of them raises."""
    barrier = threading.Barrier(number)
    errors = []

    def run(index):
        barrier.wait(30)
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]


class TextFile(SharedMemoryAdapter):
    """Writes the entity of each event to a file, which any process may do at any time."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def bulk_insert(self, tenant_id, events):
        lines = "".join(f"{event.entity_id}\n" for event in events)
        with self.path.open("a") as file:
            file.write(lines)
        return True

    def rows(self):
        return sorted(self.path.read_text().split()) if self.path.exists() else []


def test_an_interrupt_leaves_nothing_half_started_anew():
    ran = []

    def interrupted():
        ran.append("begun")
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append("done")

    def child():
        forks.register(interrupted)
        forks.register(lambda: ran.append("the other"))
        with pytest.raises(KeyboardInterrupt):
            forks.notice_fork()
        forks.notice_fork()
        assert ran == ["begun", "begun", "done", "the other"]

    assert end_of(fork_unnoticed(child)) == 0


@pytest.mark.parametrize("mode", ["volatile", "durable"])
@pytest.mark.parametrize("call", ["info", "fire"])
def test_a_child_without_hooks_has_its_own_log_queue_and_threads(
    make_trail, make_logger, tmp_path, mode, call
):
    adapter = TextFile(tmp_path / "rows")
    trail = make_trail(mode=mode, adapter=adapter, batching={"flush_interval": 0.05})
    log = make_logger(trail.handler)
    audit = AuditLogger(log)

    def write(name):
        if call == "info":
            log.info("a", extra={"entity_id": name})
        else:
            audit.fire("a", entity_id=name)

    def child():
        at_once(lambda index: [write(f"{os.getpid()}-{index}-{n}") for n in range(50)])
        write(f"{os.getpid()}-main")
        assert trail.flush(20)
        stats = trail.stats()
        assert (stats["accepted"], stats["inserted"], stats["lost"]) == (201, 201, 0)
        assert mode == "volatile" or trail.pipeline.wal.instance != parents
        assert trail.shutdown(20)

    write("parent-0")
    assert trail.flush(20)
    parents = trail.pipeline.wal.instance
    children = [fork_unnoticed(child) for _ in range(3)]
    write("parent-1")
    assert [end_of(pid) for pid in children] == [0, 0, 0]
    assert trail.flush(20)
    expected = [f"{pid}-{index}-{n}" for pid in children for index in range(4) for n in range(50)]
    expected += [f"{pid}-main" for pid in children]
    assert adapter.rows() == sorted([*expected, "parent-0", "parent-1"])


def test_operations_and_queries_in_a_child_without_hooks_are_the_childs_own(
    make_trail, make_logger, tmp_path
):
    trail = make_trail()
    log = make_logger(trail.handler)
    log.info("a")  # nothing is open yet: SQLite does not survive a fork
    trail.shutdown()

    def child():
        assert trail.stats()["queued"] == 0
        assert trail.flush(1)
        assert len(trail.query(tenant_id=ALL_TENANTS).logs) == 1
        assert trail.ready(20)
        log.info("b")
        assert trail.flush(20)
        assert len(trail.query(tenant_id=ALL_TENANTS).logs) == 2

    trail = make_trail()
    log = make_logger(trail.handler)
    assert end_of(fork_unnoticed(child)) == 0


def test_children_without_hooks_start_anew_once_and_all_threads_wait_for_it(monkeypatch):
    ran = []

    def start_anew():
        time.sleep(0.05)
        ran.append(threading.get_ident())

    monkeypatch.setattr(forks, "_callbacks", [start_anew])

    def child():
        def look(_):
            forks.notice_fork()
            assert len(ran) == 1

        at_once(look)
        assert not forks.mark[0], "the thread that was forked has not come by"
        forks.notice_fork()
        assert forks.mark[0]
        assert len(ran) == 1
        assert end_of(fork_unnoticed(grandchild)) == 0

    def grandchild():
        forks.notice_fork()
        assert len(ran) == 2

    assert end_of(fork_unnoticed(child)) == 0
    assert ran == []
    assert forks.mark[0]


def test_a_callback_that_raises_keeps_no_other_from_running(monkeypatch, capfd):
    ran = []
    monkeypatch.setattr(forks, "_callbacks", [lambda: 1 / 0, lambda: ran.append(1)])

    def child():
        forks.notice_fork()
        assert ran == [1]

    assert end_of(fork_unnoticed(child)) == 0
    assert "ZeroDivisionError" in capfd.readouterr().err


#: In a process of its own, where no thread runs at the fork: a fork in C does not survive any.
#: The generator has an at-fork hook itself, so ``os.fork`` would show nothing.
SIBLINGS = """
import ctypes, os, sys, threading, time
from logbun_logging.event import new_event_id

new_event_id()  # the parent's generator is in use
children = []
for _ in range(2):
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        if sys.argv[1] == "another thread":
            thread = threading.Thread(target=new_event_id)
            thread.start()
            thread.join()
        time.sleep(0.002)  # a new millisecond: its counter begins with a random number
        os.write(1, new_event_id().encode() + b"\\n")
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("first", ["the thread that was forked", "another thread"])
def test_siblings_without_hooks_draw_other_random_numbers(first):
    done = subprocess.run(
        [sys.executable, "-c", SIBLINGS, first], capture_output=True, check=True, timeout=60
    )
    ids = done.stdout.decode().split()
    assert len(ids) == 2
    assert ids[0][-8:] != ids[1][-8:]


def test_where_no_page_can_be_wiped_the_process_id_tells(monkeypatch):
    monkeypatch.setattr(sys, "platform", "plan9")
    mark = forks._make_mark()
    monkeypatch.undo()
    assert mark[0]

    def child():
        assert not mark[0]
        mark[0] = 1
        assert mark[0]

    assert end_of(fork_unnoticed(child)) == 0
    assert mark[0]


@pytest.fixture
def uwsgi(monkeypatch):
    """A module as uWSGI makes it, in the process that loads the application."""
    module = types.ModuleType("uwsgi")
    module.number = 0
    module.worker_id = lambda: module.number
    module.mule_id = lambda: 0
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return module


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_before_uwsgi_forks_nothing_is_started_and_a_worker_delivers_what_was_logged(
    make_trail, make_logger, tmp_path, uwsgi, mode
):
    options = {"mode": mode, "retry": {"first_scan": 0.05}}
    earlier = make_trail(namespace="left", **options)
    earlier.dlq.put(None, [], "left by an earlier process")
    threads = threading.active_count()
    trail = make_trail(**options)
    make_logger(trail.handler).info("at import")
    make_trail(namespace="left", **options)
    assert not trail.ready(10)
    assert not trail.run_maintenance()
    assert trail.flush()
    assert trail.query().logs == []
    descriptors = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in descriptors if path.is_relative_to(tmp_path)]
    assert threading.active_count() == threads
    stats = trail.stats()
    assert (stats["accepted"], stats["dlq"]["pending_events"], stats["lost"]) == (1, 1, 0)

    uwsgi.number = 1
    forks._hook_into_uwsgi(uwsgi)
    uwsgi.post_fork_hook()
    assert wait_until(lambda: [event.action for event in trail.query().logs] == ["at import"])


def test_uwsgi_is_told_beside_whoever_it_tells_already(monkeypatch, uwsgi):
    told = []
    uwsgi.post_fork_hook = lambda: told.append("theirs")
    monkeypatch.setattr(forks, "_worker_callbacks", [lambda: told.append("ours")])
    forks._hook_into_uwsgi(uwsgi)
    uwsgi.post_fork_hook()
    assert told == ["theirs", "ours"]


def test_a_file_called_uwsgi_is_not_taken_for_the_server(monkeypatch):
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    assert not forks.awaits_fork()


def test_a_snapshot_that_lambda_resumes_draws_new_random_numbers(monkeypatch):
    registered = []
    module = types.ModuleType("snapshot_restore_py")
    module.register_after_restore = registered.append
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", module)
    forks._hook_into_lambda()
    (reseed,) = registered
    reseed()
    monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)
    forks._hook_into_lambda()
    assert len(registered) == 1


class Sized(queue.Queue):
    """A user's own class."""


class Wired(queue.Queue):
    """One that cannot be made from its size."""

    def __init__(self, size, wire):
        super().__init__(size)
        self.wire = wire


@pytest.mark.parametrize(
    ("old", "kind"),
    [
        (queue.Queue(7), queue.Queue),
        (queue.LifoQueue(7), queue.LifoQueue),
        (queue.SimpleQueue(), queue.SimpleQueue),
        (Sized(7), Sized),
        (Wired(7, object()), RecordQueue),
        (RecordQueue(), RecordQueue),
    ],
)
def test_a_child_has_a_new_queue_of_the_same_kind_though_a_lock_was_held(
    make_trail, make_logger, old, kind
):
    adapter = SharedMemoryAdapter()
    trail = make_trail(adapter=adapter)
    handler = AuditQueueHandler(old)
    handler.listener = AuditQueueListener(handler.queue, BatchingAuditHandler(trail=trail))
    log = make_logger(handler)
    log.info("a")
    assert trail.flush(20)
    adapter.events.clear()
    if isinstance(old, queue.Queue):
        old.mutex.acquire()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert type(handler.queue) is kind
            assert getattr(handler.queue, "maxsize", 7) == 7
            log.info("b")
            assert trail.flush(20)
            assert [event.action for event in adapter.events.values()] == ["b"]
            status = 0
        finally:
            os._exit(status)
    if isinstance(old, queue.Queue):
        old.mutex.release()
    assert end_of(child) == 0
    log.info("c")
    assert trail.flush(20)
    assert [event.action for event in adapter.events.values()] == ["c"]
