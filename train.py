"""Train a segmentation network on noisy labels with Pick-and-Learn, or with uniform weights for comparison.

    python train.py --noise 0.5 --band 5-13                        # phantoms, in minutes on a laptop CPU
    python train.py --noise 0.5 --band 5-13 --strategy baseline    # the same with uniform weights
    python train.py --data FOLDER --noise 0                        # your images and labels as they are
    python train.py --data FOLDER --noise 0.75 --paper             # every setting of section 3.2

A run folder (--out) receives config.json, log.csv, labels.csv, metrics.json, checkpoint.pt, curves.png, samples.png.
"""
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

from data import GRID, BadInput, load

PAPER = dict(size=256, batch=32, lr=1e-4, qam_lr=1e-4, lam=2.0, schedule="constant", warm_up=0, area_neutral="off", shift=0.0)


def number(kind, low, high=math.inf):
    """An argparse type: an int or float (`kind`) from low to high."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a {'whole ' * (kind is int)}number from {low} to {high}")
        return value
    return convert


def pixel_band(text):
    """An argparse type: "5-13", the smallest and the largest radius in pixels of the 256-pixel grid."""
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]) < GRID:
        raise argparse.ArgumentTypeError(f"{text} is not a band such as 5-13, from the smaller to the larger, 1 to {GRID - 1}")
    return text


def parse_arguments(argv=None):
    """The command line as a namespace; `--paper` moves the defaults, so that what is typed beside it still counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help, allow_abbrev=False)
    parser.error = refuse
    add = parser.add_argument
    add("--data", default="phantoms", help="a folder of images and masks; or phantoms:N for N phantoms")
    add("--strategy", default="qam+ocm", choices=("baseline", "qam", "qam+ocm"), help="baseline: uniform weights")
    add("--noise", type=number(float, 0, 1), default=0.5, help="share of the training labels that is eroded or dilated")
    add("--band", type=pixel_band, default="5-13", help="by how many pixels, on a grid of 256 x 256")
    add("--lam", type=number(float, 0), default=2.0, help="lambda of eq. (2), the bound on a score")
    add("--size", type=number(int, 1), default=128, help="height and width of the pictures the networks see, in pixels")
    add("--epochs", type=number(int, 1), default=40, help="passes over the training data")
    add("--batch", type=number(int, 2), default=32, help="samples in a mini-batch, whose weights sum to 1")
    add("--lr", type=number(float, 0), default=1e-2, help="the U-Net's learning rate, at its highest")
    add("--qam-lr", type=number(float, 0), default=2e-4, help="the QAM's learning rate, at its highest")
    add("--schedule", default="one-cycle", choices=("one-cycle", "constant"), help="of both learning rates")
    add("--warm-up", type=number(int, 0), default=0, help="epochs with uniform weights before the QAM joins")
    add("--area-neutral", default="fading", choices=("fading", "on", "off"), help="do not pay the QAM for what the area of a "
        "label alone predicts; fading: wholly up to 30 %% of the epochs, from 60 %% on no longer")
    add("--shift", type=number(float, 0, 1), default=0.0625, help="random shift of a mini-batch, up to this share of the size")
    add("--width", type=number(int, 1), default=8, help="channels of the U-Net at full size")
    add("--seed", type=number(int, 0), default=0, help="of the split, the noise, the networks and the order of the data")
    add("--device", default="auto", help="auto is cuda when available, else cpu")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="auto is bf16 where the hardware has it")
    add("--out", default=None, help="the run folder; without it, one in runs/ named after the settings")
    add("--resume", action="store_true", help="go on with an interrupted run in --out; a finished one is only shown")
    add("--paper", action="store_true", help="as defaults, the settings of section 3.2: "
        + ", ".join(f"{name} {value}" for name, value in PAPER.items()).replace("_", "-"))
    if parser.parse_args(argv).paper:
        parser.set_defaults(**PAPER)
    return parser.parse_args(argv)


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the module's docstring as it stands."""


def refuse(message):
    """What argparse does with a mistake: one line, like all bad input."""
    raise BadInput(f"{message}; see --help")


