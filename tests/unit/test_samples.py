"""Sample tables: values have the text of the file, rows are read from the file, and a changed file is refused."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from maestro_celery_plugin.errors import SampleError
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples import csv_reader, npy_reader, row_index
from maestro_celery_plugin.samples.table import rows_of


@pytest.fixture
def cache(tmp_path):
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


@pytest.fixture
def table_of(tmp_path, cache):
    """Write a table (an array as .npy, text or bytes as `name`), and open it with a new cache, as a new study does."""

    calls = itertools.count()

    def open_file(content, labels=("A",), name="table.csv"):
        directory = cache / str(number) if (number := next(calls)) else cache
        directory.mkdir(exist_ok=True)
        if isinstance(content, np.ndarray):
            name = "table.npy"
            np.save(tmp_path / name, content)
        else:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return open_table(tmp_path / name, labels, directory)

    return open_file


def rows(table):
    return [list(table.row(index)) for index in range(len(table))]


def message(open_it):
    with pytest.raises(SampleError) as error:
        open_it()
    return str(error.value)


# --- .npy --------------------------------------------------------------------------------------------


def test_doubles_have_the_text_of_numpy(table_of):
    """Python formats the numbers, because it is faster than NumPy; the text is the same."""
    bits = np.random.default_rng(1).integers(0, 2**64 - 1, 2000, dtype=np.uint64)
    values = np.concatenate([bits.view(np.float64), 10.0 ** np.arange(-320, 309), np.arange(-99, 99) / 8])
    assert rows(table_of(values)) == [[str(value)] for value in values]


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (np.array([1, -2, 3]), ["1", "-2", "3"]),
        (np.array([2**63], np.uint64), ["9223372036854775808"]),
        (
            np.array([0.1, 1.0, 1e-300, 1e300, 123456789.125]),
            ["0.1", "1.0", "1e-300", "1e+300", "123456789.125"],
        ),
        (np.array([0.1, 1 / 3, 1e-30], np.float32), ["0.1", "0.33333334", "1e-30"]),
        (np.array([0.1], np.float16), ["0.1"]),
        (np.array([np.nan, np.inf, -np.inf, -0.0]), ["nan", "inf", "-inf", "-0.0"]),
        (np.array([True, False]), ["True", "False"]),
        (np.array(["a b", "ü", "$(X)", ""]), ["a b", "ü", "$(X)", ""]),
        (np.array([b"a", "ü".encode()]), ["a", "ü"]),
        (np.array([1 + 2j]), ["(1+2j)"]),
        (np.array([0.1], ">f8"), ["0.1"]),
        (np.array(["2026-01-02"], "datetime64[D]"), ["2026-01-02"]),
    ],
)
def test_values_of_npy_are_read_as_text(table_of, array, texts):
    assert rows(table_of(array)) == [[text] for text in texts]
    assert rows(table_of(array[:, None])) == [[text] for text in texts]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floats_read_back_as_the_same_value(table_of, dtype):
    generator = np.random.default_rng(1)
    bits = generator.standard_normal(500) * 10.0 ** generator.integers(-300, 300, 500)
    with np.errstate(over="ignore", under="ignore"):
        array = np.concatenate([bits, generator.random(500)]).astype(dtype)
    read = np.array([dtype(row[0]) for row in rows(table_of(array))])
    assert (read == array).all()


def test_an_array_with_two_dimensions_is_a_table(table_of):
    assert rows(table_of(np.array([[1, 2], [3, 4], [5, 6]]), ("A", "B"))) == [
        ["1", "2"],
        ["3", "4"],
        ["5", "6"],
    ]


def test_an_array_in_fortran_order_is_a_table(table_of):
    assert rows(table_of(np.asfortranarray([[1, 2], [3, 4]]), ("A", "B"))) == [["1", "2"], ["3", "4"]]


def test_fields_are_found_by_label(table_of):
    array = np.array([(1, 0.1, "x"), (2, 0.2, "y")], [("I", int), ("F", "f4"), ("T", "U3")])
    assert rows(table_of(array, ("T", "I", "F"))) == [["x", "1", "0.1"], ["y", "2", "0.2"]]
    assert rows(table_of(array, ("F",))) == [["0.1"], ["0.2"]]
    assert message(lambda: table_of(array, ("I", "Z"))).endswith("has no field 'Z'; its fields are I, F, T.")


def test_a_structured_array_with_two_dimensions_has_the_rows_of_numpy(table_of):
    array = np.array([[(1, "a"), (2, "b"), (3, "c")], [(4, "d"), (5, "e"), (6, "f")]], [("I", int), ("T", "U1")])
    for stored in (array, np.asfortranarray(array)):
        expected = [[str(i), t] for i, t in stored.reshape(-1).tolist()]
        assert rows(table_of(stored, ("I", "T"))) == expected


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
def test_the_name_of_a_field_may_have_any_letters(table_of):
    assert rows(table_of(np.array([(1, 2), (3, 4)], [("Größe", int), ("大小", int)]), ("大小", "Größe"))) == [["2", "1"], ["4", "3"]]


def test_a_field_of_several_values_is_refused(table_of):
    array = np.zeros(2, [("V", float, 3)])
    assert "the field 'V'" in message(lambda: table_of(array, ("V",)))


class Trap:
    """Creates a directory when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trap-has-been-sprung",)


