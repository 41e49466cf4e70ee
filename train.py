"""Train a segmentation network on noisy labels, with Pick-and-Learn or with uniform weights.

    python train.py --noise 0.5 --band 5-13                      # phantoms, minutes on a laptop
    python train.py --noise 0.5 --band 5-13 --strategy baseline  # the same with uniform weights
    python train.py --data FOLDER                                # your images, labels as they are
    python train.py --data FOLDER --noise 0.75 --paper           # the settings of section 3.2
    python train.py --resume RUN                                 # go on with an interrupted run

The run folder (--out) receives config.json, log.csv, suspects.csv, suspects.html, metrics.json, and
checkpoint.pt.
"""
import argparse
import json
import math
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import data
import eval as evaluation
from data import GRID, BadInput
from pal import (auto_lambda, pick_and_learn, quality_weights, rejected_share, sample_losses,
                 standardize, weighted_loss)

# What --paper changes. Also: lambda 2, no area trend, constant learning rates, Adam's defaults. The
# networks stay ours.
SECTION_3_2 = dict(size=256, batch=32, lr=1e-4, qam_lr=1e-4, augment=False)
STRATEGIES = ("baseline", "loss", "qam", "qam+ocm", "oracle")
SHIFT = 1 / 16  # `augment` shifts by up to this share of the image's side
ZOOM = 0.1  # and makes it up to a tenth smaller or larger
TURN = 5.0  # and rotates it by up to so many degrees
LOOK = 3  # epochs up to halfway whose mean losses estimate the share of bad labels
ENOUGH_STEPS, ENOUGH_LABELS = 300, 60  # with fewer, scores were seen to lock onto bad labels
DICE_EVERY = 4  # epochs: testing after each would take a tenth longer


# -------------------------------------------------------------------------------- one training step
# A step takes losses (N, classes), labels (N, classes, H, W), raw scores (N,) and lambda. It
# returns the loss and the weights (N,). `pal.pick_and_learn` is the method; these are the others.

def step_without_trend(losses, labels, scores, lam):
    """Compute eq. (1) as the paper has it; with equal scores, the baseline."""
    weights = quality_weights(scores, lam)
    return weighted_loss(losses, weights), weights.detach()


def oracle_step(losses, labels, scores, lam):
    """Weight clean labels (score 1) equally, and noisy ones (score 0) not at all."""
    weights = scores / scores.sum().clamp_min(1)  # a mini-batch may have no clean label
    return weighted_loss(losses, weights), weights


def loss_step(losses, labels, scores, lam):
    """Trust labels of small loss, without a QAM."""
    weights = quality_weights(evaluation.loss_scores(losses, labels), lam)
    return weighted_loss(losses, weights), weights


# ------------------------------------------------------------------------------- the training loop

