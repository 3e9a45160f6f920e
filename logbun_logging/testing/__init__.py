"""For tests: of adapters, and of applications' audit trails.

:class:`AdapterContract` and :class:`ServerContract` are pytest classes that an adapter's author
subclasses; :class:`MemoryAdapter` is an adapter that forgets. Nothing here is imported until used,
and only the two contracts need pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from logbun_logging.testing.contract import AdapterContract, MakeAdapter
    from logbun_logging.testing.memory import MemoryAdapter
    from logbun_logging.testing.server_contract import Server, ServerContract

__all__ = ["AdapterContract", "MakeAdapter", "MemoryAdapter", "Server", "ServerContract"]

_MODULES: Final = {
    "AdapterContract": "contract",
    "MakeAdapter": "contract",
    "MemoryAdapter": "memory",
    "Server": "server_contract",
    "ServerContract": "server_contract",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
