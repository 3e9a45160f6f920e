"""A database for each tenant: a bounded pool of open adapters, least recently used out first.

The invariants: at most ``pool.max_active_connections`` slots are taken, by adapters that are being
opened, open, or being closed; some of them are never in use by tenants whose database did not
answer last, so those cannot keep all others out; an adapter is closed only when nobody uses it; a
tenant has one slot at most, so one thread opens its database and all others wait for that; a slot
is reached by the tenant's exact id and nothing else, so nobody can be lent another tenant's
database.

Opening and closing run on threads of their own, because a user's resolver and a driver take as long
as they like: who leases waits for the outcome with a time-out, and what is opened too late for one
lease is there for the next. Flush workers, redelivery, queries and retention lease; no lock is held
while user code or an adapter runs.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any, Final

from logbun_logging._tenancy.breaker import CircuitBreaker
from logbun_logging._tenancy.databases import NoDatabaseError, Target
from logbun_logging._tenancy.places import most_doubtful
from logbun_logging._tenancy.registry import TenantRegistry
from logbun_logging.adapters.base import Adapter, FileAdapter, ForkAwareAdapter, keep_inherited
from logbun_logging.adapters.factory import create_adapter
from logbun_logging.adapters.forking import ForkGate
from logbun_logging.errors import (
    AdapterUnavailableError,
    BusyError,
    ConfigurationError,
    NoAnswerError,
    RejectedEventsError,
    TenantRequiredError,
)
from logbun_logging.options import PoolOptions

__all__ = ["TenantPool"]

_OPTION: Final = "tenancy.resolve_connection"

#: Tenants whose circuit breakers are kept. Forgetting one costs its database three more tries.
_BREAKERS: Final = 4096

#: How often unused databases are looked for, in seconds.
_LOOK: Final = 0.5


_making = ForkGate()


class _State(Enum):
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


class _Connection:
    """An adapter object. A resolver may give several tenants the same one: the last closes it."""

    __slots__ = ("lock", "opened", "target", "tenants")

    def __init__(self, adapter: Adapter) -> None:
        self.target = Target(adapter)
        self.lock = threading.Lock()  # opens and closes it, one after the other
        self.opened = False
        self.tenants = 0


class _Slot:
    """A tenant's place in the pool."""

    __slots__ = (
        "connection",
        "create",
        "doomed",
        "error",
        "registered",
        "since",
        "state",
        "tenant_id",
        "used_at",
        "users",
    )

    def __init__(self, tenant_id: str, *, create: bool) -> None:
        self.tenant_id: Final = tenant_id
        self.create: Final = create  # its file is made if it is missing
        self.state = _State.OPENING
        self.since = time.monotonic()
        self.registered = False  # its tenant was written down, or that has failed
        self.connection: _Connection | None = None
        self.error: BaseException | None = None
        self.users = 0
        self.used_at = 0.0
        self.doomed = False  # to be closed as soon as nobody uses it

    @property
    def idle(self) -> bool:
        """It is open, and nobody uses it."""
        return self.state is _State.OPEN and not self.users


