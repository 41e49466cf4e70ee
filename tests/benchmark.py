"""How fast is it, and where does the time go? Prints two tables in about a minute; no thresholds.

    python tests/benchmark.py

The limit of a training step is its floating point operations at the rate of a large matrix product,
which is measured in the same run; memory traffic comes on top. Times are medians.
"""
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import eval as evaluation  # noqa: E402
import train  # noqa: E402

ARGUMENTS = train.parse_arguments([])
DEVICE, BF16 = train.choose_device("auto", "auto")


def median_seconds(job, repetitions=5):
    """The median time of job(), after one call to warm up."""
    seconds = []
    for _ in range(repetitions + 1):
        begun = time.perf_counter()
        job()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def one_step(size):
    """A function that trains for one step on random pictures of this size."""
    classes, batch = ("one", "two", "three"), ARGUMENTS.batch
    unet, qam = evaluation.build_networks({**vars(ARGUMENTS), "size": size}, classes, DEVICE)
    optimiser, schedule = train.make_optimiser(unet, qam, ARGUMENTS, steps=1000)
    images = torch.randint(256, (batch, size, size), dtype=torch.uint8, device=DEVICE)
    labels = torch.rand(batch, len(classes), size, size, device=DEVICE) < 0.3
    rng = torch.Generator().manual_seed(0)

    def step():
        train.train_epoch(unet, qam, optimiser, schedule, images, labels, batch, lam=2.0, rng=rng,
                          bf16=BF16)
    return step


def print_steps():
    """The time of a training step at two sizes, and its limit."""
    kind = torch.bfloat16 if BF16 else torch.float32
    matrix = torch.rand(4096, 4096, device=DEVICE).to(kind)
    rate = 2 * 4096 ** 3 / median_seconds(lambda: matrix @ matrix)
    print(f"matrix product {rate / 1e9:.0f} GFLOP/s")
    for size in (128, 256):
        step = one_step(size)
        with FlopCounterMode(display=False) as counter:
            step()
        limit = counter.get_total_flops() / rate
        seconds = median_seconds(step)
        print(f"a step of {ARGUMENTS.batch} at {size} x {size}: {seconds:.3f} s, "
              f"limit {limit:.3f} s ({seconds / limit:.1f} times)")


def print_main_job(count=48):
    """Where the seconds of a run on the phantoms go, per image."""
    pictures, masks = data.phantoms(count)
    noisy, operation, pixels = data.corrupt_labels(masks, 0.5, (5, 13), seed=0)
    small = [data.resize(array, ARGUMENTS.size) for array in (pictures, noisy, masks)]
    cases = data.Cases([f"phantom{i}" for i in range(count)], *small, operation, pixels)
    unet, qam = evaluation.build_networks(vars(ARGUMENTS), data.CLASSES, DEVICE)

    def report():
        metrics, rows = evaluation.evaluate(unet, qam, data.CLASSES, cases, cases, DEVICE, 2.0)
        with tempfile.TemporaryDirectory() as folder:
            evaluation.write_report(Path(folder), unet, data.CLASSES, cases, rows, [], DEVICE)

    jobs = {"draw phantoms": lambda: data.phantoms(count),
            "damage labels": lambda: data.corrupt_labels(masks, 0.5, (5, 13), seed=0),
            "resize": lambda: [data.resize(array, ARGUMENTS.size) for array in (pictures, masks)],
            "evaluate and report": report}
    for name, job in jobs.items():
        print(f"{name:20s} {1000 * median_seconds(job, 3) / count:7.1f} ms an image")


if __name__ == "__main__":
    print(f"{DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"numpy {np.__version__}, {'bf16' if BF16 else 'fp32'}")
    print_steps()
    print_main_job()
