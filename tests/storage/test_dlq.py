"""The dead-letter queue: files that several processes share."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from contextlib import suppress

import msgspec
import pytest

from logbun_logging._storage import files
from logbun_logging._storage.dlq import DeadLetterQueue, DlqFullError, listing
from logbun_logging._storage.dlq import claim as dlq_claim
from logbun_logging._storage.files import remove_leftovers, write_atomically
from logbun_logging._storage.wal.codec import encode_line
from logbun_logging.event import AuditEvent, encode_event, new_event_id, utc_now
from logbun_logging.options import DlqOptions

#: CPython 3.12 and newer warn of what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def payload(action="a", tenant="t"):
    return encode_event(AuditEvent(new_event_id(), utc_now(), action, tenant_id=tenant))


def claims(queue):
    """Claim what waits, oldest first."""
    found = [queue.claim(file.name, file.state) for file in queue.waiting()]
    return [claim for claim in found if claim is not None]


def read(claim):
    return claim.envelope(), [entry.payload for entry in claim.entries()]


def fail(claim, *, dead=False, attempts=0):
    envelope = msgspec.structs.replace(claim.envelope(), attempts=attempts)
    return claim.fail(envelope, lambda _: True, dead=dead)


@pytest.fixture
def queue(tmp_path):
    return DeadLetterQueue(tmp_path / "dlq", DlqOptions())


def test_a_batch_comes_back_as_it_went_in(queue):
    payloads = [payload(str(n)) for n in range(3)]
    name = queue.put("t", payloads, "because")
    (claim,) = claims(queue)
    envelope, found = read(claim)
    assert found == payloads
    assert (envelope.tenant_id, envelope.count, envelope.attempts) == ("t", 3, 0)
    assert envelope.reason == "because"
    assert [event.action for event in queue.show(name)] == ["0", "1", "2"]
    assert queue.counts()["processing_events"] == 3
    claim.done()
    assert queue.is_empty()
    with pytest.raises(KeyError):
        queue.show(name)


def test_a_batch_seen_under_two_names_while_it_is_renamed_is_listed_once(queue, tmp_path):
    name = queue.put("t", [payload()], "x")
    (path,) = (tmp_path / "dlq").iterdir()
    path.with_name(path.name + ".processing").write_bytes(path.read_bytes())
    (file,) = queue.list()
    assert (file.name, file.state) == (name, "pending")
    assert queue.counts()["pending_events"] == 1
    assert queue.counts()["processing_events"] == 0


@pytest.mark.parametrize(
    "tenants",
    [
        ["../../../escape", "org/acme", "..", "/", "a\0b", "a\u2400b", "\U0001f600", "x" * 400],
        ["Acme", "acme", "ACME"],
        [None, "none", "__global__", ""],
    ],
)
def test_odd_tenants_are_safe_and_distinct(queue, tmp_path, tenants):
    for tenant in tenants:
        queue.put(tenant, [payload(tenant=tenant)], "x")
    names = os.listdir(tmp_path / "dlq")
    assert len({name.rsplit("_", 2)[0].lower() for name in names}) == len(tenants)
    assert all(name.isascii() and "/" not in name and len(name) < 120 for name in names)
    assert os.listdir(tmp_path) == ["dlq"]
    assert {read(claim)[0].tenant_id for claim in claims(queue)} == set(tenants)


def test_a_claim_is_nobody_else_s_until_its_holder_dies(queue, tmp_path):
    queue.put("t", [payload()], "x")
    other = DeadLetterQueue(tmp_path / "dlq", DlqOptions())
    (claim,) = claims(queue)
    assert claims(other) == []
    os.close(claim._descriptor)  # what the kernel does when the process dies
    claim._descriptor = -1
    (taken,) = claims(other)
    taken.put_back()
    assert [file.state for file in queue.list()] == ["pending"]


def test_the_oldest_comes_first_whatever_its_tenant(queue):
    for tenant in ("z", "a", "m"):
        queue.put(tenant, [payload(tenant=tenant)], "x")
    assert [read(claim)[0].tenant_id for claim in claims(queue)] == ["z", "a", "m"]


def test_a_dead_file_is_left_alone_until_it_is_requeued(queue):
    queue.put("t", [payload()], "x")
    (claim,) = claims(queue)
    fail(claim, dead=True)
    assert claims(queue) == []
    (file,) = queue.list("dead")
    assert queue.counts()["dead"] == 1
    assert queue.requeue(file.name)
    assert not queue.requeue(file.name)
    (claim,) = claims(queue)
    assert read(claim)[0].attempts == 0
    claim.put_back()
    assert queue.delete(file.name)
    assert not queue.delete(file.name)


def test_damaged_records_are_set_aside_and_the_others_kept(queue, tmp_path):
    payloads = [payload(str(n)) for n in range(3)]
    name = queue.put("t", payloads, "x")
    path = tmp_path / "dlq" / f"{name}.batch"
    data = path.read_bytes().split(b"\n")
    data[0] = b"not an envelope"
    data[2] = data[2].replace(b"action", b"axtion")
    path.write_bytes(b"\n".join(data))
    (claim,) = claims(queue)
    envelope, found = read(claim)
    assert found == [payloads[0], payloads[2]]
    assert envelope.mixed, "each event says whose it is"
    assert claim.damaged == 2
    claim.done()
    corrupt = tmp_path / "dlq" / f"{name}.corrupt"
    assert claim.corrupt == corrupt
    assert corrupt.read_bytes() == b"\n".join([data[0], data[2], b""])


def test_a_second_damage_leaves_what_was_set_aside_before(queue, tmp_path):
    name = queue.put("t", [payload(str(n)) for n in range(3)], "x")
    path = tmp_path / "dlq" / f"{name}.batch"
    for action in (b"0", b"1"):
        path.write_bytes(path.read_bytes().replace(b'"action":"' + action, b'"action":"#'))
        (claim,) = claims(queue)
        fail(claim)
    assert b'"id"' in (tmp_path / "dlq" / f"{name}.corrupt").read_bytes()
    assert b'"id"' in (tmp_path / "dlq" / f"{name}.2.corrupt").read_bytes()
    assert [event.action for event in queue.show(name)] == ["2"]


def test_damage_that_is_large_is_kept_without_being_copied(queue, tmp_path):
    good = payload("good")
    name = queue.put("t", [good], "x")
    path = tmp_path / "dlq" / f"{name}.batch"
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.truncate(len(whole) + 20 * 1024 * 1024)
    (claim,) = claims(queue)
    assert read(claim)[1] == [good]
    fail(claim)
    corrupt = tmp_path / "dlq" / f"{name}.corrupt"
    assert corrupt.stat().st_size == len(whole) + 20 * 1024 * 1024
    assert corrupt.stat().st_blocks < 1000
    assert path.read_bytes()[-50:] == whole[-50:]


def test_the_bounds_are_kept(tmp_path):
    queue = DeadLetterQueue(tmp_path / "dlq", DlqOptions(max_files=1))
    queue.put("t", [payload()], "x")
    with pytest.raises(DlqFullError, match="max_files=1"):
        queue.put("t", [payload()], "x")


def test_the_bounds_are_kept_by_several_writers_at_once(tmp_path):
    queue = DeadLetterQueue(tmp_path / "dlq", DlqOptions(max_files=3))
    start = threading.Barrier(8)

    def put():
        start.wait()
        with suppress(DlqFullError):
            queue.put("t", [payload()], "x")

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(queue.list()) == 3
    assert queue.refused_at > 0
    claims(queue)[0].done()
    assert queue.refused_at < 0


def test_a_full_disk_leaves_nothing_behind(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "ENOSPC")))
    with pytest.raises(OSError, match="ENOSPC"):
        queue.put("t", [payload()], "x")
    assert not any((tmp_path / "dlq").glob("*.batch*"))


def test_a_dead_file_that_cannot_be_requeued_stays_dead(queue, monkeypatch):
    name = queue.put("t", [payload()], "x")
    (claim,) = claims(queue)
    fail(claim, dead=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "ENOSPC")))
        with pytest.raises(OSError, match="ENOSPC"):
            queue.requeue(name)
    assert [file.state for file in queue.list()] == ["dead"]
    assert queue.requeue(name)


def test_a_child_forked_while_a_file_is_claimed_does_not_hold_it(queue):
    name = queue.put("t", [payload()], "x")
    (claim,) = claims(queue)
    go, gone = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(gone)
        os.read(go, 1)  # lives on, with what it has inherited
        os._exit(0)
    try:
        claim.put_back()
        again = queue.claim(name, "pending")
        assert again is not None
        again.put_back()
    finally:
        os.close(gone)
        os.close(go)
        os.waitpid(child, 0)


def test_a_claim_of_the_parent_outlives_its_child(queue, tmp_path):
    queue.put("t", [payload()], "x")
    (claim,) = claims(queue)
    child = os.fork()
    if child == 0:
        queue.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    assert claims(DeadLetterQueue(tmp_path / "dlq", DlqOptions())) == []
    claim.put_back()


def test_what_a_killed_writer_left_is_removed_and_what_is_being_written_is_not(queue, tmp_path):
    folder = tmp_path / "dlq"
    queue.put("t", [payload()], "x")
    (folder / "dead.batch.tmp").write_bytes(b"half")
    written = []

    def chunks():
        yield b"one"
        remove_leftovers(folder)
        written.extend(sorted(path.name for path in folder.glob("*.tmp")))
        yield b"two"

    write_atomically(folder / "alive.batch", chunks())
    (name,) = written
    assert name.startswith("alive.batch.")
    assert (folder / "alive.batch").read_bytes() == b"onetwo"
    assert not list(folder.glob("*.tmp"))


def test_an_event_that_cannot_be_read_hides_no_other(queue, tmp_path):
    name = queue.put("t", [payload("a"), b'{"id": 5}', payload("b")], "x")
    assert [event.action for event in queue.show(name)] == ["a", "b"]


def test_the_batches_of_several_tenants_share_a_file_and_that_of_one_says_whose_it_is(queue):
    alone = queue.put_together([("t", [payload()])], "x")
    mixed = queue.put_together([("t", [payload()]), ("u", [payload(tenant="u")] * 2)], "x")
    found = {file.name: file.envelope for file in queue.list()}
    assert (found[alone].tenant_id, found[alone].mixed) == ("t", False)
    assert (found[mixed].tenant_id, found[mixed].mixed, found[mixed].count) == (None, True, 3)
    assert [event.tenant_id for event in queue.show(mixed)] == ["t", "u", "u"]


# ── a file has one name, whoever works on it ──


def work_on(folder, seed, rounds):
    """Claim, write anew, bury, requeue and put back files as they come; nothing is delivered."""
    rng = random.Random(seed)
    queue = DeadLetterQueue(folder, DlqOptions())
    for _ in range(rounds):
        for file in queue.list():
            if file.state == "dead":
                queue.requeue(file.name)
            elif (claim := queue.claim(file.name, file.state)) is not None:
                envelope = claim.envelope()
                assert len([*claim.entries()]) == 3
                if rng.random() < 0.2:
                    claim.put_back()
                else:
                    claim.fail(envelope, lambda _: True, dead=rng.random() < 0.3)


def start(folder, seed, rounds):
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            work_on(folder, seed, rounds)
            status = 0
        os._exit(status)
    return child


def fill(queue, count=10):
    """Put files in, and return each one's actions by its name."""
    return {
        queue.put("t", [payload(f"{number}.{k}") for k in range(3)], "x"): [
            f"{number}.{k}" for k in range(3)
        ]
        for number in range(count)
    }


