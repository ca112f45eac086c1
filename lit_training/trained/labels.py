"""Rank the photos whose label the out-of-fold predictions of a run contradict, and propose how to correct them."""

from pathlib import Path

import numpy as np
import torch

from datamodules import Preprocessing
from datamodules.files import write_spreadsheet
from datamodules.photos.dataset import eval_transform, read_pixels
from datamodules.photos.find import TEST, Listing
from datamodules.photos.fixes import FIX_COLUMNS, KEEP
from datamodules.photos.scan import scan_photos
from datamodules.text import command, plural, print_note, printable
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.folder import newest_usable_run, relative_path, run_folder
from lit_training.runs.hashes import recorded
from lit_training.runs.layout import FIXES, OUT_OF_FOLD, SPLIT, WRONG_LABELS
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.statistics import find_label_issues
from lit_training.text import print_table, progress_bar

MAX_SHOWN = 30  # pictures in the table and in the contact sheet
SHEET = Preprocessing(image_size=160, resize="pad")


def report_wrong_labels(listing: Listing, run: str, num_workers: int | None = None) -> int:
    """Print the photos whose label is probably wrong, and return their number. Write fixes.csv and a contact sheet.

    The label of a photo is that of its folder now, also if moved. An existing fixes.csv of the run stays as it is.
    """
    folder = Path(run).expanduser()
    if run == "latest":
        folder = newest_usable_run(".", lambda path: (path / OUT_OF_FOLD).is_file(), f"{OUT_OF_FOLD} (--folds 5)")
    folder = relative_path(run_folder(folder)) if folder.is_file() else folder
    if not (folder / OUT_OF_FOLD).is_file():
        fit = command("fit.py", "--data", listing.root, "--folds", 5)
        raise UsageError(f"{run} has no {OUT_OF_FOLD}, which folds write: {fit}")
    with progress_bar("examining") as progress:  # files that cannot be read do not count
        listing = scan_photos(listing, num_workers=num_workers, progress=progress).listing
    judged = read_out_of_fold(folder / OUT_OF_FOLD).average_repeats()
    names, places = judged.class_names, judged.rows_in(listing, folder / SPLIT)
    own = [listing.class_names[listing.labels[place]] if place >= 0 else "" for place in places]
    rows = np.flatnonzero([name in names for name in own])
    others = np.delete(listing.splits, places[places >= 0])  # of pictures that the run did not have
    if missing := len(places) - len(rows) + (others != TEST).sum():
        print_note(f"{plural(missing, 'picture')} not judged: only in {folder} or only in {listing.root}")
    paths, probabilities = listing.paths[places[rows]], judged.probabilities[rows]
    labels = np.array([names.index(own[row]) for row in rows], int)
    wrong = find_label_issues(labels, probabilities)
    print(f"{len(wrong):,} of {plural(len(rows), 'label')} may be wrong")
    if not len(wrong):
        return 0
    answers = [(labels[n], probabilities[n].argmax(), probabilities[n].max()) for n in wrong]
    table = [[paths[n], names[a], names[b], f"{p:.4f}", KEEP] for n, (a, b, p) in zip(wrong, answers, strict=True)]
    print_table(FIX_COLUMNS[:4], [row[:4] for row in table[:MAX_SHOWN]])
    transform, shown = eval_transform(SHEET), paths[wrong[:MAX_SHOWN]]
    pictures = torch.stack([transform(read_pixels(listing.root / path)) for path in shown]) / 255
    with recorded(folder, folder):
        figures.draw_mistakes(pictures, names, answers[:MAX_SHOWN], shown).savefig(folder / WRONG_LABELS)
        if (folder / FIXES).exists():
            print_note(f"{folder / FIXES} exists and stays as it is: rename it to get a new one")
        else:
            write_spreadsheet(folder / FIXES, [FIX_COLUMNS, *table])
            print(printable(f"written     {folder / FIXES}"))
    print(printable(f"written     {folder / WRONG_LABELS}"))
    return len(wrong)
