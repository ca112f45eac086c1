"""Train a network: ``python scripts/fit.py --help``."""

import sys

from lit_training.help import FIT_HELP


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(FIT_HELP)
        return
    from lit_training.cli import FitCLI
    from lit_training.guards import explained
    from lit_training.messages import one_line_errors
    from lit_training.run import announce, no_partial_run, report

    with one_line_errors("fit.py"):
        cli = FitCLI()
        cli.watch.start()
        announce(cli)
        with explained(cli), no_partial_run(cli):
            cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
        report(cli)


if __name__ == "__main__":
    main()
