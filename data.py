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
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

CLASSES = ("lungs", "heart", "clavicles")
DAMAGE = ("erode", "dilate", "shift", "omit", "swap")  # the paper's are the first two
GRID = 256  # the paper's image size, to which data are brought; the noise band counts its pixels
CLEAN_DICE = 0.9  # --clean: a label whose Dice with its redrawn one is lower counts as noisy
JSRT = ("All247images/{}.IMG", "lungs=scratch/*/masks/* lung/{}.gif",  # as its archives unzip
        "heart=scratch/*/masks/heart/{}.gif", "clavicles=scratch/*/masks/* clavicle/{}.gif")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")  # others lose bits unseen
ENDING = r"(?i:\.(?:png|jpe?g|jfif|tiff?|gif|bmp|webp|p[gpbn]m|img))"  # what a final .* means
ALIKE = 0.99  # images are nearly identical if their 32 x 32 reductions correlate as much
COLOR = 1 << 24  # a color in a mask counts as the number COLOR + 0xRRGGBB
nfc = functools.partial(unicodedata.normalize, "NFC")  # file systems store accents in two ways
Image.MAX_IMAGE_PIXELS = None  # microscope slides are larger than Pillow's limit against bad files


class BadInput(Exception):
    """Bad data or arguments; the message is one line: what was found, where, what to do."""


def refuse(is_bad, message):
    """Raise BadInput with a message if something is bad."""
    if is_bad:
        raise BadInput(message)


class Options(NamedTuple):
    """Which data are read, and how: the options of train.py, under the same names."""
    data: str = "phantoms"    # a folder, "phantoms" or "phantoms:N"
    images: str = None        # a pattern; .github/DATA.md describes them all
    masks: list = None        # patterns
    skip_unpaired: bool = False
    missing_empty: bool = False  # no mask file means: the image has none of the class
    clean: list = None        # patterns of redrawn labels, to measure with
    group: str = None         # a regular expression: the same match is never split
    exclude: str = None       # a file of names
    test_images: str = None   # a pattern: a test set of its own
    test_masks: list = None
    size: int = 128           # side of the images and labels, pixels
    noise: float = 0.0        # share of the labels to damage
    band: str = "5-13"        # radius of the damage, in pixels of the 256-pixel grid
    noise_kind: str = "erode-dilate"
    seed: int = 0


class Cases(NamedTuple):
    """Images, labels to train on, clean labels to measure with, and what was done to each."""
    classes: tuple
    names: list          # N
    images: np.ndarray   # (N, S, S) uint8
    labels: np.ndarray   # (N, classes, S, S) bool, possibly noisy; None without masks
    clean: np.ndarray    # as labels; the labels as given if not `known`
    operation: list      # N times "" (clean), a name in DAMAGE, or "given" (--clean is different)
    pixels: np.ndarray   # (N,) int, radius of the operation on the 256-pixel grid, or 0
    known: bool          # False: nobody knows which labels are clean
    shapes: list         # N times (H, W), the size of the image as shown: turned as EXIF says
    paths: list          # N paths of the images below the folder

    @property
    def noisy(self):
        """(N,) bool: which labels are known not to be clean."""
        return np.array([operation != "" for operation in self.operation])


def options_of(arguments):
    """Return the Options among the attributes of `arguments`; those that it lacks have defaults."""
    return Options(**{name: getattr(arguments, name) for name in Options._fields
                      if hasattr(arguments, name)})


def progress(items, what):
    """Yield the items; after ten seconds, and then every ten, say on stderr how many are done."""
    due = time.monotonic() + 10
    for done, item in enumerate(items):
        if time.monotonic() >= due:
            print(f"{what} {done}/{len(items)}", file=sys.stderr, flush=True)
            due = time.monotonic() + 10
        yield item


# ------------------------------------------------------------------ label noise, sizes, the split

def dilate(mask, n):
    """Dilate a bool mask (..., H, W) by the Euclidean disc of radius n; the border adds nothing."""
    height, width = np.shape(mask)[-2:]
    border = [(0, 0)] * (np.ndim(mask) - 2) + [(n, n), (n + 1, n)]
    sums = np.pad(np.asarray(mask, dtype=bool), border).cumsum(axis=-1, dtype=np.int32)
    grown = np.zeros(np.shape(mask), dtype=bool)
    for dy in range(-n, n + 1):  # a disc is a stack of rows: at dy it reaches sqrt(n^2 - dy^2) far
        reach = math.isqrt(n * n - dy * dy)
        rows = sums[..., n + dy:n + dy + height, :]
        left, right = rows[..., n - reach:], rows[..., n + 1 + reach:]
        grown |= right[..., :width] > left[..., :width]
    return grown