def shown(queue):
    return {file.name: [event.action for event in queue.show(file.name)] for file in queue.list()}


def test_several_processes_that_work_on_the_same_files_lose_none(queue, tmp_path):
    filled = fill(queue)
    children = [start(tmp_path / "dlq", seed, 25) for seed in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert shown(queue) == filled
    assert len(os.listdir(tmp_path / "dlq")) == len(filled)


def test_processes_killed_at_any_moment_leave_every_file_once(queue, tmp_path):
    filled = fill(queue)
    rng = random.Random(7)
    pause = threading.Event()
    children = [start(tmp_path / "dlq", seed, 10_000) for seed in range(3)]
    for number in range(30):
        pause.wait(rng.random() * 0.03)
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children.pop(0), 0)
        children.append(start(tmp_path / "dlq", 100 + number, 10_000))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    work_on(tmp_path / "dlq", 0, 2)
    remove_leftovers(tmp_path / "dlq")
    assert shown(queue) == filled
    assert len(os.listdir(tmp_path / "dlq")) == len(filled)


@pytest.mark.parametrize("dead", [False, True])
def test_nobody_gets_a_file_while_its_outcome_is_being_written(queue, tmp_path, monkeypatch, dead):
    name = queue.put("t", [payload()], "x")
    other = DeadLetterQueue(tmp_path / "dlq", DlqOptions())
    (claim,) = claims(queue)
    looks = []

    def look(real):
        def looking(*arguments):
            done = real(*arguments)
            looks.append([other.claim(name, s) for s in ("pending", "processing", "dead")])
            return done

        return looking

    for step in ("replace_locked", "move", "sync_folder"):
        monkeypatch.setattr(dlq_claim, step, look(getattr(dlq_claim, step)))
    fail(claim, dead=dead)
    monkeypatch.undo()
    assert looks == [[None, None, None]] * 3
    (taken,) = [c for s in ("pending", "dead") if (c := other.claim(name, s)) is not None]
    taken.put_back()