def augment(images, labels, rng):
    """Shift, scale and rotate each image with its label, at random. Not in the paper.

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


class Recipe(NamedTuple):
    """How `train_epoch` trains."""
    batch: int = 16                     # labels in a mini-batch
    lam: float = 2.0                    # the bound of eq. (2); None: no OCM
    step: Callable = pick_and_learn     # see above
    fixed_scores: torch.Tensor = None   # (N,) instead of the QAM's, which then does not run
    augmented: bool = True
    bf16: bool = False


def train_epoch(unet, qam, optimizer, schedule, images, labels, rng, recipe):
    """Train for one epoch on images (N, H, W) uint8 and labels (N, classes, H, W) bool.

    rng: a torch.Generator on the CPU. Returns, on the CPU: raw scores (N,), weights x batch (N,),
    losses (N, classes). They are NaN for labels that were in no mini-batch, losses also where the
    label is empty: they only tell whether anything is predicted.
    """
    batch = recipe.batch
    if len(images) < batch:
        raise ValueError(f"{len(images)} images do not fill a mini-batch of {batch}")
    unet.train()
    qam.train()
    device = images.device
    all_scores = torch.full((len(images),), math.nan, device=device)
    all_weights = torch.full((len(images),), math.nan, device=device)
    all_losses = torch.full(labels.shape[:2], math.nan, device=device)
    order = torch.randperm(len(images), generator=rng).to(device)
    mini_batches = order.split(batch)[:len(images) // batch]  # full ones only
    for indices in data.progress(mini_batches, "training steps"):
        inputs, targets = standardize(images[indices][:, None]), labels[indices]
        if recipe.augmented:
            inputs, targets = augment(inputs, targets, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            logits = unet(inputs)  # (batch, classes, H, W)
            if recipe.fixed_scores is None:
                scores = qam(inputs, targets)  # (batch,)
            else:
                scores = recipe.fixed_scores[indices]
        losses = sample_losses(logits.float(), targets)  # (batch, classes)
        loss, weights = recipe.step(losses, targets, scores.float(), recipe.lam)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        empty = ~(targets > 0).flatten(2).any(dim=2)  # (batch, classes)
        all_scores[indices] = scores.detach().float()
        all_weights[indices] = weights * batch
        all_losses[indices] = losses.detach().masked_fill(empty, math.nan)
    return all_scores.cpu(), all_weights.cpu(), all_losses.cpu()


def make_optimizer(unet, qam, arguments, steps):
    """Return Adam and its learning-rate schedule over `steps` mini-batches.

    The paper: 1e-4 for all, the optimizer not named. Ours: one cycle, the QAM 25 times slower than
    the U-Net. A single number as max_lr would give both the same rate.
    """
    rates = [arguments.lr, arguments.qam_lr]
    groups = [{"params": unet.parameters(), "lr": arguments.lr},
              {"params": qam.parameters(), "lr": arguments.qam_lr}]
    if arguments.paper:
        optimizer = torch.optim.Adam(groups)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    # OneCycleLR overrides the 0.9: beta1 falls from 0.95 to 0.85 and rises again.
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)


def make_recipe(arguments, training, device, bf16):
    """Return the Recipe of a strategy for the Cases `training`."""
    equal = torch.zeros(len(training.names), device=device)
    is_clean = torch.from_numpy(~training.noisy).to(device).float()
    equation_1 = pick_and_learn if arguments.area_trend else step_without_trend
    step, fixed_scores = {"baseline": (step_without_trend, equal), "loss": (loss_step, equal),
                          "qam": (equation_1, None), "qam+ocm": (equation_1, None),
                          "oracle": (oracle_step, is_clean)}[arguments.strategy]
    lam = 2.0 if arguments.lam == "auto" else arguments.lam  # auto: the paper's until halfway
    batch = min(arguments.batch, len(training.names))
    return Recipe(batch, lam, step, fixed_scores, arguments.augment, bf16)


def has_fast_bf16(device, cpu):
    """Tell whether training in bfloat16 is faster there: by its units, so that no run changes."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # A step in bfloat16 / float32, one thread: AMD 120 / 172 ms; Intel without AMX 487 / 416 ms.
    is_amd = "AMD" in cpu.get("cpu_name", "")
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and is_amd))


