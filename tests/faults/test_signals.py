"""Signal handlers that log, or raise, in the midst of a call that waits for a shared sync."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import pytest

from logbun_logging._engine.queue import RecordQueue
from logbun_logging._storage.wal.segment import Segment
from logbun_logging._storage.wal.writer import WalWriter
from logbun_logging.logger import AuditLogger
from logbun_logging.options import WalOptions
from tests.fakes import SharedMemoryAdapter, wait_until
from tests.faults.rig import ROOT


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("handler", ["logs", "raises"])
def test_a_signal_handler_leaves_nobody_waiting_and_nothing_lost(handler, threads):
    arguments = ["--threads", str(threads), "--signals", "150"]
    if handler == "raises":
        arguments.append("--raising")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.signal_storm", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 doubled" in done.stdout


def _ring_the_queue(folder):
    queue = RecordQueue()
    reader = threading.Thread(target=queue.get, daemon=True)
    reader.start()
    wait_until(lambda: queue._asleep)
    yield lambda: queue.put_nowait(None)


def _ring_the_wal_thread(folder):
    writer = WalWriter(folder, "interval", WalOptions(), lambda *_: None)
    writer.open()
    yield lambda: writer._mark_failed(Segment(None), OSError("full"))
    writer.close()


@pytest.mark.parametrize("rings", [_ring_the_queue, _ring_the_wal_thread])
def test_a_signal_handler_may_log_while_another_thread_is_woken(tmp_path, rings):
    interrupted = set()
    for ring in rings(tmp_path):

        def interrupt(frame, _event, _argument, ring=ring):
            # Python looks at signals where it calls this: at every call and return.
            interrupted.add(frame.f_code.co_name)
            ring()

        def call(interrupt=interrupt, ring=ring):
            sys.setprofile(interrupt)
            ring()
            sys.setprofile(None)

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(10)
        assert not caller.is_alive()
    assert "ring" in interrupted


def test_a_signal_handler_may_log_for_new_tenants_while_the_trail_is_looked_at(
    make_trail, make_logger
):
    trail = make_trail(adapter=SharedMemoryAdapter())
    audit = AuditLogger(make_logger(trail.handler))
    audit.fire("first", tenant_id="first")
    assert trail.flush(20)
    signals = itertools.count()
    looked = []

    def interrupt(_frame, _event, _argument):
        audit.fire("signal", tenant_id=f"t{next(signals)}")  # without an actor, which is counted

    def look():
        sys.setprofile(interrupt)
        looked.append(trail.stats()["accepted"])
        looked.append(trail.flush(0.0))
        sys.setprofile(None)

    caller = threading.Thread(target=look, daemon=True)
    caller.start()
    caller.join(30)
    assert not caller.is_alive()
    assert len(looked) == 2
    assert trail.flush(20)
    assert trail.stats()["accepted"] == next(signals) + 1
