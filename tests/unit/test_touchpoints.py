"""Touchpoints: each name exists in Maestro, near the documented line, and a missing name gives a message."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import maestrowf
import pytest

from maestro_celery_plugin import clock
from maestro_celery_plugin.errors import StudyError, UnsupportedMaestroError
from maestro_celery_plugin.maestro import argument_parser, launch_options, this_process, touchpoints
from maestro_celery_plugin.maestro import guarded_run as guarded_run_module
from maestro_celery_plugin.maestro.after_import import Touchpoint
from maestro_celery_plugin.maestro.argument_parser import EnsembleArgumentParser
from maestro_celery_plugin.maestro.touchpoints import TOUCHPOINTS

MAESTRO = Path(maestrowf.__file__).parent
POINT = Touchpoint("maestrowf.nowhere", "gone", "nowhere.py:7 uses it", lambda original: (original, "replaced"))


@pytest.mark.parametrize("point", TOUCHPOINTS, ids=lambda point: f"{point.module}.{point.name}")
def test_maestro_uses_the_name_near_the_documented_line(point):
    assert (MAESTRO.joinpath(*point.module.split(".")[1:]).with_suffix(".py")).is_file() or MAESTRO.joinpath(
        *point.module.split(".")[1:], "__init__.py"
    ).is_file()
    places = re.findall(r"(\w+\.py):(\d+)", point.relies_on)
    assert places
    for file, line in places:
        path = MAESTRO / file if (MAESTRO / file).exists() else next(MAESTRO.rglob(file))
        lines = path.read_text().splitlines()
        near = "\n".join(lines[max(0, int(line) - 15) : int(line) + 15])
        assert re.search(rf"\b{point.name}\b", near), f"{file}:{line}"


def test_apply_replaces_the_name_in_the_module():
    module = types.ModuleType("maestrowf.nowhere")
    module.gone = "original"
    POINT.apply(module)
    assert module.gone == ("original", "replaced")


def test_a_missing_name_gives_a_message_with_a_remedy():
    module = types.ModuleType("maestrowf.nowhere")
    for use in (POINT.check, POINT.apply):
        with pytest.raises(UnsupportedMaestroError) as error:
            use(module)
        assert str(error.value) == (
            "maestro-celery-plugin does not support this version of maestrowf: maestrowf.nowhere has no 'gone' "
            "(nowhere.py:7 uses it). Install 'maestrowf>=1.2,<1.3', or uninstall maestro-celery-plugin."
        )


PROGRAM = """
    import sys, warnings
    warnings.simplefilter("ignore")
    import maestrowf.maestro, maestrowf.conductor
    from maestro_celery_plugin.maestro import after_import, touchpoints

    touchpoints.install()
    touchpoints.install()
    finders = [f for f in sys.meta_path if isinstance(f, after_import._AfterImport)]
    maestrowf.maestro.setup_argparser()
    print(len(finders))
    print(maestrowf.specification.YAMLSpecification.__module__)
    print(maestrowf.maestro.YAMLSpecification.__module__)
    print(maestrowf.maestro.ArgumentParser.__module__)
    print(maestrowf.maestro.start_process.__wrapped__.__module__)
    print(maestrowf.conductor.sleep.__module__)
    print(maestrowf.specification.__spec__.loader is maestrowf.specification.__loader__)
    import maestrowf.abstracts.specification
    print(maestrowf.specification.yamlspecification.YAMLSpecification.__module__)
"""


def test_a_second_installation_changes_nothing():
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert answer.stdout.splitlines() == [
        "1",
        "maestro_celery_plugin.maestro.specification",
        "maestro_celery_plugin.maestro.specification",
        "maestro_celery_plugin.maestro.argument_parser",
        "maestrowf.utils",
        "maestro_celery_plugin.maestro.touchpoints",
        "True",
        "maestrowf.specification.yamlspecification",
    ], answer.stderr


def test_an_unsupported_maestro_ends_the_process_without_a_traceback():
    """The process ends because a study must not run without its ensemble."""
    program = f"""
        import sys
        from maestro_celery_plugin.maestro import launch_options, touchpoints
        from maestro_celery_plugin.maestro.after_import import Touchpoint
        wrong = Touchpoint("fractions", "gone", "a.py:1 uses it", None)
        touchpoints.TOUCHPOINTS = (wrong,)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        touchpoints.install()
        import fractions
        print("not here")
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: maestro-celery-plugin does not support this version of maestrowf: ")
    assert "Traceback" not in answer.stderr


# --- the conductor -----------------------------------------------------------------------------------


@pytest.fixture
def own_conductor(tmp_path, monkeypatch):
    """Create a Python environment with `maestro` and `conductor`; return the path of `conductor`."""
    directory = tmp_path / "my env" / "bin"
    directory.mkdir(parents=True)
    (directory / "conductor").touch()
    monkeypatch.setattr(sys, "argv", [str(directory / "maestro"), "run"])
    return directory / "conductor"


def test_the_conductor_of_the_same_environment_is_started(own_conductor):
    command = touchpoints._with_own_conductor("nohup conductor -t 60 /my/study > log")
    assert command == f"nohup '{own_conductor}' -t 60 /my/study > log"


