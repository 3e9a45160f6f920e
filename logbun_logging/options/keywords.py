"""What a user writes: the name, the type and the meaning of each option.

Type checkers and editors read this module. ``AuditTrail(**options: Unpack[TrailOptionsDict])``
makes a misspelt option or a wrong value an error of mypy and pyright, and an editor shows the text
below an option. The table of the configuration page is made of the same texts. Each text ends with
the default and the bounds, which ``model`` defines; ``tests/test_options.py`` compares them.

The types are those of a program. Values from JSON or YAML are checked at run time, by ``parsing``.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, Required, TypeAlias, TypedDict, Union

from logbun_logging._encoding.redaction import Redactor
from logbun_logging._encoding.unknown_fields import UnknownFieldsMode

if TYPE_CHECKING:
    # Adapters stand above the options. Only type checkers need to know what one is.
    from logbun_logging.adapters.base import Adapter

__all__ = [
    "AdapterSpec",
    "BatchingOptionsDict",
    "CommonOptionsDict",
    "DlqOptionsDict",
    "EventCallback",
    "FsyncPolicy",
    "FullPolicy",
    "HandlerOptionsDict",
    "LimitOptionsDict",
    "Mode",
    "PoolOptionsDict",
    "RetentionOptionsDict",
    "RetryOptionsDict",
    "TenancyMode",
    "TenancyOptionsDict",
    "TrailOptionsDict",
    "WalOptionsDict",
]

Mode = Literal["volatile", "durable"]
FsyncPolicy = Literal["always", "interval", "never"]
FullPolicy = Literal["dlq", "drop", "block"]
TenancyMode = Literal["single_database", "database_per_tenant"]

#: How a user names a database: by a URL, by a mapping with ``type``, or by an adapter object.
AdapterSpec: TypeAlias = Union[str, Mapping[str, Any], "Adapter"]


class EventCallback(Protocol):
    """What ``on_event`` is called with: the name of what happened, and its details.

    It runs on a thread of its own. An exception that it raises is logged and otherwise ignored.
    """

    def __call__(self, name: str, details: Mapping[str, Any], /) -> object:  # noqa: D102
        ...


class BatchingOptionsDict(TypedDict, total=False):
    """When a batch is due, and how many events may wait."""

    max_size: int
    """Events of one tenant that make a batch; at most ``max_queue_size``.

    Default: 100. Allowed: 1 to 10,000.
    """
    flush_interval: float
    """Seconds after which a smaller batch is due.

    Default: 5. Allowed: 0.01 to 3,600.
    """
    max_queue_size: int
    """Events of one tenant that may wait while the database does not keep up.

    Default: 1,000. Allowed: 1 to 10,000,000.
    """
    on_queue_full: FullPolicy
    """What happens beyond ``max_queue_size``. ``"dlq"`` writes events to the dead-letter queue.
    ``"drop"`` drops and counts them, in volatile mode only. ``"block"`` lets the call wait up to
    ``block_timeout``, then acts as ``"dlq"``.

    Default: ``"dlq"``. Allowed: ``"dlq"``, ``"drop"``, ``"block"``.
    """
    block_timeout: float
    """Seconds that a call waits under ``on_queue_full="block"``; refused without it.

    Default: 1. Allowed: 0 to 3,600.
    """


class RetryOptionsDict(TypedDict, total=False):
    """How a failed insert is tried again."""

    max_retries: int
    """Further tries of a failed insert, before the batch goes to the dead-letter queue.

    Default: 3. Allowed: 0 to 100.
    """
    base_delay: float
    """Seconds before the first retry; the delay doubles with each one.

    Default: 1. Allowed: 0 to 3,600.
    """
    scan_interval: float
    """Seconds between two scans of the dead-letter queue.

    Default: 60. Allowed: 0.05 to 86,400.
    """
    first_scan: float
    """Seconds from the start to the first scan of the dead-letter queue.

    Default: 10. Allowed: 0 to 86,400.
    """
    max_scan_attempts: int
    """Failed scans after which a dead-lettered file is ``.dead`` and is not tried again.

    Default: 10. Allowed: 1 to 1,000,000.
    """


class TenancyOptionsDict(TypedDict, total=False):
    """One database for all tenants, or one for each."""

    mode: TenancyMode
    """One database for all tenants, or one for each.

    Default: ``"single_database"``. Allowed: ``"single_database"``, ``"database_per_tenant"``.
    """
    resolve_connection: Callable[[str], AdapterSpec | Awaitable[AdapterSpec]] | None
    """Function that is given a tenant id and returns the adapter of that tenant: a URL, a mapping
    or an object. It may be a coroutine function. Required with ``"database_per_tenant"``, refused
    otherwise.

    Default: ``None``.
    """


class PoolOptionsDict(TypedDict, total=False):
    """The tenant databases that are open at a time; refused with one database."""

    max_active_connections: int
    """Tenant databases that are open at a time; beyond that the least recently used one is closed.

    Default: 50. Allowed: 1 to 100,000.
    """
    idle_timeout: float
    """Seconds without use after which a tenant database is closed.

    Default: 300. Allowed: 0.1 to 86,400.
    """


class RetentionOptionsDict(TypedDict, total=False):
    """What is pruned, and when."""

    days: int | None
    """Events older than this many days are pruned; ``None`` keeps them.

    Default: ``None``. Allowed: 1 to 36,500, or ``None``.
    """
    cron: str
    """When events are pruned: a five-field cron expression, in UTC. Refused without ``days`` and
    ``tenants``.

    Default: ``"0 0 * * *"``.
    """
    tenants: Mapping[str, int]
    """Days for single tenants, by tenant id, in place of ``days``.

    Default: ``{}``. Allowed: 1 to 36,500 for each.
    """
    timeout: float
    """Seconds that pruning one database may take.

    Default: 600. Allowed: 1 to 86,400.
    """


class LimitOptionsDict(TypedDict, total=False):
    """Bounds of memory and of single events."""

    max_total_queued: int
    """Events in memory, of all tenants together, those that are being inserted included.

    Default: 50,000. Allowed: 1 to 100,000,000.
    """
    max_queued_bytes: int
    """Bytes of the events in memory, of all tenants together.

    Default: 64 MiB. Allowed: 100,000 to 1 TiB.
    """
    max_string_bytes: int
    """Bytes of one string; a longer one is cut at a character and marked.

    Default: 2,048. Allowed: 256 to 64,000.
    """
    max_payload_bytes: int
    """Bytes of one event; a larger one has its largest objects replaced by a marked preview. At
    most ``max_queued_bytes``.

    Default: 64,000. Allowed: 4,096 to 16,000,000.
    """


class WalOptionsDict(TypedDict, total=False):
    """The write-ahead log; refused in volatile mode."""

    segment_bytes: int
    """Bytes at which a file of the write-ahead log is sealed and the next one begins.

    Default: 8 MiB. Allowed: 4,096 to 4 GiB.
    """
    sync_interval: float
    """Seconds between two syncs under ``fsync="interval"``.

    Default: 1. Allowed: 0.01 to 60.
    """
    max_bytes: int | None
    """Bytes in the write-ahead log of one process, about. Beyond that, events are kept in memory
    alone, as when the disk is full. ``None`` sets no bound. At least ``segment_bytes``.

    Default: 4 GiB. Allowed: 4,096 to 1 PiB, or ``None``.
    """


class DlqOptionsDict(TypedDict, total=False):
    """The bounds of the dead-letter queue. If one is reached, nothing more is written to it."""

    max_files: int
    """Files of the dead-letter queue, in all states.

    Default: 10,000. Allowed: 1 to 10,000,000.
    """
    max_bytes: int
    """Bytes in the files of the dead-letter queue, in all states.

    Default: 1 GiB. Allowed: 100,000 to 1 PiB.
    """


class CommonOptionsDict(TypedDict, total=False):
    """The options that have the same type in every constructor."""

    adapter: AdapterSpec
    """The database: a URL such as ``"sqlite:///audit.db"``, a mapping with ``type``, or an adapter
    object. Refused with ``tenancy.mode="database_per_tenant"``.

    Required.
    """
    data_dir: str | os.PathLike[str]
    """Folder of the write-ahead log and the dead-letter queue. A relative path counts from the
    working directory at configuration. Folders are made with mode 0700, files with 0600. Durable
    mode refuses a folder that this user cannot write.

    Default: ``".logbun"``.
    """
    mode: Mode
    """``"durable"`` writes an event to the write-ahead log before the call returns. ``"volatile"``
    keeps it in memory until it is inserted.

    Default: ``"volatile"``. Allowed: ``"volatile"``, ``"durable"``.
    """
    fsync: FsyncPolicy
    """When the write-ahead log is synced to the disk. ``"always"``: before the call returns, so a
    power cut loses nothing. ``"interval"``: each ``wal.sync_interval``, so a power cut loses at
    most that. ``"never"``: when the kernel does. Refused in volatile mode.

    Default: ``"interval"``. Allowed: ``"always"``, ``"interval"``, ``"never"``.
    """
    batching: BatchingOptionsDict
    """When a batch is due, and how many events may wait."""
    retry: RetryOptionsDict
    """How a failed insert is tried again."""
    tenancy: TenancyOptionsDict
    """One database for all tenants, or one for each."""
    pool: PoolOptionsDict
    """The tenant databases that are open at a time; refused with one database."""
    retention: RetentionOptionsDict
    """What is pruned, and when."""
    require_tenant_id: bool
    """Refuse events without a tenant (they go to the dead-letter queue and are counted), and
    queries without one. ``True`` with ``tenancy.mode="database_per_tenant"``.

    Default: ``False``.
    """
    limits: LimitOptionsDict
    """Bounds of memory and of single events."""
    wal: WalOptionsDict
    """The write-ahead log; refused in volatile mode."""
    dlq: DlqOptionsDict
    """The bounds of the dead-letter queue."""
    insert_timeout: float
    """Seconds that one insert may take.

    Default: 30. Allowed: 0.05 to 3,600.
    """
    flush_timeout: float
    """Seconds that ``flush`` and ``shutdown`` may take as a whole.

    Default: 30. Allowed: 0.05 to 3,600.
    """
    redact: Iterable[str] | Redactor | None
    """Key names or dotted paths whose values are never written, beside the usual names of secrets.
    ``[]`` switches all redaction off.

    Default: the usual names of secrets.
    """
    unknown_fields: UnknownFieldsMode
    """Which names that are no event field are reported: misspelt ones (``"warn"``), all
    (``"refuse"``), none (``"allow"``). The event is stored in any case.

    Default: ``"warn"``. Allowed: ``"warn"``, ``"refuse"``, ``"allow"``.
    """
    on_event: EventCallback | None
    """Function that is called with a name and details for every drop, spill, retry and failure, on
    a thread of its own.

    Default: ``None``.
    """


class TrailOptionsDict(CommonOptionsDict):
    """All options of :class:`~logbun_logging.AuditTrail`."""

    namespace: Required[str]
    """Name of the trail; its files are kept apart from those of all other namespaces.

    Required. Allowed: 1 to 64 characters of A-Z a-z 0-9 _ -.
    """


class HandlerOptionsDict(CommonOptionsDict, total=False):
    """The options of a handler that makes its own trail: those of the trail.

    A handler that is given a trail or a queue takes none of them.
    """

    namespace: str
    """Name of the trail; its files are kept apart from those of all other namespaces.

    Required. Allowed: 1 to 64 characters of A-Z a-z 0-9 _ -.
    """
