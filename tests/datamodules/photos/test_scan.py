"""The scan gives the same result with any number of processes, survives a crash and remembers good pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.photos import scan
from datamodules.photos.decode import Inspection
from datamodules.photos.find import LeftOut, find_photos
from datamodules.photos.scan import first_with_same_content, scan_photos
from tests.support.photos import BROKEN, JPEG, encoded, examine_leniently, write_cats_and_dogs, write_file


def test_first_with_same_content() -> None:
    hashes = np.array([b"7", b"0", b"9", b"7", b"1", b"9", b"7"], "S64")
    assert first_with_same_content(hashes).tolist() == [0, 1, 2, 0, 4, 2, 0]


def test_result_does_not_depend_on_workers(tmp_path: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cats_and_dogs(tmp_path, 80)
    for name, (data, _, _) in BROKEN.items():
        write_file(tmp_path / "cat" / name, data)
    listing = find_photos(tmp_path)
    monkeypatch.setattr(scan, "_MIN_BYTES_PER_PROCESS", 1)
    calls: list[tuple[int, int]] = []
    alone = scan_photos(listing, num_workers=0)
    (cache_root / "lit-classics").rename(cache_root / "away")
    many = scan_photos(listing, num_workers=3, progress=lambda *numbers: calls.append(numbers))
    assert list(many.listing.paths) == list(alone.listing.paths)
    assert np.array_equal(many.inspections, alone.inspections)
    assert np.array_equal(many.first_copies, alone.first_copies)
    assert many.bad == alone.bad
    assert len(many.bad) == len(BROKEN)
    assert calls == [(64, 173), (128, 173), (173, 173)]


def test_a_decoder_that_crashes_loses_only_its_own_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cats_and_dogs(tmp_path / "root", 40)
    write_file(root / "dog" / "crash.jpg", JPEG)
    fake = tmp_path / "worker.py"
    fake.write_text(
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "from datamodules.photos import scan\n"
        "real = scan.inspect_picture\n"
        "scan.inspect_picture = lambda path: os.abort() if path.name == 'crash.jpg' else real(path)\n"
        "scan._serve_requests()\n"
    )
    start = subprocess.Popen
    monkeypatch.setattr(scan.subprocess, "Popen", lambda command, **rest: start([sys.executable, str(fake)], **rest))
    monkeypatch.setattr(scan, "_MIN_BYTES_PER_PROCESS", 1)
    found = scan_photos(find_photos(root), num_workers=2)
    assert found.bad == [LeftOut("dog/crash.jpg", "damaged", "its decoder crashed")]
    assert len(found.listing.paths) == 80


def test_an_exception_in_a_worker_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        scan.subprocess, "Popen", lambda command, **rest: start([sys.executable, "-c", "input(); 1 / 0"], **rest)
    )
    monkeypatch.setattr(scan, "_MIN_BYTES_PER_PROCESS", 1)
    with pytest.raises(RuntimeError, match="a process that examines pictures failed"):
        scan_photos(find_photos(write_cats_and_dogs(tmp_path)), num_workers=2)


def test_second_scan_opens_only_what_changed(tmp_path: Path, cache_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "broken.jpg", b"")
    first = examine_leniently(tmp_path)
    opened: list[str] = []
    real = scan.inspect_picture

    def watched(path: Path) -> Inspection:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(scan, "inspect_picture", watched)
    second = examine_leniently(tmp_path)
    assert opened == ["broken.jpg"]
    assert second.report() == first.report()
    write_file(tmp_path / "dog" / "3.jpg", encoded(77, quality=30))
    opened.clear()
    examine_leniently(tmp_path)
    assert sorted(opened) == ["3.jpg", "broken.jpg"]
    (file,) = (cache_root / "lit-classics").iterdir()
    file.write_bytes(file.read_bytes()[:-100])  # damaged, so it is ignored
    opened.clear()
    assert examine_leniently(tmp_path).class_names == first.class_names
    assert len(opened) == 13


def test_the_scan_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write_file(tmp_path / "a file", b"")))
    assert len(examine_leniently(write_cats_and_dogs(tmp_path / "root")).paths) == 12


def test_an_interrupted_scan_keeps_its_results(tmp_path: Path, cache_root: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    listing = find_photos(write_cats_and_dogs(tmp_path, 40))
    with pytest.raises(KeyboardInterrupt):
        scan_photos(listing, progress=stop)
    (file,) = (cache_root / "lit-classics").iterdir()
    assert len(np.load(file)) == 64


def test_a_scan_of_some_files_keeps_the_results_of_the_others(tmp_path: Path, cache_root: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "broken.jpg", b"")
    listing = find_photos(tmp_path)
    scan_photos(listing)
    assert [file.path for file in scan_photos(listing.take(np.arange(7))).bad] == ["cat/broken.jpg"]
    (file,) = (cache_root / "lit-classics").iterdir()
    assert len(np.load(file)) == 12
