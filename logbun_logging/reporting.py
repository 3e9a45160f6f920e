"""Telling people what goes wrong: the ``on_event`` callback and the ``logbun_logging`` logger.

Only the pipeline's threads report. What happens on the application's threads is counted there and
reported from here, so that no callback runs inside an audit call. Log messages are rate-limited;
the callback hears of everything.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from logbun_logging.options import EventCallback
from logbun_logging.stats import Counters
from logbun_logging.wal import WalRemovedError

__all__ = ["LOGGER_NAME", "Reporter"]

#: Audit handlers ignore this logger, so that a report can never become an audit event.
LOGGER_NAME: Final = "logbun_logging"

#: Seconds in which one kind of report is logged once.
_QUIET: Final = 10.0

#: Counters that the application's threads raise, and that somebody should hear of.
_WATCHED: Final = (
    "dropped",
    "lost",
    "wal_failures",
    "cut",
    "encode_failures",
    "filter_failures",
    "rendered",
    "unknown_action",
    "unknown_fields",
    "refused_fields",
    "opaque_values",
)

#: Those that are errors.
_ERRORS: Final = frozenset({"dropped", "lost", "refused_fields"})

_logger = logging.getLogger(LOGGER_NAME)


class Reporter:
    """Reports for one namespace.

    Args:
        namespace: named in every message.
        callback: the ``on_event`` option.
        counters: watched for what the application's threads count.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        namespace: str,
        callback: EventCallback | None,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._namespace = namespace
        self._callback = callback
        self._counters = counters
        self._clock = clock
        self._lock = threading.Lock()
        self._logged: dict[str, tuple[float, int]] = {}
        self._seen = dict.fromkeys(_WATCHED, 0)

    def report(self, name: str, level: int = logging.WARNING, /, **details: Any) -> None:
        """Tell of one thing that happened."""
        if self._callback is not None:
            try:
                self._callback(name, {"namespace": self._namespace, **details})
            except Exception:
                self._log("on_event_failed", logging.ERROR, {}, exc_info=True)
        self._log(name, level, details)

    def watch(self) -> None:
        """Report what the application's threads have counted since the last time."""
        for name in _WATCHED:
            count = self._counters[name]
            if count != self._seen[name]:
                new, self._seen[name] = count - self._seen[name], count
                level = logging.ERROR if name in _ERRORS else logging.WARNING
                example = self._counters.example(name)
                details = {} if example is None else {"example": example}
                self.report(name, level, events=new, **details)

    def wal_failed(self, error: OSError, events: int) -> None:
        """Tell of an error of the WAL, and of *events* that are in memory only because of it."""
        name = "wal_failed"
        if isinstance(error, WalRemovedError):
            name = "wal_removed"
            self._counters.add(name)
        self.report(name, logging.ERROR, events=events, reason=f"{type(error).__name__}: {error}")

    def wal_nearly_full(self, used: int, limit: int) -> None:
        """Tell that the WAL's files come near their bound."""
        self.report("wal_nearly_full", logging.ERROR, bytes=used, max_bytes=limit)

    def _log(
        self, name: str, level: int, details: dict[str, Any], *, exc_info: bool = False
    ) -> None:
        now = self._clock()
        with self._lock:
            last, suppressed = self._logged.get(name, (-_QUIET, 0))
            if now - last < _QUIET:
                self._logged[name] = (last, suppressed + 1)
                return
            self._logged[name] = (now, 0)
        text = ", ".join(f"{key}={value}" for key, value in details.items())
        more = f" ({suppressed} more like this)" if suppressed else ""
        # dictConfig disables every logger that is not in it unless told otherwise: that must not
        # silence what nobody else tells. Who wants silence sets a level.
        _logger.disabled = False
        _logger.log(
            level, "%s: %s %s%s", self._namespace, name, text, more, exc_info=exc_info, stacklevel=3
        )
