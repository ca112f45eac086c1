"""Predict with a trained network: ``python scripts/predict.py latest photo.jpg folder/``."""

import math
import sys
from pathlib import Path
from typing import Any

from lit_training.cli.arguments import Parser, at_least
from lit_training.errors import one_line_errors

DESCRIPTION = (
    "Predict images with a trained network, or rows of numbers with a regression network. Exit code 0: all inputs were "
    "read. 1: some inputs could not be read; the table says why. 2: no input could be read, or there was another error."
)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("predict.py", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run, .ckpt file, or latest")
    inputs = "image, folder or 'glob'; for rows, a .csv or .npy file"
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help=inputs)
    top_k = "number of most likely classes to show (default: 3)"
    parser.add_argument("--top_k", type=at_least(1), default=3, metavar="N", help=top_k)
    parser.add_argument("--output", metavar="FILE", help="also write a .csv, .json or .jsonl file")
    parser.add_argument("--batch_size", type=at_least(1), default=32, metavar="N", help="batch size (default: 32)")
    coverage = "share of cases whose set has the true class: 0.9"
    parser.add_argument("--coverage", type=float, metavar="SHARE", help=coverage)
    parser.add_accelerator_flag()
    parser.add_argument("--explain", action="store_true", help="draw heat maps into explanations/")
    chosen = parser.parse_intermixed_args(arguments)

    import torch

    from datamodules.photos.find import PICTURE_SUFFIXES  # here, so that --help needs no torch
    from datamodules.text import print_note
    from lit_training import load
    from lit_training.errors import exit_with_error
    from lit_training.runs.devices import find_device
    from lit_training.runs.threads import choose_threads
    from lit_training.text import print_table, progress_bar
    from lit_training.trained.calibrate import NO_MARKS
    from lit_training.trained.describe import sample_input
    from lit_training.trained.explain import check_explainable, explain_predictions
    from lit_training.trained.inputs import ROW_SUFFIXES, find_files
    from lit_training.trained.outputs import check_output_path, prediction_table, write_predictions
    from lit_training.trained.predict import predict

    if chosen.output:
        check_output_path(chosen.output)
    device = find_device(chosen.accelerator)
    saved = load(chosen.run)
    model = saved.model()
    if chosen.explain:
        check_explainable(model)
    torch.set_num_threads(choose_threads(model, sample_input(model), chosen.batch_size))
    pictures = model.sample_ndim == 3
    if chosen.coverage and pictures and saved.calibration is not None and saved.calibration.limit == math.inf:
        print_note(NO_MARKS)
    files = find_files(chosen.inputs, PICTURE_SUFFIXES if pictures else ROW_SUFFIXES)
    predictions = []
    with progress_bar("predicting") as progress:
        options: Any = {name: getattr(chosen, name) for name in ("coverage", "top_k", "batch_size")}
        for prediction in predict(model, files, calibration=saved.calibration, device=device, **options):
            predictions.append(prediction)
            progress(len(predictions), len(files) if pictures else None)
    print_table(*prediction_table(predictions))
    if chosen.output:
        write_predictions(predictions, chosen.output)
        print(f"\nwritten: {chosen.output}")
    if chosen.explain:
        drawn = explain_predictions(model, predictions, Path("explanations"))
        print(f"\ndrawn: {drawn} in explanations/, each image with the heat map of its most probable class")
    unread = sum(bool(prediction.error) for prediction in predictions)
    if unread == len(predictions):
        exit_with_error("predict.py", f"none of {' '.join(chosen.inputs)} could be read: the table says why")
    return 1 if unread else 0


if __name__ == "__main__":
    with one_line_errors("predict.py"):
        sys.exit(main())
