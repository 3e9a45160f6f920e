"""Which database a tenant's events go to: one for all, or one for each.

A :class:`Target` is an adapter and what the pipeline knows about its health. Delivery, queries and
retention borrow targets with :meth:`Databases.lease`; nobody else opens or closes adapters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from logbun_logging.adapters.base import Adapter, ForkAwareAdapter
from logbun_logging.breaker import CircuitBreaker

__all__ = ["Databases", "SingleDatabase", "Target"]


class Target:
    """One database: its adapter, and the circuit breaker that keeps hopeless calls from it."""

    __slots__ = ("adapter", "breaker", "many")

    def __init__(self, adapter: Adapter, breaker: CircuitBreaker | None = None) -> None:
        self.adapter = adapter
        self.breaker = breaker or CircuitBreaker()
        self.many = callable(getattr(adapter, "bulk_insert_many", None))


class Databases(Protocol):
    """Where events go."""

    @property
    def shared(self) -> bool:
        """One insert takes the batches of several tenants."""
        ...

    def open(self) -> None:
        """Make ready what can be made ready now; raise if that fails."""
        ...

    def lease(self, tenant_id: str | None) -> AbstractContextManager[Target]:
        """Lend the tenant's database; raise if it cannot be had."""
        ...

    def every(self) -> Iterator[tuple[str | None, AbstractContextManager[Target]]]:
        """Lend each known database in turn, with its tenant (None: of all tenants)."""
        ...

    def healthy(self) -> bool:
        """Tell whether no circuit breaker is open."""
        ...

    def close(self) -> None:
        """Close every adapter."""
        ...

    def after_fork(self) -> None:
        """Forget, in a forked child, the parent's connections."""
        ...


class SingleDatabase:
    """One adapter for all tenants.

    Args:
        adapter: opened by :meth:`open`, closed by :meth:`close`.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._target = Target(adapter)
        self._lock = threading.Lock()
        self._opened = False

    @property
    def shared(self) -> bool:
        """One insert takes the batches of several tenants."""
        return self._target.many

    def open(self) -> None:
        """Open the adapter unless it is open."""
        with self._lock:
            if not self._opened:
                self._target.adapter.init()
                self._opened = True

    @contextmanager
    def lease(self, tenant_id: str | None) -> Iterator[Target]:  # noqa: ARG002 - all the same here
        """Lend the one database, opening it first if that has failed before."""
        if not self._opened:
            self.open()
        yield self._target

    def every(self) -> Iterator[tuple[str | None, AbstractContextManager[Target]]]:
        """Lend the one database."""
        yield None, self.lease(None)

    def healthy(self) -> bool:
        """Tell whether the circuit is closed."""
        return not self._target.breaker.is_open

    def close(self) -> None:
        """Close the adapter; a later lease opens it again."""
        with self._lock:
            self._opened = False
            self._target.adapter.close()

    def after_fork(self) -> None:
        """Start anew with an adapter that knows no connection."""
        adapter = self._target.adapter
        if isinstance(adapter, ForkAwareAdapter):
            adapter.after_fork()
        self._target = Target(adapter)
        self._lock = threading.Lock()
        self._opened = False
