"""Many threads that call at once: ``python -m tests.benchmarks.threads``.

What they share (the interpreter, admission, one file) must not make them slower together than one
is alone, and no call may wait long for the pipeline's own threads. With ``fsync="always"`` they
must share the syncs.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from statistics import median

from logbun_logging import AuditLogger
from tests.benchmarks.calls import FIELDS, logger_with, ours
from tests.benchmarks.harness import Figure, interleave, report

CALLS = 20_000
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


def latencies(call, threads: int, calls: int) -> list[int]:
    """Return the nanoseconds of every call, sorted."""
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
        ratios = []
        medians = []
        tails = []
        for _ in range(ROUNDS):
            took = latencies(call, 4, CALLS)
            trail.flush()
            medians.append(took[len(took) // 2] / 1000)
            tails.append(took[len(took) * 999 // 1000] / 1000)
            ratios.append(tails[-1] / medians[-1])
    return [
        Figure("one thread, durable", found["one"], "calls/s"),
        Figure("four threads, durable", found["four"], "calls/s"),
        Figure("four threads to one", found["four"] / found["one"], "x", at_least=0.8),
        Figure("median call of four threads", median(medians), "µs"),
        Figure("p99.9 of four threads, while flushes run", median(tails), "µs"),
        Figure("p99.9 to the median", median(ratios), "x", at_most=50),
    ]


def measure_group_commit() -> list[Figure]:
    """Compare one thread with sixteen when every call is synced."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        ours(folder, "durable", fsync="always") as trail,
    ):
        fire = AuditLogger(logger_with("group", trail.handler)).fire

        def call() -> None:
            fire("course.created", **FIELDS)

        def throughput(threads: int):
            def run() -> float:
                rate = together(call, threads, SYNCED_CALLS * threads)
                trail.flush()
                return rate

            return run

        found = interleave({"one": throughput(1), "sixteen": throughput(16)}, ROUNDS)
    return [
        Figure("one thread, fsync=always", found["one"], "calls/s"),
        Figure("sixteen threads, fsync=always", found["sixteen"], "calls/s"),
        Figure("sixteen threads to one", found["sixteen"] / found["one"], "x", at_least=6),
    ]


def measure() -> list[Figure]:
    """Return all figures of threads."""
    gc.collect()
    return measure_throughput() + measure_group_commit()


if __name__ == "__main__":
    raise SystemExit(not report("Many threads at once", measure()))
