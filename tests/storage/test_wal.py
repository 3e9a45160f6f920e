"""The write-ahead log: what it wrote, it finds again, whatever happened to the file."""

from __future__ import annotations

import fcntl
import io
import os
import random
import shutil
import threading

import pytest

from logbun_logging._storage.wal import WalWriter, adopt_abandoned, read_segment, writer
from logbun_logging._storage.wal.codec import encode_line, read_records
from logbun_logging._storage.wal.commit import GroupCommit
from logbun_logging._storage.wal.segment import AppendFile
from logbun_logging.event import (
    AuditEvent,
    Entry,
    decode_event,
    encode_event,
    new_event_id,
    utc_now,
)
from logbun_logging.options import WalOptions
from tests.fakes import start_thread, wait_until


def entry(number, size=20):
    event = AuditEvent(
        new_event_id(), utc_now(), f"a{number}", tenant_id="t", metadata={"v": 1, "pad": "x" * size}
    )
    return Entry("t", encode_event(event))


@pytest.fixture
def make_wal(tmp_path):
    made = []

    def make(fsync="interval", folder=None, **options):
        failures = []
        wal = WalWriter(
            folder or tmp_path / "wal", fsync, WalOptions(**options), lambda *f: failures.append(f)
        )
        wal.failures = failures
        wal.open()
        made.append(wal)
        return wal

    yield make
    for wal in made:
        wal.close()


def unexpected(path, error):
    raise AssertionError(path) from error


def recover(folder):
    """Adopt everything that is abandoned; return payloads and damaged counts."""
    payloads, damaged = [], []
    for log in adopt_abandoned(folder, None, unexpected):
        for segment in log.segments:
            segment.unread = False
            for found in read_segment(segment, lambda *what: damaged.append(what)):
                payloads.append(found.payload)
                segment.pending.pop(found)
        assert log.delete_finished()
    return payloads, damaged


def records(data):
    return list(read_records(io.BytesIO(data)))


@pytest.mark.parametrize("start", ["hole", "record"])
def test_a_hole_that_is_larger_than_the_disk_is_passed_over(tmp_path, start):
    path = tmp_path / "sparse"
    records = [encode_line(b"first"), encode_line(b"last")]
    with path.open("wb") as file:
        if start == "record":
            file.write(records[0])
        file.truncate(1 << 42)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + records[1])
        file.write(b"torn")
        file.truncate(2 << 42)
    with path.open("rb") as file:
        try:
            os.lseek(file.fileno(), 1 << 30, os.SEEK_DATA)
        except OSError:
            pytest.skip("this file system does not tell where its holes are")
        if os.lseek(file.fileno(), 1 << 30, os.SEEK_DATA) == 1 << 30:
            pytest.skip("this file system does not tell where its holes are")
    with path.open("rb") as file:
        found = list(read_records(file))
    whole = [payload for payload, good in found if good]
    assert whole == ([b"first"] if start == "record" else []) + [b"last"]
    damaged = b"".join(payload for payload, good in found if not good)
    assert damaged.strip(b"\0\n") == b"torn"
    assert len(found) < 10


def whole(data):
    return [payload for payload, good in records(data) if good]


def test_a_file_cut_at_any_byte_keeps_every_record_before_the_cut():
    payloads = [entry(number).payload for number in range(6)]
    data = b"".join(map(encode_line, payloads))
    ends = [len(b"".join(map(encode_line, payloads[: n + 1]))) for n in range(6)]
    for cut in range(len(data) + 1):
        complete = sum(end <= cut for end in ends)
        assert whole(data[:cut])[:complete] == payloads[:complete]
        assert len(whole(data[:cut])) <= complete + 1  # the last newline may be missing


def test_ten_thousand_flipped_bytes_never_cost_another_record():
    rng = random.Random(7)
    payloads = [entry(number).payload for number in range(6)]
    lines = [encode_line(payload) for payload in payloads]
    owner = [number for number, line in enumerate(lines) for _ in line]
    data = b"".join(lines)
    for _ in range(10_000):
        at = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[at] ^= rng.randrange(1, 256)
        found = whole(bytes(flipped))
        others = [payload for n, payload in enumerate(payloads) if n != owner[at]]
        assert [payload for payload in found if payload != payloads[owner[at]]] == others


