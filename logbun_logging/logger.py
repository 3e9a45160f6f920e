"""The typed face: a logger whose calls a type checker can check, and that never raises.

:class:`AuditLogger` stands in front of an ordinary :class:`logging.Logger`: levels, filters,
handlers and propagation are that logger's.
"""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, get_args

from logbun_logging._encoding.record import AuditRecord
from logbun_logging._engine.reporting import LOGGER_NAME
from logbun_logging.event import AuditFields, Identifier
from logbun_logging.handlers import BatchingAuditHandler

__all__ = ["AuditFields", "AuditLogger", "get_audit_logger"]

A = TypeVar("A", bound=str)

#: Handlers that store events, and the stdlib's that may have one behind them.
_LEADING_ON: Final = (
    BatchingAuditHandler,
    logging.handlers.QueueHandler,
    logging.handlers.MemoryHandler,
)


class AuditLogger(Generic[A]):
    """Fires audit events of the actions ``A`` through a standard logger.

    ::

        Actions = Literal["course.created", "course.deleted"]
        audit: AuditLogger[Actions] = get_audit_logger("audit")
        audit.fire("course.created", actor_id="user_42", entity_id="course_7")

    Args:
        logger: what the records go through.
        actions: the known actions, to check at run time too. An event with another one is stored,
            counted (``unknown_action``) and reported.
        level: the level of the records.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        actions: Collection[str] | None = None,
        level: int = logging.INFO,
    ) -> None:
        self.logger = logger
        self.actions = None if actions is None else frozenset(actions)
        self.level = level

    def __repr__(self) -> str:
        return f"AuditLogger({self.logger.name!r})"

    if TYPE_CHECKING:

        def fire(
            self,
            action: A,
            /,
            *,
            actor_id: Identifier | None = None,
            tenant_id: Identifier | None = None,
            entity_type: str | None = None,
            entity_id: Identifier | None = None,
            outcome: str | None = None,
            request_id: Identifier | None = None,
            old_values: Mapping[str, Any] | None = None,
            new_values: Mapping[str, Any] | None = None,
            metadata: Mapping[str, Any] | None = None,
            ip_address: str | None = None,
            user_agent: str | None = None,
            **extra: Any,
        ) -> None:
            """Record that *action* happened.

            Never raises, whatever it is given, and never waits for the database. Values that are
            not given come from the audit context. Unknown names go to ``metadata``.
            """

        async def fire_async(
            self,
            action: A,
            /,
            *,
            actor_id: Identifier | None = None,
            tenant_id: Identifier | None = None,
            entity_type: str | None = None,
            entity_id: Identifier | None = None,
            outcome: str | None = None,
            request_id: Identifier | None = None,
            old_values: Mapping[str, Any] | None = None,
            new_values: Mapping[str, Any] | None = None,
            metadata: Mapping[str, Any] | None = None,
            ip_address: str | None = None,
            user_agent: str | None = None,
            **extra: Any,
        ) -> bool:
            """Record that *action* happened, and wait until that is as durable as configured.

            With ``fsync="always"`` this awaits the sync that concurrent calls share, without
            blocking the event loop. Returns whether it succeeded: False if a level or filter keeps
            the record back, no audit handler takes it, the WAL cannot be written just now, or the
            event is refused (``require_tenant_id``, and it has no tenant). Never raises.
            """
            raise NotImplementedError

    else:

        def fire(self, /, *args, **fields):  # noqa: ANN002, ANN003, ANN201 - typed above
            """Record that an action happened; never raises."""
            try:
                if not self._send_alone(args, fields):
                    self._send(args, fields, None)
            except Exception as error:
                _report_failure(self, error)

        async def fire_async(self, /, *args, **fields):  # noqa: ANN002, ANN003, ANN201
            """Record that an action happened, and wait until it is durable; never raises."""
            try:
                record = self._send(args, fields, [])
                if record is None:
                    return False
                results = [await _synced(pipeline) for pipeline in record.awaited]
            except Exception as error:
                _report_failure(self, error)
                return False
            return record.entry is not None and record.safe and all(results)

    def _send(
        self, args: tuple[Any, ...], fields: dict[str, Any], awaited: list[Any] | None
    ) -> AuditRecord | None:
        logger = self.logger
        level = self.level
        if not logger.isEnabledFor(level):
            _warn_of_wiring(logger, level)
            return None
        if len(args) == 1:
            action = args[0]
        else:  # a wrong call is an event too
            action = args[0] if args else fields.pop("action", "unknown")
            if args[1:]:
                fields["args"] = list(args[1:])
        record = AuditRecord(logger.name, level, action, fields)
        record.awaited = awaited
        record.unknown_action = not self._knows(action)
        logger.handle(record)
        if record.entry is None:
            _warn_of_wiring(logger, level)
        return record

    def _knows(self, action: Any) -> bool:
        return self.actions is None or (type(action) is str and action in self.actions)

    def _send_alone(self, args: tuple[Any, ...], fields: dict[str, Any]) -> bool:
        """Do the usual thing for the usual set-up: a plain logger with an audit handler alone.

        That is what ``Logger.handle`` comes to, at a fraction of its cost, because no record is
        made. Returns False, having done nothing, if the set-up is another.
        """
        logger = self.logger
        level = self.level
        handlers = logger.handlers
        if (
            len(args) != 1
            or len(handlers) != 1
            or logger.propagate
            or logger.filters
            or type(logger) is not logging.Logger
            or (self.actions is not None and not self._knows(args[0]))
        ):
            return False
        handler = handlers[0]
        take_call = getattr(handler, "take_call", None)
        return (
            take_call is not None
            and not handler.filters
            and level >= handler.level
            and logger.isEnabledFor(level)
            and take_call(args[0], fields)
        )


def get_audit_logger(
    name: str = "audit",
    *,
    actions: Any = None,
    level: int = logging.INFO,
) -> AuditLogger[Any]:
    """Return an :class:`AuditLogger` in front of ``logging.getLogger(name)``.

    Args:
        name: the logger's name.
        actions: known actions: a collection of strings, or a ``Literal`` type.
        level: the level of the records.
    """
    known = get_args(actions) if actions is not None and get_args(actions) else actions
    return AuditLogger(logging.getLogger(name), actions=known, level=level)


_GIVE_IT_A_HANDLER: Final = "give it, or a logger above it, an AuditQueueHandler of that level"

#: The names of the loggers whose wiring has been warned of.
_warned: set[str] = set()


def _warn_of_wiring(logger: logging.Logger, level: int) -> None:
    """Warn once that no event of *logger* gets anywhere, if that is so."""
    if logger.name in _warned:
        return
    if not logger.isEnabledFor(level):
        shown = logging.getLevelName(logger.getEffectiveLevel())
        problem = (
            "it is disabled. Set disable_existing_loggers to False in dictConfig"
            if logger.disabled
            else f"its level is {shown}. Set its level to {logging.getLevelName(level)}"
        )
        if not _reaches_audit(logger, level):
            problem += f", and {_GIVE_IT_A_HANDLER}"
    elif not _reaches_audit(logger, level):
        problem = f"no audit handler is reached from it: {_GIVE_IT_A_HANDLER}"
    else:
        return  # a filter has kept the record back, or another thread takes it over
    _warned.add(logger.name)
    report = logging.getLogger(LOGGER_NAME)
    report.disabled = False  # by a dictConfig that does not name it
    report.warning(
        "audit events of logger %r at level %s are not stored: %s",
        logger.name,
        logging.getLevelName(level),
        problem,
    )


def _reaches_audit(logger: logging.Logger, level: int) -> bool:
    found: logging.Logger | None = logger
    while found is not None:
        for handler in found.handlers:
            if level >= handler.level and isinstance(handler, _LEADING_ON):
                return True
        found = found.parent if found.propagate else None
    return False


def _report_failure(logger: AuditLogger[Any], error: Exception) -> None:
    try:
        report = logging.getLogger(LOGGER_NAME).error
        report("an audit call on %r failed", logger, exc_info=error)
    except Exception:  # a hostile logging set-up: there is nobody left to tell
        return


async def _synced(pipeline: Any) -> bool:
    import asyncio  # noqa: PLC0415 - who awaits has imported it; others need not pay for it

    loop = asyncio.get_running_loop()
    done: asyncio.Future[bool] = loop.create_future()

    def finish(ok: bool) -> None:
        if not done.done():
            done.set_result(ok)

    def notify(ok: bool) -> None:
        try:
            loop.call_soon_threadsafe(finish, ok)
        except RuntimeError:  # the loop has been closed: nobody waits
            return

    pipeline.wal.notify(notify)
    return await done
