"""Evaluate a run of train.py: Dice on clean test labels, how well the scores pick the clean training labels, pictures.

    python eval.py runs/phantoms-qam+ocm-0.5-5-13-seed0                 # the same figures, from checkpoint and data
    python eval.py runs/phantoms-qam+ocm-0.5-5-13-seed0 --data FOLDER   # the same network on other images
    python eval.py --table runs                                         # mean and spread over seeds, as Markdown
"""
import argparse
import csv
import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import data
import pal

TABLE_1 = {  # of the paper. (noise, band): Dice of lungs, heart, clavicles, average by baseline, by QAM, by QAM+OCM
    (0.00, ""): ((.943, .941, .862, .915), (.939, .923, .831, .898), (.941, .940, .852, .911)),
    (0.25, "1-8"): ((.868, .888, .538, .765), (.925, .926, .748, .866), (.936, .925, .823, .895)),
    (0.50, "1-8"): ((.873, .884, .539, .765), (.922, .925, .726, .857), (.936, .929, .828, .898)),
    (0.75, "1-8"): ((.820, .828, .512, .720), (.898, .825, .536, .753), (.937, .939, .809, .895)),
    (0.25, "5-13"): ((.865, .857, .422, .715), (.893, .835, .615, .781), (.935, .935, .801, .890)),
    (0.50, "5-13"): ((.755, .807, .393, .652), (.828, .853, .491, .714), (.942, .942, .853, .912)),
    (0.75, "5-13"): ((.745, .738, .381, .621), (.770, .772, .366, .636), (.938, .937, .801, .892))}
PAPER = {(*key, name): row for key, rows in TABLE_1.items() for name, row in zip(("baseline", "qam", "qam+ocm"), rows)}
CHUNK = 32  # pictures evaluated at once
# Okabe and Ito's palette: its colours stay distinct under the common kinds of colour blindness.
CLEAN, NOISY, GREEN, PURPLE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)
ORANGE, SKY, RED, YELLOW = (230, 159, 0), (86, 180, 233), (255, 48, 48), (255, 215, 0)  # last two: for outlines
TEXT, AXIS, LINE, WHITE = (40, 40, 40), (120, 120, 120), (228, 228, 228), (255, 255, 255)


# ------------------------------------------------------------------------------------------------ networks on pictures

def network_input(images):
    """Images (N, H, W) uint8 -> (N, 1, H, W) float, each of mean 0 and standard deviation 1."""
    images = images[:, None].float()
    deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    return ((images - mean) / (deviation + 1e-6)).contiguous(memory_format=torch.channels_last)


def build(arguments, classes, device):
    """The U-Net and the QAM of a run, on `device`, drawn from its seed; BadInput for a size that they cannot take."""
    torch.manual_seed(arguments["seed"])
    networks = pal.UNet(len(classes), arguments["width"]), pal.QAM(len(classes))
    try:
        pal.check_size([arguments["size"]] * 2, max(network.multiple for network in networks))
    except ValueError as error:
        raise data.BadInput(f"--size: {error}") from None
    return [network.to(device, memory_format=torch.channels_last) for network in networks]


@torch.no_grad()
def predict(unet, images):
    """Images (N, H, W) uint8 -> bool masks (N, classes, H, W) on the same device: probability above one half."""
    unet.eval()
    return torch.cat([unet(network_input(chunk)) > 0 for chunk in images.split(CHUNK)])


@torch.no_grad()
def score_labels(unet, qam, images, labels):
    """Images (N, H, W), labels (N, classes, H, W) -> float64 arrays (N,): raw scores t, losses L_i, label qualities.

    Batch normalisation uses its running statistics here, so a score does not depend on the labels beside it.
    """
    unet.eval(), qam.eval()
    figures = []
    for image, label in zip(images.split(CHUNK), labels.split(CHUNK)):
        inputs = network_input(image)
        logits = unet(inputs)
        losses = pal.sample_losses(logits, label).mean(dim=1)
        figures.append(torch.stack([qam(inputs, label), losses, label_quality(logits, label)]).cpu().double())
    return torch.cat(figures, dim=1).numpy()