def test_a_torn_record_does_not_swallow_the_one_behind_it():
    one, two = entry(1).payload, entry(2).payload
    assert records(encode_line(one)[:40] + encode_line(two)) == [
        (encode_line(one)[:40], False),
        (two, True),
    ]


def test_an_event_cannot_pretend_to_be_a_record():
    inner = encode_line(entry(1).payload).decode()
    event = AuditEvent(new_event_id(), utc_now(), inner, metadata={"v": 1, "crc": "00000000"})
    torn = encode_line(encode_event(event))[:-9] + b"\n"
    assert whole(torn) == []


def test_an_unknown_version_is_set_aside():
    line = encode_line(entry(1).payload).replace(b'{"v": 1', b'{"v": 2')
    assert records(line) == [(line, False)]


def test_a_dead_process_s_records_come_back_in_order(make_wal, tmp_path):
    wal = make_wal(segment_bytes=4096)
    entries = [entry(number) for number in range(100)]
    for number, found in enumerate(entries):
        assert wal.append(found)
        if number % 10 == 0:
            wal.maintain()
    assert wal.usage()[0] > 3
    wal.abandon()  # what the kernel does when the process dies
    wal._segments = []
    payloads, damaged = recover(tmp_path / "wal")
    assert payloads == [found.payload for found in entries]
    assert damaged == []
    assert list((tmp_path / "wal").iterdir()) == []


def test_a_live_process_s_folder_is_nobody_else_s(make_wal, tmp_path):
    wal = make_wal()
    wal.append(entry(1))
    assert recover(tmp_path / "wal") == ([], [])


def test_damage_is_set_aside_and_reported(make_wal, tmp_path):
    wal = make_wal()
    for number in range(3):
        wal.append(entry(number))
    path = next((tmp_path / "wal").glob("*/current.aof"))
    wal.abandon()
    wal._segments = []
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    payloads, ((corrupt, count),) = recover(tmp_path / "wal")
    assert len(payloads) == 2
    assert count == 1
    assert corrupt.read_bytes().strip() in data


def test_acknowledged_segments_go_and_others_stay(make_wal, tmp_path):
    wal = make_wal(segment_bytes=4096)
    first = [entry(number, 300) for number in range(20)]
    for found in first:
        wal.append(found)
    wal.maintain()
    second = [entry(number, 300) for number in range(20)]
    for found in second:
        wal.append(found)
    wal.maintain()
    wal.acknowledge(second)
    wal.acknowledge(first[1:])
    wal.maintain()
    assert len(list((tmp_path / "wal").glob("*/seg-*.aof"))) == 1
    wal.acknowledge(first)
    wal.maintain()
    assert list((tmp_path / "wal").glob("*/seg-*.aof")) == []


def test_a_clean_end_leaves_nothing(make_wal, tmp_path):
    wal = make_wal()
    found = entry(1)
    wal.append(found)
    wal.acknowledge([found])
    wal.close()
    assert list((tmp_path / "wal").iterdir()) == []


def test_appends_of_many_threads_while_segments_change_are_all_there(make_wal, tmp_path):
    wal = make_wal(segment_bytes=4096)
    entries = [[entry(n) for n in range(500)] for _ in range(4)]
    wal.start(start_thread)
    wal.wake()

    def work(mine):
        for found in mine:
            assert wal.append(found)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in entries]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        wal.maintain()
    wal.close()
    payloads, damaged = recover(tmp_path / "wal")
    assert sorted(payloads) == sorted(found.payload for mine in entries for found in mine)
    assert damaged == []


def test_a_file_that_cannot_be_written_is_left_and_its_entries_are_written_again(
    make_wal, tmp_path
):
    wal = make_wal("never")
    good = entry(1)
    assert wal.append(good)
    wal._current.file = AppendFile(os.open("/dev/full", os.O_WRONLY))
    bad, after = entry(2), entry(3)
    assert not wal.append(bad)
    assert not wal.append(after)
    wal.maintain()
    assert wal.append(entry(4))
    assert [type(error).__name__ for error, _ in wal.failures] == ["OSError"]
    assert wal.failures[0][1] == 2
    wal.close()
    payloads, _ = recover(tmp_path / "wal")
    assert {good.payload, bad.payload, after.payload} <= set(payloads)


