"""`maestro-celery add-samples`: add samples to a study."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from maestro_celery_plugin.cli.parameter_types import STEP, STUDY
from maestro_celery_plugin.cli.vars_option import vars_option
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.maestro.adding import Added, add_file, await_conductor, growing_plan, room_in
from maestro_celery_plugin.study.additions import read_additions
from maestro_celery_plugin.study.plan import StudyPlan, study_around

__all__ = ["command"]


@click.command("add-samples")
@click.argument("places", nargs=-1, type=STUDY, metavar="[STUDY] [FILE]")
@click.option(
    "--from-command",
    "chooser",
    metavar="COMMAND",
    help="Add what this command prints: it reads the ended samples as JSON lines, and prints new ones as JSON or CSV.",
)
@click.option(
    "--step",
    "steps",
    metavar="NAME",
    type=STEP,
    multiple=True,
    help="Step or step record whose samples the command reads; may be repeated. [default: all sampled steps]",
)
@click.option(
    "--key", metavar="NAME", help="Name of this addition: a second one adds nothing. [default: the content of the file]"
)
@click.option("--resume", "must_resume", is_flag=True, help="Continue a study that has no conductor.")
@vars_option
def command(
    places: tuple[Path, ...],
    chooser: str | None,
    steps: tuple[str, ...],
    key: str | None,
    must_resume: bool,
    variables: tuple[str, ...],
) -> None:
    """Add the samples in FILE, or those that a command chooses, to a study that runs or has ended.

    STUDY is the directory of a study, or its specification; a step of a study may leave it out.
    FILE is a sample table as for `merlin.samples.file`. The new samples run in all sampled steps; what depends on all
    samples runs again when they have ended.
    """
    if len(places) > 2 or (chooser and len(places) == 2):
        raise click.UsageError("Give one FILE, after STUDY, or --from-command.")
    if not chooser and not places:
        raise click.UsageError("Missing argument 'FILE', or --from-command.")
    if steps and not chooser:
        raise click.UsageError("--step needs --from-command.")
    study, file = (places[:1], None) if chooser else (places[:-1], places[-1])
    around = study_around()
    plan = growing_plan(_study(study[0], variables) if study else _around(around))
    added = _from_command(plan, chooser, steps, key) if chooser else add_file(plan, Path(str(file)).absolute(), key)
    if added is None:
        return
    click.echo(added.sentence)
    if added.stop > added.start:
        _continue(plan, added, must_resume=must_resume, is_inside=around == plan.root)


def _study(place: Path, variables: tuple[str, ...]) -> Path:
    """Return the directory of a study, or of the newest study of a specification."""
    if place.is_dir():
        return place.absolute()
    # Imported for a specification only: a step that adds samples does not wait for Maestro's modules.
    from maestro_celery_plugin.cli.study_argument import study_of

    return study_of(place, variables, may_have_ended=True)


def _around(study: Path | None) -> Path:
    if study is None:
        raise StudyError("No step of a study calls this command; give the directory of the study before the file.")
    return study


def _from_command(plan: StudyPlan, chooser: str, steps: tuple[str, ...], key: str | None) -> Added | None:
    """Add the samples that a command chooses; None if there are none."""
    from maestro_celery_plugin.maestro.sample_command import chosen_samples

    additions = read_additions(plan)
    if room_in(plan, additions) == 0:
        limit = "merlin.samples.max_samples"
        total = plan.rows + additions.count
        click.echo(f"The study has {total} samples, the largest number ({limit}); the command does not run.")
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = chosen_samples(plan, chooser, steps, Path(directory))
        if path is None:
            click.echo("The command has printed no samples; nothing is added.")
            return None
        return add_file(plan, path, key, shown="the output of the command")


def _continue(plan: StudyPlan, added: Added, *, must_resume: bool, is_inside: bool) -> None:
    """Tell what becomes of the added samples; continue a study without a conductor if the user wants it."""
    sentence, is_conducted = await_conductor(plan, added.total, wait=not is_inside)
    if is_conducted or not must_resume:
        click.echo(sentence)
        return
    from maestro_celery_plugin.maestro.limits import Limits
    from maestro_celery_plugin.maestro.reruns import RerunRequest
    from maestro_celery_plugin.maestro.resume import resume

    resume(plan.root, request=RerunRequest(), limits=Limits(), broker=None, foreground=False)
    click.echo("Study resumed.")
