"""Run the same command lines in two checkouts of this project and print every difference in the results.

    python tests/stress/compare_trees.py OLD NEW [--only REGEX] [--jobs 1] [--keep DIR]

Each command runs in a new process of this Python, with the packages and scripts of one checkout. Each checkout has its
own folder and caches. These must be equal: exit codes; stdout; the last line of stderr if a command fails; names and
contents of the written files. Weights and optimizers must be bit-equal. Times, speeds, dates and paths of the checkouts
are ignored. Runs that are killed and resumed must also give the same result as an uninterrupted run of OLD.

The script prints a line per case, then a summary. The exit code is 1 if there is a difference. --only selects the cases
whose "group: case" matches, and earlier cases that they need. --keep keeps all written files, stdout and stderr in a
new folder DIR. compare_trees.yaml lists the cases and the expected differences.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

TABLE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
COMMAND_SECONDS = 300.0
"""Time limit of a command."""
FIRST_RESUME_POINT_SECONDS = 10.5
"""Time after which a run of this project saves its first resume point."""


class Tree(NamedTuple):
    """A checkout, its work folder, the data of both checkouts, and a limit for commands at the same time."""

    path: Path
    work: Path
    data: Path
    slots: threading.Semaphore
    case: str = ""

    def command(self, line: str) -> list[str]:
        for word, text in {**TABLE["words"], "DATA": str(self.data), "TREE": str(self.path)}.items():
            line = re.sub(rf"\b{word}\b", text, line)
        name, *arguments = shlex.split(line)
        script = self.path / "scripts" / name
        if not script.exists():
            script = script.with_name(TABLE["renamed"].get(name, name))
        return [sys.executable, str(script), *arguments]

    def start(self, line: str, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
        caches = {name: str(self.work / "cache") for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME")}
        environment = {**os.environ, **caches, "PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1"}
        with log.open("wb") as out, log.with_suffix(".err").open("wb") as err:
            options: Any = {"stdout": out, "stderr": err, "env": environment, "start_new_session": True}
            return subprocess.Popen(self.command(line), cwd=folder, **options)

    def mask(self, text: str) -> str:
        text = text.replace(str(self.work), "WORK").replace(str(self.path), "TREE")
        for mask in TABLE["masks"]:
            if re.search(mask.get("case", ""), self.case):
                text = re.sub(mask["text"], mask["becomes"], text)
        return text


class Ended(NamedTuple):
    """Result of a command: exit code, stdout, last line of stderr, changed files (name -> path), aborted at the end."""

    code: int
    out: str
    last: str
    files: dict[str, Path]
    aborted: bool


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return path -> (time of the last change, size). Two such results show which files have changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(files)}


def run(tree: Tree, line: str, folder: Path, kill: str = "", all_files: bool = False) -> Ended:
    """Run a command to its end, or stop it with ``kill``. With ``all_files``, also return the unchanged files."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {} if all_files else files_in(folder)
    log = folder.with_name(f"{folder.name}.{len(list(folder.parent.glob(f'{folder.name}.*.out')))}.out")
    with tree.slots:
        process = tree.start(line, folder, log)
        try:
            if kill:
                stop(process, folder, log, kill)
            code = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            code = -999
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    after = files_in(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    names = {re.sub(r"tfevents.*", "tfevents", str(path.relative_to(folder))): path for path in changed}
    out, err = (tree.mask(file.read_text(errors="replace")) for file in (log, log.with_suffix(".err")))
    last = f"\n{err.strip()}".splitlines()[-1]
    aborted = (code, last) == (-signal.SIGABRT, TABLE["abort"])
    return Ended(0 if aborted else code, out, last, names, aborted)


def stop(process: "subprocess.Popen[bytes]", folder: Path, log: Path, kill: str) -> None:
    """Stop a training run: with SIGTERM after its first epoch, or with SIGKILL after its first resume point.

    For SIGKILL, pause the run until it is time for a resume point. Otherwise a short run would end before.
    """
    slept, end = False, time.monotonic() + COMMAND_SECONDS
    while process.poll() is None and time.monotonic() < end:
        trained = re.search(r"epoch +1/", log.read_text(errors="replace"))
        if kill == "TERM" and trained:
            return process.send_signal(signal.SIGTERM)
        if kill == "KILL" and any(folder.glob("lightning_logs/*/checkpoints/**/last.ckpt")):
            return os.killpg(process.pid, signal.SIGKILL)
        if trained and not slept:
            process.send_signal(signal.SIGSTOP)
            time.sleep(FIRST_RESUME_POINT_SECONDS)
            process.send_signal(signal.SIGCONT)
            slept = True
        time.sleep(0.005)


# --- comparison ---------------------------------------------------------------------------------------------------


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Yield the differences between two nested structures of plain values and tensors. Compare tensors bit by bit."""
    if type(old) is not type(new):
        yield f"{where}: {old!r:.60} / {new!r:.60}"
    elif isinstance(old, torch.Tensor):
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            yield f"{where}: {old.dtype} {tuple(old.shape)} / {new.dtype} {tuple(new.shape)}"
        elif not torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (old, new))):
            yield f"{where}: values differ, by {float((old.double() - new.double()).abs().max()):.2g} at most"
    elif isinstance(old, dict):
        for key in dict.fromkeys([*old, *new]):
            if key not in old or key not in new:
                yield f"{where}.{key}: only in {'OLD' if key in old else 'NEW'}"
            else:
                yield from differences(old[key], new[key], f"{where}.{key}")
    elif isinstance(old, (list, tuple)):
        if len(old) != len(new):
            yield f"{where}: {len(old)} / {len(new)} entries"
        for number, pair in enumerate(zip(old, new, strict=False)):
            yield from differences(*pair, f"{where}[{number}]")
    elif repr(old) != repr(new):  # repr, so that NaN equals NaN
        a, b = str(old), str(new)
        start = max(0, len(os.path.commonprefix([a, b])) - 20)  # noqa: RUF071 (the strings are no paths)
        yield f"{where}: {a[start : start + 80]!r} / {b[start : start + 80]!r}"


def content(tree: Tree, name: str, path: Path) -> Any:
    """Return the contents of a file as plain values, without the parts that differ between any two runs."""
    if not path.exists():
        return "removed"
    if re.search(TABLE["unopened"], name):
        return "there"
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return {key: checkpoint.get(key) for key in TABLE["checkpoint"]}
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return [{key: tree.mask(str(value)) for key, value in row.items() if key not in TABLE["timed"]} for row in rows]
    try:
        text = tree.mask(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return f"{path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if path.name == "run.json":  # keep the first start: later starts depend on the interruptions
        return [{**start, "git": 0, "from_step": 0} for start in json.loads(text)][:1]
    return text.splitlines()


def compare(old: tuple[Tree, Ended], new: tuple[Tree, Ended], resumed: bool = False) -> Iterator[str]:
    """Yield all differences. For resumed runs, leave out differences that depend on the time of the stop."""
    (old_tree, a), (new_tree, b) = old, new
    if a.code != b.code:
        yield f"exit code: {a.code} / {b.code} ({(b if b.code else a).last})"
    elif a.code:
        yield from differences(a.last, b.last, "stderr")
    # of a resumed run, compare only the final result
    mine, theirs = (re.sub(r"(?s).*?\n\n(?=val_|train_)", "", e.out) if resumed else e.out for e in (a, b))
    yield from differences(mine.splitlines(), theirs.splitlines(), "stdout")
    names, others = ({name for name in ended.files if not re.search(TABLE["unsure"], name)} for ended in (a, b))
    for name in sorted(names ^ others):
        yield f"{name}: written only by {'OLD' if name in names else 'NEW'}"
    for name in sorted(names & others):
        pair = content(old_tree, name, a.files[name]), content(new_tree, name, b.files[name])
        yield from differences(*pair, name.rpartition("/")[2])


# --- cases --------------------------------------------------------------------------------------------------------


def run_in_both(trees: list[Tree], line: str, place: str, **options: Any) -> list[tuple[Tree, Ended]]:
    """Run a command in both checkouts at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda tree: (tree, run(tree, line, tree.work / place, **options)), trees))


