"""The dead-letter queue: files that several processes share."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from logbun_logging.dlq import DeadLetterQueue, DlqFullError
from logbun_logging.event import AuditEvent, encode_event, new_event_id, utc_now
from logbun_logging.files import remove_leftovers, write_atomically
from logbun_logging.options import DlqOptions

#: CPython 3.12 and newer warn of what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def payload(action="a", tenant="t"):
    return encode_event(AuditEvent(new_event_id(), utc_now(), action, tenant_id=tenant))


@pytest.fixture
def queue(tmp_path):
    return DeadLetterQueue(tmp_path / "dlq", DlqOptions())


def test_a_batch_comes_back_as_it_went_in(queue):
    payloads = [payload(str(n)) for n in range(3)]
    name = queue.put("t", payloads, "because")
    (claim,) = queue.claims()
    envelope, found = claim.read()
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
    assert {claim.read()[0].tenant_id for claim in queue.claims()} == set(tenants)


def test_a_claim_is_nobody_else_s_until_its_holder_dies(queue, tmp_path):
    queue.put("t", [payload()], "x")
    other = DeadLetterQueue(tmp_path / "dlq", DlqOptions())
    (claim,) = queue.claims()
    assert list(other.claims()) == []
    os.close(claim._descriptor)  # what the kernel does when the process dies
    claim._descriptor = -1
    (taken,) = other.claims()
    taken.put_back()
    assert [file.state for file in queue.list()] == ["pending"]


def test_the_oldest_comes_first_whatever_its_tenant(queue):
    for tenant in ("z", "a", "m"):
        queue.put(tenant, [payload(tenant=tenant)], "x")
    assert [claim.read()[0].tenant_id for claim in queue.claims()] == ["z", "a", "m"]


def test_a_dead_file_is_left_alone_until_it_is_requeued(queue):
    queue.put("t", [payload()], "x")
    (claim,) = queue.claims()
    envelope, payloads = claim.read()
    claim.fail(envelope, payloads, dead=True)
    assert list(queue.claims()) == []
    (file,) = queue.list("dead")
    assert queue.counts()["dead"] == 1
    assert queue.requeue(file.name)
    assert not queue.requeue(file.name)
    (claim,) = queue.claims()
    assert claim.read()[0].attempts == 0
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
    (claim,) = queue.claims()
    envelope, found = claim.read()
    assert found == [payloads[0], payloads[2]]
    assert envelope.tenant_id == "t"
    assert (tmp_path / "dlq" / f"{name}.corrupt").exists()


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
    next(queue.claims()).done()
    assert queue.refused_at < 0


def test_a_full_disk_leaves_nothing_behind(queue, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "ENOSPC")))
    with pytest.raises(OSError, match="ENOSPC"):
        queue.put("t", [payload()], "x")
    assert not any((tmp_path / "dlq").glob("*.batch*"))


def test_a_file_that_cannot_be_claimed_keeps_no_other_from_being_claimed(queue, monkeypatch):
    names = [queue.put("t", [payload()], "x") for _ in range(3)]
    real = Path.rename

    def rename(self, target):
        if self.name.startswith(names[0]):
            raise OSError(30, "EROFS")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    found = []
    with pytest.raises(OSError, match="EROFS"):
        for claim in queue.claims():
            found.append(claim.name)
            claim.put_back()
    assert found == names[1:]


def test_a_dead_file_that_cannot_be_requeued_stays_dead(queue, monkeypatch):
    name = queue.put("t", [payload()], "x")
    (claim,) = queue.claims()
    claim.fail(*claim.read(), dead=True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "ENOSPC")))
        with pytest.raises(OSError, match="ENOSPC"):
            queue.requeue(name)
    assert [file.state for file in queue.list()] == ["dead"]
    assert queue.requeue(name)


def test_a_child_forked_while_a_file_is_claimed_does_not_hold_it(queue):
    name = queue.put("t", [payload()], "x")
    (claim,) = queue.claims()
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
    (claim,) = queue.claims()
    child = os.fork()
    if child == 0:
        queue.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    assert list(DeadLetterQueue(tmp_path / "dlq", DlqOptions()).claims()) == []
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
