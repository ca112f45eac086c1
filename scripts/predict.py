"""Ask a trained network: ``python scripts/predict.py latest photo.jpg folder/``."""

import sys

from lit_training.cli.arguments import Parser, at_least

DESCRIPTION = (
    "What a trained network says about pictures, or about rows of numbers for regression networks. Exit code 0: all "
    "were read, 1: some could not be, which their rows say, 2: none could be, or something else is wrong."
)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("predict.py", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a .ckpt file, or latest")
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="pictures, folders of them, 'globs'; for rows .csv or .npy files"
    )
    parser.add_argument("--top_k", type=at_least(1), default=3, metavar="N", help="classes to name (default 3)")
    parser.add_argument("--output", metavar="FILE", help="write .csv or .json as well")
    parser.add_argument("--batch_size", type=at_least(1), default=32, metavar="N", help="inputs a step (default 32)")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu", "mps"), default="auto", help="default auto")
    parser.add_argument("--explain", action="store_true", help="draw where the network looked, into explanations/")
    chosen = parser.parse_intermixed_args(arguments)

    from pathlib import Path

    from datamodules.photos.find import PICTURE_SUFFIXES  # here: a wrong flag need not wait for torch
    from lit_training import load
    from lit_training.errors import fail, one_line_errors
    from lit_training.runs.devices import find_device
    from lit_training.text import print_table, progress_bar
    from lit_training.trained.explain import check_explainable, explain_predictions
    from lit_training.trained.inputs import ROW_SUFFIXES, find_files
    from lit_training.trained.outputs import check_output_path, prediction_table, write_predictions
    from lit_training.trained.predict import predict

    with one_line_errors("predict.py"):
        if chosen.output:
            check_output_path(chosen.output)
        device = find_device(chosen.accelerator)
        model = load(chosen.run).model()
        if chosen.explain:
            check_explainable(model)
        pictures = model.sample_ndim == 3
        files = find_files(chosen.inputs, PICTURE_SUFFIXES if pictures else ROW_SUFFIXES)
        predictions = []
        with progress_bar("predicting") as progress:
            for answer in predict(model, files, top_k=chosen.top_k, batch_size=chosen.batch_size, device=device):
                predictions.append(answer)
                progress(len(predictions), len(files) if pictures else None)
        print_table(*prediction_table(predictions))
        if chosen.output:
            write_predictions(predictions, chosen.output)
            print(f"\nwritten: {chosen.output}")
        if chosen.explain:
            drawn = explain_predictions(model, predictions, Path("explanations"))
            print(f"\ndrawn: {drawn} in explanations/, the picture and the heat map of its likeliest class")
        unread = sum(bool(answer.error) for answer in predictions)
        if unread == len(predictions):
            fail("predict.py", f"nothing could be read of {' '.join(chosen.inputs)}: the table says why")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
