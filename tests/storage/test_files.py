"""Files: what is opened is what was meant, and what is written is whole."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading

import pytest

from logbun_logging._storage import files
from logbun_logging._storage.files import (
    move,
    open_locked,
    open_regular,
    remove_leftovers,
    write_atomically,
    writing_atomically,
)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", ["fifo", "socket", "link", "folder"])
def test_only_a_regular_file_is_opened(tmp_path, kind):
    path = tmp_path / "planted"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "link":
        (tmp_path / "target").write_bytes(b"somebody else's")
        path.symlink_to(tmp_path / "target")
    else:
        path.mkdir()
    before = open_descriptors()
    for opener in (open_regular, open_locked):
        with pytest.raises(OSError, match="not a regular file"):
            opener(path)
    assert open_descriptors() == before


def test_a_regular_file_is_opened_and_locked_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    first = open_locked(path)
    assert open_locked(path) is None
    os.close(first)
    descriptor = open_regular(path)
    assert os.read(descriptor, 10) == b"x"
    os.close(descriptor)


def test_a_lock_that_cannot_be_had_leaves_nothing_open_and_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    before = open_descriptors()
    with pytest.raises(OSError, match="No locks"):
        open_locked(path)
    with pytest.raises(OSError, match="No locks"):
        write_atomically(path, [b"y"])
    assert open_descriptors() == before
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"x"


def test_a_planted_link_is_not_written_through(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    names = iter([b"\x01" * 8, b"\x02" * 8])
    monkeypatch.setattr(files.os, "urandom", lambda _: next(names))
    (tmp_path / f"a.batch.{'01' * 8}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a.batch", [b"x"])
    write_atomically(tmp_path / "a.batch", [b"x"])
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "a.batch").read_bytes() == b"x"


def test_leftovers_that_are_no_files_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "a.tmp")
    (tmp_path / "b.tmp").write_bytes(b"half")
    (tmp_path / "c.tmp").symlink_to(tmp_path / "nowhere")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.tmp", "c.tmp"]


def test_a_file_that_is_broken_off_is_not_there(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(KeyError), writing_atomically(path) as file:
        file.write(b"half")
        raise KeyError
    assert os.listdir(tmp_path) == []


@pytest.fixture(params=["hard links", "none"])
def moving(request, monkeypatch):
    """Move as on a file system with hard links, or without: that needs an injected error."""

    def no_link(source, target, **_):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        raise PermissionError(errno.EPERM, "Operation not permitted", str(source))

    if request.param == "none":
        monkeypatch.setattr(files.os, "link", no_link)
    return move


def test_a_move_never_overwrites_another_file(tmp_path, moving):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"ours")
    target.write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        moving(source, target)
    assert (source.read_bytes(), target.read_bytes()) == (b"ours", b"another's")
    target.unlink()
    before = open_descriptors()
    moving(source, target)
    assert (target.read_bytes(), source.exists()) == (b"ours", False)
    assert open_descriptors() == before


def test_two_that_move_to_one_name_at_a_time_keep_both_files(tmp_path, moving):
    for round_ in range(100):
        sources = [tmp_path / f"{round_}.{number}" for number in range(2)]
        for source in sources:
            source.write_text(source.name)
        target, refused = tmp_path / f"{round_}", []
        start = threading.Barrier(2)

        def run(source, target=target, refused=refused, start=start):
            start.wait()
            try:
                moving(source, target)
            except FileExistsError:
                refused.append(source)

        threads = [threading.Thread(target=run, args=(source,)) for source in sources]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (left,) = refused
        assert {left.read_text(), target.read_text()} == {source.name for source in sources}
