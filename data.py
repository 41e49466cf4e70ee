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
LOAD = ("data", "size", "noise", "band", "seed", "noise_kind", "clean", "group", "clean_dice",
        *READING)

PICTURES = set(".img .png .gif .bmp .tif .tiff .jpg .jpeg .webp .ppm .pgm".split())
TEXTS = set(".txt .xml .json .csv .md .html .pfs".split())  # may lie in folders of their own
CHOOSE = "wanted are images/ and a folder of masks per class; --images and --masks name others"
# So begin names of what is not for people.
HIDDEN = (".", "@eadir", "__macosx", "thumbs", "lost+found", "system volume", "$recycle")
MASK_WORD = re.compile("mask|label|truth|manual|annot|segment|1stho|2ndho|^gt$")  # in folder names
IMAGE_WORD = re.compile("image|img")
ORIENTATION = 0x0112  # the EXIF tag of a rotation; 0 and 1 are none
COLOUR = 10 ** 9  # red 128, green 64, blue 0 in a mask count as the one value 1128064000
Image.MAX_IMAGE_PIXELS = None  # microscope slides are larger than Pillow's limit against bad files


class BadInput(Exception):
    """Bad data or arguments; the message is one line: what was found, where, what to do."""


class Cases(NamedTuple):
    """Images, labels to train on, clean labels to measure with, and what was done to each."""
    names: list          # N file stems; train/1, with folders, where two images share a stem
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
    except (re.error, OverflowError) as error:
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
    """A picture file; folder and stem are in lower case, so that they can be compared."""
    path: Path
    folder: Path  # below the data's folder; mask/x for a file x/case_mask.png
    stem: str     # the name without the ending and without _mask


class Case(NamedTuple):
    """The files of one case."""
    name: str    # the image's stem; train/1, with folders, where two images share a stem
    image: Path
    masks: list  # (folder, path) of each mask


def listed(items):
    """Items in order as text: the first ten, and how many more there are."""
    items = sorted(set(items))
    text = ", ".join(map(str, items[:10]))
    return text if len(items) <= 10 else f"{text} and {len(items) - 10} more"


def folder_and_stem(path):
    """Those of a `File`, from its path below the data's folder.

    x/case.png -> x, case; x/case_mask.png -> mask/x, case, as if it lay in a folder of masks.
    """
    text = unicodedata.normalize("NFC", path.as_posix()).lower()  # accents are stored in two ways
    folder, stem = Path(text).parent, Path(text).stem
    case, _, ending = stem.replace("-", "_").rpartition("_")
    if case and MASK_WORD.search(ending):
        return Path(ending, folder), stem[:len(case)]
    return folder, stem


def is_hidden(name):
    """Whether a file or folder of this name is not for people."""
    return name.lower().startswith(HIDDEN)


def refuse(error):
    """For os.walk, which would pass over a folder that cannot be read; it may be a class."""
    if not isinstance(error, FileNotFoundError) and not is_hidden(Path(error.filename).name):
        raise error


def list_files(root, base, strict, notes):
    """The picture files below root, links followed, with the names of their folders below base;
    strict: a folder without a picture is refused, since it may be a class.
    """
    files, seen = [], set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        name, true_path = Path(folder).relative_to(root).name, Path(folder).resolve()
        is_run = {"config.json", "log.csv"} <= set(names)
        if is_hidden(name) or is_run or true_path in seen:
            notes["folder(s) passed over: hidden, a run of train.py, or seen through a link"] += 1
            subfolders.clear()
            continue
        seen.add(true_path)
        endings = [Path(name).suffix.lower() for name in names if not is_hidden(name)]
        texts = sum(ending in TEXTS for ending in endings)
        is_for_texts = len(endings) > 0 and texts >= len(endings) / 2
        is_innermost = all(map(is_hidden, subfolders))
        if strict and is_innermost and not PICTURES & set(endings) and not is_for_texts:
            raise BadInput(f"{folder}: no picture can be read; use PNG, or remove it; {CHOOSE}")
        for path in [Path(folder, name) for name in names]:
            if path.suffix.lower() in PICTURES and not is_hidden(path.name):
                files.append(File(path, *folder_and_stem(path.relative_to(base))))
            else:
                notes[f"file(s) passed over, hidden or no picture: {path.suffix or path.name}"] += 1
    return sorted(files)


