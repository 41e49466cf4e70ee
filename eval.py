"""Evaluate a run of train.py: Dice on test labels, how well bad labels are found, images.

    python eval.py RUN                            # the same metrics again, from the checkpoint
    python eval.py RUN --data FOLDER --out OUT    # predict other images; Dice if they have masks
    python eval.py --table RUNS                   # a line for each run in a folder
"""
import argparse
import base64
import csv
import html
import io
import json
import os
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import data
import pal

CHUNK = 32  # images predicted at once
YELLOW, SKY, RED = (255, 215, 0), (86, 180, 233), (255, 48, 48)  # label, prediction, clean label
# A ranking's name in the metrics -> its column of suspects.csv, and -1 if bad labels are low in it.
RANKINGS = {"score": ("score", -1), "loss": ("loss", 1), "softmin": ("softmin", -1),
            "ranks": ("mean_rank", -1)}


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
        reason, code = "interrupted; train.py --resume RUN goes on after the last epoch", 130
    except (data.BadInput, OSError, MemoryError, RuntimeError) as error:
        reason, code = str(error) or "out of memory", 2
        if isinstance(error, RuntimeError):
            if "memory" not in reason or "format" in reason:  # a "memory format" is no lack of it
                raise
            reason = "out of memory; train with a smaller --size or --batch"
    print(f"{Path(sys.argv[0]).name}: {' '.join(reason.split())}", file=sys.stderr)
    sys.exit(code)


# --------------------------------------------------------------------- the files of a run folder

def write_file(path, content):
    """Write bytes so that a crash leaves the old file or the new one, never a part."""
    other = path.with_name(path.name + ".new")
    other.write_bytes(content)
    os.replace(other, path)


def write_csv(path, rows):
    """Write dicts of the same keys as a CSV file with a header."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(path, text.getvalue().encode(errors="replace"))


def write_json(path, content):
    """Write `content` as readable JSON."""
    write_file(path, json.dumps(content, indent=1).encode() + b"\n")


def save_checkpoint(path, state):
    """Save a dict with everything that read_checkpoint returns."""
    content = io.BytesIO()
    torch.save(state, content)
    write_file(path, content.getvalue())


def read_checkpoint(run):
    """Read the checkpoint of a run folder onto the CPU; BadInput for any other folder or file."""
    path = Path(run) / "checkpoint.pt"
    if not path.exists():
        raise data.BadInput(f"{run}: no run folder of train.py, it lacks {path.name}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["digest"]  # which no other program's has
        return checkpoint
    except Exception as error:  # torch.load raises whatever its parts raise
        raise data.BadInput(f"{path}: no checkpoint of this version of train.py, or damaged "
                            f"({str(error)[:80]}); give a run folder, or train again") from None


# ---------------------------------------------------------------------------- networks on images

def build_networks(settings, classes, device):
    """Build U-Net and QAM for a number of classes, drawn from the run's seed."""
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(settings["seed"])
        unet, qam = pal.UNet(classes, width=settings["width"]), pal.QAM(classes)
    return [network.to(device, memory_format=torch.channels_last) for network in (unet, qam)]


def load_networks(run, device="cpu"):
    """Load a run folder -> U-Net, QAM, settings: train.py's options, classes, last lam, digest."""
    checkpoint = read_checkpoint(run)
    last = {name: checkpoint[name] for name in ("classes", "lam", "digest")}
    settings = {**checkpoint["arguments"], **last}
    unet, qam = build_networks(settings, len(settings["classes"]), device)
    unet.load_state_dict(checkpoint["unet"])
    qam.load_state_dict(checkpoint["qam"])
    return unet.eval(), qam.eval(), settings


@torch.no_grad()
def predict(unet, images):
    """Predict masks: images (N, S, S) uint8 -> bool (N, classes, S, S) on the network's device.

    `data.read_images` makes such images from files, at the size of the training.
    """
    unet.eval()
    images, masks = images.to(next(unet.parameters()).device), []
    for chunk in data.progress(images.split(CHUNK), "predicting"):
        masks.append(unet(pal.standardize(chunk[:, None])) > 0)  # probability above one half
    return torch.cat(masks)


def softmin_quality(logits, labels):
    """Return cleanlab's softmin label quality (N,) of (N, classes, H, W): high is good."""
    given = torch.where(labels, logits.sigmoid(), (-logits).sigmoid()).flatten(1)
    return (given * torch.softmax((1 - given) / 0.1, dim=1)).sum(dim=1)