def train(arguments):
    """Train one run, from the data to suspects.html; see the module's docstring."""
    started = time.perf_counter()

    # 1. Data
    check_arguments(arguments)
    out = Path(arguments.out or arguments.resume or Path("runs") / run_name(arguments))
    if out.exists() and not arguments.resume:
        raise BadInput(f"{out} exists already; train.py --resume {out} goes on with it, or choose "
                       "another --out")
    training, test = data.load(data.options_of(arguments))
    if len(training.names) < 3:
        raise BadInput(f"{arguments.data}: {len(training.names)} training images; three or more "
                       "are needed: add images")
    if arguments.strategy == "oracle" and not 0 < training.noisy.mean() < 1:
        raise BadInput("--strategy oracle needs clean and noisy labels; choose --noise between 0 "
                       "and 1, or add --clean")
    print_data_summary(training, test)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.from_numpy(training.images).to(device)  # (N, H, W) uint8
    labels = torch.from_numpy(training.labels).to(device)  # (N, classes, H, W) bool

    # 2. Networks and optimizer
    unet, qam = evaluation.build_networks(vars(arguments), len(training.classes), device)
    cpu = getattr(torch.cpu, "get_capabilities", dict)()  # {} if this torch does not tell
    recipe = make_recipe(arguments, training, device, has_fast_bf16(device, cpu))
    steps = len(images) // recipe.batch  # in an epoch
    optimizer, schedule = make_optimizer(unet, qam, arguments, arguments.epochs * steps)
    parts = {"unet": unet, "qam": qam, "optimizer": optimizer, "schedule": schedule}

    # 3. The run folder, and what is in it if this run was interrupted
    settings = {name: value for name, value in vars(arguments).items()
                if name not in ("out", "resume")}
    state = {"arguments": settings, "classes": list(training.classes), "lam": recipe.lam,
             "share": None, "losses": [], "label_weights": [], "log": [],
             "digest": data.digest(training, test)}
    if arguments.resume:
        state.update(resume(out, state["digest"], parts))
    else:
        out.mkdir(parents=True)
        evaluation.write_json(out / "config.json", {
            "arguments": settings, "digest": state["digest"], "commit": commit(),
            "device": str(device), "cpu": cpu.get("cpu_name") or platform.processor(),
            "bf16": recipe.bf16, "threads": torch.get_num_threads(),
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__})
    log = state["log"]
    if log:
        started -= log[-1]["seconds"]  # of training before the interruption

    # 4. Epochs
    for epoch in range(len(log) + 1, arguments.epochs + 1):
        # A generator per epoch, so that a resumed run draws the same numbers. (Epoch 1001 of seed 0
        # draws the same as epoch 1 of seed 1.)
        rng = torch.Generator().manual_seed(1000 * arguments.seed + epoch)
        scores, weights, losses = train_epoch(unet, qam, optimizer, schedule, images, labels, rng,
                                              recipe._replace(lam=state["lam"]))
        parameters = [*unet.parameters(), *qam.parameters()]
        if not all(parameter.isfinite().all() for parameter in parameters):
            raise BadInput(f"{out}: epoch {epoch} gave numbers that are not finite; the checkpoint "
                           "before it, if any, is kept; start again with a smaller --lr")
        row = epoch_row(epoch, scores, weights, losses, training, state["lam"])
        row.update(epoch_dice(unet, test, epoch, arguments.epochs))
        row["seconds"] = time.perf_counter() - started
        log.append(row)
        print_epoch(row, arguments.epochs)
        state["label_weights"].append(weights)
        state["losses"] = [*state["losses"], losses][-LOOK:]
        if epoch == max(1, arguments.epochs // 2):  # once: lambda for the second half
            is_auto = arguments.lam == "auto" and epoch < arguments.epochs
            state["share"], state["lam"] = choose_lambda(state["losses"], state["lam"], is_auto)
        state_dicts = {name: part.state_dict() for name, part in parts.items()}
        evaluation.save_checkpoint(out / "checkpoint.pt", {**state, **state_dicts})
        evaluation.write_csv(out / "log.csv", log)

    # 5. Evaluation: metrics first, so that an error in a plot does not lose them
    metrics, rows = evaluation.evaluate(unet, qam, training, test, state["lam"], arguments.strategy)
    metrics["rejected_share"] = state["share"]
    metrics["warnings"] = warnings_of(arguments, metrics, training, test)
    metrics["seconds"] = {"total": time.perf_counter() - started}
    evaluation.write_json(out / "metrics.json", metrics)
    evaluation.print_results(metrics, training.known)
    for warning in metrics["warnings"]:
        print(f"warning: {warning}")
    print(share_text(state["share"]))
    if (out / "suspects.csv").exists():  # and may have been edited
        print(f"{out / 'suspects.csv'} is kept as it is")
    else:
        evaluation.write_csv(out / "suspects.csv", rows)
    evaluation.write_page(out / "suspects.html", unet, rows, [training, test])
    print(f"look at the worst labels in {out / 'suspects.html'}: mark the bad ones, save the list, "
          "leave them out with --exclude")


def choose_lambda(losses, lam, is_auto):
    """Estimate the share of bad labels from the losses of some epochs, a list of (N, classes).

    Returns it, None for fewer labels than ENOUGH_LABELS, and lambda from here on: `lam` as it was,
    unless is_auto and there are enough labels.
    """
    losses = torch.stack(losses).nanmean(dim=0)  # (N, classes)
    share = None
    if (~losses.isnan().all(dim=1)).sum() >= ENOUGH_LABELS:  # that are not empty
        share = rejected_share(losses)
        lam = auto_lambda(share) if is_auto else lam
    line = f"halfway: {share_text(share)}"
    if lam is not None:
        line += f"; lambda {lam:.2g} from here on"
    print(line)
    return share, lam


def share_text(share):
    """Write the estimated share of bad labels as text."""
    if share is None:
        return "too few labels to tell how many are bad"
    if share == 0:
        return "no group of bad labels seen, though single ones may be bad"
    return f"about {share:.0%} of the labels form a group of their own with a high loss"


# ----------------------------------------------------------------------------- what a run reports

def print_data_summary(training, test):
    """Print what a careful reader checks first: counts, sizes, areas, and what the noise did."""
    def per_class(values):
        pairs = zip(training.classes, values)
        return ", ".join(f"{name} {evaluation.cell(value)}" for name, value in pairs)

    count, size, noisy = len(training.names), training.images.shape[-1], training.noisy
    print(f"{count} training and {len(test.names)} test images, {size} x {size}")
    print(f"share of foreground: {per_class(training.labels.mean(axis=(0, 2, 3)))}")
    if not training.known:
        print("which labels are clean is not known")
        return
    kinds = [f"{training.operation.count(kind)} {kind}"
             for kind in sorted(set(training.operation) - {""})]
    print(f"noise: {noisy.sum()} of {count} labels changed ({noisy.mean():.1%}) {', '.join(kinds)}")
    if noisy.any():
        given, clean = training.labels[noisy], training.clean[noisy]
        dice = evaluation.mean_dice(torch.from_numpy(given), torch.from_numpy(clean),
                                    training.classes)
        vanished = (clean.any(axis=(2, 3)) & ~given.any(axis=(2, 3))).sum(axis=0)  # (classes,)
        lost = ", ".join(f"{number} {name}" for number, name in zip(vanished, training.classes))
        print(f"share of foreground, clean: {per_class(training.clean.mean(axis=(0, 2, 3)))}")
        print(f"Dice of noisy against clean labels: {per_class(dice.values())}; vanished: {lost}")


def epoch_row(epoch, scores, weights, losses, training, lam):
    """Make a row of log.csv from what `train_epoch` returned: losses, weights, AUROC."""
    scores, weights = scores.double().numpy(), weights.double().numpy()
    losses = losses.double().nanmean(dim=1).numpy()  # of the classes that the label has
    seen, known = np.isfinite(weights), np.isfinite(losses)
    row = {"epoch": epoch, "lam": lam, "loss": mean(weights[known] * losses[known])}
    if not training.known:
        return row
    noisy = training.noisy
    for kind, members in (("clean", ~noisy), ("noisy", noisy)):
        chosen = weights[members & seen]
        row[f"loss_{kind}"] = mean(losses[members & known])
        row[f"weight_{kind}_mean"] = mean(chosen)
        row[f"weight_{kind}_variance"] = mean((chosen - mean(chosen)) ** 2)
    row["auroc"] = evaluation.auroc(scores[seen], ~noisy[seen])
    row["loss_auroc"] = evaluation.auroc(-losses[known], ~noisy[known])
    return row


def mean(values):
    """Return the mean as a Python number, which a checkpoint can hold; NaN of no values."""
    return float(np.mean(values)) if len(values) else math.nan


def epoch_dice(unet, test, epoch, epochs):
    """Return columns of log.csv: mean Dice on test labels, NaN in epochs that are not evaluated."""
    dice = dict.fromkeys((*test.classes, "average"), math.nan)
    if epoch % DICE_EVERY == 0 or epoch == epochs:
        prediction = evaluation.predict(unet, torch.from_numpy(test.images)).cpu()
        dice = evaluation.mean_dice(prediction, torch.from_numpy(test.clean), test.classes)
    return {f"dice_{name}": value for name, value in dice.items()}


def print_epoch(row, epochs):
    """Print the line of an epoch."""
    left = row["seconds"] / row["epoch"] * (epochs - row["epoch"])
    line = f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.3f}"
    clean, noisy = row.get("weight_clean_mean"), row.get("weight_noisy_mean", math.nan)
    if math.isfinite(noisy):
        line += f"  weight x N: clean {clean:.2f} noisy {noisy:.2f}"
    dice = row["dice_average"]
    if dice is not None and math.isfinite(dice):
        line += f"  test Dice {dice:.3f}"
    print(f"{line:75s}{left:4.0f} s left", flush=True)


