"""What an addition of samples changes in Maestro's graph, at one poll."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
from ensembles import a_manifest
from maestrowf.abstracts.enums import State

from maestro_celery_plugin.errors import LedgerError, SpecificationError
from maestro_celery_plugin.maestro import growing
from maestro_celery_plugin.maestro.growing import take_additions, take_last_additions
from maestro_celery_plugin.study.cancelled_steps import CancelledSteps

OWN = "cat {root}/sim/$(MERLIN_SAMPLE_PATH)/out"
# Each step with what it depends on, whether it is sampled, and its script.
STEPS = {
    "sim": ((), True, "true"),
    "post": (("sim",), True, OWN),
    "compare": (("sim",), True, "cat {root}/sim/$(MERLIN_GLOB_PATH)out"),
    "learn": (("post",), False, "true"),
    "report": (("learn",), False, "true"),
}


class Graph:
    """Maestro's `ExecutionGraph`, as far as an addition uses it."""

    def __init__(self, root: Path) -> None:
        self._adapter = {"study": str(root)}
        self.values: dict = {"_source": None}
        self.adjacency_table = {"_source": ["sim"], **{name: [] for name in STEPS}}
        self._dependencies: dict[str, set[str]] = {}
        for name, (parents, is_sampled, text) in STEPS.items():
            run = {"cmd": text.format(root=root), "restart": "", "celery": {"step": name, "sampled": is_sampled}}
            step = SimpleNamespace(run=run, real_name=name)
            self.values[name] = SimpleNamespace(
                name=name, step=step, workspace=SimpleNamespace(value=str(root / name)), status=State.INITIALIZED
            )
            self._dependencies[name] = set(parents or ["_source"])
            for parent in parents:
                self.adjacency_table[parent].append(name)
        self.completed_steps, self.in_progress = {"_source"}, set()
        self.failed_steps, self.cancelled_steps = set(), set()
        self.ready_steps: deque[str] = deque()
        self.is_canceled = False

    def finish(self, *names: str) -> None:
        for name in names:
            self.in_progress.discard(name)
            self.completed_steps.add(name)
            self.values[name].status = State.FINISHED

    def start(self, *names: str) -> None:
        for name in names:
            self.in_progress.add(name)
            self.values[name].status = State.RUNNING
            self._dependencies[name] = set()


