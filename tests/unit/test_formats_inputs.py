"""Files that users write: whatever they contain, a command ends with a message, and never with a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from damages import check_damages, each_example
from ensembles import a_study
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from maestro_celery_plugin.broker.merlin_configuration import read_merlin
from maestro_celery_plugin.cli import main, merlin_dump
from maestro_celery_plugin.config.user_configuration import configuration_path, read_configuration
from maestro_celery_plugin.errors import BrokerError, ConfigurationError, SampleError, StudyError
from maestro_celery_plugin.maestro import sample_command
from maestro_celery_plugin.maestro.env_file import read_env_file
from maestro_celery_plugin.report.result_files import read_result

SPECIFICATION = (ROOT / "specs" / "hello_samples.yaml").read_text()
APP = "broker:\n  name: rediss\n  server: host\n  port: 6379\n  db_num: 0\n  username: u\n  vhost: v\ncelery:\n  override:\n    visibility_timeout: 86400\n"
CONFIGURATION = "broker: redis://host\nnotify: 'true'\nbatch:\n  '*':\n    type: slurm\n    nodes: 2\n    walltime: 01:00:00\n"
INPUTS: dict[str, tuple[str, Callable[[Path], Any], tuple[type[Exception], ...]]] = {
    "config.yaml": (CONFIGURATION, lambda path: read_configuration(), (ConfigurationError,)),
    "app.yaml": (APP, read_merlin, (BrokerError,)),
    "variables.env": ("A=1\nexport B='x y'\n# c\nC=\"z\"\n", lambda path: read_env_file(str(path)), (StudyError,)),
    "result.json": ('{"a": 1, "b": {"c": [1, 2], "d": "x"}}', read_result, (ValueError, OSError)),
    "result.csv": ("a,b\n1,x\n", read_result, (ValueError, OSError)),
    "result.txt": ("a = 1\nb=2\n", read_result, (ValueError, OSError)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_any_content_is_read_or_refused(tmp_path, monkeypatch, name):
    text, read, errors = INPUTS[name]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = configuration_path() if name == "config.yaml" else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    if name != "app.yaml":  # there is no file with the password
        read(path)

    def check() -> None:
        try:
            read(path)
        except errors as error:
            assert str(error)

    # `result.*` and Merlin's files are read without a limit of time, as users name them.
    check_damages(path, check, examples=10, without=("a pipe", "a device", "a huge file"))


@pytest.mark.parametrize("command", ["validate", "convert"])
def test_any_specification_has_a_message(tmp_path, command):
    path = tmp_path / "study.yaml"
    path.write_text(SPECIFICATION)

    def check() -> None:
        answer = CliRunner().invoke(main, [command, str(path)])
        assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
        assert "Traceback" not in answer.output

    check()
    check_damages(path, check, examples=5, without=("a pipe", "a device", "a huge file"))


LINES = (
    '{"A": 1, "B": "x"}', '{"B": 1.5e300, "A": -0}', "[1, 2]", "[[1, 2], [3, 4]]", '{"A": 1}', '{"A": 1, "B": 2, "C": 3}', '{"A": 1, "A": 2, "B": 3}',
    '{"A": "\\ud800", "B": 1}', '{"A": "\\u0000", "B": 1}', '{"A": "\u2028", "B": 1}', '{"A": NaN, "B": Infinity}', '{"A": ' + "9" * 5000 + ', "B": 1}',
    "[" * 100_000, '{"A": [1], "B": null}', "null", "", " ", "#", '"x"', "{", "\ufeff[1, 2]",
)  # fmt: skip


def test_any_output_of_a_sample_command_is_a_table_or_refused(tmp_path):
    @each_example(40)
    @given(st.lists(st.integers(0, len(LINES) - 1).map(LINES.__getitem__), max_size=4))
    def check(lines: list[str]) -> None:
        try:
            rows = sample_command.sample_rows("\n".join(lines), ("A", "B"))
        except SampleError as error:
            assert "--from-command: line " in str(error)
            return
        sample_command.write_rows(tmp_path / "t.csv", ("A", "B"), rows)
        assert all(len(row) == 2 and all(isinstance(value, str) for value in row) for row in rows)

    check()


def test_a_value_that_is_given_twice_is_refused():
    with pytest.raises(SampleError, match="line 1 of the output is not JSON \\(a name occurs twice\\)"):
        sample_command.sample_rows('{"A": 1, "A": 2, "B": 3}', ("A", "B"))


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_dump_does_not_replace_another_file(tmp_path, monkeypatch, text):
    monkeypatch.setattr(merlin_dump, "task_queues", lambda plan: [])
    plan, _ = a_study(tmp_path / "study")
    file = tmp_path / "dump.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(StudyError, match=r"--dump: '.*dump\.json' is not a file of `--dump`"):
        merlin_dump.dump_queues(plan.root, [], file)
    assert file.read_text(encoding="latin-1") == text


def test_line_ends_of_unicode_are_part_of_a_value():
    assert sample_command.sample_rows(json.dumps(["a\u2028b", "c"], ensure_ascii=False), ("A", "B")) == [["a\u2028b", "c"]]
