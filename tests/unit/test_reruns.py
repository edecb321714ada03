"""Reruns: what runs again on request, what depends on it, and what a conductor that dies in between forgets."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ensembles import a_manifest, a_study, states_of
from msgspec.structs import replace
from support import prepare_study

from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.ledger.entries import Kind
from maestro_celery_plugin.ledger.reader import read_ledger
from maestro_celery_plugin.ledger.writer import LedgerWriter
from maestro_celery_plugin.maestro.native_step_state import NativeStepState
from maestro_celery_plugin.maestro.reruns import RerunRequest, Reruns
from maestro_celery_plugin.maestro.step_graph import graph_of, load_study
from maestro_celery_plugin.states import Outcome, RunMode
from maestro_celery_plugin.study.additions import Addition, Additions, are_taken, write_additions
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps
from maestro_celery_plugin.study.manifest import Manifest
from maestro_celery_plugin.study.plan import StudyPlan

SPEC = """
description: {name: graph, description: d}
study:
  - {name: sim, description: d, run: {cmd: echo $(X) $(P)}}
  - name: post
    description: each sample reads its own sample of sim
    run: {cmd: cat $(sim.workspace)/$(MERLIN_SAMPLE_PATH)/sim.out > $(X).txt, depends: [sim]}
  - name: order
    description: samples that read no file of sim
    run: {cmd: "echo $(X); cat $(OUTPUT_PATH)/simple", depends: [sim]}
  - name: compare
    description: each sample reads all samples of sim
    run: {cmd: "cat $(sim.workspace)/*/sim.out | grep $(X)", depends: [sim]}
  - name: list
    description: each sample reads the directory of sim
    run: {cmd: "ls $(sim.workspace) | grep $(X)", depends: [sim]}
  - {name: collect, description: d, run: {cmd: "cat $(post.workspace)/*/*/*.txt", depends: [post_*], task_queue: merlin}}
  - {name: last, description: d, run: {cmd: "cat $(collect.workspace)/*", depends: [collect]}}
  - {name: other, description: d, run: {cmd: "true", task_queue: merlin}}
global.parameters:
  P: {values: [1, 2], label: P.%%}
