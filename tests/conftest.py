"""Fixtures that every test may use."""

from __future__ import annotations

import itertools
import logging
import signal

import pytest

from logbun_logging import AuditTrail

_names = itertools.count()

# Shells start background jobs with SIGINT ignored, and programs under test would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
        trail.pipeline.take_late()  # or the next test's trail of this name would get it


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