def compare_case(trees: list[Tree], group: str, case: str) -> tuple[list[str], int]:
    """Return the differences of a case, and how many of its commands aborted at the end."""
    code, kill, line = re.findall(r"^(?:(\d) |(KILL|TERM) )?(.*)", TABLE["cases"][group][case])[0]
    place, found = group, []
    if kill:
        place, line = f"{group}/{re.sub('[^A-Za-z]+', '_', case)}", f"{line} --resume auto"
        stopped = run_in_both(trees, line, place, kill=kill)
        if (codes := [ended.code for _, ended in stopped]) != [-9 if kill == "KILL" else 143] * 2:
            found.append(f"{kill}: exit codes {codes} ({stopped[0][1].last} / {stopped[1][1].last})")
    pair = run_in_both(trees, line, place, all_files=bool(kill))
    if pair[0][1].code != int(code or 0):
        found.append(f"exit code of OLD: {pair[0][1].code}, not {code or 0} ({pair[0][1].last})")
    found += compare(pair[0], pair[1], resumed=bool(kill))
    if kill:
        found += [f"did not resume: {ended.out[:60]!r}" for _, ended in pair if "resume  " not in ended.out]
        whole = trees[0], run(trees[0], line, trees[0].work / f"{place} undisturbed")
        for name, resumed in zip(("OLD", "NEW"), pair, strict=True):
            found += [f"{name} resumed, not as undisturbed: {told}" for told in compare(whole, resumed, resumed=True)]
    return found, sum(ended.aborted for _, ended in pair)


