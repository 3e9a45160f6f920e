"""What is reported: for each kind a level, a sentence for people, and what they can do next.

A sentence names details in braces. Counts (``events``, ``records``, ...) become "1 event" or
"5 events". Details that a sentence does not name are appended to it.
"""

from __future__ import annotations

import logging
import string
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from logbun_logging._encoding.messages import one_line

__all__ = ["REPORTS", "Kind", "describe"]

#: The longest text of one detail in a message, in characters.
_LONGEST: Final = 300

#: Details that count something, and what.
_COUNTS: Final = {
    "databases": "database",
    "events": "event",
    "names": "name",
    "records": "record",
    "reports": "report",
    "rows": "row",
}


class Kind(NamedTuple):
    """One kind of report.

    Attributes:
        level: of the log message.
        sentence: what has happened.
        step: what comes next, or what to do.
    """

    level: int
    sentence: str
    step: str


_INFO, _WARNING, _ERROR = logging.INFO, logging.WARNING, logging.ERROR

#: Every kind of report, by the name that ``on_event`` gets.
REPORTS: Final[Mapping[str, Kind]] = {
    "insert_failed": Kind(
        _WARNING,
        "Could not insert {events} (attempt {attempt}): {reason}.",
        "They are tried again. Look at the database if this goes on.",
    ),
    "dead_lettered": Kind(
        _WARNING,
        "Wrote {events} to the dead-letter queue, because inserting failed: {reason}.",
        "They are tried again by themselves.",
    ),
    "spilled": Kind(
        _WARNING,
        "Wrote {events} to the dead-letter queue, because the database does not keep up.",
        "They come back by themselves.",
    ),
    "redelivery_failed": Kind(
        _WARNING,
        "Could not insert a dead letter: {reason}.",
        "It is tried again at the next scan.",
    ),
    "poisoned": Kind(
        _ERROR,
        "Gave up the dead letter {file} with {events} after {attempts} scans: {reason}.",
        "Mend the cause, then requeue the file.",
    ),
    "refused": Kind(
        _WARNING,
        "Refused {events}: {reason}.",
        "They stay in the dead-letter queue until somebody names their tenant: logbun dlq retry "
        "--set tenant_id=TENANT. Let the application name one.",
    ),
    "dropped": Kind(
        _ERROR,
        'Dropped {events}: a queue was full, and on_queue_full is "drop".',
        "Look at the database, or raise batching.max_queue_size.",
    ),
    "lost": Kind(
        _ERROR,
        "Lost {events}: no disk took them, or they came after shutdown().",
        "Mend the disk. Late ones are delivered if this process opens the namespace again.",
    ),
    "wal_failed": Kind(
        _ERROR,
        "Durable mode cannot write its WAL: {reason}.",
        "In memory only until writing works again: {events}. Mend the disk or the permissions.",
    ),
    "wal_removed": Kind(
        _ERROR,
        "Somebody has removed, moved or replaced files of the WAL: {reason}.",
        "All that was in memory is in new ones. Look for a clean-up job.",
    ),
    "wal_nearly_full": Kind(
        _ERROR,
        "The WAL has {bytes} bytes of {max_bytes}.",
        "Mend the database or make room in the dead-letter queue, or raise wal.max_bytes.",
    ),
    "wal_failures": Kind(
        _WARNING,
        "The WAL could not take {events} at the call.",
        "Until it has written them, a killed process loses them.",
    ),
    "spill_failed": Kind(
        _ERROR,
        "Could not write to the dead-letter queue, so memory stays full: {reason}.",
        "Look at the disk, and at dlq.max_files and dlq.max_bytes.",
    ),
    "dlq_failed": Kind(
        _ERROR,
        "Could not write to the dead-letter queue: {reason}.",
        "Left to the WAL: {deferred}, left in memory: {left}. Look at the disk, and at "
        "dlq.max_files and dlq.max_bytes.",
    ),
    "corrupt": Kind(
        _ERROR,
        "Found {records} damaged.",
        "They are set aside in the file; all others are delivered.",
    ),
    "recovery_failed": Kind(
        _ERROR,
        "Could not read a WAL segment: {reason}.",
        "It is tried again at the next scan.",
    ),
    "maintenance_failed": Kind(
        _ERROR,
        "Recovery and dead-letter scans failed: {reason}.",
        "They are tried again.",
    ),
    "delivery_failed": Kind(
        _ERROR,
        "A flush worker failed: {reason}.",
        "The batch is tried again. This is a fault of the library: please report it.",
    ),
    "listener_failed": Kind(
        _ERROR,
        "The queue's listener failed: {reason}.",
        "It goes on. This is a fault of the library: please report it.",
    ),
    "bootstrap_failed": Kind(
        _ERROR,
        "The database cannot be opened: {reason}.",
        "Events are kept meanwhile, and it is tried again.",
    ),
    # As loud as the news of the outage, which it ends.
    "database_recovered": Kind(
        _WARNING,
        "The database answers again.",
        "Its dead letters are tried at once.",
    ),
    "retention_failed": Kind(
        _ERROR,
        "Could not prune: {reason}.",
        "It is tried again at the next time of retention.cron.",
    ),
    "pruned": Kind(
        _INFO,
        "Pruned {rows} in {databases}.",
        "",
    ),
    "namespace_taken_over": Kind(
        _WARNING,
        "Two trails have this namespace: {reason}.",
        "Give each its own namespace.",
    ),
    "registry_failed": Kind(
        _WARNING,
        "Could not note a tenant in tenants.ndjson: {reason}.",
        "It is tried again when the tenant's database is opened next.",
    ),
    "close_failed": Kind(
        _WARNING,
        "Could not close everything in order: {reason}.",
        "What is in files is delivered after the next start.",
    ),
    "cut": Kind(
        _WARNING,
        "Cut values of {events} to the limits.",
        "Log less, or raise limits.",
    ),
    "encode_failures": Kind(
        _WARNING,
        "Could keep only the action and the error of {events}.",
        "Look at the error in their metadata.",
    ),
    "filter_failures": Kind(
        _WARNING,
        "A filter on the batching handler raised for {events}.",
        "They are stored. Mend the filter.",
    ),
    "rendered": Kind(
        _WARNING,
        "Got {events} as text that a structlog renderer had made.",
        "Let the audit handler come before the renderer.",
    ),
    "unknown_fields": Kind(
        _WARNING,
        "Found {names} that look like a field of the event and are none ({example}).",
        "The values are in metadata. Mend the name in the call.",
    ),
    "refused_fields": Kind(
        _ERROR,
        "Found {names} that are no field of the event ({example}).",
        "The events are stored. Give such names in metadata={{...}}.",
    ),
    "opaque_values": Kind(
        _WARNING,
        "Found objects in {events} that JSON cannot hold ({example}).",
        "The events are stored.",
    ),
    "unknown_action": Kind(
        _WARNING,
        "Logged {events} with an action that the logger does not know.",
        "Look for a misspelt action.",
    ),
    "start_failed": Kind(
        _ERROR,
        "Could not start the thread {thread}: {reason}.",
        "It is tried again each second. Raise the limit of threads or processes.",
    ),
    "thread_died": Kind(
        _ERROR,
        "The thread {thread} ended: {reason}.",
        "It is started again. Look for a driver that raises more than an Exception.",
    ),
    "reports_dropped": Kind(
        _WARNING,
        "Dropped {reports}: there were more than on_event and logging could take.",
        "Make on_event and the handlers of the logger logbun_logging quicker.",
    ),
    "on_event_failed": Kind(
        _ERROR,
        "on_event raised {reason}, in {where}.",
        "It is called again for the next report. Mend it.",
    ),
}


def describe(name: str, details: Mapping[str, Any]) -> str:
    """Return one printable line that says what has happened, and what to do.

    Control characters, line breaks and marks that turn the direction of text are escaped, and long
    texts are cut: a tenant's name must not be able to forge a line of a log.
    """
    kind = REPORTS.get(name)
    sentence = f"{kind.sentence} {kind.step}".rstrip() if kind is not None else f"{name}."
    shown = {key: _shown(key, value) for key, value in details.items()}
    named = {field for _, field, _, _ in string.Formatter().parse(sentence) if field}
    text = sentence.format_map({**dict.fromkeys(named, "unknown"), **shown})
    rest = [
        f"{key}={one_line(value, _LONGEST)}"
        for key, value in details.items()
        if key not in named and value is not None
    ]
    return f"{text} ({', '.join(rest)})" if rest else text


def _shown(key: str, value: object) -> str:
    noun = _COUNTS.get(key)
    if noun is not None and isinstance(value, int):
        return f"{value:,} {noun}{'' if value == 1 else 's'}"
    return one_line(value, _LONGEST).removesuffix(".")