def erode(mask, n):
    """Erode a bool mask (..., H, W) by the Euclidean disc of radius n."""
    return ~dilate(~np.asarray(mask, dtype=bool), n)


def corrupt_labels(labels, noise, band, seed, kind="erode-dilate"):
    """Damage exactly round(noise * N) of the labels (N, classes, GRID, GRID), as in section 3.2.

    Each gets one operation of `kind`, for all classes, and one radius, band[0] <= n <= band[1].
    Returns the noisy copy, each label's operation ("" if untouched) and its radius (0 if none).
    """
    rng = np.random.default_rng(seed)
    kinds = kind.split("-")
    refuse(noise and "swap" in kinds and len(labels) < 2, "--noise-kind swap needs two images")
    noisy = labels.copy()
    operation = [""] * len(labels)
    pixels = np.zeros(len(labels), dtype=int)
    for i in rng.permutation(len(labels))[:round(noise * len(labels))]:
        operation[i] = kinds[rng.integers(len(kinds))]
        n = pixels[i] = rng.integers(band[0], band[1] + 1)
        if operation[i] == "erode":
            noisy[i] = erode(labels[i], n)
        elif operation[i] == "dilate":
            noisy[i] = dilate(labels[i], n)
        elif operation[i] == "shift":  # circularly, in a random direction
            angle = rng.uniform(0, 2 * np.pi)
            move = round(n * np.sin(angle)), round(n * np.cos(angle))
            noisy[i] = np.roll(labels[i], move, axis=(-2, -1))
        elif operation[i] == "omit":  # one class
            noisy[i, rng.integers(labels.shape[1])] = False
        else:  # swap: the masks of another image
            others = [*range(i), *range(i + 1, len(labels))]
            noisy[i] = labels[others[rng.integers(len(others))]]
    pixels[np.isin(operation, ("omit", "swap"))] = 0  # they have no radius
    return noisy, operation, pixels


def resize(images, size):
    """Resize (..., H, W) to (..., size, size), bilinear and anti-aliased; bool is cut at 1/2."""
    if images.shape[-2:] == (size, size):
        return images
    is_mask = images.dtype == bool
    flat = images.reshape(-1, *images.shape[-2:])
    resized = np.empty((len(flat), size, size), dtype=images.dtype)
    for i, image in enumerate(flat):
        gray = Image.fromarray(image.astype(np.uint8) * 255 if is_mask else image)
        gray = np.asarray(gray.resize((size, size), Image.BILINEAR))
        resized[i] = gray >= 128 if is_mask else gray
    return resized.reshape(*images.shape[:-2], size, size)


def split(paths, seed, group=None):
    """Split at random, 165 of 247 to train; paths with the same match of `group` stay together."""
    group_of = list(range(len(paths)))
    if group is not None:
        try:
            matches = [re.search(group, path) for path in paths]
        except re.error as error:
            raise BadInput(f"--group {group}: no regular expression ({error})") from None
        unmatched = [path for path, match in zip(paths, matches) if not match]
        refuse(unmatched, f"--group {group}: must match in {listed(unmatched)}, too")
        group_of = [match[0] for match in matches]
    groups = sorted(set(group_of))
    refuse(len(groups) < 3, f"cases or groups: {listed(groups)}; a split needs three")
    order = np.random.default_rng((seed, 0)).permutation(len(groups))
    chosen = [groups[i] for i in order[:round(len(groups) * 165 / 247)]]
    if group is not None:
        print(f"--group: {len(groups)} groups, {len(chosen)} of them for training")
    in_training = np.isin(group_of, chosen)
    return np.flatnonzero(in_training), np.flatnonzero(~in_training)


# ------------------------------------------------------------- reading: from patterns to arrays

def listed(items):
    """Return items in order as text: the first ten, and how many more; colors as #RRGGBB."""
    items = sorted(set(items))
    texts = [f"#{item - COLOR:06x}" if isinstance(item, int) and item >= COLOR else str(item)
             for item in items[:10]]
    more = f" and {len(items) - 10} more" if len(items) > 10 else ""
    return (", ".join(texts) or "none") + more


