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

# JSRT and its masks by SCR as their archives unzip.
JSRT_IMAGES = "All247images/{}.IMG"
JSRT_MASKS = ("lungs=scratch/*/masks/* lung/{}.gif", "heart=scratch/*/masks/heart/{}.gif",
              "clavicles=scratch/*/masks/* clavicle/{}.gif")

SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation"}
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")  # others lose bits unseen
ENDING = r"(?i:\.(?:png|jpe?g|jfif|tiff?|gif|bmp|webp|p[gpbn]m|img))"  # what a final .* means
NEAR = 0.99  # images whose 32 x 32 reductions correlate more are called nearly identical
VIDEO = r"^.*?(?=\d*\.\w+$)"  # a path without the number of a frame, for --group
COLOR = 1 << 24  # a color in a mask counts as the number COLOR + 0xRRGGBB
Image.MAX_IMAGE_PIXELS = None  # microscope slides are larger than Pillow's limit against bad files


class BadInput(Exception):
    """Bad data or arguments; the message is one line: what was found, where, what to do."""


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
    """Yield the items, and show on stderr how many are done: a live line after two seconds on a
    terminal, a line every 30 seconds elsewhere.
    """
    is_terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    end, pause = ("\r", 0.2) if is_terminal else ("\n", 30)
    due = time.monotonic() + (2 if is_terminal else 30)
    for done, item in enumerate(items):
        if time.monotonic() >= due:
            print(f"{what} {done}/{len(items)}", end=end, file=sys.stderr, flush=True)
            due = time.monotonic() + pause
        yield item
    if is_terminal:
        print(" " * 60, end="\r", file=sys.stderr)  # clears the line


# ------------------------------------------------------------------ label noise, sizes, the split

def dilate(mask, n):
    """Dilate a bool mask (..., H, W) by the Euclidean disc of radius n; the border adds nothing."""
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
    """Erode a bool mask (..., H, W) by the Euclidean disc of radius n."""
    return ~dilate(~np.asarray(mask, dtype=bool), n)


DAMAGE = ("erode", "dilate", "shift", "omit", "swap")  # the paper's are the first two


def corrupt_labels(labels, noise, band, seed, kind="erode-dilate"):
    """Damage exactly round(noise * N) of the labels (N, classes, GRID, GRID), as in section 3.2.

    Each gets one operation of `kind`, for all classes, and one radius, band[0] <= n <= band[1].
    Returns the noisy copy, each label's operation ("" if untouched) and its radius (0 if none).
    """
    rng = np.random.default_rng(seed)
    kinds = kind.split("-")
    if "swap" in kinds and len(labels) < 2:
        raise BadInput("--noise-kind swap: one image has no other to take masks from; add images")
    noisy = labels.copy()
    operation = [""] * len(labels)
    pixels = np.zeros(len(labels), dtype=int)
    for i in rng.permutation(len(labels))[:round(noise * len(labels))]:
        operation[i] = kinds[rng.integers(len(kinds))]
        n = rng.integers(band[0], band[1] + 1)
        if operation[i] not in ("omit", "swap"):
            pixels[i] = n
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
            other = rng.integers(len(labels) - 1)
            if other >= i:
                other += 1
            noisy[i] = labels[other]
    return noisy, operation, pixels


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


def split(paths, seed, group=None):
    """Split at random, 165 of 247 for training as in the paper: two index arrays.

    Paths in which the regular expression `group` matches the same text stay on one side.
    """
    group_of = list(range(len(paths)))
    if group is not None:
        try:
            matches = [re.search(group, path) for path in paths]
        except re.error as error:
            raise BadInput(f"--group {group}: no regular expression ({error})") from None
        if None in matches:
            raise BadInput(f"--group {group}: must match in {paths[matches.index(None)]}, too")
        group_of = [match[0] for match in matches]
    groups = sorted(set(group_of))
    if len(groups) < 3:
        raise BadInput(f"{len(groups)} cases or groups: {listed(groups)}; a split needs three")
    order = np.random.default_rng((seed, 0)).permutation(len(groups))
    chosen = [groups[i] for i in order[:round(len(groups) * 165 / 247)]]
    if group is not None:
        print(f"--group: {len(groups)} groups, {len(chosen)} of them for training")
    in_training = np.isin(group_of, chosen)
    return np.flatnonzero(in_training), np.flatnonzero(~in_training)


