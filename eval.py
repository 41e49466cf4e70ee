"""Evaluate a run of train.py: Dice on test labels, how well bad labels are found, images.

    python eval.py RUN                            # the same metrics again, from the checkpoint
    python eval.py RUN --data FOLDER --out OUT    # predict other images; Dice if they have masks
    python eval.py --table runs                   # all runs, mean and deviation over seeds
"""
import argparse
import csv
import io
import itertools
import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

import data
import pal

# Table 1 of the paper, by noise and band: Dice of lungs, heart, clavicles, and their average.
TABLE_1 = {  # baseline, QAM, QAM+OCM
    (0.00, ""): ((.943, .941, .862, .915), (.939, .923, .831, .898), (.941, .940, .852, .911)),
    (0.25, "1-8"): ((.868, .888, .538, .765), (.925, .926, .748, .866), (.936, .925, .823, .895)),
    (0.50, "1-8"): ((.873, .884, .539, .765), (.922, .925, .726, .857), (.936, .929, .828, .898)),
    (0.75, "1-8"): ((.820, .828, .512, .720), (.898, .825, .536, .753), (.937, .939, .809, .895)),
    (0.25, "5-13"): ((.865, .857, .422, .715), (.893, .835, .615, .781), (.935, .935, .801, .890)),
    (0.50, "5-13"): ((.755, .807, .393, .652), (.828, .853, .491, .714), (.942, .942, .853, .912)),
    (0.75, "5-13"): ((.745, .738, .381, .621), (.770, .772, .366, .636), (.938, .937, .801, .892)),
}
PAPER = {(*setting, strategy): dice for setting, row in TABLE_1.items()
         for strategy, dice in zip(("baseline", "qam", "qam+ocm"), row)}
STRATEGIES = ("baseline", "loss", "qam", "qam+ocm", "oracle")
CHUNK = 32  # images predicted at once
ENOUGH_STEPS, ENOUGH_LABELS = 300, 60  # with fewer, scores were seen to lock onto bad labels
# Okabe and Ito's palette: its colors stay distinct under the common kinds of color blindness.
BLUE, RUST, GREEN, PURPLE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)
ORANGE, SKY, GRAY = (230, 159, 0), (86, 180, 233), (120, 120, 120)
RED, YELLOW, PINK, TEXT = (255, 48, 48), (255, 215, 0), (255, 90, 230), (40, 40, 40)
COLORS = (BLUE, RUST, GREEN, PURPLE, ORANGE, SKY, GRAY)  # of curves and dots
OUTLINES = (YELLOW, PINK, GREEN, ORANGE, PURPLE)  # of the classes; the prediction's is SKY
KINDS = ("clean", *data.DAMAGE, "given")  # what a label may be, in the order of COLORS


# ------------------------------------------------------------------------------ the command line

def usage_error(message):
    """Raise BadInput in place of argparse's own error: one line, like all bad input."""
    raise data.BadInput(f"{message}; see --help")


def run_main(main):
    """Run a script's main(); bad input ends it with one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # notebooks have streams without it
            stream.reconfigure(errors="replace")  # for names that the console cannot print
    try:
        return main()
    except KeyboardInterrupt:
        reason, code = "interrupted; train.py --resume goes on after the last finished epoch", 130
    except (data.BadInput, OSError) as error:
        reason, code = str(error), 2
    except (MemoryError, RuntimeError) as error:
        texts = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA's, the CPU's
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in texts):
            raise
        reason, code = "out of memory; choose a smaller --size or --batch", 2
    print(f"{Path(sys.argv[0]).name}: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(code)


# --------------------------------------------------------------------- the files of a run folder

CHECKPOINT = ("arguments", "classes", "lam", "share", "losses", "label_weights", "log", "digest",
              "unet", "qam", "optimizer", "schedule")


def write_file(path, content):
    """Write bytes so that a crash leaves the old file or the new one, never a part."""
    other = path.with_name(path.name + ".new")
    other.write_bytes(content)
    os.replace(other, path)


def write_json(path, content):
    """Write `content` as readable JSON."""
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


def write_csv(path, rows):
    """Write dicts of the same keys as a CSV file with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(path, text.getvalue().encode(errors="replace"))


def save_checkpoint(path, state):
    """Save a dict with the keys of CHECKPOINT."""
    content = io.BytesIO()
    torch.save(state, content)
    write_file(path, content.getvalue())


