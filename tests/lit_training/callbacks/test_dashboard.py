"""The dashboard writes the right numbers to TensorBoard and does not change the run."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from datamodules import ImageFolderDataModule, RandomDataModule, ShapesDataModule
from datamodules.loading.order import EvalSampler
from lit_models import LitCNN, LitDynamic, LitMLP, LitTransfer
from lit_training import figures
from lit_training.callbacks import dashboard
from lit_training.callbacks.dashboard import Dashboard
from lit_training.callbacks.features import FeatureCache
from lit_training.callbacks.throughput import Throughput
from tests.support.fits import parse
from tests.support.training import bare_trainer


def small_rows(**options: Any) -> RandomDataModule:
    return RandomDataModule(in_features=8, out_features=2, length=8, batch_size=4, steps=3, **options)


def shapes(**options: Any) -> ShapesDataModule:
    return ShapesDataModule(**{"train_size": 40, "val_size": 30, **options})


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "LitCNN": (LitCNN, shapes),
    "LitMLP": (lambda: LitMLP(8, (4,), 2), small_rows),
    "LitDynamic": (lambda: LitDynamic(8, 4, 2), small_rows),
    "LitTransfer": (lambda: LitTransfer(weights=None), lambda: shapes(train_size=8, val_size=8)),
}


def fit(trainer: Callable[..., Trainer], place: Path, model: Any, data: Any, *callbacks: Any, **options: Any) -> Any:
    """Train with a dashboard and return what TensorBoard reads."""
    monitor = options.pop("monitor", ("val_acc", "max") if model.task == "classification" else ("val_loss", "min"))
    logger = TensorBoardLogger(place, name="logs", version=0, default_hp_metric=False)
    watching = [Throughput(), Dashboard(*monitor), *callbacks]
    trainer(logger=logger, callbacks=watching, **{"max_epochs": 2, "num_sanity_val_steps": 0, **options}).fit(
        model, data
    )
    found = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:weights=None")
def test_every_model_has_graph_settings_and_epochs(name: str, bare: Callable[..., Trainer], tmp_path: Path) -> None:
    model, data = (make() for make in MODELS[name])
    board = fit(bare, tmp_path, model, data)
    nodes = {node.name for node in board.Graph() and graph_of(board).node}
    assert any(node.startswith(f"{name}/") for node in nodes)
    classifies = model.task == "classification"
    for metric in ["val_loss", "train_loss", "samples_per_second"] + ["val_acc"] * classifies:
        part, tag = dashboard.METRICS_BY_EPOCH[metric]
        of_part = EventAccumulator(str(tmp_path / "logs" / "version_0" / part)).Reload()
        by_step, by_epoch = board.Scalars(metric), of_part.Scalars(f"by_epoch/{tag}")
        assert [event.step for event in by_epoch] == [1, 2]
        assert [event.value for event in by_epoch] == pytest.approx([event.value for event in by_step])
    pictures = {"training/samples", "validation/confusion_matrix", "validation/most_confident_mistakes"}
    assert set(board.Tags()["images"]) == (pictures if classifies else set())


def graph_of(board: Any) -> Any:
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    return GraphDef.FromString(board._graph)


class Watched(NamedTuple):
    """A model trained for one epoch, its data, and what TensorBoard reads."""

    model: LitCNN
    data: Any
    board: Any


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    torch.manual_seed(0)
    model, data = LitCNN(lr=0.01), shapes()
    board = fit(bare_trainer, tmp_path_factory.mktemp("watched"), model, data, max_epochs=1)
    return Watched(model.eval(), data, board)


def test_settings_contain_the_metrics_that_the_run_logs(watched: Watched) -> None:
    model, data, board = watched
    content = board.summary_metadata
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"].plugin_data.content)
    settings = start.session_start_info.hparams
    assert settings["lr"].number_value == pytest.approx(0.01)
    assert settings["model"].string_value == "LitCNN"
    assert settings["data.batch_size"].number_value == 4
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"].plugin_data.content).experiment
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags == ["val_acc", "val_loss", "train_loss"]
    assert set(tags) <= set(board.Tags()["scalars"])  # TensorBoard takes the values from the scalars
    x, y = data.sets["val"].__getitems__(list(range(30)))
    right = float((model(x).argmax(1) == y).float().mean())
    assert [event.value for event in board.Scalars("val_acc")] == pytest.approx([right])


class Matrices(Callback):
    """Computes the expected confusion matrix."""

    def on_validation_epoch_start(self, *_: Any) -> None:
        self.matrix = torch.zeros(10, 10, dtype=torch.int64)

    def on_validation_batch_end(self, trainer: Trainer, model: LightningModule, outputs: Any, *_: Any) -> None:
        for row, target in zip(outputs["output"], outputs["target"], strict=True):
            self.matrix[target, row.argmax()] += 1


@pytest.mark.figures
def test_confusion_matrix_and_mistakes(
    bare: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    sheets: list[list[str]] = []
    expected = Matrices()
    real_confusion, real_sheet = figures.draw_confusion, figures.draw_sheet

    def confusion(matrix: torch.Tensor, names: Any) -> Any:
        drawn.append((matrix, expected.matrix.clone()))
        return real_confusion(matrix, names)

    def sheet(pictures: torch.Tensor, titles: list[str], **options: Any) -> Any:
        sheets.append(titles)
        return real_sheet(pictures, titles, **options)

    monkeypatch.setattr(figures, "draw_confusion", confusion)
    monkeypatch.setattr(figures, "draw_sheet", sheet)
    monkeypatch.setattr(dashboard, "DRAWING_TIME_SHARE", float("inf"))
    data = shapes(val_size=130)  # two batches, the last one not full
    board = fit(bare, tmp_path, LitCNN(), data, expected, max_epochs=3)
    accuracy, loss = ([event.value for event in board.Scalars(name)] for name in ("val_acc", "val_loss"))
    scores = [(value, -loss[epoch]) for epoch, value in enumerate(accuracy)]  # on a tie, the lower loss wins
    best = [score[0] for epoch, score in enumerate(scores) if score > max(scores[:epoch], default=(-1.0, 0.0))]
    assert len(board.Images("validation/confusion_matrix")) == len(drawn) == len(best)
    for (matrix, expected_matrix), value in zip(drawn, best, strict=True):
        assert torch.equal(matrix, expected_matrix)
        assert matrix.trace() / 130 == pytest.approx(value)
    assert sheets[0] == [data.class_names[int(data.sets["train"][place * 40 // 12][1])] for place in range(12)]
    assert len(sheets[1]) == 12
    shares = [int(title.partition("%")[0]) for title in sheets[1]]
    assert shares == sorted(shares, reverse=True)
    for title in sheets[1]:
        predicted_name, label = title.split("\n")[0].split(" ")[1], title.rpartition("is ")[2]
        assert predicted_name != label
        assert {predicted_name, label} <= set(data.class_names)


class Improving(LitCNN):
    """Logs a metric that improves for three epochs and gets worse in the fourth."""

    def on_validation_epoch_end(self) -> None:
        self.log("made_up", [1.0, 2.0, 3.0, 0.0][self.current_epoch])


def test_without_time_for_drawing_the_first_and_the_last_best_epoch_are_drawn(
    bare: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "DRAWING_TIME_SHARE", 0.0)
    board = fit(bare, tmp_path, Improving(), shapes(), max_epochs=4, monitor=("made_up", "max"))
    for tag in ("validation/confusion_matrix", "validation/most_confident_mistakes"):
        assert [event.step for event in board.Images(tag)] == [9, 29]


def test_the_sheet_shows_the_most_confident_mistakes(watched: Watched) -> None:
    """Compare the pictures with a sheet made from the validation data."""
    model, data, board = watched
    validation: Any = data.sets["val"]
    x, y = validation.__getitems__(list(range(30)))
    confidence, predicted = model(x).softmax(-1).max(-1)
    worst = confidence.masked_fill(predicted == y, 0).argsort(descending=True)[:12]
    assert (predicted != y)[worst].all()
    expected = figures.draw_sheet(figures.undo_normalization(x[worst], data.preprocessing), ["\n"] * 12)
    picture = Image.open(io.BytesIO(board.Images("validation/most_confident_mistakes")[-1].encoded_image_string))
    shown, wanted = np.asarray(picture.convert("RGB"), float), as_array(expected)
    assert shown.shape == wanted.shape
    assert np.abs(shown - wanted).mean() < 8  # of 255; the titles differ


def as_array(figure: Any) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"), float)


class Dropping(LitCNN):
    """Draws random numbers in training and keeps one layer in evaluation mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.drop(self.net(x)))

    def on_train_start(self) -> None:
        self.frozen.eval()