# ----------------------------------------------------------- folders: from patterns to cases

class Pattern(NamedTuple):
    """[CLASS=]PATH[=VALUE] as typed, and its three parts; value is "" if there is none."""
    text: str
    path: str
    name: str
    value: str


class Found(NamedTuple):
    """The cases of a folder, paired by name; their files are not read yet."""
    root: str
    classes: tuple
    names: list        # N
    paths: list        # N paths of the images below root
    mask_files: dict   # {Pattern: {name: [paths]}}; empty for phantoms
    clean_files: dict  # the same for --clean, where names may be missing


def listed(items, spell=str):
    """Return items in order as text: the first ten, and how many more there are."""
    items = sorted(set(items))
    text = ", ".join(spell(item) for item in items[:10]) or "none"
    return text if len(items) <= 10 else f"{text} and {len(items) - 10} more"


def nfc(text):
    """Return a text with one kind of accents: file systems differ in how they store them."""
    return unicodedata.normalize("NFC", text)


def parse_pattern(text, name="foreground"):
    """Return a text as a Pattern; `name` is its class if it has no CLASS=."""
    value = r"#[0-9a-fA-F]{6}|\d+(?:-\d*)?"
    parts = re.fullmatch(rf"(?:([^={{/]+)=)?(.*{{}}[^=]*)(?:=({value}))?", text.replace("\\", "/"))
    if not parts:
        raise BadInput(f'{text}: write {{}} for the name of a case, as in "images/{{}}.png"; '
                       "=VALUE is a number (=85), a range (=43-199, =1-) or a color (=#804080)")
    return Pattern(text, Path(parts[2]).as_posix(), (parts[1] or name).strip(), parts[3] or "")


def list_files(root, path=""):
    """List the files below root, or those in a folder outside if the path begins with it."""
    outside = re.match(r"(?:/|\.\./|\w:/)[^{*]*(?=/)", path)
    top = outside[0] + "/" if outside else ""
    files = []
    for name in glob.glob("**/*", root_dir=os.path.join(root, top), recursive=True):
        file = top + name.replace(os.sep, "/")
        if os.path.isdir(os.path.join(root, file)):
            continue
        if not os.path.exists(os.path.join(root, file)) or re.search("[\ud800-\udfff\n]", file):
            raise BadInput(f"{root}: {ascii(file)} is a broken link, or its name is no UTF-8; "
                           "correct or remove it")
        files.append(file)
    return sorted(files)


def match_files(root, pattern, owners):
    """Return {name of a case: [paths]} of the files that fit a pattern.

    owners: {path: the pattern that it belongs to}, whose files are not taken again.
    """
    folder, slash, file = nfc(pattern.path).removesuffix(".*").rpartition("/")
    text = f"{re.escape(folder + slash)}(?i:{re.escape(file)})"  # cases of letters in files only
    for wildcard, group in ((r"\{\*\}", "folder"), (r"\{\}", "case")):
        text = text.replace(wildcard, f"(?P<{group}>[^/]+?)", 1).replace(wildcard, f"(?P={group})")
    text = text.replace(r"\*", "[^/]*")
    if pattern.path.endswith(".*"):
        text += ENDING
    shortest = re.compile(text)
    longest = re.compile(text.replace("+?", "+").replace("]*", "]*?"))
    cases, others = {}, set()
    for path in list_files(root, pattern.path):
        match = shortest.fullmatch(nfc(path))
        if match and path in owners:
            others.add(owners[path].text)
        elif match:
            if match["case"] != longest.fullmatch(nfc(path))["case"]:
                raise BadInput(f"{root}: {pattern.text} finds two names in {path}, such as "
                               f"{match['case']}; write more of the name into the pattern")
            cases.setdefault("/".join(match.groupdict().values()), []).append(path)
    if others and not cases:
        raise BadInput(f"{root}: {pattern.text} fits only files of {listed(others)}; correct one")
    if not cases:
        raise BadInput(f"{root}: {pattern.text} fits no file; there are {listed(list_files(root))};"
                       " see --images and --masks (without --masks each folder is a class)")
    return cases


