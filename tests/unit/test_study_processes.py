"""The processes of a study on this machine, and what is said about their end."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
from support import wait_for

from maestro_celery_plugin.study.study_processes import StudyProcesses


@pytest.fixture
def host(tmp_path):
    """Start a process that looks like the host of the session of a study."""
    words = ["maestro_celery_plugin.host", str(tmp_path / "merlin_info" / "session")]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *words])
    wait_for(lambda: words[-1] in psutil.Process(process.pid).cmdline(), "the end of its exec")
    yield process
    process.kill()
    process.wait()


def test_a_host_that_ends_on_request_before_its_signal_counts_as_ended(host, tmp_path):
    def request():
        host.kill()
        host.wait()

    ended = StudyProcesses(tmp_path).end_all(request)

    assert ended.text == "the host of its session"
    assert ended.remaining == ()
