"""Noise, sizes and the split against brute force and counts; what `load` makes of its arguments."""
import inspect
import io
import sys

import imageio.v3 as iio
import numpy as np
import pytest

import data
from conftest import write_folder


def brute_dilate(mask, n):
    """Every pixel looks at every pixel of the mask."""
    points = np.argwhere(mask)
    out = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        out[y, x] = any((y - v) ** 2 + (x - u) ** 2 <= n * n for v, u in points)
    return out


@pytest.mark.parametrize("n", [0, 1, 3, 13, 40])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.98, 1.0])
def test_morphology_is_the_euclidean_disc(n, share):
    mask = np.random.default_rng(n).random((19, 23)) < share
    before = mask.copy()
    assert np.array_equal(data.dilate(mask, n), brute_dilate(mask, n))
    assert np.array_equal(data.erode(mask, n), ~brute_dilate(~mask, n))
    assert np.array_equal(mask, before)


@pytest.mark.parametrize("noise, band", [
    (0.0, (5, 13)), (0.25, (1, 8)), (0.5, (5, 13)), (0.75, (3, 3)), (1.0, (1, 2))])
def test_noise_touches_exactly_the_given_share(noise, band):
    clean = data.phantoms(11, size=64)[1]
    noisy, operation, pixels = data.corrupt_labels(clean, noise, band, seed=3)
    assert (pixels > 0).sum() == round(noise * 11) == sum(o != "" for o in operation)
    for before, after, kind, n in zip(clean, noisy, operation, pixels):
        expected = {"": before, "erode": data.erode(before, n), "dilate": data.dilate(before, n)}
        assert np.array_equal(after, expected[kind])
        assert n == 0 or band[0] <= n <= band[1]


def test_noise_is_drawn_once_from_the_seed_and_uses_the_whole_band():
    clean = np.zeros((400, 1, 4, 4), bool)
    _, first, pixels = data.corrupt_labels(clean, 1.0, (5, 13), 0)
    assert first == data.corrupt_labels(clean, 1.0, (5, 13), 0)[1]
    assert first != data.corrupt_labels(clean, 1.0, (5, 13), 1)[1]
    assert set(pixels) == set(range(5, 14)) and 150 < first.count("erode") < 250


def test_other_kinds_of_noise_do_what_their_names_say():
    clean = data.phantoms(6)[1]
    kinds = {kind: data.corrupt_labels(clean, 1.0, (6, 6), 0, kind)[0] for kind in data.DAMAGE}
    for before, after in zip(clean, kinds["shift"]):  # all classes 6 pixels away in one direction
        centers = [[np.argwhere(mask).mean(axis=0) for mask in masks] for masks in (before, after)]
        moves = np.round(np.subtract(*centers)).astype(int)
        assert (moves == moves[0]).all() and 5 <= np.hypot(*moves[0]) <= 7
        assert after.sum() == before.sum()
    assert ((kinds["omit"].any(axis=(2, 3)).sum(axis=1)) == 2).all()
    rim = kinds["dilate"] & ~kinds["erode"]
    assert (kinds["ragged"] == clean)[~rim].all()  # off by no more than n
    assert 0.3 < kinds["ragged"][rim].mean() < 0.7
    _, operation, pixels = data.corrupt_labels(clean, 1.0, (6, 6), 0, "shift-omit-ragged")
    assert set(operation) == {"shift", "omit", "ragged"}
    assert [n == 0 for n in pixels] == [kind == "omit" for kind in operation]  # it has no radius


def test_noise_is_made_on_the_256_grid_at_every_size():
    small, large = (data.load("phantoms:6", size, 1.0, "8-8", 0)[1] for size in (64, 128))
    assert small.operation == large.operation and np.array_equal(small.pixels, large.pixels)
    halved = data.resize(large.labels, 64)
    assert 2 * (small.labels & halved).sum() / (small.labels.sum() + halved.sum()) > 0.98


def test_split_has_the_papers_proportion_and_keeps_groups_together():
    names = [str(i) for i in range(247)]
    train, test = data.split(names, 0)
    assert (len(train), len(test)) == (165, 82)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(247))
    assert not np.array_equal(train, data.split(names, 1)[0])
    train, test = data.split(names, 0, ".$")  # groups of one last digit
    assert not {names[i][-1] for i in train} & {names[i][-1] for i in test}


