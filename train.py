"""Train a segmentation network on noisy labels, with Pick-and-Learn or with uniform weights.

    python train.py --noise 0.5 --band 5-13                      # phantoms, minutes on a laptop
    python train.py --noise 0.5 --band 5-13 --strategy baseline  # the same with uniform weights
    python train.py --data FOLDER                                # your images, labels as they are
    python train.py --data FOLDER --noise 0.75 --paper           # the settings of section 3.2

A run folder (--out) receives config.json, log.csv, labels.csv, suspects.csv, metrics.json,
checkpoint.pt and pictures.
"""
import signal

if __name__ == "__main__":
    # Importing torch takes seconds; Ctrl-C then ends the script without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import json
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import eval as evaluation
from data import GRID, BadInput
from pal import (area_trend, auto_lambda, pick_and_learn_loss, quality_weights, rejected_share,
                 sample_losses, standardise)

# What --paper changes. Also: constant rates and Adam's defaults. The networks stay ours.
SECTION_3_2 = dict(size=256, batch=32, lr=1e-4, qam_lr=1e-4, lam=2.0, area_neutral=False,
                   augment=False)
SHIFT = 1 / 16  # the most that `augment` does: of the picture's side,
ZOOM = 0.1  # a tenth smaller or larger,
TURN = 5.0  # degrees
LINE_LAMBDA = 2.0  # bad labels must not bend the area line, however mildly lambda treats them
LOOK = 3  # epochs before the middle of the training whose mean losses tell which share is bad
DICE_EVERY = 4  # epochs: the test images are not predicted in each, which would take a tenth longer


# --------------------------------------------------------------------------------- the training

def augment(images, labels, rng):
    """Shifts, scales and turns each image with its label, at random. Not in the paper.

    images (N, 1, H, W), labels (N, classes, H, W), rng a torch.Generator on the CPU -> both, float.
    """
    def draw(most):  # (N,) numbers from -most to most
        return most * (2 * torch.rand(len(images), generator=rng) - 1)

    scale = draw(math.log1p(ZOOM)).exp()  # between 1 / 1.1 and 1.1
    angle = draw(math.radians(TURN))
    x, y = draw(2 * SHIFT), draw(2 * SHIFT)  # affine_grid counts from -1 to 1 along each side
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrices = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3).to(images.device)
    both = torch.cat([images, labels.float()], dim=1)  # (N, 1 + classes, H, W)
    grid = F.affine_grid(matrices, both.shape, align_corners=False)
    both = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    both = both.contiguous(memory_format=torch.channels_last)
    return both[:, :1], (both[:, 1:] > 0.5).float()