def test_objects_are_refused_and_not_unpickled(tmp_path, table_of, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for array in (np.array([Trap()], object), np.array([(1, Trap())], [("A", int), ("B", object)])):
        text = message(lambda array=array: table_of(array))
        assert "contains Python objects, which are pickled code and are not read; save an array" in text
        assert not (tmp_path / "trap-has-been-sprung").exists()


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.array(1), "has 0 dimensions"),
        (np.zeros((2, 2, 2)), "has 3 dimensions"),
        (np.zeros((0, 1)), "has no samples; at least one row is needed."),
        (np.zeros(0), "has no samples; at least one row is needed."),
    ],
)
def test_arrays_that_are_not_a_table_are_refused(table_of, array, found):
    assert found in message(lambda: table_of(array))


@pytest.mark.parametrize("content", [b"", b"no numpy", b"PK\x03\x04 a zip", b"\x93NUMPY\x01\x00"])
def test_files_that_are_not_npy_are_refused(table_of, content):
    assert "cannot be read as .npy" in message(lambda: table_of(content, name="table.npy"))


def test_a_truncated_npy_is_refused(tmp_path, table_of, cache):
    np.save(tmp_path / "x.npy", np.arange(1000))
    whole = (tmp_path / "x.npy").read_bytes()
    assert "cannot be read as .npy" in message(lambda: table_of(whole[:-10], name="table.npy"))


@pytest.mark.parametrize(
    "array",
    [
        np.array([b"ok", b"\xff"]),
        np.array([[b"ok", b"ok"], [b"ok", b"a\0b"]]),
        np.asfortranarray([[b"ok", b"ok", b"ok"], [b"ok", b"\xff", b"ok"]]),
        np.array([(1, b"ok"), (2, b"\xff")], [("A", int), ("B", "S4")]),
        np.array([["ok"], ["\ud800"]]),
    ],
)
def test_the_launch_refuses_texts_that_no_script_can_contain(table_of, array, monkeypatch):
    """Given such a text in any row, then no sample runs, as for a file of text."""
    monkeypatch.setattr(npy_reader, "_BLOCK", 2)
    labels = array.dtype.names or [f"X{column}" for column in range(array.shape[1] if array.ndim > 1 else 1)]
    assert "row 1 of" in message(lambda: table_of(array, labels))


