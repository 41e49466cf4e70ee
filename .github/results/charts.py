"""Plots of the project: what the results, the README, and the lesson show. Needs numpy and Pillow.

    python .github/results/charts.py RUN   # writes curves.png and weights.gif into a run folder
"""
import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import data  # noqa: E402
import eval as evaluation  # noqa: E402
from eval import RED, SKY, YELLOW, overlay  # noqa: E402, F401

# Okabe and Ito's palette: its colors stay distinct under the common kinds of color blindness.
BLUE, RUST, GREEN, PURPLE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)
ORANGE, GRAY, TEXT = (230, 159, 0), (120, 120, 120), (40, 40, 40)
COLORS = (BLUE, RUST, GREEN, PURPLE, ORANGE, SKY, GRAY)  # of curves and dots
KINDS = ("clean", *data.DAMAGE, "given")  # what a label may be, in the order of COLORS


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


def training_curves(log, classes):
    """Draw the paper's Fig. 3 (Dice, loss) and Fig. 4 (weights by kind of label) from a log."""
    drawn = classes if len(classes) == 1 else (*classes, "average")
    plots = {  # title, label of the axis: columns of log.csv, with their labels
        ("Dice on test labels", "Dice"): {f"dice_{name}": name for name in drawn},
        ("Loss per training label", "loss"): {
            "loss_clean": "clean", "loss_noisy": "noisy", "loss": "weighted, eq. (1)"},
        ("Weight of a label, mean and deviation", "weight x N"): {
            f"weight_{kind}_mean": kind for kind in ("clean", "noisy")},
        ("Clean labels told from noisy ones", "AUROC"): {
            "auroc": "by score", "loss_auroc": "by loss"}}

    def column(name):
        return np.array([row.get(name) for row in log], dtype=float)  # NaN if there is none

    charts, middle = [], None
    if log[0]["lam"] != log[-1]["lam"]:
        middle = (len(log) // 2, "halfway: lambda")
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


def main(run):
    """Draw the log and the weights of a run of train.py into its folder."""
    checkpoint = evaluation.read_checkpoint(run)
    training_curves(checkpoint["log"], checkpoint["classes"]).save(Path(run) / "curves.png")
    settings = argparse.Namespace(**checkpoint["arguments"])
    training, _ = data.load(data.options_of(settings))
    label_weights = [weights.numpy() for weights in checkpoint["label_weights"]]  # epochs x (N,)
    weights_film(Path(run) / "weights.gif", label_weights, training.operation)


if __name__ == "__main__":
    evaluation.run_main(lambda: main(*sys.argv[1:]))
