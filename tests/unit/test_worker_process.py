"""The watch thread of a worker: which errors it expects."""

from __future__ import annotations

import shutil

from maestro_celery_plugin.study.session import Session
from maestro_celery_plugin.worker.worker_process import _try


def test_a_session_that_cannot_be_read_is_one_line_in_the_log(tmp_path, caplog):
    """Given a session without its key, then each round of the watch thread logs a line, and no traceback."""
    session = Session.create(tmp_path / "session")
    shutil.rmtree(session.path)

    assert not _try(lambda: session.id)

    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert record.getMessage() == f"The session '{session.path}' cannot be read: No such file or directory."
