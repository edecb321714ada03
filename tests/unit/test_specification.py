"""The specification: Maestro reads one without a merlin block; the plugin reads all others and reports mistakes."""

from __future__ import annotations

import copy
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from maestrowf.datastructures.core import Study, StudyEnvironment
from maestrowf.specification.yamlspecification import YAMLSpecification

from maestro_celery_plugin.batch.slurm import Slurm
from maestro_celery_plugin.config.settings import BatchSettings, GenerateSettings, WorkerGroupSettings
from maestro_celery_plugin.config.step_entry import STEP_KEY
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.hookspecs import hookimpl
from maestro_celery_plugin.maestro.ensemble_detection import WORDS_OF_ENSEMBLES
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.plugins import batch_system, plugin_manager
from maestro_celery_plugin.spec import dag
from maestro_celery_plugin.spec.checks import STEP_SETTING_KEYS

SPECS = Path(__file__).parent / "specs"
PLAIN = (SPECS / "plain.yaml").read_text()


def step(name="a", **run):
    return {"name": name, "description": name, "run": {"cmd": "echo", **run}}


def spec(**blocks):
    base = {"description": {"name": "s", "description": "d"}, "study": [step()], "merlin": {}}
    return {**base, **blocks}


def samples(**keys):
    return {"samples": {"file": "x.csv", "column_labels": ["X"], **keys}}


def workers(**groups):
    return {"resources": {"workers": groups}}


def load(tmp_path, data, name="study.yaml"):
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return Specification.load_specification(str(path))


def message(tmp_path, data):
    with pytest.raises(SpecificationError) as error:
        load(tmp_path, data)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("study.yaml: ")
    return text.removeprefix("study.yaml: ")


def sampled(specification):
    return {s.name: s.run[STEP_KEY]["sampled"] for s in specification.get_study_steps()}


# --- without a merlin block --------------------------------------------------------------------------

CORPUS = {
    "plain": PLAIN,
    "no yaml": "a: [1\nb: }",
    "tab": "description:\n\tname: x",
    "no mapping": "- 1\n- 2",
    "a text": "hello",
    "empty": "",
    "null": "~",
    "duplicate anchor": PLAIN + "\nx: *unknown",
    "no description": PLAIN.replace("description:\n  name: plain", "descr:\n  name: plain", 1),
    "no name": PLAIN.replace("  name: plain\n", ""),
    "empty name": PLAIN.replace("name: plain", "name: ''"),
    "no study": PLAIN.replace("study:", "studdy:"),
    "unknown block": PLAIN + "\nsettings: {samples: {}}\n",
    "unknown step key": PLAIN.replace("depends:", "dependz:"),
    "unknown key of a step": PLAIN.replace("description: look at it", "descriptoin: look at it"),
    "no cmd": PLAIN.replace("      cmd: cat", "      restart: cat"),
    "wrong type": PLAIN.replace("depends: [make_*]", "depends: make_*"),
    "nodes": PLAIN.replace("depends: [make_*]", "nodes: two"),
    "empty values": PLAIN.replace("values: [1, 2]", "values: []"),
    "no label": PLAIN.replace("    label: SIZE.%%\n", ""),
    "lengths": PLAIN + "  OTHER:\n    values: [1]\n    label: O.%%\n",
    "env key": PLAIN.replace("  labels:", "  lables:"),
    "empty variable": PLAIN.replace("N: 3", "N: ''"),
    "null variable": PLAIN.replace("N: 3", "N:"),
    "a tuple": PLAIN.replace("note: &note ignored", "note: !!python/tuple [1]\n  x: ignored"),
    "an object": PLAIN.replace("note: &note ignored", "note: !!python/object:os.path {}\n  x: ignored"),
    "an invalid date": PLAIN.replace("N: 3", "N: 2001-13-45"),
    "unicode": PLAIN.replace("make something", "маке 🌊"),
    "not printable": PLAIN + "\x00",
    "unhashable": "? {a: 1}\n: 2\n",
}


def outcome(cls, load, caplog):
    caplog.clear()
    try:
        with caplog.at_level(logging.INFO):
            specification = load(cls)
    except Exception as error:
        # `.args` of YAML's errors are empty; `str` has file, line and column.
        logged = [re.sub("0x[0-9a-f]+", "0x", record.getMessage()) for record in caplog.records]
        return type(error), str(error), logged
    values = {key: value for key, value in vars(specification).items() if key != "ensemble"}
    steps = [(s.name, s.description, s.run) for s in specification.get_study_steps()]
    return values, steps, str(specification.get_study_environment().substitutions.keys())


@pytest.mark.parametrize("name", CORPUS)
def test_maestro_alone_reads_a_specification_without_a_merlin_block(name, tmp_path, caplog):
    path = tmp_path / "study.yaml"
    path.write_text(CORPUS[name])
    ways = {
        "file": lambda cls: cls.load_specification(str(path)),
        "text": lambda cls: cls.load_specification_from_stream(CORPUS[name]),
        "bytes": lambda cls: cls.load_specification_from_stream(CORPUS[name].encode()),
        "stream": lambda cls: cls.load_specification_from_stream(io.StringIO(CORPUS[name])),
    }
    for load_it in ways.values():
        assert outcome(Specification, load_it, caplog) == outcome(YAMLSpecification, load_it, caplog)


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe\xff")]
)
def test_maestro_reports_a_file_that_cannot_be_read(make, tmp_path, caplog):
    make(tmp_path / "x.yaml")

    def load_it(cls):
        return cls.load_specification(str(tmp_path / "x.yaml"))

    assert outcome(Specification, load_it, caplog) == outcome(YAMLSpecification, load_it, caplog)


def test_a_pipe_is_read_once():
    reading, writing = os.pipe()
    os.write(writing, PLAIN.encode())
    os.close(writing)
    try:
        assert Specification.load_specification(f"/dev/fd/{reading}").name == "plain"
    finally:
        os.close(reading)


def test_a_specification_without_a_merlin_block_has_no_ensemble(tmp_path):
    specification = load(tmp_path, PLAIN)
    assert specification.ensemble is None
    assert specification.batch == {"type": "local", "shell": "/bin/bash"}
    assert all(STEP_KEY not in s.run for s in specification.get_study_steps())
    assert "merlin samples" not in specification.get_study_environment().dependencies


@pytest.mark.parametrize("loads", [True, False])
def test_a_specification_without_a_merlin_block_imports_no_slow_package(loads):
    code = (
        "import sys\n"
        "from maestro_celery_plugin.maestro.ensemble_detection import WORDS_OF_ENSEMBLES\n"
        "from maestro_celery_plugin.maestro.specification import Specification as S\n"
        f"if {loads}: S.load_specification({str(SPECS / 'plain.yaml')!r}).get_study_environment()\n"
        "print(sorted({'celery', 'kombu', 'numpy', 'pluggy', 'psutil', 'msgspec', 'redis'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", STEP_SETTING_KEYS)
def test_each_step_key_of_an_ensemble_is_noticed_in_the_text(key):
    assert WORDS_OF_ENSEMBLES.search(f"      {key}: 1")


