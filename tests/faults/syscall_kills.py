"""SIGKILL at the N-th call of the kernel: ``python -m tests.faults.syscall_kills --to 40``.

For each system call that the library's files depend on, and each N, a program logs with small
segments and a database that is often away, and strace kills it when one of its threads makes its
N-th such call: before the call has done anything. Then the next process, which starts with what the
first has left, is killed at the same place; and the one after that has to bring everything to the
database, once, with nothing set aside as damaged.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import NamedTuple

from tests.faults.rig import Workload, deliver_rest, missing_for_strace, print_table

CALLS = ("write", "fdatasync", "fsync", "openat", "rename", "unlink", "ftruncate")


class Result(NamedTuple):
    killed: int
    acknowledged: int
    lost: int
    doubled: int
    damaged: int
    left: int

    @property
    def right(self):
        return not (self.lost or self.doubled or self.damaged or self.left)


def kill_at(folder, call, number, *, events=400):
    """Kill two processes in a row at their *number*-th *call*, and return what came of it."""
    acknowledged, killed = set(), 0
    arguments = ["--events", events, "--pause", 0.004, "--flush-interval", 0.01, "--outages", 0.5]
    for run in ("first", "second"):
        # The start makes more calls than anything after it: every other process is killed later.
        wait = "--wait" if number % 2 else "--wait-started"
        workload = Workload(folder, run, *arguments, wait=wait)
        workload.trace(f"{call}:signal=KILL:when={number}")
        workload.go()
        acknowledged.update(found.name for found in workload.end())
        killed += workload.killed
    verdict = deliver_rest(folder)
    return Result(
        killed=killed,
        acknowledged=len(acknowledged),
        lost=len(acknowledged - set(verdict.rows)),
        doubled=verdict.doubled,
        damaged=verdict.corrupt,
        left=len(verdict.left),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=int, default=40, help="the last N")
    parser.add_argument("--calls", default=",".join(CALLS))
    arguments = parser.parse_args()
    reason = missing_for_strace()
    if reason is not None:
        sys.exit(reason)
    table, failed = [], False
    for call in arguments.calls.split(","):
        results = []
        for number in range(1, arguments.to + 1):
            with tempfile.TemporaryDirectory() as folder:
                result = kill_at(folder, call, number)
            if not result.right:
                print(call, number, result, file=sys.stderr, flush=True)
            results.append(result)
        failed |= not all(result.right for result in results)
        sums = [f"{sum(column):,}" for column in zip(*results, strict=True)]
        table.append([call, f"1 to {arguments.to}", *sums])
    heads = "call, N, killed, acknowledged, lost, doubled, damaged, files left"
    print_table(heads.split(", "), table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
