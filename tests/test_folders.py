"""Folders as people have them: patterns, values, formats, and what the reader says about each."""
import io
import os
import re
import shlex
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

import data
from conftest import ROOT

NUMBERS = (1, 2, 10)  # three cases; 1 is not 10


def noise(i, size=64):
    """The image of case i: noise, no two alike."""
    return np.random.default_rng(i).integers(0, 256, (size, size)).astype(np.uint8)


def disc(i, part="all", size=64):
    """The mask of case i: a disc in a place of its own, or the left or right half of it."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask = (x - 0.3 - 0.04 * i) ** 2 + (y - 0.7 + 0.03 * i) ** 2 < 0.04
    sides = {"all": True, "left": x < 0.3 + 0.04 * i, "right": x >= 0.3 + 0.04 * i}
    return mask & sides[part]


def two_values(i, left, right):
    """The disc of case i with one value on the left and another on the right."""
    return disc(i, "left") * np.uint8(left) + disc(i, "right") * np.uint8(right)


def colored(mask, color):
    """An RGB image, black but for the mask."""
    return mask[..., np.newaxis] * np.array(color, dtype=np.uint8)


def write(path, array, palette=None, **options):
    """Write an array as an image; a bool mask as 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array)
    if palette:
        image.putpalette(palette)
    image.save(path, **options)


def write_cases(root, path="heart/{}.png", mask=disc, numbers=NUMBERS, **options):
    """A folder with images/N.png and the masks mask(N), for each number N."""
    for i in numbers:
        write(root / f"images/{i}.png", noise(i))
        write(root / path.format(i), mask(i), **options)


def read(root, **reading):
    """All cases of a folder at the size at which they are compared."""
    return data.read(data.Options(data=root, size=256, **reading))


def check(root, numbers=NUMBERS, classes=("foreground",), part="all", **reading):
    """Read a folder; every image must come with its own mask. Returns the Cases."""
    cases = read(root, **reading)
    assert cases.classes == classes and len(cases.names) == len(numbers)
    for image, labels in zip(cases.images, cases.labels):
        distances = [np.abs(image - data.resize(noise(i), 256).astype(int)).sum() for i in numbers]
        mask = data.resize(disc(numbers[int(np.argmin(distances))], part), 256)
        assert (labels.any(axis=0) ^ mask).sum() < 0.04 * mask.sum()
    return cases


def test_patterns_of_the_page_are_patterns_and_find_their_files(tmp_path):
    page = (ROOT / ".github" / "DATA.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.*) \| `--images (.*)` \|$", page, re.MULTILINE))
    for options in rows.values():
        assert all(text[:2] == "--" or data.Pattern(text) for text in shlex.split(options))
    for i in NUMBERS:
        write(tmp_path / f"benign/benign ({i}).png", noise(i))
        write(tmp_path / f"benign/benign ({i})_mask.png", disc(i, "left"))
        write(tmp_path / f"benign/benign ({i})_mask_1.png", disc(i, "right"))
    images, _, masks = shlex.split(rows["BUSI"])
    check(tmp_path, classes=("tumor",), images=images, masks=[masks])


def test_jsrt_archives_are_read_as_they_unzip(tmp_path):
    """Raw 16-bit big-endian inverted images beside GIF masks at half the size."""
    images, masks = data.phantoms(3)
    (tmp_path / "All247images").mkdir()
    for i in range(3):
        raw = (4095 - images[i].astype(">u2") * 16).repeat(8, axis=0).repeat(8, axis=1)
        raw.astype(">u2").tofile(tmp_path / f"All247images/JPCLN{i}.IMG")
        for organ, mask in zip(("left lung", "heart", "right clavicle"), masks[i]):
            write(tmp_path / f"scratch/fold{i % 2}/masks/{organ}/JPCLN{i}.gif",
                  mask.repeat(4, axis=0).repeat(4, axis=1))
    cases = read(tmp_path)
    assert cases.classes == data.CLASSES and cases.names == ["JPCLN0", "JPCLN1", "JPCLN2"]
    assert cases.shapes == [(2048, 2048)] * 3
    assert np.abs(cases.images.astype(int) - images).mean() < 3
    assert (cases.labels ^ masks).sum() < 0.05 * masks.sum()


