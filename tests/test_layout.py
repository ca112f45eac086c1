"""Layout of the code: import rules, networks that can be copied out of their file, short files."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.support.commands import ENVIRONMENT, ROOT
from tests.support.imports import OWN, Import, circle, file_of, imports, name_of

LOWEST_PACKAGES = {"datamodules", "lit_models"}
ROOT_FILES = {"errors", "text", "statistics", "figures"}
"""Files directly in lit_training, without __init__.py."""
ROOMS: dict[str, set[str]] = {
    "scripts": {"lit_training", "cli", "callbacks", "trained", "runs", "base", *LOWEST_PACKAGES},
    "lit_training": {"trained", "datamodules"},  # only its __init__.py: names for notebooks, and how threads wait
    "cli": {"cli", "callbacks", "trained", "runs", "base", *LOWEST_PACKAGES},
    "callbacks": {"callbacks", "runs", "base", *LOWEST_PACKAGES},
    "trained": {"trained", "runs", "base", *LOWEST_PACKAGES},
    "runs": {"runs", "base", *LOWEST_PACKAGES},
    "base": {"base", *LOWEST_PACKAGES},
    "lit_models": {"lit_models"},
    "datamodules": {"datamodules"},
}
"""Room -> the rooms from which its files may import."""
PACKAGES = {
    "lit_models",
    "datamodules",
    "datamodules.loading",
    "datamodules.photos",
    "lit_training",
    "lit_training.cli",
    "lit_training.callbacks",
    "lit_training.runs",
    "lit_training.trained",
}
EXAMPLES = "lit_training.trained.examples"
"""Programs that export.py copies: they run alone and are never imported, so this is not a package."""
FILES_WITHOUT_TORCH = ("find", "decode", "scan", "split", "near", "fixes", "folder", "check")
"""Files of datamodules/photos that must not import torch, because they check the photos before torch is imported."""
SLOW_PACKAGES = {"torch", "torchvision", "lightning", "torchmetrics"}
FILES = sorted(
    path for folder in ("scripts", *LOWEST_PACKAGES, "lit_training") for path in (ROOT / folder).rglob("*.py")
)
MODEL_FILES = ("cnn", "mlp", "dynamic", "transfer")
CLASSES = {  # network -> file, input shape, output shape
    "LeNet": ("cnn", (2, 3, 32, 32), (2, 10)),
    "mlp": ("mlp", (2, 1000), (2, 10)),
    "DynamicNet": ("dynamic", (2, 1000), (2, 10)),
}

by_name = pytest.mark.parametrize("path", FILES, ids=name_of)


def room_of(path: Path) -> str:
    """Return the room of a file, a key of ROOMS."""
    folder, *rest = path.relative_to(ROOT).parts
    if folder != "lit_training":
        return folder
    if len(rest) > 1:
        return rest[0]
    return "lit_training" if rest == ["__init__.py"] else "base"


# --- which file may import which --------------------------------------------------------------------------------------


def broken_import_rules(path: Path, source: str) -> list[str]:
    """Return a message for each import that breaks the rules."""
    room, found = room_of(path), []
    for module, line in imports(source):
        if module.partition(".")[0] not in OWN:
            continue
        imported = file_of(module)
        target = "no file" if imported is None else room_of(imported)
        if target not in ROOMS[room]:
            allowed = ", ".join(sorted(ROOMS[room] - {room})) or "no other"
            found.append(
                f"{name_of(path)}, line {line}, imports {module} ({target}): a file in {room} may import from {allowed}"
            )
    return found


@by_name
def test_imports_run_one_way(path: Path) -> None:
    """scripts -> cli -> {callbacks, trained} -> runs -> {errors, text, statistics, figures} -> {datamodules,
    lit_models}; callbacks and trained do not import each other, nor do datamodules and lit_models."""
    broken = broken_import_rules(path, path.read_text())
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "line", "room"),
    [
        ("lit_training/callbacks/new.py", "from lit_training.trained.load import load", "trained"),
        ("lit_training/trained/new.py", "from lit_training.callbacks import dashboard", "callbacks"),
        ("lit_training/runs/new.py", "import lit_training.cli.flags", "cli"),
        ("lit_training/runs/new.py", "from lit_training import load", "lit_training"),
        ("lit_training/errors.py", "def f():\n    from lit_training.runs import folder", "runs"),
        ("lit_models/new.py", "if TYPE_CHECKING:\n    from datamodules import Preprocessing", "datamodules"),
        ("lit_models/new.py", "from lit_training.errors import UsageError", "base"),
        ("datamodules/photos/new.py", "import lit_models", "lit_models"),
        ("datamodules/photos/new.py", "from lit_training.text import suggest", "base"),
        ("lit_training/cli/new.py", "from tests.support import commands", "tests"),
        ("scripts/new.py", "from scripts import fit", "scripts"),
        ("lit_training/cli/new.py", "import lit_training.listing", "no file"),
    ],
)
def test_forbidden_imports_are_found(file: str, line: str, room: str) -> None:
    [said] = broken_import_rules(ROOT / file, line)
    assert said.startswith(f"{file}, line {1 + line.count(chr(10))}, imports ")
    assert f"({room})" in said


def test_imports_are_found_anywhere_in_a_file() -> None:
    source = "import torch.nn\ndef f():\n    from lit_training.cli import flags\n    from lit_training.errors import a"
    assert imports(source) == [
        Import("torch.nn", 1),
        Import("lit_training.cli.flags", 3),
        Import("lit_training.errors", 4),
    ]


def import_graph() -> dict[Path, set[Path]]:
    """Return file -> the files of this project that it imports."""
    return {path: {found.file for found in imports(path.read_text()) if found.file is not None} for path in FILES}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count too."""
    found = [name_of(path) for path in circle(import_graph())]
    assert not found, f"files import each other in a circle: {' -> '.join([*found, *found[:1]])}"