def read_checkpoint(path):
    """Read what `save_checkpoint` wrote, onto the CPU; BadInput for any other file."""
    if not path.exists():
        raise data.BadInput(f"{path.parent}: no run folder of train.py, it lacks {path.name}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return {name: checkpoint[name] for name in CHECKPOINT}
    except Exception as error:  # torch.load raises whatever its parts raise
        raise data.BadInput(f"{path}: no checkpoint of this version of train.py, or damaged "
                            f"({str(error)[:80]}); give a run folder, or train again") from None


# ---------------------------------------------------------------------------- networks on images

def build_networks(settings, classes, device):
    """Build U-Net and QAM, drawn from the run's seed."""
    torch.manual_seed(settings["seed"])
    unet, qam = pal.UNet(len(classes), width=settings["width"]), pal.QAM(len(classes))
    return [network.to(device, memory_format=torch.channels_last) for network in (unet, qam)]


def load_networks(run, device="cpu"):
    """Load a run folder -> trained U-Net and QAM, settings: train.py's options and "classes"."""
    checkpoint = read_checkpoint(Path(run) / "checkpoint.pt")
    settings = {**checkpoint["arguments"], "classes": checkpoint["classes"]}
    unet, qam = build_networks(settings, settings["classes"], device)
    unet.load_state_dict(checkpoint["unet"])
    qam.load_state_dict(checkpoint["qam"])
    return unet.eval(), qam.eval(), settings


@torch.no_grad()
def predict(unet, images):
    """Predict masks: images (N, H, W) uint8 -> bool (N, classes, H, W) on the same device."""
    unet.eval()
    masks = []
    for chunk in data.progress(images.split(CHUNK), "predicting"):
        masks.append(unet(pal.standardize(chunk[:, None])) > 0)  # probability above one half
    return torch.cat(masks)


def label_quality(logits, labels):
    """Return cleanlab's softmin (N,) of logits and labels (N, classes, H, W): high is good."""
    given = torch.where(labels, logits.sigmoid(), (-logits).sigmoid()).flatten(1)
    return (given * torch.softmax((1 - given) / 0.1, dim=1)).sum(dim=1)


@torch.no_grad()
def score_labels(unet, qam, images, labels):
    """Return raw scores, losses, label qualities (N,), and losses per class (classes, N)."""
    unet.eval()
    qam.eval()  # with its running statistics a score depends on no other label
    pairs, columns = list(zip(images.split(CHUNK), labels.split(CHUNK))), []
    for image, label in data.progress(pairs, "scoring labels"):
        inputs = pal.standardize(image[:, None])
        logits = unet(inputs)
        losses = pal.sample_losses(logits, label)  # (chunk, classes)
        numbers = [qam(inputs, label), losses.mean(dim=1), label_quality(logits, label), *losses.T]
        columns.append(torch.stack(numbers).cpu().double())
    columns = torch.cat(columns, dim=1).numpy()
    return columns[0], columns[1], columns[2], columns[3:]


# --------------------------------------------------------------------------------------- metrics

# A ranking's name in the metrics -> its column in `label_rows`, and -1 if bad labels are low in it.
RANKINGS = {"score": ("score", -1), "loss": ("loss", 1), "softmin": ("quality", -1),
            "ranks": ("badness", 1)}


def auroc(values, positive):
    """Return the chance that a positive has the larger value of a pair; NaN without pairs."""
    positive = np.asarray(positive, dtype=bool)
    ours, others = np.asarray(values)[positive], np.sort(np.asarray(values)[~positive])
    if not len(ours) or not len(others):
        return float("nan")
    wins = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return float(wins.mean() / 2 / len(others))


def mean_dice(prediction, truth, classes):
    """Average the Dice of bool masks (N, classes, H, W) per class, and over classes ("average")."""
    # Only images that have the class count; the paper leaves it open. None if there are none.
    present = truth.flatten(2).any(dim=2).cpu()  # (N, classes)
    totals = (pal.dice(prediction, truth).cpu().double() * present).sum(dim=0)
    dice = {}
    for name, total, count in zip(classes, totals.tolist(), present.sum(dim=0).tolist()):
        dice[name] = total / count if count else None
    known = [value for value in dice.values() if value is not None]
    dice["average"] = float(np.mean(known)) if known else None
    return dice


def dice_metrics(unet, test, classes, device):
    """Measure Dice, and in how many of the images without a class nothing is predicted."""
    prediction = predict(unet, torch.from_numpy(test.images).to(device)).cpu()
    truth, empty = torch.from_numpy(test.clean), {}
    absent = ~truth.flatten(2).any(dim=2)  # (N, classes)
    right = absent & ~prediction.flatten(2).any(dim=2)
    for name, count, correct in zip(classes, absent.sum(dim=0), right.sum(dim=0)):
        if count > 0:
            empty[name] = {"images": int(count), "predicted_empty": int(correct)}
    return {"dice": mean_dice(prediction, truth, classes), "empty": empty}


def ranks(values):
    """Rank numbers (N,) from 0 (smallest) to 1 (largest); equal numbers get their mean rank."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, "left")
    last = np.searchsorted(ordered, values, "right") - 1
    return (first + last) / 2 / max(1, len(values) - 1)


def combined_ranking(scores, losses, quality):
    """Average the ranks by low score, high loss and low quality (N,): 1 is the worst label."""
    rankings = [ranks(losses), ranks(-quality)]
    if np.ptp(scores) > 0:  # equal scores, of an untrained QAM, tell nothing
        rankings.append(ranks(-scores))
    return np.mean(rankings, axis=0)


def outstanding_class(class_losses, classes):
    """Name each label's class whose loss is farthest above that class's mean, in deviations."""
    deviation = np.maximum(class_losses.std(axis=1, keepdims=True), 1e-9)
    above = (class_losses - class_losses.mean(axis=1, keepdims=True)) / deviation
    return [classes[c] for c in above.argmax(axis=0)]


def loss_scores(losses, labels):
    """Score labels by their own losses (N, classes), for `--strategy loss`: t (N,), high is good.

    The area trend is removed, and t is standardized. labels: masks, or areas (N, classes, 1, 1).
    """
    equal = losses.new_zeros(len(losses))
    excess = losses.detach().mean(dim=1) - pal.area_trend(losses, labels, equal)
    return (excess.mean() - excess) / (excess.std() + 1e-6)


def label_rows(unet, qam, classes, cases, device, lam, strategy=None, split=None):
    """Make the rows of suspects.csv, not sorted; what nobody knows has no column."""
    images, labels = [torch.from_numpy(array).to(device) for array in (cases.images, cases.labels)]
    scores, losses, quality, class_losses = score_labels(unet, qam, images, labels)
    in_use = torch.from_numpy(scores)
    if strategy == "loss":
        in_use = loss_scores(torch.from_numpy(class_losses.T), torch.from_numpy(cases.labels))
    weights = pal.quality_weights(in_use, lam).numpy() * len(scores)
    if strategy == "oracle":
        weights = ~cases.noisy / np.mean(~cases.noisy)
    columns = {"name": cases.names}
    if cases.known:
        columns["noisy"] = cases.noisy.astype(int)
        columns.update(operation=cases.operation, pixels=cases.pixels)
    elif split:
        columns["split"] = [split] * len(scores)
    columns.update(score=scores, weight=weights, loss=losses)
    if len(classes) > 1:
        columns.update({f"loss_{name}": values for name, values in zip(classes, class_losses)})
        columns["stands_out"] = outstanding_class(class_losses, classes)
    columns.update(quality=quality, badness=combined_ranking(scores, losses, quality))
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def worst_first(rows):
    """Sort rows by badness and number them: place 1, and mean rank 0, is the worst label."""
    ordered = []
    for place, row in enumerate(sorted(rows, key=lambda row: -row["badness"]), start=1):
        badness = row.pop("badness")
        ordered.append({"place": place, **row, "mean_rank": 1 - badness})
    return ordered


def share_among_worst(noisy, badness, count):
    """Return the share of noisy labels in the `count` worst; ties at the cut-off count in part."""
    limit = np.sort(badness)[-count]
    worse, tied = badness > limit, badness == limit
    caught = noisy[worse].sum() + noisy[tied].mean() * (count - worse.sum())
    return float(caught / count)


def detection_metrics(rows):
    """Measure how well each ranking finds the noisy labels; None if all labels are of one kind."""
    noisy = np.array([row.get("noisy", 0) for row in rows], dtype=bool)
    if noisy.all() or not noisy.any():
        return None
    share = float(noisy.mean())
    metrics = {"random": {"auroc": 0.5, "precision_10": share, "recall": share}}
    for name, (column, sign) in RANKINGS.items():
        badness = sign * np.array([row[column] for row in rows])
        metrics[name] = {"auroc": auroc(badness, noisy),
                         "precision_10": share_among_worst(noisy, badness, min(10, len(noisy))),
                         "recall": share_among_worst(noisy, badness, noisy.sum())}
    return metrics


def evaluate(unet, qam, classes, training, test, device, lam, strategy):
    """Measure a trained run -> metrics, and the rows of suspects.csv, worst first."""
    rows = label_rows(unet, qam, classes, training, device, lam, strategy, split="train")
    unseen = label_rows(unet, qam, classes, test, device, lam, split="test")
    weights = np.array([row["weight"] for row in rows])
    effective = float(weights.sum() ** 2 / (weights ** 2).sum())  # N if all are equal
    metrics = {**dice_metrics(unet, test, classes, device),
               "audit": {"training": detection_metrics(rows), "unseen": detection_metrics(unseen)},
               "effective_sample_size": effective, "lam": lam}
    # If nobody knows which labels are clean, those of the test are to be looked at as well.
    return metrics, worst_first(rows if training.known else rows + unseen)


def warnings_of(settings, metrics, training, test, share):
    """List what the metrics do not say by themselves, each with what to do about it."""
    count, effective = len(training.names), metrics["effective_sample_size"]
    steps = settings["epochs"] * (count // min(settings["batch"], count))
    warnings = []
    if count < ENOUGH_LABELS:
        warnings.append(f"{count} training labels; to tell labels apart, have {ENOUGH_LABELS}, and "
                        "look at each of these few yourself")
    if steps < ENOUGH_STEPS:
        warnings.append(f"{steps} training steps; to tell labels apart, have {ENOUGH_STEPS}: raise "
                        "--epochs")
    if settings["noise"] == 0:  # if noise was added on purpose, these two are no surprise
        if effective < count / 2:
            warnings.append(f"the weights rest on {effective:.0f} of {count} labels; compare with "
                            "--strategy baseline, or lower --lam")
        if share is not None and share > 0.4:
            warnings.append(f"{share:.0%} of the labels contradict the rest, and the larger group "
                            "counts as right: look at suspects.png before you believe it")
    for name, areas in zip(metrics["dice"], test.clean.mean(axis=(2, 3)).T):
        dice, areas = metrics["dice"][name], areas[areas > 0]  # of the images that have the class
        if dice is not None and dice <= np.mean(2 * areas / (1 + areas)):
            warnings.append(f"Dice {dice:.3f} of {name} is no better than foreground everywhere; "
                            "look at its labels, or raise --epochs")
    return warnings


# ------------------------------------------------------------------------------- results as text

def paper_row(settings, classes):
    """Return the paper's Dice of lungs, heart, clavicles, average; None if it has no such row."""
    noise, kind = settings["noise"], settings.get("noise_kind", "erode-dilate")
    if tuple(classes) != (*data.CLASSES, "average") or settings["data"].startswith("phantoms"):
        return None
    if settings.get("clean") or (noise and kind != "erode-dilate"):
        return None
    return PAPER.get((noise, settings["band"] if noise else "", settings["strategy"]))


def cell(*values):
    """Write a number as text, several as their mean ± standard deviation, None as "-"."""
    if None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def print_table(rows):
    """Print rows of texts as a Markdown table with aligned columns, the first row its titles."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for place, row in enumerate(rows):
        cells = [text.ljust(width) for text, width in zip(row, widths)]
        print(f"| {' | '.join(cells)} |")
        if place == 0:
            print(f"|{'|'.join(['-' * (width + 2) for width in widths])}|")


def print_dice(metrics, known, paper=None):
    """Print Dice, and how many images lack a class; known: whether clean labels are known."""
    title = "Dice on clean test labels" if known else "Dice on test labels (as given)"
    rows = [[title, *metrics["dice"]], ["this run", *map(cell, metrics["dice"].values())]]
    if paper:
        rows.append(["the paper (JSRT)", *map(cell, paper)])
    print()
    print_table(rows)
    for name, count in metrics["empty"].items():
        if metrics["dice"][name] is None:
            print(f"no test label has {name}: left out of the average")
        print(f"{count['images']} images without {name}, "
              f"nothing predicted in {count['predicted_empty']}")


def print_results(settings, metrics, known):
    """Print what metrics.json has of a run; known: whether clean labels are known."""
    print_dice(metrics, known, paper_row(settings, metrics["dice"]))
    for where, audit in metrics["audit"].items():
        if audit:
            rows = [[f"noisy labels found, {where}", "AUROC", "noisy in the worst 10",
                     "in the worst as many as are noisy"]]
            rows += [[name, *map(cell, row.values())] for name, row in audit.items()]
            print()
            print_table(rows)
    print(f"\neffective sample size of the weights: {metrics['effective_sample_size']:.1f}")
    for warning in metrics["warnings"]:
        print(f"warning: {warning}")
    share = metrics["rejected_share"]
    if share is None:
        print("too few labels to tell how many are bad")
    elif share == 0:
        print("no group of bad labels")
    else:
        print(f"about {share:.0%} of the labels form a group of their own with a high loss")


def group_runs(folder):
    """Read finished runs -> groups of (name, settings, metrics) by setting, varied options."""
    runs, varied, groups = [], [], {}
    for path in sorted(Path(folder).rglob("config.json")):
        if not (path.parent / "metrics.json").exists():
            continue
        try:
            settings = {"noise_kind": "erode-dilate", **json.loads(path.read_text())["arguments"]}
            metrics = json.loads((path.parent / "metrics.json").read_text())
            if settings["noise"] == 0:  # then there is no band and no kind of it
                settings["band"] = settings["noise_kind"] = "-"
        except (ValueError, KeyError, TypeError):
            raise data.BadInput(f"{path.parent} is not a run of train.py, or damaged; give a "
                                "folder of runs alone") from None
        runs.append((path.parent.name, settings, metrics))
    if not runs:
        raise data.BadInput(f"{folder}: no finished run in it; give the folder of the run folders")
    shared = set.intersection(*[set(settings) for _, settings, _ in runs])
    for name in sorted(shared - {"noise", "band", "strategy", "seed"}):
        if len({str(settings[name]) for _, settings, _ in runs} - {"-"}) > 1:
            varied.append(name)
    for run in runs:
        settings = run[1]
        key = [settings["noise"], settings["band"], settings["noise_kind"],
               STRATEGIES.index(settings["strategy"]), *[str(settings[name]) for name in varied]]
        groups.setdefault(tuple(key), []).append(run)
    return [groups[key] for key in sorted(groups)], varied


def auroc_cell(group, ranking, part="training"):
    """Write the AUROC of a ranking in a group of runs as text."""
    audits = [metrics["audit"][part] or {} for _, _, metrics in group]
    return cell(*[audit.get(ranking, {}).get("auroc") for audit in audits])


def table_of(folder):
    """Make the rows of --table, the first row its titles; columns of "-" alone are left out."""
    groups, varied = group_runs(folder)
    classes = {name: None for group in groups for name in group[0][2]["dice"] if name != "average"}
    if len(classes) == 1:  # its Dice is the average
        classes = {}
    rows = []
    for group in groups:
        run, settings, metrics = group[0]
        row = {name: str(settings[name]) for name in ("noise", "band", "strategy")}
        row.update({f"--{name.replace('_', '-')}": str(settings[name]) for name in varied})
        for name in (*classes, "average"):
            row[f"Dice {name}"] = cell(*[metrics["dice"].get(name) for _, _, metrics in group])
        paper = paper_row(settings, metrics["dice"])
        row["the paper's"] = cell(paper[-1] if paper else None)
        for title, ranking in (("score", "score"), ("loss", "loss"), ("mean rank", "ranks")):
            row[f"AUROC by {title}"] = auroc_cell(group, ranking)
        seeds = sorted(settings["seed"] for _, settings, _ in group)
        row["run"] = run if len(group) == 1 else f"seeds {' '.join(map(str, seeds))}"
        rows.append(row)
    titles = [title for title in rows[0] if any(row[title] != "-" for row in rows)]
    return [titles] + [[row[title] for title in titles] for row in rows]


# ------------------------------------------------------------------------------ plots and images

class Series(NamedTuple):
    """What `chart` draws: a curve or dots, with a pale band (low, high) if there is one."""
    label: str
    color: tuple
    x: np.ndarray
    y: np.ndarray
    band: tuple = ()
    dots: bool = False


def ticks(low, high, count):
    """List round numbers around [low, high] in about `count` steps."""
    high = high if high > low else low + 1
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = min(power * np.array([1, 2, 5, 10]), key=lambda step: abs(step - rough))
    return step * np.arange(np.floor(low / step + 1e-6), np.ceil(high / step - 1e-6) + 1)


def draw_legend(draw, entries, x, y, size):
    """Draw (label, color) pairs downwards from (x, y), in letters of this size."""
    for label, color in entries:
        draw.line((x, y, x + 1.5 * size, y), color, size // 4)
        draw.text((x + 2 * size, y), label, TEXT, ImageFont.load_default(size), anchor="lm")
        y += 1.4 * size


def chart(title, series, x_label, y_label, size=(640, 400), y_range=(0, 1), mark=None):
    """Draw curves, dots, bands, and a vertical line `mark` (x, text); y_range is shown at least."""
    x_values = np.concatenate([one.x for one in series])
    y_values = np.concatenate([y_range, *[np.ravel([one.y, *one.band]) for one in series]])
    x_ticks = ticks(x_values.min(), x_values.max(), 6)
    y_ticks = ticks(np.nanmin(y_values), np.nanmax(y_values), 5)
    # Drawn at twice the size: reducing it makes the edges smooth.
    canvas = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(28)
    widest = max(font.getlength(one.label) for one in series)
    left, right, top, bottom = 110, canvas.width - 140 - widest, 150, canvas.height - 100

    def at_x(x):
        return left + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left)

    def at_y(y):
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    draw.text((left, 44), title, TEXT, ImageFont.load_default(36), anchor="lm")
    draw.text((20, 104), y_label, GRAY, font, anchor="lm")
    draw.text((right, canvas.height - 20), x_label, GRAY, font, anchor="rs")
    for value in y_ticks:
        draw.line((left, at_y(value), right, at_y(value)), (228, 228, 228), 2)
        draw.text((left - 14, at_y(value)), f"{value:.6g}", TEXT, font, anchor="rm")
    for value in x_ticks:
        draw.text((at_x(value), bottom + 16), f"{value:.6g}", TEXT, font, anchor="mt")
    if mark:
        draw.line((at_x(mark[0]), top, at_x(mark[0]), bottom), GRAY, 2)
        draw.text((at_x(mark[0]), top - 8), mark[1], GRAY, font, anchor="mb")
    for one in series:  # all bands first, so that none hides a curve
        if one.band:
            known = np.isfinite(one.y)
            low, high = [np.stack([at_x(one.x), at_y(edge)], axis=1)[known] for edge in one.band]
            shape = Image.new("L", canvas.size)
            ImageDraw.Draw(shape).polygon(np.concatenate([low, high[::-1]]).ravel().tolist(), 48)
            canvas.paste(one.color, mask=shape)
    for one in series:
        points = np.stack([at_x(one.x), at_y(one.y)], axis=1)[np.isfinite(one.y)]
        if one.dots or len(points) == 1:
            for x, y in points:
                draw.ellipse((x - 7, y - 7, x + 7, y + 7), one.color)
        else:
            draw.line(points.ravel().tolist(), one.color, 5, joint="curve")
    draw_legend(draw, [one[:2] for one in series], right + 40, top + 14, 28)
    return canvas.resize(size, Image.LANCZOS)


def training_curves(log, classes):
    """Draw the paper's Fig. 3 (Dice, loss) and Fig. 4 (weights by kind of label) from a log."""
    drawn = classes if len(classes) == 1 else (*classes, "average")
    plots = {  # title, label of the axis: columns of log.csv, with their labels
        ("Dice on test labels", "Dice"): {f"dice_{name}": name for name in drawn},
        ("Loss per training label", "loss"): {
            "loss_clean": "clean", "loss_noisy": "noisy", "loss": "weighted, eq. (1)"},
        ("Weight of a label, mean and deviation", "weight x N"): {
            f"weight_{kind}_mean": kind for kind in KINDS},
        ("Clean labels told from noisy ones", "AUROC"): {
            "auroc": "by score", "loss_auroc": "by loss"}}

    def column(name):
        return np.array([row.get(name) for row in log], dtype=float)  # NaN if there is none

    charts, middle = [], None
    if log[0]["lam"] != log[-1]["lam"]:
        middle = (len(log) // 2, "half-way: lambda")
    for (title, y_label), labels in plots.items():
        series = []
        for (name, label), color in zip(labels.items(), itertools.cycle(COLORS)):
            y, band = column(name), ()
            if name.startswith("weight"):
                deviation = np.sqrt(column(name.replace("mean", "variance")))
                band = (np.maximum(y - deviation, 0), y + deviation)
            if np.isfinite(y).any():
                series.append(Series(label, color, np.arange(1, len(log) + 1), y, band))
        if series:
            charts.append(chart(title, series, "epoch", y_label, mark=middle))
    return grid(charts, columns=2)


def weights_film(path, label_weights, operations):
    """Write an animated GIF of label_weights (epochs, N), a dot a label in its kind's color."""
    weights = np.array(label_weights, dtype=float)
    for epoch in range(1, len(weights)):  # a label left out of an epoch keeps its last weight
        weights[epoch] = np.where(np.isnan(weights[epoch]), weights[epoch - 1], weights[epoch])
    kinds = np.array([KINDS.index(operation or "clean") for operation in operations])
    order = np.argsort(kinds, kind="stable")
    weights, kinds, frames = weights[:, order], kinds[order], []
    for epoch in np.linspace(0, len(weights) - 1, min(len(weights), 60)).round().astype(int):
        dots = [Series(KINDS[kind], COLORS[kind], np.flatnonzero(kinds == kind),
                       weights[epoch, kinds == kind], dots=True) for kind in np.unique(kinds)]
        frame = chart(f"Weight of each label, epoch {epoch + 1}", dots, "training labels",
                      "weight x N", (560, 360), y_range=(0, np.nanmax(weights)))
        frames.append(np.rint(np.asarray(frame) / 17).astype(np.uint8) * 17)  # a small file
    frames += [frames[-1]] * 12  # the end stands still for a while
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=150, loop=0)


def overlay(image, outlines, scale=None):
    """Draw outlines (mask (H, W) or (C, H, W) bool, color) on an image (H, W), enlarged -> RGB."""
    height, width = image.shape
    scale = scale or max(1, 256 // height)
    size = (width * scale, height * scale)
    pixels = np.array(Image.fromarray(image).resize(size, Image.BILINEAR).convert("RGB"))
    for masks, color in outlines:
        for mask in masks.reshape(-1, height, width):  # one by one: touching classes keep edges
            # Bilinear and cut at one half: smoother than nearest, and a single pixel survives.
            large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.BILINEAR)
            large = np.asarray(large) > 127
            pixels[large & ~data.erode(large, 1)] = color
    return Image.fromarray(pixels)


def grid(tiles, captions=(), columns=4, legend=()):
    """Arrange images of one size in rows, captions below, a legend of (label, color) above."""
    width, height = tiles[0].size
    below = 20 * max([caption.count("\n") + 1 for caption in captions], default=0)
    above, columns = 22 * len(legend), min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * (width + 6), above + rows * (height + below + 6)), "white")
    draw = ImageDraw.Draw(canvas)
    draw_legend(draw, legend, 6, 12, 15)
    for k, tile in enumerate(tiles):
        x, y = k % columns * (width + 6) + 3, above + k // columns * (height + below + 6) + 3
        canvas.paste(tile, (x, y))
        if captions:
            length = draw.multiline_textbbox((0, 0), captions[k], ImageFont.load_default(14))[2]
            font = ImageFont.load_default(min(14, 14 * width / max(1, length)))  # shrunk to fit
            draw.multiline_text((x + width / 2, y + height + 2), captions[k], TEXT, font,
                                anchor="ma", align="center")
    return canvas


