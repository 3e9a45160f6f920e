"""Calls of drivers with a time-out.

Nothing can make a driver's call return. So each call runs on a thread of its own, and the caller
waits no longer than the time-out. The invariant: a call that hangs costs its own thread and nothing
else, and the number of such threads is bounded. Delivery, retention and the pipeline's opening and
closing make their calls here.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Final

from logbun_logging.errors import BusyError, NoAnswerError

__all__ = ["MAX_HANGING", "TimedCalls"]

#: Calls that may hang at the same time before no more are made: of all databases together.
MAX_HANGING: Final = 64

#: The same for one database.
_MAX_HANGING_EACH: Final = 4


class TimedCalls:
    """Runs calls with a time-out, on threads that are kept for the next call.

    A call that does not return in time keeps its thread, which ends with the call.

    Args:
        name: the name of the threads.
        option: the option that sets the time-out, for the message.
    """

    def __init__(self, name: str, option: str = "insert_timeout") -> None:
        self._name = name
        self._option = option
        self._idle: queue.SimpleQueue[_Runner] = queue.SimpleQueue()  # guards itself
        self._lock = threading.Lock()
        #: Calls that were given up and have not returned, by database. Written under _lock.
        self._hanging: Counter[Hashable] = Counter()

    @property
    def hanging(self) -> int:
        """Calls that were given up and have not returned."""
        with self._lock:
            return self._hanging.total()

    def run(
        self,
        call: Callable[[], Any],
        timeout: float,
        database: Hashable = None,
        late: Callable[[], None] = lambda: None,
    ) -> Any:
        """Return what *call* returns, or raise what it raises.

        An error that is not an :class:`Exception`, such as ``SystemExit`` or a driver's time-out,
        ends the call alone. The waiting thread gets a RuntimeError instead.

        Args:
            call: the call.
            timeout: in seconds.
            database: calls of one database count together; those of another go on.
            late: called on the call's thread if the call succeeds after the time-out.

        Raises:
            BusyError: too many calls hang already.
            NoAnswerError: the call did not return within *timeout* seconds.
        """
        with self._lock:
            if self._hanging[database] >= _MAX_HANGING_EACH:
                raise BusyError(f"{_MAX_HANGING_EACH} calls to the database hang already")
            if self._hanging.total() >= MAX_HANGING:
                raise BusyError(f"{MAX_HANGING} calls to databases hang already")
        result = _Result(call, database, late)
        runner = self._runner()
        if runner is None:
            result.run()
            return result.get()
        runner.calls.put(result)
        if not result.done.wait(timeout):
            with self._lock:
                if not result.done.is_set():
                    result.abandoned = True
                    self._hanging[database] += 1
                    raise NoAnswerError(f"no answer within {self._option}={timeout:g} s")
        self._idle.put(runner)
        return result.get()

    def _runner(self) -> _Runner | None:
        """Return an idle thread or a new one; None at the interpreter's end, which allows none."""
        with suppress(queue.Empty):
            return self._idle.get_nowait()
        if sys.is_finalizing():
            return None
        runner = _Runner(self._finish)
        try:
            threading.Thread(target=runner.loop, name=self._name, daemon=True).start()
        except RuntimeError:  # refused already at the end of the main thread, by Python 3.12
            return None
        return runner

    def _finish(self, result: _Result) -> bool:
        """Hand a result over; return False if its caller has given up."""
        with self._lock:
            result.done.set()
            if not result.abandoned:
                return True
            self._hanging[result.database] -= 1
            self._hanging += Counter()  # removes zeros
        if result.error is None:
            result.late()
        return False

    def close(self) -> None:
        """End the idle threads."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().calls.put(None)


class _Result:
    """One call and what it returned.

    The runner's thread writes it before ``done`` is set, the caller reads it after; ``abandoned``
    is written and read under the lock of :class:`TimedCalls`.
    """

    __slots__ = ("_call", "_value", "abandoned", "database", "done", "error", "late")

    def __init__(
        self, call: Callable[[], Any], database: Hashable, late: Callable[[], None]
    ) -> None:
        self._call: Callable[[], Any] | None = call
        self._value: Any = None
        self.database = database
        self.late = late
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.abandoned = False

    def run(self) -> None:
        assert self._call is not None  # noqa: S101 - for the type checker
        try:
            self._value = self._call()
        except BaseException as error:
            self.error = error
        self._call = None  # a waiting thread keeps no batch alive

    def get(self) -> Any:
        if self.error is None:
            return self._value
        if isinstance(self.error, Exception):
            raise self.error
        name = type(self.error).__name__
        raise RuntimeError(f"the call ended by {name}: {self.error}") from self.error


class _Runner:
    """One thread; ``calls`` hands it a call, or None to end it."""

    __slots__ = ("_finish", "calls")

    def __init__(self, finish: Callable[[_Result], bool]) -> None:
        self._finish = finish
        self.calls: queue.SimpleQueue[_Result | None] = queue.SimpleQueue()

    def loop(self) -> None:
        while (result := self.calls.get()) is not None:
            result.run()
            if not self._finish(result):
                return
            del result
