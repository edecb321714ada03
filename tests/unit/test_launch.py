"""The launch: `maestro run` generates samples in the foreground; a failure stops it and shows the end of the output."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
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
from maestro_celery_plugin.plugins import open_table
from maestro_celery_plugin.samples import own_table
from maestro_celery_plugin.study.plan import StudyPlan


@pytest.fixture(autouse=True)
def dry_run(monkeypatch):
    monkeypatch.setattr(launch.OPTIONS, "dry_run", True)


@pytest.fixture(autouse=True)
def current(tmp_path, monkeypatch):
    """The directory in which `maestro run` is called."""
    directory = tmp_path / "current"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def acquire(tmp_path):
    """Acquire the samples of a study as Maestro does, and return its batch dictionary."""

    def run(cmd=None, file="$(MERLIN_INFO)/x.csv", labels=("A",), shell="/bin/bash", max_samples=None, name="s_20260102-030405"):
        settings = EnsembleSettings(
            batch=BatchSettings(shell=shell),
            resources=ResourceSettings(),
            samples=SampleSettings(
                file=file,
                column_labels=labels,
                generate=GenerateSettings(cmd=cmd) if cmd else None,
                max_samples=max_samples,
            ),
        )
        batch = {"type": "celery"}
        values = {"OUTPUT_PATH": tmp_path / name, "SPECROOT": tmp_path}
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
    [(sample_generation, "open_table", errno.EIO), (sample_generation, "_run", errno.ENOSPC), (own_table, "replaced", errno.EDQUOT), (launch.Path, "mkdir", errno.EACCES)],
)
def test_a_file_that_cannot_be_read_or_written_stops_the_launch_with_one_line(acquire, tmp_path, monkeypatch, owner, name, number):
    monkeypatch.setattr(owner, name, failing(number))

    with pytest.raises(StudyError) as error:
        acquire(f"seq 1 3 > {tmp_path}/x.csv", file=f"{tmp_path}/x.csv")

    assert str(error.value) == (
        f"The study '{tmp_path / 's_20260102-030405'}' cannot be prepared: [Errno {number}] {os.strerror(number)}: '/there'. "
        "Correct this, and launch the study again."
    )


def test_the_command_runs_where_maestro_was_called_and_leaves_its_output_in_merlin_info(acquire, info, current):
    batch = acquire("pwd; echo oops >&2; printf '1\\n2\\n' > $(MERLIN_INFO)/x.csv")
    assert batch["rows"] == 2
    assert batch["table"] == str(info / "x.csv")
    assert batch["timestamp"] == "20260102-030405"
    assert (info / "cmd.sh").read_text().startswith("#!/bin/bash\n\npwd;")
    assert (info / "cmd.out").read_text().strip() == str(current)
    assert (info / "cmd.err").read_text() == "oops\n"
    assert not [*current.iterdir()]


def rows_of(batch):
    table = open_table(Path(batch["table"]), ("A",), Path(batch["study"]) / "merlin_info")
    return [table.row(index)[0] for index in range(len(table))]


def test_a_relative_file_is_the_one_that_the_command_writes(acquire, current):
    (current / "my_rows.csv").write_text("1\n2\n")
    (current / "stale.csv").write_text("7\n")
    assert rows_of(acquire("cp my_rows.csv $(MERLIN_INFO)/x.csv")) == ["1", "2"]
    assert rows_of(acquire("printf '100\\n200\\n' > stale.csv", file="stale.csv")) == ["100", "200"]


@pytest.mark.parametrize("file", ["x.csv", "x.npy", "$(MERLIN_INFO)/x.npy", "/no/such/directory/x.csv"])
def test_a_file_that_the_command_should_have_written_is_missing(acquire, file):
    assert "there is no file '" in message(acquire, "echo hello", file=file)


def test_a_file_that_the_command_has_not_written_is_refused(acquire, current):
    (current / "stale.csv").write_text("7\n")
    text = message(acquire, "echo hello", file="stale.csv")
    assert text.startswith(
        f"merlin.samples.file: '{current}/stale.csv' is older than this launch: generate.cmd, which runs in '{current}', has not "
        "written it. Correct the command, or remove 'generate' to use the file as it is.\n"
    )
    assert text.endswith("\n  hello")


@pytest.mark.parametrize("cmd", ["cp -p source.csv x.csv", "touch x.csv", "mv source.csv x.csv", "echo 5 > y; mv y x.csv"])
def test_a_file_that_the_command_has_replaced_or_touched_is_new(acquire, current, cmd):
    for name in ("source.csv", "x.csv"):
        (current / name).write_text("7\n")
        os.utime(current / name, (10**9, 10**9))
    assert acquire(cmd, file="x.csv")["rows"] == 1


@pytest.mark.parametrize("file", ["$(MERLIN_INFO)/x.csv", "$(MERLIN_INFO)/data/x.csv"])
def test_a_command_that_expects_to_run_in_merlin_info_is_warned_of(acquire, current, caplog, file):
    """Given a specification of an earlier release, whose command wrote to its directory, then its samples run."""
    relative = file.removeprefix("$(MERLIN_INFO)/")
    assert rows_of(acquire(f"mkdir -p data; seq 1 3 > {relative}", file=file)) == ["1", "2", "3"]
    assert (
        f"merlin.samples.generate.cmd: the command runs in '{current}' and has written 'x.csv' there; the samples are read from "
        f"it. Let the command write '{file}'."
    ) in caplog.text


def test_launches_that_write_the_same_file_at_the_same_time_have_their_own_samples(acquire, current):
    """Given two launches in one directory whose commands write the same file, then each has the samples of its command."""
    (current / "x.csv").write_text("old\n")

    def launched(number):
        command = f"for i in $(seq 5); do echo {number}.$i; sleep 0.05; done > x.csv"
        return rows_of(acquire(command, file="x.csv", name=f"s{number}"))

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(launched, range(3)))
    assert found == [[f"{number}.{i}" for i in range(1, 6)] for number in range(3)]


def test_a_file_that_cannot_be_locked_is_warned_of(acquire, current, caplog):
    """Given a directory in which no lock is possible, then the samples are generated, and a user knows the danger."""
    (current / ".x.csv.lock").mkdir()
    assert rows_of(acquire("seq 2 > x.csv", file="x.csv")) == ["1", "2"]
    assert f"'{current}/x.csv' cannot be locked" in caplog.text
    assert "With '$(MERLIN_INFO)/x.csv', each study has a file of its own." in caplog.text


def test_a_study_that_another_one_starts_writes_its_samples_to_itself(acquire, current, monkeypatch):
    """Given a command that writes to the directory that all studies of a session share, then the study is refused."""
    member = types.SimpleNamespace(id="0" * 16)
    monkeypatch.setattr(launch.OPTIONS, "member", member)
    monkeypatch.setenv("MAESTRO_CELERY_SESSION", str(current))
    assert message(acquire, "seq 3 > x.csv") == (
        f"merlin.samples.generate.cmd: the command has written 'x.csv' into '{current}', where other studies of the "
        "session write it as well; let it write '$(MERLIN_INFO)/x.csv'."
    )


def test_an_old_file_of_the_same_name_is_no_table(acquire, current):
    (current / "x.csv").write_text("7\n")
    assert "there is no file" in message(acquire, "echo hello")


def test_the_table_belongs_to_the_study(acquire, info, current):
    """Given a sample file that others share, when they change and delete it, then the study keeps its rows."""
    (current / "x.csv").write_text("1\n2\n")
    (current / "x.csv").chmod(0o440)
    batch = acquire(file="x.csv")
    assert batch["table"] == str(info / "samples" / "x.csv")
    assert stat.S_IMODE(os.stat(batch["table"]).st_mode) == 0o640
    (current / "x.csv").chmod(0o600)
    (current / "x.csv").write_text("3\n4\n5\n")
    assert rows_of(batch) == ["1", "2"]
    (current / "x.csv").unlink()
    assert rows_of(batch) == ["1", "2"]


@pytest.mark.parametrize("link", ["ln -s", "ln"])
def test_a_link_in_merlin_info_is_no_table_of_the_study(acquire, info, current, link):
    (current / "x.csv").write_text("1\n2\n")
    batch = acquire(f"{link} $PWD/x.csv $(MERLIN_INFO)/x.csv")
    (current / "x.csv").write_text("3\n")
    assert rows_of(batch) == ["1", "2"]


def test_errors_name_the_sample_file_and_not_its_copy(acquire, current):
    (current / "x.csv").write_text("1\n2,3\n")
    assert f"row 1 of '{current}/x.csv' (line 2)" in message(acquire, file="x.csv")


def test_a_file_that_another_process_writes_is_no_table(acquire, current, monkeypatch):
    (current / "x.csv").write_text("1\n")

    def copy(source, target):
        target.write(source.read())
        (current / "x.csv").write_text("1\n2\n")

    monkeypatch.setattr(own_table, "_copy", copy)
    assert message(acquire, file="x.csv") == (
        f"merlin.samples.file: '{current}/x.csv' is being written; launch when it is complete."
    )


@pytest.mark.parametrize("copies", [lambda *arguments: 0, failing(errno.EXDEV), None, 1])
def test_a_table_is_copied_whole_on_every_file_system(acquire, current, monkeypatch, copies):
    (current / "x.csv").write_text("1\n2\n3\n")
    copy = os.copy_file_range
    if copies == 1:  # it fails after some bytes
        parts = iter([3])
        copies = lambda source, target, count: copy(source, target, next(parts, None) or failing(errno.EIO)())  # noqa: E731
    if copies is None:
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", copies)
    assert rows_of(acquire(file="x.csv")) == ["1", "2", "3"]


OBJECTS = "import numpy; numpy.save('{}', numpy.array([[12, 0.1], [900, b'x']], dtype=object))"


def python(code):
    return f'{sys.executable} -c "{code}"'


def test_python_objects_that_the_command_writes_become_text(acquire, info):
    """Given an array of objects, as LLNL's spellbook writes it, then workers read an array of text."""
    batch = acquire(python(OBJECTS.format("$(MERLIN_INFO)/x.npy")), file="$(MERLIN_INFO)/x.npy", labels=("A", "B"))
    assert batch["table"] == str(info / "samples" / "x.npy")
    assert np.load(batch["table"]).tolist() == [["12", "0.1"], ["900", "x"]]


