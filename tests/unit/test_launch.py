"""The launch: `maestro run` generates samples in the foreground; a failure stops it and shows the end of the output."""

from __future__ import annotations

import errno
import logging
import os
import types

import pytest

from maestro_celery_plugin.config.settings import (
    BatchSettings,
    EnsembleSettings,
    GenerateSettings,
    ResourceSettings,
    SampleSettings,
    StepFacts,
    WorkerGroupSettings,
)
from maestro_celery_plugin.errors import SampleError, SpecificationError, StudyError
from maestro_celery_plugin.maestro import launch, sample_generation


@pytest.fixture(autouse=True)
def dry_run(monkeypatch):
    monkeypatch.setattr(launch.OPTIONS, "dry_run", True)


@pytest.fixture
def acquire(tmp_path):
    """Acquire the samples of a study as Maestro does, and return its batch dictionary."""

    def run(cmd=None, file="$(MERLIN_INFO)/x.csv", labels=("A",), shell="/bin/bash"):
        settings = EnsembleSettings(
            batch=BatchSettings(shell=shell),
            resources=ResourceSettings(),
            samples=SampleSettings(
                file=file, column_labels=labels, generate=GenerateSettings(cmd=cmd) if cmd else None
            ),
        )
        batch = {"type": "celery"}
        values = {"OUTPUT_PATH": tmp_path / "s_20260102-030405", "SPECROOT": tmp_path}
        substitutions = [types.SimpleNamespace(name=name, value=str(value)) for name, value in values.items()]
        launch.EnsembleDependency(settings, batch).acquire(substitutions)
        return batch

    return run


@pytest.fixture
def info(tmp_path):
    return tmp_path / "s_20260102-030405" / "merlin_info"


def message(acquire, *args, **kwargs):
    with pytest.raises(SampleError) as error:
        acquire(*args, **kwargs)
    return str(error.value)


def failing(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number), "/there")

    return fail


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [(sample_generation, "open_table", errno.EIO), (sample_generation, "_generate", errno.ENOSPC), (launch.Path, "mkdir", errno.EACCES)],
)
def test_a_file_that_cannot_be_read_or_written_stops_the_launch_with_one_line(acquire, tmp_path, monkeypatch, owner, name, number):
    monkeypatch.setattr(owner, name, failing(number))

    with pytest.raises(StudyError) as error:
        acquire("seq 1 3 > x.csv")

    assert str(error.value) == (
        f"The study '{tmp_path / 's_20260102-030405'}' cannot be prepared: [Errno {number}] {os.strerror(number)}: '/there'. "
        "Correct this, and launch the study again."
    )


def test_samples_are_generated_in_merlin_info(acquire, info):
    batch = acquire("pwd; echo oops >&2; printf '1\\n2\\n' > x.csv")
    assert batch["rows"] == 2
    assert batch["table"] == str(info / "x.csv")
    assert batch["timestamp"] == "20260102-030405"
    assert (info / "cmd.sh").read_text().startswith("#!/bin/bash\n\npwd;")
    assert (info / "cmd.out").read_text().strip() == str(info)
    assert (info / "cmd.err").read_text() == "oops\n"


def test_tokens_of_the_study_are_replaced_and_the_shell_expands_the_others(acquire, info, tmp_path):
    acquire(
        'echo "$(MERLIN_INFO) $(MERLIN_WORKSPACE) $(MERLIN_TIMESTAMP) $(SPECROOT) $(echo 1) $UNSET_ ${X_:-2}" > x.csv'
    )
    written = (info / "x.csv").read_text()
    assert written == f"{info} {info.parent} 20260102-030405 {tmp_path} 1  2\n"


def test_the_sample_generation_does_not_read_stdin(acquire, info):
    reading, writing = os.pipe()
    os.write(writing, b"the user's next command")
    os.close(writing)
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        acquire("cat; echo 1 > x.csv")
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reading)
    assert (info / "cmd.out").read_text() == ""


def test_the_sample_generation_runs_once(acquire, info, monkeypatch):
    settings = EnsembleSettings(
        batch=BatchSettings(),
        resources=ResourceSettings(),
        samples=SampleSettings(
            file="$(MERLIN_INFO)/x.csv",
            column_labels=("A",),
            generate=GenerateSettings(cmd="echo 1 >> x.csv"),
        ),
    )
    dependency = launch.EnsembleDependency(settings, {})
    values = [types.SimpleNamespace(name="OUTPUT_PATH", value=str(info.parent))]
    dependency.acquire(values)
    dependency.acquire(values)
    assert (info / "x.csv").read_text() == "1\n"


def test_a_failure_has_a_message_with_the_last_lines(acquire, info):
    text = message(acquire, "for n in $(seq 1 20); do echo line $n >&2; done; echo out; exit 3")
    assert text.startswith("merlin.samples.generate.cmd: the command ended with exit code 3.\n")
    assert f"'{info / 'cmd.sh'}'" in text
    assert text.endswith("\n".join(f"  line {n}" for n in range(11, 21)))
    assert (info / "cmd.out").read_text() == "out\n"


def test_the_first_line_of_the_output_keeps_its_indentation(acquire):
    assert message(acquire, "printf '   x = 1 +\\n         ^\\n' >&2; exit 1").endswith("\n     x = 1 +\n           ^")