def default_patterns(root, clean):
    """Return the patterns of images/ and of a folder for each class, or those of JSRT."""
    files = set(list_files(root))
    for pattern in clean:  # what it fits makes no class
        files.difference_update(*match_files(root, pattern, {}).values())
    folders = {file.partition("/")[0] for file in files if "/" in file}
    if folders >= {"All247images", "scratch"}:
        return parse_pattern(JSRT_IMAGES), [parse_pattern(text) for text in JSRT_MASKS]
    masks = [Pattern(f"{name}={name}/{{}}.*", f"{name}/{{}}.*", name, "")
             for name in sorted(folders - {"images"})]
    if len(masks) == 1 and masks[0].name == "masks":
        masks = [parse_pattern("masks/{}.*")]
    return parse_pattern("images/{}.*"), masks


def choose_patterns(root, options):
    """Return the classes, the pattern of the images, those of the masks and those of --clean."""
    clean = [parse_pattern(text, "") for text in options.clean or []]
    masks = [parse_pattern(text) for text in options.masks or []]
    if options.images:
        image = parse_pattern(options.images)
    else:
        image, default_masks = default_patterns(root, clean)
        masks = masks or default_masks
    given = {pattern.name for pattern in masks}
    classes = tuple(name for name in [*CLASSES, *sorted(given - set(CLASSES))] if name in given)
    if len(classes) == 1:
        clean = [pattern._replace(name=pattern.name or classes[0]) for pattern in clean]
    if any(name == "average" or name.startswith(".") for name in given):
        raise BadInput(f"{root}: classes: {listed(given)}; none may be called average or .NAME")
    if not given >= {pattern.name for pattern in clean}:
        raise BadInput(f"{root}: classes: {listed(given)}; each pattern of --clean needs CLASS= of "
                       "one of them")
    return classes, image, masks, clean


def find(options):
    """Find the cases of a folder, of "phantoms" or "phantoms:N"; no file is read yet: Found."""
    root = str(options.data)
    kind, _, count = root.partition(":")
    if kind == "phantoms":
        count = count or "247"
        reading = (options.images, options.masks, options.clean, options.skip_unpaired,
                   options.missing_empty)
        if any(reading) or not re.fullmatch(r"[1-9]\d{0,4}", count):
            raise BadInput(f"{root}: write phantoms, or phantoms:N with N from 1 to 99999, without "
                           "options for reading folders")
        names = [f"phantom{i:05d}" for i in range(int(count))]
        return Found(kind, CLASSES, names, names, {}, {})
    if not os.path.isdir(root):
        raise BadInput(f"{root}: no such folder; write one, or phantoms, or phantoms:N")
    classes, image, masks, clean = choose_patterns(root, options)
    found, owners = {}, {}
    for patterns in (clean, masks, [image]):  # a file belongs to the first of them that it fits
        found.update({pattern: match_files(root, pattern, owners) for pattern in patterns})
        for pattern in patterns:
            for paths in found[pattern].values():
                owners.update(dict.fromkeys(paths, pattern))
    folders = tuple({path[:path.rfind("/") + 1] for path in owners})
    others = {path for path in list_files(root) if path.startswith(folders)} - owners.keys()
    if others:
        print(f"{len(others)} file(s) that fit no pattern: {listed(others)}")
    mask_files = {pattern: found[pattern] for pattern in masks}
    clean_files = {pattern: found[pattern] for pattern in clean}
    names = pair(root, found[image], mask_files, options)
    redrawn = {}  # {class: names}
    for pattern, files in clean_files.items():
        cases = set(files) & set(names)
        if not cases or cases != redrawn.setdefault(pattern.name, cases):
            raise BadInput(f"{root}: --clean {pattern.text} is there for {listed(files)}; these "
                           f"must be cases, the same in each pattern of {pattern.name}")
        print(f"--clean {pattern.text}: {len(cases)} of {len(names)} cases; the others are right")
    paths = [found[image][name][0] for name in names]
    return Found(root, classes, names, paths, mask_files, clean_files)