@pytest.mark.parametrize("make", [Dropping, lambda: LitDynamic(8, 4, 2)], ids=["dropout", "random depth"])
def test_the_dashboard_does_not_change_the_run(
    make: Callable[[], Any], bare: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same modes and same random numbers with and without the dashboard, although it draws some."""
    read = dashboard._network_inputs_as_pictures
    monkeypatch.setattr(dashboard, "_network_inputs_as_pictures", lambda *given: (torch.rand(1), read(*given))[1])
    ends = []
    for watched in (False, True):
        torch.manual_seed(1)
        np.random.seed(1)
        model = make()
        data = shapes(augment=True) if isinstance(model, LitCNN) else small_rows()
        if watched:
            fit(bare, tmp_path, model, data)
        else:
            bare(max_epochs=2, num_sanity_val_steps=0).fit(model, data)
        modes = [module.training for module in model.modules()]
        drawn: Any = np.random.get_state()
        ends.append((list(model.parameters()), modes, torch.get_rng_state(), drawn[1]))
    (one, modes, rng, numbers), (other, other_modes, other_rng, other_numbers) = ends
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert modes == other_modes
    assert torch.equal(rng, other_rng)
    assert np.array_equal(numbers, other_numbers)


def test_of_equal_mistakes_the_earlier_sample_is_shown_first() -> None:
    rows = torch.tensor([[1, 0, 0.5, place] for place in (40, 7, 30, 21, *range(50, 60))] + [[0, 1, 0.9, 80]])
    assert dashboard._worst(rows)[:, 3].tolist() == [80, 7, 21, 30, 40, *range(50, 57)]


def test_class_indices_are_exact_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dashboard, "_collects_predictions", lambda *_: True)
    board, nothing = Dashboard("val_acc", "max"), cast(Any, None)
    output = torch.zeros(1, 2050, dtype=torch.float16)
    output[0, 2049] = 9  # float16 cannot represent it
    one: Any = SimpleNamespace(val_dataloaders=None, world_size=1, global_rank=0)
    outputs = {"output": output, "target": torch.tensor([2049])}
    board.on_validation_batch_end(one, nothing, outputs, None, 0, dataloader_idx=1)
    assert board.matrix is None, "the dashboard draws only the first validation loader"
    board.on_validation_batch_end(one, nothing, outputs, None, 0)
    assert board.matrix is not None
    assert board.matrix.nonzero().tolist() == [[2049, 2049]]


def test_a_network_that_cannot_be_traced_is_still_trained(bare: Callable[..., Trainer], tmp_path: Path) -> None:
    class Odd(LitMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.jit.is_tracing():
                raise RuntimeError("cannot be traced")
            return super().forward(x)

    board = fit(bare, tmp_path, Odd(8, (4,), 2), small_rows())
    assert "graph/text_summary" in board.Tags()["tensors"]
    assert board.Scalars("train_loss")


@pytest.mark.filterwarnings("ignore:weights=None")
def test_cached_features_still_show_pictures(
    bare: Callable[..., Trainer], tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets: list[Any] = []
    real = figures.draw_sheet

    def sheet(*given: Any, **options: Any) -> Any:
        sheets.append(given)
        return real(*given, **options)

    monkeypatch.setattr(figures, "draw_sheet", sheet)
    model = LitTransfer(num_classes=2, weights=None)
    data = ImageFolderDataModule(str(photo_folder), image_size=32, num_workers=0)
    board = fit(bare, tmp_path, model, data, FeatureCache(), max_epochs=1)
    pictures, titles = sheets[0]
    assert pictures.shape == (12, 3, 32, 32)
    reddish = pictures[:, 0].mean((1, 2)) > pictures[:, 2].mean((1, 2))
    assert ["ants" if red else "bees" for red in reddish] == titles
    assert "validation/confusion_matrix" in board.Tags()["images"]


@pytest.mark.parametrize("sampler", [EvalSampler(3, 2, 0, 2), None])
def test_padding_is_not_counted_in_the_matrix(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a user's own loader, whose order is unknown and whose padding has target -1."""
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr(figures, "draw_confusion", lambda matrix, names: drawn.append(matrix))
    monkeypatch.setattr(Dashboard, "_collects_predictions", staticmethod(lambda *_: True))
    monkeypatch.setattr(
        dashboard, "_network_inputs_as_pictures", lambda trainer, dataset, worst: mistakes.extend(worst)
    )

    class Board:
        def add_figure(self, *_: Any) -> None: ...

    mistakes: list[int] = []
    monkeypatch.setattr(dashboard, "_tensorboard_loggers", lambda _: [type("L", (), {"experiment": Board()})()])

    class Two:  # two ranks with batches of 2 rows for 7 samples: the last row of rank 1 is padding
        val_dataloaders = SimpleNamespace(sampler=sampler, batch_size=2, dataset=range(7))
        world_size, is_global_zero, global_step, datamodule = 2, True, 5, None
        callback_metrics = {"val_acc": torch.tensor(0.5)}  # noqa: RUF012

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    ranks = [Dashboard("val_acc", "max"), Dashboard("val_acc", "max")]
    sure, unsure = [[4.0, 0.0], [0.0, 4.0]], [[0.0, 1.0], [0.0, 4.0]]
    for rank, batches in enumerate([[(sure, [0, 1]), (unsure, [0, 1])], [(sure, [1, 1]), (sure, [1, -1])]]):
        for number, (output, target) in enumerate(batches):
            outputs = {"output": torch.tensor(output), "target": torch.tensor(target)}
            ranks[rank].on_validation_batch_end(Two(rank), None, outputs, None, number)
    other: Any = (ranks[1].matrix, ranks[1].mistakes)
    monkeypatch.setattr(dashboard, "gather_objects", lambda _, own: [own, other])
    ranks[0].start_time, ranks[0].drawing_seconds = 0.0, 0.0
    ranks[0].on_validation_end(Two(0), None)  # type: ignore[arg-type]
    assert drawn[0].tolist() == [[1, 1], [2, 3]]
    assert mistakes == [2, 6, 4]  # the batches of rank 1 are the second and the fourth; equally sure: the earlier first
    assert ranks[0].matrix is None


@pytest.mark.parametrize(("flag", "shown"), [("true", True), ("false", False)])
def test_the_flag_turns_the_dashboard_off(flag: str, shown: bool) -> None:
    cli = parse(f"--dashboard={flag}")
    assert any(isinstance(callback, Dashboard) for callback in cli.trainer.callbacks) == shown  # type: ignore[attr-defined]
