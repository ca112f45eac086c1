"""Test a trained network: ``python scripts/evaluate.py latest``."""

import os
import sys

from lit_training.cli.arguments import Parser
from lit_training.errors import one_line_errors
from lit_training.runs.layout import CONFIG, EXPLAINED

DESCRIPTION = (
    "Test a trained network on its test data, or on its validation data if there is no test data. Print the results. "
    "For a classifier, write predictions, confusion matrix and worst mistakes to evaluation/ in the folder of the run."
)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("evaluate.py", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run, .ckpt file, or latest")
    parser.add_argument("--data", metavar="DIR", help="test on photos in DIR, without training photos")
    parser.add_argument("--all", action="store_true", help="with --data: include the training photos")
    parser.add_argument("--photos", metavar="DIR", help="the folder where the photos of the run are now")
    parser.add_accelerator_flag()
    parser.add_argument("--devices", default="1", metavar="N", help="number of devices (default: 1)")
    parser.add_argument("--explain", action="store_true", help="draw heat maps of the worst mistakes")
    parser.add_argument("--verify", action="store_true", help="check files and figures of the run; write nothing")
    chosen = parser.parse_args(arguments)
    if chosen.verify and (chosen.data or chosen.all or chosen.explain or chosen.devices != "1"):
        parser.error("--verify checks the run as it is: leave --data, --all, --explain and --devices out")

    from datamodules.text import is_rank_zero
    from lit_training import load  # here, so that --help needs no torch
    from lit_training.cli.limits import check_devices
    from lit_training.cli.parser import silence_libraries
    from lit_training.runs.hashes import recorded
    from lit_training.trained.audit import verify
    from lit_training.trained.explain import check_explainable, explain_mistakes
    from lit_training.trained.outputs import write_evaluation
    from lit_training.trained.report import write_report

    silence_libraries()
    check_devices(chosen.accelerator, chosen.devices)
    if chosen.verify:
        return verify(chosen.run, chosen.accelerator, chosen.photos)
    saved = load(chosen.run)
    if chosen.explain:
        check_explainable(saved.model())
    evaluation = saved.evaluate(chosen.data, chosen.accelerator, chosen.devices, chosen.photos, chosen.all)
    if not is_rank_zero():
        return 0
    with recorded(saved.folder, evaluation.folder):
        write_evaluation(evaluation)
        if evaluation.split != "photos" and (saved.folder / CONFIG).is_file():
            write_report(saved.folder, saved.model(), saved.data(), evaluation)
        file = evaluation.folder / EXPLAINED
        if chosen.explain and explain_mistakes(saved.model(), evaluation, file):
            print(f"drawn       {os.path.relpath(file)}: the worst mistakes, with heat maps")
        elif chosen.explain:
            print("drawn       nothing: there are no mistakes")
    return 0


if __name__ == "__main__":
    with one_line_errors("evaluate.py"):
        sys.exit(main())