def test_a_read_only_folder_is_survived_and_healed(make_wal, tmp_path):
    folder = tmp_path / "closed"
    folder.write_text("a file where the folder should be")
    wal = make_wal(folder=folder)
    waiting = entry(1)
    assert not wal.append(waiting)
    wal.maintain()
    assert wal.failures
    folder.unlink()
    wal.maintain()
    assert wal.append(entry(2))
    assert wal.keeps(waiting)


def test_a_failed_sync_is_not_tried_again_on_the_same_file(make_wal, monkeypatch):
    wal = make_wal("always")
    found = entry(1)
    wal.append(found)
    before = wal._current
    real, failed = os.fdatasync, []

    def fdatasync(descriptor):
        if before.file and descriptor == before.file.number and not failed:
            failed.append(descriptor)
            raise OSError(5, "EIO")
        return real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert wal.commit()
    assert wal._current is not before
    assert found in wal._current.pending
    assert found.segment is wal._current


def test_concurrent_commits_share_syncs(make_wal, monkeypatch):
    wal = make_wal("always")
    real, calls = os.fdatasync, []
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append(fd), real(fd))[1])

    def work():
        for number in range(25):
            wal.append(entry(number))
            assert wal.commit()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) < 8 * 25


def test_who_must_not_block_is_called_back(make_wal):
    wal = make_wal("always")
    wal.start(start_thread)
    wal.wake()
    outcomes = []
    wal.append(entry(1))
    wal.notify(outcomes.append)
    assert wait_until(lambda: outcomes == [True])


def test_deferred_records_are_read_back(make_wal):
    wal = make_wal()
    found = entry(1)
    wal.append(found)
    assert wal.defer(found)
    assert wal.deferred() == 1
    (segment,) = wal.take_deferred()
    assert len(segment.deferred) == 1
    assert not segment.finished
    assert not wal.defer(entry(2))


def test_nobody_waits_for_ever_for_the_rescue_of_a_failed_sync(make_wal, monkeypatch):
    wal = make_wal("always")
    monkeypatch.setattr(writer, "_RESCUE", 0.05)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "EIO")))
    wal.append(entry(1))
    held, done = threading.Event(), threading.Event()

    def keep():
        with wal._files_lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=keep)
    thread.start()
    held.wait(30)
    assert not wal.commit()
    done.set()
    thread.join()


def test_what_waits_in_the_file_alone_counts_for_the_oldest(make_wal):
    wal = make_wal()
    first, second = entry(1), entry(2)
    wal.append(first)
    wal.append(second)
    assert wal.defer(first)
    wal.acknowledge([second])
    assert wal.usage()[2] == decode_event(first.payload).created_at


def test_a_heal_that_cannot_be_synced_takes_nothing_from_the_old_file(
    make_wal, tmp_path, monkeypatch
):
    wal = make_wal("always")
    found = entry(1)
    wal.append(found)
    assert wal.commit()
    wal._mark_failed(wal._current, OSError("torn"))
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "EIO")))
    wal.maintain()
    (file,) = (tmp_path / "wal").glob("*/*.aof")
    assert found.payload in file.read_bytes()
    assert not wal.commit()
    monkeypatch.setattr(os, "fdatasync", real)
    wal.maintain()
    (file,) = (tmp_path / "wal").glob("*/*.aof")
    assert file.name == "current.aof"
    assert found.payload in file.read_bytes()
    assert wal.commit()


def test_a_sealed_file_that_cannot_be_synced_is_rescued_before_the_callers_go_on(
    make_wal, monkeypatch
):
    wal = make_wal("always")
    early, late = entry(1), entry(2)
    wal.append(early)
    sealed = wal._current
    wal._seal()
    wal.append(late)
    real, bad, synced = os.fdatasync, sealed.file.number, []

    def fdatasync(descriptor):
        if descriptor == bad and sealed.file is not None:
            raise OSError(5, "EIO")
        synced.append(descriptor)
        return real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert wal.commit()
    assert early.segment is wal._current
    assert early.segment.file.number in synced
    assert late.segment.file.number in synced, "what was healthy has been synced as well"


