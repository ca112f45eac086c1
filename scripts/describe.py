"""Describe a network: ``python scripts/describe.py LitCNN``. For a trained network: ``describe.py latest``."""

from lit_training.cli.arguments import Parser
from lit_training.errors import one_line_errors

DESCRIPTION = (
    "Describe a network: layers with output shapes, parameters and sizes; FLOPs; the autograd graph from the loss to "
    "the parameters; the gradient of the first bias. After a class name, give arguments of the class as for fit.py, "
    "for example LitCNN --model.loss squared_error."
)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("describe.py", DESCRIPTION)
    help_text = "a model such as LitCNN or LitAirbench, a run, .ckpt or latest"
    parser.add_argument("model", metavar="MODEL", help=help_text)
    chosen, rest = parser.parse_known_args(arguments)

    import warnings  # here, so that --help needs no torch
    from pathlib import Path

    from lit_models import LitBase
    from lit_training import load
    from lit_training.cli.flags import MODELS
    from lit_training.cli.parser import OneLineParser
    from lit_training.errors import UsageError
    from lit_training.text import closest_name
    from lit_training.trained.describe import describe

    path = Path(chosen.model)
    if chosen.model in MODELS:
        builder = OneLineParser(prog="describe.py")
        builder.add_subclass_arguments(LitBase, "model")
        settings = builder.parse_args([f"--model={chosen.model}", *rest]).model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about training
            model = MODELS[chosen.model](**settings.init_args)
    elif (closest := closest_name(chosen.model, MODELS)) and not (path.is_file() or any(path.rglob("*.ckpt"))):
        raise UsageError(f"there is no model {chosen.model}: did you mean {closest}?")
    elif rest:
        raise UsageError(f"{rest[0]}: a trained network takes no arguments; leave {rest[0]} out, or name a class")
    else:
        model = load(chosen.model).model()
    print(describe(model))


if __name__ == "__main__":
    with one_line_errors("describe.py"):
        main()