def test_maestro_alone_parses_a_specification_without_a_word_of_an_ensemble(monkeypatch):
    monkeypatch.setattr("maestro_celery_plugin.maestro.specification.load", None)
    text = "description: {name: a, description: b}\nstudy: [{name: c, description: d, run: {cmd: echo}}]"
    assert Specification.load_specification_from_stream(io.StringIO(text)).ensemble is None


def test_a_block_with_an_escaped_name_is_found(tmp_path):
    text = yaml.safe_dump(spec()).replace("merlin:", '"m\\x65rlin":')
    (tmp_path / "spec.yaml").write_text(text)
    assert Specification.load_specification(str(tmp_path / "spec.yaml")).ensemble is not None


def test_a_step_key_of_merlin_makes_an_ensemble(tmp_path):
    data = spec(study=[step(task_queue="q")])
    del data["merlin"]
    assert load(tmp_path, data).ensemble.resources.workers["default_worker"].task_queues == ("q",)


def test_an_ensemble_is_read_from_a_stream():
    specification = Specification.load_specification_from_stream(io.StringIO(yaml.safe_dump(spec())))
    assert specification.ensemble is not None
    assert specification.path is None


# --- what Merlin accepts -----------------------------------------------------------------------------


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setenv("TEST_VALUE", "value")
    monkeypatch.setenv("HOME", "/home/she")
    return Specification.load_specification(str(SPECS / "everything.yaml"))


def test_every_key_is_accepted(everything):
    assert everything.name == "every_keys"
    assert everything.desc == "all keys, for keys"
    assert everything.batch == {"type": "celery"}
    ensemble = everything.ensemble
    assert ensemble.batch == BatchSettings(
        type="slurm", queue="pbatch", nodes=2, walltime="10:30:00", launch_pre="true",
        launch_args="--mpibind=off", flux_path="/usr/bin", flux_start_opts="-o,-S", flux_exec="flux exec",
    )  # fmt: skip
    assert ensemble.samples.column_labels == ("X", "Y")
    assert ensemble.samples.level_max_dirs == 5
    assert ensemble.samples.file == "$(MERLIN_INFO)/table.csv"
    assert ensemble.samples.generate == GenerateSettings(
        cmd="python3 make.py ~ $TEST_VALUE 5 > $(MERLIN_INFO)/table.csv"
    )


def test_every_key_of_a_worker_group_is_accepted(everything):
    groups = everything.ensemble.resources.workers
    assert groups["worker_keys"] == WorkerGroupSettings(
        args="-l INFO --concurrency 5 --prefetch-multiplier 1 -Ofair -E",
        steps=("first",), task_queues=("queue_keys",), nodes=2, batch={"type": "local"}, machines=("host1", "host2"),
    )  # fmt: skip
    assert groups["bare"] == WorkerGroupSettings(task_queues=("merlin",))
    assert groups["second"] == WorkerGroupSettings(steps=("second",), task_queues=("q_1", "q_2"), batch={"type": "local"})
    assert groups["nulls"] == WorkerGroupSettings(task_queues=())
    assert "default_worker" not in groups


def test_every_key_of_a_step_is_accepted(everything):
    first, second, third = everything.get_study_steps()
    assert first.run["cmd"] == "ls ~ $TEST_VALUE keys/value/there $(X) 5\n"
    assert first.run["restart"] == "echo ~ $TEST_VALUE /home/she/here"
    assert first.run["nodes"] == 2
    assert first.run["walltime"] == "1:30:00"
    entry = first.run[STEP_KEY]
    assert entry["settings"]["shell"] == "/bin/sh"
    assert entry["settings"]["max_retries"] == 5
    assert entry["settings"]["task_queue"] == "queue_keys"
    assert second.run["restart"] == second.run["cmd"]
    assert second.run[STEP_KEY]["settings"]["batch"] == {"type": "local"}
    assert "task_queue" not in second.run
    assert third.run["depends"] == ["second*", "first"]
    assert sampled(everything) == {"first": True, "second": False, "third": False}


def test_every_key_of_the_environment_is_accepted(everything):
    assert everything.output_path == f"{SPECS}/studies"
    variables = everything.environment["variables"]
    assert variables["LIST"] == "[1, 2]"
    assert type(variables["HOURS"]) is int
    assert variables["HOURS"] == 90
    assert variables["BOTH"] == "keys/value/there"
    assert variables["HOME_DIR"] == "/home/she/here"
    assert everything.environment["labels"] == {"LABEL": "$(A.label)/keys"}
    environment = everything.get_study_environment()
    assert set(environment.dependencies) == {"DATA", "merlin samples"}


def test_maestro_puts_parameters_into_task_queues(everything, tmp_path):
    """Given a task queue with a parameter, when Maestro expands the steps, then each has an expanded task queue."""
    environment = everything.get_study_environment()
    environment.remove("merlin samples")
    study = Study(
        "s",
        everything.description,
        environment,
        everything.get_parameters(),
        everything.get_study_steps(),
        str(tmp_path),
    )
    study.setup_workspace()
    study.configure_study()
    study.setup_environment()
    _, graph = study.stage()
    found = {
        record.step.run[STEP_KEY]["settings"].get("task_queue", "merlin")
        for name, record in graph.values.items()
        if name != "_source"
    }
    assert found == {"queue_keys", "q_1", "q_2", "merlin"}


@pytest.mark.parametrize(
    "merlin",
    [None, {}, {"resources": None, "samples": None}, {"resources": {}}, {"resources": {"workers": None}},
     {"resources": {"workers": {}, "task_server": None, "overlap": None}}],
)  # fmt: skip
def test_empty_blocks_count_as_absent(merlin, tmp_path):
    data = spec(merlin=merlin, env=None, batch=None, user=None, **{"global.parameters": None})
    ensemble = load(tmp_path, data).ensemble
    assert ensemble.samples is None
    assert list(ensemble.resources.workers) == ["default_worker"]
    assert ensemble.batch == BatchSettings()


@pytest.mark.parametrize("env", [{"variables": None}, {"labels": None, "sources": None}, {"dependencies": None},
                                 {"dependencies": {"paths": None, "git": None, "spack": None}}])  # fmt: skip
def test_empty_blocks_of_env_are_accepted(env, tmp_path):
    load(tmp_path, spec(env=env)).get_study_environment()


@pytest.mark.parametrize(
    "key", ["restart", "nodes", "shell", "batch", "depends", "bind", "walltime", "task_queue"]
)
def test_a_step_key_without_a_value_counts_as_absent(key, tmp_path):
    with_null = load(tmp_path, spec(study=[step(**{key: None})])).get_study_steps()[0]
    assert with_null.run == load(tmp_path, spec()).get_study_steps()[0].run