@pytest.mark.parametrize("state", ["pending", "processing", "dead"])
@pytest.mark.parametrize("first", ["pending", "dead"])
def test_a_file_that_a_killed_process_left_under_two_names_is_one_file(
    queue, tmp_path, first, state
):
    name = queue.put("t", [payload()], "x")
    path = tmp_path / "dlq" / f"{name}.batch"
    if first == "dead":
        path = path.rename(path.with_name(path.name + ".dead"))
    os.link(path, tmp_path / "dlq" / f"{name}.batch.processing")
    assert len(queue.list()) == 1
    claim = queue.claim(name, state)
    if state in (first, "processing"):
        assert [path.name for path in (tmp_path / "dlq").iterdir()] == [f"{name}.batch.processing"]
        claim.put_back()
    else:
        assert claim is None


def test_two_files_that_an_older_version_left_under_one_name_are_both_kept(queue, tmp_path):
    name = queue.put("t", [payload("old")], "x")
    path = tmp_path / "dlq" / f"{name}.batch"
    path.rename(path.with_name(path.name + ".processing"))
    write_atomically(path, [encode_line(payload("new"))])
    (claim,) = claims(queue)
    assert [entry.payload for entry in claim.entries()]
    claim.put_back()
    assert sorted(event for events in shown(queue).values() for event in events) == ["new", "old"]
    assert len(queue.list()) == 2


