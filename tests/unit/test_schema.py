"""The JSON schema for editors: it accepts what a launch accepts, refuses misspelt keys, and has help for each key."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from support import ROOT

from maestro_celery_plugin.cli import main

SPECS = (*sorted((ROOT / "specs").glob("*.yaml")), *sorted((ROOT / "tests" / "unit" / "specs").glob("*.yaml")))
EVERYTHING = (ROOT / "tests" / "unit" / "specs" / "everything.yaml").read_text()


@pytest.fixture(scope="module")
def schema():
    return json.loads(CliRunner().invoke(main, ["schema"]).stdout)


@pytest.fixture(scope="module")
def errors(schema):
    validator = jsonschema.Draft7Validator(schema)
    return lambda data: [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(data)]


def spec(run=None, **blocks):
    step = {"name": "a", "description": "d", "run": {"cmd": "ls", **(run or {})}}
    return {"description": {"name": "s", "description": "d"}, "study": [step], **blocks}


def test_it_is_a_valid_schema_of_draft_7(schema):
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(schema)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_each_specification_is_valid(path, errors):
    assert errors(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (spec(nods=1), ""),
        (spec({"nods": 1}), "study.0.run"),
        (spec({"nodes": "two"}), "study.0.run.nodes"),
        (spec({"batch": {"bnk": "x"}}), "study.0.run.batch"),
        (spec(batch={"typ": "local"}), "batch"),
        (spec(batch={"type": "slrm"}), "batch.type"),
        (spec(env={"variabels": {}}), "env"),
        (spec(merlin={"resources": {"workers": {"w": {"arg": ""}}}}), "merlin.resources.workers.w"),
        (spec(merlin={"resources": {"workers": {"w": {"batch": {"bnk": ""}}}}}), "merlin.resources.workers.w.batch"),
        (spec(**{"global.parameters": {"P": {"value": [1], "values": [1], "label": "P"}}}), "global.parameters.P"),
        ({"study": []}, ""),
    ],
)
def test_a_mistake_is_shown_where_it_stands(data, where, errors):
    assert where in errors(data)


@pytest.mark.parametrize(
    "data",
    [
        spec({"nodes": "$(N)", "max_retries": "$(N)", "retry_delay": "$(N)", "depends": "$(LIST)", "nested": "$(B)"}),
        spec({"batch": {"nodes": "$(N)", "type": "$(TYPE)"}, "max_failures": "$(N)%", "exit_on_error": "$(E)"}),
        spec(batch={"type": "$(TYPE)-srun", "nodes": "$(N)", "gpus": "$(N)"}),
        spec(merlin={"resources": {"overlap": "$(B)", "workers": {"w": {"steps": "$(LIST)", "nodes": "$(N)"}, "v": None}}}),
        spec(merlin={"samples": {"file": "x.csv", "column_labels": "$(LIST)", "level_max_dirs": "$(N)", "generate": None}}),
        spec({"restart": None, "depends": None, "nodes": None, "priority": None}, batch=None, env={"labels": None}, merlin=None),
        spec({"exclusive": {"allocation": True, "launcher": "$(B)"}, "walltime": 3600, "priority": 0.5}),
        spec(env={"variables": {"N": 1, "LIST": ["a"], "T": "x"}}, user=[1, {"a": 2}]),
    ],
)
def test_tokens_and_keys_without_a_value_are_accepted(data, errors):
    assert errors(data) == []


def test_each_key_has_help(schema):
    """A key without help is listed with its path; blocks below alternatives count as well."""
    missing, seen = [], set()

    def walk(value, path):
        for name, inner in value.get("properties", {}).items():
            seen.add(name)
            text = inner.get("description", "")
            if not text[:1].isupper() or not text.endswith((".", ").")):
                missing.append((*path, name))
            walk(inner, (*path, name))
        for key in ("items", "additionalProperties"):
            if isinstance(value.get(key), dict):
                walk(value[key], (*path, key))
        for alternative in value.get("anyOf", []):
            walk(alternative, path)

    walk(schema, ())
    assert missing == []
    assert {"cmd", "url", "level_max_dirs", "gpus per task", "launcher", "waitable"} <= seen
