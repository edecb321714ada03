"""What the command line of a launch sets in place of the specification: variables, samples, the environment."""

from __future__ import annotations

import os
import textwrap

import pytest
import yaml

from maestro_celery_plugin.errors import SpecificationError, StudyError
from maestro_celery_plugin.maestro.argument_parser import EnsembleArgumentParser
from maestro_celery_plugin.maestro.env_file import read_env_file
from maestro_celery_plugin.maestro.launch_options import OPTIONS
from maestro_celery_plugin.maestro.specification import Specification
from maestro_celery_plugin.spec.overrides import Overrides, variables_of
from maestro_celery_plugin.spec.problems import passed
from maestro_celery_plugin.spec.sources import with_sources
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

# --- the command line --------------------------------------------------------------------------------

LINES = [
    (["--vars", "A=1", "B=2", "s.yaml"], ["A=1", "B=2"]),
    (["s.yaml", "--vars", "A=1", "B=2"], ["A=1", "B=2"]),
    (["--vars", "A=1", "--vars", "B=2", "s.yaml"], ["A=1", "B=2"]),
    (["--vars=A=1", "s.yaml", "--vars", "B=2"], ["A=1", "B=2"]),
    (["-y", "--vars", "A=1", "-o", "x=1", "s.yaml"], ["A=1"]),
    (["--vars", "A=-o x", "B-1=a=b", "s.yaml"], ["A=-o x", "B-1=a=b"]),
    (["--vars", "wrong", "s.yaml"], ["wrong"]),
    (["s.yaml"], []),
]


def parser():
    found = EnsembleArgumentParser(prog="maestro run")
    for option in ("-o", "-y"):
        found.add_argument(option, nargs=None if option == "-o" else "?")
    found.add_argument("specification")
    return found


@pytest.mark.parametrize(("words", "variables"), LINES)
def test_variables_stand_before_or_after_the_specification(words, variables):
    words = [word for word in words if word != "-y"]
    found = parser().parse_args(words)
    assert (found.specification, found.vars) == ("s.yaml", variables)


@pytest.mark.parametrize("file", ["/runs/x=3/study.yaml", "./a=b.yaml", "-- a=b.yaml"])
def test_a_specification_may_have_an_equals_sign_in_its_name(file):
    found = parser().parse_args(["--vars", "A=1", *file.split()])
    assert (found.specification, found.vars) == (file.split()[-1], ["A=1"])


def test_a_missing_variable_is_an_error_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["s.yaml", "--vars"])
    assert "--vars: expected one argument" in capsys.readouterr().err


def test_only_maestro_run_has_the_options():
    with pytest.raises(SystemExit):
        EnsembleArgumentParser(prog="maestro status").parse_args(["--vars", "A=1"])


def test_the_last_value_of_a_variable_counts():
    assert variables_of(["A=1", "B==", "A=2 = 2"]) == {"A": "2 = 2", "B": "="}


@pytest.mark.parametrize("word", ["A", "=1", "A B=1", "$(A)=1", ""])
def test_a_word_that_is_no_variable_is_refused(word):
    with pytest.raises(StudyError, match=r"^--vars: found .*'NAME=VALUE' is needed"):
        variables_of([word])


# --- values in the specification ---------------------------------------------------------------------

ENSEMBLE = """
    description: {name: "run_$(TITLE)", description: d}
    env:
      variables: {N: 1, TITLE: t, MSG: $HOME, TWICE: $(MSG)+$(MSG), EMPTY: , OUTPUT_PATH: ~/$(TITLE)}
      labels: {LABEL: $(N)-label}
    study:
      - {name: s, description: d, run: {cmd: echo '$(MSG)' '$(TWICE)' $(LABEL) $(X) $(EMPTY) $(n), max_retries: $(N)}}
    merlin:
      resources: {workers: {"w$(TITLE)": {args: -c $(N), steps: [s]}}}
      samples: {generate: {cmd: "false"}, file: /nowhere.csv, column_labels: [X]}
"""
PLAIN = """
    description: {name: plain, description: d}
    env: {variables: {N: 1, OUTPUT_PATH: here, EMPTY: }, labels: {LABEL: "$(N)-label"}}
    study:
      - {name: s, description: d, run: {cmd: "echo $(N) $(LABEL)", procs: $(N)}}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a specification with overrides."""
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(OPTIONS, "overrides", Overrides())

    def load(text, **values):
        OPTIONS.overrides = Overrides(**values)
        path = tmp_path / "study.yaml"
        path.write_text(textwrap.dedent(text))
        return Specification.load_specification(str(path))

    return load


