"""Folders as people have them: layouts, damaged files, and what the reader says about each."""
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import data

NUMBERS = (1, 2, 10)  # three cases; 1 is not 10


def picture(i, size=64):
    """The image of case i: noise, no two alike."""
    return np.random.default_rng(i).integers(0, 256, (size, size)).astype(np.uint8)


def disc(i, size=64, part="all"):
    """The mask of case i: a disc in a place of its own; or the left or right half of it."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask = (x - 0.3 - 0.04 * i) ** 2 + (y - 0.7 + 0.03 * i) ** 2 < 0.04
    if part == "left":
        return mask & (x < 0.3 + 0.04 * i)
    if part == "right":
        return mask & (x >= 0.3 + 0.04 * i)
    return mask


def two_values(i, left, right):
    """A label picture of case i: its disc with one value on the left and another on the right."""
    return disc(i, part="left") * np.uint8(left) + disc(i, part="right") * np.uint8(right)


def write(path, array, **options):
    """Writes an array as a picture; a bool mask as 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    Image.fromarray(array).save(path, **options)


def write_cases(root, numbers=NUMBERS, masks="heart"):
    """A good folder: images/N.png and heart/N.png."""
    for i in numbers:
        write(root / f"images/{i}.png", picture(i))
        write(root / f"{masks}/{i}.png", disc(i))


def case_of(image, numbers):
    """The case whose picture the image is most like."""
    differences = {}
    for i in numbers:
        differences[i] = np.abs(image - data.resize(picture(i), 256).astype(int)).sum()
    return min(differences, key=differences.get)


def check(root, numbers=NUMBERS, classes=("foreground",), **reading):
    """Reads a folder; every image must have come with its own mask."""
    found, names, images, masks = data.read_folder(root, **reading)
    assert found == classes and len(names) == len(numbers)
    for image, mask in zip(images, masks):
        i = case_of(image, numbers)
        assert dice(mask[0], data.resize(disc(i), 256)) > 0.99
    return names


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ------------------------------------------------------------------------------------- layouts

