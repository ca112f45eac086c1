"""Models and data modules from outside this project: their attributes count, and missing ones have defaults."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from datamodules import CIFAR10DataModule, ImageFolderDataModule, Preprocessing, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitDynamic, LitMLP, LitTransfer
from lit_training.runs.own_classes import DEFAULTS, data_of, with_default_attributes

OF_MODELS = (
    "default_epochs",
    "skips_layers",
    "same_random_numbers_on_all_ranks",
    "samples_evaluated",
)
OF_DATA = ("class_names", "sample_shape", "photos", "adapt_to", "report")


class OwnModel(LightningModule):
    """Has none of the attributes."""


class OwnData(LightningDataModule):
    """Has none of the attributes."""


class ModelWithAttributes(LightningModule):
    """Has some of the attributes."""

    task = "classification"
    default_epochs = 7
    same_random_numbers_on_all_ranks = True

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


class DataWithAttributes(LightningDataModule):
    """Has some of the attributes."""

    class_names = ("yes", "no")
    sample_shape = (3, 8, 8)
    preprocessing = {"image_size": 8, "mean": [0.1, 0.2, 0.3], "made_with": "care"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.followed: list[Any] = []

    def adapt_to(self, model: Any) -> None:
        self.followed.append(model)

    def report(self) -> str:
        return "much data"


@pytest.mark.parametrize("own", [OwnModel, OwnData, lambda: None], ids=["model", "data", "nothing"])
def test_missing_attributes_have_defaults(own: Any) -> None:
    about = with_default_attributes(own())
    assert about.default_epochs == 1
    assert (about.skips_layers, about.same_random_numbers_on_all_ranks) == (False, False)
    assert about.samples_evaluated is None
    assert about.class_names == ()
    assert (about.sample_shape, about.photos, about.task, about.preprocessing) == (None, None, None, None)
    assert about.report() == ""
    assert about.adapt_to(OwnModel()) is None
    assert about.hparams == {}


def test_existing_attributes_are_returned() -> None:
    about = with_default_attributes(ModelWithAttributes())
    assert (about.task, about.default_epochs, about.same_random_numbers_on_all_ranks) == ("classification", 7, True)
    assert about.hparams == {"width": 3}
    assert about.skips_layers is False
    data = DataWithAttributes()
    about = with_default_attributes(data)
    assert (about.class_names, about.sample_shape) == (("yes", "no"), (3, 8, 8))
    about.adapt_to(None)
    assert (data.followed, about.report()) == ([], "")  # methods of a user may do something else


def test_preprocessing_may_be_a_dict_or_an_object() -> None:
    data: Any = DataWithAttributes()
    assert with_default_attributes(data).preprocessing == Preprocessing(image_size=8, mean=[0.1, 0.2, 0.3])
    data.preprocessing = Preprocessing(32, 32)
    assert with_default_attributes(data).preprocessing is data.preprocessing
    data.preprocessing = None
    assert with_default_attributes(data).preprocessing is None


@pytest.mark.parametrize("make", [LitCNN, lambda: LitMLP(3, (), 2), lambda: LitDynamic(3, 2, 2)])
def test_models_of_this_project_need_no_adapter(make: Any) -> None:
    model = make()
    assert with_default_attributes(model) is model
    for name in (*OF_MODELS, "task", "preprocessing", "hparams"):
        getattr(model, name)


@pytest.mark.parametrize("data_class", [CIFAR10DataModule, RandomDataModule, ShapesDataModule])
def test_data_modules_of_this_project_need_no_adapter(data_class: Any) -> None:
    data = data_class()
    assert with_default_attributes(data) is data
    for name in (*OF_DATA, "task", "preprocessing", "hparams"):
        getattr(data, name)


def test_the_base_classes_have_all_attributes_with_defaults() -> None:
    assert {*OF_MODELS, *OF_DATA, "task", "preprocessing", "hparams"} == DEFAULTS.keys()
    for name in OF_MODELS:
        assert hasattr(LitTransfer, name)
    for name in OF_DATA:
        assert hasattr(ImageFolderDataModule, name)


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises((AttributeError, KeyError), match="colour"):
        _ = with_default_attributes(OwnModel()).colour


def test_the_data_of_a_trainer() -> None:
    shapes, own = ShapesDataModule(), OwnData()
    trainer: Any = SimpleNamespace(datamodule=shapes)
    assert data_of(trainer) is shapes
    trainer.datamodule = own
    assert data_of(trainer).own is own
    trainer.datamodule = None  # only loaders
    assert data_of(trainer).class_names == ()
    assert data_of(SimpleNamespace()).photos is None  # type: ignore[arg-type]


def test_an_adapter_does_not_add_parameters_to_the_model() -> None:
    model = torch.nn.Linear(2, 1)
    assert with_default_attributes(model).task is None
    assert list(model.state_dict()) == ["weight", "bias"]
