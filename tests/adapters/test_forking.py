"""Forks while SQLite is at work: no connection goes over, and everybody goes on."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from itertools import count

import pytest

from logbun_logging.adapters import SQLiteAdapter
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.adapters.sqlite import adapter as sqlite
from logbun_logging.errors import AdapterUnavailableError
from logbun_logging.event import AuditEvent
from logbun_logging.query import Filters, Pagination
from tests.contract.test_sqlite import Holder
from tests.fakes import wait_until

#: CPython 3.12 and newer warn of what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

_numbers = count()


def events(tenant, number):
    return [
        AuditEvent(
            id=f"{os.getpid():08x}-0000-7000-8000-{next(_numbers):012x}",
            created_at="2026-01-01T00:00:00.000000Z",
            action="a.b",
            actor_id="x",
            tenant_id=tenant,
        )
        for _ in range(number)
    ]


def in_a_child(work):
    """Run *work* in a forked child and return its exit status; 1 if it raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "it hung"


def rows(path):
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = database.execute("SELECT tenant_id, count(*) FROM audit_logs GROUP BY 1")
        return dict(found.fetchall())


def test_children_forked_during_a_write_can_write_and_so_can_the_parent(tmp_path):
    adapter = SQLiteAdapter(tmp_path / "a.db", busy_timeout=10)
    adapter.init()
    stop = threading.Event()
    written = []

    def write():
        while not stop.is_set():
            adapter.bulk_insert("parent", events("parent", 100))
            adapter.query("parent", Filters(), Pagination(limit=10))
            written.append(100)

    def child():
        adapter.after_fork()
        adapter.init()
        adapter.bulk_insert("child", events("child", 3))
        assert len(adapter.query("child", Filters(), Pagination(limit=2))) == 2

    thread = threading.Thread(target=write)
    thread.start()
    statuses = [in_a_child(child) for _ in range(8)]
    stop.set()
    thread.join()
    adapter.close()
    assert statuses == [0] * 8
    assert rows(tmp_path / "a.db") == {"parent": sum(written), "child": 24}


def test_an_open_adapter_is_open_after_forks_in_parent_and_child(tmp_path):
    adapter = SQLiteAdapter(tmp_path / "a.db")
    adapter.init()
    for _ in range(2):  # the second finds it suspended already
        assert in_a_child(lambda: adapter.bulk_insert("child", events("child", 1))) == 0
    adapter.bulk_insert("parent", events("parent", 1))
    adapter.close()
    assert in_a_child(lambda: adapter.bulk_insert("child", events("child", 1))) == 1
    assert rows(tmp_path / "a.db") == {"child": 2, "parent": 1}


def test_a_fork_waits_for_calls_that_are_under_way(tmp_path):
    gate = ForkGate()
    suspended = []

    class Member:
        def suspend(self):
            suspended.append(ended.is_set())
            raise OSError("what cannot be closed is left")

    member = Member()
    gate.add(member)
    inside, ended = threading.Event(), threading.Event()

    def call():
        with gate.call(), gate.call():
            inside.set()
            time.sleep(0.05)
            ended.set()

    thread = threading.Thread(target=call)
    thread.start()
    inside.wait(10)
    assert in_a_child(lambda: None) == 0
    thread.join()
    assert suspended == [True]


def test_a_fork_does_not_wait_for_ever_nor_for_itself(tmp_path):
    gate = ForkGate(patience=0.05)
    release, inside = threading.Event(), threading.Event()
    suspended = []

    class Member:
        def suspend(self):
            suspended.append(1)

    member = Member()
    gate.add(member)

    def hang():
        with gate.call():
            inside.set()
            release.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(10)
    assert in_a_child(lambda: None) == 0
    release.set()
    thread.join()
    with gate.call():
        assert in_a_child(lambda: None) == 0
    assert suspended == [], "somebody used it"


def test_calls_wait_while_a_fork_is_under_way():
    gate = ForkGate()
    through = threading.Event()

    def call():
        with gate.call():
            through.set()

    gate._before()
    thread = threading.Thread(target=call)
    thread.start()
    assert not through.wait(0.05)
    gate._after()
    assert through.wait(10)
    thread.join()


def test_a_fork_does_not_wait_for_an_insert_that_waits_for_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite._gate, "_patience", 120)  # or it would fork with the file open
    adapter = SQLiteAdapter(tmp_path / "a.db", busy_timeout=30)
    adapter.init()

    def child():
        adapter.after_fork()
        adapter.init()
        adapter.bulk_insert("child", events("child", 2))

    with Holder(tmp_path / "a.db") as holder:
        thread = threading.Thread(target=adapter.bulk_insert, args=("parent", events("parent", 3)))
        thread.start()
        assert wait_until(lambda: sqlite._gate._calls)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child()
                status = 0
            finally:
                os._exit(status)
        assert thread.is_alive(), "the fork has waited for the insert"
        holder.let_go()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    adapter.bulk_insert("parent", events("parent", 1))
    adapter.close()
    assert rows(tmp_path / "a.db") == {"parent": 4, "child": 2}


def hang_in(enter):
    """Run a call on a thread that does not come back until the event that is returned is set."""
    release, inside = threading.Event(), threading.Event()

    def hang():
        with enter():
            inside.set()
            release.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    assert inside.wait(10)
    return release, thread


@pytest.mark.parametrize("use", ["reading", "writing"])
def test_a_child_does_not_open_a_file_that_was_carried_over_open(tmp_path, monkeypatch, use):
    monkeypatch.setattr(sqlite._gate, "_patience", 0.05)
    adapter = SQLiteAdapter(tmp_path / "a.db")
    adapter.init()
    adapter.bulk_insert("parent", events("parent", 1))

    @contextmanager
    def hung():
        with sqlite._gate.call(), getattr(adapter._connections, use)():
            yield

    release, thread = hang_in(hung)

    def child():
        adapter.after_fork()
        again = SQLiteAdapter(tmp_path / "a.db")
        for found in (adapter, again):
            with pytest.raises(AdapterUnavailableError, match="was open when this process was"):
                found.init()
            with pytest.raises(AdapterUnavailableError, match="was open when this process was"):
                found.query("parent", Filters(), Pagination(limit=1))

    assert in_a_child(child) == 0
    release.set()
    thread.join(30)
    adapter.bulk_insert("parent", events("parent", 1))
    adapter.close()
    assert rows(tmp_path / "a.db") == {"parent": 2}
