"""Tokens: each is replaced by its value once; the value is not read for further tokens."""

import pytest
from ensembles import a_manifest

from maestro_celery_plugin.config.tokens import NameMatcher, Template, names_in, substitute
from maestro_celery_plugin.samples.paths import SamplePaths
from maestro_celery_plugin.samples.token_values import exit_code_values, sample_values, study_values
from maestro_celery_plugin.spec.launcher import with_launcher
from maestro_celery_plugin.worker.sample_directory import SampleDirectories

HOSTILE = [
    "$(OTHER)",
    "$(B)",
    "$(A)",
    "\\1",
    "\\g<0>",
    "a\\nb",
    "'\"`",
    "$(rm -rf /)",
    "../..",
    "line\nbreak",
    "ünï",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_values_are_inserted_unchanged(value):
    assert substitute("<$(A)|$(B)>", {"A": value, "B": "b"}) == f"<{value}|b>"
    assert Template("<$(A)|$(OTHER)|$(B)>", ["A", "B", "OTHER"]).fill(
        {"A": value, "B": "b", "OTHER": "o"}
    ) == (f"<{value}|o|b>")


def test_unknown_tokens_and_command_substitutions_do_not_change():
    text = "$(date) $(ls -l) $HOME ${HOME} $(UNKNOWN) $$ $((1+1))"
    assert substitute(text, {"A": "1"}) == text
    assert Template(text, ["A"]).fill({"A": "1"}) == text


def test_a_token_inside_a_command_substitution_is_replaced():
    assert substitute("$(echo $(A))", {"A": "1"}) == "$(echo 1)"


def test_names_in_returns_the_name_of_each_token():
    assert names_in("$(A) $(b.workspace) $(ls -l) $(A) ${C}") == {"A", "b.workspace"}


@pytest.mark.parametrize(
    ("token", "matched"),
    [("X0", "X0"), ("x0", None), ("MERLIN_SAMPLE_ID", "MERLIN_SAMPLE_ID"), ("merlin_sample_id", "MERLIN_SAMPLE_ID")],
)
def test_the_case_of_a_column_label_matters(token, matched):
    assert NameMatcher(["X0", "MERLIN_SAMPLE_ID"]).match(token) == matched


@pytest.mark.parametrize(("study_id", "script"), [("0", "echo 8 7"), ("1", "echo $(nproc) 7")])
def test_samples_of_a_study_of_release_0_1_keep_their_scripts(tmp_path, study_id, script):
    """Given a resumed study of release 0.1, then the case of a label does not matter, as for its first samples."""
    cmd = "echo $(nproc) $(merlin_sample_id)"
    manifest = a_manifest(tmp_path, study_id=study_id, labels=["NPROC"], cmd=cmd, workspace=str(tmp_path))
    SampleDirectories(manifest, lambda sample: ["8"]).make(7)
    assert next(tmp_path.rglob("sim.sh")).read_text().splitlines()[-1] == script


@pytest.mark.parametrize(
    ("names", "token", "matched"),
    [
        (["X0"], "X0", "X0"),
        (["X0"], "x0", "X0"),
        (["x0"], "X0", "x0"),
        (["x0", "X0"], "x0", "x0"),
        (["x0", "X0"], "X0", "X0"),
        (["aB", "Ab"], "ab", None),
        (["aB", "Ab", "AB"], "ab", None),
        (["A"], "B", None),
    ],
)
def test_release_0_1_matched_names_in_the_other_case_unless_several_names_match(names, token, matched):
    assert NameMatcher(names, ignore_case=True).match(token) == matched
    filled = Template(f"$({token})", names, ignore_case=True).fill({name: f"<{name}>" for name in names})
    assert filled == (f"<{matched}>" if matched else f"$({token})")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(LAUNCHER) ./a.out", "./a.out"),
        ("$(VLAUNCHER) ./a.out", "./a.out"),
        ("$(LAUNCHER)[2n,4p] ./a.out", "./a.out"),
        ("$(LAUNCHER)[2n, 4p]\t./a.out", "./a.out"),
        ("$(LAUNCHER)\n./a.out", "\n./a.out"),
        ("$(LAUNCHER) [ -f x ] && $(LAUNCHER)[1n] y", "[ -f x ] && y"),
        ("$(LAUNCH) x", "$(LAUNCH) x"),
    ],
)
def test_the_launcher_token_is_removed_for_the_batch_type_local(text, result):
    assert with_launcher(text, "local", {}) == result


def test_the_exit_codes_are_those_of_merlin():
    assert exit_code_values() == {
        "MERLIN_SUCCESS": "0",
        "MERLIN_RESTART": "100",
        "MERLIN_SOFT_FAIL": "101",
        "MERLIN_HARD_FAIL": "102",
        "MERLIN_RETRY": "104",
        "MERLIN_STOP_WORKERS": "105",
        "MERLIN_RAISE_ERROR": "106",
    }


def test_the_tokens_of_a_study_have_values():
    values = study_values("/out", "20260101-000000", ["A", "B"], SamplePaths(3, 2), "$(MERLIN_PATHS_ALL)")
    assert values["MERLIN_SAMPLE_NAMES"] == "A B"
    assert values["MERLIN_WORKSPACE"] == "/out"
    assert values["MERLIN_INFO"] == "/out/merlin_info"
    assert values["MERLIN_TIMESTAMP"] == "20260101-000000"
    assert values["MERLIN_GLOB_PATH"] == "*/*/"
    assert values["MERLIN_PATHS_ALL"] == "0/0 0/1 1/0"
    assert "MERLIN_PATHS_ALL" not in study_values("/out", "", (), SamplePaths(10**9), "echo")


def test_the_case_of_glob_paths_and_exit_codes_does_not_matter():
    """Given tokens in another case, then those have a value that Merlin replaces with ``re.IGNORECASE``."""
    text = "$(merlin_glob_path) $(Merlin_Paths_All) $(merlin_retry) $(merlin_info) $(x)"
    assert substitute(text, study_values("/out", "t", ["X"], SamplePaths(3, 2), text)) == (
        "*/*/ 0/0 0/1 1/0 104 $(merlin_info) $(x)"
    )


def test_the_tokens_of_a_sample_have_values():
    assert sample_values(["A", "B"], ["1", "x y"], 7, "00/07") == {
        "A": "1",
        "B": "x y",
        "MERLIN_SAMPLE_ID": "7",
        "MERLIN_SAMPLE_PATH": "00/07",
        "MERLIN_SAMPLE_VECTOR": "1 x y",
        "MERLIN_SAMPLE_NAMES": "A B",
    }
