"""Ending on a signal with nothing lost, for plain scripts.

gunicorn and Celery turn SIGTERM into an orderly end themselves, and ``logging.shutdown`` drains the
trail then. uvicorn ends in order and then dies of the signal nevertheless: there the trail is shut
down in ``lifespan``. A plain script dies of it on the spot, unless it uses this.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from types import FrameType

__all__ = ["shutdown_on_signals"]


def shutdown_on_signals(
    signals: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGHUP),
) -> None:
    """Let *signals* end the program as :func:`sys.exit` does, so that every trail is drained.

    The exit status is 128 + the signal's number, as of a shell. Signals that have a handler
    already, or are ignored, are left alone.

    Args:
        signals: SIGTERM and SIGHUP by default; SIGINT raises KeyboardInterrupt anyway.

    Raises:
        ValueError: not called on the main thread.
    """
    for number in signals:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise SystemExit(128 + number)
