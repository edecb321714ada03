"""The user's configuration: its file, its commands, and its part of a specification."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from maestro_celery_plugin.broker.choice import ENVIRONMENT_VARIABLE, choose
from maestro_celery_plugin.cli import main
from maestro_celery_plugin.config.user_configuration import (
    UserConfiguration,
    batch_defaults,
    configuration_path,
    read_configuration,
)
from maestro_celery_plugin.errors import ConfigurationError, SpecificationError
from maestro_celery_plugin.machine import host_name
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.specification import load_ensemble
from maestro_celery_plugin.study.plan import StudyPlan


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path


def write(text: str | bytes, mode: int = 0o600) -> Path:
    path = configuration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def config(*words: str, typed: str | None = None) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["config", *words], input=typed)
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, answer.output


def test_the_file_lies_in_the_configuration_directory_of_the_user(home, monkeypatch):
    assert configuration_path() == home / "xdg" / "maestro-celery" / "config.yaml"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert configuration_path() == home / ".config" / "maestro-celery" / "config.yaml"
    assert config("path") == (0, f"{configuration_path()}\n")


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_file_that_is_missing_or_empty_configures_nothing(text):
    if text is not None:
        write(text)
    assert read_configuration() == UserConfiguration()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("brokr: x", r"unknown key 'brokr'; did you mean 'broker'"),
        ("broker: [x]", r"broker: found a list; text is needed"),
        ("notify: ''", r"notify: found empty text; some text is needed"),
        ("batch: slurm", r"batch: found 'slurm'; a block of keys is needed"),
        ("batch: {'q*': slurm}", r"batch\.q\*: found 'slurm'; a block of keys is needed"),
        ("batch: {'q*': {bnk: x}}", r"batch\.q\*: unknown key 'bnk'; did you mean 'bank'"),
        ("batch: {'q*': {nodes: many}}", r"batch\.q\*\.nodes: found 'many'; an integer of at least 1 or 'all' is needed"),
        ("[1]", r"found a list; a block of keys is needed"),
        ("a: [1\nb", r"it is not YAML in line 2"),
        (b"\xff", r"it is not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_key(text, problem):
    path = write(text)
    with pytest.raises(ConfigurationError, match=rf"^{path}: {problem}; correct the file, or use `maestro-celery config set` and `unset`\.$"):
        read_configuration()
    code, output = config()
    assert code == 1
    assert "Traceback" not in output


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_read_or_write_is_refused(mode):
    path = write("broker: redis://:geheim@h/0\n", mode)
    with pytest.raises(ConfigurationError, match=rf"other users may read or change it \(mode {mode:04o}\).*`chmod 600 {path}`\.$"):
        read_configuration()


def test_the_broker_of_the_configuration_comes_before_that_of_merlin(home, monkeypatch):
    (home / "app.yaml").write_text("broker: {url: 'redis://merlin'}")
    path = write("broker: valkey://:geheim@own/0\n")
    assert (choose(None).url, choose(None).source) == ("redis://:geheim@own/0", str(path))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "redis://environment")
    assert choose(None).url == "redis://environment"
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    write("broker: private\n")
    assert choose(None).url is None


def test_the_blocks_of_matching_hosts_apply_in_their_order():
    configuration = UserConfiguration(batch={"*": {"bank": "a", "nodes": 1}, "quartz*": {"bank": "b"}, "lassen*": {"bank": "c"}})
    assert batch_defaults(configuration, "quartz12.llnl.gov") == {"bank": "b", "nodes": 1}
    assert batch_defaults(configuration, "laptop") == {"bank": "a", "nodes": 1}
    assert batch_defaults(UserConfiguration(batch={"quartz12": {"bank": "d"}}), "quartz12.llnl.gov") == {"bank": "d"}


def test_the_command_shows_the_broker_why_it_is_used_and_whether_it_answers(home):
    assert config() == (0, config()[1])
    assert "broker: private\n  its server is /" in config()[1]

    (home / "app.yaml").write_text("broker: {nonsense: 1}")
    path = write(f"broker: redis://:geheim@127.0.0.1:1/0\nbatch: {{'{host_name()}*': {{bank: physics}}, other: {{nodes: 3}}}}\n")
    code, output = config()
    assert code == 1
    assert "geheim" not in output
    assert output.splitlines() == [
        f"configuration: {path}",
        f"broker: redis://:***@127.0.0.1:1/0, from {path}",
        next(line for line in output.splitlines() if line.startswith("  not used: app.yaml: broker: unknown key 'nonsense'")),
        next(line for line in output.splitlines() if line.startswith("  error: The broker redis://:***@127.0.0.1:1/0")),
        f"batch: {{bank: physics}}, on this machine ({host_name()})",
        f"  on '{host_name()}*': {{bank: physics}}",
        "  on 'other': {nodes: 3}",
        "notify: nothing",
    ]
    assert config("--broker", "private")[0] == 0


def test_the_commands_set_and_remove_keys_and_keep_the_others():
    for key, value in (("batch.q*.x.bank", "physics"), ("batch.q*.x.nodes", "2"), ("batch.*.walltime", "1:00:00"), ("notify", "echo 3")):
        assert config("set", key, value)[0] == 0
    code, output = config("set", "broker", typed="redis://:geheim@127.0.0.1:1/0\n")
    assert code == 0
    assert "geheim" not in output
    assert "warning: The broker redis://:***@127.0.0.1:1/0" in output
    assert read_configuration() == UserConfiguration(
        broker="redis://:geheim@127.0.0.1:1/0",
        batch={"q*.x": {"bank": "physics", "nodes": 2}, "*": {"walltime": "1:00:00"}},
        notify="echo 3",
    )
    assert configuration_path().stat().st_mode & 0o777 == 0o600

    for key in ("broker", "batch.q*.x.nodes", "batch.*"):
        assert config("unset", key)[0] == 0
    assert read_configuration() == UserConfiguration(batch={"q*.x": {"bank": "physics"}}, notify="echo 3")
    assert config("unset", "broker") == (1, f"maestro-celery: error: {configuration_path()}: 'broker' is not set.\n")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("brokr", "x"), "There is no key 'brokr'; did you mean 'broker'?"),
        (("batch.bank", "x"), "There is no key 'batch.bank'"),
        (("batch.*.bnk", "x"), "batch.*: unknown key 'bnk'; did you mean 'bank'"),
        (("batch.*.nodes", "many"), "batch.*.nodes: found 'many'"),
        (("batch.*.nodes", "many"), "; nothing is stored."),
        (("broker", "redi://x"), "did you mean 'redis'? Correct the URL."),
    ],
)
def test_a_key_that_cannot_be_set_changes_nothing(words, problem):
    code, output = config("set", *words)
    assert code in (1, 2)
    assert problem in output
    assert "correct the file" not in output
    assert not configuration_path().exists()


SPEC = """
description: {name: s, description: d}
env: {variables: {BANK: chemistry}}
batch: {BATCH}
study:
- {name: a, description: d, run: {cmd: "true"}}
merlin: {}
"""


@pytest.mark.parametrize(
    ("own", "default", "result"),
    [
        ("", "bank: physics, queue: pbatch", ("local", "physics", "pbatch")),
        ("bank: own, queue: ", "bank: physics, queue: pbatch", ("local", "own", "pbatch")),
        ("type: local", "type: local, bank: physics", ("local", "physics", None)),
        ("type: local", "type: flux, bank: physics", ("local", None, None)),
        ("", "bank: $(BANK)", ("local", "chemistry", None)),
    ],
)
def test_a_specification_has_priority_over_the_configuration(home, own, default, result):
    write(f"batch: {{'*': {{{default}}}, 'elsewhere': {{bank: other}}}}\n")
    (home / "s.yaml").write_text(SPEC.replace("{BATCH}", f"{{{own}}}"))
    batch = load_ensemble(home / "s.yaml").ensemble.batch
    assert (batch.type, batch.bank, batch.queue) == result


def test_a_study_keeps_what_its_launch_has_taken_from_the_configuration(home, monkeypatch):
    write("batch: {'*': {bank: physics}}\n")
    (home / "s.yaml").write_text(SPEC.replace("{BATCH}", "{queue: pbatch}"))
    specification = load_ensemble(home / "s.yaml")
    assert specification.batch_defaults == {"bank": "physics"}
    texts = specification.texts(StudyPlan(root=home, timestamp="T", settings=specification.ensemble))
    for version in (texts.partial, texts.expanded):
        assert yaml.safe_load(version)["batch"] == {"bank": "physics", "queue": "pbatch"}
    monkeypatch.setattr(OPTIONS, "batch_defaults", {"bank": "of the launch"})
    assert load_ensemble(home / "s.yaml").ensemble.batch.bank == "of the launch"


def test_a_mistake_in_the_defaults_names_the_configuration(home):
    path = write("batch: {'*': {type: slrm}}\n")
    (home / "s.yaml").write_text(SPEC.replace("{BATCH}", "{}"))
    with pytest.raises(SpecificationError, match=rf"^{path}: batch\.type: .*slrm"):
        load_ensemble(home / "s.yaml")