# ── what an operator may name, and what lies in the folder ──


@pytest.mark.parametrize("name", ["", ".", "..", "../other/dlq/x", "a/b", "/etc/passwd", "a\0b"])
@pytest.mark.parametrize("call", ["show", "delete", "requeue", "retry"])
def test_names_that_lead_out_of_the_folder_are_refused(queue, call, name):
    with pytest.raises(ValueError, match="dead-letter"):
        getattr(queue, call)(name)


def test_links_are_not_followed(queue, tmp_path):
    name = queue.put("t", [payload("theirs")], "x")
    mine = DeadLetterQueue(tmp_path / "mine", DlqOptions())
    (tmp_path / "mine").mkdir()
    theirs = tmp_path / "dlq" / f"{name}.batch"
    (tmp_path / "mine" / theirs.name).symlink_to(theirs)
    assert mine.list() == []
    assert mine.irregular() == [theirs.name]
    for call in (mine.show, mine.delete):
        with pytest.raises(OSError, match="not a regular file"):
            call(name)
    assert theirs.exists()


def test_a_listing_follows_what_other_processes_do(queue, tmp_path):
    other = DeadLetterQueue(tmp_path / "dlq", DlqOptions())
    name = other.put("t", [payload()], "x")
    old = time.time() - 60
    os.utime(tmp_path / "dlq", (old, old))
    assert [file.envelope.attempts for file in queue.list()] == [0]
    assert queue.list()[0] is queue.list()[0], "nothing has changed, so nothing is read"
    claim = other.claim(name, "pending")
    assert [file.state for file in queue.list()] == ["processing"]
    fail(claim, attempts=1)
    assert [(file.state, file.envelope.attempts) for file in queue.list()] == [("pending", 1)]


