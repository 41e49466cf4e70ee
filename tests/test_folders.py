"""Folders as people have them: patterns, values, formats, and what the reader says about each."""
import os
import re
import shlex
import shutil
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

import data
from conftest import ROOT

NUMBERS = (1, 2, 10)  # three cases; 1 is not 10
PAGE = (ROOT / ".github" / "DATA.md").read_text(encoding="utf-8")


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


def two_colors(i, left, right):
    """The disc of case i with one color on the left and another on the right."""
    return colored(disc(i, "left"), left) + colored(disc(i, "right"), right)


def write(path, array, palette=None, **options):
    """Write an array as an image; a bool mask as 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    image = Image.fromarray(array)
    if palette:
        image.putpalette(palette)
    image.save(path, **options)


def write_cases(root, numbers=NUMBERS, masks="heart"):
    """A good folder: images/N.png and heart/N.png."""
    for i in numbers:
        write(root / f"images/{i}.png", noise(i))
        write(root / f"{masks}/{i}.png", disc(i))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def check(root, numbers=NUMBERS, classes=("foreground",), part="all", **reading):
    """Read a folder; every image must come with its own mask. Returns the Source."""
    source = data.read(root, **reading)
    assert source.classes == classes and len(source.names) == len(numbers)
    for image, labels in zip(source.images, source.labels):
        distances = [np.abs(image - data.resize(noise(i), 256).astype(int)).sum() for i in numbers]
        i = numbers[int(np.argmin(distances))]
        assert dice(labels.any(axis=0), data.resize(disc(i, part), 256)) > 0.98
    return source


# ------------------------------------------------------------------- layouts from .github/DATA.md

VOC_PALETTE = [part for k in range(256) for part in (k, 7 * k % 256, 13 * k % 256)]
LAYOUTS = {  # row of the table: how case i is written
    "DRIVE": lambda i: {f"training/images/{i}_training.tif": noise(i),
                        f"training/1st_manual/{i}_manual1.gif": disc(i)},
    "HRF": lambda i: {f"images/{i}_dr.{'JPG' if i == 1 else 'jpg'}": noise(i),
                      f"manual1/{i}_dr.tif": disc(i)},
    "Montgomery": lambda i: {f"CXR_png/MCUCXR_{i}_0.png": noise(i),
                             f"ManualMask/leftMask/MCUCXR_{i}_0.png": disc(i, "left"),
                             f"ManualMask/rightMask/MCUCXR_{i}_0.png": disc(i, "right")},
    "DSB2018": lambda i: {f"stage1_train/id{i}/images/id{i}.png": noise(i),
                          f"stage1_train/id{i}/masks/a{i}.png": disc(i, "left"),
                          f"stage1_train/id{i}/masks/b{i}.png": disc(i, "right")},
    "BUSI": lambda i: {f"benign/benign ({i}).png": noise(i),
                       f"benign/benign ({i})_mask.png": disc(i, "left"),
                       f"benign/benign ({i})_mask_1.png": disc(i, "right")},
    "VOC 2012": lambda i: {f"JPEGImages/2007_{i}.jpg": noise(i), f"JPEGImages/x{i}.jpg": noise(i),
                           f"SegmentationClass/2007_{i}.png": two_values(i, 8, 12)},
    "CVAT, segmentation mask": lambda i: {
        f"JPEGImages/{i}.jpg": noise(i),
        f"SegmentationClass/{i}.png": colored(disc(i), (0x80, 0x40, 0x80))},
    "Kvasir-SEG": lambda i: {f"images/cju{i}.jpg": noise(i), f"masks/cju{i}.jpg": disc(i)},
}


@pytest.mark.parametrize("row", LAYOUTS)
def test_public_data_sets_are_read_with_the_patterns_of_the_page(row, tmp_path):
    options = shlex.split(re.search(rf"^\| {row} \| `(--images.*)` \|$", PAGE, re.MULTILINE)[1])
    masks = [option for option in options[3:] if option != "--skip-unpaired"]
    for i in NUMBERS:
        for path, array in LAYOUTS[row](i).items():
            is_palette = row.startswith("VOC") and path.endswith("png")
            write(tmp_path / path, array, VOC_PALETTE if is_palette else None)
    classes = tuple(dict.fromkeys(mask.partition("=")[0] for mask in masks))
    check(tmp_path, classes=classes, images=options[1], masks=masks,
          skip_unpaired="--skip-unpaired" in options)


def test_page_has_a_line_for_each_data_set():
    for name in ("Carvana ISIC CHASE_DB1 DRIVE HRF STARE Montgomery Shenzhen DSB2018 BUSI LGG CVC "
                 "Kvasir VOC CVAT nnU-Net Supervisely JSRT").split():
        assert re.search(rf"^\| {name}", PAGE, re.MULTILINE), name
    for options in re.findall(r"^\| .* \| `--images (.*)` \|$", PAGE, re.MULTILINE):
        data.parse_pattern(shlex.split(options)[0], is_image=True)
        for text in shlex.split(options)[2:]:
            assert text == "--skip-unpaired" or data.parse_pattern(text)


def test_jsrt_archives_are_read_as_they_unzip(tmp_path):
    """Raw 16-bit big-endian inverted images beside GIF masks at half the size."""
    images, masks = data.phantoms(3)
    for i in range(3):
        (tmp_path / "All247images").mkdir(exist_ok=True)
        raw = (4095 - images[i].astype(">u2") * 16).repeat(8, axis=0).repeat(8, axis=1)
        raw.astype(">u2").tofile(tmp_path / f"All247images/JPCLN{i}.IMG")
        empty = np.zeros_like(masks[i, 0])
        for organ, mask in (("left lung", masks[i, 0]), ("right lung", empty),
                            ("heart", masks[i, 1]), ("left clavicle", empty),
                            ("right clavicle", masks[i, 2])):
            write(tmp_path / f"scratch/fold{i % 2}/masks/{organ}/JPCLN{i}.gif",
                  mask.repeat(4, axis=0).repeat(4, axis=1))
    source = data.read(tmp_path)
    assert source.classes == data.CLASSES and source.names == ["JPCLN0", "JPCLN1", "JPCLN2"]
    assert source.shapes == [(2048, 2048)] * 3
    assert np.abs(source.images.astype(int) - images).mean() < 3
    assert dice(source.labels, masks) > 0.97


# ------------------------------------------------------------------------- patterns and the pairing

def test_default_folder_comes_back_as_written(tmp_path):
    images, masks = data.phantoms(4)
    names = ["b", "a", "9", "C"]
    for i, name in enumerate(names):
        write(tmp_path / f"images/{name}.png", images[i])
        for c, organ in enumerate(("lungs", "heart", "aorta")):
            write(tmp_path / f"{organ}/{name}.bmp", masks[i, c])
    for hidden in (".git/x.png", "images/.DS_Store", "heart/Thumbs.db"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_text("x")
    source = data.read(tmp_path)
    assert source.classes == ("lungs", "heart", "aorta") and source.names == ["9", "a", "b", "C"]
    order = [names.index(name) for name in source.names]
    assert np.array_equal(source.images, images[order])
    assert np.array_equal(source.labels, masks[order])


@pytest.mark.parametrize("images, masks, image_file, mask_file", [
    ("images/{}.*", "heart/{}.*", "images/1.2.{}.png", "heart/1.2.{}.tif"),
    ("*/images/{}.png", "*/heart/{}.png", "a/images/{}.png", "b/heart/{}.png"),
    ("{}/image.png", "{}/{}_mask.png", "p{}/image.png", "p{}/p{}_mask.png"),
    ("raw\\{}.jpg", "./heart/{}.PNG", "raw/{}.JPG", "heart/{}.png"),
    ("../in/raw/{}.png", "../m/{}.png", "raw/{}.png", "../m/{}.png"),
    ("{}.png", "{}_m.png", "{}.png", "{}_m.png"),
    ("[x] +/{}.png", "m/{}.png", "[x] +/{}.png", "m/{}.png"),
])
def test_patterns_find_their_files(images, masks, image_file, mask_file, tmp_path):
    for i in NUMBERS:
        write(tmp_path / "in" / image_file.format(i, i), noise(i), quality=100)
        write(tmp_path / "in" / mask_file.format(i, i), disc(i))
    check(tmp_path / "in", images=images, masks=[masks])


def test_absolute_patterns_and_accents_of_both_kinds(tmp_path):
    for i in NUMBERS:
        write(tmp_path / "in" / unicodedata.normalize("NFD", f"images/é{i}.png"), noise(i))
        write(tmp_path / unicodedata.normalize("NFD", "à") / f"é{i}.png", disc(i))
    source = check(tmp_path / "in", classes=("a",), masks=[f"a={tmp_path}/à/{{}}.png"])
    assert source.names[0] == unicodedata.normalize("NFC", "é1")


@pytest.mark.parametrize("text, name, path, value", [
    ("m/{}.png", "foreground", "m/{}.png", None),
    ("heart=m/{}.png", "heart", "m/{}.png", None),
    ("m/{}.png=85", "foreground", "m/{}.png", "85"),
    ("heart=a=b/{}_c=d.png=1-", "heart", "a=b/{}_c=d.png", "1-"),
    ("vessels=Image_{}_1.png=#804080", "vessels", "Image_{}_1.png", "#804080"),
])
def test_class_and_value_are_split_from_the_path(text, name, path, value):
    assert data.parse_pattern(text) == data.Pattern(text, path, name, value)


def test_files_that_fit_no_pattern_are_counted_and_hidden_ones_are_not(tmp_path, capsys):
    write_cases(tmp_path)
    write(tmp_path / "images/7.bmp", noise(7))
    (tmp_path / "heart/config.json").write_text("{}")
    (tmp_path / "heart/.hidden").write_text("")
    check(tmp_path, images="images/{}.png", masks=["heart/{}.png"])
    out = capsys.readouterr().out
    assert "2 file(s) that fit no pattern: heart/config.json, images/7.bmp\n" in out
    assert "3 cases, height and width (64, 64) to (64, 64)" in out
    assert "foreground of 1: heart/1.png; values in heart/{}.png: 0, 255" in out


def test_unpaired_files_are_left_out_on_request(tmp_path, capsys):
    write_cases(tmp_path, range(15))
    for i in range(12):
        (tmp_path / f"heart/{i}.png").unlink()
    (tmp_path / "images/14.png").unlink()
    with pytest.raises(data.BadInput, match=r"12 image\(s\) without heart=heart/{}.\*: 0, 1, 10.* "
                       r"and 2 more; 1 mask.*without image: 14; .* --skip-unpaired"):
        data.read(tmp_path)
    assert check(tmp_path, (12, 13), ("heart",), skip_unpaired=True).names == ["12", "13"]
    assert "12 image(s) without heart=heart/{}.*: 0, 1, 10" in capsys.readouterr().out


def test_images_without_masks_and_a_single_image(tmp_path):
    write(tmp_path / "images/1.png", noise(1)[:40])
    source, cases = data.load_all(tmp_path, 64)
    assert source.labels is None and cases is None and source.shapes == [(40, 64)]
    write(tmp_path / "heart/1.png", np.zeros((40, 64), bool))
    source, cases = data.load_all(tmp_path, 64)
    assert cases.labels.shape == (1, 1, 64, 64) and not cases.known
    source, cases = data.load_all(tmp_path, 64, images="images/{}.png")
    assert source.labels is None
    assert data.load_all("phantoms:4", 64)[1].known


# --------------------------------------------------------------------------- values of masks

def alpha_mask(i):
    """White paper with the disc in it, transparent outside."""
    rgba = np.full((64, 64, 4), 255, np.uint8)
    rgba[..., 3] = disc(i) * np.uint8(255)
    return rgba


def soft(mask):
    """A mask with soft edges: the mean over 5 x 5 pixels, 0 to 255."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 2, mode="edge"), (5, 5))
    return np.rint(255 * windows.mean(axis=(2, 3))).astype(np.uint8)