def test_the_texts_of_a_table_are_checked_once(table_of, tmp_path, cache, monkeypatch):
    table_of(np.array([b"ok", b"fine"]))
    monkeypatch.setattr(npy_reader, "_row_of", None)  # which the check needs

    assert open_table(tmp_path / "table.npy", ("A",), cache).row(1) == ["fine"]


# --- text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.10,02\n3e5, x \n", [["1.10", "02"], ["3e5", " x "]]),
        ("1,2\r\n3,4\r\n", [["1", "2"], ["3", "4"]]),
        ("1,2\n3,4", [["1", "2"], ["3", "4"]]),
        ("1,2\r\n3,4\r", [["1", "2"], ["3", "4"]]),
        ("# A,B\n1,2\n", [["1", "2"]]),
        ("# A,B\n#\n\n# more \"words\n1,2\n# x,3\n", [["1", "2"]]),
        ("#A,B\n1,2\n#3,4\n  # 5\n6,7\n#", [["1", "2"], ["6", "7"]]),
        ("1,2\n#\"3,4\n\"#5\",\"6\n# 7\"\n # 8\n", [["1", "2"], ["#5", "6\n# 7"]]),
        ("1,#2\n3 # x,4\n", [["1", "#2"], ["3 # x", "4"]]),
        ("A,B\n1,2\n", [["1", "2"]]),
        ("\ufeffA, B \r\n1,2\r\n", [["1", "2"]]),
        ("# free text\n\"A\",B\n1,2\nA,B\n", [["1", "2"], ["A", "B"]]),
        ("\n\n1,2\n\n  \n\t\n3,4\n\n", [["1", "2"], ["3", "4"]]),
        (" 1,2\n 3,4\n", [[" 1", "2"], [" 3", "4"]]),
        ('"a,b",2\n"say ""hi""",3\n', [["a,b", "2"], ['say "hi"', "3"]]),
        ('"line\nbreak",2\n3,4\n', [["line\nbreak", "2"], ["3", "4"]]),
        ('"line\r\nbreak",2\r\n\r\n"# x\n\n",4', [["line\r\nbreak", "2"], ["# x\n\n", "4"]]),
        ('5" pipe,2\n3" pipe,4\n', [['5" pipe', "2"], ['3" pipe', "4"]]),
        ('"",""\n1,2\n', [["", ""], ["1", "2"]]),
        ("ü 🌊,\\1 $(X)\n,\n", [["ü 🌊", "\\1 $(X)"], ["", ""]]),
        ("\ufeff1,2\n3,4\n", [["1", "2"], ["3", "4"]]),
        ('\ufeff"1",2\n', [["1", "2"]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [1, 7, 4 << 20])
def test_values_of_csv_have_the_text_of_the_file(table_of, text, expected, block, monkeypatch):
    monkeypatch.setattr(row_index, "_BLOCK", block)
    assert rows(table_of(text, ("A", "B"))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n b\n\n  \nc", [["a"], [" b"], ["c"]]), ('"a\nb"\n""\n', [["a\nb"], [""]]), ("# x\na\n", [["a"]])],
)
def test_a_csv_file_may_have_one_column(table_of, text, expected):
    assert rows(table_of(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.10\t02\n3  4\n", [["1.10", "02"], ["3", "4"]]),
        ("# A B\n\n 1\t \t2 \r\n\n3 4", [["1", "2"], ["3", "4"]]),
        ('"a b\n', [['"a', "b"]]),
        ("#A B\n1 2\n  #3 4\n5 6#\n", [["1", "2"], ["5", "6#"]]),
        ("A  B\n1 2\n", [["1", "2"]]),
    ],
)
def test_values_of_tab_have_the_text_of_the_file(table_of, text, expected):
    assert rows(table_of(text, ("A", "B"), "table.tab")) == expected


@pytest.mark.parametrize("quoted", [False, True])
def test_csv_has_the_values_that_pythons_csv_module_wrote(table_of, tmp_path, quoted):
    generator = np.random.default_rng(2)
    letters = list("ab ,\"\n'#\\$()") if quoted else list("ab '#\\$()")
    # A row that begins with `#` is a comment, so that a value at the beginning must be quoted, or begin with another letter.
    written = [
        [("" if column or quoted else "x") + "".join(generator.choice(letters, generator.integers(1, 6))) + "x" for column in range(3)]
        for _ in range(200)
    ]
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows([["first", "row", "x"], *written])
    table = table_of((tmp_path / "table.csv").read_bytes(), ("A", "B", "C"))
    assert rows(table)[1:] == written


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("table.csv", "1,2\n3\n", "row 1 of '{}' (line 2) has 1 columns, row 0 has 2; all rows need the same number. "
         "The row is '3': a value is missing, or values are not separated by ','."),
        ("table.csv", "1,2\n3,4,\n", "row 0 has 2; all rows need the same number. The row is '3,4,': remove the ',' at its end."),
        ("table.csv", "1,2\n\n3,a,b\n", "(line 3) has 3 columns, row 0 has 2; all rows need the same number. "
         "The row is '3,a,b': if a value contains ',', put it in double quotes."),
        ("table.csv", "my runs\n1,2\n", "row 1 of '{}' (line 2) has 2 columns, row 0 has 1; all rows need the same number. "
         "Row 0 is 'my runs': begin a title or a header with '#'."),
        ("table.csv", '"my, runs, of, today"\n1,2\n', "Row 0 is '\"my, runs, of, today\"': begin a title or a header with '#'."),
        ("table.tab", "1 2\n3 a b\n", "The row is '3 a b': if a value contains a blank, use a .csv file."),
        ("table.tab", f"1 2\n{'3' * 100}\n", f"The row is '{'3' * 60}...': a value is missing, or values are not separated by a blank."),
        ("table.csv", "#B,A\n1,2\n", "merlin.samples.column_labels: '{}' has the columns B, A, but the labels are A, B; "
         "'B' is column 1 of the file. Bring them into one order, or correct the header."),
        ("table.csv", "# made today\n# x, A\n1,2\n", "has the columns x, A, but the labels are A, B; 'A' is column 2 of the file."),
        ("table.tab", "B A\n1 2\n", "'{}' has the columns B, A, but the labels are A, B; 'B' is column 1 of the file."),
        ("table.csv", "A,B\n", "'{}' has no samples; at least one row is needed."),
        ("table.csv", "# h\n\n1,2\n\n3,4\n5,6,7\n", "row 2 of '{}' (line 6) has 3 columns, row 0 has 2"),
        ("table.csv", '"1",2\n3\n', "row 1 of '{}' (line 2) has 1 columns, row 0 has 2"),
        ("table.csv", '"1\n",2\n\n3\n', "row 1 of '{}' (line 4) has 1 columns, row 0 has 2"),
        ("table.tab", "1 2\n\n3\n", "row 1 of '{}' (line 3) has 1 columns, row 0 has 2"),
        ("table.csv", '1,2\n"3,4\n5,6\n', "row 1 of '{}' (line 2) is not valid csv: unexpected end of data; check the quotes."),
        ("table.csv", '1,2\n"3"x,4\n', "row 1 of '{}' (line 2) is not valid csv: "),
        ("table.csv", "1,2\r3,4\r", "'{}' has carriage returns within lines"),
        ("table.csv", b"1,\xff\n", "'{}' is not UTF-8 text"),
        ("table.csv", b'"1",\xff\n', "'{}' is not UTF-8 text"),
        ("table.tab", b"1 \xff\n", "'{}' is not UTF-8 text"),
        ("table.csv", "", "'{}' has no samples; at least one row is needed."),
        ("table.csv", "# only a header\n\n", "'{}' has no samples; at least one row is needed."),
        ("table.tab", "\n", "'{}' has no samples; at least one row is needed."),
        ("table.hdf5", "x", "no reader for 'table.hdf5'; files with the suffix .npy, .csv or .tab can be read."),
        ("table", "x", "no reader for 'table'"),
        ("table.csv", "1,2,3\n", "2 labels (A, B), but '{}' has 3 columns; one label per column is needed."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [1, 4 << 20])
def test_a_table_that_cannot_be_read_is_refused(table_of, tmp_path, name, text, found, block, monkeypatch):
    monkeypatch.setattr(row_index, "_BLOCK", block)
    assert found.format(tmp_path / name) in message(lambda: table_of(text, ("A", "B"), name))


@pytest.mark.parametrize(
    ("text", "logged"),
    [
        ("1,2\n3,#4\n5,#6\n", "table.csv: line 2 has a '#' within a row; it is text here, but NumPy, and so Merlin, ignores the rest "
         "of such a row."),
        ('\n1,2\n"3\n #",4\n', "table.csv: line 3 has a '#' within a row;"),
        ("# p, T\n1,2\n", "table.csv: the header names the columns p, T, merlin.samples.column_labels names them A, B; the labels count."),
        *((text, f"table.csv: the first row looks like a header ({shown}), but counts as a sample, because it is not equal to the "
           "column labels. Begin a header with '#'.")
          for text, shown in (("a,B\n1,2\n", "a, B"), ("A,extra\n1,2\n", "A, extra"), ("temp,pressure\n1,2\n3,4\n", "temp, pressure"))),
        ("x,y\nz,1\n", None),
        ("x,1\n2,3\n", None),
        ("x,y\n", None),
        ("# A, B\n# made, today\n# a comment of four words, and, more\n1,2\n#3\n", None),
    ],
)  # fmt: skip
def test_the_launch_says_once_what_is_unusual_in_a_table(table_of, tmp_path, cache, caplog, text, logged):
    with caplog.at_level("WARNING"):
        table_of(text, ("A", "B"))
        open_table(tmp_path / "table.csv", ("A", "B"), cache)  # as a worker
    assert [record.getMessage()[: len(logged or "")] for record in caplog.records] == ([logged] if logged else [])


@pytest.mark.parametrize("block", [1, 4 << 20])
@pytest.mark.parametrize(("name", "quote"), [("table.csv", ""), ("table.csv", '"'), ("table.tab", "")])
def test_rows_that_are_comments_are_counted(table_of, caplog, monkeypatch, name, quote, block):
    """Given values such as #ff0000 in the first column, then the launch says that these rows are no samples."""
    monkeypatch.setattr(row_index, "_BLOCK", block)
    with caplog.at_level("INFO"):
        table_of(f"# colours\n\n{quote}red{quote}\n#ff0000\n\n  #00ff00\nblue\n", name=name)
    assert [record.getMessage() for record in caplog.records] == [f"{name}: 2 rows that begin with '#' are comments."]


def test_a_comment_above_one_column_needs_no_warning(table_of, caplog):
    assert rows(table_of("# velocity\n1\n")) == [["1"]]
    assert not caplog.records


def test_a_missing_file_is_refused(tmp_path, cache):
    for path in (tmp_path / "no.csv", tmp_path):
        assert f"there is no file '{path}'" in message(lambda path=path: open_table(path, ("A",), cache))


# --- files that change -------------------------------------------------------------------------------


def rewrite(path, content):
    """Write other content of the same size, with a later modification time."""
    before = os.stat(path)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))


