"""The ownership of jobs: the batch system, and not the output of a command, says which job was submitted in a directory."""

from __future__ import annotations

import pytest

from maestro_celery_plugin.batch import ownership
from maestro_celery_plugin.batch.flux import Flux
from maestro_celery_plugin.batch.lsf import Lsf
from maestro_celery_plugin.batch.ownership import check_owner, confirmed_job, find_job
from maestro_celery_plugin.errors import AllocationError, BatchSystemUnavailableError


class Cluster:
    """A batch system in memory; `places` has the directories of open jobs, `ended` those of ended jobs."""

    def __init__(self, places, ended=(), down=0):
        self.places, self.ended, self.down = dict(places), dict(ended), down

    def directories(self, jobs=None):
        if self.down:
            self.down -= 1
            raise AllocationError("'squeue' does not answer")
        known = {**self.ended, **self.places}
        return dict(self.places) if jobs is None else {job: known[job] for job in jobs if job in known}


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(ownership, "_LOOK_DELAYS_S", (0.0, 0.0, 0.0))


def test_the_number_that_was_printed_is_confirmed_by_the_directory(tmp_path):
    assert confirmed_job(Cluster({"7": str(tmp_path)}), "7", tmp_path) == "7"
    assert confirmed_job(Cluster({}, ended={"7": str(tmp_path)}), "7", tmp_path) == "7"


@pytest.mark.parametrize("places", [{}, {"3": "/home/ada"}])
def test_a_wrong_number_is_corrected_and_logged(tmp_path, caplog, places):
    assert confirmed_job(Cluster({**places, "41": str(tmp_path)}), "3", tmp_path) == "41"
    assert f"The job from '{tmp_path}' is 41; its submission has printed another number first, 3." in caplog.text


def test_a_batch_system_that_answers_late_is_asked_again(tmp_path):
    assert confirmed_job(Cluster({"7": str(tmp_path)}, down=2), "7", tmp_path) == "7"


@pytest.mark.parametrize("cluster", [Cluster({"7": "/x"}, down=9), Cluster({}), Cluster({"3": "/home/ada"})])
def test_a_number_that_cannot_be_confirmed_is_not_believed(tmp_path, cluster):
    with pytest.raises(BatchSystemUnavailableError, match="does not say now which one it is"):
        confirmed_job(cluster, "3", tmp_path)


def test_the_newest_job_of_a_directory_is_found(tmp_path):
    """Given a workspace in which a step was submitted twice, then the last job counts, by its number."""
    assert find_job(Cluster({"99": str(tmp_path), "100": str(tmp_path), "200": "/x"}), tmp_path) == "100"


def test_a_directory_is_the_same_through_a_link_or_home(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_job(Cluster({"7": str(tmp_path / "real" / "w")}), tmp_path / "link" / "w") == "7"
    assert find_job(Cluster({"7": "$HOME/real/w"}), tmp_path / "real" / "w") == "7"


def test_a_job_that_was_submitted_elsewhere_is_not_cancelled(tmp_path):
    cluster = Cluster({"3": "/home/ada", "7": str(tmp_path)})
    check_owner(cluster, "7", tmp_path)
    check_owner(cluster, "8", tmp_path)  # it is not listed any more
    check_owner(cluster, "3", None)  # a study of release 0.1 stores no directory
    with pytest.raises(AllocationError, match=r"^job 3 was submitted in '/home/ada' and is not a job of this study"):
        check_owner(cluster, "3", tmp_path)
    with pytest.raises(AllocationError, match="does not answer"):
        check_owner(Cluster({}, down=1), "7", tmp_path)


def test_flux_returns_identifiers_through_an_interface(tmp_path):
    assert confirmed_job(Flux(), "f2Q", tmp_path) == "f2Q"
    assert find_job(Flux(), tmp_path) is None
    check_owner(Flux(), "f2Q", tmp_path)


def test_lsf_lists_the_directories_of_submission(recorded, tmp_path):
    recorded.answer("bjobs", f"7|/home/ada\n8|{tmp_path}\n")
    assert find_job(Lsf(), tmp_path) == "8"
    assert recorded.asked("bjobs") == ["-noheader", "-o", "jobid sub_cwd delimiter='|'"]
    assert confirmed_job(Lsf(), "8", tmp_path) == "8"
    assert recorded.asked("bjobs") == ["-a", "-noheader", "-o", "jobid sub_cwd delimiter='|'", "8"]
