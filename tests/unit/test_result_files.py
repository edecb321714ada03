"""Result files of samples: their forms, and what is wrong with them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from maestro_celery_plugin.report.result_files import ResultStore, read_result


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("r.json", '{"a": 1, "b": {"c": 2.5, "d": {}}, "e": [1, 2], "f": null}', {"a": 1, "b.c": 2.5, "e": [1, 2], "f": None}),
        ("r.json", '{"big": 99999999999999999999}', {"big": "99999999999999999999"}),
        ("r.csv", "a, b\n1,two\n\n", {"a": "1", "b": "two"}),
        ("r.txt", "# comment\na=1\n\nb = x=y\n", {"a": "1", "b": "x=y"}),
        ("r.out", "", {}),
    ],
)
def test_values_are_read(tmp_path, name, text, values):
    (tmp_path / name).write_text(text)
    assert read_result(tmp_path / name) == values


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (np.float64(0.5), {"r": 0.5}),
        (np.array([[7]]), {"r": 7}),
        (np.array("text"), {"r": "text"}),
        (np.array(True), {"r": True}),
        (np.array((1, 2.5), [("n", int), ("x", float)]), {"n": 1, "x": 2.5}),
        (np.uint64(2**63), {"r": "9223372036854775808"}),
        (np.uint64(2**64 - 1), {"r": "18446744073709551615"}),
    ],
)
def test_one_value_of_a_npy_file_is_read(tmp_path, array, values):
    np.save(tmp_path / "r.npy", array)
    found = read_result(tmp_path / "r.npy")
    assert found == values
    ResultStore().append(found)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("r.json", "[1]", "it is not a JSON object"),
        ("r.json", "{", "Expecting property name"),
        ("r.json", "[" * 100_000, "it has too many levels"),
        ("r.json", '{"a": "\\ud800"}', "surrogates not allowed"),
        ("r.json", '{"a": [99999999999999999999]}', "cannot be stored"),
        ("r.csv", "a\n1\n2\n", "it has 3 rows"),
        ("r.csv", "a,b\n1\n", "its header has 2 columns, its row has 1"),
        ("r.txt", "a=1\nb\n", "line 2 is not 'key=value'"),
        ("r.npy", "no array", "magic string"),
    ],
)
def test_a_broken_file_has_a_problem(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=problem):
        read_result(tmp_path / name)


def test_arrays_pickles_and_pipes_are_refused(tmp_path):
    np.save(tmp_path / "many.npy", np.zeros(3))
    with pytest.raises(ValueError, match="one value is needed"):
        read_result(tmp_path / "many.npy")
    np.save(tmp_path / "object.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_result(tmp_path / "object.npy")
    for name in ("pipe.npy", "pipe.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="regular file"):
            read_result(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_result(tmp_path / "none.json")


def test_stored_values_are_read_in_any_order():
    store = ResultStore()
    for number in range(100):
        store.append({"n": number, "text": "x" * number, "nan": float("nan")})
    assert [one["n"] for one in store.read([5, 6, 7])] == [5, 6, 7]
    assert [one["n"] for one in store.read([99, 0, 50])] == [99, 0, 50]
    assert store.read([]) == [] and len(store) == 100