@pytest.mark.parametrize("name", ["table.csv", "table.tab"])
def test_a_worker_cannot_open_a_file_that_has_changed(table_of, tmp_path, cache, name):
    table_of("1\n2\n", name=name)
    rewrite(tmp_path / name, b"34\n\n")
    text = message(lambda: open_table(tmp_path / name, ("A",), cache))
    assert f"'{tmp_path / name}' has changed since the launch of the study" in text


def test_a_worker_detects_a_change_of_a_file_that_is_open(table_of, tmp_path):
    table = table_of("1\n2\n")
    assert table.row(0) == ["1"]
    rewrite(tmp_path / "table.csv", b"34\n\n")
    assert "has changed since the launch of the study" in message(lambda: table.row(0))
    (tmp_path / "table.csv").unlink()
    assert "cannot be read any more" in message(lambda: table.row(0))


@pytest.mark.parametrize(("launched", "seen"), [(5_123_456_789, 5_000_000_000), (5_000_000_000, 5_123_456_789), (5_123_456_789, 5_123_456_700)])
def test_another_machine_may_see_a_coarser_time_of_the_same_file(tmp_path, cache, launched, seen):
    """Given hosts that reach the file by SFTP, which shows whole seconds, or SMB, which shows 100 ns."""
    path = tmp_path / "table.csv"
    path.write_text("1\n2\n")
    os.utime(path, ns=(launched, launched))
    open_table(path, ("A",), cache)
    os.utime(path, ns=(seen, seen))

    assert open_table(path, ("A",), cache).row(1) == ["2"]
    os.utime(path, ns=(seen + 2_000_000_000, seen + 2_000_000_000))
    assert "has changed" in message(lambda: open_table(path, ("A",), cache))


