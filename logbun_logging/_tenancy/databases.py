"""Which database a tenant's events go to: one for all, or one for each.

A :class:`Target` is an open adapter. Delivery, queries and retention borrow targets with
:meth:`Databases.lease`; nobody else opens or closes adapters. What is known of a database's health
is in its circuit breaker, which exists whether or not the database is open.

This module has the protocol and the one database for all; a database per tenant is in ``pool``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from logbun_logging._tenancy.breaker import CircuitBreaker
from logbun_logging.adapters.base import Adapter, ForkAwareAdapter
from logbun_logging.errors import AdapterUnavailableError, LogbunError

__all__ = ["Databases", "NoDatabaseError", "SingleDatabase", "Target"]


class NoDatabaseError(LogbunError):
    """The tenant has no database yet: nothing was ever stored for it."""


class Target:
    """One open database."""

    __slots__ = ("adapter", "encoded", "many")

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        method = _insert_method(adapter)
        self.encoded = method == "insert_encoded"
        self.many = method != "bulk_insert"


def _insert_method(adapter: Adapter) -> str:
    """Return the fastest method to insert by: the most derived class that has any decides.

    Who overrides ``bulk_insert`` in a subclass of one of our adapters wants it called.
    """
    names = ("insert_encoded", "bulk_insert_many", "bulk_insert")
    for owner in type(adapter).__mro__:
        found = next((name for name in names if name in vars(owner)), None)
        if found is not None:
            return found
    return next(name for name in names if callable(getattr(adapter, name, None)))


class Databases(Protocol):
    """Where events go."""

    @property
    def shared(self) -> bool:
        """One insert takes the batches of several tenants."""
        ...

    @property
    def per_tenant(self) -> bool:
        """Each tenant has its own: the outage of one is none of the others."""
        ...

    def open(self) -> None:
        """Make ready what can be made ready now; raise if that fails."""
        ...

    def breaker(self, tenant_id: str | None) -> CircuitBreaker:
        """Return the circuit breaker of the tenant's database."""
        ...

    def lease(
        self, tenant_id: str | None, *, create: bool = True
    ) -> AbstractContextManager[Target]:
        """Lend the tenant's database, which stays open for as long as it is lent.

        May wait. Raises a :class:`~logbun_logging.errors.LogbunError` if it cannot be had. Who only
        reads asks without *create*: a tenant's database that is not there is not made then, and
        :class:`NoDatabaseError` is raised.
        """
        ...

    def every(self) -> Iterator[tuple[str | None, AbstractContextManager[Target]]]:
        """Lend each known database in turn, with its tenant (None: of all tenants).

        None is made: a lease may raise :class:`NoDatabaseError`.
        """
        ...

    def healthy(self) -> bool:
        """Tell whether there is a database that takes events, as far as is known."""
        ...

    def maintain(self) -> None:
        """Close what has not been used for long; called now and then."""
        ...

    def figures(self) -> dict[str, int]:
        """Return how many are ``open`` and how many ``down`` (with an open circuit)."""
        ...

    def close(self) -> None:
        """Close every adapter that nobody uses, the others as soon as nobody does."""
        ...

    def after_fork(self) -> None:
        """Forget, in a forked child, the parent's connections."""
        ...


class SingleDatabase:
    """One adapter for all tenants.

    Args:
        adapter: opened by :meth:`open`, closed by :meth:`close`.
    """

    per_tenant = False

    def __init__(self, adapter: Adapter) -> None:
        self._target = Target(adapter)
        self._reset()

    def _reset(self) -> None:
        self._breaker = CircuitBreaker()
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

    def breaker(self, tenant_id: str | None) -> CircuitBreaker:  # noqa: ARG002 - all the same here
        """Return the one circuit breaker."""
        return self._breaker

    @contextmanager
    def lease(
        self,
        tenant_id: str | None,  # noqa: ARG002 - all the same here
        *,
        create: bool = True,  # noqa: ARG002 - made at the start
    ) -> Iterator[Target]:
        """Lend the one database, opening it first if that has failed before."""
        if not self._opened:
            try:
                self.open()
            except LogbunError:
                raise
            except Exception as error:
                reason = f"it cannot be opened: {type(error).__name__}: {error}"
                raise AdapterUnavailableError(reason) from error
        yield self._target

    def every(self) -> Iterator[tuple[str | None, AbstractContextManager[Target]]]:
        """Lend the one database."""
        yield None, self.lease(None)

    def healthy(self) -> bool:
        """Tell whether the circuit lets a call through: it is closed, or it is time to try."""
        return not self._breaker.wait_time()

    def maintain(self) -> None:
        """Do nothing: the one database stays open."""

    def figures(self) -> dict[str, int]:
        """Return whether it is ``open``, and whether its circuit is (``down``)."""
        return {"open": int(self._opened), "down": int(self._breaker.is_open)}

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
        self._reset()
