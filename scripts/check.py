"""Check a folder of photos: ``python scripts/check.py DIR``."""

import json
import sys

from lit_training.cli.arguments import Parser, at_least
from lit_training.errors import UsageError, one_line_errors

DESCRIPTION = (
    "Check a folder of photos: broken files, copies, wrong labels. Exit code 0: nothing found, 1: "
    "problems found, 2: the folder cannot be read."
)
MAX_EXAMPLES = 3


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("check.py", DESCRIPTION)
    parser.add_argument("dir", metavar="DIR", help="folder of photos to check")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--json", action="store_true", help="print JSON with all file names instead of text")
    action.add_argument("--labels", metavar="RUN", help="find wrong labels with the folds of RUN")
    action.add_argument("--apply", metavar="FILE", help="move files as this edited fixes.csv says")
    action.add_argument("--undo", action="store_true", help="move the files of the last --apply back")
    parser.add_argument("--workers", type=at_least(0), metavar="N", help="reader processes (default: one per core)")
    layout = "what the subfolders are (default: their names decide)"
    parser.add_argument("--data.layout", choices=("classes", "split"), dest="layout", help=layout)
    group = "photos that stay together (default: near)"
    parser.add_argument("--data.group", choices=("near", "exact", "none"), default="near", dest="group", help=group)
    group_by = "also those with the same match in their path"
    parser.add_argument("--data.group_by", metavar="REGEX", dest="group_by", help=group_by)
    chosen = parser.parse_args(arguments)

    from datamodules.photos.check import ADVICE, find_problems, to_document  # here, because --help needs no numpy
    from datamodules.photos.find import find_photos
    from datamodules.photos.fixes import move_files, undo_move
    from datamodules.text import plural, printable
    from lit_training.text import progress_bar

    try:
        if chosen.labels:
            from lit_training.trained.labels import report_wrong_labels  # here, because it imports torch

            return report_wrong_labels(find_photos(chosen.dir, chosen.layout), chosen.labels, chosen.workers) > 0
        if chosen.apply or chosen.undo:
            count = undo_move(chosen.dir) if chosen.undo else move_files(chosen.dir, chosen.apply, chosen.layout)
            print(f"{plural(count, 'file')} moved{' back' * chosen.undo}")
            return 0
    except OSError as error:
        raise UsageError(f"{error}: allow writing with chmod u+w, or copy the folder to another place") from error
    with progress_bar("examining") as progress:
        options = {"group": chosen.group, "group_by": chosen.group_by, "num_workers": chosen.workers}
        used, found = find_problems(find_photos(chosen.dir, chosen.layout), **options, progress=progress)
    if chosen.json:
        print(json.dumps(to_document(used, found), indent=1))
        return bool(found)
    summary = f"{plural(len(used.paths), 'picture')} in {plural(len(used.class_names), 'class', 'classes')}"
    print(summary if found else f"{summary}: nothing found")
    for finding in found:
        print(f"\n{finding.kind}: {len(finding.items):,}  ({ADVICE[finding.kind]})")
        for item in finding.items[:MAX_EXAMPLES]:
            print("  " + "\n    = ".join(map(printable, item)))
        if len(finding.items) > MAX_EXAMPLES:
            print("  ...")
    return bool(found)


if __name__ == "__main__":
    with one_line_errors("check.py"):
        sys.exit(main())
