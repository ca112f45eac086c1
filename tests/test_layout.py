"""How the code is laid out: imports run one way, a network runs outside of its file, files stay readable."""

import ast
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
OWN = ("lit_models", "datamodules", "lit_training", "scripts", "tests")
MAY_IMPORT = {
    "lit_models": {"lit_models"},
    "datamodules": {"datamodules"},
    "lit_training": {"lit_training", "lit_models", "datamodules"},
    "scripts": {"lit_training", "lit_models", "datamodules"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
MODEL_FILES = ("cnn", "mlp", "dynamic", "transfer")
CLASSES = {  # network classes and functions, the file of each, and the shapes of an input and its output
    "LeNet": ("cnn", (2, 3, 32, 32), (2, 10)),
    "mlp": ("mlp", (2, 1000), (2, 10)),
    "DynamicNet": ("dynamic", (2, 1000), (2, 10)),
}


def imports(tree: ast.AST) -> set[str]:
    """The first part of every module name imported anywhere in ``tree``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert imports(ast.parse(path.read_text())) & set(OWN) <= MAY_IMPORT[package]


def test_the_import_rule_finds_what_it_forbids() -> None:
    assert imports(ast.parse("def f():\n    from lit_training.cli import FitCLI\nimport torch.nn")) == {
        "lit_training",
        "torch",
    }


@pytest.mark.parametrize("name", CLASSES)
def test_a_network_runs_outside_of_its_file(name: str) -> None:
    """Its source and the file's imports of torch and the standard library are all that it needs."""
    file, shape, out = CLASSES[name]
    tree = ast.parse((ROOT / "lit_models" / f"{file}.py").read_text())
    allowed = {"torch", "torchvision", *sys.stdlib_module_names}
    kept: list[ast.stmt] = []
    for node in tree.body:
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        network = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        fits = isinstance(node, ast.Import | ast.ImportFrom) and imports(node) <= allowed
        if constant or network or fits:
            kept.append(node)
    module = types.ModuleType("copied")
    exec(compile(ast.Module(kept, []), name, "exec"), module.__dict__)

    assert getattr(module, name)()(torch.zeros(shape)).shape == out


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_model_file_is_read_at_one_sitting(name: str) -> None:
    source = (ROOT / "lit_models" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 175
    [lit] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name.startswith("Lit")]
    assert [ast.unparse(base) for base in lit.bases] == ["LitBase"]  # no tower


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_a_subject(path: Path) -> None:
    source = path.read_text()
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "registry", "factory"}
    assert path.name != "test.py", "pytest would collect it"
    assert ast.get_docstring(ast.parse(source)), "a module says what it is about"
    assert len(source.splitlines()) <= 500


def test_only_the_packages_that_the_map_names() -> None:
    found = {path.parent.name for path in ROOT.glob("*/*.py")} - {".venv"}
    assert found <= {*OWN, "notebooks"}
