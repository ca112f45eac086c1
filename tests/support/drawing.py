"""Draw figures only for the tests that look at pixels. Without drawing, a small run takes a third of the time."""

from matplotlib.figure import Figure

DRAW = Figure.draw


def draw_figures(is_wanted: bool) -> None:
    """Let matplotlib draw figures, or write them empty. They are built and written in both cases."""
    Figure.draw = DRAW if is_wanted else lambda figure, renderer: None  # type: ignore[method-assign,assignment]


def draws_figures() -> bool:
    return Figure.draw is DRAW
