"""Corrections: which changes of a specification a study takes, and what stays if the command is killed."""

from __future__ import annotations

import shutil

import pytest
import yaml
from support import prepare_study

from maestro_celery_plugin.errors import SpecificationError, StudyError
from maestro_celery_plugin.maestro.correction import Correction, check_complete, note_of_change
from maestro_celery_plugin.maestro.step_graph import graph_of, load_study
from maestro_celery_plugin.study.plan import StudyPlan

SPEC = """\
description: {name: fix, description: d}
env:
  variables: {TOOL: mesh, OUTPUT_PATH: out}
study:
  - {name: prep, description: d, run: {cmd: $(TOOL) --fine, nodes: 1}}
  - {name: sim, description: d, run: {cmd: "echo $(X) $(P) $(prep.workspace)", depends: [prep], procs: 2}}
  - {name: collect, description: d, run: {cmd: ls $(sim.workspace), depends: [sim_*]}}
global.parameters:
  P: {values: [1, 2], label: P.%%}
batch: {type: local}
merlin:
  resources:
    workers:
      w: {args: --concurrency 2, steps: [all]}
  samples:
    generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [X]
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corrections")
    (directory / "fix.yaml").write_text(SPEC)
    prepare_study(directory / "fix.yaml", directory / "study")
    return directory


@pytest.fixture
def plan(launched):
    """The study of `launched`, which a test may correct."""
    shutil.copytree(launched / "study", launched / "kept")
    yield StudyPlan.read(launched / "study")
    shutil.rmtree(launched / "study")
    (launched / "kept").rename(launched / "study")
    (launched / "fix.yaml").write_text(SPEC)


def corrected(plan, old, new):
    """Return the correction with a changed specification."""
    assert SPEC.count(old) == 1
    plan.specification.write_text(SPEC.replace(old, new))
    return Correction(plan, plan.specification)


def test_a_study_takes_other_commands_resources_and_arguments(plan):
    text = SPEC.replace("$(TOOL) --fine, nodes: 1", "$(TOOL) --coarse, nodes: 2, max_failures: 1").replace("--concurrency 2", "--concurrency 3")
    plan.specification.write_text(text)

    correction = Correction(plan, plan.specification)
    correction.apply()

    changed = {change.where for change in correction.changes}
    assert changed == {
        "study.prep.run.cmd", "study.prep.run.nodes", "study.prep.run.max_failures", "merlin.resources.workers.w.args"
    }  # fmt: skip
    read = StudyPlan.read(plan.root)
    assert read.settings.resources.workers["w"].args == "--concurrency 3"
    assert (read.id, read.rows, read.table, read.specification) == (plan.id, 4, plan.table, plan.specification)
    run = load_study(plan.root).values["prep"].run
    assert (run["cmd"], run["restart"], run["nodes"]) == ("mesh --coarse", "mesh --coarse", 2)
    assert run["celery"]["settings"] == {"max_failures": 1}
    assert (plan.root / "fix.yaml").read_text() == text
    versions = plan.info / "specifications"
    assert {path.name: path.read_text() for path in versions.iterdir()} == {"1.yaml": SPEC, "2.yaml": text}
    assert [node.name for node in graph_of(load_study(plan.root))] == ["prep", "sim_P.1", "sim_P.2", "collect"]


def test_a_study_may_grow_further_and_keeps_its_directories(plan):
    corrected(plan, "    column_labels: [X]", "    column_labels: [X]\n    max_samples: 700").apply()

    read = StudyPlan.read(plan.root)
    assert (read.settings.samples.max_samples, read.hierarchy) == (700, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("TOOL: mesh", "TOOL: other", "env.variables.TOOL: found 'other', but the study has 'mesh'; `resume --spec` takes "),
        ("[1, 2]", "[1, 3]", "global.parameters.P.values: found '[1, 3]', but the study has '[1, 2]'; "),
        ("seq 1 4", "seq 1 5", "merlin.samples.generate.cmd: found 'seq 1 5 > $(MERLIN_INFO)/a.csv', but the study has '"),
        ("[sim_*]", "[sim_*, prep]", "study.collect.run.depends: found '['sim_*', 'prep']', but the study has '['sim_*']'; "),
        ("procs: 2", "task_queue: q", "study.sim.run.task_queue: found 'q', but the study has no such key; "),
        ("name: prep", "name: prap", "study: found '['prap', 'sim', 'collect']', but the study has '['prep', "),
        ("steps: [all]", "steps: [all], machines: [a]", "merlin.resources.workers.w.machines: found '['a']', but the study "),
        ("      w: {", "      v: {", "merlin.resources.workers: found '['v']', but the study has '['w']'; "),
        ("type: local", "type: slurm", "batch.type: found 'slurm', but the study has 'local'; "),
        ("$(TOOL) --fine", "$(TOOL) $(X)", "study.prep.run: with this change, the step would have other parameters, samples "),
        ("$(TOOL) --fine", "$(TOOL) $(P)", "study.prep.run: with this change, the step would have other parameters, samples "),
    ],
)  # fmt: skip
def test_other_changes_are_refused_and_change_nothing(plan, old, new, message):
    before = {path.name: path.read_bytes() for path in plan.root.iterdir() if path.is_file()}
    if old == "name: prep":
        text = SPEC.replace("name: prep", "name: prap").replace("prep.workspace", "prap.workspace").replace("[prep]", "[prap]")
        plan.specification.write_text(text)
    else:
        plan.specification.write_text(SPEC.replace(old, new))

    with pytest.raises(SpecificationError) as error:
        Correction(plan, plan.specification)

    assert str(error.value).startswith(f"fix.yaml: {message}")
    assert str(error.value).endswith("for this change, launch a new study.")
    assert {path.name: path.read_bytes() for path in plan.root.iterdir() if path.is_file()} == before


def test_a_mistake_in_the_corrected_specification_is_shown_as_at_the_launch(plan):
    with pytest.raises(SpecificationError, match=r"fix\.yaml: study\.prep\.run: unknown key 'node'; did you mean 'nodes'\?"):
        corrected(plan, "nodes: 1", "node: 1")


def test_a_second_version_may_have_another_name(plan, tmp_path):
    other = tmp_path / "better.yaml"
    other.write_text(SPEC.replace("--fine", "--best"))

    plan = Correction(plan, other).apply()

    assert plan.specification == other
    assert note_of_change(plan) == ""
    assert (plan.root / "better.yaml").read_text() == other.read_text()
    assert Correction(plan, other).changes == []


@pytest.mark.parametrize("complete", range(4))
def test_a_correction_that_is_killed_in_between_must_be_repeated(plan, monkeypatch, complete):
    """Given a command that is killed after some files, then a resume without --spec names the command to repeat."""
    correction = corrected(plan, "--fine", "--coarse")
    from maestro_celery_plugin.maestro import correction as module

    left = [complete + 3]  # the two versions and the note come first
    kinds = {name: getattr(module, name) for name in ("write_atomically", "replaced")}

    def counted(function):
        def call(*args):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args)

        return call

    for name, function in kinds.items():
        monkeypatch.setattr(module, name, counted(function))
    if complete < 3:
        with pytest.raises(KeyboardInterrupt):
            correction.apply()
    else:
        correction.apply()
    monkeypatch.undo()
    now = StudyPlan.read(plan.root)
    if complete == 3:
        check_complete(now)
        return
    command = rf"`maestro-celery resume --spec {plan.info}/specifications/2\.yaml {plan.root}`"
    with pytest.raises(StudyError, match=f"The correction of the specification was interrupted; repeat it with {command}"):
        check_complete(now)
    Correction(now, plan.info / "specifications" / "2.yaml").apply()
    assert note_of_change(StudyPlan.read(plan.root)) == ""
    check_complete(StudyPlan.read(plan.root))
    assert load_study(plan.root).values["prep"].run["cmd"] == "mesh --coarse"


def test_a_changed_specification_beside_the_study_is_noticed(plan):
    file = plan.specification
    assert note_of_change(plan) == ""
    file.write_text(f"# a comment\n{SPEC}")
    assert note_of_change(plan) == ""
    file.write_text(SPEC.replace("--fine", "--coarse"))
    assert note_of_change(plan) == (
        f"'{file}' has changed since the launch (study.prep.run.cmd), but the study keeps its copy; `maestro-celery "
        f"resume --spec {file} {plan.root}` takes the change."
    )
    file.write_text("{")
    assert note_of_change(plan) == ""
    file.unlink()
    assert note_of_change(plan) == ""


def test_a_study_of_an_earlier_release_does_not_know_its_specification(plan):
    batch = yaml.safe_load((plan.root / "batch.info").read_text())
    del batch["specification"]
    (plan.root / "batch.info").write_text(yaml.safe_dump(batch))
    old = StudyPlan.read(plan.root)

    assert note_of_change(old) == ""
    with pytest.raises(StudyError, match="was launched by an earlier release"):
        Correction(old, plan.specification)


def test_a_batch_that_gives_a_step_other_workers_is_no_correction(plan):
    with pytest.raises(SpecificationError) as error:
        corrected(plan, "procs: 2}", "procs: 2, batch: {queue: x}}")
    assert str(error.value).startswith("fix.yaml: study.sim.run.batch: with this change, other workers would run the step; ")
