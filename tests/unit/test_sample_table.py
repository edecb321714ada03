"""The table of samples: its columns, its files, the terminal, and the groups of failures."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ensembles import a_study
from rich.console import Console

from maestro_celery_plugin import MissingPackageError, Study
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.errors import ExpressionError, SampleError, StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.report import failure_groups, result_files, sample_rows, table_files
from maestro_celery_plugin.report.column_types import ColumnType
from maestro_celery_plugin.report.failures_view import print_failures
from maestro_celery_plugin.report.sample_rows import Query
from maestro_celery_plugin.report.samples_view import print_rows
from maestro_celery_plugin.report.study_samples import StudySamples
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.table import rows_at
from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.study.worker_facts import WorkerFacts, write_facts

HEADER = "Step Name,Job ID,Workspace,State,Run Time,Elapsed Time,Start Time,Submit Time,End Time,Number Restarts,Params"
ROW = "sim_X.1,--,sim/X.1,RUNNING,--:--:--,--:--:--,--,--,--,0,SPEED:2"


class Ensemble:
    """A study with one step record of 40 samples: 30 to 39 have failed, 20 to 24 have not started."""

    def __init__(self, root: Path, **changes) -> None:
        self.root, count = root, 40
        self.plan, self.manifest = a_study(root, samples=count, labels=["X", "KIND"], **changes)
        rows = (f"{i / 40},{'ab'[i % 2]}\n" for i in range(count))
        (self.plan.info / "samples.csv").write_text("".join(rows))
        (root / "status.csv").write_text(f"{HEADER}\n{ROW}\n")
        (self.plan.info / "workers").mkdir()
        write_facts(Session(self.plan.session), WorkerFacts(name="sim-1-1", group="sim", node="node7"))
        self.plan.ledger.mkdir()
        self.writer = LedgerWriter(self.plan.ledger / "sim-1-1.99.ledger", self.plan.number)
        for index in range(count):
            if index not in range(20, 25):
                self.run(index, 3 if index >= 30 else 0)

    def run(self, index: int, code: int, epoch: int = 1) -> None:
        self.writer.append(Kind.STARTED, 1, epoch, index)
        self.writer.append(Kind.ENDED, 1, epoch, index, 1_500_000 + index, code=code)

    def directory(self, index: int) -> Path:
        path = Path(self.manifest.workspace, self.manifest.paths.of(index))
        path.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def ensemble(tmp_path: Path) -> Ensemble:
    return Ensemble(tmp_path / "study")


def rows_of(ensemble: Ensemble, **query) -> list[dict]:
    """Return the rows of a query as the csv file has them."""
    text = io.StringIO()
    table_files.write_csv(StudySamples(ensemble.root).rows(Query(**query)), text)
    return list(csv.DictReader(io.StringIO(text.getvalue())))


# --- rows and columns ---


def test_each_sample_is_a_row(ensemble):
    rows = rows_of(ensemble)
    assert len(rows) == 40 and [row["id"] for row in rows] == [str(i) for i in range(40)]
    start = rows[0].pop("start")
    assert float(start) > 1e9
    assert rows[0] == {
        "id": "0", "step": "sim", "record": "sim_X.1", "SPEED": "2", "X": "0.0", "KIND": "a", "state": "finished",
        "exit_code": "0", "attempts": "1", "duration_s": "1.5", "worker": "sim-1-1", "node": "node7",
        "directory": f"{ensemble.manifest.workspace}/00/00",
    }  # fmt: skip
    assert [rows[39][key] for key in ("state", "exit_code", "directory")] == [
        "failed", "3", f"{ensemble.manifest.workspace}/01/14",
    ]  # fmt: skip
    empty = ("exit_code", "start", "duration_s", "worker", "node")
    assert rows[20]["state"] == "pending" and rows[20]["attempts"] == "0" and not any(rows[20][key] for key in empty)


def test_attempts_and_the_last_one_are_shown(ensemble):
    ensemble.run(7, 104)
    ensemble.run(7, 1, epoch=2)
    row = rows_of(ensemble, where="id == 7")[0]
    assert (row["attempts"], row["state"], row["exit_code"]) == ("3", "finished", "1")  # a finished sample stays so


def test_a_sample_on_a_dead_worker_is_pending(ensemble):
    ensemble.writer.append(Kind.STARTED, 1, 1, 20)
    row = rows_of(ensemble, where="id == 20")[0]
    assert (row["state"], row["attempts"], row["exit_code"], row["duration_s"]) == ("pending", "1", "", "")


def test_a_query_chooses_sorts_and_limits(ensemble):
    assert [row["id"] for row in rows_of(ensemble, where="X > 0.3 and state == 'failed'")] == [str(i) for i in range(30, 40)]
    rows = rows_of(ensemble, where="KIND == 'b'", sort=("-X",), limit=3, columns=("X", "id"))
    assert rows == [{"X": "0.975", "id": "39"}, {"X": "0.925", "id": "37"}, {"X": "0.875", "id": "35"}]
    assert [row["id"] for row in rows_of(ensemble, limit=2)] == ["0", "1"]
    assert [row["id"] for row in rows_of(ensemble, sort=("exit_code", "-id"), limit=2)] == ["29", "28"]
    assert rows_of(ensemble, steps=("sim",)) == rows_of(ensemble, steps=("sim_X.1",)) == rows_of(ensemble)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_size_of_a_block_changes_nothing(ensemble, monkeypatch, size):
    for query in ({}, {"where": "X > 0.2", "sort": ("KIND", "-X")}, {"limit": 9, "where": "id > 3"}):
        expected = rows_of(ensemble, **query)
        with monkeypatch.context() as patch:
            patch.setattr(sample_rows, "BLOCK", size)
            assert rows_of(ensemble, **query) == expected
        rows = StudySamples(ensemble.root).rows(Query(**query))
        blocks = [row for block in rows.blocks(size=size) for row in block.rows()]
        assert blocks == [row for block in rows.blocks() for row in block.rows()]


def test_the_columns_of_result_files_that_no_chosen_row_needs_are_empty(ensemble):
    """Given a condition that no sample fulfils, then the table has its header, as that of a condition on the files has."""
    assert rows_of(ensemble, read=("r.json",), where="X > 99", columns=("X", "y"), sort=("y",)) == []


def test_a_number_with_a_leading_zero_names_something():
    type_ = ColumnType()
    type_.add(["1", "01", "2"])
    assert type_.name == "text"
    for values, name in ((["1", "0", "-2"], "integer"), (["0.5", "-0.25", "0e1"], "number"), (["-007"], "text")):
        type_ = ColumnType()
        type_.add(values)
        assert type_.name == name


def test_a_wrong_query_has_a_message(ensemble):
    for query, error, message in (
        ({"where": "Z > 1"}, ExpressionError, "there is no column 'Z'"),
        ({"columns": ("exit_kode",)}, ExpressionError, "There is no column 'exit_kode'; did you mean 'exit_code'?"),
        ({"sort": ("-Z",)}, ExpressionError, "There is no column 'Z'"),
        ({"steps": ("simm",)}, StudyError, "There is no step 'simm' in the study; did you mean 'sim'?"),
        ({"read": ("/etc/passwd",)}, ExpressionError, "give a path below its directory"),
        ({"read": ("r.json",), "where": "y > 1"}, ExpressionError, "There is no column 'y'"),
    ):
        with pytest.raises(error, match=message.replace("?", ".")):
            rows_of(ensemble, **query)


def test_names_that_are_in_use_get_a_prefix(tmp_path):
    ensemble = Ensemble(tmp_path / "study")
    (ensemble.root / "status.csv").write_text(f"{HEADER}\n{ROW.replace('SPEED', 'state')}\n")
    (ensemble.directory(0) / "r.json").write_text('{"X": 9, "state": "x", "y": 1}')
    (ensemble.directory(0) / "s.txt").write_text("y=2")
    row = rows_of(ensemble, read=("r.json", "s.txt"), where="id == 0")[0]
    assert [row[key] for key in ("param.state", "state", "X", "r.X", "r.state", "y", "s.y")] == [
        "2", "finished", "0.0", "9", "x", "1", "2",
    ]  # fmt: skip


# --- result files ---


def test_results_are_columns_and_their_faults_are_one_warning(ensemble):
    for index in range(10):
        (ensemble.directory(index) / "r.json").write_text(json.dumps({"y": index * 1.5, "list": [index]}))
    (ensemble.directory(3) / "r.json").write_text("{")
    rows = StudySamples(ensemble.root).rows(Query(read=("r.json",), where="y > 3 or id in (3, 21)"))
    values = [row for block in rows.blocks() for row in zip(block.values["id"], block.values["y"], strict=True)]
    assert values == [(3, None), *((i, i * 1.5) for i in range(4, 10)), (21, None)]
    (warning,) = rows.warnings
    assert "--read r.json: 26 samples without a readable file" in warning  # 35 have ended, 9 have a sound file
    assert f"The first: '{ensemble.directory(3)}/r.json': Expecting" in warning
    assert rows_of(ensemble, read=("r.json",), sort=("-y",), limit=1)[0]["list"] == "[9]"


def test_each_file_is_read_once(ensemble, monkeypatch):
    for index in range(10):
        (ensemble.directory(index) / "r.json").write_text(json.dumps({"y": index}))
    paths = []
    read = result_files.read_result
    monkeypatch.setattr(result_files, "read_result", lambda path: paths.append(path) or read(path))
    rows = StudySamples(ensemble.root).rows(Query(read=("r.json",), where="id < 5", sort=("-y",)))
    assert [block.values["y"] for block in rows.blocks()] == [[4, 3, 2, 1, 0]]
    assert len(paths) == 5  # those that the condition excludes are not read


# --- files ---


def written(ensemble: Ensemble, name: str, **query) -> Path:
    path = ensemble.root / name
    table_files.write_table(StudySamples(ensemble.root).rows(Query(**query)), path)
    return path


def test_json_has_numbers_and_nulls(ensemble):
    (ensemble.directory(0) / "r.json").write_text('{"y": NaN, "z": [1], "t": true}')
    path = written(ensemble, "t.json", read=("r.json",))
    table = json.loads(path.read_text())
    assert len(table) == 40 and len(path.read_text().splitlines()) == 42  # a line for each row
    assert table[1]["X"] == 0.025 and table[1]["KIND"] == "b" and table[1]["SPEED"] == 2 and table[20]["exit_code"] is None
    assert (table[0]["y"], table[0]["z"], table[0]["t"], table[1]["t"]) == (None, [1], True, None)
    assert json.loads(written(ensemble, "none.json", where="id < 0").read_text()) == []


def test_npy_is_a_structured_array(ensemble):
    array = np.load(written(ensemble, "t.npy"))
    assert len(array) == 40 and array["X"].tolist() == [i / 40 for i in range(40)]
    assert array["id"].dtype == np.int64 and array["exit_code"].dtype == np.float64 and np.isnan(array["exit_code"][20])
    assert array["KIND"].tolist() == ["a", "b"] * 20 and array["node"][20] == ""
    assert len(np.load(written(ensemble, "none.npy", where="id < 0"))) == 0


def test_parquet_keeps_types_and_gaps(ensemble):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(ensemble, "t.parquet")).to_pydict()
    assert table["X"][1] == 0.025 and table["exit_code"][20] is None and table["exit_code"][39] == 3
    assert table["KIND"][:2] == ["a", "b"]
    (ensemble.directory(0) / "r.json").write_text('{"z": [1], "t": true, "m": "a"}')
    (ensemble.directory(1) / "r.json").write_text('{"m": 5}')
    table = parquet.read_table(written(ensemble, "r.parquet", read=("r.json",))).to_pydict()
    assert (table["z"][0], table["t"][:2], table["m"][:2]) == ("[1]", [True, None], ["a", "5"])


def test_values_keep_their_text_in_csv(ensemble):
    rows = ["1e-3,a\n", "0.10,b\n"] * 20
    (ensemble.plan.info / "samples.csv").write_text("".join(rows))
    assert [row["X"] for row in rows_of(ensemble)][:2] == ["1e-3", "0.10"]
    (ensemble.plan.info / "samples.csv").write_text("".join(["1_0,a\n", "2,b\n"] * 20))
    for identity in ensemble.plan.info.glob("samples.csv.*.json"):
        identity.unlink()
    assert json.loads(written(ensemble, "t.json").read_text())[1]["X"] == "2"  # one value is no number


def test_a_file_that_cannot_be_written_has_a_message(ensemble, monkeypatch):
    for name, message in (("t.xlsx", "'.xlsx' is no format; use .csv"), ("t", "it has no suffix"), ("no/t.csv", "create it first")):
        with pytest.raises(ExpressionError, match=message):
            table_files.check_file(ensemble.root / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'maestro-celery-plugin\[table\]'"):
        table_files.check_file(ensemble.root / "t.parquet")


# --- commands ---


def call(*words: str):
    return CliRunner().invoke(main, words)


def test_the_command_prints_csv_into_a_pipe_and_writes_files(ensemble, tmp_path):
    answer = call("samples", str(ensemble.root), "--columns", "id, X", "--limit", "2")
    assert answer.stdout == "id,X\n0,0.0\n1,0.025\n" and answer.exit_code == 0
    answer = call("samples", str(ensemble.root), "-o", str(tmp_path / "t.json"), "--where", "X >= 0.5", "--sort", "-X")
    assert "20 rows with 14 columns" in answer.stderr and json.loads((tmp_path / "t.json").read_text())[0]["id"] == 39
    one = call("samples", str(ensemble.root), "-o", str(tmp_path / "t.csv"), "--where", "id == 3", "--columns", "id")
    assert one.stderr.startswith("1 row with 1 column:")
    answer = call("samples", str(ensemble.root), "--where", "0 < X < 1")
    assert answer.exit_code == 1 and "join them with 'and'" in answer.stderr and "Traceback" not in answer.stderr


def test_the_table_fits_the_terminal(ensemble):
    out = io.StringIO()
    rows = StudySamples(ensemble.root).rows(Query())
    print_rows(rows, Console(file=out, width=80), limit=5, chosen=False)
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines[:6])
    assert lines[0].split()[:7] == ["record", "id", "state", "exit_code", "SPEED", "X", "KIND"]
    assert len(lines) == 9, lines
    assert "35 more of 40 rows" in lines[7] and lines[8].startswith("Not shown: ")


def test_chosen_columns_are_whole(ensemble):
    out = io.StringIO()
    rows = StudySamples(ensemble.root).rows(Query(columns=("directory", "start", "id"), limit=1))
    print_rows(rows, Console(file=out, width=20), limit=5, chosen=True)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and f"{ensemble.manifest.workspace}/00/00  20" in lines[1]


def test_no_row_is_said(ensemble):
    out = io.StringIO()
    print_rows(StudySamples(ensemble.root).rows(Query(where="id > 99")), Console(file=out), limit=5, chosen=False)
    assert out.getvalue() == "No sample matches.\n"


# --- failures ---


def test_failures_are_grouped_and_distinguished(ensemble):
    for index in range(30, 40):
        text = f"at {ensemble.directory(index)}\nsolver diverged at step {index * 3}\n"
        (ensemble.directory(index) / "sim.err").write_text(text)
    ensemble.run(2, -9, epoch=2)  # after success: stays finished
    answer = call("failed", str(ensemble.root))
    assert "sim: 10 of 35 samples have failed" in answer.stdout
    assert "10  exit code 3: solver diverged at step 90" in answer.stdout
    assert "10 of 10 have X > 0.7" in answer.stdout and "0 of 25 that finished" in answer.stdout
    assert "first: sim_X.1  sample 30" in answer.stdout
    (step,) = json.loads(call("failed", "--json", str(ensemble.root)).stdout)
    assert step["groups"][0]["count"] == 10 and step["groups"][0]["rules"][0]["of_others"] == 25
    assert step["columns"] == ["X", "KIND"]


def test_failures_that_nothing_distinguishes_are_honest(ensemble):
    ensemble.run(21, 7)
    answer = call("failed", str(ensemble.root))
    assert "1  exit code 7, nothing on stderr" in answer.stdout
    assert "Nothing distinguishes it clearly from those that finished: X, KIND" in answer.stdout


def test_a_study_without_failures_says_so(tmp_path):
    plan, _ = a_study(tmp_path / "study")
    plan.ledger.mkdir()
    assert call("failed", str(plan.root)).stdout == "No sample has failed.\n"
    assert call("failed", "--json", str(plan.root)).stdout == "[]\n"


def test_stderr_beyond_a_limit_is_not_read_and_not_compared(ensemble, monkeypatch):
    monkeypatch.setattr(failure_groups, "STDERR_LIMIT", 8)
    (step,) = failure_groups.step_failures(StudySamples(ensemble.root))
    assert (step.failed, step.unread, step.groups[0].count) == (10, 2, 8)
    assert step.groups[0].rules[0].others == 25
    out = io.StringIO()
    print_failures([step], Console(file=out, width=200))
    assert "The stderr of 2 more failed samples was not read" in out.getvalue()


# --- Python ---


def test_samples_in_python_are_typed(ensemble):
    (ensemble.directory(1) / "r.json").write_text('{"y": "2.5"}')
    samples = Study(ensemble.root).samples("id <= 1", read="r.json", columns=["id", "X", "y"])
    assert samples.columns == ["id", "X", "y"] and len(samples) == 2 and len(samples.warnings) == 1
    first, second = samples
    assert (first.id, first.values, first.parameters, first.results) == (0, {"X": 0.0, "KIND": "a"}, {"SPEED": 2}, {"y": None})
    assert second.results == {"y": 2.5} and second.directory == ensemble.directory(1) and second.attempts == 1
    assert samples.to_numpy().dtype.names == ("id", "X", "y")
    samples.write(ensemble.root / "t.csv")
    assert (ensemble.root / "t.csv").read_text() == "id,X,y\n0,0.0,\n1,0.025,2.5\n"


def test_pandas_is_needed_for_a_frame_only(ensemble, monkeypatch):
    samples = Study(ensemble.root).samples("id <= 1")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        samples.to_pandas()


def test_a_frame_has_the_columns(ensemble):
    pytest.importorskip("pandas")
    frame = Study(ensemble.root).samples("id in (1, 20)").to_pandas()
    assert frame["X"].tolist() == [0.025, 0.5] and frame["state"].tolist() == ["finished", "pending"]
    assert frame["exit_code"].isna().tolist() == [False, True]


def test_reading_a_study_imports_neither_celery_nor_maestro(ensemble):
    program = f"""
