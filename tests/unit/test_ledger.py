"""The ledger: no reader sees a part of an entry, also after a failure of the writer or of the disk."""

from __future__ import annotations

import errno
import functools
import operator
import os
import struct
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger import entries
from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Kind, are_sound, by_record, packed, selected
from maestro_celery_plugin.ledger.reader import LedgerReader, read_ledger
from maestro_celery_plugin.ledger.store import PartStore, Store
from maestro_celery_plugin.ledger.writer import LedgerWriter

SIZE = ENTRY.itemsize


@pytest.fixture
def writer(tmp_path):
    ledger = LedgerWriter(tmp_path / f"w{SUFFIX}")
    yield ledger
    ledger.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / f"w{SUFFIX}"


def starts(entries):
    return entries["start"].tolist()


def read_all(reader):
    return np.concatenate([np.empty(0, ENTRY), *(entries for _, entries in reader.poll())])


def place_of(index):
    """Return the place of an entry in a file, after the head."""
    return (1 + index) * SIZE


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.HEAD])
def test_an_entry_is_read_as_it_was_written(writer, tmp_path, kind):
    writer.append(kind, 7, 3, 5, 9, code=-15, slot=2)

    (entry,) = read_ledger(tmp_path)

    names = ("kind", "record", "epoch", "start", "stop", "code", "slot", "reserved")
    assert [int(entry[name]) for name in names] == [kind, 7, 3, 5, 9, -15, 2, 0]
    assert entry["time"] > 1.7e9


@pytest.mark.parametrize("code", [-(2**31), 2**31 - 1])
def test_the_largest_values_are_read_as_they_were_written(writer, tmp_path, code):
    writer.append(Kind.ENDED, 2**32 - 1, 2**32 - 1, 2**64 - 1, 2**64 - 1, code=code, slot=65535)

    (entry,) = read_ledger(tmp_path)

    assert (entry["record"], entry["epoch"], entry["slot"]) == (2**32 - 1, 2**32 - 1, 65535)
    assert (entry["start"], entry["stop"], entry["code"]) == (2**64 - 1, 2**64 - 1, code)


@pytest.mark.parametrize("values", [{"slot": 65536}, {"slot": -1}, {"code": 2**31}, {"start": -1}, {"epoch": 2**32}])
def test_a_value_out_of_range_is_refused_and_nothing_is_written(writer, file, values):
    fields = {"record": 1, "epoch": 1, "start": 0, **values}

    with pytest.raises(struct.error):
        writer.append(Kind.STARTED, **fields)

    assert file.stat().st_size == SIZE  # the head


def test_an_incomplete_last_entry_is_ignored_until_it_is_complete(writer, file, tmp_path):
    writer.append(Kind.STARTED, 1, 1, 0)
    writer.append(Kind.STARTED, 1, 1, 1)
    complete = file.read_bytes()
    file.write_bytes(complete[: place_of(1) + 20])
    reader = LedgerReader(tmp_path)

    assert [starts(entries) for _, entries in reader.poll()] == [[0]]
    assert list(reader.poll()) == []
    file.write_bytes(complete)
    assert [starts(entries) for _, entries in reader.poll()] == [[1]]
    assert reader.damaged == 0


def test_an_incomplete_last_entry_is_removed_when_a_writer_opens_the_file_again(writer, file, tmp_path):
    writer.append(Kind.STARTED, 1, 1, 0)
    file.write_bytes(file.read_bytes() + b"torn")

    again = LedgerWriter(file)
    again.append(Kind.STARTED, 1, 1, 1)
    again.close()

    assert starts(read_ledger(tmp_path)) == [0, 1]


def test_damaged_and_empty_entries_are_ignored_and_counted(writer, file, tmp_path):
    for sample in range(4):
        writer.append(Kind.STARTED, 1, 1, sample)
    data = bytearray(file.read_bytes())
    data[place_of(1) + 17] ^= 1
    data[place_of(2) : place_of(3)] = bytes(SIZE)
    file.write_bytes(data)
    reader = LedgerReader(tmp_path)

    assert starts(read_all(reader)) == [0, 3]
    assert reader.damaged == 2


