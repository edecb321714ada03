"""Sample tables with any bytes: a table is refused with a message that names it, or has the values of its file."""

from __future__ import annotations

import csv
import io
import itertools
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damages import damaged_bytes, each_example, no_files, put
from hypothesis import given
from hypothesis import strategies as st

from maestro_celery_plugin.errors import EnsembleError, SampleError
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples import row_index
from maestro_celery_plugin.samples.own_table import own_table
from maestro_celery_plugin.samples.table import FileIdentity, SampleTable

LABELS = ("A", "B")


class Trap:
    """An object whose pickle leaves a trace when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Open a file as a launch does: copy it into the study, and read its rows; then open the copy as a worker does."""
    monkeypatch.chdir(tmp_path)
    numbers = itertools.count()

    def open_file(path: Path, labels: tuple[str, ...] = LABELS) -> list[list[str]]:
        info = tmp_path / str(next(numbers))
        info.mkdir()
        own = own_table(path, info)
        rows = rows_of(open_table(own, labels, info))
        assert rows_of(open_table(own, labels, info, len(rows))) == rows
        return rows

    yield open_file
    assert not (tmp_path / "unpickled").exists()


def rows_of(table: SampleTable) -> list[list[str]]:
    rows = [list(table.row(index)) for index in range(min(len(table), 50))]
    assert [list(row) for row in table.rows(0, len(rows))] == rows
    assert all(isinstance(value, str) and "\0" not in value for row in rows for value in row)
    "".join(itertools.chain.from_iterable(rows)).encode()  # as a script needs it
    return rows


