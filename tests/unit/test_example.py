"""Examples: `maestro-celery example` lists them and writes one of them; they are the project's own specifications."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support import ROOT

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.cli.example import examples
from maestro_celery_plugin.maestro.validation import validate
from maestro_celery_plugin.spec.problems import Kind

SPECS = {path.stem: path for path in (ROOT / "specs").glob("*.yaml")}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["example", *words])


@pytest.mark.parametrize("words", [[], ["list"]])
def test_without_a_name_each_example_has_one_line(run, words):
    lines = run(*words).stdout.splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines[: lines.index("")])
    assert rows == {name: yaml.safe_load(path.read_text())["description"]["description"] for name, path in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
def test_an_example_is_complete_and_can_be_launched(run, name, tmp_path):
    """Given the files of an example, then its specification finds the others, and the command that is printed has its path."""
    answer = run(name, "--path", "new/my examples")
    copy = Path("new", "my examples", name, f"{name}.yaml")
    assert answer.stdout.splitlines()[-1].strip() == f"maestro run {shlex.quote(str(copy))}"
    assert copy.read_bytes() == SPECS[name].read_bytes()
    mentioned = set(re.findall(r"\$\(SPECROOT\)/(\S+?\.py)", copy.read_text()))
    assert {path.name for path in copy.parent.iterdir()} == {copy.name, *mentioned}
    assert all((copy.parent / script).read_bytes() == (ROOT / "specs" / script).read_bytes() for script in mentioned)
    assert not [finding for finding in validate(str(copy)) if finding.problem.kind is Kind.FAULT]


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "hello").mkdir()
    answer = run("hello")
    assert answer.exit_code == 1
    assert answer.stderr == "maestro-celery: error: 'hello' exists; use another directory with --path.\n"
    assert not any((tmp_path / "hello").iterdir())


def test_an_unknown_example_has_a_suggestion(run):
    answer = run("helo")
    assert answer.exit_code == 1
    assert answer.stderr == "maestro-celery: error: There is no example 'helo'; did you mean 'hello'?\n"
    assert set(examples()) == set(SPECS)
