"""fit.py calibrates best.ckpt, also after a kill or in a longer run; evaluate.py and predict.py use it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lit_training import load
from lit_training.trained import calibrate
from lit_training.trained.predict import predict
from tests.support.commands import run, run_well, start
from tests.support.own_classes import copy_examples, remember_imports

FIT = "fit.py --accelerator cpu --data.train_size 60 --data.val_size 40 --model.lr 0.05 --dashboard false"
BEST = Path("lightning_logs/version_0/checkpoints/best.ckpt")


def calibration(path: Path = BEST) -> Any:
    return torch.load(path, weights_only=True)["lit"]["calibration"]


@pytest.mark.parametrize("limits", ["--max_epochs 2", "--max_steps 20", "--max_epochs 9 --early_stopping 1"])
def test_run_that_was_killed_before_the_calibration_is_calibrated(limits: str) -> None:
    out = run_well(f"{FIT} {limits}")
    assert re.search(
        r"^temperature \S+  \(from 40 samples: val, which also chose the epoch; scores for sets from 40: test\)$",
        out,
        re.M,
    )
    before = BEST.read_bytes()
    checkpoint = torch.load(BEST, weights_only=True)
    assert checkpoint["lit"]["calibration"]["temperature"] != 1
    del checkpoint["lit"]["calibration"]
    torch.save(checkpoint, BEST)
    metrics = BEST.parents[1] / "metrics.csv"
    rows, resume = metrics.read_text(), BEST.parent / "resume" / "last.ckpt"
    point = resume.read_bytes()
    again = run_well(f"{FIT} {limits} --resume auto")
    assert BEST.read_bytes() == before
    assert (metrics.read_text(), resume.read_bytes()) == (rows, point)
    assert again.splitlines()[-10:] == out.splitlines()[-10:]
    assert "nothing to do" in run_well(f"{FIT} {limits} --resume auto")
    assert BEST.read_bytes() == before


def test_longer_run_calibrates_again() -> None:
    run_well(f"{FIT} --max_epochs 1")
    first = calibration()
    run_well(f"{FIT} --max_epochs 4 --resume lightning_logs/version_0")
    run_well(f"{FIT} --max_epochs 4")
    one, other = (torch.load(BEST.parents[2] / f"version_{n}/checkpoints/best.ckpt", weights_only=True) for n in (0, 1))
    assert one["epoch"] == other["epoch"] > 0
    for name, value in other["lit"].pop("calibration").items():
        kept = one["lit"]["calibration"][name]
        assert kept.equal(value) if isinstance(value, torch.Tensor) else kept == value, name
    assert one["lit"].pop("calibration")["temperature"] != first["temperature"]
    assert one["lit"] == other["lit"]
    for name, weight in one["state_dict"].items():
        assert weight.equal(other["state_dict"][name])


@pytest.mark.parametrize("flags", ["--limit_val_batches 0", "--model LitMLP --data RandomDataModule --data.length 50"])
def test_runs_without_validation_or_classes_get_none(flags: str) -> None:
    fit = f"fit.py --accelerator cpu --dashboard false --max_epochs 1 {flags}"
    fit += " --data.train_size 60" * ("Random" not in flags)
    assert "temperature" not in run_well(fit)
    assert not torch.load(BEST, weights_only=True)["lit"].get("calibration")
    assert "nothing to do" in run_well(f"{fit} --resume auto")
    assert load().calibration is None
    if "Random" not in flags:
        Image.new("RGB", (32, 32)).save("a.png")
        found = run("predict.py latest a.png --coverage 0.9")
        assert (found.code, found.err.count("\n")) == (2, 1)
        assert "validation" in found.err


@pytest.mark.figures
def test_evaluation_and_prediction_use_the_calibration() -> None:
    run_well(f"{FIT} --max_epochs 2")
    temperature = calibration()["temperature"]
    out = run_well("evaluate.py latest --accelerator cpu")
    found = load().evaluate(accelerator="cpu")
    p = (found.outputs / temperature).softmax(1)
    assert found.probability.tolist() == pytest.approx(p.amax(1).tolist())
    for name, logits in (("before", found.outputs), ("after", found.outputs / temperature)):
        assert f"{float(torch.nn.functional.cross_entropy(logits, found.targets)):.4f} {name}" in out
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(found.outputs, found.targets)), rel=1e-5)
    assert ": too few to tell)" in out  # 40 samples
    assert "note: the coverage was fitted on test" in out
    assert "note: the temperature" not in out
    in_set = 1 - p <= torch.sort(calibration()["scores"]).values[36]  # ceil(41 * 0.9) = 37
    share, size = in_set[range(40), found.targets].double().mean(), in_set.sum(1).double().mean()
    assert f"coverage    {share:.4f} of the 90% sets, mean size {size:.2f}: " in out
    assert (BEST.parents[1] / "evaluation/reliability.png").is_file()
    Image.effect_noise((32, 32), 90).convert("RGB").save("a.png")
    run_well("predict.py latest a.png --coverage 0.9 --output out.json --top_k 10 --accelerator cpu")
    [answer] = json.loads(Path("out.json").read_text())
    likely = [one["label"] for one in answer["top"] if 1 - one["probability"] <= calibration()["scores"][36]]
    same: Any = load().predict("a.png", "cpu", coverage=0.9)
    assert answer["set"] == likely == list(same.set)
    assert answer["top"][0]["probability"] == pytest.approx(same.probability)
    refused = run("predict.py latest a.png --coverage 0.99")
    assert (refused.code, "needs 99 labelled pictures, but 40 gave scores" in refused.err) == (2, True)


def test_limit_marks_1_of_40_validation_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    run_well(f"{FIT} --max_epochs 2")
    kept, model, data = load().calibration, load().model(), load().data()
    assert kept is not None
    assert kept.references is not None
    data.setup("fit")
    with torch.no_grad():
        sets: Any = [(data.dataset("train"), 60), (data.dataset("val"), 40)]  # type: ignore[attr-defined]
        train, val = (model.features(pictures.__getitems__(list(range(count)))[0]) for pictures, count in sets)
    assert train is not None
    assert val is not None
    assert int((kept.distances(val) > kept.limit).sum()) == 1  # ceil(41 * 0.95) = 39 are not
    assert kept.distances(train).abs().max() < 1e-3  # each is its own reference
    far = 1 - torch.nn.functional.cosine_similarity(val[:, None], train[None], dim=2).amax(1)
    torch.testing.assert_close(kept.distances(val), far, atol=2e-3, rtol=0)
    monkeypatch.setattr(calibrate, "MAX_PICTURES", 20)
    some = calibrate.calibrate(BEST, load().data(), None, torch.device("cpu"), lambda: None)
    assert some is not None
    assert some.references is not None
    is_drawn = some.distances(train).abs() < 1e-3
    assert (len(some.references), is_drawn.sum(), is_drawn[:20].all()) == (20, 20, False)


def test_references_of_a_frozen_backbone_are_the_cached_features(photo_folder: Path) -> None:
    fit = f"fit.py --accelerator cpu --dashboard false --max_epochs 2 --data.root {photo_folder} --data.augment false"
    run_well(f"{fit} --model LitTransfer --model.backbone shufflenet_v2_x0_5 --model.weights none --data.image_size 64")
    kept = load().calibration
    assert kept is not None
    assert (kept.source, kept.limit) == ("half of val", math.inf)  # too few pictures to mark 5 % of them
    own = [str(path) for path in sorted(photo_folder.rglob("*.jpg"))]
    answers: Any = load().predict([*own, Image.new("RGB", (64, 64), (255, 0, 255))], "cpu")
    assert not any(answer.unlike for answer in answers)
    marking: Any = predict(load().model(), own, calibration=replace(kept, limit=1e-3))
    assert sum(not answer.unlike for answer in marking) == len(kept.references)  # type: ignore[arg-type]


OWN = """
import torch
from torch import nn
from lit_models import LitBase