def sample_image(unet, training, device):
    """Draw the paper's Fig. 1: four images, noisy ones first, with their labels and predictions."""
    chosen = np.argsort(~training.noisy, kind="stable")[:4]
    predictions = predict(unet, torch.from_numpy(training.images[chosen]).to(device)).cpu().numpy()
    tiles, captions, legend = [], [], [("label", YELLOW), ("prediction", SKY)]
    if training.known:
        legend.append(("clean label", RED))
    for i, prediction in zip(chosen, predictions):
        clean = [(training.clean[i], RED)] if training.known else []
        tiles.append(overlay(training.images[i], []))
        tiles.append(overlay(training.images[i], [(training.labels[i], YELLOW), *clean]))
        tiles.append(overlay(training.images[i], [(prediction, SKY), *clean]))
        damage = f"{training.operation[i]} {training.pixels[i] or ''}"
        captions += [training.names[i], f"label {damage}", "prediction"]
    return grid(tiles, captions, columns=3, legend=legend)


def suspects_image(unet, classes, rows, parts, device):
    """Draw the labels of `rows`, which are in the Cases `parts`, over the prediction in blue."""
    images, labels, tiles, captions = {}, {}, [], []
    for cases in parts:
        images.update(zip(cases.names, cases.images))
        labels.update(zip(cases.names, cases.labels))
    chosen = np.stack([images[row["name"]] for row in rows])
    predictions = predict(unet, torch.from_numpy(chosen).to(device)).cpu().numpy()
    for row, image, prediction in zip(rows, chosen, predictions):
        label = zip(labels[row["name"]], itertools.cycle(OUTLINES))
        tiles.append(overlay(image, [(prediction, SKY), *label]))
        caption = f"{row['place']}. {row['name']}\nscore {row['score']:.2f}, loss {row['loss']:.2f}"
        if len(classes) > 1:
            caption += f"\nstands out: {row['stands_out']}"
        if row.get("split") == "test":
            caption += "\n(test)"
        if row.get("noisy"):
            caption += f"\n({row['operation']} {row['pixels'] or ''})"
        captions.append(caption)
    legend = [*zip(classes, itertools.cycle(OUTLINES)), ("prediction", SKY)]
    return grid(tiles, captions, legend=legend)


