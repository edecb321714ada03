"""The test of the pages itself: a page that is wrong fails, at the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest
from sybil.example import SybilFailure

from maestro_celery_plugin.processes import marked

FILE = '```text title="data/x.txt"\nfirst\n  second\n```\n'
RIGHT = {
    "a file": f"{FILE}\n```console\n$ cat data/x.txt\nfirst\n  second\n```\n",
    "a file that a later block replaces": f'{FILE}```text title="data/x.txt"\nnew\n```\n<!-- run: test "$(cat data/x.txt)" = new -->\n',
    "an executable file": '```bash title="run.sh"\n#!/bin/sh\necho hello\n```\n```console\n$ ./run.sh\nhello\n```\n',
    "two commands, one of two lines": "```console\n$ echo a \\\n>   b\na b\n$ echo c; echo d >&2\nc\nd\n```\n",
    "an output that varies": "```console\n$ echo from 17 to 18; echo end\nfrom ... to 18\nend\n```\n",
    "nothing where something may be": "```console\n$ echo a\n...\na\n...\n$ true\n...\n```\n",
    "an output that is not compared": "```console\n$ echo a\n$ echo b\nb\n```\n",
    "a directory and a variable that carry over": '```console\n$ mkdir d; cd d; A=1\n```\n\n<!-- run: test $A = 1 -->\n<!-- run: test "${PWD##*/}" = d -->\n',
    "an exit code": "<!-- exit code: 3 -->\n```console\n$ true\n$ (exit 3)\n```\n",
    "a block of Python and its output": "```python\nprint(1.5)\n```\n\n<!-- output -->\n```text\n1.5\n```\n",
    "a block in a list": "1. First:\n\n    ```console\n    $ echo a\n    a\n    ```\n",
    "what does not run": '<!-- not run: no such machine -->\n```console\n$ false\n```\n```yaml\na: 1\n```\n```text\nx\n```\n',
    "a comment about what it needs": "<!-- needs: slurm -->\n\ntext\n",
}  # fmt: skip
WRONG = {
    "another output": ("```console\n$ echo a\nb\n```\n", "- b|+ a"),
    "more output than expected": ("```console\n$ echo a; echo b\na\n```\n", "b"),
    "another output after something": ("```console\n$ echo a; echo b\n...\nc\n...\n```\n", "c"),
    "another output before something": ("```console\n$ echo a; echo b\nb\n...\n```\n", "b"),
    "an exit code that is not 0": ("```console\n$ (exit 3)\n```\n", "exit code 3, not 0"),
    "an exit code in the middle": ("```console\n$ (exit 3)\n$ true\n```\n", "exit code 3, not 0"),
    "an exit code that is 0": ("<!-- exit code: 3 -->\n```console\n$ true\n```\n", "exit code 0, not 3"),
    "another exit code": ("<!-- exit code: 3 -->\n```console\n$ (exit 4)\n```\n", "exit code 4, not 3"),
    "a missing file": ("```console\n$ cat x.txt\n```\n", "No such file"),
    "a missing command": ("```console\n$ nowhere\n```\n", "exit code 127"),
    "a mistake of the shell": ("```console\n$ if\n```\n", "exit code"),
    "a command that ends the shell": ("```console\n$ exit 0\n```\n", "ended the shell"),
    "a hidden command": ("<!-- run: test 1 = 2 -->\n", "exit code 1"),
    "a misspelt comment": ("<!-- exitcode: 3 -->\n```console\n$ true\n```\n", "unknown comment"),
    "a block that hides without reason": ("<!-- not run: -->\n```console\n$ true\n```\n", "reason"),
    "a block of Python": ("```python\nraise SystemExit(2)\n```\n", "exit code 2"),
    "the output of a block of Python": ("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n", "- 2|+ 1"),
    "a block in a language that nobody runs": ("```bash\ntrue\n```\n", "needs a title"),
    "a block that begins without a command": ("```console\necho a\n$ true\n```\n", "begins with a command"),
    "a file elsewhere": ('```text title="../x.txt"\n```\n', "outside"),
}


def run(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    shell = pages.PageShell(tmp_path / "page", {})
    try:
        pages.evaluate(pages.parse(page), shell)
    finally:
        shell.close()


@pytest.mark.parametrize("page", RIGHT.values(), ids=RIGHT)
def test_a_right_page_passes(page: str, tmp_path: Path):
    """Given a page whose blocks do what it says, then it passes."""
    run(page, tmp_path)


@pytest.mark.parametrize(("page", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_page_fails(page: str, message: str, tmp_path: Path):
    """Given a page with one mistake in its third line or below, then it fails, and the message names page, line and mistake."""
    with pytest.raises((SybilFailure, AssertionError)) as caught:
        run("# Title\n\n" + page, tmp_path)

    assert all(part in str(caught.value) for part in message.split("|")), str(caught.value)
    if isinstance(caught.value, SybilFailure):
        assert caught.value.example.path == str(tmp_path / "page.md")
        assert caught.value.example.line >= 3


def test_a_page_leaves_no_process(tmp_path: Path):
    """Given a page that starts a process in the background, when the page ends, then the process has ended."""
    run("```console\n$ setsid sleep 300 &\n```\n", tmp_path)

    assert list(marked(pages.MARK, str(tmp_path / "page"))) == []


def test_a_page_has_an_own_home(tmp_path: Path):
    """Given a page, then it does not see the home and the settings of the user who runs the test."""
    run("```console\n$ ls -A ~\n$ env | grep -c -e XDG -e PYTHONPATH || true\n0\n```\n", tmp_path)