def kind_of(file):
    """"image", "mask" or "": what the innermost telling name among a file's folders says."""
    for name in reversed(file.folder.parts):
        if MASK_WORD.search(name):
            return "mask"
        if IMAGE_WORD.search(name):
            return "image"
    return ""


def take(root, files, names, notes):
    """The files in the folders `names` (a name or path below the root, or any path); the others."""
    taken = []
    for name in names or []:
        part = f"/{unicodedata.normalize('NFC', Path(name).as_posix()).lower()}/"
        folder = Path(name).absolute()
        found = [file for file in files if part in f"/{file.folder.as_posix()}/"
                 or folder in file.path.absolute().parents]
        found = found or list_files(folder, folder.parent, False, notes)
        if not found:
            raise BadInput(f"{root}: no folder {name} with pictures, which are in "
                           f"{listed(file.folder for file in files)}")
        taken += found
    used = {file.path.parent.resolve() / file.path.name for file in taken}
    return taken, [file for file in files
                   if file.path.parent.resolve() / file.path.name not in used]


def find_files(root, images, masks, notes):
    """The image files and the mask files below a folder, as --images and --masks or names say: by
    name, images lie in the root itself and in folders called image or img; where there are none,
    in all folders that are not called after masks. Masks are what is left.
    """
    if not Path(root).is_dir():
        raise BadInput(f"{root}: no such folder; {CHOOSE}")
    files = list_files(root, root, not masks, notes)
    mask_files, files = take(root, files, masks, notes)
    image_files, files = take(root, files, images, notes)
    if not images:
        named = [file for file in files if not file.folder.parts or kind_of(file) == "image"]
        image_files = named or [file for file in files if kind_of(file) != "mask"]
        files = sorted(set(files) - set(image_files))
    if masks and files:
        notes[f"picture(s) passed over in {listed(file.folder for file in files)}"] += len(files)
    return image_files, mask_files or files


def shortened(names):
    """Yields the names as they are, then without some of the first and last words common to all."""
    words = [re.findall(r"\d+|[^\W\d_]+|[\W_]", name) for name in names]
    first = len(os.path.commonprefix(words))
    last = len(os.path.commonprefix([parts[::-1] for parts in words]))
    for start in range(first + 1):
        for end in range(last + 1):
            if start + end < min(map(len, words)):
                yield ["".join(parts[start:len(parts) - end]) for parts in words]


def match_names(images, masks):
    """{image: mask} of names that are equal without the prefix and suffix common to all of a side,
    as much of these as pairs the most. Words and numbers stay whole, so that 1 is not 10.
    """
    best = {}
    for image_names in shortened(images):
        for mask_names in shortened(masks):
            full = dict(zip(mask_names, masks))
            pairs = {image: full[name] for image, name in zip(images, image_names) if name in full}
            if len(pairs) > len(best):
                best = pairs
            if len(best) == min(len(images), len(masks)):
                return best
    return best


def key_of(file, shared, with_stem):
    """What tells cases apart: the folders that are above images and masks alike, and the stem."""
    parts = [name for name in file.folder.parts if name in shared]
    return "/".join([*parts, file.stem] if with_stem else parts)


def find_keys(root, images, masks, notes):
    """The keys of the images, and {folder: {key: paths}} of the masks. A mask's folder is its
    innermost one that is not above images too. Where each image has a folder of its own, the masks
    in it may have any name and number: they are of single objects.

    train/images/1, train/heart/1 -> both have the key train/1, the mask the folder heart
    id7/images/id7, id7/masks/a, id7/masks/b -> all have the key id7, the masks the folder masks
    """
    shared = {name for file in images for name in file.folder.parts}
    shared &= {name for file in masks for name in file.folder.parts}
    with_stem = len({key_of(file, shared, False) for file in images}) < len(images)
    keys = [key_of(file, shared, with_stem) for file in images]
    if len(set(keys)) < len(keys):
        raise BadInput(f"{root}: several images are called {max(keys, key=keys.count)}; {CHOOSE}")
    folders = {}
    for file in masks:
        own = [name for name in file.folder.parts if name not in shared] or ["masks"]
        paths = folders.setdefault(own[-1], {}).setdefault(key_of(file, shared, with_stem), [])
        paths.append(file.path)
        if with_stem and len(paths) > 1:
            raise BadInput(f"{root}: several masks in {own[-1]} are called {file.stem}; {CHOOSE}")
        if len(paths) == 2:
            notes[f"image(s) with several masks in {own[-1]}, which are united"] += 1
    return keys, folders


