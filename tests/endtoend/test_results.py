"""The results of a real study with failures and retries, read by the commands and in Python."""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
from pathlib import Path

import numpy as np
import pytest
from support import PATIENCE_S, kill, processes_of, wait_for

from maestro_celery_plugin import EnsembleError, ExpressionError, StudyCode, StudyError, StudyTimeoutError
from maestro_celery_plugin import Study as PythonStudy

SPEC = """
    description: {{name: sweep, description: d}}
    batch: {{type: local, shell: /bin/sh}}
    env: {{variables: {{SCALE: 2}}}}
    study:
      - name: sim
        description: d
        run:
          max_retries: 2
          retry_delay: 0
          cmd: |
            test -f tried || {{ touch tried; test $(MERLIN_SAMPLE_ID) -ne 4 || exit $(MERLIN_RETRY); }}
            echo '{{"y": '$(X)', "speed": '$(SPEED)$(SCALE)', "fit": {{"ok": true}}}}' > result.json
            echo "n=$(MERLIN_SAMPLE_ID)" > more.txt
            test $(MERLIN_SAMPLE_ID) -lt 30 || {{ echo "diverged at step 1$(MERLIN_SAMPLE_ID)" >&2; rm result.json; exit 3; }}
      - name: post
        description: d
        run: {{cmd: exit 0, depends: [sim_*]}}
    merlin:
      resources: {{workers: {{w: {{args: --concurrency 2, steps: [all]}}}}}}
      samples: {{file: {table}, column_labels: [X, KIND]}}
    global.parameters:
      SPEED: {{values: [1, 2], label: SPEED.%%}}
"""


@pytest.fixture
def specification(tmp_path: Path) -> Path:
    """A study of 2 x 40 samples; those from 30 on fail, and sample 4 requests another run."""
    (tmp_path / "table.csv").write_text("".join(f"{i / 40},{'ab'[i % 2]}\n" for i in range(40)))
    path = tmp_path / "sweep.yaml"
    path.write_text(textwrap.dedent(SPEC.format(table=tmp_path / "table.csv")))
    return path


