"""Every exception that logbun_logging raises, each named for what the caller can do about it.

A logging call never raises any of them: they come from set-up, queries and operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from logbun_logging._encoding.messages import shown

__all__ = [
    "AdapterUnavailableError",
    "BatchTooLargeError",
    "BusyError",
    "ClockError",
    "ConfigurationError",
    "LogbunError",
    "NoAnswerError",
    "NotReadyError",
    "PruneError",
    "QueryError",
    "RejectedEventsError",
    "TenantRequiredError",
]


class LogbunError(Exception):
    """Base of all errors of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the message and the attributes, for pools of processes and task queues."""
        return _restore, (type(self), self.args, vars(self))


def _restore(kind: type[LogbunError], args: tuple[Any, ...], state: dict[str, Any]) -> LogbunError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class ConfigurationError(LogbunError, ValueError):
    """An option is wrong: mend the configuration.

    The message names the option, the value that was given and what is allowed.
    """

    def __init__(
        self, option: str, value: object, allowed: str, *, problem: str = "", show: bool = True
    ) -> None:
        self.option = option
        self.value = value
        self.allowed = allowed
        self.problem = problem
        found = f"{problem}; " if problem else ""
        given = f"{option}={shown(option, value)}" if show else option
        super().__init__(f"{given}: {found}allowed is {allowed}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all except the value, which may be a secret, or what cannot be pickled."""
        return _restore, (type(self), self.args, {**vars(self), "value": None})

    @classmethod
    def missing(cls, option: str, allowed: str) -> ConfigurationError:
        """Return the error of an option that has to be given."""
        return cls(option, None, allowed, problem=f"{option} is required")

    @classmethod
    def unknown(
        cls,
        option: str,
        value: object,
        known: Iterable[str],
        prefix: str = "",
        meant: str | None = None,
    ) -> ConfigurationError:
        """Return the error of an option, named *prefix* and *option*, that is none of *known*.

        Without *meant*, the option that may be meant is looked for among *known*. The value is not
        shown: it may be the secret of an option that was meant.
        """
        from difflib import get_close_matches  # noqa: PLC0415 - only who misspells pays for it

        names = list(known)
        close = [prefix + name for name in get_close_matches(option, names, n=1)]
        meant = meant or next(iter(close), None)
        hint = f", did you mean {meant!r}?" if meant else ""
        allowed = f"one of {', '.join(names)}"
        problem = f"there is no such option{hint}"
        return cls(prefix + option, value, allowed, problem=problem, show=False)


class NotReadyError(LogbunError):
    """The database cannot be used now (the cause is chained): wait, or mend the database.

    Calls are still accepted and kept meanwhile.
    """


class PruneError(LogbunError):
    """Some databases could not be pruned: mend them and prune again. All others were pruned.

    Attributes:
        report: the rows removed from those, by tenant (None: of all tenants).
        failures: the errors of the others, by tenant.
    """

    def __init__(
        self, report: Mapping[str | None, int], failures: Mapping[str | None, Exception]
    ) -> None:
        self.report = dict(report)
        self.failures = dict(failures)
        shown = [f"{tenant!r}: {error}" for tenant, error in [*failures.items()][:3]]
        more = ", ..." if len(failures) > len(shown) else ""
        text = f"{len(failures)} databases could not be pruned, {len(report)} were"
        super().__init__(f"{text} ({'; '.join(shown)}{more})")


class ClockError(LogbunError):
    """The clock is far from where it was, so nothing is pruned: look at it, or wait."""


class QueryError(LogbunError, ValueError):
    """A query argument is wrong: mend the call."""


class TenantRequiredError(QueryError):
    """A query came without a tenant although ``require_tenant_id`` is on: pass ``tenant_id``."""


class AdapterUnavailableError(LogbunError):
    """Raised by adapters when the database cannot be reached at all.

    Delivery takes it for an outage: it waits and tries again, and never holds it against the batch.
    """


class BusyError(AdapterUnavailableError):
    """The database is well, but others have it: try again soon.

    An outage that says nothing against the database, so it does not open the circuit.
    """


class NoAnswerError(AdapterUnavailableError):
    """A call did not return in time, and may go on: no second one should hang beside it.

    It opens the circuit at once.
    """


class RejectedEventsError(LogbunError):
    """Raised by adapters when the database is well but refuses these rows.

    Delivery does not wait: it splits the batch until only the refused rows are set aside.
    """


class BatchTooLargeError(RejectedEventsError):
    """Raised by adapters when the database, or a proxy before it, takes no batch of this size.

    Delivery sends smaller batches to that database from then on, and for a while.
    """