VALUES = [  # =VALUE, the mask of case i, and the part of the disc that it means
    ("", lambda i: disc(i) * np.uint8(7), "all"),
    ("", lambda i: disc(i).astype(np.float32), "all"),
    ("", lambda i: disc(i).astype(np.uint16) * 40000, "all"),
    ("", lambda i: colored(disc(i), (255, 0, 0)), "all"),
    ("", alpha_mask, "all"),
    ("=85", lambda i: two_values(i, 85, 170), "left"),
    ("=100-200", lambda i: two_values(i, 85, 170), "right"),
    ("=1-", lambda i: two_values(i, 1, 200), "all"),
    ("=128-", lambda i: soft(disc(i)), "all"),
    ("=0", lambda i: ~disc(i), "all"),
    ("=#804080", lambda i: colored(disc(i, "left"), (128, 64, 128)), "left"),
    ("=#808080", lambda i: two_values(i, 128, 64), "left"),
    ("=128", lambda i: two_colors(i, (128, 128, 128), (128, 0, 0)), "left"),
    ("=1-", lambda i: two_colors(i, (9, 0, 0), (7, 7, 7)), "all"),
    ("=128-", lambda i: two_colors(i, (0, 0, 90), (0, 0, 200)), "right"),
]


@pytest.mark.parametrize("value, mask, part", VALUES)
def test_values_say_which_pixels(value, mask, part, tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", noise(i))
        write(tmp_path / f"masks/{i}.tif", mask(i), compression="raw")
    check(tmp_path, part=part, masks=[f"masks/{{}}.tif{value}"])


def test_a_palette_with_colors_counts_indices_or_colors_and_a_gray_one_grays(tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", noise(i))
        write(tmp_path / f"colors/{i}.png", two_values(i, 1, 2), [0, 0, 0, 128, 0, 0, 0, 9, 0])
        write(tmp_path / f"grays/{i}.png", two_values(i, 1, 2), [0, 0, 0, 85, 85, 85, 9, 9, 9])
    for text in ("colors/{}.png=1", "colors/{}.png=#800000", "grays/{}.png=85"):
        check(tmp_path, part="left", masks=[text])


def test_values_of_no_class_are_named(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", noise(i))
        write(tmp_path / f"labels/{i}.png", two_values(i, 50, 85) + (noise(i) == 0) * np.uint8(1))
    data.read(tmp_path, masks=["heart=labels/{}.png=85", "a=labels/{}.png=51-60"])
    assert "background in labels/{}.png, values of no class: 1, 50" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ formats

def write_turned(path, shown, tag):
    """Write an image that shows `shown` after the rotation of its EXIF tag."""
    exif = Image.Exif()
    exif[data.ORIENTATION] = tag
    stored = shown[::-1, ::-1] if tag == 3 else np.rot90(shown)
    write(path, np.ascontiguousarray(stored), exif=exif, quality=100)


@pytest.mark.parametrize("tag", [3, 6])
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_images_and_masks_are_turned_as_their_tags_say(tag, ending, tmp_path, capsys):
    for i in NUMBERS:
        write_turned(tmp_path / f"images/{i}.{ending}", noise(i), tag)
        write_turned(tmp_path / f"masks/{i}.png", disc(i), tag)
    check(tmp_path)
    assert "6 file(s) turned as their EXIF tag says; " in capsys.readouterr().out


def test_a_faulty_exif_block_is_no_obstacle(tmp_path):
    exif = Image.Exif()
    exif[data.ORIENTATION] = 3
    block = exif.tobytes()
    first = block.index(b"\0\1")  # the number of tags: make room for a resolution that is a text
    block = block[:first] + b"\0\2" + block[first + 2:first + 14]
    block += struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0\0") + bytes(4)
    write(tmp_path / "x.jpg", noise(1), exif=block, quality=100)
    image = data.read_image(str(tmp_path / "x.jpg"), data.Counter())
    assert np.abs(image - noise(1)[::-1, ::-1].astype(int)).mean() < 3


GRAY = noise(1)
FORMATS = {  # file: what is written, and with which options
    "rgb.png": (np.stack([GRAY] * 3, axis=-1), {}),
    "rgba.png": (np.stack([GRAY] * 3 + [np.full_like(GRAY, 9)], axis=-1), {}),
    "palette.gif": (GRAY, {}), "x.bmp": (GRAY, {}), "x.tif": (GRAY, {}), "x.ppm": (GRAY, {}),
    "x.webp": (GRAY, {"lossless": True}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_gray_images_of_every_format_keep_their_values(name, tmp_path):
    array, options = FORMATS[name]
    write(tmp_path / name, array, **options)
    assert np.array_equal(data.read_image(str(tmp_path / name), data.Counter()), GRAY)


def test_colors_are_averaged_and_cmyk_is_no_negative(tmp_path):
    write(tmp_path / "x.png", np.stack([noise(1), noise(2), noise(3)], axis=-1))
    expected = np.rint((noise(1).astype(float) + noise(2) + noise(3)) / 3)
    assert np.array_equal(data.read_image(str(tmp_path / "x.png"), data.Counter()), expected)
    Image.fromarray(soft(disc(1))).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    image = data.read_image(str(tmp_path / "x.jpg"), data.Counter())
    assert np.abs(image.astype(int) - soft(disc(1))).max() < 10


@pytest.mark.parametrize("outlier", [None, 60000, -32768])
def test_deep_images_keep_their_grays_whatever_their_padding(outlier, tmp_path):
    deep = noise(1).astype(np.int32) * 4 + 1000
    if outlier is not None:
        deep[:4] = outlier
    notes = data.Counter()
    write(tmp_path / "x.tif", deep)
    image = data.read_image(str(tmp_path / "x.tif"), notes)
    assert np.abs(image[4:].astype(int) - noise(1)[4:]).max() <= 3 and "more than 8" in str(notes)


# -------------------------------------------------------------------------- bad folders: one table

def write_png16(path, colors):
    """Write a PNG of 16-bit colors (H, W, 3), which Pillow cannot."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", *colors.shape[1::-1], 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_pages(path):
    Image.fromarray(GRAY).save(path, save_all=True, append_images=[Image.fromarray(noise(2))])


def for_all(change):
    """What changes the heart mask of every case."""
    def apply(root):
        for i in NUMBERS:
            write(root / f"heart/{i}.png", change(disc(i)))
    return apply


def replace(old, new, array=GRAY):
    """What replaces a file by another one."""
    def apply(root):
        (root / old).unlink()
        write(root / new, array)
    return apply


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


CYAN = np.stack([255 * disc(1), 0 * disc(1), 255 * ~disc(1)], axis=-1).astype(np.uint8)
PNG = ("images/{}.png", ["heart/{}.png"])
BAD = [  # what is done to a good folder, --images and --masks, and what the one line must say
    (shutil.rmtree, None, "no such folder; write one, or phantoms"),
    (rename("images", "img"), None, "no folder images/, but heart, img; write --images"),
    (lambda root: (root / "lungs").mkdir(), None, r"lungs=lungs/{}.\* fits no file"),
    (rename("heart/1.png", "heart/3.png"), PNG,
     r"1 image\(s\) without heart/{}.png: 1; 1 mask\(s\) heart/{}.png without image: 3; .*--skip"),
    (lambda root: write(root / "images/1.TIF", GRAY), None,
     "several images for the case 1: images/1.TIF, images/1.png; write more"),
    (rename("images/1.png", "images/p_1_2.png"), ("images/{}_*.png", ["heart/{}.png"]),
     "finds two names in images/p_1_2.png: p and p_1; write more of the name"),
    (None, ("images/*.png", ["heart/{}.png"]), r"images/\*.png: write {} for the name"),
    (None, ("im/{}.png", ["heart/{}.png"]), "im/{}.png fits no file; there are heart, images"),
    (None, ("images/{}.jpg", ["heart/{}.png"]), "fits no file; there are images/1.png, .*--images"),
    (None, ("images/{}.png", ["heart/{}.png=a"]), "=a is no value; write a number .* or a color"),
    (None, ("images/{}.png", ["average=heart/{}.png"]), "none may be called average"),
    (None, ("images/{}.png", None), "masks of no class.* name .* --masks"),
    (None, ("images/{}.png", ["heart/{}.png=85"]), "every mask of foreground is empty or full"),
    (lambda root: (root / "images/1.png").write_bytes(b""), None, "1.png: cannot be read .*; repl"),
    (lambda root: os.truncate(root / "images/1.png", 300), None, "1.png: cannot be read .*; repl"),
    (rename("images/1.png", "images/1.img"), None, "1.img: cannot be read as an image"),
    (rename("images/1.png", "images/1.dcm"), None, "1.dcm: .dcm is a volume, .*; export slices"),
    (lambda root: [rename("images/1.png", "images/1.nii.gz")(root),
                   rename("heart/1.png", "heart/1.nii.png")(root)], None, "nii.gz: .nii.gz is a v"),
    (replace("images/1.png", "images/1.tif", np.full((64, 64), np.nan, np.float32)), None, "NaN"),
    (replace("images/1.png", "images/1.png", CYAN), None,
     "images/1.png: constant once converted to gray; replace"),
    (lambda root: write_png16(root / "images/1.png", np.stack([GRAY * 9] * 3, -1)), None,
     "images/1.png: colors of 16 bits, .*; save it with 8"),
    (lambda root: write_pages(root / "heart/1.tif"), None, "1.tif: 2 pages in one file; save each"),
    (replace("heart/1.png", "heart/1.png", disc(1)[:40]), None,
     r"heart/1.png: height and width \(40, 64\), but \(64, 64\) in the image.*; make them alike"),
    (replace("heart/1.png", "heart/1.png", two_values(1, 3, 9)), None,
     r"1.png: values 0, 3, 9 in heart=heart/{}.\*, not 0 and one other; .*=1- .*=128- .*CLASS="),
    (replace("heart/1.png", "heart/1.png", two_values(1, 7, 7)), None, "10.png: values 0, 7, 255"),
    (replace("heart/1.png", "heart/1.png", disc(1) + np.uint8(1)), None, "1.png: values 1, 2 in"),
    (replace("heart/1.png", "heart/1.png", two_colors(1, (1, 2, 3), (9, 9, 9))), None,
     "values 0, 9, #010203 in"),
    (for_all(np.invert), None, "masks of heart seem inverted, .*; write heart=heart/{}.*=0 if th"),
    (for_all(np.zeros_like), None, "every mask of heart is empty or full; correct the masks"),
    (replace("heart/1.png", "heart/1.jpg"), None, "1.jpg: JPEG and WebP blur the values.*=128-"),
    (replace("heart/1.png", "heart/1.webp"), ("images/{}.png", ["heart/{}.*=255"]), "blur the val"),
    (replace("heart/1.png", "heart/1.jpg"), ("images/{}.png", ["heart/{}.*=1-"]), "blur the val"),
    (lambda root: [(root / f"{name}/1.png").unlink() for name in ("images", "heart")], None,
     "2 cases.*: 0, 1; a split needs three"),
]


@pytest.mark.parametrize("damage, patterns, message", BAD)
def test_bad_folders_are_refused_in_one_line(damage, patterns, message, tmp_path):
    root = tmp_path / "folder"
    write_cases(root)
    if damage:
        damage(root)
    images, masks = patterns or (None, None)
    with pytest.raises(data.BadInput, match=message) as error:
        data.load(root, 64, 0, "5-13", 0, images=images, masks=masks)
    assert "\n" not in str(error.value)


def test_a_broken_link_is_an_error_and_very_large_images_are_not(tmp_path, recwarn):
    write_cases(tmp_path)
    (tmp_path / "images/1.png").unlink()
    (tmp_path / "images/1.png").symlink_to(tmp_path / "not fetched")
    with pytest.raises(data.BadInput, match="1.png: cannot be read"):
        data.read(tmp_path)
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")
    assert data.open_image(str(tmp_path / "x.png"), None).size == (20000, 10000)
    assert not recwarn.list
