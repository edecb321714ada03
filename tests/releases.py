"""Studies of earlier releases: a small study directory of each release, put back where a conductor can resume it.

`tests/fixtures/studies/<release>` has the directory of `study.yaml`, whose conductor and worker were killed while
samples ran. Its files have a placeholder for the path of the study. Maestro's pickle has lengths of texts, so the
directory that replaces the placeholder must have a path of the same length.

To add a release: run `study.yaml` of the last one with `maestro run -s 1 -o ROOT`, where ROOT has `LENGTH` characters,
kill conductor, broker and worker with SIGKILL while sample 4 of each step record sleeps, and copy ROOT with the
placeholders, without `logs`, `meta`, locks and what Maestro writes again (`release.pkl`, `release.txt`).
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

STUDIES = Path(__file__).parent / "fixtures" / "studies"
RELEASES = sorted(path.name for path in STUDIES.iterdir())
LENGTH = 180
_ROOT = b"/" + b"@" * (LENGTH - 1)
_HOST = b"@HOST@"


def restore(release: str, parent: Path) -> Path:
    """Put the study of a release below a directory, and return its root."""
    root = parent / ("r" * (LENGTH - len(str(parent)) - len("//study"))) / "study"
    assert len(str(root)) == LENGTH, f"{parent} is too long"
    for path in sorted((STUDIES / release).rglob("*")):
        if path.is_file():
            place = root / path.relative_to(STUDIES / release)
            place.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes().replace(_ROOT, str(root).encode())
            place.write_bytes(data.replace(_HOST, socket.gethostname().encode()))
            place.chmod(0o755 if path.suffix == ".sh" else 0o644)
    info = root / "merlin_info"
    (info / "session").chmod(0o700)
    for path in (info / "session").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    for note in info.glob("samples.csv.*.json"):  # git does not keep the times of files
        identity = json.loads(note.read_text())
        os.utime(identity["path"], ns=(identity["mtime_ns"], identity["mtime_ns"]))
    return root