def warnings_of(arguments, metrics, training, test):
    """List what the metrics do not say by themselves, each with what to do about it."""
    count, effective = len(training.names), metrics["effective_sample_size"]
    steps_per_epoch = count // min(arguments.batch, count)
    steps = arguments.epochs * steps_per_epoch
    share, warnings = metrics["rejected_share"], []
    if count < ENOUGH_LABELS:
        warnings.append(f"{count} training labels; to tell labels apart, have {ENOUGH_LABELS}, and "
                        "look at each of these few yourself")
    if steps < ENOUGH_STEPS:
        warnings.append(f"{steps} training steps; to tell labels apart, have {ENOUGH_STEPS}: "
                        f"--epochs {math.ceil(ENOUGH_STEPS / steps_per_epoch)}")
    if arguments.noise == 0 and effective < count / 2:  # no surprise if noise was added on purpose
        warnings.append(f"the weights rest on {effective:.0f} of {count} labels; compare with "
                        "--strategy baseline, or lower --lam")
    if arguments.noise == 0 and (share or 0) > 0.4:
        warnings.append(f"{share:.0%} of the labels contradict the rest, and the larger group "
                        "counts as right: look at suspects.html before you believe it")
    for c, name in enumerate(training.classes):
        dice, areas = metrics["dice"][name], test.clean[:, c].mean(axis=(1, 2))
        areas = areas[areas > 0]  # of the images that have the class
        if dice is not None and dice <= np.mean(2 * areas / (1 + areas)):
            warnings.append(f"Dice {dice:.3f} of {name} is no better than foreground everywhere; "
                            "look at its labels, or raise --epochs")
    return warnings