@pytest.mark.parametrize("old, new", [(256, 128), (100, 64), (50, 80), (7, 7)])
def test_resize_keeps_constants_ramps_and_areas(old, new):
    assert (data.resize(np.full((old, old), 77, np.uint8), new) == 77).all()
    ramp = data.resize(np.tile(np.arange(old, dtype=np.uint8), (old, 1)), new)[0].astype(float)
    middle = slice(new // 4, -new // 4)
    expected = (np.arange(new) + 0.5) * old / new - 0.5
    assert np.abs(ramp - expected)[middle].max() <= 0.51  # rounding to uint8
    y, x = np.mgrid[:old, :old]
    disc = (y - old / 2) ** 2 + (x - old / 2) ** 2 < (old / 3) ** 2
    assert data.resize(disc, new).mean() == pytest.approx(disc.mean(), abs=2 / new)


def test_phantoms_are_reproducible_and_complete():
    images, masks = data.phantoms(20)
    again = data.phantoms(10)
    assert np.array_equal(images[:10], again[0]) and np.array_equal(masks[:10], again[1])
    assert images.shape == (20, 256, 256) and masks.shape == (20, 3, 256, 256)
    assert masks.any(axis=(2, 3)).all()
    share = masks.mean(axis=(0, 2, 3))  # of the image, near JSRT's 31 %, 9 % and 2 %
    assert 0.25 < share[0] < 0.37 and 0.06 < share[1] < 0.12 and 0.01 < share[2] < 0.03
    lungs, clavicles = masks[:, 0], masks[:, 2]
    assert (lungs & clavicles).sum() / clavicles.sum() > 0.7  # classes overlap
    assert images[lungs].mean() < images[~lungs].mean() - 30  # lungs are dark


# ------------------------------------------------------------------------------ load: its arguments

LOAD = {"size": 64, "noise": 0, "band": "5-13", "seed": 0}
IMAGES, MASKS = data.phantoms(12)
HEARTS = MASKS[:, 1]


@pytest.fixture
def folder(tmp_path):
    """Twelve phantoms as a folder: images/ and heart/."""
    write_folder(tmp_path / "folder", IMAGES, heart=HEARTS)
    return tmp_path / "folder"


def test_only_phantoms_noise_and_clean_labels_are_known(folder):
    assert data.load("phantoms:6", **LOAD)[1].known and data.load("phantoms:6", **LOAD)[2].known
    assert not data.load(folder, **LOAD)[1].known
    assert data.load(folder, **{**LOAD, "noise": 0.5})[1].known
    assert set(data.LOAD) == set(inspect.signature(data.load).parameters)


def test_redrawn_labels_are_measured_on_and_the_others_are_taken_as_right(folder, capsys):
    before = data.load(folder, **LOAD)[1:]
    (folder / "fixed").mkdir()
    for i, radius in ((3, 1), (5, 9)):  # Dice with the given label: above and below 0.9
        iio.imwrite(folder / f"fixed/case{i}.png", data.dilate(HEARTS[i], radius).astype(np.uint8))
    after = data.load(folder, **LOAD, clean=["fixed/{}.png"])[1:]
    assert "--clean fixed/{}.png: 2 of 12 cases; the others are right" in capsys.readouterr().out
    for old, new in zip(before, after):
        assert new.names == old.names and np.array_equal(old.labels, new.labels) and new.known
        assert new.operation == ["given" if name == "case5" else "" for name in new.names]
        changed = (old.clean != new.clean).any(axis=(1, 2, 3))
        assert list(changed) == [name in ("case3", "case5") for name in new.names]
    with pytest.raises(data.BadInput, match="case{}.png is there for 3, 5; these must be cases"):
        data.load(folder, **LOAD, clean=["fixed/case{}.png"])
    iio.imwrite(folder / "fixed/case3_b.png", HEARTS[3].astype(np.uint8))
    with pytest.raises(data.BadInput, match="the same in each pattern of heart"):
        data.load(folder, **LOAD, masks=["heart=heart/{}.png"],
                  clean=["heart=fixed/{}.png", "heart=fixed/{}_b.png"], skip_unpaired=True)


def test_own_test_images_are_not_split(folder, capsys):
    patterns = {"images": "images/case{}.png", "masks": ["heart=heart/case{}.png"]}
    own = {"test_images": "images/case1{}.png", "test_masks": ["heart=heart/case1{}.png"]}
    classes, training, test = data.load(folder, **LOAD, **patterns, **own)
    assert len(training.names) == 12 and sorted(test.names) == ["test/0", "test/1"]
    assert np.array_equal(test.labels[0], training.labels[training.names.index("10")])
    assert "2 test image(s) identical to a training image: test/0 = 10" in capsys.readouterr().out


def test_own_split_folders_are_named_and_groups_are_searched_in_the_path(folder, capsys):
    for name in ("images", "heart"):
        for part in ("train", "test", "p9"):
            (folder / part / name).mkdir(parents=True)
        for i in range(12):
            part = ("train", "test", "p9")[i % 3]
            (folder / name / f"case{i}.png").rename(folder / part / name / f"case{i}.png")
    patterns = {"images": "*/images/{}.png", "masks": ["*/heart/{}.png"]}
    _, training, test = data.load(folder, **LOAD, **patterns, group=r"^\w+(?=/)")
    assert "images of test, train: split anew at random; --test-images" in capsys.readouterr().out
    parts = [{int(name[4:]) % 3 for name in cases.names} for cases in (training, test)]
    assert len(parts[0]) == 2 and len(parts[1]) == 1 and not parts[0] & parts[1]


def test_excluded_names_leave_the_training_set_and_no_other_changes(folder, tmp_path, capsys):
    _, training, test = data.load(folder, **LOAD)
    rows = "".join(f"{i},{name}\n" for i, name in enumerate([*training.names[:2], test.names[0]]))
    (tmp_path / "bad.csv").write_text("place,name\n" + rows)
    _, fewer, same = data.load(folder, **LOAD, exclude=tmp_path / "bad.csv")
    assert fewer.names == training.names[2:] and same.names == test.names
    printed = capsys.readouterr().out
    assert "--exclude: 6 of 8 training cases left; 1 of the names are test cases" in printed
    (tmp_path / "bad.txt").write_text("\n".join(training.names[:2]) + "\n\n")
    assert data.load(folder, **LOAD, exclude=tmp_path / "bad.txt")[1].names == fewer.names


ARGUMENTS = [  # wrong arguments, and what the one line says
    ({"group": "("}, r"--group \(: no regular expression"),
    ({"group": "q"}, "--group q: must match in images/case0.png, too"),
    ({"group": "images"}, "1 cases or groups: images; a split needs three"),
    ({"test_images": "images/{}.png"}, "--test-images and --test-masks go together"),
    ({"test_images": "images/{}.png", "test_masks": ["heart/{}.png"], "group": "c"}, "not with"),
    ({"test_images": "images/{}.png", "test_masks": ["a=heart/{}.png"]}, "test masks of a; "),
    ({"clean": ["lungs=heart/{}.png"]}, "pattern of --clean needs CLASS= of one"),
    ({"exclude": "names.txt"}, "--exclude .*names.txt: 1 names, unknown: nobody; 8 of 8 train"),
]


@pytest.mark.parametrize("wrong, message", ARGUMENTS)
def test_arguments_are_checked_before_reading(wrong, message, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "open_image", None)
    (tmp_path / "names.txt").write_text("nobody")
    with pytest.raises(data.BadInput, match=message):
        data.load(folder, **{**LOAD, **wrong})


@pytest.mark.parametrize("source, masks", [
    ("phantoms:0", None), ("phantoms:x", None), ("phantoms:100000", None), ("phantoms:3", ["{}"])])
def test_phantoms_are_counted_and_take_no_patterns(source, masks):
    with pytest.raises(data.BadInput, match="write phantoms, or phantoms:N .* without options"):
        data.read(source, masks=masks)


def test_digest_tells_what_changed():
    _, cases = data.load_all("phantoms:4", 64)
    before = data.digest(cases)
    assert before == data.digest(data.load_all("phantoms:4", 64)[1])
    assert before != data.digest(cases._replace(names=["a", *cases.names[1:]]))
    assert before != data.digest(cases, cases)
    cases.labels[2, 1, 30, 30] ^= True
    assert before != data.digest(cases)


@pytest.mark.parametrize("terminal, expected", [
    (True, "reading 2/4\rreading 3/4\r" + 60 * " " + "\r"), (False, "reading 2/4\n")])
def test_progress_is_silent_for_two_seconds_on_a_terminal_and_for_thirty_elsewhere(
        terminal, expected, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    clock = iter([0, 0.5, 1.5, 30.5, 30.5, 31.5, 31.5])
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(data.time, "monotonic", lambda: next(clock))
    assert list(data.progress("abcd", "reading")) == list("abcd")
    assert stream.getvalue() == expected
