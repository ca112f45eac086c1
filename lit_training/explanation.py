"""Where a network looks: heat maps over the pictures that it judged.

Letters in shape comments: B batch, C channels, S side in pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from datamodules.pictures import scale
from lit_models import LitBase
from lit_training import figures
from lit_training.evaluation import Evaluation
from lit_training.messages import UsageError
from lit_training.prediction import Prediction, read_pictures


def heat_maps(model: LitBase, x: Tensor, classes: Tensor) -> Tensor:
    """What in each picture spoke for a class: Grad-CAM (Selvaraju et al. 2017) at the last layer that sees places.

    Args:
        model: a classifier of pictures, in evaluation mode; it is left as it was.
        x: (B, C, S, S) float32, normalised as the model wants it.
        classes: (B,) int64.

    Returns:
        (B, S, S) float32 in [0, 1]; 0 everywhere where nothing spoke for the class.

    Raises:
        UsageError: captum is not installed, or no layer of the network has places.
    """
    check(model)
    x, classes = x.to(model.device), classes.to(model.device)
    from captum.attr import LayerAttribution, LayerGradCam

    layer = _last_with_places(model, x[:1])
    with torch.enable_grad():
        found = LayerGradCam(model, layer).attribute(x, target=classes, relu_attributions=True)  # (B, 1, h, w)
    found = LayerAttribution.interpolate(found.detach().cpu(), x.shape[-2:], "bilinear").squeeze(1)  # (B, S, S)
    return found / found.amax((1, 2), keepdim=True).clamp(min=1e-12)


def check(model: LitBase) -> None:
    """Raises:
    UsageError: this model's answers cannot be explained, or captum is not installed.
    """
    if model.task != "classification" or model.sample_ndim != 3:
        raise UsageError(f"--explain is for classifiers of pictures, not for {type(model).__name__}: leave it out")
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UsageError("--explain needs captum: pip install -e '.[explain]'") from error


def _last_with_places(model: nn.Module, x: Tensor) -> nn.Module:
    """The last module, in the order of the forward pass, whose output is still a picture."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            seen.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UsageError(f"{type(model).__name__} has no layer that sees places: --explain cannot draw a map")
    return seen[-1]


def beside(pictures: Tensor, maps: Tensor) -> Tensor:
    """Each picture with its heat map to the right of it, laid over the picture.

    Args:
        pictures: (B, 3, S, S) float32 in [0, 1].
        maps: (B, S, S) float32 in [0, 1].

    Returns:
        (B, 3, S, 2 S) float32 in [0, 1].
    """
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["jet"](maps.numpy())[..., :3]).permute(0, 3, 1, 2).float()  # (B, 3, S, S)
    return torch.cat([pictures, (pictures + colours) / 2], dim=3)


def explain_predictions(model: LitBase, predictions: Sequence[Prediction], folder: Path) -> int:
    """Draw each picture beside the heat map of its likeliest class, as ``folder/NUMBER_NAME.png``.

    Returns:
        How many were drawn; what could not be read has no picture.

    Raises:
        UsageError: see :func:`heat_maps`; or ``folder`` cannot be written.
    """
    check(model)
    spec, names = model.preprocessing, model.class_names
    assert spec is not None
    read = {number: prediction for number, prediction in enumerate(predictions, 1) if prediction.top}
    samples = read_pictures([prediction.path for prediction in read.values()], spec, batch_size=8)
    drawn = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (number, prediction), sample in zip(read.items(), samples, strict=True):
            if sample.x is None:  # gone since it was predicted
                continue
            x = scale(sample.x[None], spec["mean"], spec["std"])  # (1, C, S, S)
            label, probability = prediction.top[0]
            index = names.index(label) if names else int(label)
            picture = beside(figures.pixels(x, spec), heat_maps(model, x, torch.tensor([index])))
            figure = figures.sheet(picture, [f"{label} {probability:.0%}"])
            figure.savefig(folder / f"{number}_{Path(prediction.path).stem}.png", dpi=150)
            drawn += 1
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): run where it can") from error
    return drawn


def explain_worst(model: LitBase, evaluation: Evaluation, file: Path) -> None:
    """Draw the most confident mistakes, each beside the heat map of the class that it was taken for.

    Raises:
        UsageError: see :func:`heat_maps`; or ``file`` cannot be written.
    """
    check(model)
    worst, names = evaluation.worst(), evaluation.class_names
    if not worst:
        return
    x = torch.stack([evaluation.dataset[index][0] for index in worst])  # (B, C, S, S)
    assert evaluation.preprocessing is not None
    taken_for = evaluation.predicted[worst]
    pictures = beside(figures.pixels(x, evaluation.preprocessing), heat_maps(model, x, taken_for))
    titles = [
        f"{names[taken_for[place]]} {evaluation.probability[index]:.0%}, is {names[int(evaluation.targets[index])]}"
        for place, index in enumerate(worst)
    ]
    try:
        figures.sheet(pictures, titles, columns=3).savefig(file, dpi=150)
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}): run where it can") from error
