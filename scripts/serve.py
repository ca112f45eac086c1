"""Show a trained classifier of pictures in a web page: ``python scripts/serve.py latest``."""

from importlib.util import find_spec

from lit_training.cli.arguments import Parser, at_least
from lit_training.errors import UsageError, one_line_errors


def main(arguments: list[str] | None = None) -> None:
    parser = Parser("serve.py", "Show a trained classifier of pictures in a web page. Programs POST to /predict.")
    parser.add_argument("run", metavar="RUN", help="folder of a run, .ckpt file, or latest")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=at_least(0), default=8000, metavar="N", help="default: 8000; 0: a free one")
    parser.add_accelerator_flag()
    chosen = parser.parse_args(arguments)
    if missing := [name for name in ("starlette", "uvicorn", "python_multipart") if find_spec(name) is None]:
        raise UsageError(f"the page needs {' and '.join(missing)}: pip install 'lit-classics[serve]'")

    from lit_training import load  # here, so that --help needs no torch
    from lit_training.runs.devices import find_device
    from lit_training.trained.serve import serve

    serve(load(chosen.run), find_device(chosen.accelerator), chosen.host or "127.0.0.1", chosen.port)


if __name__ == "__main__":
    with one_line_errors("serve.py"):
        main()
