r"""The dead-letter queue: batches that could not be inserted, as files.

**Names.** What follows the name tells a file's state::

    {tenant}_{ts}_{rand}.batch               pending
    {tenant}_{ts}_{rand}.batch.processing    claimed: locked (flock) by the process that retries it
    {tenant}_{ts}_{rand}.batch.dead          poison: given up after too many failed scans
    {tenant}_{ts}_{rand}.corrupt             damaged records that were set aside

The tenant in the name is for the reader's eye: it is encoded, two tenants never share it, and it is
never parsed back. A file of several tenants is called ``mixed``; each of its events says whose it
is.

**Content.** A file is an envelope, one line of JSON, and then one WAL record for each event::

    {"v": 1, "dlq": {"tenant_id": "t1", "count": 2, "attempts": 0, "reason": "...", ...}}\n
    {"v": 1, "crc": "89abcdef", "event": {...}}\n

**What a killed process leaves.** Several processes share the folder, and the kernel drops a lock
with its process. Each state below is one that the next scan can go on from:

- Killed while it writes: a locked temporary file (``.tmp``) that is no longer locked, and is
  removed. The file itself is there whole or not at all.
- Killed while it delivers: ``.processing`` without a lock. The next process claims it, and events
  that are in the database already are not stored twice, because inserts are idempotent.
- Killed while it renames: one file under two names, of which the next claim removes one. Where
  there are no hard links: the file under its old name, and an empty one that has the new name. The
  empty one is delivered as a dead letter of no events.
- Killed after it has delivered, before it removes the file: as while it delivers.

How a file is claimed and put back is in :mod:`.claim`, its form in :mod:`.envelope`, what is in the
folder in :mod:`.listing`, and what the pipeline and an operator may do in :mod:`.queue`.
"""

from logbun_logging._storage.dlq.claim import Claim
from logbun_logging._storage.dlq.envelope import DlqFile, Envelope, State
from logbun_logging._storage.dlq.queue import DeadLetterQueue, DlqFullError

__all__ = ["Claim", "DeadLetterQueue", "DlqFile", "DlqFullError", "Envelope", "State"]
