"""Settings: each key has help, and stored settings are read back unchanged."""

import inspect

import pytest
import reference

from maestro_celery_plugin.config import conversion, settings

BLOCKS = [
    settings.GenerateSettings,
    settings.SampleSettings,
    settings.BatchSettings,
    settings.WorkerGroupSettings,
    settings.ResourceSettings,
    settings.StepSettings,
    settings.EnsembleSettings,
]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_key_has_help(block):
    help_of = reference.key_help(block)
    assert [*help_of] == [*conversion.keys_of(block)]
    assert all(text.endswith(".") for text in help_of.values())


@pytest.mark.parametrize("block", BLOCKS)
def test_settings_are_frozen_and_keyword_only(block):
    assert block.__struct_config__.frozen
    assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(block).parameters.values())


def test_keys_that_are_not_python_names_are_converted():
    assert {"gpus per task", "num resource set", "launch distribution", "task_queue"} <= {
        *conversion.keys_of(settings.StepSettings)
    }
    step = settings.StepSettings(gpus_per_task=2)
    assert conversion.to_dict(step) == {"gpus per task": 2}
    assert conversion.from_dict(settings.StepSettings, {"gpus per task": 2}) == step


def test_settings_are_stored_as_plain_types_and_read_back():
    ensemble = settings.EnsembleSettings(
        batch=settings.BatchSettings(nodes=2, args={"a": 1}),
        resources=settings.ResourceSettings(
            overlap=True, workers={"w": settings.WorkerGroupSettings(steps=("a",), task_queues=("q",))}
        ),
        samples=settings.SampleSettings(
            file="x.csv", column_labels=("A",), generate=settings.GenerateSettings(cmd="make")
        ),
    )
    stored = conversion.to_dict(ensemble)
    assert stored["resources"]["workers"] == {"w": {"steps": ["a"], "task_queues": ["q"]}}
    assert conversion.from_dict(settings.EnsembleSettings, stored) == ensemble


def test_a_false_value_that_is_not_the_default_is_stored():
    assert conversion.to_dict(settings.BatchSettings(flux_exec_workers=False)) == {"flux_exec_workers": False}
    assert conversion.to_dict(settings.StepSettings(max_retries=0, exit_on_error=False)) == {
        "max_retries": 0,
        "exit_on_error": False,
    }


def test_an_unknown_key_is_refused_when_settings_are_read():
    with pytest.raises(ValueError, match="colum_labels"):
        conversion.from_dict(settings.SampleSettings, {"file": "x.csv", "column_labels": ["A"], "colum_labels": ["A"]})


def test_settings_in_json_are_read_back():
    block = settings.BatchSettings(nodes="all", walltime="01:00:00", launcher_args={"a": [1]})
    assert conversion.from_json(settings.BatchSettings, conversion.to_json(block)) == block
