"""Conditions on columns, such as ``X > 0.3 and state == "failed"``: read here, evaluated by SQLite.

A column is what it is compared with: its text beside a text in quotes, ``like``, and functions of texts; its number
beside a number and in a calculation, where a text that is no number is a missing value; otherwise its value, which is
a number if its text is one.

Only numbers, texts, names of columns, the operators and functions below, and brackets get into the SQL; everything
else is an error. Texts are bound parameters, and each column has a name of its own in the SQL. So a condition can
neither run code nor read anything else than the columns, and names of columns may be words of SQL or differ only in
upper and lower case.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from maestro_celery_plugin.errors import ExpressionError, nearest

__all__ = ["Condition", "read_condition"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | `(?P<quoted>[^`]+)`
      | (?P<name>[^\W\d]\w*(?:\.\w+)*)
      | (?P<operator><=|>=|==|!=|<>|&&|\|\||\*\*|[-+*/%<>=(),])
    )""",
    re.VERBOSE,
)
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "=", "==", "!=", "<>"})
_WORDS = frozenset({"and", "or", "not", "in", "is", "null", "like", "glob", "between", "true", "false"})
_JOINING = frozenset({"and", "or", "not", "(", ")", ","})
_MATCHING = frozenset({"like", "glob"})
_ARITHMETIC = frozenset({"+", "-", "*", "/", "%"})
FUNCTIONS = frozenset({"abs", "coalesce", "length", "lower", "max", "min", "round", "upper"})
_SYNONYMS = {"none": "null"}
_FOREIGN = {"&&": "and", "||": "or", "**": "a product"}
_LIMIT = 10_000  # characters

