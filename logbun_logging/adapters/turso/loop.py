"""An event loop on a daemon thread, for drivers that know nothing else.

One for the process, whatever the number of databases. It starts with the first call, and a forked
child starts its own.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from logbun_logging._process.forks import register
from logbun_logging.adapters.base import keep_inherited

__all__ = ["LoopThread"]

T = TypeVar("T")

#: Seconds that a call is waited for after it should have timed out by itself: the loop is stuck.
_STUCK_AFTER: Final = 5.0


class LoopThread:
    """Runs coroutines for threads that wait for them."""

    def __init__(self) -> None:
        self._start_over()
        register(self._forget)

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
        self._threaded = False

    def run(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        """Return what *work* returns, or raise what it raises.

        Raises:
            TimeoutError: it was not done within *timeout* seconds, and has been cancelled.
        """
        bounded = asyncio.wait_for(work, timeout)
        with self._lock:
            loop = self._loop or self._start()
            if not self._threaded:
                return loop.run_until_complete(bounded)
        return asyncio.run_coroutine_threadsafe(bounded, loop).result(timeout + _STUCK_AFTER)

    def _start(self) -> _Loop:
        loop = self._loop = _Loop()
        try:
            threading.Thread(target=loop.run_forever, name="logbun-loop", daemon=True).start()
        except RuntimeError:  # the interpreter is ending: no new threads, so the caller's own runs
            self._threaded = False
        else:
            self._threaded = True
        return loop

    def _forget(self) -> None:
        """Be as new in a forked child, and leave the parent's connections alone.

        The selector's list of them belongs to the parent and the child together: were a connection
        collected here, it would take itself off that list, and the parent would hear of it no more.
        """
        if self._loop is not None:
            self._loop.selector.close()
            keep_inherited(self._loop)
        self._start_over()


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        super().__init__(self.selector)

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> Any:
        """Resolve a name on a thread, or here at interpreter exit, when the pools have closed."""
        try:
            return await super().getaddrinfo(*args, **kwargs)
        except RuntimeError:
            return socket.getaddrinfo(*args, **kwargs)
