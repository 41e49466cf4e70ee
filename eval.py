"""Evaluate a run of train.py: Dice on clean test labels, how well bad labels are found, pictures.

    python eval.py RUN                               # the same figures again, from the checkpoint
    python eval.py RUN --data FOLDER                 # on other images, with or without masks
    python eval.py --table runs                      # all runs, mean and spread over seeds
    python eval.py --table runs --chart results.png  # ... and Dice over the share of noisy labels

RUN is a run folder of train.py, such as runs/phantoms-qam+ocm-0.5-5-13-seed0.
"""
import signal

if __name__ == "__main__":
    # Importing torch takes seconds; Ctrl-C then ends the script without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import data
import pal

# Table 1 of the paper. Noise, band, strategy: Dice of lungs, heart, clavicles, and their average.
PAPER = {
    (0.00, "", "baseline"): (.943, .941, .862, .915),
    (0.00, "", "qam"): (.939, .923, .831, .898),
    (0.00, "", "qam+ocm"): (.941, .940, .852, .911),
    (0.25, "1-8", "baseline"): (.868, .888, .538, .765),
    (0.25, "1-8", "qam"): (.925, .926, .748, .866),
    (0.25, "1-8", "qam+ocm"): (.936, .925, .823, .895),
    (0.50, "1-8", "baseline"): (.873, .884, .539, .765),
    (0.50, "1-8", "qam"): (.922, .925, .726, .857),
    (0.50, "1-8", "qam+ocm"): (.936, .929, .828, .898),
    (0.75, "1-8", "baseline"): (.820, .828, .512, .720),
    (0.75, "1-8", "qam"): (.898, .825, .536, .753),
    (0.75, "1-8", "qam+ocm"): (.937, .939, .809, .895),
    (0.25, "5-13", "baseline"): (.865, .857, .422, .715),
    (0.25, "5-13", "qam"): (.893, .835, .615, .781),
    (0.25, "5-13", "qam+ocm"): (.935, .935, .801, .890),
    (0.50, "5-13", "baseline"): (.755, .807, .393, .652),
    (0.50, "5-13", "qam"): (.828, .853, .491, .714),
    (0.50, "5-13", "qam+ocm"): (.942, .942, .853, .912),
    (0.75, "5-13", "baseline"): (.745, .738, .381, .621),
    (0.75, "5-13", "qam"): (.770, .772, .366, .636),
    (0.75, "5-13", "qam+ocm"): (.938, .937, .801, .892),
}
STRATEGIES = ("baseline", "loss", "qam", "qam+ocm", "oracle")
CHUNK = 32  # pictures evaluated at once
# Okabe and Ito's palette: its colours stay distinct under the common kinds of colour blindness.
CLEAN, NOISY, GREEN, PURPLE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)
ORANGE, SKY = (230, 159, 0), (86, 180, 233)
RED, YELLOW = (255, 48, 48), (255, 215, 0)  # for outlines on grey pictures
TEXT, AXIS, LINE, WHITE = (40, 40, 40), (120, 120, 120), (228, 228, 228), (255, 255, 255)
COLOURS = (CLEAN, NOISY, GREEN, PURPLE, ORANGE, SKY, AXIS)  # of curves and dots
OUTLINES = (YELLOW, PURPLE, GREEN, ORANGE, RED)  # of the labels' classes; the network's is SKY
KINDS = ("clean", *data.DAMAGE, "given")  # what a label may be; in charts in this order
KIND_COLOURS = {kind: COLOURS[k % len(COLOURS)] for k, kind in enumerate(KINDS)}


# --------------------------------------------------------- what both scripts need of a command line

OUT_OF_MEMORY = "out of memory; choose a smaller --size or --batch"


def usage_error(message):
    """In place of argparse's own error: one line, like all bad input."""
    raise data.BadInput(f"{message}; see --help")


def run_main(main):
    """Runs a script's main(). Bad input, failing files and too little memory end it with one line
    on stderr and exit code 2, Ctrl-C with one line and exit code 130.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # for names that the console cannot print
    try:
        main()
    except (data.BadInput, OSError) as error:
        stop(error, 2)
    except MemoryError:
        stop(OUT_OF_MEMORY, 2)
    except RuntimeError as error:  # torch's way of running out of memory
        if "memory" not in str(error):
            raise
        stop(OUT_OF_MEMORY, 2)
    except KeyboardInterrupt:
        stop("interrupted; train.py goes on after its last finished epoch with --resume", 130)


def stop(reason, code):
    """Ends the script with one line on stderr and this exit code."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(reason).split())}", file=sys.stderr)
    sys.exit(code)


# ------------------------------------------------------------------------ the files of a run folder

CHECKPOINT = {"arguments", "classes", "lam", "digests", "log", "label_weights", "losses", "share",
              "unet", "qam", "optimiser", "schedule"}