def pair(root, images, mask_files, options):
    """Return the names, sorted, that have one image and a mask for each pattern."""
    several = {name for name, files in images.items() if len(files) > 1}
    names, problems = set(images) - several, []
    if several:
        problems.append(f"{len(several)} case(s) with several images: {listed(several)}")
    for pattern, files in mask_files.items():
        missing, strangers = set(images) - set(files), set(files) - set(images)
        if options.missing_empty and missing:
            print(f"{len(missing)} empty mask(s) without {pattern.text}: {listed(missing)}")
            missing = set()
        names -= missing
        if missing or strangers:
            problems.append(f"{len(missing)} image(s) without {pattern.text}: {listed(missing)}, "
                            f"{len(strangers)} mask(s) without image: {listed(strangers)}")
    if problems and not (options.skip_unpaired and names):
        raise BadInput(f"{root}: {'; '.join(problems)}; correct --images and --masks (without them "
                       "each folder is a class), leave such files out with --skip-unpaired, or say "
                       "--missing-empty if no file means an empty mask")
    for problem in problems:
        print(f"left out: {problem}")
    return sorted(names, key=lambda name: (name.lower(), name))


# ------------------------------------------------------------- folders: from files to arrays

def is_misread(image, tile):
    """Return whether Pillow loses bits, signs or colors; `tile` is how it decodes the file."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF: 258 bits, 339 signed, 262 inverted
    is_signed = 2 in tags.get(339, ())
    if image.mode[0] in "IF":  # grays of more than 8 bits
        wraps = image.mode == "I" and not is_signed and image.getextrema()[0] < 0
        return wraps or tags.get(262) == 0
    is_deep = ";16" in tile or "ppm" in tile or max(tags.get(258, (8,))) > 8
    return is_deep or is_signed or image.mode == "LAB"


def open_image(path, notes):
    """Open an image file, turned as its EXIF tag says; refuse what Pillow cannot read whole.

    notes: a Counter of sentences for the summary.
    """
    try:
        if path.lower().endswith(".img"):  # JSRT: 16 bits of which 12 are used, high is dark
            raw = np.fromfile(path, dtype=">u2").reshape(2048, 2048)
            return Image.fromarray(((4095 - np.minimum(raw, 4095)) >> 4).astype(np.uint8))
        # BytesIO: Pillow garbles gray TIFFs with a rotation tag if it opens them by path.
        with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as image:
            pages, tile = getattr(image, "n_frames", 1), str(image.tile)
            is_turned = image.getexif().get(0x0112, 1) in range(2, 9)  # the tag of a rotation
            image.load()
            image.info.pop("exif", None)  # or faults in it are errors; Pillow has kept the tag
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # the readers raise whatever they like
        reason = re.sub(" <.*|\n.*", "", str(error))[:80] or type(error).__name__
        raise BadInput(f"{path}: cannot be read as an image ({reason}); replace by PNG") from None
    if pages > 1 and image.format != "MPO":  # phones put a second view into a JPEG
        raise BadInput(f"{path}: {pages} pages in one file; save each as a file, with its own mask")
    if is_misread(image, tile):
        raise BadInput(f"{path}: bits, signs or colors that Pillow loses; save as PNG of 8 bits")
    if is_turned:
        notes["file(s) turned as their EXIF tag says; if masks were drawn on unturned pixels, "
              "strip the tag"] += 1
    return image


def to_array(image):
    """Return grays (H, W), or (H, W, 3) uint8 if there are colors, without alpha."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    colors = np.asarray(image.convert("RGB"))
    return colors[..., 0] if (colors == colors[..., :1]).all() else colors


