"""Who may call a database now: tenants that are well always find a place.

Used where one insert takes the batches of one tenant. A tenant is doubtful as long as no call has
reached its database, and after one that has not. The invariants: the calls for doubtful tenants,
with those that hang, never take up all places; a call that takes long gives its place up to the
next, so a tenant waits for short calls only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["Places", "most_doubtful"]

#: Calls at the same time.
_MOST: Final = 64

#: Places that are kept for tenants that are well, or half of all if there are few.
_RESERVED: Final = 16

#: Of those, short ones for tenants that are well, and as many for doubtful ones: more at the same
#: time only share the GIL.
_SHORT: Final = 8

#: A call that has taken longer than this is a long one, in seconds.
_LONG: Final = 0.5


def most_doubtful(places: int) -> int:
    """Return how many of so many *places* doubtful tenants may take."""
    return max(2, places - min(_RESERVED, places // 2))


class Places:
    """The calls under way. Used under the buffers' lock.

    Args:
        proven: tells whether the last call for a tenant has reached its database.
        hanging: returns the number of calls that were given up and have not returned.
        connections: databases that may be open.
    """

    def __init__(
        self,
        proven: Callable[[str | None], bool] = lambda _: True,
        hanging: Callable[[], int] = lambda: 0,
        connections: int = _MOST,
    ) -> None:
        self._proven = proven
        self._hanging = hanging
        self.most_doubtful: Final = most_doubtful(min(_MOST, connections))
        self._calls: dict[Hashable, tuple[bool, float]] = {}  # doubtful, since when

    def doubtful(self, tenant_id: str | None) -> bool:
        """Tell whether nobody knows that the tenant's database works."""
        return not self._proven(tenant_id)

    def free(self, now: float, *, doubtful: bool) -> bool:
        """Tell whether there is a place for a tenant of this kind."""
        same = [since for kind, since in self._calls.values() if kind == doubtful]
        if sum(now - since < _LONG for since in same) >= _SHORT:
            return False
        if doubtful:
            return len(same) + self._hanging() < self.most_doubtful
        return len(self._calls) < _MOST

    def take(self, caller: Hashable, now: float, *, doubtful: bool) -> None:
        """Note that *caller* begins a call."""
        self._calls[caller] = (doubtful, now)

    def release(self, caller: Hashable) -> None:
        """Note that *caller*'s call has ended or was given up."""
        self._calls.pop(caller, None)
