"""Find all imports in the source of a file."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.commands import ROOT

OWN = ("datamodules", "lit_models", "lit_training", "scripts", "tests")


class Import(NamedTuple):
    """The full name of an imported module, and the line number of the import."""

    module: str
    line: int

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]

    @property
    def file(self) -> Path | None:
        """The file of the module, or None if the module is not in this project."""
        return file_of(self.module)


def file_of(module: str) -> Path | None:
    """Return the file of a module, or None if the module is not in this project."""
    if module.partition(".")[0] not in OWN:
        return None
    path = ROOT.joinpath(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def imports(source: str) -> list[Import]:
    """Return all imports in the text of a file, also those in functions and under ``TYPE_CHECKING``.

    ``from a import b`` is the module ``a.b`` if this is a file in this project, otherwise the module ``a``.
    """
    return list(_imports(ast.parse(source)))


def _imports(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(whole if file_of(whole) else str(node.module), node.lineno)


def name_of(path: Path) -> str:
    """Return a path relative to the project, like ``lit_training/errors.py``."""
    return path.relative_to(ROOT).as_posix()


def circle(graph: dict[Path, set[Path]]) -> list[Path]:
    """Return files that import each other in a circle, in the order of the imports; [] if there is no circle."""
    done: set[Path] = set()

    def walk(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return way[way.index(path) :]
        if path in done:
            return []
        for following in sorted(graph.get(path, ())):
            if found := walk(following, [*way, path]):
                return found
        done.add(path)
        return []

    return next((found for path in sorted(graph) if (found := walk(path, []))), [])