def test_an_envelope_of_an_older_version_is_read(queue, tmp_path):
    head = (
        b'{"v": 1, "dlq": {"tenant_id":"t","count":1,"attempts":2,"reason":"r",'
        b'"first_failed_at":"2026-01-01T00:00:00.000000Z",'
        b'"last_failed_at":"2026-01-01T00:00:00.000000Z"}}\n'
    )
    (tmp_path / "dlq").mkdir()
    write_atomically(
        tmp_path / "dlq" / "t-x_20260101T000000_00.batch", [head, encode_line(payload())]
    )
    (file,) = queue.list()
    assert (file.envelope.attempts, file.envelope.mixed, file.envelope.outages) == (2, False, 0)


@pytest.fixture
def no_links(monkeypatch):
    """Make the disk one without hard links; an injected error, as vfat needs a mount."""

    def link(source, target, **_):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    monkeypatch.setattr(files.os, "link", link)


@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("when", ["claimed", "failed"])
def test_a_process_killed_while_it_renames_without_hard_links_loses_nothing(queue, tmp_path, when):
    name = queue.put("t", [payload("kept")], "x")
    pending = tmp_path / "dlq" / f"{name}.batch"
    processing = tmp_path / "dlq" / f"{name}.batch.processing"
    if when == "claimed":
        processing.touch()
    else:
        pending.rename(processing)
        pending.touch()
    found = []
    for _ in range(3):
        for claim in claims(queue):
            found += [entry.payload for entry in claim.entries()]
            claim.done()
    assert len(found) == 1
    assert os.listdir(tmp_path / "dlq") == []


@pytest.mark.usefixtures("no_links")
def test_large_damage_is_kept_without_hard_links(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(dlq_claim, "_MAX_DAMAGE", 100)
    name = queue.put("t", [payload("good")], "x")
    with (tmp_path / "dlq" / f"{name}.batch").open("ab") as file:
        file.write(b"x" * 1000 + b"\n")
    (claim,) = claims(queue)
    assert len([*claim.entries()]) == 1
    claim.done()
    assert (tmp_path / "dlq" / f"{name}.corrupt").read_bytes() == b"x" * 1000 + b"\n"
    assert queue.list() == []


def test_a_folder_that_cannot_be_read_counts_as_empty_and_says_so(queue, monkeypatch):
    queue.put("t", [payload()], "x")

    def scandir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(listing.os, "scandir", scandir)
    counts = queue.counts()
    assert counts["pending"] == 0
    assert "Permission denied" in counts["error"]
    monkeypatch.undo()
    assert (queue.counts()["pending"], queue.counts()["error"]) == (1, None)