def test_a_change_of_an_npy_file_is_detected(table_of, tmp_path, cache):
    table = table_of(np.arange(5))
    np.save(tmp_path / "other.npy", np.arange(5) + 1)
    rewrite(tmp_path / "table.npy", (tmp_path / "other.npy").read_bytes())
    assert "has changed" in message(lambda: table.row(0))
    assert "has changed" in message(lambda: open_table(tmp_path / "table.npy", ("A",), cache))


@pytest.mark.parametrize("name", ["table.csv", "table.npy"])
def test_a_truncation_during_the_reading_does_not_kill_the_process(table_of, tmp_path, monkeypatch, name):
    """Given a file that is truncated after it was opened, then the row is refused; a memory map would raise SIGBUS."""
    table = table_of(np.arange(100_000) if name.endswith("npy") else "".join(f"{n}\n" for n in range(100_000)))
    row = table._table.row
    monkeypatch.setattr(table._table, "row", lambda index: (os.truncate(tmp_path / name, 200), row(index))[1])

    assert "has changed" in message(lambda: table.row(99_999))


# --- faults of the machine ---------------------------------------------------------------------------


def failing(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number), "/there")

    return fail


def error_of(open_it):
    with pytest.raises((OSError, SampleError)) as error:
        open_it()
    return error.value


