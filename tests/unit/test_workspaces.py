"""Workspaces of step records: two step records with one directory stop the launch, with both in the message."""

from __future__ import annotations

import types

import pytest
import yaml
from maestrowf.datastructures.core import ParameterGenerator, Study

from maestro_celery_plugin.errors import SpecificationError
from maestro_celery_plugin.maestro import workspaces
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.maestro.touchpoints import _load_parameter_generator

RULE = "because Maestro keeps only letters, digits and '-_.()' in names of directories"


@pytest.fixture(autouse=True)
def launching(monkeypatch):
    monkeypatch.setattr(OPTIONS, "launching", True)
    monkeypatch.setattr(OPTIONS, "dry_run", True)


def step(name, cmd="echo", **run):
    return {"name": name, "description": "d", "run": {"cmd": cmd, **run}}


def parameter(*values, label="P.%%"):
    return {"values": list(values), "label": label}


def load(tmp_path, *steps, **parameters):
    path = tmp_path / "study.yaml"
    data = {"description": {"name": "s", "description": "d"}, "study": list(steps), "merlin": {}}
    path.write_text(yaml.safe_dump({**data, **({"global.parameters": parameters} if parameters else {})}))
    return Specification.load_specification(str(path))


def message(tmp_path, *steps, **parameters):
    with pytest.raises(SpecificationError) as error:
        load(tmp_path, *steps, **parameters)
    return str(error.value).removeprefix("study.yaml: ")


@pytest.mark.parametrize(
    ("steps", "parameters", "found"),
    [
        ([step("a", "$(P)")], {"P": parameter("Na", "Na+")},
         f"study.a: P=Na and P=Na+ have one directory, 'a/P.Na', {RULE}; change the values or their labels, or use --hashws."),
        ([step("a", "$(P)")], {"P": parameter("x y", "x_y")}, "study.a: P=x y and P=x_y have one directory, 'a/P.x_y'"),
        ([step("a", "$(P) $(Q)")], {"P": parameter(1, 1), "Q": parameter("a/b", "ab")},
         "study.a: P=1, Q=a/b and P=1, Q=ab have one directory, 'a/P.1.P.ab'"),
        ([step("a", "$(P)"), step("b", depends=["a"])], {"P": parameter("+", "-", label="%%")},
         f"study.a: P=+: the step record has no directory of its own, {RULE}; change the value or its label."),
        ([step("a", "$(P)")], {"P": parameter("..", label="%%")}, "study.a: P=..: the step record has no directory"),
        ([step("a"), step("b", "cat $(a.workspace)", depends=["a"]), step("c", "$(P)"), step("d", "ls $(c.workspace)", depends=["c"])],
         {"P": parameter("1=", "1")}, "study.c: P=1= and P=1 have one directory"),
        ([step("a", "$(P) $(Q)")], {"P": parameter("x.y", "x", label="%%"), "Q": parameter("z", "y.z", label="%%")},
         "study.a: P=x.y, Q=z and P=x, Q=y.z have one name, 'x.y.z', so that Maestro runs only one of them; change the values or "
         "the labels of the parameters ('%%' stands for the value)."),
        ([step("a", "$(P)")], {"P": parameter(1, 2, label="same")}, "study.a: P=1 and P=2 have one name, 'same'"),
        ([step("a b"), step("a_b")], {},
         f"study.a_b.name: the steps 'a b' and 'a_b' have one directory, 'a_b', {RULE}; rename one of them."),
        ([step("a+"), step("a")], {"P": parameter(1)}, "study.a.name: the steps 'a+' and 'a' have one directory, 'a'"),
        ([step("+")], {}, f"study.+.name: the step has no directory of its own, {RULE}; rename the step."),
        ([step("merlin_info")], {}, "study.merlin_info.name: the study has other files at 'merlin_info'; rename the step."),
        *(([step(name)], {}, f"study.{name}.name: the study has other files at '{name}'; rename the step.")
          for name in ("s.pkl", "s.study.pkl", "s.txt", "study.yaml")),
        ([step("logs", "$(P)")], {"P": parameter(1)}, "study.logs.name: the study has other files at 'logs'"),
    ],
)  # fmt: skip
def test_step_records_with_one_directory_stop_the_launch(tmp_path, steps, parameters, found):
    assert message(tmp_path, *steps, **parameters).startswith(found)


@pytest.mark.parametrize(
    ("steps", "parameters"),
    [
        # `Q` alone makes two equal combinations, which are one step record.
        ([step("a", "$(Q)"), step("b", "$(P)", depends=["a"])], {"P": parameter(1, 2), "Q": parameter("x", "x")}),
        ([step("a", "$(P)"), step("b", "echo", depends=["a_*"])], {"P": parameter("Na", "Cl")}),
        ([step("a")], {"P": parameter("Na", "Na+")}),  # no step uses it
    ],
)
def test_step_records_with_different_directories_are_accepted(tmp_path, steps, parameters):
    load(tmp_path, *steps, **parameters)


