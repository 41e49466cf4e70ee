"""Train a segmentation network on noisy labels with Pick-and-Learn, or with uniform weights for comparison.

    python train.py --noise 0.5 --band 5-13                        # phantoms, in minutes on a laptop CPU
    python train.py --noise 0.5 --band 5-13 --strategy baseline    # the same with uniform weights
    python train.py --data FOLDER --noise 0                        # your images and labels as they are
    python train.py --data FOLDER --noise 0.75 --paper             # the settings of section 3.2, with our networks

A run folder (--out) receives config.json, log.csv, labels.csv, suspects.csv, metrics.json, checkpoint.pt, pictures.
"""
import argparse
import ctypes
import json
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np

import data
from data import GRID, BadInput

SECTION_3_2 = dict(size=256, batch=32, lr=1e-4, qam_lr=1e-4, lam=2.0, schedule="constant", area_neutral=False,
                   shift=0.0, zoom=0.0, turn=0.0, beta2=0.999)  # for --paper


def number(kind, low, high=math.inf):
    """An argparse type: an int or float (`kind`) from low to high."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' * (kind is int)}number from {low} to {high}")
        return value
    return convert


def pixel_band(text):
    """An argparse type: "5-13", the smallest and the largest radius in pixels of the 256-pixel grid."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) < GRID:
        raise argparse.ArgumentTypeError(f"{text} is not a band such as 5-13, smaller-larger, from 1 to {GRID - 1}")
    return text


def noise_kind(text):
    """An argparse type: names of kinds of noise joined by -, such as "erode-dilate"."""
    if not set(text.split("-")) <= set(data.DAMAGE):
        raise argparse.ArgumentTypeError(f"{text} is not one or several of {', '.join(data.DAMAGE)}, joined by -")
    return text


def parse_arguments(argv=None):
    """The command line as a namespace; `--paper` moves the defaults, so that what is typed beside it still counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = data.refuse
    add = parser.add_argument
    data.add_options(parser)
    add("--clean", help="a folder like --data with clean labels of the same images, to measure with")
    add("--group", metavar="PATTERN", help="split by patient: a regular expression for the patient in a file name")
    add("--strategy", default="qam+ocm", choices=("baseline", "qam", "qam+ocm"), help="baseline: uniform weights")
    add("--noise", type=number(float, 0, 1), default=None, help="share of training labels to damage; "
        "without it 0.5 of phantoms, 0 of a folder")
    add("--band", type=pixel_band, default="5-13", help="by how many pixels, on a grid of 256 x 256")
    add("--noise-kind", type=noise_kind, default="erode-dilate", help="one or several of "
        + ", ".join(data.DAMAGE) + ", joined by -")
    add("--lam", type=number(float, 0), default=2.0, help="lambda of eq. (2), the bound on a score")
    add("--size", type=number(int, 1), default=128, help="height and width of the pictures the networks see, in pixels")
    add("--epochs", type=number(int, 1), default=40, help="passes over the training data")
    add("--batch", type=number(int, 2), default=16, help="samples over which the weights sum to 1; use 8 or more")
    add("--lr", type=number(float, 0), default=1e-2, help="the U-Net's learning rate, at its highest")
    add("--qam-lr", type=number(float, 0), default=4e-4, help="the QAM's learning rate, at its highest")
    add("--beta2", type=number(float, 0, 0.99999), default=0.99, help="Adam's decay of squared gradients")
    add("--schedule", default="one-cycle", choices=("one-cycle", "constant"), help="of both learning rates")
    add("--area-neutral", action=argparse.BooleanOptionalAction, default=True,
        help="hide from the QAM what the area of a label alone predicts of its loss")
    add("--shift", type=number(float, 0, 1), default=0.0625, help="augmentation: shift, up to this share of the size")
    add("--zoom", type=number(float, 0, 1), default=0.1, help="augmentation: larger or smaller by up to this share")
    add("--turn", type=number(float, 0, 180), default=5.0, help="augmentation: rotation, up to this many degrees")
    add("--width", type=number(int, 1), default=8, help="channels of the U-Net at full size")
    add("--seed", type=number(int, 0, 2 ** 31), default=0, help="of split, noise, networks and order of the data")
    add("--device", default="auto", help="auto is cuda when available, else cpu")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="auto is bf16 where the hardware has it")
    add("--out", default=None, help="the run folder; without it, one in runs/ named after the settings")
    add("--resume", action="store_true", help="go on with an interrupted run in --out; a finished one is only shown")
    add("--paper", action="store_true", help="as defaults, section 3.2 with our networks: "
        + ", ".join(f"{name} {value}" for name, value in SECTION_3_2.items()).replace("_", "-"))
    if parser.parse_args(argv).paper:
        parser.set_defaults(**SECTION_3_2)
    arguments = parser.parse_args(argv)
    if arguments.noise is None:
        arguments.noise = 0.5 if arguments.data.partition(":")[0] == "phantoms" else 0.0
    return arguments


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, where there are any, beside the options, and the module's docstring as it stands."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def choose_device(name, precision):
    """The torch device, and whether the networks run in bfloat16: by default where the hardware has units for it."""
    import torch
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name}: {str(error).splitlines()[0]}; leave --device out") from None
    units = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    has_bf16 = (torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda"
                else units.get("amx_bf16") or units.get("avx512_bf16"))
    return device, precision == "bf16" or precision == "auto" and bool(has_bf16)


def keep_memory():
    """Linux: what is freed stays with this process, which needs it again in the next step. Saves a third of the time at
    256 x 256, 5 % at 128 x 128; elsewhere nothing is done.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: give nothing back
        mallopt(-4, 0)  # M_MMAP_MAX: no pages of its own for a large tensor
    except (OSError, AttributeError):  # not Linux, or not the GNU C library
        pass


