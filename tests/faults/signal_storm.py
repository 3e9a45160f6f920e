"""Signals while threads log: ``python -m tests.faults.signal_storm --threads 3 --signals 400``.

The handler of each signal logs, or raises, while the main thread is somewhere in a call that waits
for a shared sync. Nobody may be left waiting, and what was acknowledged has to be in the database,
once. A program that hangs says where, and ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing

from tests.faults.workload import make_trail

#: A program that takes longer hangs, in seconds.
PATIENCE = 60


class Stopped(BaseException):
    """What a handler raises."""


def storm(folder, *, raising, threads, signals):
    """Return what was acknowledged, and what is in the database."""
    trail = make_trail(folder, segment_bytes=65_536)
    logger = logging.getLogger("storm")
    logger.setLevel(logging.INFO)
    logger.addHandler(trail.handler)
    done = [[] for _ in range(threads + 2)]
    stop = threading.Event()
    seen = 0

    def log(number):
        name = f"{number}-{len(done[number])}"
        if raising:  # whether that one is there is not known
            name += f"-{seen}"
        logger.info("a", extra={"tenant_id": f"t{number}", "entity_id": name})
        done[number].append(name)

    def handle(*_):
        nonlocal seen
        seen += 1
        if raising:
            raise Stopped
        log(-1)

    def work(number):
        while not stop.is_set():
            log(number)

    def progress():
        """Wait until each thread has logged once more."""
        before = [len(names) for names in done[1:-1]]
        while any(len(now) == then for now, then in zip(done[1:-1], before, strict=True)):
            time.sleep(0.0005)

    log(0)
    signal.signal(signal.SIGALRM, handle)
    workers = [threading.Thread(target=work, args=(n + 1,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for number in range(signals):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001 + number % 97 * 0.00003)
            while seen == number:
                log(0)
        except Stopped:
            pass
        progress()
    stop.set()
    for worker in workers:
        worker.join()
    assert trail.shutdown(20), trail.stats()
    assert trail.stats()["wal_failures"] == 0
    with closing(sqlite3.connect(f"{folder}/audit.db")) as connection:
        rows = [row for (row,) in connection.execute("SELECT entity_id FROM audit_logs")]
    return [name for names in done for name in names], rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raising", action="store_true", help="handlers raise instead of logging")
    parser.add_argument("--threads", type=int, default=3, help="that log besides the main one")
    parser.add_argument("--signals", type=int, default=400)
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        acknowledged, rows = storm(folder, **vars(arguments))
    lost = len(set(acknowledged) - set(rows))
    doubled = sum(count - 1 for count in Counter(rows).values())
    print(f"{len(acknowledged):,} acknowledged, {lost} lost, {doubled} doubled", flush=True)
    sys.exit(bool(lost or doubled))


if __name__ == "__main__":
    main()
