"""Preprocessing, and its dict in checkpoints."""

import pytest

from datamodules import Preprocessing


def test_defaults_are_those_of_the_tutorial() -> None:
    assert Preprocessing().to_dict() == {
        "image_size": 224,
        "resize_size": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "resize": "crop",
    }


def test_from_dict_restores_to_dict() -> None:
    spec = Preprocessing(32, 40, [0.5], [0.25], "bicubic", "pad")
    assert Preprocessing.from_dict(spec.to_dict()) == spec
    assert Preprocessing.from_dict(None) == Preprocessing()
    assert Preprocessing.from_dict({"image_size": 32, "of_a_later_version": 1}) == Preprocessing(image_size=32)


@pytest.mark.parametrize(("size", "resize"), [(112, 128), (448, 512), (72, 82)])
def test_resize_size_is_proportional_to_image_size(size: int, resize: int) -> None:
    spec = Preprocessing(interpolation="bicubic")
    assert spec.at_size(size) == Preprocessing(size, resize, interpolation="bicubic")
    assert spec.at_size(None) is spec
