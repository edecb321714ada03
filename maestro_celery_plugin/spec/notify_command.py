"""The command of notifications: the program that it starts, and what would keep it from running.

A text of plain words is a program with arguments, and runs without a shell. A text with a character that the shell
interprets, or whose first word is no program, is a script for `/bin/sh`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

from maestro_celery_plugin.config.tokens import names_in

__all__ = ["notify_problem", "words_of"]

_SHELL = "/bin/sh"
# Outside of quotes, or in all of them, the shell interprets these characters; `!` and `=` in the first word only.
_OF_SHELL = re.compile(r"[|&;<>()$`*?\[\]{}~#\n]")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_LIMIT_S = 10.0


def words_of(command: str) -> list[str]:
    """Return the words of the process that runs a command."""
    try:
        words = [] if _OF_SHELL.search(command) else shlex.split(command)
    except ValueError:
        words = []
    return words if words and shutil.which(words[0]) else [_SHELL, "-c", command]


def notify_problem(command: str) -> str:
    """Return why a command cannot run on this machine; an empty text if nothing is known to be wrong."""
    try:
        return _problem(command)
    except subprocess.TimeoutExpired:  # on an overloaded node; this says nothing about the command
        return ""


def _problem(command: str) -> str:
    answer = _shell("-n", "-c", command)
    if answer.returncode:
        reason = " ".join(answer.stderr.split())
        return f"found {command!r}, which {_SHELL} cannot read ({reason}); correct it."
    word = _first_word(command)
    if word is None:
        return ""
    if "/" in word and not word.startswith("/"):
        return (
            f"found the program '{word}', a relative path; the command runs in the directory of the study, so use an "
            "absolute path, which may begin with $(SPECROOT) in a specification."
        )
    if _shell("-c", 'command -v "$1"', _SHELL, word).returncode:
        return f"found '{word}', which is not a program on this machine; correct its name, or give its absolute path."
    return ""


def _first_word(command: str) -> str | None:
    """Return the word that names the program; None if only the shell can tell."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = (word for word in lexer if not _ASSIGNMENT.match(word))
    word = next(words, None)
    if word is None or not word[:1] or word[0] in "(){}!;&|<>" or names_in(word) or re.search(r"[$`*?\[~]", word):
        return None
    return word


def _shell(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_SHELL, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=_LIMIT_S,
    )
