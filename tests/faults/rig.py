"""What the scripts of this folder share: children, ext4 disks whose power can be cut, verdicts."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from tests.faults.workload import make_trail

ROOT = Path(__file__).parents[2]


class Acknowledged(NamedTuple):
    """A line of the workload: a call that has returned."""

    name: str
    synced: bool
    at: float


class Workload:
    """A running ``tests.faults.workload``, or another module with its way to wait."""

    def __init__(self, *arguments, wait=None, module="workload"):
        command = [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)]
        self.process = subprocess.Popen(
            [*command, *([wait] if wait else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        self._tracer = None
        self._seen = b""
        self.happened = []
        if wait is not None:
            assert self.process.stdout.readline() == b"ready\n"

    def trace(self, inject):
        """Let strace inject a fault from now on: counts begin at 0, in each thread."""
        call = inject.split(":")[0]
        options = ["-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={inject}"]
        self._tracer = subprocess.Popen(
            ["strace", *options, "-p", str(self.process.pid)], stderr=subprocess.PIPE
        )
        status = Path(f"/proc/{self.process.pid}/status")
        deadline = time.monotonic() + 20
        while "TracerPid:\t0\n" in status.read_text():
            if self._tracer.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise OSError(f"strace cannot attach: {self._tracer.stderr.read().decode()}")
            time.sleep(0.005)

    def let_go(self):
        """Take strace off: a process is not killed while it holds a system call up."""
        if self._tracer is not None:
            self._tracer.kill()
            self._tracer.communicate()

    def go(self):
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def read(self, lines):
        """Wait for so many calls to return."""
        while lines > 0:
            line = self.process.stdout.readline()
            if not line:
                raise EOFError("the workload has ended")
            self._seen += line
            lines -= not line.startswith(b"!")

    def kill(self):
        self.process.kill()

    def end(self):
        """Wait for the end; return what was acknowledged."""
        try:
            out, _ = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.communicate()
            raise
        finally:
            if self._tracer is not None:
                self._tracer.communicate()
        found = []
        for line in (self._seen + out).decode().split("\n")[:-1]:
            name, synced, at = line.split(" ")
            if name.startswith("!"):
                self.happened.append(name[1:])
            else:
                found.append(Acknowledged(name, synced == "1", float(at)))
        return found

    @property
    def killed(self):
        return self.process.returncode == -9


class Verdict(NamedTuple):
    """What a fresh process found in the database after it had delivered everything."""

    rows: list[str]
    corrupt: int
    left: list[str]

    @property
    def doubled(self):
        return len(self.rows) - len(set(self.rows))


def deliver_rest(folder, *, database=None, timeout=60.0):
    """Start on *folder* as the next process does, and return what it comes to."""
    database = database or Path(folder) / "audit.db"
    trail = make_trail(folder, database=database)
    try:
        assert trail.ready(timeout), trail.pipeline.bootstrap_error
        deadline = time.monotonic() + timeout
        while not (trail.flush(timeout) and trail.dlq.is_empty()):
            assert time.monotonic() < deadline, trail.stats()
            trail.dlq.retry()
            time.sleep(0.02)
        corrupt = trail.stats()["corrupt"]
    finally:
        assert trail.shutdown(timeout)
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT entity_id FROM audit_logs ORDER BY tenant_id, id")
        rows = [row[0] for row in found]
    left = [
        str(path)
        for path in Path(folder, "kill").rglob("*")
        if path.is_file() and path.suffix not in {".corrupt", ".ndjson", ".json"}
    ]
    return Verdict(rows, corrupt, left)


class Disk:
    """An ext4 file system of its own, in a file, whose power can be cut.

    ``EXT4_IOC_SHUTDOWN`` without a flush of the journal drops every page and journal block that has
    not reached the device; mounting it again replays the journal, as booting does.
    """

    _SHUTDOWN = 0x8004587D
    _NO_LOG_FLUSH = 2

    def __init__(self, folder, megabytes=48):
        self.folder = Path(folder) / "disk"
        self._image = Path(folder) / "disk.img"
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True, stdout=subprocess.DEVNULL)
        self._mount()

    def _mount(self):
        subprocess.run(["mount", "-o", "loop", self._image, self.folder], check=True)

    def _unmount(self):
        for _ in range(100):
            command = ["umount", self.folder]
            if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.02)
        raise OSError(f"{self.folder} stays busy")

    def remount(self, option):
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)

    def cut_power(self):
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, self._SHUTDOWN, struct.pack("I", self._NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def reboot(self):
        self._unmount()
        self._mount()

    def close(self):
        with suppress(OSError):
            self._unmount()
        self._image.unlink()


def missing_for_disks(folder):
    """Return why no disk can be mounted here, or None."""
    if os.geteuid() != 0:
        return "needs root: file systems are mounted"
    if not all(map(shutil.which, ("mkfs.ext4", "mount", "umount"))):
        return "needs mkfs.ext4 and mount"
    try:
        disk = Disk(folder)
        try:
            disk.cut_power()
        finally:
            disk.close()
            disk.folder.rmdir()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"needs loop devices and EXT4_IOC_SHUTDOWN: {error}"
    return None


def missing_for_strace():
    """Return why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "needs strace"
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tracer = subprocess.Popen(
        ["strace", "-qq", "-o", "/dev/null", "-p", str(process.pid)], stderr=subprocess.PIPE
    )
    try:
        time.sleep(0.2)
        refused = tracer.poll() is not None
    finally:
        process.kill()
        process.communicate()
        _, error = tracer.communicate()
    return f"strace cannot attach: {error.decode().strip()}" if refused else None


def print_table(heads, rows):
    """Print a table in Markdown."""
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