def pair_files(root, images, masks, skip_unpaired, notes):
    """The Cases, each an image with its masks; and the folders of masks, one a class."""
    if not images or not masks:
        raise BadInput(f"{root}: found {len(images)} images and {len(masks)} masks; {CHOOSE}")
    keys, folders = find_keys(root, images, masks, notes)
    names = [file.path.stem for file in images]
    if len(set(names)) < len(names):
        names = keys  # such as train/1 and val/1
    cases = [Case(name, file.path, []) for name, file in zip(names, images)]
    left_out = {}
    for folder, paths in folders.items():
        pairs = match_names(keys, list(paths))
        for case, key in zip(cases, keys):
            case.masks.extend((folder, path) for path in paths.get(pairs.get(key), []))
        missing = [name for name, key in zip(names, keys) if key not in pairs]
        strangers = [paths[key][0].name for key in set(paths) - set(pairs.values())]
        if missing:
            left_out[f"image(s) without a mask in {folder}: {listed(missing)}"] = len(missing)
        if strangers:
            left_out[f"mask(s) without an image in {folder}: {listed(strangers)}"] = len(strangers)
    if left_out and not skip_unpaired:
        found = "; ".join(f"{count} {what}" for what, count in left_out.items())
        raise BadInput(f"{root}: {found}; --skip-unpaired leaves such files out; images are in "
                       f"{listed(file.folder for file in images)}; {CHOOSE}")
    notes.update({f"{what} (left out)": count for what, count in left_out.items()})
    cases = [case for case in cases if len(dict(case.masks)) == len(folders)]
    if len(cases) < 3:
        raise BadInput(f"{root}: {len(cases)} images with masks; at least three are needed")
    return sorted(cases, key=lambda case: case.name.lower()), list(folders)


def class_of(folder):
    """The class in a folder: "left lung", "right_lung" are both "lungs", "leftMask" is "mask"."""
    bare = re.sub("left|right|masks?|labels?|[ _-]", "", folder)
    for name in CLASSES:
        if bare in (name, name.removesuffix("s")):
            return name
    sideless = re.sub("[ _-]*(left|right)[ _-]*", "", folder)
    return sideless if MASK_WORD.search(folder) else folder


def group_classes(root, folders):
    """{class: folders of masks}, the paper's classes first; only left and right share a class. A
    single class that is called after masks ("train_masks", "Ground Truth") is "foreground".
    """
    groups = {}
    for folder in folders:
        groups.setdefault(class_of(folder), []).append(folder)
    for name, same in groups.items():
        if len(same) > 1 and sorted(re.findall("left|right", " ".join(same))) != ["left", "right"]:
            raise BadInput(f"{root}: {', '.join(same)} all seem to hold {name}; {CHOOSE}")
    unnamed = [name for name in groups if MASK_WORD.search(name)]
    if len(unnamed) == 1 and "foreground" not in groups:
        groups["foreground"] = groups.pop(unnamed[0])
    if len(groups) > 20 or "average" in groups:
        raise BadInput(f"{root}: {len(groups)} classes, at most 20, none called average; {CHOOSE}")
    return {name: groups[name] for name in [*CLASSES, *sorted(groups)] if name in groups}


# ------------------------------------------------------------ folders, part 2: from files to arrays