def bytes_of(array: np.ndarray, *, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


ARRAYS = {
    "doubles": np.arange(8.0).reshape(4, 2),
    "big-endian": np.arange(8, dtype=">i4").reshape(4, 2),
    "Fortran order": np.asfortranarray(np.arange(8.0).reshape(4, 2)),
    "reversed": np.arange(8.0).reshape(4, 2)[::-1, ::-1],
    "text": np.array([["a", "b"], ["\u00e4", ""]]),
    "bytes": np.array([[b"a", b"b"], [b"c", b""]]),
    "half": np.arange(4, dtype=np.float16).reshape(2, 2),
    "complex": np.arange(4, dtype=complex).reshape(2, 2),
    "times": np.arange(4).reshape(2, 2).astype("M8[s]"),
    "structured": np.array([(1, 2.5), (3, 4.5)], dtype=[("A", ">u2"), ("B", "<f8")]),
    "padded": np.array([(1, 2.5), (3, 4.5)], dtype=np.dtype([("A", "u1"), ("B", "<f8")], align=True)),
    "numbers": np.array([[1, 2], [3, 4]], dtype=np.int8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_has_the_values_of_numpy(tmp_path, launch, name):
    array, path = ARRAYS[name], tmp_path / "t.npy"
    path.write_bytes(bytes_of(array, version=(2, 0)))
    rows = array.tolist() if array.dtype.names or (array.dtype.kind in "iuf" and array.dtype.itemsize > 2) else array
    assert launch(path) == [[value.decode() if isinstance(value, bytes) else str(value) for value in row] for row in rows]


def header(text: str, version: int = 1, length: int | None = None, data: bytes = bytes(64)) -> bytes:
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text.encode() + data


HEADERS = (
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (10**30, 2)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 5000 + ", 2)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 99999999999999999999999)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999, 0)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -2)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2.0, 2)}",
    "{'descr': '<f8', 'fortran_order': False, 'shape': ()}",
    "{'descr': '<f8', 'fortran_order': 1, 'shape': (2, 2)}",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 2, 2)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': [('A', '|O'), ('B', '<f8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('A', '<f8', (2,)), ('B', '<f8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('A', [('C', '|O')]), ('B', '<f8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('A', '<f8'), ('A', '<f8')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('A', '<f8'), ('B', '|V0')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('A', '<f8'), ('B', '|V3')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '|V4', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '|S3', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<U1', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<m8[s]', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<M8[100000000000s]', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '|b1', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '>f16', 'fortran_order': False, 'shape': (1, 2)}",
    "{'descr': 'no', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': {}, 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': None, 'fortran_order': False, 'shape': (2, 2)}",
    "{'shape': (2, 2)}",
    "__import__('os').mkdir('x')",
    "[" * 5000,
    "{" * 300,
    "\0" * 20,
    "",
)
DATA = (
    bytes(64), b"\xff" * 64, b"\x00\xd8\x00\x00" * 16, b"\x00\x00\x11\x00" * 16, b"a\0b" * 22, b"\x00\x00\x00\x80" * 16, pickle.dumps([Trap()] * 4),
)  # fmt: skip


@pytest.mark.parametrize("text", HEADERS, ids=range(len(HEADERS)))
def test_any_header_is_refused_or_has_rows(tmp_path, launch, text):
    path = tmp_path / "t.npy"
    sizes = ((1, None), (2, None), (3, None), (1, 65535), (2, 2**32 - 1), (1, 3))
    for version, length, data in (*((*size, DATA[0]) for size in sizes), *((1, None, data) for data in DATA[1:])):
        path.write_bytes(header(text, version, length, data))
        assert_refused_or_read(launch, path)


def assert_refused_or_read(launch, path: Path) -> None:
    try:
        assert launch(path)
    except SampleError as error:
        assert str(path.name) in str(error) or "dimensions" in str(error)
    except EnsembleError as error:
        raise AssertionError(f"another error: {error!r}") from error


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_is_refused_or_has_rows(tmp_path, launch, name):
    path = tmp_path / "t.npy"

    @each_example(8)
    @given(damaged_bytes(bytes_of(ARRAYS[name])))
    def check(damage: bytes) -> None:
        path.write_bytes(damage)
        assert_refused_or_read(launch, path)

    check()


PIECES = (
    "a", "1", "1,2", "1 2", "3,4", "3 4", ",", '"', '""', '"x"', '"x\ny"', '"a,b"', "\n", "\n", "\n", "\r\n", "\r", "\t", " ", "#", "# c\n", "A,B\n",
    "B,A\n", "\0", "\ufeff", "\u2028", "\x85", "\x1c", "\x0b", "\xa0", "\u00e4", "\U0001f600", "'", "\\", "9" * 140_000,
)  # fmt: skip
TAILS = (b"", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xfe\xff", b"\n")


@pytest.mark.parametrize("block", [1, 4 << 20])
@pytest.mark.parametrize("suffix", [".csv", ".tab"])
def test_any_text_is_refused_or_has_the_values_of_its_file(tmp_path, launch, suffix, block, monkeypatch):
    monkeypatch.setattr(row_index, "_BLOCK", block)
    path = tmp_path / f"t{suffix}"

    @each_example(25)
    @given(st.lists(st.integers(0, len(PIECES) - 1), max_size=14), st.sampled_from(TAILS))
    def check(numbers: list[int], tail: bytes) -> None:  # not the pieces: Hypothesis would describe the large one
        data = "".join(map(PIECES.__getitem__, numbers)).encode() + tail
        path.write_bytes(data)
        try:
            rows = launch(path)
        except SampleError as error:
            assert path.name in str(error)
        else:
            assert rows == expected(data.decode(), suffix)

    check()


def expected(text: str, suffix: str) -> list[list[str]]:
    """Return the samples in a text, as Python's csv module or a split at white space reads them."""
    lines = [f"{line}\n" for line in text.removeprefix("\ufeff").split("\n")]
    limit = csv.field_size_limit(1 << 30)  # a file without quotes may have fields of any length
    try:
        rows = list(csv_rows(lines)) if suffix == ".csv" else [line.split() for line in lines if not is_comment(line)]
    finally:
        csv.field_size_limit(limit)
    rows = [row for row in rows if len(row) > 1 or "".join(row).strip()]
    return (rows[1:] if rows and [value.strip() for value in rows[0]] == list(LABELS) else rows)[:50]


@pytest.mark.parametrize("block", [1, 4 << 20])
@pytest.mark.parametrize("space", ["\xa0", "\u3000", "\x1c", "\x85", " \t"])
@pytest.mark.parametrize(("suffix", "row"), [(".csv", "1,2"), (".csv", '"1",2'), (".tab", "1 2")])
def test_any_white_space_may_stand_before_a_comment(tmp_path, launch, suffix, row, space, block, monkeypatch):
    """Given a space that looks like a blank, then a comment behind it is no sample, and no blank line is one."""
    monkeypatch.setattr(row_index, "_BLOCK", block)
    path = tmp_path / f"t{suffix}"
    path.write_text(f"{row}\n{space}# {row}\n{space}\n{row}\n")

    assert launch(path) == [["1", "2"], ["1", "2"]]


def is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def csv_rows(lines: list[str]) -> Iterator[list[str]]:
    """Yield the rows; a comment begins only where a row can begin."""
    while lines:
        if is_comment(lines[0]):
            lines.pop(0)
            continue
        reader = csv.reader(iter(lambda: lines.pop(0), None), strict=True)
        yield next(reader)


@pytest.mark.parametrize("suffix", [".csv", ".tab", ".npy"])
@pytest.mark.parametrize("kind", no_files)
def test_what_is_no_file_is_refused(tmp_path, launch, suffix, kind):
    path = tmp_path / f"t{suffix}"
    put(path, kind)
    if kind == "a huge file":  # of a terabyte of zeros; a copy shares the hole on few file systems
        os.truncate(path, 1 << 20)
    with pytest.raises((SampleError, OSError), match="t\\" + suffix):
        launch(path)


@pytest.mark.parametrize("name", ["t.csv", "t.tab", "t.npy"])
def test_the_copy_of_a_study_that_was_damaged_is_refused(tmp_path, name):
    """Given a copy whose time and size are those of the launch, then each row has its values, or its error names the file."""
    info, labels = tmp_path, LABELS
    path = info / name
    whole = bytes_of(ARRAYS["text"]) if name.endswith("npy") else b"1 2\n3 4\n" if name.endswith("tab") else b'1,2\n"3",4\n'
    path.write_bytes(whole)
    count, times = len(open_table(path, labels, info)), path.stat()

    @each_example(10)
    @given(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=8))
    def check(at: int, junk: bytes) -> None:
        path.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[: len(whole)])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert FileIdentity.of(path).matches(times.st_size, times.st_mtime_ns)
        for damaged_index in (False, True):
            if damaged_index:
                for index in info.glob(f"{name}.*.npy"):
                    index.unlink()
            try:
                rows = rows_of(open_table(path, labels, info, count))
            except SampleError as error:
                assert name in str(error)
            else:
                assert all(len(row) == 2 for row in rows)

    check()


@pytest.mark.parametrize(("name", "damaged"), [("t.csv", b'1,2\n"3"_\x10\n'), ("t.tab", b"1 2\n3_4\n")])
def test_a_row_that_has_lost_a_column_is_not_used(tmp_path, name, damaged):
    """Given a copy whose time and size are those of the launch, and a separator that has become another character."""
    path = tmp_path / name
    path.write_bytes(b'1,2\n"3",4\n' if name == "t.csv" else b"1 2\n3 4\n")
    times = path.stat()
    assert len(open_table(path, LABELS, tmp_path)) == 2
    path.write_bytes(damaged)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    table = open_table(path, LABELS, tmp_path, 2)

    assert list(table.row(0)) == ["1", "2"]
    with pytest.raises(SampleError, match=f"row 1 of .*{name}' has 1 columns, but had 2"):
        table.row(1)
    with pytest.raises(SampleError, match="row 1 of"):
        table.rows(0, 2)