def test_default_folder_comes_back_as_written(tmp_path):
    images, masks = data.phantoms(4)
    for image, organs, name in zip(images, masks, ["9", "a", "b", "C"]):
        write(tmp_path / f"images/{name}.png", image)
        for organ, mask in zip(("lungs", "heart", "aorta"), organs):
            write(tmp_path / f"{organ}/{name}.bmp", mask)
    (tmp_path / "images/.DS_Store").write_text("x")
    cases = read(tmp_path)
    assert cases.classes == ("lungs", "heart", "aorta") and cases.names == ["9", "a", "b", "C"]
    assert np.array_equal(cases.images, images) and np.array_equal(cases.labels, masks)


@pytest.mark.parametrize("images, masks, image_file, mask_file", [
    ("images/{}.*", "heart/{}.*", "images/1.2.{}.png", "heart/1.2.{}.tif"),
    ("*/images/{}.png", "*/heart/{}.png", "a/images/{}.png", "b/heart/{}.png"),
    ("{}/image.png", "{}/{}_mask.png", "p{}/image.png", "p{}/p{}_mask.png"),
    ("raw\\{}.jpg", "./heart/{}.PNG", "raw/{}.JPG", "heart/{}.png"),
    ("../in/raw/{}.png", "../m/{}.png", "raw/{}.png", "../m/{}.png"),
    ("im[1]/{}.png", "heart=./a=b/{}.png", "im[1]/{}.png", "a=b/{}.png"),
    ("im/{*}/{}.png", "heart/{*}/{}.png", "im/p{}/0.png", "heart/p{}/0.png"),
    ("é/é{}.png", "ROOT/à/{}.png", "e\u0301/e\u0301{}.png", "../à/{}.png"),
])
def test_patterns_find_their_files(images, masks, image_file, mask_file, tmp_path):
    for i in NUMBERS:
        write(tmp_path / "in" / image_file.format(i, i), noise(i), quality=100)
        write(tmp_path / "in" / mask_file.format(i, i), disc(i))
    classes = ("heart",) if masks.startswith("heart=") else ("foreground",)
    masks = masks.replace("ROOT", str(tmp_path))
    cases = check(tmp_path / "in", images=images, masks=[masks], classes=classes)
    assert cases.names[0] in ("1", "p1", "1.2.1", "p1/0")


def test_summary_shows_what_was_read_and_counts_what_was_not(tmp_path, capsys):
    write_cases(tmp_path)
    for name in ("images/1.txt", "images/Thumbs.db", "heart/1.json", "images/old/7.png"):
        write(tmp_path / name, GRAY, format="PNG")
    write(tmp_path / "heart/1.bmp", disc(1))  # united with 1.png
    check(tmp_path, classes=("heart",))
    assert capsys.readouterr().out.splitlines() == [
        "4 file(s) that fit no pattern: heart/1.json, images/1.txt, images/Thumbs.db, "
        "images/old/7.png",
        f"{tmp_path}: 3 cases, height and width (64, 64) to (64, 64)", "  image: images/1.png",
        "  heart=heart/{}.*: values 0, 255, as in heart/1.bmp; 1 to 2 files a case, united",
        "  heart: 12.6% of the pixels, 0 empty masks"]


def test_unpaired_files_are_left_out_or_are_empty_masks_on_request(tmp_path, capsys):
    write_cases(tmp_path, numbers=range(15))
    for i in range(12):
        (tmp_path / f"heart/{i}.png").unlink()
    unpaired = r"12 image\(s\) without heart=heart/{}.\*: 0, 1, 10.* and 2 more; 0 mask"
    with pytest.raises(data.BadInput, match=unpaired + ".*add --skip-unpaired or --missing-empty"):
        read(tmp_path)
    assert check(tmp_path, (12, 13, 14), ("heart",), skip_unpaired=True).names == ["12", "13", "14"]
    cases = read(tmp_path, missing_empty=True)
    assert list(cases.labels.any(axis=(1, 2, 3))) == [int(name) >= 12 for name in cases.names]
    assert len(re.findall(unpaired, capsys.readouterr().out)) == 2


