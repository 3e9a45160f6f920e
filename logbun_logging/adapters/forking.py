"""Forks while an embedded database is open: none may carry a connection over.

SQLite keeps the locks that a process holds on a file in tables of its own, which a forked child
inherits although the kernel gives it none of the locks. A connection that the child opens to the
same file trusts those tables: at best it finds the database locked for ever, at worst others
overwrite what it writes (sqlite.org/howtocorrupt.html, 2.6). To forget the parent's connections is
not enough, there must be none: so before a fork calls are let end, new ones wait, and everything is
closed. The next call, in the parent as in the child, opens it again.

Adapters of embedded databases use it: :meth:`ForkGate.call` around each call.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from logbun_logging._process.forks import register

__all__ = ["ForkGate", "Suspendable"]

#: How long a fork waits for calls under way, in seconds. One that takes longer hangs, and the fork
#: must not: its connection goes over to the child then, and the child opens that database no more.
#: A call that waits for somebody else's lock leaves the gate now and then, and is not waited for.
_PATIENCE: Final = 2.0


class Suspendable(Protocol):
    """What a fork closes."""

    def suspend(self) -> None:
        """Close all connections; the next call opens them again."""
        ...


class ForkGate:
    """Counts the calls under way, and holds new ones back while the process forks.

    Args:
        patience: how long a fork waits for calls that are under way, in seconds.
    """

    def __init__(self, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._members: weakref.WeakSet[Suspendable] = weakref.WeakSet()
        self._open_again()
        os.register_at_fork(before=self._before, after_in_parent=self._after)
        register(self._open_again)

    def add(self, member: Suspendable) -> None:
        """See to it that *member* is suspended before a fork."""
        self._members.add(member)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Go through the gate, and wait for a fork that is under way; may be nested in a thread."""
        depth = getattr(self._inside, "depth", 0)
        with self._changed:
            if not depth:
                self._changed.wait_for(lambda: not self._forks)
            self._calls += 1
        self._inside.depth = depth + 1
        try:
            yield
        finally:
            self._inside.depth = depth
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _open_again(self) -> None:
        """Be as new, in a child as well: nobody else is there."""
        self._changed = threading.Condition(threading.Lock())
        self._inside = threading.local()
        self._calls = 0
        self._forks = 0

    def _before(self) -> None:
        own = getattr(self._inside, "depth", 0)  # a call that forks must not wait for itself
        with self._changed:
            self._forks += 1
            quiet = self._changed.wait_for(lambda: self._calls <= own, self._patience)
        if quiet and not own:
            for member in list(self._members):
                with suppress(Exception):  # what cannot be closed is as if there were no gate
                    member.suspend()

    def _after(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()
