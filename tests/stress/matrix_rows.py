"""All rows of the matrix."""

from tests.stress import matrix_callbacks, matrix_trainer

ROWS = [*matrix_callbacks.ROWS, *matrix_trainer.ROWS]
"""Each part that Lightning ships and that runs on a CPU. Other files add theirs here."""
