"""The search for near duplicates, and the groups of pictures that stay together."""

from __future__ import annotations

import io
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from datamodules.photos import near
from datamodules.photos.check import find_problems
from datamodules.photos.find import VAL, find_photos
from datamodules.photos.near import SIZE, connect, find_near_pairs
from tests.support.photos import examine_leniently, names, refusal_of, write_file, write_pictures

COUNT = 60


def photo(seed: int, side: int = 200) -> Image.Image:
    """Return a picture whose frequencies have the strengths of a photo's: 1 / frequency ** 1.2."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))).clip(1 / side)
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(side, side)))
    values = np.fft.ifft2(noise / frequency**1.2).real
    gray = (128 + 45 * values / values.std()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX))


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 15, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def part(picture: Image.Image, left: float, top: float, share: float) -> Image.Image:
    width, height = picture.size
    x, y = round(left * share * width), round(top * share * height)
    return picture.crop((x, y, x + round(width * (1 - share)), y + round(height * (1 - share))))


KINDS = {
    "smaller": lambda p: p.resize((70, 90)),
    "compressed": lambda p: compressed(p, 20),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.6),
    "blurred": lambda p: p.filter(ImageFilter.GaussianBlur(2.5)),
    "noisy": noisy,
    "mirrored": ImageOps.mirror,
    "transverse": lambda p: p.transpose(Image.Transpose.TRANSVERSE),
    "crop": lambda p: part(p, 0.3, 0.8, 0.08),
    "crop of a mirror image": lambda p: part(ImageOps.flip(p), 0.6, 0.1, 0.07),
    "crop at a corner": lambda p: part(p, 1, 0, 0.1),
    "turn": lambda p: p.rotate(4.5, Image.Resampling.BILINEAR),
    "turn with white corners": lambda p: p.rotate(-5, Image.Resampling.BILINEAR, expand=True, fillcolor="white"),
    "framed": lambda p: ImageOps.expand(ImageOps.flip(p), 12, "black"),
}


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [photo(seed) for seed in range(COUNT)]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_copies_are_found_and_nothing_else(photos: list[Image.Image], kind: str) -> None:
    copies = [thumbnail(KINDS[kind](picture)) for picture in photos[: COUNT // 2]]
    pairs, _ = find_near_pairs(np.stack([*map(thumbnail, photos), *copies]))
    found = {tuple(sorted(pair)) for pair in pairs.T.tolist()}
    wanted = {(number, COUNT + number) for number in range(COUNT // 2)}
    assert not found - wanted
    assert len(found) >= 0.96 * len(wanted)
    if "crop" in kind:  # also if the copy comes first
        first = find_near_pairs(np.stack([*copies, *map(thumbnail, photos)]))[0]
        assert first.shape[1] >= 0.96 * len(wanted)


def test_frames_of_a_long_burst_are_one_group(photos: list[Image.Image]) -> None:
    frames = [thumbnail(noisy(photos[0].crop((i % 5, i // 5, 190 + i % 5, 190 + i // 5)))) for i in range(30)]
    pairs, _ = find_near_pairs(np.stack([*map(thumbnail, photos[1:]), *frames]))
    others = np.stack([np.arange(COUNT + 29)] * 2)
    assert set(connect(others, pairs)[COUNT - 1 :]) == {COUNT - 1}
    assert pairs.min() >= COUNT - 1


def test_several_copies_among_few_photos_are_one_group(photos: list[Image.Image]) -> None:
    """The nearest others of each are copies, so the distance is compared with that of a neighbor at a third."""
    copies = [thumbnail(change(photos[0])) for change in KINDS.values()]
    pairs, _ = find_near_pairs(np.stack([*map(thumbnail, photos[1:33]), *copies]))
    groups = connect(np.stack([np.arange(45)] * 2), pairs)
    assert set(groups[32:]) == {32}


def test_pictures_that_all_look_alike_are_not_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    align = mock.Mock(wraps=near._align)
    monkeypatch.setattr(near, "_align", align)
    digits = [thumbnail(Image.fromarray((image * 15.9).astype(np.uint8))) for image in load_digits().images[-1000:]]
    assert len(np.unique(find_near_pairs(np.stack(digits))[0])) <= 50
    aligned = sum(len(call.args[0]) for call in align.call_args_list)
    assert 10_000 < aligned < 20_000, "only pairs of mutual neighbors should be aligned, which is slow"


@pytest.mark.parametrize("count", [2, 3, 7, 16, 21])
def test_few_objects_cut_out_on_one_background_are_not_grouped_but_a_copy_is(count: int) -> None:
    across = np.linspace(-1, 1, 200)
    scans, sizes = [], np.random.default_rng(count).normal(1, 0.02, (count, 2))
    for seed in range(count):
        scan = 110 + (np.asarray(photo(seed + 40).convert("L"), float) - 128) / 3
        radius = np.hypot(*np.meshgrid(across / 0.8 / sizes[seed, 0], across / 0.9 / sizes[seed, 1]))
        scan[radius > 0.9], scan[radius > 1] = 220, 0  # the skull
        scans.append(Image.fromarray(scan.astype(np.uint8)))
    assert find_near_pairs(np.stack([*map(thumbnail, scans)]))[0].shape == (2, 0)
    if count > 6:  # also beside other photos, which are far
        assert find_near_pairs(np.stack([*map(thumbnail, scans), *map(thumbnail, map(photo, range(4)))]))[0].size == 0
    copy = thumbnail(ImageOps.mirror(scans[-1]))
    assert find_near_pairs(np.stack([*map(thumbnail, scans), copy]))[0].T.tolist() == [[count - 1, count]]


def test_a_changed_copy_among_few_photos_is_found(photos: list[Image.Image]) -> None:
    few = [*map(thumbnail, photos[:5]), thumbnail(KINDS["turn with white corners"](photos[3]))]
    assert find_near_pairs(np.stack(few))[0].T.tolist() == [[3, 5]]


@pytest.mark.parametrize("kind", ["turn with white corners", "framed", "crop at a corner"])
def test_the_middle_of_a_picture_is_compared_too(
    photos: list[Image.Image], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "NEIGHBORS", 1)  # as if there were many more photos
    copies = [thumbnail(KINDS[kind](picture)) for picture in photos[:30]]
    find_neighbors, found = near._find_neighbors, list[np.ndarray]()

    def remember(low: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances, others = find_neighbors(low, middle)
        found.append(others)
        return distances, others

    monkeypatch.setattr(near, "_find_neighbors", remember)
    find_near_pairs(np.stack([*map(thumbnail, photos), *copies]))
    nearest = found[0][COUNT:, 0]
    assert (nearest == np.arange(30)).mean() >= 0.9


def test_blank_pictures_and_even_gradients_are_not_near() -> None:
    ramp = np.linspace(0, 250, SIZE, dtype=np.uint8)
    plain = [np.full((SIZE, SIZE), value, np.uint8) for value in (0, 128, 255)]
    assert find_near_pairs(np.stack([*plain, *(np.tile(ramp // k, (SIZE, 1)) for k in (1, 2, 3))]))[0].shape == (2, 0)
    assert find_near_pairs(np.zeros((0, SIZE, SIZE), np.uint8))[0].shape == (2, 0)


def test_cells_find_the_same_pairs(photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [thumbnail(ImageOps.mirror(picture)) for picture in photos]
    thumbnails = np.stack([*map(thumbnail, photos), *copies])
    before, _ = find_near_pairs(thumbnails)
    monkeypatch.setattr(near, "MAX_IN_ONE_CELL", 100)
    monkeypatch.setattr(near, "_CELL_SIZE", 10)
    assert np.array_equal(find_near_pairs(thumbnails)[0], before)
    assert before.shape == (2, COUNT)


# --- groups and the split ------------------------------------------------------------


def write_copies(root: Path) -> Path:
    """Write 20 photos per class, each with a mirrored, smaller copy with bars that make it a square."""
    for number in range(40):
        folder = root / ("cat" if number % 2 else "dog")
        picture = photo(1000 + number, 96)
        for name, version in (
            ("a", picture),
            ("b", ImageOps.expand(ImageOps.mirror(picture).resize((90, 54)), (0, 18), "navy")),
        ):
            version.save(write_file(folder / f"{number}{name}.jpg", b""), quality=80)
    return root


def test_near_duplicates_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    write_copies(tmp_path)

    def divided(**options: object) -> int:
        val = {path.split("/")[1][:-5] for path in names(examine_leniently(tmp_path, **options), VAL)}
        train = {path.split("/")[1][:-5] for path in names(examine_leniently(tmp_path, **options), 0)}
        return len(val & train)

    photos = examine_leniently(tmp_path)
    assert photos.counts().tolist() == [[32, 32], [8, 8], [0, 0]]
    assert len(np.unique(photos.groups)) == 40
    assert photos.notes[1] == "80 pictures in 40 groups (--data.group near): each group is only in train or only in val"
    assert [divided(seed=seed) for seed in range(3)] == [0, 0, 0]
    assert min(divided(seed=seed, group="exact") for seed in range(3)) > 0


def test_many_copies_of_one_photo_stay_together(tmp_path: Path) -> None:
    """More than a picture has neighbors, and more than 20 % of the class."""
    write_pictures(tmp_path, {"cat": 40, "dog": 60})
    for number in range(120):
        comment = str(number).encode()  # so that no file equals another one
        photo(7, 120).save(tmp_path / "cat" / f"copy{number}.jpg", quality=70 + number % 25, comment=comment)
    photos = examine_leniently(tmp_path)
    is_copy = np.array(["copy" in path for path in photos.paths])
    assert len(np.unique(photos.groups[is_copy])) == 1
    assert len(np.unique(photos.splits[is_copy])) == 1
    assert not [note for note in photos.notes if "chain" in note]


def test_pairs_of_many_pictures_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "MIN_CACHED", 10)
    write_copies(tmp_path / "photos")
    first = examine_leniently(tmp_path / "photos").groups
    [file] = (Path(os.environ["XDG_CACHE_HOME"])).rglob("near-2-*.npy")
    with monkeypatch.context() as patch:
        patch.setattr(near, "_find_neighbors", lambda _: 1 / 0)  # the search is not repeated
        assert examine_leniently(tmp_path / "photos").groups.tolist() == first.tolist()
    file.write_bytes(file.read_bytes()[:-9])
    assert examine_leniently(tmp_path / "photos").groups.tolist() == first.tolist()


def test_group_by_joins_pictures_with_the_same_match(tmp_path: Path) -> None:
    write_pictures(tmp_path, {f"{name}/{name} p{patient}": 3 for name in ("cat", "dog") for patient in range(5)})
    photos = examine_leniently(tmp_path, group_by="p([0-9]+)/[01]")
    groups = dict(zip(photos.paths, photos.groups, strict=True))
    assert groups["cat/cat p2/0.jpg"] == groups["dog/dog p2/1.jpg"] != groups["cat/cat p2/2.jpg"]
    assert photos.counts()[VAL].tolist() == [3, 3]
    assert refusal_of(tmp_path, group_by="jpg") == (
        "--data.group_by jpg leaves no picture for validation: it joins 30 pictures into 1 group; use a pattern with "
        "more different matches"
    )
    assert refusal_of(tmp_path, group_by="patient") == (
        "--data.group_by patient matches no path such as cat/cat p0/0.jpg: change the pattern"
    )


def test_a_long_chain_is_reported_and_not_joined(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"cat": 10, "dog": 22})
    wide = photo(5, 320)
    for number in range(12):
        wide.crop((10 * number, 0, 200 + 10 * number, 200)).save(tmp_path / "cat" / f"frame{number:02}.png")
    photos = examine_leniently(tmp_path)
    assert len(np.unique(photos.groups)) == 44
    [note] = [note for note in photos.notes if "chain" in note]
    assert note.startswith(
        "12 pictures, 55% of class cat, are a chain: each looks like the next (cat/frame00.png, ...)"
    )
    _, findings = find_problems(find_photos(tmp_path))
    assert ("chains of look-alikes", [(note,)]) in findings
