"""Power cuts: ``python -m tests.faults.power_cuts --cuts 50``. Needs root.

A program logs on an ext4 file system of its own, database included, with small segments and a
database that is often away, so that files of the WAL and the DLQ come and go all the time. At a
random moment the power is cut: what no sync has brought to the disk is gone. After the reboot the
next process delivers what is left.

``always`` may lose nothing that was acknowledged. ``interval`` may lose nothing that is older than
its bound, and only a suffix: ``gaps`` counts the tenants of whom an event was lost that is older
than one that was kept. Neither may double anything.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.faults.rig import Disk, Workload, deliver_rest, missing_for_disks, print_table

#: ``wal.sync_interval``, plus what a loaded machine needs for the sync itself, in seconds.
BOUND = 1.0 + 1.5


class Result(NamedTuple):
    acknowledged: int
    lost: int
    too_old: int
    gaps: int
    doubled: int
    oldest: float


def cut_once(folder, fsync, rng):
    """Cut the power once, and return what came of it."""
    disk = Disk(folder)
    try:
        flaky = ["--outages", "0.3"] if rng.random() < 0.7 else []
        workload = Workload(disk.folder, "r", "--fsync", fsync, "--pause", "0.001", *flaky)
        workload.read(rng.randrange(1, 400 if fsync == "always" else 1500))
        cut_at = time.monotonic()
        disk.cut_power()
        workload.kill()
        seen = [found for found in workload.end() if found.synced and found.at < cut_at]
        disk.reboot()
        verdict = deliver_rest(disk.folder)
        assert not verdict.left, verdict.left
    finally:
        disk.close()
    rows = set(verdict.rows)
    lost = [found for found in seen if found.name not in rows]
    by_tenant = defaultdict(list)
    for found in seen:
        by_tenant[found.name.rsplit("-", 1)[0]].append(found.name in rows)
    oldest = max((cut_at - found.at for found in lost), default=0.0)
    return Result(
        acknowledged=len(seen),
        lost=len(lost),
        too_old=sum(cut_at - found.at > BOUND for found in lost),
        gaps=sum(kept != sorted(kept, reverse=True) for kept in by_tenant.values()),
        doubled=verdict.doubled,
        oldest=oldest,
    )


def wrong(fsync, result):
    """Tell whether a result breaks the promise."""
    lost_wrongly = result.lost if fsync == "always" else result.too_old or result.gaps
    return bool(result.doubled or lost_wrongly)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=50, help="of each policy")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        reason = missing_for_disks(folder)
        if reason is not None:
            sys.exit(reason)
    table, failed = [], False
    for fsync in ("always", "interval"):
        results = []
        for _ in range(arguments.cuts):
            with tempfile.TemporaryDirectory() as folder:
                results.append(cut_once(Path(folder), fsync, rng))
            if wrong(fsync, results[-1]):
                print(fsync, results[-1], file=sys.stderr, flush=True)
        failed |= any(wrong(fsync, result) for result in results)
        sums = [sum(column) for column in list(zip(*results, strict=True))[:5]]
        oldest = max(result.oldest for result in results)
        table.append([fsync, arguments.cuts, *(f"{n:,}" for n in sums), f"{oldest:.2f} s"])
    heads = "fsync, cuts, acknowledged, lost, beyond the bound, gaps, doubled, oldest loss"
    print_table(heads.split(", "), table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