class Pattern:
    """[CLASS=]PATH[=VALUE], its parts ("" if missing), the files that fit it, and their values."""

    def __init__(self, text, name="foreground"):
        parts = re.fullmatch(r"(?:([^={/]+)=)?(.*{}[^=]*)(?:=(#[0-9a-fA-F]{6}|\d+(?:-\d*)?))?",
                             text.replace("\\", "/"))
        refuse(not parts, f'{text}: write {{}} for the name of a case, as in "images/{{}}.png", '
               "and =VALUE as =85, =43-199, =1- or =#804080")
        self.text, self.name = text, (parts[1] or name).strip()
        self.path, self.value = Path(parts[2]).as_posix(), parts[3] or ""
        self.files, self.seen = {}, set()  # {name of a case: [paths below root]}, their values


def list_files(root, path=""):
    """List the files below root, or in a folder outside that a pattern's path begins with."""
    top = re.match(r"((/|\.\./|\w:/)[^{*]*/|)", path)[0]
    files = []
    for name in glob.glob("**/*", root_dir=os.path.join(root, top), recursive=True):
        file = os.path.join(root, top, name)
        refuse(not os.path.exists(file) or re.search("[\ud800-\udfff\n]", name),
               f"{root}: {ascii(name)} is a broken link or not named in UTF-8; correct it")
        if not os.path.isdir(file):
            files.append(top + name.replace(os.sep, "/"))
    return sorted(files)


def match_files(root, patterns, taken):
    """Give each pattern its files that are not `taken` yet; return all that are taken then."""
    for pattern in patterns:
        folder, slash, name = nfc(pattern.path).removesuffix(".*").rpartition("/")
        text = f"{re.escape(folder + slash)}(?i:{re.escape(name)})"  # any case of letters in files
        for mark, group in ((r"\{\*\}", "folder"), (r"\{\}", "case")):  # found once, then repeated
            text = text.replace(mark, f"(?P<{group}>[^/]+?)", 1).replace(mark, f"(?P={group})")
        text = text.replace(r"\*", "[^/]*") + (ENDING if pattern.path.endswith(".*") else "")
        greedy = text.replace("[^/]+?", "[^/]+").replace("[^/]*", "[^/]*?")  # names as long as fit
        files = list_files(root, pattern.path)
        for file in sorted(set(files) - taken):
            match = re.fullmatch(text, nfc(file))
            if match:
                short = "/".join(match.groups())
                long = "/".join(re.fullmatch(greedy, nfc(file)).groups())
                refuse(short != long, f"{root}: {pattern.text} finds two names in {file}: {short} "
                       f"and {long}; write more of the name into the pattern")
                pattern.files.setdefault(short, []).append(file)
        refuse(not pattern.files, f"{root}: {pattern.text} fits no file, or only those of another "
               f"pattern; there are {listed(files)}; see --images and --masks")
    for pattern in patterns:
        taken = taken.union(*pattern.files.values())
    return taken


def pair(root, image, masks, options):
    """Return the names, sorted, that have one image and a mask for each pattern."""
    several = [name for name, files in image.files.items() if len(files) > 1]
    refuse(several, f"{root}: several images for {listed(several)}; correct --images")
    names = set(image.files)
    for pattern in masks:
        missing = set(image.files) - set(pattern.files)
        strangers = set(pattern.files) - set(image.files)
        if not options.missing_empty:
            names -= missing
        unpaired = (f"{len(missing)} image(s) without {pattern.text}: {listed(missing)}; "
                    f"{len(strangers)} mask(s) without image: {listed(strangers)}")
        is_paired = not strangers and (not missing or options.missing_empty)
        refuse(not names or not (is_paired or options.skip_unpaired),
               f"{root}: {unpaired}; correct --masks, or add --skip-unpaired or --missing-empty")
        if missing or strangers:
            print(f"left out, or empty with --missing-empty: {unpaired}")
    return sorted(names, key=lambda name: (name.lower(), name))


