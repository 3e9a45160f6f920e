r"""The dead-letter queue: batches that could not be inserted, as files.

::

    {tenant}_{ts}_{rand}.batch               pending
    {tenant}_{ts}_{rand}.batch.processing    being retried; flock held by who retries
    {tenant}_{ts}_{rand}.batch.dead          poison: given up after too many failed scans

A file is an envelope, one line of JSON, and then one WAL record for each event::

    {"v": 1, "dlq": {"tenant_id": "t1", "count": 2, "attempts": 0, "reason": "...", ...}}\n
    {"v": 1, "crc": "89abcdef", "event": {...}}\n

Files are written whole or not at all. The tenant in the name is for the reader's eye: it is
encoded, two tenants never share it, and it is never parsed back. A file of several tenants is
called ``mixed``, and each of its events says whose it is. Several processes share the folder: a
file is claimed by its flock and a rename, and the claim of a process that dies ends with it.
"""

from logbun_logging.dlq.claim import Claim
from logbun_logging.dlq.envelope import DlqFile, Envelope, State
from logbun_logging.dlq.queue import DeadLetterQueue, DlqFullError

__all__ = ["Claim", "DeadLetterQueue", "DlqFile", "DlqFullError", "Envelope", "State"]
