"""The ledger: no reader sees a part of an entry, also after a failure of the writer or of the disk."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from maestro_celery_plugin.errors import LedgerError
from maestro_celery_plugin.ledger.entries import ENTRY, SUFFIX, Kind, are_sound
from maestro_celery_plugin.ledger.reader import LedgerReader, read_ledger
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


@pytest.mark.parametrize("kind", Kind)
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

    assert file.stat().st_size == 0


def test_an_incomplete_last_entry_is_ignored_until_it_is_complete(writer, file, tmp_path):
    writer.append(Kind.STARTED, 1, 1, 0)
    writer.append(Kind.STARTED, 1, 1, 1)
    complete = file.read_bytes()
    file.write_bytes(complete[: SIZE + 20])
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
    data[SIZE + 17] ^= 1
    data[2 * SIZE : 3 * SIZE] = bytes(SIZE)
    file.write_bytes(data)
    reader = LedgerReader(tmp_path)

    assert [starts(entries) for _, entries in reader.poll()] == [[0, 3]]
    assert reader.damaged == 2


def test_any_single_changed_bit_is_detected(writer, file):
    writer.append(Kind.ENDED, 1, 2, 3, 4, code=5, slot=6)
    sound = np.unpackbits(np.frombuffer(file.read_bytes(), np.uint8))

    for bit in range(8 * SIZE):
        damaged = sound.copy()
        damaged[bit] ^= 1
        assert not are_sound(np.packbits(damaged).view(ENTRY)).any(), bit


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
        resource.setrlimit(resource.RLIMIT_FSIZE, ({SIZE * 2 + SIZE // 2}, hard))
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
    assert output == [f"2 {message}", f"3 {message}", str(2 * SIZE), "[0, 1, 4]"]


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


def test_a_missing_ledger_is_empty(tmp_path):
    assert len(read_ledger(tmp_path / "ledger")) == 0


def test_a_writer_continues_after_a_flush(writer, tmp_path):
    for sample in range(3):
        writer.append(Kind.STARTED, 1, 1, sample)
        writer.flush()

    assert starts(read_ledger(tmp_path)) == [0, 1, 2]


def test_a_writer_keeps_its_file_after_a_flush_that_fails(tmp_path):
    """If the flush closed the file first, the next entry could go to another file that reuses the descriptor."""
    directory = tmp_path / "ledger"
    writer = LedgerWriter(directory / f"w{SUFFIX}")
    writer.append(Kind.STARTED, 1, 1, 4)
    directory.rename(tmp_path / "moved")

    for _ in range(2):  # the entry is still not flushed, so that the second flush fails too
        with pytest.raises(LedgerError, match="No such file"):
            writer.flush()
    with (tmp_path / "other").open("wb"):
        writer.append(Kind.STARTED, 1, 1, 5)

    assert starts(read_ledger(tmp_path / "moved")) == [4, 5]
    assert (tmp_path / "other").stat().st_size == 0


def test_a_flush_closes_the_file_only_after_new_entries(writer, monkeypatch):
    """NFS writes back when a file is closed. This costs a round trip, which a flush without new entries avoids."""
    closed = []
    close = os.close
    monkeypatch.setattr(os, "close", lambda descriptor: (closed.append(descriptor), close(descriptor)))

    writer.flush()
    assert closed == []
    writer.append(Kind.STARTED, 1, 1, 0)
    writer.flush()
    writer.flush()
    assert len(closed) == 1


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