class Coordinator:
    """The coordinator of a study with 6 samples, of which step records have 4."""

    def __init__(self, root: Path) -> None:
        self.plan = SimpleNamespace(
            root=root, rows=4, info=root, steps_to_repeat=root / "steps_to_repeat.json", native=root / "native"
        )
        self.total_samples = 6
        self.manifests = {
            name: a_manifest(name=name, samples=4) for name, (_, is_sampled, _) in STEPS.items() if is_sampled
        }
        self.submitted: set[str] = set()
        self.busy: set[str] = set()
        self.calls: list = []

    def outdated(self):
        return {name: m for name, m in self.manifests.items() if m.samples < 6 and name in self.submitted}

    def running(self, names):
        return {*names} & self.busy

    def repeat(self, names):
        self.calls.append(("repeat", {*names}))

    def run_again(self, names):
        self.calls.append(("again", names))

    def take(self, taking):
        self.manifests.update(taking.grown)
        again = [name for name in taking.again if name in self.submitted]  # it does not know the others
        self.calls.append(("take", again, sorted(taking.grown), sorted(taking.running)))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A graph, its coordinator, and a function that polls with states of step records."""

    def no_manifest(*arguments):
        raise SpecificationError("none")

    lock = SimpleNamespace(must_poll=False)
    monkeypatch.setattr(growing, "build_manifest", no_manifest)
    monkeypatch.setattr(growing.conductor_lock, "acquire", lambda plan: lock)
    graph, coordinator = Graph(tmp_path), Coordinator(tmp_path)

    def poll(**states):
        coordinator.calls.clear()
        coordinator.submitted |= {name for name, one in graph.values.items() if one and one.status is not State.INITIALIZED}
        found = take_additions(graph, [coordinator], {name: State[state] for name, state in states.items()})
        return {name: state.name for name, state in found.items()}

    return SimpleNamespace(graph=graph, coordinator=coordinator, poll=poll, lock=lock)


def taken(study):
    return [call[1:] for call in study.coordinator.calls if call[0] == "take"]


def test_a_step_that_runs_has_the_samples_and_no_other_changes(study):
    study.graph.start("sim")
    assert study.poll(sim="RUNNING") == {"sim": "RUNNING"}
    assert taken(study) == [([], ["sim"], ["sim"])]
    assert study.graph.in_progress == {"sim"}
    assert study.poll(sim="RUNNING") == {"sim": "RUNNING"}
    assert taken(study) == []


def test_the_end_of_its_samples_of_before_is_hidden(study):
    study.graph.start("sim")
    assert study.poll(sim="FINISHED") == {}
    assert taken(study) == [([], ["sim"], ["sim"])]
    assert study.graph.in_progress == {"sim"}


def test_what_has_finished_runs_again_in_order(study):
    graph = study.graph
    graph.finish("sim", "post", "compare", "learn")
    graph.start("report")
    assert study.poll(report="FINISHED") == {}
    again, grown, running = taken(study)[0]
    assert (again, grown, running) == (["report", "learn", "compare"], ["compare", "post", "sim"], [])
    assert graph.completed_steps == {"_source"}
    assert {one.status for one in graph.values.values() if one} == {State.INITIALIZED}
    assert graph._dependencies == {
        **{"sim": {"_source"}, "post": {"sim"}, "compare": {"sim"}},
        **{"learn": {"post"}, "report": {"learn"}},
    }
    assert study.lock.must_poll


def test_the_step_that_adds_samples_ends_first_then_runs_again(study):
    graph = study.graph
    graph.finish("sim", "post", "compare")
    graph.start("learn")
    study.coordinator.busy = {"learn"}
    assert study.poll(learn="RUNNING") == {"learn": "RUNNING"}
    assert taken(study) == [(["compare"], ["compare", "post", "sim"], [])]
    assert graph.in_progress == {"learn"}
    repeated = CancelledSteps(study.coordinator.plan.steps_to_repeat)
    assert repeated.names() == {"learn"}

    study.coordinator.busy = set()
    assert study.poll(learn="FINISHED") == {}
    assert ("again", ["learn"]) in study.coordinator.calls
    assert "learn" not in graph.in_progress | graph.completed_steps
    assert repeated.names() == set()


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "TIMEDOUT"])
def test_an_attempt_of_it_that_is_lost_or_wants_a_retry_has_ended_as_well(study, state):
    study.graph.finish("sim", "post", "compare")
    study.graph.start("learn")
    study.coordinator.busy = {"learn"}
    study.poll(learn="RUNNING")
    study.coordinator.busy = set()
    assert study.poll(learn=state) == {}
    assert ("again", ["learn"]) in study.coordinator.calls


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "UNKNOWN"])
def test_what_has_failed_stays_so(study, state):
    study.graph.finish("sim", "post", "compare")
    study.graph.start("learn")
    study.coordinator.busy = {"learn"}
    study.poll(learn="RUNNING")
    study.coordinator.busy = set()
    assert study.poll(learn=state) == {"learn": state}
    assert ("again", ["learn"]) not in study.coordinator.calls
    assert not CancelledSteps(study.coordinator.plan.steps_to_repeat).names()


def test_a_sampled_step_that_has_failed_has_the_samples_for_a_later_resume(study):
    study.graph.failed_steps = {"sim", "post", "compare", "learn", "report"}
    study.graph.values["sim"].status = State.FAILED
    assert study.poll() == {}
    assert taken(study) == [([], ["sim"], [])]
    assert not study.lock.must_poll or study.graph.values["sim"].status is State.FAILED


def test_samples_run_first_in_what_their_step_depends_on(study):
    graph = study.graph
    graph.finish("sim", "compare")
    graph.start("post")
    study.poll(post="RUNNING")
    assert taken(study) == [(["compare"], ["compare", "sim"], [])]
    graph.start("sim")
    assert study.poll(post="RUNNING", sim="RUNNING") == {"post": "RUNNING", "sim": "RUNNING"}
    assert taken(study) == []
    assert study.poll(post="RUNNING", sim="FINISHED") == {"post": "RUNNING", "sim": "FINISHED"}
    assert taken(study) == [([], ["post"], ["post"])]


def test_a_step_that_ends_before_waits_for_what_it_depends_on(study):
    study.graph.finish("sim", "compare")
    study.graph.start("post")
    assert study.poll(post="FINISHED") == {}
    assert taken(study) == [(["compare"], ["compare", "post", "sim"], [])]
    assert study.graph._dependencies["post"] == {"sim"}
    assert study.graph.in_progress == set()


def test_a_step_that_waits_for_a_free_place_waits_for_its_inputs_again(study):
    study.graph.finish("sim")
    study.graph._dependencies["post"] = set()
    study.graph.ready_steps.append("post")
    study.poll()
    assert not study.graph.ready_steps
    assert study.graph._dependencies["post"] == {"sim"}


def test_the_last_addition_is_taken_when_all_steps_have_ended(study):
    study.graph.finish(*STEPS)
    study.coordinator.submitted |= {*STEPS}
    assert take_last_additions(study.graph, [study.coordinator])
    assert not take_last_additions(study.graph, [study.coordinator])


def test_a_cancelled_study_takes_nothing(study):
    study.graph.start("sim")
    study.graph.is_canceled = True
    assert study.poll(sim="RUNNING") == {"sim": "RUNNING"}
    assert study.coordinator.calls == []


@pytest.mark.parametrize("error", [LedgerError("full"), OSError(28, "full"), KeyError("a fault")])
def test_an_error_does_not_end_the_conductor(study, monkeypatch, caplog, error):
    def fail(taking):
        raise error

    monkeypatch.setattr(study.coordinator, "take", fail)
    study.graph.start("sim")
    assert study.poll(sim="FINISHED") == {"sim": "FINISHED"}
    assert "cannot be taken" in caplog.text
