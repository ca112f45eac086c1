"""Look for what is wrong with a folder of photos: ``python scripts/check.py DIR``."""

import json
import sys

from lit_training.cli.arguments import Parser, at_least

DESCRIPTION = (
    "Find what is wrong with a folder of photos before a network learns from it. Exit code 0: nothing found, 1: "
    "findings, 2: the folder cannot be read."
)
NAMED = 3  # examples in the table


def main(arguments: list[str] | None = None) -> int:
    parser = Parser("check.py", DESCRIPTION)
    parser.add_argument("dir", metavar="DIR", help="the folder, as given to fit.py --data")
    parser.add_argument("--json", action="store_true", help="write JSON with every file's name instead of a table")
    parser.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that open files (default: one a core)"
    )
    chosen = parser.parse_args(arguments)

    from datamodules.photos.check import ADVICE, findings, to_document  # here: a wrong flag need not wait for numpy
    from datamodules.photos.find import find_photos
    from datamodules.text import plural, printable
    from lit_training.errors import one_line_errors
    from lit_training.text import print_table, progress_bar

    with one_line_errors("check.py"):
        with progress_bar("examining") as progress:
            used, found = findings(find_photos(chosen.dir), num_workers=chosen.workers, progress=progress)
        if chosen.json:
            print(json.dumps(to_document(used, found), indent=1))
            return bool(found)
        what = f"{plural(len(used.paths), 'picture')} in {plural(len(used.class_names), 'class', 'classes')}"
        print(what if found else f"{what}: nothing found")
        body: list[list[str | list[str]]] = []
        for finding in found:
            first = [printable(" = ".join(item)) for item in finding.items[:NAMED]]
            first += ["..."] * (len(finding.items) > NAMED)
            body.append([finding.kind, f"{len(finding.items):,}", first, ADVICE[finding.kind]])
        if body:
            print_table(["finding", "count", "first ones", "what to do"], body)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