def find(root, options):
    """Find the files of a folder: classes, names, the Patterns of images, masks, clean masks."""
    refuse(not os.path.isdir(root), f"{root}: no such folder; write one, phantoms, or phantoms:N")
    image = Pattern(options.images or "images/{}.*")
    masks = [Pattern(text) for text in options.masks or []]
    clean = [Pattern(text, "") for text in options.clean or []]
    taken = match_files(root, clean, set())  # a file belongs to the first pattern that it fits
    if not options.images and not options.masks:
        files = set(list_files(root)) - taken
        folders = sorted({file.partition("/")[0] for file in files if "/" in file} - {"images"})
        masks = [Pattern(f"{name}={name}/{{}}.*") for name in folders]
        if folders == ["masks"]:
            masks = [Pattern("masks/{}.*")]
        elif {"All247images", "scratch"} <= set(folders):
            image, *masks = [Pattern(text) for text in JSRT]
    taken = match_files(root, [image], match_files(root, masks, taken))
    folders = tuple({path[:path.rfind("/") + 1] for path in taken})
    others = {path for path in list_files(root) if path.startswith(folders)} - taken
    if others:
        print(f"{len(others)} file(s) that fit no pattern: {listed(others)}")
    given = {pattern.name for pattern in masks}
    refuse("average" in given, f"{root}: no class may be called average; rename it")
    classes = tuple(name for name in [*CLASSES, *sorted(given - set(CLASSES))] if name in given)
    names, redrawn = pair(root, image, masks, options), {}
    for pattern in clean:
        if len(classes) == 1 and not pattern.name:
            pattern.name = classes[0]
        found = set(pattern.files) & set(names)
        same = redrawn.setdefault(pattern.name, found)  # as in the class's other patterns
        refuse(pattern.name not in classes or not found or found != same,
               f"--clean {pattern.text} is there for {listed(pattern.files)}; it needs CLASS= of "
               f"one of {listed(classes)}, and the same cases in each pattern of a class")
        print(f"--clean {pattern.text}: {len(found)} of {len(names)} cases; the others are right")
    return classes, names, image, masks, clean