# --- variables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "text", "result"),
    [
        ({"N": 7}, "$(N)", 7),
        ({"N": 0}, "$(N)", 0),
        ({"N": "007"}, "$(N)", "007"),
        ({"A": 1, "B": "$(A)"}, "$(B)", 1),
        ({"A": 1, "B": "x$(A)", "C": "$(B)$(A)"}, "$(C)", "x11"),
        ({"C": "$(B)", "B": "$(A)", "A": "a"}, "$(C)", "a"),
        ({"A": "\\1 $(PARAM)"}, "<$(A)>", "<\\1 $(PARAM)>"),
        ({"A": "~/x"}, "$(A)", "/home/she/x"),
        ({"A": "$TEST_VALUE/${TEST_VALUE}"}, "$(A)", "value/value"),
        ({"A": "$UNSET_VALUE"}, "$(A)", "$UNSET_VALUE"),
        ({"small": 1}, "$(SMALL)", 1),
        ({"small": 1, "SMALL": 2}, "$(SMALL)$(small)", "21"),
        ({"A": [1, 2]}, "$(A)", [1, 2]),
        ({"OUTPUT_PATH": "./x"}, "$(OUTPUT_PATH)", "$(OUTPUT_PATH)"),
    ],
)
def test_variables_are_replaced_by_their_values(variables, text, result, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_VALUE", "value")
    monkeypatch.setenv("HOME", "/home/she")
    data = spec(
        env={"variables": variables}, **{"global.parameters": {"P": {"values": [text], "label": "P"}}}
    )
    assert load(tmp_path, data).globals["P"]["values"] == [result]


def test_a_lower_case_variable_does_not_replace_parameters_and_labels(tmp_path):
    data = spec(
        env={"variables": {"x": 1, "p": 2}},
        study=[step(cmd="$(X) $(P) $(x) $(p)")],
        merlin=samples(),
        **{"global.parameters": {"P": {"values": [5], "label": "P"}}},
    )
    assert load(tmp_path, data).get_study_steps()[0].run["cmd"] == "$(X) $(P) 1 2"


def test_many_variables_that_use_other_variables_are_accepted(tmp_path):
    variables = {
        "V0": "x",
        **{f"V{n}": f"$(V{n - 1})$(V{n - 1})"[: 6 if n > 10 else 99] for n in range(1, 40)},
    }
    read = load(tmp_path, spec(env={"variables": variables}, study=[step(cmd="$(V39)")]))
    assert read.study[0]["run"]["cmd"] == "x" * 2**10


def test_a_home_directory_is_expanded_in_a_variable_named_cmd_but_not_in_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/she")
    data = spec(
        env={"variables": {"cmd": "~/x"}}, study=[step(cmd="ls ~ $(cmd)", restart="~")]
    )
    specification = load(tmp_path, data)
    assert specification.environment["variables"] == {"cmd": "/home/she/x"}
    run = specification.get_study_steps()[0].run
    assert (run["cmd"], run["restart"]) == ("ls ~ /home/she/x", "~")


@pytest.mark.parametrize(
    ("env", "start"),
    [
        ({"variables": {"A": "$(A)"}}, "env.variables.A: the variable refers to itself: A -> A; give it a value."),
        ({"variables": {"PYTHON": "$(A)", "A": "<INSERT PATH HERE>"}},
         "env.variables.PYTHON: found the placeholder '<INSERT PATH HERE>'; replace it with a value."),
        ({"variables": {"P": "<YOUR_PYTHON>"}}, "env.variables.P: found the placeholder '<YOUR_PYTHON>'; replace it"),
        ({"variables": {"A": "$(B)", "B": "x$(C)", "C": "$(A)"}},
         "env.variables.A: the variable refers to itself: A -> B -> C -> A; give it a value."),
        ({"variables": {"A": "x"}, "labels": {"L": "$(L)"}}, "env.labels.L: the variable refers to itself: L -> L; give"),
        ({"variables": {"A": None}}, "env.variables.A: found nothing; text or a number or a list is needed"),
        ({"variables": {"A": ""}}, "env.variables.A: found ''"),
        ({"variables": ["A"]}, "env.variables: found a list; a block of keys is needed"),
        ({"labels": "x"}, "env.labels: found 'x'; a block of keys is needed"),
        ({"variable": {"A": 1}}, "env: unknown key 'variable'; did you mean 'variables'?"),
        ({"variables": {"MERLIN_INFO": "x"}}, "env.variables.MERLIN_INFO: $(MERLIN_INFO) is a reserved name"),
        ({"variables": {"SPECROOT": "x"}}, "env.variables.SPECROOT: $(SPECROOT) is a reserved name"),
        ("x", "env: found 'x'; a block of keys is needed"),
    ],
)  # fmt: skip
def test_each_mistake_in_env_has_its_message(env, start, tmp_path):
    assert message(tmp_path, spec(env=env)).startswith(start)


def test_two_keys_with_the_same_expanded_name_are_refused(tmp_path):
    data = spec(env={"variables": {"A": "w", "B": "w"}}, merlin=workers(**{"$(A)": {}, "$(B)": {}}))
    assert message(tmp_path, data) == (
        "merlin.resources.workers: found the key 'w' twice (also as '$(B)'); use each key once."
    )


# --- mistakes ----------------------------------------------------------------------------------------

PARAMETER = {"P": {"values": [1, 2], "label": "P.%%"}}


@pytest.mark.parametrize(
    ("blocks", "start"),
    [
        ({"global.parameter": {}}, "unknown block 'global.parameter'; did you mean 'global.parameters'?"),
        ({"batsch": {}}, "unknown block 'batsch'; did you mean 'batch'?"),
        ({"merlin": {"sampels": {}}}, "merlin: unknown key 'sampels'; did you mean 'samples'?"),
        ({"merlin": {"resources": {"worker": {}}}}, "merlin.resources: unknown key 'worker'; did you mean 'workers'?"),
        ({"merlin": samples(level_max_dir=3)}, "merlin.samples: unknown key 'level_max_dir'; did you mean 'level_max_"),
        ({"merlin": samples(generate={"cmd": "x", "shell": "y"})}, "merlin.samples.generate: unknown key 'shell'; allowed"),
        ({"merlin": workers(w={"arg": "x"})}, "merlin.resources.workers.w: unknown key 'arg'; did you mean 'args'?"),
        ({"merlin": workers(w={"batch": {"bnak": "x"}})},
         "merlin.resources.workers.w.batch: unknown key 'bnak'; did you mean 'bank'?"),
        ({"batch": {"tpye": "local"}}, "batch: unknown key 'tpye'; did you mean 'type'?"),
        ({"study": [step(max_retry=3)]}, "study.a.run: unknown key 'max_retry'; did you mean 'max_retries'?"),
        ({"study": [step(batch={"tpye": 3})]}, "study.a.run.batch: unknown key 'tpye'; did you mean 'type'?"),
        ({"study": [{**step(), "descripton": 1}]}, "study.a: unknown key 'descripton'; did you mean 'description'?"),
        ({"global.parameters": {"P": {"values": [1], "lable": "x"}}},
         "global.parameters.P: unknown key 'lable'; did you mean 'label'?"),
        ({"merlin": []}, "merlin: found a list; a block of keys is needed"),
        ({"batch": "slurm"}, "batch: found 'slurm'; a block of keys is needed"),
        ({"study": {"a": 1}}, "study: the block is missing or empty; a list of steps is needed."),
        ({"study": []}, "study: the block is missing or empty; a list of steps is needed."),
        ({"study": [1]}, "study[0]: found '1'; a block of keys is needed"),
        ({"study": [{"name": "a", "description": "x"}]}, "study.a: the key 'run' is missing; add it."),
        ({"study": [step(cmd=None)]}, "study.a.run: the key 'cmd' is missing; add it."),
        ({"study": [step(cmd=3)]}, "study.a.run.cmd: found '3'; text is needed"),
        ({"study": [step(nodes="many")]}, "study.a.run.nodes: found 'many'; an integer of at least 1 or a variable"),
        ({"study": [step(task_queue=3)]}, "study.a.run.task_queue: found '3'; text is needed"),
        ({"description": None}, "description: the block is missing or empty; a block of keys is needed."),
        ({"description": {"description": "x"}}, "description: the key 'name' is missing; add it."),
        ({"description": {"name": "x"}}, "description: the key 'description' is missing; add it."),
        ({"description": {"name": "x", "descripton": "y"}}, "description: unknown key 'descripton'; did you mean 'description'?"),
        ({"merlin": {"samples": {"column_labels": ["X"]}}}, "merlin.samples: the key 'file' is missing; add it."),
        ({"merlin": samples(file=None)}, "merlin.samples: the key 'file' is missing; add it."),
        ({"merlin": {"samples": {}}}, "merlin.samples: the key 'file' is missing; add it."),
        ({"merlin": samples(column_labels=[])}, "merlin.samples.column_labels: found an empty list; at least one entry"),
        ({"merlin": samples(column_labels=None)}, "merlin.samples: the key 'column_labels' is missing; add it."),
        ({"merlin": samples(column_labels=["X", "Y", "X"])}, "merlin.samples.column_labels: found 'X' twice; each column needs its own label."),
        ({"merlin": samples(column_labels=["a b"])}, "merlin.samples.column_labels: 'a b' cannot be a token"),
        ({"merlin": samples(column_labels=["WORKSPACE"])}, "merlin.samples.column_labels: 'WORKSPACE' is a reserved"),
        ({"merlin": samples(column_labels=["P"]), "global.parameters": PARAMETER},
         "merlin.samples.column_labels: 'P' is also a name in global.parameters; $(P) must have one meaning."),
        *(({"merlin": samples(column_labels=[f"P.{kind}"]), "global.parameters": PARAMETER},
           f"merlin.samples.column_labels: 'P.{kind}' is also a name in global.parameters; $(P.{kind}) must have one meaning.")
          for kind in ("label", "name")),
        ({"merlin": samples(column_labels=["a.workspace"])},
         "merlin.samples.column_labels: 'a.workspace' is also a name in study; $(a.workspace) must have one meaning."),
        ({"merlin": samples(), "env": {"variables": {"X": 1}}},
         "merlin.samples.column_labels: 'X' is also a name in env.variables; $(X) must have one meaning."),
        ({"merlin": samples(), "env": {"labels": {"X": "x"}}},
         "merlin.samples.column_labels: 'X' is also a name in env.labels; $(X) must have one meaning."),
        ({"merlin": samples(level_max_dirs=2.5)}, "merlin.samples.level_max_dirs: found '2.5'; an integer of at least 2"),
        ({"merlin": {"resources": {"task_server": "dask"}}}, "merlin.resources.task_server: found 'dask'; allowed: 'celery'."),
        ({"merlin": workers(sim={"steps": ["simm", "post"]}), "study": [step("sim"), step("post")]},
         "merlin.resources.workers.sim.steps: unknown step 'simm'; steps are 'sim', 'post'."),
        ({"merlin": workers(w={"steps": ["a"], "task_queues": ["q"]}), "study": [step(task_queue="q")]},
         "merlin.resources.workers.w: found both steps and task_queues; use one of them."),
        ({"merlin": workers(w={"task_queues": ["sims"]}), "study": [step(task_queue="sim")]},
         "merlin.resources.workers.w.task_queues: no step uses the task queue 'sims'; did you mean 'sim'?"),
        ({"merlin": workers(**{"a/b": {}})},
         "merlin.resources.workers.a/b: found 'a/b'; the name is also a file name, so it must not contain '/' or begin "
         "with a dot."),
        ({"merlin": workers(w={"allocation": "../b"})},
         "merlin.resources.workers.w.allocation: found '../b'; the name is also a file name, so it must not contain '/' or "
         "begin with a dot."),
        ({"merlin": workers(w={"args": "--concurency 3"})},
         "merlin.resources.workers.w.args: No such option '--concurency'. Did you mean '--concurrency'?"),
        ({"merlin": workers(w={"args": "-Q x"})}, "merlin.resources.workers.w.args: the option --queues cannot be set"),
        ({"study": [step("a"), step("b"), step("a")]}, "study.a: two steps have this name; each step needs its own name."),
        ({"study": [step("simulate"), step("b", depends=["simulat"])]},
         "study.b.run.depends: unknown step 'simulat'; did you mean 'simulate'?"),
        ({"study": [step("simulate"), step("b", depends=["simulat_*"])]},
         "study.b.run.depends: unknown step 'simulat_*'; did you mean 'simulate_*'?"),
        ({"study": [step("sim"), step("b", cmd="ls $(simm.workspace)", depends=["sim"])]},
         "study.b.run.cmd: found '$(simm.workspace)'; there is no step 'simm'; did you mean 'sim'?"),
        ({"study": [step("sim"), step("b", cmd="ls $(sim.workspace)/$(P)/$(sim.workspace)", depends=["sim"])]},
         "study.b.run.cmd: found '$(sim.workspace)/$(P)/$(sim.workspace)'; Maestro reads the whole text as one name; "
         "separate the tokens with a blank or a quote."),
        ({"study": [step("my sim"), step("b", cmd="ls $(my sim.workspace)/x", depends=["my sim"])]},
         "study.b.run.cmd: found '$(my sim.workspace)'; Maestro does not find a step whose name has a blank, a quote, '#', '@' or a "
         "backslash; rename it."),
        ({"study": [step("sim"), step("b", cmd="ls $( sim.workspace )", depends=["sim"])]},
         "study.b.run.cmd: found '$( sim.workspace )'; write '.workspace' in lower case, without blanks around the name."),
        ({"study": [step("sim"), step("b", restart="ls $(sim.Workspace)", depends=["sim"])]},
         "study.b.run.restart: found '$(sim.Workspace)'; write '.workspace' in lower case"),
        ({"study": [step("sim"), step("b", cmd="ls $(my sim.workspace)", depends=["sim"])]},
         "study.b.run.cmd: found '$(my sim.workspace)'; Maestro does not find"),
        ({"study": [step("sim#1"), step("b", cmd="ls $(sim#1.workspace)", depends=["sim#1"])]},
         "study.b.run.cmd: found '$(sim#1.workspace)'; Maestro does not find"),
        ({"study": [step("sim", depends=["pre"]), step("pre")]},
         "study.sim.run.depends: the step 'pre' must stand before 'sim' in the study; move it up."),
        ({"study": [step("sim", depends=["pre_*"]), step("pre")]}, "study.sim.run.depends: the step 'pre' must stand before 'sim'"),
        ({"study": [step("sim", cmd="ls $(b.workspace)"), step("b", depends=["sim"])]},
         "study.sim.run.cmd: found '$(b.workspace)'; the step 'b' depends on this step, and has no workspace yet."),
        ({"study": [step("a", restart="ls $(a.workspace)")]},
         "study.a.run.restart: found '$(a.workspace)'; use '$(WORKSPACE)' for the workspace of the step itself."),
        ({"study": [step("a", depends=["b"]), step("b", depends=["a_*"])]},
         "study.a.run.depends: these steps depend on each other: a -> b -> a."),
        ({"study": [step(batch={"dry_run": True})]}, "study.a.run.batch.dry_run: a dry run is one of the whole study"),
        ({"study": [step(pre="x")]}, "study.a.run.pre: Maestro and Merlin accept this key, but do not run it; remove it, or put its commands"),
        ({"study": [step(post="x")]}, "study.a.run.post: Maestro and Merlin accept this key, but do not run it; remove it, or put its commands"),
        ({"study": [step("a", depends=["a"])]}, "study.a.run.depends: the step depends on itself."),
        ({"study": [step("a", depends="b")]}, "study.a.run.depends: found 'b'; a list is needed"),
        ({"global.parameters": {**PARAMETER, "Q": {"values": [1], "label": "x"}}},
         "global.parameters.Q.values: found 1 values, but 'P' has 2; all parameters need the same number."),
        ({"global.parameters": {"P": {"values": [], "label": "x"}}}, "global.parameters.P.values: found an empty list"),
        ({"study": [step(task_queue="q_$(Q)")], "global.parameters": PARAMETER},
         "study.a.run.task_queue: $(Q) in 'q_$(Q)' is neither a variable of env nor a parameter, so the task queue of the "
         "workers is unknown; allowed: 'P'."),
        ({"study": [step(task_queue="$(X)")], "merlin": samples()}, "study.a.run.task_queue: $(X) in '$(X)' is neither"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_message(blocks, start, tmp_path):
    assert message(tmp_path, spec(**copy.deepcopy(blocks))).startswith(start)


def notes(tmp_path, caplog, data):
    """Return what the launch says about a specification."""
    load(tmp_path, data)
    return [record.getMessage().removeprefix("study.yaml: ") for record in caplog.records]


CAPITALS = " is not a column label, parameter or variable, and the shell will run it as a command."
DOUBLED = " is an absolute path itself; remove what stands before it, or write a relative path."
OTHER_CASE = ", because upper and lower case differ, so it stays as it is; Merlin would insert the value."


def shared(name):
    return (
        f"study.a.run.cmd: all samples of the step write '$(WORKSPACE)/{name}'; write '{name}' instead, which is in the directory of "
        "the sample."
    )


@pytest.mark.parametrize(
    ("cmd", "expected"),
    [
        ("echo $(X) $(NONE)", ["study.a.run.cmd: $(NONE)" + CAPITALS]),
        ('echo $(X) "$(NONE)"', ["study.a.run.cmd: $(NONE)" + CAPITALS]),
        ('echo $(X) "it\'s $(NONE)"', ["study.a.run.cmd: $(NONE)" + CAPITALS]),
        ("echo $(X) '$(NONE)'", []),
        ("echo $(X) \\$(NONE)", []),
        ("echo $(X) # don't use $(NONE)\necho", []),
        ("cat > $(X) <<'END'\nit's $(NONE)\nEND\necho", []),
        ("cat > $(X) <<END\n$(NONE)\nEND\n", ["study.a.run.cmd: $(NONE)" + CAPITALS]),
        ("echo $(X) $(x)", ["study.a.run.cmd: $(x) is not the column 'X'" + OTHER_CASE]),
        ("echo $(X) '$(x)'", ["study.a.run.cmd: $(x) is not the column 'X'" + OTHER_CASE]),
        ("echo $(X) > $(WORKSPACE)/all.txt; echo $(X) >> $(WORKSPACE)/all.txt", [shared("all.txt")]),
        ('run $(X) | tee -a "$(WORKSPACE)/out/$(P).txt"', [shared("out/$(P).txt")]),
        ("echo $(X) > $(WORKSPACE)/$(MERLIN_SAMPLE_PATH)/x; echo > $(WORKSPACE)/y_$(X); echo > $(WORKSPACE)/z_$NAME", []),
        ("echo $(X) > x; cat $(WORKSPACE)/all.txt", []),
        ("cp $(X) $(P)/$(OUTPUT_PATH)/x", ["study.a.run.cmd: found '$(P)/$(OUTPUT_PATH)', but $(OUTPUT_PATH)" + DOUBLED]),
        ("cp $(X) $(OUTPUT_PATH)/$(P) /scratch/$(WORKSPACE)", []),
        ("echo $(MERLIN_SAMPLE_NAMES)",
         ["merlin.samples: no step uses the samples, so each step runs once: no cmd or restart has $(X) or one of $(MERLIN_SAMPLE_ID), "
          "$(MERLIN_SAMPLE_PATH), $(MERLIN_SAMPLE_VECTOR)."]),
    ],
)  # fmt: skip
def test_the_launch_says_which_tokens_have_another_result_than_expected(tmp_path, caplog, cmd, expected):
    parameters = {"P": {"values": [1], "label": "P.%%"}}
    found = notes(tmp_path, caplog, spec(study=[step(cmd=cmd)], merlin=samples(), **{"global.parameters": parameters}))
    assert found == expected


@pytest.mark.parametrize(
    ("cmd", "warns"),
    [
        ("echo $SIZE", True),
        ('echo "${SIZE:-1}"', True),
        ("echo $(SIZE) $SIZES $size $HOME", False),
        ("echo '$SIZE' \\$SIZE # $SIZE", False),
        ("export SIZE=$(SIZE)\necho $SIZE", False),
        ("for SIZE in 1 2; do echo $SIZE; done", False),
        ("read A SIZE < x; echo $SIZE", False),
    ],
)
@pytest.mark.parametrize("is_set", [False, True])
def test_a_variable_of_env_is_none_of_the_shell(tmp_path, caplog, monkeypatch, cmd, warns, is_set):
    """Given a script that reads a variable of `env` from its environment, as Merlin's workers allow, then a warning."""
    monkeypatch.delenv("SIZE", raising=False)
    if is_set:
        monkeypatch.setenv("SIZE", "1")
    env = {"variables": {"SIZE": 5, "HOME": "h"}}
    found = notes(tmp_path, caplog, spec(env=env, study=[step(cmd=cmd)]))
    expected = "study.a.run.cmd: $SIZE is a variable of the shell, which nothing sets here; write $(SIZE) for the value in env."
    assert [text.partition(" (Merlin")[0] for text in found] == [expected] * (warns and not is_set)


def test_a_doubled_path_is_said_once_where_it_is_written(tmp_path, caplog):
    env = {"variables": {"OUTPUT_PATH": "/out", "ALL": "$(SPECROOT)/$(OUTPUT_PATH)/all"}}
    found = notes(tmp_path, caplog, spec(env=env, study=[step(cmd="ls $(ALL)"), step("b", cmd="ls $(ALL)")]))
    assert found == ["env.variables.ALL: found '$(SPECROOT)/$(OUTPUT_PATH)', but $(OUTPUT_PATH)" + DOUBLED]


def test_a_relative_output_path_below_the_specification_is_merlins(tmp_path, caplog):
    """Given `$(SPECROOT)/$(OUTPUT_PATH)`, which all iterations of a study share in Merlin, then it has no study's path."""
    env = {"variables": {"OUTPUT_PATH": "./out", "ALL": "$(SPECROOT)/$(OUTPUT_PATH)/all"}}
    specification = load(tmp_path, spec(env=env, study=[step(cmd="ls $(ALL) $(SPECROOT)/$(OUTPUT_PATH) $(OUTPUT_PATH)/x")]))
    assert specification.study[0]["run"]["cmd"] == "ls $(SPECROOT)/./out/all $(SPECROOT)/./out $(OUTPUT_PATH)/x"
    assert not caplog.records


def test_a_script_of_another_interpreter_has_other_quotes(tmp_path, caplog):
    found = notes(tmp_path, caplog, spec(study=[step(cmd="print('$(NONE)')", shell="/usr/bin/env python3")]))
    assert found == ["study.a.run.cmd: $(NONE)" + CAPITALS]


def test_blocks_and_batch_keys_of_other_programs_are_left_to_them(tmp_path, caplog):
    data = spec(batch={"type": "local", "site": {"x": 1}}, **{"generator.parameters": {"P": [1]}, "berlin": {3: "note"}})
    assert notes(tmp_path, caplog, data) == [
        "the unknown block 'generator.parameters' is ignored.",
        "the unknown block 'berlin' is ignored.",
        "batch: the unknown key 'site' is ignored.",
    ]


UNORDERED = "found '$(f.workspace)'; the step does not wait for 'f'; add it to 'depends'."


def test_a_workspace_of_a_step_that_comes_later_in_maestro_is_refused(tmp_path):
    """Given a step that does not depend on the step whose workspace it uses, then Maestro's conductor would fail."""
    steps = [step("f"), step("g", cmd="ls $(f.workspace)")]
    assert message(tmp_path, spec(study=steps)) == f"study.g.run.cmd: {UNORDERED}"


def test_a_workspace_of_a_step_that_may_run_at_the_same_time_is_warned_of(tmp_path, caplog):
    steps = [step("g", restart="ls $(f.workspace)"), step("f"), step("h", depends=["f"]), step("i", cmd="$(f.workspace)", depends=["h_*"])]
    assert notes(tmp_path, caplog, spec(study=steps)) == [f"study.g.run.restart: {UNORDERED}"]


def test_a_long_chain_of_steps_is_accepted(tmp_path):
    names = [f"s{number}" for number in range(1200)]
    load(tmp_path, spec(study=[step(name, depends=names[max(0, n - 1) : n]) for n, name in enumerate(names)]))


def test_the_order_of_the_workspaces_is_that_of_maestro(tmp_path):
    names = "abcdefgh"
    parents = {"a": [], "b": [], "c": ["a", "b"], "d": ["a"], "e": ["c", "d"], "f": [], "g": ["f", "c"], "h": ["b"]}
    steps = [step(name, depends=parents[name]) for name in names]
    study = Study("s", {}, steps=load(tmp_path, spec(study=steps)).get_study_steps(), studyenv=StudyEnvironment())
    expected = study.topological_sort()[1:]
    assert sorted(names, key=dag._order_of_maestro(parents).__getitem__) == expected


def test_a_command_may_read_a_file_with_the_suffix_workspace(tmp_path, caplog):
    assert not notes(tmp_path, caplog, spec(study=[step("sim", cmd="echo $(cat notes.workspace)")]))


@pytest.mark.parametrize(("label", "warns"), [("T", True), ("T.%%", False)])
def test_a_label_without_the_value_logs_a_warning(label, warns, tmp_path, caplog):
    load(tmp_path, spec(**{"global.parameters": {"T": {"values": [1, 2], "label": label}}}))
    expected = "study.yaml: global.parameters.T.label: 'T' has no '%%' for the value; add it."
    assert any(record.getMessage().startswith(expected) for record in caplog.records) is warns


def test_a_mistake_that_only_maestro_finds_is_one_message_too(tmp_path, caplog):
    git = [{"name": "A", "path": "p", "url": "u"}]
    data = spec(env={"variables": {"A": 1}, "dependencies": {"git": git}})
    assert message(tmp_path, data) == "Variable name 'A' is already taken. All variable names must be unique."
    assert not caplog.records


def test_a_misspelt_merlin_block_is_refused(tmp_path):
    """Given a specification with a block `merln` and no `merlin`, then it does not run as a study of Maestro alone."""
    with pytest.raises(SpecificationError, match=r"unknown block 'merln'; did you mean 'merlin'\?"):
        load(tmp_path, PLAIN + "\nmerln: {samples: {}}\n")


def test_a_block_of_another_purpose_is_left_to_maestro(tmp_path):
    assert load(tmp_path, PLAIN + "\nberlin: {contact: me}\n").ensemble is None


def test_a_shell_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SpecificationError, match=r"study\.a\.run\.shell: found '/no/such', which is not a program on this machine; "
        r"use a program such as /bin/bash or python3\.$"):
        load(tmp_path, spec(study=[step("a", shell="/no/such")]))
    with pytest.raises(SpecificationError, match=r"No closing quotation"):
        load(tmp_path, spec(batch={"shell": "bash '"}))


def test_a_python_tag_in_an_ensemble_is_refused(tmp_path):
    """Given YAML that creates Python objects, when it has a merlin block, then a message of one line refuses it."""
    text = yaml.safe_dump(spec()) + "user: !!python/tuple [1]\n"

    with pytest.raises(SpecificationError, match=r"study.yaml: line \d+, column 7: .*python/tuple"):
        load(tmp_path, text)


@pytest.mark.parametrize("dependency", ["a", "a_*", "a*"])
def test_a_dependency_may_be_a_funnel(dependency, tmp_path):
    load(tmp_path, spec(study=[step("a"), step("b", depends=[dependency])]))


# --- worker groups -----------------------------------------------------------------------------------

STEPS = [step("a", task_queue="qa"), step("b", task_queue="qb"), step("c", task_queue="qb"), step("d")]


def queues_of(specification):
    return {name: group.task_queues for name, group in specification.ensemble.resources.workers.items()}


@pytest.mark.parametrize(
    ("groups", "served"),
    [
        ({}, {"default_worker": ("qa", "qb", "merlin")}),
        ({"w": {"steps": ["all"]}}, {"w": ("qa", "qb", "merlin")}),
        ({"w": {}}, {"w": ("qa", "qb", "merlin")}),
        ({"w": {"steps": ["a"]}}, {"w": ("qa",), "default_worker": ("qb", "merlin")}),
        ({"w": {"steps": ["b"]}}, {"w": ("qb",), "default_worker": ("qa", "merlin")}),
        ({"w": {"task_queues": ["qb", "qa"]}}, {"w": ("qb", "qa"), "default_worker": ("merlin",)}),
        ({"w": {"task_queues": ["merlin"]}, "v": {"steps": ["a", "b"]}}, {"w": ("merlin",), "v": ("qa", "qb")}),
        ({"w": {"steps": ["a", "all"]}}, {"w": ("qa", "qb", "merlin")}),
        ({"default_worker": {"steps": ["a"], "args": "-c 1"}}, {"default_worker": ("qa", "qb", "merlin")}),
    ],
)  # fmt: skip
def test_a_group_serves_its_task_queues_and_the_default_group_serves_the_others(groups, served, tmp_path, caplog):
    specification = load(tmp_path, spec(study=STEPS, merlin=workers(**groups)))
    assert queues_of(specification) == served
    assert not caplog.records


def test_a_default_group_of_the_user_keeps_its_options(tmp_path):
    groups = {"default_worker": {"steps": ["a"], "args": "-c 1"}}
    group = load(tmp_path, spec(study=STEPS, merlin=workers(**groups))).ensemble.resources.workers[
        "default_worker"
    ]
    assert group.args == "-c 1"
    assert group.steps == ("a", "b", "c", "d")


def test_the_first_of_two_groups_with_the_same_task_queue_serves_it(tmp_path, caplog):
    merlin = workers(one={"steps": ["a", "b"]}, two={"steps": ["c", "d"]})
    assert queues_of(load(tmp_path, spec(study=STEPS, merlin=merlin))) == {
        "one": ("qa", "qb"),
        "two": ("merlin",),
    }
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "study.yaml: merlin.resources.workers.two: 'one' serves the task queue 'qb'; give its steps another `task_queue`, or set "
        "`overlap: True`."
    )


DEFAULT = [step("mesh"), step("solve"), step("post"), step("q", task_queue="q")]


@pytest.mark.parametrize(
    ("groups", "served"),
    [
        ({"one": {"steps": ["mesh"]}, "two": {"steps": ["solve"]}},
         {"one": ("merlin_one",), "two": ("merlin_two",), "default_worker": ("merlin", "q")}),
        ({"one": {"steps": ["mesh", "post"]}, "two": {"steps": ["solve", "q"]}},
         {"one": ("merlin_one",), "two": ("merlin_two", "q")}),
        ({"one": {}, "two": {"steps": ["solve"]}}, {"one": ("merlin", "q"), "two": ("merlin_two",)}),
        ({"two": {"steps": ["solve"]}, "one": {"steps": ["all"]}}, {"two": ("merlin_two",), "one": ("merlin", "q")}),
        ({"two": {"steps": ["solve"]}, "one": {"task_queues": ["merlin"]}},
         {"two": ("merlin_two",), "one": ("merlin",), "default_worker": ("q",)}),
        # One group alone serves the task queue of the steps that it names.
        ({"one": {"steps": ["mesh"]}, "two": {"steps": ["q"]}}, {"one": ("merlin",), "two": ("q",)}),
    ],
)  # fmt: skip
def test_each_group_serves_the_steps_that_it_names(groups, served, tmp_path, caplog):
    specification = load(tmp_path, spec(study=DEFAULT, merlin=workers(**groups)))
    assert queues_of(specification) == served
    assert not caplog.records
    for name, facts in specification.ensemble.steps.items():
        entry = next(s for s in specification.get_study_steps() if s.name == name).run[STEP_KEY]
        assert facts.queues == (entry["settings"].get("task_queue", "merlin"),)


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ({"one": {"steps": ["mesh"]}, "two": {"steps": ["mesh"]}},
         "merlin.resources.workers.two: the group serves nothing: 'one' serves the task queue 'merlin'; give its steps another "
         "`task_queue`, or set `overlap: True`."),
        ({"one": {"steps": ["mesh", "solve", "post", "q"]}, "all": {}}, "merlin.resources.workers.all: the group serves nothing: 'one'"),
    ],
)  # fmt: skip
def test_a_group_that_serves_nothing_is_refused(groups, found, tmp_path):
    assert message(tmp_path, spec(study=DEFAULT, merlin=workers(**groups))).startswith(found)


