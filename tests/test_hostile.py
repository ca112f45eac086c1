"""Malicious files are refused with a one-line error, and code in them is not executed."""

import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import CIFAR10DataModule, DataError
from lit_models import LitCNN, LitTransfer, ModelError
from lit_training.errors import CheckpointError, one_line_errors
from lit_training.runs import checkpoints
from lit_training.runs.folder import find_checkpoint
from tests.support.fits import parse

CREATED_FILE = Path("created_file")
COMMAND = f"touch {CREATED_FILE}"


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (COMMAND,)


@pytest.fixture(autouse=True, params=["as usual", "loading forced open"])
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run each test twice: as usual, and with the variable that makes torch.load unpickle everything by default."""
    if request.param != "as usual":
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    yield
    assert not CREATED_FILE.exists(), "code in the file was executed"


def test_unpickling_the_payload_runs_its_command() -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert CREATED_FILE.exists()
    CREATED_FILE.unlink()


def valid_checkpoint() -> dict[str, Any]:
    """Return the contents of a checkpoint of this project."""
    model = LitCNN()
    checkpoint: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "hparams_name": "kwargs",
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.6.6",
        "loops": {},
        "callbacks": {},
        "datamodule_hyper_parameters": {"train_size": 4},
    }
    model.on_save_checkpoint(checkpoint)
    checkpoint["lit"]["data_class"] = "ShapesDataModule"
    return checkpoint


def as_zip(path: Path, content: Any) -> None:
    torch.save(content, path)


def as_old_format(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_plain_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


def as_zip_in_zip(path: Path, content: Any) -> None:
    inner = BytesIO()
    torch.save(content, inner)
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("archive/data.pkl", pickle.dumps(content))
        outer.writestr("archive/inner.ckpt", inner.getvalue())
        outer.writestr("archive/version", "3")
        outer.writestr("../../escaped.txt", COMMAND)


WRITERS = [as_zip, as_old_format, as_plain_pickle, as_zip_in_zip]
PAYLOAD_PLACES: dict[str, Callable[[], Any]] = {
    "alone": Payload,
    "beside valid content": lambda: {**valid_checkpoint(), "extra": Payload()},
    "in the hyper-parameters": lambda: {**valid_checkpoint(), "hyper_parameters": {"lr": Payload()}},
    "in the weights": lambda: {**valid_checkpoint(), "state_dict": {"net.conv1.weight": Payload()}},
    "as the class name": lambda: {**valid_checkpoint(), "lit": {"model_class": Payload()}},
}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("place", PAYLOAD_PLACES)
def test_pickle_in_a_checkpoint(place: str, write: Callable[[Path, Any], None]) -> None:
    write(Path("bad.ckpt"), PAYLOAD_PLACES[place]())
    with pytest.raises(CheckpointError, match=r"bad\.ckpt is not a checkpoint that can be read safely") as error:
        checkpoints.read(find_checkpoint("bad.ckpt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_pickle_to_resume_from(write: Callable[[Path, Any], None], capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path("run/checkpoints")
    folder.mkdir(parents=True)
    write(folder / "last.ckpt", PAYLOAD_PLACES["beside valid content"]())
    for run in ("run/checkpoints/last.ckpt", "run"):
        with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
            parse(f"--resume {run}")
        assert capfd.readouterr().err.splitlines()[-1].startswith("fit.py: error: ")


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_pickle_as_weights(suffix: str, write: Callable[[Path, Any], None]) -> None:
    path = Path(f"weights{suffix}")
    write(path, {"fc.weight": Payload()})
    with pytest.raises(ModelError, match="is not a state dict that can be read safely"):
        LitTransfer(weights=str(path)).load_pretrained()


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{" * 1000,
        struct.pack("<Q", 2) + b"{}" * 3,
        struct.pack("<Q", 66) + b'{"fc.weight":{"dtype":"F32","shape":[9,9],"data_offsets":[0,400]}}',
        b"",
    ],
    ids=["2**63", "2**40", "99 MB", "too long", "missing data", "empty"],
)
def test_invalid_safetensors_header(content: bytes) -> None:
    Path("weights.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.safetensors"):
        LitTransfer(weights="weights.safetensors").load_pretrained()


def changed_checkpoint(**parts: Any) -> dict[str, Any]:
    return {**valid_checkpoint(), **parts}


def with_lit(**parts: Any) -> dict[str, Any]:
    return changed_checkpoint(lit={**valid_checkpoint()["lit"], **parts})


def with_preprocessing(**parts: Any) -> dict[str, Any]:
    return with_lit(preprocessing={**valid_checkpoint()["lit"]["preprocessing"], **parts})


WRONG_CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "a list": lambda: [1, 2],
    "only weights": lambda: LitCNN().state_dict(),
    "no class": lambda: changed_checkpoint(lit={}),
    "lit is a number": lambda: changed_checkpoint(lit=3),
    "an unknown class": lambda: with_lit(model_class="LitGPT"),
    "a function": lambda: with_lit(model_class="mlp"),
    "an error class": lambda: with_lit(model_class="ModelError"),
    "a dotted path": lambda: with_lit(model_class="os.system"),
    "a list as class": lambda: with_lit(model_class=["LitCNN"]),
    "the base": lambda: with_lit(model_class="LitBase"),
    "class names that are a number": lambda: with_lit(class_names=3),
    "class names that are numbers": lambda: with_lit(class_names=[1] * 10),
    "more class names than outputs": lambda: with_lit(class_names=["x"] * 11),
    "preprocessing that is text": lambda: with_lit(preprocessing="x"),
    "a size that is text": lambda: with_preprocessing(image_size="x"),
    "a size that is true": lambda: with_preprocessing(image_size=True),
    "a size below 1": lambda: with_preprocessing(resize_size=0),
    "a size of another network": lambda: with_preprocessing(image_size=64, resize_size=64),
    "a mean that is text": lambda: with_preprocessing(mean="abc"),
    "a mean of another length": lambda: with_preprocessing(mean=[0.5]),
    "a mean and std of one channel": lambda: with_preprocessing(mean=[0.5], std=[0.5]),
    "a mean of NaN": lambda: with_preprocessing(mean=[float("nan")] * 3),
    "a std of 0": lambda: with_preprocessing(std=[0.0] * 3),
    "an unknown interpolation": lambda: with_preprocessing(interpolation="os.system"),
    "an unknown way to resize": lambda: with_preprocessing(resize="os.system"),
    "a way to resize that is a list": lambda: with_preprocessing(resize=["pad"]),
    "an interpolation that is a list": lambda: with_preprocessing(interpolation=["bilinear"]),
    "an unknown argument": lambda: changed_checkpoint(hyper_parameters={"command": COMMAND}),
    "Lightning's class path": lambda: changed_checkpoint(
        hyper_parameters={"_class_path": "os.system", "_instantiator": "os.system", "command": COMMAND}
    ),
    "an argument of another type": lambda: changed_checkpoint(hyper_parameters={"num_classes": "ten"}),
    "an impossible argument": lambda: changed_checkpoint(hyper_parameters={"num_classes": -1}),
    "a layer larger than memory": lambda: changed_checkpoint(hyper_parameters={"num_classes": 2**50}),
    "hyper-parameters that are a list": lambda: changed_checkpoint(hyper_parameters=["num_classes"]),
    "no hyper-parameters": lambda: {
        key: value for key, value in valid_checkpoint().items() if key != "hyper_parameters"
    },
    "other weights": lambda: changed_checkpoint(state_dict={"fc.weight": torch.zeros(3)}),
    "weights that are text": lambda: changed_checkpoint(
        state_dict=dict.fromkeys(valid_checkpoint()["state_dict"], COMMAND)
    ),
    "weights that are a list": lambda: changed_checkpoint(state_dict=[1]),
    "numbers as names": lambda: changed_checkpoint(state_dict={3: torch.zeros(3)}),
    "another number of classes": lambda: changed_checkpoint(hyper_parameters={"num_classes": 7}),
    "another model": lambda: with_lit(model_class="LitMLP"),
}


@pytest.mark.parametrize("name", WRONG_CHECKPOINTS)
def test_wrong_values_in_a_checkpoint(name: str) -> None:
    torch.save(WRONG_CHECKPOINTS[name](), "bad.ckpt")
    with pytest.raises(CheckpointError) as error:
        checkpoints.load_model(checkpoints.read(Path("bad.ckpt")))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "parts",
    [
        {"datamodule_hyper_parameters": {"command": COMMAND}},
        {"datamodule_hyper_parameters": [COMMAND]},
        {"datamodule_hyper_parameters": {"train_size": "many"}},
        {"lit": {"data_class": "DataError", "model_class": "LitCNN"}},
        {"lit": {"data_class": "os.system", "model_class": "LitCNN"}},
        {"lit": {"model_class": "LitCNN"}},
    ],
)
def test_wrong_data_module_in_a_checkpoint(parts: dict[str, Any]) -> None:
    with pytest.raises((CheckpointError, DataError)):
        checkpoints.load_data(changed_checkpoint(**parts))


def test_outputs_without_a_name_get_their_number() -> None:
    model = checkpoints.load_model(with_lit(class_names=["ant", "bee"]))
    assert model.class_names == ("ant", "bee", *"23456789")


def test_valid_checkpoint_opens() -> None:
    torch.save(valid_checkpoint(), "good.ckpt")
    opened = checkpoints.read(Path("good.ckpt"))
    assert isinstance(checkpoints.load_model(opened), LitCNN)
    assert checkpoints.load_data(opened).hparams["train_size"] == 4


@pytest.mark.parametrize("cut", [0, 1, 100, 5000, -1])
def test_truncated_checkpoint(cut: int) -> None:
    torch.save(valid_checkpoint(), "whole.ckpt")
    Path("cut.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt is not a checkpoint"):
        checkpoints.read(Path("cut.ckpt"))


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/x.ckpt", "https://example.com/x.ckpt", "s3://bucket/x.ckpt"])
def test_urls_are_refused(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(where)
    with pytest.raises(ModelError, match="no weights file"):
        LitTransfer(weights=where).load_pretrained()
    for flag in ("--config", "--resume", "--data", "--model"):
        with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
            parse(f"{flag} {where}")
        assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["", "nowhere", "empty", "notes.txt"])
def test_missing_checkpoint(name: str) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    with pytest.raises(CheckpointError):
        checkpoints.read(find_checkpoint(name))


MALICIOUS_CONFIGS = {
    "object tag": f"!!python/object/apply:os.system ['{COMMAND}']",
    "object tag inside": f"model: !!python/object/apply:os.system ['{COMMAND}']",
    "new tag": f"a: !!python/object/new:subprocess.Popen [[touch, {CREATED_FILE}]]",
    "module tag": "a: !!python/module:os",
    "name tag": "a: !!python/name:os.system",
    "exponential aliases": "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(30)),
    "an alias of itself": "a: &a [*a]",
    "deeply nested": "a: " + "[" * 20_000,
    "larger than a configuration": "max_epochs: 1\n#" + "x" * 2_000_000,
    "a process as callback": (
        f"callbacks: [{{class_path: subprocess.Popen, init_args: {{args: [touch, {CREATED_FILE}]}}}}]"
    ),
    "a command as model": f"model: {{class_path: os.system, init_args: {{command: {COMMAND}}}}}",
    "a command as data": f"data: {{class_path: os.system, init_args: {{command: {COMMAND}}}}}",
    "a command as optimizer": f"optimizer: {{class_path: os.system, init_args: {{command: {COMMAND}}}}}",
    "a command as logger": f"logger: {{class_path: os.system, init_args: {{command: {COMMAND}}}}}",
    "a command as plugin": f"plugins: [{{class_path: os.system, init_args: {{command: {COMMAND}}}}}]",
    "a command for any argument": f"model: {{class_path: LitCNN, dict_kwargs: {{command: {COMMAND}}}}}",
    "NUL": "a: \0",
}


@pytest.mark.parametrize("name", MALICIOUS_CONFIGS)
def test_malicious_configuration(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(MALICIOUS_CONFIGS[name])
    with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
        parse("--config bad.yaml")
    err = capfd.readouterr().err
    assert err.startswith("fit.py: error: ")
    assert err.count("\n") == 1
    assert len(err) < 1500


def test_archive_that_is_not_cifar10_is_never_opened(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("../../escaped", "cifar-10-batches-py/data_batch_1", "/tmp/escaped"):
            content = pickle.dumps(Payload())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    batches = root / "cifar-10-batches-py"
    batches.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (batches / name).write_bytes(pickle.dumps(Payload()))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz"):
        CIFAR10DataModule(root=str(root)).prepare_data()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
