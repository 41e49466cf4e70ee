"""Morphology, noise, sizes, folders and phantoms against brute force and counts."""
import shutil

import imageio.v3 as iio
import numpy as np
import pytest

import data


def brute_dilate(mask, n):
    """Every pixel looks at every pixel of the mask."""
    points = np.argwhere(mask)
    out = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        out[y, x] = any((y - v) ** 2 + (x - u) ** 2 <= n * n for v, u in points)
    return out


def brute_erode(mask, n):
    """A pixel stays when no background pixel inside the picture lies within n."""
    background = np.argwhere(~mask)
    out = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        out[y, x] = all((y - v) ** 2 + (x - u) ** 2 > n * n for v, u in background)
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 13, 40])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_morphology_is_the_euclidean_disc(n, share):
    mask = np.random.default_rng(n).random((19, 23)) < share
    before = mask.copy()
    assert np.array_equal(data.dilate(mask, n), brute_dilate(mask, n))
    assert np.array_equal(data.erode(mask, n), brute_erode(mask, n))
    assert np.array_equal(mask, before)


def test_border_neither_grows_nor_eats():
    full, corner = np.ones((9, 9), bool), np.zeros((9, 9), bool)
    corner[:5, :5] = True
    assert data.erode(full, 4).all()
    assert data.erode(corner, 2)[:3, :3].all() and not data.erode(corner, 2)[3:].any()


def test_morphology_takes_stacks():
    masks = np.random.default_rng(0).random((2, 3, 12, 14)) < 0.1
    assert np.array_equal(data.dilate(masks, 2)[1, 2], data.dilate(masks[1, 2], 2))


@pytest.mark.parametrize("noise, band", [(0.0, (5, 13)), (0.25, (1, 8)), (0.5, (5, 13)), (0.75, (3, 3)), (1.0, (1, 2))])
def test_noise_touches_exactly_the_given_share(noise, band):
    clean = data.phantoms(11, size=64)[1]
    noisy, operation, pixels = data.corrupt_labels(clean, noise, band, seed=3)
    assert (pixels > 0).sum() == round(noise * 11) == sum(o != "" for o in operation)
    for i in range(11):
        if operation[i]:
            assert band[0] <= pixels[i] <= band[1]
            for c in range(3):
                assert np.array_equal(noisy[i, c], getattr(data, operation[i])(clean[i, c], int(pixels[i])))
        else:
            assert pixels[i] == 0 and np.array_equal(noisy[i], clean[i])


def test_noise_is_drawn_once_from_the_seed_and_uses_the_whole_band():
    clean = np.zeros((400, 1, 4, 4), bool)
    first, second, other = (data.corrupt_labels(clean, 1.0, (5, 13), seed)[1:] for seed in (0, 0, 1))
    assert first[0] == second[0] and np.array_equal(first[1], second[1])
    assert first[0] != other[0]
    assert set(first[1]) == set(range(5, 14))
    assert 150 < first[0].count("erode") < 250


def test_other_kinds_of_noise_do_what_their_names_say():
    clean = data.phantoms(6)[1]
    kinds = {kind: data.corrupt_labels(clean, 1.0, (6, 6), 0, kind)[0] for kind in data.DAMAGE}
    assert np.array_equal(kinds["erode"], data.erode(clean, 6))
    assert np.array_equal(kinds["dilate"], data.dilate(clean, 6))
    for before, after in zip(clean, kinds["shift"]):  # the same masks, all classes 6 pixels away in one direction
        moves = {tuple(np.round(np.argwhere(a).mean(axis=0) - np.argwhere(b).mean(axis=0)).astype(int))
                 for b, a in zip(before, after)}
        assert len(moves) == 1 and 5 <= np.hypot(*moves.pop()) <= 7 and after.sum() == before.sum()
    assert ((kinds["omit"].any(axis=(2, 3)).sum(axis=1)) == 2).all()
    assert ((kinds["omit"] == clean).all(axis=(2, 3)).sum(axis=1) == 2).all()
    rim = kinds["dilate"] & ~kinds["erode"]
    assert (kinds["ragged"] == clean)[~rim].all()  # off by no more than n
    assert 0.3 < kinds["ragged"][rim].mean() < 0.7 and (kinds["ragged"] != clean).any(axis=(2, 3)).all()
    _, operation, pixels = data.corrupt_labels(clean, 1.0, (6, 6), 0, "shift-omit-ragged")
    assert set(operation) == {"shift", "omit", "ragged"}
    assert all((n == 0) == (kind == "omit") for n, kind in zip(pixels, operation))  # nothing was moved by n pixels


