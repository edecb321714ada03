"""`maestro-celery session`: a study and the studies that it has started."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import click

from maestro_celery_plugin import clock
from maestro_celery_plugin.cli.parameter_types import STUDY
from maestro_celery_plugin.errors import StudyError
from maestro_celery_plugin.host.start import begin, has_host
from maestro_celery_plugin.maestro.session_stop import stop_session
from maestro_celery_plugin.report.exit_codes import WaitCode
from maestro_celery_plugin.report.session_end import await_session, ends_of
from maestro_celery_plugin.report.session_tree import print_studies, session_studies
from maestro_celery_plugin.report.terminal import command_words
from maestro_celery_plugin.states import MemberState
from maestro_celery_plugin.study.members import Members
from maestro_celery_plugin.study.plan import StudyPlan
from maestro_celery_plugin.study.session import Session

__all__ = ["command"]

_HOST_LIMIT_S = 20.0
# A host that ends is gone after this time.
_ENDING_S = 1.0


@click.group("session")
def command() -> None:
    """Show, await, stop and continue a study together with the studies that it has started.

    STUDY is the directory of any of these studies.
    """


def _session_of(study: Path) -> Session:
    """Return the session of a study, or in a directory of a session.

    Raises:
        StudyError: there is no session.
    """
    session = Session(study if (study / "studies").is_dir() else StudyPlan.read(study.absolute()).session)
    if not session.path.exists():
        raise StudyError(f"The study '{study}' was a dry run, or its session was removed.")
    return session


@command.command("list")
@click.argument("directory", default=".", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print the sessions as JSON.")
def list_sessions(directory: Path, as_json: bool) -> None:
    """List the sessions of the studies in DIRECTORY, the current one without it, and in the directories below."""
    found = []
    for path in sorted({*directory.glob("*/merlin_info/session"), *directory.glob("*/*/merlin_info/session")}):
        members = Members(path)
        studies, living = members.all(), members.living()
        if studies:
            found.append({"study": studies[0].root, "studies": len(studies), "living": len(living)})
    if as_json:
        click.echo(json.dumps(found, indent=1))
    for one in found if not as_json else ():
        click.echo(
            f"{one['study']}: {one['studies']} {'study' if one['studies'] == 1 else 'studies'}, {one['living']} live"
        )
    if not found and not as_json:
        click.echo(f"There are no sessions in '{directory}'.")


@command.command("show")
@click.argument("study", type=STUDY)
@click.option("--json", "as_json", is_flag=True, help="Print the studies as JSON.")
def show(study: Path, as_json: bool) -> None:
    """Show the studies of a session as a tree: state, samples, variables, and what has started them."""
    session = _session_of(study)
    studies = session_studies(session.path)
    if as_json:
        click.echo(json.dumps([one.to_json() for one in studies], indent=1))
        return
    print_studies(studies)
    if Members(session.path).living() and not has_host(session):
        click.echo(
            "The session has no host. On the machine where the first study was launched, "
            f"`{command_words('maestro-celery session resume', study)}` starts another one."
        )


@command.command("stop")
@click.argument("study", type=STUDY)
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def stop(study: Path, force: bool) -> None:
    """End all studies of a session within seconds, with their workers and allocations; no further study starts."""
    session = _session_of(study)
    living = Members(session.path).living()
    if not force:
        names = ", ".join(f"'{member.root}'" for member in living) or "none that runs"
        click.echo(f"The session has these studies: {names}.")
        click.confirm("Stop them?", abort=True)
    report = stop_session(session)
    for sentence in report.sentences:
        click.echo(sentence)
    click.echo("The session is stopped." if report.is_complete else "Something may still run; see above.")
    sys.exit(0 if report.is_complete else 1)


@command.command("wait")
@click.argument("study", type=click.Path(path_type=Path))
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait. [default: no limit]")
def wait(study: Path, timeout: float | None) -> None:
    """Wait until all studies of a session have ended, also those that they start meanwhile.

    The exit code is the highest one that `maestro-celery wait` has for these studies. Standard error names the studies
    that have not finished well.
    """
    session = _session_of(study)
    if not await_session(session, math.inf if timeout is None else timeout):
        click.echo(f"Studies of the session still run after {timeout:g} s.", err=True)
        sys.exit(WaitCode.TIMED_OUT)
    ends = ends_of(session.path)
    for end in ends:
        if end.code:
            click.echo(f"{end.root}: {end.state.name}", err=True)
    sys.exit(max((end.code for end in ends), default=WaitCode.FINISHED))


@command.command("resume")
@click.argument("study", type=STUDY)
def resume(study: Path) -> None:
    """Start another host for a session whose host was killed; it goes on with studies whose conductor has died."""
    session = _session_of(study)
    members = Members(session.path)
    if all(member.state is MemberState.ENDED for member in members.all()):
        click.echo(
            "All studies of the session have ended; `maestro-celery resume` with the directory of one continues it "
            "if it was cancelled or has failed."
        )
        return
    session.revoke_stop()
    for member in members.all():
        if not members.is_alive(member) and member.restarts:
            members.change(member.id, restarts=0)  # the host starts its conductor once more
    runs = not clock.wait_until(lambda: not has_host(session), _ENDING_S)  # it may be about to end
    if not runs:
        begin(session)
        if not clock.wait_until(lambda: has_host(session), _HOST_LIMIT_S):
            raise StudyError(f"The host has not started; '{session.path / 'host.log'}' shows why.")
    click.echo(
        f"The host of the session runs{' already' if runs else ''}, and goes on with its studies; "
        "`maestro-celery session show` shows them."
    )
