"""The commands that talk to a namespace's folder: ``stats``, ``wal`` and ``dlq``.

They may run beside a live service: what they change is claimed by the kernel's locks, as the
processes of a service claim it from each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from logbun_logging._encoding.values import clean_tenant_id
from logbun_logging._storage.dlq import DeadLetterQueue, DlqFile
from logbun_logging._storage.files import open_regular, try_lock
from logbun_logging._storage.namespace import check_owner, read_note
from logbun_logging._storage.wal.codec import entry_of, read_records
from logbun_logging._tenancy.registry import TenantRegistry
from logbun_logging.cli.commands import Command, Raw, Yes
from logbun_logging.cli.events import Url, open_database
from logbun_logging.cli.output import (
    Format,
    confirm,
    counted,
    friendly,
    show_events,
    show_json,
    show_table,
    warn,
)
from logbun_logging.errors import ConfigurationError, LogbunError
from logbun_logging.event import AuditEvent, decode_event
from logbun_logging.options import DlqOptions
from logbun_logging.trail import AuditTrail

__all__ = ["register"]

Folder = Annotated[
    Path, typer.Argument(help="The namespace's folder: data_dir/namespace, e.g. .logbun/my-app")
]
Name = Annotated[
    str, typer.Argument(help="The file's name, as 'dlq list' shows it or as it is on the disk.")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
State = Literal["pending", "processing", "dead"]

#: What a dead letter's file is called behind its name.
_SUFFIX: Final = re.compile(r"\.batch(\.processing|\.dead)?$")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=Command)(stats)
    app.command(cls=Command)(wal)
    dlq = typer.Typer(no_args_is_help=True)
    app.add_typer(dlq, name="dlq", help="List, show, requeue, retry and delete dead letters.")
    dlq.command("list", cls=Command)(dlq_list)
    dlq.command("show", cls=Command)(dlq_show)
    dlq.command("requeue", cls=Command)(dlq_requeue)
    dlq.command("retry", cls=Command)(dlq_retry)
    dlq.command("delete", cls=Command)(dlq_delete)


@friendly
def stats(folder: Folder, *, as_json: Json = False) -> None:
    """Show the size of the write-ahead logs and what is in the dead-letter queue.

    Only the process that writes a log knows what in it is delivered: see trail.stats().
    """
    queue = _queue(folder)
    logs = {instance: _files(instance) for instance in _instances(folder)}
    alive = sum(map(_is_held, logs))
    counts = queue.counts()
    files = [] if counts["error"] else queue.list()
    first = [file.envelope.first_failed_at for file in files if file.envelope]
    found: dict[str, object] = {
        "wal_processes": alive,
        "wal_abandoned": len(logs) - alive,
        "wal_segments": sum(map(len, logs.values())),
        "wal_bytes": sum(_size(path) for paths in logs.values() for path in paths),
        **{f"dlq_{name}": count for name, count in counts.items()},
        "dlq_oldest": min(first, default=None),
        "corrupt_files": len(list(folder.rglob("*.corrupt"))),
    }
    if as_json:
        show_json(found)
    else:
        show_table(["figure", "value"], list(found.items()))


@friendly
def wal(
    folder: Folder,
    *,
    events: Annotated[bool, typer.Option("--events", help="Show events, not files.")] = False,
    form: Annotated[Format, typer.Option("--format", "-f")] = Format.TABLE,
    raw: Raw = False,
) -> None:
    """Show the write-ahead log of each process.

    A segment is deleted when all its events are delivered. Until then it has delivered ones, too.
    """
    _check(folder)
    if events:
        show_events(_wal_events(folder), form, raw=raw)
        return
    if raw or form is Format.CSV:
        raise ConfigurationError("--format", form.value, "table, json or ndjson without --events")
    found = list(_segments(folder))
    names = ("process", "alive", "segment", "events", "damaged", "bytes", "oldest")
    rows = [(s.instance, s.alive, s.name, s.events, s.damaged, s.size, s.oldest) for s in found]
    if form in {Format.JSON, Format.NDJSON}:
        show_json([dict(zip(names, row, strict=True)) for row in rows])
    elif rows:
        words = {True: "yes", False: "no"}
        show_table(
            names, [(row[0], words[s.alive], *row[2:]) for s, row in zip(found, rows, strict=True)]
        )
    else:
        warn("there is no write-ahead log: nothing waits, or the trail is volatile")


@friendly
def dlq_list(
    folder: Folder,
    *,
    state: Annotated[State | None, typer.Option("--state", "-s", help="Only these.")] = None,
    as_json: Json = False,
) -> None:
    """List the files, oldest first."""
    files = _queue(folder).list(state)
    if as_json:
        show_json([_described(file) for file in files])
    elif files:
        names = ("name", "state", "tenant", "events", "attempts", "last failed at", "reason")
        show_table(names, [_row(file) for file in files])
    else:
        warn("there are no dead letters" + (f" in the state {state}" if state else ""))


@friendly
def dlq_show(
    folder: Folder,
    name: Name,
    *,
    form: Annotated[Format, typer.Option("--format", "-f")] = Format.TABLE,
    raw: Raw = False,
) -> None:
    """Show the events in a file."""
    queue = _queue(folder)
    show_events(queue.show(_find(queue, name).name), form, raw=raw)


@friendly
def dlq_requeue(
    folder: Folder,
    names: Annotated[list[str] | None, typer.Argument(help="Names of dead files.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All dead files.")] = False,
) -> None:
    """Make dead files pending: the service tries them again at its next scan."""
    queue = _queue(folder)
    done = 0
    for name in _chosen(queue, names, every=every, state="dead"):
        if not queue.requeue(name):
            raise LogbunError(f"{name} is not dead; made pending so far: {counted(done, 'file')}")
        done += 1
    warn(f"made pending: {counted(done, 'file')}")


@friendly
def dlq_retry(
    folder: Folder,
    url: Url,
    names: Annotated[list[str] | None, typer.Argument(help="Names of files.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All pending files.")] = False,
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="Only this tenant's events.")
    ] = None,
    repair: Annotated[
        str | None,
        typer.Option("--set", help="tenant_id=TENANT: give it to events of no tenant."),
    ] = None,
) -> None:
    """Insert files into a database now. Dead files must be named.

    The write-ahead logs of dead processes are delivered with them. Where each tenant has its own
    database, --tenant says whose this one is. Only that tenant's events get into it. The service
    refuses events that name no tenant, if it requires one. Use --set to name it.
    """
    queue = _queue(folder)
    owner = clean_tenant_id(tenant) if tenant else None
    separate = (folder / "tenants.ndjson").is_file()
    chosen = _chosen(queue, names, every=every, state="pending", tenant=owner, mixed=separate)
    if repair is not None:
        chosen = _repaired(queue, chosen, names, repair)
    chosen = _allowed(queue, chosen, named=bool(names))
    where = _destination(folder, queue, url, owner)
    with open_database(url):
        pass  # says so if it cannot be opened: a trail would wait for it
    absolute = folder.absolute()
    with AuditTrail(namespace=absolute.name, data_dir=absolute.parent, **where) as trail:
        trail.ready()
        inserted = sum(trail.dlq.retry(name) for name in chosen)
        left = {file.name for file in trail.dlq.list() if _is_left(trail.dlq, file, owner)}
        left &= set(chosen)
    warn(f"inserted: {counted(inserted, 'event')}")
    if left:
        raise LogbunError(f"left: {counted(len(left), 'file')}, e.g. {min(left)}; see dlq list")


@friendly
def dlq_delete(
    folder: Folder,
    names: Annotated[list[str], typer.Argument(help="Names of pending or dead files.")],
    *,
    yes: Yes = False,
) -> None:
    """Remove files and their events for good. Asks first."""
    queue = _queue(folder)
    files = [_find(queue, name) for name in names]
    if not yes:
        count = sum(file.envelope.count if file.envelope else 0 for file in files)
        files_and_events = f"{counted(len(files), 'file')} with {counted(count, 'event')}"
        confirm(f"Remove {files_and_events} for good?")
    for file in files:
        if not queue.delete(file.name):
            raise LogbunError(f"{file.name} is being retried just now: try again later")
    warn(f"removed: {counted(len(files), 'file')}")


# ── the write-ahead log ──


@dataclass(frozen=True, slots=True)
class _Segment:
    instance: str
    alive: bool
    name: str
    size: int
    events: int
    damaged: int
    oldest: str | None


def _segments(folder: Path) -> Iterator[_Segment]:
    for instance in _instances(folder):
        alive = _is_held(instance)
        for path in _files(instance):
            events = damaged = size = 0
            oldest: str | None = None
            for payload, whole in _records(path):
                size += len(payload)
                event = _decoded(payload) if whole else None
                if event is None:
                    damaged += 1
                    continue
                events += 1
                oldest = event.created_at if oldest is None else min(oldest, event.created_at)
            yield _Segment(instance.name, alive, path.name, size, events, damaged, oldest)


def _wal_events(folder: Path) -> Iterator[AuditEvent]:
    for instance in _instances(folder):
        for path in _files(instance):
            for payload, whole in _records(path):
                event = _decoded(payload) if whole else None
                if event is not None:
                    yield event


def _instances(folder: Path) -> list[Path]:
    root = folder / "wal"
    found = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def _files(instance: Path) -> list[Path]:
    found = sorted(instance.glob("seg-*.aof")) + sorted(instance.glob("current.aof"))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # delivered meanwhile
        return 0


def _records(path: Path) -> Iterator[tuple[bytes, bool]]:
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:  # delivered meanwhile
        return
    with os.fdopen(descriptor, "rb") as file:
        yield from read_records(file)


def _decoded(payload: bytes) -> AuditEvent | None:
    return decode_event(payload) if entry_of(payload, check=True) is not None else None


def _is_held(instance: Path) -> bool:
    """Tell whether a process has the folder, by trying its lock for a moment."""
    try:
        descriptor = os.open(instance, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


# ── the dead-letter queue ──


def _check(folder: Path) -> None:
    for path in (folder, folder / "wal", folder / "dlq"):
        check_owner(path)  # or root would read, and write, what another user has planted there
    if not any((folder / name).is_dir() for name in ("wal", "dlq")):
        allowed = "a namespace's folder (data_dir/namespace), with wal or dlq in it"
        raise ConfigurationError("FOLDER", str(folder), allowed)


def _queue(folder: Path) -> DeadLetterQueue:
    _check(folder)
    return DeadLetterQueue(folder / "dlq", DlqOptions())


def _destination(
    folder: Path, queue: DeadLetterQueue, url: str, owner: str | None
) -> dict[str, Any]:
    """Return the options that say where events go: of a tenant's database, to that one only.

    Others' events that a dead process left are then dead letters, for the service to deliver.
    """
    registry = folder / "tenants.ndjson"
    note = read_note(folder)
    waiting = {tenant for file in queue.list() for tenant in _tenants(queue, file)}
    if note is not None:
        shared = note.tenancy == "single_database" and not registry.is_file()
    else:
        shared = owner is None and not registry.is_file()
        if shared and len(waiting) > 1:
            problem = "nothing in the folder says whether these tenants share a database"
            allowed = "the tenant whose database URL is"
            raise ConfigurationError("--tenant", None, allowed, problem=problem)
    if shared:
        return {"adapter": url}
    if owner is None:
        allowed = "the tenant whose database URL is: each tenant of this namespace has its own"
        raise ConfigurationError("--tenant", None, allowed)
    if owner not in waiting.union(TenantRegistry(registry).tenants()):
        allowed = f"a tenant of the dead letters, or one that {registry} names"
        raise ConfigurationError("--tenant", owner, allowed)

    def resolve_connection(tenant_id: str) -> str:
        if tenant_id != owner:
            raise LogbunError(f"left to the service: logbun was given the database of {owner!r}")
        return url

    tenancy = {"mode": "database_per_tenant", "resolve_connection": resolve_connection}
    return {"tenancy": tenancy, "retry": {"max_retries": 0, "first_scan": 86_400.0}}


def _find(queue: DeadLetterQueue, name: str) -> DlqFile:
    plain = _SUFFIX.sub("", name)
    found = next((file for file in queue.list() if file.name == plain), None)
    if found is None:
        raise LogbunError(f"there is no dead letter {name}: see dlq list")
    return found


def _chosen(
    queue: DeadLetterQueue,
    names: list[str] | None,
    *,
    every: bool,
    state: State,
    tenant: str | None = None,
    mixed: bool = False,
) -> list[str]:
    """Return the names of the files that were named, or of all: those of *tenant*, if given.

    With *mixed* a file of several tenants is among them if it has any of this tenant's events.
    """
    if bool(names) == every:
        raise ConfigurationError("NAMES", names, "names of files, or --all")
    found = queue.list(state) if every else [_find(queue, name) for name in names or ()]
    if tenant is None:
        return [file.name for file in found]
    own = [file for file in found if _is_of(queue, file, tenant, mixed=mixed)]
    if not every and len(own) < len(found):
        other = next(file.name for file in found if file not in own)
        raise ConfigurationError("NAMES", other, f"files of the tenant {tenant!r}")
    return [file.name for file in own]


def _is_of(queue: DeadLetterQueue, file: DlqFile, tenant: str, *, mixed: bool) -> bool:
    if file.envelope is None or (file.envelope.mixed and not mixed):
        return False
    return tenant in _tenants(queue, file)


def _is_left(queue: DeadLetterQueue, file: DlqFile, owner: str | None) -> bool:
    """Tell whether a file still has anything that was to be inserted: others' events were not."""
    return owner is None or owner in _tenants(queue, file)