def read_image(path, notes):
    """Read an image file as gray (H, W) uint8, whatever its colors and depth."""
    gray = to_array(open_image(path, notes))
    if gray.ndim == 3:
        gray = gray.mean(axis=-1, dtype=np.float32).round().astype(np.uint8)
    low, high = gray.min(), gray.max()
    if not low < high:
        raise BadInput(f"{path}: constant once converted to gray, or with NaN; replace it")
    if gray.dtype == np.uint8:
        return gray
    if len(np.unique(gray)) > 64:  # the lowest and the highest may be padding and hot pixels
        low, high = np.quantile(gray[(gray > low) & (gray < high)], (0.001, 0.999))
    scaled = (gray.astype(np.float64) - low) / max(float(high) - float(low), 1e-12)
    return (255 * scaled.clip(0, 1)).astype(np.uint8)


def color_numbers(colors):
    """Return numbers (...) of colors (..., 3): grays as they are, others as COLOR + 0xRRGGBB."""
    red, green, blue = np.moveaxis(np.asarray(colors, dtype=np.int32), -1, 0)
    is_gray = (red == green) & (red == blue)
    return np.where(is_gray, red, COLOR + (red << 16) + (green << 8) + blue)


def spell(number):
    """Return a number of a mask as text, a color as #RRGGBB."""
    return f"#{number - COLOR:06x}" if number >= COLOR else str(number)


def select(numbers, value):
    """Return which numbers (H, W) of a mask belong to =VALUE; a range is one of brightness."""
    low, is_range, high = value.partition("-")
    if not value:
        return numbers != 0
    if value.startswith("#"):
        return numbers == color_numbers(list(bytes.fromhex(value[1:])))
    if not is_range:
        return numbers == int(low)
    brightest = np.maximum(np.maximum(numbers >> 16 & 255, numbers >> 8 & 255), numbers & 255)
    numbers = np.where(numbers < COLOR, numbers, brightest)
    return (numbers >= int(low)) & (numbers <= int(high or COLOR))


def read_mask(path, patterns, seen, notes):
    """Read a mask file once: a bool (H, W) for each of its patterns; add its values to `seen`."""
    image = open_image(path, notes)
    numbers = to_array(image)
    if numbers.ndim == 3:
        numbers = color_numbers(numbers)
    elif not ((numbers >= 0) & (numbers < COLOR) & (numbers == np.round(numbers))).all():
        raise BadInput(f"{path}: values other than whole numbers from 0 to {COLOR - 1}; save it "
                       "with 0 to 255")
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if len(np.unique(alpha[alpha > 0])) > 1:
            raise BadInput(f"{path}: half-transparent pixels; save the mask without transparency")
        numbers = np.where(alpha > 0, numbers, 0)
    numbers = numbers.astype(np.int32)
    values = np.unique(numbers).tolist()
    palette = np.reshape(image.getpalette() or [], (-1, 3))
    has_indices = image.mode == "P" and (palette != palette[:, :1]).any()
    masks = []
    for pattern in patterns:
        low, is_range, _ = pattern.value.partition("-")
        if image.format in ("JPEG", "MPO", "WEBP") and (not is_range or 0 < int(low) < 32):
            raise BadInput(f"{path}: JPEG and WebP blur the values of a mask; end the pattern with "
                           "=128- (the bright half) or =0-127 (the dark half)")
        if has_indices and not is_range and low.isdecimal() and int(low) in range(1, len(palette)):
            color = bytes(palette[int(low)].tolist()).hex()
            raise BadInput(f"{path}: its palette makes {low} a color; write =#{color} in place of "
                           f"={low}, since palettes differ")
        seen[pattern].update(values)
        if not pattern.value and len(seen[pattern] - {0}) > 1:
            half = (max(255, *(number for number in seen[pattern] if number < COLOR)) + 1) // 2
            raise BadInput(f"{path}: values {listed(seen[pattern], spell)} in {pattern.text}, not "
                           f"0 and one other; end it with =1- (all but 0), ={half}- (soft edges) "
                           "or one =VALUE")
        masks.append(select(numbers, pattern.value))
    return masks