@pytest.mark.parametrize("name", ["table.csv", "table.npy"])
@pytest.mark.parametrize(("number", "passes"), [(errno.EIO, True), (errno.ESTALE, True), (errno.ETIMEDOUT, True), (errno.EACCES, False)])
def test_a_fault_that_can_pass_is_none_of_the_table(table_of, monkeypatch, name, number, passes):
    """Given a file system that has lost its server, then the row is not unreadable for good."""
    table = table_of(np.arange(9) if name.endswith("npy") else "1\n2\n")
    monkeypatch.setattr(os, "stat", failing(number))

    error = error_of(lambda: table.row(0))
    monkeypatch.undo()

    assert isinstance(error, OSError if passes else SampleError)
    assert passes == (getattr(error, "errno", None) == number)


@pytest.mark.parametrize("name", ["table.csv", "table.npy"])
def test_a_row_that_the_disk_cannot_read_is_an_error_and_no_signal(table_of, monkeypatch, name):
    table = table_of(np.arange(9) if name.endswith("npy") else "1\n2\n")
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    assert error_of(lambda: table.row(0)).errno == errno.EIO


@pytest.mark.parametrize(("number", "passes"), [(errno.EIO, True), (errno.EACCES, False)])
def test_a_fault_during_the_opening_can_pass(table_of, monkeypatch, number, passes):
    monkeypatch.setattr(npy_reader, "NpyFile", failing(number))
    assert isinstance(error_of(lambda: table_of(np.arange(9))), OSError if passes else SampleError)