_HINT = " Texts have quotes, and --read adds what samples have written."


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition in SQL.

    Attributes:
        sql: The expression; ``c0`` is the value of the first of the columns, ``t0`` its text, and so on, ``?`` a text.
        texts: The texts, in their order.
        columns: The columns, in the order of their first use.
    """

    sql: str
    texts: tuple[str, ...]
    columns: tuple[str, ...]


def read_condition(text: str, columns: Sequence[str] | None = None) -> Condition:
    """Read a condition.

    Args:
        text: The condition.
        columns: The names of all columns; None if they are not known yet.

    Raises:
        ExpressionError: it is no condition, or has the name of something else than a column.
    """
    if len(text) > _LIMIT:
        raise ExpressionError(f"The condition has {len(text)} characters; at most {_LIMIT} are allowed.")
    reader = _Reader(text, columns)
    matches: list[re.Match[str]] = []
    at, end = 0, len(text.rstrip())
    while at < end and (match := _TOKEN.match(text, at)):
        matches.append(match)
        at = match.end()
    tokens = [_Token.of(match) for match in matches]
    for place, match in enumerate(matches):
        reader.add(match, _use_of(tokens, place))
    if at < end:
        raise reader.error(f"'{text[at:].split()[0]}' is not understood")
    if not reader.sql:
        raise ExpressionError("The condition is empty; write for example: X > 0.3 and state == 'failed'")
    return Condition(" ".join(reader.sql), tuple(reader.texts), tuple(reader.used))


class _Use(enum.Enum):
    """What a condition uses of a column."""

    VALUE = enum.auto()
    NUMBER = enum.auto()
    TEXT = enum.auto()


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str
    word: str

    @staticmethod
    def of(match: re.Match[str]) -> _Token:
        return _Token(match.lastgroup or "", match[0].strip().lower())

    @property
    def use(self) -> _Use:
        """What is compared with this token."""
        return {"text": _Use.TEXT, "number": _Use.NUMBER}.get(self.kind, _Use.VALUE)


_FUNCTIONS_OF = {"length": _Use.TEXT, "lower": _Use.TEXT, "upper": _Use.TEXT, "abs": _Use.NUMBER, "round": _Use.NUMBER}
_SQL = {
    _Use.VALUE: "c{0}",
    _Use.NUMBER: "(CASE typeof(c{0}) WHEN 'text' THEN NULL ELSE c{0} END)",
    _Use.TEXT: "t{0}",
}


def _use_of(tokens: Sequence[_Token], place: int) -> _Use:
    """Return what a condition uses of the column at a place, from the tokens beside it."""

    def at(index: int) -> _Token:
        return tokens[index] if 0 <= index < len(tokens) else _Token("", "")

    before, after = at(place - 1), at(place + 1)
    if before.word == "(" and at(place - 2).word in _FUNCTIONS_OF:
        return _FUNCTIONS_OF[at(place - 2).word]
    if before.word in _ARITHMETIC or after.word in _ARITHMETIC:
        return _Use.NUMBER
    if before.word in _MATCHING:
        return _Use.TEXT
    if before.word in _COMPARISONS and at(place - 2).use is not _Use.VALUE:
        return at(place - 2).use
    following = place + 2 if after.word == "not" else place + 1
    if at(following).word in _MATCHING:
        return _Use.TEXT
    if at(following).word in _COMPARISONS or at(following).word in ("in", "between"):
        operand = following + 1
        while at(operand).word in ("(", "-", "+"):
            operand += 1
        return at(operand).use
    return _Use.VALUE


class _Reader:
    """Builds the SQL of a condition, token by token."""

    def __init__(self, text: str, columns: Sequence[str] | None) -> None:
        self._text, self._columns = text, columns
        self.sql: list[str] = []
        self.texts: list[str] = []
        self.used: list[str] = []
        self._compared = [False]  # for each open bracket: whether a comparison is open

    def error(self, problem: str) -> ExpressionError:
        return ExpressionError(f"The condition '{self._text}': {problem}{'' if problem.endswith(('?', '.')) else '.'}")

    def add(self, match: re.Match[str], use: _Use) -> None:
        """Add the SQL of one token; `use` is what is used of it if it is a column."""
        kind, token = match.lastgroup, match[0].strip()
        if kind == "text":
            quote = token[0]
            self.texts.append(token[1:-1].replace(quote * 2, quote))
            self.sql.append("?")
        elif kind == "number":
            self.sql.append(token)
        elif kind == "quoted":
            self._add_column(match["quoted"], use)
        elif kind == "name":
            self._add_name(token, use, is_call=self._text[match.end() :].lstrip().startswith("("))
        else:
            self._add_operator(token)

    def _add_name(self, name: str, use: _Use, *, is_call: bool) -> None:
        word = _SYNONYMS.get(name.lower(), name.lower())
        if word in _WORDS and (self._columns is None or name not in self._columns or word in ("and", "or", "not")):
            if word == "null" and self.sql and self.sql[-1] in _COMPARISONS:
                self.sql[-1] = "is" if self.sql[-1] in ("=", "==") else "is not"
            if word in _JOINING:
                self._compared[-1] = False
            self.sql.append(word)
        elif is_call:
            if word not in FUNCTIONS:
                raise self.error(f"there is no function '{name}'; {nearest(name, FUNCTIONS)}")
            self.sql.append(word)
        else:
            self._add_column(name, use)

    def _add_column(self, name: str, use: _Use) -> None:
        if self._columns is not None and name not in self._columns:
            hint = nearest(name, self._columns)
            raise self.error(f"there is no column '{name}'; {hint}{'' if hint.startswith('did') else _HINT}")
        if name not in self.used:
            self.used.append(name)
        number = self.used.index(name)
        self.sql.append(_SQL[use].format(number))

    def _add_operator(self, sign: str) -> None:
        if sign in _FOREIGN:
            raise self.error(f"'{sign}' is not understood; write {_FOREIGN[sign]}")
        if sign in _COMPARISONS:
            if self._compared[-1]:
                raise self.error("two comparisons follow each other; join them with 'and', as in 0 < X and X < 1")
            self._compared[-1] = True
        elif sign == "(":
            self._compared.append(False)
        elif sign == ")":
            if len(self._compared) == 1:
                raise self.error("a bracket is closed that was not opened")
            self._compared.pop()
        elif sign == ",":
            self._compared[-1] = False
        # In SQL, the quotient of integers is an integer.
        self.sql.extend(("* 1.0", "/") if sign == "/" else (sign,))