def test_deferred_records_of_a_file_that_failed_are_copied_too(make_wal):
    wal = make_wal("always")
    deferred, pending = entry(1), entry(2)
    for found in (deferred, pending):
        wal.append(found)
    assert wal.defer(deferred)
    wal._mark_failed(wal._current, OSError("torn"))
    wal.maintain()
    assert wal.deferred() == 1
    (segment,) = wal.take_deferred()
    assert {deferred.payload, pending.payload} == set(whole(segment.path.read_bytes()))


def test_a_disk_that_stays_full_is_not_littered(make_wal, tmp_path, monkeypatch):
    wal = make_wal("interval")
    assert wal.append(entry(1))
    wal._mark_failed(wal._current, OSError("full"))
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(28, "ENOSPC")))
    for _ in range(20):
        wal.maintain()
        assert not wal.append(entry(2))
    assert len(list((tmp_path / "wal").glob("*/*.aof"))) == 1


def test_a_thread_stopped_before_its_write_never_writes_to_another_file(
    make_wal, tmp_path, monkeypatch
):
    wal = make_wal("never")
    victim = tmp_path / "database"
    first = wal._current
    number = first.file.number
    real = os.write

    def write(descriptor, line):
        if descriptor == number and not victim.exists():
            wal._mark_failed(first, OSError("another thread's write failed"))
            wal.maintain()  # heals and deletes: the file's number could be given to another
            victim.touch()
            opened = os.open(victim, os.O_WRONLY)
            try:
                return real(descriptor, line)
            finally:
                os.close(opened)
        return real(descriptor, line)

    monkeypatch.setattr("logbun_logging._storage.wal.writer._write", write)
    found = entry(1)
    assert wal.append(found)
    assert victim.read_bytes() == b""
    assert found.payload in wal._current.path.read_bytes()
    assert found.segment is wal._current


@pytest.fixture
def late_append(make_wal, monkeypatch):
    """Return a log, an entry whose thread has claimed a place and not written yet, and its go."""
    wal = make_wal(segment_bytes=4096, sync_interval=0.0)
    claimed, go = threading.Event(), threading.Event()
    late = entry(0, 4096)
    real = os.write

    def write(descriptor, line):
        if late.payload in line:
            claimed.set()
            go.wait(30)
        return real(descriptor, line)

    monkeypatch.setattr("logbun_logging._storage.wal.writer._write", write)
    wal.append(entry(1, 4096))
    thread = threading.Thread(target=wal.append, args=(late,))
    thread.start()
    assert claimed.wait(10)
    yield wal, late, go
    go.set()
    thread.join()


def test_a_late_write_to_a_sealed_file_is_synced_before_any_newer_file(late_append, monkeypatch):
    wal, late, go = late_append
    monkeypatch.setattr("logbun_logging._storage.wal.writer._LATE", 30.0)
    older, synced = wal._current, []
    real = os.fdatasync

    def fdatasync(descriptor):
        real(descriptor)
        synced.append(late.payload in older.path.read_bytes())

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    maintaining = threading.Thread(target=wal.maintain)
    maintaining.start()
    assert wait_until(lambda: older.sealed)
    assert synced == []
    go.set()
    maintaining.join()
    assert synced == [True, True], "the older file, closed then, and the current one"
    assert older.file is None


def test_a_thread_that_stays_late_stops_no_sync_and_has_its_file_synced_afterwards(
    late_append, monkeypatch
):
    wal, late, go = late_append
    monkeypatch.setattr("logbun_logging._storage.wal.writer._LATE", 0.0)
    older, real, synced = wal._current, os.fdatasync, []
    monkeypatch.setattr(os, "fdatasync", lambda fd: (real(fd), synced.append(fd)))
    wal.maintain()
    assert synced == [older.file.number, wal._current.file.number]
    assert not wal._quiet()
    go.set()
    assert wait_until(lambda: not older.late)
    wal.maintain()
    assert older.file is None
    assert late.payload in older.path.read_bytes()


