"""The end of the interpreter: what is logged then, and when no thread can be started any more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from logbun_logging import AuditTrail
from tests.fakes import SharedMemoryAdapter, wait_until

PROGRAM = """
import atexit, logging, sys, threading
from concurrent.futures import ThreadPoolExecutor
from logbun_logging import AuditTrail

trail = AuditTrail(
    namespace="test",
    mode=sys.argv[1],
    data_dir="data",
    adapter="sqlite:///audit.db",
    flush_timeout=20,
)
log = logging.getLogger("audit")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(trail.handler)


def burst(first=0):
    for number in range(first, first + 300):
        log.info("a", extra={"entity_id": number})


"""

#: Python 3.12 starts no thread once the main one has ended, others do until atexit is over.
LATE_STARTS = {
    "a thread that outlives the main one": (
        "late = threading.Event()\n"
        "threading._register_atexit(late.set)\n"
        "threading.Thread(target=lambda: (late.wait(), burst())).start()\n"
    ),
    "an executor that is not waited for": (
        "ThreadPoolExecutor(2).map(burst, [0, 300, 600, 900])\n"
    ),
    "the first call is made in atexit": "atexit.register(burst)\n",
    "flushed and asked in atexit": (
        "def last():\n"
        "    burst()\n"
        "    assert trail.flush()\n"
        "    assert len(trail.query(limit=1000).logs) == 300\n"
        "    print('flushed')\n"
        "atexit.register(last)\n"
    ),
}


def run(folder, program, mode):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, mode],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("mode", ["volatile", "durable"])
@pytest.mark.parametrize("case", LATE_STARTS)
def test_what_begins_when_the_main_thread_has_ended_is_delivered(tmp_path, make_trail, case, mode):
    done = run(tmp_path, LATE_STARTS[case], mode)
    assert done.stderr == ""
    numbers = [int(event.entity_id) for event in make_trail().iter()]
    assert sorted(numbers) == list(range(len(numbers)))
    assert len(numbers) == (1200 if "executor" in case else 300)
    # Nothing was left for the flush at the very end, which would have waited for its time-out.
    assert not list((tmp_path / "data").rglob("*.batch"))
    assert ("flushed" in done.stdout) == ("asked" in case)


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_what_comes_after_a_configuration_for_others_is_delivered_at_the_end(
    tmp_path, make_trail, mode
):
    program = (
        "burst()\n"
        "import logging.config\n"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': False})\n"
        "atexit.register(burst, 600)\n"
        "burst(300)\n"
    )
    assert run(tmp_path, program, mode).stderr == ""
    numbers = sorted(int(event.entity_id) for event in make_trail().iter())
    assert numbers == list(range(900))


@pytest.mark.parametrize(
    ("registered", "mode", "delivered"),
    [(True, "volatile", 0), (True, "durable", 1), (False, "volatile", 0), (False, "durable", 1)],
)
def test_a_first_call_while_modules_are_torn_down_neither_hangs_nor_raises(
    tmp_path, make_trail, registered, mode, delivered
):
    """Nobody is left to deliver; what the WAL has taken, the next start does."""
    program = "" if registered else "logging._handlerList.clear()\n"
    program += (
        "class Last:\n    def __del__(self, log=log):\n        log.info('last')\nlast = Last()\n"
    )
    err = run(tmp_path, program, mode).stderr
    told = registered and mode == "volatile"
    assert err.startswith("test: Lost 1 event: ") == told
    assert len(err.splitlines()) == told
    trail = make_trail(mode="durable")
    assert trail.ready()
    assert trail.flush(20)
    assert [event.action for event in trail.query().logs] == ["last"] * delivered


#: Threads that go on until the process ends, and note each call that has returned.
DAEMONS = """
import atexit, os, sys
if sys.argv[2] == "an exit handler that was registered before logging":
    atexit.register(lambda: [write(f"last-{n}") for n in range(50)])
import logging, threading, time
from logbun_logging import AuditTrail, shutdown_on_signals

