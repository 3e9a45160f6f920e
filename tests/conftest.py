"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import shutil
import signal
import sys
from pathlib import Path

import pytest

from logbun_logging import AuditTrail

_names = itertools.count()

# Shells start background jobs with SIGINT ignored, and programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: What tests need beside the extra ``dev``, and how to find it.
HEAVY = {
    "chdb": lambda: importlib.util.find_spec("chdb"),
    "libsql-client": lambda: importlib.util.find_spec("libsql_client"),
    "litestar": lambda: importlib.util.find_spec("litestar"),
    "uwsgi": lambda: shutil.which("uwsgi", path=str(Path(sys.executable).parent)),
    "npm, for the libSQL server": lambda: shutil.which("npm"),
    "PostgreSQL": lambda: any(Path("/usr/lib/postgresql").glob("*/bin/initdb")),
    "strace": lambda: shutil.which("strace"),
    "faketime": lambda: any(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")),
}


def pytest_terminal_summary(terminalreporter):
    """Say at the end what was not tested, and how it would be."""
    missing = [name for name, find in HEAVY.items() if not find()]
    if missing:
        terminalreporter.section("NOT TESTED: engines and servers are missing", red=True)
        terminalreporter.line(", ".join(missing))
        terminalreporter.line(
            "Their tests were skipped. For all tests: pip install -e '.[dev-all]', and the Debian "
            "packages postgresql, strace, faketime and npm."
        )


@pytest.fixture
def make_trail(tmp_path):
    """Make trails in the test's folder; all are shut down at the end."""
    made = []

    def make(**options):
        options.setdefault("namespace", "test")
        options.setdefault("data_dir", tmp_path / "data")
        options.setdefault("adapter", f"sqlite:///{tmp_path}/audit.db")
        trail = AuditTrail(**options)
        made.append(trail)
        return trail

    yield make
    for trail in reversed(made):
        trail.shutdown(timeout=5)
        trail.pipeline.late.take()  # or the next test's trail of this name would get it


@pytest.fixture
def make_logger():
    """Make loggers of their own with the handlers given; they are taken off again at the end."""
    made = []

    def make(*handlers, level=logging.INFO, propagate=False):
        logger = logging.getLogger(f"test.audit.{next(_names)}")
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in handlers:
            logger.addHandler(handler)
        made.append(logger)
        return logger

    yield make
    for logger in made:
        logger.handlers.clear()
        logger.filters.clear()
