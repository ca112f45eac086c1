"""Draw heat maps for ``--explain``. Letters in shapes: B batch, C channels, S side, N tokens, (h, w) feature map."""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from datamodules import Preprocessing
from datamodules.files import OUTPUT_MARKER
from datamodules.loading.memory import normalize
from lit_models import LitBase
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.trained.evaluate import Evaluation
from lit_training.trained.inputs import read_pictures
from lit_training.trained.outputs import draw_worst, worst_inputs
from lit_training.trained.predict import Prediction, class_names_of

MAX_NAME_LENGTH = 60  # characters of the input's name in the name of its heat map
MADE_BY = "lit-classics predict.py --explain"  # a text in each PNG file: a later call removes only files that have it


def grad_cam(model: LitBase, x: Tensor, classes: Tensor) -> Tensor:
    """Return a heat map of each image by Grad-CAM (Selvaraju et al. 2017), (B, S, S) float32 in [0, 1].

    The heat map is computed from the last feature map that affects the output. If no region increases the score, all
    values are 0. ``x`` is the normalized inputs, (B, C, S, S) float32, ``classes`` the classes to explain, (B,) int64.
    Raises a UsageError if the model is not an image classifier, or no layer has a feature map.
    """
    check_explainable(model)
    x, classes = x.detach().to(model.device).requires_grad_(), classes.to(model.device)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # (module, its output, the output as a feature map)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        has_batch = isinstance(output, Tensor) and len(output) == len(x)
        if has_batch and (features := _as_feature_map(module, output.detach())) is not None:
            calls.append((module, output, features))

    with register_module_forward_hook(record), torch.enable_grad():
        score = model(x).gather(1, classes[:, None]).sum()
    if not calls:
        raise UsageError(f"{type(model).__name__} has no layer with a feature map: --explain cannot draw a heat map")
    heat = torch.zeros(len(x), 1, 1, 1)
    for module, output, features in reversed(calls):
        [gradient] = torch.autograd.grad(score, output, retain_graph=True, allow_unused=True)
        weights = None if gradient is None else _as_feature_map(module, gradient)
        if weights is not None and weights.any():
            heat = (weights.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().cpu()
            break
    heat = F.interpolate(heat, x.shape[-2:], mode="bilinear").squeeze(1)  # (B, S, S)
    return heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)


def check_explainable(model: LitBase) -> None:
    """Raise a UsageError if ``model`` is not an image classifier."""
    if model.task != "classification" or model.sample_ndim != 3:
        raise UsageError(f"--explain is for image classifiers, not for {type(model).__name__}: leave it out")


def _as_feature_map(module: nn.Module, output: Tensor) -> Tensor | None:
    """Return the output of a module as (B, C, h, w) with h = w > 1, or None if it is not a feature map."""
    # A norm returns (B, h, w, C), or (B, N, C). In (B, N, C) the class and register tokens precede the patch tokens.
    is_norm = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.normalized_shape == output.shape[-1:]
    if is_norm and output.ndim == 4 and output.shape[1] == output.shape[2]:
        output = output.permute(0, 3, 1, 2)
    elif is_norm and output.ndim == 3:
        side = isqrt(output.shape[1])
        output = output[:, output.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
    elif isinstance(module, (nn.Dropout, nn.Identity, nn.Softmax)):  # attention weights, (B, heads, N, N), look similar
        return None
    return output if output.ndim == 4 and output.shape[2] == output.shape[3] > 1 else None


def put_side_by_side(pictures: Tensor, maps: Tensor) -> Tensor:
    """Put a blend of image (B, 3, S, S) and heat map (B, S, S) to the right of each image. Return (B, 3, S, 2 S)."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["jet"](maps.numpy())[..., :3]).permute(0, 3, 1, 2).float()  # (B, 3, S, S)
    return torch.cat([pictures, (pictures + colours) / 2], dim=3)


def explain_picture(model: LitBase, source: str | bytes, label: str) -> Tensor | None:
    """Return a picture next to the heat map of a class, (1, 3, S, 2 S) in [0, 1]; None if it cannot be read."""
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    [sample] = read_pictures([source], preprocessing, batch_size=1)
    if sample.x is None:
        return None
    x = normalize(sample.x[None], preprocessing.mean, preprocessing.std)  # (1, C, S, S)
    heat = grad_cam(model, x, torch.tensor([class_names_of(model).index(label)]))
    return put_side_by_side(figures.undo_normalization(x, preprocessing), heat)


def explain_predictions(model: LitBase, predictions: Sequence[Prediction], folder: Path) -> int:
    """Draw each image next to the heat map of its most likely class; return the number of drawn images.

    The files ``folder/NUMBER_NAME.png`` replace those of an earlier call. Images that cannot be read are not drawn.
    """
    check_explainable(model)
    drawn = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.png"):
            if file.is_file() and MADE_BY.encode() in file.read_bytes()[:1000]:  # the text is before the pixels
                file.unlink()
        (folder / OUTPUT_MARKER).touch()
        for number, prediction in enumerate(predictions, 1):
            picture = explain_picture(model, prediction.path, prediction.label) if prediction.probabilities else None
            if picture is None:
                continue
            title = f"{Path(prediction.path).name}\n{prediction.probability:.0%} {prediction.label}"
            figure = figures.draw_sheet(picture, [title], heat_maps=True)
            file = folder / f"{number}_{Path(prediction.path).stem[:MAX_NAME_LENGTH]}.png"
            figure.savefig(file, dpi=300, metadata={"Software": MADE_BY})
            drawn += 1
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): run in a writable folder") from error
    return drawn


def explain_mistakes(model: LitBase, evaluation: Evaluation, file: Path) -> bool:
    """Draw the most confident mistakes with heat maps of the predicted classes. Return False if there are none."""
    if evaluation.preprocessing is None:
        raise UsageError("--explain is for photos and the data of this project: leave it out")
    if not (worst := evaluation.worst_indices()):
        return False
    x = worst_inputs(evaluation)  # (B, C, S, S)
    heat = grad_cam(model, x, evaluation.predicted[worst])
    pictures = put_side_by_side(figures.undo_normalization(x, evaluation.preprocessing), heat)
    try:
        draw_worst(evaluation, pictures, heat_maps=True).savefig(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}): copy the run to a writable folder") from error
    return True