def choose_device(name, precision):
    """The torch device, and whether the networks run in bfloat16 there: slower than fp32 on a CPU without units for it."""
    import torch
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {name}: {str(error).splitlines()[0]}; leave --device out") from None
    has_bf16 = (torch.cuda.is_bf16_supported() if device.type == "cuda"
                else any(torch.cpu.get_capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16")))
    return device, precision == "bf16" or precision == "auto" and has_bf16


def run_folder(arguments, settings):
    """The path of the run folder; BadInput where it exists and --resume is not given, or was begun with other settings."""
    out = Path(arguments.out or "runs/{data}-{strategy}-{noise:g}-{band}-seed{seed}".format(
        **{**settings, "data": Path(arguments.data).resolve().name.replace(":", "")}))
    if out.exists() and not arguments.resume:
        raise BadInput(f"{out} exists already; add --resume to go on with it, or choose another --out")
    if (out / "config.json").exists():
        before = json.loads((out / "config.json").read_text())["arguments"]
        changed = [f"{name} was {before.get(name)}, is {value}" for name, value in settings.items() if before.get(name) != value]
        if changed:
            raise BadInput(f"{out} was begun with other settings ({'; '.join(changed)}); choose another --out")
    return out


def write_config(out, settings, device, reduced):
    """Makes the run folder and its config.json: every argument, versions, device."""
    import torch
    out.mkdir(parents=True, exist_ok=True)
    config = {"arguments": settings, "device": str(device), "bf16": reduced, "threads": torch.get_num_threads(),
              "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__,
              "numpy": np.__version__}
    replace(out / "config.json", lambda path: path.write_text(json.dumps(config, indent=1) + "\n"))


def replace(path, write):
    """Lets write(other_path) make a new file and puts it in place of `path` at once: a kill leaves the old or the new."""
    other = path.with_name(path.name + ".new")
    write(other)
    os.replace(other, path)


def describe(classes, training, test):
    """Prints what a careful reader checks first: counts, sizes, areas, and what the noise really did to the labels."""
    print(f"{len(training.names)} training and {len(test.names)} test images, {training.images.shape[-1]} pixels square")
    shares = (training.clean.mean(axis=(0, 2, 3)), training.labels.mean(axis=(0, 2, 3)))
    print("foreground: " + ", ".join(f"{name} {clean:.1%} (as trained {label:.1%})" for name, clean, label in zip(classes, *shares)))
    changed = np.flatnonzero(training.pixels)
    if not len(changed):
        return print("labels as they are, no noise added")
    one, other = training.labels[changed], training.clean[changed]
    agreement = 2 * (one & other).sum(axis=(2, 3)) / np.maximum(one.sum(axis=(2, 3)) + other.sum(axis=(2, 3)), 1)
    vanished = (~one.any(axis=(2, 3)) & other.any(axis=(2, 3))).sum()
    print(f"noise: {len(changed)} of {len(training.names)} labels changed ({len(changed) / len(training.names):.1%}; "
          f"{training.operation.count('erode')} eroded, {training.operation.count('dilate')} dilated), their Dice with the clean ones "
          + ", ".join(f"{name} {value:.2f}" for name, value in zip(classes, agreement.mean(axis=0))) + f"; organs that vanished: {vanished}")


def check_finite(losses, names, epoch, out):
    """BadInput that names the epoch and the samples whose loss is not a finite number; the last checkpoint stays as it is."""
    broken = [name for name, loss in zip(names, losses.tolist()) if not math.isfinite(loss)]
    if broken:
        raise BadInput(f"{out}: the loss of epoch {epoch} is not a finite number, for {', '.join(broken[:5])}"
                       f"{' ...' if len(broken) > 5 else ''}; the checkpoint of epoch {epoch - 1} is kept; try a smaller --lr")


def show(row, epochs, begun, done):
    """The live line of an epoch; in a terminal it overwrites the one before."""
    left = (time.perf_counter() - begun) / done * (epochs - row["epoch"])
    print(f"epoch {row['epoch']:3d}/{epochs}  loss {row['loss']:.3f}  weight x N: clean {row['weight_clean_mean']:.2f} noisy "
          f"{row['weight_noisy_mean']:.2f}  Dice {row['dice_average']:.3f}  {left:4.0f} s left  ",
          end="\r" if sys.stdout.isatty() and row["epoch"] < epochs else "\n", flush=True)


def mean(values):
    """Mean of a 1-D tensor as a float, NaN when it is empty."""
    return values.mean().item()


def variance(values):
    """Variance of a 1-D tensor as a float, NaN when it is empty."""
    return values.var(unbiased=False).item()


def peak_memory_mb(device):
    """The most memory this process has held: on the GPU where it trains there, else in RAM; None where Python cannot tell."""
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
    device, reduced = choose_device(arguments.device, arguments.precision)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("out", "resume", "paper")}
    out = run_folder(arguments, settings)
    if (out / "metrics.json").exists():
        print(f"{out} is finished:")
        return evaluation.print_results(*evaluation.read_run(out))
    classes, training, test = load(arguments.data, arguments.size, arguments.noise, arguments.band, arguments.seed)
    describe(classes, training, test)
    unet, qam = evaluation.build(settings, classes, device)
    write_config(out, settings, device, reduced)
    images, labels, test_images, truth = (torch.from_numpy(array).to(device) for array in
                                          (training.images, training.labels, test.images, test.clean))
    noisy = torch.from_numpy(training.pixels > 0)
    data_seconds = time.perf_counter() - started

    batch = min(arguments.batch, len(images))
    steps = len(images) // batch  # an epoch leaves out the last few of its random order: every mini-batch is a full one
    rates = [arguments.lr, arguments.qam_lr]
    optimiser = torch.optim.Adam([{"params": network.parameters(), "lr": rate} for network, rate in zip((unet, qam), rates)])
    schedule = (torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=arguments.epochs * steps)
                if arguments.schedule == "one-cycle" else torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1))
    reach = round(arguments.shift * arguments.size)
    lam = arguments.lam if arguments.strategy == "qam+ocm" else None
    log, parts = [], {"unet": unet, "qam": qam, "optimiser": optimiser, "schedule": schedule}
    if (out / "checkpoint.pt").exists():
        checkpoint = torch.load(out / "checkpoint.pt", map_location=device, weights_only=True)
        log = checkpoint["log"]
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])

    seconds_before = log[-1]["seconds"] if log else 0.0
    begun = time.perf_counter()
    for epoch in range(len(log) + 1, arguments.epochs + 1):
        picking = arguments.strategy != "baseline" and epoch > arguments.warm_up
        neutral = {"on": 1.0, "off": 0.0, "fading": min(1.0, max(0.0, 2 - epoch / arguments.epochs / 0.3))}[arguments.area_neutral]
        rng = torch.Generator().manual_seed(1000 * arguments.seed + epoch)  # a resumed run draws what it would have drawn
        order = torch.randperm(len(images), generator=rng)
        seen = []
        unet.train(), qam.train()
        for indices in order.to(device).split(batch)[:steps]:
            shift = torch.randint(-reach, reach + 1, (2,), generator=rng).tolist()
            inputs, label = (torch.roll(pictures, shift, dims=(2, 3)) for pictures in
                             (evaluation.network_input(images[indices]), labels[indices].float()))
            with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
                logits = unet(inputs)  # (N, classes, H, W)
                scores = qam(inputs, label).float() if picking else torch.zeros(batch, device=device)  # (N,)
            losses = sample_losses(logits.float(), label)  # (N, classes)
            weights = quality_weights(scores, lam)  # (N,); scores of zero make it 1 / N: the baseline
            loss = pick_and_learn_loss(losses, weights, neutral * area_trend(losses, label))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            seen.append(torch.stack([indices, scores.detach(), weights.detach() * batch, losses.detach().mean(dim=1)]))

        indices, scores, weights, losses = torch.cat(seen, dim=1).double().cpu()
        check_finite(losses, [training.names[int(i)] for i in indices], epoch, out)
        found = evaluation.dice_figures(evaluation.predict(unet, test_images), truth, classes)
        is_noisy = noisy[indices.long()]
        log.append({"epoch": epoch, "loss": (weights * losses).mean().item(),
                    **{f"loss_{kind}": mean(losses[rows]) for kind, rows in (("clean", ~is_noisy), ("noisy", is_noisy))},
                    **{f"dice_{name}": value for name, value in found.items()},
                    **{f"weight_{kind}_{figure.__name__}": figure(weights[rows])
                       for kind, rows in (("clean", ~is_noisy), ("noisy", is_noisy)) for figure in (mean, variance)},
                    "auroc": evaluation.auroc(scores, ~is_noisy),
                    "seconds": seconds_before + time.perf_counter() - begun})
        state = {"arguments": settings, "classes": list(classes), "log": log,
                 **{name: part.state_dict() for name, part in parts.items()}}
        replace(out / "checkpoint.pt", lambda path: torch.save(state, path))
        evaluation.write_csv(out / "log.csv", log)
        show(log[-1], arguments.epochs, begun, len(log))

    metrics, rows = evaluation.evaluate(unet, qam, classes, training, test, device, lam)
    evaluation.write_report(out, unet, classes, training, rows, log, device)
    metrics["seconds"] = {"data": data_seconds, "train": log[-1]["seconds"], "total": time.perf_counter() - started + seconds_before}
    metrics["peak_memory_mb"] = peak_memory_mb(device)
    replace(out / "metrics.json", lambda path: path.write_text(json.dumps(metrics, indent=1) + "\n"))
    evaluation.print_results(classes, metrics, settings)


if __name__ == "__main__":
    try:
        train(parse_arguments())
    except BadInput as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command with --resume goes on after the last finished epoch", file=sys.stderr)
        sys.exit(130)