def test_groups_for_different_machines_may_name_the_same_steps(tmp_path, caplog):
    groups = {"one": {"steps": ["mesh"], "machines": ["quartz"]}, "two": {"steps": ["mesh"], "machines": ["ruby"]}}
    load(tmp_path, spec(study=DEFAULT, merlin=workers(**groups)))
    assert "merlin.resources.workers.two: 'one' serves the task queue 'merlin'" in caplog.text


def test_with_overlap_both_groups_serve_the_task_queue(tmp_path, caplog):
    merlin = workers(one={"steps": ["a", "b"]}, two={"steps": ["c", "d"]})
    merlin["resources"]["overlap"] = True
    served = queues_of(load(tmp_path, spec(study=STEPS, merlin=merlin)))
    assert served == {"one": ("qa", "qb"), "two": ("qb", "merlin")}
    assert not caplog.records


@pytest.mark.parametrize(
    ("queue", "served"),
    [
        ("q_$(P)", ("q_1", "q_2")),
        ("$(P)$(R)", ("1x", "2y")),
        ("$(P.label)", ("P.1", "P.2")),
        ("$(P.name)", ("P",)),
        ("$(V)_$(P)", ("v_1", "v_2")),
    ],
)
def test_a_task_queue_may_contain_parameters(queue, served, tmp_path):
    parameters = {**PARAMETER, "R": {"values": ["x", "y"], "label": "R.%%"}}
    data = spec(
        env={"variables": {"V": "v"}}, study=[step(task_queue=queue)], **{"global.parameters": parameters}
    )
    for groups in ({}, {"default_worker": {"steps": ["a"]}}, {"default_worker": {"task_queues": [queue]}}):
        assert queues_of(load(tmp_path, {**data, "merlin": workers(**groups)})) == {"default_worker": served}