def test_redrawn_labels_in_a_default_layout_are_no_class(tmp_path):
    write_cases(tmp_path, "[heart]/{}.png")
    for file in ("fixed/heart/1.png", "[heart]/fixed/1.png", "[heart]/1_new.png"):
        write(tmp_path / file, data.dilate(disc(1), 9))
        cases = read(tmp_path, clean=["./" + file.replace("1", "{}")])
        assert cases.classes == ("[heart]",) and cases.operation == ["given", "", ""]
        (tmp_path / file).unlink()


GRAY = noise(1)
WHITE = np.full((64, 64, 3), 255, np.uint8)
VALUES = [  # =VALUE, the mask of case i, and the part of the disc that it means
    ("", lambda i: disc(i).astype(np.uint16) * 40000, "all"),
    ("", lambda i: colored(disc(i), (255, 0, 0)), "all"),
    ("", lambda i: np.dstack([WHITE, disc(i) * np.uint8(255)]), "all"),  # transparent outside
    ("=85", lambda i: two_values(i, 85, 170), "left"),
    ("=100-200", lambda i: two_values(i, 85, 170), "right"),
    ("=0", lambda i: ~disc(i), "all"),
    ("=#804080", lambda i: colored(disc(i, "left"), (128, 64, 128)), "left"),
    ("=#808080", lambda i: two_values(i, 128, 64), "left"),
    ("=#000000", lambda i: ~disc(i), "all"),
    ("=1-", lambda i: disc(i).astype(np.float32) * 3, "all"),
]


@pytest.mark.parametrize("value, mask, part", VALUES)
def test_values_say_which_pixels(value, mask, part, tmp_path):
    write_cases(tmp_path, "masks/{}.tif", mask, compression="raw")
    check(tmp_path, part=part, masks=[f"masks/{{}}.tif{value}"])


def test_a_palette_counts_as_the_colors_that_one_sees(tmp_path):
    """Pillow's GIF writer orders the palette of each file in its own way, as in the second one."""
    write_cases(tmp_path, "gif/{}.gif", lambda i: colored(disc(i), (0, 0, 255)))
    write_cases(tmp_path, "jpg/{}.jpg", lambda i: colored(disc(i), (0, 0, 255)), quality=95)
    for i in NUMBERS:
        write(tmp_path / f"colors/{i}.png", two_values(i, 1, 2), [0, 0, 0, 128, 0, 0, 0, 99, 0])
        write(tmp_path / f"grays/{i}.png", two_values(i, 1, 2), [0, 0, 0, 85, 85, 85, 9, 9, 9])
    write(tmp_path / "colors/2.png", 2 - two_values(2, 1, 2), [0, 99, 0, 128, 0, 0, 0, 0, 0])
    for text in ("colors/{}.png=#800000", "colors/{}.png=100-", "grays/{}.png=85"):
        check(tmp_path, part="left", masks=[text])
    for text in ("colors/{}.png=1-", "gif/{}.gif=1-", "gif/{}.gif", "jpg/{}.jpg=128-"):
        check(tmp_path, masks=[text])
    with pytest.raises(data.BadInput, match="write a color, not =1: 0, #006300, #800000"):
        read(tmp_path, masks=["colors/{}.png=1"])


def test_colors_of_one_file_are_decoded_once(tmp_path, monkeypatch):
    write_cases(tmp_path)
    opened, open_image = [], data.open_image
    monkeypatch.setattr(data, "open_image", lambda path: opened.append(path) or open_image(path))
    read(tmp_path, masks=["a=heart/{}.png=0", "b=heart/{}.png=255"])
    assert len(opened) == len(set(opened)) == 6