def test_a_truncation_of_an_npy_file_is_detected(table_of, tmp_path):
    table = table_of(np.arange(100_000))
    os.truncate(tmp_path / "table.npy", 200)
    assert "has changed" in message(lambda: table.row(99_999))


def test_another_file_of_the_same_name_has_its_own_index(tmp_path, cache):
    for name, text in (("one", "1,2\n3,4\n"), ("two", "5555,6\n7,8\n")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "table.csv"
        path.write_text(text)
        os.utime(path, ns=(0, 0))
    assert rows(open_table(tmp_path / "one/table.csv", ("A", "B"), cache)) == [["1", "2"], ["3", "4"]]
    assert rows(open_table(tmp_path / "two/table.csv", ("A", "B"), cache)) == [["5555", "6"], ["7", "8"]]


def test_a_file_is_indexed_once(table_of, tmp_path, cache, monkeypatch):
    table_of("1\n2\n")
    monkeypatch.setattr(
        "maestro_celery_plugin.samples.csv_reader.index_rows", lambda *args: pytest.fail("indexed again")
    )
    assert rows(open_table(tmp_path / "table.csv", ("A",), cache)) == [["1"], ["2"]]


def index_of(cache):
    (path,) = cache.glob("*.npy")
    return path


DAMAGES = {
    "empty": lambda whole: b"",
    "only a header": lambda whole: whole[:128],
    "truncated": lambda whole: whole[:-3],
    "zeros": lambda whole: bytes(len(whole)),
    "zeros after the header": lambda whole: whole[:128] + bytes(len(whole) - 128),
    "zeros at the end": lambda whole: whole[:-16] + bytes(16),
    "zeros in the middle": lambda whole: whole[:160] + bytes(32) + whole[192:],
    "of a larger file": lambda whole: whole[:-16] + np.array([9000, 9002]).tobytes(),
    "text": lambda whole: b"no index at all",
    "a row that begins too late": lambda whole: whole[:144] + np.array([4, 5]).tobytes() + whole[160:],
    "a row that ends too early": lambda whole: whole[:144] + np.array([3, 4]).tobytes() + whole[160:],
    "two rows as one": lambda whole: whole[:144] + np.array([3, 8]).tobytes() + whole[160:],
    "fewer rows": lambda whole: whole.replace(b"(10, 2)", b"( 9, 2)"),
    "objects": lambda whole: whole.replace(b"'<i8'", b" '|O'"),
    "no size": lambda whole: whole.replace(b"'<i8'", b"'<U0'"),
    "a negative shape": lambda whole: whole.replace(b"(10, 2)", b"(-1, 2)"),
    "a header of Python that is none": lambda whole: whole.replace(b"(10, 2)", b"(10,(2)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_written_again(table_of, tmp_path, cache, damage):
    """Given an index that a power cut has damaged, then the rows are those of the file."""
    table_of("".join(f"1{n}\n" for n in range(10)))
    whole = index_of(cache).read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    for read in (rows, lambda table: list(rows_of(table, 0, len(table)))):
        index_of(cache).write_bytes(damaged)

        table = open_table(tmp_path / "table.csv", ("A",), cache)

        assert read(table) == [[f"1{n}"] for n in range(10)]
        assert index_of(cache).read_bytes() == whole


def test_an_index_that_cannot_be_read_now_is_not_written_again(table_of, tmp_path, cache, monkeypatch):
    table_of("1\n2\n")
    monkeypatch.setattr(csv_reader, "NpyFile", failing(errno.EIO))
    monkeypatch.setattr(csv_reader, "index_rows", lambda *args: pytest.fail("indexed again"))
    assert error_of(lambda: open_table(tmp_path / "table.csv", ("A",), cache)).errno == errno.EIO


def test_an_index_is_on_the_disk_before_workers_see_it(table_of, cache, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append((os.readlink(f"/proc/self/fd/{number}"), list(cache.glob("*.npy")))), sync(number)))

    table_of("1\n2\n")

    name = index_of(cache).name
    assert [seen for path, seen in synced if f".{name}." in path] == [[]]
    assert synced[-1] == (str(cache), [index_of(cache)])


def test_a_table_with_other_rows_than_at_the_launch_is_refused(table_of, tmp_path, cache):
    """Given a study of a release that took a comment for a sample, and no index any more, then no sample gets other values."""
    table_of("1\n#2\n3\n")
    assert rows(open_table(tmp_path / "table.csv", ("A",), cache, 2)) == [["1"], ["3"]]
    assert f"'{tmp_path}/table.csv' has 2 samples, but had 3 at the launch of the study" in message(
        lambda: open_table(tmp_path / "table.csv", ("A",), cache, 3)
    )


# --- large tables ------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from maestro_celery_plugin.samples import row_index
from maestro_celery_plugin.samples import npy_reader
from maestro_celery_plugin.samples import csv_reader
from maestro_celery_plugin.plugins import open_table, plugin_manager
def peak_kb():  # not `ru_maxrss`, in which a process begins with the peak of its parent
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
plugin_manager()
path, labels = Path(sys.argv[1]), sys.argv[2].split(",")
small = path.with_name("small" + path.suffix)
open_table(small, labels, Path(sys.argv[3])).row(0)
before = peak_kb()
table = open_table(path, labels, Path(sys.argv[3]))
table.row(0)
print((peak_kb() - before) // 1024)
for index in sys.argv[4:]:
    print(" ".join(table.row(int(index))))
"""
ROWS = {"npy": 1_000_000, "quoted": 300_000}


def write_rows(path, kind):
    count = ROWS[kind]
    if kind == "npy":
        np.save(path, np.arange(count * 4.0).reshape(-1, 4))
        np.save(path.with_name("small.npy"), np.zeros((2, 4)))
    if kind == "quoted":
        line = b'"0000000.5",0000000.5,0000000.5,0000000.5\n'
        rows = np.tile(np.frombuffer(line, np.uint8), (count, 1))
        for column, begin in enumerate((1, 12, 22, 32)):  # seven digits each
            numbers = np.arange(count) * 4 + column
            rows[:, begin : begin + 7] += (numbers[:, None] // 10 ** np.arange(6, -1, -1) % 10).astype(np.uint8)
        path.write_bytes(rows.tobytes())
        path.with_name(f"small{path.suffix}").write_bytes(line)


@pytest.mark.parametrize(("kind", "limit_mb"), [("npy", 20), ("quoted", 20)])
def test_many_rows_take_little_memory(tmp_path, cache, kind, limit_mb):
    """A text table keeps its offsets in memory: 16 bytes per row, twice while the index is built."""
    path = tmp_path / f"table.{'csv' if kind == 'quoted' else kind}"
    write_rows(path, kind)
    indices = [0, 1, 123_456, 277_777, ROWS[kind] - 1]
    command = [sys.executable, "-c", MEASURE, str(path), "A,B,C,D", str(cache), *map(str, indices)]
    used_mb, *found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    text = "{:07d}.5" if kind == "quoted" else "{}.0"
    assert found == [" ".join(text.format(4 * index + column) for column in range(4)) for index in indices]
    assert int(used_mb) < limit_mb


@pytest.mark.parametrize("name", ["table.csv", "table.npy"])
def test_threads_may_read_at_the_same_time(table_of, name):
    count = 2000
    table = table_of(np.arange(count) if name.endswith("npy") else "".join(f"{n}\n" for n in range(count)))
    wrong = []

    def read(seed):
        for index in np.random.default_rng(seed).integers(0, count, 2000).tolist():
            if list(table.row(index)) != [str(index)]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
