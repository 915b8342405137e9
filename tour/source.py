"""Code by reference: the source of a function, class or constant of the project, by its file and name."""

import ast
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from sd.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Source(NamedTuple):
    """A piece of a file, without its indentation, and its first and last line, counted from 1."""

    text: str
    first: int
    last: int


def source_of(path: str, name: str) -> Source:
    """Return the source of `name` ("add_noise", "Guidance.__call__", "LATENT_SCALE") in a file of the repository.

    A comment directly above a constant belongs to it. Raises UserError where the file or the name does not exist.
    """
    file = ROOT / path
    if not file.is_file():
        raise UserError(f"file not found: {path}; correct the placeholder {{{{code {path} {name}}}}}.")
    text = file.read_text(encoding="utf-8")
    lines = text.split("\n")
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", []) if part in names_of(child)), None)
        if node is None:
            raise UserError(f"{path} has no {name}: correct the placeholder {{{{code {path} {name}}}}}.")
    first, last = first_line(node, lines), node.end_lineno
    return Source(textwrap.dedent("\n".join(lines[first - 1 : last])), first, last)


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines: a function's, a class's, or those of an assignment."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def first_line(node, lines: list[str]) -> int:
    """Return the first line of a definition: that of its decorators, or of the comment above a constant."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        while first > 1 and lines[first - 2].lstrip().startswith("#"):
            first -= 1
    return first
