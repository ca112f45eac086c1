"""Compare runs: ``python scripts/compare.py lightning_logs/version_0 lightning_logs/version_1``."""

from lit_training.cli.arguments import Parser

DESCRIPTION = (
    "What differs between runs, in settings and in results, and for two runs that evaluate.py has judged on the same "
    "samples whether the difference is more than chance. Draws their curves over one another."
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("compare.py", DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="two or more: a run's folder, a .ckpt file, or latest")
    parser.add_argument("--png", metavar="FILE", help="where the curves go (default: comparison.png beside the runs)")
    chosen = parser.parse_args(arguments)
    if len(chosen.runs) < 2:
        parser.error("one run alone cannot be compared: name two or more")

    from lit_training.errors import one_line_errors  # here: a wrong flag need not wait for torch
    from lit_training.trained.compare import compare

    with one_line_errors("compare.py"):
        compare(chosen.runs, chosen.png)


if __name__ == "__main__":
    main()