def test_a_group_serves_one_of_the_task_queues_with_a_parameter(tmp_path):
    data = spec(study=[step(task_queue="q_$(P)")], merlin=workers(w={"task_queues": ["q_2"]}))
    served = queues_of(load(tmp_path, {**data, "global.parameters": PARAMETER}))
    assert served == {"w": ("q_2",), "default_worker": ("q_1",)}


# --- native steps ------------------------------------------------------------------------------------


def native_steps(specification):
    return [s.name for s in specification.get_study_steps() if STEP_KEY not in s.run]


def maestro(*study, groups=None, **blocks):
    resources = {"unassigned": "maestro", "workers": groups or {}}
    return spec(study=list(study), merlin={**samples(), "resources": resources}, **blocks)


@pytest.mark.parametrize(
    ("run", "groups", "is_native"),
    [
        ({}, {}, True),
        ({"cmd": "echo $(X)"}, {}, False),
        ({"restart": "echo $(MERLIN_SAMPLE_ID)"}, {}, False),
        ({"cmd": "echo $(MERLIN_GLOB_PATH)"}, {}, True),
        ({"task_queue": "q"}, {}, False),
        ({"task_queue": "merlin"}, {}, False),
        ({}, {"w": {"steps": ["a"]}}, False),
        ({}, {"w": {"steps": ["b", "all"]}}, True),
        ({}, {"w": {}}, True),
        ({}, {"w": {"task_queues": ["merlin"]}}, True),
        ({"nodes": 1, "procs": 2}, {}, True),
    ],
)
def test_maestro_runs_steps_without_samples_and_without_a_worker_group_itself(run, groups, is_native, tmp_path):
    data = maestro(step("a", **run), step("b", cmd="$(X)"), groups=groups)
    assert native_steps(load(tmp_path, data)) == (["a"] if is_native else [])


