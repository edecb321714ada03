"""The doctor: exit code 0 for a working environment, otherwise exit code 1 and remedies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import maestrowf
import pytest
from click.testing import CliRunner
from servers import free_port, redis_on

from maestro_celery_plugin.cli import doctor, main

# The supervisor of a private broker continues after the process that started it, and nothing waits for its end.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """The URL of a broker that answers."""
    with redis_on(free_port(), tmp_path_factory.mktemp("doctor")) as url:
        yield url


@pytest.fixture(autouse=True)
def activated(monkeypatch, tmp_path):
    """Activate the Python environment, for a user without a configuration."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MAESTRO_CELERY_BROKER_URL", raising=False)


def run_doctor(broker=None):
    """Run the doctor; return its exit code, its findings by subject, and its remedies by subject."""
    answer = CliRunner().invoke(main, ["doctor", *(["--broker", broker] if broker else [])], catch_exceptions=False)
    findings, remedies, subject = {}, {}, ""
    for line in answer.output.splitlines():
        if line.startswith(("ok  ", "NO  ")):
            subject, _, found = line[4:].partition(": ")
            findings[subject] = found
        else:
            remedies[subject] = line.strip()
    return answer.exit_code, findings, remedies


def distribution(path, name, version, **files):
    """Create the metadata of a distribution, which importlib.metadata finds in `path`."""
    directory = path / f"{name}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        (directory / f"{file}.json").write_text(text)
    return path


@pytest.fixture
def no_entry(tmp_path, monkeypatch):
    """A Maestro whose directory lacks the entry module of the plugin."""
    package = tmp_path / "site" / "maestrowf"
    shutil.copytree(Path(maestrowf.__file__).parent / "interfaces", package / "interfaces")
    (package / "interfaces" / "script" / "celeryscriptadapter.py").unlink()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "maestrowf")
    return package


def test_a_working_environment_with_a_private_broker_needs_no_remedy():
    code, findings, remedies = run_doctor()

    assert (code, remedies) == (0, {})
    assert findings["broker"].startswith("private, by '")
    assert findings["broker"].endswith("; it starts and answers")
    assert findings["touchpoints"] == "all 9 names exist"
    assert Path(findings["entry"]).name == "celeryscriptadapter.py"


def test_a_broker_that_answers_needs_no_remedy(broker):
    code, findings, remedies = run_doctor(broker)

    assert (code, remedies) == (0, {})
    assert findings["broker"].endswith("(from --broker); it answers")
    assert ":***@" in findings["broker"]


@pytest.mark.parametrize("url", ["redis://:zigzag@127.0.0.1:1/0", "http://127.0.0.1:1", "nonsense"])
def test_a_broker_that_does_not_answer_has_a_remedy(url):
    code, _, remedies = run_doctor(url)

    assert code == 1
    assert set(remedies) == {"broker"}
    assert "(from --broker) cannot be used: " in remedies["broker"]
    assert remedies["broker"].endswith("orrect the URL. Or use a private broker: --broker private.")
    assert "zigzag" not in remedies["broker"]


def test_an_editable_install_without_the_entry_has_its_own_remedy(no_entry, broker, monkeypatch):
    direct_url = '{"dir_info": {"editable": true}, "url": "file:///work"}'
    distribution(no_entry.parent, "maestro_celery_plugin", "0.1.0", direct_url=direct_url)

    code, findings, remedies = run_doctor(broker)

    assert code == 1
    assert findings["entry"].startswith(f"'{no_entry}/interfaces/script/celeryscriptadapter.py' does not exist")
    expected = "an editable install does not create it: use `pip install .` instead of `pip install -e .`"
    assert remedies["entry"] == expected


def test_a_missing_entry_needs_a_reinstallation(no_entry, broker):
    distribution(no_entry.parent, "maestro_celery_plugin", "0.1.0")

    code, _, remedies = run_doctor(broker)

    assert code == 1
    assert remedies["entry"].startswith(f"`{sys.executable} -m pip install --force-reinstall")


@pytest.mark.parametrize("version", ["1.1.9", "1.3.0", "1.20.0"])
def test_an_unsupported_maestro_has_a_remedy(broker, tmp_path, monkeypatch, version):
    monkeypatch.syspath_prepend(distribution(tmp_path / "old", "maestrowf", version))

    code, findings, remedies = run_doctor(broker)

    assert code == 1
    assert findings["maestrowf"] == version
    assert remedies == {"maestrowf": "pip install 'maestrowf>=1.2,<1.3'"}


def test_a_maestro_of_another_environment_first_on_path_has_a_remedy(broker, tmp_path, monkeypatch):
    (tmp_path / "maestro").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    code, findings, remedies = run_doctor(broker)

    assert code == 1
    assert findings["maestro"] == f"the 'maestro' on PATH is '{tmp_path}/maestro', of another environment"
    assert remedies == {
        "maestro": f"call '{Path(sys.executable).parent / 'maestro'}', or activate this environment"
    }


@pytest.mark.parametrize("others", [[], ["sbatch"]])
def test_the_package_of_flux_must_be_importable(broker, tmp_path, monkeypatch, others):
    """Given Flux without its Python package, then this is an error, unless there is another batch system."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("flux", *others):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    monkeypatch.setattr(doctor, "SCHEDULERS", {"slurm": "sbatch", "flux": "flux"})
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}")

    code, findings, remedies = run_doctor(broker)

    problem = "this Python has no package 'flux', which Maestro's adapter for 'flux' needs; add it to PYTHONPATH"
    found = f"{commands}/flux, but it cannot be used"
    assert findings["scheduler flux"] == (f"{found}: {problem}" if others else found)
    assert remedies.get("scheduler flux") == (None if others else problem)
    assert (code != 0) is (not others)