# ------------------------------------------------------------------------------------------------------------ figures

def auroc(values, positive):
    """The chance that a positive has the larger value of a pair, ties counted half; NaN where all are of one kind."""
    positive = np.asarray(positive, dtype=bool)
    ours, others = np.asarray(values)[positive], np.sort(np.asarray(values)[~positive])
    if not len(ours) or not len(others):
        return float("nan")
    wins = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return float(wins.mean() / 2 / len(others))


def label_quality(logits, labels):
    """cleanlab's softmin label quality: logits, bool labels (N, classes, H, W) -> (N,), near 1 for good labels.

    The mean of the given label's probability over pixels, in which pixels of low probability count most.
    """
    given = torch.where(labels, logits.sigmoid(), (-logits).sigmoid()).flatten(1)
    return (given * torch.softmax((1 - given) / 0.1, dim=1)).sum(dim=1)


def dice_figures(found, truth, classes):
    """Mean Dice per class, and their average, of predicted and true masks, both bool (N, classes, H, W) tensors."""
    per_class = pal.dice(found, truth).cpu().double().mean(dim=0).tolist()
    return {**dict(zip(classes, per_class)), "average": float(np.mean(per_class))}


def audit_figures(rows):
    """How well low scores find the noisy labels among `rows`, beside three rivals; None where all are of one kind.

    Per ranking: AUROC, the share of noisy labels in the worst 10, and in the worst as many as are noisy (recall).
    """
    noisy = np.array([row["noisy"] for row in rows], dtype=bool)
    if noisy.all() or not noisy.any():
        return None
    figures = {"random": {"auroc": 0.5, "precision_10": float(noisy.mean()), "recall": float(noisy.mean())}}
    for name, column, sign in (("score", "score", -1), ("loss", "loss", 1), ("softmin", "quality", -1)):
        values = sign * np.array([row[column] for row in rows])
        worst = noisy[np.argsort(-values, kind="stable")]
        figures[name] = {"auroc": auroc(values, noisy), "precision_10": float(worst[:10].mean()),
                         "recall": float(worst[:noisy.sum()].mean())}
    return figures


def pick_figures(rows):
    """How clean a pick by score is: as many labels as are clean, the best-scored; its AUROC, and that of the loss."""
    noisy, scores, losses = (np.array([row[name] for row in rows]) for name in ("noisy", "score", "loss"))
    clean = noisy == 0
    if clean.all() or not clean.any():
        return dict.fromkeys(("auroc", "precision", "random_precision", "loss_auroc"))
    picked = np.argsort(-scores, kind="stable")[:clean.sum()]
    return {"auroc": auroc(scores, clean), "precision": float(clean[picked].mean()),
            "random_precision": float(clean.mean()), "loss_auroc": auroc(-losses, clean)}


def label_rows(unet, qam, cases, device, lam):
    """A dict of figures for each label of `cases`; weights are times N, and as if all labels were one mini-batch."""
    images, labels = (torch.from_numpy(array).to(device) for array in (cases.images, cases.labels))
    scores, losses, quality = score_labels(unet, qam, images, labels)
    weights = pal.quality_weights(torch.from_numpy(scores), lam).numpy() * len(scores)
    columns = {"name": cases.names, "noisy": cases.noisy.astype(int).tolist(), "operation": cases.operation,
               "pixels": cases.pixels.tolist(), "score": scores.tolist(), "weight": weights.tolist(),
               "loss": losses.tolist(), "quality": quality.tolist()}
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def evaluate(unet, qam, classes, training, test, device, lam):
    """Figures of a trained run: Dice on the clean test labels, pick and audit of the training labels, and the audit of
    test labels which were corrupted alike but never trained on. Returns them and the rows of the training labels.
    """
    rows = label_rows(unet, qam, training, device, lam)
    found = predict(unet, torch.from_numpy(test.images).to(device)).cpu()
    unseen = label_rows(unet, qam, test, device, lam) if test.noisy.any() else []
    return {"dice": dice_figures(found, torch.from_numpy(test.clean), classes), "pick": pick_figures(rows),
            "audit": {"training": audit_figures(rows), "unseen": audit_figures(unseen)}}, rows


