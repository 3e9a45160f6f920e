"""Logs from several threads, and prints each event's name after its call has returned.

The program that the other modules of this folder kill, starve, or cut the power of::

    python -m tests.faults.workload FOLDER RUN [--fsync always] [--events 100] [--outages 0.3] ...

A line is the name, 1 if the event was safe by ``fsync="always"`` when its call returned (0 if the
disk failed), and the time. Names are ``RUN-THREAD-NUMBER``; thread and tenant go together, so the
events of a tenant are in order. What ``on_event`` tells is printed the same way, after a ``!``.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import threading
import time

from logbun_logging import AdapterUnavailableError, AuditTrail, get_audit_logger
from logbun_logging.adapters import SQLiteAdapter


class FlakySQLite(SQLiteAdapter):
    """Is unreachable now and then, so that batches go to the DLQ and come back."""

    outages = 0.0

    def insert_encoded(self, batches):
        if random.random() < self.outages:
            raise AdapterUnavailableError("flaky")
        return super().insert_encoded(batches)


def wait():
    os.write(1, b"ready\n")
    sys.stdin.readline()


def make_trail(
    folder,
    *,
    fsync="always",
    outages=0.0,
    segment_bytes=4096,
    flush_interval=0.05,
    database=None,
    on_event=None,
):
    adapter = FlakySQLite(database or f"{folder}/audit.db")
    adapter.outages = outages
    return AuditTrail(
        namespace="kill",
        data_dir=folder,
        mode="durable",
        fsync=fsync,
        adapter=adapter,
        batching={"flush_interval": flush_interval},
        retry={"max_retries": 0, "first_scan": 0.1, "scan_interval": 0.25},
        wal={"segment_bytes": segment_bytes},
        on_event=on_event,
    )


def say(name, ok=True):
    """Print a line, whatever fault is injected into ``write`` just now."""
    while True:
        try:
            os.write(1, f"{name} {ok:d} {time.monotonic()}\n".encode())
        except OSError:
            continue
        return


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("run")
    parser.add_argument("--fsync", default="always")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--events", type=int, default=0, help="by each thread; 0 goes on for ever")
    parser.add_argument("--pause", type=float, default=0.0, help="between two events, in seconds")
    parser.add_argument("--segment-bytes", type=int, default=4096)
    parser.add_argument("--database", default=None, help="FOLDER/audit.db by default")
    parser.add_argument("--outages", type=float, default=0.0, help="part of the inserts that fail")
    parser.add_argument("--wait", action="store_true", help="for a line before anything is done")
    parser.add_argument("--wait-started", action="store_true", help="the same, after the start")
    parser.add_argument("--flush-interval", type=float, default=0.05)
    arguments = parser.parse_args()
    if arguments.wait:
        wait()
    trail = make_trail(
        arguments.folder,
        fsync=arguments.fsync,
        outages=arguments.outages,
        segment_bytes=arguments.segment_bytes,
        database=arguments.database,
        flush_interval=arguments.flush_interval,
        on_event=lambda name, _: say("!" + name),
    )
    logger = logging.getLogger("kill")
    logger.addHandler(trail.handler)
    logger.setLevel(logging.INFO)
    audit = get_audit_logger("kill")
    commit, synced = trail.pipeline.wal.commit, threading.local()

    def noting_commit():
        synced.ok = commit()
        return synced.ok

    trail.pipeline.wal.commit = noting_commit
    if arguments.wait_started:
        trail.ready()
        wait()

    def work(thread):
        number = 0
        while not arguments.events or number < arguments.events:
            name = f"{arguments.run}-{thread}-{number}"
            synced.ok = True
            audit.fire("x.y", tenant_id=f"t{thread}", actor_id="u", entity_id=name, pad="x" * 200)
            say(name, synced.ok)
            number += 1
            if arguments.pause:
                time.sleep(arguments.pause)

    threads = [
        threading.Thread(target=work, args=(number,), daemon=True)
        for number in range(arguments.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trail.shutdown(20)


if __name__ == "__main__":
    main()
