"""The help of keys: the docstring below each field of a settings class, which Python does not store."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from typing import Any, TypeAlias

__all__ = ["block_heading", "key_help", "member_help"]

# A settings class; its docstring begins with the name of its block.
Block: TypeAlias = Any


def block_heading(block: Block) -> tuple[str, str]:
    """Return the name and the purpose of a block, from the first line of its class's docstring.

    Raises:
        ValueError: the docstring has another form.
    """
    found = re.match(r"``(.+?)``: (.+)", str(block.__doc__))
    if found is None:
        raise ValueError(f"{block.__name__}: the docstring must begin with ``block``: purpose.")
    return found[1], found[2]


def key_help(block: Block) -> dict[str, str]:
    """Return the help of each key of a settings class, by its name in YAML."""
    help_of = member_help(block)
    return {
        key: help_of[name] for name, key in zip(block.__struct_fields__, block.__struct_encode_fields__, strict=True)
    }


def member_help(cls: type) -> dict[str, str]:
    """Return the docstring below each member of a class, from the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found: dict[str, str] = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for member, text in itertools.pairwise(statements):
        target = member.targets[0] if isinstance(member, ast.Assign) else getattr(member, "target", None)
        value = text.value if isinstance(text, ast.Expr) else None
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[target.id] = " ".join(value.value.split())
    return found
