"""Figures of a run, drawn with matplotlib's ``Figure``: no window, no global state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.text import printable

if TYPE_CHECKING:  # importing matplotlib takes a second, so functions import it
    from matplotlib.figure import Figure

INCH = 1.6
"""Width of a picture on a sheet in inches."""
LARGEST_CELL, LARGEST_MATRIX, LARGEST_NAME = 0.45, 12.0, 2.0
"""Largest size in inches of a cell, of all cells and of a class name in a confusion matrix."""


def undo_normalization(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Undo the normalization: (B, C, H, W) network inputs -> (B, 3, H, W) float32 in [0, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (inputs.detach().cpu().float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def draw_sheet(pictures: Tensor, titles: Sequence[str], columns: int = 4) -> "Figure":
    """Draw pictures in a grid, with a title above each; title lines wider than the picture are shortened.

    Args:
        pictures: (B, 3, H, W) float32 in [0, 1].
        titles: B titles of one or more lines.
    """
    from matplotlib.figure import Figure

    count, _, height, width = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    # One axes for all pictures, in units of a picture's width: one axes per picture takes four times as long.
    ratio, gap, text = height / width, 0.1, 0.1 * lines
    sheet_width, sheet_height = columns * (1 + gap) + gap, rows * (ratio + text + gap) + gap
    figure = Figure(figsize=(INCH * sheet_width, INCH * sheet_height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + index % columns * (1 + gap)
        top = text + gap + index // columns * (ratio + text + gap)
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + ratio, top), aspect="auto")
        short = "\n".join(_shorten(line, INCH, 9) for line in title.split("\n"))
        # parse_math=False: file names can contain dollar signs
        axes.text(left, top - 0.03, short, fontsize=9, verticalalignment="bottom", parse_math=False)
    axes.set_xlim(0, sheet_width)
    axes.set_ylim(sheet_height, 0)
    return figure


def draw_mistakes(
    pictures: Tensor,
    names: Sequence[str],
    labels: Sequence[int],
    predicted: Sequence[int],
    probability: Sequence[float],
    files: Sequence[str] | None,
    columns: int = 4,
) -> "Figure":
    """Draw wrong predictions, each with predicted class, probability, true class and file name.

    Args:
        pictures: (B, 3, H, W) float32 in [0, 1].
        names: K class names.
        labels: B true class indices.
        predicted: B predicted class indices.
        probability: B probabilities of the predicted classes.
        files: B paths, or None if the pictures are not from files.
    """
    answers = zip(labels, predicted, probability, strict=True)
    titles = [f"{names[wrong]} {share:.0%}\nis {names[label]}" for label, wrong, share in answers]
    if files is not None:
        titles = [f"{title}\n{printable(file).rpartition('/')[2]}" for title, file in zip(titles, files, strict=True)]
    return draw_sheet(pictures, titles, columns)


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> "Figure":
    """Draw a confusion matrix. The numbers are counts, the colors are shares of the true class (the row).

    There are no class names for more than 115 classes, and no counts for more than 40.

    Args:
        matrix: (K, K) int64, ``matrix[true, predicted]``.
        names: K class names.
    """
    from matplotlib.figure import Figure

    count = len(names)
    cells = min(max(3.0, LARGEST_CELL * count), LARGEST_MATRIX)
    cell = cells / count
    size = min(10, 0.8 * 72 * cell)  # font size in points
    short = [_shorten(name, LARGEST_NAME, size) for name in names] if size >= 6 else []
    margin = 0.6 + max((_width(name, size) for name in short), default=0)
    side = margin + cells + 0.1
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, cells / side, cells / side))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)  # (K, K) in [0, 1]
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if short:
        axes.set_xticks(range(count), short, rotation=90, parse_math=False, fontsize=size)
        axes.set_yticks(range(count), short, parse_math=False, fontsize=size)
    if count <= 40:
        for true, predicted in matrix.nonzero().tolist():
            color = "white" if share[true, predicted] > 0.5 else "black"
            number = str(int(matrix[true, predicted]))
            axes.text(predicted, true, number, ha="center", va="center", color=color, fontsize=8)
    return figure


def _width(text: str, size: float) -> float:
    """Return the width in inches of a line of text in a font of ``size`` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def _shorten(text: str, inches: float, size: float) -> str:
    """Shorten ``text`` to a width; unprintable characters are escaped."""
    text = printable(text)
    if _width(text, size) <= inches:
        return text
    while text and _width(text + "…", size) > inches:
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