def read_masks(root, files_of, name, shape, seen, notes):
    """Return {class: bool (H, W)} of a case: the union of the files of each class."""
    patterns_of, united = {}, {}
    for pattern, files in files_of.items():
        for file in files.get(name, []):
            patterns_of.setdefault(file, []).append(pattern)
    for file, patterns in patterns_of.items():
        path = os.path.join(root, file)
        for pattern, mask in zip(patterns, read_mask(path, patterns, seen, notes)):
            stretch = mask.shape[0] * shape[1] / (mask.shape[1] * shape[0])
            before = united.get(pattern.name, mask)
            if abs(stretch - 1) > 0.01 or before.shape != mask.shape:
                raise BadInput(f"{path}: height and width {mask.shape}, but {shape} in the image or"
                               " another mask; make them alike; a rotation tag (EXIF) may do it")
            united[pattern.name] = before | mask
    return united


def read_cases(found, size):
    """Read the files of a folder and print a summary, or draw phantoms: Cases at GRID.

    Masks that would be empty at size x size, though their files are not, are counted.
    """
    root, classes, names, paths = found.root, found.classes, found.names, found.paths
    operation, pixels = [""] * len(names), np.zeros(len(names), dtype=int)
    if root == "phantoms":
        images, labels = phantoms(len(names))
        shapes = [(GRID, GRID)] * len(names)
        return Cases(classes, names, images, labels, labels, operation, pixels, True, shapes, paths)
    images = np.empty((len(names), GRID, GRID), dtype=np.uint8)
    labels = np.empty((len(names), len(classes), GRID, GRID), dtype=bool)
    clean = labels.copy() if found.clean_files else labels
    shapes, notes = [], Counter()
    seen = {pattern: set() for pattern in [*found.mask_files, *found.clean_files]}
    for i, name in enumerate(progress(names, "reading cases")):
        image = read_image(os.path.join(root, paths[i]), notes)
        images[i] = resize(image, GRID)
        shapes.append(image.shape)
        masks = read_masks(root, found.mask_files, name, image.shape, seen, notes)
        redrawn = read_masks(root, found.clean_files, name, image.shape, seen, notes)
        for c, class_name in enumerate(classes):
            mask = masks.get(class_name, np.zeros_like(image, dtype=bool))  # --missing-empty
            labels[i, c] = resize(mask, GRID)
            if mask.any() and not resize(labels[i, c], size).any():
                notes[f"mask(s) of {class_name} too small to be seen at --size {size}, thus empty: "
                      "tile the images, or raise --size"] += 1
            if found.clean_files:
                clean[i, c] = resize(redrawn.get(class_name, mask), GRID)
                total = labels[i, c].sum() + clean[i, c].sum()
                if 2 * (labels[i, c] & clean[i, c]).sum() < CLEAN_DICE * total:
                    operation[i] = "given"
    print_summary(found, shapes, labels, seen)
    for note, count in notes.items():
        print(f"  {count} {note}")
    if not classes:
        labels = clean = None
    known = bool(found.clean_files)
    return Cases(classes, names, images, labels, clean, operation, pixels, known, shapes, paths)