def test_a_damaged_file_does_not_delay_the_entries_of_others(tmp_path):
    writers = {name: LedgerWriter(tmp_path / f"{name}{SUFFIX}") for name in "abc"}
    reader = LedgerReader(tmp_path, patience_s=30, is_live=lambda writer: True)
    assert list(reader.poll()) == []
    for writer in writers.values():
        for sample in range(3):
            writer.append(Kind.STARTED, 1, 1, sample)
    path = tmp_path / f"b{SUFFIX}"
    data = bytearray(path.read_bytes())
    data[place_of(1) + 17] ^= 1
    path.write_bytes(data)

    assert {writer: starts(part) for writer, part in reader.poll()} == {"a": [0, 1, 2], "b": [0], "c": [0, 1, 2]}
    for writer in writers.values():
        writer.close()


def test_entries_that_the_caller_reads_during_a_poll_come_once(tmp_path):
    writers = {name: LedgerWriter(tmp_path / f"{name}{SUFFIX}") for name in "ab"}
    reader = LedgerReader(tmp_path)
    assert list(reader.poll()) == []
    for writer in writers.values():
        writer.append(Kind.STARTED, 1, 1, 0)

    poll = reader.poll()
    first, _ = next(poll)
    writers["b"].append(Kind.STARTED, 1, 1, 1)
    assert (first, starts(reader.read("b"))) == ("a", [0, 1])
    writers["b"].append(Kind.STARTED, 1, 1, 2)
    assert [(writer, starts(part)) for writer, part in poll] == [("b", [2])]
    for writer in writers.values():
        writer.close()


def changed(entry, change):
    """Return the bytes of an entry after a change of its list of bytes."""
    values = bytearray(entry)
    change(values)
    return bytes(values)


def swap(first, second, size):
    def change(values):
        a, b = slice(first, first + size), slice(second, second + size)
        values[a], values[b] = values[b], values[a]

    return change


