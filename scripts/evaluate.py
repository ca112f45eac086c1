"""Judge a trained network: ``python scripts/evaluate.py latest``."""

import os

from lit_training.cli.arguments import Parser
from lit_training.runs.layout import EXPLAINED

DESCRIPTION = (
    "How good a trained network is: on the test data of what it was trained on, else on its validation data. Prints "
    "the figures; predictions, confusion matrix and worst mistakes go into the run's folder evaluation/."
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("evaluate.py", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a .ckpt file, or latest")
    parser.add_argument("--data", metavar="DIR", help="photos to judge by instead, a folder a class")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto", help="default auto")
    parser.add_argument("--devices", default="1", metavar="N", help="how many; the result is the same (default 1)")
    parser.add_argument("--explain", action="store_true", help="draw where the network looked in the worst mistakes")
    chosen = parser.parse_args(arguments)

    from lit_training import load  # here: a wrong flag need not wait for torch
    from lit_training.cli.limits import check_devices
    from lit_training.cli.parser import silence_libraries
    from lit_training.errors import is_rank_zero, one_line_errors
    from lit_training.runs.processes import disconnect
    from lit_training.trained.explain import check_explainable, explain_mistakes
    from lit_training.trained.outputs import write_evaluation

    with one_line_errors("evaluate.py"):
        silence_libraries()
        check_devices(chosen.accelerator, chosen.devices)
        saved = load(chosen.run)
        if chosen.explain:
            check_explainable(saved.model())
        found = saved.evaluate(chosen.data, chosen.accelerator, chosen.devices)
        disconnect()
        if not is_rank_zero():
            return
        write_evaluation(found)
        if chosen.explain:
            file = found.folder / EXPLAINED
            if explain_mistakes(saved.model(), found, file):
                print(f"drawn       {os.path.relpath(file)}: the worst, with heat maps")
            else:
                print("drawn       nothing: there are no mistakes to explain")


if __name__ == "__main__":
    main()
