"""Data for Pick-and-Learn: phantoms, folders of images and masks, label noise, the data split.

Images are uint8 (N, H, W), labels are bool (N, classes, H, W). Needs numpy and Pillow only.
The phantoms' drawing code at the end is an asset: skip it when reading.
"""
import functools
import hashlib
import math
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

CLASSES = ("lungs", "heart", "clavicles")
GRID = 256  # the paper's picture size, to which data are brought; the noise band counts its pixels
READING = ("images", "masks", "values", "skip_unpaired", "exif")  # options: how a folder is read
LOAD = ("data", "size", "noise", "band", "seed", "noise_kind", "clean", "group", *READING)

PICTURES = set(".img .png .gif .bmp .tif .tiff .jpg .jpeg .webp .ppm .pgm".split())
TEXTS = {".txt", ".xml", ".json", ".csv", ".md", ".html"}  # these may lie in folders of their own
JUNK = {"@eadir", "__macosx", "thumbs", "thumbs.db", "desktop.ini"}
MASK_WORD = re.compile("mask|label|truth|manual|annot|segment|^gt$")  # in the name of a folder
IMAGE_WORD = re.compile("image|img")
ORIENTATION = 0x0112  # the EXIF tag of a rotation
COLOUR = 2 ** 24  # a coloured pixel of a mask counts as COLOUR + 65536 red + 256 green + blue
Image.MAX_IMAGE_PIXELS = None  # microscope slides are larger than Pillow's limit against bad files


class BadInput(Exception):
    """Bad data or arguments; the message is one line: what was found, where, what to do."""


class Cases(NamedTuple):
    """Images, labels to train on, clean labels to measure with, and what was done to each."""
    names: list          # N file stems
    images: np.ndarray   # (N, S, S) uint8
    labels: np.ndarray   # (N, classes, S, S) bool, possibly noisy
    clean: np.ndarray    # (N, classes, S, S) bool
    operation: list      # N times "" (clean), a name in DAMAGE, or "given" (--clean is different)
    pixels: np.ndarray   # (N,) int, radius of the operation on the 256-pixel grid, or 0

    @property
    def noisy(self):
        """(N,) bool: which labels are known not to be clean."""
        return np.array([operation != "" for operation in self.operation])


# --------------------------------------------------------------------- morphology and label noise

def dilate(mask, n):
    """Dilation of a bool mask (..., H, W) by the disc of radius n: all pixels within n of the mask.

    Distances are Euclidean. Nothing lies outside the picture: its border grows or eats no mask.
    """
    rows = [np.array(mask, dtype=bool)]  # rows[r]: the mask grown by r pixels along each row
    for r in range(1, n + 1):
        grown = rows[-1].copy()
        grown[..., r:] |= rows[0][..., :-r]
        grown[..., :-r] |= rows[0][..., r:]
        rows.append(grown)
    grown = rows[n].copy()
    for dy in range(1, n + 1):  # a disc is a stack of rows: at dy it reaches sqrt(n^2 - dy^2) far
        row = rows[math.isqrt(n * n - dy * dy)]
        grown[..., dy:, :] |= row[..., :-dy, :]
        grown[..., :-dy, :] |= row[..., dy:, :]
    return grown


def erode(mask, n):
    """Erosion of a bool mask (..., H, W) by the same disc: pixels farther than n from others."""
    return ~dilate(~np.asarray(mask, dtype=bool), n)


def shift(masks, n, rng):
    """Masks (classes, H, W) moved together, circularly, by n pixels in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.roll(masks, (round(n * np.sin(angle)), round(n * np.cos(angle))), axis=(-2, -1))


def omit(masks, rng):
    """Masks (classes, H, W), one class of which, at random, is left out."""
    left_out = masks.copy()
    left_out[rng.integers(len(masks))] = False
    return left_out


def ragged(masks, n, rng):
    """Masks (classes, H, W) dilated by n in random blocks of 2n x 2n pixels, eroded elsewhere."""
    height, width = masks.shape[-2:]
    blocks = rng.integers(2, size=[math.ceil(height / (2 * n)), math.ceil(width / (2 * n))])
    outwards = blocks.repeat(2 * n, axis=0).repeat(2 * n, axis=1)[:height, :width] == 1
    return np.where(outwards, dilate(masks, n), erode(masks, n))


DAMAGE = ("erode", "dilate", "shift", "omit", "ragged")  # the paper's are the first two


def damage(masks, operation, n, rng):
    """Masks (classes, H, W) after one of the operations in DAMAGE with radius n."""
    if operation == "erode":
        return erode(masks, n)
    if operation == "dilate":
        return dilate(masks, n)
    if operation == "shift":
        return shift(masks, n, rng)
    if operation == "omit":
        return omit(masks, rng)
    return ragged(masks, n, rng)


def corrupt_labels(labels, noise, band, seed, kind="erode-dilate"):
    """Section 3.2: damages exactly round(noise * N) of the labels (N, classes, GRID, GRID).

    Each of these gets one operation for all classes, out of `kind` (names in DAMAGE joined by "-"),
    and one radius n, band[0] <= n <= band[1]. Returns the noisy copy, and each label's
    operation ("" where untouched) and radius (0 where untouched, and for "omit", which has none).
    """
    rng = np.random.default_rng(seed)
    kinds = kind.split("-")
    noisy = labels.copy()
    operation = [""] * len(labels)
    pixels = np.zeros(len(labels), dtype=int)
    for i in rng.permutation(len(labels))[:round(noise * len(labels))]:
        operation[i] = kinds[rng.integers(len(kinds))]
        n = rng.integers(band[0], band[1] + 1)
        noisy[i] = damage(labels[i], operation[i], n, rng)
        if operation[i] != "omit":
            pixels[i] = n
    return noisy, operation, pixels


# ----------------------------------------------------------------------------- sizes and the split

def resize(pictures, size):
    """Anti-aliased bilinear resize of (..., H, W) to (..., size, size); bool is cut at one half."""
    height, width = pictures.shape[-2:]
    if (height, width) == (size, size):
        return pictures
    flat = pictures.reshape(-1, height, width)
    resized = np.empty((len(flat), size, size), dtype=pictures.dtype)
    for i, picture in enumerate(flat):
        if picture.dtype == bool:
            grey = Image.fromarray(picture.astype(np.uint8) * 255)
            resized[i] = np.asarray(grey.resize((size, size), Image.BILINEAR)) >= 128
        else:
            resized[i] = np.asarray(Image.fromarray(picture).resize((size, size), Image.BILINEAR))
    return resized.reshape(*pictures.shape[:-2], size, size)


def split(count, seed):
    """Random split in the paper's proportion, 165 of 247 for training: two sorted index arrays."""
    order = np.random.default_rng((seed, 0)).permutation(count)
    cut = round(count * 165 / 247)
    return np.sort(order[:cut]), np.sort(order[cut:])


