"""Damages of files, drawn by Hypothesis: any bytes, parts, JSON of another shape, and what is no file.

`DAMAGE_EXAMPLES=5000 DAMAGE_SEED=1` looks further than the few examples of each run.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

__all__ = ["VALUES", "changed_json", "check_damages", "damaged_bytes", "each_example", "no_files", "put"]

SEED = int(os.environ.get("DAMAGE_SEED", "0"))
# Values of each type that a sound file does not have.
VALUES = (
    None, True, False, -1, 0, 1, 5, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, -1e308, float("inf"),
    float("-inf"), float("nan"), "", "x", "\0", "=", "a/b", "../../../x", "\ud800", "\x1b[31m[red]", "x" * 70_000, "9" * 5000,
    "\u00b2", "\u0663", [], [[]], [1, "a", None], {}, {"a": {}}, [{}], {"": None},
)  # fmt: skip
_TEXTS = (
    b"", b"{}", b"[]", b"null", b"0", b'"x"', b"[1, 2]", b'{"a": 1}', b"\xef\xbb\xbf{}", b'"\\ud800"', b"- a: [", b"[" * 100_000,
    b'{"a":' * 50_000, b"9" * 5000, b"1e999", b"-", b"NaN", b"!!python/name:os.system x", b"!!int ''", b"!!bool x", b"2024-13-45",
    b"!!timestamp x", b"? [a]\n: b", b"\0" * 200, b"a,b\n1,2\n",
)  # fmt: skip


def each_example(default: int) -> Callable[[Any], Any]:
    """Return a decorator that runs a test with a number of examples that `DAMAGE_EXAMPLES` overrides."""

    def decorate(test: Any) -> Any:
        count = int(os.environ.get("DAMAGE_EXAMPLES", str(default)))
        options = settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        )  # fmt: skip
        return seed(SEED)(options(test))

    return decorate


@st.composite
def _cut(draw: st.DrawFn, whole: bytes) -> bytes:
    at = draw(st.integers(0, len(whole)))
    end = draw(st.integers(at, min(len(whole), at + 60)))
    junk = draw(st.binary(max_size=60))
    return draw(
        st.sampled_from([whole[:at], whole[:at] + junk + whole[end:], whole + junk, whole[:at] + bytes(end - at) + whole[end:],
                         whole + whole[at:end], whole[:end] + whole[at:]])
    )  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in a JSON value."""
    found = [place]
    if isinstance(value, dict):
        return found + [inner for key in value for inner in _places(value[key], (*place, key))]
    if isinstance(value, list):
        return found + [inner for key in range(len(value)) for inner in _places(value[key], (*place, key))]
    return found


@st.composite
def changed_json(draw: st.DrawFn, whole: Any) -> Any:
    """Draw a JSON value in which one to three values have another type or size, or are missing."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(value)))
        new = copy.deepcopy(VALUES[draw(st.integers(0, len(VALUES) - 1))])
        if not place:
            value = new
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        if draw(st.integers(0, 5)) == 0:
            del parent[place[-1]]
        elif isinstance(parent, dict) and draw(st.integers(0, 5)) == 0:
            parent[draw(st.sampled_from(["", "x", "\ud800", "../x", "\0"]))] = new
        else:
            parent[place[-1]] = new
    return value


def _twice(whole: dict[str, Any], key: str, value: Any) -> str:
    """Return an object that has a key twice."""
    return json.dumps(whole)[:-1] + f", {json.dumps(key)}: {json.dumps(value)}}}"


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw the bytes of a damaged file."""
    try:
        value = json.loads(whole)
    except ValueError:
        value = None
    # Numbers instead of the values, because Hypothesis would describe the large ones.
    kinds = [st.binary(max_size=200), _cut(whole), st.integers(0, len(_TEXTS) - 1).map(_TEXTS.__getitem__)]
    if value is not None:
        kinds += [changed_json(value).map(lambda other: json.dumps(other).encode())] * 4
    if isinstance(value, dict) and value:
        key, other = st.sampled_from(sorted(value)), st.integers(0, len(VALUES) - 1).map(VALUES.__getitem__)
        kinds.append(st.builds(_twice, st.just(value), key, other).map(str.encode))
    return draw(st.one_of(kinds))


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def _below_itself(path: Path) -> None:
    path.mkdir()
    (path / path.name).mkdir()


no_files: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a directory": Path.mkdir,
    "a directory with a directory": _below_itself,
    "a pipe": os.mkfifo,
    "a link to itself": _link_to_itself,
    "a link to nothing": _link_to_nothing,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a huge file": lambda path: path.touch() or os.truncate(path, 1 << 40),
}


def put(path: Path, damage: bytes | str) -> None:
    """Put bytes, or what `no_files` names, in place of a file."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        no_files[damage](path)


def check_damages(path: Path, check: Callable[[], None], *, examples: int = 20, without: Collection[str] = ()) -> None:
    """Call a check with each kind of damage in place of a file; afterwards, the file is as before."""
    whole, times = path.read_bytes(), path.stat()

    @each_example(examples)
    @given(damaged_bytes(whole))
    def with_bytes(damage: bytes) -> None:
        put(path, damage)
        check()

    try:
        with_bytes()
        for kind in no_files.keys() - set(without):
            put(path, kind)
            check()
    finally:
        put(path, whole)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