# ------------------------------------------------------------------------------------- run folders

def run_name(arguments):
    """Name a run after its data, strategy, noise, band, seed, and what else is not the default."""
    a, source = arguments, Path(arguments.data).absolute().name.replace(":", "")
    name = f"{source}-{a.strategy}-{a.noise:g}-{a.band}-seed{a.seed}"
    for option, usual in (("noise_kind", "erode-dilate"), ("size", 128), ("lam", "auto"),
                          ("epochs", 40), ("paper", False)):
        if getattr(a, option) not in (usual, None):
            name += f"-{option.replace('_', '-')}-{getattr(a, option)}"
    return name


def resume(out, digest, parts):
    """Load the checkpoint, if there is one, into `parts`; return the rest of it, or {}."""
    if json.loads((out / "config.json").read_text())["digest"] != digest:
        raise BadInput(f"{out}: the data are no longer those of this run; say with --data where "
                       "they lie now, or begin a new run")
    if not (out / "checkpoint.pt").exists():  # interrupted in the first epoch
        return {}
    checkpoint = evaluation.read_checkpoint(out)
    for name, part in parts.items():
        part.load_state_dict(checkpoint.pop(name))
    checkpoint.pop("arguments")  # the data may have moved
    return checkpoint


def commit():
    """Return the commit of this file's clone, with "+" if files were changed; None elsewhere."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() or None
    except OSError:  # no git
        return None


# ------------------------------------------------------------------------------------ command line

def auto_or_number(text):
    """Convert the value of --lam."""
    return text if text == "auto" else float(text)


def parse_arguments(argv=None):
    """Parse the command line; with --resume take the run's own options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = evaluation.usage_error
    data.add_options(parser)
    add = parser.add_argument
    add("--group", metavar="REGEX", help="images whose paths have the same match stay together")
    add("--clean", nargs="+", metavar="PATTERN", help="better masks of some images, to test on")
    add("--exclude", metavar="FILE", help="names to leave out: one a line, or a suspects.csv")
    add("--test-images", metavar="PATTERN", help="separate test images instead of a split")
    add("--test-masks", nargs="+", metavar="PATTERN", help="their masks")
    add("--strategy", default="qam+ocm", choices=STRATEGIES,
        help="baseline: equal weights; loss: small losses count more, no QAM; qam: no bound; "
             "qam+ocm (default); both with our area trend; oracle: clean labels only")
    add("--noise", type=float, help="share of labels to damage (phantoms 0.5, folders 0)")
    add("--band", default="5-13", help="radius of the noise in pixels of a 256 grid (%(default)s)")
    add("--noise-kind", default="erode-dilate",
        help=f"of {', '.join(data.DAMAGE)}, joined by - (%(default)s)")
    add("--lam", type=auto_or_number,
        help="lambda of eq. (2); auto (default): 2, later 0 to 2 by the share of bad labels")
    add("--size", type=int, default=128, help="side of the networks' images, pixels (%(default)s)")
    add("--epochs", type=int, default=40, help="passes over the training data (%(default)s)")
    add("--batch", type=int, default=16, help="size of the mini-batch (%(default)s)")
    add("--lr", type=float, default=1e-2, help="the U-Net's highest learning rate (%(default)s)")
    add("--qam-lr", type=float, default=4e-4, help="the QAM's highest learning rate (%(default)s)")
    add("--area-trend", action=argparse.BooleanOptionalAction,
        help="hide from the QAM what a label's area alone says about its loss (default)")
    add("--augment", action=argparse.BooleanOptionalAction, default=True,
        help="shift, scale and rotate images and labels a little")
    add("--width", type=int, default=8, help="channels of the U-Net at full size (%(default)s)")
    add("--seed", type=int, default=0, help="for split, noise, networks, order (%(default)s)")
    add("--out", help="the run folder; by default one in runs/")
    add("--resume", metavar="RUN", help="go on with a run as it began; --data: where its data are")
    literal = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in SECTION_3_2.items())
    add("--paper", action="store_true",
        help=f"section 3.2, our networks: lambda 2, no area trend, constant rates, {literal}")
    arguments = parser.parse_args(argv)
    if arguments.resume:
        typed = {word.partition("=")[0] for word in argv or sys.argv[1:] if word[:2] == "--"}
        if typed - {"--resume", "--data"}:
            parser.error("--resume takes the options of the run, beside it only --data")
        return arguments_of_run(arguments.resume, arguments.data if "--data" in typed else None)
    if arguments.paper:  # changes defaults, so the line is parsed again: what is typed still wins
        parser.set_defaults(**SECTION_3_2)
        arguments = parser.parse_args(argv)
    if arguments.noise is None:
        arguments.noise = 0.5 if arguments.data.partition(":")[0] == "phantoms" else 0.0
    choose_method(arguments)
    return arguments


