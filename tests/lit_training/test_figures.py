"""Figures show their data, and their texts do not overlap."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Preprocessing
from lit_training import figures

pytestmark = pytest.mark.figures


def as_array(figure: Any) -> np.ndarray:
    """Draw the figure: (height, width, 3) uint8."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"))


def boxes(figure: Any, texts: Any) -> list[Any]:
    """Return the bounding boxes of the drawn texts in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return [text.get_window_extent(renderer) for text in texts]


def test_undo_normalization_returns_the_pictures() -> None:
    colours = torch.rand(2, 3, 4, 4)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    scaled = (colours - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert torch.allclose(figures.undo_normalization(scaled, Preprocessing(mean=mean, std=std)), colours, atol=1e-6)
    assert figures.undo_normalization(torch.zeros(1, 1, 4, 4), Preprocessing(mean=[0.5], std=[0.5])).shape == (
        1,
        3,
        4,
        4,
    )


def test_sheet_shows_pictures_in_order() -> None:
    colours = torch.eye(3)[[0, 1, 2, 1]].view(4, 3, 1, 1).expand(4, 3, 8, 8)  # red, green, blue, green
    drawn: Any = as_array(figures.draw_sheet(colours, ["a", "b", "c", "d"])).astype(int)
    height, width, _ = drawn.shape
    middles = [(0.3, 0.2), (0.3, 0.5), (0.3, 0.8), (0.8, 0.2)]
    seen = [drawn[int(height * down), int(width * across)].tolist() for down, across in middles]
    assert seen == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 255, 0]]
    assert (drawn[int(height * 0.8), int(width * 0.8)] == 255).all()


@pytest.mark.parametrize("count", [1, 4, 9])
def test_titles_fit_above_their_pictures(count: int) -> None:
    title = f"{'a_very_long_name_of_a_class_' * 3} 90%\nis {'W' * 60}\n$x^2$ and {'i' * 80}"
    figure: Any = figures.draw_sheet(torch.rand(count, 3, 8, 8), [title] * count)
    texts = figure.axes[0].texts
    lines = texts[0].get_text().split("\n")
    assert len(lines) == 3 * figures.MAX_TITLE_LINES
    assert all(lines[place].count("…") == 1 for place in (2, 5, 8))
    assert lines[2].endswith("90%")
    found, inch = boxes(figure, texts), figure.dpi
    assert all(box.width < 1.1 * figures.PICTURE_INCHES * inch for box in found)  # the gap is 0.1
    for box in found:
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.height
    if count > 4:  # titles of the second row are below the pictures of the first row
        tile = figures.PICTURE_INCHES * inch
        assert found[3].y1 < found[0].y0 - tile


def test_mistakes_titles(monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[Any] = []
    monkeypatch.setattr(figures, "draw_sheet", lambda *given, **_: sheets.append(given))
    pictures = torch.rand(2, 3, 8, 8)
    figures.draw_mistakes(
        pictures, ("ant", "bee"), [(0, 1, 0.914), (1, 0, 0.5)], ["val/ant/x.jpg", "val/bee/\udc80.jpg"]
    )
    figures.draw_mistakes(pictures, ("ant", "bee"), [(0, 1, 0.914), (1, 0, 0.5)], None)
    assert sheets[0][1] == ["91% bee\nis ant\nx.jpg", "50% ant\nis bee\n\\udc80.jpg"]
    assert sheets[1][1] == ["91% bee\nis ant", "50% ant\nis bee"]


def test_confusion_matrix_is_dark_for_large_shares() -> None:
    figure: Any = figures.draw_confusion(torch.tensor([[4, 0], [0, 0]]), ("yes", "no"))
    image = figure.axes[0].images[0]
    assert image.get_array().tolist() == [[1, 0], [0, 0]]  # rows are true classes; a row without samples is 0
    assert image.norm(1.0) > image.norm(0.0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["4"]
    assert figure.axes[0].texts[0].get_position() == (0, 0)


@pytest.mark.parametrize(
    ("classes", "name", "names", "counts"),
    [
        (2, "cat", True, True),
        (10, "a very long name of a class that would fill the page and more than it", True, True),
        (100, "aquarium_fish_of_a_long_name", True, False),
        (1000, "n01440764", False, False),
    ],
)
def test_names_and_counts_are_shown_if_they_fit(classes: int, name: str, names: bool, counts: bool) -> None:
    figure: Any = figures.draw_confusion(torch.eye(classes, dtype=torch.int64), [f"{name}{k}" for k in range(classes)])
    axes = figure.axes[0]
    labels = [label for label in axes.get_yticklabels() if label.get_text()] if names else []
    assert len(labels) == (classes if names else 0)
    assert len(axes.texts) == (classes if counts else 0)
    assert max(figure.get_size_inches()) < 15  # 12 for the cells
    for box in boxes(figure, [*labels, axes.yaxis.label, axes.xaxis.label]):
        assert box.x0 >= 0
        assert box.y0 >= 0
    for box in boxes(figure, [axes.title, *axes.child_axes[0].get_yticklabels()]):  # title and colour key
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
    if len(labels) > 1:  # the names of two rows do not overlap
        first, second = boxes(figure, labels[:2])
        assert second.y1 <= first.y0 + 1


def test_names_that_differ_in_their_middle_stay_different() -> None:
    names = [f"photographs_of_the_species_number_{k:02}_taken_by_the_museum_in_1998" for k in range(11)]
    confusion: Any = figures.draw_confusion(torch.eye(11, dtype=torch.int64), names)
    labels = [label.get_text() for label in confusion.axes[0].get_yticklabels()]
    assert len(set(labels)) == 11
    assert labels[7].startswith("7 ")
    answers = [(k, k + 1, 0.9) for k in range(10)]
    sheet: Any = figures.draw_mistakes(torch.rand(10, 3, 8, 8), names, answers, None)
    assert len({text.get_text() for text in sheet.axes[0].texts}) == 10
    curves: Any = figures.draw_curves({"val_acc": {name * 3: ([1], [0.5]) for name in names[:3]}})
    assert len({text.get_text() for text in curves.legends[0].get_texts()}) == 3


def test_unusual_names_are_drawn() -> None:
    """Names that are not UTF-8, with dollar signs, with line feeds, with characters that the font does not have."""
    names = ["\udcff\udc80", "$\\frac{", "a\nb", "\u8239"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_array(figures.draw_confusion(torch.eye(4, dtype=torch.int64), names))
        as_array(figures.draw_sheet(torch.rand(4, 3, 4, 4), names))
        as_array(figures.draw_curves({"val_acc": {name: ([1], [0.5]) for name in names[1:]}}))
    assert caught == []


def test_epoch_ticks_are_integers() -> None:
    figure: Any = figures.draw_curves({"val_acc": {"a": ([1, 2, 3], [0.1, 0.4, 0.5]), "b": ([1], [0.2])}})
    as_array(figure)
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())
    assert [line.get_label() for line in figure.axes[0].lines] == ["a", "b"]