def test_numbered_directories_tell_values_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(OPTIONS, "hashes_names", True)
    load(tmp_path, step("a", "$(P)"), P=parameter("Na", "Na+"))
    assert "have one name, 'same'" in message(tmp_path, step("a", "$(P)"), P=parameter(1, 2, label="same"))
    assert "have one directory" in message(tmp_path, step("a b", "$(P)"), step("a_b", "$(P)"), P=parameter(1))


def test_a_preview_of_a_study_with_numbered_directories_is_possible(tmp_path, monkeypatch):
    """Given commands that load a specification without a launch, then they accept what `--hashws` accepts."""
    monkeypatch.setattr(OPTIONS, "launching", False)
    load(tmp_path, step("a", "$(P)"), P=parameter("Na", "Na+"))


def test_the_step_records_are_those_of_maestro(tmp_path):
    """Given all ways in which a step gets the parameters of another one, then Maestro makes the same step records."""
    specification = load(
        tmp_path,
        step("a", "$(P)"),
        step("b", "cat $(a.workspace)", depends=["a"]),
        step("c", "$(Q.label)", depends=["a_*"]),
        step("d", "cat $(c.workspace) $(b.workspace)", depends=["b_*", "c"]),
        step("e", "echo", depends=["d*"]),
        step("f", "echo", restart="$(Q)"),
        step("g", "ls $(f.workspace)/x", depends=["f"]),
        P=parameter(1, 2, 2),
        Q=parameter("x", "y", "x", label="Q.%%"),
    )
    parameters, steps = specification.get_parameters(), specification.get_study_steps()
    expected = {
        record.step + (f"_{record.combination}" if record.values else "")
        for record in workspaces._records(steps, parameters)
    }
    environment = specification.get_study_environment()
    environment.remove("merlin samples")
    study = Study("s", {"name": "s", "description": "d"}, studyenv=environment, parameters=parameters, steps=steps, out_path=str(tmp_path))
    study.setup_workspace()
    study.configure_study()
    study.setup_environment()
    assert set(study.stage()[1].values) - {"_source"} == expected


def generated(values):
    parameters = ParameterGenerator()
    parameters.add_parameter("P", values, "P.%%")
    return parameters


@pytest.mark.parametrize(
    ("values", "found"),
    [(["Na", "Na+"], "study.a: P=Na and P=Na+ have one directory, 'a/P.Na'"), (["Na", "Cl"], None)],
)
def test_generated_parameters_are_checked_before_the_study_starts(tmp_path, monkeypatch, values, found):
    monkeypatch.setattr(OPTIONS, "parameter_generator", True)
    environment = load(tmp_path, step("a", "$(P)")).get_study_environment()
    generate = _load_parameter_generator(lambda path, env, kwargs: generated(values))
    if found is None:
        assert list(generate("pgen.py", environment, {}).parameters) == ["P"]
        return
    with pytest.raises(SpecificationError) as error:
        generate("pgen.py", environment, {})
    assert str(error.value).startswith(f"study.yaml: {found}")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("X", "merlin.samples.column_labels: 'X' is also a name in --pgen; $(X) must have one meaning."),
        ("Y", "merlin.samples.column_labels: 'Y.label' is also a name in --pgen; $(Y.label) must have one meaning."),
        ("MERLIN_INFO", "--pgen.MERLIN_INFO: $(MERLIN_INFO) is a reserved name; use another name."),
    ],
)
def test_a_generated_parameter_must_not_have_the_name_of_another_token(tmp_path, monkeypatch, name, found):
    monkeypatch.setattr(OPTIONS, "parameter_generator", True)
    path = tmp_path / "study.yaml"
    samples = {"samples": {"file": "x.csv", "column_labels": ["X", "Y.label"]}}
    path.write_text(yaml.safe_dump(
        {"description": {"name": "s", "description": "d"}, "study": [step("a", "$(X)")], "merlin": samples}
    ))  # fmt: skip
    environment = Specification.load_specification(str(path)).get_study_environment()
    parameters = ParameterGenerator()
    parameters.add_parameter(name, [1], f"{name}.%%")
    with pytest.raises(SpecificationError) as error:
        _load_parameter_generator(lambda path, env, kwargs: parameters)("pgen.py", environment, {})
    assert str(error.value) == f"study.yaml: {found}"


def test_parameters_of_a_plain_study_are_not_checked():
    environment = types.SimpleNamespace(dependencies={"path": object()})
    parameters = generated(["Na", "Na+"])
    assert _load_parameter_generator(lambda path, env, kwargs: parameters)("pgen.py", environment, {}) is parameters
