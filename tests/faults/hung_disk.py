"""Logs, and shuts down while the disk hangs: ``python -m tests.faults.hung_disk FOLDER``.

Prints ``ready`` once it has started, waits for a line (strace is attached meanwhile, to delay every
sync), logs, and prints how many seconds ``shutdown(1)`` took.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from tests.faults.rig import Workload
from tests.faults.workload import make_trail, wait

EVENTS = 50


def run(folder, seconds):
    """Let every sync hang for so many seconds; return how many of them ``shutdown`` took."""
    workload = Workload(folder, module="hung_disk")
    try:
        assert workload.process.stdout.readline() == b"ready\n"
        workload.trace(f"fdatasync,fsync:delay_enter={seconds}s")
        workload.go()
        return float(workload.process.stdout.readline())
    finally:
        workload.let_go()
        workload.kill()
        workload.process.communicate()


def main():
    (folder,) = sys.argv[1:]
    trail = make_trail(folder, segment_bytes=1 << 20, fsync="interval")
    logger = logging.getLogger("hung")
    logger.setLevel(logging.INFO)
    logger.addHandler(trail.handler)
    assert trail.ready(20)
    logger.info("a", extra={"tenant_id": "t", "entity_id": "first"})
    assert trail.flush(20)
    wait()
    for number in range(EVENTS):
        logger.info("a", extra={"tenant_id": "t", "entity_id": str(number)})
    started = time.monotonic()
    trail.shutdown(1)
    print(f"{time.monotonic() - started:.2f}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