def test_circle_is_found() -> None:
    a, b, c, d = map(Path, "abcd")
    assert circle({a: {b, d}, b: {c}, c: {b}, d: set()}) == [b, c]
    assert circle({a: {a}}) == [a]
    assert circle({a: {b, c}, b: {c}, c: {d}}) == []


@pytest.mark.parametrize("name", FILES_WITHOUT_TORCH)
def test_checks_of_a_folder_of_photos_do_not_import_torch(name: str) -> None:
    """Neither the file nor any file that it imports, directly or indirectly, imports torch."""
    start, files = ROOT / "datamodules" / "photos" / f"{name}.py", import_graph()
    ways: dict[Path, list[Path]] = {start: [start]}
    queue = [start]
    for path in queue:
        heavy = sorted({found.package for found in imports(path.read_text())} & SLOW_PACKAGES)
        way = " -> ".join(map(name_of, ways[path]))
        assert not heavy, f"datamodules/photos/{name}.py must not import {heavy[0]}: {way}"
        for following in sorted(files[path] - ways.keys()):
            ways[following] = [*ways[path], following]
            queue.append(following)


PRINT_LOADED_MODULES = """
import runpy, sys
script, *arguments = sys.argv[1:]
sys.argv = [script, *arguments]
code = 0
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stopped:
    code = stopped.code or 0
print("loaded", code, *sorted(sys.modules))
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fit.py --help", "usage: python scripts/fit.py"),
        ("check.py PHOTOS", "24 pictures in 2 classes"),
        ("check.py --help", "usage: check.py"),
    ],
)
def test_torch_is_not_imported_if_nothing_is_computed(line: str, said: str, photo_folder: Path) -> None:
    name, argument = line.replace("PHOTOS", str(photo_folder)).split()
    command = [sys.executable, "-c", PRINT_LOADED_MODULES, str(ROOT / "scripts" / name), argument]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    out, _, loaded = ended.stdout.rpartition("loaded ")
    assert said in out
    found = sorted(SLOW_PACKAGES & set(loaded.split()))
    assert not found, f"{line} must not import torch, but imports {', '.join(found)}"


# --- files ------------------------------------------------------------------------------------------------------------


def test_packages_are_the_expected_ones() -> None:
    found = {path.parent.name for path in ROOT.glob("*/*.py")} - {".venv"}
    assert found <= {*OWN, "notebooks"}, f"unexpected folders of code: {found - {*OWN, 'notebooks'}}"
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES} - {"scripts", EXAMPLES}
    assert rooms == PACKAGES, f"missing or unexpected packages: {', '.join(sorted(rooms ^ PACKAGES))}"
    for package in PACKAGES:
        init = file_of(package)
        assert init is not None, f"{package} has no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text())), f"{package}/__init__.py has no docstring"


def test_files_directly_in_lit_training() -> None:
    loose = {path.stem for path in (ROOT / "lit_training").glob("*.py")} - {"__init__"}
    assert loose == ROOT_FILES, (
        f"missing or unexpected files directly in lit_training: {', '.join(sorted(loose ^ ROOT_FILES))}"
    )


@by_name
def test_files_have_a_clear_name_and_a_docstring(path: Path) -> None:
    source = path.read_text()
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "registry", "factory"}
    assert path.name != "test.py", "pytest would collect it"
    assert ast.get_docstring(ast.parse(source)), "a module needs a docstring"
    assert len(source.splitlines()) <= (600 if path.name == "benchmark.py" else 500)


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_network_can_be_copied_out_of_its_file(name: str) -> None:
    """A network needs only its source and the file's imports of torch and the standard library."""
    file, shape, out = CLASSES[name]
    tree = ast.parse((ROOT / "lit_models" / f"{file}.py").read_text())
    allowed = {"torch", "torchvision", *sys.stdlib_module_names}
    kept: list[ast.stmt] = []
    for node in tree.body:
        constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        network = isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        used = {found.package for found in imports(ast.unparse(node))}
        fits = isinstance(node, ast.Import | ast.ImportFrom) and used <= allowed
        if constant or network or fits:
            kept.append(node)
    module = types.ModuleType("copied")
    exec(compile(ast.Module(kept, []), name, "exec"), module.__dict__)

    assert getattr(module, name)()(torch.zeros(shape)).shape == out


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_are_short(name: str) -> None:
    source = (ROOT / "lit_models" / f"{name}.py").read_text()
    assert len(source.splitlines()) <= (206 if name == "transfer" else 175)
    [lit] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name.startswith("Lit")]
    assert [ast.unparse(base) for base in lit.bases] == ["LitBase"]  # no deep inheritance
