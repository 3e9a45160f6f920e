"""Clocks that jump, as they do when a machine's time is set or a virtual machine is moved.

The process's own clock is moved, for every library in it (libfaketime): to replace ``time.time``
would not reach the ids, which are made outside of Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

LIBRARIES = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/lib").glob("faketime/libfaketimeMT.so.1"),
]

PROGRAM = """
import logging, sys
from pathlib import Path
from logbun_logging import AuditTrail

clock = Path(sys.argv[1])
trail = AuditTrail(namespace="test", mode="durable", data_dir="data", adapter="sqlite:///audit.db")
log = logging.getLogger("audit")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(trail.handler)
for number in range(800):
    if number % 200 == 0:
        clock.write_text(["+0", "-400d", "+10d", "-3h"][number // 200])
    log.info("a", extra={"entity_id": number})
assert trail.flush()
"""


RETENTION = """
import logging, sys
from pathlib import Path
from logbun_logging import AuditTrail, ClockError, PruneError

clock = Path(sys.argv[1])
trail = AuditTrail(namespace="test", data_dir="data", adapter="sqlite:///audit.db",
                   retention={"days": 90})
log = logging.getLogger("audit")
log.setLevel(logging.INFO)
log.addHandler(trail.handler)
log.info("a", extra={"tenant_id": "t1"})
assert trail.flush()
assert trail.prune() == {None: 0}
for shift in ("+365d", "+3650d", "-365d"):
    clock.write_text(shift)
    log.info("a", extra={"tenant_id": "t2"})
    assert trail.flush()
    try:
        trail.prune()
    except PruneError as error:
        assert isinstance(error.failures[None], ClockError)
    else:
        raise AssertionError("it believes the clock")
    assert len(trail.query(tenant_id="t1").logs) == 1
clock.write_text("+0")
assert trail.prune() == {None: 1}, "of the year before"
assert len(trail.query(tenant_id="t1").logs) == 1
assert trail.stats()["retention_failures"] == 3
"""


@pytest.fixture
def run(tmp_path):
    """Run a program whose clock is what a file says, which it may write."""
    if not LIBRARIES:
        pytest.skip("libfaketime is missing: apt-get install faketime")
    return partial(_run, tmp_path)


def _run(tmp_path, program):
    clock = tmp_path / "clock"
    clock.write_text("+0")
    done = subprocess.run(
        [sys.executable, "-c", program, str(clock)],
        cwd=tmp_path,
        env={
            **os.environ,
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_ids_rise_though_the_clock_jumps_to_and_fro(run, make_trail):
    run(PROGRAM)
    events = sorted(make_trail().iter(), key=lambda event: event.id)
    assert [int(event.entity_id) for event in events] == list(range(800))
    now, past, future, before = (event.created_at for event in events[100::200])
    assert past < before < now < future


def test_retention_removes_nothing_of_today_while_the_clock_is_wrong(run):
    run(RETENTION)