def test_without_a_conductor_the_launch_fails(own_conductor, monkeypatch, tmp_path):
    """Given an environment without `conductor`, then the launch ends with an error; Maestro would report success."""
    own_conductor.unlink()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match=r"There is no `conductor` beside '.*', nor on PATH"):
        touchpoints._with_own_conductor("nohup conductor -t 60 /my/study > log")


def test_a_conductor_on_path_is_used_if_there_is_no_other_one(own_conductor, monkeypatch, tmp_path):
    found = own_conductor.rename(tmp_path / "conductor")
    found.chmod(0o755)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert touchpoints._with_own_conductor("nohup conductor -t 60 /s > log") == f"nohup {found} -t 60 /s > log"


@pytest.mark.parametrize("command", ["conductor -t 60", "echo nohup conductor x", ["nohup", "conductor"], None])
def test_other_commands_do_not_change(own_conductor, command):
    assert touchpoints._with_own_conductor(command) == command


# --- the command line --------------------------------------------------------------------------------


def test_only_maestro_run_has_the_option_broker():
    assert EnsembleArgumentParser(prog="/bin/maestro run").parse_args(["--broker", "u"]).broker == "u"
    assert EnsembleArgumentParser(prog="/bin/maestro run").parse_args([]).broker is None
    with pytest.raises(SystemExit):
        EnsembleArgumentParser(prog="/bin/maestro status").parse_args(["--broker", "u"])


def test_without_ensembles_the_conductor_only_sleeps(monkeypatch):
    waits = []
    monkeypatch.setattr(clock, "sleep", waits.append)
    touchpoints._wait(0.05)
    assert waits == [0.05]


def failing(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def guarded_run(out, run=lambda namespace: 0):
    options = {"broker": None, "broker_host": None, "dry": True, "fg": False, "pgen": None, "hashws": False, "out": out}
    options |= {"specification": os.devnull, "vars": [], "samplesfile": None, "env_file": None, "no_errors": False, "notify": None}
    options |= {"session": None, "quiet": False, "autoyes": True, "autono": False, "max_depth": None, "max_studies": None}
    return argument_parser._guarded_run(run, argparse.Namespace(**options))


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """The directory of an earlier ensemble study; the options of the process do not change."""
    for module in (touchpoints, guarded_run_module):
        monkeypatch.setattr(module, "OPTIONS", dataclasses.replace(touchpoints.OPTIONS))
    (tmp_path / "study" / "merlin_info").mkdir(parents=True)
    return tmp_path / "study"


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOLCK])
def test_a_lock_that_cannot_be_checked_is_one_line(earlier, capsys, monkeypatch, number):
    monkeypatch.setattr(launch_options, "is_locked", failing(number))

    assert guarded_run(str(earlier)) == 1

    assert capsys.readouterr().err == (
        f"maestro: error: --out: it is unknown whether a study is running in '{earlier}' ({os.strerror(number)}); correct "
        "this, or use another directory.\n"
    )


def test_a_file_in_the_place_of_the_directory_is_left_to_maestro(earlier):
    (earlier / "file").touch()
    assert guarded_run(str(earlier / "file"), lambda namespace: 7) == 7


def test_an_earlier_study_that_cannot_be_ended_is_one_line(earlier, capsys, monkeypatch):
    """Given files of an earlier study that cannot be read, then the launch stops, and the directory stays."""
    monkeypatch.setattr("maestro_celery_plugin.maestro.earlier_study.workers_elsewhere", failing(errno.EIO))

    assert guarded_run(None, lambda namespace: touchpoints._end_and_remove(shutil.rmtree, str(earlier))) == 1

    assert capsys.readouterr().err == (
        f"maestro: error: --out: the earlier study in '{earlier}' cannot be ended ([Errno 5] Input/output error); correct this, "
        "or use another directory.\n"
    )
    assert earlier.exists()


def test_errors_of_maestro_stay_as_they_are(earlier):
    with pytest.raises(OSError, match="No space left"):
        guarded_run(None, failing(errno.ENOSPC))


def test_a_directory_that_cannot_be_read_is_one_line_for_cancel(earlier, capsys, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", failing(errno.EACCES))
    monkeypatch.setattr(Path, "stat", failing(errno.EACCES))

    assert argument_parser._guarded_cancel(lambda namespace: 0, argparse.Namespace(directory=[str(earlier)])) == 1

    assert capsys.readouterr().err == "maestro: error: [Errno 13] Permission denied\n"


@pytest.mark.parametrize(
    ("batch", "is_ensemble"),
    [("type: local\n", False), ("shell: /bin/bash\ntype: slurm\n", False), ("id: '1'\ntype: celery\n", True), ("", True), (None, True)],
)
def test_a_study_whose_step_makes_a_directory_merlin_info_is_no_ensemble(tmp_path, batch, is_ensemble):
    assert not this_process.is_ensemble(tmp_path)
    (tmp_path / "merlin_info").mkdir()
    if batch is not None:
        (tmp_path / "batch.info").write_text(batch)
    assert this_process.is_ensemble(tmp_path) is is_ensemble


def test_a_file_that_is_larger_than_the_memory_is_not_read(tmp_path):
    (tmp_path / "merlin_info").mkdir()
    (tmp_path / "batch.info").write_text("type: local\n")
    os.truncate(tmp_path / "batch.info", 1 << 40)

    assert not this_process.is_ensemble(tmp_path)
