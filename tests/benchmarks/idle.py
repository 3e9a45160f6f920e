"""What a trail costs that nobody uses: ``python -m tests.benchmarks.idle``.

Each program runs in a process of its own and is looked at from outside, through ``/proc``: its
resident memory, its threads, and how often all of them together wake up in a second.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import Figure, report

#: How long the wake-ups are counted, in seconds.
WATCHED = 10.0

#: Trails in one process, each with a database of its own.
MANY = 20

BARE = "import logging.handlers, logging.config, sqlite3"

OURS = """
import logging, logbun_logging
for number in range({trails}):
    name = f"idle{{number}}"
    trail = logbun_logging.AuditTrail(namespace=name, mode={mode!r}, data_dir={folder!r},
                                      adapter="sqlite:///" + {folder!r} + f"/{{name}}.db")
    logger = logging.getLogger(name)
    logger.setLevel("INFO")
    logger.addHandler(trail.handler)
    logbun_logging.get_audit_logger(name).fire("service.started", tenant_id="t")
    assert trail.flush() and trail.stats()["inserted"] == 1
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process costs: MiB, threads, wake-ups a second."""

    memory: float
    threads: int
    wake_ups: float


def cost_of(program: str) -> Cost:
    """Run *program*, and watch the process while it waits."""
    waiting = program + "\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the program ended:\n{program}")
        time.sleep(7)  # what the start has to do is done
        before = wake_ups(process.pid)
        time.sleep(WATCHED)
        rate = (wake_ups(process.pid) - before) / WATCHED
        status = fields(Path(f"/proc/{process.pid}/status"))
        process.stdin.close()
        process.wait()
    return Cost(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), rate)


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have given up the processor by themselves."""
    return sum(
        int(fields(path)["voluntary_ctxt_switches"])
        for path in Path(f"/proc/{pid}/task").glob("*/status")
    )


def fields(path: Path) -> dict[str, str]:
    """Return the fields of a ``status`` file."""
    lines = (line.split(":", 1) for line in path.read_text().splitlines())
    return {name: value.strip() for name, value in lines}


def measure() -> list[Figure]:
    """Compare a process with an idle trail to one that has imported logging and SQLite."""
    bare = cost_of(BARE)
    figures = [Figure("bare Python with logging and sqlite3", bare.memory, "MiB")]
    for mode, trails in (("volatile", 1), ("durable", 1), ("durable", MANY)):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            cost = cost_of(OURS.format(mode=mode, folder=folder, trails=trails))
        name = mode if trails == 1 else f"{trails} trails, {mode}"
        bound = 25 if trails == 1 else None
        figures += [
            Figure(f"{name}: memory over it", cost.memory - bare.memory, "MiB", at_most=bound),
            Figure(f"{name}: threads over it", cost.threads - bare.threads, ""),
            Figure(f"{name}: wake-ups", cost.wake_ups, "a second"),
        ]
    return figures


if __name__ == "__main__":
    raise SystemExit(not report("An idle trail", measure()))
