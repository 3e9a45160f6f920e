"""What becomes of an event that finds its tenant's queue, or memory as a whole, filled."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from logbun_logging.options import FullPolicy

__all__ = ["CROWDED", "RESERVED", "SPACIOUS", "Decision", "Policy", "decide"]

#: ``"admitted"``: it has room. ``"wait"``: for room in its tenant's queue. ``"drop"``: it is gone,
#: and counted. ``"full"``: it has no room; durable, its WAL record is its place until there is.
Decision = Literal["admitted", "wait", "drop", "full"]

#: Above this part of memory a tenant over its bound gets no more of it, if the WAL has its events.
_SHARED: Final = 0.5

#: Up to this part recovered events are let in: live ones need the rest.
SPACIOUS: Final = 0.8

#: Above this part the tenants with the most are spilled, if no WAL has their events.
CROWDED: Final = 0.9

#: The rest is kept for tenants within their bound, so none of them waits for a noisy one.
RESERVED: Final = 0.95


class Policy(NamedTuple):
    """What the options say.

    Attributes:
        durable: the WAL has every event.
        on_queue_full: the option of this name.
    """

    durable: bool
    on_queue_full: FullPolicy


def decide(
    policy: Policy, *, over: bool, stalled: bool, used: float, waited: bool = False
) -> Decision:
    """Return what becomes of an event. The first row that fits decides.

    ===============  =======  =======  ============  ========  ===================
    ``over``         stalled  used     on_queue_full  mode      decision
    ===============  =======  =======  ============  ========  ===================
    yes              yes      any      drop          volatile  drop
    yes, not waited  any      any      block         any       wait
    any              any      > 1      drop          volatile  drop
    any              any      > 1      any           any       full
    yes              any      > 0.5    any           durable   full
    yes              any      > 0.95   drop          volatile  drop
    yes              any      > 0.95   any           volatile  full
    any              any      any      any           any       admitted
    ===============  =======  =======  ============  ========  ===================

    Args:
        policy: the options.
        over: the tenant has as many events in memory as ``batching.max_queue_size``.
        stalled: the database does not keep up with the tenant.
        used: the part of memory that would be in use, by events or by bytes, whichever is larger.
        waited: the call has waited for its tenant's queue already.
    """
    drop = policy.on_queue_full == "drop"
    if over and stalled and drop:
        return "drop"
    if over and policy.on_queue_full == "block" and not waited:
        return "wait"
    if used > 1 or (over and used > (_SHARED if policy.durable else RESERVED)):
        return "drop" if drop else "full"
    return "admitted"