@torch.no_grad()
def score_labels(unet, qam, images, labels):
    """Return raw scores, losses, softmin qualities (N,), and losses per class (classes, N)."""
    unet.eval()
    qam.eval()  # with its running statistics a score depends on no other label
    device = next(unet.parameters()).device
    images, labels = images.to(device), labels.to(device)
    pairs, columns = list(zip(images.split(CHUNK), labels.split(CHUNK))), []
    for image, label in data.progress(pairs, "scoring labels"):
        inputs = pal.standardize(image[:, None])
        logits = unet(inputs)
        losses = pal.sample_losses(logits, label)  # (chunk, classes)
        softmin = softmin_quality(logits, label)
        numbers = torch.stack([qam(inputs, label), losses.mean(dim=1), softmin, *losses.T])
        columns.append(numbers.cpu().double())
    columns = torch.cat(columns, dim=1).numpy()
    return columns[0], columns[1], columns[2], columns[3:]


# --------------------------------------------------------------------------------------- metrics

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


def dice_metrics(unet, test):
    """Measure Dice, and in how many of the images without a class nothing is predicted."""
    prediction = predict(unet, torch.from_numpy(test.images)).cpu()
    truth, empty = torch.from_numpy(test.clean), {}
    absent = ~truth.flatten(2).any(dim=2)  # (N, classes)
    right = absent & ~prediction.flatten(2).any(dim=2)
    for name, count, correct in zip(test.classes, absent.sum(dim=0), right.sum(dim=0)):
        if count > 0:
            empty[name] = {"images": int(count), "predicted_empty": int(correct)}
    return {"dice": mean_dice(prediction, truth, test.classes), "empty": empty}


def ranks(values):
    """Rank numbers (N,) from 0 (smallest) to 1 (largest); equal numbers get their mean rank."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, "left")
    last = np.searchsorted(ordered, values, "right") - 1
    return (first + last) / 2 / max(1, len(values) - 1)


def mean_rank(scores, losses, softmin):
    """Average the ranks by score, low loss and softmin (N,): 0 is the worst label, 1 the best."""
    rankings = [ranks(-losses), ranks(softmin)]
    if np.ptp(scores) > 0:  # equal scores, of an untrained QAM, tell nothing
        rankings.append(ranks(scores))
    return np.mean(rankings, axis=0)


def outstanding_class(class_losses, classes):
    """Name each label's class whose loss is most standard deviations above that class's mean."""
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


def label_rows(unet, qam, cases, lam, strategy=None, split=None):
    """Make the rows of suspects.csv, not sorted; what nobody knows has no column."""
    images, labels = torch.from_numpy(cases.images), torch.from_numpy(cases.labels)
    scores, losses, softmin, class_losses = score_labels(unet, qam, images, labels)
    in_use = torch.from_numpy(scores)
    if strategy == "loss":
        in_use = loss_scores(torch.from_numpy(class_losses.T), labels)
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
    if len(cases.classes) > 1:
        columns.update({f"loss_{name}": each for name, each in zip(cases.classes, class_losses)})
        columns["stands_out"] = outstanding_class(class_losses, cases.classes)
    columns["softmin"] = softmin
    return [dict(zip(columns, values)) for values in zip(*columns.values())]  # one dict a label


def worst_first(rows):
    """Add the mean rank to rows, sort by it and number them: place 1 is the worst label."""
    columns = [np.array([row[name] for row in rows]) for name in ("score", "loss", "softmin")]
    ranked = [{**row, "mean_rank": rank} for row, rank in zip(rows, mean_rank(*columns))]
    ranked.sort(key=lambda row: row["mean_rank"])
    return [{"place": place, **row} for place, row in enumerate(ranked, start=1)]


def detection_metrics(rows):
    """Measure how well each ranking finds the noisy labels; None if all labels are of one kind.

    recall: the share of noisy labels among the worst, as many as are noisy.
    """
    noisy = np.array([row.get("noisy", 0) for row in rows], dtype=bool)
    if noisy.all() or not noisy.any():
        return None
    metrics = {"random": {"auroc": 0.5, "recall": float(noisy.mean())}}
    for name, (column, sign) in RANKINGS.items():
        badness = sign * np.array([row[column] for row in rows])
        worst = np.argsort(-badness, kind="stable")[:noisy.sum()]
        metrics[name] = {"auroc": auroc(badness, noisy), "recall": float(noisy[worst].mean())}
    return metrics


def evaluate(unet, qam, training, test, lam, strategy):
    """Measure a trained run -> metrics, and the rows of suspects.csv, worst first."""
    rows = label_rows(unet, qam, training, lam, strategy, split="train")
    unseen = label_rows(unet, qam, test, lam, split="test")
    weights = np.array([row["weight"] for row in rows])
    effective = float(weights.sum() ** 2 / (weights ** 2).sum())  # N if all are equal
    audit = {"training": detection_metrics(worst_first(rows)),
             "unseen": detection_metrics(worst_first(unseen))}
    metrics = {**dice_metrics(unet, test), "audit": audit, "effective_sample_size": effective,
               "lam": lam}
    # If nobody knows which labels are clean, those of the test are to be looked at as well.
    return metrics, worst_first(rows if training.known else rows + unseen)


# ------------------------------------------------------------------------------- results as text

def cell(value):
    """Write a number as text, None as "-"."""
    return "-" if value is None else f"{value:.3f}"


def print_table(rows):
    """Print rows of texts as a Markdown table with aligned columns, the first row its titles."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for place, row in enumerate(rows):
        cells = [text.ljust(width) for text, width in zip(row, widths)]
        print(f"| {' | '.join(cells)} |")
        if place == 0:
            print(f"|{'|'.join(['-' * (width + 2) for width in widths])}|")