def write_report(out, unet, classes, training, test, rows, log, device):
    """Write suspects.csv, suspects.png, samples.png, and curves.png if there is a log."""
    write_csv(out / "suspects.csv", rows)
    suspects_image(unet, classes, rows[:12], (training, test), device).save(out / "suspects.png")
    sample_image(unet, training, device).save(out / "samples.png")
    if log:
        training_curves(log, classes).save(out / "curves.png")


# ----------------------------------------------------------------------------------- the scripts

def evaluate_run(run, device):
    """Print the metrics of a run and draw its images again, from its checkpoint and its data."""
    unet, qam, settings = load_networks(run, device)
    checkpoint, classes = read_checkpoint(run / "checkpoint.pt"), settings["classes"]
    _, training, test = data.load(**{name: settings[name] for name in data.LOAD})
    if data.digest(training, test) != checkpoint["digest"]:
        raise data.BadInput(f"{settings['data']}: the data are no longer those of this run; use "
                            f"eval.py {run} --data FOLDER --out OUT, or train again")
    metrics, rows = evaluate(unet, qam, classes, training, test, device, checkpoint["lam"],
                             settings["strategy"])
    metrics["rejected_share"] = checkpoint["share"]
    metrics["warnings"] = warnings_of(settings, metrics, training, test, checkpoint["share"])
    print_results(settings, metrics, training.known)
    write_report(run, unet, classes, training, test, rows, checkpoint["log"], device)
    print(f"suspects.csv (the worst label first) and images are in {run}")


