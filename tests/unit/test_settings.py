"""Settings: each key has help; what is stored is read back as it was."""

import dataclasses

import pytest

from maestro_celery_plugin.config import schema, settings

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
    for field in dataclasses.fields(block):
        assert field.metadata["help"].endswith("."), settings.key_of(field)


@pytest.mark.parametrize("block", BLOCKS)
def test_settings_are_frozen_and_keyword_only(block):
    assert block.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(block))


def test_keys_that_are_no_python_names():
    keys = {field.name: settings.key_of(field) for field in dataclasses.fields(settings.StepSettings)}
    assert keys["gpus_per_task"] == "gpus per task"
    assert keys["task_queue"] == "task_queue"


def test_plain_types_and_back():
    ensemble = settings.EnsembleSettings(
        batch=settings.BatchSettings(nodes=2, args={"a": 1}),
        resources=settings.ResourceSettings(
            overlap=True, workers={"w": settings.WorkerGroupSettings(steps=("a",), task_queues=("q",))}
        ),
        samples=settings.SampleSettings(
            file="x.csv", column_labels=("A",), generate=settings.GenerateSettings(cmd="make")
        ),
    )
    stored = schema.to_dict(ensemble)
    assert stored["resources"]["workers"] == {"w": {"steps": ["a"], "task_queues": ["q"]}}
    assert schema.from_dict(settings.EnsembleSettings, stored) == ensemble


def test_a_false_value_that_is_no_default_is_stored():
    assert settings.plain(settings.BatchSettings(flux_exec_workers=False)) == {"flux_exec_workers": False}
    assert settings.plain(settings.StepSettings(max_retries=0, exit_on_error=False)) == {
        "max_retries": 0,
        "exit_on_error": False,
    }
