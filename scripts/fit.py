"""Train a network: ``python scripts/fit.py --help``."""

import sys

from lit_training.arguments import Parser, at_least
from lit_training.help import FIT_HELP


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(FIT_HELP)
        return
    repeats = Parser("fit.py", "")
    repeats.add_argument("--seeds", type=at_least(1), default=1)
    chosen, rest = repeats.parse_known_args()
    if chosen.seeds > 1:
        from lit_training.repetition import repeat

        sys.exit(repeat(rest, chosen.seeds))
    from lit_training.cli import FitCLI
    from lit_training.guards import explained
    from lit_training.messages import one_line_errors
    from lit_training.run import announce, load_weights, no_partial_run, report

    with one_line_errors("fit.py"):
        cli = FitCLI()
        cli.watch.start()
        with explained(cli), no_partial_run(cli):
            load_weights(cli)
            announce(cli)
            cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
        report(cli)


if __name__ == "__main__":
    main()
