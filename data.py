"""Data for Pick-and-Learn: phantoms, folders of images and masks, label noise, the train/test split.

Images are uint8 (N, H, W), labels are bool (N, classes, H, W). This file needs numpy and Pillow only.
The phantoms' drawing code at the end is an asset: skip it when reading.
"""
import functools
import math
import re
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image

CLASSES = ("lungs", "heart", "clavicles")
GRID = 256  # the paper's picture size, to which data are brought; the noise band counts its pixels
PICTURES = {".img", ".png", ".gif", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg"}  # file name endings
LOAD = ("data", "masks", "values", "clean", "size", "noise", "band", "noise_kind", "seed")


class BadInput(Exception):
    """Something the user gave cannot be used; the message is one line: what was found, where, what to do."""


def refuse(message):
    """In place of argparse's own error: one line, like all bad input."""
    raise BadInput(f"{message}; see --help")


def run(main):
    """Runs a script's main(); bad input and failing files end it with one line on stderr and exit code 2."""
    try:
        main()
    except (BadInput, OSError, MemoryError) as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # torch's way of running out of memory
        if "memory" not in str(error):
            raise
        print(f"{Path(sys.argv[0]).name}: out of memory; choose a smaller --size or --batch", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; train.py --resume goes on after the last finished epoch", file=sys.stderr)
        sys.exit(130)


class Cases(NamedTuple):
    """Images, the labels to train on, the clean labels to measure with, and what `corrupt_labels` did to each."""
    names: list          # N file stems
    images: np.ndarray   # (N, S, S) uint8
    labels: np.ndarray   # (N, classes, S, S) bool, possibly noisy
    clean: np.ndarray    # (N, classes, S, S) bool
    operation: list      # N times "" (clean), a name in DAMAGE, or "given": differs from its clean label
    pixels: np.ndarray   # (N,) int, radius of the operation on the 256-pixel grid, 0 without one

    @property
    def noisy(self):
        """(N,) bool: which labels are known not to be clean."""
        return np.array([operation != "" for operation in self.operation])


# --------------------------------------------------------------------- morphology and label noise

def dilate(mask, n):
    """Dilation of a bool mask (..., H, W) by the disc of radius n: all pixels within n of the mask.

    Distances are Euclidean. Nothing lies outside the picture: its border neither grows nor eats a mask.
    """
    rows = [np.array(mask, dtype=bool)]  # rows[r]: the mask grown by r pixels along each row
    for r in range(1, n + 1):
        grown = rows[-1].copy()
        grown[..., r:] |= rows[0][..., :-r]
        grown[..., :-r] |= rows[0][..., r:]
        rows.append(grown)
    grown = rows[n].copy()
    for dy in range(1, n + 1):  # a disc is a stack of rows: the one at dy reaches sqrt(n^2 - dy^2) far
        row = rows[math.isqrt(n * n - dy * dy)]
        grown[..., dy:, :] |= row[..., :-dy, :]
        grown[..., :-dy, :] |= row[..., dy:, :]
    return grown


def erode(mask, n):
    """Erosion of a bool mask (..., H, W) by the same disc: pixels farther than n from any background."""
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
    """Masks (classes, H, W) dilated by n in random blocks of 2n x 2n pixels and eroded by n in the others."""
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
    """Section 3.2: damages exactly round(noise * N) of N labels (N, classes, GRID, GRID), all classes alike.

    Each chosen label gets one operation out of `kind` (names in DAMAGE joined by "-") and one radius n,
    band[0] <= n <= band[1]. Returns the noisy copy, and each label's operation ("" where untouched) and
    radius (0 where untouched, and for "omit", which has none).
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
    """Anti-aliased bilinear resize of (..., H, W) to (..., size, size); bool is cut at one half again."""
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


def read(source, masks_root=None, values=None):
    """Classes, names, images (N, 256, 256) uint8 and masks (N, classes, 256, 256) bool of a folder (see `read_folder`),
    of "phantoms" (247 of them), or of "phantoms:N".
    """
    kind, _, count = str(source).partition(":")
    if kind != "phantoms":
        return read_folder(source, masks_root, values)
    if not re.fullmatch(r"\d*", count) or int(count or 247) < 3 or masks_root or values:
        raise BadInput(f"{source}: write phantoms, or phantoms:N with N from 3 on, and no --masks, --values or --clean")
    images, masks = phantoms(int(count or 247))
    return CLASSES, [f"phantom{i:05d}" for i in range(len(images))], images, masks


def grey_values(text):
    """An argparse type: "lungs=255,heart=85" -> {"lungs": 255, "heart": 85}."""
    if not re.fullmatch(r"[^=,]+=\d+(,[^=,]+=\d+)*", text):
        raise BadInput(f"--values: {text} is not like lungs=255,heart=85")
    return {name.strip().lower(): int(value) for name, value in (pair.split("=") for pair in text.split(","))}


def load_all(source, size, masks_root=None, values=None):
    """All cases of a source, with its labels as they are: the class names and the Cases."""
    classes, names, images, masks = read(source, masks_root, values)
    masks = resize(masks, size)
    return classes, Cases(names, resize(images, size), masks, masks, [""] * len(names), np.zeros(len(names), dtype=int))


def load(data, size, noise, band, seed, noise_kind="erode-dilate", masks=None, values=None, clean=None):
    """The whole road: read the data, split them, corrupt labels on the 256-pixel grid, resize to size x size.

    The arguments are those of train.py: data, masks and values as for `read`; noise in 0..1; band as text, "5-13";
    noise_kind as for `corrupt_labels`; clean: a folder like `data` with clean labels for the same images. Returns the
    class names, the training Cases and the test Cases. Test labels are corrupted in the same way, for scoring labels
    that no network was trained on; Dice is measured on their `clean`.
    """
    if clean and str(data).partition(":")[0] == "phantoms":
        raise BadInput(f"--clean {clean}: phantoms bring their clean labels; leave --clean out")
    band = tuple(map(int, band.split("-")))
    classes, names, images, given = read(data, masks, values)
    truth = given
    if clean:
        clean_classes, clean_names, _, truth = read_folder(clean, values=values)
        if (clean_classes, clean_names) != (classes, names):
            raise BadInput(f"{clean}: {len(clean_names)} cases of {', '.join(clean_classes)}; --clean needs the "
                           f"{len(names)} cases of {', '.join(classes)} of {data}, under the same names")
    parts = []
    for part, indices in enumerate(split(len(names), seed)):
        noisy, operation, pixels = corrupt_labels(given[indices], noise, band, (seed, 1 + part), noise_kind)
        differs = (given[indices] != truth[indices]).any(axis=(1, 2, 3))
        operation = [done or "given" * bool(other) for done, other in zip(operation, differs)]
        parts.append(Cases([names[i] for i in indices], resize(images[indices], size), resize(noisy, size),
                           resize(truth[indices], size), operation, pixels))
    return classes, *parts


# ---------------------------------------------------------------------------------------------- folders of pictures

def read_folder(root, masks_root=None, values=None):
    """Reads images, and masks in one folder per class, wherever they lie below `root`; README, "Use it on your data".

    An image and its masks have the same stem, case aside. masks_root: where all masks are, if not below `root` beside
    folders called images. values: {class: grey value} where one label picture holds all classes.
    Prints what it found. Pictures are brought to 256 x 256 pixels, whatever their size and shape.
    Returns the class names, the stems, images (N, 256, 256) uint8 and masks (N, classes, 256, 256) bool.
    """
    images, masks = find_pictures(Path(root), Path(masks_root) if masks_root else None)
    check_pairs(root, images, masks)
    if values and len(masks) > 1:
        raise BadInput(f"{root}: --values is for one folder of label pictures; found {', '.join(masks)}")
    groups = group_classes(root, {name: masks for name in values} if values else masks)
    classes, stems = list(groups), sorted(images)
    pictures = np.empty((len(stems), GRID, GRID), dtype=np.uint8)
    labels = np.zeros((len(stems), len(classes), GRID, GRID), dtype=bool)
    sizes, greys, problems = set(), {folder: set() for folder in masks}, []
    for i, stem in enumerate(stems):
        try:
            picture = read_image(images[stem][0])
            sizes.add(picture.shape)
            pictures[i] = resize(picture, GRID)
            for c, name in enumerate(classes):
                for source in groups[name]:
                    folder = next(iter(masks)) if values else source
                    mask, found = read_mask(masks[folder][stem][0], picture.shape, values and values[source])
                    greys[folder].update(found)
                    labels[i, c] |= resize(mask, GRID)
        except BadInput as problem:
            problems.append(problem)
    problems += [f"{root}: the masks in {folder} have the grey values {sorted(found)[:5]}; a folder has two, 0 and one "
                 "other; --values takes label pictures of several classes" for folder, found in greys.items()
                 if len(found - {0}) > 1 and found - {0} != {1, 255} and not values]
    if problems:
        raise BadInput(f"{problems[0]}{f' ({len(problems) - 1} more files have problems)' * (len(problems) > 1)}")
    low, high = min(sizes), max(sizes)
    print(f"{root}: {len(stems)} cases, images of {low[1]} x {low[0]}" + f" to {high[1]} x {high[0]}" * (low != high))
    shares = labels.mean(axis=(2, 3))
    for c, name in enumerate(classes):
        empty, full = (shares[:, c] == 0).sum(), (shares[:, c] == 1).sum()
        values_found = sorted(set().union(*(greys[folder] for folder in (masks if values else groups[name]))))
        print(f"  {name}: grey values {' '.join(map(str, values_found[:8]))}; {shares[:, c].mean():.1%} of the "
              f"picture; {empty} empty and {full} full masks")
        if empty + full == len(stems):
            raise BadInput(f"{root}: every mask of {name} is empty or full; leave that folder out or correct it")
        frame = [labels[:, c, edge] for edge in (0, -1)] + [labels[:, c, :, edge] for edge in (0, -1)]
        if shares[:, c].mean() > 0.5 and np.mean(frame) > 0.9:
            raise BadInput(f"{root}: the masks of {name} seem inverted: the border of the pictures is foreground; "
                           "make the class the non-zero value")
    return tuple(classes), [images[stem][0].stem for stem in stems], pictures, labels


def find_pictures(root, masks_root):
    """The picture files: images {stem: [paths]}, masks {folder name: {stem: [paths]}}, all names in lower case.

    Run folders of train.py and hidden files are passed over.
    """
    roots = [folder.resolve() for folder in (root, masks_root) if folder]
    for folder in roots:
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; give one with images/ and a folder of masks per class")
    images, masks = {}, {}
    for path in sorted({path for folder in roots for path in folder.rglob("*") if path.suffix.lower() in PICTURES}):
        in_masks = masks_root and path.is_relative_to(roots[1])
        below = path.relative_to(roots[1] if in_masks else roots[0])
        folders = [unicodedata.normalize("NFC", folder.lower()) for folder in below.parts[:-1]]
        if not path.is_file() or any(part.startswith(".") for part in below.parts) or any(
                (parent / "config.json").is_file() for parent in path.parents[:len(folders)]):
            continue
        named_image = any("image" in folder for folder in folders) and not any("mask" in folder for folder in folders)
        is_image = not in_masks if masks_root else path.suffix.lower() == ".img" or not folders or named_image
        home = images if is_image else masks.setdefault(folders[-1] if folders else "masks", {})
        home.setdefault(unicodedata.normalize("NFC", path.stem.lower()), []).append(path)
    return images, masks


def class_of(folder):
    """The class that a folder of masks holds: "left lung" and "right_lung" are both "lungs"; "masks": "foreground"."""
    name = re.sub(r"^(left|right)[ _-]+|[ _-]+(left|right)$", "", folder)
    if name + "s" in CLASSES or name in CLASSES:
        return name if name in CLASSES else name + "s"
    return "foreground" if folder in ("mask", "masks", "label", "labels") else folder


def check_pairs(root, images, masks):
    """BadInput unless every image has one mask in every folder of masks, and every mask an image."""
    if not images or not masks:
        raise BadInput(f"{root}: found {len(images)} images and {len(masks)} folders of masks; expected PNG, GIF, BMP, "
                       "TIF, JPG or IMG files in images/ and in one folder of masks per class, such as lungs/")
    if len(images) < 3:
        raise BadInput(f"{root}: {len(images)} images; three at least are needed, two to train and one to test")
    complain([paths[1] for paths in images.values() if len(paths) > 1], f"{root}: another image has the same name as")
    for name, files in masks.items():
        complain([paths[1] for paths in files.values() if len(paths) > 1],
                 f"{root}: another mask in {name} has the same name as")
        complain(sorted(set(images) - set(files)), f"{root}: no mask in {name} for the image(s)")
        complain(sorted(set(files) - set(images)), f"{root}: no image for the mask(s) in {name} called")


def group_classes(root, masks):
    """{class: folders of masks}, the paper's classes first; only the left and the right of a class have two folders."""
    groups = {}
    for folder in masks:
        groups.setdefault(class_of(folder), []).append(folder)
    for name, folders in groups.items():
        if len(folders) > 1 and sorted(re.findall("left|right", " ".join(folders))) != ["left", "right"]:
            raise BadInput(f"{root}: the folders {', '.join(folders)} all seem to hold {name}; keep or rename one")
    if len(groups) > 20 or "average" in groups:
        raise BadInput(f"{root}: {len(groups)} folders of masks, {', '.join(sorted(groups)[:5])} ...; at most 20 "
                       "classes, and none called average")
    known = [name for name in CLASSES if name in groups]
    return {name: groups[name] for name in [*known, *sorted(set(groups) - set(known))]}


def complain(offenders, what):
    """BadInput that lists the offenders, at most ten and then a count; nothing where there are none."""
    if offenders:
        more = f" and {len(offenders) - 10} more" if len(offenders) > 10 else ""
        raise BadInput(f"{what} {', '.join(map(str, offenders[:10]))}{more}; add, rename or remove files")


def read_image(path):
    """A picture file as grey (H, W) uint8, whatever its colours and depth; `.IMG` is JSRT's raw format."""
    if path.suffix.lower() == ".img":  # 2048 x 2048, 16 bits big-endian of which 12 are used, high is dark
        raw = np.fromfile(path, dtype=">u2")
        if path.stat().st_size != 2 * 2048 * 2048:
            raise BadInput(f"{path}: {path.stat().st_size} bytes, a JSRT .IMG has {2 * 2048 * 2048}; fetch it again")
        return ((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8).reshape(2048, 2048)
    grey = read_grey(path)
    low, high = grey.min(), grey.max()
    if not np.isfinite(grey).all() or low == high:
        raise BadInput(f"{path}: {'constant' if low == high else 'not finite'}; replace or remove this image")
    return grey if grey.dtype == np.uint8 else (255.0 * (grey - float(low)) / (float(high) - low)).astype(np.uint8)


def read_mask(path, image_shape, value):
    """A mask file as bool (H, W), and its grey values: two, 0 and one for the class; or the pixels of grey `value`."""
    grey = read_grey(path, is_mask=True)
    found = np.flatnonzero(np.bincount(grey.ravel())).tolist() if grey.dtype == np.uint8 else np.unique(grey).tolist()
    if value is None and (len(found) > 2 or len(found) == 2 and found[0] != 0):
        raise BadInput(f"{path}: {len(found)} grey values, {found[:4]}{' ...' * (len(found) > 4)}; a mask has two, 0 "
                       "and one other; --values takes label pictures of several classes")
    if abs(grey.shape[0] * image_shape[1] / grey.shape[1] / image_shape[0] - 1) > 0.01:
        raise BadInput(f"{path}: {grey.shape[1]} x {grey.shape[0]} pixels, its image {image_shape[1]} x "
                       f"{image_shape[0]}; the shapes must be alike")
    return (grey > 0) if value is None else (grey == value), found


def read_grey(path, is_mask=False):
    """The first frame of a picture file, without alpha: (H, W). Colours are averaged; in a mask each has a number."""
    try:
        picture = iio.imread(path, plugin="pillow", index=0)
    except Exception as error:  # the readers raise whatever they like
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise BadInput(f"{path}: cannot be read as a picture ({reason}); replace or remove it") from None
    if picture.dtype == bool:
        picture = picture.astype(np.uint8)
    if picture.ndim == 3:
        colours = picture[..., :3 if picture.shape[-1] > 2 else 1]
        grey = (colours == colours[..., :1]).all()
        if is_mask and not grey:
            return colours.astype(np.int64) @ (65536, 256, 1)
        picture = colours[..., 0] if grey else colours.mean(axis=-1).round().astype(picture.dtype)
    return picture


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