def split_by_group(names, pattern, seed):
    """The same split of patients: a patient is what a regular expression matches in a name."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"--group {pattern}: no regular expression ({error})") from None
    patients = []
    for name in names:
        match = expression.search(name)
        if not match:
            raise BadInput(f"--group {pattern}: not found in {name}; it must match in every name")
        patients.append(match[0])
    known = sorted(set(patients))
    if len(known) < 3:
        raise BadInput(f"--group {pattern}: finds {', '.join(known)}; three patients are needed")
    chosen = [known[i] for i in split(len(known), seed)[0]]
    training = np.isin(patients, chosen)
    return np.flatnonzero(training), np.flatnonzero(~training)


# ------------------------------------------------------------ folders, part 1: images, masks, pairs
# `notes` counts what a user should know, {sentence: how often}; `read_folder` prints it.

class File(NamedTuple):
    """A picture file; the names are in lower case, so that they can be compared."""
    path: Path
    folders: tuple  # names of the folders from the root down to the file
    stem: str       # its own name without the ending


class Case(NamedTuple):
    """The files of one case."""
    name: str
    image: Path
    masks: dict  # {folder of masks: [paths]}


def lower(name):
    """Lower case, and letters with accents in one form: file systems write them in two."""
    return unicodedata.normalize("NFC", name).lower()


def listed(names, most=10):
    """The first names, and how many more there are."""
    text = ", ".join(map(str, names[:most]))
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text


def folders_of(files):
    """The folders of files as text."""
    return listed(sorted({"/".join(file.folders) or "FOLDER itself" for file in files}), 5)


def list_files(root, notes, above=()):
    """All picture files below a folder, links followed; {name: path} of the folders without any.

    above: names to put before those of the folders.
    """
    files, barren, seen = [], {}, set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        folder = Path(folder)
        folders = (*above, *map(lower, folder.relative_to(root).parts))
        is_run = "config.json" in names and "log.csv" in names
        if is_run or folder.resolve() in seen:
            notes["folder(s) passed over: a run of train.py, or seen before through a link"] += 1
            subfolders.clear()
            continue
        seen.add(folder.resolve())
        kinds = {Path(name).suffix.lower() for name in names}
        for name in names:
            kind = Path(name).suffix.lower()
            if any(part.startswith(".") or part in JUNK for part in (*folders, lower(name))):
                notes["file(s) passed over: hidden or of the system"] += 1
            elif kind in PICTURES:
                files.append(File(folder / name, folders, lower(Path(name).stem)))
            else:
                notes[f"file(s) passed over: {kind or 'no ending'}, not a known picture"] += 1
        if not subfolders and not kinds & (PICTURES | TEXTS):
            barren[lower(folder.name)] = folder
    return sorted(files), barren


def kind_of(file):
    """"image", "mask" or "": what the innermost telling name among a file's folders says."""
    for folder in reversed(file.folders):
        if MASK_WORD.search(folder):
            return "mask"
        if IMAGE_WORD.search(folder):
            return "image"
    return ""


def find_files(root, images, masks, notes):
    """The image files and the mask files below a folder, as --images and --masks or names say.

    By name, images lie in the root itself and in folders called image or img; where there are none,
    in all folders that are not called after masks. Masks are what is left.
    """
    if not Path(root).is_dir():
        raise BadInput(f"{root}: no such folder; it needs images/ and a folder of masks per class")
    files, barren = list_files(root, notes)
    if not any(kind_of(file) for file in files):  # no folder's name tells
        files = unfold(files)
    mask_files, files = take(root, files, masks or [], notes)
    image_files, files = take(root, files, images or [], notes)
    if not images:
        image_files = [file for file in files if not file.folders or kind_of(file) == "image"]
        if not image_files:
            image_files = [file for file in files if kind_of(file) != "mask"]
        files = sorted(set(files) - set(image_files))
    if masks:
        if files:
            notes[f"picture(s) passed over, not in --masks: in {folders_of(files)}"] += len(files)
        return image_files, mask_files
    used = {name for file in image_files + files for name in file.folders}
    for name, folder in barren.items():
        if files and name not in used:
            raise BadInput(f"{folder}: holds no picture that can be read; fill it, convert its "
                           "files to PNG, remove it, or name the folders of masks with --masks")
    return image_files, files


def take(root, files, names, notes):
    """The files in the folders `names` (a name or path below the root, or any path); the others."""
    taken = []
    for name in names:
        wanted = f"/{lower(Path(name).as_posix())}/"
        found = [file for file in files if wanted in f"/{'/'.join(file.folders)}/"]
        if not found and Path(name).is_dir():
            found, _ = list_files(name, notes, above=(lower(Path(name).absolute().name),))
        if not found:
            raise BadInput(f"{root}: no folder {name} with pictures; found {folders_of(files)}")
        taken += found
    paths = {file.path.absolute() for file in taken}
    return taken, [file for file in files if file.path.absolute() not in paths]


def split_words(name):
    """A name as a list of words, numbers and single signs."""
    return re.findall(r"\d+|[^\W\d_]+|[\W_]", name)


def unfold(files):
    """Flat folders: case_mask.png beside case.jpg becomes the file case in a folder masks/mask.

    An ending counts if it is a word for masks, or if at least half of the images have it.
    """
    stems = {(file.folders, file.stem) for file in files}
    images, endings = {}, {}
    for file in files:
        words = split_words(file.stem)
        for n in range(1, len(words)):
            if (file.folders, "".join(words[:n])) in stems:  # the longest such name comes last
                images[file] = "".join(words[:n])
                endings[file] = "".join(words[n:]).strip(" _-.")
    counts = Counter(endings.values())
    unfolded = []
    for file in files:
        ending = endings.get(file, "")
        if MASK_WORD.search(ending) or (ending and 2 * counts[ending] >= len(files) - len(images)):
            file = File(file.path, (*file.folders, "masks", ending), images[file])
        unfolded.append(file)
    return unfolded