def test_values_apply_before_anything_else_is_substituted(load):
    found = load(ENSEMBLE, variables={"N": "7", "TITLE": "new", "EMPTY": "full"})

    assert (found.name, found.output_path) == ("run_new", "/home/ada/new")
    assert found.study[0]["run"]["cmd"] == "echo '/home/ada' '/home/ada+/home/ada' 7-label $(X) full $(n)"
    assert found.study[0]["run"]["max_retries"] == 7
    assert found.ensemble.resources.workers["wnew"].args == "-c 7"


VALUES = [r"a\nb\1", "a = 'b' \"c\"", "$HOME ${HOME} $(date)", "~", "~/x", "007", "1e3", "0x10", "yes", "1.50", "x: {y", "ü", "%s {0}", " "]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_stays_as_it_is(load, value):
    found = load(ENSEMBLE, variables={"MSG": value, "EMPTY": value, "OUTPUT_PATH": value})

    assert found.study[0]["run"]["cmd"] == f"echo '{value}' '{value}+{value}' 1-label $(X) {value} $(n)"
    assert found.output_path == value


BOOLEANS = ENSEMBLE.replace("resources: {", "resources: {overlap: $(FLAG), ").replace("{N: ", "{FLAG: 'false', N: ")


@pytest.mark.parametrize(("value", "truth"), [("true", True), ("Yes", True), ("FALSE", False), ("no", False), (None, False)])
def test_a_key_that_is_true_or_false_takes_its_value_from_the_command_line(load, value, truth):
    found = load(BOOLEANS.replace("echo", "echo $(FLAG)"), variables={"EMPTY": "e"} if value is None else {"EMPTY": "e", "FLAG": value})

    assert found.ensemble.resources.overlap is truth
    assert found.study[0]["run"]["cmd"].startswith(f"echo {value or 'false'} ")  # the text stays


@pytest.mark.parametrize("value", ["1", "on", "truely", "true "])
def test_another_text_for_a_key_that_is_true_or_false_is_refused(load, value):
    with pytest.raises(SpecificationError, match=f"merlin.resources.overlap: found '{value}'; true or false is needed."):
        load(BOOLEANS, variables={"EMPTY": "e", "FLAG": value})


def test_a_number_of_thousands_of_digits_stays_text(load):
    found = load(ENSEMBLE, variables={"EMPTY": "e", "LABEL": "9" * 5000})
    assert f" {'9' * 5000} " in found.study[0]["run"]["cmd"]


def test_tokens_in_a_value_have_their_meaning(load):
    found = load(ENSEMBLE, variables={"MSG": "$(TITLE)/$USER", "EMPTY": "$(N)", "LABEL": "own"})
    assert found.study[0]["run"]["cmd"] == "echo 't/$USER' 't/$USER+t/$USER' own $(X) 1 $(n)"


def test_the_environment_file_fills_variables_and_the_command_line_comes_first(load):
    found = load(ENSEMBLE, variables={"N": "2"}, environment={"N": "3", "EMPTY": "$x", "OTHER": "o"})
    assert found.study[0]["run"]["cmd"] == "echo '/home/ada' '/home/ada+/home/ada' 2-label $(X) $x $(n)"


def test_the_output_path_need_not_be_in_the_specification(load):
    text = ENSEMBLE.replace(", OUTPUT_PATH: ~/$(TITLE)", "").replace("EMPTY: ", "EMPTY: e")
    assert load(text, variables={"OUTPUT_PATH": "out"}).output_path == "out"
    without_env = "{description: {name: n, description: d}, study: [{name: s, description: d, run: {cmd: c}}], merlin: {}}"
    assert load(without_env, variables={"OUTPUT_PATH": "out"}).output_path == "out"


def test_a_study_without_an_ensemble_takes_variables(load):
    found = load(PLAIN, variables={"N": "$HOME\\1", "EMPTY": "e"})
    environment, run = found.get_study_environment(), found.study[0]["run"]

    assert environment.apply_environment(run["cmd"]) == "echo $HOME\\1 $HOME\\1-label"
    assert found.output_path == "here"
    assert load(PLAIN, environment={"EMPTY": "e"}, variables={"OUTPUT_PATH": "there"}).output_path == "there"


