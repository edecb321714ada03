"""Files on a shared file system: atomic replacement, the end of a log, repeated reads, and locks."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from maestro_celery_plugin.files import is_locked, read_text, shared_lock, tail, write_atomically


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_and_no_temporary_file_remains(tmp_path, mode):
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "x", "text", mode)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path):
    texts = ["a" * 100_000, "b" * 50_000]
    path = tmp_path / "x"
    write_atomically(path, texts[0])
    done = threading.Event()

    def write():
        try:
            for count in range(200):
                write_atomically(path, texts[count % 2])
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_text())
    writer.join()

    assert seen
    assert seen <= set(texts)


# --- the end of a log --------------------------------------------------------------------------------


def test_the_tail_is_the_end_of_the_text(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"x" * 100 + b"\nlast \xff line\n\n")
    assert tail(log, size=14) == "last \ufffd line"
    assert tail(log).startswith("first\n")


@pytest.mark.parametrize("content", [None, b"", b" \n"])
def test_without_text_the_tail_is_empty(tmp_path, content):
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log") == ""


def test_the_tail_of_a_huge_log_reads_a_few_bytes(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file of one terabyte, followed by the last line
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast line\n")
    assert tail(log, size=10) == "last line"


# --- stale files -------------------------------------------------------------------------------------


def stale_reads(monkeypatch, failures, number=errno.ESTALE):
    """Let the first reads of a file fail."""
    left, original = [number] * failures, Path.read_text

    def read(path):
        if left:
            raise OSError(left.pop(), "stale")
        return original(path)

    monkeypatch.setattr(Path, "read_text", read)


def test_a_stale_file_is_read_again(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("text")
    stale_reads(monkeypatch, 4)
    assert read_text(tmp_path / "x") == "text"


@pytest.mark.parametrize(("failures", "number"), [(5, errno.ESTALE), (1, errno.EIO)])
def test_other_errors_and_a_file_that_stays_stale_are_raised(tmp_path, monkeypatch, failures, number):
    (tmp_path / "x").write_text("text")
    stale_reads(monkeypatch, failures, number)
    with pytest.raises(OSError) as error:
        read_text(tmp_path / "x")
    assert error.value.errno == number


# --- locks -------------------------------------------------------------------------------------------


def test_the_lock_of_a_writer_is_detected_and_readers_do_not_exclude_each_other(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()
    with lock:
        assert is_locked(tmp_path / "lock")
    with shared_lock(tmp_path / "lock") as first, shared_lock(tmp_path / "lock") as second:
        assert first
        assert second
