"""Turn the long error messages of jsonargparse into one line that names the wrong word and the closest correct one."""

import ast
import inspect
import re
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

from lit_training.cli.flags import DATA_MODULES, MODELS
from lit_training.cli.optimizers import ARGUMENTS_FROM_RUN, SCHEDULES
from lit_training.errors import frames_of
from lit_training.runs.lightning_internals import actions_of
from lit_training.runs.plain import parameters_of
from lit_training.text import closest_name, suggest

TYPE_HELP = {
    "bool": ("true or false", "true"),
    "int": ("an integer", "3"),
    "float": ("a number", "0.1"),
    "PositiveInt": ("an integer of at least 1", "3"),
    "PositiveFloat": ("a number above 0", "0.5"),
}
"""Name of a type in jsonargparse's messages -> (description, example value)."""
FLAGS_BY_COMMON_NAME = {"epochs": "max_epochs", "learning_rate": "model.lr", "gpus": "devices", "seed": "seed"}
"""Flag name that other programs use -> flag name of fit.py."""


def explain_parse_error(message: str, parser: LightningArgumentParser) -> str:
    """Return one line that says what is wrong and what to type. Return a message without a known pattern unchanged."""
    if match := re.search(r"[Uu]nrecognized arguments?: ([^\s=]*)", message):
        word = match[1]
        if word.startswith("-"):
            return f"there is no flag {word}: {_suggest_flag(word, parser)}"
        return f"{word} is not the value of a flag: leave {word} out, or see --help"
    if match := re.search(r"--(\w+)\.help: .*: (\S+)$", message):
        key, name = match.groups()
        return f"there is no --{key} {name}: {suggest(name, _class_names(key, message))}"
    if match := re.search(r"argument ([^\s/:]+)\S*: expected one argument", message):
        return f"{_shorten(match[1])} needs a value: {_shorten(match[1])} VALUE"
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)":', message)))
    flag = _shorten("--" + ".".join(keys))
    class_path = next(reversed(re.findall(r"given class_path '([^']+)':", message)), "")
    class_name = class_path.rpartition(".")[2]
    if match := re.search(r"(?:Option|does not accept option) '([^']+)'", message):
        return _unknown_argument(match[1], flag, class_path, parser)
    if match := re.search(r"arguments are required: (.*)", message):
        missing = [f"{flag}.{name.strip()}" for name in match[1].split(",")]
        return f"{flag} {class_name} also needs {' and '.join(missing)}: {missing[0]} VALUE"
    if "Unable to load config" in message:
        return f"{flag} needs the name of a setting: {flag}.max_epochs 3, or --max_epochs 3"
    if not keys:
        return message
    values = re.findall(r"(?:Given value|Got value|import path string|to float|base 10): (.*)", message)
    values += re.findall(r": (\S+) does not conform", message)
    value = next((text.strip("'") for text in values if not text.startswith(("NestedArg(", "Namespace("))), "")
    if not value:
        return f"{flag} needs a value: {flag} VALUE"
    expected = message.split("Given value")[0]
    types = [name for name in TYPE_HELP if re.search(rf"<class '{name}'>|Not of type {name}:", expected)]
    if literals := re.findall(r"Literal(\[[^]]*\])", message):
        choices = dict.fromkeys(str(choice) for literal in literals for choice in ast.literal_eval(literal))
        others = ["true", "false"] * ("bool" in types) + ["a number"] * ("PositiveInt" in types)
        return f"{flag} {value}: {suggest(value, [*choices, *others])}"
    if "mport path" in message and (name := re.search(r"(?:^|class_path': ')([\w.]*\b[A-Z]\w+)(?:$|')", value)):
        value, types = name[1], []
    if types:
        if "float" in types or keys == ["seed_everything"]:  # "a number" includes integers; a seed is no boolean
            types = types[-1:]
        description = " or ".join(TYPE_HELP[name][0] for name in types)
        return f"{flag} {value} must be {description}: {flag} {TYPE_HELP[types[-1]][1]}"
    if len(keys) > 1:
        return f"{flag} {value} does not fit {class_name}: --{keys[0]}.help {class_name} shows its arguments"
    hint = suggest(value, _class_names(keys[0], message))
    if match := re.search(r"No module named [^\n]*|does not correspond to a subclass of \w+", message):
        return f"{flag} {value} cannot be used ({match[0]}): {hint}"
    return f"there is no {flag} {value}: {hint}"


def explain_build_error(message: str) -> str:
    """Return one line for a part of Lightning that jsonargparse could not build, or "" for a class of the user."""
    other = "[ -]*(Does not|Subtypes|Errors|Expected|Import path|Not a|Problem with|Given|a class|a dict|Subclass)"
    reasons = [line.strip(" -") for line in message.splitlines() if not re.match(other, line)]
    path = re.search(r"class_path[ =]'lightning\.[\w.]*\.(\w+)'", message)
    return f"{path[1]}: {' '.join(reasons)}" if path and reasons else ""


