"""Train a network: ``python scripts/fit.py --help``."""

import sys

from lit_training.cli.arguments import Parser, at_least
from lit_training.cli.help import FIT_HELP
from lit_training.errors import UsageError, one_line_errors


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(FIT_HELP)
        return
    repeats = Parser("fit.py", "")
    repeats.add_argument("--seeds", type=at_least(1), default=1)
    chosen, rest = repeats.parse_known_args()
    if chosen.seeds > 1 and any(word.partition("=")[0] == "--folds" for word in rest):
        raise UsageError("--folds and --seeds cannot be used together: --repeats 3 repeats the folds with other seeds")
    if chosen.seeds > 1:
        from lit_training.cli.seeds import run_seeds

        sys.exit(run_seeds(rest, chosen.seeds))
    from lit_training.cli import fit, folds
    from lit_training.cli.parser import FitCLI
    from lit_training.cli.trouble import one_line_failures
    from lit_training.runs.hashes import write_hashes

    cli = FitCLI()
    run = cli.run
    run.watch.start()
    with one_line_failures(run), fit.undo_failed_start(run):
        fit.prepare(run)
        fit.print_start(run)
        folds.train_folds(cli)
        run.trainer.fit(run.model, run.data, weights_only=True)
    fit.print_result(run)
    folds.remove_folds(run)  # a run that was killed in the calibration needs them
    if run.start is not None and run.trainer.is_global_zero:
        write_hashes(run.start.folder)


if __name__ == "__main__":
    with one_line_errors("fit.py"):
        main()
