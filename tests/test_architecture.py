"""What import-linter (pyproject.toml, `make lint`) cannot say about imports."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "dutiful"
EDGES = ("cli", "dashboard", "integrations")


def imports(node: ast.AST, *, package: str) -> Iterator[str]:
    """Name every module that is imported below `node`, but for types only."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            children: list[ast.AST] = list(node.orelse)
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
            return
        case ast.ImportFrom(module=module, level=level):
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            yield ".".join([*above, *([module] if module else [])])
            return
        case _:
            children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from imports(child, package=package)


def imports_of(path: Path) -> list[str]:
    package = ".".join(["dutiful", *path.parent.relative_to(PACKAGE).parts])
    return list(imports(ast.parse(path.read_text("utf-8")), package=package))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sqlite3", ["sqlite3"]),
        ("def f():\n    import sqlite3", ["sqlite3"]),
        ("if TYPE_CHECKING:\n    import sqlite3", []),
        ("if typing.TYPE_CHECKING:\n    import sqlite3\nelse:\n    import os", ["os"]),
        ("from dutiful.store import contract", ["dutiful.store"]),
        ("from . import main", ["dutiful.cli"]),
        ("from .output import table", ["dutiful.cli.output"]),
        ("from .. import Worker", ["dutiful"]),
        ("from ..store import contract", ["dutiful.store"]),
    ],
)
def test_imports_are_found(source, expected):
    assert list(imports(ast.parse(source), package="dutiful.cli")) == expected


def test_sqlite3_is_imported_in_the_sqlite_store_and_nowhere_else():
    """Elsewhere it is a type in a signature: the connection that a user brings."""
    store = PACKAGE / "store"
    strangers = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "sqlite3" in imports_of(path)
        and not path.match("store/sqlite*.py")
        and store / "sqlite" not in path.parents
    ]

    assert strangers == []


def test_what_the_edges_cannot_do_with_the_public_names_a_user_cannot_do_either():
    """The command line and its like import `dutiful`, their own package, and nothing between."""
    strangers = [
        f"{path.relative_to(PACKAGE)}: {name}"
        for edge in EDGES
        for path in (PACKAGE / edge).rglob("*.py")
        for name in imports_of(path)
        if name.startswith("dutiful.") and name.split(".")[1] != edge
    ]

    assert strangers == []


def test_a_sqlite_store_takes_the_time_from_its_own_clock():
    """And not from the system: a test may have given it another (dutiful.testing.Clock)."""
    strangers = [
        str(path.relative_to(PACKAGE))
        for path in [*PACKAGE.glob("store/sqlite*.py"), *PACKAGE.glob("store/special/*.py")]
        if re.search(r"(?<![.\w])(clock\.(wall|offset)_ms|wall_ms|time\.time\w*)\(", path.read_text())
    ]

    assert strangers == []
