"""Compare runs: ``python scripts/compare.py lightning_logs/version_0 lightning_logs/version_1``."""

from lit_training.cli.arguments import Parser
from lit_training.errors import one_line_errors

DESCRIPTION = (
    "Compare the settings and the results of runs, and draw their curves in one figure. If there are two runs, and "
    "evaluate.py has tested both on the same samples, test whether the difference in accuracy is significant."
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("compare.py", DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, .ckpt file, or latest; at least two")
    parser.add_argument("--png", metavar="FILE", help="PNG file of the curves (default: comparison.png next to RUN)")
    chosen = parser.parse_args(arguments)
    if len(chosen.runs) < 2:
        parser.error("compare needs at least two runs: compare.py RUN RUN")

    from lit_training.trained.compare import compare

    compare(chosen.runs, chosen.png)


if __name__ == "__main__":
    with one_line_errors("compare.py"):
        main()
