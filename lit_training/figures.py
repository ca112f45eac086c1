"""Pictures of a run, drawn with matplotlib's ``Figure`` alone: no window, no global state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # matplotlib takes a second to import: only who draws waits for it
    from matplotlib.figure import Figure

NAMED_CLASSES = 40
"""Up to so many classes a confusion matrix names each row."""


def pixels(inputs: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """What a network is fed, as colours again: (B, C, H, W) normalised -> (B, 3, H, W) float32 in [0, 1]."""
    mean, std = (torch.tensor(preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (inputs.detach().cpu().float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def sheet(pictures: Tensor, titles: Sequence[str], columns: int = 4) -> "Figure":
    """Pictures in rows, each under its title.

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
    tall, gap, text = height / width, 0.1, 0.13 * lines
    across, down = columns * (1 + gap) + gap, rows * (tall + text + gap)
    figure = Figure(figsize=(1.6 * across, 1.6 * down))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, across), ylim=(down, 0))
    axes.set_axis_off()
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left = gap + place % columns * (1 + gap)
        top = text + gap / 2 + place // columns * (tall + text + gap)
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + 1, top + tall, top), aspect="auto")
        # parse_math: a file name may hold dollar signs
        axes.text(left, top - 0.03, title, fontsize=9, verticalalignment="bottom", parse_math=False)
    axes.set_xlim(0, across)
    axes.set_ylim(down, 0)
    return figure


def confusion(matrix: Tensor, names: Sequence[str]) -> "Figure":
    """A confusion matrix: each row a true class, shaded by the share of its samples; the numbers are counts.

    Args:
        matrix: (K, K) int64, ``matrix[true, predicted]``.
        names: of the K classes.
    """
    from matplotlib.figure import Figure

    count = len(names)
    margin, cells = 1.5, max(3.0, 0.45 * min(count, NAMED_CLASSES))  # inches; the margin holds the names
    side = margin + cells + 0.1
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, cells / side, cells / side))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)  # (K, K) in [0, 1]
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= NAMED_CLASSES:
        short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
        axes.set_xticks(range(count), short, rotation=90, parse_math=False)
        axes.set_yticks(range(count), short, parse_math=False)
        for true, predicted in matrix.nonzero().tolist():
            colour = "white" if share[true, predicted] > 0.5 else "black"
            number = str(int(matrix[true, predicted]))
            axes.text(predicted, true, number, ha="center", va="center", color=colour, fontsize=8)
    return figure


def curves(charts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """Curves over one another: for each chart, for each name of a curve, its epochs and its values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(charts), 4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(charts), squeeze=False).flat, charts.items(), strict=True):
        for name, (epochs, values) in lines.items():
            axes.plot(epochs, values, marker="o", markersize=3, label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