def print_dice(metrics, known):
    """Print Dice, and how many images lack a class; known: whether clean labels are known."""
    title = "Dice on clean test labels" if known else "Dice on test labels (as given)"
    print()
    print_table([[title, *metrics["dice"]], ["this run", *map(cell, metrics["dice"].values())]])
    for name, count in metrics["empty"].items():
        if metrics["dice"][name] is None:
            print(f"no test label has {name}: left out of the average")
        print(f"{count['images']} images without {name}, "
              f"nothing predicted in {count['predicted_empty']}")


def print_results(metrics, known):
    """Print what metrics.json has of a run; known: whether clean labels are known."""
    print_dice(metrics, known)
    for where, audit in metrics["audit"].items():
        if audit:
            rows = [[f"noisy labels found, {where}", "AUROC", "in the worst as many as are noisy"]]
            rows += [[name, cell(row["auroc"]), cell(row["recall"])] for name, row in audit.items()]
            print()
            print_table(rows)
    print(f"\neffective sample size of the weights: {metrics['effective_sample_size']:.1f}")


def table_of(folder):
    """Make the rows of --table, one for each finished run, the first row its titles."""
    rows = [["run", "strategy", "noise", "seed", "data", "average Dice", "of each class"]]
    for path in sorted(Path(folder).rglob("config.json")):
        if not path.with_name("metrics.json").exists():  # not finished
            continue
        try:
            config = json.loads(path.read_text())
            metrics = json.loads(path.with_name("metrics.json").read_text())
            settings, dice = config["arguments"], dict(metrics["dice"])
            row = [str(path.parent.relative_to(folder))]
            row += [str(settings[name]) for name in ("strategy", "noise", "seed")]
            row += [config["digest"][:6], cell(dice.pop("average"))]
            row.append(", ".join(f"{name} {cell(value)}" for name, value in dice.items()))
        except (OSError, ValueError, KeyError, TypeError):
            raise data.BadInput(f"{path.parent} is not a run of train.py, or damaged; give a "
                                "folder of runs alone") from None
        rows.append(row)
    if len(rows) == 1:
        raise data.BadInput(f"{folder}: no finished run in it; give the folder of the run folders")
    return rows


# ------------------------------------------------------------------------- the page of suspects

WORST, PAGE_BYTES = 100, 4_900_000  # labels in each list of the page; its size at most
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>TITLE</title>
<style>
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
h1, p { margin: 4px 0; }
nav { position: sticky; top: 0; z-index: 1; padding: 8px 0; background: Canvas; }
nav * { margin-right: 12px; font: inherit; }
i { display: inline-block; width: 22px; height: 4px; margin: 0 6px 3px 0; }
main { grid-template-columns: repeat(auto-fill, minmax(220px, 1fr));
       align-items: start; gap: 6px; }
main:not([hidden]) { display: grid; }
button { all: unset; padding: 6px; border-radius: 6px; cursor: pointer; white-space: pre-line;
         overflow-wrap: anywhere; scroll-margin: 60px 0 8px; }
