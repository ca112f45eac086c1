"""Where a network looks: heat maps over the pictures that it judged, for ``--explain``.

Letters in shape comments: B batch, C channels, S side in pixels, K classes, N tokens, h and w places.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from datamodules import Preprocessing
from datamodules.loading.memory import normalize
from lit_models import LitBase
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.trained.evaluate import Evaluation
from lit_training.trained.inputs import read_pictures
from lit_training.trained.outputs import draw_worst, worst_inputs
from lit_training.trained.predict import Prediction


def grad_cam(model: LitBase, x: Tensor, classes: Tensor) -> Tensor:
    """What in each picture spoke for a class: Grad-CAM (Selvaraju et al. 2017) at the last layer that sees places.

    In a convolutional network that is its last convolution or what follows it; in a vision transformer it is the last
    LayerNorm whose patches still reach the answer, which are laid out as the picture that they came from.

    Args:
        model: a classifier of pictures, in evaluation mode; it is left as it was.
        x: (B, C, S, S) float32, normalised as the model wants it.
        classes: (B,) int64.

    Returns:
        (B, S, S) float32 in [0, 1]; 0 everywhere where nothing spoke for the class.

    Raises:
        UsageError: captum is not installed, or no layer of the network has places.
    """
    check_explainable(model)
    x, classes = x.to(model.device), classes.to(model.device)
    from captum.attr import LayerAttribution, LayerGradCam

    layer = _last_with_places(model, x[:1], int(classes[0]))
    places = nn.Identity()  # captum wants a module that gives (B, C, h, w)

    def by_way_of_places(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        laid_out = _lay_out(module, output)
        assert laid_out is not None
        picture, put_back = laid_out
        return put_back(places(picture))

    hook = layer.register_forward_hook(by_way_of_places)
    try:
        with torch.enable_grad():
            found = LayerGradCam(model, places).attribute(x, target=classes, relu_attributions=True)  # (B, 1, h, w)
    finally:
        hook.remove()
    found = LayerAttribution.interpolate(found.detach().cpu(), x.shape[-2:], "bilinear").squeeze(1)  # (B, S, S)
    return found / found.amax((1, 2), keepdim=True).clamp(min=1e-12)


def check_explainable(model: LitBase) -> None:
    """Refuse a model before anything is computed.

    Raises:
        UsageError: this model's answers cannot be explained, or captum is not installed.
    """
    if model.task != "classification" or model.sample_ndim != 3:
        raise UsageError(f"--explain is for classifiers of pictures, not for {type(model).__name__}: leave it out")
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UsageError("--explain needs captum: pip install -e '.[explain]'") from error


def _last_with_places(model: nn.Module, x: Tensor, label: int) -> nn.Module:
    """The last module, in the order of the forward pass, whose output has places that count for ``label``.

    After the last attention of a vision transformer the patches are still there, but the class token alone is read.

    Args:
        x: (1, C, S, S).
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and len(output) == len(x) and _lay_out(module, output) is not None:
            seen.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.enable_grad():
            score = model(x.detach().clone().requires_grad_())[0, label]
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UsageError(f"{type(model).__name__} has no layer that sees places: --explain cannot draw a map")
    gradients = torch.autograd.grad(score, [output for _, output in seen], allow_unused=True)
    counting = [
        module
        for (module, _), gradient in zip(seen, gradients, strict=True)
        if gradient is not None and (laid_out := _lay_out(module, gradient)) is not None and laid_out[0].any()
    ]
    return counting[-1] if counting else seen[-1][0]  # nothing counts: the map is 0 everywhere


def _lay_out(module: nn.Module, output: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """An output as a picture, (B, C, h, w) with h = w > 1, and the way back; None where it has no places.

    Networks see square pictures, so places are square; a norm over the last dimension says that this one is the
    channels: (B, h, w, C), or (B, N, C) with the tokens that are no patches (class, registers) in front.
    """
    normed = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.normalized_shape == output.shape[-1:]
    picture, put_back = output, lambda places: places
    if normed and output.ndim == 4 and output.shape[1] == output.shape[2]:
        picture, put_back = output.permute(0, 3, 1, 2), lambda places: places.permute(0, 2, 3, 1)
    elif normed and output.ndim == 3:
        side = isqrt(output.shape[1])
        front = output[:, : output.shape[1] - side**2]
        picture = output[:, front.shape[1] :].transpose(1, 2).unflatten(2, (side, side))
        put_back = lambda places: torch.cat([front, places.flatten(2).transpose(1, 2)], 1)  # noqa: E731
    elif isinstance(module, (nn.Dropout, nn.Identity, nn.Softmax)):  # around attention: (B, heads, N, N)
        return None
    if picture.ndim != 4 or picture.shape[2] != picture.shape[3] or picture.shape[3] == 1:
        return None
    return picture, put_back


def put_side_by_side(pictures: Tensor, maps: Tensor) -> Tensor:
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
        UsageError: see :func:`grad_cam`; or ``folder`` cannot be written.
    """
    check_explainable(model)
    spec, names = Preprocessing.from_dict(model.preprocessing), model.class_names
    read = {number: prediction for number, prediction in enumerate(predictions, 1) if prediction.probabilities}
    samples = read_pictures([prediction.path for prediction in read.values()], spec, batch_size=8)
    drawn = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (number, prediction), sample in zip(read.items(), samples, strict=True):
            if sample.x is None:  # gone since it was predicted
                continue
            x = normalize(sample.x[None], spec.mean, spec.std)  # (1, C, S, S)
            label = prediction.label
            index = names.index(label) if names else int(label)
            picture = put_side_by_side(figures.pixels(x, spec), grad_cam(model, x, torch.tensor([index])))
            figure = figures.sheet(picture, [f"{label} {prediction.probability:.0%}"])
            figure.savefig(folder / f"{number}_{Path(prediction.path).stem}.png", dpi=300)
            drawn += 1
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): run where it can") from error
    return drawn


def explain_mistakes(model: LitBase, evaluation: Evaluation, file: Path) -> bool:
    """Draw the most confident mistakes, each beside the heat map of the class that it was taken for.

    Returns:
        Whether there were any; else there is no ``file``.

    Raises:
        UsageError: see :func:`grad_cam`; or ``file`` cannot be written.
    """
    check_explainable(model)
    worst = evaluation.worst()
    if not worst:
        return False
    x = worst_inputs(evaluation)  # (B, C, S, S)
    assert evaluation.preprocessing is not None
    pictures = put_side_by_side(
        figures.pixels(x, evaluation.preprocessing), grad_cam(model, x, evaluation.predicted[worst])
    )
    try:
        draw_worst(evaluation, pictures, columns=3).savefig(file, dpi=150)
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}): run where it can") from error
    return True