class Net(LitBase):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.preprocessing = {"image_size": 32, "resize_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, num_classes))
        self.make_metrics(num_classes)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return self.build_optimizers(lambda groups: torch.optim.SGD(groups, 0.01), self.parameters())

class ConvolutionLast(Net):
    def forward(self, x):
        return self.net[0](x).amax((2, 3)) @ torch.ones(8, 10)

class NeedsTrainer(Net):
    def forward(self, x):
        return super().forward(x) / self.trainer.world_size

class FailsLater(Net):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        if type(self).made:
            raise OSError("only once")
        type(self).made = True
    made = False
"""
NO_MARK = "no picture can be marked unlike the training photos (docs/trust.md)"


@pytest.mark.parametrize("model", ["Net", "ConvolutionLast", "NeedsTrainer", "FailsLater", "LitAirbench"])
def test_models_of_the_user_and_airbench_mark_pictures(model: str) -> None:
    Path("own_marks.py").write_text(OWN)
    own = "LitAirbench --model.width 0.05" if model == "LitAirbench" else f"own_marks.{model}"
    with remember_imports():
        ended = run(f"{FIT.replace('--model.lr 0.05', '')} --max_epochs 1 --model {own} --data ShapesDataModule")
        assert (ended.code, ended.err) == (0, "")
        kept = load().calibration
        assert kept is not None
        assert kept.score_source == ("test" if model == "LitAirbench" else "half of val"), "hooks of a user's class"
        if model not in ("Net", "LitAirbench"):
            assert kept.references is None
            assert f"unlike      {NO_MARK}\n" in ended.out
            if model == "ConvolutionLast":
                Image.new("RGB", (32, 32)).save("a.png")
                assert f"note: {NO_MARK}\n" in run("predict.py latest a.png --coverage 0.5").err
            return
        assert NO_MARK not in ended.out
        val = load().data()
        val.setup("fit")
        x = val.dataset("val").__getitems__(list(range(40)))[0]  # type: ignore[attr-defined]
        features = load().model().features(x)
    assert kept.references is not None
    assert features is not None
    assert kept.references.shape == (60, features.shape[1])
    assert int((kept.distances(features) > kept.limit).sum()) == 1  # as above


@pytest.mark.slow
def test_several_devices_with_own_loaders_say_how_to_calibrate() -> None:
    copy_examples()
    line = "fit.py --model my_model.Wide --data my_data.Halves --accelerator cpu --max_epochs 1 --dashboard false"
    process = start(f"{line} --devices 2 --report false")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    said = "temperature none: several devices may repeat samples of your loaders; "
    assert re.search(f"^{said}.*fit.py --resume lightning_logs/version_0 --devices 1 fits it$", out, re.M)
    assert "calibration" not in torch.load(BEST, weights_only=True)["lit"]
    with remember_imports():
        assert "(from 50 samples: half of val, which also chose the epoch; " in run_well(
            "fit.py --resume lightning_logs/version_0 --devices 1"
        )
        assert "nothing to do" in run_well("fit.py --resume lightning_logs/version_0 --devices 1")
    assert calibration()["temperature"] != 1
