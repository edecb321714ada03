"""What a specification of Merlin means here, and the edits that give Merlin's results."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support import ROOT

from maestro_celery_plugin.broker.choice import ENVIRONMENT_VARIABLE
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.spec.merlin_conversion import Kind, convert

SPEC = """\
description: {name: s, description: d}  # a comment

env:
    variables:
        OUTPUT_PATH: ./studies   # where studies are created
        RESULTS: $(SPECROOT)/$(OUTPUT_PATH)/results
study:
    - name: sim
      description: d
      run:
          # what it does
          cmd: |
              run $(size) > $(OUTPUT_PATH)/$(RESULTS)
              echo "done"
          task_queue: q
    - {name: post, description: d, run: {cmd: 'ls "$(OUTPUT_PATH)"', depends: [sim]}}
merlin:
    samples: {file: x.csv, column_labels: [SIZE]}
"""

CONVERTED = """\
description: {name: s, description: d}  # a comment

env:
    variables:
        OUTPUT_PATH: ./studies   # where studies are created
        RESULTS: $(SPECROOT)/./studies/results
study:
    - name: sim
      description: d
      run:
          # what it does
          max_failures: 100%
          cmd: |
              run $(SIZE) > ./studies/$(RESULTS)
              echo "done"
          task_queue: q
    - {name: post, description: d, run: {max_failures: 100%, cmd: 'ls "./studies"', depends: [sim]}}
merlin:
    samples: {file: x.csv, column_labels: [SIZE]}
