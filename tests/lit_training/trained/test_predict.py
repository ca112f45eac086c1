"""Predictions contain the outputs of the network with the names of its classes, or an error."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Preprocessing
from datamodules.photos.find import PICTURE_SUFFIXES
from lit_models import LitCNN, LitMLP
from lit_training.trained.inputs import find_files, read_pictures
from lit_training.trained.predict import Prediction, predict


@pytest.fixture
def network() -> LitCNN:
    """A network with its two class names in reverse alphabetical order, to detect names in alphabetical order."""
    model = LitCNN(num_classes=2).eval()
    model.class_names = ("bees", "ants")
    return model


@pytest.fixture
def files(photo_folder: Path) -> list[str]:
    return find_files([str(photo_folder)], PICTURE_SUFFIXES)


def test_unreadable_files_have_an_error_and_others_a_prediction(network: LitCNN, files: list[str]) -> None:
    Path("empty.jpg").touch()
    names = ["empty.jpg", "gone.jpg"]
    first, empty, gone, last = predict(network, [files[0], *names, files[0]], batch_size=3)
    assert [answer.path for answer in (empty, gone)] == names
    assert [answer.error for answer in (empty, gone)] == ["empty (0 bytes)", "no such file"]
    assert first == last
    assert first.probabilities
    assert (empty.label, empty.probabilities) == ("", {})
    assert math.isnan(empty.probability)


def test_batch_without_readable_files(network: LitCNN, files: list[str]) -> None:
    answers = list(predict(network, ["gone.jpg", "gone.png", files[0]], batch_size=2))
    assert [bool(answer.probabilities) for answer in answers] == [False, False, True]


def test_probabilities_names_and_order(network: LitCNN, files: list[str]) -> None:
    answers = list(predict(network, files, top_k=5, batch_size=3))
    spec = Preprocessing.from_dict(network.preprocessing)
    x = torch.stack([sample.x for sample in read_pictures(files, spec, 7) if sample.x is not None])
    with torch.no_grad():
        expected = network(x.float() / 127.5 - 1).softmax(1)
    for answer, row in zip(answers, expected, strict=True):
        assert answer.probabilities == pytest.approx({"bees": float(row[0]), "ants": float(row[1])}, abs=1e-5)
        likeliest, other = answer.probabilities
        assert answer.probabilities[likeliest] >= answer.probabilities[other]
        assert (answer.label, answer.probability) == (likeliest, answer.probabilities[likeliest])
    short = list(predict(network, files, top_k=1, batch_size=100))
    assert [answer.label for answer in short] == [answer.label for answer in answers]
    assert {len(answer.probabilities) for answer in short} == {1}
    assert list(predict(network, files, batch_size=3)) == answers  # default: all classes


def test_classes_without_names_have_numbers(files: list[str]) -> None:
    [answer] = predict(LitCNN(num_classes=2), files[:1])
    assert sorted(answer.probabilities) == ["0", "1"]


def test_network_with_one_channel_gets_gray_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("colour.png")
    model = LitCNN(in_channels=1, num_classes=2).eval()
    [answer] = predict(model, ["colour.png"])
    luma = pixels @ np.array([0.2989, 0.587, 0.114])  # ITU-R 601
    with torch.no_grad():
        x = torch.tensor(luma, dtype=torch.float32).view(1, 1, 32, 32) / 127.5 - 1
        assert answer.probability == pytest.approx(float(model(x).softmax(1).max()), abs=1e-3)


def test_predictions_of_a_regression_have_outputs() -> None:
    model = LitMLP(in_features=3, hidden=(), out_features=2).eval()
    Path("rows.csv").write_text("1,2,3\n1,2\n0,0,0\n")
    first, bad, zero = predict(model, ["rows.csv"], batch_size=2)
    weight, bias = (parameter.detach() for parameter in model.parameters())
    assert first.outputs == pytest.approx((weight @ torch.tensor([1.0, 2.0, 3.0]) + bias).tolist())
    assert zero.outputs == pytest.approx(bias.tolist())
    assert (bad.row, bad.outputs) == (2, ())
    assert bad == Prediction("rows.csv", 2, error="2 values, but the network takes 3")


def test_model_in_training_mode_predicts_as_in_evaluation_mode(network: LitCNN, files: list[str]) -> None:
    expected = list(predict(network, files[:2]))
    assert list(predict(network.train(), files[:2])) == expected


def test_classes_with_the_same_name_keep_their_probabilities(files: list[str]) -> None:
    model = LitCNN(num_classes=3).eval()
    model.class_names = ("crane", "bees", "crane")
    [answer] = predict(model, files[:1])
    assert sorted(answer.probabilities) == ["bees", "crane (class 0)", "crane (class 2)"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    [likeliest] = predict(model, files[:1], top_k=1)
    assert likeliest.label == next(iter(answer.probabilities))