import sys
import maestro_celery_plugin
assert not {{"numpy", "click", "maestro_celery_plugin.api"}} & set(sys.modules), "the package imports its parts"
from maestro_celery_plugin import Study
study = Study({str(ensemble.root)!r})
study.status(); list(study.samples("X > 0.5")); study.explain(); study.failures()
heavy = {{"celery", "kombu", "redis", "maestrowf", "pandas", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


# --- rows that are read at once ---


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60.0).reshape(20, 3) / 7,
        np.asfortranarray(np.arange(60.0).reshape(20, 3) / 7),
        (np.arange(60).reshape(20, 3) / 7).astype(np.float32),
        np.arange(60).reshape(20, 3).astype(str),
    ],
)
def test_rows_of_an_array_are_those_of_single_reads(tmp_path, array):
    np.save(tmp_path / "t.npy", array)
    check_rows(open_table(tmp_path / "t.npy", ["A", "B", "C"], tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "".join(f"{i},{i / 7},c{i}\n" for i in range(20))),
        ("t.csv", "# c\n" + "".join(f'"{i}\n,",{i / 7},"c""{i}"\n\n# c\n' for i in range(20))),
        ("t.csv", "A,B,C\r\n" + "\r\n".join(f"{i},é,c{i}" for i in range(20))),
        ("t.tab", "".join(f"{i}  {i / 7}\tc\n" for i in range(20))),
    ],
)
def test_rows_of_a_text_file_are_those_of_single_reads(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    check_rows(open_table(tmp_path / name, ["A", "B", "C"], tmp_path))


def check_rows(table) -> None:
    single = [list(table.row(index)) for index in range(20)]
    assert [list(row) for row in rows_at(table, list(range(20)))] == single
    assert [list(row) for row in rows_at(table, list(range(3, 9)))] == single[3:9]
    assert [list(row) for row in rows_at(table, [2, 3, 5, 6])] == [single[i] for i in (2, 3, 5, 6)]
    assert [list(row) for row in rows_at(table, [0, 19])] == [single[0], single[19]]
    assert rows_at(table, []) == []


def test_rows_of_a_changed_file_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("1\n2\n3\n")
    table = open_table(tmp_path / "t.csv", ["A"], tmp_path)
    for text in ("1\n", "1\n2\n30\n"):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(SampleError, match="has changed since the launch"):
            rows_at(table, [0, 1, 2])


def test_a_table_of_an_extension_is_read_row_by_row():
    class Table:
        width = 1

        def __len__(self) -> int:
            return 9

        def row(self, index: int) -> list[str]:
            return [str(index)]

    assert rows_at(Table(), [1, 2, 4]) == [["1"], ["2"], ["4"]]


@pytest.mark.parametrize(("count", "width"), [(1, 25), (20, 25), (25, 25), (26, 25), (1000, 25), (700, 3), (9, 2)])
def test_paths_of_many_samples_are_those_of_each(count, width):
    paths = SamplePaths(count, width)
    assert list(paths.of_many(range(count))) == list(paths.all())
    some = [0, count // 2, count - 1]
    assert list(paths.of_many(some)) == [paths.of(index) for index in some]


def test_groups_with_one_cause_are_each_compared_with_what_finished(ensemble):
    for index in range(30, 40, 2):
        (ensemble.directory(index) / "sim.err").write_text("nan in the mesh\n")
    (step,) = failure_groups.step_failures(StudySamples(ensemble.root))
    assert [(group.count, group.line) for group in step.groups] == [(5, "nan in the mesh"), (5, "")]
    for group in step.groups:
        assert group.rules[0].words.startswith("X > 0.7") and group.rules[0].others == step.finished == 25


def test_groups_are_compared_with_each_other_if_nothing_finished(tmp_path):
    ensemble = Ensemble(tmp_path / "study")
    for index in range(25):
        ensemble.writer.append(Kind.RERUN, 1, 1, index)
        ensemble.writer.append(Kind.SENT, 1, 2, index, index + 1)
        ensemble.run(index, 5, epoch=2)
    (step,) = failure_groups.step_failures(StudySamples(ensemble.root))
    assert (step.failed, step.finished) == (35, 5)
    for index in range(25, 30):
        ensemble.writer.append(Kind.RERUN, 1, 1, index)
        ensemble.run(index, 5, epoch=2)
    (step,) = failure_groups.step_failures(StudySamples(ensemble.root))
    assert (step.failed, step.finished, [group.count for group in step.groups]) == (40, 0, [30, 10])
    out = io.StringIO()
    print_failures([step], Console(file=out, width=200))
    assert "30 of 30 have X < 0.7" in out.getvalue() and "0 of 10 others" in out.getvalue()
