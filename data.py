"""Data for Pick-and-Learn: phantoms, folders of images and masks, label noise, the data split.

Images are uint8 (N, H, W), labels are bool (N, classes, H, W). Needs numpy and Pillow only.
How a folder is read: .github/DATA.md. The phantoms' drawing code at the end may be skipped.
"""
import csv
import functools
import glob
import hashlib
import io
import math
import os
import re
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

CLASSES = ("lungs", "heart", "clavicles")
GRID = 256  # the paper's image size, to which data are brought; the noise band counts its pixels
CLEAN_DICE = 0.9  # --clean: a label whose Dice with its redrawn one is lower counts as noisy
LOAD = ("data", "size", "noise", "band", "seed", "noise_kind", "images", "masks", "skip_unpaired",
        "group", "clean", "exclude", "test_images", "test_masks")  # the arguments of `load`

# JSRT and its masks by SCR as their archives unzip.
JSRT_IMAGES = "All247images/{}.IMG"
JSRT_MASKS = ("lungs=scratch/*/masks/left lung/{}.gif", "lungs=scratch/*/masks/right lung/{}.gif",
              "heart=scratch/*/masks/heart/{}.gif",
              "clavicles=scratch/*/masks/left clavicle/{}.gif",
              "clavicles=scratch/*/masks/right clavicle/{}.gif")

SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation"}
VOLUMES = (".nii", ".nii.gz", ".dcm", ".mha", ".nrrd")
LOSSY = ("JPEG", "MPO", "WEBP")  # formats that blur the values of a mask
ORIENTATION = 0x0112  # the EXIF tag of a rotation; 0 and 1 are none
COLOR = 1 << 24  # a color in a mask counts as the number COLOR + 0xRRGGBB
Image.MAX_IMAGE_PIXELS = None  # microscope slides are larger than Pillow's limit against bad files


class BadInput(Exception):
    """Bad data or arguments; the message is one line: what was found, where, what to do."""


class Source(NamedTuple):
    """What `read` returns: all cases of a folder, or phantoms."""
    classes: tuple
    names: list         # N case names
    images: np.ndarray  # (N, 256, 256) uint8
    labels: np.ndarray  # (N, classes, 256, 256) bool; None without masks
    shapes: list        # N times (H, W), the size of the image as shown: turned as EXIF says
    paths: list         # N paths of the images below the folder, in which --group searches


class Cases(NamedTuple):
    """Images, labels to train on, clean labels to measure with, and what was done to each."""
    names: list          # N case names
    images: np.ndarray   # (N, S, S) uint8
    labels: np.ndarray   # (N, classes, S, S) bool, possibly noisy
    clean: np.ndarray    # (N, classes, S, S) bool; the labels as given if not `known`
    operation: list      # N times "" (clean), a name in DAMAGE, or "given" (--clean is different)
    pixels: np.ndarray   # (N,) int, radius of the operation on the 256-pixel grid, or 0
    known: bool = True   # False: nobody knows which labels are clean

    @property
    def noisy(self):
        """(N,) bool: which labels are known not to be clean."""
        return np.array([operation != "" for operation in self.operation])


def progress(items, what):
    """Yield the items; once two seconds have passed, show on stderr how many are done.

    The line is rewritten on a terminal, and printed every 30 seconds to a file or notebook.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    total, due = len(items), time.monotonic() + 2
    for done, item in enumerate(items):
        if sys.stderr is not None and time.monotonic() >= due:
            line = f"{what} {done}/{total}"
            print(line, end="\r" if is_terminal else "\n", file=sys.stderr, flush=True)
            due = time.monotonic() + (0.2 if is_terminal else 30)
        yield item
    if is_terminal:
        print(" " * 60, end="\r", file=sys.stderr, flush=True)  # clears the line


# --------------------------------------------------------------------- morphology and label noise

def dilate(mask, n):
    """Dilate a bool mask (..., H, W) by the disc of radius n: all pixels within n of the mask.

    Distances are Euclidean. Nothing lies outside the image: its border grows or eats no mask.
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
    """Erode a bool mask (..., H, W) by the same disc: pixels farther than n from others."""
    return ~dilate(~np.asarray(mask, dtype=bool), n)


