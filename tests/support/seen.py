"""Record the matplotlib figures of the scripts when they are written."""

from typing import Any, NamedTuple

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter


class Drawn(NamedTuple):
    """A figure, with its file name or TensorBoard tag, and its step in TensorBoard."""

    name: str
    step: int | None
    figure: Any

    def counts(self) -> dict[tuple[str, str], int]:
        """Read a confusion matrix: (true class, predicted class) -> number in the cell."""
        axes = self.figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
        columns, rows = ([label.get_text() for label in axis.get_ticklabels()] for axis in (axes.xaxis, axes.yaxis))
        cells = [(*text.get_position(), int(text.get_text())) for text in axes.texts]
        return {(rows[int(y)], columns[int(x)]): number for x, y, number in cells}

    def titles(self) -> list[str]:
        """Read the titles of a sheet of images."""
        return [text.get_text() for text in self.figure.axes[0].texts]

    def curves(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """Read the curves of a comparison: metric -> run -> epochs and values."""
        return {
            axes.get_title(): {
                line.get_label().split(", ")[0]: (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
            }
            for axes in self.figure.axes
        }


def watch(patch: pytest.MonkeyPatch) -> list[Drawn]:
    """Return an empty list. From now on, each figure that is written is added to this list."""
    found: list[Drawn] = []
    save, add = Figure.savefig, SummaryWriter.add_figure

    def savefig(self: Figure, target: Any, *more: Any, **options: Any) -> None:
        if not hasattr(target, "write"):
            found.append(Drawn(str(target), None, self))
        save(self, target, *more, **options)

    def add_figure(self: Any, tag: str, figure: Any, step: int | None = None, *more: Any, **options: Any) -> None:
        found.append(Drawn(tag, step, figure))
        add(self, tag, figure, step, *more, **options)

    patch.setattr(Figure, "savefig", savefig)
    patch.setattr(SummaryWriter, "add_figure", add_figure)
    return found
