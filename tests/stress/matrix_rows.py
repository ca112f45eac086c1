"""All rows of the matrix."""

from tests.stress import matrix_callbacks

ROWS = [*matrix_callbacks.ROWS]
"""Each part that Lightning ships and that runs on a CPU. Other files add theirs here."""
