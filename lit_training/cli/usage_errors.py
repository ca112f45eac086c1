"""Say in one line what jsonargparse says in many: the wrong word, the reason, the nearest name."""

import ast
import inspect
import re
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer

from lit_training.cli.flags import DATA, MODELS
from lit_training.cli.schedules import SCHEDULES
from lit_training.runs.lightning_internals import actions_of
from lit_training.text import nearest, suggest

KINDS = {
    "bool": ("true or false", "true"),
    "int": ("a whole number", "3"),
    "float": ("a number", "0.1"),
    "PositiveInt": ("a whole number above 0", "3"),
    "PositiveFloat": ("a number above 0", "0.5"),
}
"""Python type -> how it is called, an example."""
ELSEWHERE = {"epochs": "max_epochs", "learning_rate": "model.lr", "gpus": "devices", "seed": "seed"}
"""What other programs, or people, call it -> what it is called here."""


class Facts:
    """What can be read off a message of jsonargparse: the flag, the value and what was expected instead."""

    def __init__(self, message: str, parser: LightningArgumentParser) -> None:
        self.message, self.parser = message, parser
        self.keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)":', message)))
        self.flag = _short("--" + ".".join(self.keys))
        self.owner = next(reversed(re.findall(r"given class_path '([^']+)':", message)), "")
        self.name = self.owner.rpartition(".")[2]
        values = re.findall(r"(?:Given value|Got value|import path string|to float|base 10): (.*)", message)
        values += re.findall(r": (\S+) does not conform", message)
        self.value = next((v.strip("'") for v in values if not v.startswith(("NestedArg(", "Namespace("))), "")
        expected = message.split("Given value")[0]
        self.kinds = [kind for kind in KINDS if re.search(rf"<class '{kind}'>|Not of type {kind}:", expected)]
        if self.keys == ["seed_everything"] or "float" in self.kinds:
            self.kinds = self.kinds[-1:]

    @property
    def choices(self) -> list[str]:
        literals = re.findall(r"Literal(\[[^]]*\])", self.message)
        names = [*dict.fromkeys(str(name) for text in literals for name in ast.literal_eval(text))]
        return names + ["true", "false"] * (bool(names) and "bool" in self.kinds)

    def class_hint(self) -> str:
        return suggest(self.value, _class_names(self.keys[-1], self.message))

    def flag_hint(self, flag: str) -> str:
        """The flag, or a setting of a configuration, that is most like an unknown one."""
        known = {option.removeprefix("--") for action in actions_of(self.parser) for option in action.option_strings}
        known |= {action.dest.removeprefix("trainer.").split(".")[0] for action in actions_of(self.parser)}
        return _suggest_flag(flag.strip("-").removeprefix("trainer."), known)


SENTENCES: list[tuple[str, Callable[[re.Match[str], Facts], Any]]] = [
    (r"[Uu]nrecognized arguments?: (-[^\s=]*)", lambda m, f: f"there is no flag {m[1]}: {f.flag_hint(m[1])}"),
    (r"[Uu]nrecognized arguments?: ([^\s=]*)", lambda m, f: f"{m[1]} follows no flag: leave it out, or see --help"),
    (
        r"--(\w+)\.help: .*: (\S+)$",
        lambda m, f: f"there is no --{m[1]} {m[2]}: {suggest(m[2], _class_names(m[1], f.message))}",
    ),
    (
        r"argument ([^\s/:]+)\S*: expected one argument",
        lambda m, f: f"{_short(m[1])} needs a value: {_short(m[1])} VALUE",
    ),
    (r"(?:Option|does not accept option) '([^']+)'", lambda m, f: _option_error(m[1], f)),
    (
        r"arguments are required: ((\w+).*)",
        lambda m, f: (
            f"{f.flag} {f.name} also needs "
            f"{' and '.join(f'{f.flag}.{name.strip()}' for name in m[1].split(','))}: {f.flag}.{m[2]} VALUE"
        ),
    ),
    (
        r"Unable to load config",
        lambda m, f: f"{f.flag} stands before a dot and a name: {f.flag}.max_epochs 3, or --max_epochs 3",
    ),
    (r"Parser key", lambda m, f: None if f.value else f"{f.flag} needs a value: {f.flag} VALUE"),
    (r"Literal\[", lambda m, f: f"{f.flag} {f.value}: {suggest(f.value, f.choices)}"),
    (
        "",
        lambda m, f: (
            f.kinds
            and f"{f.flag} {f.value} is not {' or '.join(KINDS[kind][0] for kind in f.kinds)}: "
            f"{f.flag} {KINDS[f.kinds[-1]][1]}"
        ),
    ),
    (
        "",
        lambda m, f: (
            len(f.keys) > 1
            and f"{f.flag} {f.value} is not what {f.name} takes: --{f.keys[0]}.help {f.name} shows what it does"
        ),
    ),
    (
        r"Parser key.*?(No module named [^\n]*|does not correspond to a subclass of \w+)",
        lambda m, f: f"{f.flag} {f.value} cannot be used ({m[1]}): {f.class_hint()}",
    ),
    (
        r"Parser key",
        lambda m, f: f"there is no {f.flag} {f.value}: {f.class_hint()}",
    ),
]
"""(pattern, what is said of a match); None or "" passes on to the next. The first answer is printed."""


def parse_error(message: str, parser: LightningArgumentParser) -> str:
    """One line out of jsonargparse's many."""
    facts = Facts(message, parser)
    for pattern, sentence in SENTENCES:
        found = re.search(pattern, message, re.DOTALL if pattern.startswith("Parser key.*") else 0)
        if found and (said := sentence(found, facts)):
            return said
    return message


def _option_error(name: str, facts: Facts) -> str:
    """A setting that a class, or the command line, does not have."""
    flag, owner = facts.flag, facts.owner
    if owner in ("torch.optim.Optimizer", "torch.optim.optimizer.Optimizer"):
        return f"{flag}.{name} belongs to an optimizer that is not named: --optimizer Adam {flag}.{name} VALUE"
    if not owner:
        return f"there is no setting {name}: {facts.flag_hint(name)}"
    arguments = {n for n in inspect.signature(resolve_name(owner)).parameters if n not in ("self", "params")}
    hint = suggest(name, sorted(arguments)).replace("did you mean ", f"did you mean {flag}.")
    return f"{flag}.{name}: {facts.name} has no argument {name}; {hint}"


def _suggest_flag(name: str, known: set[str]) -> str:
    spelled: dict[str, str] = {}
    for key, classes in (("model", MODELS), ("data", DATA)):  # --lr is --model.lr
        for klass in classes.values():
            spelled |= {argument: f"{key}.{argument}" for argument in inspect.signature(klass).parameters}
    spelled |= {flag: flag for flag in sorted(known)} | ELSEWHERE
    near = nearest(name, spelled, cutoff=0.7)
    return f"did you mean --{spelled[near]}?" if near else "see --help, or --help_all for every flag"


def _class_names(key: str, message: str) -> list[str]:
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


def _short(flag: str) -> str:
    return flag.replace("--trainer.", "--").replace(".init_args", "").replace("seed_everything", "seed")