@pytest.mark.parametrize(("text", "known"), [(ENSEMBLE, "did you mean 'TITLE'?"), (PLAIN, "allowed: 'EMPTY', 'LABEL', 'N', 'OUTPUT_PATH'.")])
def test_an_unknown_variable_is_an_error_with_the_known_ones(load, caplog, text, known):
    with pytest.raises(SpecificationError) as error:
        load(text, variables={"TITEL": "x"})
    assert str(error.value) == f"study.yaml: env.variables: --vars: unknown variable 'TITEL'; {known}"
    assert not caplog.records


def test_a_file_of_samples_replaces_the_generation(load, tmp_path):
    samples = load(ENSEMBLE, samples_file=tmp_path / "$HOME ~.csv", variables={"EMPTY": "e"}).ensemble.samples
    assert (samples.generate, samples.file) == (None, f"{tmp_path}/$HOME ~.csv")


# --- the file of environment variables ---------------------------------------------------------------


def test_an_environment_file_has_the_form_of_dotenv_files(tmp_path):
    file = tmp_path / ".env"
    file.write_text("# c\nA=1 # c\n\nexport B='b # $HOME'\nC=\"c \\\"q\\\" $B\"\nD=a=b\nE=\nA=2\nF=x\\y\n")
    assert read_env_file(str(file)) == {"A": "2", "B": "b # $HOME", "C": 'c "q" $B', "D": "a=b", "E": "", "F": "x\\y"}


@pytest.mark.parametrize(("text", "line"), [("A=1\nsecret", 2), ("\n\nA B=1", 3), ("A='1", 1), ("A=1\n\n#\n1A=secret", 4), ("A='a' b", 1), ("A=a\0b", 1)])
def test_a_wrong_line_is_named_and_not_shown(tmp_path, text, line):
    (tmp_path / "e").write_text(text)
    with pytest.raises(StudyError, match=rf"^--env-file: '.*/e', line {line}: this is not NAME=VALUE") as error:
        read_env_file(str(tmp_path / "e"))
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "e").write_bytes(b"A=\xff\n")
    for file in (tmp_path, tmp_path / "e"):
        with pytest.raises(StudyError, match=r"^--env-file: .* cannot be read \("):
            read_env_file(str(file))


def test_the_session_keeps_the_environment_for_its_owner(tmp_path, monkeypatch):
    for name in ("TOKEN", "BASH_FUNC_mine%%", "BASH_FUNC_new%%"):
        monkeypatch.setenv(name, "of the launch")
    session = Session.create(tmp_path / "session")
    session.write_environment({"TOKEN": "t"})
    assert (session.path / "environment.json").stat().st_mode & 0o777 == 0o600

    monkeypatch.setenv("TOKEN", "other")
    monkeypatch.setenv("BASH_FUNC_mine%%", "() { :; }")
    monkeypatch.delenv("BASH_FUNC_new%%")
    session.apply_environment()
    assert [os.environ[name] for name in ("TOKEN", "BASH_FUNC_mine%%", "BASH_FUNC_new%%")] == ["t", "() { :; }", "of the launch"]

    for text in ("{", "[1]", ""):
        (session.path / "environment.json").write_text(text)
        with pytest.raises(StudyError, match="environment"):
            session.apply_environment()


def test_without_variables_the_session_has_no_file(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("BASH_FUNC_")]:
        monkeypatch.delenv(name)
    session = Session.create(tmp_path / "session")
    session.write_environment({})
    assert session.apply_environment() == {}
    assert not (session.path / "environment.json").exists()


# --- what the study keeps ----------------------------------------------------------------------------


def test_the_plan_keeps_the_values_of_the_launch_without_secrets(load, tmp_path):
    overrides = Overrides(variables={"N": "2"}, environment={"EMPTY": "secret"}, samples_file=tmp_path / "a.csv", no_errors=True)
    settings = load(ENSEMBLE, variables={"N": "2"}, environment={"EMPTY": "e"}).ensemble
    batch = StudyPlan(root=tmp_path, timestamp="T", settings=settings, overrides=overrides).to_batch()

    assert "secret" not in str(batch)
    kept = StudyPlan.from_batch(batch).overrides
    assert kept == Overrides(variables={"N": "2"}, samples_file=tmp_path / "a.csv", no_errors=True)
    assert kept.words == ["--vars", "N=2", "--samplesfile", str(tmp_path / "a.csv"), "--no-errors"]
    older = {key: value for key, value in batch.items() if key not in ("vars", "samplesfile", "no_errors")}
    assert StudyPlan.from_batch(older).overrides == Overrides()


