"""Ask a trained network: ``python scripts/predict.py latest photo.jpg folder/``."""

import sys

from lit_training.arguments import Parser, at_least

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

    from datamodules.listing import PICTURE_SUFFIXES  # here: a wrong flag need not wait for torch
    from lit_training import checkpoints, heat_maps, prediction, tables
    from lit_training.messages import fail, one_line_errors

    with one_line_errors("predict.py"):
        if chosen.output:
            prediction.check_output(chosen.output)
        device = prediction.find_device(chosen.accelerator)
        model = checkpoints.load_model(checkpoints.read(checkpoints.find(chosen.run)))
        if chosen.explain:
            heat_maps.check(model)
        pictures = model.sample_ndim == 3
        files = prediction.find_files(chosen.inputs, PICTURE_SUFFIXES if pictures else prediction.ROW_SUFFIXES)
        answers = prediction.predict(model, files, top_k=chosen.top_k, batch_size=chosen.batch_size, device=device)
        predictions = list(tables.track(answers, "predicting", len(files) if pictures else None))
        tables.show(*prediction.columns(predictions))
        if chosen.output:
            prediction.write(predictions, chosen.output)
            print(f"\nwritten: {chosen.output}")
        if chosen.explain:
            drawn = heat_maps.explain_predictions(model, predictions, Path("explanations"))
            print(f"\ndrawn: {drawn} in explanations/, the picture and the heat map of its likeliest class")
        unread = sum(bool(answer.error) for answer in predictions)
        if unread == len(predictions):
            fail("predict.py", f"nothing could be read of {' '.join(chosen.inputs)}: the table says why")
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
