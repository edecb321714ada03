"""Validation: `maestro-celery validate` lists all faults in the order of the file, and agrees with the launch."""

from __future__ import annotations

import ast
import copy
import json
import os
import random
import subprocess
import textwrap
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support import BIN, ROOT

from maestro_celery_plugin.cli import main
from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro import validation
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.spec.problems import FaultError, Kind, Problem, collected, passed

PACKAGE = Path(validation.__file__).parents[1]
SPECS = (*sorted((ROOT / "specs").glob("*.yaml")), *sorted((ROOT / "tests" / "unit" / "specs").glob("*.yaml")))

FAULTY = """\
description:
  nam: faulty
batch: {typ: local, shell: /bin/nosuch}
study:
- name: sim
  description: d
  run:
    nods: 4
    procs: two
    restrt: x
    depends: [pre]
- name: post
  run: {cmd: "ls $(sim.workspace) $(nope.workspace)", depends: [sm_*], task_queue: q_$(Z), signal: SIGFOO}
- description: x
- {name: post, description: d, run: {cmd: ls, time_request: x}}
env:
  variables: {A: $(B), B: $(A)}
global.parameters:
  P: {values: [1, 2], label: P}
  Q: {values: [1], label: Q.%%}
  R: {valus: [1], label: Q.%%}
merlin:
  samples: {file: x.csv, column_labels: [X, P, WORKSPACE], level_max_dirs: 1}
  resources:
    workers:
      w: {args: --concurency 2, steps: [sim, nope], nodes: x}
      .v: {step: [a], idle_limit: 0, batch: {type: slrm, waltime: 3}}
"""
EXPECTED = """\
description: unknown key 'nam'; did you mean 'name'?
description: the key 'description' is missing; add it.
batch: unknown key 'typ'; did you mean 'type'?
warning: batch.shell: found '/bin/nosuch', which is not a program on this machine; use a program such as /bin/bash or python3.
study.sim.run: the key 'cmd' is missing; add it.
study.sim.run: unknown key 'nods'; did you mean 'nodes'?
study.sim.run: unknown key 'restrt'; did you mean 'restart'?
study.sim.run.procs: found 'two'; an integer of at least 1 or a variable such as $(NAME) is needed.
study.sim.run.depends: unknown step 'pre'; allowed: 'post', 'post', 'sim'.
study.post: the key 'description' is missing; add it.
study.post: two steps have this name; each step needs its own name.
study.post.run.depends: unknown step 'sm_*'; did you mean 'sim_*'?
study.post.run.cmd: found '$(nope.workspace)'; there is no step 'nope'; allowed: 'post', 'sim'.
study.post.run.task_queue: $(Z) in 'q_$(Z)' is neither a variable of env nor a parameter, so the task queue of the workers is unknown; allowed: 'P', 'Q'.
study.post.run.signal: found 'SIGFOO'; did you mean 'SIGIO'?
study.post.run.time_request: found 'x'; HH:MM:SS or a number of seconds is needed.
study[2]: the key 'name' is missing; add it.
study[2]: the key 'run' is missing; add it.
env.variables.A: the variable refers to itself: A -> B -> A; give it a value.
warning: global.parameters.P.label: 'P' has no '%%' for the value; add it. Otherwise, step records that differ only in P have the same name, and Maestro runs only one of them.
global.parameters.Q.values: found 1 values, but 'P' has 2; all parameters need the same number.
global.parameters.R: unknown key 'valus'; did you mean 'values'?
merlin.samples.level_max_dirs: found '1'; an integer of at least 2 is needed.
merlin.samples.column_labels: 'P' is also a name in global.parameters; $(P) must have one meaning.
merlin.samples.column_labels: 'WORKSPACE' is a reserved name; use another name.
warning: merlin.samples.file: there is no file 'x.csv'; check its name, or let generate.cmd write it.
merlin.resources.workers.w.nodes: found 'x'; an integer of at least 1 or 'all' is needed.
merlin.resources.workers.w.steps: unknown step 'nope'; steps are 'sim', 'post'.
merlin.resources.workers.w.args: No such option '--concurency'. Did you mean '--concurrency'?
merlin.resources.workers..v: unknown key 'step'; did you mean 'steps'?
merlin.resources.workers..v.idle_limit: found '0'; a number of at least 1 is needed.
merlin.resources.workers..v.batch: unknown key 'waltime'; did you mean 'walltime'?
merlin.resources.workers..v.batch.type: found 'slrm'; did you mean 'slurm'?
merlin.resources.workers..v: found '.v'; the name is also a file name, so it must not contain '/' or begin with a dot.
"""
FAULTY_STEPS = """\
description: {name: n, description: d}
batch: {type: slurm, walltime: 1:30:00, queue: q, bank: b, args: {time: 5}}
env: {sources: [/opt/x.sh]}
study:
- name: sim
  description: d
  run: {cmd: a $(X), pre: a, post: b, bind: rs, priority: HELD, time_request: 2:00:00, batch: {shell: 'sh "x'}}
- {name: post, description: d, run: {cmd: b, batch: {queue: z, dry_run: true}}}
- {name: last, description: d, run: {cmd: b, task_queue: t, batch: {args: {nodes: 5}}}}
- {name: other, description: d, run: {cmd: b, task_queue: t}}
- {name: own, description: d, run: {cmd: b, batch: {args: {qos: 5}, walltime: x}}}
merlin:
  samples: {column_labels: [X], file: x.csv}
  resources: {workers: {w: {steps: [post], nodes: 1}}}
"""
EXPECTED_OF_STEPS = """\
batch.args: found '--time'; use the key `walltime` instead.
study.sim.run.pre: Maestro and Merlin accept this key, but do not run it; remove it, or put its commands at the beginning of 'cmd'.
study.sim.run.post: Maestro and Merlin accept this key, but do not run it; remove it, or put its commands at the end of 'cmd'; keep the exit \
code if it matters: `code=$?; ...; exit $code`.
study.sim.run.priority: found 'HELD', but workers hold no step; use 'MINIMAL'.
study.sim.run.time_request: found 02:00:00; the allocation of worker group 'w' has a walltime of 01:30:00, of which \
workers need 10 seconds to start, and samples receive their signal 20 seconds before the end (`warn`); request less time, or set \
a longer `walltime` for the group.
study.sim.run.batch.shell: found "sh "x": No closing quotation; close the quotes.
study.post.run.batch.queue: the worker group 'w' runs this step, and decides it; set the key in merlin.resources.workers.w.batch, \
or do not name the step in a worker group.
study.post.run.batch.dry_run: a dry run is one of the whole study; use `batch.dry_run`, or `maestro run --dry`.
study.last.run.batch: the step has workers of its own, but shares the task queue 't' with 'other'; give the step another \
`task_queue`, or name both in a worker group with this `batch`.
study.last.run.batch.args: found '--nodes'; use the key `nodes` instead.
study.own.run.batch.args: found '--qos'; use the key `qos` instead.
study.own.run.batch.walltime: found 'x'; HH:MM:SS or a number of seconds is needed.
"""
PLAIN = (ROOT / "tests" / "unit" / "specs" / "plain.yaml").read_text()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `maestro-celery` in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *words, text=None: runner.invoke(main, ["validate", *words], input=text)


