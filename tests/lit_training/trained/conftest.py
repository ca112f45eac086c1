"""Networks that are trained once per session. Each test gets a copy of the run's folder."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from datamodules import ImageFolderDataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitMLP
from tests.support.ants_and_bees import write_photos
from tests.support.training import Trained, own_caches, train_and_save


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the session, with the runs and the caches of the training."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        own_caches(folder, patch)
        yield folder


@pytest.fixture(scope="session")
def photo_run_of_session(place: Path) -> Trained:
    photos = write_photos(place / "photos")
    torch.manual_seed(0)
    data = ImageFolderDataModule(str(photos), image_size=32, num_workers=0)
    return train_and_save(place / "photo_run", LitCNN(num_classes=2, lr=0.01), data)


@pytest.fixture(scope="session")
def shapes_run_of_session(place: Path) -> Trained:
    torch.manual_seed(0)
    return train_and_save(place / "shapes_run", LitCNN(), ShapesDataModule(train_size=20, val_size=30))


@pytest.fixture(scope="session")
def rows_run_of_session(place: Path) -> Trained:
    torch.manual_seed(0)
    data = RandomDataModule(in_features=5, out_features=2, length=8, steps=2, batch_size=4)
    return train_and_save(place / "rows_run", LitMLP(in_features=5, hidden=(), out_features=2), data)


@pytest.fixture
def copy_trained(tmp_path: Path) -> Callable[[Trained], Trained]:
    """``copy_trained(trained)`` copies a run to the folder ``run`` of the test."""

    def copy(trained: Trained) -> Trained:
        shutil.copytree(trained.path.parents[1], tmp_path / "run")
        return Trained(tmp_path / "run" / "checkpoints" / trained.path.name, trained.validated)

    return copy


@pytest.fixture
def photo_run(photo_run_of_session: Trained, copy_trained: Callable[[Trained], Trained]) -> Trained:
    """LitCNN after one epoch on the images of ``photo_folder``, in a different folder."""
    return copy_trained(photo_run_of_session)


@pytest.fixture
def shapes_run(shapes_run_of_session: Trained, copy_trained: Callable[[Trained], Trained]) -> Trained:
    """LitCNN after one epoch on 20 images of shapes. The test split has 30 images."""
    return copy_trained(shapes_run_of_session)


@pytest.fixture
def rows_run(rows_run_of_session: Trained, copy_trained: Callable[[Trained], Trained]) -> Trained:
    """LitMLP with one linear layer, 5 inputs and 2 outputs, after two steps."""
    return copy_trained(rows_run_of_session)