def test_the_stored_versions_have_the_values_of_the_launch_without_secrets(load, tmp_path):
    specification = load(ENSEMBLE, variables={"N": "2"}, environment={"EMPTY": "secret"}, samples_file=tmp_path / "a.csv")
    plan = StudyPlan(root=tmp_path, timestamp="T", settings=specification.ensemble)
    texts = specification.texts(plan)
    assert "secret" not in texts.partial + texts.expanded
    for version in map(yaml.safe_load, (texts.partial, texts.expanded)):
        assert version["env"]["variables"] == {**version["env"]["variables"], "N": 2, "EMPTY": None}
        assert version["merlin"]["samples"]["file"] == str(tmp_path / "a.csv")
        assert "$(EMPTY)" in str(version["study"])


# --- env.sources -------------------------------------------------------------------------------------

SOURCES = """
    description: {name: n, description: d}
    env: {sources: SOURCES}
    study:
      - {name: a, description: d, run: {cmd: echo $(X), restart: again, shell: SHELL}}
      - {name: b, description: d, run: {cmd: echo}}
    merlin: {samples: {file: x.csv, column_labels: [X]}}
"""


def scripts(load, sources, shell="/bin/bash"):
    found = load(SOURCES.replace("SOURCES", sources).replace("SHELL", shell))
    return [step["run"].get(key) for step, key in zip((found.study[0], *found.study), ("restart", "cmd", "cmd"), strict=True)]


def test_sources_stand_before_the_commands_of_each_step(load, tmp_path):
    (tmp_path / "my env.sh").touch()
    lines = f'. "/opt/$(X).sh"\nmodule load gcc\n. "{tmp_path}/my env.sh"\n. ~/a.sh\nexport PATH=$PATH:~/b\n. "$HOME/c.sh"\n'
    found = scripts(load, f"[/opt/$(X).sh, module load gcc, '{tmp_path}/my env.sh', ~/a.sh, 'export PATH=$PATH:~/b', $HOME/c.sh]")
    assert found == [f"{lines}again", f"{lines}echo $(X)", f"{lines}echo"]


def test_csh_has_another_word_for_it():
    data = {"env": {"sources": ["/opt/x.csh"]}, "study": [{"name": "a", "run": {"cmd": "again", "shell": "/usr/bin/env -S tcsh -f"}}]}
    assert passed(with_sources(data, {}), "study.yaml")[0]["run"]["cmd"] == 'source "/opt/x.csh"\nagain'


def test_a_step_that_is_no_shell_script_does_not_use_sources(load, caplog):
    assert scripts(load, "[/opt/x.sh]", "/usr/bin/env python3") == ["again", "echo $(X)", '. "/opt/x.sh"\necho']
    assert [record.getMessage() for record in caplog.records if "env.sources" in record.getMessage()] == [
        "study.yaml: env.sources: the step 'a' does not use it: 'python3' is no shell."
    ]


def test_the_interpreter_may_be_that_of_the_batch_of_a_step_or_of_its_group(load):
    group = "merlin: {resources: {workers: {w: {steps: [a], batch: {shell: /usr/bin/env tcsh}}}}, samples"
    text = SOURCES.replace("SOURCES", "[/opt/x]").replace(", shell: SHELL", "").replace("merlin: {samples", group)
    text = text.replace("run: {cmd: echo}", "run: {cmd: echo, batch: {shell: /usr/bin/env python3}}")
    assert [step["run"]["cmd"] for step in load(text).study] == ['source "/opt/x"\necho $(X)', "echo"]


@pytest.mark.parametrize("sources", ["[]", "null"])
def test_without_sources_the_commands_do_not_change(load, sources):
    assert scripts(load, sources) == ["again", "echo $(X)", "echo"]


@pytest.mark.parametrize("source", ["3", "''", "{a: b}"])
def test_a_source_is_text(load, source):
    with pytest.raises(SpecificationError, match=r"^study.yaml: env.sources\[1\]: found .*the path of a file or a command"):
        scripts(load, f"[a, {source}]")