def shift(masks, n, rng):
    """Move masks (classes, H, W) together, circularly, by n pixels in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.roll(masks, (round(n * np.sin(angle)), round(n * np.cos(angle))), axis=(-2, -1))


def omit(masks, rng):
    """Leave out one class of masks (classes, H, W), at random."""
    left_out = masks.copy()
    left_out[rng.integers(len(masks))] = False
    return left_out


def ragged(masks, n, rng):
    """Dilate masks (classes, H, W) by n in random blocks of 2n x 2n pixels, erode elsewhere."""
    height, width = masks.shape[-2:]
    blocks = rng.integers(2, size=[math.ceil(height / (2 * n)), math.ceil(width / (2 * n))])
    outward = blocks.repeat(2 * n, axis=0).repeat(2 * n, axis=1)[:height, :width] == 1
    return np.where(outward, dilate(masks, n), erode(masks, n))


DAMAGE = ("erode", "dilate", "shift", "omit", "ragged")  # the paper's are the first two


def damage(masks, operation, n, rng):
    """Apply one of the operations in DAMAGE with radius n to masks (classes, H, W)."""
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
    """Damage exactly round(noise * N) of the labels (N, classes, GRID, GRID), as in section 3.2.

    Each of these gets one operation for all classes, out of `kind` (names in DAMAGE joined by "-"),
    and one radius n, band[0] <= n <= band[1]. Returns the noisy copy, and each label's
    operation ("" if untouched) and radius (0 if untouched, and for "omit", which has none).
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

def resize(images, size):
    """Resize (..., H, W) to (..., size, size), bilinear and anti-aliased; bool is cut at 1/2."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    flat = images.reshape(-1, height, width)
    resized = np.empty((len(flat), size, size), dtype=images.dtype)
    for i, image in enumerate(flat):
        if image.dtype == bool:
            gray = Image.fromarray(image.astype(np.uint8) * 255)
            resized[i] = np.asarray(gray.resize((size, size), Image.BILINEAR)) >= 128
        else:
            resized[i] = np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR))
    return resized.reshape(*images.shape[:-2], size, size)


def split(names, seed, group=None):
    """Split at random in the paper's proportion, 165 of 247 for training: two index arrays.

    group: a regular expression; names in which it matches the same text, such as a patient, stay on
    one side. BadInput if it is wrong, or if there are fewer than three names or groups.
    """
    groups = list(range(len(names)))
    if group is not None:
        try:
            matches = [re.search(group, name) for name in names]
        except (re.error, OverflowError) as error:
            raise BadInput(f"--group {group}: no regular expression ({error})") from None
        if None in matches:
            raise BadInput(f"--group {group}: not found in {names[matches.index(None)]}; it must "
                           "match in the path of every image")
        groups = [match[0] for match in matches]
    known = sorted(set(groups))
    if len(known) < 3:
        raise BadInput(f"{len(known)} cases, or groups by --group: {listed(known)}; a split needs "
                       "three")
    order = np.random.default_rng((seed, 0)).permutation(len(known))
    chosen = [known[i] for i in order[:round(len(known) * 165 / 247)]]
    training = np.isin(groups, chosen)
    return np.flatnonzero(training), np.flatnonzero(~training)


# ---------------------------------------------------------------- folders, part 1: paths by pattern

class Pattern(NamedTuple):
    """[CLASS=]PATH[=VALUE] as typed, and its three parts; value is None if there is none."""
    text: str
    path: str
    name: str
    value: str


class Found(NamedTuple):
    """The cases of a folder, paired by name; their files are not read yet."""
    root: str
    classes: tuple
    names: list     # N case names
    paths: list     # N paths of the images below root
    masks: dict     # {Pattern: {name: [paths]}}; empty for phantoms
    clean: dict     # the same for --clean, where a case may have none
    notes: Counter  # {sentence for the summary: how often}


def listed(items, spell=str):
    """Return items in order as text: the first ten, and how many more there are."""
    items = sorted(set(items))
    text = ", ".join(spell(item) for item in items[:10])
    return text if len(items) <= 10 else f"{text} and {len(items) - 10} more"


def normalized(path):
    """Return a path with / only and in NFC, since accents are stored in two ways."""
    return unicodedata.normalize("NFC", path).replace("\\", "/")


def parse_pattern(text, is_image=False, name="foreground"):
    """Return a text as a Pattern; `name` is its class if it has no CLASS=."""
    path, value = normalized(text), None
    if "{}" not in path:
        raise BadInput(f'{text}: write {{}} for the name of a case, as in "images/{{}}.png"')
    if not is_image:  # CLASS= ends at the first = before {}, =VALUE begins at the last = after {}
        parts = re.fullmatch(r"(?:([^={]+)=)?(.*\{\}.*?)(?:=([^={]*))?", path)
        name, path, value = parts[1] or name, parts[2], parts[3]
    pattern = Pattern(text, Path(path).as_posix(), name.strip(), value)
    if value is not None:
        value_range(pattern)
    return pattern


def value_range(pattern):
    """Return the lowest and the highest number of =VALUE: "85" is 85 to 85, "1-" is 1 to inf."""
    if re.fullmatch("#[0-9a-fA-F]{6}", pattern.value):
        number = color_numbers(np.array(list(bytes.fromhex(pattern.value[1:]))))
        return number, number
    if not re.fullmatch(r"\d+(-\d*)?", pattern.value):
        raise BadInput(f"{pattern.text}: ={pattern.value} is no value; write a number (=85), a "
                       "range (=43-199, =1-, =128-) or a color (=#804080)")
    low, dash, high = pattern.value.partition("-")
    if not dash:
        high = low
    return int(low), int(high) if high else math.inf


def expression(path, name, star):
    """Return a path as a regular expression; name, star: those for {} and *."""
    path, ending = re.fullmatch(r"(.*?)(\.\*|\.\w+)?", path).groups(default="")
    path = re.escape(path).replace(r"\{\}", f"(?P<case>{name})", 1)
    path = path.replace(r"\{\}", "(?P=case)").replace(r"\*", star)
    ending = r"\.[^./]+" if ending == ".*" else re.escape(ending)
    return re.compile(f"{path}(?i:{ending})")


def list_files(root, pattern):
    """Return the paths below root of all files in a pattern's folders; no hidden ones."""
    folders = glob.escape(os.path.dirname(pattern.path)).replace("[*]", "*").replace("{}", "*")
    folders = re.sub(r"[^\0-\x7f]+", "*", folders)  # accents: compared when normalized
    paths = [path.replace(os.sep, "/") for path in glob.glob(os.path.join(folders, "*"),
                                                             root_dir=root)]
    return sorted(path for path in paths if not os.path.isdir(os.path.join(root, path))
                  and os.path.basename(path).lower() != "thumbs.db")


