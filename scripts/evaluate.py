"""Judge a trained network: ``python scripts/evaluate.py latest``."""

import os

from lit_training.arguments import Parser

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

    from lit_training import checkpoints, evaluation, heat_maps  # here: a wrong flag need not wait for torch
    from lit_training.cli import quiet_libraries
    from lit_training.messages import one_line_errors
    from lit_training.wrong_input import check_devices

    with one_line_errors("evaluate.py"):
        quiet_libraries()
        check_devices(chosen.accelerator, chosen.devices)
        checkpoint = checkpoints.find(chosen.run)
        if chosen.explain:
            model = checkpoints.load_model(checkpoints.read(checkpoint))
            heat_maps.check(model)
        found, tells = evaluation.evaluate(checkpoint, chosen.data, chosen.accelerator, chosen.devices)
        if tells:
            evaluation.report(found)
            if chosen.explain:
                file = found.folder / "explained.png"
                if heat_maps.explain_worst(model, found, file):
                    print(f"drawn       {os.path.relpath(file)}: the worst, with heat maps")
                else:
                    print("drawn       nothing: there are no mistakes to explain")


if __name__ == "__main__":
    main()
