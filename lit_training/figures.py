"""Pictures of a run, drawn with matplotlib's ``Figure`` alone: no window, no global state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.text import printable

if TYPE_CHECKING:  # matplotlib takes a second to import: only who draws waits for it
    from matplotlib.figure import Figure

INCH = 1.6
"""Width of a picture on a sheet."""
LARGEST_CELL, LARGEST_MATRIX, LARGEST_NAME = 0.45, 12.0, 2.0
"""Inches: of a confusion matrix with few classes, of one with many, of a class's name beside it."""


def pixels(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What a network is fed, as colours again: (B, C, H, W) normalised -> (B, 3, H, W) float32 in [0, 1]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (inputs.detach().cpu().float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def sheet(pictures: Tensor, titles: Sequence[str], columns: int = 4) -> "Figure":
    """Pictures in rows, each under its title; lines of a title that are wider than the picture are cut.

    Args:
        pictures: (B, 3, H, W) float32 in [0, 1].
        titles: B of them, of one or more lines.
    """
    from matplotlib.figure import Figure

    count, _, height, width = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    # One axes for all, in units of a picture's width: an axes for each picture would take four times as long.
    tall, gap, text = height / width, 0.1, 0.1 * lines
    across, down = columns * (1 + gap) + gap, rows * (tall + text + gap) + gap
    figure = Figure(figsize=(INCH * across, INCH * down))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + place % columns * (1 + gap)
        top = text + gap + place // columns * (tall + text + gap)
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + tall, top), aspect="auto")
        cut = "\n".join(_cut(line, INCH, 9) for line in title.split("\n"))
        # parse_math: a file name may hold dollar signs
        axes.text(left, top - 0.03, cut, fontsize=9, verticalalignment="bottom", parse_math=False)
    axes.set_xlim(0, across)
    axes.set_ylim(down, 0)
    return figure


def mistakes(
    pictures: Tensor,
    names: Sequence[str],
    labels: Sequence[int],
    predicted: Sequence[int],
    probability: Sequence[float],
    files: Sequence[str] | None,
    columns: int = 4,
) -> "Figure":
    """A sheet of wrong answers: over each picture what it was taken for, how surely, what it is, and its file.

    Args:
        pictures: (B, 3, H, W) float32 in [0, 1].
        names: of the K classes.
        labels: B numbers of classes.
        predicted: B numbers of classes.
        probability: B of them, of the predicted classes.
        files: B paths, or None where the pictures are no files.
    """
    answers = zip(labels, predicted, probability, strict=True)
    titles = [f"{names[taken_for]} {surely:.0%}\nis {names[label]}" for label, taken_for, surely in answers]
    if files is not None:
        titles = [f"{title}\n{printable(file).rpartition('/')[2]}" for title, file in zip(titles, files, strict=True)]
    return sheet(pictures, titles, columns)


def confusion(matrix: Tensor, names: Sequence[str]) -> "Figure":
    """A confusion matrix: each row a true class, shaded by the share of its samples; the numbers are counts.

    Names are left out where a row is too low for them (beyond 115 classes), counts where a cell is too small
    (beyond 40).

    Args:
        matrix: (K, K) int64, ``matrix[true, predicted]``.
        names: of the K classes.
    """
    from matplotlib.figure import Figure

    count = len(names)
    cells = min(max(3.0, LARGEST_CELL * count), LARGEST_MATRIX)
    cell = cells / count
    size = min(10, 0.8 * 72 * cell)  # of the letters, in points
    named = size >= 6
    short = [_cut(name, LARGEST_NAME, size) for name in names] if named else []
    margin = 0.6 + max((_width(name, size) for name in short), default=0)
    side = margin + cells + 0.1
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, cells / side, cells / side))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)  # (K, K) in [0, 1]
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if named:
        axes.set_xticks(range(count), short, rotation=90, parse_math=False, fontsize=size)
        axes.set_yticks(range(count), short, parse_math=False, fontsize=size)
    if count <= 40:
        for true, predicted in matrix.nonzero().tolist():
            colour = "white" if share[true, predicted] > 0.5 else "black"
            number = str(int(matrix[true, predicted]))
            axes.text(predicted, true, number, ha="center", va="center", color=colour, fontsize=8)
    return figure


def _width(text: str, size: float) -> float:
    """Inches that a line of letters of ``size`` points takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def _cut(text: str, inches: float, size: float) -> str:
    """``text`` as far as there is room for it; what cannot be shown of a file's name is escaped."""
    text = printable(text)
    if _width(text, size) <= inches:
        return text
    while text and _width(text + "…", size) > inches:
        text = text[:-1]
    return text + "…"


def curves(charts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """Curves over one another: for each chart, for each name of a curve, its epochs and its values."""
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