def is_misread(image, tile):
    """Return whether Pillow loses bits, signs or colors; `tile` is how it decodes the file."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 258 bits, 339 signed, 262 inverted
    is_signed = 2 in tags.get(339, ())
    if image.mode[0] in "IF":  # grays of more than 8 bits
        is_wrapped = image.mode == "I" and not is_signed and image.getextrema()[0] < 0
        return is_wrapped or tags.get(262) == 0
    is_deep = ";16" in tile or "ppm" in tile or max(tags.get(258, (8,))) > 8
    return is_deep or is_signed or image.mode == "LAB"


def open_image(path):
    """Open an image file, turned as its EXIF tag says; refuse what Pillow does not read well."""
    try:
        if path.lower().endswith(".img"):  # JSRT: 16 bits of which 12 are used, high is dark
            raw = np.fromfile(path, dtype=">u2").reshape(2048, 2048)
            return Image.fromarray(((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8))
        # BytesIO: Pillow garbles gray TIFFs with a rotation tag if it opens them by path.
        with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as image:
            pages, tile = getattr(image, "n_frames", 1), str(image.tile)
            image.getexif()  # keeps the tag of a rotation
            image.load()
            image.info.pop("exif", None)  # other tags may have faults, which would be errors
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # the readers raise whatever they like
        raise BadInput(f"{path}: cannot be read ({type(error).__name__}); replace by PNG") from None
    refuse((pages > 1 and image.format != "MPO") or is_misread(image, tile),  # MPO: two views
           f"{path}: has pages, bits, signs or colors that are not read; save as PNG of 8 bits")
    return image


def read_image(path):
    """Read an image file as gray (H, W) uint8, whatever its colors and depth."""
    image = open_image(path)
    gray = np.asarray(image if re.match("L$|I|F", image.mode) else image.convert("RGB"))
    if gray.ndim == 3:
        gray = gray.mean(axis=-1, dtype=np.float32).round().astype(np.uint8)
    low, high = gray.min(), gray.max()
    refuse(not low < high, f"{path}: constant once converted to gray, or with NaN; replace it")
    if gray.dtype == np.uint8:
        return gray
    if len(np.unique(gray)) > 64:  # the lowest and the highest may be padding and hot pixels
        low, high = np.quantile(gray[(gray > low) & (gray < high)], (0.001, 0.999))
    scaled = (gray.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    return (255 * scaled.clip(0, 1)).astype(np.uint8)


def color_numbers(colors):
    """Return numbers (...) of colors (..., 3): grays as they are, others as COLOR + 0xRRGGBB."""
    red, green, blue = np.moveaxis(np.asarray(colors, dtype=np.int32), -1, 0)
    return np.where((red == green) & (red == blue), red, COLOR + (red << 16) + (green << 8) + blue)


def read_mask(path, patterns):
    """Read a mask file once; yield each of its patterns with the bool (H, W) that it means."""
    image = open_image(path)
    is_gray = re.match("L$|I|F", image.mode)
    numbers = brightness = np.asarray(image if is_gray else image.convert("RGB"))
    if not is_gray:
        numbers, brightness = color_numbers(numbers), numbers.max(axis=-1)
    is_whole = (brightness >= 0) & (brightness < COLOR) & (brightness == np.round(brightness))
    alpha = np.full(brightness.shape, 255)
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    opaque = alpha > 0
    refuse(not is_whole.all() or len(np.unique(alpha[opaque])) > 1,
           f"{path}: half-transparent, or not only whole numbers from 0 on; save it with 0 to 255")
    values = np.unique(numbers * opaque).astype(int).tolist()
    for pattern in patterns:
        pattern.seen.update(values)
        low, is_range, high = (pattern.value or "1-").partition("-")
        refuse(image.format in ("JPEG", "MPO", "WEBP") and (not is_range or 0 < int(low) < 32),
               f"{path}: JPEG and WebP blur the values; end the pattern with =128- or =0-127")
        refuse(not pattern.value and len(pattern.seen - {0}) > 1,
               f"{path}: values {listed(pattern.seen)} in {pattern.text}, not 0 and one other; end "
               "it with =1- (not 0), =N- (N and more) or =N")
        if is_range:
            mask = (brightness >= int(low)) & (brightness <= int(high or COLOR))
        elif low.startswith("#"):
            mask = numbers == color_numbers(list(bytes.fromhex(low[1:])))
        else:
            mask = numbers == int(low)
            refuse(image.mode == "P" and max(values) >= COLOR and int(low) > 0,
                   f"{path}: a palette; write a color, not ={low}: {listed(values)}")
        yield pattern, mask & opaque


def read_masks(root, patterns, name, shape):
    """Return {class: bool (H, W)} of a case: the union of its files, each of them read once."""
    owners, united = {}, {}
    for pattern in patterns:
        for file in pattern.files.get(name, []):
            owners.setdefault(os.path.join(root, file), []).append(pattern)
    for path in owners:
        for pattern, mask in read_mask(path, owners[path]):
            before = united.get(pattern.name, mask)
            stretch = mask.shape[0] * shape[1] / (mask.shape[1] * shape[0])
            refuse(abs(stretch - 1) > 0.01 or before.shape != mask.shape,
                   f"{path}: height and width {mask.shape}, but {shape} in the image, or others "
                   "in another mask; make them alike, perhaps by a rotation tag (EXIF)")
            united[pattern.name] = before | mask
    return united


def read_folder(root, options):
    """Read all cases of a folder and print a summary: Cases at GRID."""
    classes, names, image_pattern, mask_patterns, clean_patterns = find(root, options)
    paths = [image_pattern.files[name][0] for name in names]
    operation, shapes, vanished = [""] * len(names), [], []
    images = np.empty((len(names), GRID, GRID), dtype=np.uint8)
    labels = np.empty((len(names), len(classes), GRID, GRID), dtype=bool)
    clean = np.empty_like(labels)
    for i, name in enumerate(progress(names, "reading cases")):
        image = read_image(os.path.join(root, paths[i]))
        images[i] = resize(image, GRID)
        shapes.append(image.shape)
        masks = read_masks(root, mask_patterns, name, image.shape)
        redrawn = read_masks(root, clean_patterns, name, image.shape)
        for c, class_name in enumerate(classes):
            mask = masks.get(class_name, np.zeros(image.shape, dtype=bool))  # --missing-empty
            labels[i, c] = clean[i, c] = resize(mask, GRID)
            if mask.any() and not resize(labels[i, c], options.size).any():
                vanished.append(f"{class_name} of {name}")
            if class_name in redrawn:
                clean[i, c] = resize(redrawn[class_name], GRID)
                total = labels[i, c].sum() + clean[i, c].sum()
                if 2 * (labels[i, c] & clean[i, c]).sum() < CLEAN_DICE * total:
                    operation[i] = "given"
    cases = Cases(classes, names, images, labels, clean, operation,
                  np.zeros(len(names), dtype=int), False, shapes, paths)
    print_summary(root, cases, mask_patterns, clean_patterns)
    if vanished:
        print(f"  {len(vanished)} mask(s) too small for --size {options.size}: {listed(vanished)}")
    return cases


def print_summary(root, cases, masks, clean):
    """Print what was read, a line for each pattern and class; refuse masks that seem inverted."""
    print(f"{root}: {len(cases.names)} cases, height and width {min(cases.shapes)} to "
          f"{max(cases.shapes)}\n  image: {cases.paths[0]}")
    for pattern in [*masks, *clean]:
        files = [pattern.files[name] for name in cases.names if name in pattern.files]
        counts = sorted(len(paths) for paths in files)
        several = f"; {counts[0]} to {counts[-1]} files per case, united" if counts[-1] > 1 else ""
        print(f"  {pattern.text}: values {listed(pattern.seen)}, as in {files[0][0]}{several}")
    for c, name in enumerate(cases.classes):
        labels = cases.labels[:, c]
        empty = len(labels) - labels.any(axis=(1, 2)).sum()
        print(f"  {name}: {labels.mean():.1%} of the pixels, {empty} empty masks")
        border = np.mean([labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]])
        texts = [pattern.text for pattern in masks if pattern.name == name and not pattern.value]
        refuse(texts and labels.mean() > 0.5 and border > 0.8,  # objects seldom fill the border
               f"masks of {name} seem inverted; write {listed(texts)}=0 if they are, or =1-")


def add_options(parser):
    """Add the options that say where the data are and how they are read."""
    add = parser.add_argument
    add("--data", default="phantoms", help="a folder of images and masks, or phantoms:N")
    add("--images", metavar="PATTERN", help='such as "imgs/{}.jpg"; see .github/DATA.md')
    add("--masks", nargs="+", metavar="PATTERN", help='[CLASS=]PATH[=VALUE]; {} is the case')
    add("--skip-unpaired", action="store_true", help="leave out files without a partner")
    add("--missing-empty", action="store_true", help="no mask file means an empty mask")


def read_images(paths, size):
    """Read image files as for training: gray, (N, size, size) uint8."""
    return resize(np.stack([resize(read_image(str(path)), GRID) for path in paths]), size)


def read_cases(options):
    """Read all cases of a folder, or draw phantoms: Cases at GRID."""
    root = str(options.data)
    kind, _, count = root.partition(":")
    if kind != "phantoms":
        return read_folder(root, options)
    refuse(any(options[1:6]) or not re.fullmatch(r"[1-9]\d{0,4}", count or "247"),  # for folders
           f"{root}: write phantoms, or phantoms:N with N from 1 to 99999, without patterns")
    images, labels = phantoms(int(count or 247))
    names = [f"phantom{i:05d}" for i in range(len(images))]
    return Cases(CLASSES, names, images, labels, labels, [""] * len(names),
                 np.zeros(len(names), dtype=int), True, [(GRID, GRID)] * len(names), names)


def read(options):
    """Read all cases of a folder, or draw phantoms: Cases at options.size, not split, no noise."""
    cases = read_cases(options)
    cases = take(cases, np.arange(len(cases.names)), options._replace(noise=0), 0)
    return cases if cases.classes else cases._replace(labels=None, clean=None)


def take(cases, indices, options, stream):
    """Return some of the cases at options.size, with noise. stream: 1 for training, 2 for test."""
    size, band = options.size, [int(radius) for radius in options.band.split("-")]
    labels, operation, pixels = corrupt_labels(cases.labels[indices], options.noise, band,
                                               (options.seed, stream), options.noise_kind)
    operation = [new or cases.operation[i] for i, new in zip(indices, operation)]
    return Cases(cases.classes, [cases.names[i] for i in indices],
                 resize(cases.images[indices], size), resize(labels, size),
                 resize(cases.clean[indices], size), operation, pixels,
                 cases.known or bool(options.clean) or options.noise > 0,
                 [cases.shapes[i] for i in indices], [cases.paths[i] for i in indices])


def read_names(path, known):
    """Read the names of cases in a file: one a line, or those in the column `name` of a CSV."""
    refuse(not Path(path).is_file(), f"--exclude {path}: no such file; name the saved list")
    lines = nfc(Path(path).read_text(encoding="utf-8-sig", errors="replace")).splitlines()
    for delimiter in ",;\t":
        if "name" in next(csv.reader(lines[:1], delimiter=delimiter), []):
            lines = [row["name"] or "" for row in csv.DictReader(lines, delimiter=delimiter)]
    names = {line if line in known else re.sub(f"{ENDING}$", "", line.strip()) for line in lines}
    names -= {""}
    refuse(not names or names - known, f"--exclude {path}: {len(names)} names, unknown: "
           f"{listed(names - known)}; write one a line, such as {min(known)}")
    return names


def print_overlap(training, test, group):
    """Say which test images are like training images: by name, content, or number."""
    names, rows, doubles, frames = training.names, [], [], []
    for images in (training.images, test.images):  # 32 x 32 pixels a row, of mean 0 and length 1
        small = resize(images, 32).reshape(len(images), -1).astype(np.float32)
        small -= small.mean(axis=1, keepdims=True)
        rows.append(small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6))
    for test_name, correlations in zip(test.names, rows[1] @ rows[0].T):
        if correlations.max() >= ALIKE:
            doubles.append(f"{test_name} = {names[correlations.argmax()]}")
        elif test_name.removeprefix("test/") in names:
            doubles.append(test_name)
    if doubles:
        print(f"{len(doubles)} test image(s) with the name of a training image, or nearly its "
              f"content: {listed(doubles)}; leave one of each out with --exclude")
    for name in names:
        digits = re.search(r"\d{0,9}$", name)[0]
        following = f"{name.removesuffix(digits)}{int(digits or 0) + 1:0{len(digits)}}"
        if following in test.names:
            frames.append(f"{name} and {following}")
    if frames and group is None:
        print(f"{len(frames)} pairs of consecutive names across the split, such as {frames[0]}: "
              r'keep frames of a video together, --group "^.*?(?=\d*\.\w+$)", or use --test-images')


def load(options):
    """Read, split, add noise on the 256-pixel grid, resize: the training and the test Cases."""
    root, own_test = options.data, (bool(options.test_images), bool(options.test_masks))
    refuse(any(own_test) and (not all(own_test) or options.group),
           "--test-images and --test-masks go together, and not with --group")
    cases = test_cases = read_cases(options)
    if any(own_test):
        test_cases = read_cases(options._replace(images=options.test_images, clean=None,
                                                 masks=options.test_masks))
        test_cases = test_cases._replace(names=[f"test/{name}" for name in test_cases.names])
        training, test = range(len(cases.names)), range(len(test_cases.names))
    else:
        training, test = split(cases.paths, options.seed, options.group)
    refuse(not cases.classes or cases.classes != test_cases.classes,
           f"{root}: masks of {listed(cases.classes)}, of the test {listed(test_cases.classes)}; "
           "write --masks, and --test-masks of the same classes")
    if options.exclude:
        excluded = read_names(options.exclude, {*cases.names, *test_cases.names})
        training = [i for i in training if cases.names[i] not in excluded]
        test = [i for i in test if test_cases.names[i] not in excluded]
        print(f"--exclude: {len(training)} training and {len(test)} test cases left")
        refuse(not training or not test, "--exclude: no training or no test cases left")
    training, test = take(cases, training, options, 1), take(test_cases, test, options, 2)
    for c, name in enumerate(cases.classes):
        refuse(np.isin(training.labels[:, c].mean(axis=(1, 2)), (0, 1)).all(),
               f"{root}: every training mask of {name} is empty or full at --size {options.size}; "
               "correct masks or =VALUE (transparent is background), add or tile images")
    if training.paths != training.names:  # a folder
        print_overlap(training, test, options.group)
    return training, test


def digest(*cases):
    """Return one text that changes with any name, image, label or clean label of the Cases."""
    content = hashlib.sha256()
    for part in cases:
        content.update("\n".join(part.names).encode())
        for array in (part.images, part.labels, part.clean):
            content.update(str(array.shape).encode() + array.tobytes())
    return content.hexdigest()


# ---------------------------------------------------------------------------------------- phantoms

# Every organ is a signed field over the image, positive inside: field > 0 is its mask, and
# _soft(field, width), the same shape with a soft edge, adds to what the X-rays must cross.
# Coordinates: x = 0 on the midline, -1 (the patient's right) and 1 at the chest walls; y = 0 at the
# lung tips, 1 at the lowest lung angle. vary(mean, spread) draws what differs between patients.

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