def write_report(out, unet, classes, training, rows, log, device):
    """Writes labels.csv, suspects.csv (worst first) and the pictures of a run, curves.png only where there is a log."""
    write_csv(out / "labels.csv", rows)
    suspects = sorted(range(len(rows)), key=lambda i: rows[i]["score"])
    write_csv(out / "suspects.csv", [{"rank": k + 1, **rows[i]} for k, i in enumerate(suspects)])
    suspect_sheet(unet, training, rows, suspects[:12], device).save(out / "suspects.png")
    sample_sheet(unet, training, device).save(out / "samples.png")
    if log:
        training_curves(log, classes).save(out / "curves.png")


def write_csv(path, rows):
    """Writes dicts of the same keys as a CSV file with a header."""
    with open(path, "w", newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def paper_row(arguments, classes):
    """The paper's Dice for these settings: lungs, heart, clavicles, average; None where it has no such row."""
    noise, kind = arguments["noise"], arguments.get("noise_kind", "erode-dilate")
    row = PAPER.get((noise, arguments["band"] if noise else "", arguments["strategy"]))
    alike = tuple(classes) == (*data.CLASSES, "average") and not arguments.get("clean")
    return row if alike and (kind == "erode-dilate" or not noise) else None


def print_results(arguments, metrics):
    """The tables at the end of a run: Dice here, in the paper where it has this row, the audit."""
    dice = metrics["dice"]
    paper = paper_row(arguments, dice)
    print(f"\n{'Dice, test labels':26s}" + "".join(f" {name:>10s}" for name in dice))
    print(f"{'this run':26s}" + "".join(f" {dice[name]:{max(10, len(name))}.3f}" for name in dice))
    if paper:
        print(f"{'the paper (JSRT)':26s}" + "".join(f"{value:11.3f}" for value in paper))
    for where, figures in metrics["audit"].items():  # labels trained on, and others
        if figures:
            print(f"\n{'noisy labels found, ' + where:33s}      AUROC  worst 10  worst as many as noisy")
            for name, row in figures.items():
                print(f"{name:33s}" + "".join(f"{row[key]:11.3f}" for key in ("auroc", "precision_10", "recall")))


def read_run(folder):
    """What a finished run folder says of itself: its arguments and its metrics."""
    try:
        config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
        return config["arguments"], metrics
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise data.BadInput(f"{folder}: config.json or metrics.json is not of train.py, or damaged ({error}); give a "
                            "folder of runs alone") from None


def read_checkpoint(path, device):
    """The checkpoint of a run; BadInput unless train.py wrote it whole."""
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        missing = {"arguments", "classes", "names", "log", "unet", "qam", "optimiser", "schedule"} - set(checkpoint)
    except Exception as error:  # torch.load raises whatever its parts raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise data.BadInput(f"{path}: no checkpoint of train.py, or a damaged one ({reason})") from None
    if missing:
        raise data.BadInput(f"{path}: no checkpoint of train.py, it lacks {', '.join(sorted(missing))}")
    return checkpoint


def print_table(folder):
    """Markdown: a row per setting found below `folder`, mean ± standard deviation over seeds (the paper's Dice)."""
    groups, keys = {}, ("data", "noise", "band", "strategy")
    runs = [read_run(path.parent) for path in sorted(Path(folder).rglob("metrics.json"))]
    shared = set.intersection(*(set(arguments) for arguments, _ in runs)) if runs else set()
    varied = sorted(name for name in shared - {*keys, "seed"} if len({str(run[0][name]) for run in runs}) > 1)
    if len({tuple(metrics["dice"]) for _, metrics in runs}) > 1:
        raise data.BadInput(f"{folder}: runs of different classes; give a folder of runs that can share a table")
    for arguments, metrics in runs:
        if arguments["noise"] == 0:
            arguments["band"] = ""
        key = [arguments.get(name) for name in (*keys, *varied)]
        key = tuple(value if isinstance(value, (int, float)) else str(value) for value in key)
        groups.setdefault(key, []).append((arguments, metrics))
    if not groups:
        raise data.BadInput(f"{folder}: no finished run in it; give the folder that holds the run folders")
    classes = list(runs[0][1]["dice"])
    rankings = ("score", "loss", "softmin")
    titles = [*keys, *varied, *classes, *(f"AUROC by {name}" for name in rankings), "by score, unseen", "seeds"]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    for key in sorted(groups, key=lambda values: [(isinstance(value, str), value) for value in values]):
        members = groups[key]
        paper = key[0].partition(":")[0] != "phantoms" and paper_row(members[0][0], classes) or [None] * len(classes)
        cells = [mean_and_spread(metrics["dice"][name] for _, metrics in members)
                 + (f" ({reference:.3f})" if reference else "") for name, reference in zip(classes, paper)]
        for part, name in [*(("training", name) for name in rankings), ("unseen", "score")]:
            audits = [metrics["audit"][part] for _, metrics in members]
            cells.append(mean_and_spread(audit and audit[name]["auroc"] for audit in audits))
        cells.append(" ".join(map(str, sorted(arguments["seed"] for arguments, _ in members))))
        print("| " + " | ".join([*map(str, key), *cells]) + " |")


def mean_and_spread(values):
    """"0.912 ± 0.003": mean and standard deviation of numbers; "-" where one is missing."""
    values = list(values)
    return "-" if None in values else f"{np.mean(values):.3f}" + (
        f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


# ----------------------------------------------------------------------------------------------------------- pictures

def training_curves(log, classes):
    """The paper's Fig. 3 (Dice, loss) and Fig. 4 (weights of clean and noisy labels) for a run, from its log's rows."""
    def column(name):
        return np.array([float(row[name]) for row in log])

    colours = [CLEAN, NOISY, GREEN, PURPLE, ORANGE, SKY]
    dice = [(name, column(f"dice_{name}"), colours[k % len(colours)])
            for k, name in enumerate((*classes, "average"))]
    kinds = (("clean", CLEAN), ("noisy", NOISY))
    losses = [(f"{kind} labels", column(f"loss_{kind}"), colour) for kind, colour in kinds]
    names = [name[len("weight_"):-len("_mean")] for name in log[0] if re.fullmatch("weight_.*_mean", name)]
    apart = [name for name in names if name != "noisy"]  # clean, and each kind of noise
    weights = [(name, column(f"weight_{name}_mean"), colour, np.sqrt(column(f"weight_{name}_variance")))
               for name, colour in zip(apart if len(apart) > 1 else names, colours)]
    return stack([
        line_chart("Dice on clean test labels", dice, "epoch", "Dice", y_range=(0, 1)),
        line_chart("Loss per training label", losses + [("weighted, eq. (1)", column("loss"), GREEN)], "epoch", "loss"),
        line_chart("Weight x N, mean and standard deviation", weights, "epoch", "weight x N",
                   y_range=(0, np.nanmax([y + spread for _, y, _, spread in weights]))),
        line_chart("Scores, clean against noisy labels", [("AUROC", column("auroc"), PURPLE)], "epoch", "AUROC",
                   y_range=(0, 1))])


def sample_sheet(unet, training, device):
    """As the paper's Fig. 1: image, clean label, given label, prediction; clean boundaries in red over the others.

    Shows two labels of each kind of noise, four at most, or the first four where none is known to be noisy.
    """
    operation = np.array(training.operation)
    chosen = [i for kind in sorted({*operation} - {""}) for i in np.flatnonzero(operation == kind)[:2]][::-1]
    chosen = (chosen or [*range(len(operation))])[:4]
    found = predict(unet, torch.from_numpy(training.images[chosen]).to(device)).cpu().numpy()
    rows, captions = [], []
    for i, prediction in zip(chosen, found):
        clean = (training.clean[i], RED)
        rows.append([overlay(training.images[i], outlines) for outlines in
                     ([], [clean], [(training.labels[i], YELLOW), clean], [(prediction, YELLOW), clean])])
        known = {"": "label as it is", "given": "differs from the clean label", "omit": "one class left out"}
        done = known.get(operation[i], f"{operation[i]} {training.pixels[i]} pixels")
        captions.append(f"{training.names[i]}: {done}")
    return sheet(rows, ["image", "clean label", "given label (yellow)", "prediction (yellow)"], captions)


def suspect_sheet(unet, cases, rows, chosen, device):
    """The labels `chosen` (indices), four in a row: the label in yellow, the network's own boundary in blue."""
    found = predict(unet, torch.from_numpy(cases.images[chosen]).to(device)).cpu().numpy()
    tiles, captions = [], []
    for rank, (i, prediction) in enumerate(zip(chosen, found)):
        tiles.append(overlay(cases.images[i], [(prediction, SKY), (cases.labels[i], YELLOW)]))
        truth = f", {rows[i]['operation']} {rows[i]['pixels'] or ''}" if rows[i]["noisy"] else ""
        captions.append(f"{rank + 1}. {rows[i]['name']}\nscore {rows[i]['score']:.2f}{truth}")
    return sheet([tiles[k:k + 4] for k in range(0, len(tiles), 4)],
                 ["yellow: label", "blue: network", "lowest scores first", ""],
                 [captions[k:k + 4] for k in range(0, len(tiles), 4)])


def fitted(text, width, size):
    """Pillow's own font (no Greek letters, no times sign), made smaller if a line of `text` exceeds `width` pixels."""
    longest = max(map(ImageFont.load_default(size=size).getlength, text.split("\n")))
    return ImageFont.load_default(size=size if longest <= width else max(6, int(size * width / longest)))


def text_block(text, width, size=14):
    """`text` (line breaks allowed) centred on a white strip `width` pixels wide, shrunk if it does not fit."""
    strip = Image.new("RGB", (width, (size + 5) * (text.count("\n") + 1)), WHITE)
    middle, font = (width / 2, strip.height / 2), fitted(text, width, size)
    ImageDraw.Draw(strip).multiline_text(middle, text, TEXT, font, anchor="mm", align="center")
    return strip


def ticks(low, high, count, smallest=0.0):
    """Round numbers (multiples of 1, 2 or 5 times a power of ten) around [low, high] in about `count` steps."""
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = max(smallest, power * min((1, 2, 5, 10), key=lambda m: abs(np.log(m * power / rough))))
    values = step * np.arange(np.floor(low / step + 1e-6), np.ceil(high / step - 1e-6) + 1)
    decimals = max(0, -int(np.floor(np.log10(step) + 1e-6)))
    return [(value, f"{value:.{decimals}f}") for value in values]


def line_chart(title, curves, x_label, y_label, size=(640, 420), y_range=None):
    """Curves over the epochs 1..E, as an RGB picture of `size` (width, height). NaNs are left out.

    curves: (label, y (E,), colour) or (label, y (E,), colour, spread (E,)), the latter with a pale band y +- spread.
    """
    curves = [(label, np.asarray(y, float), colour, np.nan_to_num(spread[0] if spread else np.zeros(len(y))))
              for label, y, colour, *spread in curves]
    values = np.concatenate([[*(y - spread), *(y + spread)] for _, y, _, spread in curves])
    values = values[np.isfinite(values)]
    y_ticks = ticks(*(y_range or (min(values, default=0), max(values, default=1))), 5)
    low, high = y_range or (y_ticks[0][0], y_ticks[-1][0])
    last = max(2, max(len(y) for _, y, _, _ in curves))
    width, height = 2 * size[0], 2 * size[1]  # drawn at twice the size, then reduced: smooth edges
    canvas, font = Image.new("RGB", (width, height), WHITE), ImageFont.load_default(size=28)
    draw = ImageDraw.Draw(canvas)
    left, right, bottom = 80 + int(max(font.getlength(text) for _, text in y_ticks)), width - 40, height - 108
    draw.text((left, 48), title, TEXT, fitted(title, right - left, 36), anchor="lm")
    x, top = left, 96  # the legend goes between title and panel, where it hides no curve
    for label, _, colour, _ in curves:
        length = 58 + font.getlength(label)
        if x > left and x + length > right:
            x, top = left, top + 40
        draw.line((x, top, x + 44, top), colour, 6)
        draw.text((x + 58, top), label, TEXT, font, anchor="lm")
        x += length + 36
    top += 48

    def place(epoch, y):
        y = (np.clip(y, low, high) - low) / (high - low)
        return left + (epoch - 1) / (last - 1) * (right - left), bottom - y * (bottom - top)

    known = [(np.flatnonzero(np.isfinite(y)), y[np.isfinite(y)], colour, spread[np.isfinite(y)])
             for _, y, colour, spread in curves if np.isfinite(y).any()]
    for epochs, y, colour, spread in known:  # all bands first, so that none hides another curve's line
        edge = [*zip(*place(epochs + 1, y - spread)), *zip(*place(epochs[::-1] + 1, (y + spread)[::-1]))]
        band = Image.new("L", canvas.size)
        ImageDraw.Draw(band).polygon(edge, fill=48 if spread.any() else 0)
        canvas.paste(colour, mask=band)
    for value, text in y_ticks:
        if low - 1e-9 <= value <= high + 1e-9:
            y = place(1, value)[1]
            draw.line((left, y, right, y), LINE, 2)
            draw.text((left - 16, y), text, TEXT, font, anchor="rm")
    for epoch, text in [(1, "1"), *((e, t) for e, t in ticks(1, last, 6, smallest=1) if 1 < e <= last)]:
        x = place(epoch, low)[0]
        draw.line((x, bottom, x, bottom + 10), AXIS, 2)
        draw.text((x, bottom + 18), text, TEXT, font, anchor="mt")
    draw.line((left, bottom, right, bottom), AXIS, 2)
    for epochs, y, colour, _ in known:
        points = [*zip(*place(epochs + 1, y))]
        draw.line(points, colour, 5, joint="curve")
        if len(points) == 1:  # of which a line would show nothing
            draw.circle(points[0], 7, colour)
    draw.text(((left + right) / 2, height - 20), x_label, TEXT, font, anchor="mb")
    canvas.paste(text_block(y_label, bottom - top, 28).rotate(90, expand=True), (8, top))
    return canvas.resize(size, Image.LANCZOS)


def boundary(mask):
    """The pixels of `mask` (H, W) with background among their 4 neighbours, as bool (H, W).

    The picture's border does not count as background: an organ cut off by the picture is not outlined there.
    """
    m = np.pad(np.asarray(mask, bool), 1, mode="edge")
    return m[1:-1, 1:-1] & ~(m[:-2, 1:-1] & m[2:, 1:-1] & m[1:-1, :-2] & m[1:-1, 2:])


def overlay(image, outlines, scale=2):
    """One-pixel outlines on `image` (H, W) uint8 enlarged `scale` times, as an RGB picture.

    outlines: (mask (C, H, W) or (H, W) bool, colour), later ones on top: first the label, then the correct boundary.
    """
    height, width = image.shape
    large = (width * scale, height * scale)
    picture = np.array(Image.fromarray(image).resize(large, Image.BILINEAR).convert("RGB"))
    for mask, colour in outlines:
        for organ in np.asarray(mask, bool).reshape(-1, height, width):  # one by one: touching organs keep their edges
            # Bilinear and cut at one half: smoother than nearest, and even a single mask pixel survives.
            smooth = Image.fromarray(organ.astype(np.uint8) * 255).resize(large, Image.BILINEAR)
            picture[boundary(np.asarray(smooth) > 127)] = colour
    return Image.fromarray(picture)


def stack(images, columns=None, pad=0, border=0):
    """Pictures (charts, tiles) side by side in a grid on white, near-square unless `columns` says otherwise."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = [images[k:k + columns] for k in range(0, len(images), columns)]
    width, heights = max(image.width for image in images), [max(image.height for image in row) for row in rows]
    canvas = Image.new("RGB", (len(rows[0]) * (width + pad) - pad + 2 * border,
                               sum(heights) + pad * (len(rows) - 1) + 2 * border), WHITE)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            canvas.paste(image, (border + c * (width + pad), border + sum(heights[:r]) + r * pad))
    return canvas


def sheet(rows, titles, captions=None, pad=6):
    """Tiles in rows, a title above each column; captions, if any, below each row (R texts) or tile (R lists of C).

    rows: R lists of C pictures of one size; titles: C texts, shrunk to the tiles' width like the captions.
    """
    width, columns = rows[0][0].width, len(titles)
    parts = [stack([text_block(title, width, 16) for title in titles], columns, pad)]
    for r, row in enumerate(rows):
        parts.append(stack(row, columns, pad))
        if captions and isinstance(captions[r], str):
            parts.append(text_block(captions[r], parts[0].width))
        elif captions:
            parts.append(stack([text_block(text, width) for text in captions[r]], columns, pad))
    return stack(parts, 1, pad, border=pad)


# ------------------------------------------------------------------------------------------------------- command line

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = data.refuse
    parser.add_argument("run", type=Path, nargs="?", help="a run folder of train.py")
    data.add_options(parser)
    parser.set_defaults(data=None)
    parser.add_argument("--table", metavar="RUNS", help="print one table of all finished runs below this folder")
    options = parser.parse_args(argv)
    if (options.masks or options.values) and not options.data:
        raise data.BadInput("--masks and --values go with --data; a run keeps its own")
    if options.table:
        return print_table(options.table)
    if not options.run or not (options.run / "checkpoint.pt").is_file():
        raise data.BadInput(f"{options.run or 'no run folder'}: found no checkpoint.pt; give a run folder of train.py")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = read_checkpoint(options.run / "checkpoint.pt", device)
    arguments, classes, log = checkpoint["arguments"], tuple(checkpoint["classes"]), checkpoint["log"]
    unet, qam = build(arguments, classes, device)
    try:
        unet.load_state_dict(checkpoint["unet"])
        qam.load_state_dict(checkpoint["qam"])
    except RuntimeError:
        raise data.BadInput(f"{options.run}: networks of another version of pal.py; train again") from None
    out = options.run
    if options.data:
        reading = {name: getattr(options, name) for name in data.READING}
        found, training = data.load_all(options.data, arguments["size"], **reading)
        test, log, out = training, [], options.run / f"on-{Path(options.data).absolute().name.replace(':', '')}"
        arguments = {**arguments, "noise": None}  # no row of the paper
    else:
        found, training, test = data.load(**{name: arguments[name] for name in data.LOAD})
        if training.names != checkpoint["names"]:
            raise data.BadInput(f"{arguments['data']} is no longer what {out} was trained on; give it as --data")
    if found != classes:
        raise data.BadInput(f"the data have {', '.join(found)}; {options.run} was trained on {', '.join(classes)}")
    out.mkdir(exist_ok=True)
    lam = arguments["lam"] if arguments["strategy"] == "qam+ocm" else None
    metrics, rows = evaluate(unet, qam, classes, training, test, device, lam)
    write_report(out, unet, classes, training, rows, log, device)
    print_results(arguments, metrics)
    print(f"\nlabels.csv, suspects.csv (the worst label first) and pictures are in {out}")


if __name__ == "__main__":
    data.run(main)
