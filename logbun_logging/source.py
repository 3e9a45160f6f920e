"""What carries events from the call to the buffers, as the pipeline sees it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Source"]


class Source(Protocol):
    """What carries entries from ``submit`` to ``buffer``: a queue and its listener."""

    def start(self) -> None:
        """Start the listener, unless it runs."""
        ...

    @property
    def running(self) -> bool:
        """The listener runs."""
        ...

    def hurry(self) -> None:
        """Carry over now what is queued: somebody waits for it."""
        ...

    def refuse(self) -> None:
        """Take no more records over: the pipeline is about to end."""
        ...

    def stop(self, timeout: float) -> None:
        """Hand over everything that is queued, and end."""
        ...

    def reset(self) -> None:
        """In a forked child: start anew, without what the parent had queued."""
        ...