def test_results_are_read_by_the_commands_and_in_python(run, specification, tmp_path):
    study = run(specification, "-s", "1", foreground=True)

    # Then the table has one row for each sample of each step record, with what the samples have written.
    answer = study.command("maestro-celery", "samples", "--read", "result.json", "--read", "more.txt", str(study.path))
    rows = list(csv.DictReader(io.StringIO(answer.stdout)))
    sim = [row for row in rows if row["step"] == "sim"]
    assert len(sim) == 80 and len(rows) == 81, answer.stderr
    assert [row["X"] for row in sim] == 2 * [str(i / 40) for i in range(40)]
    finished = [row for row in sim if row["state"] == "finished"]
    assert len(finished) == 60 and all(row["exit_code"] == "0" and row["y"] == row["X"] for row in finished)
    assert {row["speed"] for row in finished} == {"12", "22"} and {row["fit.ok"] for row in finished} == {"true"}
    failed = [row for row in sim if row["state"] == "failed"]
    assert len(failed) == 20 and all(row["exit_code"] == "3" and row["y"] == "" for row in failed)
    assert [row["attempts"] for row in sim if row["id"] == "4"] == ["2", "2"]
    assert {row["attempts"] for row in sim if row["id"] != "4"} == {"1"}
    assert all(Path(row["directory"]).is_dir() and row["n"] == row["id"] for row in sim)
    assert all(row["node"] and row["worker"].startswith("w-") and float(row["duration_s"]) > 0 for row in sim)
    # And one warning counts the failed samples and the step without the file.
    warnings = [line for line in answer.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 2 and "21 samples without a readable file" in warnings[0], answer.stderr

    # And the same table is written into files.
    for suffix in (".json", ".npy", ".csv"):
        path = tmp_path / f"out{suffix}"
        answer = study.command(
            "maestro-celery", "samples", "-o", str(path), "--read", "result.json",
            "--where", "y >= 0.5 and state == \"finished\" and SPEED == 2", "--sort=-X", str(study.path),
        )  # fmt: skip
        assert "10 rows" in answer.stderr, answer.stderr
    table = json.loads((tmp_path / "out.json").read_text())
    assert [row["id"] for row in table] == list(range(29, 19, -1))
    assert table[0]["y"] == 0.725 and table[0]["KIND"] == "b" and table[0]["fit.ok"] is True
    array = np.load(tmp_path / "out.npy")
    assert array["X"].tolist() == [row["X"] for row in table] and array["exit_code"].dtype == np.int64

    # And the failures have one group, whose range is found.
    answer = study.command("maestro-celery", "failed", str(study.path))
    assert "sim: 20 of 80 samples have failed" in answer.stdout
    assert "20 of 20 have X > 0.7" in answer.stdout and "0 of 60 that finished" in answer.stdout, answer.stdout
    assert "diverged at step 130" in answer.stdout and answer.stdout.count("first:") == 1

    # And Python gives the same.
    own = PythonStudy(study.path)
    samples = own.samples("state == 'finished' and X < 0.1", read="result.json", steps=["sim"])
    rows = list(samples)
    assert len(samples) == len(rows) == 8
    assert rows[1].values == {"X": 0.025, "KIND": "b"} and rows[1].parameters == {"SPEED": 1}
    assert rows[1].results == {"y": 0.025, "speed": 12, "fit.ok": True}
    assert samples.to_numpy()["y"].tolist() == [row.results["y"] for row in rows]
    assert own.status().failed_samples == 20 and own.wait(timeout=PATIENCE_S) is StudyCode.FAILED_SAMPLES
    assert any("sim" in title for title, _ in own.explain())
    (group,) = own.failures()[0].groups
    assert group.count == 20 and group.rules[0].false_hits == 0


def test_a_study_is_launched_awaited_cancelled_and_resumed_in_python(specification, tmp_path, monkeypatch, environment):
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", environment["HOME"])
    monkeypatch.setenv("PATH", environment["PATH"])  # as in a notebook, whose environment is not activated
    text = specification.read_text().replace("test -f tried ||", "sleep $(PAUSE); test -f tried ||")
    specification.write_text(text.replace("SCALE: 2", "SCALE: 2, PAUSE: 0"))
    study = PythonStudy.launch(
        specification, vars={"PAUSE": 300}, out=tmp_path / "study", options=["-s", "1"]
    )  # a sample takes 300 seconds
    try:
        assert study.path == tmp_path / "study"
        with pytest.raises(StudyTimeoutError, match=r"still runs after 0\.5 s"):
            study.wait(timeout=0.5)
        wait_for(lambda: len(study.samples("state == 'running'")), "a sample that runs")
        study.cancel()
        assert study.wait(timeout=PATIENCE_S) is StudyCode.UNSUCCESSFUL
        assert len(study.samples("state == 'pending'")) >= 40  # of the step records that were submitted

        (tmp_path / "corrected.yaml").write_text(specification.read_text().replace("sleep $(PAUSE)", "true"))
        output = study.resume(specification=tmp_path / "corrected.yaml", options=["-s", "1"])
        assert "This will run:" in output
        assert study.wait(timeout=PATIENCE_S) is StudyCode.FAILED_SAMPLES
        assert len(study.samples("state == 'failed'")) == 20

        assert "20" in study.resume(failed=True, steps=())
        assert study.wait(timeout=PATIENCE_S) is StudyCode.FAILED_SAMPLES
        assert {row.attempts for row in study.samples("state == 'failed'", columns=["id"])} == {2}
    finally:
        kill(*processes_of(str(study.path)))


def test_errors_in_python_are_those_of_the_plugin(specification, tmp_path):
    with pytest.raises(StudyError, match="is not the directory of a Maestro study"):
        PythonStudy(tmp_path)
    with pytest.raises(StudyError, match=r"cannot be read .No such file or directory"):
        PythonStudy.launch(tmp_path / "none.yaml")
    specification.write_text(specification.read_text().replace("column_labels", "colum_labels"))
    with pytest.raises(StudyError, match="did you mean 'column_labels'"):
        PythonStudy.launch(specification, out=tmp_path / "refused")
    assert issubclass(ExpressionError, EnsembleError)


def test_a_study_is_found_where_maestro_has_put_it(specification, tmp_path, monkeypatch, environment):
    monkeypatch.setenv("HOME", environment["HOME"])
    monkeypatch.chdir(tmp_path)
    specification.write_text(specification.read_text().replace("SCALE: 2", "SCALE: 2, OUTPUT_PATH: ./out put"))
    study = PythonStudy.launch("sweep.yaml", vars={"SCALE": 3}, options=["-s", "1"])
    try:
        assert study.path.parent == tmp_path / "out put" and study.path.name.startswith("sweep_")
        assert study.wait(timeout=PATIENCE_S) is StudyCode.FAILED_SAMPLES
        (row,) = study.samples("id == 0 and SPEED == 1", read="result.json")
        assert row.results["speed"] == 13
    finally:
        kill(*processes_of(str(study.path)))
