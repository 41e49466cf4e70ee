"""Noise, sizes and the split against brute force and counts; what `load` makes of its arguments."""
import re

import imageio.v3 as iio
import numpy as np
import pytest

import data
from conftest import write_folder


IMAGES, MASKS = data.phantoms(12)
HEARTS = MASKS[:, 1]


def load(folder, **options):
    """Training and test Cases of a folder, small ones."""
    return data.load(data.Options(**{"data": folder, "size": 64, **options}))


def write_image(path, array):
    """Write gray values, or a mask as 0 and 1."""
    path.parent.mkdir(exist_ok=True)
    iio.imwrite(path, array.astype(np.uint8))


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


@pytest.mark.parametrize("noise, band", [(0, (5, 13)), (0.25, (1, 8)), (0.5, (3, 3)), (1, (1, 2))])
def test_noise_touches_exactly_the_given_share(noise, band):
    clean = data.phantoms(11, size=64)[1]
    noisy, operation, pixels = data.corrupt_labels(clean, noise, band, seed=3)
    assert operation == data.corrupt_labels(clean, noise, band, seed=3)[1]
    assert noise in (0, 1) or operation != data.corrupt_labels(clean, noise, band, seed=4)[1]
    assert (pixels > 0).sum() == round(noise * 11) == sum(o != "" for o in operation)
    for before, after, kind, n in zip(clean, noisy, operation, pixels):
        expected = {"": before, "erode": data.erode(before, n), "dilate": data.dilate(before, n)}
        assert np.array_equal(after, expected[kind])
        assert n == 0 or band[0] <= n <= band[1]


def test_other_kinds_of_noise_do_what_their_names_say():
    clean = MASKS[:6]
    kinds = {kind: data.corrupt_labels(clean, 1.0, (6, 6), 0, kind)[0] for kind in data.DAMAGE}
    for before, after in zip(clean, kinds["shift"]):  # all classes 6 pixels away in one direction
        centers = [[np.argwhere(mask).mean(axis=0) for mask in masks] for masks in (before, after)]
        moves = np.round(np.subtract(*centers)).astype(int)
        assert (moves == moves[0]).all() and 5 <= np.hypot(*moves[0]) <= 7
        assert after.sum() == before.sum()
    assert (kinds["omit"].any(axis=(2, 3)).sum(axis=1) == 2).all()
    for before, after in zip(clean, kinds["swap"]):
        assert [np.array_equal(after, other) for other in clean].count(True) == 1
        assert not np.array_equal(after, before)
    _, operation, pixels = data.corrupt_labels(clean, 1.0, (6, 6), 0, "shift-omit-swap")
    assert set(operation) == {"shift", "omit", "swap"}
    assert [n == 0 for n in pixels] == [kind != "shift" for kind in operation]  # no radius
    pixels = data.corrupt_labels(np.zeros((400, 1, 4, 4), bool), 1, (5, 13), 0)[2]
    assert set(pixels) == set(range(5, 14))
    with pytest.raises(data.BadInput, match="swap needs two images"):
        data.corrupt_labels(clean[:1], 1.0, (6, 6), 0, "swap")


def test_noise_is_made_on_the_256_grid_at_every_size():
    small, large = (load("phantoms:6", size=size, noise=1, band="8-8")[0] for size in (64, 128))
    assert small.operation == large.operation and np.array_equal(small.pixels, large.pixels)
    assert (small.labels ^ data.resize(large.labels, 64)).sum() < 0.03 * small.labels.sum()


def test_split_has_the_papers_proportion_and_keeps_groups_together(capsys):
    names = [str(i) for i in range(247)]
    train, test = data.split(names, 0)
    assert (len(train), len(test)) == (165, 82)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(247))
    assert not np.array_equal(train, data.split(names, 1)[0])
    train, test = data.split(names, 0, ".$")  # groups of one last digit
    assert not {names[i][-1] for i in train} & {names[i][-1] for i in test}
    assert capsys.readouterr().out == "--group: 10 groups, 7 of them for training\n"


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
    assert all(map(np.array_equal, data.phantoms(5), (IMAGES[:5], MASKS[:5])))
    assert IMAGES.shape == (12, 256, 256) and MASKS.shape == (12, 3, 256, 256)
    assert MASKS.any(axis=(2, 3)).all()
    share = MASKS.mean(axis=(0, 2, 3))  # of the image, near JSRT's 31 %, 9 % and 2 %
    assert 0.25 < share[0] < 0.37 and 0.06 < share[1] < 0.12 and 0.01 < share[2] < 0.03
    lungs, clavicles = MASKS[:, 0], MASKS[:, 2]
    assert (lungs & clavicles).sum() / clavicles.sum() > 0.7  # classes overlap
    assert IMAGES[lungs].mean() < IMAGES[~lungs].mean() - 30  # lungs are dark