def write(text, name="study.yaml"):
    Path(name).write_text(textwrap.dedent(text))
    return name


def faults(text):
    path = write(text)
    return [str(finding.problem) for finding in validation.validate(path) if finding.problem.kind is not Kind.WARNING]


def test_all_faults_are_listed_in_the_order_of_the_file(run):
    """Given a specification with faults in all blocks, then no fault hides another one, and nothing follows from a fault."""
    answer = run(write(FAULTY))
    assert answer.stdout.splitlines() == [f"study.yaml: {line}" for line in EXPECTED.splitlines()]
    assert answer.exit_code == 1
    assert sorted(os.listdir()) == ["study.yaml"]


def test_the_faults_of_each_key_of_a_step_are_listed_where_they_stand(run):
    """Given steps with workers of their own, then their faults stand in the `batch` of the step, and not in a group."""
    write("1", "x.csv")
    assert sorted(faults(FAULTY_STEPS)) == sorted(EXPECTED_OF_STEPS.splitlines())


def test_a_specification_without_faults_has_exit_code_0(run):
    answer = run(*map(str, SPECS))
    assert answer.exit_code == 0, answer.stdout
    assert answer.stdout.count(": no faults") == len(SPECS)
    assert answer.stdout.count(": no faults, 1 warning.\n") == answer.stdout.count("warning: ") == 1


