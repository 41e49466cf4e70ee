"""Folders as people have them: patterns, values, formats, and what the reader says about each."""
import io
import re
import shlex
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
    for i, side in ((2, 1024), (10, 128)):  # a dot that is lost at once, and one at --size
        write(tmp_path / f"heart/{i}.png", np.eye(side, dtype=bool) & (np.arange(side) == 20))
    data.read(data.Options(tmp_path, size=64))
    assert capsys.readouterr().out.splitlines() == [
        "4 file(s) that fit no pattern: heart/1.json, images/1.txt, images/Thumbs.db, "
        "images/old/7.png",
        f"{tmp_path}: 3 cases, height and width (64, 64) to (64, 64)", "  image: images/1.png",
        "  heart=heart/{}.*: values 0, 255, as in heart/1.bmp; 1 to 2 files per case, united",
        "  heart: 4.2% of the pixels, 1 empty masks",
        "  2 mask(s) too small for --size 64: heart of 10, heart of 2"]


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
    ("", lambda i: disc(i)[..., np.newaxis] * np.uint8([255, 0, 0]), "all"),
    ("", lambda i: np.dstack([WHITE, disc(i) * np.uint8(255)]), "all"),  # transparent outside
    ("=85", lambda i: two_values(i, 85, 170), "left"),
    ("=100-200", lambda i: two_values(i, 85, 170), "right"),
    ("=0", lambda i: ~disc(i), "all"),
    ("=#804080", lambda i: disc(i, "left")[..., np.newaxis] * np.uint8([128, 64, 128]), "left"),
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
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", noise(i))
        write(tmp_path / f"gif/{i}.gif", disc(i)[..., np.newaxis] * np.uint8([0, 0, 255]))
        write(tmp_path / f"jpg/{i}.jpg", disc(i)[..., np.newaxis] * np.uint8([0, 0, 255]))
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


def test_formats_and_depths_are_read_as_gray(tmp_path):
    def read_again(name, array):
        write(tmp_path / name, array)
        return data.read_image(str(tmp_path / name)).astype(int)

    for name, array in (("rgb.png", RGB), ("rgba.png", np.dstack([RGB, GRAY])), ("x.gif", GRAY)):
        assert np.array_equal(read_again(name, array), GRAY)
    assert np.array_equal(read_again("x.png", COLORS), np.rint(COLORS.mean(axis=-1)))
    few = read_again("levels.png", (GRAY % 5).astype(np.uint16))
    assert np.array_equal(few, np.array([0, 63, 127, 191, 255])[GRAY % 5])
    for padding in (60000, -32768):
        deep = GRAY.astype(np.int32) * 4 + 1000
        deep[:4] = padding
        assert np.abs(read_again("deep.tif", deep) - GRAY)[4:].max() <= 3


def given(images, *masks, **others):
    """Options of patterns."""
    return {"images": images, "masks": masks, **others}


