"""Look at a network: ``python scripts/inspect.py LitCNN``, or a trained one: ``... latest``."""

import sys

if __name__ == "inspect":
    # A script beside this file asked for the standard library's module and found this one: give it that.
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _here = Path(__file__).resolve().parent
    _spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() != _here])
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])


DESCRIPTION = (
    "What a network is: its layers with their output shapes, parameters and sizes; FLOPs; the autograd nodes from the "
    "loss back to the leaves; the gradient of the first bias. Arguments of the class follow as in fit.py: "
    "--model.loss squared_error."
)


def main(arguments: list[str] | None = None) -> None:
    import difflib
    import warnings

    from lit_training.arguments import Parser

    parser = Parser("inspect.py", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="LitCNN, LitMLP, LitDynamic, LitTransfer, a run, or a .ckpt")
    chosen, rest = parser.parse_known_args(arguments)

    from lit_models import LitBase
    from lit_training import checkpoints
    from lit_training.cli import OneLineParser
    from lit_training.inspection import describe
    from lit_training.messages import UsageError, one_line_errors
    from lit_training.spelling import MODELS

    with one_line_errors("inspect.py"):
        if chosen.model in MODELS:
            builder = OneLineParser(prog="inspect.py")
            builder.add_subclass_arguments(LitBase, "model")
            settings = builder.parse_args([f"--model={chosen.model}", *rest]).model
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to who trains
                model = MODELS[chosen.model](**settings.init_args)
        elif near := difflib.get_close_matches(chosen.model, MODELS, n=1):
            raise UsageError(f"there is no model {chosen.model}: did you mean {near[0]}?")
        elif rest:
            raise UsageError(f"{rest[0]}: a trained network is what it is; arguments go with a class name")
        else:
            model = checkpoints.load_model(checkpoints.read(checkpoints.find(chosen.model)))
        print(describe(model))


if __name__ == "__main__":
    main()
