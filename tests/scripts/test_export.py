"""scripts/export.py: the ONNX file answers as the network; a file with a wrong answer is never written."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from datamodules import Preprocessing
from datamodules.photos.dataset import PhotoFiles, read_pixels
from lit_models.cnn import LeNet
from lit_training import load
from lit_training.errors import UsageError
from lit_training.trained import export, onnx_pictures
from lit_training.trained.predict import predict
from tests.stress.exports import BACKBONES, COUNT, compare
from tests.support.commands import run, run_well
from tests.support.own_classes import copy_examples, remember_imports
from tests.support.photos import exif_with_orientation, scene
from tests.support.training import own_caches

onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))


def write_photos(root: Path) -> None:
    """Write smooth photos of different sizes in three classes. Some are stored sideways, some are transparent."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 9)):
        for channel, name in enumerate(("ants", "bees", "wasps")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                size = tuple(random.integers(40, 200, 2).tolist())
                pixels = np.array(scene(int(random.integers(1 << 30)), size), np.float32) * 0.7
                pixels[..., channel] += 12
                pixels += random.integers(0, 50, (*pixels.shape[:2], 1))
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                if number % 3 == 2:
                    picture.putalpha(Image.fromarray(random.integers(100, 256, pixels.shape[:2], np.uint8)))
                picture.save(root / split / name / f"{number}.png", exif=exif_with_orientation((1, 6, 3)[number % 3]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a run of a LeNet on them."""
    workspace = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        own_caches(workspace, patch)
        patch.chdir(workspace)
        write_photos(workspace / "photos")
        sizes = "--data.image_size 32 --data.resize pad --data.augment false --data.num_workers 0 --data.batch_size 4"
        run_well(
            f"fit.py --data photos --model LitCNN --model.lr 0.01 {sizes} --max_epochs 25 --dashboard false --quiet"
        )
        checkpoint = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
        checkpoint["state_dict"]["net.fc3.weight"] *= 8  # so that a small change of the picture changes the answer
        torch.save(checkpoint, "lightning_logs/version_0/checkpoints/best.ckpt")
    return workspace


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The folder that ``export.py latest --to model`` writes for this run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        assert "27 pictures: the same class for each" in run_well("export.py latest --to model")
    return trained / "model"


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "lightning_logs", "lightning_logs")
    (tmp_path / "photos").symlink_to(trained / "photos")


def answers(folder: Path, files: list[str]) -> list[dict[str, dict[str, float]]]:
    """Run the example of an exported folder, where torch cannot be imported."""
    (folder / "torch.py").write_text("raise ImportError('this process must not import torch')")
    done = subprocess.run([sys.executable, folder / "predict.py", *files], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_folder_without_torch_answers_as_the_network(here: None, exported: Path) -> None:
    files = sorted(map(str, Path("photos/train").rglob("*.png")))
    own = list(predict(load("latest").model(), files))
    found = answers(exported, files)
    assert {one.label for one in own} == {"ants", "bees", "wasps"}
    assert np.ptp([one.probabilities["ants"] for one in own]) > 0.8
    for one, other in zip(own, found, strict=True):
        assert other["probabilities"] == pytest.approx(one.probabilities, abs=2e-6)
    assert (exported / "labels.txt").read_text() == "ants\nbees\nwasps\n"
    network = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(network, full_check=True)
    assert [(opset.domain, opset.version) for opset in network.opset_import] == [("", 18)]
    facts = onnxruntime.InferenceSession(exported / "model.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == ["ants", "bees", "wasps"]
    assert Preprocessing.from_dict(json.loads(facts["preprocessing"])).resize == "pad"


def test_weights_are_those_of_the_network(here: None) -> None:
    run_well("export.py latest --to model.safetensors")
    network = LeNet(num_classes=3)
    network.load_state_dict(load_file("model.safetensors"))
    x = torch.randn(5, 3, 32, 32)
    assert torch.equal(network(x), load("latest").model()(x))


def test_files_of_all_kinds_give_the_answers_of_predict(here: None, exported: Path) -> None:
    picture, files, saved = scene(7, (90, 70)), Path("kinds"), load("latest")
    files.mkdir()
    for orientation in range(1, 10):
        for suffix in ("jpg", "png"):
            picture.save(files / f"exif{orientation}.{suffix}", exif=exif_with_orientation(orientation))
    palette, gray = picture.quantize(16), picture.convert("L")
    palette.save(files / "palette.png", transparency=bytes(range(0, 256, 16)))
    deep = np.asarray(gray).astype(np.uint16) * 200 + 77
    Image.fromarray(deep).save(files / "16_bits.png", exif=exif_with_orientation(6))
    gray.convert("LA").save(files / "gray_with_alpha.png")
    gray.convert("1").save(files / "black_and_white.png")
    picture.convert("CMYK").save(files / "print.jpg")
    paths = sorted(map(str, files.iterdir()))
    for path, other in zip(paths, answers(exported, paths), strict=True):
        assert other["probabilities"] == pytest.approx(saved.predict(path).probabilities, abs=2e-6), path  # type: ignore[union-attr]
    Image.fromarray(deep).save(files / "16_bits.tif")  # the example does not read these two as predict.py does
    pytest.importorskip("pillow_heif").from_pillow(picture).save(files / "phone.jpg")
    (files / "broken.jpg").write_bytes(b"no picture")
    said = export.compare_answers(saved.model(), exported, sorted(map(str, files.iterdir())))
    assert said.startswith(f"{len(paths) + 2} pictures: the same class for each")


def test_one_wrong_probability_of_one_picture_is_refused(here: None, tmp_path: Path) -> None:
    files, model = sorted(map(str, Path("photos/val").rglob("*.png"))), load("latest").model()
    right = [one.probabilities for one in predict(model, files)]

    def compare_with(changes: dict[str, float]) -> str:
        wrong = [*right[:4], right[4] | changes, *right[5:]]
        lines = "\n".join(json.dumps({"path": "", "probabilities": one}) for one in wrong)
        (tmp_path / export.EXAMPLE).write_text(f"print({lines!r})")
        return export.compare_answers(model, tmp_path, files)

    assert compare_with({}) == "27 pictures: the same class for each, the largest difference is 0"
    for name, share in right[4].items():
        assert compare_with({name: share - 4e-4}).endswith("the largest difference is 0.0004")
        for value, difference in ((share - 6e-4, "0.0006"), (share + 6e-4, "0.0006"), (float("nan"), "inf")):
            with pytest.raises(UsageError, match=f"the largest difference is {difference}: {files[4]}, "):
                compare_with({name: value})
    (tmp_path / export.EXAMPLE).write_text("import os\nos._exit(3)")
    with pytest.raises(UsageError, match="cannot be run, so nothing is written: exit code 3"):
        export.compare_answers(model, tmp_path, files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--model my_model.Wide --data my_data.Halves", "100 pictures: the same class for each"),
        ("--model variants.Rows --data variants.RowData", "40 rows: the largest difference is"),
    ],
)
def test_own_data_is_compared(flags: str, said: str) -> None:
    copy_examples()
    with remember_imports():
        run_well(f"fit.py {flags} --max_epochs 1 --dashboard false --quiet --accelerator cpu")
        assert said in run_well("export.py latest --to model")


def replaced_graph(passes: int = 2, antialias: int = 1, channels: str = "0, 1, 2") -> Callable[[Preprocessing], object]:
    """Return a function that builds a graph which squashes pictures with ONNX's Resize."""
    from onnx.parser import parse_model

    def build(spec: Preprocessing) -> object:
        mode = f'mode = "linear", antialias = {antialias}, exclude_outside = {antialias}'
        steps = f"square = Resize <{mode}, axes = [2, 3]> (whole, , , size)"
        if passes == 2:
            steps = f"""
                wide = Resize <{mode}, axes = [3]> (whole, , , side)
                wide_round = Round (wide)
                square = Resize <{mode}, axes = [2]> (wide_round, , , side)
            """
        return parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (uint8[N, H, W, 3] image) => (float[N, 3, 32, 32] pixels)
        <int64[2] size = {{32, 32}}, int64[1] side = {{32}}, int64[3] order = {{{channels}}}>
        {{
            floats = Cast <to = 1> (image)
            all = Transpose <perm = [0, 3, 1, 2]> (floats)
            whole = Gather <axis = 1> (all, order)
            {steps}
            pixels = Round (square)
        }}""")

    return build


class Faulty(export.Answers):
    """Answers with one fault."""

    def __init__(self, model: nn.Module, fault: str) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.fault = fault
        if fault == "mean and std are swapped":
            mean, std = 0.5 / self.factor / 255, 0.5 * torch.ones(3, 1, 1)
            self.factor, self.offset = 1 / (255 * mean), std / mean * 0.8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.model(x * self.factor - self.offset)
        if self.fault == "NaN for some pictures":
            return output.softmax(-1) + torch.where(output[:, :1] < output[:, 1:2], torch.nan, 0.0)
        return output if self.fault == "no softmax" else (output / 1.05).softmax(-1)


def plant(patch: pytest.MonkeyPatch, fault: str, folder: Path) -> None:
    """Plant a fault in the code that exports."""
    graphs = {
        "BGR": replaced_graph(channels="2, 1, 0"),
        "no antialias": replaced_graph(antialias=0),
        "one pass": replaced_graph(passes=1),
    }
    build = onnx_pictures.picture_graph
    if fault in graphs:
        patch.setattr(onnx_pictures, "picture_graph", graphs[fault])
    elif fault == "wrong crop":
        patch.setattr(onnx_pictures, "picture_graph", lambda spec: build(dataclasses.replace(spec, resize="crop")))
    elif fault == "names shuffled":
        describe = export.describe_network
        names = json.dumps(["bees", "ants", "wasps"])
        patch.setattr(export, "describe_network", lambda model: describe(model) | {"class_names": names})
    elif fault == "EXIF ignored":
        text = (Path(export.__file__).parent / "examples" / "pictures.py").read_text()
        (folder / "example.py").write_text(
            text.replace("ImageOps.exif_transpose(Image.open(path))", "Image.open(path)")
        )
        patch.setattr(export.shutil, "copy", lambda _, target: shutil.copyfile(folder / "example.py", target))
    else:
        patch.setattr(export, "Answers", lambda model: Faulty(model, fault))


FAULTS = [
    "mean and std are swapped",
    "BGR",
    "no antialias",
    "one pass",
    "wrong crop",
    "no softmax",
    "another temperature",
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, "names shuffled", "EXIF ignored", "NaN for some pictures"])
def test_a_wrong_export_is_not_written(here: None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault in ("no antialias", "one pass", "BGR"):  # these planted graphs squash
        checkpoint = torch.load("lightning_logs/version_0/checkpoints/best.ckpt", weights_only=True)
        checkpoint["lit"]["preprocessing"]["resize"] = "squash"
        torch.save(checkpoint, "lightning_logs/version_0/checkpoints/best.ckpt")
        run_well("export.py latest --to right.onnx")
    plant(monkeypatch, fault, tmp_path)
    code, _, err = run("export.py latest --to model.onnx")
    assert code == 2
    assert "nothing is written" in err
    assert "photos/val/" in err
    assert len(err.splitlines()) == 1
    assert not Path("model.onnx").exists()
    assert not list(Path().glob(".export*"))


@pytest.mark.parametrize("resize", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("interpolation", "channels", "size"), [("bilinear", 3, 32), ("bicubic", 1, 56)])
def test_the_graph_gives_the_same_pixels(resize: str, interpolation: str, channels: int, size: int) -> None:
    half = [0.3, 0.5, 0.6][:channels]
    spec = Preprocessing(size, size + 9, half, half, interpolation, resize)
    graph = onnx_pictures.picture_graph(spec).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    files = PhotoFiles(Path(), np.array([]), torch.zeros(0), spec, (), 0)
    random = np.random.default_rng(1)
    for height, width in ((1, 1), (5, 7), (2, 300), (301, 2), (64, 64), (65, 65), (100, 41), (333, 500), (700, 201)):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        expected = files.transform_pixels(read_pixels(pixels)).numpy()
        [found] = session.run(None, {"image": pixels[None].repeat(2, 0)})
        assert np.array_equal(found, np.stack([expected, expected])), (height, width)


@pytest.mark.parametrize(("fit", "count"), [("--config {}/mlp.yaml", 64), ("--model LitDynamic", 64)])
def test_rows(fit: str, count: int) -> None:
    recipes = Path(__file__).parents[2] / "scripts" / "recipes"
    run_well(f"fit.py {fit.format(recipes)} --max_steps 3 --dashboard false --quiet")
    assert f"{count} rows: the largest difference is" in run_well("export.py latest --to model.v2/")
    rows = np.random.default_rng(0).standard_normal((7, 1000)).astype(np.float32)
    np.save("rows.npy", rows)
    own: Any = load("latest").predict("rows.npy")
    for one, other in zip(own, answers(Path("model.v2"), ["rows.npy"]), strict=True):
        assert other["outputs"] == pytest.approx(one.outputs, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--to model.pt", "must end in .onnx or .safetensors; for a folder: --to model.pt/"),
        ("--to photos", "photos exists: give another name"),
        ("--to missing/model.onnx", "there is no folder missing"),
        ("--to /dev/null", "/dev/null exists: give another name"),
        (f"--to {'long' * 99}.onnx", "cannot be written (File name too long): give another place"),
        ("--to model.onnx --photos nowhere", "give their folder with --photos DIR"),
    ],
)
def test_refusals(here: None, words: str, message: str) -> None:
    code, _, err = run(f"export.py latest {words}")
    assert code == 2
    assert message in err


def test_no_file_is_written_if_the_disk_refuses_one(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_write_onnx", lambda saved, model, folder, photos: "")
    for broken, name in (
        ("pathlib.Path.replace", "model"),
        ("tempfile.mkdtemp", "model"),
        ("pathlib.Path.write_bytes", "model.safetensors"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(broken, Mock(side_effect=PermissionError(13, "Permission denied")))
            code, _, err = run(f"export.py latest --to {name}")
        assert code == 2
        assert f"--to {name} cannot be written (Permission denied): give another place" in err
        assert sorted(path.name for path in Path().iterdir()) == ["lightning_logs", "photos"]


def test_pictures_to_compare(here: None, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos").unlink()
    shutil.copytree(trained / "photos", "photos")
    saved, names = (
        load("latest"),
        {f"photos/val/{name}/{i}.png" for name in ("ants", "bees", "wasps") for i in range(9)},
    )
    files = export._inputs_to_compare(saved, saved.model(), Path(), None)
    assert set(files) == names
    split_file = saved.folder / "split.csv"
    lines = split_file.read_text()
    for wanted in (
        "test",
        "train",
    ):  # of a run with --folds: its test pictures, or, without them, those of the training
        split_file.write_text(lines.replace(",val,", f",{wanted},"))
        files = export._inputs_to_compare(saved, saved.model(), Path(), None)
        assert set(files) == names if wanted == "test" else names < set(files)
    split_file.write_text(lines)
    monkeypatch.setattr(export, "MAX_COMPARED", 10)
    files = export._inputs_to_compare(saved, saved.model(), Path(), None)
    assert (len(files), len(set(files))) == (10, 10)
    assert {file.split("/")[2] for file in files} == {"ants", "bees", "wasps"}
    Path("photos").rename("elsewhere")
    assert len(export._inputs_to_compare(saved, saved.model(), Path(), "elsewhere")) == 10
    for file in Path("elsewhere").rglob("*.png"):
        file.write_text("no picture")
    code, _, err = run("export.py latest --to model.onnx --photos elsewhere")
    assert (code, "none of the run's pictures can be read" in err) == (2, True)


def test_missing_packages_are_named(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else True)
    code, _, err = run("export.py latest --to model.onnx")
    assert code == 2
    assert "an ONNX file needs onnxruntime: pip install 'lit-classics[export]'" in err


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES[:4])
def test_backbones_answer_as_exported(backbone: str) -> None:
    assert f"{COUNT} pictures: the same class for each" in compare(backbone)
