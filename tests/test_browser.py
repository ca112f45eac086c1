"""TensorBoard in a headless Chromium, with a run of each model.

Without a chromedriver, the tests are skipped and tests/conftest.py prints a message. With a chromedriver, or with
REQUIRE_BROWSER=1, the tests fail if a program is missing.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_training import figures
from lit_training.trained.compare import read_run
from tests.support.browser import REQUIRED, check_programs, start_browser
from tests.support.fits import parse

RUNS = {
    "LitCNN": ["--data.train_size=400", "--data.val_size=100", "--max_epochs=2", "--model.lr=0.01"],
    "LitMLP": ["--model=LitMLP", "--data.steps=60", "--max_epochs=2"],
    "LitDynamic": ["--model=LitDynamic", "--data.steps=60", "--max_epochs=2"],
    "LitTransfer": [
        *("--model=LitTransfer", "--model.weights=none", "--model.freeze=false", "--data=ShapesDataModule"),
        *("--data.train_size=40", "--data.val_size=20", "--max_epochs=1"),
    ],
}
CLASSIFIERS = ("LitCNN", "LitTransfer")
# TensorBoard uses shadow roots. The usual functions for the text of a page do not read them.
ALL_NODES = """
function* nodes(node) {
  yield node;
  for (const part of [node.shadowRoot, ...node.childNodes])
    if (part && !['SCRIPT', 'STYLE', 'TEMPLATE'].includes(part.nodeName)) yield* nodes(part);
}
const all = [...nodes(document.body)];
"""
PAGE_TEXT = (
    ALL_NODES + "return all.filter(n => n.nodeType === 3).map(n => n.textContent).join(' ').replace(/\\s+/g, ' ')"
)
IMAGE_SOURCES = ALL_NODES + "return all.filter(n => n.nodeName === 'IMG' && n.naturalWidth > 300).map(n => n.src)"
IMAGE_WIDTHS = (
    ALL_NODES
    + "return all.filter(n => n.nodeName === 'IMG' && n.naturalWidth > 300).map(n => [n.clientWidth, n.naturalWidth])"
)
CURVE_COLORS = (
    ALL_NODES
    + """const entries = all.filter(n => n.classList?.contains('match-list-entry'));
return Object.fromEntries(entries.map(n => [/\\((.*)\\)/.exec(n.textContent)?.[1], getComputedStyle(n).color]))"""
)
CLICK_RUN = ALL_NODES + "all.find(n => n.nodeName === 'PAPER-ITEM' && n.textContent.trim() === arguments[0])?.click()"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.figures,
    pytest.mark.skipif(not REQUIRED, reason="no chromedriver here: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module", autouse=True)
def browser_exists() -> None:
    """Fail if a program is missing, before the runs are trained."""
    check_programs()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of each model: version_0 to version_3, in the order of RUNS."""
    root = tmp_path_factory.mktemp("runs")
    for arguments in RUNS.values():
        cli = parse(shlex.join([*arguments, "--quiet", f"--default_root_dir={root}"]))
        cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
    return root / "lightning_logs"


@pytest.fixture(scope="module")
def address(logs: Path) -> Iterator[str]:
    """Start a TensorBoard server on a free local port, like ``make dashboard``."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "localhost", "--port", "0"]
    with subprocess.Popen([*command, "--load_fast", "false"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = next((said for line in server.stderr if (said := re.search(r"http://localhost:\d+/", line))), None)
        assert found, "the server did not start"
        yield found[0]
        server.terminate()


@pytest.fixture(scope="module")
def show(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """``show(tab, script, condition, run)`` opens a tab and runs a script in it until ``condition(result)`` is true.

    It returns the result. ``run`` is selected in the tab first.
    """
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    browser = start_browser(tmp_path_factory.mktemp("profile"))

    def open_tab(tab: str, script: str, condition: Callable[[Any], bool], run: str = "") -> Any:
        browser.get("about:blank")  # needed because a new fragment alone loads nothing
        browser.get(f"{address}#{tab}")
        seen: list[Any] = []

        def found(_: Any) -> bool:
            if run:  # select the run in the tab's list
                browser.execute_script(CLICK_RUN, run)
            seen[:] = [browser.execute_script(script)]
            return condition(seen[0])

        try:
            WebDriverWait(browser, 120).until(found)
        except TimeoutException:
            pytest.fail(f"the tab {tab} shows {seen}")
        return seen[0]

    yield open_tab
    browser.quit()


def test_curves_of_every_run(show: Callable[..., Any]) -> None:
    names = ["by_epoch /loss", "by_epoch /accuracy", "lr-SGD", "samples_per_second"]
    names += ["lr-AdamW 2 cards"]  # LitTransfer has two parameter groups; the others have one, and SGD
    show("timeseries", PAGE_TEXT, lambda text: all(name in text for name in names) and "version_3" in text)


def test_training_and_validation_are_on_one_chart(show: Callable[..., Any]) -> None:
    pairs = [f"by_epoch/loss (version_{run}/{part})" for run in range(4) for part in ("train", "val")]
    pairs += [f"by_epoch/accuracy (version_{run}/val)" for run in (0, 3)]
    text = show("custom_scalars", PAGE_TEXT, lambda text: all(pair in text for pair in pairs))
    assert "training loss of single batches" in text
    colors = show("custom_scalars", CURVE_COLORS, lambda found: len(found) >= 8)
    assert all(colors[f"version_{run}/train"] != colors[f"version_{run}/val"] for run in range(4))


def test_pictures(show: Callable[..., Any]) -> None:
    # two classifiers: training images, confusion matrices, most confident mistakes
    tags = ("training/samples", "validation/confusion_matrix", "validation/most_confident_mistakes")
    show("images", PAGE_TEXT, lambda text: all(f"{tag} version_{run}" in text for tag in tags for run in (0, 3)))
    assert len(set(show("images", IMAGE_SOURCES, lambda pictures: len(pictures) == 6))) == 6
    for shown, drawn in show("images", IMAGE_WIDTHS, lambda widths: len(widths) == 6):
        pixels = figures.POINTS / 72 * figures.DPI * shown / drawn  # height of the font
        assert pixels >= 9


@pytest.mark.parametrize("place", range(4), ids=list(RUNS))
def test_graph_of_every_model(show: Callable[..., Any], place: int) -> None:
    name = list(RUNS)[place]
    text = show("graphs", PAGE_TEXT, lambda text: f"output {name} {name}" in text, f"version_{place}")
    assert "input input" in text


def test_settings_with_their_metrics(show: Callable[..., Any], logs: Path) -> None:
    text = show("hparams", PAGE_TEXT, lambda text: "version_3" in text and "train_loss version_0" in text)
    table = text.partition("Trial ID")[2].partition("Color by")[0]
    rows = re.split(r"version_\d", table)[1:]
    for place, name in enumerate(RUNS):
        curves = read_run(str(logs / f"version_{place}")).curves
        metrics = ("val_acc", "val_loss", "train_loss") if name in CLASSIFIERS else ("val_loss", "train_loss")
        last = [list(curves[metric].values())[-1] for metric in metrics]
        shown = [float(number) for number in rows[place].split()[-len(last) :]]
        assert shown == pytest.approx(last, rel=1e-4, abs=1e-5)


def test_command_and_configuration(show: Callable[..., Any]) -> None:
    text = show(
        "text", PAGE_TEXT, lambda text: "config/text_summary" in text and "class_path: lit_models.LitDynamic" in text
    )
    assert "python " in text
    assert "seed_everything: 0" in text
