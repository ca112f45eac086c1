"""A calibration is fitted on the right samples, is kept in the checkpoint, and decides sets and marks."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_models import LitCNN
from lit_training.errors import UsageError
from lit_training.runs.out_of_fold import OutOfFold
from lit_training.trained.calibrate import (
    MAX_SCORES,
    Calibration,
    ValidationOutputs,
    fit_calibration,
    fit_from_folds,
    write_calibration,
)
from lit_training.trained.outputs import prediction_table, write_predictions
from lit_training.trained.predict import Prediction, predict


def draw(n: int, temperature: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 3, generator=generator)
    noise = -torch.rand(n, 3, generator=generator).log().neg().log()
    return logits, (logits / temperature + noise).argmax(1)


def test_validation_is_halved_by_the_seed() -> None:
    logits, labels = draw(400, 2.0, 0)
    one, same, other = (fit_calibration(logits, labels, "val", seed) for seed in (0, 0, 1))
    assert (one.source, one.score_source, one.count, len(one.scores)) == ("half of val", "half of val", 200, 200)
    assert one.temperature == same.temperature != other.temperature
    assert one.scores.equal(same.scores)
    assert not one.scores.equal(other.scores)
    assert one.scores.equal(one.scores.sort().values)
    said = "(from 200 samples: half of val, which also chose the epoch; scores for sets from 200: half of val)\nunlike "
    assert said in one.report()
    everything = 1 - (logits / one.temperature).softmax(1)[torch.arange(400), labels]
    assert set(one.scores.tolist()) < set(everything.tolist())
    assert one.temperature == pytest.approx(2, rel=0.3)


def test_scores_come_from_test_or_from_all_folds() -> None:
    logits, labels = draw(400, 2.0, 0)
    test = draw(50, 2.0, 1)
    found = fit_calibration(logits, labels, "val", 0, test)
    assert (found.source, found.score_source, found.count, len(found.scores)) == ("val", "test", 400, 50)
    expected = 1 - (test[0] / found.temperature).softmax(1)[torch.arange(50), test[1]]
    assert found.scores.tolist() == sorted(expected.tolist())
    folds = fit_calibration(logits.softmax(1).log().numpy(), labels.numpy(), "out-of-fold", 0)
    assert (folds.source, folds.score_source, folds.count, len(folds.scores)) == ("out-of-fold",) * 2 + (400, 400)
    assert folds.temperature == pytest.approx(found.temperature, rel=1e-5)
    shares, first = logits.softmax(1).double().numpy(), np.arange(400)
    twice = np.concatenate([shares, shares[::-1]])  # the second repeat has other answers
    rows = np.tile(first, 2), np.repeat([1, 2], 400), np.tile(first % 5 + 1, 2), np.tile(labels.numpy(), 2)
    kept = fit_from_folds(OutOfFold(("a", "b", "c"), *rows, twice), 0)
    assert (kept.count, kept.temperature) == (400, pytest.approx(folds.temperature, rel=1e-4))
    assert "chose the epoch" not in kept.report()
    test[0][7] = torch.nan
    assert len(fit_calibration(logits, labels, "val", 0, test).scores) == 49
    many = fit_calibration(*draw(3 * MAX_SCORES, 1.0, 2), "val", 0)
    assert (many.count, len(many.scores)) == (MAX_SCORES, MAX_SCORES)


def test_samples_without_a_label_give_no_score() -> None:
    kept, trainer = ValidationOutputs(), SimpleNamespace(val_dataloaders=None, datamodule=None, world_size=1)
    assert kept.gather(trainer) is None
    kept.on_validation_batch_end(None, None, {"output": torch.eye(3), "target": torch.tensor([0, -100, 2])})
    found = kept.gather(trainer)
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == ([[1, 0, 0], [0, 0, 1]], [0, 2])


def test_checkpoint_keeps_plain_values_and_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    before = {"state_dict": {"w": torch.ones(2)}, "lit": {"task": "classification"}, "epoch": 3}
    torch.save(before, path)
    calibration = fit_calibration(*draw(40, 2.0, 0), "val", 0)
    write_calibration(path, calibration)
    after = torch.load(path, weights_only=True)
    kept = after["lit"].pop("calibration")
    assert type(kept["temperature"]) is float
    assert after["lit"] == before["lit"]
    assert (after["epoch"], after["state_dict"]["w"].tolist()) == (3, [1, 1])
    again = Calibration.of(torch.load(path, weights_only=True))
    assert again is not None
    assert again.scores.equal(calibration.scores)
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
    model = LitCNN(num_classes=3)
    model.on_load_checkpoint({"lit": {"calibration": kept}})
    assert model.temperature == calibration.temperature
    model.on_load_checkpoint({"lit": {"calibration": None}})
    assert model.temperature == 1


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 7.0, 20.0])
def test_predicted_class_never_changes(temperature: float) -> None:
    model = LitCNN(num_classes=3).eval()
    near = np.nextafter(np.float32(2), np.float32(3))
    logits = torch.tensor([[2.0, 2.0, 1.0], [1, 2, 2], [2, near, 0], [near, 2, 2], [1e4, 0, -1e4], [-5, -5, -5]])
    logits = torch.cat([logits, draw(500, 1.0, 0)[0]])
    model.forward = lambda x: logits  # type: ignore[method-assign]
    model.temperature = temperature
    p = model.predict_step(torch.zeros(1, 3, 32, 32))
    for order in (p.argmax(1), p.topk(1).indices[:, 0], p.sort(descending=True).indices[:, 0]):
        assert order.equal(logits.argmax(1))
    torch.testing.assert_close(p, (logits / temperature).softmax(1))


def calibration(**values: object) -> Calibration:
    fields = {"temperature": 1.0, "source": "val", "count": 9, "scores": torch.tensor([0.4]), "score_source": "test"}
    return Calibration(**(fields | values))  # type: ignore[arg-type]


def test_sets_and_marks() -> None:
    model = LitCNN(num_classes=3).eval()
    model.class_names = ("a;b", "c\\", "d")
    wanted = [[0.7, 0.2, 0.1], [0.45, 0.45, 0.1], [0.34, 0.33, 0.33]]
    with torch.no_grad():
        features = torch.eye(84)[:3]
        model.net.fc3.weight.zero_()
        model.net.fc3.weight[:, :3] = torch.tensor(wanted).log().T
        model.net.fc3.bias.zero_()
    rows = iter(features.split(1))
    model.net.forward = lambda x: model.net.fc3(row)  # type: ignore[method-assign]
    picture = Image.new("RGB", (32, 32))
    found: list[Prediction] = []
    for row in rows:  # noqa: B007  # the network reads it
        similar = calibration(scores=torch.tensor([0.1, 0.56]), references=features[:2].half(), limit=0.5)
        found += predict(model, [picture], calibration=similar, coverage=0.6, top_k=1)
    assert [answer.set for answer in found] == [("a;b",), ("a;b", "c\\"), ()]
    assert [answer.unlike for answer in found] == [False, False, True]
    assert [answer.note for answer in found] == ["", "not sure", "not sure, unlike the training photos"]
    head, body = prediction_table(found)
    assert head == ["path", "label", "probability", "set", "note", "error"]
    assert [cells[3] for cells in body] == [r"a\;b", r"a\;b;c\\", ""]
    write_predictions(found, "out.json")
    assert r'"set": [' in Path("out.json").read_text()


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 1.5, float("nan")])
def test_coverage_must_be_a_share(coverage: float) -> None:
    with pytest.raises(UsageError, match=r"^coverage must be .*--coverage 0.9$"):
        calibration().threshold(coverage)


def test_too_few_scores_for_a_coverage() -> None:
    few = calibration(scores=torch.arange(8.0))
    with pytest.raises(UsageError, match=r"--coverage 0.9 needs 9 labelled pictures, but 8 .*such as --coverage 0.88"):
        few.threshold(0.9)
    assert few.threshold(0.88) == 7
    assert calibration(scores=torch.arange(9.0)).threshold(0.9) == 8
    with pytest.raises(UsageError, match="needs a classifier"):
        next(predict(LitCNN(), [], coverage=0.9))


def test_note_of_a_prediction_without_set() -> None:
    assert Prediction("a.jpg").note == ""
    assert prediction_table([Prediction("a.jpg", probabilities={"x": 1.0})])[0] == [
        "path",
        "label",
        "probability",
        "error",
    ]
