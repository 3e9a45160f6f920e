"""What ``import logbun_logging`` costs: ``python -m tests.benchmarks.importing``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial

from tests.benchmarks.harness import Figure, interleave, report

ROUNDS = 15
DRIVERS = ("sqlite_utils", "libsql_client", "clickhouse_connect", "chdb", "structlog")


def start_of(code: str, cache: str) -> float:
    """Return the milliseconds that an interpreter with *code* lives, its bytecode cached."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return (time.perf_counter() - started) * 1000


def measure() -> list[Figure]:
    """Return the time of the import, and the drivers that came along."""
    programs = {
        "bare": "pass",
        "logging": "import logging.handlers, logging.config",
        "ours": "import logbun_logging",
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-") as cache:
        found = interleave(
            {name: partial(start_of, code, cache) for name, code in programs.items()}, ROUNDS
        )
    code = f"import sys, logbun_logging; sys.exit(sum(d in sys.modules for d in {DRIVERS!r}))"
    drivers = subprocess.run([sys.executable, "-c", code], check=False).returncode
    return [
        Figure("a bare interpreter", found["bare"], "ms"),
        Figure("with logging.handlers and logging.config", found["logging"], "ms"),
        Figure("with logbun_logging", found["ours"], "ms"),
        Figure("over the bare one", found["ours"] - found["bare"], "ms", at_most=60),
        Figure("drivers imported", drivers, "", at_most=0),
    ]


if __name__ == "__main__":
    raise SystemExit(not report("import logbun_logging", measure()))