def test_noise_is_made_on_the_256_grid_at_every_size():
    small, large = (data.load("phantoms:6", size, 1.0, "8-8", 0)[1] for size in (64, 128))
    assert small.operation == large.operation and np.array_equal(small.pixels, large.pixels)
    halved = data.resize(large.labels, 64)
    assert 2 * (small.labels & halved).sum() / (small.labels.sum() + halved.sum()) > 0.98


def test_split_has_the_papers_proportion():
    train, test = data.split(247, 0)
    assert (len(train), len(test)) == (165, 82)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(247))
    assert not np.array_equal(train, data.split(247, 1)[0])


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
    assert images.shape == (20, 256, 256) and images.dtype == np.uint8
    assert masks.shape == (20, 3, 256, 256) and masks.dtype == bool
    assert masks.any(axis=(2, 3)).all()
    share = masks.mean(axis=(0, 2, 3))  # of the picture, near JSRT's 31 %, 9 % and 2 %
    assert 0.25 < share[0] < 0.37 and 0.06 < share[1] < 0.12 and 0.01 < share[2] < 0.03
    lungs, clavicles = masks[:, 0], masks[:, 2]
    assert (lungs & clavicles).sum() / clavicles.sum() > 0.7  # classes overlap
    assert images[lungs].mean() < images[~lungs].mean() - 30  # lungs are dark


def write_folder(root, images, masks):
    """images: name -> array; masks: class folder -> name -> array."""
    for folder, files in {"images": images, **masks}.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, array in files.items():
            iio.imwrite(root / folder / name, array)


def test_folder_comes_back_as_written(tmp_path):
    images, masks = data.phantoms(5)
    names = ["b.png", "a.png", "10.png", "9.png", "C.png"]
    pictures = masks.astype(np.uint8) * 255
    write_folder(tmp_path, dict(zip(names, images)), {organ: dict(zip(names, pictures[:, c]))
                                                      for c, organ in enumerate(data.CLASSES)})
    classes, stems, got_images, got_masks = data.read_folder(tmp_path)
    assert classes == data.CLASSES
    assert sorted(stems) == ["10", "9", "C", "a", "b"]
    for stem, image, mask in zip(stems, got_images, got_masks):
        i = names.index(stem + ".png")
        assert np.array_equal(image, images[i]) and np.array_equal(mask, masks[i])


def write_cases(root, size=64, count=4, classes=("heart",)):
    """A small good folder: `count` phantoms, one folder of masks per class."""
    images, masks = data.phantoms(count, size=size)
    files = {c: {f"case{i}.png": masks[i, data.CLASSES.index(c)].astype(np.uint8) * 255 for i in range(count)}
             for c in classes}
    write_folder(root, {f"case{i}.png": images[i] for i in range(count)}, files)
    return images, masks


def test_left_and_right_are_merged_and_other_classes_keep_their_names(tmp_path):
    images, masks = write_cases(tmp_path, 256, 3, ("heart", "lungs"))
    (tmp_path / "heart").rename(tmp_path / "left ventricle")
    (tmp_path / "lungs").rename(tmp_path / "Left Lung")
    right = {f"case{i}.png": masks[i, 2].astype(np.uint8) for i in range(3)}  # 0 and 1
    write_folder(tmp_path, {}, {"masks/right_lung": right})
    classes, _, _, got = data.read_folder(tmp_path)
    assert classes == ("lungs", "left ventricle")  # only the paper's classes are merged
    assert np.array_equal(got[:, 0], masks[:, 0] | masks[:, 2]) and np.array_equal(got[:, 1], masks[:, 1])


