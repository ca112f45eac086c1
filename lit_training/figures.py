"""Draw figures of a run. Only matplotlib's ``Figure`` is used, not pyplot, which has global state and windows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.text import printable

if TYPE_CHECKING:  # matplotlib takes a second to import, so only the functions that draw import it
    from matplotlib.figure import Figure

PICTURE_INCHES = 1.6  # width of a picture in draw_sheet
MAX_CELL_INCHES, MAX_MATRIX_INCHES, MAX_NAME_INCHES = 0.45, 12.0, 2.0  # largest widths in a confusion matrix


def undo_normalization(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert normalized network inputs, (B, 1 or 3, H, W), to pictures, (B, 3, H, W) float32 in [0, 1] on the CPU."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (inputs.detach().cpu().float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def draw_sheet(pictures: Tensor, titles: Sequence[str], columns: int = 4) -> "Figure":
    """Draw pictures, (B, 3, H, W) float32 in [0, 1], in a grid, each with a title of one or more lines above it.

    Lines wider than a picture are shortened.
    """
    from matplotlib.figure import Figure

    count, _, height, width = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    # All pictures share one axes: one axes per picture takes four times as long. Their unit is the width of a picture.
    ratio, gap, title_height = height / width, 0.1, 0.1 * lines
    sheet_width, sheet_height = columns * (1 + gap) + gap, rows * (ratio + title_height + gap) + gap
    figure = Figure(figsize=(PICTURE_INCHES * sheet_width, PICTURE_INCHES * sheet_height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + index % columns * (1 + gap)
        top = title_height + gap + index // columns * (ratio + title_height + gap)
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + ratio, top), aspect="auto")
        short_title = "\n".join(_shorten(line, PICTURE_INCHES, 9) for line in title.split("\n"))
        # parse_math=False: file names can contain dollar signs
        axes.text(left, top - 0.03, short_title, fontsize=9, verticalalignment="bottom", parse_math=False)
    axes.set_xlim(0, sheet_width)
    axes.set_ylim(sheet_height, 0)
    return figure


def draw_mistakes(
    pictures: Tensor,
    names: Sequence[str],
    labels: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[float],
    files: Sequence[str] | None,
    columns: int = 4,
) -> "Figure":
    """Draw B pictures, (B, 3, H, W) float32 in [0, 1], whose class was predicted wrongly, with :func:`draw_sheet`.

    ``names`` are the names of all classes, ``probabilities`` those of the predicted classes, ``files`` the B paths.
    """
    predictions = zip(labels, predicted, probabilities, strict=True)
    titles = [f"{names[wrong]} {probability:.0%}\nis {names[label]}" for label, wrong, probability in predictions]
    if files is not None:
        titles = [f"{title}\n{printable(file).rpartition('/')[2]}" for title, file in zip(titles, files, strict=True)]
    return draw_sheet(pictures, titles, columns)


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> "Figure":
    """Draw a confusion matrix, (K, K) int64 ``matrix[true, predicted]``. Darker cells have a larger share of their row.

    The figure has no counts if there are more than 40 classes, and no class names if there are more than 115.
    """
    from matplotlib.figure import Figure

    count = len(names)
    matrix_inches = min(max(3.0, MAX_CELL_INCHES * count), MAX_MATRIX_INCHES)
    cell_inches = matrix_inches / count
    points = min(10, 0.8 * 72 * cell_inches)  # font size
    short_names = [_shorten(name, MAX_NAME_INCHES, points) for name in names] if points >= 6 else []
    margin = 0.6 + max((_text_width(name, points) for name in short_names), default=0)
    side = margin + matrix_inches + 0.1
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, matrix_inches / side, matrix_inches / side))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)  # (K, K) in [0, 1]
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if short_names:
        axes.set_xticks(range(count), short_names, rotation=90, parse_math=False, fontsize=points)
        axes.set_yticks(range(count), short_names, parse_math=False, fontsize=points)
    if count <= 40:
        for true, predicted in matrix.nonzero().tolist():
            color = "white" if share[true, predicted] > 0.5 else "black"
            number = str(int(matrix[true, predicted]))
            axes.text(predicted, true, number, ha="center", va="center", color=color, fontsize=8)
    return figure


def _text_width(text: str, points: float) -> float:
    """Return the width of a line of text in inches, at a font size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)[0] / 72


def _shorten(text: str, inches: float, points: float) -> str:
    """Escape the characters of ``text`` that are not printable, then shorten it to a width in inches."""
    text = printable(text)
    if _text_width(text, points) <= inches:
        return text
    while text and _text_width(text + "…", points) > inches:
        text = text[:-1]
    return text + "…"


def draw_curves(charts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """Draw charts side by side. ``charts[title][name]`` is a curve: its epochs and its values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(charts), 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(charts), squeeze=False).flat, charts.items(), strict=True):
        for name, (epochs, values) in lines.items():
            axes.plot(epochs, values, marker="o", markersize=3, label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
