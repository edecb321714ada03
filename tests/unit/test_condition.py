"""Conditions on columns: what they mean, what they refuse, and that nothing else than columns can be reached."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.errors import ExpressionError
from maestro_celery_plugin.report.condition import read_condition
from maestro_celery_plugin.report.selection import RowChooser, SortKey

COLUMNS = ("X", "x", "state", "group", "exit_code", "a-b", "fit.slope", "name", "id")
ROWS = {
    "X": ["0.1", "0.5", "nan", "10"],
    "x": ["1", "2", "3", "4"],
    "state": ["failed", "failed", "finished", "failed"],
    "group": ["a", "b", "a", "it's"],
    "exit_code": [3, 1, None, -9],
    "a-b": ["1", "1", "1", "2"],
    "fit.slope": [1, 2, 3, 4],
    "name": ["run1", "run2", "x", "y"],
    "id": ["1", "01", "007", "1e0"],
}


def chosen(text: str, sort: tuple[str, ...] = (), limit: int | None = None) -> list[int]:
    """Return the numbers of the rows that a condition chooses, in the order of a sort."""
    chooser = RowChooser(read_condition(text, COLUMNS) if text else None, [SortKey(key) for key in sort])
    found = chooser.choose([ROWS[name] for name in chooser.columns], 4).tolist()
    return [found[number] for block in chooser.order(limit) for number in block.tolist()] if sort else found


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('X > 0.3 and state == "failed"', [1, 3]),
        ("X > 0.3 AND state = 'failed'", [1, 3]),
        ("x > 2", [2, 3]),  # another column than X
        ("group = 'a'", [0, 2]),  # a word of SQL
        ("group == 'it''s' or group == \"it's\"", [3]),
        ("`a-b` == 2", [3]),
        ("fit.slope >= 3", [2, 3]),
        ("exit_code == None", [2]),
        ("exit_code != null and not (exit_code < 0)", [0, 1]),
        ("exit_code is null", [2]),
        ("exit_code > 0", [0, 1]),  # a missing value fulfils no comparison
        ("x in (1, 3) or x between 4 and 5", [0, 2, 3]),
        ("name like 'run%'", [0, 1]),
        ("x / 2 > 1", [2, 3]),  # the quotient of integers is no integer
        ("x/2 == 0.5", [0]),
        ("abs(exit_code) == 9 or max(x, 3.5) > 3.6", [3]),
        ("X == '0.5'", [1]),  # the text of a number
        ("X > 1e-1", [1, 3]),
        ("X - -1 > 2 --1", [3]),  # no comment
        ("true", [0, 1, 2, 3]),
        ("id == '01'", [1]),  # a text in quotes compares as text
        ("id != '01'", [0, 2, 3]),
        ("'01' == id", [1]),
        ("id in ('01', '1e0')", [1, 3]),
        ("id not in ('01')", [0, 2, 3]),
        ("id like '0%'", [1, 2]),
        ("id not like '0%'", [0, 3]),
        ("length(id) == 3", [2, 3]),
        ("lower(`id`) == '1e0'", [3]),
        ("id between '0' and '02'", [1, 2]),
        ("id == 1", [0, 1, 3]),  # a number compares as number
        ("id == -1 or id in (7)", [2]),
        ("id + 1 == 8", [2]),
        ("name > 0", []),  # a text that is no number fulfils no comparison with one, nor a calculation
        ("name + 1 > 0 or abs(name) >= 0", []),
        ("exit_code == '3'", [0]),
    ],
)
def test_a_condition_chooses_rows(text, rows):
    assert chosen(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stat == 'failed'", "there is no column 'stat'; did you mean 'state'?"),
        ('state == "failed" and y > 1', "there is no column 'y'"),
        ("0.1 < X < 0.3", "two comparisons follow each other; join them with 'and'"),
        ("X > 1; drop table block", "';' is not understood"),
        ("X > (select 1)", "there is no column 'select'"),
        ("load_extension('x')", "there is no function 'load_extension'"),
        ("__import__('os').system('true')", "there is no function '__import__'"),
        ("X ** 2 > 1", "'\\*\\*' is not understood; write a product"),
        ("X > 1 && x > 1", "write and"),
        ("X >", "cannot be evaluated"),
        ("(X > 1", "cannot be evaluated"),
        ("X > 1)", "a bracket is closed that was not opened"),
        ("X > 'abc", "is not understood"),
        ("X > 3x", "is not understood"),
        ("", "The condition is empty"),
        ("  ", "The condition is empty"),
        ("X > " + "1+" * 6000, "at most 10000"),
        ("(" * 3000 + "1" + ")" * 3000, "cannot be evaluated"),
    ],
)
def test_a_wrong_condition_has_a_message(text, message):
    with pytest.raises(ExpressionError, match=message):
        RowChooser(read_condition(text, COLUMNS))


def test_texts_are_never_part_of_the_sql():
    condition = read_condition("name == 'x'' or 1=1 --' and state == \"; drop\"", COLUMNS)
    assert condition.sql == "t0 == ? and t1 == ?"
    assert condition.texts == ("x' or 1=1 --", "; drop")
    assert condition.columns == ("name", "state")


def test_rows_are_sorted_as_numbers_and_missing_values_are_last():
    assert chosen("", ("X",)) == [0, 1, 3, 2]
    assert chosen("", ("-X",)) == [3, 1, 0, 2]
    assert chosen("", ("state", "-x")) == [3, 1, 0, 2]
    assert chosen("x > 1", ("-x",), limit=2) == [3, 2]


def test_a_sort_goes_over_all_blocks():
    chooser = RowChooser(read_condition("x > 1", COLUMNS), [SortKey("X")])
    assert chooser.columns == ["x", "X"]
    count = 0
    for xs, numbers in (([5, 1, 5], [3, 0, 9]), ([5, 5], [2, 4])):
        count += len(chooser.choose([xs, numbers], len(xs), count))
    # The chosen rows are 0: 3, 1: 9, 2: 2, 3: 4.
    assert [number for block in chooser.order(None) for number in block.tolist()] == [2, 0, 3, 1]