@pytest.mark.parametrize("cmd", [None, "touch x.npy", python(OBJECTS.format("x.npy"))])
def test_python_objects_that_were_there_before_are_not_unpickled(acquire, current, monkeypatch, cmd):
    np.save(current / "x.npy", np.array([[1]], dtype=object))
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("unpickled"))
    assert "contains Python objects, which are pickled code and are not read" in message(acquire, cmd, file="x.npy")


@pytest.mark.parametrize(
    ("value", "found"),
    [("None", "'NoneType'"), ("[1, 2]", "'list'"), ("b'\\xff'", "'bytes'"), ("print", "'builtin_function_or_method'")],
)
def test_other_python_objects_are_refused(acquire, value, found):
    code = f"import numpy; a = numpy.empty((2, 1), dtype=object); a[0, 0] = {value}; numpy.save('x.npy', a)"
    assert f"contains Python objects of the type {found}; save an array of numbers or text." in message(
        acquire, python(code), file="x.npy"
    )


def test_tokens_of_the_study_are_replaced_and_the_shell_expands_the_others(acquire, info, tmp_path):
    acquire(
        'echo "$(MERLIN_INFO) $(MERLIN_WORKSPACE) $(MERLIN_TIMESTAMP) $(SPECROOT) $(echo 1) $UNSET_ ${X_:-2}" > $(MERLIN_INFO)/x.csv'
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


def test_a_study_does_not_begin_with_more_samples_than_it_may_have(acquire, info):
    assert message(acquire, "seq 1 11 > $(MERLIN_INFO)/x.csv", max_samples=10).startswith(
        f"merlin.samples.max_samples: found '10', but '{info / 'x.csv'}' has 11 samples; give a larger number, or fewer "
    )


def test_the_levels_of_the_directories_follow_from_max_samples(acquire):
    batch = acquire("seq 1 10 > $(MERLIN_INFO)/x.csv", max_samples=100)
    assert (batch["rows"], batch["planned"]) == (10, 100)
    assert StudyPlan.from_batch(batch).hierarchy == 100


def test_the_sample_generation_runs_once(acquire, info, monkeypatch):
    settings = EnsembleSettings(
        batch=BatchSettings(),
        resources=ResourceSettings(),
        samples=SampleSettings(
            file="$(MERLIN_INFO)/x.csv",
            column_labels=("A",),
            generate=GenerateSettings(cmd=f"echo 1 >> {info}/x.csv"),
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
    text = message(acquire, "x", shell="/no/sh")
    assert text.startswith("merlin.samples.generate.cmd: '/no/sh' cannot start:")


def test_a_shell_may_have_arguments(acquire):
    assert acquire("echo 1 > x.csv", shell="/usr/bin/env bash -e")["rows"] == 1


@pytest.mark.parametrize("shell", ["/usr/bin/env python3", "python3 -u", "/bin/tcsh"])
def test_a_shell_generates_the_samples_of_steps_with_another_interpreter(acquire, shell):
    """Given `batch.shell` that is no Bourne shell, then a shell runs `generate.cmd`, as in Merlin."""
    assert acquire("for i in 1 2; do echo $i >> x.csv; done", shell=shell)["rows"] == 2


@pytest.mark.parametrize(
    ("cmd", "found"),
    [
        ("echo no samples", "there is no file"),
        ("echo no samples; printf '1\\n2,3\\n' > x.csv", "row 1 of"),
        ("echo no samples; echo 1,2 > x.csv", "1 label (A), but"),
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


def test_column_labels_in_the_first_row_are_a_header(acquire, caplog):
    with caplog.at_level(logging.INFO):
        assert acquire("printf 'A\\n1\\n' > x.csv")["rows"] == 1
    assert "x.csv: the first row has the column labels, so it is a header and no sample." in caplog.text


def settings_of(workers):
    return EnsembleSettings(batch=BatchSettings(), resources=ResourceSettings(workers=workers))


def test_without_steps_for_workers_the_broker_is_not_checked(monkeypatch):
    """Given a study whose steps Maestro runs itself, then no broker is checked, and no step inherits its URL."""
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    monkeypatch.setenv("MAESTRO_CELERY_BROKER_URL", "redis://127.0.0.1:1/0")

    launch.check_launch(settings_of({"w": WorkerGroupSettings()}), Path("study.yaml"))

    assert "MAESTRO_CELERY_BROKER_URL" not in os.environ


def test_the_broker_is_checked_only_in_a_launch(monkeypatch):
    settings = settings_of({"w": WorkerGroupSettings(task_queues=("merlin",))})
    checked = []
    monkeypatch.setattr("maestro_celery_plugin.broker.choice.check", checked.append)
    launch.check_launch(settings, Path("study.yaml"))
    monkeypatch.setattr(launch.OPTIONS, "launching", True)
    monkeypatch.setattr(launch.OPTIONS, "dry_run", True)
    launch.check_launch(settings, Path("study.yaml"))
    assert not checked

    monkeypatch.setattr(launch.OPTIONS, "dry_run", False)
    launch.check_launch(settings, Path("study.yaml"))
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
        launch.check_launch(settings, Path("study.yaml"))


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
        launch.check_launch(settings, Path("study.yaml"))
