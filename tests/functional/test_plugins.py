"""Extensions: the plugin loads them from their entry point, and refuses a faulty one with a message about the fault."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import maestro_celery_plugin

SYSTEM = """
    from maestro_celery_plugin import hookimpl
    from maestro_celery_plugin.batch.slurm import Slurm

    class Pbs(Slurm):
        type = "pbs"
        {change}

    {after}

    @hookimpl
    def batch_system():
        return Pbs()
"""


@pytest.fixture
def run(tmp_path):
    """Run a program in a Python process with an extension, `pbs` by default, that has the given code."""

    def run(code, program, name="pbs"):
        (tmp_path / "pbs_extension.py").write_text(textwrap.dedent(code))
        distribution = tmp_path / "pbs_extension-1.0.dist-info"
        distribution.mkdir()
        (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: pbs-extension\nVersion: 1.0\n")
        (distribution / "entry_points.txt").write_text(f"[maestro_celery]\n{name} = pbs_extension\n")
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


LOAD = """
    from maestro_celery_plugin.errors import ExtensionError
    from maestro_celery_plugin.plugins import batch_systems
    try:
        print(sorted(batch_systems()))
    except ExtensionError as error:
        print(error)
"""


def output_of_load(run, code):
    answer = run(code, LOAD)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_an_extension_adds_a_batch_system(run):
    assert output_of_load(run, SYSTEM.format(change="", after="")) == "['flux', 'lsf', 'lsf-srun', 'pbs', 'slurm']"


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        ("Pbs.current_allocation = None", "Pbs has no method 'current_allocation(environ)' of BatchSystem"),
        ("Slurm.current_allocation = property()", "Pbs has no method 'current_allocation(environ)' of BatchSystem"),
        ("del Slurm.commands", "Pbs has no attribute 'commands' of BatchSystem"),
        (
            "Pbs.worker_line = lambda self: ''",
            "Pbs has a method 'worker_line' that does not accept the arguments of 'worker_line(group, command)' of "
            "BatchSystem",
        ),
    ],
)
def test_a_batch_system_with_an_incomplete_interface_is_refused(run, after, fault):
    assert output_of_load(run, SYSTEM.format(change="", after=after)) == (
        f"The extension 'pbs' cannot be used: hook 'batch_system': {fault}. Correct the extension, or uninstall it."
    )


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("import no_such_module", ["No module named 'no_such_module'"]),
        (
            "from maestro_celery_plugin import hookimpl\n@hookimpl\ndef open_samples(path, label): pass",
            ["'pbs'", "'open_samples'", "'label'"],
        ),
        ("from maestro_celery_plugin import hookimpl\n@hookimpl\ndef batch_sytem(): pass", ["'batch_sytem'", "'pbs'"]),
        ("def batch_system(): pass", ["it implements no hook", "attempt_finished, batch_system, open_samples"]),
        (
            "from maestro_celery_plugin import hookimpl\n@hookimpl\ndef batch_system(): return 1 / 0",
            ["division by zero"],
        ),
    ],
    ids=["import", "argument", "hook", "no hook", "call"],
)
def test_the_message_names_the_extension_that_cannot_be_loaded_and_its_fault(run, code, texts):
    output = output_of_load(run, code)
    assert output.startswith("The extension 'pbs' cannot be loaded: ")
    assert all(text in output for text in texts), output


def test_a_sample_table_with_an_incomplete_interface_is_refused(run):
    code = """
        from maestro_celery_plugin import hookimpl

        class Table:
            width = 1
            def __len__(self):
                return 3

        @hookimpl
        def open_samples(path, labels, cache):
            return Table() if path.suffix == ".pbs" else None
    """
    program = """
        from pathlib import Path
        from maestro_celery_plugin.plugins import open_table
        Path("x.pbs").touch()
        open_table(Path("x.pbs"), ["A"], Path("."))
    """
    answer = run(code, program)
    assert (
        "The extension 'pbs' cannot be used: hook 'open_samples': Table has no method 'row(index)' of "
        in (answer.stderr)
    )


def test_a_table_of_a_built_in_type_is_refused_with_the_name_of_the_extension(run):
    code = """
        from maestro_celery_plugin import hookimpl

        @hookimpl
        def open_samples(path, labels, cache):
            return [1, 2] if path.suffix == ".pbs" else None
    """
    program = """
        from pathlib import Path
        from maestro_celery_plugin.plugins import open_table
        Path("x.pbs").touch()
        open_table(Path("x.pbs"), ["A"], Path("."))
    """
    assert "The extension 'pbs' cannot be used: hook 'open_samples': list has no" in run(code, program).stderr


def test_a_batch_system_that_is_not_here_is_skipped(run):
    """An extension returns None on a machine that it does not support."""
    code = "from maestro_celery_plugin import hookimpl\n@hookimpl\ndef batch_system(): return None"
    assert output_of_load(run, code) == "['flux', 'lsf', 'lsf-srun', 'slurm']"


@pytest.mark.parametrize("name", ["slurm", "lsf", "lsf-srun", "flux", "NpyReader", "CsvReader", "TabReader"])
def test_an_extension_may_have_the_name_of_a_built_in_part(run, name):
    answer = run(SYSTEM.format(change="", after=""), LOAD, name)
    assert answer.stdout.strip() == "['flux', 'lsf', 'lsf-srun', 'pbs', 'slurm']", answer.stderr


def test_two_extensions_with_one_name_are_refused(run, tmp_path):
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[maestro_celery]\npbs = other_extension\n")
    assert output_of_load(run, SYSTEM.format(change="", after="")) == (
        "The extension 'pbs' cannot be loaded: 'other_extension' and 'pbs_extension' are entry points with this name; "
        "uninstall one of them."
    )


def test_a_faulty_extension_ends_maestro_run_with_a_message(run, tmp_path):
    """The message has no traceback."""
    (tmp_path / "study.yaml").write_text(
        "description: {name: s, description: d}\nmerlin: {}\nstudy:\n- {name: a, description: d, run: {cmd: 'true'}}\n"
    )
    program = (
        "import sys; sys.argv = ['maestro', 'run', '-y', 'study.yaml']; from maestrowf.maestro import main; main()"
    )
    answer = run(SYSTEM.format(change="", after="Pbs.current_allocation = None"), program)
    assert answer.returncode == 1
    assert "maestro: error: The extension 'pbs' cannot be used: hook 'batch_system': Pbs has no method" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_public_name_exists_and_any_other_name_is_an_error():
    for name in maestro_celery_plugin.__all__:
        assert getattr(maestro_celery_plugin, name), name
    assert set(maestro_celery_plugin.__all__) <= set(dir(maestro_celery_plugin))
    assert set(maestro_celery_plugin._MODULES) == set(maestro_celery_plugin.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        _ = maestro_celery_plugin.Runner