merlin:
  resources: {unassigned: maestro, workers: {w: {}}}
  samples:
    generate: {cmd: "seq 1 4 > $(MERLIN_INFO)/a.csv"}
    file: $(MERLIN_INFO)/a.csv
    column_labels: [X]
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The directory of a study whose step records have finished, except failed samples 1 and 3 of sim_P.1."""
    directory = tmp_path_factory.mktemp("reruns")
    (directory / "graph.yaml").write_text(SPEC)
    prepare_study(directory / "graph.yaml", directory / "study")
    plan = StudyPlan.read(directory / "study")
    coordinator = LedgerWriter(plan.ledger / "coordinator.ledger", plan.number)
    worker = LedgerWriter(plan.ledger / "w-1.ledger", plan.number)
    for number, node in enumerate(graph_of(load_study(plan.root)), 1):
        if node.is_native:
            NativeStepState(plan.native / node.name).record_finished()
            continue
        workspace, count = str(plan.root / node.relative), 4 if node.sampled else 1
        changes = {"name": node.name, "step": node.step, "workspace": workspace, "samples": count, "sampled": node.sampled}
        a_manifest(number=number, study_id=plan.id, **changes).write(plan.records / node.relative / "manifest.json")
        coordinator.append(Kind.SENT, number, 1, 0, count)
        for sample in range(count):
            worker.append(Kind.STARTED, number, 1, sample)
            worker.append(Kind.ENDED, number, 1, sample, code=int(node.name == "sim_P.1" and sample in (1, 3)))
    coordinator.close()
    worker.close()
    return plan


@pytest.fixture
def plan(launched):
    """The study of `launched`, whose ledger and native states a test may change."""
    kept = [launched.ledger, launched.native]
    for path in kept:
        shutil.copytree(path, path.with_suffix(".kept"))
    yield launched
    for path in kept:
        shutil.rmtree(path)
        path.with_suffix(".kept").rename(path)


def states(plan):
    """Return the states of the samples by step record, as a conductor sees them."""
    entries, found = read_ledger(plan.ledger, plan.number), {}
    for manifest in Manifest.read_all(plan.records):
        found[manifest.name] = states_of(manifest)
        found[manifest.name].apply(entries[entries["record"] == manifest.number])
    return found


def open_samples(plan):
    """Return the samples that a resumed study runs, by step record, and the native steps."""
    found = {name: np.flatnonzero(one.outcome == Outcome.OPEN).tolist() for name, one in states(plan).items()}
    native = {"last": [0]} if not NativeStepState(plan.native / "last").has_finished else {}
    return {name: samples for name, samples in found.items() if samples} | native


ALL = [0, 1, 2, 3]
DEPENDENTS_OF_FAILED = {"compare_P.1": ALL, "list_P.1": ALL, "post_P.1": [1, 3], "order_P.1": [1, 3], "collect": [0], "last": [0]}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (RerunRequest(), {}),
        (RerunRequest(failed=True), {"sim_P.1": [1, 3], **DEPENDENTS_OF_FAILED}),
        (RerunRequest(failed=True, keep_downstream=True), {"sim_P.1": [1, 3]}),
        (RerunRequest(steps=("collect",)), {"collect": [0], "last": [0]}),
        (RerunRequest(steps=("last",)), {"last": [0]}),
        (RerunRequest(steps=("other",)), {"other": [0]}),
        (RerunRequest(steps=("post_P.2",)), {"post_P.2": ALL, "collect": [0], "last": [0]}),
        (RerunRequest(steps=("post",), keep_downstream=True), {"post_P.1": ALL, "post_P.2": ALL}),
    ],
    ids=str,
)
def test_what_depends_on_a_sample_that_runs_again_runs_again(plan, request_, expected):
    Reruns(plan, request_).record()

    assert open_samples(plan) == expected
    Reruns(plan, RerunRequest()).record()  # a conductor that died is followed by another one
    assert open_samples(plan) == expected


def test_a_failed_sample_runs_restart_and_what_depends_on_it_runs_cmd(plan):
    Reruns(plan, RerunRequest(failed=True)).record()

    found = states(plan)
    assert found["sim_P.1"].mode[[0, 1]].tolist() == [RunMode.RESTART, RunMode.RESTART]
    assert found["post_P.1"].mode[[0, 1]].tolist() == [RunMode.RESTART, RunMode.AGAIN]
    assert found["collect"].mode.tolist() == [RunMode.AGAIN]


def test_a_result_with_the_inputs_of_before_does_not_count(plan):
    """Given a live worker that still runs a message of before, when it ends a sample, then the sample runs again."""
    Reruns(plan, RerunRequest(steps=("post",))).record()
    post = next(m for m in Manifest.read_all(plan.records) if m.name == "post_P.1")
    late = LedgerWriter(plan.ledger / "late.ledger", plan.number)
    late.append(Kind.STARTED, post.number, 1, 0)
    late.append(Kind.ENDED, post.number, 1, 0)
    late.append(Kind.STARTED, post.number, 3, 1)
    late.append(Kind.ENDED, post.number, 3, 1)
    late.close()

    assert open_samples(plan)["post_P.1"] == [0, 2, 3]
    assert states(plan)["post_P.1"].cancelled_epoch == 2


@pytest.mark.parametrize("complete", range(7))
def test_no_result_of_failed_samples_counts_if_the_command_is_killed_in_between(plan, monkeypatch, complete):
    """Given a resume that is killed after some entries, then a failed sample never runs again before its dependents."""
    append, left = LedgerWriter.append, [complete]

    def append_or_die(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(*args, **kwargs)

    monkeypatch.setattr(LedgerWriter, "append", append_or_die)
    with pytest.raises(KeyboardInterrupt):
        Reruns(plan, RerunRequest(failed=True)).record()
    monkeypatch.undo()

    found = open_samples(plan)
    assert "sim_P.1" not in found or found.items() >= DEPENDENTS_OF_FAILED.items()
    Reruns(plan, RerunRequest(failed=True)).record()
    assert open_samples(plan) == {"sim_P.1": [1, 3], **DEPENDENTS_OF_FAILED}


def test_the_user_reads_what_will_run(plan):
    assert Reruns(plan, RerunRequest()).sentences() == []
    assert (Reruns(plan, RerunRequest()).kept_failures, Reruns(plan, RerunRequest(failed=True)).kept_failures) == (2, 0)
    assert Reruns(plan, RerunRequest(failed=True)).sentences()[0] == "sim: 2 failed samples again"
    assert set(Reruns(plan, RerunRequest(failed=True)).sentences()[1:]) == {
        "post: 2 samples again because of changed inputs",
        "order: 2 samples again because of changed inputs",
        "compare: 4 samples again because of changed inputs",
        "list: 4 samples again because of changed inputs",
        "collect: 1 step record again because of changed inputs",
        "last: again",
    }
    assert Reruns(plan, RerunRequest(steps=("other",))).sentences() == ["other: 1 step record again"]
    Reruns(plan, RerunRequest(steps=("post",), keep_downstream=True)).record()
    assert Reruns(plan, RerunRequest()).sentences() == ["post: 8 remaining samples"]


def test_an_unknown_step_is_refused(plan):
    with pytest.raises(StudyError, match=r"^--step: the study has no step 'simm'; did you mean 'sim'\?$"):
        Reruns(plan, RerunRequest(steps=("simm",)))


def test_a_study_whose_pickle_is_damaged_names_the_file(plan):
    path = plan.root / "graph.study.pkl"
    kept = path.read_bytes()
    path.write_bytes(b"damaged")
    try:
        with pytest.raises(StudyError, match=r"graph\.study\.pkl' cannot be read .*; restore it from a backup"):
            Reruns(plan, RerunRequest(failed=True))
    finally:
        path.write_bytes(kept)


def test_a_native_step_that_still_runs_is_not_run_again(plan, monkeypatch):
    monkeypatch.setattr(NativeStepState, "is_running_here", property(lambda state: True))
    with pytest.raises(StudyError, match="'last' must run again, but its batch job or script may still run"):
        Reruns(plan, RerunRequest(failed=True))


@pytest.mark.parametrize("marked", [True, False])
def test_a_finished_sample_without_its_marker_runs_again(plan, marked):
    """Given a study with markers, when a user deletes one, then the sample runs again, and what depends on it."""
    other = next(m for m in Manifest.read_all(plan.records) if m.name == "post_P.2")
    path = plan.records / "post" / "P.2" / "manifest.json"
    try:
        replace(other, finished_marker=marked).write(path)
        for sample in (0, 1, 3):
            marker = Path(other.workspace, other.paths.of(sample), "MERLIN_FINISHED")
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        Reruns(plan, RerunRequest()).record()
        assert open_samples(plan) == ({"post_P.2": [2], "collect": [0], "last": [0]} if marked else {})

        Reruns(plan, RerunRequest(steps=("post",))).record()
        assert marker.exists() is not marked  # a sample that must run again has no marker
    finally:
        other.write(path)


# --- samples that were added -------------------------------------------------------------------------


@pytest.fixture
def added(plan):
    """The study of `plan`, to which two samples were added that no conductor has taken."""
    before = {manifest.name: manifest for manifest in Manifest.read_all(plan.records)}
    addition = Addition(file="1.csv", rows=2, used=2, key="k")
    write_additions(plan, Additions(study_id=plan.id, added=(addition,)))
    yield plan
    for manifest in before.values():
        manifest.write(plan.records / Path(manifest.workspace).relative_to(plan.root) / "manifest.json")
    write_additions(plan, Additions(study_id=plan.id))
    (plan.info / "steps_to_repeat.json").unlink(missing_ok=True)


NEW = [4, 5]
WITH_NEW = {
    **{f"{step}_P.{p}": NEW for step in ("sim", "post", "order") for p in (1, 2)},
    **{f"{step}_P.{p}": [*ALL, *NEW] for step in ("compare", "list") for p in (1, 2)},
    **{"collect": [0], "last": [0]},
}


def test_added_samples_run_in_each_sampled_step_and_what_reads_all_runs_again(added):
    reruns = Reruns(added, RerunRequest())
    assert set(reruns.sentences()) == {
        *(f"{step}: 4 added samples" for step in ("sim", "post", "order")),
        *(f"{step}: 4 added samples, 8 samples again because of changed inputs" for step in ("compare", "list")),
        *("collect: 1 step record again because of changed inputs", "last: again"),
    }
    reruns.record()

    assert open_samples(added) == WITH_NEW
    modes = states(added)["compare_P.1"].mode.tolist()
    assert modes == [RunMode.AGAIN] * 4 + [RunMode.FIRST] * 2
    assert are_taken(added, 6)
    again = Reruns(added, RerunRequest())
    assert "sim: 4 remaining samples" in again.sentences()
    again.record()
    assert open_samples(added) == WITH_NEW


def test_added_samples_alone_run_if_the_user_wants_it(added):
    Reruns(added, RerunRequest(keep_downstream=True)).record()
    assert open_samples(added) == {
        **{f"{step}_P.{p}": NEW for step in ("sim", "post", "order", "compare", "list") for p in (1, 2)}
    }


@pytest.mark.parametrize("complete", range(0, 16, 3))
def test_nothing_of_an_addition_is_forgotten_if_the_command_is_killed_in_between(added, monkeypatch, complete):
    """Given a resume that is killed before an entry or a manifest, then the next one does the rest."""
    left = [complete]

    def or_die(function):
        def call(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(LedgerWriter, "append", or_die(LedgerWriter.append))
    monkeypatch.setattr(Manifest, "write", or_die(Manifest.write))
    with pytest.raises(KeyboardInterrupt):
        Reruns(added, RerunRequest()).record()
    monkeypatch.undo()

    has_new = {name for name, found in open_samples(added).items() if 5 in found}
    assert not has_new or open_samples(added).items() >= {"collect": [0], "last": [0]}.items()
    Reruns(added, RerunRequest()).record()
    assert open_samples(added) == WITH_NEW


def test_a_step_that_was_to_run_again_after_its_end_runs_again(plan):
    """Given a conductor that died while such a step ran, then the next resume runs it, and what follows, once."""
    repeated = CancelledSteps(plan.steps_to_repeat)
    repeated.add(["collect"])
    try:
        Reruns(plan, RerunRequest()).record()
        assert open_samples(plan) == {"collect": [0], "last": [0]}
        assert repeated.names() == set()
    finally:
        plan.steps_to_repeat.unlink(missing_ok=True)


# --- failed samples of any study ---------------------------------------------------------------------


def rerun_failed(plan):
    Reruns(plan, RerunRequest(failed=True, keep_downstream=True)).record()


CODES = (0, 1, 102, 104, -9, 105)


@pytest.mark.parametrize("worker", ["a-1", "w-1"])  # a reader reads its file before or after that of the coordinator
def test_only_failed_samples_run_again(tmp_path, worker):
    plan, manifest = a_study(tmp_path / "study")
    a_manifest(plan.root, number=2, name="sim_X.2").write(plan.records / "sim" / "X.2" / "manifest.json")
    coordinator = LedgerWriter(plan.ledger / "coordinator.ledger")
    coordinator.append(Kind.SENT, 1, 3, 0, 10)
    coordinator.close()
    writer = LedgerWriter(plan.ledger / f"{worker}.ledger")
    for sample, code in enumerate(CODES):
        writer.append(Kind.STARTED, 1, 3, sample)
        writer.append(Kind.ENDED, 1, 3, sample, code=code)
    writer.append(Kind.ENDED, 2, 1, 7, code=1)

    rerun_failed(plan)

    entries = read_ledger(plan.ledger)
    reopened = entries[entries["kind"] == Kind.RERUN]
    pairs = sorted(zip(reopened["record"].tolist(), reopened["start"].tolist(), reopened["epoch"].tolist(), strict=True))
    assert pairs[:3] == [(1, 1, 3), (1, 2, 3), (1, 4, 3)]
    assert pairs[3][:2] == (2, 7)
    states = states_of(manifest)
    states.apply(entries[entries["record"] == 1])
    expected = [Outcome.FINISHED, Outcome.OPEN, Outcome.OPEN, Outcome.OPEN, Outcome.OPEN, Outcome.STOPPED_STUDY]
    assert states.outcome[:6].tolist() == expected

    writer.append(Kind.ENDED, 1, 4, 1, code=0)
    writer.append(Kind.ENDED, 1, 4, 2, code=1)
    writer.close()
    rerun_failed(plan)
    again = read_ledger(plan.ledger)
    assert (again["kind"] == Kind.RERUN).sum() == 5  # sample 2, which failed again


def test_what_a_user_has_cancelled_stays_cancelled_until_it_is_requested(plan):
    """Given a cancelled record with failed samples, then a resume announces neither it nor what depends on it."""
    cancelled = CancelledSteps(plan.cancelled_steps)
    cancelled.add(["sim_P.1"])
    try:
        reruns = Reruns(plan, RerunRequest(failed=True))
        assert (reruns.sentences(), reruns.cancelled) == ([], ["sim_P.1"])
        reruns.record()
        assert cancelled.names() == {"sim_P.1"}

        reruns = Reruns(plan, RerunRequest(steps=("sim",), keep_downstream=True))
        assert (reruns.sentences()[0], reruns.cancelled) == ("sim: 8 samples again", [])
        reruns.record()
        assert cancelled.names() == set()
    finally:
        plan.cancelled_steps.unlink()


def test_the_names_of_cancelled_steps_are_followed(tmp_path):
    follower, user = CancelledSteps(tmp_path / "cancelled.json"), CancelledSteps(tmp_path / "cancelled.json")
    user.remove(["a"])
    assert not list(tmp_path.iterdir())
    for added, expected in ((["a"], {"a"}), (["b", "a"], {"a", "b"})):
        user.add(added)
        assert follower.names() == expected
    user.remove(["a"])
    assert follower.names() == {"b"}
    (tmp_path / "cancelled.json").write_text("7")
    assert follower.names() == set()
    (tmp_path / "cancelled.json").unlink()
    assert follower.names() == set()


# --- outcomes that a power cut has cost --------------------------------------------------------------


DEPENDENTS_OF_SIM = ["compare_P.2", "list_P.2", "order_P.2", "post_P.2"]


def lose(plan, name, *samples):
    """Remove the entries of the worker about samples of a step record, as a power cut does."""
    manifest = next(m for m in Manifest.read_all(plan.records) if m.name == name)
    entries = read_ledger(plan.ledger, plan.number)
    is_of_worker = np.isin(entries["kind"], (Kind.STARTED, Kind.ENDED))
    keeps = ~((entries["record"] == manifest.number) & np.isin(entries["start"], samples) & is_of_worker)
    shutil.rmtree(plan.ledger)
    kept = LedgerWriter(plan.ledger / "coordinator.ledger", plan.number)
    for one in entries[keeps & (entries["kind"] != Kind.HEAD)]:
        values = (int(one[field]) for field in ("record", "epoch", "start", "stop"))
        kept.append(Kind(one["kind"]), *values, code=int(one["code"]))
    kept.close()


@pytest.mark.parametrize(
    ("name", "sample", "misled", "expected"),
    [
        ("sim_P.2", 2, DEPENDENTS_OF_SIM, {"compare_P.2": ALL, "list_P.2": ALL, "post_P.2": [2], "order_P.2": [2], "collect": [0], "last": [0]}),
        ("post_P.2", 2, ["collect"], {"collect": [0], "last": [0]}),
        ("collect", 0, ["last"], {"last": [0]}),
        ("other", 0, [], {}),
    ],
)
def test_what_has_used_a_lost_outcome_runs_again(plan, name, sample, misled, expected):
    """Given a power cut that has cost the outcome of a sample, but not those of what depends on it, when the study is resumed,
    then these run again after the sample: no result of the attempt that is lost counts."""
    lose(plan, name, sample)
    reruns = Reruns(plan, RerunRequest())

    reruns.record()

    assert open_samples(plan) == {name: [sample], **expected}
    assert sorted(reruns.misled) == misled
    assert Reruns(plan, RerunRequest()).misled == [], "another resume does not mark them again"


def test_a_study_that_was_interrupted_has_lost_no_outcome(plan):
    """Given a sample that has not run, and step records that depend on it and have not begun, then nothing runs again."""
    lose(plan, "sim_P.2", 2)
    for name in DEPENDENTS_OF_SIM:
        lose(plan, name, *ALL)
    lose(plan, "collect", 0)
    NativeStepState(plan.native / "last").forget()

    reruns = Reruns(plan, RerunRequest())

    assert reruns.misled == []
    assert not reruns.names


def test_samples_that_run_again_on_request_are_not_lost(plan):
    Reruns(plan, RerunRequest(steps=("post",), keep_downstream=True)).record()

    assert Reruns(plan, RerunRequest()).misled == []