def flip(*bits):
    def change(values):
        for bit in bits:
            values[bit // 8] ^= 1 << bit % 8

    return change


CHANGES = {
    **{f"bit {bit}": flip(bit) for bit in range(8 * SIZE)},
    **{f"bits {bit} and {bit + 32}": flip(bit, bit + 32) for bit in range(8 * SIZE - 32)},
    **{f"words {a} and {b}": swap(4 * a, 4 * b, 4) for b in range(SIZE // 4) for a in range(b)},
    "start and stop": swap(16, 24, 8),
    "rotated": lambda values: values.extend([values.pop(0) for _ in range(4)]),
    "zeros": lambda values: values.__setitem__(slice(None), bytes(SIZE)),
    "ones": lambda values: values.__setitem__(slice(None), b"\xff" * SIZE),
}


@pytest.mark.parametrize("copies", [1, 300], ids=["one by one", "at once"])
def test_each_kind_of_damage_is_detected(copies):
    """The check of release 0.1, an exclusive or of the words, did not detect words that had changed places."""
    entry = packed(Kind.ENDED, 1, 2, 2**40 + 3, 2**41 + 40_000, code=5, slot=6)
    assert are_sound(np.frombuffer(entry * copies, ENTRY)).all()

    for name, change in CHANGES.items():
        damaged = changed(entry, change)
        assert not are_sound(np.frombuffer(damaged * copies, ENTRY)).any(), name


def test_the_check_of_many_entries_finds_the_damaged_ones(tmp_path):
    entries = bytearray(b"".join(packed(Kind.STARTED, 1, 1, sample) for sample in range(20_000)))
    damaged = {0, 199, 8191, 8192, 19_999}
    for index in damaged:
        entries[index * SIZE + 20] ^= 4

    assert set(np.flatnonzero(~are_sound(np.frombuffer(bytes(entries), ENTRY))).tolist()) == damaged


def test_sound_entries_are_checked_together(monkeypatch):
    """Given entries with any values, then none of them is checked for itself, which takes ten times as long."""
    monkeypatch.setattr(entries, "_checksums", None)
    random = np.random.default_rng(1)
    rows = [(int(random.integers(0, 15)), *random.integers(0, 2**31, 4).tolist()) for _ in range(300)]
    data = b"".join(packed(kind, record, epoch, start, stop, slot=stop % 64) for kind, record, epoch, start, stop in rows)

    for count in (0, 1, 2, 300):
        assert are_sound(np.frombuffer(data[: count * SIZE], ENTRY)).tolist() == [True] * count


def test_two_entries_with_the_same_damage_are_found(tmp_path):
    """The checks of entries that are checked together cannot make up for each other."""
    data = bytearray(b"".join(packed(Kind.STARTED, 1, 1, sample) for sample in range(100)))
    for first, second in ((0, 1), (3, 99), (10, 50)):
        damaged = bytearray(data)
        for index in (first, second):
            damaged[index * SIZE + 7] ^= 1
        assert np.flatnonzero(~are_sound(np.frombuffer(damaged, ENTRY))).tolist() == [first, second]


@pytest.mark.parametrize("cut", [1, 20, 43, 44 + 7])
@pytest.mark.parametrize("count", [5, 300])
def test_the_reader_continues_after_bytes_that_are_missing(writer, file, tmp_path, cut, count):
    """Given a file that has lost bytes in its middle, so that all later entries are not aligned, they are still read."""
    for sample in range(count):
        writer.append(Kind.STARTED, 1, 1, sample)
    data = file.read_bytes()
    file.write_bytes(data[: place_of(2) + 5] + data[place_of(2) + 5 + cut :])
    reader = LedgerReader(tmp_path)

    lost = {2} if 5 + cut <= SIZE else {2, 3}
    assert starts(read_all(reader)) == [sample for sample in range(count) if sample not in lost]
    assert reader.damaged > 0


@pytest.mark.parametrize("garbage", [b"x" * 17, os.urandom(440), bytes(1000)])
def test_the_reader_continues_after_foreign_bytes(writer, file, tmp_path, garbage):
    for sample in range(4):
        writer.append(Kind.STARTED, 1, 1, sample)
    data = file.read_bytes()
    file.write_bytes(data[: place_of(2)] + garbage + data[place_of(2) :])

    assert starts(read_ledger(tmp_path)) == [0, 1, 2, 3]


def test_a_reader_with_patience_waits_for_a_damaged_part(writer, file, tmp_path, monkeypatch):
    """Given a part of a file that is not visible yet, when it becomes visible, then no entry was skipped."""
    for sample in range(4):
        writer.append(Kind.STARTED, 1, 1, sample)
    complete = file.read_bytes()
    file.write_bytes(complete[: place_of(1)] + bytes(SIZE) + complete[place_of(2) :])
    reader = LedgerReader(tmp_path, patience_s=30, is_live=lambda writer: True)

    assert starts(read_all(reader)) == [0]
    assert starts(read_all(reader)) == []
    file.write_bytes(complete)
    assert starts(read_all(reader)) == [1, 2, 3]
    assert reader.damaged == 0


def test_a_reader_does_not_wait_for_a_writer_that_is_dead(writer, file, tmp_path):
    """Nobody writes the damaged part again, and what follows it must count at once."""
    for sample in range(4):
        writer.append(Kind.STARTED, 1, 1, sample)
    data = file.read_bytes()
    file.write_bytes(data[: place_of(1)] + bytes(SIZE) + data[place_of(2) :])

    assert starts(read_all(LedgerReader(tmp_path, patience_s=30))) == [0, 2, 3]


def test_the_patience_of_a_reader_ends(writer, file, tmp_path, monkeypatch):
    for sample in range(4):
        writer.append(Kind.STARTED, 1, 1, sample)
    data = file.read_bytes()
    file.write_bytes(data[: place_of(1)] + bytes(SIZE) + data[place_of(2) :])
    reader = LedgerReader(tmp_path, patience_s=30, is_live=lambda writer: True)
    assert starts(read_all(reader)) == [0]

    later = clock.monotonic() + 31
    monkeypatch.setattr(clock, "monotonic", lambda: later)
    assert starts(read_all(reader)) == [2, 3]
    assert reader.damaged == 1


def test_a_part_at_the_end_that_becomes_visible_later_is_read(writer, file, tmp_path):
    """NFS may show zeros at the end of a file before the bytes."""
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
    complete = file.read_bytes()
    file.write_bytes(complete[: place_of(1)] + bytes(2 * SIZE))
    reader = LedgerReader(tmp_path)

    assert starts(read_all(reader)) == [0]
    file.write_bytes(complete)
    assert starts(read_all(reader)) == [1, 2]


# --- a file system that loses what it has accepted ---------------------------------------------------


@pytest.fixture
def losing_close(writer, file, monkeypatch):
    """Let the next flush fail as on NFS: the quota is exhausted, and the file keeps only some bytes."""
    close = os.close

    def lose(size):
        def fail(descriptor):
            close(descriptor)
            os.truncate(file, size)
            monkeypatch.setattr(os, "close", close)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "close", fail)

    return lose


@pytest.mark.parametrize("left", [0, 10, SIZE, 2 * SIZE, 2 * SIZE + 13, 4 * SIZE - 1])
def test_entries_that_the_file_system_has_lost_are_written_again(writer, tmp_path, losing_close, left):
    writer.flush()
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
    losing_close(max(SIZE, left))

    with pytest.raises(LedgerError, match="quota"):
        writer.flush()
    writer.append(Kind.STARTED, 1, 1, 3)
    writer.flush()

    reader = LedgerReader(tmp_path)
    assert starts(read_all(reader)) == [0, 1, 2, 3]
    assert reader.damaged == 0


@pytest.fixture
def losing_write(file, monkeypatch):
    """Let the next write report that the file system has lost what follows the head, as NFS does on recent kernels."""

    def lose():
        write = os.pwrite

        def fail(descriptor, data, place):
            monkeypatch.setattr(os, "pwrite", write)
            os.truncate(file, SIZE)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "pwrite", fail)

    return lose


def test_entries_whose_loss_a_later_write_reports_are_written_again(writer, tmp_path, losing_write):
    writer.append(Kind.STARTED, 1, 1, 0)
    losing_write()

    with pytest.raises(LedgerError, match="quota"):
        writer.append(Kind.STARTED, 1, 1, 1)
    writer.append(Kind.STARTED, 1, 1, 1)
    writer.flush()

    assert starts(read_ledger(tmp_path)) == [0, 1]


def test_a_loss_that_is_reported_during_a_flush_is_not_confirmed(writer, tmp_path, losing_write, monkeypatch):
    writer.append(Kind.STARTED, 1, 1, 0)
    close = os.close

    def close_and_fail_to_append(descriptor):
        monkeypatch.setattr(os, "close", close)
        close(descriptor)
        losing_write()
        with pytest.raises(LedgerError):
            writer.append(Kind.STARTED, 1, 1, 1)

    monkeypatch.setattr(os, "close", close_and_fail_to_append)
    writer.flush()
    writer.flush()

    assert starts(read_ledger(tmp_path)) == [0]


def test_entries_of_this_node_count_only_when_the_file_server_has_stored_them(writer, tmp_path, losing_close):
    """Given a full disk, of which NFS tells only when a file is closed, then what this node shows meanwhile does not count."""
    reader = LedgerReader(tmp_path, must_be_stored=lambda name: True)
    writer.append(Kind.STARTED, 1, 1, 0)
    assert starts(read_all(reader)) == [0]
    writer.append(Kind.STARTED, 1, 1, 1)

    losing_close(2 * SIZE)
    assert starts(read_all(reader)) == []
    losing_close(2 * SIZE)  # each open file learns of the loss
    with pytest.raises(LedgerError):
        writer.flush()
    assert starts(read_all(reader)) == []

    writer.flush()
    assert starts(read_all(reader)) == [1]


def test_entries_count_as_confirmed_only_after_a_flush_that_succeeds(writer, file, tmp_path, losing_close):
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
        losing_close(SIZE)
        with pytest.raises(LedgerError):
            writer.flush()
    assert file.stat().st_size == SIZE

    writer.flush()

    assert starts(read_ledger(tmp_path)) == [0, 1, 2]


def test_bytes_that_another_process_appends_do_not_move_the_entries(writer, file, tmp_path):
    for sample in range(20):
        writer.append(Kind.STARTED, 1, 1, sample)
        with file.open("ab") as other:
            other.write(b"1234567")

    assert starts(read_ledger(tmp_path)) == list(range(20))


def test_a_flush_waits_for_the_disk_only_if_the_user_wants_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for name, to_disk in (("a", False), ("b", True)):
        writer = LedgerWriter(tmp_path / f"{name}{SUFFIX}", to_disk=to_disk)
        writer.append(Kind.STARTED, 1, 1, 0)
        writer.flush()
        writer.flush()

    assert len(synced) == 1


# --- the study of a file -----------------------------------------------------------------------------


def test_a_reader_ignores_the_files_of_another_study(tmp_path):
    for name, study in (("w-1", 7), ("w-2", 8)):
        LedgerWriter(tmp_path / f"{name}{SUFFIX}", study).append(Kind.STARTED, 1, 1, study)
    reader = LedgerReader(tmp_path, study=8)

    assert {name: starts(entries) for name, entries in reader.poll()} == {"w-2": [8]}
    assert reader.foreign == {"w-1"}
    assert starts(read_ledger(tmp_path, 7)) == [7]


def test_a_writer_refuses_the_file_of_another_study(tmp_path):
    LedgerWriter(tmp_path / f"w{SUFFIX}", 7).close()

    with pytest.raises(LedgerError, match=r"The ledger .* belongs to another study\."):
        LedgerWriter(tmp_path / f"w{SUFFIX}", 8)
    LedgerWriter(tmp_path / f"w{SUFFIX}", 7).close()


def test_a_new_writer_does_not_take_the_file_of_another_writer(writer, file):
    with pytest.raises(FileExistsError):
        LedgerWriter(file, new=True)


def test_a_writer_does_not_write_into_a_study_that_has_replaced_its_own(tmp_path):
    """Given a worker of a study that a new launch has replaced, when it writes, the new study receives nothing."""
    ledger = tmp_path / "ledger"
    old = LedgerWriter(ledger / f"w{SUFFIX}", 7)
    ledger.rename(tmp_path / "removed")
    new = LedgerWriter(ledger / f"w{SUFFIX}", 8)

    for sample in (1, 2):
        old.append(Kind.ENDED, 1, 1, sample)
        old.flush()
    new.append(Kind.ENDED, 1, 1, 3)

    assert starts(read_ledger(ledger)) == [3]


def old_entry(sample):
    """Return an entry in the format of release 0.1: its check is the exclusive or of its words."""
    body = packed(Kind.STARTED, 1, 1, sample)[:-4]
    words = struct.unpack("<10I", body)
    return body + struct.pack("<I", functools.reduce(operator.xor, words, 0x5EED1ED6))


def test_a_file_of_release_0_1_is_read_and_continued(file, tmp_path):
    file.write_bytes(b"".join(map(old_entry, range(300))) + b"torn")

    writer = LedgerWriter(file, 7)
    writer.append(Kind.STARTED, 1, 1, 300)
    reader = LedgerReader(tmp_path, study=7)

    assert starts(read_all(reader)) == list(range(301))
    assert reader.damaged == 0


def test_no_part_of_an_entry_remains_when_the_disk_is_full(tmp_path):
    """A limit of the file size simulates the full disk. There is space for two and a half entries."""
    program = f"""
        import pathlib, resource
        from maestro_celery_plugin.errors import LedgerError
        from maestro_celery_plugin.ledger.entries import Kind
        from maestro_celery_plugin.ledger.reader import read_ledger
        from maestro_celery_plugin.ledger.writer import LedgerWriter

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        path = pathlib.Path({str(tmp_path)!r}, "w.ledger")
        writer = LedgerWriter(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE * 3 + SIZE // 2}, hard))
        for sample in range(4):
            try:
                writer.append(Kind.STARTED, 1, 1, sample)
            except LedgerError as error:
                print(sample, error)
        print(path.stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        writer.append(Kind.STARTED, 1, 1, 4)
        print(read_ledger(path.parent)["start"].tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]

    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    message = f"The ledger '{tmp_path}/w.ledger' cannot be written: No space left on device."
    assert output == [f"2 {message}", f"3 {message}", str(3 * SIZE), "[0, 1, 4]"]


def test_a_write_to_a_full_disk_is_an_error(writer):
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._fd)
    os.close(full)

    with pytest.raises(LedgerError, match=r"The ledger .*w\.ledger. cannot be written: No space left on device\."):
        writer.append(Kind.STARTED, 1, 1, 0)


def test_each_poll_returns_only_new_entries(writer, tmp_path):
    reader = LedgerReader(tmp_path)
    seen = []
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
        seen += [(name, starts(entries)) for name, entries in reader.poll()]

    assert seen == [("w", [0]), ("w", [1]), ("w", [2])]
    assert list(reader.poll()) == []


def test_entries_have_the_name_of_their_writer_and_other_files_are_ignored(tmp_path):
    for name in ("w-1", "w-2.77", "coordinator"):
        writer = LedgerWriter(tmp_path / f"{name}{SUFFIX}")
        writer.append(Kind.STARTED, 1, 1, len(name))
        writer.close()
    (tmp_path / "notes.txt").write_text("x" * 500)

    reader = LedgerReader(tmp_path)
    assert {name: starts(e) for name, e in reader.poll()} == {"w-1": [3], "w-2.77": [6], "coordinator": [11]}
    assert reader.damaged == 0


def test_a_pipe_and_a_directory_among_the_files_do_not_block_the_reader(writer, tmp_path):
    writer.append(Kind.STARTED, 1, 1, 0)
    os.mkfifo(tmp_path / f"pipe{SUFFIX}")
    (tmp_path / f"directory{SUFFIX}").mkdir()

    assert starts(read_ledger(tmp_path)) == [0]


def test_a_missing_ledger_is_empty(tmp_path):
    assert len(read_ledger(tmp_path / "ledger")) == 0


def test_a_writer_continues_after_a_flush(writer, tmp_path):
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
        writer.flush()

    assert starts(read_ledger(tmp_path)) == [0, 1, 2]


def test_a_flush_closes_the_file_only_after_new_entries(writer, monkeypatch):
    """NFS writes back when a file is closed. This costs a round trip, which a flush without new entries avoids."""
    closed = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))

    for count in (1, 2):  # the head, an entry
        writer.flush()
        writer.flush()
        assert len(closed) == count
        writer.append(Kind.STARTED, 1, 1, 0)


def test_many_threads_write_complete_entries_in_order(writer, tmp_path):
    def write(slot):
        for sample in range(300):
            writer.append(Kind.STARTED, 1, 1, sample, slot=slot)
            if sample % 50 == 0:
                writer.flush()

    threads = [threading.Thread(target=write, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    reader = LedgerReader(tmp_path)
    ((_, entries),) = reader.poll()
    assert reader.damaged == 0
    for slot in range(4):
        assert starts(entries[entries["slot"] == slot]) == list(range(300))


def test_the_check_of_an_empty_array_returns_an_empty_array():
    """Given two threads that poll the same file, when one finds no new entries, then it checks an empty array."""
    assert are_sound(np.empty(0, ENTRY)).tolist() == []


@pytest.mark.parametrize("hole", [0, 1, 40, 100, 4000, 10_000, 10_007 / 44])
def test_a_hole_that_is_larger_than_a_part_hides_nothing(writer, file, tmp_path, hole):
    """Given a file that is read in parts, and some of it is zeros, then what follows is read; what is missing counts."""
    for sample in range(3000):
        writer.append(Kind.STARTED, 1, 1, sample)
    writer.flush()
    before, lost = file.read_bytes(), round(hole * SIZE)
    file.write_bytes(before[: place_of(1000)] + bytes(lost) + before[place_of(1000) :])
    reader = LedgerReader(tmp_path, store=PartStore(1600 * SIZE))

    entries = np.concatenate([entries for _, entries in reader.poll()])

    assert starts(entries) == list(range(3000))
    assert reader.damaged == -(-lost // SIZE) or reader.damaged == -(-lost // SIZE) + 1
    assert (reader.damaged > 0) == (hole > 0)
    with file.open("ab") as more:
        more.write(packed(Kind.STARTED, 1, 1, 3000))
    assert starts(np.concatenate([entries for _, entries in reader.poll()])) == [3000]


class CountingStore(Store):
    """A store that refuses to read much more than there is."""

    def __init__(self):
        self.bytes = 0

    def _read(self, descriptor, offset, least):
        size, data = super()._read(descriptor, offset, least)
        self.bytes += len(data)
        assert self.bytes < 10 * Store.limit
        return size, data


GIGABYTES_64 = 64 << 30


def test_a_hole_that_is_larger_than_the_memory_is_not_read(writer, file, tmp_path):
    """Given a file that a user or a file system has made sparse, then what is behind the hole is read, and its size counts."""
    for sample in range(10):
        writer.append(Kind.STARTED, 1, 1, sample)
    writer.flush()
    size = file.stat().st_size
    with file.open("r+b") as hole:
        hole.truncate(size + GIGABYTES_64 // SIZE * SIZE)
        hole.seek(0, os.SEEK_END)
        hole.write(packed(Kind.STARTED, 1, 1, 10))
    reader = LedgerReader(tmp_path, store=CountingStore())

    assert starts(reader.read(file.stem)) == list(range(11))
    assert reader.damaged == GIGABYTES_64 // SIZE


def test_a_hole_at_the_end_is_not_skipped(writer, file, tmp_path):
    """Given a file that a user has made longer while its writer lives, then what the writer writes into the hole is read."""
    writer.append(Kind.STARTED, 1, 1, 0)
    writer.flush()
    size = file.stat().st_size
    os.truncate(file, GIGABYTES_64)
    reader = LedgerReader(tmp_path, store=CountingStore())
    assert [starts(reader.read(file.stem)) for _ in range(3)] == [[0], [], []]
    assert reader.damaged == 0

    with file.open("r+b") as hole:
        hole.seek(size)
        hole.write(packed(Kind.STARTED, 1, 1, 1))
    assert [starts(reader.read(file.stem)) for _ in range(2)] == [[1], []]


def test_a_large_file_is_read_in_parts(file, tmp_path, monkeypatch):
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"".join(packed(Kind.STARTED, 1, 1, sample) for sample in range(1000)))
    monkeypatch.setattr(Store, "limit", 300 * SIZE)
    reader = LedgerReader(tmp_path)

    assert [len(entries) for _, entries in reader.poll()] == [300, 300, 300, 100]
    assert not list(reader.poll())
    assert len(LedgerReader(tmp_path).read(file.stem)) == 1000


def test_a_look_that_finds_little_reads_each_file_once(writer, tmp_path, monkeypatch):
    """Given that each read opens the file, which costs time on NFS."""
    writer.append(Kind.STARTED, 1, 1, 0)
    writer.flush()
    reads = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path, *args: (reads.append(path), read(self, path, *args))[1])

    assert len(list(LedgerReader(tmp_path).poll())) == len(reads) == 1


def test_entries_are_divided_by_step_record_in_their_order():
    numbers = np.random.default_rng(1).integers(0, 5, 1000)
    for largest in (4, 70_000):
        entries = np.zeros(1000, ENTRY)
        entries["record"], entries["start"] = np.where(numbers == 4, largest, numbers), np.arange(1000)
        found = {number: starts(selected(entries, places)) for number, places in by_record(entries)}
        assert found == {n: np.flatnonzero(entries["record"] == n).tolist() for n in {0, 1, 2, 3, largest}}
    assert not list(by_record(np.zeros(0, ENTRY)))
    assert [number for number, _ in by_record(np.zeros(3, ENTRY))] == [0]