class TenantPool:
    """The databases of all tenants, as many of them open as are allowed.

    Args:
        resolve: given a tenant id, returns a URL, a mapping, or an adapter; may be a coroutine
            function, which then runs in an event loop of its own.
        options: how many may be open, and for how long unused.
        registry: where tenants are written down.
        patience: seconds that a lease waits for a database to be opened, or for a free connection.
        known: tenants that exist though none of their events have been seen.
        report: told what went wrong without anybody's call failing: a name and an error.
        clock: monotonic seconds, for what is unused.
    """

    shared = False
    per_tenant = True

    def __init__(
        self,
        resolve: Callable[[str], Any],
        *,
        options: PoolOptions,
        registry: TenantRegistry,
        patience: float,
        known: Iterable[str] = (),
        report: Callable[[str, BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._options = options
        self._registry = registry
        self._patience = patience
        self._listed = frozenset(known)
        self._report = report
        self._clock = clock
        if inspect.iscoroutinefunction(resolve):
            # Here and not where it is used: a fork would cut short a background thread's import,
            # and the child could never finish it. Those who need no event loop do not pay for it.
            import asyncio  # noqa: F401, PLC0415
        self._reset()

    def _reset(self) -> None:
        self._connections: dict[int, _Connection] = {}  # by the adapter's id()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._slots: OrderedDict[str, _Slot] = OrderedDict()  # the least recently used first
        self._closing = 0
        self._waiting = 0
        self._next_look = 0.0
        self._breakers_lock = threading.Lock()
        self._breakers: OrderedDict[str | None, CircuitBreaker] = OrderedDict()

    # ── what everybody calls ──

    def open(self) -> None:
        """Do nothing: which databases there are is known when their tenants come."""

    def breaker(self, tenant_id: str | None) -> CircuitBreaker:
        """Return the tenant's circuit breaker, which outlives the open database."""
        with self._breakers_lock:
            breaker = self._breakers.get(tenant_id)
            if breaker is None:
                breaker = self._breakers[tenant_id] = CircuitBreaker()
                if len(self._breakers) > _BREAKERS:
                    self._breakers.popitem(last=False)
            else:
                self._breakers.move_to_end(tenant_id)
            return breaker

    @contextmanager
    def lease(self, tenant_id: str | None, *, create: bool = True) -> Iterator[Target]:
        """Lend the tenant's database, opening it first if it is not open.

        Without *create* a file that is not there is not made, and its tenant not written down.

        Raises:
            NoDatabaseError: it is not there.
            TenantRequiredError: there is no tenant, so there is no database.
            ConfigurationError: the resolver returned nothing that can be a tenant's database.
            RejectedEventsError: the resolver says that there is no such tenant.
            BusyError: all connections are in use, and none became free in time.
            AdapterUnavailableError: the resolver or the adapter failed, or was not done in time.
        """
        if tenant_id is None:
            raise TenantRequiredError("tenant_id=None: each tenant has a database of its own")
        slot, connection = self._acquire(tenant_id, create=create)
        try:
            if create and not slot.registered:
                self._register(slot)
            yield connection.target
            self.breaker(tenant_id).reached()
        finally:
            self._release(slot)

    def _register(self, slot: _Slot) -> None:
        """Write the tenant down before anything is stored; who only reads leaves no trace."""
        slot.registered = True
        try:
            self._registry.add(slot.tenant_id)
        except OSError as error:  # tried again when the database is opened next
            self._report("registry_failed", error)

    def every(self) -> Iterator[tuple[str | None, AbstractContextManager[Target]]]:
        """Lend the database of each tenant that was ever seen, here or in another process."""
        for tenant_id in sorted(self._listed.union(self._registry.tenants())):
            yield tenant_id, self.lease(tenant_id, create=False)

    def healthy(self) -> bool:
        """Tell whether the database of any tenant seen lately takes events.

        One tenant's outage must not keep what waits for the others from them.
        """
        with self._breakers_lock:
            breakers = list(self._breakers.values())
        return not breakers or any(not breaker.wait_time() for breaker in breakers)

    def figures(self) -> dict[str, int]:
        """Return how many are ``open``, ``in_use`` and ``down`` (with an open circuit)."""
        with self._breakers_lock:
            down = sum(breaker.is_open for breaker in self._breakers.values())
        with self._lock:
            slots = list(self._slots.values())
        return {
            "open": sum(slot.state is _State.OPEN for slot in slots),
            "in_use": sum(slot.users > 0 for slot in slots),
            "down": down,
        }

    def maintain(self) -> None:
        """Close the databases that nobody has used for ``pool.idle_timeout``."""
        with self._lock:
            self._close_idle()

    def close(self) -> None:
        """Close what nobody uses and wait for that; what is in use is closed by its last user.

        A later lease opens the tenant's database again.
        """
        with self._changed:
            for slot in list(self._slots.values()):
                slot.doomed = True
                if slot.idle:
                    self._start_closing(slot)
            self._changed.wait_for(lambda: not self._closing)

    def after_fork(self) -> None:
        """Forget the parent's adapters, without closing what is the parent's."""
        for connection in list(self._connections.values()):
            adapter = connection.target.adapter
            if isinstance(adapter, ForkAwareAdapter):
                adapter.after_fork()
            else:
                keep_inherited(adapter)
        self._registry.after_fork()
        self._reset()

    # ── slots: every method here is called with the lock, or takes it first ──

    def _acquire(self, tenant_id: str, *, create: bool) -> tuple[_Slot, _Connection]:
        deadline = time.monotonic() + self._patience
        with self._changed:
            while True:
                slot = self._slots.get(tenant_id)
                if slot is None:
                    if self._has_place(tenant_id):
                        slot = self._slots[tenant_id] = _Slot(tenant_id, create=create)
                        self._spawn(self._open, slot)
                    else:
                        self._wait_for_room(tenant_id, deadline)
                        continue
                if slot.state is _State.CLOSING:
                    self._outlast(slot, deadline)
                    continue
                try:
                    return slot, self._join(slot, deadline)
                except NoDatabaseError:
                    if slot.create or not create:
                        raise
                    # Opened for somebody who only wanted to read: once more, for us.

    def _has_place(self, tenant_id: str) -> bool:
        most = self._options.max_active_connections
        if len(self._slots) >= most:
            return False
        if self._proven(tenant_id):
            return True
        in_use = (slot.tenant_id for slot in self._slots.values() if not slot.idle)
        return sum(not self._proven(other) for other in in_use) < most_doubtful(most)

    def _proven(self, tenant_id: str) -> bool:
        with self._breakers_lock:
            breaker = self._breakers.get(tenant_id)
        return breaker is not None and breaker.proven

    def _outlast(self, slot: _Slot, deadline: float) -> None:
        """Wait until a database that is being closed is closed."""
        self._wait_for(lambda: self._slots.get(slot.tenant_id) is not slot, slot, deadline)

    def _join(self, slot: _Slot, deadline: float) -> _Connection:
        """Become a user of a slot and wait until it is open.

        Who waits is a user already, or the database might be closed again before he wakes up. Who
        comes when it has been opening for long does not wait as well.
        """
        deadline = min(deadline, slot.since + self._patience)
        slot.users += 1
        try:
            self._wait_for(lambda: slot.connection or slot.error, slot, deadline)
            if slot.connection is not None:
                self._slots.move_to_end(slot.tenant_id)
                return slot.connection
        except BaseException:  # an impatient Ctrl-C among them
            slot.users -= 1
            raise
        raise _reason(slot.tenant_id, slot.error)

    def _wait_for(self, settled: Callable[[], object], slot: _Slot, deadline: float) -> None:
        if not self._changed.wait_for(settled, deadline - time.monotonic()):
            raise NoAnswerError(
                f"the database of tenant {slot.tenant_id!r} is still {slot.state.value} "
                f"after {self._patience:g} s"
            )

    def _wait_for_room(self, tenant_id: str, deadline: float) -> None:
        self._waiting += 1
        try:
            self._make_room()
            if self._has_place(tenant_id):
                return
            if not self._changed.wait(deadline - time.monotonic()):
                raise BusyError(
                    f"all {self._options.max_active_connections} connections "
                    "(pool.max_active_connections), or those for tenants whose database has not "
                    f"answered last, were in use for {self._patience:g} s"
                )
        finally:
            self._waiting -= 1

    def _make_room(self) -> None:
        """Close the least recently used database, if more are waited for than are being closed."""
        full = len(self._slots) >= self._options.max_active_connections
        if full and self._closing < self._waiting:
            idle = next((slot for slot in self._slots.values() if slot.idle), None)
            if idle is not None:
                self._start_closing(idle)

    def _release(self, slot: _Slot) -> None:
        with self._changed:
            slot.users -= 1
            slot.used_at = self._clock()
            if slot.doomed and slot.idle:
                self._start_closing(slot)
            elif self._waiting:
                self._make_room()
                self._changed.notify_all()
            self._close_idle()

    def _close_idle(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for slot in list(self._slots.values()):
            if slot.idle and now - slot.used_at >= self._options.idle_timeout:
                self._start_closing(slot)

    def _start_closing(self, slot: _Slot) -> None:
        slot.state = _State.CLOSING
        self._closing += 1
        self._spawn(self._close, slot)

    def _spawn(self, work: Callable[[_Slot], None], slot: _Slot) -> None:
        """Run *work* on a thread of its own, or here where there can be no more threads."""
        name = f"logbun-pool-{work.__name__.strip('_')}"
        try:
            threading.Thread(target=work, args=(slot,), name=name, daemon=True).start()
        except RuntimeError:  # the interpreter is ending
            self._lock.release()
            try:
                work(slot)
            finally:
                self._lock.acquire()

    # ── opening and closing: without the lock ──

    def _open(self, slot: _Slot) -> None:
        connection = error = None
        try:
            connection = self._connect(slot.tenant_id, create=slot.create)
        except BaseException as caught:  # whoever waits must hear of SystemExit as well
            error = caught
        with self._changed:
            slot.connection, slot.error = connection, error
            if error is not None:
                del self._slots[slot.tenant_id]
            else:
                slot.state = _State.OPEN
                slot.used_at = self._clock()
                if slot.doomed and slot.idle:
                    self._start_closing(slot)
            self._changed.notify_all()

    def _close(self, slot: _Slot) -> None:
        try:
            if slot.connection is not None:
                self._disconnect(slot.connection)
        finally:
            with self._changed:
                del self._slots[slot.tenant_id]
                self._closing -= 1
                self._changed.notify_all()

    def _connect(self, tenant_id: str, *, create: bool) -> _Connection:
        resolved = self._resolve(tenant_id)
        if inspect.isawaitable(resolved):
            import asyncio  # noqa: PLC0415 - imported by now, unless the resolver hides what it is

            async def wait() -> Any:
                return await resolved

            resolved = asyncio.run(wait())
        if resolved is None:
            raise ConfigurationError(
                f"{_OPTION}({tenant_id!r})", None, "the tenant's adapter (URL, mapping or instance)"
            )
        with _making.call():  # which may import a driver: see above
            adapter = create_adapter(resolved, _OPTION)
        if getattr(adapter, "single_database_only", False):
            allowed = (
                "an adapter that can be had once for each tenant. This one keeps all tenants in "
                "one table, which its database is good at; at many small databases it is bad. "
                "Use tenancy.mode='single_database' with it"
            )
            raise ConfigurationError(_OPTION, type(adapter).__name__, allowed)
        if not create and isinstance(adapter, FileAdapter) and not adapter.exists():
            raise NoDatabaseError(f"tenant {tenant_id!r} has no database yet")
        return self._init(adapter)

    def _init(self, adapter: Adapter) -> _Connection:
        with self._lock:
            connection = self._connections.setdefault(id(adapter), _Connection(adapter))
            connection.tenants += 1
        try:
            with connection.lock:
                if not connection.opened:
                    adapter.init()
                    connection.opened = True
        except BaseException:
            self._disconnect(connection)
            raise
        return connection

    def _disconnect(self, connection: _Connection) -> None:
        """Close the adapter unless another tenant has it as well."""
        with self._lock:
            connection.tenants -= 1
        with connection.lock:
            if connection.tenants:
                return
            adapter = connection.target.adapter
            try:
                adapter.close()
            except Exception as error:
                self._report("close_failed", error)
            connection.opened = False
            with self._lock:
                if not connection.tenants and self._connections.get(id(adapter)) is connection:
                    del self._connections[id(adapter)]


def _reason(tenant_id: str, error: BaseException | None) -> Exception:
    """Return a new error for each thread that waited for the same database in vain."""
    reason: Exception
    if isinstance(error, NoDatabaseError):
        reason = NoDatabaseError(*error.args)
    elif isinstance(error, ConfigurationError):
        reason = ConfigurationError(error.option, error.value, error.allowed, problem=error.problem)
    elif isinstance(error, RejectedEventsError):
        reason = RejectedEventsError(f"tenant {tenant_id!r}: {error}")
    else:
        text = f"{type(error).__name__}: {error}"
        reason = AdapterUnavailableError(f"the database of tenant {tenant_id!r}: {text}")
    reason.__cause__ = error
    return reason