def test_workers_run_all_steps_by_default(tmp_path):
    assert native_steps(load(tmp_path, spec(study=[step("a")]))) == []
    assert native_steps(load(tmp_path, spec(study=[step("a")], merlin={"resources": {"unassigned": "workers"}}))) == []


def test_a_native_step_is_the_same_as_in_maestro_alone(tmp_path):
    """Given a step without `restart`, then the plugin adds none, so that Maestro's own rules for restarts apply."""
    run = {"cmd": "echo", "nodes": 1, "depends": ["b"]}
    with_plugin = load(tmp_path, maestro(step("b", cmd="$(X)"), step("a", **run))).get_study_steps()[1]
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump(spec(study=[step("b"), step("a", **run)]) | {"merlin": None}).replace("merlin: null", ""))
    assert with_plugin.run == YAMLSpecification.load_specification(str(alone)).get_study_steps()[1].run


def test_no_worker_group_serves_a_native_step(tmp_path):
    data = maestro(step("a"), step("b", cmd="$(X)", task_queue="q"))
    assert queues_of(load(tmp_path, data)) == {"default_worker": ("q",)}
    assert load(tmp_path, data).ensemble.steps["a"].queues == ()

    only = load(tmp_path, maestro(step("a"), groups={"w": {"steps": ["all"]}}))
    assert queues_of(only) == {"w": ()}
    assert not only.ensemble.needs_workers


