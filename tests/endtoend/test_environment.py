"""What a launch sets, and the environment that steps see: sampled, not sampled and native ones, also after a resume."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import ROOT, Study

USER = {"VIRTUAL_ENV": "/opt/venv", "CONDA_PREFIX": "/opt/conda", "LOADEDMODULES": "gcc/12:mpi/4"}
MODULE = {"BASH_FUNC_module%%": "() { echo loaded $1; }"}
SPEC = """
    description: {name: "of_$(WHO)", description: d}
    env:
      variables: {WHO: nobody, TITLE: t, PLACE: }
      sources: [SETUP]
    study:
      - {name: sim, description: d, run: {cmd: "env -0 > env\\nmodule $SOURCED\\necho '$(TITLE)' $(PLACE) $(X) v1"}}
      - {name: post, description: d, run: {cmd: "env -0 > env\\nmodule $SOURCED", depends: [sim_*]}}
      - {name: native, description: d, run: {cmd: "env -0 > env\\necho $SOURCED", depends: [post]}}
    merlin:
      resources:
        unassigned: maestro
        workers: {a: {args: --pool prefork -c 1, steps: [sim]}, b: {args: -c 1, steps: [post]}}
      samples: {generate: {cmd: exit 1}, file: nowhere.csv, column_labels: [X]}
"""
PLAIN = """
    description: {name: plain, description: d}
    env: {variables: {WHO: nobody, PLACE: }, labels: {GREETING: hello $(WHO)}}
    study:
      - {name: one, description: d, run: {cmd: "echo $(GREETING) at $(PLACE) $SECRET"}}
"""


def variables(path: Path) -> dict[str, str]:
    return dict(text.split("=", 1) for text in path.read_text().split("\0") if text)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "setup.sh").write_text("SOURCED=spack\n")
    (tmp_path / "more.csv").write_text("7\n8\n")
    (tmp_path / ".env").write_text("# mine\nexport SECRET='xyzzy 1'\nPLACE=here # and there\n")
    return tmp_path


def assert_kept_secret(study: Study) -> None:
    """Assert that the secret is only in files for their owner, and in what the steps themselves have written."""
    found = [path for path in study.path.rglob("*") if path.is_file() and path.name != "env" and b"xyzzy 1" in path.read_bytes()]
    assert {path.name for path in found} == {"environment.json", "environment.yaml"}
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_a_launch_and_its_resume_have_the_values_of_the_command_line(run, files, environment):
    """Given variables, samples and an environment in the command line, then all steps have them, also after a resume."""
    environment |= {**USER, **MODULE}
    options = ["--vars", "WHO=ada", "TITLE=a = $HOME", "--samplesfile", "more.csv", "--env-file", ".env"]
    study = run(SPEC.replace("SETUP", str(files / "setup.sh")), *options).await_end()

    assert set(study.states().values()) == {"FINISHED"}, study.output + study.log()
    assert (study.path / "logs" / "of_ada.log").exists()
    assert study.outputs("sim/*/sim.out") == [f"loaded spack\na = $HOME here {x} v1\n" for x in (7, 8)]
    assert study.outputs("post/post.out") == ["loaded spack\n"]
    assert [text.split() for text in study.outputs("native/native*.out")] == [["spack"]]
    documented = set(re.findall(r"^\| `(MAESTRO_CELERY_\w+)`", (ROOT / "docs" / "reference" / "variables.md").read_text(), re.MULTILINE))
    of_all = {"SESSION", "STUDY"}
    for step, own in (("sim/00", {"WORKER", "PROCESS", *of_all}), ("post", {"WORKER", *of_all}), ("native", of_all)):
        seen = variables(study.path / step / "env")
        assert {**seen, **USER, "SECRET": "xyzzy 1", "PLACE": "here"} == seen
        assert {name for name in seen if name.startswith("MAESTRO_CELERY")} == {f"MAESTRO_CELERY_{name}" for name in own}
    assert {f"MAESTRO_CELERY_{name}" for name in ("WORKER", "PROCESS", *of_all)} < documented
    assert_kept_secret(study)

    specification = files / "study.yaml"
    specification.write_text(specification.read_text().replace("v1", "v2"))
    (files / ".env").unlink()
    words = ["resume", "-fg", "--spec", str(specification), "--step", "sim", "--keep-downstream", str(study.path)]
    answer = study.command("maestro-celery", *words)
    assert answer.returncode == 0, answer.stderr
    assert [text.splitlines()[-1] for text in study.outputs("sim/*/sim.out")] == [f"a = $HOME here {x} v2" for x in (7, 8)]
    assert variables(study.path / "sim/00/env")["SECRET"] == "xyzzy 1"
    explained = study.command("maestro-celery", "explain", str(study.path)).stdout.splitlines()
    assert explained[0] == f"Launched with --vars 'TITLE=a = $HOME' --vars WHO=ada --samplesfile {files / 'more.csv'}"
    assert_kept_secret(study)


def test_a_study_without_an_ensemble_has_them_too(run, files):
    study = run(PLAIN, "--env-file", ".env", "--vars", "WHO=ada", "OUTPUT_PATH=unused", foreground=True)

    assert study.code == 0, study.output
    assert [text.split() for text in study.outputs("one/one*.out")] == [["hello", "ada", "at", "here", "xyzzy", "1"]]
    assert [path.stat().st_mode & 0o777 for path in study.path.glob("meta/environment.yaml")] == [0o600]
    assert "xyzzy 1" not in study.output + study.log()
    assert "Launched with --vars WHO=ada --vars OUTPUT_PATH=unused\n" in study.log()
