"""The process that stores the status of a large study (`status_cache.py`) while the study runs.

The conductor starts it (`maestro/status_keeper.py`). It may be killed at any time: the file is replaced in one step.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from maestro_celery_plugin.errors import EnsembleError
from maestro_celery_plugin.report.ledger_samples import LedgerSamples
from maestro_celery_plugin.study.plan import StudyPlan

__all__ = ["main"]

# Samples on the same machine come first.
_NICENESS = 10


def main() -> None:
    """Read what is new in the ledger of a study, and store it; the argument is the directory of the study."""
    os.nice(_NICENESS)
    with contextlib.suppress(EnsembleError, OSError):  # the study was removed, for example
        samples = LedgerSamples(StudyPlan.read(Path(sys.argv[1])), is_detailed=False)
        samples.follow()
        samples.store()


if __name__ == "__main__":
    main()