def test_jsrt_archives_as_they_unzip(tmp_path):
    """Raw 16-bit big-endian inverted images beside GIF masks at half the size, in folders of their own."""
    images, masks = data.phantoms(3)
    folder = tmp_path / "scratch" / "fold1" / "masks"
    (tmp_path / "All247images").mkdir()
    for i, name in enumerate(("JPCLN001", "JPCLN002", "JPCNN001")):
        raw = (4095 - images[i].astype(">u2") * 16).repeat(8, axis=0).repeat(8, axis=1)
        raw.astype(">u2").tofile(tmp_path / "All247images" / f"{name}.IMG")
        for organ, mask in (("left lung", masks[i, 0]), ("right clavicle", masks[i, 2]), ("heart", masks[i, 1])):
            (folder / organ).mkdir(parents=True, exist_ok=True)
            iio.imwrite(folder / organ / f"{name}.gif", mask.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8) * 255)
    classes, names, got_images, got_masks = data.read_folder(tmp_path)
    assert classes == data.CLASSES and names == ["JPCLN001", "JPCLN002", "JPCNN001"]
    assert np.abs(got_images.astype(int) - images).max() <= 40 and np.abs(got_images.astype(int) - images).mean() < 3
    overlap = 2 * (got_masks & masks).sum(axis=(2, 3)) / (got_masks.sum(axis=(2, 3)) + masks.sum(axis=(2, 3)))
    assert overlap.min() > 0.97


def test_label_pictures_with_grey_values(tmp_path):
    images, masks = data.phantoms(3)
    pictures = np.where(masks[:, 1], 85, np.where(masks[:, 0], 255, 170)).astype(np.uint8)  # miniJSRT's values
    names = [f"{i}.png" for i in range(3)]
    write_folder(tmp_path, dict(zip(names, images)), {"Masks": dict(zip(names, pictures))})
    classes, _, _, got = data.read_folder(tmp_path, values=data.grey_values("Heart=85,lung=255"))
    assert classes == ("lungs", "heart")
    assert np.array_equal(got[:, 0], pictures == 255) and np.array_equal(got[:, 1], pictures == 85)


@pytest.mark.parametrize("kind", ["16 bit", "rgb", "rgba", "palette", "bmp", "tif"])
def test_pictures_of_every_kind_are_read_as_grey(kind, tmp_path):
    grey = data.phantoms(1, size=64)[0][0]
    path = tmp_path / ("x." + (kind if kind in ("bmp", "tif") else "gif" if kind == "palette" else "png"))
    array = {"16 bit": grey.astype(np.uint16) * 200, "rgb": np.stack([grey] * 3, axis=-1),
             "rgba": np.stack([grey] * 3 + [np.full_like(grey, 9)], axis=-1)}.get(kind, grey)
    iio.imwrite(path, array, plugin="pillow")
    spread = 255 / (int(grey.max()) - int(grey.min()))  # 16-bit pictures are stretched to their own range
    expected = (grey - float(grey.min())) * spread if kind == "16 bit" else grey
    assert np.abs(data.read_image(path).astype(float) - expected).max() <= 1


def test_masks_and_images_may_lie_apart(tmp_path):
    images, masks = write_cases(tmp_path / "a")
    (tmp_path / "a" / "heart").rename(tmp_path / "truth")
    (tmp_path / "a" / "images").rename(tmp_path / "a" / "radiographs")
    classes, names, _, _ = data.read_folder(tmp_path / "a", tmp_path / "truth")
    assert classes == ("foreground",) and len(names) == 4


def test_clean_labels_of_another_folder_are_what_is_measured_on(tmp_path):
    write_cases(tmp_path / "noisy", 256, 6)
    write_cases(tmp_path / "clean", 256, 6)
    path = tmp_path / "noisy" / "heart" / "case3.png"
    iio.imwrite(path, data.dilate(iio.imread(path) > 0, 9).astype(np.uint8))
    _, training, test = data.load(str(tmp_path / "noisy"), 64, 0, "5-13", 0, clean=str(tmp_path / "clean"))
    for cases in (training, test):
        assert cases.noisy.tolist() == [name == "case3" for name in cases.names]
        assert [(a != b).any() for a, b in zip(cases.labels, cases.clean)] == cases.noisy.tolist()


def all_masks(root, change):
    """Changes every heart mask."""
    for path in (root / "heart").iterdir():
        iio.imwrite(path, change(iio.imread(path)))


