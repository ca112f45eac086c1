"""Test a trained network: ``python scripts/evaluate.py latest``."""

import argparse

from lit_training.help import EVALUATE_HELP


def main() -> None:
    parser = argparse.ArgumentParser("evaluate.py", description=EVALUATE_HELP)
    parser.add_argument("checkpoint", help="a run's folder, a .ckpt file, or latest")
    arguments = parser.parse_args()
    from lit_training.evaluation import evaluate

    from lit_training.messages import one_line_errors

    with one_line_errors("evaluate.py"):
        print(evaluate(arguments.checkpoint))


if __name__ == "__main__":
    main()