def given_values(part: Any, flag: str = "--") -> Iterator[tuple[str, Any]]:
    """Yield flag and value of each argument of a class, in a configuration, whose value is not the default."""
    if isinstance(part, list):
        for item in part:
            yield from given_values(item, flag)
    elif isinstance(part, dict):
        kind = part.get("class_path")
        defaults = {name: one.default for name, one in parameters_of(resolve_name(kind)).items()} if kind else {}
        for name, value in (part.get("init_args") or {} if kind else part).items():
            if kind and value is not None and str(value) != str(defaults.get(name)):
                yield _shorten(f"{flag}{name}"), value
            yield from given_values(value, f"{flag}{name}.")


def explain_wrong_value(error: BaseException, config: Namespace) -> str:
    """Return one line if the text of the error is about a value of the configuration, or "": then it may be a bug.

    It has the value, or the name of the argument which has the value in the function that raised the error.
    """
    text, (frame, module) = str(error), frames_of(error)[0]
    words = {word.strip(".") for word in re.findall(r"-?[\w.]+", text)}
    count = frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
    passed = [(name, frame.f_locals.get(name)) for name in frame.f_code.co_varnames[:count]]
    is_check = isinstance(error, ValueError | AssertionError)
    is_ours = module.startswith(("lit_training.", "lit_models.", "datamodules."))  # says already what to change
    for flag, value in () if is_ours else given_values(config.as_dict()):
        same = {name for name, one in passed if type(one) is type(value) and str(one) == str(value)}
        has_value = bool(same) and str(value) in words
        if isinstance(value, str):
            has_value = re.search(rf"(?<![\w.]){re.escape(value)}(?![\w(])", text) is not None
        if has_value or (is_check and same & words):
            kind = "" if is_check else f"{type(error).__name__}: "
            return f"{flag} {value}: {kind}{text.rstrip('.')}; change this value"
    return ""


def _unknown_argument(name: str, flag: str, class_path: str, parser: LightningArgumentParser) -> str:
    if class_path in ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer"):
        return f"{flag}.{name} needs the name of an optimizer: --optimizer Adam {flag}.{name} VALUE"
    if not class_path:
        return f"there is no setting {name}: {_suggest_flag(name, parser)}"
    arguments = set(inspect.signature(resolve_name(class_path)).parameters) - {"self", "params"}
    if name in arguments & set(ARGUMENTS_FROM_RUN):
        return f"{flag}.{name}: the run sets {name} itself, with {ARGUMENTS_FROM_RUN[name]}: leave {flag}.{name} out"
    hint = suggest(name, sorted(arguments - set(ARGUMENTS_FROM_RUN))).replace("did you mean ", f"did you mean {flag}.")
    return f"{flag}.{name}: {class_path.rpartition('.')[2]} has no argument {name}; {hint}"


def _suggest_flag(flag: str, parser: LightningArgumentParser) -> str:
    full_names: dict[str, str] = {}
    for key, classes in (("model", MODELS), ("data", DATA_MODULES)):  # for example --lr gives --model.lr
        for klass in classes.values():
            full_names |= {argument: f"{key}.{argument}" for argument in inspect.signature(klass).parameters}
    for action in actions_of(parser):
        names = [option.removeprefix("--") for option in action.option_strings]
        full_names |= {name: name for name in [*names, action.dest.removeprefix("trainer.").split(".")[0]]}
    full_names |= FLAGS_BY_COMMON_NAME
    closest = closest_name(flag.strip("-").removeprefix("trainer."), full_names, cutoff=0.7)
    full_name = full_names.get(closest or "")
    is_other = full_name not in (None, flag.strip("-"))
    return f"did you mean --{full_name}?" if is_other else "see --help, or --help_all for every flag"


def _class_names(key: str, message: str) -> list[str]:
    if key in ("model", "data"):
        return list(MODELS if key == "model" else DATA_MODULES)
    if key == "lr_scheduler":
        return [schedule.__name__ for schedule in SCHEDULES]
    base = re.search(r"(lightning\.[\w.]+)", message)
    classes = set((resolve_name(base[1]) if base else Optimizer).__subclasses__())
    while further := {subclass for klass in classes for subclass in klass.__subclasses__()} - classes:
        classes |= further
    return sorted({klass.__name__ for klass in classes if not klass.__name__.startswith("_")})


def _shorten(flag: str) -> str:
    return flag.replace("--trainer.", "--").replace(".init_args", "").replace("seed_everything", "seed")
