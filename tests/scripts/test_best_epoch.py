"""Test that all scripts and files have the same best epoch of a run.

The runs are scripted (tests/support/scripted.py): after each epoch the network has one output for all inputs, so all
metrics are known. Accuracy is best after epoch 3 and worst after epoch 4; the validation loss is best after epoch 2 and
worst after epoch 5; the last epoch is neither.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from datamodules import RandomDataModule
from tests.support import by_hand, printed, scripted
from tests.support.commands import run_well

RUN = Path("lightning_logs/version_0")
SCRIPTED = f"--callbacks {scripted.NAME}.Scripted --accelerator cpu --devices 1 --max_epochs 6 --log_every_n_steps 1"
PHOTOS = f"fit.py --data photos --model LitCNN --data.image_size 32 {SCRIPTED}"
ROWS = "fit.py --model LitMLP --data.in_features 3 --data.out_features 2 --data.length 10 --data.steps 0"
ROWS = f"{ROWS} --data.target linear {SCRIPTED}"
ACCURACY = [3 / 17, 5 / 17, 7 / 17, 2 / 17, 7 / 17, 5 / 17]


def classifier_loss(epoch: int, split: str = "val") -> float:
    targets = by_hand.labels(split)
    return float(F.cross_entropy(scripted.answer(epoch, 4).expand(len(targets), 4), targets))


def regression_loss(epoch: int, split: str = "val") -> float:
    data = RandomDataModule(3, 2, length=10, steps=0, target="linear")
    data.setup("fit")
    targets = torch.stack([data.dataset(split)[row][1] for row in range(10)])
    return float(((scripted.answer(epoch, 2) - targets) ** 2).sum())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with both runs, and the output of fit.py for each."""
    workspace = tmp_path_factory.mktemp("scripted")
    by_hand.four_classes(workspace / "photos")
    fit_outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
        fit_outputs["photos"] = run_well(f"{PHOTOS} --seed 4 --model.lr 0.002")
        fit_outputs["rows"] = run_well(f"{ROWS} --default_root_dir rows")
        yield workspace, fit_outputs