def match_files(root, pattern, taken=()):
    """Return {name of a case: [paths]} of the files that fit a pattern and are not `taken`."""
    shortest = expression(pattern.path, name="[^/]+?", star="[^/]*")
    longest = expression(pattern.path, name="[^/]+", star="[^/]*?")
    files = list_files(root, pattern)
    cases = {}
    for file in files:
        match = shortest.fullmatch(normalized(file))
        if not match or file in taken:
            continue
        name, other = match["case"], longest.fullmatch(normalized(file))["case"]
        if name != other:
            raise BadInput(f"{root}: {pattern.text} finds two names in {file}: {name} and {other}; "
                           "write more of the name into the pattern")
        cases.setdefault(name, []).append(file)
    if not cases:
        there = listed(files) or listed(os.listdir(root)) or "none"
        raise BadInput(f"{root}: {pattern.text} fits no file; there are {there}; --images and "
                       "--masks say where the files are")
    return cases


def files_of(matches):
    """Return the set of all files in {Pattern: {name: [paths]}}."""
    return {file for cases in matches.values() for files in cases.values() for file in files}


def default_patterns(root, clean):
    """Return images/{}.* and NAME/{}.* for each class, unless the folder is JSRT as it unzips."""
    folders = {normalized(path.name) for path in Path(root).iterdir()
               if path.is_dir() and not path.name.startswith(".")}
    if {"All247images", "scratch"} <= folders:
        return JSRT_IMAGES, JSRT_MASKS
    if "images" not in folders:
        raise BadInput(f"{root}: no folder images/, but {listed(os.listdir(root)) or 'nothing'}; "
                       'write --images "DIR/{}.png" --masks "CLASS=DIR/{}.png"')
    classes = folders - {"images"} - {Path(pattern.path).parts[0] for pattern in clean}
    if classes == {"masks"}:
        return "images/{}.*", ["masks/{}.*"]
    return "images/{}.*", [f"{name}={name}/{{}}.*" for name in sorted(classes)]