trail = AuditTrail(
    namespace="test",
    mode="durable",
    fsync=sys.argv[1],
    data_dir="data",
    adapter="sqlite:///audit.db",
    flush_timeout=20,
)
log = logging.getLogger("audit")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(trail.handler)
returned = os.open("returned", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def write(name):
    log.info("a", extra={"entity_id": name})
    os.write(returned, f"{name}\\n".encode())


def work(index):
    number = 0
    while True:
        write(f"{index}-{number}")
        number += 1
        time.sleep(0.0005)


for index in range(4):
    threading.Thread(target=work, args=(index,), daemon=True).start()
assert trail.ready(20)
if sys.argv[2] == "SIGTERM":
    shutdown_on_signals()
if sys.argv[2] in ("SIGTERM", "SIGKILL"):
    print("ready", flush=True)
    time.sleep(60)
"""

ENDS = {
    "the end of the program": 0,
    "an exit handler that was registered before logging": 0,
    "SIGTERM": 128 + signal.SIGTERM,
    "SIGKILL": -signal.SIGKILL,
}


@pytest.mark.parametrize("fsync", ["interval", "always"])
@pytest.mark.parametrize("end", ENDS)
def test_each_call_of_a_daemon_thread_that_has_returned_is_delivered_by_the_next_start(
    tmp_path, make_trail, end, fsync
):
    with subprocess.Popen(
        [sys.executable, "-c", DAEMONS, fsync, end], cwd=tmp_path, stdout=subprocess.PIPE
    ) as process:
        if end.startswith("SIG"):
            process.stdout.readline()
            wait_until(lambda: (tmp_path / "returned").stat().st_size > 2_000)
            process.send_signal(getattr(signal, end))
        assert process.wait(60) == ENDS[end]
    trail = make_trail(mode="durable")
    assert trail.ready()
    assert trail.flush(20)
    found = [event.entity_id for event in trail.iter()]
    assert len(found) == len({*found})
    assert {*(tmp_path / "returned").read_text().split()} <= {*found}


@pytest.mark.parametrize("mode", ["volatile", "durable"])
def test_what_comes_after_the_end_is_delivered_once_by_the_namespaces_next_trail(
    make_trail, make_logger, mode
):
    adapter = SharedMemoryAdapter()
    trail = make_trail(mode=mode, adapter=adapter)
    log = make_logger(trail.handler)
    log.info("in time")
    trail.shutdown()
    stop = threading.Event()
    counts = [0, 0, 0]

    def work(index):
        while not stop.wait(0.001):
            log.info("late", extra={"entity_id": f"{index}-{counts[index]}"})
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for goal in (20, 40):
        assert wait_until(lambda goal=goal: min(counts) > goal)
        following = make_trail(mode=mode, adapter=adapter)
        assert wait_until(lambda goal=goal: min(counts) > goal + 10)
        following.shutdown(20)  # False if somebody logged after its last look
    stop.set()
    for thread in threads:
        thread.join()
    last = make_trail(mode=mode, adapter=adapter)
    assert last.ready()
    assert last.flush(20)
    found = sorted(event.entity_id for event in adapter.events.values() if event.entity_id)
    assert found == sorted(f"{index}-{n}" for index in range(3) for n in range(counts[index]))
    assert len(adapter.events) == len(found) + 1


def test_what_comes_after_the_end_is_counted_as_lost_while_the_disk_takes_nothing(
    make_trail, make_logger, tmp_path
):
    trail = make_trail(mode="durable", adapter=SharedMemoryAdapter(), fsync="always")
    log = make_logger(trail.handler)
    trail.shutdown()
    trail.options.folder.parent.mkdir(exist_ok=True)
    trail.options.folder.write_text("where the folder should be")
    log.info("late")
    stats = trail.stats()
    assert (stats["accepted"], stats["lost"], stats["wal"]["deferred"]) == (1, 1, 0)
    trail.options.folder.unlink()
    logged = 1

    def taken():
        nonlocal logged
        log.info("later")
        logged += 1
        return trail.stats()["wal"]["deferred"]

    assert wait_until(taken)
    following = make_trail(mode="durable", adapter=SharedMemoryAdapter())
    assert following.ready()
    assert following.flush(20)
    stored = following.pipeline.databases._target.adapter.events.values()
    assert [event.action for event in stored].count("late") == 1
    assert len(stored) == logged


def test_what_comes_after_the_end_stays_the_parents_in_a_forked_child(make_trail, make_logger):
    trail = make_trail(mode="durable", adapter=SharedMemoryAdapter())
    log = make_logger(trail.handler)
    log.info("in time")
    trail.shutdown()
    log.info("late")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            following = AuditTrail(
                namespace="test",
                data_dir=trail.options.data_dir,
                mode="durable",
                adapter=SharedMemoryAdapter(),
            )
            assert following.ready()
            assert following.flush(20)
            assert following.stats()["recovered"] == 0
            assert following.shutdown(20)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    adapter = SharedMemoryAdapter()
    following = make_trail(mode="durable", adapter=adapter)
    assert following.ready()
    assert following.flush(20)
    assert [event.action for event in adapter.events.values()] == ["late"]
