"""One thread of ours, which ends when its work does and not when its work raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["WorkerThread"]

#: The pauses before work that has raised is begun again, in seconds: doubled each time.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


class WorkerThread:
    """A daemon thread that runs a function until it returns, and again whenever it raises.

    Args:
        name: ``logbun-`` and what it does.
        run: the work; it returns when it is to end.
        failed: called on the thread with the name and what *run* raised, of whatever kind.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], None],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self.name = name
        self._run = run
        self._failed = failed
        self._thread: threading.Thread | None = None  # written by who starts it
        #: It is not to be started any more: the work has returned.
        self.done = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started now.
        """
        thread = threading.Thread(target=self._guard, name=self.name, daemon=True)
        thread.start()
        self._thread = thread

    @property
    def started(self) -> bool:
        """There has been a thread."""
        return self._thread is not None

    @property
    def alive(self) -> bool:
        """There is a thread."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the work has returned, or *timeout* seconds; on the thread itself: not."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def _guard(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                self._run()
            except BaseException as error:
                self._failed(self.name, error)
            else:
                break
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
        self.done = True
