"""For tests: of adapters, and of applications' audit trails.

:class:`AdapterContract` and :class:`ServerContract` are pytest classes that an adapter's author
subclasses; :class:`MemoryAdapter` is an adapter that forgets. :func:`capture_events` is what the
fixture ``audit_log`` of the pytest plug-in does. Nothing here is imported until used, and only the
two contracts need pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from logbun_logging.testing.audit_log import AuditLog
    from logbun_logging.testing.capture import capture_events
    from logbun_logging.testing.contract import AdapterContract, MakeAdapter
    from logbun_logging.testing.memory import MemoryAdapter
    from logbun_logging.testing.server_contract import Server, ServerContract

__all__ = [
    "AdapterContract",
    "AuditLog",
    "MakeAdapter",
    "MemoryAdapter",
    "Server",
    "ServerContract",
    "capture_events",
]

_MODULES: Final = {
    "AdapterContract": "contract",
    "AuditLog": "audit_log",
    "MakeAdapter": "contract",
    "MemoryAdapter": "memory",
    "Server": "server_contract",
    "ServerContract": "server_contract",
    "capture_events": "capture",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