def print_summary(found, shapes, labels, seen):
    """Print what was read, a line for each pattern and class; refuse masks that seem inverted."""
    print(f"{found.root}: {len(shapes)} cases, height and width {min(shapes)} to {max(shapes)}")
    print(f"  image: {found.paths[0]}")
    for pattern, files in [*found.mask_files.items(), *found.clean_files.items()]:
        of_cases = [files[name] for name in found.names if name in files]
        counts = sorted(len(paths) for paths in of_cases)
        united = f"; {counts[0]} to {counts[-1]} files a case, united" if counts[-1] > 1 else ""
        print(f"  {pattern.text}: values {listed(seen[pattern], spell)}, as in "
              f"{of_cases[0][0]}{united}")
    for c, name in enumerate(found.classes):
        masks = labels[:, c]
        empty = (~masks.any(axis=(1, 2))).sum()
        print(f"  {name}: {masks.mean():.1%} of the pixels, {empty} empty masks")
        border = np.mean([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]])
        texts = [pattern.text for pattern in found.mask_files
                 if pattern.name == name and not pattern.value]
        if texts and masks.mean() > 0.5 and border > 0.8:  # background usually touches the border
            raise BadInput(f"{found.root}: masks of {name} seem inverted, the border is foreground;"
                           f" write {texts[0]}=0 if they are, =1- if they are not")


# ---------------------------------------------------------------------- options, reading, loading

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
    images = np.empty((len(paths), size, size), dtype=np.uint8)
    for i, path in enumerate(progress(paths, "reading images")):
        images[i] = resize(resize(read_image(str(path), Counter()), GRID), size)
    return images


def read(options):
    """Read all cases of a folder, or draw phantoms: Cases at options.size, not split, no noise."""
    return resized(read_cases(find(options), options.size), options.size)


def resized(cases, size):
    """Return Cases with images, labels and clean labels of size x size."""
    cases = cases._replace(images=resize(cases.images, size))
    if cases.labels is None:
        return cases
    return cases._replace(labels=resize(cases.labels, size), clean=resize(cases.clean, size))


def damaged(cases, indices, options, stream):
    """Return some of the cases, a share of their labels damaged. stream: 1 training, 2 test."""
    band = [int(radius) for radius in options.band.split("-")]
    labels, damage, pixels = corrupt_labels(cases.labels[indices], options.noise, band,
                                            (options.seed, stream), options.noise_kind)
    operation = [new or cases.operation[i] for new, i in zip(damage, indices)]
    return Cases(cases.classes, [cases.names[i] for i in indices], cases.images[indices], labels,
                 cases.clean[indices], operation, pixels, options.noise > 0 or cases.known,
                 [cases.shapes[i] for i in indices], [cases.paths[i] for i in indices])


def load(options):
    """Read, split, add noise on the 256-pixel grid, resize: the training and the test Cases.

    Test labels get noise too; Dice uses their `clean`.
    """
    root, size, has_own_test = options.data, options.size, bool(options.test_images)
    if has_own_test != bool(options.test_masks) or (has_own_test and options.group):
        raise BadInput("--test-images and --test-masks go together, and not with --group")
    found = test_found = find(options)
    test_names = found.names
    if has_own_test:
        test_found = find(options._replace(images=options.test_images, masks=options.test_masks,
                                           clean=None))
        test_names = [f"test/{name}" for name in test_found.names]
        training, test = np.arange(len(found.names)), np.arange(len(test_names))
    else:
        training, test = split(found.paths, options.seed, options.group)
    if not found.classes:
        raise BadInput(f"{root}: no masks; say where they are with --masks")
    if test_found.classes != found.classes:
        raise BadInput(f"{root}: masks of {listed(found.classes)}, test masks of "
                       f"{listed(test_found.classes)}; name the same classes in --masks")
    if options.exclude:
        training, test = exclude_cases(options.exclude, found.names, training, test_names, test)
    cases = test_cases = read_cases(found, size)
    if has_own_test:
        test_cases = read_cases(test_found, size)._replace(names=test_names, known=cases.known)
    labels = resize(cases.labels[training], size)
    for c, name in enumerate(cases.classes):
        if np.isin(labels[:, c].mean(axis=(1, 2)), (0, 1)).all():
            raise BadInput(f"{root}: every training mask of {name} is empty or full at --size "
                           f"{size}; see the summary: correct masks or =VALUE (transparent pixels "
                           "are background), add images, tile them, or raise --size")
    if found.root != "phantoms":
        print_split(cases, training, test_cases, test, options.group)
    return (resized(damaged(cases, training, options, 1), size),
            resized(damaged(test_cases, test, options, 2), size))