@torch.no_grad()
def evaluate_folder(run, folder, out, reading, device):
    """Predict a folder's images at their own sizes; if there are labels, measure and rank them."""
    if out.exists():
        raise data.BadInput(f"{out} exists already; choose another --out")
    unet, qam, settings = load_networks(run, device)
    size, classes = settings["size"], settings["classes"]
    source, cases = data.load_all(folder, size, **reading)
    if cases and list(source.classes) != list(classes):
        raise data.BadInput(f"{folder} has masks of {', '.join(source.classes)}, {run} of "
                            f"{', '.join(classes)}; name the same in the same order (--masks)")
    images = torch.from_numpy(data.resize(source.images, size)).to(device)
    inputs = list(zip(source.names, images, source.shapes))
    for name, image, shape in data.progress(inputs, "predicting"):
        logits = unet(pal.standardize(image[None, None]))  # (1, classes, S, S)
        # Resized before they are cut at 0, so that edges are smooth.
        logits = F.interpolate(logits, size=tuple(shape), mode="bilinear", align_corners=False)
        for label, mask in zip(classes, logits[0].cpu().numpy() > 0):
            path = out / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path, mask.astype(np.uint8) * 255)
    print(f"predicted masks (0 and 255, a folder a class) are in {out}")
    if cases:
        lam = read_checkpoint(run / "checkpoint.pt")["lam"]
        rows = worst_first(label_rows(unet, qam, classes, cases, device, lam))
        metrics = dice_metrics(unet, cases, classes, device)
        write_json(out / "metrics.json", metrics)
        write_csv(out / "suspects.csv", rows)
        suspects_image(unet, classes, rows[:12], [cases], device).save(out / "suspects.png")
        print_dice(metrics, cases.known)


def main(argv=None):
    """Read the command line and do what it says; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = usage_error
    parser.add_argument("run", type=Path, nargs="?", help="a run folder of train.py")
    parser.add_argument("--table", metavar="RUNS", help="print a table of all runs in this folder")
    parser.add_argument("--out", type=Path, help="with --data: the new folder to write")
    data.add_options(parser)
    parser.set_defaults(data=None)  # with --data that folder is evaluated, not the data of the run
    options = parser.parse_args(argv)
    reading = {name: getattr(options, name) for name in ("images", "masks", "skip_unpaired")}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (options.run is None) == (options.table is None):
        parser.error("give a run folder, or --table and the folder of all of them")
    if (options.data is None) != (options.out is None) or (options.table and options.data):
        parser.error("--data FOLDER goes with a run and with --out, a new folder")
    if options.data is None and any(reading.values()):
        parser.error("--images, --masks and --skip-unpaired go with --data; a run has its own")
    if options.table:
        print_table(table_of(options.table))
    elif options.data is not None:
        evaluate_folder(options.run, options.data, options.out, reading, device)
    else:
        evaluate_run(options.run, device)


if __name__ == "__main__":
    run_main(main)