def arguments_of_run(run, moved_data):
    """Return the arguments that a run was begun with; moved_data: where its data lie now."""
    try:
        settings = json.loads((Path(run) / "config.json").read_text())["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"--resume {run}: no run folder of train.py, it lacks config.json") from None
    settings["data"] = moved_data or settings["data"]
    return argparse.Namespace(**settings, out=None, resume=run)


def choose_method(arguments):
    """Fill in lambda and area trend; BadInput if they are given to a strategy without them."""
    a = arguments
    if a.strategy in ("qam+ocm", "loss"):
        if a.lam is None:
            a.lam = 2.0 if a.paper else "auto"
    elif a.lam is not None:
        raise BadInput(f"--lam: --strategy {a.strategy} has no lambda; leave it out")
    if a.strategy in ("qam", "qam+ocm"):
        if a.area_trend is None:
            a.area_trend = not a.paper
    elif a.area_trend is not None:
        raise BadInput(f"--[no-]area-trend: --strategy {a.strategy} has no choice; leave it out")


def check_arguments(arguments):
    """Raise BadInput for values out of range, before anything is read."""
    a, band = arguments, re.fullmatch(r"(\d+)-(\d+)", arguments.band)
    wanted = [
        ("noise", 0 <= a.noise <= 1, "a share from 0 to 1"),
        ("band", band and 1 <= int(band[1]) <= int(band[2]) < GRID, "such as 5-13, smaller-larger"),
        ("noise_kind", set(a.noise_kind.split("-")) <= set(data.DAMAGE),
         f"one or several of {', '.join(data.DAMAGE)}, joined by -"),
        ("lam", a.lam in (None, "auto") or 0 <= a.lam < math.inf, "auto, or 0 or more"),
        ("size", 32 <= a.size <= GRID and a.size % 16 == 0, f"a multiple of 16 from 32 to {GRID}"),
        ("epochs", a.epochs >= 1, "1 or more"),
        ("batch", a.batch >= 3, "3 or more, better 16,"),
        ("lr", 0 <= a.lr < math.inf, "0 or more"),
        ("qam_lr", 0 <= a.qam_lr < math.inf, "0 or more"),
        ("width", 1 <= a.width <= 1024, "from 1 to 1024"),
        ("seed", 0 <= a.seed < 2 ** 31, "from 0 to 2147483647")]
    for name, good, needed in wanted:
        if not good:
            option = name.replace("_", "-")
            raise BadInput(f"--{option} {getattr(a, name)}: {needed} is needed; see --help")


if __name__ == "__main__":
    evaluation.run_main(lambda: train(parse_arguments()))