def test_the_plugin_does_not_check_the_resources_of_a_native_step(tmp_path):
    """Given a walltime that only Flux accepts, when Maestro runs the step itself, then the plugin accepts it."""
    assert native_steps(load(tmp_path, maestro(step("a", walltime="inf", nodes=1), batch={"type": "flux"}))) == ["a"]


def test_the_shell_of_a_native_step_stays_in_the_step_for_maestros_adapter(tmp_path):
    assert load(tmp_path, maestro(step("a", shell="python3"))).get_study_steps()[0].run["shell"] == "python3"


@pytest.mark.parametrize("key", [{"max_retries": 1}, {"batch": {"type": "local"}}, {"slurm": "--x"}, {"gpus per task": 1}])
def test_a_key_that_only_workers_support_is_refused_in_a_native_step(key, tmp_path):
    assert message(tmp_path, maestro(step("a", **key))) == (
        f"study.a.run.{next(iter(key))}: Maestro runs this step itself (merlin.resources.unassigned: maestro) and does "
        "not support the key; remove it, or assign the step to a worker group."
    )


def test_a_shell_that_maestros_adapter_does_not_support_is_refused(tmp_path):
    assert message(tmp_path, maestro(step("a", shell="python3"), batch={"type": "lsf"})).startswith("study.a.run.shell: ")