PNG, ANY = given("images/{}.png", "heart/{}.png"), given("images/{}.png", "heart/{}.*=1-")
OWN = {"test_images": "images/{}.png", "test_masks": ["heart/{}.png"]}
PLANAR = patched(RGB, 284, 1, 2)
SECOND, THREE = Image.fromarray(noise(2)), two_values(1, 3, 9)
COUNT = "write phantoms, or phantoms:N .* without patterns"
BAD = [  # files that a good folder gets or loses (None), the options, the one line
    ({}, {"data": "nowhere"}, "nowhere: no such folder; write one, phantoms, or phantoms:N"),
    ({f"images/{i}.png": None for i in NUMBERS}, {}, r"images/{}.\* fits no file.*; see --im"),
    ({"heart/1.png": None, "heart/3.png": GRAY}, PNG,
     r"1 .* without heart/{}.png: 1; 1 .* without image: 3; "),
    ({"images/1.TIF": GRAY}, {}, "several images for 1; correct --images"),
    ({"notes/1.txt.png": GRAY}, {}, "3 image.* without notes=notes.*; correct --masks"),
    ({"lungs": "gone"}, {}, "'lungs' is a broken link"),
    ({"images/\udce9.png": GRAY}, {}, r"'images/\\udce9.png' is .* not named in UTF-8"),
    ({"images/p_1_2.png": GRAY}, given("images/{}_*.png", "heart/{}.png"), "names .*: p and p_1;"),
    ({}, given("*/{}.png", "heart/{}.png", "images/{}.png"), r"\*/{}.png fits no file, or only"),
    ({}, given("images/*.png", "heart/{}.png"), r"images/\*.png: write {} for the name"),
    ({}, given("images/{}.png", "heart/{}.png=a"), "{}.png=a: .* =VALUE as =85, .*#804080"),
    ({}, given("images/{}.png", "average=heart/{}.png"), "no class may be called average"),
    ({}, given("images/{}.png"), "masks of none, .*; write --masks"),
    ({"a=b/1.png": GRAY}, {}, "a=b=a=b/{}.* fits no file"),
    ({"images/1.png": PLANAR[:300]}, {}, "1.png: cannot be read .*; replace by PNG"),
    ({"images/1.jp2": GRAY}, given("images/{}.jp2", "heart/{}.*", skip_unpaired=True),
     "1.jp2: can"),
    ({"images/1.png": patched(RGB, 262, 2, 8)}, {}, LOST),  # Lab
    ({"images/1.png": patched(DEEP, 262, 1, 0)}, {}, LOST),  # inverted
    ({"images/1.png": patched(GRAY, 339, 2, 2, tiffinfo={339: 2})}, {}, LOST),  # signed 8 bits
    ({"images/1.png": patched(GRAY.astype(np.int32) - 9, 339, 2, 1)}, {}, LOST),  # unsigned 32 bits
    ({"images/1.png": PLANAR.replace(bytes([8, 0] * 3), bytes([16, 0] * 3))}, {}, LOST),
    ({"images/1.png": b"P6 64 64 65535\n" + bytes(6 * 64 * 64)}, {}, LOST),
    ({"images/1.png": None, "images/1.tif": np.full((64, 64), np.nan, np.float32)}, {}, "NaN"),
    ({"images/1.png": 0 * GRAY}, {}, "1.png: constant once .*; replace"),
    ({"heart/1.png": patched(GRAY, 262, 1, 1, save_all=True, append_images=[SECOND])}, {}, LOST),
    ({"heart/1.png": disc(1)[:40]}, {},
     r"1.png: height .*\(40, 64\), but \(64, 64\) .*; make them alike"),
    ({"heart/1.png": THREE}, {},
     r"1.png: values 0, 3, 9 in heart=heart/{}.\*, not .*=1- .*=N- .*=N"),
    ({"heart/1.png": two_values(1, 7, 7)}, {}, "10.png: values 0, 7, 255"),
    ({"heart/1.png": None, "heart/1.tif": disc(1) / np.float32(2)}, ANY,
     "not only whole numbers from 0 on"),
    ({"heart/1.png": np.dstack([RGB, GRAY])}, ANY, "half-transparent, or"),
    ({f"heart/{i}.png": ~disc(i) for i in NUMBERS}, {}, r"inverted; write heart=heart/{}.\*=0 "),
    ({f"heart/{i}.png": 0 * GRAY for i in NUMBERS}, {}, "every training mask of heart is empty"),
    ({"heart/1.png": None, "heart/1.jpg": GRAY}, {}, "1.jpg: JPEG and WebP blur the values.*=128-"),
    ({}, {"data": "phantoms:0"}, COUNT), ({}, {"data": "phantoms:100000"}, COUNT),
    ({}, {"data": "phantoms:x"}, COUNT), ({}, {"data": "phantoms:3", "missing_empty": True}, COUNT),
    ({}, {"group": "("}, r"--group \(: no regular expression"),
    ({}, {"group": "q|1"}, "--group q|1: must match in images/2.png, too"),
    ({}, {"group": "images"}, "cases or groups: images; a split needs three"),
    ({}, {"test_images": "images/{}.png"}, "--test-images and --test-masks go together"),
    ({}, {**OWN, "group": "c"}, "not with --group"),
    ({}, {**OWN, "test_masks": ["a=heart/{}.png"]}, "of heart, of the test a; write --masks"),
    ({}, {"clean": ["lungs=heart/{}.png"]}, "it needs CLASS= of one of"),
    ({}, {"exclude": "x"}, "--exclude x: no such file; name the saved list"),
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
    for name, content in damage.items():
        (root / name).unlink(missing_ok=True)
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        elif isinstance(content, str):
            (root / name).symlink_to(content)
        elif content is not None:
            write(root / name, content)
    with pytest.raises(data.BadInput, match=message) as error:
        data.load(data.Options(**{"data": root, "size": 64, **options}))
    assert "\n" not in str(error.value)