def write_atomically(path, write):
    """Lets write(other) make a file beside `path`, then puts it in its place, so that a kill leaves
    the old file or the new one, never a part. BadInput where it cannot be written.
    """
    other = path.with_name(path.name + ".new")
    try:
        write(other)
        os.replace(other, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        other.unlink(missing_ok=True)
        reason = str(error).splitlines()[0][:80]
        raise data.BadInput(f"{path}: cannot be written ({reason}); "
                            "make room and start again (train.py: --resume)") from None


def write_json(path, content):
    """Writes `content` as readable JSON."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda other: other.write_text(text))


def write_csv(path, rows):
    """Writes dicts of the same keys as a CSV file with a header."""
    def write(other):
        with open(other, "w", newline="", encoding="utf-8", errors="replace") as file:
            table = csv.DictWriter(file, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    write_atomically(path, write)


def read_run(folder):
    """Settings and metrics of a finished run; BadInput where train.py did not write them."""
    try:
        settings = json.loads((folder / "config.json").read_text())["arguments"]
        metrics = json.loads((folder / "metrics.json").read_text())
        missing = {"data", "strategy", "noise", "band", "seed"} - set(settings)
        missing |= {"dice", "audit"} - set(metrics)
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        return settings, metrics
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise data.BadInput(f"{folder}: config.json or metrics.json is not of train.py, or damaged "
                            f"({error}); give a folder of runs alone") from None


def save_checkpoint(path, state):
    """Saves a dict with the keys of CHECKPOINT and whatever else a run needs to go on."""
    write_atomically(path, lambda other: torch.save(state, other))


def read_checkpoint(path):
    """The dict that `save_checkpoint` wrote, on the CPU; BadInput for any other file."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        missing = CHECKPOINT - set(checkpoint)
    except Exception as error:  # torch.load raises whatever its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise data.BadInput(f"{path}: no checkpoint of train.py, or damaged ({reason})") from None
    if missing:
        raise data.BadInput(f"{path}: no checkpoint of this version of train.py, it lacks "
                            f"{', '.join(sorted(missing))}; train again")
    return checkpoint


def load_states(checkpoint, parts, folder):
    """Brings {name: network, optimiser or schedule} to their states in the checkpoint of a run."""
    try:
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
    except (RuntimeError, ValueError, KeyError):
        raise data.BadInput(f"{folder}: networks of another version of pal.py; "
                            "train again") from None


def case_digests(*parts):
    """{name: digest of image and labels} of all Cases in `parts`, as a checkpoint keeps them."""
    digests = {}
    for cases in parts:
        digests.update(zip(cases.names, data.digests(cases)))
    return digests


def check_unchanged(checkpoint, *parts):
    """BadInput, naming up to ten cases, where the Cases in `parts` are not those of the run."""
    before, now = checkpoint["digests"], case_digests(*parts)
    changed = sorted(before.keys() ^ now.keys())  # new or gone; then the split is another, too
    if not changed:
        changed = sorted(name for name in now if now[name] != before[name])
    if changed:
        more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        raise data.BadInput(
            f"{checkpoint['arguments']['data']} is no longer what the run was trained on (changed, "
            f"new or gone: {', '.join(changed[:10])}{more}); train again with another --out, or "
            "give the folder to eval.py as --data")


# ----------------------------------------------------------------------------- networks on pictures

def build_networks(settings, classes, device):
    """The U-Net and the QAM of a run, on `device`, drawn from its seed; BadInput for a size that
    they cannot take.
    """
    torch.manual_seed(settings["seed"])
    unet, qam = pal.UNet(len(classes), settings["width"]), pal.QAM(len(classes))
    try:
        pal.check_size((settings["size"], settings["size"]), max(unet.multiple, qam.multiple))
    except ValueError as error:
        raise data.BadInput(f"--size: {error}") from None
    return [network.to(device, memory_format=torch.channels_last) for network in (unet, qam)]


@torch.no_grad()
def predict(unet, images):
    """Images (N, H, W) uint8 -> bool masks (N, classes, H, W) on the same device: probability above
    one half.
    """
    unet.eval()
    return torch.cat([unet(pal.standardise(chunk)) > 0 for chunk in images.split(CHUNK)])


def predict_array(unet, images, device):
    """`predict` for NumPy arrays, through the device of the network."""
    return predict(unet, torch.from_numpy(images).to(device)).cpu().numpy()


def label_quality(logits, labels):
    """Label quality (cleanlab's softmin): logits, bool labels (N, classes, H, W) -> (N,), 1: good.

    A weighted mean of each pixel's probability of its label; improbable pixels weigh most.
    """
    given = torch.where(labels, logits.sigmoid(), (-logits).sigmoid()).flatten(1)
    return (given * torch.softmax((1 - given) / 0.1, dim=1)).sum(dim=1)


@torch.no_grad()
def score_labels(unet, qam, images, labels):
    """Images (N, H, W), labels (N, classes, H, W) -> float64 arrays (N,): raw scores t, losses L_i,
    label qualities. Batch normalisation uses its running statistics here, so that a score does not
    depend on the labels beside it.
    """
    unet.eval()
    qam.eval()
    figures = []
    for image, label in zip(images.split(CHUNK), labels.split(CHUNK)):
        inputs = pal.standardise(image)
        logits = unet(inputs)
        losses = pal.sample_losses(logits, label).mean(dim=1)
        columns = [qam(inputs, label), losses, label_quality(logits, label)]
        figures.append(torch.stack(columns).cpu().double())
    return torch.cat(figures, dim=1).numpy()


# ------------------------------------------------------------------------------------------ figures

def auroc(values, positive):
    """The chance that a positive has the larger value of a pair, ties counted half; NaN where all
    are of one kind.
    """
    positive = np.asarray(positive, dtype=bool)
    ours, others = np.asarray(values)[positive], np.sort(np.asarray(values)[~positive])
    if not len(ours) or not len(others):
        return float("nan")
    wins = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return float(wins.mean() / 2 / len(others))


def mean_dice(found, truth, classes):
    """Mean Dice per class, and their average, of predicted and true masks (N, classes, H, W) bool.

    Averaged over images; the paper does not say how.
    """
    per_class = pal.dice(found, truth).cpu().double().mean(dim=0).tolist()
    return {**dict(zip(classes, per_class)), "average": float(np.mean(per_class))}


def ranks(values):
    """Numbers (N,) -> ranks from 0 (smallest) to 1 (largest); equal numbers get their mean rank."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, "left")
    last = np.searchsorted(ordered, values, "right") - 1
    return (first + last) / 2 / max(1, len(values) - 1)


def combined_ranking(scores, losses, quality):
    """The one ranking of labels, arrays (N,) -> (N,): 0 for the best label, 1 for the worst.

    The mean of the ranks by low score, high loss and low quality. Equal scores (baseline, oracle)
    tell nothing and are left out.
    """
    rankings = [ranks(losses), ranks(-quality)]
    if np.ptp(scores) > 0:
        rankings.append(ranks(-scores))
    return np.mean(rankings, axis=0)


def effective_sample_size(weights):
    """(sum w)^2 / sum w^2 of weights (N,): N if all are equal, 1 if one has all the weight."""
    return float(weights.sum() ** 2 / (weights ** 2).sum())


def label_rows(unet, qam, cases, device, lam, oracle=False):
    """A dict of numbers for each label of `cases`, the columns of labels.csv.

    weight: times N, from a softmax over all labels at once; lam: the bound of eq. (2), or None;
    oracle: equal weights for the clean labels, 0 for the others, as in its training.
    """
    images, labels = torch.from_numpy(cases.images), torch.from_numpy(cases.labels)
    scores, losses, quality = score_labels(unet, qam, images.to(device), labels.to(device))
    weights = pal.quality_weights(torch.from_numpy(scores), lam).numpy() * len(scores)
    if oracle:
        weights = ~cases.noisy / np.mean(~cases.noisy)
    columns = {"name": cases.names, "noisy": cases.noisy.astype(int).tolist(),
               "operation": cases.operation, "pixels": cases.pixels.tolist(),
               "score": scores.tolist(), "weight": weights.tolist(), "loss": losses.tolist(),
               "quality": quality.tolist(),
               "rank": combined_ranking(scores, losses, quality).tolist()}
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


# A ranking's name in the metrics -> its column in labels.csv, and where bad labels are in it.
RANKINGS = {"score": ("score", "low"), "loss": ("loss", "high"),
            "softmin": ("quality", "low"), "ranks": ("rank", "high")}


def share_among_worst(noisy, badness, count):
    """The share of noisy labels among the `count` worst of (N,), as expected where ties are drawn
    by lot.
    """
    limit = np.sort(badness)[-count]
    worse, tied = badness > limit, badness == limit
    found = noisy[worse].sum() + noisy[tied].mean() * (count - worse.sum())
    return float(found / count)


def detection_metrics(rows):
    """How well each ranking finds the noisy labels among `rows`; None where all are of one kind.

    Per ranking: AUROC, the share of noisy labels in the worst 10, and in the worst as many as are
    noisy (recall).
    """
    noisy = np.array([row["noisy"] for row in rows], dtype=bool)
    if noisy.all() or not noisy.any():
        return None
    share = float(noisy.mean())
    figures = {"random": {"auroc": 0.5, "precision_10": share, "recall": share}}
    for name, (column, bad_end) in RANKINGS.items():
        badness = np.array([row[column] for row in rows])
        if bad_end == "low":
            badness = -badness
        figures[name] = {"auroc": auroc(badness, noisy),
                         "precision_10": share_among_worst(noisy, badness, min(10, len(noisy))),
                         "recall": share_among_worst(noisy, badness, noisy.sum())}
    return figures


def evaluate(unet, qam, classes, training, test, device, lam, oracle=False):
    """Metrics of a trained run, and the rows of the training labels.

    Dice on the clean test labels; audits of the training labels, and of test labels that were
    corrupted alike but never trained on; lam, oracle: see `label_rows`.
    """
    rows = label_rows(unet, qam, training, device, lam, oracle)
    unseen = None
    if test.noisy.any():
        unseen = detection_metrics(label_rows(unet, qam, test, device, lam))
    found = torch.from_numpy(predict_array(unet, test.images, device))
    weights = np.array([row["weight"] for row in rows])
    metrics = {"dice": mean_dice(found, torch.from_numpy(test.clean), classes),
               "audit": {"training": detection_metrics(rows), "unseen": unseen},
               "effective_sample_size": effective_sample_size(weights), "lam": lam}
    return metrics, rows


# ----------------------------------------------------------------------------------------- warnings

ENOUGH_STEPS, ENOUGH_LABELS = 300, 60  # with fewer, scores were seen to lock onto bad labels


def warnings_of(settings, metrics, training, test, share=None):
    """What the figures of a run do not say by themselves: a list of lines, each with what to do.

    training, test: the Cases; share: the rejected share of the training labels,
    if known.
    """
    count = len(training.names)
    steps = settings["epochs"] * (count // min(settings["batch"], count))
    effective = metrics["effective_sample_size"]
    found = []
    if settings["noise"] == 0 and effective < count / 2:
        found.append(f"the weights rest on {effective:.0f} of {count} labels, although no noise "
                     "was added; compare with --strategy baseline, or lower --lam")
    if steps < ENOUGH_STEPS:
        found.append(f"only {steps} training steps; telling labels apart needs {ENOUGH_STEPS}: "
                     "choose more --epochs")
    if count < ENOUGH_LABELS:
        found.append(f"{count} training labels are too few to tell labels apart; use --strategy "
                     "baseline, and look at every label yourself")
    if share is not None and share > 0.4:
        found.append(f"{share:.0%} of the labels contradict the rest; the method follows "
                     "the larger consistent group: look at suspects.png before you believe it")
    return found + trivial_warnings(metrics["dice"], test.clean)


def trivial_dice(clean):
    """Masks (N, classes, H, W) bool -> (classes,): the mean Dice of a prediction that is foreground
    everywhere, or nowhere, whichever is better.
    """
    share = clean.mean(axis=(2, 3))
    everywhere = (2 * share / (1 + share)).mean(axis=0)
    nowhere = (share == 0).mean(axis=0)
    return np.maximum(everywhere, nowhere)


def trivial_warnings(dice, clean):
    """A line for each class whose test Dice is no better than that of the trivial prediction."""
    found = []
    for name, trivial in zip(list(dice)[:-1], trivial_dice(clean)):  # without the average
        if dice[name] <= trivial:
            found.append(f"Dice {dice[name]:.3f} of {name} is no better than foreground everywhere "
                         f"or nowhere ({trivial:.3f}); look at its labels, or raise --epochs")
    return found


def print_clean_differences(cases, clean_dice=0.99):
    """For --clean: how many given labels differ from the clean ones, and by how much.

    cases: of `data.load`, which marks labels whose Dice is below clean_dice as "given".
    """
    given, clean = torch.from_numpy(cases.labels), torch.from_numpy(cases.clean)
    dice = pal.dice(given, clean).amin(dim=1).numpy()  # of the worst class
    operation = np.array(cases.operation)
    noisy, other = operation == "given", (operation == "") & (dice < 1)
    print(f"--clean: {noisy.sum()} of {len(dice)} labels have a Dice below {clean_dice:g} with the "
          f"clean ones and count as noisy; {other.sum()} differ by less and count as clean")
    if noisy.any():
        worst = np.flatnonzero(noisy)[np.argmin(dice[noisy])]
        print(f"  Dice of the noisy ones: mean {dice[noisy].mean():.3f}, median "
              f"{np.median(dice[noisy]):.3f}, lowest {dice[worst]:.3f} ({cases.names[worst]})")


# ---------------------------------------------------------------------------------- results as text

def paper_row(settings, classes):
    """The paper's Dice of lungs, heart, clavicles, average; None if it has no such row."""
    if tuple(classes) != (*data.CLASSES, "average") or settings.get("clean"):
        return None
    if settings["noise"] == 0:
        return PAPER.get((0.0, "", settings["strategy"]))
    if settings.get("noise_kind", "erode-dilate") != "erode-dilate":
        return None
    return PAPER.get((settings["noise"], settings["band"], settings["strategy"]))


def print_dice(dice, paper=None):
    """Dice per class, and below it the paper's where given."""
    widths = [max(10, len(name)) for name in dice]
    print()
    print_row("Dice, test labels", [f"{name:>{width}s}" for name, width in zip(dice, widths)])
    print_row("this run", [f"{value:{width}.3f}" for value, width in zip(dice.values(), widths)])
    if paper:
        print_row("the paper (JSRT)", [f"{value:10.3f}" for value in paper])


def print_audit(where, figures):
    """How well each ranking finds the noisy labels; where: "training" or "unseen"."""
    print()
    titles = ["     AUROC", "  worst 10", " recall at as many as are noisy"]
    print_row(f"noisy labels found, {where}", titles)
    for name, row in figures.items():
        print_row(name, [f"{row[key]:10.3f}" for key in ("auroc", "precision_10", "recall")])


def print_row(title, cells):
    """One line of a table."""
    print(f"{title:29s} {' '.join(cells)}")


def print_results(settings, metrics):
    """The end of a run: Dice, beside the paper's where it has this row, audits, warnings."""
    print_dice(metrics["dice"], paper_row(settings, metrics["dice"]))
    for where, figures in metrics["audit"].items():  # labels trained on, and others
        if figures:
            print_audit(where, figures)
    print(f"\neffective sample size of the weights: {metrics['effective_sample_size']:.1f}")
    print_warnings(metrics.get("warnings", []))


def print_warnings(warnings):
    """One line each."""
    for warning in warnings:
        print(f"warning: {warning}")


# ------------------------------------------------------------------- many runs: a table and a chart

def read_runs(folder):
    """(settings, metrics) of all finished runs below `folder`; BadInput if they share no table."""
    runs = [read_run(path.parent) for path in sorted(Path(folder).rglob("metrics.json"))]
    if not runs:
        raise data.BadInput(f"{folder}: no finished run in it; give the folder of the run folders")
    if len({tuple(metrics["dice"]) for _, metrics in runs}) > 1:
        raise data.BadInput(f"{folder}: runs of different classes; give a folder of runs that can "
                            "share a table")
    for settings, _ in runs:
        settings.setdefault("noise_kind", "erode-dilate")
        if settings["noise"] == 0:  # then there is no band and no kind of it
            settings["band"] = settings["noise_kind"] = ""
    return runs


def varied_settings(runs):
    """The settings known to all runs that differ, other than noise, band, strategy and seed."""
    shared = set.intersection(*(set(settings) for settings, _ in runs))
    varied = []
    for name in sorted(shared - {"noise", "band", "strategy", "seed"}):
        if len({str(settings[name]) for settings, _ in runs} - {""}) > 1:
            varied.append(name)
    return varied


def sort_key(value):
    """Numbers by size, then texts."""
    if isinstance(value, (int, float)):
        return (0, value, "")
    return (1, 0, str(value))


def groups_of(runs, varied):
    """Lists of runs that differ in their seed alone, ordered by noise, band, kind, strategy."""
    groups = {}
    for settings, metrics in runs:
        values = [settings["noise"], settings["band"], settings["noise_kind"],
                  STRATEGIES.index(settings["strategy"]), *(settings[name] for name in varied)]
        key = tuple(sort_key(value) for value in values)
        groups.setdefault(key, []).append((settings, metrics))
    return [groups[key] for key in sorted(groups)]


def mean_and_spread(values):
    """"0.912 ± 0.003": mean and standard deviation of numbers; "-" where one is missing (None)."""
    values = list(values)
    if None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def found_by(group, ranking, part="training"):
    """The AUROC of a ranking in each run of a group: a list, None where it is not known."""
    values = []
    for _, metrics in group:
        audit = metrics["audit"][part] or {}
        values.append(audit.get(ranking, {}).get("auroc"))
    return values


def comparable_row(settings, classes):
    """`paper_row` for a table or a chart, where no word tells phantoms from radiographs."""
    return None if settings["data"].startswith("phantoms") else paper_row(settings, classes)


def table_row(group, varied, full):
    """The row of runs that differ in their seed alone: (title of a column, text) pairs."""
    settings, metrics = group[0]
    classes = list(metrics["dice"])
    paper = comparable_row(settings, classes)
    row = [("noise", str(settings["noise"])), ("band", settings["band"])]
    if "noise_kind" in varied:
        row.append(("kind", settings["noise_kind"]))
    row.append(("strategy", settings["strategy"]))
    if full:
        for c, name in enumerate(classes[:-1]):
            dice = mean_and_spread(metrics["dice"][name] for _, metrics in group)
            row.append((name, f"{dice} ({paper[c]:.3f})" if paper else dice))
    row += [("average", mean_and_spread(metrics["dice"]["average"] for _, metrics in group)),
            ("paper", f"{paper[-1]:.3f}" if paper else "-"),
            ("AUROC by score", mean_and_spread(found_by(group, "score"))),
            ("by loss", mean_and_spread(found_by(group, "loss"))),
            ("by mean rank", mean_and_spread(found_by(group, "ranks")))]
    if full:
        row += [("by softmin", mean_and_spread(found_by(group, "softmin"))),
                ("by score, unseen", mean_and_spread(found_by(group, "score", "unseen")))]
    seeds = sorted(settings["seed"] for settings, _ in group)
    row.append(("seeds", " ".join(map(str, seeds))))
    for name in varied:
        if name != "noise_kind":
            row.append((f"--{name.replace('_', '-')}", str(settings[name])))
    return row


def print_table(folder, full=False):
    """Markdown: a row per setting found below `folder`, mean ± standard deviation over seeds."""
    runs = read_runs(folder)
    varied = varied_settings(runs)
    rows = [table_row(group, varied, full) for group in groups_of(runs, varied)]
    print("| " + " | ".join(title for title, _ in rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(text for _, text in row) + " |")


def results_chart(folder, band="5-13"):
    """Average Dice over the share of labels eroded or dilated by `band`, as a picture: ours with
    standard deviations over seeds, the paper's dashed. Of runs that differ in other settings it
    draws the largest group that shares them.
    """
    runs = []
    for settings, metrics in read_runs(folder):
        if settings["band"] in ("", band) and settings["noise_kind"] in ("", "erode-dilate"):
            runs.append((settings, metrics))
    if not runs:
        raise data.BadInput(f"{folder}: no runs without noise or with a band of {band} to draw")
    varied, alike = varied_settings(runs), {}
    for settings, metrics in runs:
        others = str([settings[name] for name in varied])
        alike.setdefault(others, []).append((settings, metrics))
    drawn = max(alike.values(), key=len)
    if len(drawn) < len(runs):
        print(f"chart: {len(drawn)} of {len(runs)} runs, the most that differ in nothing else")
    has_row = any(comparable_row(settings, metrics["dice"]) for settings, metrics in drawn)
    papers = paper_curves(band) if has_row else {}
    title = f"{Path(drawn[0][0]['data']).name}, noise of {band} pixels"
    return draw_results(title, our_curves(drawn), papers)


def our_curves(runs):
    """{strategy: [(noise, mean average Dice, standard deviation over seeds)]}."""
    curves = {}
    for group in groups_of(runs, []):
        dice = [metrics["dice"]["average"] for _, metrics in group]
        spread = np.std(dice, ddof=1) if len(dice) > 1 else 0.0
        settings, _ = group[0]
        point = (settings["noise"], np.mean(dice), spread)
        curves.setdefault(settings["strategy"], []).append(point)
    return curves


def paper_curves(band):
    """The paper's {strategy: [(noise, average Dice)]} without noise and for a band."""
    curves = {}
    for (noise, paper_band, strategy), row in PAPER.items():
        if paper_band in ("", band):
            curves.setdefault(strategy, []).append((noise, row[-1]))
    return curves


def draw_results(title, ours, papers):
    """The chart of `results_chart` from its points, 700 pixels wide."""
    names = {"baseline": "baseline", "qam": "QAM", "qam+ocm": "QAM+OCM", "oracle": "oracle"}
    colours = {"baseline": NOISY, "qam": ORANGE, "qam+ocm": CLEAN, "oracle": GREEN}
    entries = [(names[strategy], colours[strategy], "line") for strategy in ours]
    entries += [(f"paper: {names[strategy]}", colours[strategy], "dashes") for strategy in papers]
    points = [point for curve in papers.values() for point in curve]
    for noise, mean, spread in (point for curve in ours.values() for point in curve):
        points += [(noise, mean - spread), (noise, mean + spread)]  # the ends of the error bar
    shares, dice = sorted({share for share, _ in points}), [value for _, value in points]
    panel = axes(title, entries, "share of noisy labels", "average Dice on clean test labels",
                 [(share, f"{share:.0%}") for share in shares], ticks(min(dice), max(dice), 5),
                 (-0.03, shares[-1] + 0.03), (700, 440))
    for strategy, curve in papers.items():
        noise, mean = zip(*curve)
        draw_curve(panel, noise, mean, colours[strategy], dashed=True)
    for strategy, curve in ours.items():
        noise, mean, spread = np.transpose(curve)
        draw_error_bars(panel, noise, mean, spread, colours[strategy])
        draw_curve(panel, noise, mean, colours[strategy])
        draw_dots(panel, noise, mean, colours[strategy])
    return finished(panel)


# ------------------------------------------------------------------------------------------- charts

class Panel(NamedTuple):
    """A chart in the making, at twice its final size: reducing it makes the edges smooth."""
    canvas: Image.Image
    box: tuple      # left, top, right, bottom of the panel, in pixels of `canvas`
    x_range: tuple  # the values at its left and right
    y_range: tuple  # the values at its bottom and top


def text_font(size):
    """Pillow's own font, which has no Greek letters; BadInput if Pillow has it in one size only."""
    try:
        return ImageFont.load_default(size=size)
    except TypeError:
        raise data.BadInput("drawing needs Pillow 10.1 or later: pip install -U pillow") from None


def fitted_font(text, width, size):
    """The font of `size`, or smaller where a line of `text` would be longer than `width` pixels."""
    font = text_font(size)
    longest = max(font.getlength(line) for line in text.split("\n"))
    if longest <= width:
        return font
    return text_font(max(6, int(size * width / longest)))


def text_block(text, width, size=14):
    """`text` (line breaks allowed) centred on a white strip `width` pixels wide, shrunk to fit."""
    lines = text.count("\n") + 1
    strip = Image.new("RGB", (width, (size + 5) * lines), WHITE)
    middle, font = (width / 2, strip.height / 2), fitted_font(text, width, size)
    ImageDraw.Draw(strip).multiline_text(middle, text, TEXT, font, anchor="mm", align="center")
    return strip


def ticks(low, high, count, smallest=0.0):
    """Round numbers (multiples of 1, 2 or 5 times a power of ten) around [low, high], in about
    `count` steps, none shorter than `smallest`: (value, text) pairs.
    """
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    steps = (power, 2 * power, 5 * power, 10 * power)
    step = max(smallest, min(steps, key=lambda step: abs(np.log(step / rough))))
    values = step * np.arange(np.floor(low / step + 1e-6), np.ceil(high / step - 1e-6) + 1)
    decimals = max(0, -int(np.floor(np.log10(step) + 1e-6)))
    return [(float(value), f"{value:.{decimals}f}") for value in values]


def legend(draw, entries, left, right, top, size):
    """Draws (label, colour, mark) entries in as many lines as they need; mark: line, dashes or dot.

    top: the middle of the first line; size: of the font. Returns the middle of the last line.
    """
    x, font = left, text_font(size)
    for label, colour, mark in entries:
        length = 2.1 * size + font.getlength(label)
        if x > left and x + length > right:
            x, top = left, top + 1.4 * size
        if mark == "dot":
            draw_dot(draw, x + 0.8 * size, top, 0.35 * size, colour)
        elif mark == "dashes":
            draw.line((x, top, x + 0.6 * size, top), colour, size // 5)
            draw.line((x + size, top, x + 1.6 * size, top), colour, size // 5)
        else:
            draw.line((x, top, x + 1.6 * size, top), colour, size // 5)
        draw.text((x + 2.1 * size, top), label, TEXT, font, anchor="lm")
        x += length + 1.3 * size
    return top


def draw_dot(draw, x, y, radius, colour):
    """A filled circle."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def axes(title, entries, x_label, y_label, x_ticks, y_ticks, x_range, size):
    """An empty chart of `size` (width, height), with title, legend, grid and axes -> Panel.

    A legend of several lines makes it higher. entries: as for `legend`. x_range bounds the panel,
    and so do the first and the last of y_ticks.
    """
    font = text_font(28)
    left = 80 + int(max(font.getlength(text) for _, text in y_ticks))
    right = 2 * size[0] - 40
    nowhere = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    more = int(legend(nowhere, entries, left, right, 0, 28))  # height, for a legend of many lines
    canvas = Image.new("RGB", (2 * size[0], 2 * size[1] + more), WHITE)
    draw, bottom = ImageDraw.Draw(canvas), canvas.height - 108
    draw.text((left, 48), title, TEXT, fitted_font(title, right - left, 36), anchor="lm")
    top = legend(draw, entries, left, right, 96, 28) + 48  # above the panel it hides no curve
    panel = Panel(canvas, (left, top, right, bottom), x_range, (y_ticks[0][0], y_ticks[-1][0]))
    for value, text in y_ticks:
        y = down(panel, value)
        draw.line((left, y, right, y), LINE, 2)
        draw.text((left - 16, y), text, TEXT, font, anchor="rm")
    for value, text in x_ticks:
        x = across(panel, value)
        draw.line((x, bottom, x, bottom + 10), AXIS, 2)
        draw.text((x, bottom + 18), text, TEXT, font, anchor="mt")
    draw.line((left, bottom, right, bottom), AXIS, 2)
    draw.text(((left + right) / 2, canvas.height - 20), x_label, TEXT, font, anchor="mb")
    canvas.paste(text_block(y_label, int(bottom - top), 28).rotate(90, expand=True), (8, int(top)))
    return panel


def across(panel, x):
    """Values on the horizontal axis -> pixels from the left of the canvas."""
    low, high = panel.x_range
    left, _, right, _ = panel.box
    return left + (np.asarray(x) - low) / (high - low) * (right - left)


def down(panel, y):
    """Values on the vertical axis -> pixels from the top of the canvas."""
    low, high = panel.y_range
    _, top, _, bottom = panel.box
    return bottom - (np.asarray(y) - low) / (high - low) * (bottom - top)


def pixels(panel, x, y):
    """Values (n,) and (n,) -> n pairs of pixels."""
    return list(zip(across(panel, x).tolist(), down(panel, y).tolist()))


def draw_curve(panel, x, y, colour, dashed=False):
    """A line through the points (x, y), in this order; a dot if there is only one."""
    draw, points = ImageDraw.Draw(panel.canvas), pixels(panel, x, y)
    if len(points) == 1:
        draw_dot(draw, *points[0], 7, colour)
    elif dashed:
        for dash in dashes(points):
            draw.line(dash, colour, 5)
    else:
        draw.line(points, colour, 5, joint="curve")


def dashes(points, length=18, gap=14):
    """Cuts a line through pixels into dashes: a list of pairs of points."""
    x, y = np.array(points).T
    way = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])  # from the start
    found = []
    for start in np.arange(0, way[-1], length + gap):
        both_ends = np.array([start, min(start + length, way[-1])])
        found.append(list(zip(np.interp(both_ends, way, x), np.interp(both_ends, way, y))))
    return found


def draw_band(panel, x, low, high, colour):
    """A pale band from the curve `low` to the curve `high`, both (n,) like x."""
    edge = pixels(panel, x, low) + pixels(panel, x[::-1], high[::-1])
    mask = Image.new("L", panel.canvas.size)
    ImageDraw.Draw(mask).polygon(edge, fill=48)
    panel.canvas.paste(colour, mask=mask)


def draw_error_bars(panel, x, y, spread, colour):
    """Vertical bars from y - spread to y + spread, with caps."""
    draw = ImageDraw.Draw(panel.canvas)
    lows, highs = pixels(panel, x, y - spread), pixels(panel, x, y + spread)
    for (middle, low), (_, high) in zip(lows, highs):
        draw.line((middle, low, middle, high), colour, 3)
        draw.line((middle - 8, low, middle + 8, low), colour, 3)
        draw.line((middle - 8, high, middle + 8, high), colour, 3)


def draw_dots(panel, x, y, colour, radius=7):
    """A dot at each point (x, y)."""
    draw = ImageDraw.Draw(panel.canvas)
    for x_pixel, y_pixel in pixels(panel, x, y):
        draw_dot(draw, x_pixel, y_pixel, radius, colour)


def finished(panel):
    """The chart as an RGB picture of its final size."""
    return panel.canvas.resize((panel.canvas.width // 2, panel.canvas.height // 2), Image.LANCZOS)


def line_chart(title, curves, x_label, y_label, size=(640, 420), y_range=(), lowest=-np.inf):
    """Curves over the epochs 1..E as an RGB picture of `size` (width, height). NaNs are left out.

    curves: (label, y (E,), colour) or (label, y (E,), colour, spread (E,)), the latter with a pale
    band y +- spread, cut at `lowest`. y_range: values that the vertical axis shows at least.
    """
    entries, drawn, values = [], [], list(y_range)
    for label, y, colour, *spread in curves:
        y = np.asarray(y, float)
        known = np.isfinite(y)
        width = np.nan_to_num(spread[0])[known] if spread else np.zeros(known.sum())
        values += [*np.maximum(y[known] - width, lowest), *(y[known] + width)]
        entries.append((label, colour, "line"))
        drawn.append((np.flatnonzero(known) + 1, y[known], width, colour))
    last = max(2, max(len(y) for _, y, *_ in curves))
    x_ticks = [(1, "1")] + [(e, text) for e, text in ticks(1, last, 6, smallest=1) if 1 < e <= last]
    y_ticks = ticks(min(values, default=0), max(values, default=1), 5)
    panel = axes(title, entries, x_label, y_label, x_ticks, y_ticks, (1, last), size)
    for x, y, width, colour in drawn:  # all bands first, so that none hides another curve's line
        if width.any():
            draw_band(panel, x, np.maximum(y - width, lowest), y + width, colour)
    for x, y, width, colour in drawn:
        if len(x):
            draw_curve(panel, x, y, colour)
    return finished(panel)


def scatter_chart(title, groups, x_label, y_label, lines=(), size=(560, 360)):
    """Dots and lines, each (label, x, y, colour), as an RGB picture of `size` (width, height)."""
    entries = [(label, colour, "line") for label, _, _, colour in lines]
    entries += [(label, colour, "dot") for label, _, _, colour in groups]
    every_x = np.concatenate([x for _, x, _, _ in (*lines, *groups)])
    every_y = np.concatenate([y for _, _, y, _ in (*lines, *groups)])
    x_ticks = ticks(every_x.min(), every_x.max(), 6)
    y_ticks = ticks(every_y.min(), every_y.max(), 5)
    x_range = (x_ticks[0][0], x_ticks[-1][0])
    panel = axes(title, entries, x_label, y_label, x_ticks, y_ticks, x_range, size)
    for _, x, y, colour in lines:
        draw_curve(panel, x, y, colour)
    for _, x, y, colour in groups:
        draw_dots(panel, x, y, colour)
    return finished(panel)


def training_curves(log, classes):
    """The paper's Fig. 3 (Dice, loss) and Fig. 4 (weights by kind of label), from a run's log."""
    def column(name):
        return np.array([float(row[name]) for row in log])

    dice = []
    for k, name in enumerate((*classes, "average")):
        dice.append((name, column(f"dice_{name}"), COLOURS[k % len(COLOURS)]))
    losses = [("weighted, eq. (1)", column("loss"), GREEN),
              ("clean labels", column("loss_clean"), CLEAN)]
    if np.isfinite(column("loss_noisy")).any():
        losses.append(("noisy labels", column("loss_noisy"), NOISY))
    weights = []
    for kind in KINDS:
        if f"weight_{kind}_mean" in log[0]:
            spread = np.sqrt(column(f"weight_{kind}_variance"))
            weights.append((kind, column(f"weight_{kind}_mean"), KIND_COLOURS[kind], spread))
    charts = [line_chart("Dice on clean test labels", dice, "epoch", "Dice", y_range=(0, 1)),
              line_chart("Loss per training label", losses, "epoch", "loss"),
              line_chart("Weight x N, mean and standard deviation", weights, "epoch", "weight x N",
                         y_range=(0, 1), lowest=0)]
    if np.isfinite(column("auroc")).any():
        scores = [("AUROC", column("auroc"), PURPLE)]
        charts.append(line_chart("Scores, clean against noisy labels", scores, "epoch", "AUROC",
                                 y_range=(0, 1)))
    return stack(charts)


# --------------------------------------------------------------------------------------------- film

FRAMES = 60  # at most


def last_known(values):
    """Values (epochs, N), each NaN replaced by the value before it, where there is one."""
    values = np.array(values, float)
    for epoch in range(1, len(values)):
        unknown = np.isnan(values[epoch])
        values[epoch, unknown] = values[epoch - 1, unknown]
    return values


def weights_film(path, log_of_weights, operations):
    """Writes an animated GIF of the weights times N over the epochs, a dot a label.

    log_of_weights: (epochs, N) float, NaN for labels left out of an epoch: the last weight stays.
    operations: N times "" (clean) or a kind of noise; labels are sorted and coloured by it.
    """
    names = np.array(["clean" if operation == "" else operation for operation in operations])
    kinds = [kind for kind in KINDS if kind in names]
    order = np.concatenate([np.flatnonzero(names == kind) for kind in kinds])
    weights, names = last_known(log_of_weights)[:, order], names[order]
    entries = [(kind, KIND_COLOURS[kind], "dot") for kind in kinds]
    panel = axes("Weight of each label", entries, "training labels, sorted by kind", "weight x N",
                 ticks(0, len(names), 6), ticks(0, np.nanmax(weights), 5), (-2, len(names) + 1),
                 (560, 360))
    count = min(len(weights), FRAMES)
    epochs = np.linspace(0, len(weights) - 1, count).round().astype(int)
    frames = [film_frame(panel, names, weights[epoch], f"epoch {epoch + 1}") for epoch in epochs]
    frames += [frames[-1]] * 12  # the end stands still for a while
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=150, loop=0)


def film_frame(panel, names, weights, caption):
    """One frame of the film, an RGB array: a dot for each of the weights (N,) of kinds `names`."""
    frame = panel._replace(canvas=panel.canvas.copy())
    ImageDraw.Draw(frame.canvas).text((panel.box[2], 48), caption, TEXT, text_font(40), anchor="rm")
    for kind in KINDS:
        members = np.flatnonzero((names == kind) & np.isfinite(weights))
        draw_dots(frame, members, weights[members], KIND_COLOURS[kind])
    shades = np.rint(np.asarray(finished(frame)) / 17) * 17  # 16 a channel: a small file
    return shades.astype(np.uint8)


# ----------------------------------------------------------------------------------------- pictures

def boundary(mask):
    """The pixels of `mask` (H, W) with background among their 4 neighbours, as bool (H, W).

    The picture's border does not count as background: an organ cut off by it is not outlined there.
    """
    return mask & ~data.erode(mask, 1)


def overlay(image, outlines, scale=2):
    """One-pixel outlines on `image` (H, W) uint8 enlarged `scale` times, as an RGB picture.

    outlines: (mask (C, H, W) or (H, W) bool, colour), later ones on top.
    """
    height, width = image.shape
    large = (width * scale, height * scale)
    picture = np.array(Image.fromarray(image).resize(large, Image.BILINEAR).convert("RGB"))
    for mask, colour in outlines:
        for organ in np.reshape(mask, (-1, height, width)):  # so touching organs keep their edges
            # Bilinear and cut at one half: smoother than nearest, and a single pixel survives.
            smooth = Image.fromarray(organ.astype(np.uint8) * 255).resize(large, Image.BILINEAR)
            picture[boundary(np.asarray(smooth) > 127)] = colour
    return Image.fromarray(picture)


def class_outlines(label):
    """Outlines for `overlay` of a label (classes, H, W): one colour a class."""
    return [(mask, OUTLINES[c % len(OUTLINES)]) for c, mask in enumerate(label)]


def class_entries(classes, what):
    """Legend entries of `class_outlines`; `what` is drawn: "label" or "prediction"."""
    if len(classes) == 1:
        return [(what, OUTLINES[0], "line")]
    return [(f"{what}: {name}", OUTLINES[c % len(OUTLINES)], "line")
            for c, name in enumerate(classes)]


def stack(images, columns=2, pad=0, border=0):
    """Pictures (charts, tiles) in a grid of so many columns, on white, `pad` pixels apart."""
    rows = [images[k:k + columns] for k in range(0, len(images), columns)]
    width = max(image.width for image in images)
    heights = [max(image.height for image in row) for row in rows]
    full_width = len(rows[0]) * (width + pad) - pad + 2 * border
    full_height = sum(heights) + (len(rows) - 1) * pad + 2 * border
    canvas, y = Image.new("RGB", (full_width, full_height), WHITE), border
    for row, height in zip(rows, heights):
        for c, image in enumerate(row):
            canvas.paste(image, (border + c * (width + pad), y))
        y += height + pad
    return canvas


def sheet(rows, titles, captions=None, pad=6):
    """Tiles in rows, a title above each column; captions, if any, below each row.

    rows: R lists of C pictures of one size; titles: C texts, captions: R texts, shrunk to fit.
    """
    width, columns = rows[0][0].width, len(titles)
    parts = [stack([text_block(title, width, 16) for title in titles], columns, pad)]
    for r, row in enumerate(rows):
        parts.append(stack(row, columns, pad))
        if captions:
            parts.append(text_block(captions[r], parts[0].width))
    return stack(parts, 1, pad, border=pad)


def gallery(tiles, captions, entries, columns=4, pad=6):
    """Tiles of one size in rows, a caption below each, and above them a legend of `entries`."""
    blocks = []
    for tile, caption in zip(tiles, captions):
        blocks.append(stack([tile, text_block(caption, tile.width)], 1))
    grid = stack(blocks, min(columns, len(blocks)), pad)
    strip = Image.new("RGB", (grid.width, 400), WHITE)
    bottom = legend(ImageDraw.Draw(strip), entries, 0, grid.width, 14, 16)
    strip = strip.crop((0, 0, grid.width, int(bottom) + 14))
    return stack([strip, grid], 1, border=pad)


def sample_sheet(unet, training, device):
    """As the paper's Fig. 1: image, clean label, given label, prediction; clean boundaries in red.

    Two labels of each kind of noise, four at most; the first four where none is known to be noisy.
    """
    operation, chosen = np.array(training.operation), []
    for kind in KINDS:
        chosen += np.flatnonzero(operation == kind)[:2].tolist()
    chosen = chosen[:4] or list(range(min(4, len(operation))))
    found = predict_array(unet, training.images[chosen], device)
    known = {"": "label as it is", "given": "differs from the clean label",
             "omit": "one class left out"}
    rows, captions = [], []
    for i, prediction in zip(chosen, found):
        image, clean = training.images[i], (training.clean[i], RED)
        rows.append([overlay(image, []), overlay(image, [clean]),
                     overlay(image, [(training.labels[i], YELLOW), clean]),
                     overlay(image, [(prediction, YELLOW), clean])])
        done = known.get(operation[i], f"{operation[i]} {training.pixels[i]} pixels")
        captions.append(f"{training.names[i]}: {done}")
    titles = ["image", "clean label", "given label (yellow)", "prediction (yellow)"]
    return sheet(rows, titles, captions)


def suspect_sheet(unet, cases, classes, rows, chosen, device):
    """The labels `chosen` (indices of `cases` and `rows`), four in a row: one colour a class, over
    the network's own boundary in blue.
    """
    found = predict_array(unet, cases.images[chosen], device)
    tiles, captions = [], []
    for place, (i, prediction) in enumerate(zip(chosen, found), start=1):
        outlines = [(prediction, SKY), *class_outlines(cases.labels[i])]
        tiles.append(overlay(cases.images[i], outlines))
        row = rows[i]
        caption = (f"{place}. {row['name']}\n"
                   f"score {row['score']:.2f}, loss {row['loss']:.2f}")
        if row["noisy"]:
            caption += f"\n{row['operation']} {row['pixels'] or ''}"
        captions.append(caption)
    return gallery(tiles, captions, [*class_entries(classes, "label"), ("network", SKY, "line")])


def write_report(out, unet, classes, training, rows, log, device):
    """Writes labels.csv, suspects.csv (worst first) and pictures; curves.png if there is a log."""
    write_csv(out / "labels.csv", rows)
    suspects = sorted(range(len(rows)), key=lambda i: -rows[i]["rank"])
    write_csv(out / "suspects.csv", [{"place": k + 1, **rows[i]} for k, i in enumerate(suspects)])
    suspect_sheet(unet, training, classes, rows, suspects[:12], device).save(out / "suspects.png")
    sample_sheet(unet, training, device).save(out / "samples.png")
    if log:
        curves = training_curves(log, classes)  # the last file: with it a run is finished
        write_atomically(out / "curves.png", lambda other: curves.save(other, "PNG"))


def write_predictions(out, names, images, found, classes):
    """Writes predicted masks (N, classes, H, W) as PNG of 0 and 255, a folder a class, and
    predictions.png, the first twelve.
    """
    for c, folder in enumerate(classes):
        for name, mask in zip(names, found[:, c]):
            path = out / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path, mask.astype(np.uint8) * 255)
    tiles = [overlay(image, class_outlines(mask)) for image, mask in zip(images[:12], found)]
    gallery(tiles, names[:12], class_entries(classes, "prediction")).save(out / "predictions.png")


# ------------------------------------------------------------------------------------- command line

def open_run(folder, device):
    """The checkpoint of a run folder and its two networks, on `device`."""
    if not folder:
        raise data.BadInput("no run folder is given; give one of train.py, such as runs/...")
    if not (folder / "checkpoint.pt").is_file():
        raise data.BadInput(f"{folder}: found no checkpoint.pt; give a run folder of train.py")
    checkpoint = read_checkpoint(folder / "checkpoint.pt")
    unet, qam = build_networks(checkpoint["arguments"], checkpoint["classes"], device)
    load_states(checkpoint, {"unet": unet, "qam": qam}, folder)
    return checkpoint, unet, qam


def check_classes(found, classes, run):
    """BadInput where the data have other classes than the run."""
    if tuple(found) != tuple(classes):
        raise data.BadInput(f"the data have {', '.join(found)}; {run} was trained on "
                            f"{', '.join(classes)}; give data with these classes, or train anew")


def evaluate_run(run, device):
    """The figures and pictures of a run again, from its checkpoint and its data."""
    checkpoint, unet, qam = open_run(run, device)
    settings, classes = checkpoint["arguments"], checkpoint["classes"]
    found, training, test = data.load(**{name: settings[name] for name in data.LOAD})
    check_classes(found, classes, run)
    check_unchanged(checkpoint, training, test)
    last = checkpoint["log"][-1]
    metrics, rows = evaluate(unet, qam, classes, training, test, device, last["lam"],
                             settings["strategy"] == "oracle")
    metrics["warnings"] = warnings_of(settings, metrics, training, test, checkpoint["share"])
    write_report(run, unet, classes, training, rows, checkpoint["log"], device)
    print_results(settings, metrics)
    print(f"\nlabels.csv, suspects.csv (the worst label first) and pictures are in {run}")


def source_of(folder):
    """A data folder's full path, links followed; "phantoms" and "phantoms:N" as they are."""
    if str(folder).partition(":")[0] == "phantoms":
        return str(folder)
    return str(Path(folder).resolve())


def folder_for(run, folder):
    """Where the figures of a run on a data folder go; BadInput where those of another one are."""
    out = run / f"on-{Path(folder).absolute().name.replace(':', '')}"
    if (out / "source.txt").exists():
        before = (out / "source.txt").read_text(encoding="utf-8", errors="surrogateescape")
        if before != source_of(folder):
            raise data.BadInput(f"{out} is of {before}; move it away first")
    return out


def make_folder(out, folder):
    """Makes the folder that `folder_for` named; source.txt in it tells which data it is of."""
    out.mkdir(exist_ok=True)
    (out / "source.txt").write_text(source_of(folder), encoding="utf-8", errors="surrogateescape")


def evaluate_folder(run, folder, reading, device):
    """The networks of a run on all images of a folder: Dice and suspects, or predicted masks where
    there are no labels. All is written below the run folder.
    """
    checkpoint, unet, qam = open_run(run, device)
    size, classes = checkpoint["arguments"]["size"], checkpoint["classes"]
    out = folder_for(run, folder)
    if not data.has_labels(folder, **reading):
        names, images = data.load_images(folder, size, **reading)
        make_folder(out, folder)
        write_predictions(out, names, images, predict_array(unet, images, device), classes)
        print(f"no labels; predictions.png and the predicted masks, a folder a class, are in {out}")
        return
    found, cases = data.load_all(folder, size, **reading)
    check_classes(found, classes, run)
    make_folder(out, folder)
    lam = checkpoint["log"][-1]["lam"]
    metrics, rows = evaluate(unet, qam, classes, cases, cases, device, lam)
    write_report(out, unet, classes, cases, rows, [], device)
    print_dice(metrics["dice"])
    print_warnings(trivial_warnings(metrics["dice"], cases.clean))
    print(f"\nlabels.csv, suspects.csv (the worst label first) and pictures are in {out}")


def main(argv=None):
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = usage_error
    add = parser.add_argument
    add("run", type=Path, nargs="?", help="a run folder of train.py")
    add("--table", metavar="RUNS", help="print one table of all finished runs below this folder")
    add("--full", action="store_true", help="with --table: more columns")
    add("--chart", metavar="FILE", help="with --table: draw Dice over the share of noisy labels")
    data.add_options(parser)
    parser.set_defaults(data=None)  # with --data that folder is evaluated, not the data of the run
    options = parser.parse_args(argv)
    reading = {name: getattr(options, name) for name in data.READING}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (options.full or options.chart) and not options.table:
        raise data.BadInput("--full and --chart go with --table")
    if options.table and (options.run or options.data is not None):
        raise data.BadInput("--table goes without a run and without --data")
    if options.table:
        print_table(options.table, options.full)
        if options.chart:
            results_chart(options.table).save(options.chart, "PNG")
    elif options.data is not None:
        evaluate_folder(options.run, options.data, reading, device)
    elif any(value != parser.get_default(name) for name, value in reading.items()):
        raise data.BadInput("options that say how to read a folder go with --data; "
                            "a run keeps its own")
    else:
        evaluate_run(options.run, device)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on run_main reports it
    run_main(main)