def read_names(path, known):
    """Return the names in a file: the lines of a text, or the column `name` of a CSV."""
    content = Path(path).read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = nfc(content.decode(encoding, errors="replace")).splitlines()
    for delimiter in ",;\t":
        if "name" in next(csv.reader(lines[:1], delimiter=delimiter), []):
            lines = [row["name"] or "" for row in csv.DictReader(lines, delimiter=delimiter)]
            break
    names = {line if line in known else line.strip() for line in lines} - {""}
    return {name if name in known else re.sub(f"{ENDING}$", "", name) for name in names}


def exclude_cases(path, names, training, test_names, test):
    """Return the training and the test indices without the cases that a file names."""
    known = {*names, *test_names}
    excluded = read_names(path, known)
    kept = np.array([i for i in training if names[i] not in excluded], dtype=int)
    kept_test = np.array([i for i in test if test_names[i] not in excluded], dtype=int)
    left = (f"{len(kept)} of {len(training)} training cases left, {len(kept_test)} of {len(test)} "
            "test cases")
    if not excluded or excluded - known or not kept.size or not kept_test.size:
        raise BadInput(f"--exclude {path}: {len(excluded)} names, unknown: "
                       f"{listed(excluded - known)}; {left}; write one name a line, such as "
                       f"{names[training[0]]}, or keep the header of suspects.csv")
    print(f"--exclude: {left}")
    return kept, kept_test


def small(images):
    """Return each image as a row of 32 x 32 numbers of mean 0 and length 1."""
    rows = resize(images, 32).reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def print_split(cases, training, test_cases, test, group):
    """Say so if folders train/ and test/ are split anew, or if a case may be on both sides."""
    names, test_names = [cases.names[i] for i in training], [test_cases.names[i] for i in test]
    folders = {part for path in cases.paths for part in Path(path.lower()).parts[:-1]}
    if folders & SPLIT_FOLDERS and test_cases is cases:
        print(f"images of {listed(folders & SPLIT_FOLDERS)}: split anew at random; "
              "--test-images and --test-masks keep an own split")
    shared = {f"test/{name}" for name in names} & set(test_names)
    if shared:
        print(f"{len(shared)} name(s) in training, too: {listed(shared)}; if they are the same "
              "cases, leave them out with --exclude")
    alike = {"identical": [], "nearly identical": []}
    correlation = small(test_cases.images[test]) @ small(cases.images[training]).T
    for i, row in zip(test, correlation):
        twin = training[row.argmax()]
        is_same = np.array_equal(test_cases.images[i], cases.images[twin])
        if row.max() >= NEAR:
            alike["identical" if is_same else "nearly identical"].append(
                f"{test_cases.names[i]} = {cases.names[twin]}")
    for kind, pairs in alike.items():
        if pairs:
            print(f"{len(pairs)} test image(s) {kind} to a training image: {listed(pairs)}; leave "
                  "them out with --exclude")
    following = []
    for name in names:
        text, digits = re.fullmatch(r"(.*?)(\d{0,9})", name).groups()
        after = f"{text}{int(digits or 0) + 1:0{len(digits)}}"
        if digits and after in test_names:
            following.append(f"{name} and {after}")
    if following and group is None:
        remedy = "keep whole videos out with --test-images"
        videos = [re.search(VIDEO, path) for path in cases.paths]
        if None not in videos and len({video[0] for video in videos}) > 2:
            remedy = f'keep each together with --group "{VIDEO}"'
        print(f"{len(following)} consecutive names on both sides of the split, such as "
              f"{following[0]}: if they are frames of a video, {remedy}")


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
