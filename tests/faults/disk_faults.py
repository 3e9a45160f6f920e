"""Disks that fail and come back: ``python -m tests.faults.disk_faults``.

A program logs to a disk that is full, read-only, or answers with errors, for a while. Whatever
happens, no call raises, ``on_event`` hears of it, and when the disk works again the log heals by
itself: the program is killed after that, and nothing is missing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from logbun_logging._storage.wal.codec import read_records
from tests.faults.rig import (
    Disk,
    Workload,
    deliver_rest,
    missing_for_disks,
    missing_for_strace,
    print_table,
)

#: Faults that strace injects: the name, the fault, what has to be heard of it.
INJECTED = (
    ("every 7th write: EIO", "write:error=EIO:when=3+7", "wal_failed"),
    ("20 writes: ENOSPC", "write:error=ENOSPC:when=5..25", "wal_failed"),
    ("every 3rd fdatasync: EIO", "fdatasync:error=EIO:when=3+3", "wal_failed"),
    ("fdatasync 2 to 12: EIO", "fdatasync:error=EIO:when=2..12", "wal_failed"),
    ("every 2nd fsync: EIO", "fsync:error=EIO:when=2+2", None),
    ("every 3rd openat: EMFILE", "openat:error=EMFILE:when=3+3", None),
    ("every 2nd rename: EIO", "rename:error=EIO:when=2+2", None),
    ("every 2nd unlink: EIO", "unlink:error=EIO:when=2+2", None),
)


class Result(NamedTuple):
    acknowledged: int
    unsafe: int
    lost: int
    doubled: int
    heard: bool

    @property
    def right(self):
        return self.heard and bool(self.acknowledged) and not (self.lost or self.doubled)


def _result(workload, found, verdict, heard):
    names = {call.name for call in found}
    return Result(
        acknowledged=len(names),
        unsafe=sum(not call.synced for call in found),
        lost=len(names - set(verdict.rows)),
        doubled=verdict.doubled,
        heard=heard is None or heard in workload.happened,
    )


def inject(folder, fault, heard, *, events=120):
    """Inject a fault into system calls; the program ends by itself."""
    arguments = ["--events", events, "--outages", 0.3, "--pause", 0.002]
    # A program that cannot open its modules does not start at all.
    wait = "--wait-started" if fault.startswith("openat") else "--wait"
    workload = Workload(folder, "r", *arguments, wait=wait)
    workload.trace(fault)
    workload.go()
    found = workload.end()
    return _result(workload, found, deliver_rest(folder), heard)


@contextmanager
def full(folder):
    """Yield a tmpfs of 256 KiB, a function that fills it up, and one that empties it."""
    disk = Path(folder) / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        filler = disk / "filler"

        def fill():
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)

        yield disk, fill, filler.unlink
    finally:
        _unmount(disk)


def break_and_heal(folder, disk, fail, heal, *, before=60, during=150, after=150):
    """Let the disk fail while a program logs; kill the program after it has healed."""
    database = Path(folder) / "audit.db"
    workload = Workload(disk, "r", "--database", database, "--pause", "0.002")
    workload.read(before)
    fail(workload.process.pid)
    workload.read(during)
    heal(workload.process.pid)
    workload.read(after)
    workload.kill()
    found = workload.end()
    return _result(workload, found, deliver_rest(disk, database=database), "wal_failed")


def full_disk(folder):
    """Fill the disk while a program logs."""
    with full(folder) as (disk, fill, empty):
        return break_and_heal(folder, disk, lambda _: fill(), lambda _: empty())


def file_size_limit(folder):
    """Let no file grow while a program logs; the database is one of them."""
    disk = Path(folder) / "data"
    disk.mkdir()
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return break_and_heal(
        folder,
        disk,
        lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, (512, unlimited[1])),
        lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited),
    )


def folder_taken_away(folder):
    """Move the data folder away and put a file in its place while a program logs."""
    disk = Path(folder) / "data"
    disk.mkdir()
    wal, moved = disk / "kill" / "wal", disk / "kill" / "moved"

    def fail(_):
        wal.rename(moved)
        wal.write_text("in the way")

    def heal(_):
        wal.unlink()
        moved.rename(wal)

    return break_and_heal(folder, disk, fail, heal, during=400)


def read_only_folders(folder):
    """Make the folders of WAL and DLQ immutable, for root as well, while a program logs."""
    disk = Disk(folder)

    def switch(flag):
        folders = [*(disk.folder / "kill" / "wal").iterdir(), disk.folder / "kill" / "wal"]
        folders += (disk.folder / "kill").glob("dlq")
        subprocess.run(["chattr", flag, *folders], check=True)

    try:
        heal, fail = (lambda _: switch("-i")), (lambda _: switch("+i"))
        return break_and_heal(folder, disk.folder, fail, heal)
    finally:
        disk.close()


def lying_fsync(folder):
    """Let fsync fail once and then lie: ext4 without a journal in a file that cannot grow.

    Writes go to the page cache and succeed; the sync finds no room, fails, and marks the pages
    clean, so that the next sync of the same file succeeds while the data is gone. After remounting
    everything has to be there that was called safe.
    """
    thin, disk = Path(folder) / "thin", Path(folder) / "disk"
    thin.mkdir()
    disk.mkdir()
    device = ""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", thin], check=True)
    try:
        image = thin / "image"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        features = "^has_journal,^metadata_csum,^uninit_bg,^dir_index,^resize_inode"
        options = ["-q", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard", "-N", "512"]
        device = subprocess.check_output(["losetup", "-f", "--show", image], text=True).strip()
        # The loop driver takes a short write for a whole one: no request is longer than a page.
        queue = Path("/sys/block", Path(device).name, "queue", "max_sectors_kb")
        queue.write_text("4")
        command = ["mkfs.ext4", *options, "-O", features, device]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        # Give the metadata its room in the tmpfs: a file system that loses its own inodes can be
        # helped by nobody, and this is about data.
        with image.open("r+b") as file:
            head = file.read(256 * 1024)
            file.seek(0)
            file.write(head)
        subprocess.run(["mount", device, disk], check=True)
        database = Path(folder) / "audit.db"
        arguments = ["--database", database, "--outages", 1.0, "--segment-bytes", 65_536]
        workload = Workload(disk, "r", *arguments)
        deadline = time.monotonic() + 20
        with (thin / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            workload.read(100)
            while time.monotonic() < deadline:
                filler.write(b"x" * 65_536)
        workload.read(2000)
        workload.kill()
        found = workload.end()
        _unmount(disk)
        subprocess.run(["mount", device, disk], check=True)
        kept = set()
        for path in Path(disk, "kill").rglob("*.*"):
            with suppress(OSError), path.open("rb") as file:
                kept.update(payload for payload, whole in read_records(file) if whole)
        text = b"\n".join(kept)
        safe = [call for call in found if call.synced]
        return Result(
            acknowledged=len(found),
            unsafe=len(found) - len(safe),
            lost=sum(f'"{call.name}"'.encode() not in text for call in safe),
            doubled=0,
            heard="wal_failed" in workload.happened,
        )
    finally:
        with suppress(OSError):
            _unmount(disk)
        if device:
            subprocess.run(["losetup", "-d", device], check=False)
        _unmount(thin)


def _unmount(folder):
    for _ in range(100):
        command = ["umount", folder]
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.02)
    raise OSError(f"{folder} stays busy")


MOUNTED = (
    ("disk full", full_disk),
    ("read-only folders", read_only_folders),
    ("fsync fails, then lies", lying_fsync),
)
ANYWHERE = (
    ("RLIMIT_FSIZE", file_size_limit),
    ("folder taken away", folder_taken_away),
)


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        no_disks = missing_for_disks(folder)
    no_strace = missing_for_strace()
    cases = [(name, case) for name, case in ANYWHERE]
    if no_disks is None:
        cases += MOUNTED
    else:
        print("skipped: file systems:", no_disks, file=sys.stderr)
    if no_strace is None:
        for name, fault, heard in INJECTED:
            cases.append((name, lambda folder, f=fault, h=heard: inject(folder, f, h)))
    else:
        print("skipped: system calls:", no_strace, file=sys.stderr)
    table, failed = [], False
    for name, case in cases:
        with tempfile.TemporaryDirectory() as folder:
            result = case(folder)
        failed |= not result.right
        table.append([name, *(f"{n:,}" for n in result[:4]), "yes" if result.heard else "NO"])
    heads = "fault, acknowledged, of these in memory only, lost, doubled, heard of"
    print_table(heads.split(", "), table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