DAMAGE = {  # what is done to a good folder: what the one line must say
    "image without mask": (lambda r: (r / "heart/case1.png").unlink(), "no mask in heart for the image.s. case1;"),
    "mask without image": (lambda r: (r / "images/case1.png").unlink(), "no image for .* in heart called case1;"),
    "no images": (lambda r: shutil.rmtree(r / "images"), "found 0 images"),
    "no masks": (lambda r: shutil.rmtree(r / "heart"), "0 folders of masks"),
    "zero bytes": (lambda r: (r / "images/case1.png").write_bytes(b""), "case1.png: cannot be read"),
    "truncated": (lambda r: (r / "images/case1.png").write_bytes((r / "images/case1.png").read_bytes()[:300]),
                  "case1.png: cannot be read"),
    "text": (lambda r: (r / "heart/case1.png").write_text("no picture"), "case1.png: cannot be read"),
    "IMG of the wrong size": (lambda r: (r / "images/case1.png").rename(r / "images/case1.img"), "8388608"),
    "same name twice": (lambda r: shutil.copy(r / "images/case1.png", r / "images/CASE1.tif"),
                        "another image has the same name"),
    "same mask twice": (lambda r: shutil.copy(r / "heart/case1.png", r / "heart/case1.bmp"), "another mask in heart"),
    "other shape": (lambda r: iio.imwrite(r / "heart/case1.png", np.eye(40, 80, dtype=np.uint8)), "must be alike"),
    "grey mask": (lambda r: iio.imwrite(r / "heart/case1.png", np.arange(4096).reshape(64, 64).astype(np.uint8)),
                  "256 grey values"),
    "colour mask": (lambda r: iio.imwrite(r / "heart/case1.png", np.random.default_rng(0).integers(
        0, 2, (64, 64, 3)).astype(np.uint8) * 255), "8 grey values"),
    "other grey": (lambda r: iio.imwrite(r / "heart/case1.png", np.eye(64, dtype=np.uint8) * 7), "values .0, 7, 255."),
    "one side": (lambda r: (shutil.copytree(r / "heart", r / "left lung"), shutil.copytree(
        r / "heart", r / "right_lung"), (r / "right_lung/case1.png").unlink()), "no mask in right_lung for .* case1;"),
    "two folders of a class": (lambda r: (shutil.copytree(r / "heart", r / "lung"), shutil.copytree(
        r / "heart", r / "lungs")), "lung, lungs all seem to hold lungs"),
    "two classes in a mask": (lambda r: iio.imwrite(r / "heart/case1.png", np.eye(64, dtype=np.uint8) * 2 + 1),
                              "2 grey values"),
    "inverted": (lambda r: all_masks(r, lambda m: 255 - m), "seem inverted"),
    "all empty": (lambda r: all_masks(r, np.zeros_like), "every mask of heart is empty or full"),
    "all full": (lambda r: all_masks(r, lambda m: np.full_like(m, 255)), "every mask of heart is empty or full"),
    "constant image": (lambda r: iio.imwrite(r / "images/case1.png", np.full((64, 64), 9, np.uint8)), "constant"),
    "NaN image": (lambda r: ((r / "images/case1.png").unlink(), iio.imwrite(
        r / "images/case1.tif", np.full((64, 64), np.nan, np.float32), plugin="pillow")), "not finite"),
    "one image": (lambda r: [p.unlink() for p in r.rglob("case[123].png")], "1 images; three at least"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_folders_are_refused_in_one_line(damage, tmp_path):
    write_cases(tmp_path)
    data.read_folder(tmp_path)  # it is good before
    change, message = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(data.BadInput, match=message) as error:
        data.read_folder(tmp_path)
    assert "\n" not in str(error.value) and (str(tmp_path) in str(error.value))


def test_all_offenders_are_named_at_most_ten(tmp_path):
    write_cases(tmp_path, 32, 15)
    for i in range(12):
        (tmp_path / "heart" / f"case{i}.png").unlink()
    with pytest.raises(data.BadInput, match="case0, case1, case10, case11, .* and 2 more"):
        data.read_folder(tmp_path)


def test_too_many_classes(tmp_path):
    write_cases(tmp_path)
    for k in range(20):
        shutil.copytree(tmp_path / "heart", tmp_path / f"organ{k}")
    with pytest.raises(data.BadInput, match="at most 20"):
        data.read_folder(tmp_path)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(data.BadInput, match="no such folder"):
        data.read_folder(tmp_path / "nowhere")