def test_one_record_keeps_its_own_segment_and_no_other(make_wal, tmp_path):
    wal = make_wal(segment_bytes=4096)
    stuck = entry(0, 300)
    wal.append(stuck)
    for number in range(400):
        found = entry(number, 300)
        wal.append(found)
        wal.acknowledge([found])
        if number % 10 == 0:
            wal.maintain()
    assert wal._number > 20
    assert len(list((tmp_path / "wal").glob("*/*.aof"))) <= 2
    assert stuck.payload in next((tmp_path / "wal").glob("*/seg-000001.aof")).read_bytes()


def test_what_is_appended_after_the_end_is_said_to_be_in_memory_only(make_wal, tmp_path):
    wal = make_wal("always")
    wal.close()
    assert not wal.append(entry(1))
    assert not wal.commit()
    outcomes = []
    wal.notify(outcomes.append)
    assert outcomes == [False]
    assert list((tmp_path / "wal").iterdir()) == []


def test_who_waits_for_a_sync_when_the_log_is_closed_is_told(make_wal):
    wal = make_wal("always")
    wal.append(entry(1))
    outcomes = []
    wal.notify(outcomes.append)
    wal.close()
    assert len(outcomes) == 1


def test_a_failed_sync_at_the_end_is_rescued(make_wal, tmp_path, monkeypatch):
    wal = make_wal("interval", sync_interval=3600.0)
    found = entry(1)
    wal.append(found)
    real, failed = os.fdatasync, []

    def fdatasync(descriptor):
        if not failed:
            failed.append(descriptor)
            raise OSError(5, "EIO")
        return real(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    wal.close()
    assert [type(error).__name__ for error, _ in wal.failures] == ["OSError"]
    assert recover(tmp_path / "wal")[0] == [found.payload]


def test_a_file_that_cannot_be_deleted_is_tried_again(make_wal, monkeypatch):
    wal = make_wal(segment_bytes=100)
    found = entry(1)
    wal.append(found)
    wal.acknowledge([found])
    with monkeypatch.context() as patched:
        patched.setattr(
            "pathlib.Path.unlink", lambda *a, **k: (_ for _ in ()).throw(OSError(30, "EROFS"))
        )
        wal.maintain()
        assert wal.usage()[0] == 2
    wal.maintain()
    assert wal.usage()[0] == 1
    assert wal.failures


def test_an_entry_that_healing_moved_while_it_was_claimed_is_pending_once(make_wal):
    wal = make_wal("never")
    found = entry(1)
    first = wal._current
    found.segment = first
    first.pending[found] = None  # claimed, and stopped there
    wal._mark_failed(first, OSError("torn"))
    wal.maintain()
    moved_to = found.segment
    assert moved_to is wal._current
    wal._withdraw(found)
    assert not moved_to.pending


def test_an_error_that_another_thread_s_sync_was_told_is_not_missed_by_the_heal(
    make_wal, monkeypatch
):
    wal = make_wal("always")
    found = entry(1)
    wal.append(found)
    before = wal._current
    wal._mark_failed(before, OSError("torn"))
    copy = writer.copy_entries

    def copy_while_another_thread_syncs(*arguments):
        copied = copy(*arguments)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
            wal._sync()  # the kernel reports the error to this one alone
        return copied

    monkeypatch.setattr(writer, "copy_entries", copy_while_another_thread_syncs)
    assert not wal._heal()
    assert found.segment is before
    assert before.path.exists()


def test_a_signal_handler_that_logs_during_a_sync_does_not_wait_for_that_sync():
    inner = []

    def sync():
        if not inner:  # what a signal handler does that runs as soon as fdatasync has returned
            inner.append(None)
            inner[0] = group.wait()
        return True

    group = GroupCommit(sync, lambda: None)
    done = threading.Thread(target=group.wait, daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert inner == [True]


def test_what_is_in_memory_alone_is_not_forgotten_when_it_cannot_be_synced(tmp_path):
    wal = WalWriter(tmp_path / "wal", "always", WalOptions(), lambda *_: None)
    (tmp_path / "wal").write_text("a file where the folder should be")
    wal.open()
    entries = [entry(number) for number in range(3)]
    for found in entries:
        assert not wal.append(found)
        assert not wal.commit()
    (tmp_path / "wal").unlink()
    wal.maintain()
    assert all(wal.keeps(found) for found in entries)
    wal.abandon()
    payloads, _ = recover(tmp_path / "wal")
    assert payloads == [found.payload for found in entries]


def test_a_leader_that_a_signal_handler_stops_leaves_nobody_waiting():
    class Stopped(BaseException):
        pass

    started, stop, outcomes = threading.Event(), threading.Event(), []

    def sync():
        if not started.is_set():
            started.set()
            stop.wait(10)
            raise Stopped
        return True

    group = GroupCommit(sync, lambda: None)

    def lead():
        with pytest.raises(Stopped):
            group.wait()

    leader = threading.Thread(target=lead, daemon=True)
    leader.start()
    assert started.wait(10)
    followers = [
        threading.Thread(target=lambda: outcomes.append(group.wait()), daemon=True)
        for _ in range(3)
    ]
    for follower in followers:
        follower.start()
    stop.set()
    for thread in (leader, *followers):
        thread.join(10)
    assert outcomes == [True] * 3


def test_a_round_whose_leader_is_gone_is_ended_by_who_looks_after_it():
    group = GroupCommit(lambda: True, lambda: None)
    group._open.leader = -1  # a signal handler raised as soon as it led
    outcomes = []
    follower = threading.Thread(target=lambda: outcomes.append(group.wait()), daemon=True)
    follower.start()
    assert wait_until(lambda: group._open.size == 1)
    group.lead()
    follower.join(10)
    assert outcomes == [True]


def test_a_round_whose_leader_is_gone_does_not_hold_up_the_next(monkeypatch):
    monkeypatch.setattr("logbun_logging._storage.wal.commit._DOUBT", 0.01)
    group = GroupCommit(lambda: True, lambda: None)
    abandoned = group._open
    abandoned.leader = -1
    group._open = type(abandoned)(abandoned)
    outcomes = []
    leader = threading.Thread(target=lambda: outcomes.append(group.wait()), daemon=True)
    leader.start()
    leader.join(10)
    assert outcomes == [True]
    assert abandoned.ended


def look_now(wal):
    """Let the WAL thread look at the files' names at its next round."""
    wal._looked_at = -writer._NAME_LOOK
    wal.maintain()


def remove(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace(folder):
    """Put a copy in its place, as one who restores a backup does."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    move(folder)
    copy.rename(folder)


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
@pytest.mark.parametrize("what", [remove, move, replace])
@pytest.mark.parametrize("level", ["data", "wal", "instance", "file"])
def test_a_log_that_is_taken_away_is_made_anew_with_all_that_waits(
    make_wal, tmp_path, fsync, what, level
):
    wal = make_wal(fsync, folder=tmp_path / "data" / "wal", segment_bytes=4096)
    entries = [entry(number, 300) for number in range(30)]
    for found in entries:
        wal.append(found)
        wal.maintain()
    assert wal.usage()[0] > 2
    where = {
        "data": wal.instance.parent.parent,
        "wal": wal.instance.parent,
        "instance": wal.instance,
    }
    if level in where:
        what(where[level])
    else:
        for path in wal.instance.iterdir():
            path.unlink()
    late = entry(30)
    wal.append(late)
    look_now(wal)
    after = entry(31)
    assert wal.append(after)
    if fsync == "always":
        assert wal.commit()
    assert [type(error).__name__ for error, _ in wal.failures] == ["WalRemovedError"]
    look_now(wal)
    assert len(wal.failures) == 1
    wal.abandon()
    wal._segments = []
    payloads, damaged = recover(tmp_path / "data" / "wal")
    assert {found.payload for found in (*entries, late, after)} == set(payloads)
    assert damaged == []


def test_a_full_file_of_a_folder_that_is_gone_is_followed_by_one_in_a_new_folder(
    make_wal, tmp_path
):
    wal = make_wal(segment_bytes=4096)
    first = wal.instance
    remove(tmp_path / "wal")
    found = entry(1, 5000)
    wal.append(found)
    wal.maintain()
    assert wal.instance != first
    assert wal.append(entry(2))
    look_now(wal)
    wal.abandon()
    wal._segments = []
    assert found.payload in recover(tmp_path / "wal")[0]


def test_a_file_system_without_locks_costs_nothing_and_is_told_once_for_a_while(
    make_wal, tmp_path, monkeypatch
):
    def flock(*_):
        raise OSError(37, "No locks available")

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock)
        wal = make_wal("always")
        waiting = entry(1)
        for _ in range(50):
            assert not wal.append(waiting)
            assert not wal.commit()
            wal.maintain()
        assert len(os.listdir("/proc/self/fd")) == before
        assert list((tmp_path / "wal").iterdir()) == []
        assert 1 <= len(wal.failures) <= 5
        assert all("data_dir has to be on a local disk" in str(error) for error, _ in wal.failures)
    wal._instance._try_at = 0.0
    wal.maintain()
    assert wal.keeps(waiting)
    assert wal.commit()


def test_beyond_its_bound_the_log_takes_nothing_until_there_is_room(make_wal, tmp_path):
    wal = make_wal("always", segment_bytes=4096, max_bytes=20_000)
    warned = []
    wal._nearly_full = lambda *figures: warned.append(figures)
    written, waiting = [], []
    for number in range(60):
        found = entry(number, 300)
        (written if wal.append(found) else waiting).append(found)
        wal.maintain()
    assert waiting
    assert 20_000 <= wal.usage()[1] < 25_000
    ((used, limit),) = warned
    assert 16_000 <= used <= 20_000 == limit
    assert [str(error) for error, _ in wal.failures] == [
        "[Errno 28] wal.max_bytes=20,000 is reached"
    ]
    assert not wal.keeps(waiting[0])
    assert all(map(wal.keeps, written))
    assert not wal.commit()
    wal.acknowledge(written)
    wal.maintain()
    wal.maintain()
    assert all(map(wal.keeps, waiting))
    assert wal.commit()


def test_a_full_log_still_rescues_what_a_failed_file_holds(make_wal):
    wal = make_wal(segment_bytes=4096, max_bytes=8192)
    entries = [entry(number, 300) for number in range(40)]
    for found in entries:
        wal.append(found)
        wal.maintain()
    (broken, *_) = [found.segment for found in entries if found.segment.path]
    wal._mark_failed(broken, OSError("EIO"))
    wal.maintain()
    assert all(found.segment is not broken for found in entries)


def test_removals_are_synced_together_by_the_wal_thread(make_wal, monkeypatch):
    wal = make_wal("always", segment_bytes=4096, sync_interval=60.0)
    folders = []
    monkeypatch.setattr("logbun_logging._storage.wal.instance.sync_folder", folders.append)
    entries = [entry(number, 300) for number in range(60)]
    for found in entries:
        wal.append(found)
        wal.maintain()
    wal.acknowledge(entries)
    wal.maintain()
    assert wal.usage()[0] == 1
    assert not wal._quiet()
    assert folders == []
    wal._removed_at -= 60.0
    wal.maintain()
    assert folders == [wal.instance]
    assert wal._quiet()


def test_the_wal_thread_sleeps_while_nothing_is_appended_and_misses_nothing(make_wal):
    wal = make_wal("interval", segment_bytes=4096, sync_interval=0.01)
    looks = []
    maintain = wal.maintain
    wal.maintain = lambda: (looks.append(1), maintain())
    wal.start(start_thread)
    entries = [entry(number, 300) for number in range(60)]
    for found in entries:
        wal.append(found)
    wal.wake()
    wal.acknowledge(entries[:-1])
    wal.wake()
    wal.acknowledge(entries)
    wal.wake()
    assert wait_until(lambda: wal.usage()[0] == 1)
    assert wait_until(lambda: wal._rested is not None and wal._rested == wal._state())
    for _ in range(100):
        wal.wake()
    assert wait_until(wal._wake._rings.empty)
    before = len(looks)
    last = entry(61)
    wal.append(last)
    wal.wake()
    assert wait_until(lambda: len(looks) > before)
    wal.acknowledge([last])
