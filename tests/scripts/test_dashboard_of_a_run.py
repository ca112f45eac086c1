"""TensorBoard, metrics.csv and the console output of one run of fit.py, and its speed.

The run is scripted (tests/support/scripted.py): its third epoch of four is the best, and its clock advances by 1/1024 s
per training batch and by 64 s per validation batch.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support import by_hand, printed, scripted, seen
from tests.support.commands import run_well
from tests.support.forks import Fork

RUN = Path("lightning_logs/version_0")
FIT = f"fit.py --data photos --model LitCNN --data.image_size 32 --data.batch_size 5 --callbacks+ {scripted.NAME}.Clock"
TYPED = "--model.lr 0.004 --model.momentum 0.7 --seed 6 --max_epochs 4 --accelerator cpu --devices 1"
SPEED = 12 / (3 / 1024)
"""Twelve images in three batches; the last batch is not full."""


class Results(NamedTuple):
    """The output, the figures, the rows of metrics.csv, the TensorBoard data, and the configuration."""

    out: str
    drawn: list[seen.Drawn]
    rows: list[dict[str, str]]
    board: Any
    config: str


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    workspace = tmp_path_factory.mktemp("dashboard")
    by_hand.four_classes(workspace / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
        scripted.put_clock_back(patch)
        drawn = seen.watch(patch)
        out = run_well(f"{FIT} {TYPED} --callbacks+ {scripted.NAME}.Scripted")
        run = workspace / RUN
        config = (run / "config.yaml").read_text()
        yield Results(out, drawn, printed.read_csv(run / "metrics.csv"), printed.board(run), config)


def test_speed_is_training_images_divided_by_training_time(results: Results) -> None:
    lines = printed.epochs(results.out)
    assert [line.figures["speed"] for line in lines] == [SPEED] * 4
    assert [line.figures["seconds"] for line in lines] == [64.0] * 4  # nearly all of it is validation
    assert printed.column(results.rows, "samples_per_second") == [SPEED] * 4
    assert printed.scalars(results.board, "samples_per_second") == ([2, 5, 8, 11], [SPEED] * 4)
    assert printed.scalars(results.board, "by_epoch/samples_per_second") == ([1, 2, 3, 4], [SPEED] * 4)


def test_validation_within_an_epoch_does_not_count_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted.put_clock_back(monkeypatch)
    by_hand.four_classes(Path("photos"))
    out = run_well(f"{FIT} --max_epochs 2 --val_check_interval 1 --dashboard false --accelerator cpu --devices 1")
    assert [line.figures["speed"] for line in printed.epochs(out)] == [SPEED] * 2
    assert [line.figures["seconds"] for line in printed.epochs(out)] == [192.0] * 2
    assert len(printed.column(printed.read_csv(RUN / "metrics.csv"), "val_loss")) == 6


@pytest.mark.slow
def test_two_processes_are_reported_as_one_run() -> None:
    """Each process has six images in two batches."""
    by_hand.four_classes(Path("photos"))
    options = "--max_epochs 2 --accelerator cpu --devices 2 --strategy ddp --accumulate_grad_batches 2 --timeout 100000"
    program = Fork(f"{FIT} {options} --dashboard false")
    out, err = program.communicate()
    assert (program.returncode, err) == (0, "")
    assert "2 x CPU, 1 thread each, precision 32-true; global batch = 20 (5 x 2 devices x 2 accumulated)" in out
    assert [(line.number, line.figures["speed"]) for line in printed.epochs(out)] == [(1, 6144.0), (2, 6144.0)]
    assert printed.column(printed.read_csv(RUN / "metrics.csv"), "samples_per_second") == [6144.0] * 2
    assert ", n = 17)" in out


def test_learning_rates_are_logged(results: Results) -> None:
    assert set(printed.column(results.rows, "lr-SGD")) == {0.004}
    assert [line.figures["lr"] for line in printed.epochs(results.out)] == [0.004] * 4
    assert printed.scalars(results.board, "lr-SGD")[1] == pytest.approx([0.004] * len(results.board.Scalars("lr-SGD")))


def test_hparams_hold_the_settings_and_the_best_metrics(results: Results) -> None:
    content = results.board.summary_metadata
    start_info = HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
    values = dict(start_info.session_start_info.hparams.items())
    assert values["model"].string_value == "LitCNN"
    assert values["data"].string_value == "ImageFolderDataModule"
    assert values["optimizer"].string_value == "SGD"
    assert values["seed"].string_value == "6"
    numbers = {"lr": 0.004, "momentum": 0.7, "num_classes": 4, "data.batch_size": 5, "data.image_size": 32}
    assert {name: values[name].number_value for name in numbers} == pytest.approx(numbers)
    assert values["devices"].number_value == 1
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content).experiment
    shown_first = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown_first == {"lr", "epochs", "data.batch_size", "model"}
    # TensorBoard shows the last value of each scalar of these names.
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags == ["val_acc", "val_loss", "train_loss"]
    for tag in tags:
        assert printed.scalars(results.board, tag)[1][-1] == pytest.approx(
            printed.column(results.rows, tag)[-1], rel=1e-6
        )


def test_charts_combine_curves_that_exist(results: Results) -> None:
    layout = Layout.FromString(results.board.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {
        (category.title, chart.title): [
            {tag for tag in results.board.Tags()["scalars"] if re.search(pattern, tag)}
            for pattern in chart.multiline.tag
        ]
        + [{series.value, series.lower, series.upper} for series in chart.margin.series]
        for category in layout.category
        for chart in category.chart
    }
    assert charts["by epoch", "training and validation loss"] == [{"by_epoch/loss"}]
    assert charts["by epoch", "validation accuracy"] == [{"by_epoch/accuracy"}]


def test_the_text_tab_holds_the_command_and_the_configuration(results: Results) -> None:
    texts = {
        tag.partition("/")[0]: results.board.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in results.board.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    command = shlex.split(texts["command"])
    assert command[0] == "python"
    assert command[1].endswith("fit.py")
    assert command[2:] == shlex.split(f"{FIT} {TYPED} --callbacks+ {scripted.NAME}.Scripted")[1:]
    assert yaml.safe_load("\n".join(line[4:] for line in texts["config"].splitlines())) == yaml.safe_load(
        results.config
    )
    assert sys.executable not in texts["command"]


def test_images_show_the_best_epoch_and_all_validation_data(results: Results) -> None:
    matrices = [drawn for drawn in results.drawn if drawn.name == "validation/confusion_matrix"]
    assert [drawn.step for drawn in matrices] == [2, 5, 8]  # the epochs that were the best so far
    for drawn, (favourite, _) in zip(matrices, scripted.FAVOURITES, strict=False):
        counts = zip(by_hand.CLASSES, by_hand.COUNTS["val"], strict=True)
        assert drawn.counts() == {(true, by_hand.CLASSES[favourite]): count for true, count in counts}
    mistakes = [drawn for drawn in results.drawn if drawn.name == "validation/most_confident_mistakes"]
    assert [drawn.step for drawn in mistakes] == [2, 5, 8]
    titles = [title.split("\n") for title in mistakes[-1].titles()]
    assert len(titles) == 10  # images of other classes than sloe
    assert {title[0] for title in titles} == {"95% sloe"}
    assert sorted(title[1] for title in titles) == ["is pear"] * 2 + ["is plum"] * 3 + ["is rose"] * 5
    [samples] = [drawn for drawn in results.drawn if drawn.name == "training/samples"]
    named = [name for name, count in zip(by_hand.CLASSES, by_hand.COUNTS["train"], strict=True) for _ in range(count)]
    assert samples.titles() == named


def test_each_start_writes_its_command_at_its_step(tmp_path: Path) -> None:
    """A run that ends after epoch 1 and is continued twice: the first command stays at step 0."""
    line = "fit.py --accelerator cpu --data.train_size 12 --data.val_size 8"
    for command in (
        f"{line} --max_epochs 1",
        "fit.py --resume latest --max_epochs 2",
        "fit.py --resume latest --max_epochs 3",
    ):
        run_well(command)
    texts = printed.board(tmp_path / "lightning_logs" / "version_0").Tensors("command/text_summary")
    assert [text.step for text in texts] == [0, 3, 6]
    shown = [text.tensor_proto.string_val[0].decode().split("fit.py ")[1] for text in texts]
    assert [shown[0].split()[-1], *shown[1:]] == [
        "1",
        "--resume latest --max_epochs 2",
        "--resume latest --max_epochs 3",
    ]