def shortened(names):
    """Yields the names as they are, then without some of the first and last words common to all."""
    words = [split_words(name) for name in names]
    shortest = min(len(parts) for parts in words)
    first = len(os.path.commonprefix(words))
    last = len(os.path.commonprefix([parts[::-1] for parts in words]))
    for start in range(first + 1):
        for end in range(last + 1):
            if start + end < shortest:
                yield ["".join(parts[start:len(parts) - end]) for parts in words]


def match_names(images, masks):
    """For each mask's name the number of its image, or None; and how many images have a mask.

    They are equal after the prefix and the suffix common to all names on a side are taken off, as
    much of them as pairs the most images. Words and numbers stay whole, so that 1 is not 10.
    """
    best, most = [None] * len(masks), 0
    for image_names in shortened(images):
        numbers = {name: i for i, name in enumerate(image_names)}
        for mask_names in shortened(masks):
            found = [numbers.get(name) for name in mask_names]
            paired = len(set(found) - {None})
            if paired > most:
                best, most = found, paired
    return best, most


def keys_of(files, way, shared):
    """What tells the cases of files apart: their names, their place, or both."""
    keys = []
    for file in files:
        place = "/".join(name for name in file.folders if name in shared)
        if way == "name":
            keys.append(file.stem)
        elif way == "place":
            keys.append(place)
        else:
            keys.append(f"{place}/{file.stem}")
    return keys


def find_owners(root, images, by_folder, shared):
    """{folder: for each of its masks the number of its image, or None}, and in which way.

    Cases are told apart by name; where images share names, by name and place, the folders above
    images and masks alike; or by place, where a folder per image holds masks of single objects.
    """
    best, most, best_way = None, -1, ""
    for way in ("name", "place and name", "place"):
        keys = keys_of(images, way, shared)
        if len(set(keys)) < len(keys):
            continue
        owners, paired = {}, 0
        for folder, files in by_folder.items():
            owners[folder], count = match_names(keys, keys_of(files, way, shared))
            paired += count
        if paired > most:
            best, most, best_way = owners, paired, way
    if best is None:
        raise BadInput(f"{root}: two images have the same name, in {folders_of(images)}; rename "
                       "one, or choose folders with --images")
    return best, best_way


def pair_files(root, images, masks, skip_unpaired, notes):
    """The Cases: each image with its masks, from one folder of masks per class."""
    if not images or not masks:
        raise BadInput(f"{root}: found {len(images)} images and {len(masks)} masks; needs images/"
                       " and a folder per class, such as lungs/; --images and --masks name others")
    shared = {name for file in images for name in file.folders}
    shared &= {name for file in masks for name in file.folders}
    by_folder = {}
    for file in masks:  # the class is the innermost folder that is no place
        folder = "masks"
        for name in file.folders:
            if name not in shared:
                folder = name
        by_folder.setdefault(folder, []).append(file)
    owners, way = find_owners(root, images, by_folder, shared)

    cases = []
    need_place = len({file.stem for file in images}) < len(images)
    for file in images:
        place = [name for name in file.folders if need_place and name in shared]
        cases.append(Case("/".join([*place, file.path.stem]), file.path, {}))
    left_out = Counter()
    for folder, files in by_folder.items():
        strangers = []
        for file, number in zip(files, owners[folder]):
            if number is None:
                strangers.append(file.path.name)
            else:
                cases[number].masks.setdefault(folder, []).append(file.path)
        missing = [case.name for case in cases if folder not in case.masks]
        several = [case.name for case in cases if len(case.masks.get(folder, [])) > 1]
        if several and way != "place":
            raise BadInput(f"{root}: several masks in {folder} are called {listed(several)}")
        if several:
            notes[f"image(s) with several masks in {folder}, which are united"] += len(several)
        if missing:
            left_out[f"image(s) without a mask in {folder}: {listed(missing)}"] = len(missing)
        if strangers:
            left_out[f"mask(s) in {folder} without an image: {listed(strangers)}"] = len(strangers)
    if left_out and not skip_unpaired:
        found = "; ".join(f"{count} {what}" for what, count in left_out.items())
        raise BadInput(f"{root}: {found}; images are in {folders_of(images)}; --images and --masks "
                       "choose folders, --skip-unpaired leaves such files out")
    notes.update({f"{what} (left out)": count for what, count in left_out.items()})
    cases = [case for case in cases if len(case.masks) == len(by_folder)]
    if len(cases) < 3:
        raise BadInput(f"{root}: {len(cases)} images with masks; three at least are needed, two to "
                       "train and one to test")
    return sorted(cases, key=lambda case: lower(case.name))


def class_of(folder):
    """The class in a folder: "left lung", "right_lung" are both "lungs", "leftMask" is "mask"."""
    bare = re.sub("left|right|masks?|labels?|[ _-]", "", folder)
    for name in CLASSES:
        if bare in (name, name.removesuffix("s")):
            return name
    if MASK_WORD.search(folder):
        return re.sub("[ _-]*(left|right)[ _-]*", "", folder)
    return folder


def group_classes(root, folders):
    """{class: folders of masks}, the paper's classes first; only left and right share a class.

    A single class that is called after masks ("train_masks", "Ground Truth") is "foreground".
    """
    groups = {}
    for folder in folders:
        groups.setdefault(class_of(folder), []).append(folder)
    for name, same in groups.items():
        if len(same) > 1 and sorted(re.findall("left|right", " ".join(same))) != ["left", "right"]:
            raise BadInput(f"{root}: {', '.join(same)} all seem to hold {name}; --masks chooses")
    unnamed = [name for name in groups if MASK_WORD.search(name)]
    if len(unnamed) == 1:
        groups["foreground"] = groups.pop(unnamed[0])
    if len(groups) > 20 or "average" in groups:
        raise BadInput(f"{root}: {len(groups)} classes, {listed(sorted(groups), 5)}; at most 20, "
                       "none called average; --masks chooses")
    known = [name for name in CLASSES if name in groups]
    return {name: groups[name] for name in [*known, *sorted(set(groups) - set(known))]}


