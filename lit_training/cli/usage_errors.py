"""Say in one line what jsonargparse says in many: the wrong word, the reason, the nearest name."""

import ast
import inspect
import re
from pkgutil import resolve_name

from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

from lit_training.cli.flags import DATA, MODELS
from lit_training.cli.schedules import SCHEDULES
from lit_training.text import nearest, suggest

KINDS = {"bool": ("true or false", "true"), "int": ("a whole number", "3"), "float": ("a number", "0.1")}
KINDS |= {"PositiveInt": ("a whole number above 0", "3"), "PositiveFloat": ("a number above 0", "0.5")}
"""Python type -> how it is called, an example."""
ELSEWHERE = {"epochs": "max_epochs", "learning_rate": "model.lr", "gpus": "devices", "seed": "seed"}
"""What other programs, or people, call it -> what it is called here."""


def parse_error(message: str, parser: LightningArgumentParser) -> str:
    """One line out of jsonargparse's many."""
    if found := re.search(r"[Uu]nrecognized arguments?: (\S+)", message):
        flag = found[1].split("=")[0]
        if not flag.startswith("-"):
            return f"{flag} follows no flag: leave it out, or see --help"
        known = {option.removeprefix("--") for action in parser._actions for option in action.option_strings}
        return f"there is no flag {flag}: {_suggest_flag(flag.strip('-').removeprefix('trainer.'), known)}"
    if found := re.search(r"(--\w+)\.help: .*: (\S+)$", message):
        return f"there is no {found[1]} {found[2]}: {suggest(found[2], _classes(found[1][2:], message))}"
    if found := re.search(r"argument (\S+): expected one argument", message):
        return f"{_short(found[1].split('/')[0])} needs a value: {_short(found[1].split('/')[0])} VALUE"

    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)":', message)))
    flag = _short("--" + ".".join(keys))
    owner = re.findall(r"given class_path '([^']+)':", message)
    if found := re.search(r"(?:Option|does not accept option) '([^']+)'", message):
        return _option_error(found[1], flag, owner[-1] if owner else None, parser)
    if found := re.search(r"arguments are required: (.+)", message):
        needed = " and ".join(f"{flag}.{name.strip()}" for name in found[1].split(","))
        return f"{flag} {_name(owner)} also needs {needed}: {flag}.{found[1].split(',')[0]} VALUE"

    if "Unable to load config" in message:
        return f"{flag} stands before a dot and a name: {flag}.max_epochs 3, or --max_epochs 3"
    found_values = re.findall(r"(?:Given value|Got value|import path string|to float|base 10): (.*)", message)
    found_values += re.findall(r": (\S+) does not conform", message)
    values = [value.strip("'") for value in found_values if not value.startswith(("NestedArg(", "Namespace("))]
    value = values[0] if values else ""
    if keys and not value:
        return f"{flag} needs a value: {flag} VALUE"
    expected = message.split("Given value")[0]
    kinds = [kind for kind in KINDS if re.search(rf"<class '{kind}'>|Not of type {kind}:", expected)]
    if keys == ["seed_everything"] or "float" in kinds:
        kinds = kinds[-1:]
    choices = [str(name) for text in re.findall(r"Literal(\[[^]]*\])", message) for name in ast.literal_eval(text)]
    if choices:
        return f"{flag} {value}: {suggest(value, [*dict.fromkeys(choices), *['true', 'false'] * ('bool' in kinds)])}"
    if kinds:
        return f"{flag} {value} is not {' or '.join(KINDS[kind][0] for kind in kinds)}: {flag} {KINDS[kinds[-1]][1]}"
    if len(keys) > 1:
        return f"{flag} {value} is not what {_name(owner)} takes: --{keys[0]}.help {_name(owner)} shows what it does"
    if keys:
        reason = re.search(r"No module named .*|does not correspond to a subclass of \w+", message)
        said = f"{flag} {value} cannot be used ({reason[0]})" if reason else f"there is no {flag} {value}"
        return f"{said}: {suggest(value, _classes(keys[-1], message))}"
    return message


def _option_error(name: str, flag: str, owner: str | None, parser: LightningArgumentParser) -> str:
    """A setting that a class, or the command line, does not have."""
    if owner in ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer"):
        return f"{flag}.{name} belongs to an optimizer that is not named: --optimizer Adam {flag}.{name} VALUE"
    if owner is None:
        known = {action.dest.removeprefix("trainer.").split(".")[0] for action in parser._actions}
        return f"there is no setting {name}: {_suggest_flag(name, known)}"
    arguments = {n for n in inspect.signature(resolve_name(owner)).parameters if n not in ("self", "params")}
    hint = suggest(name, sorted(arguments)).replace("did you mean ", f"did you mean {flag}.")
    return f"{flag}.{name}: {_name([owner])} has no argument {name}; {hint}"


def _suggest_flag(name: str, known: set[str]) -> str:
    spelled: dict[str, str] = {}
    for key, classes in (("model", MODELS), ("data", DATA)):  # --lr is --model.lr
        for klass in classes.values():
            spelled |= {argument: f"{key}.{argument}" for argument in inspect.signature(klass).parameters}
    spelled |= {flag: flag for flag in sorted(known)} | ELSEWHERE
    near = nearest(name, spelled, cutoff=0.7)
    return f"did you mean --{spelled[near]}?" if near else "see --help, or --help_all for every flag"


def _classes(key: str, message: str) -> list[str]:
    """Names of the classes that ``key`` takes."""
    if key in ("model", "data"):
        return list(MODELS if key == "model" else DATA)
    if key == "lr_scheduler":
        return [schedule.__name__ for schedule in SCHEDULES]
    base = re.search(r"(lightning\.[\w.]+)", message)
    known = set((resolve_name(base[1]) if base else Optimizer).__subclasses__())
    while deeper := {sub for klass in known for sub in klass.__subclasses__()} - known:
        known |= deeper
    return sorted({klass.__name__ for klass in known if not klass.__name__.startswith("_")})


def _name(path: list[str]) -> str:
    return path[-1].rsplit(".", 1)[-1] if path else ""


def _short(flag: str) -> str:
    return flag.replace("--trainer.", "--").replace(".init_args", "").replace("seed_everything", "seed")