@pytest.mark.parametrize("tag, turns, ending", [(3, 2, "jpg"), (6, 1, "jpg"), (6, 1, "tif")])
def test_images_and_masks_are_turned_as_their_tags_say(tag, turns, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = tag
    for i in NUMBERS:
        for path, shown in ((f"images/{i}.{ending}", noise(i)), (f"masks/{i}.png", disc(i))):
            write(tmp_path / path, np.rot90(shown, turns).copy(), exif=exif, quality=100)
    check(tmp_path)


def patched(array, tag, old, new, **options):
    """The bytes of a TIFF, one tag of which (2 bytes a value) is changed from `old` to `new`."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "TIFF", **options)
    before, after = (struct.pack("<HHII", tag, 3, 1, value) for value in (old, new))
    return file.getvalue().replace(before, after)


RGB = np.dstack([GRAY] * 3)
COLORS = np.dstack([noise(1), noise(2), noise(3)])
DEEP = GRAY.astype(np.uint16) * 257
LOST = "1.*: has pages, bits, signs or colors that are not read; save as PNG of 8 bits"
FORMATS = {  # file: the image, and the grays that are read
    "rgb.png": (RGB, GRAY),
    "rgba.png": (np.dstack([RGB, np.full_like(GRAY, 9)]), GRAY),
    "colors.png": (COLORS, np.rint(COLORS.mean(axis=-1))),
    "palette.gif": (GRAY, GRAY),
    "levels.png": ((GRAY % 5).astype(np.uint16), np.array([0, 63, 127, 191, 255])[GRAY % 5]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_read_as_gray(name, tmp_path):
    image, expected = FORMATS[name]
    write(tmp_path / name, image)
    assert np.array_equal(data.read_image(str(tmp_path / name)), expected)


def test_deep_images_keep_their_grays_whatever_their_padding(tmp_path):
    for padding in (60000, -32768):
        deep = GRAY.astype(np.int32) * 4 + 1000
        deep[:4] = padding
        write(tmp_path / "x.tif", deep)
        image = data.read_image(str(tmp_path / "x.tif"))
        assert np.abs(image[4:].astype(int) - GRAY[4:]).max() <= 3


def mask(array, name="heart/1.png"):
    """Another mask of case 1."""
    return {"heart/1.png": None, name: array}


def tiff(*arguments, **options):
    """A TIFF, patched, as the image of case 1."""
    return {"images/1.png": None, "images/1.tif": patched(*arguments, **options)}


def given(images, *masks, **others):
    """The options of a row."""
    return {"images": images, "masks": masks, **others}


PNG, ANY = given("images/{}.png", "heart/{}.png"), given("images/{}.png", "heart/{}.*=1-")
OWN = {"test_images": "images/{}.png", "test_masks": ["heart/{}.png"]}
PLANAR = patched(RGB, 284, 1, 2)
SECOND, THREE = Image.fromarray(noise(2)), two_values(1, 3, 9)
COUNT = "write phantoms, or phantoms:N .* without patterns"
BAD = [  # files that a good folder gets or loses (None), the options, the one line
    (shutil.rmtree, {}, "no such folder; write one, phantoms, or phantoms:N"),
    ({f"images/{i}.png": None for i in NUMBERS}, {}, r"images/{}.\* fits no file.*; see --im"),
    (mask(GRAY, "heart/3.png"), PNG, r"1 .* without heart/{}.png: 1; 1 .* without image: 3; "),
    ({"images/1.TIF": GRAY}, {}, "several images for 1; correct --images"),
    ({"notes/1.txt.png": GRAY}, {}, "3 image.* without notes=notes.*; correct --masks"),
    (lambda root: os.symlink("gone", root / "lungs"), {}, "'lungs' is a broken link"),
    ({"images/\udce9.png": GRAY}, {}, r"'images/\\udce9.png' is .* not named in UTF-8"),
    ({"images/p_1_2.png": GRAY}, given("images/{}_*.png", "heart/{}.png"), "names .*: p and p_1;"),
    ({}, given("*/{}.png", "heart/{}.png", "images/{}.png"), r"\*/{}.png fits no file, or only"),
    ({}, given("images/*.png", "heart/{}.png"), r"images/\*.png: write {} for the name"),
    ({}, given("images/{}.png", "heart/{}.png=a"), "{}.png=a: .* =VALUE as =85, .*#804080"),
    ({}, given("images/{}.png", "average=heart/{}.png"), "no class may be called average"),
    ({}, given("images/{}.png"), "masks of none, .*; write --masks"),
    ({"a=b/1.png": GRAY}, {}, "a=b=a=b/{}.* fits no file"),
    (lambda root: os.truncate(root / "images/1.png", 300), {}, "1.png: cannot be read .*; repl"),
    (tiff(RGB, 262, 2, 8), {}, LOST),  # Lab
    (tiff(DEEP, 262, 1, 0), {}, LOST),  # inverted
    (tiff(GRAY, 339, 2, 2, tiffinfo={339: 2}), {}, LOST),  # signed 8 bits
    (tiff(GRAY.astype(np.int32) - 9, 339, 2, 1), {}, LOST),  # unsigned 32 bits
    ({"images/1.png": PLANAR.replace(bytes([8, 0] * 3), bytes([16, 0] * 3))}, {}, LOST),
    ({"images/1.png": b"P6 64 64 65535\n" + bytes(6 * 64 * 64)}, {}, LOST),
    ({"images/1.png": None, "images/1.tif": np.full((64, 64), np.nan, np.float32)}, {}, "NaN"),
    ({"images/1.png": 0 * GRAY}, {}, "1.png: constant once .*; replace"),
    (lambda root: write(root / "heart/1.tif", GRAY, save_all=True, append_images=[SECOND]), {},
     LOST),
    (mask(disc(1)[:40]), {}, r"1.png: height .*\(40, 64\), but \(64, 64\) .*; make them alike"),
    (mask(THREE), {}, r"1.png: values 0, 3, 9 in heart=heart/{}.\*, not .*=1- .*=N- .*=N"),
    (mask(two_values(1, 7, 7)), {}, "10.png: values 0, 7, 255"),
    (mask(disc(1) / np.float32(2), "heart/1.tif"), ANY, "not only whole numbers from 0 on"),
    (mask(np.dstack([RGB, GRAY])), ANY, "half-transparent, or"),
    ({f"heart/{i}.png": ~disc(i) for i in NUMBERS}, {}, r"inverted; write heart=heart/{}.\*=0 "),
    ({f"heart/{i}.png": 0 * GRAY for i in NUMBERS}, {}, "every training mask of heart is empty"),
    (mask(GRAY, "heart/1.jpg"), {}, "1.jpg: JPEG and WebP blur the values.*=128-"),
    ({}, {"data": "phantoms:0"}, COUNT), ({}, {"data": "phantoms:100000"}, COUNT),
    ({}, {"data": "phantoms:x"}, COUNT), ({}, {"data": "phantoms:3", "missing_empty": True}, COUNT),
    ({}, {"group": "("}, r"--group \(: no regular expression"),
    ({}, {"group": "q|1"}, "--group q|1: must match in images/2.png, too"),
    ({}, {"group": "images"}, "cases or groups: images; a split needs three"),
    ({}, {"test_images": "images/{}.png"}, "--test-images and --test-masks go together"),
    ({}, {**OWN, "group": "c"}, "not with --group"),
    ({}, {**OWN, "test_masks": ["a=heart/{}.png"]}, "of heart, of the test a; write --masks"),
    ({}, {"clean": ["lungs=heart/{}.png"]}, "it needs CLASS= of one of"),
    ({"x": b"nobody"}, {"exclude": "x"}, "x: 1 names, unknown: nobody; write one .* such as 1$"),
    ({"x": "1".encode("utf-16")}, {"exclude": "x"}, "x: . names, unknown: .*; write one a line"),
    ({"x": b"1\n2\n10"}, {"exclude": "x"}, "--exclude: no training or no test cases left"),
]


@pytest.mark.parametrize("damage, options, message", BAD)
def test_bad_folders_and_options_are_refused_in_one_line(
        damage, options, message, tmp_path, monkeypatch):
    root = tmp_path / "folder"
    write_cases(root)
    monkeypatch.chdir(root)
    if callable(damage):
        damage(root)
    else:
        for name, array in damage.items():
            (root / name).unlink(missing_ok=True)
            if isinstance(array, bytes):
                (root / name).write_bytes(array)
            elif array is not None:
                write(root / name, array)
    with pytest.raises(data.BadInput, match=message) as error:
        data.load(data.Options(**{"data": root, "size": 64, **options}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("side, size", [(128, 64), (1024, 256)])  # lost at --size, or before
def test_objects_that_vanish_by_resizing_are_counted(side, size, tmp_path, capsys):
    dot = np.zeros((side, side), bool)
    dot[20, 20] = True
    write_cases(tmp_path, "dots/{}.png", lambda i: dot)
    with pytest.raises(data.BadInput, match=f"every .* dots is empty or full at --size {size}"):
        data.load(data.Options(tmp_path, size=size))
    printed = f"3 mask(s) too small for --size {size}: dots of 1, dots of 10, dots of 2"
    assert printed in capsys.readouterr().out