@pytest.fixture
def folder(tmp_path):
    """Twelve phantoms as a folder: images/ and heart/."""
    write_folder(tmp_path / "folder", IMAGES, heart=HEARTS)
    return tmp_path / "folder"


def test_redrawn_labels_are_measured_on_and_the_others_are_taken_as_right(folder, capsys):
    before = load(folder)
    assert not before[0].known and load(folder, noise=0.5)[0].known and load("phantoms:6")[1].known
    for i, radius in ((3, 1), (5, 9)):  # Dice with the given label: above and below 0.9
        write_image(folder / f"fixed/case{i}.png", data.dilate(HEARTS[i], radius))
    after = load(folder, clean=["fixed/{}.png"])
    assert "--clean fixed/{}.png: 2 of 12 cases; the others are right" in capsys.readouterr().out
    for old, new in zip(before, after):
        assert new.names == old.names and np.array_equal(old.labels, new.labels) and new.known
        assert new.operation == ["given" if name == "case5" else "" for name in new.names]
        changed = (old.clean != new.clean).any(axis=(1, 2, 3))
        assert list(changed) == [name in ("case3", "case5") for name in new.names]
    assert data.digest(*before) != data.digest(*after) == data.digest(*after)
    write_image(folder / "fixed/case3_b.png", HEARTS[3])
    for clean in (["fixed/case{}.png"], ["fixed/{}.png", "fixed/{}_b.png"]):
        with pytest.raises(data.BadInput, match="CLASS= of one of heart, and the same cases in"):
            load(folder, clean=clean)


def test_own_test_images_are_not_split_and_what_they_share_is_told(folder, capsys):
    large = data.resize(IMAGES[:3], 400)  # a rescaled copy, the same image, and another
    for name, image in (("case0", large[0]), ("x", IMAGES[1]), ("case2", large[2, ::-1])):
        write_image(folder / f"new/{name}.png", image)
        write_image(folder / f"new/{name}_m.png", 0 * image)  # may be empty
    training, test = load(folder, test_images="new/{}.png", test_masks=["heart=new/{}_m.png"],
                          images="images/{}.png", masks=["heart=heart/{}.png"])
    assert len(training.names) == 12 and test.names == ["test/case0", "test/case2", "test/x"]
    assert ("3 test image(s) with the name of a training image, or nearly its content: test/case0 ="
            " case0, test/case2, test/x = case1; leave one of each") in capsys.readouterr().out


def test_frames_on_both_sides_are_told_and_the_hint_works_when_followed(folder, capsys):
    for path in [*folder.glob("*/*.png")]:
        video, frame = divmod(int(path.stem[4:]), 3)
        path.rename(path.with_name(f"v{video}_{frame:03}.png"))
    load(folder)
    hint = re.search(r'[1-9] pairs of consecutive names across the split, such as (v\d_)00\d and '
                     r'\1.*--group "(.*)", or', capsys.readouterr().out)
    training, test = load(folder, group=hint[2])
    assert not {name[:2] for name in training.names} & {name[:2] for name in test.names}
    assert "consecutive" not in capsys.readouterr().out


@pytest.mark.parametrize("text", [
    "{}\n{}.png\r\n {} \n\n", "place,name\n1,{}\n2,{}\n3,{}\n",  # perhaps from a spreadsheet:
    '"place";"name"\n"1";"{}"\n"2";"{}"\n"3";"{}"\n', "place\tname\n1\t{}\n2\t{}\n3\t{}\n"])
def test_excluded_names_leave_and_the_split_stays(text, folder, capsys):
    training, test = load(folder)
    names = [*training.names[:2], test.names[0]]
    (folder / "bad.txt").write_text(text.format(*names), encoding="utf-8-sig")
    fewer, fewer_test = load(folder, exclude=folder / "bad.txt")
    assert fewer.names == training.names[2:] and fewer_test.names == test.names[1:]
    assert "--exclude: 6 training and 3 test cases left" in capsys.readouterr().out