def _tenants(queue: DeadLetterQueue, file: DlqFile) -> set[str | None]:
    """Return whose events are in a file; nobody's if that is not known."""
    if file.envelope is None:
        return set()
    if not file.envelope.mixed:
        return {file.envelope.tenant_id}
    with suppress(KeyError):  # delivered meanwhile
        return {event.tenant_id for event in queue.show(file.name)}
    return set()


def _allowed(queue: DeadLetterQueue, chosen: list[str], *, named: bool) -> list[str]:
    """Leave out what the service has refused for its missing tenant; an error if it was named."""
    refused = {f.name for f in queue.list() if f.envelope and f.envelope.tenant_required}
    for name in refused.intersection(chosen) if named else ():
        allowed = "files whose events have a tenant, or --set tenant_id=TENANT with it"
        raise ConfigurationError("NAMES", name, allowed)
    return [name for name in chosen if name not in refused]


def _repaired(
    queue: DeadLetterQueue, chosen: list[str], names: list[str] | None, repair: str
) -> list[str]:
    """Give the events of the files that were named a tenant; return the files' new names."""
    field, _, value = repair.partition("=")
    if field != "tenant_id" or not value or not names:
        raise ConfigurationError("--set", repair, "tenant_id=TENANT, and names of files")
    return [queue.assign(name, clean_tenant_id(value)) for name in chosen]


def _row(file: DlqFile) -> tuple[object, ...]:
    known = file.envelope
    if known is None:
        return (file.name, file.state, "?", "?", "?", "?", "its first line is damaged")
    return (
        file.name,
        file.state,
        "(several)" if known.mixed else known.tenant_id,
        known.count,
        known.attempts,
        known.last_failed_at,
        known.reason,
    )


def _described(file: DlqFile) -> dict[str, object]:
    known = file.envelope
    return {
        "name": file.name,
        "state": file.state,
        "bytes": file.size,
        "envelope": known,
    }
