"""Many threads that call at once: ``python -m tests.benchmarks.threads``.

What they share (the interpreter, admission, one file) must not make them slower together than one
is alone, and no call may wait long for the pipeline's own threads. With ``fsync="always"`` they
must share the syncs.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

from logbun_logging import AuditLogger
from logbun_logging._storage.wal.commit import GroupCommit
from tests.benchmarks.calls import FIELDS, logger_with, ours
from tests.benchmarks.harness import Figure, interleave, report

CALLS = 20_000
PACED_CALLS = 8_000
PAUSE = 0.001
SYNCED_CALLS = 200
ROUNDS = 7


def together(call, threads: int, calls: int) -> float:
    """Return the calls in a second of *threads* threads that make *calls* altogether."""
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        repeat = range(calls // threads)
        barrier.wait()
        for _ in repeat:
            call()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return calls / (time.perf_counter() - started)


def latencies(call, threads: int, calls: int, pause: float = 0.0) -> list[int]:
    """Return the nanoseconds of every call, sorted; each is followed by *pause* seconds."""
    found: list[list[int]] = [[] for _ in range(threads)]
    barrier = threading.Barrier(threads)

    def work(mine: list[int]) -> None:
        clock = time.perf_counter_ns
        repeat = range(calls // threads)
        barrier.wait()
        for _ in repeat:
            started = clock()
            call()
            mine.append(clock() - started)
            if pause:
                time.sleep(pause)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(took for mine in found for took in mine)


def measure_throughput() -> list[Figure]:
    """Compare one thread with four, and look for calls that waited."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ours(folder, "durable", limits={"max_total_queued": 1_000_000}) as trail,
    ):
        logger = logger_with("threads", trail.handler)

        def call() -> None:
            logger.info("course.created", extra=FIELDS)

        def throughput(threads: int):
            def run() -> float:
                rate = together(call, threads, CALLS)
                trail.flush()
                return rate

            return run

        found = interleave({"one": throughput(1), "four": throughput(4)}, ROUNDS)
        paced = tail_of(call, PACED_CALLS, PAUSE, trail.flush)
        at_once = tail_of(call, CALLS, 0.0, trail.flush)
    with tempfile.TemporaryFile(buffering=0) as file:
        number = file.fileno()
        line = bytes(430)

        def bare() -> None:
            sum(range(300))  # as long as the rest of a call takes
            os.write(number, line)

        floor = interleave(
            {
                "one": lambda: together(bare, 1, CALLS),
                "four": lambda: together(bare, 4, CALLS),
            },
            ROUNDS,
        )
        floor_tail = tail_of(bare, CALLS, 0.0, lambda: None)
    return [
        Figure("one thread, durable", found["one"], "calls/s"),
        Figure("four threads, durable", found["four"], "calls/s"),
        Figure("four threads to one", found["four"] / found["one"], "x", at_least=0.8),
        Figure("the same of a bare loop around os.write", floor["four"] / floor["one"], "x"),
        Figure("four threads at 1,000 calls/s each while flushes run: p50", paced[0], "µs"),
        Figure("their p99.9", paced[1], "µs"),
        Figure("their p99.9 to p50", paced[2], "x", at_most=50),
        Figure("four threads that do nothing but call: p50", at_once[0], "µs"),
        Figure("their p99.9", at_once[1], "µs"),
        Figure("their p99.9 to p50", at_once[2], "x"),
        Figure("the same of a bare loop around os.write", floor_tail[2], "x"),
    ]


def tail_of(
    call: Callable[[], object], calls: int, pause: float, settle: Callable[[], object]
) -> tuple[float, float, float]:
    """Return p50 and p99.9 of four threads' calls, in µs, and their ratio."""
    found = []
    for _ in range(ROUNDS):
        took = latencies(call, 4, calls, pause)
        settle()
        half, tail = took[len(took) // 2] / 1000, took[len(took) * 999 // 1000] / 1000
        found.append((half, tail, tail / half))
    halves, tails, ratios = zip(*found, strict=True)
    return median(halves), median(tails), median(ratios)


def measure_group_commit() -> list[Figure]:
    """Compare one thread with sixteen when every call is synced.

    Sixteen threads take turns at the interpreter, and each turn costs the waking of a thread, which
    no library can avoid: on a disk as fast as that, it costs more than the syncs that are saved.
    The bare loop shows that bound; the slower disk shows what is left of it.
    """
    fast = group_commit()
    with slower_syncs():
        slow = group_commit()
    with tempfile.TemporaryFile(buffering=0) as file:
        number = file.fileno()
        line = bytes(430)
        group = GroupCommit(lambda: os.fdatasync(number) is None, lambda: None)

        def bare() -> None:
            sum(range(300))  # as long as the rest of a call takes
            os.write(number, line)
            group.wait()

        floor = one_and_sixteen(bare, lambda: None)
    return [
        Figure("one thread, fsync=always", fast["one"], "calls/s"),
        Figure("sixteen threads, fsync=always", fast["sixteen"], "calls/s"),
        Figure("sixteen threads to one", fast["sixteen"] / fast["one"], "x", at_least=6),
        Figure("the same of a bare loop", floor["sixteen"] / floor["one"], "x"),
        Figure("one thread, a disk 1 ms slower", slow["one"], "calls/s"),
        Figure("sixteen threads, a disk 1 ms slower", slow["sixteen"], "calls/s"),
        Figure("sixteen threads to one", slow["sixteen"] / slow["one"], "x", at_least=6),
    ]


def group_commit() -> dict[str, float]:
    """Return the calls in a second of one thread and of sixteen, every call synced."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ours(folder, "durable", fsync="always") as trail,
    ):
        fire = AuditLogger(logger_with("group", trail.handler)).fire
        return one_and_sixteen(lambda: fire("course.created", **FIELDS), trail.flush)


def one_and_sixteen(call: Callable[[], object], settle: Callable[[], object]) -> dict[str, float]:
    """Return the calls in a second of one thread and of sixteen."""

    def throughput(threads: int) -> Callable[[], float]:
        def run() -> float:
            rate = together(call, threads, SYNCED_CALLS * threads)
            settle()
            return rate

        return run

    return interleave({"one": throughput(1), "sixteen": throughput(16)}, ROUNDS)


@contextmanager
def slower_syncs() -> Iterator[None]:
    """Make every sync take a millisecond more, as on a disk of a rented server."""
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        sync(descriptor)
        time.sleep(0.001)

    with patch.object(os, "fdatasync", slow):
        yield


def measure() -> list[Figure]:
    """Return all figures of threads."""
    gc.collect()
    return measure_throughput() + measure_group_commit()


if __name__ == "__main__":
    raise SystemExit(not report("Many threads at once", measure()))