def run_folder(arguments, settings):
    """The run folder's path; BadInput where it exists and --resume is not given, or was begun with other settings."""
    named = ("data", "strategy", "noise", "band", "seed")  # and whatever is not as usual
    usual = vars(parse_arguments(["--paper"] * arguments.paper))
    others = [f"-{name}{value}" for name, value in settings.items() if name not in named and value != usual[name]]
    out = Path(arguments.out or "runs/{data}-{strategy}-{noise:g}-{band}-seed{seed}".format(
        **{**settings, "data": Path(arguments.data).absolute().name.replace(":", "")})
        + "-paper" * arguments.paper + re.sub("[^-.\\w]", "", "".join(others)))
    if out.exists() and not arguments.resume:
        raise BadInput(f"{out} exists already; add --resume to go on with it, or choose another --out")
    if (out / "config.json").exists():
        try:
            before = json.loads((out / "config.json").read_text())["arguments"]
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{out}/config.json is not one of train.py; choose another --out") from None
        changed = [f"{name} was {before.get(name)}, is {value}" for name, value in settings.items()
                   if before.get(name) != value]
        if changed:
            raise BadInput(f"{out} was begun with other settings ({'; '.join(changed)}); choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} is not a run folder, there is no config.json in it; choose another --out")
    return out


def write_json(path, content):
    """Writes `content` as readable JSON."""
    replace(path, lambda other: other.write_text(json.dumps(content, indent=1) + "\n"))