def train_epoch(unet, qam, optimiser, schedule, images, labels, batch, lam, rng,
                uniform=False, trusted=None, by_loss=False, augmented=True, area_neutral=True,
                bf16=False):
    """One epoch over images (N, H, W) uint8 and labels (N, classes, H, W) bool.

    lam: the bound of eq. (2), None without OCM. uniform: the baseline, equal weights. trusted (N,)
    bool: the oracle, equal weights for these labels, 0 for the others. by_loss: no QAM, a label's
    own loss is its score. Returns scores (N,), weights x mini-batch size (N,), losses (N, classes),
    and where label and prediction are both empty (N, classes); NaN, False for labels that filled no
    mini-batch.
    """
    unet.train()
    qam.train()
    device = images.device
    all_scores = torch.full((len(images),), math.nan, device=device)
    all_weights, all_losses = all_scores.clone(), torch.full(labels.shape[:2], math.nan, device=device)
    both_empty = torch.zeros(labels.shape[:2], dtype=torch.bool, device=device)
    order = torch.randperm(len(images), generator=rng).to(device)
    for indices in order.split(batch)[:len(images) // batch]:  # full mini-batches only
        inputs, targets = standardise(images[indices]), labels[indices]
        if augmented:
            inputs, targets = augment(inputs, targets, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = unet(inputs)  # (batch, classes, H, W)
            if uniform or by_loss:
                scores = torch.zeros(batch, device=device)
            else:
                scores = qam(inputs, targets)  # (batch,)
        losses = sample_losses(logits.float(), targets)  # (batch, classes)
        if by_loss:
            scores = loss_scores(losses, targets)
        weights = quality_weights(scores.float(), lam)  # (batch,); 1 / batch where scores are equal
        if trusted is not None:
            weights = trusted[indices] / trusted[indices].sum().clamp_min(1)
        trend = None
        if area_neutral and not uniform:
            line_weights = quality_weights(scores.float(), LINE_LAMBDA)
            trend = area_trend(losses, targets, line_weights)  # (batch,), not in the paper
        loss = pick_and_learn_loss(losses, weights, trend)  # eq. (1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        all_scores[indices], all_weights[indices] = scores.detach().float(), weights.detach() * batch
        all_losses[indices] = losses.detach()
        both_empty[indices] = ~((logits > 0) | (targets > 0)).flatten(2).any(dim=2)
    return all_scores.cpu(), all_weights.cpu(), all_losses.cpu(), both_empty.cpu()


def loss_scores(losses, labels):
    """Scores (N,) for --strategy loss: minus the label's own loss, without the area trend,
    standardized in the mini-batch. The question to the second network: what is it worth?
    """
    equal = torch.full((len(losses),), 1 / len(losses), device=losses.device)
    own = losses.detach().mean(dim=1) - area_trend(losses, labels, equal)
    return (own.mean() - own) / (own.std() + 1e-6)


def make_optimiser(unet, qam, arguments, steps):
    """Adam and its learning rates over `steps` mini-batches: one cycle, or constant for --paper.

    The paper: 1e-4 for all, the optimiser not named. Ours: the QAM 25 times slower than the U-Net.
    """
    rates = [arguments.lr, arguments.qam_lr]
    groups = [{"params": unet.parameters(), "lr": arguments.lr},
              {"params": qam.parameters(), "lr": arguments.qam_lr}]
    if arguments.paper:
        optimiser = torch.optim.Adam(groups)
        return optimiser, torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps)


def train(arguments):
    """One run, from the data to the pictures; the module's docstring says what it leaves behind."""
    started = time.perf_counter()

    # 1. Data
    device, bf16 = choose_device(arguments.device, arguments.precision)
    settings = vars(arguments).copy()
    del settings["out"], settings["resume"]
    out = run_folder(arguments, settings)
    # Locked before the slow reading of data; a new folder only once arguments and data are good.
    lock = lock_folder(out) if out.exists() else None
    classes, training, test = data.load(**{name: settings[name] for name in data.LOAD})
    check_strategy(arguments, training)
    print_data_summary(classes, training, test, arguments)
    images = torch.from_numpy(training.images).to(device)  # (N, H, W) uint8
    labels = torch.from_numpy(training.labels).to(device)  # (N, classes, H, W) bool

    # 2. Networks and optimiser
    unet, qam = evaluation.build_networks(settings, classes, device)
    batch = min(arguments.batch, len(images))
    steps = len(images) // batch  # in an epoch
    optimiser, schedule = make_optimiser(unet, qam, arguments, arguments.epochs * steps)
    parts = {"unet": unet, "qam": qam, "optimiser": optimiser, "schedule": schedule}
    options = {"batch": batch, "uniform": arguments.strategy in ("baseline", "oracle"),
               "by_loss": arguments.strategy == "loss", "augmented": arguments.augment, "area_neutral": arguments.area_neutral, "bf16": bf16}
    if arguments.strategy == "oracle":
        options["trusted"] = torch.from_numpy(~training.noisy).to(device)

    # 3. The run folder, and what is in it if this run was interrupted
    lock = lock or lock_folder(out)
    state = {"arguments": settings, "classes": list(classes), "log": [], "label_weights": [],
             "lam": first_lambda(arguments), "losses": [], "share": None,
             "digests": evaluation.case_digests(training, test)}
    if (out / "checkpoint.pt").exists():
        checkpoint = evaluation.read_checkpoint(out / "checkpoint.pt")
        evaluation.check_unchanged(checkpoint, training, test)
        evaluation.load_states(checkpoint, parts, out)
        state.update({name: checkpoint[name] for name in ("log", "label_weights", "lam", "losses", "share")})
    if (out / "metrics.json").exists() and (out / "curves.png").exists():  # the last one written
        print(f"{out} is finished")
        evaluation.print_results(settings, evaluation.read_run(out)[1])
        return release(lock)
    write_config(out, settings, device, bf16)
    seconds = {"data": time.perf_counter() - started}

    # 4. Epochs
    log = state["log"]
    earlier = log[-1]["seconds"] if log else 0.0  # of training before an interruption
    begun = time.perf_counter() - earlier
    for epoch in range(len(log) + 1, arguments.epochs + 1):
        # A generator per epoch, so that a resumed run draws the same numbers.
        rng = torch.Generator().manual_seed(1000 * arguments.seed + epoch)
        *record, both_empty = train_epoch(unet, qam, optimiser, schedule, images, labels,
                             lam=state["lam"], rng=rng, **options)
        check_finite(record, steps * batch, (unet, qam), epoch, out)
        row = epoch_row(epoch, record, training, state["lam"])
        row.update(epoch_dice(unet, classes, test, device, epoch, arguments.epochs))
        row["seconds"] = time.perf_counter() - begun
        log.append(row)
        state["label_weights"].append(record[1])
        state["losses"] = [*state["losses"], record[2].masked_fill(both_empty, math.nan)][-LOOK:]
        if epoch == max(1, arguments.epochs // 2):  # look once, then trust as the labels deserve
            state["share"] = look(state["losses"])
            if arguments.lam == "auto" and arguments.strategy in ("qam+ocm", "loss"):
                if state["share"] is not None:
                    state["lam"] = auto_lambda(state["share"])
            print_share(state["share"], state["lam"])
        state_dicts = {name: part.state_dict() for name, part in parts.items()}
        evaluation.save_checkpoint(out / "checkpoint.pt", {**state, **state_dicts})
        evaluation.write_csv(out / "log.csv", log)
        print_epoch(row, arguments.epochs)

    # 5. Evaluation: figures first, so that nothing that goes wrong in drawing costs them
    metrics, rows = evaluation.evaluate(unet, qam, classes, training, test, device,
                                        log[-1]["lam"], arguments.strategy == "oracle")
    metrics["rejected_share"] = state["share"]
    metrics["warnings"] = evaluation.warnings_of(settings, metrics, training, test, state["share"])
    seconds["train"] = log[-1]["seconds"]
    seconds["total"] = time.perf_counter() - started + earlier
    metrics.update({"seconds": seconds, "peak_memory_mb": peak_memory_mb(device)})
    evaluation.write_json(out / "metrics.json", metrics)
    evaluation.print_results(settings, metrics)
    if training.noisy.any():
        weights = torch.stack(state["label_weights"]).numpy()  # (epochs, N)
        evaluation.weights_film(out / "weights.gif", weights, training.operation)
    evaluation.write_report(out, unet, classes, training, rows, log, device)
    release(lock)


def epoch_dice(unet, classes, test, device, epoch, epochs):
    """Columns of log.csv: mean Dice on clean test labels, NaN in epochs that are not evaluated."""
    dice = dict.fromkeys((*classes, "average"), math.nan)
    if epoch % DICE_EVERY == 0 or epoch == epochs:
        found = torch.from_numpy(evaluation.predict_array(unet, test.images, device))
        dice = evaluation.mean_dice(found, torch.from_numpy(test.clean), classes)
    return {f"dice_{name}": value for name, value in dice.items()}


# ----------------------------------------------------------------------------- what a run prints

def print_data_summary(classes, training, test, arguments):
    """Prints what a careful reader checks first: counts, sizes, areas, and what the noise did."""
    def per_class(values):
        return ", ".join(f"{name} {value:.3f}" for name, value in zip(classes, values))

    count, size, noisy = len(training.names), training.images.shape[-1], training.noisy
    print(f"{count} training and {len(test.names)} test images, {size} x {size}")
    print(f"share of foreground: {per_class(training.labels.mean(axis=(0, 2, 3)))}; "
          f"in the clean labels: {per_class(training.clean.mean(axis=(0, 2, 3)))}")
    kinds = [f"{training.operation.count(kind)} {kind}" for kind in noise_kinds(training)]
    print(f"noise: {noisy.sum()} of {count} labels changed ({noisy.mean():.1%}) {', '.join(kinds)}")
    if noisy.any():
        given, clean = training.labels[noisy], training.clean[noisy]
        dice = evaluation.mean_dice(torch.from_numpy(given), torch.from_numpy(clean), classes)
        vanished = (clean.any(axis=(2, 3)) & ~given.any(axis=(2, 3))).sum(axis=0)  # (classes,)
        lost = ", ".join(f"{number} {name}" for number, name in zip(vanished, classes))
        print(f"Dice of noisy against clean labels: {per_class(dice.values())}; vanished: {lost}")
    if arguments.clean:
        evaluation.print_clean_differences(training, arguments.clean_dice)


def noise_kinds(cases):
    """The kinds of noise that occur in `cases`, sorted."""
    return sorted(set(cases.operation) - {""})


def epoch_row(epoch, record, training, lam):
    """A row of log.csv: losses, weights and AUROC, from what `train_epoch` returned."""
    scores, weights = record[0].double().numpy(), record[1].double().numpy()
    losses = record[2].double().mean(dim=1).numpy()
    trained_on = np.isfinite(losses)
    noisy = training.noisy
    row = {"epoch": epoch, "lam": lam, "loss": mean(weights[trained_on] * losses[trained_on])}
    operation = np.array(training.operation)
    kinds = {"clean": ~noisy, "noisy": noisy}
    kinds.update({kind: operation == kind for kind in noise_kinds(training)})
    for kind, members in kinds.items():
        chosen = members & trained_on
        row[f"loss_{kind}"] = mean(losses[chosen])
        row[f"weight_{kind}_mean"] = mean(weights[chosen])
        row[f"weight_{kind}_variance"] = mean((weights[chosen] - mean(weights[chosen])) ** 2)
    row["auroc"] = evaluation.auroc(scores[trained_on], ~noisy[trained_on])
    row["loss_auroc"] = evaluation.auroc(-losses[trained_on], ~noisy[trained_on])
    return row


def mean(values):
    """The mean as a Python number, which a checkpoint can hold; NaN of no values."""
    return float(np.mean(values)) if len(values) else math.nan


def print_epoch(row, epochs):
    """Prints the line of an epoch."""
    left = row["seconds"] / row["epoch"] * (epochs - row["epoch"])
    line = f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.3f}  weight x N:"
    for kind in ("clean", "noisy"):
        if math.isfinite(row[f"weight_{kind}_mean"]):
            line += f" {kind} {row[f'weight_{kind}_mean']:.2f}"
    if math.isfinite(row["dice_average"]):
        line += f"  test Dice {row['dice_average']:.3f}"
    print(f"{line:75s}{left:4.0f} s left", flush=True)


# ---------------------------------------------------------------------------------- run folders

def run_folder(arguments, settings):
    """The run folder's path; BadInput where it exists, or with --resume has other settings."""
    out = Path(arguments.out or Path("runs") / folder_name(arguments, settings))
    if not out.exists():
        return out
    if not arguments.resume:
        raise BadInput(f"{out} exists already; add --resume to go on with it, or choose another "
                       "--out")
    if not (out / "config.json").exists():
        if not out.is_dir() or {path.name for path in out.iterdir()} - {"lock"}:
            raise BadInput(f"{out} is not a run folder, there is no config.json in it; choose "
                           "another --out")
        return out
    try:
        before = json.loads((out / "config.json").read_text())["arguments"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{out}/config.json is not one of train.py; choose another --out") from None
    changed = [f"{name} was {before.get(name)}, is {value}" for name, value in settings.items()
               if before.get(name) != value]
    if changed:
        raise BadInput(f"{out} was begun with other settings ({'; '.join(changed)}); choose "
                       "another --out")
    return out


def folder_name(arguments, settings):
    """The run folder's name: data, strategy, noise, band, seed, then settings not at default."""
    source = Path(arguments.data).absolute().name.replace(":", "")
    name = f"{source}-{arguments.strategy}-{arguments.noise:g}-{arguments.band}"
    name += f"-seed{arguments.seed}"
    usual = vars(parse_arguments(["--paper"] if arguments.paper else []))
    if arguments.paper:
        name += "-paper"
    for setting, value in settings.items():
        named = setting in ("data", "strategy", "noise", "band", "seed")
        if not named and value != usual[setting]:
            name += re.sub(r"[^-.\w]", "", f"-{setting}{value}")
    return name


def lock_folder(out):
    """Makes the run folder and keeps other processes out while this one lives: the lock file.

    The operating system drops the lock when a process dies. On Windows, and on some network drives,
    nothing is locked.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / "lock", "a+")
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise BadInput(f"{out} is in use by {file.read()}; wait for it, or choose another "
                       "--out") from None
    except (ImportError, OSError):
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S on %d %B')}")
    file.flush()
    return file


def release(lock):
    """Gives up the lock of `lock_folder`."""
    lock.close()
    Path(lock.name).unlink()


def write_config(out, settings, device, bf16):
    """Writes config.json: the settings, and on what the run is made."""
    evaluation.write_json(out / "config.json", {
        "arguments": settings, "device": str(device), "bf16": bf16,
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__})


def check_finite(record, expected, networks, epoch, out):
    """BadInput, before anything is saved, where a loss or a network has numbers not finite."""
    finite = record[2].isfinite().all(dim=1) & record[0].isfinite() & record[1].isfinite()
    finite = finite.sum() == expected  # all labels that were trained on
    for network in networks:
        for parameter in network.parameters():
            finite = finite and parameter.isfinite().all()
    if not finite:
        raise BadInput(f"{out}: epoch {epoch} gave numbers that are not finite; the checkpoint of "
                       f"epoch {epoch - 1}, if any, is kept; start again with a smaller --lr")


def peak_memory_mb(device):
    """The most memory this process has held, on the GPU if it trains there; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 2 ** 20 if sys.platform == "darwin" else 2 ** 10  # bytes, elsewhere KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# --------------------------------------------------------------------------------- command line

def bounded_number(kind, low, high=math.inf):
    """An argparse type: a number from low to high; kind is int or float."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            name = "whole number" if kind is int else "number"
            bounds = f"from {low} to {high}" if math.isfinite(high) else f"of {low} or more"
            raise argparse.ArgumentTypeError(f"{text} is not a {name} {bounds}")
        return value
    return convert


def bound_or_auto(text):
    """An argparse type: "auto", or a number from 0 on."""
    return text if text == "auto" else bounded_number(float, 0)(text)


def pixel_band(text):
    """An argparse type: "5-13", the smallest and the largest radius in pixels of a 256 grid."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) < GRID:
        raise argparse.ArgumentTypeError(f"{text} is not a band such as 5-13, smaller-larger, "
                                         f"from 1 to {GRID - 1}")
    return text


def noise_kind(text):
    """An argparse type: names of kinds of noise joined by -, such as "erode-dilate"."""
    if not set(text.split("-")) <= set(data.DAMAGE):
        known = ", ".join(data.DAMAGE)
        raise argparse.ArgumentTypeError(f"{text} is not one or several of {known}, joined by -")
    return text


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, where there are any, beside the options; the module's docstring as it stands."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parse_arguments(argv=None):
    """The command line as a namespace; --paper moves defaults, what is typed beside it counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = evaluation.usage_error
    data.add_options(parser)
    add = parser.add_argument
    add("--group",
        help="a regular expression; names with the same match are one patient, never split")
    add("--clean",
        help="a folder like --data with clean labels of the same images, to measure with")
    add("--clean-dice", type=bounded_number(float, 0, 1), default=0.99,
        help="with --clean: a label is noisy whose Dice with the clean one is lower in a class")
    add("--strategy", default="qam+ocm", choices=("baseline", "qam", "qam+ocm", "oracle", "loss"),
        help="baseline: equal weights; qam: scores without a bound; qam+ocm: the paper's method; "
        "oracle: equal weights for the clean labels, 0 for the others; loss: no QAM, a label's "
        "own loss is its score")
    add("--noise", type=bounded_number(float, 0, 1), default=None,
        help="share of training labels to damage; without it 0.5 of phantoms, 0 of a folder")
    add("--band", type=pixel_band, default="5-13",
        help="radius of the noise, smallest-largest, in pixels of a 256 x 256 picture")
    add("--noise-kind", type=noise_kind, default="erode-dilate",
        help=f"one or several of {', '.join(data.DAMAGE)}, joined by -")
    add("--lam", type=bound_or_auto, default="auto",
        help="lambda of eq. (2), or auto: from 1/2 to 2, larger early in the training and the "
             "more labels both networks reject")
    add("--size", type=bounded_number(int, 1, 10 ** 4), default=128,
        help="height and width of the pictures that the networks see, in pixels")
    add("--epochs", type=bounded_number(int, 1), default=40, help="passes over the training data")
    add("--batch", type=bounded_number(int, 3), default=16,
        help="samples over which the weights sum to 1; better 8 or more")
    add("--lr", type=bounded_number(float, 0, 1e30), default=1e-2,
        help="the U-Net's learning rate, at its highest")
    add("--qam-lr", type=bounded_number(float, 0, 1e30), default=4e-4,
        help="the QAM's learning rate, at its highest")
    add("--area-neutral", action=argparse.BooleanOptionalAction, default=True,
        help="hide from the QAM what the area of a label alone predicts of its loss")
    add("--augment", action=argparse.BooleanOptionalAction, default=True,
        help="shift, scale and turn images and labels a little")
    add("--width", type=bounded_number(int, 1, 10 ** 7), default=8,
        help="channels of the U-Net at full size")
    add("--seed", type=bounded_number(int, 0, 2 ** 31), default=0,
        help="of split, noise, networks and order of the data")
    add("--device", default="auto", help="auto is cuda when available, else cpu")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"),
        help="auto is bf16 where the hardware has units for it")
    add("--out", default=None,
        help="the run folder; without it, one in runs/ named after the settings")
    add("--resume", action="store_true",
        help="go on with an interrupted run in --out; a finished one is only shown")
    literal = ", ".join(f"{name} {value}" for name, value in SECTION_3_2.items())
    add("--paper", action="store_true",
        help=f"section 3.2 with our networks: constant rates, {literal.replace('_', '-')}")
    # --paper changes defaults, so the line is parsed again: what is typed beside it still wins.
    if parser.parse_args(argv).paper:
        parser.set_defaults(**SECTION_3_2)
    arguments = parser.parse_args(argv)
    if arguments.noise is None:
        phantoms = arguments.data.partition(":")[0] == "phantoms"
        arguments.noise = 0.5 if phantoms else 0.0
    return arguments


def choose_device(name, precision):
    """The torch device, and whether to train in bfloat16: auto where the hardware has units."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name}: {reason}; leave --device out") from None
    if precision != "auto":
        return device, precision == "bf16"
    if device.type == "cuda":
        return device, torch.cuda.get_device_capability(device) >= (8, 0)
    if not hasattr(torch.cpu, "get_capabilities"):  # older torch does not tell
        return device, False
    units = torch.cpu.get_capabilities()
    return device, bool(units.get("amx_bf16") or units.get("avx512_bf16"))


def first_lambda(arguments):
    """The bound of the first epoch: None, no bound at all, for every strategy but qam+ocm."""
    if arguments.strategy not in ("qam+ocm", "loss"):
        return None
    return 2.0 if arguments.lam == "auto" else arguments.lam


def look(losses):
    """The rejected share by the mean of some epochs' losses, each (N, classes); None for too few
    labels, below evaluation.ENOUGH_LABELS.
    """
    mean_losses = torch.stack(losses).nanmean(dim=0)
    if (~mean_losses.isnan()).any(dim=1).sum() < evaluation.ENOUGH_LABELS:
        return None
    return rejected_share(mean_losses)


def print_share(share, lam):
    """What `look` found, in a line."""
    if share is None:
        found = "too few labels to tell a group of bad ones"
    elif share == 0:
        found = "no group of bad labels"
    else:
        found = f"{share:.0%} of the labels form a group with a high loss"
    after = "" if lam is None else f": lambda {lam:.2f} from here on"
    print(f"half-way: {found}{after}")


def check_strategy(arguments, training):
    """BadInput for an oracle that knows of no noisy label, or of no clean one."""
    if arguments.strategy == "oracle" and (training.noisy.all() or not training.noisy.any()):
        raise BadInput("--strategy oracle needs clean and noisy labels, and knowledge of which is "
                       "which; add --noise or --clean")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on run_main reports it
    evaluation.run_main(lambda: train(parse_arguments()))
