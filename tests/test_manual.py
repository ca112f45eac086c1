"""The commands in README, CONTRIBUTING and docs/ run, and their links and folders exist.

``bash`` and ``python`` blocks run in the order of the page, in a folder that contains the files of the examples
(``path/to/photos``, ``my_photo.jpg``, two runs). A python block that begins with ``# NAME.py`` is saved as that file.
``sh`` blocks need several machines, so only their flags are checked. ``text`` blocks are output and are not checked.
"""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_training.cli.parser import FitCLI
from lit_training.runs.out_of_fold import OutOfFold
from tests.support import by_hand, printed
from tests.support.ants_and_bees import write_photos
from tests.support.commands import ROOT, run, run_well, series_in_this_process
from tests.support.own_classes import OWN, remember_imports
from tests.support.training import own_caches

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
README = PAGES[0].read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FAST_FLAGS = "--model.weights none --data.image_size 64"
"""Flags for fast training on photos, without downloads."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def command_lines(page: Path, language: str) -> list[str]:
    """Return the commands in the page's ``bash`` or ``sh`` blocks, without comments. Continued lines are joined."""
    text = "\n".join(body for kind, body in blocks(page) if kind == language).replace("\\\n", " ")
    return [line for line in (line.partition("#")[0].strip() for line in text.splitlines()) if line]


FIT_ARGUMENTS = sorted(
    {
        line.partition("fit.py ")[2]
        for page in PAGES
        for language in ("bash", "sh")
        for line in command_lines(page, language)
        if "fit.py " in line
    }
)
TABLE_FLAGS = sorted(
    {flags for page in PAGES for flags in re.findall(r"\| `(--(?:model|data)\.[^`]+)`", page.read_text())}
)


def as_runnable_command(line: str) -> str:
    """Return a command that runs on any machine: on one CPU, with few steps, without downloads."""
    script, _, arguments = line.removeprefix("python scripts/").partition(" ")
    arguments = re.sub(r"--devices \d+( --strategy ddp)?", "--devices 1", arguments.replace("gpu", "cpu"))
    if script == "benchmark.py":
        return f"{script} {arguments} --small"
    if script != "fit.py":
        return f"{script} {arguments}"
    new_run = "--resume latest" not in arguments and "--config" not in arguments
    if new_run and "path/to/photos" in arguments:
        arguments += f" {FAST_FLAGS}"
    if "max_epochs" not in arguments:
        arguments += " --max_epochs 1"
    return f"{script} {arguments} --limit_train_batches 2"


# --- checks without running the commands ------------------------------------------------------------------------------


