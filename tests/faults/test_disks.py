"""The scripts of this folder, in short: power cuts, kills at system calls, disks that fail.

Each script runs longer by hand, ``python -m tests.faults.NAME``, and prints a table.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.faults import big_wal, disk_faults, hung_disk, outage, power_cuts, syscall_kills
from tests.faults.memory import peak_memory, reset_peak_memory
from tests.faults.rig import deliver_rest, missing_for_disks, missing_for_strace

pytestmark = pytest.mark.faults


@pytest.fixture(scope="session")
def disks(tmp_path_factory):
    reason = missing_for_disks(tmp_path_factory.mktemp("probe"))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def strace():
    reason = missing_for_strace()
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fsync", ["always", "interval"])
def test_a_power_cut_loses_no_more_than_the_policy_says(disks, tmp_path, fsync, seed):
    result = power_cuts.cut_once(tmp_path, fsync, random.Random(seed))
    assert result.acknowledged
    assert not power_cuts.wrong(fsync, result), result


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", 9), ("fdatasync", 6), ("fsync", 5), ("openat", 8), ("rename", 3), ("unlink", 2)],
)
def test_the_start_after_a_kill_at_a_system_call_is_right(strace, tmp_path, call, number):
    result = syscall_kills.kill_at(tmp_path, call, number, events=100)
    assert result.killed
    assert result.right, result


@pytest.mark.parametrize(
    ("fault", "heard"),
    [found[1:] for found in disk_faults.INJECTED if found[0].startswith("every 3rd")]
    + [found[1:] for found in disk_faults.INJECTED if found[0].startswith("every 2nd rename")],
)
def test_errors_of_system_calls_lose_nothing(strace, tmp_path, fault, heard):
    result = disk_faults.inject(tmp_path, fault, heard, events=40)
    assert result.right, result


@pytest.mark.parametrize("case", [case for _, case in disk_faults.MOUNTED])
def test_a_disk_that_fails_loses_nothing_that_was_safe(disks, tmp_path, case):
    result = case(tmp_path)
    assert result.right, result


@pytest.mark.parametrize("case", [case for _, case in disk_faults.ANYWHERE])
def test_files_that_cannot_be_written_for_a_while_lose_nothing(tmp_path, case):
    result = case(tmp_path)
    assert result.right, result


def test_shutdown_keeps_its_time_while_the_disk_hangs_and_the_wal_has_the_rest(strace, tmp_path):
    assert hung_disk.run(tmp_path, seconds=60) < 30
    verdict = deliver_rest(tmp_path)
    assert verdict.doubled == 0
    assert {*verdict.rows} == {"first", *map(str, range(hung_disk.EVENTS))}


@pytest.mark.parametrize(("mode", "hang"), [("durable", False), ("volatile", True)])
def test_an_outage_under_load_loses_nothing_and_memory_stays_bounded(tmp_path, mode, hang):
    result = outage.run(
        tmp_path, mode=mode, before=0.5, down=3.0, after=0.5, rate=800, tenants=1, hang=hang
    )
    assert result.right, result
    assert result.peaks[1] < result.peaks[0] + 100, "MiB"


def test_recovery_of_many_records_takes_little_memory(tmp_path):
    records = 30_000
    size = big_wal.leave(tmp_path, records)
    adapter = big_wal.Nowhere()
    reset_peak_memory()
    before = peak_memory()
    _, _, peak = big_wal.recover(tmp_path, records, adapter)
    assert adapter.count == records
    assert os.listdir(tmp_path / "big" / "wal") == []
    assert size > 10 * 2**20
    assert peak < before + 60, "MiB"
