"""What carries events from the call to the buffers, as the pipeline sees it."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

__all__ = ["GONE", "KEPT", "QUEUE", "QUEUE_UNSAFE", "Source", "Submission"]


class Submission(NamedTuple):
    """What has become of a call.

    Attributes:
        queue: the caller has to put the entry into the queue.
        safe: the event is where the mode promises to keep it.
    """

    queue: bool
    safe: bool


QUEUE: Final = Submission(queue=True, safe=True)
QUEUE_UNSAFE: Final = Submission(queue=True, safe=False)
KEPT: Final = Submission(queue=False, safe=True)
GONE: Final = Submission(queue=False, safe=False)


class Source(Protocol):
    """What carries entries from ``submit`` to ``buffer``: a queue and its listener."""

    def start(self) -> None:
        """Start the listener, unless it runs."""
        ...

    @property
    def running(self) -> bool:
        """The listener runs."""
        ...

    def wake(self) -> None:
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
