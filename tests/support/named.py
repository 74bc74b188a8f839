"""Which tests there are, by name: for the tables that name them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