def replace(path, write):
    """Lets write(other) make a file beside `path`, then puts it in its place: a kill leaves the old or the new one."""
    other = path.with_name(path.name + ".new")
    try:
        write(other)
        os.replace(other, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        reason = str(error).splitlines()[0][:80]
        raise BadInput(f"{path}: cannot be written ({reason}); make room, then --resume") from None


def describe(classes, training, test):
    """Prints what a careful reader checks first: counts, sizes, areas, and what the noise did to the labels."""
    from torch import from_numpy
    from eval import dice_figures

    def per_class(values):
        return ", ".join(f"{name} {value:.3f}" for name, value in zip(classes, values))
    count, size, changed = len(training.names), training.images.shape[-1], training.noisy
    print(f"{count} training and {len(test.names)} test images, {size} x {size}")
    print(f"share of foreground: {per_class(training.labels.mean(axis=(0, 2, 3)))}; in the clean labels: "
          f"{per_class(training.clean.mean(axis=(0, 2, 3)))}")
    kinds = [f"{training.operation.count(kind)} {kind}" for kind in sorted({*training.operation} - {""})]
    print(f"noise: {changed.sum()} of {count} labels changed ({changed.mean():.1%}) {', '.join(kinds)}")
    if changed.any():
        noisy, clean = training.labels[changed], training.clean[changed]
        dice = dice_figures(from_numpy(noisy), from_numpy(clean), classes)
        vanished = (clean.any(axis=(2, 3)) & ~noisy.any(axis=(2, 3))).sum(axis=0)
        print(f"Dice of noisy against clean labels: {per_class(dice.values())}; "
              f"vanished: {', '.join(f'{n} {name}' for n, name in zip(vanished, classes))}")


def augment(images, labels, shift, zoom, turn, rng=None):
    """Each image (N, 1, H, W) with its label (N, classes, H, W), shifted, scaled and turned at random -> both, float.

    shift: share of the size; zoom: share, 0.1 for 1 / 1.1 to 1.1 times as large; turn: degrees; the most of each.
    """
    import torch
    import torch.nn.functional as F

    def draw(most):
        return most * (2 * torch.rand(len(images), generator=rng) - 1)
    scale, angle, x, y = draw(math.log1p(zoom)).exp(), draw(math.radians(turn)), draw(2 * shift), draw(2 * shift)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrices = torch.stack([cos, -sin, x, sin, cos, y], dim=1).view(-1, 2, 3).to(images.device)
    both = torch.cat([images, labels.float()], dim=1)  # (N, 1 + classes, H, W)
    grid = F.affine_grid(matrices, both.shape, align_corners=False)  # from -1 to 1 along each side
    both = F.grid_sample(both, grid, padding_mode="border", align_corners=False)
    both = both.contiguous(memory_format=torch.channels_last)
    return both[:, :1], (both[:, 1:] > 0.5).float()


def check_finite(losses, names, networks, epoch, out):
    """BadInput, before anything is saved, where a loss or a network is no finite number: the epoch, and the samples."""
    broken = [name for name, loss in zip(names, losses.tolist()) if not math.isfinite(loss)]
    if broken or not all(parameter.isfinite().all() for network in networks for parameter in network.parameters()):
        where = (", ".join(broken[:5]) or "a network") + " ..." * (len(broken) > 5)
        raise BadInput(f"{out}: epoch {epoch} gave numbers that are not finite, for {where}; the checkpoint of epoch "
                       f"{epoch - 1}, if any, is kept; start again with a smaller --lr")


def epoch_row(epoch, weights, losses, scores, kinds, dice, auroc):
    """A row of log.csv: weights (times N), losses and raw scores are (samples,); kinds: {name: bool (samples,)}."""
    row, noisy = {"epoch": epoch, "loss": (weights * losses).mean().item()}, kinds["noisy"]
    for kind, chosen in kinds.items():
        row[f"loss_{kind}"] = losses[chosen].mean().item()
        row[f"weight_{kind}_mean"] = weights[chosen].mean().item()
        row[f"weight_{kind}_variance"] = (weights[chosen] - weights[chosen].mean()).square().mean().item()
    row |= {"auroc": auroc(scores, ~noisy), "loss_auroc": auroc(-losses, ~noisy)}
    return row | {f"dice_{name}": value for name, value in dice.items()}


def show(row, epochs, seconds_left):
    """The line of an epoch."""
    weights = [f"{kind} {row[f'weight_{kind}_mean']:.2f}" for kind in ("clean", "noisy")
               if math.isfinite(row[f"weight_{kind}_mean"])]
    dice = f"test Dice {row['dice_average']:.3f}  " if math.isfinite(row["dice_average"]) else " " * 17
    print(f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.3f}  weight x N: {' '.join(weights)}  "
          f"{dice}{seconds_left:4.0f} s left", flush=True)


def peak_memory_mb(device):
    """The most memory this process has held, on the GPU if it trains there; None where Python cannot tell."""
    if device.type == "cuda":
        import torch
        return torch.cuda.max_memory_allocated(device) / 2 ** 20
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)