LAYOUTS = {  # file of the image and of its mask; {} is the number of the case
    "carvana": ("imgs/{}.png", "masks/{}_mask.gif"),
    "carvana archive": ("train/ab{}_01.png", "train_masks/ab{}_01_mask.gif"),
    "pytorch-unet": ("data/imgs/{}.png", "data/masks/{}.png"),
    "isic": ("ISIC2018_Task1-2_Training_Input/ISIC_{:07}.png",
             "ISIC2018_Task1_Training_GroundTruth/ISIC_{:07}_segmentation.png"),
    "cvc-clinicdb": ("Original/{}.tif", "Ground Truth/{}.tif"),
    "drive": ("training/images/{}_training.tif", "training/1st_manual/{}_manual1.gif"),
    "nnu-net": ("imagesTr/CASE_{:03}_0000.png", "labelsTr/CASE_{:03}.png"),
    "kvasir": ("Kvasir-SEG/images/cju{}.png", "Kvasir-SEG/masks/cju{}.png"),
    "image and label": ("image/img{}.png", "label/label{}.png"),
    "names with dots": ("images/a.{}.v2.png", "masks/a.{}.v2.mask.png"),
    "brain, a flat folder per patient": ("mri/P_{}/P_{}_1.tif", "mri/P_{}/P_{}_1_mask.tif"),
    "a folder per patient, equal names": ("p{}/image/scan.png", "p{}/mask/scan.png"),
    "cases in their folders": ("images/{}/1.png", "masks/{}/1.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    image, mask = LAYOUTS[layout]
    for i in NUMBERS:
        write(tmp_path / image.format(i, i), picture(i))
        write(tmp_path / mask.format(i, i), disc(i))
    check(tmp_path)


def test_layout_chase_has_images_and_two_observers_in_one_folder(tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"Image_{i:02}L.jpg", picture(i), quality=100)
        write(tmp_path / f"Image_{i:02}L_1stHO.png", disc(i))
        write(tmp_path / f"Image_{i:02}L_2ndHO.png", ~disc(i, part="left"))
    names = check(tmp_path, masks=["1stHO"])
    assert names == ["Image_01L", "Image_02L", "Image_10L"]


def test_layout_montgomery_merges_left_and_right(tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"CXR_png/MCUCXR_{i:04}_0.png", picture(i))
        for side in ("left", "right"):
            write(tmp_path / f"ManualMask/{side}Mask/MCUCXR_{i:04}_0.png", disc(i, part=side))
    check(tmp_path)


def test_layout_shenzhen_has_images_without_masks(tmp_path, capsys):
    for i in range(6):
        write(tmp_path / f"CXR_png/CHNCXR_{i:04}_{i % 2}.png", picture(i))
    for i in (0, 2, 4):
        write(tmp_path / f"mask/CHNCXR_{i:04}_0_mask.png", disc(i))
    with pytest.raises(data.BadInput, match="3 .* without a mask in mask: CHNCXR_0001_1, .*skip"):
        data.read_folder(tmp_path)
    check(tmp_path, (0, 2, 4), skip_unpaired=True)
    assert "3 image(s) without a mask in mask: CHNCXR_0001_1" in capsys.readouterr().out


def test_layout_voc_has_named_colours(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"JPEGImages/{i}.jpg", picture(i), quality=100)
        colours = np.zeros((64, 64, 3), np.uint8)
        colours[disc(i, part="left")] = (128, 0, 0)
        colours[disc(i, part="right")] = (0, 64, 128)
        write(tmp_path / f"SegmentationClass/{i}.png", colours)
    values = data.label_values("Cat=128-0-0,cat=0-64-128")
    check(tmp_path, classes=("cat",), values=values)
    with pytest.raises(data.BadInput, match="every mask of cat is empty"):
        data.read_folder(tmp_path, values=data.label_values("cat=1"))
    assert "values 0, 1000064128, 1128000000" in capsys.readouterr().out
    check(tmp_path, classes=("cat",), values=data.label_values("cat=1000064128,cat=1128000000"))


def test_layout_data_science_bowl_unites_single_objects(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"id{i}/images/id{i}.png", picture(i))
        write(tmp_path / f"id{i}/masks/a{i}.png", disc(i, part="left"))
        write(tmp_path / f"id{i}/masks/b{i}.png", disc(i, part="right"))
    assert check(tmp_path) == ["id1", "id10", "id2"]
    assert "3 image(s) with several masks in masks, which are united" in capsys.readouterr().out


def test_layout_train_and_val_hold_equal_names(tmp_path):
    for i in range(6):
        part = ("train", "val")[i % 2]
        write(tmp_path / f"{part}/images/{i // 2}.png", picture(i))
        write(tmp_path / f"{part}/masks/{i // 2}.png", disc(i))
    names = check(tmp_path, range(6))
    assert names == ["train/0", "train/1", "train/2", "val/0", "val/1", "val/2"]


def test_layout_instance_labels(tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", picture(i))
        write(tmp_path / f"labels/{i}.png", two_values(i, 1, 7))
    check(tmp_path, classes=("cells",), values=data.label_values("cells=1-"))


def test_folders_can_be_said(tmp_path):
    write_cases(tmp_path / "in", masks="b")
    (tmp_path / "in/images").rename(tmp_path / "in/a")
    for i in NUMBERS:
        write(tmp_path / f"in/other/{i}.png", picture(i + 1))
    check(tmp_path / "in", classes=("b",), images=["a"], masks=["b"])
    shutil.move(tmp_path / "in/b", tmp_path / "elsewhere")
    check(tmp_path / "in", classes=("elsewhere",), images=["a"], masks=[tmp_path / "elsewhere"])
    with pytest.raises(data.BadInput, match="no folder nowhere with pictures, .* a, other"):
        data.read_folder(tmp_path / "in", masks=["nowhere"])


def test_a_path_below_the_folder_can_be_said(tmp_path, monkeypatch):
    write_cases(tmp_path / "in")
    write_cases(tmp_path / "in", masks="other")
    monkeypatch.chdir(tmp_path)
    check("in", classes=("heart",), masks=["in/heart"])


def test_a_path_may_be_said_in_another_way(tmp_path, monkeypatch):
    write_cases(tmp_path / "set")
    (tmp_path / "set/images").rename(tmp_path / "set/raw")
    os.symlink(tmp_path / "set", tmp_path / "link")
    monkeypatch.chdir(tmp_path / "set/raw")
    for ways in ({"images": [str(tmp_path / "link/raw")]}, {"images": ["../raw"]},
                 {"images": ["../raw"], "masks": ["../heart"]}):
        check(tmp_path / "set", classes=("heart",), **ways)


def test_long_equal_names_pair_at_the_first_try(monkeypatch):
    tried, shortened = [], data.shortened

    def remembered(names):
        for part in shortened(names):
            tried.append(part)
            yield part
    monkeypatch.setattr(data, "shortened", remembered)
    names = [f"a1-b2-c3_{k}_d4-e5-f6" for k in range(20)]
    assert data.match_names(names, names) == dict(zip(names, names))
    assert tried == [names, names]  # of hundreds of ways to shorten both


def test_names_pair_whole_numbers_and_not_beginnings():
    assert data.match_names(["1", "11", "12"], ["11", "12"]) == {"11": "11", "12": "12"}
    assert data.match_names(["1_t", "2_t", "10_t"], ["m_10", "m_1"]) == {
        "10_t": "m_10", "1_t": "m_1"}
    assert data.match_names(["a_x", "p1_a_x", "p1_b_x"], ["p1_a", "p1_b"]) == {
        "p1_a_x": "p1_a", "p1_b_x": "p1_b"}
    assert data.match_names(["1", "2"], ["10", "20"]) == {}


def test_images_without_labels(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"{i}.png", picture(i, 256))
    names, images = data.load_images(tmp_path, 128)
    assert names == ["1", "10", "2"] and images.shape == (3, 128, 128)
    assert np.array_equal(images[1], data.resize(picture(10, 256), 128))
    assert "3 images, and 0 masks" in capsys.readouterr().out
    write(tmp_path / "images/1.png", picture(1, 256))
    assert data.load_images(tmp_path, 128)[0] == ["1", "10", "2", "images/1"]
    write(tmp_path / "images/1.bmp", picture(3, 256))
    with pytest.raises(data.BadInput, match="several images are called images/1; rename them"):
        data.load_images(tmp_path, 128)


# ------------------------------------------------------------------------------- silent damage

def smooth(mask, width=3):
    """A mask with soft edges: the mean over a square of pixels, 0 to 255."""
    padded = np.pad(mask.astype(float), width // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width, width))
    return np.rint(255 * windows.mean(axis=(2, 3))).astype(np.uint8)


def test_fault_1_soft_masks_are_cut_at_half(tmp_path, capsys):
    write_cases(tmp_path / "png")
    write_cases(tmp_path / "jpg")
    for i in NUMBERS:
        write(tmp_path / f"png/heart/{i}.png", smooth(disc(i)))
        (tmp_path / f"jpg/heart/{i}.png").unlink()
        write(tmp_path / f"jpg/heart/{i}.jpg", disc(i), quality=60)
    check(tmp_path / "png", classes=("heart",))
    check(tmp_path / "jpg", classes=("heart",))
    assert capsys.readouterr().out.count("3 mask(s) in heart with soft edges, cut at half") == 2


def test_fault_1_many_values_without_two_peaks_stay_refused(tmp_path):
    write_cases(tmp_path)
    three_classes = smooth(disc(1)) // 2 + smooth(disc(1, part="left")) // 2
    ring = smooth(disc(1)) + (data.dilate(disc(1), 9) & ~data.dilate(disc(1), 1)) * np.uint8(128)
    for wrong in (picture(1), three_classes, ring, disc(1) * (picture(2) % 20)):
        write(tmp_path / "heart/1.png", wrong)
        with pytest.raises(data.BadInput, match="heart has the values 0, .* masks have 0 and anot"):
            data.read_folder(tmp_path)


def write_turned(path, shown, tag):
    """Writes a JPG that shows `shown` after the rotation of its EXIF tag."""
    stored = {3: shown[::-1, ::-1], 6: np.rot90(shown), 1: shown}[tag]
    exif = Image.Exif()
    exif[0x0112] = tag
    write(path, np.ascontiguousarray(stored), exif=exif, quality=100)


@pytest.mark.parametrize("tag", [3, 6])
def test_fault_2_exif_rotation_is_applied_and_said(tag, tmp_path, capsys):
    write_cases(tmp_path)
    for i in NUMBERS:
        (tmp_path / f"images/{i}.png").unlink()
        write_turned(tmp_path / f"images/{i}.jpg", picture(i), tag)
    check(tmp_path, classes=("heart",))
    assert "3 image(s) turned as EXIF says, unless" in capsys.readouterr().out
    images = data.read_folder(tmp_path, exif=False)[2]
    with Image.open(tmp_path / "images/1.jpg") as raw:
        assert np.array_equal(images[0], data.resize(np.asarray(raw), 256))


def test_fault_2_the_reading_that_fits_the_mask_is_taken(tmp_path, capsys):
    wide = {i: np.tile(picture(i), 2) for i in NUMBERS}  # 64 x 128
    for i in NUMBERS:
        write_turned(tmp_path / f"images/{i}.jpg", wide[i].T, 6)  # stored wide, shown high
        write(tmp_path / f"heart/{i}.png", np.tile(disc(i), 2))
    images = data.read_folder(tmp_path)[2]
    assert "3 image(s) turned as EXIF says, unless only unturned fits" in capsys.readouterr().out
    stored = np.rot90(wide[1].T)
    assert np.abs(images[0] - data.resize(np.ascontiguousarray(stored), 256).astype(int)).mean() < 3


@pytest.mark.parametrize("tag", [3, 6])
def test_fault_2_a_mask_with_a_tag_is_turned_as_well(tag, tmp_path, capsys):
    write_cases(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = tag
    for i in NUMBERS:
        (tmp_path / f"images/{i}.png").unlink()
        write_turned(tmp_path / f"images/{i}.jpg", picture(i), tag)
        stored = disc(i)[::-1, ::-1] if tag == 3 else np.rot90(disc(i))
        write(tmp_path / f"heart/{i}.png", np.ascontiguousarray(stored), exif=exif)
    check(tmp_path, classes=("heart",))
    assert "3 mask(s) turned as EXIF says; see --no-exif" in capsys.readouterr().out


def test_fault_2_a_faulty_exif_block_is_no_obstacle(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    block = bytearray(exif.tobytes())
    first = block.index(b"\x00\x01")  # the number of tags, big-endian: make room for a second one
    block = block[:first] + b"\x00\x02" + block[first + 2:first + 14]
    block += struct.pack(">HHI4s", 0x011A, 2, 3, b"72\0\0")  # a resolution that is a text
    write(tmp_path / "x.jpg", picture(1), exif=bytes(block) + bytes(4), quality=100)
    turned = data.read_image(tmp_path / "x.jpg", data.Counter())
    assert np.abs(turned - picture(1)[::-1, ::-1].astype(int)).mean() < 3


def test_fault_2_turned_tiffs_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "x.tif", picture(1), exif=exif)
    with pytest.raises(data.BadInput, match="x.tif: a TIFF with a rotation tag; save it turned"):
        data.open_picture(tmp_path / "x.tif")


def write_png16(path, array):
    """A PNG of 16-bit colours (H, W, 3), which Pillow cannot write."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content))
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_fault_3_colours_of_16_bits_are_refused(tmp_path):
    write_cases(tmp_path)
    colours = np.stack([picture(1), picture(2), picture(3)], axis=-1)
    write_png16(tmp_path / "images/1.png", colours.astype(np.uint16) * 16)
    with pytest.raises(data.BadInput, match="images/1.png: colours of 16 bits.* save it with 8"):
        data.read_folder(tmp_path)


@pytest.mark.parametrize("kind", ["as it is", "hot pixel", "padding"])
def test_fault_3_more_than_8_bits_keep_their_greys(kind, tmp_path, capsys):
    write_cases(tmp_path)
    for i in NUMBERS:
        deep = picture(i).astype(np.int32) * 4 + 1000
        if kind == "hot pixel":
            deep[5, 5] = 60000
        if kind == "padding":
            deep[:4] = -32768
        (tmp_path / f"images/{i}.png").unlink()
        write(tmp_path / f"images/{i}.tif", deep)
        image = data.read_image(tmp_path / f"images/{i}.tif", data.Counter())
        assert np.abs(image[6:].astype(int) - picture(i)[6:]).max() <= 3
    data.read_folder(tmp_path)
    assert "3 image(s) of more than 8 bits, stretched" in capsys.readouterr().out


def test_fault_4_links_are_followed(tmp_path):
    write_cases(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in ("images", "heart"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "linked/heart/circle").symlink_to(tmp_path / "linked")
    check(tmp_path / "linked", classes=("heart",))


def test_fault_4_other_formats_are_read_or_refused(tmp_path):
    write_cases(tmp_path)
    write_cases(tmp_path, masks="lungs")
    for i in NUMBERS:
        (tmp_path / f"heart/{i}.png").rename(tmp_path / f"heart/{i}.npy")
    with pytest.raises(data.BadInput, match="heart: no picture can be read; .* --masks"):
        data.read_folder(tmp_path)
    for i in NUMBERS:
        (tmp_path / f"heart/{i}.npy").unlink()
    with pytest.raises(data.BadInput, match="heart: no picture"):
        data.read_folder(tmp_path)
    for i in NUMBERS:
        write(tmp_path / f"heart/{i}.ppm", disc(i))
    assert data.read_folder(tmp_path)[0] == ("lungs", "heart")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/1.xml").write_text("")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/1.pt").write_text("")
    with pytest.raises(data.BadInput, match="models: no picture"):
        data.read_folder(tmp_path)
    check(tmp_path, classes=("heart",), masks=["heart"])


def test_fault_4_what_is_passed_over_is_counted(tmp_path, capsys):
    write_cases(tmp_path)
    (tmp_path / "heart/config.json").write_text("{}")
    for junk in (".DS_Store", "heart/._1.png", "@eaDir/1.png", ".git/objects/1", "heart/Thumbs.db"):
        (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / junk).write_text("junk")
    write(tmp_path / "runs/a/suspects.png", picture(7))
    for name in ("config.json", "log.csv"):
        (tmp_path / "runs/a" / name).write_text("")
    check(tmp_path, classes=("heart",))
    out = capsys.readouterr().out
    for ending in (".json", ".png", ".DS_Store", ".db"):
        assert f"1 file(s) passed over, hidden or no picture: {ending}\n" in out
    assert "3 folder(s) passed over: hidden, a run of train.py, or" in out


def test_fault_4_folders_for_texts_are_passed_over(tmp_path):
    write_cases(tmp_path)
    for name in ("yolo/1.txt", "yolo/classes.names", "doc/LICENSE", "doc/README.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    check(tmp_path, classes=("heart",))


def test_fault_4_an_unreadable_folder_is_an_error_unless_it_is_hidden(tmp_path, monkeypatch):
    write_cases(tmp_path)

    def walk(root, onerror, **options):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / name)))
        yield from unlocked(root, **options)
    unlocked = os.walk
    monkeypatch.setattr(data.os, "walk", walk)
    name = ".Trashes"
    check(tmp_path, classes=("heart",))
    name = "lungs"
    with pytest.raises(PermissionError, match="lungs"):
        data.read_folder(tmp_path)


def test_fault_4_a_broken_link_is_an_error(tmp_path):
    write_cases(tmp_path)
    for name in ("images/1.png", "heart/1.png"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / "not fetched")
    with pytest.raises(data.BadInput, match="1.png: cannot be read"):
        data.read_folder(tmp_path)


def test_fault_5_foreground_lost_on_the_grid_is_said(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", picture(i, 1024))
        lesion, vessels = np.zeros((2, 1024, 1024), bool)
        lesion[101:103, 101:103] = True
        vessels[1::64] = vessels[2::64] = vessels[3::64] = True  # three of the four pixels of a row
        if i == 1:
            lesion[500:600, 500:600] = True
        write(tmp_path / f"lesion/{i}.png", lesion)
        write(tmp_path / f"vessels/{i}.png", vessels)
    data.read_folder(tmp_path)
    out = capsys.readouterr().out
    assert "lost in 2 masks, area changed in 2 (x 0.00)" in out
    assert "lost in 0 masks, area changed in 3 (x 1.33)" in out
    assert "crop the pictures" in out


def test_fault_6_a_class_may_have_several_values_and_other_values_are_said(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", picture(i))
        labels = two_values(i, 1, 2)
        labels[data.dilate(disc(i), 2) & ~disc(i)] = 255  # void, as in VOC
        write(tmp_path / f"labels/{i}.png", labels)
    check(tmp_path, classes=("lungs",), values=data.label_values("lungs=1,left lung=2"))
    out = capsys.readouterr().out
    assert "3 label picture(s) with values of no class, such as 255: background" in out


@pytest.mark.parametrize("text", [
    "lungs", "lungs=a", "=1", "a=1-2-3-4"])
def test_fault_6_values_that_cannot_be_meant(text):
    with pytest.raises(data.BadInput, match="not like"):
        data.label_values(text)


def test_fault_6_values_are_greys_ranges_and_colours():
    assert data.label_values("Lung=1, left lung = 2-4,tube=128-0-64,void=200-200-200") == {
        "lungs": [[1, 1], [2, 4]], "tube": [[1128000064, 1128000064]], "void": [[200, 200]]}
    assert data.label_values("cells=1-")["cells"][0][1] > 1255255255


def test_fault_9_cmyk_is_no_negative(tmp_path):
    Image.fromarray(smooth(disc(1), 9)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    image = data.read_image(tmp_path / "x.jpg", data.Counter())
    assert np.abs(image.astype(int) - smooth(disc(1), 9)).max() < 10


def test_fault_9_several_pages_are_refused(tmp_path):
    write_cases(tmp_path)
    (tmp_path / "heart/1.png").unlink()
    pages = [Image.fromarray(disc(i)) for i in (1, 2, 3)]
    pages[0].save(tmp_path / "heart/1.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(data.BadInput, match="heart/1.tif: 3 pages in one file"):
        data.read_folder(tmp_path)


def with_alpha(mask, colour):
    """A mask drawn in one colour upon transparency."""
    drawn = np.full((*mask.shape, 4), colour, np.uint8)
    drawn[..., 3] = mask * np.uint8(255)
    return drawn


@pytest.mark.parametrize("colour", [0, 255])
def test_fault_10_masks_in_the_alpha_channel(colour, tmp_path):
    write_cases(tmp_path)
    write(tmp_path / "heart/1.png", with_alpha(disc(1), colour))
    check(tmp_path, classes=("heart",))
    coloured = with_alpha(disc(1), 255)
    coloured[:9, :9, :3] = 7
    write(tmp_path / "heart/1.png", coloured)
    with pytest.raises(data.BadInput, match="heart/1.png: is transparent in part"):
        data.read_folder(tmp_path)


def test_fault_10_all_classes_are_named_and_can_be_chosen(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}_training.png", picture(i))
        write(tmp_path / f"1st_manual/{i}_manual1.gif", disc(i))
        write(tmp_path / f"mask/{i}_training_mask.gif", disc(0))
    assert data.read_folder(tmp_path)[0] == ("1st_manual", "mask")
    out = capsys.readouterr().out
    assert "masks in 1st_manual (--masks chooses)" in out and "masks in mask (--masks" in out
    check(tmp_path, masks=["1st_manual"])
    assert "3 picture(s) passed over in mask" in capsys.readouterr().out


def write_palette(path, indices, colours):
    """A palette PNG of indices (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette([part for colour in colours for part in colour])
    image.save(path)


def test_fault_10_palette_masks_count_indices_or_colours(tmp_path, capsys):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", picture(i))
        write_palette(tmp_path / f"labels/{i}.png", two_values(i, 1, 2),
                      [(0, 0, 0), (128, 0, 0), (0, 128, 0)])
    check(tmp_path, classes=("cells",), values=data.label_values("cells=1,cells=2"))
    assert "values 0, 1, 2" in capsys.readouterr().out
    check(tmp_path, classes=("cells",), values=data.label_values("cells=128-0-0,cells=0-128-0"))
    assert "values 0, 1000128000, 1128000000" in capsys.readouterr().out


def test_fault_10_a_palette_counts_whichever_of_its_colours_a_file_uses(tmp_path):
    for i in NUMBERS:
        write(tmp_path / f"images/{i}.png", picture(i))
        indices = two_values(i, 1, 1)
        if i == 1:
            indices[:8, :8] = 2
        write_palette(tmp_path / f"labels/{i}.png", indices,
                      [(0, 0, 0), (128, 128, 128), (128, 0, 0)])
    _, _, _, masks = data.read_folder(tmp_path, values=data.label_values("cells=1,dirt=2"))
    assert np.array_equal(masks.any(axis=(2, 3)), [[True, True], [True, False], [True, False]])


def test_fault_10_foreground_is_not_replaced(tmp_path):
    write_cases(tmp_path, masks="foreground")
    for i in NUMBERS:
        write(tmp_path / f"background_mask/{i}.png", disc(i, part="left"))
    classes, _, _, masks = data.read_folder(tmp_path)
    assert classes == ("background_mask", "foreground")
    assert masks[:, 1].sum() > masks[:, 0].sum()


def test_fault_12_split_by_patient():
    names = [f"p{i // 3}_{i % 3}" for i in range(30)]
    training, test = data.split_by_group(names, r"p\d+", 0)
    assert sorted([*training, *test]) == list(range(30))
    assert len(training) == 3 * round(10 * 165 / 247)
    assert not {names[i][:2] for i in training} & {names[i][:2] for i in test}
    with pytest.raises(data.BadInput, match="not found in p0_0"):
        data.split_by_group(names, "q", 0)
    for pattern in ("(", "a{99999999999}"):
        with pytest.raises(data.BadInput, match="no regular expression"):
            data.split_by_group(names, pattern, 0)


def test_fault_13_very_large_pictures_are_read(tmp_path, monkeypatch, recwarn):
    assert Image.MAX_IMAGE_PIXELS is None
    Image.new("1", (20000, 10000)).save(tmp_path / "x.png")
    assert data.open_picture(tmp_path / "x.png").size == (20000, 10000) and not recwarn.list


def test_digests_tell_what_changed():
    _, cases = data.load_all("phantoms:4", 64)
    before = data.digests(cases)
    cases.labels[2, 1, 30, 30] ^= True  # load_all's labels are its clean ones as well
    after = data.digests(cases)
    assert [a == b for a, b in zip(before, after)] == [True, True, False, True]
    assert len(set(before)) == 4


# ------------------------------------------------------------------- good folders, and bad ones

def test_folder_comes_back_as_written(tmp_path):
    images, masks = data.phantoms(5)
    names = ["b", "a", "10", "9", "C"]
    for i, name in enumerate(names):
        write(tmp_path / f"images/{name}.png", images[i])
        for c, organ in enumerate(data.CLASSES):
            write(tmp_path / f"{organ}/{name}.png", masks[i, c])
    classes, stems, got_images, got_masks = data.read_folder(tmp_path)
    assert classes == data.CLASSES
    assert sorted(stems) == ["10", "9", "C", "a", "b"]
    for stem, image, mask in zip(stems, got_images, got_masks):
        i = names.index(stem)
        assert np.array_equal(image, images[i]) and np.array_equal(mask, masks[i])


def test_left_and_right_are_merged_and_other_classes_keep_their_names(tmp_path):
    write_cases(tmp_path, masks="left ventricle")
    for i in NUMBERS:
        write(tmp_path / f"Left Lung/{i}.png", disc(i, part="left"))
        write(tmp_path / f"masks/right_lung/{i}.png", disc(i, part="right").astype(np.uint8) * 1)
    check(tmp_path, classes=("lungs", "left ventricle"))


def test_jsrt_archives_as_they_unzip(tmp_path):
    """Raw 16-bit big-endian inverted images beside GIF masks at half the size."""
    images, masks = data.phantoms(3)
    names = ["JPCLN001", "JPCLN002", "JPCNN001"]
    (tmp_path / "All247images").mkdir()
    for i, name in enumerate(names):
        raw = (4095 - images[i].astype(">u2") * 16).repeat(8, axis=0).repeat(8, axis=1)
        raw.astype(">u2").tofile(tmp_path / "All247images" / f"{name}.IMG")
        for organ, mask in (("left lung", 0), ("right clavicle", 2), ("heart", 1)):
            large = masks[i, mask].repeat(4, axis=0).repeat(4, axis=1)
            write(tmp_path / f"scratch/fold{i % 2}/masks/{organ}/{name}.gif", large)
    classes, stems, got_images, got_masks = data.read_folder(tmp_path)
    assert classes == data.CLASSES and stems == names
    assert np.abs(got_images.astype(int) - images).mean() < 3
    for mask, got in zip(masks.reshape(9, 256, 256), got_masks.reshape(9, 256, 256)):
        assert dice(mask, got) > 0.97


def test_label_pictures_with_grey_values(tmp_path):
    _, masks = data.phantoms(3)
    values = np.where(masks[:, 1], 85, np.where(masks[:, 0], 255, 170)).astype(np.uint8)
    for i in range(3):
        write(tmp_path / f"images/{i}.png", picture(i))
        write(tmp_path / f"Masks/{i}.png", values[i])
    classes, _, _, got = data.read_folder(tmp_path, values=data.label_values("Heart=85,lung=255"))
    assert classes == ("lungs", "heart")
    assert np.array_equal(got[:, 0], values == 255) and np.array_equal(got[:, 1], values == 85)


@pytest.mark.parametrize("kind", ["rgb.png", "rgba.png", "palette.gif", "x.bmp", "x.tif", "x.webp"])
def test_pictures_of_every_kind_are_read_as_grey(kind, tmp_path):
    grey = picture(1)
    array = grey
    if kind == "rgb.png":
        array = np.stack([grey] * 3, axis=-1)
    if kind == "rgba.png":
        array = np.stack([grey] * 3 + [np.full_like(grey, 9)], axis=-1)
    options = {"lossless": True} if kind == "x.webp" else {}
    write(tmp_path / kind, array, **options)
    assert np.array_equal(data.read_image(tmp_path / kind, data.Counter()), grey)


def test_colours_are_averaged(tmp_path):
    write(tmp_path / "x.png", np.stack([picture(1), picture(2), picture(3)], axis=-1))
    expected = np.rint((picture(1).astype(float) + picture(2) + picture(3)) / 3)
    assert np.array_equal(data.read_image(tmp_path / "x.png", data.Counter()), expected)


def test_clean_labels_of_another_folder_are_what_is_measured_on(tmp_path):
    write_cases(tmp_path / "noisy", range(6))
    write_cases(tmp_path / "clean", range(6))
    write(tmp_path / "noisy/heart/3.png", data.dilate(disc(3), 9))
    noisy, clean = str(tmp_path / "noisy"), str(tmp_path / "clean")
    _, training, test = data.load(noisy, 64, 0, "5-13", 0, clean=clean)
    for cases in (training, test):
        assert cases.noisy.tolist() == [name == "3" for name in cases.names]
        assert [(a != b).any() for a, b in zip(cases.labels, cases.clean)] == cases.noisy.tolist()
    write(tmp_path / "clean/images/7.png", picture(7))
    write(tmp_path / "clean/heart/7.png", disc(7))
    with pytest.raises(data.BadInput, match="7 cases of heart; --clean needs the 6 of heart"):
        data.load(noisy, 64, 0, "5-13", 0, clean=clean)


GIVEN_AND_CLEAN = [  # pixels of (wall, door) in the given and in the clean label, and lowest Dice
    ((100, 100), (100, 100), 1.0),
    ((99, 100), (100, 100), 198 / 199),   # 0.99497
    ((98, 100), (100, 100), 196 / 198),   # 0.98990
    ((100, 2), (100, 1), 2 / 3),
    ((100, 0), (100, 0), 1.0),            # two empty masks
    ((100, 0), (100, 5), 0.0)]


def row_of(pixels):
    """A mask of so many pixels on the grid of 256."""
    mask = np.zeros((256, 256), bool)
    mask[100, :pixels] = True
    return mask


@pytest.mark.parametrize("limit, noisy", [
    (0.0, []), (0.5, [5]), (0.99, [2, 3, 5]), (0.995, [1, 2, 3, 5]), (1.0, [1, 2, 3, 5])])
def test_labels_count_as_noisy_below_a_dice_with_the_clean_one(limit, noisy, tmp_path):
    for i, (given, clean, lowest) in enumerate(GIVEN_AND_CLEAN):
        for name, pixels in (("given", given), ("clean", clean)):
            write(tmp_path / name / f"images/{i}.png", picture(i, 256))
            write(tmp_path / name / f"wall/{i}.png", row_of(pixels[0]))
            write(tmp_path / name / f"door/{i}.png", row_of(pixels[1]))
        labels = [np.stack([row_of(pixels) for pixels in label]) for label in (given, clean)]
        assert data.lowest_dice(*labels) == pytest.approx(lowest)
    both = data.load(tmp_path / "given", 64, 0, "5-13", 0, clean=tmp_path / "clean",
                     clean_dice=limit)[1:]
    found = [name for cases in both for name, bad in zip(cases.names, cases.noisy) if bad]
    assert sorted(found) == [str(i) for i in noisy]
    operations = {operation for cases in both for operation in cases.operation}
    assert operations <= {"", "given"} and "clean_dice" in data.LOAD


def change_all(root, change):
    """Changes every heart mask."""
    for path in (root / "heart").iterdir():
        with Image.open(path) as mask:
            array = np.asarray(mask)
        write(path, change(array))


def remove_image(root):
    (root / "images/1.png").unlink()


def remove_mask(root):
    (root / "heart/1.png").unlink()


def remove_images(root):
    shutil.rmtree(root / "images")


def empty_file(root):
    (root / "images/1.png").write_bytes(b"")


def cut_file(root):
    path = root / "images/1.png"
    path.write_bytes(path.read_bytes()[:300])


def text_as_picture(root):
    (root / "heart/1.png").write_text("no picture")


def short_img(root):
    (root / "images/1.png").rename(root / "images/1.img")


def image_twice(root):
    write(root / "images/1.TIF", picture(1))


def large_mask(root):
    write(root / "lungs/1.png", disc(1, 128))
    write(root / "lungs/2.png", disc(2))
    write(root / "lungs/10.png", disc(10))


def mask_twice(root):
    write(root / "heart/1.bmp", disc(1))


def other_shape(root):
    write(root / "heart/1.png", disc(1)[:40])


def three_colours(root):
    colours = np.random.default_rng(0).integers(0, 2, (64, 64, 3)).astype(np.uint8) * 255
    write(root / "heart/1.png", colours)


def other_grey(root):
    write(root / "heart/1.png", disc(1) * np.uint8(7))


def no_background(root):
    write(root / "heart/1.png", disc(1) * np.uint8(2) + np.uint8(1))


def blurred_colours(root):
    coloured = np.stack([disc(1) * np.uint8(255)] * 2 + [disc(0) * np.uint8(0)], axis=-1)
    (root / "heart/1.png").unlink()
    write(root / "heart/1.jpg", coloured)


def no_pictures_of_a_class(root):
    (root / "lungs").mkdir()
    for name in ("1.dcm", "2.dcm", "10.dcm", "README.txt"):
        (root / "lungs" / name).write_text("x")


def no_visible_pictures_of_a_class(root):
    write(root / "lungs/.hidden/1.png", disc(1))


def inverted(root):
    change_all(root, np.invert)


def all_empty(root):
    change_all(root, np.zeros_like)


def two_folders_of_a_class(root):
    shutil.copytree(root / "heart", root / "lung")
    shutil.copytree(root / "heart", root / "lungs")


def one_side_short(root):
    shutil.copytree(root / "heart", root / "left lung")
    shutil.copytree(root / "heart", root / "right lung")
    (root / "right lung/1.png").unlink()


def constant_image(root):
    write(root / "images/1.png", np.full((64, 64), 9, np.uint8))


def nan_image(root):
    (root / "images/1.png").unlink()
    write(root / "images/1.tif", np.full((64, 64), np.nan, np.float32))


def two_cases(root):
    (root / "images/1.png").unlink()
    (root / "heart/1.png").unlink()


def too_many_classes(root):
    for k in range(20):
        shutil.copytree(root / "heart", root / f"organ{k}")


BAD = [  # what is done to a good folder, and what the one line must say
    (remove_image, r"1 mask\(s\) without an image in heart: 1.png; --skip-.* in images; .* --im"),
    (remove_mask, r"1 image\(s\) without a mask in heart: 1; --skip-unpaired"),
    (remove_images, "found 3 images and 0 masks"),
    (empty_file, "images/1.png: cannot be read"),
    (cut_file, "images/1.png: cannot be read"),
    (text_as_picture, "heart/1.png: cannot be read"),
    (short_img, "images/1.img: cannot be read"),
    (image_twice, "several images are called 1;"),
    (mask_twice, "several masks in heart are called 1"),
    (large_mask, r"images/1.png: shape \(64, 64\), masks \(64, 64\), \(128, 128\); make"),
    (other_shape, r"images/1.png: shape \(64, 64\), masks \(40, 64\); make alike"),
    (three_colours, "heart has the values 0, 255, 1000000255, .*1RRRGGGBBB.* --values"),
    (blurred_colours, "1.jpg: heart has the values .* come from blurring, .* as grey PNG"),
    (no_pictures_of_a_class, "lungs: no picture can be read"),
    (no_visible_pictures_of_a_class, "lungs: no picture can be read"),
    (other_grey, "10.png: heart has the values 0, 7, 255 "),
    (no_background, "1.png: heart has the values 1, 3 "),
    (inverted, "seem inverted"),
    (all_empty, "every mask of heart is empty or full"),
    (two_folders_of_a_class, "lung, lungs all seem to hold lungs"),
    (one_side_short, "without a mask in right lung: 1;"),
    (constant_image, "images/1.png: constant"),
    (nan_image, "images/1.tif: constant or not finite"),
    (two_cases, "2 images with masks; at least three"),
    (too_many_classes, "21 classes, at most 20"),
]


@pytest.mark.parametrize("damage, message", BAD)
def test_bad_folders_are_refused_in_one_line(damage, message, tmp_path):
    write_cases(tmp_path)
    check(tmp_path, classes=("heart",))
    damage(tmp_path)
    with pytest.raises(data.BadInput, match=message) as error:
        data.read_folder(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_all_offenders_are_named_at_most_ten(tmp_path):
    write_cases(tmp_path, range(15))
    for i in range(12):
        (tmp_path / f"heart/{i}.png").unlink()
    with pytest.raises(data.BadInput, match=" 0, 1, 10, 11, .* and 2 more;"):
        data.read_folder(tmp_path)


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(data.BadInput, match="no such folder"):
        data.read_folder(tmp_path / "nowhere")
    with pytest.raises(data.BadInput, match="write phantoms"):
        data.read("phantoms:3", masks=["heart"])


def test_names_that_begin_alike_are_no_flat_folder(tmp_path):
    for name, i in (("a", 1), ("a.b", 2), ("a_b", 10)):
        write(tmp_path / f"images/{name}.png", picture(i))
        write(tmp_path / f"heart/{name}.png", disc(i))
    assert check(tmp_path, classes=("heart",)) == ["a", "a.b", "a_b"]
