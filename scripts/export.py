"""Export a trained network: ``python scripts/export.py latest --to model.onnx``."""

import signal
import sys

from lit_training.cli.arguments import Parser
from lit_training.errors import one_line_errors

DESCRIPTION = (
    "Export a trained network: an ONNX file with the preprocessing inside, a folder with this file and an example in "
    "Python, or a file of plain weights. It is written only if it gives the same answers as the network."
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("export.py", DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="folder of a run, .ckpt file, or latest")
    targets = "NAME.onnx, NAME.safetensors, or a new folder"
    parser.add_argument("--to", metavar="TARGET", required=True, help=targets)
    parser.add_argument("--photos", metavar="DIR", help="the folder where the photos of the run are now")
    chosen = parser.parse_args(arguments)

    from lit_training import load  # here, so that --help needs no torch
    from lit_training.trained.export import export

    print(f"compared    {export(load(chosen.run), chosen.to, chosen.photos)}")
    print(f"written     {chosen.to}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # after removing the temporary folder
    with one_line_errors("export.py"):
        main()