def train(arguments):
    """One run, from the data to the pictures; see the module's docstring for what it leaves in the run folder."""
    import torch  # here and not at the top, so that --help and mistakes are answered at once
    import eval as evaluation
    from pal import area_trend, pick_and_learn_loss, quality_weights, sample_losses

    started = time.perf_counter()
    keep_memory()
    device, reduced = choose_device(arguments.device, arguments.precision)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "resume", "paper")}
    out = run_folder(arguments, settings)
    if (out / "metrics.json").exists():
        print(f"{out} is finished")
        return evaluation.print_results(settings, evaluation.read_run(out)[1])
    classes, training, test = data.load(**{name: settings[name] for name in data.LOAD})
    describe(classes, training, test)
    unet, qam = evaluation.build(settings, classes, device)
    images, labels, test_images, truth = (torch.from_numpy(array).to(device) for array in
                                          (training.images, training.labels, test.images, test.clean))
    kinds = {"clean": ~training.noisy, "noisy": training.noisy} | {
        kind: np.array(training.operation) == kind for kind in sorted({*training.operation} - {""})}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", {
        "arguments": settings, "device": str(device), "bf16": reduced, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__})
    data_seconds = time.perf_counter() - started

    batch = min(arguments.batch, len(images))
    steps = len(images) // batch  # full mini-batches only: an epoch leaves out the last few of its random order
    rates = [arguments.lr, arguments.qam_lr]
    optimiser = torch.optim.Adam([{"params": network.parameters(), "lr": rate} for network, rate in
                                  zip((unet, qam), rates)], betas=(0.9, arguments.beta2))
    schedule = (torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=arguments.epochs * steps)
                if arguments.schedule == "one-cycle" else torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1))
    lam = arguments.lam if arguments.strategy == "qam+ocm" else None
    picking = arguments.strategy != "baseline"
    log, parts = [], {"unet": unet, "qam": qam, "optimiser": optimiser, "schedule": schedule}
    if (out / "checkpoint.pt").exists():
        checkpoint = evaluation.read_checkpoint(out / "checkpoint.pt", device)
        if (checkpoint["classes"], checkpoint["names"]) != (list(classes), training.names):
            raise BadInput(f"{arguments.data} is no longer what {out} was begun with; choose another --out")
        log = checkpoint["log"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])

    earlier = log[-1]["seconds"] if log else 0.0  # of training before an interruption
    begun = time.perf_counter() - earlier
    for epoch in range(len(log) + 1, arguments.epochs + 1):
        rng = torch.Generator().manual_seed(1000 * arguments.seed + epoch)  # so a resumed run draws the same numbers
        order = torch.randperm(len(images), generator=rng).to(device)
        seen = []
        unet.train(), qam.train()
        for indices in order.split(batch)[:steps]:
            inputs, label = augment(evaluation.network_input(images[indices]), labels[indices], arguments.shift,
                                    arguments.zoom, arguments.turn, rng)
            with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
                logits = unet(inputs)  # (N, classes, H, W)
                scores = qam(inputs, label) if picking else torch.zeros(batch, device=device)  # (N,)
            losses = sample_losses(logits.float(), label)  # (N, classes)
            weights = quality_weights(scores.float(), lam)  # (N,); scores of zero make it 1 / N: the baseline
            trend = area_trend(losses, label, weights) if picking and arguments.area_neutral else None
            loss = pick_and_learn_loss(losses, weights, trend)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            seen.append(torch.stack([indices, scores.detach(), weights.detach() * batch, losses.detach().mean(dim=1)]))

        indices, scores, weights, losses = torch.cat(seen, dim=1).cpu().double()
        indices = indices.long()
        check_finite(losses, [training.names[i] for i in indices], (unet, qam), epoch, out)
        dice = dict.fromkeys((*classes, "average"), math.nan)
        if epoch % 4 == 0 or epoch == arguments.epochs:  # not always: it would take a tenth of the time
            dice = evaluation.dice_figures(evaluation.predict(unet, test_images), truth, classes)
        log.append(epoch_row(epoch, weights, losses, scores, {kind: chosen[indices] for kind, chosen in kinds.items()},
                             dice, evaluation.auroc))
        log[-1]["seconds"] = time.perf_counter() - begun
        state = {"arguments": settings, "classes": list(classes), "names": training.names, "log": log,
                 **{name: part.state_dict() for name, part in parts.items()}}
        replace(out / "checkpoint.pt", lambda path: torch.save(state, path))
        evaluation.write_csv(out / "log.csv", log)
        show(log[-1], arguments.epochs, log[-1]["seconds"] / epoch * (arguments.epochs - epoch))

    metrics, rows = evaluation.evaluate(unet, qam, classes, training, test, device, lam)
    evaluation.write_report(out, unet, classes, training, rows, log, device)
    metrics["seconds"] = {"data": data_seconds, "train": log[-1]["seconds"],
                          "total": time.perf_counter() - started + earlier}
    metrics["peak_memory_mb"] = peak_memory_mb(device)
    write_json(out / "metrics.json", metrics)
    evaluation.print_results(settings, metrics)


if __name__ == "__main__":
    data.run(lambda: train(parse_arguments()))