@every_page
def test_a_page_names_commands_and_links_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for folder in re.findall(r"^\| `([\w/]+/)` \|", text, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in MAKEFILE, target
    for script in re.findall(r"scripts/(?:recipes/)?[a-z_]+\.(?:py|yaml|sh)", text):
        assert (ROOT / script).is_file(), script
    for line in command_lines(page, "bash"):
        assert re.match(r"python scripts/|make |source \.venv|tensorboard |\.venv/bin/python -m pytest ", line), line


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_a_page_begins_with_its_answer_and_a_command(page: Path) -> None:
    title, _, text = page.read_text(encoding="utf-8").partition("\n")
    beginning = text.partition("\n## ")[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    assert BLOCK.search(beginning)
    assert len(beginning[: beginning.index("```")].split()) >= 5


@every_page
def test_lines_fit_the_screen(page: Path) -> None:
    prose = [line for line in BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines() if line[:1] not in "|!"]
    assert max(map(len, prose)) <= 110


def test_the_readme_names_all_scripts_pages_and_folders() -> None:
    assert len(README.splitlines()) <= 140, "three screens"
    assert set(re.findall(r"`scripts/(\w+\.py)", README)) == {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert set(re.findall(r"\((docs/\w+\.md)\)", README)) == {name_of(page) for page in DOCS}
    shown = set(re.findall(r"^\| `(\w+/)` \|", README, re.MULTILINE))
    assert shown == {"lit_models/", "datamodules/", "lit_training/", "scripts/", "notebooks/", "docs/", "tests/"} | {
        "lightning_logs/"
    }


def test_every_recipe_of_the_readme_says_its_result() -> None:
    """The comment at the top of a recipe contains the result that the README shows."""
    rows = re.findall(r"^\|.*\| ([^|]*?) \([^|]*\) \| [^|]* \| `(\w+\.yaml)`[^|]* \|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for result, recipe in rows:
        head = (ROOT / "scripts" / "recipes" / recipe).read_text(encoding="utf-8").replace("\n# ", " ")
        assert result.split(" ", 1)[1] in head, f"{recipe} does not say {result}"


@pytest.mark.parametrize(
    "arguments", [line for line in FIT_ARGUMENTS if "--resume" not in line and "version_" not in line]
)
def test_fit_commands_are_accepted(arguments: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "path" / "to" / "photos")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    write_python_files(PAGES)
    arguments = re.sub(r"--seeds \d+", "", arguments.replace("gpu", "cpu"))
    with remember_imports():
        FitCLI(shlex.split(arguments) + ["--logger", "false"] * ("--folds" not in arguments))


@pytest.mark.parametrize("flags", [flags for flags in TABLE_FLAGS if "NAME" not in flags and ".pth" not in flags])
def test_flags_of_the_tables_are_accepted(flags: str, photo_folder: Path) -> None:
    FitCLI(["--data", str(photo_folder), *shlex.split(flags), "--logger", "false"])


def test_the_examples_of_the_manual_are_files() -> None:
    shown = [body for page in DOCS for language, body in blocks(page) if language == "python" and body[:2] == "# "]
    files = sorted(file.read_text(encoding="utf-8") for file in OWN.glob("my_*.py"))
    assert sorted(shown) == files


def test_commands_and_flags_are_found() -> None:
    assert len(FIT_ARGUMENTS) >= 10
    assert len(TABLE_FLAGS) >= 8


# --- running the pages ------------------------------------------------------------------------------------------------


def write_python_files(pages: list[Path]) -> None:
    """Write the python blocks that begin with ``# NAME.py`` into the current folder."""
    for page in pages:
        for language, body in blocks(page):
            if language == "python" and (name := re.match(r"# (\w+\.py)\n", body)):
                Path(name[1]).write_text(body, encoding="utf-8")


@pytest.fixture(scope="module")
def folder_of_the_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the examples, and two runs on its photos. The first one has folds and fixes."""
    place = tmp_path_factory.mktemp("folder_of_the_pages")
    write_photos(place / "path" / "to" / "photos")
    shutil.copytree(place / "path" / "to" / "photos" / "val" / "ants", place / "another_folder")
    shutil.copy(place / "another_folder" / "0.jpg", place / "my_photo.jpg")
    (place / "scripts").symlink_to(ROOT / "scripts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        own_caches(place, patch)
        for seed in range(2):
            run_well(f"fit.py --data path/to/photos {FAST_FLAGS} --max_epochs 1 --seed {seed} --accelerator cpu")
    paths = np.array([f"train/{name}/{number}.jpg" for name in ("ants", "bees") for number in range(8)], object)
    shares = np.where(np.arange(16)[:, None] < 8, [0.9, 0.1], [0.1, 0.9])
    shares[3] = 0.05, 0.95
    numbers = np.arange(16)
    folds = OutOfFold(("ants", "bees"), paths, numbers * 0 + 1, numbers % 4 + 1, numbers // 8, shares)
    folds.write(place / "lightning_logs" / "version_0" / "out_of_fold.csv")
    fixes = "path,label,suggested,confidence,action\ntrain/ants/3.jpg,ants,bees,0.95,move\n"
    (place / "lightning_logs" / "version_0" / "fixes.csv").write_text(fixes)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CONTRIBUTING"], ids=name_of)
def test_a_page_runs(page: Path, folder_of_the_pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder_of_the_pages, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    for name in ("out_of_fold.csv", "fixes.csv") if page.stem != "photos" else ():  # the run was trained without folds
        Path("lightning_logs/version_0", name).unlink()
    ran, names = 0, {"__name__": "page"}
    with remember_imports():
        write_python_files([page])
        for language, body in blocks(page):
            if language == "python" and not re.match(r"# \w+\.py\n", body):
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(body, page.name, "exec"), names)
                ran += 1
            if language == "bash":
                lines = [line.partition("#")[0].strip() for line in body.splitlines()]
                for line in lines:
                    if line.startswith("python scripts/"):
                        with series_in_this_process() if "--seeds" in line else contextlib.nullcontext():
                            ended = run(as_runnable_command(line))
                        assert ended.code == int("--labels" in line), ended.err  # 1: a wrong label was found
                        ran += 1
    assert ran


@pytest.mark.slow
def test_from_a_folder_to_a_prediction(photo_folder: Path) -> None:
    said = run_well(f"fit.py --data photos {FAST_FLAGS} --max_epochs 1 --accelerator cpu")
    assert "24 pictures in 2 classes" in said
    accuracy = printed.interval(said, "val_acc")
    assert accuracy == pytest.approx((accuracy[0], *by_hand.wilson(round(8 * accuracy[0]), 8)), abs=6e-4)
    assert ", n = 8)" in said
    predicted = run_well("predict.py latest photos/val/ants/0.jpg photos/val --output predictions.csv")
    assert predicted.count(".jpg") >= 9
    assert len(Path("predictions.csv").read_text().splitlines()) == 1 + 9
    assert printed.interval(run_well("evaluate.py latest"), "val_acc") == accuracy
    assert "24 pictures" in run_well("check.py photos")