def open_picture(path):
    """A picture file as Pillow reads it; BadInput where it cannot, or would drop pages or bits."""
    try:
        if path.suffix.lower() == ".img":  # JSRT: 16 bits of which 12 are used, high is dark
            raw = np.fromfile(path, dtype=">u2").reshape(2048, 2048)
            return Image.fromarray(((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8))
        with Image.open(path) as picture:
            is_deep = ";16" in str(picture.tile)
            pages = getattr(picture, "n_frames", 1)
            has_tag = is_turned(picture)
            picture.load()
    except Exception as error:  # the readers raise whatever they like
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise BadInput(f"{path}: cannot be read as a picture ({reason}); replace it") from None
    if pages > 1 and picture.format != "MPO":  # phones put a second view into a JPG
        raise BadInput(f"{path}: {pages} pages in one file; save each as a file, with its own mask")
    if has_tag and picture.format == "TIFF":  # Pillow garbles some of these
        raise BadInput(f"{path}: a TIFF with a rotation tag; save it turned, without the tag")
    if is_deep and picture.mode in ("RGB", "RGBA", "LA"):
        raise BadInput(f"{path}: colours of 16 bits, of which Pillow keeps 8; save it with 8 bits")
    return picture


def to_array(picture):
    """A picture as (H, W) grey values, or (H, W, 3) uint8 where it is coloured, without alpha."""
    if picture.mode in ("L", "I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    colours = np.asarray(picture.convert("RGB"))
    return colours[..., 0] if (colours == colours[..., :1]).all() else colours


def are_alike(shape, other):
    """Whether two (H, W) have the same proportions, to 1 %."""
    return abs(shape[0] * other[1] / (shape[1] * other[0]) - 1) <= 0.01


def is_turned(picture):
    """Whether a picture has a tag that says how to turn it."""
    return picture.getexif().get(ORIENTATION, 1) in range(2, 9)


def turned(picture, note, notes):
    """A picture turned as its tag says, which is noted, or as it is where it has none."""
    if not is_turned(picture):
        return picture
    notes[note] += 1
    picture.info.pop("exif", None)  # or faults in it are errors; Pillow has kept the tag
    return ImageOps.exif_transpose(picture)


def read_image(path, notes, exif=True):
    """An image file as grey (H, W) uint8, whatever its colours and depth."""
    picture = open_picture(path)
    if exif:
        note = "image(s) turned as EXIF says, unless only unturned fits masks; see --no-exif"
        picture = turned(picture, note, notes)
    grey = to_array(picture)
    if grey.ndim == 3:
        grey = grey.mean(axis=-1, dtype=np.float32).round().astype(np.uint8)
    low, high = grey.min(), grey.max()
    if low == high or not np.isfinite(grey).all():
        raise BadInput(f"{path}: constant or not finite; replace or remove this image")
    if grey.dtype == np.uint8:
        return grey
    inner = grey[(grey > low) & (grey < high)]  # without padding and hot pixels
    if inner.size:
        low, high = np.quantile(inner, (0.001, 0.999))
    notes["image(s) of more than 8 bits, stretched from their 0.1 % to their 99.9 % quantile"] += 1
    scaled = (grey.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    return (255 * scaled.clip(0, 1)).astype(np.uint8)


def read_numbers(path, values, exif, notes):
    """A mask file as numbers (H, W): greys as they are, colours as `COLOUR` says; the indices of a
    coloured palette, where there are `values` and none of them is a colour; and alpha, where a mask
    is drawn upon transparency.
    """
    picture = open_picture(path)
    if exif:
        picture = turned(picture, "mask(s) turned as EXIF says; see --no-exif", notes)
    numbers = to_array(picture)
    if values and has_coloured_palette(picture) and not asks_for_colours(values):
        numbers = np.asarray(picture)
    elif numbers.ndim == 3:
        is_grey = (numbers == numbers[..., :1]).all(axis=-1)
        numbers = np.where(is_grey, numbers[..., 0], COLOUR + numbers @ [10 ** 6, 1000, 1])
    if "A" in picture.getbands() or "transparency" in picture.info:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() == 0 and (numbers == numbers.flat[0]).all():
            return alpha
        if (numbers[alpha == 0] != 0).any():
            raise BadInput(f"{path}: is transparent in part, over colours; save it without")
    return numbers


def has_coloured_palette(picture):
    """Whether the numbers in a picture stand for colours of a palette, used or not."""
    if picture.mode != "P":
        return False
    palette = np.reshape(picture.getpalette(), (-1, 3))
    return (palette != palette[:, :1]).any()


def asks_for_colours(values):
    """Whether --values, see `label_values`, names a colour."""
    return any(low >= COLOUR for ranges in values.values() for low, _ in ranges)


def has_soft_edges(numbers, found):
    """Whether few greys lie between the lowest and the highest tenth, and nowhere but at edges."""
    top = float(found[-1])
    between = (numbers > 0.1 * top) & (numbers < 0.9 * top)
    is_rare = between.sum() <= 2 * (numbers >= 0.9 * top).sum()
    return len(found) > 4 and 32 <= top < COLOUR and is_rare and not erode(between, 3).any()


def read_mask(path, folder, values, exif, seen, notes):
    """A mask file as bool (1, H, W); or a label picture as (classes, H, W), one for each of
    `values`. Adds its numbers to `seen`, a set of those in this folder so far.
    """
    numbers = read_numbers(path, values, exif, notes)
    found = np.unique(numbers)
    if has_soft_edges(numbers, found):
        notes[f"mask(s) in {folder} with soft edges, cut at half or as --values says"] += 1
    else:
        seen.update(found.tolist())
    if not values:
        if len(seen - {0}) > 1:
            advice = "--values x=1- takes all, x=128- the top half"
            if max(seen) >= COLOUR and len(seen) > 20:
                advice = "so many colours come from blurring, as in JPEG; save masks as grey PNG"
            raise BadInput(f"{path}: {folder} has the values {listed(seen)} (colour: 1RRRGGGBBB); "
                           f"masks have 0 and another; {advice}")
        return numbers[np.newaxis] > found[-1] / 2
    masks = np.zeros((len(values), *numbers.shape), dtype=bool)
    for mask, ranges in zip(masks, values.values()):
        for low, high in ranges:
            mask |= (numbers >= low) & (numbers <= high)
    rest = numbers[(numbers != 0) & ~masks.any(axis=0)]
    if rest.size:
        notes[f"label picture(s) with values of no class, such as {rest.min()}: background"] += 1
    return masks


def read_case(case, classes, values, exif, seen, notes):
    """The image (H, W) uint8 of a case and its masks (classes, H, W) bool; files of a class are
    united. classes: {class: folders of masks}; seen: {folder: values in its files so far}.
    """
    parts = [read_mask(path, folder, values, exif, seen[folder], notes)
             for folder, path in case.masks]
    shapes = sorted({part.shape[1:] for part in parts})
    image = read_image(case.image, notes, exif)
    if not are_alike(image.shape, shapes[0]):  # perhaps the masks do not follow an EXIF tag
        image = read_image(case.image, notes, exif=False)
    if len(shapes) > 1 or not are_alike(image.shape, shapes[0]):
        raise BadInput(f"{case.image}: shape {image.shape}, masks {listed(shapes)}; make alike")
    masks = np.zeros((len(classes), *shapes[0]), dtype=bool)
    for (folder, _), part in zip(case.masks, parts):  # part: one mask, or with values one a class
        masks[[folder in folders for folders in classes.values()]] |= part
    return image, masks


def read_folder(root, images=None, masks=None, values=None, skip_unpaired=False, exif=True):
    """Reads images, and masks in one folder per class, below `root`; README, "Your data".

    images, masks: names or paths of folders; values: see `label_values`; skip_unpaired: leave out
    what has no partner; exif: turn photographs as they say. Prints what it found. Returns the class
    names, the case names, images (N, 256, 256) uint8 and masks (N, classes, 256, 256) bool.
    """
    notes = Counter()
    image_files, mask_files = find_files(root, images, masks, notes)
    cases, folders = pair_files(root, image_files, mask_files, skip_unpaired, notes)
    classes = group_classes(root, values or folders)
    if values and len(folders) > 1:
        raise BadInput(f"{root}: --values is for one folder, not for {listed(folders)}; {CHOOSE}")
    if values:
        values = {name: values[same[0]] for name, same in classes.items()}
        classes = dict.fromkeys(classes, folders)

    pictures = np.empty((len(cases), GRID, GRID), dtype=np.uint8)
    labels = np.empty((len(cases), len(classes), GRID, GRID), dtype=bool)
    drawn = np.empty((len(cases), len(classes)))  # the share of foreground in the files
    shapes, seen = set(), {folder: set() for folder in folders}
    for i, case in enumerate(cases):
        image, case_masks = read_case(case, classes, values, exif, seen, notes)
        pictures[i], labels[i] = resize(image, GRID), resize(case_masks, GRID)
        drawn[i] = case_masks.mean(axis=(1, 2))
        shapes.add(image.shape)
    print(f"{root}: {len(cases)} cases, height and width {min(shapes)} to {max(shapes)}")
    for folder, path in dict(cases[0].masks).items():
        print(f"  masks in {folder} (--masks chooses), such as {path.name} for {cases[0].name}: "
              f"values {listed(seen[folder]) or 'soft'}")
    for c, name in enumerate(classes):
        check_class(root, name, drawn[:, c], labels[:, c])
    for note, count in notes.items():
        print(f"  {count} {note}")
    return tuple(classes), [case.name for case in cases], pictures, labels


def check_class(root, name, drawn, masks):
    """Prints what the masks (N, 256, 256) of a class hold; `drawn` (N,) is the share of foreground
    in their files. BadInput where they cannot be meant so.
    """
    shares = masks.mean(axis=(1, 2))
    empty, full = (shares == 0).sum(), (shares == 1).sum()
    print(f"  {name}: {shares.mean():.1%} of the picture; {empty} empty and {full} full masks")
    growth = shares[drawn > 0] / drawn[drawn > 0]
    changed = ((growth < 0.8) | (growth > 1.25)).sum()
    if changed:
        print(f"    too small for the grid: lost in {(growth == 0).sum()} masks, area changed in "
              f"{changed} (x {np.median(growth):.2f}); crop the pictures, or raise GRID in data.py")
    border = [masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]]
    if empty + full == len(masks) or (shares.mean() > 0.5 and np.mean(border) > 0.9):
        raise BadInput(f"{root}: every mask of {name} is empty or full, or they seem inverted (the "
                       "border is foreground); correct them or --values, or leave the class out")


# ----------------------------------------------------------------------- options and the whole road

def label_values(text):
    """An argparse type: "lungs=255,cells=1-,road=128-64-128" -> {class: [[lowest, highest], ...]}.

    A value is a grey, a range of greys (1- is everything above 0), or a colour as red-green-blue.
    A class may have several: "lungs=1,lungs=2".
    """
    values = {}
    for pair in text.lower().split(","):
        name, _, value = pair.partition("=")
        if not name.strip() or not re.fullmatch(r"\d+|\d+-\d*|\d+-\d+-\d+", value.strip()):
            raise BadInput(f"--values: {pair} is not like lungs=255, cells=1- or road=128-64-128")
        numbers = value.strip().split("-")
        if len(numbers) == 3 and len(set(numbers)) > 1:
            red, green, blue = map(int, numbers)
            low = high = COLOUR + 10 ** 6 * red + 1000 * green + blue
        else:
            low = int(numbers[0])
            high = int(numbers[-1] or 2 * COLOUR)
        values.setdefault(class_of(name.strip()), []).append([low, high])
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
    if not re.fullmatch(r"\d{0,5}", count) or int(count or 247) < 3 or given:
        raise BadInput(f"{source}: write phantoms, or phantoms:N with N from 3 to 99999, and no "
                       "option for reading folders")
    images, masks = phantoms(int(count or 247))
    return CLASSES, [f"phantom{i:05d}" for i in range(len(images))], images, masks


def load(data, size, noise, band, seed, noise_kind="erode-dilate", clean=None, group=None,
         clean_dice=0.99, **reading):
    """The whole road: read, split, corrupt labels on the 256-pixel grid, resize to size x size.

    The arguments are train.py's options: noise in 0..1; band as text, "5-13"; clean: a folder like
    `data` with clean labels, with which a label below clean_dice is "given"; group: see
    `split_by_group`. Returns the class names, the training and the test Cases. Test labels are
    corrupted too, to be scored; Dice uses their `clean`.
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
            if operation[i] == "" and lowest_dice(given[index], truth[index]) < clean_dice:
                operation[i] = "given"
        both.append(Cases([names[i] for i in indices], resize(images[indices], size),
                          resize(noisy, size), resize(truth[indices], size), operation, pixels))
    return classes, *both


def lowest_dice(a, b):
    """The lowest Dice over the classes of two labels (classes, H, W); 1 for two empty masks."""
    dice = []
    for first, second in zip(a, b):
        total = first.sum() + second.sum()
        dice.append(2 * (first & second).sum() / total if total else 1.0)
    return min(dice)


def read_clean(data, clean, classes, names, reading):
    """The masks (N, classes, 256, 256) of a folder with the cases and classes of `data`."""
    if str(data).partition(":")[0] == "phantoms":
        raise BadInput(f"--clean {clean}: phantoms bring their clean labels; leave --clean out")
    own = dict(reading)
    for option in ("images", "masks"):  # names hold for both folders, paths lead to `data`
        own[option] = [name for name in reading.get(option) or []
                       if len(Path(name).parts) == 1 or not Path(name).is_dir()]
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
    """The case names and images (N, size, size) uint8 of a folder of images; masks are not read.

    A name is the file's stem, or "folder/stem" where two images share their stems.
    """
    notes = Counter()
    files, masks = find_files(data, reading.get("images"), reading.get("masks"), notes)
    if not files:
        raise BadInput(f"{data}: no images in it or in images/; --images names other folders")
    names = [file.path.stem for file in files]
    if len(set(names)) < len(names):
        names = [(file.folder / file.path.stem).as_posix() for file in files]
    if len(set(names)) < len(names):
        raise BadInput(f"{data}: several images are called {max(names, key=names.count)}; "
                       "rename them")
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