def test_one_of_several_files_decides(run):
    good, bad = write(PLAIN, "good.yaml"), write(PLAIN.replace("cmd: cat", "cdm: cat"), "bad.yaml")
    answer = run(good, bad)
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [
        "good.yaml: no faults.",
        "bad.yaml: study.look.run: unknown key 'cdm'; did you mean 'cmd'?",
    ]


def test_the_json_has_lines_and_kinds(run):
    (report,) = json.loads(run("--json", write(FAULTY)).stdout)
    assert (report["file"], report["is_valid"]) == ("study.yaml", False)
    lines = {(problem["line"], problem["key"], problem["kind"], problem["is_fault"]) for problem in report["problems"]}
    assert (9, "study.sim.run.procs", "fault", True) in lines
    assert (14, "study[2]", "fault", True) in lines
    assert (3, "batch.shell", "machine", False) in lines
    assert (19, "global.parameters.P.label", "warning", False) in lines


def test_what_this_machine_lacks_is_a_fault_here_only(run, monkeypatch):
    """A specification for a cluster is valid on a laptop; `--here` answers for the machine of the launch."""
    monkeypatch.setenv("PATH", str(BIN))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    text = PLAIN.replace("type: local", "type: slurm").replace("/bin/bash", "/bin/nosuch")
    text += "merlin: {resources: {workers: {w: {nodes: all}}}}\n"
    answers = run(write(text)), run("--here", "study.yaml")
    assert [answer.exit_code for answer in answers] == [0, 1]
    expected = ["batch.shell: found '/bin/nosuch'", "merlin.resources.workers.w.nodes: found 'all'", "batch.type: found 'slurm'"]
    for answer, mark in zip(answers, ("warning: ", ""), strict=True):
        assert all(f"study.yaml: {mark}{start}" in answer.stdout for start in expected), answer.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty; give the YAML file of a study."),
        ("- a\n", "the file has no blocks such as 'description' and 'study'; give the YAML file of a study."),
        ("merlin: [1\n", "line 2, column 1: invalid YAML: expected ',' or ']', but got '<stream end>'; "
         "check the indentation, quotes and colons in this line and before it."),
        (b"merlin: {}\n# \xe9\n", "the file is not UTF-8 ('utf-8' codec can't decode byte 0xe9 in position 13: invalid continuation byte); convert it."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_specification_has_one_line(run, text, expected):
    Path("study.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    answer = run("study.yaml")
    assert (answer.stdout, answer.exit_code) == (f"study.yaml: {expected}\n", 1)


def test_a_file_that_cannot_be_read_has_one_line(run, tmp_path):
    (tmp_path / "directory").mkdir()
    answer = run("nothing.yaml", "directory")
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [
        "nothing.yaml: cannot be read (No such file or directory); give the YAML file of a study.",
        "directory: is a directory; give the YAML file of a study.",
    ]


def test_the_standard_input_and_a_pipe_are_read_once(run, tmp_path):
    answer = run("-", text=FAULTY)
    assert answer.stdout.startswith("standard input: description: unknown key 'nam'")
    (tmp_path / "faulty").write_text(FAULTY)
    command = f"exec {BIN}/maestro-celery validate <(cat faulty)"
    piped = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert [line.split(": ", 1)[1] for line in piped.stdout.splitlines()] == [
        line.split(": ", 1)[1] for line in answer.stdout.splitlines()
    ]


@pytest.mark.parametrize("form", ["{cmd: ls,\n  cmd: who}", "{cmd: ls, cmd: who}"], ids=["lines", "one line"])
@pytest.mark.parametrize("merlin", ["merlin: {}\n", ""], ids=["ensemble", "plain"])
def test_a_key_that_stands_twice_is_found(run, form, merlin):
    """YAML would use the last one. Maestro alone accepts it, so that it is a warning without an ensemble."""
    text = f"description: {{name: s, description: d}}\nstudy:\n- {{name: a, description: d, run: {form}}}\n{merlin}"
    answer = run(write(text))
    line = 4 if "\n" in form else 3
    problem = f"line {line}: the key 'cmd' is already in line 3 of the same block; remove one of the two."
    mark = "" if merlin else "warning: "
    assert answer.stdout.splitlines()[0] == f"study.yaml: {mark}{problem}"
    assert answer.exit_code == (1 if merlin else 0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("study:", "studdy:", ["study: the block is missing or empty; a list of steps is needed."]),
        ("depends: [make_*]", "depends: [mak_*]", ["study.look.run.depends: unknown step 'mak_*'; did you mean 'make_*'?"]),
        ("  name: plain\n", "", ["description: the key 'name' is missing; add it."]),
        ("values: [1, 2]", "values: 3", ["global.parameters.SIZE.values: found '3'; a list is needed."]),
        ("note: &note ignored", "note: !!python/tuple [1]", None),
    ],
)
def test_a_specification_without_an_ensemble_is_verified_by_maestro(run, old, new, expected, monkeypatch):
    monkeypatch.delenv("NONE", raising=False)
    assert old in PLAIN
    found = faults(PLAIN.replace(old, new, 1))
    assert found == expected if expected is not None else len(found) == 1


def test_what_maestro_accepts_is_no_fault_beside_others(run):
    """Given a label that only an ensemble cannot have, and a step without description, then the step is the only fault."""
    text = PLAIN.replace("$(SIZE.label).txt", "{a: 1}").replace("values: [1, 2]", "values: []")
    assert faults(text) == []
    assert faults(text.replace("    description: look at it\n", "")) == ["study.look: the key 'description' is missing; add it."]


def test_a_misspelt_block_does_not_hide_what_is_in_it(run):
    text = FAULTY.replace("study:", "studdy:", 1).replace("merlin:", "merlim:").replace("batch:", "bach:", 1)
    found = faults(text)
    assert {f"unknown block '{name}'; did you mean '{right}'?" for name, right in (("studdy", "study"), ("merlim", "merlin"))} <= {*found}
    expected = {line for line in EXPECTED.splitlines() if line.startswith(("study", "merlin"))}
    assert expected <= {*found}


# Faults that concern several blocks.
REFERENCES = ("study.post.run.task_queue", "study.post.run.signal", "study.post.run.time_request")
GROUPS = ("merlin.resources.workers.w.steps", "merlin.resources.workers.w.args")


@pytest.mark.parametrize(
    ("damage", "first", "hidden"),
    [
        ({"description": None}, "description: the block is missing or empty; a block of keys is needed.", ("description",)),
        ({"merlin": [1]}, "merlin: found a list; a block of keys is needed.", ("merlin", *REFERENCES)),
        ({"global.parameters": {1: 2}}, "global.parameters: found the key '1'", ("global", "merlin.samples.column", "merlin.resources.workers..v: found", *GROUPS, *REFERENCES)),
        ({"study": [{"name": "a", 1: 2}]}, "study.a: found the key '1'", ("study", "merlin.resources.workers..v: found", *GROUPS)),
    ],
)
def test_a_block_of_a_wrong_type_hides_only_references_to_it(run, damage, first, hidden):
    data = {**yaml.safe_load(FAULTY), **damage}
    found = faults(yaml.safe_dump(data, sort_keys=False))
    assert any(problem.startswith(first) for problem in found)
    expected = {line for line in EXPECTED.splitlines() if not line.startswith(("warning", *hidden))}
    assert expected <= {*found}
    assert len(expected) > 3


def test_the_name_and_the_place_of_the_study_are_checked(run):
    Path("file").touch()
    variables = "env: {variables: {OUTPUT_PATH: file/x}}\nmerlin: {}\n"
    text = PLAIN.replace("name: plain", "name: a/b").split("\nenv:")[0] + "\n" + variables
    text += "study:\n- {name: a, description: d, run: {cmd: ls}}\n" if "study:" not in text else ""
    found = faults(text)
    assert found[0].startswith("description.name: found 'a/b'; files have this name")
    assert found[1].startswith("env.variables.OUTPUT_PATH: '") and found[1].endswith("is not a directory; use another path.")


# --- the same checks as a launch -----------------------------------------------------------------------

_VALUES = (None, "", 0, -1, 2.5, True, [], {}, "x", "$(N)", "$(Q)", ["a"], {1: 2}, "a\0b", "sim_*", [{"name": "sim"}], "all")


def _paths(value, path=()):
    yield from [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _damage(data, rnd):
    """Change, remove or rename one key at random."""
    path = rnd.choice(list(_paths(data)))
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    kind = rnd.random()
    if kind < 0.6:
        parent[path[-1]] = copy.deepcopy(rnd.choice(_VALUES))
    elif kind < 0.8 and isinstance(parent, dict):
        parent[str(path[-1])[:-1] or "q"] = parent.pop(path[-1])
    else:
        del parent[path[-1]]


@pytest.mark.parametrize("seed", range(8))
def test_validation_and_launch_agree(seed, tmp_path, monkeypatch):
    """Given random damage, then what stops a launch is one of the faults, and without a fault nothing stops it."""
    monkeypatch.chdir(tmp_path)
    rnd, path = random.Random(seed), tmp_path / "study.yaml"
    for _ in range(25):
        data = yaml.safe_load(rnd.choice(SPECS).read_text())
        for _ in range(rnd.randint(1, 3)):
            _damage(data, rnd)
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        problems = [finding.problem for finding in validation.validate(str(path))]
        assert not any("\n" in str(problem) for problem in problems)
        found = {f"study.yaml: {problem}" for problem in problems if problem.kind is not Kind.WARNING}
        try:
            Specification.load_specification(str(path))
        except SpecificationError as error:
            assert str(error) in found
        except Exception as error:  # Maestro's own, without an ensemble
            assert found, error


def _generators(tree):
    """Return for each function of a module whether it yields, by name."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and not node.decorator_list]
    return {f.name: any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(f)) for f in functions}


def test_the_problems_of_each_check_are_used():
    """A check that is called without `yield from` checks nothing, and no linter says so."""
    paths = [path for room in ("spec", "maestro") for path in (PACKAGE / room).glob("*.py")]
    trees = {path: ast.parse(path.read_text()) for path in paths}
    known = {name for path, tree in trees.items() if path.parent.name == "spec" for name, yields in _generators(tree).items() if yields}
    assert {"check_graph", "check_celery_options", "_check_shell"} <= known
    lost = []
    for path, tree in trees.items():
        own = _generators(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                function = node.value.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                if own.get(name, name in known):
                    lost.append(f"{path.name}:{node.lineno}: {name}")
    assert lost == []


@pytest.mark.parametrize(
    "error", [FaultError("b", "two"), SpecificationError.at("f.yaml", "b", "two"), SpecificationError("b: two")]
)
def test_a_check_that_cannot_go_on_ends_the_list(error):
    def checks():
        yield Problem("a", "one")
        yield Problem("a", "one")
        raise error

    assert list(map(str, collected(checks()))) == ["a: one", "b: two"]


def test_a_launch_stops_at_the_first_problem_and_logs_warnings(caplog):
    def checks(*kinds):
        for number, kind in enumerate(kinds):
            yield Problem(f"key{number}", "text", kind)
        return 3

    assert passed(checks(Kind.WARNING), "f.yaml") == 3
    assert caplog.messages == ["f.yaml: key0: text"]
    for kind in (Kind.MACHINE, Kind.FAULT):
        with pytest.raises(SpecificationError, match=r"^f\.yaml: key1: text$"):
            passed(checks(Kind.WARNING, kind, Kind.FAULT), "f.yaml")


def test_variables_and_parameters_of_the_command_line_are_checked(tmp_path, monkeypatch):
    """Given a specification that is valid only with --vars and --pgen, then `validate` has both, as `maestro run`."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        """
        description: {name: s, description: d}
        env: {variables: {N: none, OUTPUT_PATH: out}}
        study: [{name: s, description: d, run: {cmd: "echo $(X) $(P)", procs: $(N)}}]
        merlin: {resources: {workers: {w: {steps: [s]}}}, samples: {generate: {cmd: x}, file: x.csv, column_labels: [X]}}
        """
    )
    generator = """
        from maestrowf.datastructures.core import ParameterGenerator
        def get_custom_generator(env, **kwargs):
            assert env.find("N").value == 2 and kwargs["SPECROOT"].value and kwargs["OUTPUT_PATH"].endswith("/out")
            generator = ParameterGenerator()
            generator.add_parameter(kwargs["name"], [1, 2])
            return generator
        """
    Path("g.py").write_text(textwrap.dedent(generator))

    def validated(*words):
        answer = CliRunner().invoke(main, ["validate", *words])
        return answer.exit_code, answer.output

    code, output = validated("s.yaml")
    assert (code, "study.s.run.procs: found 'none'" in output) == (1, True), output
    assert validated("--vars", "N=2", "OUTPUT_PATH=out", "s.yaml", "--pgen", "g.py", "--pargs", "name:P")[0] == 0
    code, output = validated("--vars", "N=2", "--pgen", "g.py", "--pargs", "name:X", "s.yaml")
    assert (code, "column_labels: 'X' is also a name in --pgen" in output) == (1, True), output
    code, output = validated("s.yaml", "--vars", "N=2", "--pgen", "g.py")
    assert (code, "--pgen: 'g.py' has failed in line 6 (KeyError: 'name'); correct it." in output) == (1, True), output
    code, output = validated("s.yaml", "--vars", "M=2")
    assert (code, "--vars: unknown variable 'M'; allowed: 'N', 'OUTPUT_PATH'" in output) == (1, True), output
    Path("plain.yaml").write_text("description: {name: s, description: d}\nstudy: [{name: s, description: d, run: {cmd: x}}]\n")
    assert "--vars: unknown variable 'N'" in validated("plain.yaml", "--vars", "N=2")[1]
    assert "--pgen: 'none.py' is not a file" in validated("s.yaml", "--pgen", "none.py")[1]
    assert validated("s.yaml", "--pargs", "A:1")[0] == 1


@pytest.mark.parametrize(("file", "is_read"), [("x.npz", False), ("$(MERLIN_INFO)/x", False), ("x.csv", True), ("$(MERLIN_INFO)/$(F)", True)])
def test_a_sample_file_without_a_reader_is_a_fault(tmp_path, monkeypatch, file, is_read):
    """Given a file that nothing can read, then the launch stops before it creates a directory, and names the specification."""
    monkeypatch.chdir(tmp_path)
    specification = SAMPLED.replace("x.csv", file)
    Path("s.yaml").write_text(specification)

    answer = CliRunner().invoke(main, ["validate", "s.yaml"])

    problem = f"s.yaml: merlin.samples.file: no reader for '{Path(file).name}'; files with the suffix .npy, .csv, .tab can be read."
    assert (problem in answer.output) != is_read, answer.output


SAMPLED = """
description: {name: s, description: d}
study: [{name: s, description: d, run: {cmd: "echo $(X)"}}]
merlin: {resources: {workers: {w: {steps: [s]}}}, samples: {generate: {cmd: x}, file: x.csv, column_labels: [X]}}
"""


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("1,2\n3,4\n", ""),
        ("1\n", "merlin.samples.column_labels: 2 labels (A, B), but '{file}' has 1 column; one label per column is needed."),
        ("1,2\n3\n", "merlin.samples.file: row 1 of '{file}' (line 2) has 1 columns, row 0 has 2;"),
        ("", "merlin.samples.file: '{file}' has no samples; at least one row is needed."),
    ],
)
def test_the_rows_of_a_sample_file_are_checked(run, tmp_path, rows, fault):
    """Given a sample file that no command generates, then what would stop the launch is a fault; nothing is written."""
    file = tmp_path / "rows.csv"
    file.write_text(rows)
    spec = write(
        f"""
        description: {{name: s, description: d}}
        study: [{{name: sim, description: d, run: {{cmd: "echo $(A) $(B)"}}}}]
        merlin: {{samples: {{file: {file}, column_labels: [A, B]}}}}
        """,
        "rows.yaml",
    )
    answer = run(spec)
    assert answer.exit_code == int(bool(fault)), answer.stdout
    assert f"rows.yaml: {fault.format(file=file) or 'no faults.'}" in answer.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if "rows.csv" in path.name) == ["rows.csv"]


def test_a_block_of_merlin_beside_it_is_a_fault(run):
    """Given `samples` without its indentation, then the study does not run without samples."""
    spec = write(PLAIN + "\nmerlin:\nsamples: {file: a.csv, column_labels: [A]}\n", "outside.yaml")
    answer = run(spec)
    assert answer.exit_code == 1
    assert "outside.yaml: unknown block 'samples'; put it into the block 'merlin': check the indentation." in answer.stdout


def test_a_misspelt_token_has_a_suggestion(run):
    spec = write(PLAIN.replace("cmd: cat", "cmd: echo $(MERLIN_GLOB_PTH); cat") + "\nmerlin: {}\n", "token.yaml")
    answer = run(spec)
    assert "; did you mean $(MERLIN_GLOB_PATH)?" in answer.stdout
    assert "token.yaml: no faults, 1 warning." in answer.stdout
