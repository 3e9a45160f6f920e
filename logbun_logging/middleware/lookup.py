"""Asking the application who is acting: its ``get_tenant_id`` and ``get_actor_id``.

They are foreign code on the way of every request. The invariant: whatever they raise, the request
goes on without the value, and the failure is logged to ``logbun_logging``, once in ten seconds for
each of them. Called by the middlewares on the threads and tasks that serve requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final

from logbun_logging._encoding.values import plain_text
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging.errors import ConfigurationError

__all__ = ["Lookup"]

#: Seconds in which the failures of one lookup are logged once.
_QUIET: Final = 10.0

_logger = logging.getLogger(LOGGER_NAME)


class Lookup:
    """One callable of the application that names a field's value.

    Args:
        option: what the application calls it, for messages.
        function: given the request (an ASGI scope, a WSGI environ, a Django request), returns the
            value or None.
        may_await: whether *function* may be a coroutine function; then :meth:`ask` is to be used.
        clock: monotonic seconds.

    Raises:
        ConfigurationError: *function* cannot be called, or not like this.
    """

    def __init__(
        self,
        option: str,
        function: Callable[[Any], object],
        *,
        may_await: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(option, function, "a callable or None")
        if not may_await and iscoroutinefunction(function):
            raise ConfigurationError(
                option, function, "a callable that is not a coroutine function"
            )
        self._option = option
        self._function = function
        self._clock = clock
        self._lock = threading.Lock()
        self._logged = -_QUIET
        self._suppressed = 0

    def __call__(self, request: Any) -> str | None:
        """Return the value as text; never raises an :class:`Exception`."""
        try:
            return _text(self._function(request))
        except Exception as error:
            self._log(error)
            return None

    async def ask(self, request: Any) -> str | None:
        """Do the same, awaiting the value if need be."""
        try:
            value = self._function(request)
            return _text(await value if isawaitable(value) else value)
        except Exception as error:
            self._log(error)
            return None

    def _log(self, error: Exception) -> None:
        now = self._clock()
        with self._lock:
            if now - self._logged < _QUIET:
                self._suppressed += 1
                return
            suppressed, self._suppressed, self._logged = self._suppressed, 0, now
        more = f" ({suppressed} more like this)" if suppressed else ""
        _logger.error(
            "%s failed; the request goes on without it%s", self._option, more, exc_info=error
        )


def _text(value: object) -> str | None:
    if value is None or type(value) is str:
        return value
    if isawaitable(value):
        raise TypeError(f"it returned {value!r}, which cannot be awaited here")
    # As the call's own fields: a (str, Enum) member is "Tenant.ACME" to str(), another tenant.
    return plain_text(value) if isinstance(value, str | Enum) else str(value)