"""


def spec(run: str, rest: str = "") -> str:
    return f"description: {{name: s, description: d}}\nstudy:\n- name: a\n  description: d\n  run:\n{run}\n{rest}"


def found(text: str) -> list[tuple[int, str, Kind]]:
    return [(finding.line, finding.where, finding.kind) for finding in convert(text, "x.yaml").findings]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_comments_order_and_layout_stay(newline):
    converted = convert(SPEC.replace("\n", newline), "x.yaml").text

    assert converted == CONVERTED.replace("\n", newline)


def test_each_change_has_its_line_and_key():
    assert found(SPEC) == [
        (6, "env.variables.RESULTS", Kind.CHANGED),
        (12, "study.sim.run", Kind.CHANGED),
        (13, "study.sim.run.cmd", Kind.CHANGED),
        (13, "study.sim.run.cmd", Kind.CHANGED),
        (16, "study.post.run", Kind.CHANGED),
        (16, "study.post.run.cmd", Kind.CHANGED),
    ]


def test_variables_that_samples_read_from_the_environment_are_found():
    """Given variables of `env` that Merlin's workers put into the environment, then each use of them has a finding."""
    env = "env: {variables: {OUTPUT_PATH: o, SIZE: 1, OMP_NUM_THREADS: 4, OWN: 2}}"
    cmd = "    cmd: |\n      echo $SIZE ${SIZE} $(SIZE) $OWN $OUTPUT_PATH $SIZES\n      OWN=1\n    restart: run $SIZE"

    findings = convert(spec(cmd, env), "x.yaml").findings

    assert [(finding.line, finding.where) for finding in findings if finding.kind is Kind.BY_HAND] == [
        (7, "study.a.run.cmd"),
        (9, "study.a.run.restart"),
        (10, "env.variables.OMP_NUM_THREADS"),
    ]
    assert findings[1].text.startswith("'$SIZE' has no value here; Merlin's workers set it to that in env; write `export SIZE=$(SIZE)`")


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/fixtures/merlin/*.yaml")), ids=lambda path: path.stem)
def test_a_second_conversion_changes_nothing(path: Path):
    once = convert(path.read_text(), path.name)
    twice = convert(once.text, path.name)

    assert once.text != path.read_text()
    assert twice.text == once.text
    assert all(finding.kind is not Kind.CHANGED for finding in twice.findings)


def test_without_an_output_path_the_directory_above_the_study_is_meant():
    once = convert(spec("    cmd: ls $(OUTPUT_PATH)"), "x.yaml").text

    assert yaml.safe_load(once)["study"][0]["run"]["cmd"] == "ls $(OUTPUT_PATH)/.."
    assert convert(once, "x.yaml").text == once


def test_a_block_that_steps_share_gets_the_key():
    text = textwrap.dedent("""\
        description: {name: s, description: d}
        user:
          run: &shared
            cmd: ls
        study:
        - {name: a, description: d, run: *shared}
        - {name: b, description: d, run: *shared}
        - name: c
          description: d
          run:
            <<: *shared
            task_queue: q
    """)
    converted = convert(text, "x.yaml").text

    assert converted.count("max_failures") == 2  # in the shared block, and in the step that adds to it
    assert [step["run"]["max_failures"] for step in yaml.safe_load(converted)["study"]] == ["100%"] * 3


def test_a_limit_of_failures_stays():
    text = spec("    cmd: ls\n    max_failures: 3")

    assert convert(text, "x.yaml").text == text
    assert found(text) == []


@pytest.mark.parametrize(
    ("run", "rest", "expected"),
    [
        ("    cmd: merlin run x.yaml --vars A=1", "", [(6, "study.a.run.cmd", Kind.NOTE)]),
        ("    cmd: merlin server start", "", [(6, "study.a.run.cmd", Kind.BY_HAND)]),
        ("    cmd: ls", "env: {sources: [setup.sh]}", [(8, "env.sources", Kind.NOTE)]),
        ("    cmd: ls", "env: {sources: }", []),
        ("    cmd: |\n      ls\n      merlin $(TYPE) x", "", [(8, "study.a.run.cmd", Kind.BY_HAND)]),
        ("    cmd: echo a merlin workflow; ls merlin", "", []),
        ("    cmd: exit $(MERLIN_HARD_FAIL)", "", [(6, "study.a.run.cmd", Kind.BY_HAND)]),
        ("    restart: exit $(MERLIN_STOP_WORKERS)\n    cmd: ls", "", [(6, "study.a.run.restart", Kind.NOTE)]),
        ("    cmd: ls\n    pre: a\n    post: b\n    priority: LOW", "",
         [(7, "study.a.run.pre", Kind.BY_HAND), (8, "study.a.run.post", Kind.BY_HAND), (9, "study.a.run.priority", Kind.NOTE)]),
        ("    cmd: ls\n    batch: {type: local}\n    pre:", "", [(7, "study.a.run.batch", Kind.NOTE)]),
        ("    cmd: ls", "batch: {type: pbs}", [(8, "batch.type", Kind.BY_HAND)]),
        ("    cmd: ls", "batch: {type: slurm}", [(8, "batch", Kind.NOTE)]),
        ("    cmd: ls", "merlin: {resources: {workers: {w: {batch: {type: flux}}}}}",
         [(8, "merlin.resources.workers.w.batch", Kind.NOTE)]),
    ],
)  # fmt: skip
def test_what_only_the_user_can_decide(run, rest, expected):
    assert found(spec(f"{run}\n    max_failures: 1", rest)) == expected


@pytest.mark.parametrize("text", ["", "a: [1", "study: 3", "description: {name: s}\nstudy: []", "- 1"])
def test_what_is_no_specification_has_one_line(text):
    with pytest.raises(SpecificationError, match=r"^x\.yaml: "):
        convert(text, "x.yaml")


@pytest.mark.parametrize(
    "rest",
    ["merlin: {samples: [1]}", "merlin: {samples: {column_labels: X}}", "batch: {type: [slurm]}", "env:", "merlin:"],
)
def test_what_else_is_wrong_in_a_specification_stays(rest):
    text = spec("    cmd: ls $(x)", rest)

    assert convert(text, "x.yaml").text == text.replace("    cmd", "    max_failures: 100%\n    cmd")


def test_a_layout_that_cannot_be_edited_is_refused():
    """Given a key that is written with a question mark, then the key before it would change its meaning."""
    text = spec("    ? cmd\n    : ls")

    with pytest.raises(SpecificationError, match=r"^x\.yaml: the layout .* make them by hand: study\.a\.run\.$"):
        convert(text, "x.yaml")


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "redis://:secret@example.org/0")
    path, output = tmp_path / "study.yaml", tmp_path / "new.yaml"
    path.write_text(SPEC)
    (tmp_path / "workers.sbatch").write_text("#!/bin/bash\nmerlin run-workers study.yaml\n")

    def call(*words):
        answer = CliRunner().invoke(main, ["convert", *map(str, words)])
        return answer.exit_code, answer.output

    code, text = call(path)
    assert code == 0
    assert f"{path}:12: study.sim.run: changed: added 'max_failures: 100%'" in text
    assert "workers.sbatch:2: note: " in text
    assert f"broker: note: studies use redis://:***@example.org/0, from {ENVIRONMENT_VARIABLE}; " in text
    assert text.splitlines()[-1] == f"{path}: unchanged; `-o FILE` writes the specification with 6 of these."
    assert call(path, "-o", output)[1].splitlines()[-1] == f"{output}: written, with 6 changes."
    assert output.read_text() == CONVERTED
    assert call(path, "-o", output) == (1, f"maestro-celery: error: --output: '{output}' exists; choose another name, or remove it.\n")  # fmt: skip
    assert call(path, "-o", path) == (1, f"maestro-celery: error: --output: '{path}' is the specification itself; choose another name.\n")  # fmt: skip
    assert path.read_text() == SPEC
    path.write_text(CONVERTED)
    assert call(path)[1].splitlines()[-1] == f"{path}: no change is needed."
    path.write_text(spec("    cmd: exit $(MERLIN_HARD_FAIL)"))
    assert call(path)[0] == 3
    path.write_bytes(b"# \xe9")
    assert call(path)[0] == 1
    assert call(tmp_path / "missing")[0] == 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("OUTPUT_PATH: ./studies", "OUTPUT_PATH: <INSERT PATH>"), "env.variables.OUTPUT_PATH: to do: "),
        (("task_queue: q", "task_que: q"), "study.sim.run: to do: unknown key 'task_que'; did you mean 'task_queue'?"),
        (("echo", "printf"), ""),
    ],
)
def test_what_would_stop_the_launch_is_left_to_do(tmp_path, monkeypatch, change, fault):
    """Given a placeholder or a misspelt key, which stays, then the exit code does not say that nothing is left to do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "study.yaml"
    path.write_text(SPEC.replace(*change))

    answer = CliRunner().invoke(main, ["convert", str(path)])

    assert answer.exit_code == (3 if fault else 0)
    assert fault in answer.output
    assert [text for text in answer.output.splitlines() if "to do" in text] == [
        text for text in answer.output.splitlines() if fault and fault in text
    ]


@pytest.mark.parametrize(("name", "problem"), [("missing.yaml", "cannot be read"), (".", "is a directory")])
def test_a_file_that_cannot_be_read_has_a_next_step(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)

    answer = CliRunner().invoke(main, ["convert", name])

    assert answer.exit_code == 1
    assert problem in answer.output
    assert "; give the YAML file of a study." in answer.output
