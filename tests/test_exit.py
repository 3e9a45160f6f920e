"""The end of the interpreter: what is logged then, and when no thread can be started any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
    [(True, "volatile", 0), (True, "durable", 0), (False, "volatile", 0), (False, "durable", 1)],
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
    assert err == ("test: lost events=1\n" if registered else "")
    trail = make_trail(mode="durable")
    assert trail.ready()
    assert trail.flush(20)
    assert [event.action for event in trail.query().logs] == ["last"] * delivered