def find_cases(root, images=None, masks=None, skip_unpaired=False, clean=None):
    """Pair the images and masks below a folder, as .github/DATA.md tells. masks, clean: lists."""
    if not os.path.isdir(root):
        raise BadInput(f"{root}: no such folder; write one, or phantoms, or phantoms:N")
    clean = [parse_pattern(text, name="") for text in clean or []]
    if not images:
        images, default_masks = default_patterns(root, clean)
        masks = masks or default_masks
    image = parse_pattern(images, is_image=True)
    masks = [parse_pattern(text) for text in masks or []]
    given = {pattern.name for pattern in masks}
    classes = tuple(name for name in [*CLASSES, *sorted(given - set(CLASSES))] if name in given)
    if len(classes) == 1:
        clean = [pattern._replace(name=pattern.name or classes[0]) for pattern in clean]
    if "average" in given or not given >= {pattern.name for pattern in clean}:
        raise BadInput(f"{root}: classes: {listed(given) or 'none'}; none may be called average, "
                       "and each pattern of --clean needs CLASS= of one of them")
    clean_files = {pattern: match_files(root, pattern) for pattern in clean}
    taken = files_of(clean_files)
    mask_files = {pattern: match_files(root, pattern, taken) for pattern in masks}
    taken |= files_of(mask_files)
    image_files = match_files(root, image, taken)
    notes = Counter()
    names = pair(root, image_files, mask_files, skip_unpaired, notes)
    check_clean(root, names, clean_files, notes)
    left = {file for pattern in [image, *masks, *clean] for file in list_files(root, pattern)}
    left -= taken | files_of({image: image_files})
    if left:
        notes[f"file(s) that fit no pattern: {listed(left)}"] = len(left)
    paths = [image_files[name][0] for name in names]
    return Found(str(root), classes, names, paths, mask_files, clean_files, notes)


def pair(root, image_files, mask_files, skip_unpaired, notes):
    """Return the names, sorted, that have one image and a mask for each pattern."""
    names = set(image_files)
    problems = {}
    for pattern, files in mask_files.items():
        missing, strangers = set(image_files) - set(files), set(files) - set(image_files)
        if missing:
            problems[f"image(s) without {pattern.text}: {listed(missing)}"] = len(missing)
        if strangers:
            problems[f"mask(s) {pattern.text} without image: {listed(strangers)}"] = len(strangers)
        names -= missing
    for name, files in image_files.items():
        if len(files) > 1:
            raise BadInput(f"{root}: several images for the case {name}: {listed(files)}; write "
                           "more into the pattern of --images, or rename them")
    if problems and not (skip_unpaired and names):
        found = "; ".join(f"{count} {problem}" for problem, count in problems.items())
        raise BadInput(f"{root}: {found}; correct --images and --masks, or leave such files out "
                       "with --skip-unpaired")
    for problem, count in problems.items():
        notes[f"{problem} (left out)"] = count
    return sorted(names, key=lambda name: (name.lower(), name))


def check_clean(root, names, clean_files, notes):
    """Count the redrawn cases; refuse a pattern that fits none, or not those of its class."""
    redrawn = {}  # {class: names}
    for pattern, files in clean_files.items():
        cases = set(files) & set(names)
        partly = cases ^ redrawn.setdefault(pattern.name, cases)
        if not cases:
            raise BadInput(f"{root}: --clean {pattern.text} fits no case, but {listed(files)}; "
                           "{} must be the name of an image")
        if partly:
            raise BadInput(f"{root}: --clean {pattern.text} and another pattern of {pattern.name} "
                           f"differ in {listed(partly)}; redraw all files of a class, or none")
    if redrawn:
        count = len(set.union(*redrawn.values()))
        notes[f"case(s) redrawn (--clean), {len(names) - count} taken as right"] = count


# ------------------------------------------------------------ folders, part 2: from files to arrays