def write_photo(path: Path, seed: int) -> None:
    """Write an image of noise with a disc. Its name makes it gray, rotated by EXIF or transparent."""
    from PIL import Image

    draw = torch.Generator().manual_seed(seed)
    height, width, y, x = torch.randint(75, 125, (4,), generator=draw).tolist()
    pixels = torch.randint(0, 80, (height, width, 3), generator=draw) + torch.tensor([20 * (seed % 5), 60, 10])
    far = (torch.arange(height)[:, None] - y // 2) ** 2 + (torch.arange(width) - x // 2) ** 2
    pixels[far < 400] += torch.tensor([80, 10, 40 * (seed % 3)])
    picture = Image.frombytes("RGB", (width, height), pixels.to(torch.uint8).numpy().tobytes())
    exif = Image.Exif()
    exif[0x0112] = 6 if path.stem == "turned" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.convert("L" if path.stem == "grey" else picture.mode).save(path, exif=exif)


def write_data(data: Path) -> None:
    """Write the data of the cases: photos with and without splits, broken photos, CIFAR10 of noise, tables, YAML."""
    folders = {"flat": (9, 7, 6), "split/train": (10, 7), "split/val": (4, 4)}
    for order, (folder, counts) in enumerate(folders.items()):
        for label, (name, count) in enumerate(zip(("ants", "bees", "wasps"), counts, strict=False)):
            for number in range(count):
                write_photo(data / folder / name / f"{number}.jpg", 1000 * order + 5 * number + label)
        for number, name in enumerate(("ants/turned.jpg", "bees/grey.jpg", "bees/alpha.png"), start=900):
            write_photo(data / folder / name, 1000 * order + number)
    whole = (data / "flat" / "ants" / "0.jpg").read_bytes()
    (data / "flat" / "bees" / "copy.jpg").write_bytes((data / "flat" / "bees" / "1.jpg").read_bytes())
    for place in ("flat/ants", "split/train/ants", "unreadable/ants"):
        (data / place).mkdir(parents=True, exist_ok=True)
        (data / place / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "unreadable" / "ants" / "empty.jpg").touch()
    (data / "flat" / "notes.txt").write_text("no photo")
    draw = torch.Generator().manual_seed(0)
    (data / "cifar").mkdir()
    for split, count in (("train", 50_000), ("test", 10_000)):
        pixels = torch.randint(0, 256, (count * 3072,), dtype=torch.uint8, generator=draw)
        labels = (torch.arange(count) % 10).to(torch.uint8)
        (data / "cifar" / f"cifar10-{split}.uint8").write_bytes(torch.cat([pixels, labels]).numpy().tobytes())
    rows = torch.randn(4, 1000, generator=draw)
    (data / "rows.csv").write_text("\n".join(",".join(map(repr, row)) for row in rows.tolist()))
    (data / "bad.csv").write_text("1,2,3\n1,a,3\n")
    head = str({"descr": "<f4", "fortran_order": False, "shape": tuple(rows.shape)}).ljust(117) + "\n"
    (data / "rows.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + head.encode() + rows.neg().numpy().tobytes())
    (data / "broken.yaml").write_text("model: [")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new"):
        parser.add_argument(name, metavar=name.upper(), type=Path, help="a checkout")
    parser.add_argument("--only", metavar="REGEX", default="", help='select cases by "group: case"')
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="commands at the same time (default 1)")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="a new folder for all written files")
    chosen = parser.parse_args()
    slots, print_lock, total = threading.Semaphore(chosen.jobs), threading.Lock(), Counter[str]()

    def run_group(group: str) -> None:
        cases = TABLE["cases"][group]
        selected = [case for case in cases if re.search(chosen.only, f"{group}: {case}")]
        if any(re.search(r"latest|version_", cases[case]) for case in selected):
            selected = list(cases)[: list(cases).index(selected[-1]) + 1]
        for case in selected:
            name, start = f"{group}: {case}", time.monotonic()
            found, aborted = compare_case([tree._replace(case=name) for tree in trees], group, case)
            known = [entry for entry in TABLE["expected"] if re.search(entry["case"], name)]
            left = [told for told in found if not any(re.search(entry["what"], told) for entry in known)]
            verdict = "DIFFERENT" if left else "expected" if found else "equal"
            firsts = {re.split(r"[:[]|(?<=ckpt)\.", told)[0]: told[:200] for told in reversed(left)}  # 1 per file
            told = "; ".join([*firsts.values()][::-1]) + f"; {len(left)} in all" * (len(left) > len(firsts))
            with print_lock:
                total[verdict] += 1
                total["aborted at the end"] += aborted
                why = told or "; ".join(entry["reason"] for entry in known if found)
                print(f"{verdict:<9}  {name}  ({time.monotonic() - start:.0f} s)  {why}".rstrip(), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        place = (chosen.keep or Path(temporary)).resolve()
        (place / "data").mkdir(parents=True)
        write_data(place / "data")
        paths = {"old": chosen.old, "new": chosen.new}
        trees = [Tree(path.resolve(), place / name, place / "data", slots) for name, path in paths.items()]
        with ThreadPoolExecutor(len(TABLE["cases"])) as pool:
            list(pool.map(run_group, TABLE["cases"]))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = ", ".join(f"{total[name]} {name}" for name in ("equal", "expected", "DIFFERENT", "aborted at the end"))
    print(f"\n{counts}; {time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processors")
    return int(total["DIFFERENT"] > 0)


if __name__ == "__main__":
    began = time.monotonic()
    sys.exit(main())
