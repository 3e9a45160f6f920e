"""What one call costs the thread that makes it: ``python -m tests.benchmarks.calls``.

The baseline is the stdlib's ``QueueHandler(queue.Queue)`` with a running ``QueueListener``, the
same logger and the same extras. Ours do all of their work meanwhile: the listener, the batching and
the inserts into SQLite run in the same process and share its GIL.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from logbun_logging import AuditLogger, AuditTrail
from tests.benchmarks.harness import Figure, interleave, report

CALLS = 2_000
ROUNDS = 31

#: An event of 9 fields and about 430 bytes of JSON.
FIELDS = {
    "tenant_id": "tenant_123",
    "actor_id": "user_42",
    "entity_type": "course",
    "entity_id": "course_7",
    "outcome": "success",
    "request_id": "0af7651916cd43dd8448eb211c80319c",
    "new_values": {"title": "Advanced Python", "seats": 30},
    "metadata": {"plan": "pro", "source": "web"},
    "ip_address": "203.0.113.9",
}


def per_call(call: Callable[[], None], settle: Callable[[], object]) -> Callable[[], float]:
    """Return a function that measures a burst of calls, in µs for each, and then lets it drain."""

    def run() -> float:
        repeat = range(CALLS)
        started = time.perf_counter()
        for _ in repeat:
            call()
        took = time.perf_counter() - started
        settle()
        return took / CALLS * 1e6

    return run


def logger_with(name: str, handler: logging.Handler) -> logging.Logger:
    """Return a plain logger that has this one handler."""
    logger = logging.getLogger(f"benchmark.{name}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers[:] = [handler]
    return logger


@contextmanager
def stock() -> Iterator[tuple[logging.Logger, Callable[[], object]]]:
    """The baseline: the standard library's queue handler and listener."""
    carried: queue.Queue[logging.LogRecord] = queue.Queue()
    listener = logging.handlers.QueueListener(carried, logging.NullHandler())
    listener.start()
    logger = logger_with("stock", logging.handlers.QueueHandler(carried))
    yield logger, carried.join
    listener.stop()


@contextmanager
def ours(folder: str, mode: str, **options: object) -> Iterator[AuditTrail]:
    """A trail that keeps its events in SQLite."""
    options.setdefault("adapter", f"sqlite:///{folder}/{mode}.db")
    with AuditTrail(namespace=Path(folder).name, data_dir=folder, mode=mode, **options) as trail:
        assert trail.ready()
        yield trail


def measure() -> list[Figure]:
    """Return the cost of every kind of call beside the baseline's."""
    with ExitStack() as stack:
        logger, settle = stack.enter_context(stock())
        null = logger_with("null", logging.NullHandler())
        subjects = {
            "stock": per_call(lambda: logger.info("course.created", extra=FIELDS), settle),
            "null": per_call(lambda: null.info("course.created", extra=FIELDS), lambda: None),
        }
        for mode in ("volatile", "durable"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
            trail = stack.enter_context(ours(folder, mode))
            plain = logger_with(mode, trail.handler)
            fire = AuditLogger(plain).fire
            subjects[mode] = per_call(
                lambda plain=plain: plain.info("course.created", extra=FIELDS), trail.flush
            )
            subjects[mode + " fire"] = per_call(
                lambda fire=fire: fire("course.created", **FIELDS), trail.flush
            )
        found = interleave(subjects, ROUNDS)
    base = found["stock"]
    figures = [
        Figure("stock logger, NullHandler", found["null"], "µs"),
        Figure("stock QueueHandler(queue.Queue) + QueueListener: the baseline", base, "µs"),
    ]
    for name, text, bound in (
        ("volatile", "info(), volatile", 0.8),
        ("durable", "info(), durable (fsync=interval)", 1.0),
        ("volatile fire", "fire(), volatile", 0.4),
        ("durable fire", "fire(), durable (fsync=interval)", 0.55),
    ):
        figures.append(Figure(text, found[name], "µs"))
        figures.append(Figure(f"{text}, to the baseline", found[name] / base, "x", at_most=bound))
    return figures


if __name__ == "__main__":
    raise SystemExit(not report("What a call costs the calling thread", measure()))