# ------------------------------------------------------------ folders, part 2: from files to arrays

def open_picture(path):
    """A picture file as Pillow reads it; BadInput where it cannot, or would drop pages or bits."""
    try:
        with Image.open(path) as picture:
            is_deep = ";16" in str(picture.tile)
            pages = getattr(picture, "n_frames", 1)
            is_turned = picture.getexif().get(ORIENTATION, 1) in range(2, 9)
            picture.load()
    except Exception as error:  # the readers raise whatever they like
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise BadInput(f"{path}: cannot be read as a picture ({reason}); replace it") from None
    if pages > 1 and picture.format != "MPO":  # phones put a second view into a JPG
        raise BadInput(f"{path}: {pages} pages in one file; save each as a file, with its own mask")
    if is_turned and picture.format == "TIFF":  # Pillow garbles some of these
        raise BadInput(f"{path}: a TIFF with a rotation tag; save it turned, without the tag")
    if is_deep and picture.mode in ("RGB", "RGBA", "LA"):
        raise BadInput(f"{path}: colours of 16 bits, of which Pillow keeps 8; save it as 16-bit "
                       "grey or as 8-bit colours")
    return picture


def to_array(picture):
    """A picture as (H, W) grey values, or (H, W, 3) uint8 where it is coloured, without alpha."""
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("L", "I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB"))
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., 0] if is_grey else colours