button:focus { outline: 3px solid Highlight; }
.bad { background: #b03a00; color: white; } .bad b::after { content: " (bad)"; }
div { background-size: cover; margin-bottom: 4px; }
img { display: block; width: 100%; filter: drop-shadow(0 0 .7px #0009); }
div:hover img { visibility: hidden; }
</style>
<h1>TITLE</h1>
<p>Click bad labels, or use arrow keys and the space bar. The bare image: rest the pointer on it.
<p>Save the list, then train again: the same options, and <code>--exclude bad.txt --out NEW</code>
<nav><select></select><a download="bad.txt">Save list</a><b></b>
<i style="background: #ffd700"></i>label <i style="background: #56b4e9"></i>prediction
<span HIDDEN><i style="background: #ff3030"></i>clean label</span></nav>
CONTENT
<script>
const [menu, save, count] = document.querySelector("nav").children;
const views = [...document.querySelectorAll("main")];
const tiles = [...document.querySelectorAll("button")];
const nameOf = (tile) => tile.querySelector("span").textContent;
const key = `${document.title} in ${location.pathname}`;
let kept = [];
try { kept = JSON.parse(localStorage.getItem(key)) ?? []; } catch {}  // some viewers keep nothing
const bad = new Set(tiles.map(nameOf).filter(name => kept.includes(name)));

function show() {
  views.forEach((view, i) => { view.hidden = i != menu.selectedIndex; });
  tiles.forEach(tile => tile.classList.toggle("bad", bad.has(nameOf(tile))));
  count.textContent = `${bad.size} marked`;
  save.href = "data:text/plain;charset=utf-8," + encodeURIComponent([...bad, ""].join("\\n"));
  try { localStorage.setItem(key, JSON.stringify([...bad])); } catch {}
}
for (const tile of tiles)
  tile.onclick = () => { if (!bad.delete(nameOf(tile))) bad.add(nameOf(tile)); show(); };
onkeydown = (event) => {
  const shown = [...views[menu.selectedIndex].children];
  const columns = shown.filter(tile => tile.offsetTop == shown[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (event.target == menu || !(event.key in steps)) return;
  shown[shown.indexOf(document.activeElement) + steps[event.key]]?.focus();
  event.preventDefault();  // no scrolling
};
views.forEach(view => menu.append(new Option(view.dataset.title)));
menu.hidden = views.length == 1;
menu.onchange = show;
show();
</script>"""


def overlay(image, outlines):
    """Draw outlines (masks (S, S) or (C, S, S) bool, color) on an image (S, S), at 256 or more."""
    side = max(data.GRID, len(image))
    pixels = np.array(Image.fromarray(data.resize(image, side)).convert("RGB"))
    for masks, color in outlines:
        for mask in masks.reshape(-1, *image.shape):  # one by one: touching classes keep theirs
            large = data.resize(mask, side)
            pixels[large & ~data.erode(large, 1)] = color
    return Image.fromarray(pixels)


def data_url(image, kind, **options):
    """Write a Pillow image as a URL that contains it; kind: png or jpeg."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def suspects_views(rows, classes):
    """List what the page shows: {title: up to WORST pairs (index of a row, index of a class)}."""
    stands_out = [row.get("stands_out", classes[0]) for row in rows[:WORST]]
    views = {"the class that stands out": [(i, classes.index(c)) for i, c in enumerate(stands_out)]}
    if len(classes) > 1:
        for c, name in enumerate(classes):
            order = sorted(range(len(rows)), key=lambda i: -rows[i][f"loss_{name}"])
            views[f"{name}, by its own loss"] = [(i, c) for i in order[:WORST]]
    return views


def suspects_tile(row, name, url):
    """Write a label as HTML: its image, over it the outlines of the class `name` at `url`."""
    caption = f"score {row['score']:.2f}, loss {row['loss']:.2f}"
    if "stands_out" in row:  # there are several classes
        caption += f"\n{name} {row[f'loss_{name}']:.2f}"
        if row["stands_out"] == name:
            caption += ", stands out"
    known = [str(row[column]) for column in ("split", "operation", "pixels") if row.get(column)]
    return (f'<button><div class="i{row["place"]}"><img src="{url}"></div>'
            f'<b>{row["place"]}. <span>{html.escape(row["name"])}</span></b>\n'
            f"{html.escape(caption)}\n{' '.join(known)}</button>\n")


def write_page(path, unet, rows, parts):
    """Write suspects.html of the rows, the worst first, whose labels are in the Cases `parts`."""
    classes = parts[0].classes
    views = suspects_views(rows, classes)
    shown = sorted({i for tiles in views.values() for i, _ in tiles})
    where = {name: (cases, k) for cases in parts for k, name in enumerate(cases.names)}
    found = {i: where[rows[i]["name"]] for i in shown}
    images = np.stack([cases.images[k] for cases, k in found.values()])
    predictions = dict(zip(shown, predict(unet, torch.from_numpy(images)).cpu().numpy()))
    content = ""
    for view, tiles in views.items():
        content += f'<main data-title="{html.escape(view)}">\n'
        for i, c in tiles:
            cases, k = found[i]  # of which clean labels are the labels if nobody knows them
            outlines = overlay(np.zeros_like(images[0]), [
                (cases.clean[k, c], RED), (predictions[i][c], SKY), (cases.labels[k, c], YELLOW)])
            url = data_url(outlines, "png", transparency=(0, 0, 0))
            content += suspects_tile(rows[i], classes[c], url)
        content += "</main>\n"
    for side in (256, 192, 128, 96, 64):  # of the images: smaller until the page is small enough
        rules = ""
        for i, image in zip(shown, data.resize(images, min(side, len(images[0])))):
            url = data_url(Image.fromarray(image), "jpeg", quality=85)
            rules += f".i{rows[i]['place']} {{ background-image: url({url}); }}\n"
        if len(content) + len(rules) < PAGE_BYTES:
            break
    page = PAGE.replace("TITLE", f"Suspects of {html.escape(path.resolve().parent.name)}")
    page = page.replace("HIDDEN", "" if parts[0].known else "hidden")
    page = page.replace("CONTENT", f"{content}<style>\n{rules}</style>")
    write_file(path, page.encode(errors="xmlcharrefreplace"))


# ----------------------------------------------------------------------------------- the scripts

def evaluate_run(run, device):
    """Print the metrics of a run again, from its checkpoint and its data; nothing is written."""
    unet, qam, settings = load_networks(run, device)
    training, test = data.load(data.options_of(argparse.Namespace(**settings)))
    if data.digest(training, test) != settings["digest"]:
        raise data.BadInput(f"{settings['data']}: the data are no longer those of this run; use "
                            f"eval.py {run} --data FOLDER --out OUT, or train again")
    metrics, _ = evaluate(unet, qam, training, test, settings["lam"], settings["strategy"])
    print_results(metrics, training.known)


@torch.no_grad()
def evaluate_folder(run, options, out, device):
    """Predict a folder's images at their own sizes; if there are labels, measure and rank them.

    options: data.Options of the folder.
    """
    if out.exists():
        raise data.BadInput(f"{out} exists already; choose another --out")
    unet, qam, settings = load_networks(run, device)
    classes = settings["classes"]
    cases = data.read(options._replace(size=settings["size"]))
    if cases.labels is not None and list(cases.classes) != list(classes):
        raise data.BadInput(f"{options.data} has masks of {', '.join(cases.classes)}, {run} of "
                            f"{', '.join(classes)}; name the same in the same order (--masks)")
    inputs = list(zip(cases.names, torch.from_numpy(cases.images).to(device), cases.shapes))
    for name, image, shape in data.progress(inputs, "predicting"):
        logits = unet(pal.standardize(image[None, None]))  # (1, classes, S, S)
        # Resized before they are cut at 0, so that edges are smooth.
        logits = F.interpolate(logits, size=tuple(shape), mode="bilinear", align_corners=False)
        for label, mask in zip(classes, logits[0].cpu().numpy() > 0):
            path = out / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path, mask.astype(np.uint8) * 255)
    print(f"predicted masks (0 and 255, one folder per class) are in {out}")
    if cases.labels is not None:
        rows = worst_first(label_rows(unet, qam, cases, settings["lam"]))
        metrics = dice_metrics(unet, cases)
        write_json(out / "metrics.json", metrics)
        write_csv(out / "suspects.csv", rows)
        write_page(out / "suspects.html", unet, rows, [cases])
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
    parser.set_defaults(data=None)  # with --data that folder is evaluated, not the run's
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (arguments.run is None) == (arguments.table is None):
        parser.error("give a run folder, or --table and the folder of all of them")
    if (arguments.data is None) != (arguments.out is None) or (arguments.table and arguments.data):
        parser.error("--data FOLDER goes with a run and with --out, a new folder")
    typed = {word.partition("=")[0] for word in argv or sys.argv[1:] if word[:2] == "--"}
    if arguments.data is None and typed - {"--table"}:
        parser.error(f"{', '.join(sorted(typed))}: only with --data; a run has its own")
    if arguments.table:
        print_table(table_of(arguments.table))
    elif arguments.data is not None:
        evaluate_folder(arguments.run, data.options_of(arguments), arguments.out, device)
    else:
        evaluate_run(arguments.run, device)


if __name__ == "__main__":
    run_main(main)
