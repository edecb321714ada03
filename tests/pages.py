"""The documentation as tests: its blocks and comments as examples of Sybil, and the shell in which a page runs.

`CONTRIBUTING.md` describes the blocks and comments of a page. A page has one directory, one home and one bash, so that
files, variables and the working directory carry over from block to block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import os
import re
import select
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from support import BIN
from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from maestro_celery_plugin.processes import end_marked

__all__ = ["PageShell", "evaluate", "needs", "parse"]

# Ends what a page leaves: all processes that a page starts have this variable.
MARK = "PAGE_OF_THE_DOCUMENTATION"
LIMIT_S = 240.0

_COMMENT = re.compile(r"^[ \t]*<!--\s*(.*?)\s*-->", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_NOT_RUN = ("text", "yaml")
_LIKE_DOCTEST = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block, and what the comments directly before it say."""

    language: str
    title: str
    text: str
    comments: tuple[str, ...]

    def comment(self, name: str) -> str | None:
        """Return the rest of the comment that begins with `name`."""
        found = (text.partition(":") for text in self.comments)
        return next((rest.strip() for head, _, rest in found if head == name), None)


class PageShell:
    """The bash of one page.

    Args:
        directory: An empty directory for the page's files; `home` beside it is the page's home.
        environment: Variables of the page, in addition to those of every page.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self.directory, self._files, self._count = directory, directory.with_name("commands"), 0
        home = directory.with_name("home")
        for place in (directory, self._files, home):
            place.mkdir()
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        path = f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        own = {"PATH": path, "HOME": str(home), "COLUMNS": "100", "USER": "ada", MARK: str(directory)}
        self._codes, codes = os.pipe()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=directory, env={**kept, **own, **environment},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=[codes], text=True,
        )  # fmt: skip
        self._own_end = codes

    def run(self, command: str) -> tuple[str, int]:
        """Run a command in this shell; return its stdout and stderr together, and its exit code.

        Raises:
            AssertionError: it takes longer than `LIMIT_S`, or ends the shell.
        """
        self._count += 1
        script, output = (self._files / f"{self._count}.{suffix}" for suffix in ("sh", "out"))
        script.write_text(command + "\n")
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{{ . {script}; }} </dev/null >{output} 2>&1\necho $? >&{self._own_end}\n")
        self._bash.stdin.flush()
        code = self._code(time.monotonic() + LIMIT_S)
        text = output.read_text(errors="replace") if output.exists() else ""
        assert code is not None, (
            f"the command did not end within {LIMIT_S:g} s, or has ended the shell:\n{command}\n{text}"
        )
        return text, code

    def _code(self, deadline: float) -> int | None:
        while time.monotonic() < deadline:
            if select.select([self._codes], [], [], 0.5)[0]:
                return int(os.read(self._codes, 100))
            if self._bash.poll() is not None:
                return None
        return None

    def close(self) -> None:
        """End the shell and all that the page has started."""
        self._bash.kill()
        self._bash.wait()
        end_marked(MARK, str(self.directory))
        for end in (self._codes, self._own_end):
            os.close(end)
        if self._bash.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._bash.stdin.close()


def parse(path: Path) -> Document:
    """Return a page with its blocks, and its commands in comments, as examples."""
    return Document.parse(str(path), _regions)


def evaluate(document: Document, shell: PageShell) -> None:
    """Run the examples of a page in their order.

    Raises:
        SybilFailure: the first example whose result is not as the page says; it names the line.
    """
    document.namespace["shell"] = shell
    for example in document.examples():
        example.evaluate()


def needs(path: Path) -> set[str]:
    """Return what a page needs, such as `slurm`."""
    return {text.partition(":")[2].strip() for text in _COMMENT.findall(path.read_text()) if text.startswith("needs:")}


def _regions(document: Document) -> Iterable[Region]:
    fences = list(RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))(document))
    yield from (Region(fence.start, fence.end, _block(document, fence), _run_block) for fence in fences)
    for match in _COMMENT.finditer(document.text):
        if not any(fence.start <= match.start() < fence.end for fence in fences):
            yield Region(match.start(), match.end(), match[1], _run_comment)


def _block(document: Document, fence: Region) -> Block:
    info, comments = str(fence.lexemes["info"]).strip(), list[str]()
    before = document.text[: fence.start].rstrip()
    while before.endswith("-->"):
        before, _, comment = before.rpartition("<!--")
        comments.append(comment.removesuffix("-->").strip())
        before = before.rstrip()
    title = _TITLE.search(info)
    return Block(info.partition(" ")[0], title[1] if title else "", str(fence.lexemes["source"]), tuple(comments))


# --- evaluators: they return what is wrong, or None --------------------------------------------------


def _run_comment(example: Example) -> str | None:
    name, _, rest = example.parsed.partition(":")
    if name != "run":
        known = name in ("needs", "exit code", "output", "not run", "generated", "/generated")
        return None if known else f"unknown comment: {example.parsed!r}"
    output, code = example.namespace["shell"].run(rest.strip())
    return f"exit code {code}: {rest.strip()}\n{output}" if code else None


def _run_block(example: Example) -> str | None:
    block: Block = example.parsed
    if (reason := block.comment("not run")) is not None:
        return None if reason else "a block that is not run needs a reason: <!-- not run: REASON -->"
    if block.title:
        return _write_file(example.namespace["shell"], block)
    if block.comment("output") is not None:
        return _difference(block.text, example.namespace["output"])
    if block.language == "console":
        return _run_console(example.namespace["shell"], block)
    if block.language == "python":
        return _run_python(example, block)
    return None if block.language in _NOT_RUN else f"a block '{block.language}' needs a title or a reason not to run"


def _write_file(shell: PageShell, block: Block) -> str | None:
    path = (shell.directory / block.title).resolve()
    if not path.is_relative_to(shell.directory):
        return f"the file {block.title} is outside of the page's directory"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    path.chmod(0o755 if block.text.startswith("#!") else 0o644)
    return None


def _run_python(example: Example, block: Block) -> str | None:
    output, code = example.namespace["shell"].run(f"python -c {shlex.quote(block.text)}")
    example.namespace["output"] = output
    return f"exit code {code}:\n{output}" if code else None


def _run_console(shell: PageShell, block: Block) -> str | None:
    if not block.text.startswith("$ "):
        return "a console block begins with a command: a line that begins with '$ '"
    commands = list(_commands(block.text))
    codes = [*[0] * (len(commands) - 1), int(block.comment("exit code") or 0)]
    for (command, expected), wanted in zip(commands, codes, strict=True):
        output, code = shell.run(command)
        if code != wanted:
            return f"exit code {code}, not {wanted}: {command}\n{output}"
        if expected.strip() and (wrong := _difference(expected, output)):
            return f"$ {command}\n{wrong}"
    return None


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block with the output that is expected."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        first, *rest = part.splitlines()
        command = [first]
        while rest and (rest[0].startswith("> ") or rest[0] == ">"):
            command.append(rest.pop(0)[2:])
        yield "\n".join(command), "\n".join([*rest, ""])


def _difference(expected: str, output: str) -> str | None:
    checker, example = doctest.OutputChecker(), doctest.Example("", expected)
    if any(checker.check_output(form, output, _LIKE_DOCTEST) for form in _forms(expected)):
        return None
    return checker.output_difference(example, output, _LIKE_DOCTEST | doctest.REPORT_NDIFF * ("..." not in expected))


def _forms(expected: str) -> Iterator[str]:
    """Yield the expected output, also without `...` as its first and last line: doctest wants at least a blank there."""
    lines = expected.strip().splitlines()
    for begun in (lines, lines[1:]) if lines[:1] == ["..."] else (lines,):
        yield "\n".join([*begun, ""])
        if begun[-1:] == ["..."]:
            yield "\n".join([*begun[:-1], ""])