def open_image(path, notes):
    """Open an image file, turned as its EXIF tag says; refuse what Pillow cannot read whole."""
    if path.lower().endswith(VOLUMES):
        ending = re.search(r"(\.nii)?\.\w+$", path.lower())[0]
        raise BadInput(f"{path}: {ending} is a volume, no image; export slices as PNG")
    try:
        if path.lower().endswith(".img"):  # JSRT: 16 bits of which 12 are used, high is dark
            raw = np.fromfile(path, dtype=">u2").reshape(2048, 2048)
            return Image.fromarray(((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8))
        # BytesIO: Pillow garbles gray TIFFs with a rotation tag if it opens them by path.
        with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
            is_deep = ";16" in str(image.tile)
            pages = getattr(image, "n_frames", 1)
            is_turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
            image.load()
            image.info.pop("exif", None)  # or faults in it are errors; Pillow has kept the tag
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # the readers raise whatever they like
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise BadInput(f"{path}: cannot be read as an image ({reason}); replace it") from None
    if pages > 1 and image.format != "MPO":  # phones put a second view into a JPEG
        raise BadInput(f"{path}: {pages} pages in one file; save each as a file, with its own mask")
    if is_deep and image.mode in ("RGB", "RGBA", "LA"):
        raise BadInput(f"{path}: colors of 16 bits, of which Pillow keeps 8; save it with 8 bits")
    if is_turned:
        notes["file(s) turned as their EXIF tag says; if masks were drawn on the unturned pixels, "
              "strip the tag"] += 1
    return image


def to_array(image, path):
    """Return grays (H, W), or (H, W, 3) uint8 if there are colors, without alpha."""
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        colors = np.asarray(image.convert("RGB"))
        return colors[..., 0] if (colors == colors[..., :1]).all() else colors
    grays = np.asarray(image)
    if not np.isfinite(grays).all():
        raise BadInput(f"{path}: holds NaN or infinity; replace or remove it")
    return grays


def read_image(path, notes):
    """Read an image file as gray (H, W) uint8, whatever its colors and depth."""
    gray = to_array(open_image(path, notes), path)
    if gray.ndim == 3:
        gray = gray.mean(axis=-1, dtype=np.float32).round().astype(np.uint8)
    low, high = gray.min(), gray.max()
    if low == high:
        raise BadInput(f"{path}: constant once converted to gray; replace or remove this image")
    if gray.dtype == np.uint8:
        return gray
    inner = gray[(gray > low) & (gray < high)]  # without padding and hot pixels
    if inner.size:
        low, high = np.quantile(inner, (0.001, 0.999))
    notes["image(s) of more than 8 bits, stretched from their 0.1 % to their 99.9 % quantile"] += 1
    scaled = (gray.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    return (255 * scaled.clip(0, 1)).astype(np.uint8)


def color_numbers(colors):
    """Return numbers (...) of colors (..., 3): grays as they are, others as COLOR + 0xRRGGBB."""
    is_gray = (colors == colors[..., :1]).all(axis=-1)
    return np.where(is_gray, colors[..., 0], COLOR + colors @ [1 << 16, 1 << 8, 1])


def spell(number):
    """Return a number of a mask as text, a color as #RRGGBB."""
    return f"#{int(number) - COLOR:06x}" if number >= COLOR else f"{number:g}"


def read_numbers(path, pattern, notes):
    """Read a mask file as the numbers (H, W) that =VALUE is compared with; 0 where transparent."""
    image = open_image(path, notes)
    value = pattern.value or "#"
    if image.format in LOSSY:
        if "-" not in value or 0 < value_range(pattern)[0] < 32:
            raise BadInput(f"{path}: JPEG and WebP blur the values of a mask; end the pattern with "
                           "=128- (the bright half) or =0-127 (the dark half)")
        image = image.convert("L")
    palette = np.reshape(image.getpalette() or [], (-1, 3))
    if image.mode == "P" and "#" not in value and (palette != palette[:, :1]).any():
        numbers = np.asarray(image)  # indices
    else:
        numbers = to_array(image, path)
    if numbers.ndim == 3 and "-" in value:
        numbers = numbers.max(axis=-1)  # a range is one of brightness
    elif numbers.ndim == 3:
        numbers = color_numbers(numbers)
    if "A" in image.getbands() or "transparency" in image.info:
        numbers = np.where(np.asarray(image.convert("RGBA"))[..., 3] == 0, 0, numbers)
    return numbers


def read_mask(path, pattern, seen, notes):
    """Read a mask file as bool (H, W); add its values to `seen`, those of its pattern so far."""
    numbers = read_numbers(path, pattern, notes)
    seen.update(np.unique(numbers).tolist())
    if pattern.value is not None:
        low, high = value_range(pattern)
        return (numbers >= low) & (numbers <= high)
    if len(seen - {0}) > 1:
        raise BadInput(f"{path}: values {listed(seen, spell)} in {pattern.text}, not 0 and one "
                       "other; end the pattern with =1- (all but 0) or =128- (the bright half, for "
                       "soft edges), or write CLASS=...=VALUE for each class")
    return numbers != 0


def read_class(found, matches, class_name, name, shape, seen):
    """Unite the masks of a class and a case: bool (H, W); None if there are none."""
    united = None
    for pattern, cases in matches.items():
        if pattern.name != class_name:
            continue
        for file in cases.get(name, []):
            path = os.path.join(found.root, file)
            mask = read_mask(path, pattern, seen[pattern], found.notes)
            stretch = mask.shape[0] * shape[1] / (mask.shape[1] * shape[0])
            if abs(stretch - 1) > 0.01 or (united is not None and united.shape != mask.shape):
                raise BadInput(f"{path}: height and width {mask.shape}, but {shape} in the image or"
                               " another mask; make them alike; a rotation tag (EXIF) may do it")
            united = mask if united is None else united | mask
    return united


def read_cases(found):
    """Read the files of `find_cases`: a Source, and the clean labels; print a summary."""
    count, classes = len(found.names), found.classes
    images = np.empty((count, GRID, GRID), dtype=np.uint8)
    labels = np.empty((count, len(classes), GRID, GRID), dtype=bool)
    truth = labels.copy() if found.clean else labels
    drawn = np.empty((count, len(classes)))  # the share of foreground in the files
    shapes, seen = [], {pattern: set() for pattern in [*found.masks, *found.clean]}
    for i, name in enumerate(progress(found.names, "reading cases")):
        image = read_image(os.path.join(found.root, found.paths[i]), found.notes)
        images[i] = resize(image, GRID)
        shapes.append(image.shape)
        for c, class_name in enumerate(classes):
            mask = read_class(found, found.masks, class_name, name, image.shape, seen)
            redrawn = read_class(found, found.clean, class_name, name, image.shape, seen)
            drawn[i, c] = mask.mean()
            labels[i, c] = resize(mask, GRID)
            truth[i, c] = labels[i, c] if redrawn is None else resize(redrawn, GRID)
    print(f"{found.root}: {count} cases, height and width {min(shapes)} to {max(shapes)}")
    print_patterns(found, seen)
    print_classes(found, drawn, labels)
    for note, number in found.notes.items():
        print(f"  {number} {note}")
    labels = labels if classes else None
    return Source(classes, found.names, images, labels, shapes, found.paths), truth


def print_patterns(found, seen):
    """Print an example and the values of each pattern, and the values that none of them takes."""
    print(f"  image of {found.names[0]}: {found.paths[0]}")
    background = {}  # {path of patterns: values}
    for pattern, cases in [*found.masks.items(), *found.clean.items()]:
        name = next(name for name in found.names if name in cases)
        print(f"  {pattern.name} of {name}: {cases[name][0]}; values in {pattern.text}: "
              f"{listed(seen[pattern], spell)}")
        if pattern.value is not None:
            low, high = value_range(pattern)
            others = {value for value in seen[pattern] if value and not low <= value <= high}
            background[pattern.path] = background.get(pattern.path, others) & others
    for path, values in background.items():
        if values:
            print(f"  background in {path}, values of no class: {listed(values, spell)}")


def print_classes(found, drawn, labels):
    """Print how much the masks of each class hold; refuse those that seem inverted."""
    for c, name in enumerate(found.classes):
        masks, in_files = labels[:, c], drawn[:, c]
        shares = masks.mean(axis=(1, 2))
        lost = ((in_files > 0) & (shares == 0)).sum()
        print(f"  {name}: {in_files.mean():.1%} of the pixels in the files, {shares.mean():.1%} at "
              f"{GRID} x {GRID}; {(in_files == 0).sum()} empty masks, {lost} more once resized")
        border = np.mean([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]])
        texts = [pattern.text for pattern in found.masks
                 if pattern.name == name and pattern.value is None]
        if texts and shares.mean() > 0.5 and border > 0.9:
            raise BadInput(f"{found.root}: masks of {name} seem inverted, the border is foreground;"
                           f" write {texts[0]}=0 if they are, =1- if they are not")


# ---------------------------------------------------------------------- options, reading, loading

def add_options(parser):
    """Add the options that say where the data are and how they are read."""
    add = parser.add_argument
    add("--data", default="phantoms", help="a folder of images and masks, or phantoms:N")
    add("--images", metavar="PATTERN", help='paths of the images, as in "imgs/{}.jpg"; {} is the '
        "name of a case; see .github/DATA.md")
    add("--masks", nargs="+", metavar="PATTERN",
        help='paths of the masks, as in "heart=labels/{}.png=85": [CLASS=]PATH[=VALUE]')
    add("--skip-unpaired", action="store_true", help="leave out files without a partner")


def is_phantoms(data):
    """Whether the cases are drawn, so that their labels are known to be clean."""
    return str(data).partition(":")[0] == "phantoms"


def find(data, images=None, masks=None, skip_unpaired=False, clean=None):
    """Find the cases of a folder, of "phantoms" (247 of them) or "phantoms:N": Found."""
    if not is_phantoms(data):
        return find_cases(data, images, masks, skip_unpaired, clean)
    count = str(data).partition(":")[2] or "247"
    has_options = images or masks or skip_unpaired or clean
    if has_options or not re.fullmatch(r"\d{1,5}", count) or int(count) < 3:
        raise BadInput(f"{data}: write phantoms, or phantoms:N with N from 3 to 99999, without "
                       "options for reading folders")
    names = [f"phantom{i:05d}" for i in range(int(count))]
    return Found(str(data), CLASSES, names, names, {}, {}, Counter())


def read_found(found):
    """Read or draw the cases of `find`: a Source, and the clean labels."""
    if not is_phantoms(found.root):
        return read_cases(found)
    images, masks = phantoms(len(found.names))
    shapes = [(GRID, GRID)] * len(images)
    return Source(CLASSES, found.names, images, masks, shapes, found.paths), masks


def read(data, images=None, masks=None, skip_unpaired=False):
    """Read all cases of a folder, of "phantoms" or "phantoms:N": a Source. Nothing is split."""
    return read_found(find(data, images, masks, skip_unpaired))[0]


def load_all(data, size, images=None, masks=None, skip_unpaired=False):
    """Read all cases with their labels as they are: a Source, and Cases (None without masks)."""
    source = read(data, images, masks, skip_unpaired)
    if source.labels is None:
        return source, None
    everything = range(len(source.names))
    return source, make_cases(source, source.labels, everything, size, is_phantoms(data))


def make_cases(source, truth, indices, size, known, noise=0, band=(1, 1), seed=0,
               noise_kind="erode-dilate"):
    """Take cases out of a Source, add noise, and resize: Cases. truth: the clean labels."""
    given, truth = source.labels[indices], truth[indices]
    noisy, operation, pixels = corrupt_labels(given, noise, band, seed, noise_kind)
    total = given.sum(axis=(2, 3)) + truth.sum(axis=(2, 3))
    dice = np.where(total > 0, 2 * (given & truth).sum(axis=(2, 3)) / np.maximum(total, 1), 1)
    for i in np.flatnonzero((dice < CLEAN_DICE).any(axis=1)):
        if operation[i] == "":
            operation[i] = "given"
    names = [source.names[i] for i in indices]
    return Cases(names, resize(source.images[indices], size), resize(noisy, size),
                 resize(truth, size), operation, pixels, known)


def load(data, size, noise, band, seed, noise_kind="erode-dilate", images=None, masks=None,
         skip_unpaired=False, group=None, clean=None, exclude=None, test_images=None,
         test_masks=None):
    """Load everything: read, split, add noise on the 256-pixel grid, resize to size x size.

    The arguments are train.py's options: noise in 0..1; band as text, "5-13"; group: a regular
    expression; exclude: a file of names. Returns the classes, the training and the test Cases.
    Test labels get noise too, to be scored; Dice uses their `clean`. BadInput for a wrong argument
    comes before any image is read.
    """
    band = check_noise(noise, band, noise_kind)
    if bool(test_images) != bool(test_masks) or (test_images and group):
        raise BadInput("--test-images and --test-masks go together, and not with --group")
    found = find(data, images, masks, skip_unpaired, clean)
    if test_images:
        test_found = find(data, test_images, test_masks, skip_unpaired)
        test_names = [f"test/{name}" for name in test_found.names]
        training, test = np.arange(len(found.names)), np.arange(len(test_names))
    else:
        test_found, test_names = found, found.names
        paths = [normalized(path) for path in found.paths]
        training, test = split(paths, seed, group)
    if not found.classes or test_found.classes != found.classes:
        raise BadInput(f"{data}: masks of {listed(found.classes) or 'no class'}, test masks of "
                       f"{listed(test_found.classes) or 'no class'}; name the same classes in "
                       '--masks "CLASS=DIR/{}.png" and --test-masks')
    if exclude:
        training = exclude_cases(exclude, found.names, training, test_names)

    source, truth = read_found(found)
    for c, name in enumerate(source.classes):
        if np.isin(source.labels[:, c].mean(axis=(1, 2)), (0, 1)).all():
            raise BadInput(f"{data}: every mask of {name} is empty or full; correct the masks or "
                           "their =VALUE (the values found stand above), or leave the class out")
    test_source, test_truth = source, truth
    if test_images:
        test_source, test_truth = read_found(test_found)
        test_source = test_source._replace(names=test_names)
    print_split(source, training, test_source, test, bool(test_images))
    known = is_phantoms(data) or noise > 0 or bool(clean)
    return (source.classes,
            make_cases(source, truth, training, size, known, noise, band, (seed, 1), noise_kind),
            make_cases(test_source, test_truth, test, size, known, noise, band, (seed, 2),
                       noise_kind))


def check_noise(noise, band, kind):
    """Return the band as two numbers; BadInput if it, the noise or its kind cannot be meant."""
    if not 0 <= noise <= 1:
        raise BadInput(f"--noise {noise}: write a share from 0 to 1")
    match = re.fullmatch(r"(\d+)-(\d+)", band)
    if not match or not 1 <= int(match[1]) <= int(match[2]) <= GRID:
        raise BadInput(f"--band {band}: write two radii from 1 to {GRID}, as in 5-13")
    if not set(kind.split("-")) <= set(DAMAGE):
        raise BadInput(f"--noise-kind {kind}: write one or several of {', '.join(DAMAGE)}, joined "
                       "by -")
    return int(match[1]), int(match[2])


def exclude_cases(path, names, training, test_names):
    """Return the training indices without the names in a file: one a line, or a suspects.csv."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = file.read().splitlines()
    if str(path).endswith(".csv"):
        lines = [row.get("name") or "" for row in csv.DictReader(lines)]
    excluded = {normalized(line.strip()) for line in lines} - {""}
    unknown = excluded - set(names) - set(test_names)
    if unknown or not excluded:
        raise BadInput(f"--exclude {path}: {len(excluded)} names, of no case: {listed(unknown)}; "
                       "write one a line, or a .csv with the column name")
    kept = np.array([i for i in training if names[i] not in excluded], dtype=int)
    if len(kept) == 0:
        raise BadInput(f"--exclude {path}: no training case is left; name fewer")
    left_out = len(training) - len(kept)
    print(f"--exclude: {left_out} of {len(training)} training cases left out; "
          f"{len(excluded) - left_out} of the names are test cases, which stay")
    return kept


def print_split(source, training, test_source, test, is_own):
    """Say so if own folders train/ and test/ are split anew, or if images are on both sides."""
    folders = {part for path in source.paths for part in Path(path).parts[:-1]
               if part.lower() in SPLIT_FOLDERS}
    if folders and not is_own:
        print(f"  images of {listed(folders)}: split anew at random; --test-images and "
              "--test-masks keep an own split")
    known = {hash(source.images[i].tobytes()): source.names[i] for i in training}
    same = []
    for i in test:
        content = hash(test_source.images[i].tobytes())
        if content in known:
            same.append(f"{test_source.names[i]} = {known[content]}")
    if same:
        print(f"  {len(same)} test image(s) identical to a training image: {listed(same)}; remove "
              "them, or keep them together with --group")


def digest(*cases):
    """Return one text that changes with any name, image, label or clean label of the Cases."""
    content = hashlib.sha256()
    for part in cases:
        content.update("\n".join(part.names).encode())
        for array in (part.images, part.labels, part.clean):
            content.update(str(array.shape).encode() + array.tobytes())
    return content.hexdigest()


# ---------------------------------------------------------------------------------------- phantoms
# The drawing code may be skipped when reading.
#
# Every organ is a signed field over the image, positive inside: field > 0 is its mask, and
# _soft(field, width), the same shape with a soft edge, adds to what the X-rays must cross. Patient
# coordinates: x = 0 on the midline, +-1 at the chest walls (x < 0, left in the image, is the
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
    for i in progress(range(n), "drawing phantoms"):
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
    blur = _blob((t - t[:, None]) / vary(0.004, 0.0012))  # row i: how pixel i mixes its neighbors
    blur /= blur.sum(1, keepdims=True)
    seen = blur @ (attenuation + texture) @ blur.T
    seen += rng.standard_normal(seen.shape, np.float32) * vary(0.012, 0.004) * np.exp(0.5 * seen)
    return (255 / (1 + np.exp(-vary(2.6, 0.3) * (seen - vary(1.3, 0.07))))).astype(np.uint8)