@pytest.mark.parametrize("where", ["batch", "merlin.resources.workers.w.batch", "study.a.run.batch"])
def test_an_unknown_batch_system_is_refused(where, tmp_path):
    batch = {"type": "pbs"}
    specification = {
        "batch": lambda: spec(study=[step("a")], batch=batch, merlin=workers(w={})),
        "merlin.resources.workers.w.batch": lambda: spec(study=[step("a")], merlin=workers(w={"batch": batch})),
        "study.a.run.batch": lambda: spec(study=[step("a", batch=batch)], merlin=workers(w={})),
    }[where]()
    allowed = "'flux', 'local', 'lsf', 'lsf-srun', 'slurm'"
    assert message(tmp_path, specification) == f"{where}.type: found 'pbs'; allowed: {allowed}."


def test_a_workspace_token_may_follow_a_token_that_is_replaced_earlier(tmp_path):
    cmd = "$(SPECROOT)/run,$(V),$(OUTPUT_PATH)/x=$(sim.workspace) '$(P)'\"$(sim.workspace)\""
    env = {"variables": {"V": "v"}}
    assert load(tmp_path, spec(study=[step("sim"), step("b", cmd=cmd, depends=["sim"])], env=env)).ensemble


def test_the_message_about_a_misspelt_batch_system_suggests_the_nearest_one(tmp_path):
    found = message(tmp_path, spec(study=[step("a")], batch={"type": "slrum"}, merlin=workers(w={})))
    assert found == "batch.type: found 'slrum'; did you mean 'slurm'?"


def test_an_extension_adds_a_batch_system(tmp_path):
    class Pbs(Slurm):
        type = "pbs"

    pbs = Pbs()

    class Extension:
        @hookimpl
        def batch_system(self):
            return pbs

    extension = Extension()
    plugin_manager().register(extension)
    try:
        load(tmp_path, spec(study=[step("a")], batch={"type": "pbs"}, merlin=workers(w={})))
        assert batch_system("pbs") is pbs
    finally:
        plugin_manager().unregister(extension)


# --- sampled steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "is_sampled"),
    [
        ({"cmd": "echo $(X)"}, True),
        ({"cmd": "echo $(x)"}, False),
        ({"cmd": "echo $(merlin_sample_id)"}, True),
        ({"cmd": "echo $(MERLIN_SAMPLE_NAMES)"}, False),
        ({"cmd": "echo", "restart": "echo $(X)"}, True),
        ({"cmd": "echo $(MERLIN_SAMPLE_ID)"}, True),
        ({"cmd": "echo $(MERLIN_SAMPLE_VECTOR)"}, True),
        ({"cmd": "echo $(LABEL)"}, True),
        ({"cmd": "echo $X ${X} $( X )"}, False),
        ({"cmd": "echo $(MERLIN_GLOB_PATH) $(MERLIN_PATHS_ALL)"}, False),
        ({"cmd": "echo $(y)"}, False),
    ],
)
def test_a_step_is_sampled_if_it_uses_a_token_of_a_sample(run, is_sampled, tmp_path):
    data = spec(env={"variables": {"y": 1}, "labels": {"LABEL": "of $(X)"}}, study=[step(**run)],
                merlin=samples(column_labels=["X", "Y"]))  # fmt: skip
    assert sampled(load(tmp_path, data)) == {"a": is_sampled}


def test_a_parameter_with_the_name_of_a_label_in_the_other_case_makes_no_step_sampled(tmp_path):
    data = spec(study=[step(cmd="$(p)")], merlin=samples(column_labels=["P"]))
    parameters = {"p": {"values": [1], "label": "p"}}
    assert sampled(load(tmp_path, {**data, "global.parameters": parameters})) == {"a": False}


def test_without_samples_no_step_is_sampled(tmp_path):
    assert sampled(load(tmp_path, spec(study=[step(cmd="$(MERLIN_SAMPLE_ID)")]))) == {"a": False}


def test_a_value_in_angle_brackets_is_no_placeholder(tmp_path):
    variables = {"TAG": "<B>", "MAIL": "<ada@example.org>", "TEXT": "a <B C> d", "LOWER": "<my value>"}
    assert load(tmp_path, spec(env={"variables": variables})).environment["variables"] == variables
