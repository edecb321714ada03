"""Files on a shared file system: atomic replacement, reads that cannot block, the end of a log, and locks."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import tracemalloc

import pytest
from filelock import FileLock

from maestro_celery_plugin import clock, files
from maestro_celery_plugin.errors import DamagedFileError, StudyError
from maestro_celery_plugin.files import (
    TRANSIENT_ERRORS,
    check_writable,
    is_locked,
    parsed_json,
    read_json,
    read_text,
    share_clock,
    shared_lock,
    tail,
    write_atomically,
)


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
    written, done = [], threading.Event()

    def write():
        while not done.is_set():
            write_atomically(path, texts[len(written) % 2])
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        while writer.is_alive() and min(len(seen), len(written)) < 60:
            seen.append(path.read_text())
    finally:
        done.set()
        writer.join()

    assert seen
    assert set(seen) <= set(texts)


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


# --- writing -----------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Record the calls that decide what survives a power cut."""
    made = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def call(*arguments, name=name, original=original):
            if name == "fsync":
                name = "fsync directory" if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else name
            made.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, call)
    return made


def test_the_text_reaches_the_disk_before_the_name_and_then_the_directory(tmp_path, calls):
    write_atomically(tmp_path / "x", "text")
    assert calls == ["fsync", "replace", "fsync directory"]


def test_a_file_that_is_written_every_second_does_not_wait_for_the_disk(tmp_path, calls):
    write_atomically(tmp_path / "x", "text", durable=False)
    assert calls == ["replace"]


def test_the_text_is_utf8_in_every_locale(tmp_path):
    program = "import sys; from pathlib import Path; from maestro_celery_plugin.files import *; "
    program += r"write_atomically(Path(sys.argv[1]), 'Gr\u00fc\u00dfe'); print(ascii(read_text(Path(sys.argv[1]))))"
    words = [sys.executable, "-X", "utf8=0", "-c", program, str(tmp_path / "x")]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)

    assert answer.stdout == "'Gr\\xfc\\xdfe'\n"
    assert (tmp_path / "x").read_bytes() == "Gr\u00fc\u00dfe".encode()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_no_partial_file(tmp_path, monkeypatch, step):
    write_atomically(tmp_path / "x", "old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError):
        write_atomically(tmp_path / "x", "new")

    assert os.listdir(tmp_path) == ["x"]
    assert read_text(tmp_path / "x") == "old"


def test_two_threads_with_the_same_pid_write_different_partial_files(tmp_path, monkeypatch):
    """Given that threads, or containers with equal pids, write one file at the same time, then no text is mixed."""
    partial = set()
    original = os.open

    def recorded(path, flags, *mode, **options):
        if flags & os.O_CREAT:
            partial.add(path)
        return original(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", recorded)
    writers = [threading.Thread(target=write_atomically, args=(tmp_path / "x", "text")) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert len(partial) == 8
    assert os.listdir(tmp_path) == ["x"]


def test_a_directory_that_can_be_written_has_no_file_left_by_the_check(tmp_path):
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StudyError, match=rf"^'{tmp_path}/none' cannot be written \(No such file or directory\); make room"):
        check_writable(tmp_path / "none")


# --- reading -----------------------------------------------------------------------------------------


def failing_reads(monkeypatch, failures, number):
    """Let the first reads of a file fail, and record the waits between them."""
    left, waits, original = [number] * failures, [], os.open

    def open_file(path, flags, *mode, **options):
        if left and not flags & os.O_CREAT:
            raise OSError(left.pop(), "cannot be read now")
        return original(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(clock, "sleep", waits.append)
    return waits


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.ETIMEDOUT])
def test_after_a_transient_error_a_file_is_read_again_with_growing_delays(tmp_path, monkeypatch, number):
    (tmp_path / "x").write_text("text")
    waits = failing_reads(monkeypatch, 4, number)

    assert read_text(tmp_path / "x") == "text"
    assert len(waits) == 4
    assert waits == sorted(set(waits))
    assert 0 < sum(waits) < 1


@pytest.mark.parametrize(("failures", "number"), [(5, errno.ESTALE), (1, errno.EACCES), (1, errno.ENOENT)])
def test_other_errors_and_an_error_that_stays_are_raised(tmp_path, monkeypatch, failures, number):
    (tmp_path / "x").write_text("text")
    failing_reads(monkeypatch, failures, number)
    with pytest.raises(OSError) as error:
        read_text(tmp_path / "x")
    assert error.value.errno == number


def test_a_transient_error_is_no_fact_about_a_file():
    """ENOENT, EACCES and a full disk tell about the file, or last until a person acts."""
    assert {errno.EIO, errno.EINTR, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ESTALE} <= TRANSIENT_ERRORS
    assert not {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT} & TRANSIENT_ERRORS


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "device", "huge", "binary"])
def test_a_file_of_another_kind_is_damaged_and_does_not_block(tmp_path, kind):
    path = tmp_path / "x"
    with contextlib.ExitStack() as stack:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        else:
            path.write_bytes(b"\xff\xfe")
        with pytest.raises(DamagedFileError, match=rf"^'{path}' is damaged: it is .*; .*\.$"):
            read_text(path)
        if kind not in ("huge", "binary"):
            assert tail(path) == ""
            assert kind == "socket" or not is_locked(path)


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


@pytest.mark.parametrize(("ahead_s", "shared_s"), [(3600, -3600), (-3600, 3600), (1, 0)])
def test_a_wrong_clock_is_compared_with_that_of_the_file_system(tmp_path, monkeypatch, ahead_s, shared_s):
    """Given a machine whose clock differs from that of the file server, then only a large difference counts."""
    right = clock.now
    monkeypatch.setattr(clock, "now", lambda: right() + ahead_s)
    begin = clock.monotonic()
    try:
        share_clock(tmp_path)
        found_s = clock.shared_now() - clock.now()
        assert found_s == pytest.approx(shared_s, abs=1 + clock.monotonic() - begin)
        assert list(tmp_path.iterdir()) == []
    finally:
        clock.adjust(0.0)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\\ud800"', '{"a": ["\\uDFFF"]}', "nul"])
def test_text_that_is_not_json_is_damage(tmp_path, text):
    """Given text that a JSON parser refuses, or that no other file could take, then the file is damaged."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedFileError, match="it is not JSON"):
        read_json(tmp_path / "a.json")


def test_characters_beyond_16_bits_are_json():
    assert parsed_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_a_small_file_needs_no_memory_for_the_largest_one(tmp_path):
    """Given a heartbeat of some bytes, then a conductor that reads a thousand of them does not reserve 64 MB for each."""
    path = tmp_path / "beat.json"
    path.write_text("{}")
    tracemalloc.start()
    try:
        assert read_text(path) == "{}"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20


def test_a_request_of_another_node_is_revoked_although_nfs_caches_that_there_is_none(tmp_path, monkeypatch):
    """Given a directory whose names this node has cached, then it changes the directory before it removes the request."""
    order = []
    monkeypatch.setattr(files, "refresh_directory", lambda path: order.append(path))
    request = tmp_path / "request"
    request.touch()

    files.revoke(request)
    files.revoke(request)

    assert order == [tmp_path, tmp_path]
    assert not request.exists()


def test_a_request_is_revoked_on_a_full_disk(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "refresh_directory", fail)
    (tmp_path / "request").touch()

    files.revoke(tmp_path / "request")

    assert not (tmp_path / "request").exists()