@pytest.fixture
def fit_outputs(trained: tuple[Path, dict[str, str]], tmp_path: Path) -> dict[str, str]:
    """The outputs of fit.py. The current folder becomes a copy of the folder with the runs."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    return trained[1]


def bias(run: Path) -> torch.Tensor:
    """Return the bias of the last layer in best.ckpt, which identifies the epoch."""
    weights = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    return list(weights.values())[-1]


def test_the_scripted_run_has_a_different_best_epoch_for_each_metric() -> None:
    losses = [classifier_loss(epoch) for epoch in range(1, 7)]
    assert (losses.index(min(losses)), losses.index(max(losses))) == (1, 4)
    assert (ACCURACY.index(max(ACCURACY)), ACCURACY.index(min(ACCURACY))) == (2, 3)
    losses = [regression_loss(epoch) for epoch in range(1, 7)]
    assert (losses.index(min(losses)), losses.index(max(losses))) == (2, 3)


@pytest.mark.parametrize("kind", ["photos", "rows"])
def test_epoch_lines_stars_and_tables_agree(kind: str, fit_outputs: dict[str, str]) -> None:
    run = RUN if kind == "photos" else "rows" / RUN
    loss_of = classifier_loss if kind == "photos" else regression_loss
    lines = printed.epochs(fit_outputs[kind])
    assert [(line.number, line.of) for line in lines] == [(number, 6) for number in range(1, 7)]
    assert [line.star for line in lines] == [True, True, True, False, False, False]
    rows, board = printed.read_csv(run / "metrics.csv"), printed.board(run)
    batches = 3 if kind == "photos" else 1
    steps = [batches * number - 1 for number in range(1, 7)]
    expected = {"val_loss": [loss_of(number) for number in range(1, 7)]}
    if kind == "photos":
        expected["val_acc"] = ACCURACY
    # The weights at the start of each epoch except the first are known; this learning rate hardly changes them.
    expected["train_loss"] = [loss_of(number, "train") for number in range(6)]
    for name, values in expected.items():
        about = 0.1 if name == "train_loss" else 1e-6
        known = slice(1 if name == "train_loss" else 0, None)
        written = printed.column(rows, name)
        assert written[known] == pytest.approx(values[known], rel=about)
        assert [line.figures[name] for line in lines] == pytest.approx(written, rel=1e-3)
        assert [int(row["epoch"]) for row in rows if name in row] == list(range(6))
        part, by_epoch = name.replace("acc", "accuracy").split("_")
        of_part = printed.board(run / part)
        for source, tag, where in ((board, name, steps), (of_part, f"by_epoch/{by_epoch}", list(range(1, 7)))):
            places, drawn = printed.scalars(source, tag)
            assert (tag, places) == (tag, where)
            assert drawn == pytest.approx(written, rel=1e-6)
    assert [name for name in rows[-1] if name.startswith("val")] == []  # the final evaluation adds no row
    together = [printed.column(rows, "train_loss_step")[first * batches :][:batches] for first in range(6)]
    assert printed.column(rows, "train_loss") == pytest.approx([sum(part) / batches for part in together])


@pytest.mark.parametrize("kind", ["photos", "rows"])
def test_the_best_epoch_is_saved_and_printed(kind: str, fit_outputs: dict[str, str]) -> None:
    run, outputs = (RUN, 4) if kind == "photos" else ("rows" / RUN, 2)
    assert torch.equal(bias(run), scripted.answer(3, outputs))
    results = printed.result(fit_outputs[kind].partition("\n\n")[2])
    lines = printed.epochs(fit_outputs[kind])
    assert lines[2].figures["train_loss"] != lines[5].figures["train_loss"]
    assert float(results["train_loss"]) == lines[2].figures["train_loss"]
    assert "\nepoch       3 of 6\n" in fit_outputs[kind]
    if kind == "photos":
        assert printed.interval(fit_outputs[kind], "val_acc") == pytest.approx(
            (7 / 17, *by_hand.wilson(7, 17)), abs=6e-4
        )
        assert ", n = 17)" in fit_outputs[kind]
        assert float(results["val_loss"]) == pytest.approx(classifier_loss(3), rel=1e-3)
    else:
        assert "val_acc" not in results
        assert float(results["val_loss"]) == pytest.approx(regression_loss(3), rel=1e-3)
    assert (results["run"], results["checkpoint"]) == (str(run), str(run / "checkpoints/best.ckpt"))


def test_the_next_commands_use_the_best_epoch_and_the_test_data(fit_outputs: dict[str, str]) -> None:
    for kind, right in (("photos", 3), ("rows", None)):
        [line] = re.findall(r"scripts/(evaluate\.py .*)", fit_outputs[kind])
        out = run_well(line)
        results = printed.result(out)
        if right is not None:
            expected = (right / 11, *by_hand.wilson(right, 11))
            assert printed.interval(out, "test_acc") == pytest.approx(expected, abs=6e-4)
            assert float(results["test_loss"]) == pytest.approx(classifier_loss(3, "test"), rel=1e-3)
            assert float(results["balanced"]) == 0.25
        else:
            assert float(results["test_loss"]) == pytest.approx(regression_loss(3, "test"), rel=1e-3)
    [line] = re.findall(r"scripts/(predict\.py .*) IMAGE", fit_outputs["photos"])
    rows = printed.table(run_well(f"{line} photos/test/rose/0.png --top_k 1"), "path", "label", "probability")
    assert rows[0][1] == "sloe"
    last = printed.result(run_well(f"evaluate.py {RUN}/checkpoints/last.ckpt"))  # a named file is used
    assert float(last["test_loss"]) == pytest.approx(classifier_loss(6, "test"), rel=1e-3)


def test_compare_uses_the_best_epoch_of_each_run(fit_outputs: dict[str, str]) -> None:
    run_well(f"{PHOTOS} --max_epochs 2 --seed 4 --quiet --dashboard false")
    out = run_well("compare.py lightning_logs/version_0 lightning_logs/version_1 --png two.png")
    results = {row[0]: row[1:] for row in printed.table(out, "version_0", "version_1")}
    assert results["trainer.max_epochs"] == ["6", "2"]
    assert results["model.lr"] == ["0.002", "0.001"]
    assert results["val_acc"] == [f"{7 / 17:.4f}", f"{5 / 17:.4f}"]
    assert results["val_loss"] == [f"{classifier_loss(epoch):.4g}" for epoch in (3, 2)]
    train = [f"{printed.column(printed.read_csv(RUN / 'metrics.csv'), 'train_loss')[2]:.4g}"]
    assert results["train_loss"][:1] == train
    assert Path("two.png").is_file()
    assert not Path("lightning_logs/comparison.png").exists()

    run_well(f"{ROWS} --default_root_dir rows --max_epochs 2 --quiet --dashboard false")
    out = run_well("compare.py rows/lightning_logs/version_1 rows/lightning_logs/version_0")
    results = {row[0]: row[1:] for row in printed.table(out, "version_1", "version_0")}
    assert results["val_loss"] == [f"{regression_loss(epoch):.4g}" for epoch in (2, 3)]
    assert "is not a classifier" in out
    assert Path("rows/lightning_logs/comparison.png").is_file()


@pytest.mark.parametrize(("kind", "metric"), [("photos", "val_acc"), ("rows", "val_loss")])
def test_early_stopping_waits_for_the_given_number_of_epochs(
    kind: str, metric: str, fit_outputs: dict[str, str]
) -> None:
    """The patience counts from the best epoch, the third."""
    command = f"{PHOTOS if kind == 'photos' else ROWS} --max_epochs 40 --dashboard false"
    for patience in (1, 2):
        out = run_well(f"{command} --early_stopping {patience} --default_root_dir early{patience}")
        assert [line.number for line in printed.epochs(out)] == list(range(1, 4 + patience))
        best = printed.epochs(out)[2].figures[metric]
        assert float(printed.result(out.partition("\n\n")[2])[metric]) == pytest.approx(best, rel=1e-3)


def in_two_parts(epochs: int) -> list[printed.Epoch]:
    """Return the epoch lines of a run of ``epochs`` epochs and of its continuation to six, in the folder ``parts``."""
    first = run_well(f"{PHOTOS} --max_epochs {epochs} --default_root_dir parts --dashboard false")
    then = run_well("fit.py --resume latest --default_root_dir parts --max_epochs 6")
    assert printed.interval(then, "val_acc")[0] == pytest.approx(7 / 17, abs=6e-5)
    return [*printed.epochs(first), *printed.epochs(then)]


def test_the_best_epoch_survives_a_resume(fit_outputs: dict[str, str]) -> None:
    parts, whole = in_two_parts(4), printed.epochs(run_well(f"{PHOTOS} --default_root_dir whole --dashboard false"))
    assert [line.star for line in parts] == [True, True, True, False, False, False]
    assert torch.equal(bias("parts" / RUN), scripted.answer(3, 4))
    for name in ("train_loss", "val_loss", "val_acc"):
        one, other = (printed.column(printed.read_csv(root / RUN / "metrics.csv"), name) for root in ROOTS)
        assert one == other
        assert [line.figures[name] for line in parts] == [line.figures[name] for line in whole]


def test_the_star_of_the_last_epoch_survives_a_resume(fit_outputs: dict[str, str]) -> None:
    assert [line.star for line in in_two_parts(3)] == [True, True, True, False, False, False]


ROOTS = (Path("parts"), Path("whole"))


def test_reduce_on_plateau_monitors_the_validation_loss(fit_outputs: dict[str, str]) -> None:
    """The validation loss is best after epoch 2, the training loss after 1, so the rate is halved from epoch 4 on."""
    plateau = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.factor 0.5"
    lines = printed.epochs(run_well(f"{PHOTOS} {plateau} --model.lr 0.0016 --dashboard false"))
    assert [line.figures["lr"] for line in lines] == [0.0016, 0.0016, 0.0016, 0.0008, 0.0004, 0.0002]
    assert lines[0].figures["train_loss"] < lines[1].figures["train_loss"]


def test_a_run_without_a_logger_saves_the_best_epoch_too(fit_outputs: dict[str, str]) -> None:
    """Without a resume point, best.ckpt must be written too."""
    out = run_well(f"{PHOTOS} --logger false")
    assert torch.equal(bias(Path()), scripted.answer(3, 4))
    assert printed.interval(out, "val_acc")[0] == pytest.approx(7 / 17, abs=6e-5)


def test_without_validation_the_training_loss_chooses_the_best_epoch(fit_outputs: dict[str, str]) -> None:
    """The loss only falls, so the last epoch is best; with mode "max" it would be the first."""
    out = run_well(
        "fit.py --model LitMLP --data.in_features 6 --data.steps 3 --max_epochs 4 --limit_val_batches 0 "
        "--dashboard false"
    )
    losses = [line.figures["train_loss"] for line in printed.epochs(out)]
    assert losses == sorted(losses, reverse=True)
    assert [line.star for line in printed.epochs(out)] == [True] * 4
    newest = max(Path("lightning_logs").glob("version_*"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest / "checkpoints/best.ckpt", weights_only=True)["epoch"] == 3
    assert "val_loss" not in printed.result(out)


def test_early_stopping_without_validation_monitors_the_training_loss(tmp_path: Path) -> None:
    out = run_well("fit.py --model LitMLP --max_epochs 6 --model.lr 0 --limit_val_batches 0 --early_stopping 2")
    assert len(printed.epochs(out)) == 3  # the first epoch, and two epochs without improvement