def test_without_stderr_the_message_has_the_lines_of_stdout(acquire):
    assert message(acquire, "echo only this; exit 1").endswith("\n  only this")
    assert message(acquire, "exit 1").endswith("The last lines of its output: (no output)")


def test_the_message_of_a_killed_command_has_the_signal(acquire):
    assert message(acquire, "kill -9 $$").startswith(
        "merlin.samples.generate.cmd: the command ended with signal 9."
    )


def test_a_shell_that_does_not_exist_has_a_message(acquire):
    text = message(acquire, "x", shell="/no/shell")
    assert text.startswith("merlin.samples.generate.cmd: '/no/shell' (batch.shell) cannot start:")


def test_a_shell_may_have_arguments(acquire):
    assert acquire("echo 1 > x.csv", shell="/usr/bin/env bash")["rows"] == 1


@pytest.mark.parametrize(
    ("cmd", "found"),
    [
        ("echo no samples", "there is no file"),
        ("echo no samples; printf '1\\n2,3\\n' > x.csv", "row 1 of"),
        ("echo no samples; echo 1,2 > x.csv", "1 labels (A), but"),
        ("echo no samples; : > x.csv", "has no samples; at least one row is needed."),
    ],
)
def test_an_unusable_sample_file_has_a_message_with_the_last_lines(acquire, cmd, found):
    text = message(acquire, cmd)
    assert text.startswith("merlin.samples.")
    assert found in text.splitlines()[0]
    assert text.endswith("The last lines of its output:\n  no samples")


def test_a_sample_file_that_exists_needs_no_generation(acquire, tmp_path):
    (tmp_path / "y.csv").write_text("1\n2\n3\n")
    assert acquire(file="$(SPECROOT)/y.csv")["rows"] == 3
    assert message(acquire, file="$(SPECROOT)/z.csv").endswith(
        f"there is no file '{tmp_path}/z.csv'; check its name, or let generate.cmd write it."
    )


def test_a_relative_path_starts_at_the_working_directory(acquire, tmp_path, monkeypatch):
    (tmp_path / "y.csv").write_text("1\n")
    monkeypatch.chdir(tmp_path)
    assert acquire(file="y.csv")["table"] == str(tmp_path / "y.csv")


def test_column_labels_in_the_first_row_log_a_warning(acquire, caplog):
    with caplog.at_level(logging.WARNING):
        acquire("printf 'A\\n1\\n' > x.csv")
    assert "the first row contains the column labels, but counts as sample 0. Begin a header line with '# '." in caplog.text


def settings_of(workers):
    return EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))


def test_without_steps_for_workers_the_broker_is_not_checked(monkeypatch):
    """Given a study whose steps Maestro runs itself, then no broker is checked, and no step inherits its URL."""
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    monkeypatch.setenv("MAESTRO_CELERY_BROKER_URL", "redis://127.0.0.1:1/0")

    launch.check_launch(settings_of({"w": WorkerGroupSettings()}), "study.yaml")

    assert "MAESTRO_CELERY_BROKER_URL" not in os.environ


def test_the_broker_is_checked_only_in_a_launch(monkeypatch):
    settings = settings_of({"w": WorkerGroupSettings(task_queues=("merlin",))})
    checked = []
    monkeypatch.setattr("maestro_celery_plugin.broker.choice.check", checked.append)
    launch.check_launch(settings, "study.yaml")
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", True)
    launch.check_launch(settings, "study.yaml")
    assert not checked

    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    launch.check_launch(settings, "study.yaml")
    assert len(checked) == 1


def test_a_batch_system_without_its_commands_stops_the_launch(monkeypatch):
    group = WorkerGroupSettings(task_queues=("merlin",))
    resources = ResourceSettings(workers={"sim": group})
    settings = EnsembleSettings(batch=BatchSettings(type="slurm"), resources=resources)
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    monkeypatch.setenv("PATH", "/nowhere")

    message = r"study.yaml: batch.type: found 'slurm' for the worker group 'sim', but there is no 'sbatch' on PATH"
    with pytest.raises(SpecificationError, match=message):
        launch.check_launch(settings, "study.yaml")


@pytest.mark.parametrize("has_workers", [True, False])
def test_a_batch_system_without_its_python_package_stops_the_launch(monkeypatch, tmp_path, has_workers):
    """Given Flux without a library of its package, then workers and native steps stop the launch."""
    groups = {"sim": WorkerGroupSettings(task_queues=("merlin",))} if has_workers else {}
    facts = {} if has_workers else {"plain": StepFacts(queues=())}
    settings = EnsembleSettings(batch=BatchSettings(type="flux"), resources=ResourceSettings(workers=groups), steps=facts)
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "__init__.py").write_text("import no_cffi")
    (tmp_path / "flux" / "flux").write_text("#!/bin/sh")
    (tmp_path / "flux" / "flux").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "flux"))

    user = "the worker group 'sim'" if has_workers else "the steps that Maestro runs itself"
    message = rf"found 'flux' for {user}, but this Python cannot import the package 'flux', .*No module named 'no_cffi'"
    with pytest.raises(SpecificationError, match=message):
        launch.check_launch(settings, "study.yaml")
