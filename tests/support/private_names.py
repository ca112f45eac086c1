"""Find uses of private names of libraries in this project's source.

A name is private if it begins with one underscore. A name that the file defines is not a name of a library. The same is
true for attributes of ``self`` that a base class in this project defines. Names of the standard library are ignored.
"""

import ast
import functools
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.support.commands import ROOT
from tests.support.imports import OWN, name_of

PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""Documented names of every NamedTuple."""
BY_TEXT = ("getattr", "setattr", "hasattr", "delattr")
Found = Iterator[tuple[str, int, str]]
"""Name, line number, and a text that describes the use of the name."""


class Private(NamedTuple):
    """A library's private name and where it is used."""

    name: str
    file: str
    line: int
    how: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.name} ({self.how})"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in PUBLIC


def private_names(path: Path) -> list[Private]:
    """Return the private names of libraries in a file. The file is imported to find the base classes of its classes."""
    folder = path.relative_to(ROOT).with_suffix("").parts
    is_program = folder[0] == "scripts" or "examples" in folder
    module = None if is_program else importlib.import_module(".".join(folder))
    return [Private(name, name_of(path), line, how) for name, line, how in private_names_in(path.read_text(), module)]


def private_names_in(source: str, module: ModuleType | None = None) -> list[tuple[str, int, str]]:
    """Return name, line and use of each private name of a library.

    Args:
        source: the text of a file.
        module: the imported file. If it is None, classes are not checked.
    """
    tree = ast.parse(source)
    classes = {node: getattr(module, node.name, None) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    known = {node: klass for node, klass in classes.items() if inspect.isclass(klass)}
    return sorted({*_imported(tree), *_accessed(tree, known), *_named_by_text(tree), *_overridden(known)})


def _imported(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, *parts = name.split(".")
            if package not in OWN and package not in sys.stdlib_module_names:
                for part in filter(is_private, parts):
                    yield part, getattr(node, "lineno", 0), f"imported from {package}"


def _accessed(tree: ast.Module, classes: dict[ast.ClassDef, type]) -> Found:
    own = _defined(tree)
    klass_of = {part: klass for node, klass in classes.items() for part in ast.walk(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not is_private(node.attr) or node.attr in own:
            continue
        owner, klass = ast.unparse(node.value), klass_of.get(node)
        if owner in sys.stdlib_module_names:  # os._exit
            continue
        if owner == "self" and klass is not None:
            libraries = _library_bases(klass)
            ours = set(klass.__mro__) - set(libraries)
            if not libraries or any(node.attr in _names_of(base) for base in ours):
                continue
        yield node.attr, node.lineno, f"{'set on' if isinstance(node.ctx, ast.Store) else 'read from'} {owner}"


def _defined(tree: ast.Module) -> set[str]:
    """Return the names that a file defines: functions, classes, variables, attributes of ``self``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def _named_by_text(tree: ast.Module) -> Found:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in BY_TEXT and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and is_private(name.value):
                yield name.value, node.lineno, f"named in {ast.unparse(node.func)}"


def _overridden(classes: dict[ast.ClassDef, type]) -> Found:
    """Find private names of a library's class that a class in this project redefines or sets on ``self``."""
    for node, klass in classes.items():
        theirs = {name: base for base in reversed(_library_bases(klass)) for name in _names_of(base)}
        for name in filter(is_private, _defined(ast.Module([node], [])) & theirs.keys()):
            yield name, node.lineno, f"{klass.__name__} redefines a name of {theirs[name].__qualname__}"


def _library_bases(klass: type) -> list[type]:
    return [base for base in klass.__mro__ if base.__module__.partition(".")[0] not in {*OWN, *sys.stdlib_module_names}]


@functools.cache
def _names_of(klass: type) -> set[str]:
    """Return the names that a class defines, and the attributes that its methods set."""
    names = set(vars(klass))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(klass)))
    except (OSError, TypeError):  # written in C
        return names
    return names | _defined(tree)