def read_image(path, notes, exif=True, mask_shape=None):
    """An image file as grey (H, W) uint8, whatever its colours and depth; .IMG is JSRT's format."""
    if path.suffix.lower() == ".img":  # 2048 x 2048, 16 bits of which 12 are used, high is dark
        if not path.is_file() or path.stat().st_size != 2 * 2048 * 2048:
            raise BadInput(f"{path}: not {2 * 2048 * 2048} bytes as a JSRT .IMG; fetch it again")
        raw = np.fromfile(path, dtype=">u2")
        return ((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8).reshape(2048, 2048)
    picture = open_picture(path)
    if exif:
        picture = turn(picture, mask_shape, notes)
    grey = to_array(picture)
    if grey.ndim == 3:
        grey = grey.mean(axis=-1, dtype=np.float32).round().astype(np.uint8)
    low, high = grey.min(), grey.max()
    if not np.isfinite(grey).all() or low == high:
        what = "constant" if low == high else "not finite"
        raise BadInput(f"{path}: {what}; replace or remove this image")
    if grey.dtype == np.uint8:
        return grey
    inner = grey[(grey > low) & (grey < high)]  # without padding and hot pixels
    if inner.size:
        low, high = np.quantile(inner, (0.001, 0.999))
    notes["image(s) of more than 8 bits, stretched from their 0.1 % to their 99.9 % quantile"] += 1
    scaled = (grey.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    return (255 * scaled.clip(0, 1)).astype(np.uint8)


def turn(picture, mask_shape, notes):
    """A picture turned as its EXIF tag says, unless it fits its mask's shape only as it is."""
    if picture.getexif().get(ORIENTATION, 1) not in range(2, 9):  # 0 and 1 are none
        return picture
    upright = ImageOps.exif_transpose(picture)
    as_is, turned = picture.size[::-1], upright.size[::-1]
    if mask_shape and are_alike(as_is, mask_shape) and not are_alike(turned, mask_shape):
        notes["image(s) carry a rotation (EXIF), not applied: the masks fit without it"] += 1
        return picture
    notes["image(s) carry a rotation (EXIF), applied; --no-exif if the masks do not follow it"] += 1
    return upright


def are_alike(shape, other):
    """Whether two (H, W) have the same proportions, to 1 %."""
    return abs(shape[0] * other[1] / (shape[1] * other[0]) - 1) <= 0.01


def read_numbers(path, values=None):
    """A mask file as (H, W) numbers: grey values, or COLOUR + packed colours and 0 for black.

    With `values`, palette pictures give their indices, or colours if `values` has colours.
    """
    picture = open_picture(path)
    wants_colours = values is not None and has_colours(values)
    numbers = to_array(picture)
    if numbers.ndim == 3 and picture.mode == "P" and values and not wants_colours:
        numbers = np.asarray(picture)
    elif numbers.ndim == 3 or wants_colours:
        numbers = np.asarray(picture.convert("RGB")).astype(np.int64) @ (65536, 256, 1)
        numbers[numbers > 0] += COLOUR
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return numbers
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    if alpha.min() == 0 and (numbers == numbers.flat[0]).all():
        return alpha
    if (numbers[alpha == 0] != 0).any():
        raise BadInput(f"{path}: is transparent in part, over colours; save it without")
    return numbers


def read_mask(path, folder, notes):
    """A mask file as {folder: bool (H, W)}, and its grey values: two, 0 and one for the class."""
    numbers = read_numbers(path)
    found = np.unique(numbers)
    if has_soft_edges(numbers, found):
        notes[f"mask(s) in {folder} with soft edges, cut at half of their range"] += 1
        return {folder: numbers > found[-1] / 2}, []
    if len(found) > 2 or (len(found) == 2 and found[0] != 0) or not np.isfinite(found).all():
        shown = listed([value_name(value) for value in found], 4)
        raise BadInput(f"{path}: {len(found)} grey values, {shown}; a mask has two, 0 and another; "
                       "--values reads several classes, or cells=1- everything above 0")
    return {folder: numbers > 0}, found.tolist()


def has_soft_edges(numbers, found):
    """Whether a mask's greys have two peaks, 0 and the top, and what is between lies along edges.

    So it is in a JPG and in smoothed masks, and not where grey values are classes.
    """
    top = float(found[-1])
    if len(found) < 5 or not 32 <= top < COLOUR:
        return False
    between = (numbers > top / 8) & (numbers < top * 7 / 8)
    cut = numbers > top / 2
    along_edges = dilate(cut, 3) & ~erode(cut, 3)
    peak = np.histogram(numbers, 4, (top / 4, top * 3 / 4))[0].max()
    has_third_peak = peak > 0.6 * between.sum() and peak > 0.03 * cut.sum()
    low = numbers <= top / 8
    has_low_class = (low & (numbers > top / 50)).sum() > 0.1 * low.sum()
    is_apart = (between & ~along_edges).sum() > 0.05 * cut.sum()
    return not (is_apart or has_third_peak or has_low_class)


def read_labels(path, values, notes):
    """A label picture as {class: bool (H, W)}, and the grey values in it."""
    numbers = read_numbers(path, values)
    found = np.unique(numbers)
    if found[-1] >= COLOUR and not has_colours(values):
        raise BadInput(f"{path}: is coloured; write its colours as red-green-blue, such as "
                       f"--values name={value_name(found[-1])}")
    if has_soft_edges(numbers, found):
        notes["label picture(s) with soft edges, which --values reads wrongly; use PNG"] += 1
    masks = {}
    rest = numbers != 0
    for name, ranges in values.items():
        masks[name] = np.zeros(numbers.shape, dtype=bool)
        for low, high in ranges:
            masks[name] |= (numbers >= low) & (numbers <= high)
        rest &= ~masks[name]
    if rest.any():
        other = value_name(numbers[rest].min())
        notes[f"label picture(s) with values of no class, such as {other}: background"] += 1
    return masks, found.tolist()


def has_colours(values):
    """Whether `values` (see `label_values`) are colours."""
    return max(high for ranges in values.values() for low, high in ranges) >= COLOUR


def value_name(number):
    """A grey value as it is, a colour as red-green-blue."""
    if number < COLOUR:
        return str(number)
    red, green, blue = int(number - COLOUR).to_bytes(3, "big")
    return f"{red}-{green}-{blue}"


def read_masks(case, class_names, values, greys, notes):
    """The masks of a case: {class: bool (H, W)}. Several files of a class are united.

    class_names: the class of every folder of masks, or of every name in `values`. The grey values
    found are added to `greys`, {folder: set}.
    """
    united = {}
    for folder, paths in case.masks.items():
        for path in paths:
            if values:
                masks, found = read_labels(path, values, notes)
            else:
                masks, found = read_mask(path, folder, notes)
            greys[folder].update(found)
            for part, mask in masks.items():
                name = class_names[part]
                if united.setdefault(name, mask).shape != mask.shape:
                    raise BadInput(f"{path}: not as large as another mask of {name}; resize it")
                united[name] = united[name] | mask
    return united


def read_cases(cases, groups, values, exif, greys, notes):
    """The arrays of the cases: images (N, 256, 256), masks (N, classes, 256, 256), the share of
    foreground in the files (N, classes); the images' sizes; and {case or folder: what is wrong}.
    """
    class_names = {part: name for name, parts in groups.items() for part in parts}
    images = np.empty((len(cases), GRID, GRID), dtype=np.uint8)
    labels = np.zeros((len(cases), len(groups), GRID, GRID), dtype=bool)
    drawn = np.zeros((len(cases), len(groups)))
    sizes, problems = [], []
    for i, case in enumerate(cases):
        try:
            masks = read_masks(case, class_names, values, greys, notes)
            image = read_image(case.image, notes, exif, next(iter(masks.values())).shape)
            sizes.append(image.shape)
            images[i] = resize(image, GRID)
            for c, name in enumerate(groups):
                shape = masks[name].shape
                if not are_alike(shape, image.shape):
                    raise BadInput(f"{case.image}: {size_name(image.shape)} pixels, its mask of "
                                   f"{name} {size_name(shape)}; the shapes must be alike")
                labels[i, c] = resize(masks[name], GRID)
                drawn[i, c] = masks[name].mean()
        except BadInput as problem:
            problems.append(str(problem))
    return images, labels, drawn, sizes, problems


def read_folder(root, images=None, masks=None, values=None, skip_unpaired=False, exif=True):
    """Reads images, and masks in one folder per class, below `root`; README, "Your data".

    images, masks: names or paths of folders; values: see `label_values`; skip_unpaired: leave out
    what has no partner; exif: turn photographs as they say. Prints what it found. Returns the class
    names, the case names, images (N, 256, 256) uint8 and masks (N, classes, 256, 256) bool.
    """
    notes = Counter()
    image_files, mask_files = find_files(root, images, masks, notes)
    cases = pair_files(root, image_files, mask_files, skip_unpaired, notes)
    folders = list(cases[0].masks)
    if values and len(folders) > 1:
        raise BadInput(f"{root}: --values is for one folder of label pictures, found "
                       f"{', '.join(folders)}; choose one with --masks")
    groups = group_classes(root, values or folders)
    greys = {folder: set() for folder in folders}
    pictures, labels, drawn, sizes, problems = read_cases(cases, groups, values, exif, greys, notes)
    for folder, found in greys.items():
        if not values and len(found - {0}) > 1 and found - {0} != {1, 255}:
            shown = listed([value_name(value) for value in sorted(found)], 5)
            problems.append(f"{root}: the masks in {folder} have the grey values {shown}; a folder "
                            "has two, 0 and another; --values reads label pictures")
    if len(problems) > 1:
        problems[0] += f" ({len(problems) - 1} more files have problems)"
    if problems:
        raise BadInput(problems[0])

    extremes = sorted({min(sizes), max(sizes)})
    print(f"{root}: {len(cases)} cases, images of {' to '.join(map(size_name, extremes))}")
    paths = [cases[0].image] + [found[0] for found in cases[0].masks.values()]
    print(f"  for example {', '.join('/'.join(path.parts[-2:]) for path in paths)}")
    if len(folders) > 1 and not masks and not set(groups) <= set(CLASSES):
        print(f"  the classes are the folders {', '.join(folders)}; --masks chooses")
    for c, (name, parts) in enumerate(groups.items()):
        sources = folders if values else parts
        found = set().union(*[greys[folder] for folder in sources])
        describe_class(root, name, found, drawn[:, c], labels[:, c])
    for note, count in notes.items():
        print(f"  {count} {note}")
    return tuple(groups), [case.name for case in cases], pictures, labels


def describe_class(root, name, greys, drawn, masks):
    """Prints what a class's masks (N, 256, 256) hold; BadInput where they cannot be meant so.

    greys: the grey values in the files; drawn: (N,) the share of foreground in the files.
    """
    shares = masks.mean(axis=(1, 2))
    empty, full = (shares == 0).sum(), (shares == 1).sum()
    shown = listed([value_name(value) for value in sorted(greys)], 8) or "soft"
    print(f"  {name}: grey values {shown}; {shares.mean():.1%} of the picture; {empty} empty and "
          f"{full} full masks")
    lost = ((drawn > 0) & (shares == 0)).sum()
    growth = shares[drawn > 0] / drawn[drawn > 0]
    changed = ((growth < 0.8) | (growth > 1.25)).sum()
    if changed:
        print(f"    too small for a grid of {GRID} pixels: lost in {lost} masks, area changed by a "
              f"fifth or more in {changed} (x {np.median(growth):.2f} in the median); crop the "
              "pictures, or make GRID in data.py larger")
    if empty + full == len(masks):
        raise BadInput(f"{root}: every mask of {name} is empty or full; leave it out or correct it")
    border = [masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]
    if shares.mean() > 0.5 and np.mean(border) > 0.9:
        raise BadInput(f"{root}: the masks of {name} seem inverted: the border of the pictures is "
                       "foreground; make the class the non-zero value")


def size_name(shape):
    """(H, W) as people write it."""
    return f"{shape[1]} x {shape[0]}"


# ----------------------------------------------------------------------- options and the whole road

def label_values(text):
    """An argparse type: "lungs=255,cells=1-,road=128-64-128" -> {class: [[lowest, highest], ...]}.

    A value is a grey, a range of greys (1- has no upper end), or a colour as red-green-blue.
    A class may have several: "lungs=1,lungs=2".
    """
    values, kinds = {}, set()
    for pair in text.split(","):
        name, _, value = pair.partition("=")
        if not name.strip() or not re.fullmatch(r"\d+|\d+-\d*|\d+-\d+-\d+", value.strip()):
            raise BadInput(f"--values: {pair} is not like lungs=255, cells=1- or road=128-64-128")
        numbers = value.strip().split("-")
        if len(numbers) == 3:
            red, green, blue = [min(int(number), 255) for number in numbers]
            low = high = COLOUR + 65536 * red + 256 * green + blue
        else:
            low = int(numbers[0])
            high = int(numbers[-1] or COLOUR - 1)
        kinds.add(len(numbers) == 3)
        values.setdefault(class_of(lower(name.strip())), []).append([low, high])
    if len(kinds) > 1:
        raise BadInput(f"--values: {text} mixes greys with colours; write all as red-green-blue")
    return values


def add_options(parser):
    """Adds the options that say where the data are and how they are read."""
    add = parser.add_argument
    add("--data", default="phantoms", help="a folder of images and masks; or phantoms:N")
    add("--images", nargs="+", metavar="DIR", help="the folders of images, by name or path")
    add("--masks", nargs="+", metavar="DIR", help="the folders of masks, one per class")
    add("--values", type=label_values, metavar="CLASS=VALUE,...",
        help="for label pictures: lungs=255,heart=85; cells=1- (1 and more); road=128-64-128")
    add("--skip-unpaired", action="store_true", help="leave out files without a partner")
    add("--no-exif", dest="exif", action="store_false", help="do not turn photographs as they say")


def read(source, **reading):
    """What `read_folder` returns, of a folder, of "phantoms" (247 of them), or of "phantoms:N"."""
    kind, _, count = str(source).partition(":")
    if kind != "phantoms":
        return read_folder(source, **reading)
    given = [name for name in READING if name != "exif" and reading.get(name)]
    if not re.fullmatch(r"\d*", count) or int(count or 247) < 3 or given:
        raise BadInput(f"{source}: write phantoms, or phantoms:N with N from 3 on, and no option "
                       "for reading folders")
    images, masks = phantoms(int(count or 247))
    return CLASSES, [f"phantom{i:05d}" for i in range(len(images))], images, masks


def load(data, size, noise, band, seed, noise_kind="erode-dilate", clean=None, group=None,
         **reading):
    """The whole road: read, split, corrupt labels on the 256-pixel grid, resize to size x size.

    The arguments are train.py's options: noise in 0..1; band as text, "5-13"; clean: a folder like
    `data` with clean labels; group: see `split_by_group`. Returns the class names, the training
    and the test Cases. Test labels are corrupted too, to be scored; Dice uses their `clean`.
    """
    classes, names, images, given = read(data, **reading)
    truth = given
    if clean:
        truth = read_clean(data, clean, classes, names, reading)
    if group:
        parts = split_by_group(names, group, seed)
    else:
        parts = split(len(names), seed)
    smallest, largest = band.split("-")
    both = []
    for part, indices in enumerate(parts):
        noisy, operation, pixels = corrupt_labels(
            given[indices], noise, (int(smallest), int(largest)), (seed, 1 + part), noise_kind)
        for i, index in enumerate(indices):
            if operation[i] == "" and (given[index] != truth[index]).any():
                operation[i] = "given"
        both.append(Cases([names[i] for i in indices], resize(images[indices], size),
                          resize(noisy, size), resize(truth[indices], size), operation, pixels))
    return classes, *both


def read_clean(data, clean, classes, names, reading):
    """The masks (N, classes, 256, 256) of a folder with the cases and classes of `data`."""
    if str(data).partition(":")[0] == "phantoms":
        raise BadInput(f"--clean {clean}: phantoms bring their clean labels; leave --clean out")
    own = dict(reading)
    for option in ("images", "masks"):  # names hold for both folders, paths lead to `data`
        own[option] = [name for name in reading.get(option) or [] if not Path(name).is_dir()]
    clean_classes, clean_names, _, truth = read_folder(clean, **own)
    if (clean_classes, clean_names) != (classes, names):
        raise BadInput(f"{clean}: {len(clean_names)} cases of {', '.join(clean_classes)}; --clean "
                       f"needs the {len(names)} of {', '.join(classes)} in {data}, by name")
    return truth


def load_all(data, size, **reading):
    """All cases of a source, with its labels as they are: the class names and the Cases."""
    classes, names, images, masks = read(data, **reading)
    masks = resize(masks, size)
    untouched, no_radius = [""] * len(names), np.zeros(len(names), dtype=int)
    return classes, Cases(names, resize(images, size), masks, masks, untouched, no_radius)


def has_labels(data, **reading):
    """Whether there are masks in `data`, paired or not; if not, `load_images` reads it."""
    if str(data).partition(":")[0] == "phantoms":
        return True
    return bool(find_files(data, reading.get("images"), reading.get("masks"), Counter())[1])


def load_images(data, size, **reading):
    """The case names and images (N, size, size) uint8 of a folder of images; masks are not read."""
    notes = Counter()
    files, masks = find_files(data, reading.get("images"), reading.get("masks"), notes)
    if not files:
        raise BadInput(f"{data}: no images in it or in images/; --images names other folders")
    names = [file.path.stem for file in files]
    if len(set(names)) < len(names):
        names = ["/".join([*file.folders, file.path.stem]) for file in files]
    exif = reading.get("exif", True)
    images = [resize(read_image(file.path, notes, exif), GRID) for file in files]
    print(f"{data}: {len(names)} images, and {len(masks)} masks, which are not read")
    for note, count in notes.items():
        print(f"  {count} {note}")
    return names, resize(np.stack(images), size)


def digests(cases):
    """For each case a short text that changes when its image, its label or its clean label does."""
    texts = []
    for image, label, clean in zip(cases.images, cases.labels, cases.clean):
        content = image.tobytes() + label.tobytes() + clean.tobytes()
        texts.append(hashlib.sha256(content).hexdigest()[:12])
    return texts


# ---------------------------------------------------------------------------------------- phantoms
# The drawing code is an asset: skip it when reading.
#
# Every organ is a signed field over the picture, positive inside: field > 0 is its mask, and
# _soft(field, width), the same shape with a soft edge, adds to what the X-rays must cross. Patient
# coordinates: x = 0 on the midline, +-1 at the chest walls (x < 0, left in the picture, is the
# patient's right); y = 0 at the lung tips, 1 at the lowest lung angle.
# vary(mean, spread) draws what differs between patients.

def phantoms(n=247, seed=0, size=256):
    """Synthetic postero-anterior chest radiographs with exact masks.

    Returns images (n, size, size) uint8, lungs dark as on a film viewer, and masks
    (n, 3, size, size) bool: lungs, heart, clavicles. Phantom i depends on (seed, i) alone.
    """
    images = np.empty((n, size, size), np.uint8)
    masks = np.empty((n, 3, size, size), bool)
    row, col = ((np.mgrid[:size, :size] + 0.5) / size).astype(np.float32)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        vary = functools.partial(_draw, rng)
        middle, half_width, tilt = vary(0.50, 0.015), vary(0.40, 0.027), vary(0, 0.02)
        top, bottom, dome = vary(0.085, 0.025), vary(0.835, 0.07), vary(0.81, 0.035)
        x = (col - middle - tilt * (row - 0.5)) / half_width
        y = (row - top + tilt * (col - 0.5)) / (bottom - top)
        wall = _chest_wall(x, y, vary)
        heart = _heart(x, y, dome, vary)
        lungs = _lungs(x, y, wall, heart, dome, vary)
        bone, clavicles = _clavicles(x, y, vary)
        masks[i] = lungs > 0, heart > 0, clavicles > 0
        attenuation = _soft_tissue(x, y, lungs, heart, vary) + _vessels(x, y, lungs, vary)
        attenuation += _skeleton(x, y, wall, lungs, bone, vary)
        images[i] = _film(attenuation, row[:, 0], rng, vary)
    return images, masks


def _draw(rng, mean, spread):
    """A normal random number, never farther than two standard deviations from its mean."""
    return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))


def _soft(field, width):
    """From 0 outside to 1 inside, smoothly over `width` around the edge."""
    t = np.clip(field / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _blob(u, v=0):
    """A bell of height 1 around u = v = 0."""
    return np.exp(-u * u - v * v)


def _sides(x, vary, mean, spread):
    """One draw for the patient's right, where x < 0, and another for the left."""
    right, left = vary(mean, spread), vary(mean, spread)
    return right + (left - right) * np.heaviside(x, 1)


def _wobble(t, size, vary):
    """A slow random wave along t: no patient's outline is a perfect curve."""
    return sum(vary(0, size / k) * np.sin(3 * k * t + vary(0, 3)) for k in (1, 2))


def _merge(a, b, width):
    """Union of two shadows with their corner filled, as where the great vessels leave the heart."""
    return np.maximum(a, b) + np.clip(width - np.abs(a - b), 0, None) ** 2 / (4 * width)


def _chest_wall(x, y, vary):
    """Inside of the rib cage: narrow at the lung tips, then widening to the costophrenic angles."""
    tip, roundness = vary(0.38, 0.03), vary(3.4, 0.5)
    dome = np.sqrt(1 - (1 - np.clip(y, 0, 1)) ** roundness)
    reach = _sides(x, vary, 0.98, 0.02) + _wobble(y + 2 * np.heaviside(x, 1), 0.025, vary)
    return np.minimum(tip + (reach - tip) * dome - np.abs(x), 2 * y)


def _heart(x, y, dome, vary):
    """A rounded triangle that rests on the diaphragm and points down to the patient's left."""
    half_width, half_height, sunk = vary(0.42, 0.035), vary(0.22, 0.018), vary(0.45, 0.13)
    u, v = (x - vary(0.17, 0.04)) / half_width, (y - dome) / half_height + 1 - sunk
    angle, apex = np.arctan2(v, u), vary(0.65, 0.12)
    two_lobes = vary(0.09, 0.03) * np.cos(2 * (angle - apex))
    three_lobes = vary(0.08, 0.025) * np.cos(3 * (angle - apex))
    radius = 1 + two_lobes + three_lobes
    return half_width * (radius + _wobble(angle, 0.02, vary) - np.hypot(u, v))


def _lungs(x, y, wall, heart, dome, vary):
    """What the mediastinum, the heart and the two domes of the diaphragm leave of the chest."""
    s, left = np.abs(x), np.heaviside(x, 1)
    tip = np.sqrt(1 - (1 - np.clip(y / vary(0.2, 0.03), 0, 1)) ** 2)
    aortic_knob = vary(0.11, 0.04) * left * _blob((y - vary(0.32, 0.02)) / 0.07)
    edge = 0.38 - vary(0.24, 0.02) * tip + aortic_knob
    mediastinum = edge + _wobble(y + 2 * left, 0.02, vary) - s
    dome = dome + vary(0.035, 0.02) * left  # the liver pushes the right dome up
    summit = vary(0.45, 0.05)
    fall = np.where(s > summit, (s - summit) / (1 - summit), 0.5 * (summit - s)) ** vary(2.4, 0.3)
    abdomen = 2 * (y - dome - (1 - dome) * fall - _wobble(x, 0.006, vary))
    shadow = _merge(_merge(mediastinum, heart, 0.15), abdomen, 0.1)
    return -_merge(shadow, -wall, 0.04)


def _clavicles(x, y, vary):
    """Two slightly bent bars: the whole bones, and their parts in the chest, as JSRT outlines."""
    start, length = _sides(x, vary, 0.15, 0.025), vary(0.55, 0.03)
    t = (np.abs(x) - start) / length                     # 0 at the sternum, 1 near the chest wall
    height = _sides(x, vary, 0.145, 0.006) + vary(0, 0.02)
    rise = _sides(x, vary, 0.08, 0.012) + vary(0, 0.02)
    middle = height - rise * t * (1.3 - 0.3 * t) + vary(0.007, 0.006) * np.sin(5 * t)
    half = vary(0.031, 0.005) * (1.1 - 0.4 * np.clip(t, 0, 2) + 0.2 * np.clip(0.3 - t, 0, 1))
    bone = np.minimum(2 * (half - np.abs(y - middle)), length * np.minimum(t, 1.9 - t))
    return bone, np.minimum(bone, length * (1 - t))


def _soft_tissue(x, y, lungs, heart, vary):
    """Trunk, shoulders, neck and abdomen, less the air in lungs, windpipe and stomach."""
    s = np.abs(x)
    trunk = vary(1.16, 0.04) + 0.7 * _soft(vary(0.4, 0.08) - y, 0.5)  # wider above, with the arms
    shoulder_line = 0.25 * np.clip(s - 0.3, 0, None) - vary(0.18, 0.02)
    body = vary(1.8, 0.1) * np.clip(1 - (s / trunk) ** 2, 0, 1) ** 0.35
    body *= _soft(y - shoulder_line, 0.12)
    shoulders = vary(0.4, 0.1) * _blob((s - 1.2) / 0.25, (y - 0.17) / 0.15)
    middle = vary(0.25, 0.06) * _blob(x / 0.35) + vary(0.12, 0.04) * _soft(heart, 0.2)
    belly = vary(0.2, 0.1) * _soft(y - 0.8, 0.5)
    breast = _soft(_blob((s - 0.6) / 0.4, (y - vary(0.67, 0.04)) / 0.2) - 0.37, 0.15)
    breast *= _soft(y - 0.65, 0.5)
    windpipe = vary(0.3, 0.06) * _soft(0.07 - np.abs(x + 0.02), 0.05) * _soft(0.42 - y, 0.1)
    bubble = max(0, vary(0.2, 0.2))
    stomach = bubble * _blob((x - vary(0.45, 0.08)) / 0.16, (y - vary(0.98, 0.02)) / 0.05)
    air = vary(0.35, 0.08) * _soft(lungs, 0.1) + vary(0.55, 0.1) * _soft(lungs - 0.15, 0.6)
    breasts = max(0, vary(0.08, 0.12)) * breast
    return body + shoulders + middle + belly + breasts - windpipe - stomach - air


def _vessels(x, y, lungs, vary):
    """Vessels fan out from each hilum, downwards above all, and thin out towards the chest wall."""
    u, v = np.abs(x) - 0.12, 1.9 * (y - vary(0.45, 0.02))
    r, angle = np.hypot(u, v), np.arctan2(v, u) + _wobble(x + y, 0.1, vary)
    fan = 0
    for k in (9, 14):
        fan = fan + np.clip(np.sin(k * angle + vary(0, 3) * x + vary(0, 3)) - 0.3, 0, 1) ** 2
    trunks = vary(0.2, 0.05) * _blob(u / 0.14, v / 0.25)
    branches = vary(2.6, 0.6) * fan * r * np.exp(-r / 0.25) * (1 + 0.5 * np.sin(angle))
    return _soft(lungs, 0.1) * (trunks + branches)


def _skeleton(x, y, wall, lungs, clavicles, vary):
    """Spine, clavicles, and ribs: each set is one periodic band in y that bends with |x|."""
    s, per_rib = np.abs(x), 2 * np.pi / vary(0.105, 0.008)
    level = y - vary(0, 0.05) + _wobble(y, 0.01, vary) + vary(0, 0.03) * x
    behind = _soft(np.cos(per_rib * (level + 0.1 * s - vary(0.30, 0.05) * s * s * s)) - 0.1, 1)
    front = _soft(np.cos(per_rib * (0.87 * level + vary(0.4, 0.06) * s * s)), 1)
    front *= _soft(s - 0.55, 0.5)
    ribs = _soft(wall + 0.05, 0.06) * (vary(0.14, 0.03) * behind + vary(0.07, 0.02) * front)
    spine = vary(0.25, 0.06) * _soft(0.13 - s, 0.1) * (1 + 0.15 * np.cos(2 * np.pi / 0.09 * y))
    collar_bones = vary(0.12, 0.04) * _soft(clavicles, 0.04)
    return ribs * (0.3 + 0.7 * _soft(lungs, 0.1)) + spine + collar_bones


def _film(attenuation, t, rng, vary):
    """Uneven exposure, tissue texture, blur, quantum noise (fewer photons, more), S-shaped film."""
    order = np.arange(32, dtype=np.float32)
    waves = np.cos(np.pi * order * t[:, None])
    weights = 0.1 / (1 + np.hypot(order, order[:, None])) ** 1.3
    texture = waves @ (weights * rng.standard_normal((32, 32), np.float32)) @ waves.T
    blur = _blob((t - t[:, None]) / vary(0.004, 0.0012))  # row i: how pixel i mixes its neighbours
    blur /= blur.sum(1, keepdims=True)
    seen = blur @ (attenuation + texture) @ blur.T
    seen += rng.standard_normal(seen.shape, np.float32) * vary(0.012, 0.004) * np.exp(0.5 * seen)
    return (255 / (1 + np.exp(-vary(2.6, 0.3) * (seen - vary(1.3, 0.07))))).astype(np.uint8)
