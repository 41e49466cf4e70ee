"""How fast is it, and how fast could it be? No test and no thresholds: prints tables, in minutes on an idle machine.

    python tests/benchmark.py                       # everything
    python tests/benchmark.py step parts            # some of: step parts scaling morphology start
    python tests/benchmark.py scaling 200 20000     # with these numbers of phantoms

The limit of a training step is the larger of two times: its floating point operations at the rate of a large matrix
product, and the bytes that its operations read and write, each operand once, at the rate of a large copy. Both rates
are measured here, in the same run. All times are medians of interleaved repetitions.
"""
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
import eval as evaluation  # noqa: E402
import pal  # noqa: E402
import train  # noqa: E402

DEVICE, BF16 = train.choose_device("auto", "auto")
DEFAULTS = vars(train.parse_arguments([]))
BATCH = DEFAULTS["batch"]


def median_times(jobs, repetitions=7):
    """{name: median seconds} of {name: function}, run in turns after one round to warm up."""
    seconds = {name: [] for name in jobs}
    for repetition in range(repetitions + 1):
        for name, job in jobs.items():
            begun = now()
            job()
            if repetition:
                seconds[name].append(now() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def now():
    """Seconds, after the device has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Traffic(TorchDispatchMode):
    """Sums the bytes of the tensors that each operation reads and writes; views move nothing."""
    total = 0

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        if not operation.is_view:
            tensors = [leaf for leaf in tree_leaves((arguments, keywords, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def training_step(size, bf16=BF16, memory_format=torch.channels_last):
    """One training step on random pictures as {part: function}, "input" to "optimiser", to be called in turn."""
    torch.manual_seed(0)
    unet, qam = (network.to(DEVICE, memory_format=memory_format) for network in (pal.UNet(), pal.QAM()))
    optimiser = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-4)
    pictures = torch.randint(256, (BATCH, size, size), dtype=torch.uint8, device=DEVICE)
    labels = torch.rand(BATCH, 3, size, size, device=DEVICE) < 0.3
    state = {}

    def make_input():
        state["images"], state["labels"] = (array.contiguous(memory_format=memory_format) for array in train.augment(
            evaluation.network_input(pictures), labels, DEFAULTS["shift"], DEFAULTS["zoom"], DEFAULTS["turn"]))

    def forward(name, network, *names):
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            state[name] = network(*(state[key] for key in names)).float()

    def make_loss():
        losses = pal.sample_losses(state["logits"], state["labels"])
        weights = pal.quality_weights(state["scores"])
        state["loss"] = pal.pick_and_learn_loss(losses, weights, pal.area_trend(losses, state["labels"], weights))

    return {"input": make_input, "U-Net forward": lambda: forward("logits", unet, "images"),
            "QAM forward": lambda: forward("scores", qam, "images", "labels"), "loss": make_loss,
            "backward": lambda: (optimiser.zero_grad(), state["loss"].backward()), "optimiser": optimiser.step}


def rates():
    """Operations per second of a matrix product, as the networks run it, and bytes per second of a copy."""
    matrix = torch.rand(4096, 4096, device=DEVICE, dtype=torch.bfloat16 if BF16 else torch.float32)
    block = torch.rand(2 ** 26, device=DEVICE)  # 256 MiB, larger than any cache
    target = torch.empty_like(block)
    seconds = median_times({"product": lambda: matrix @ matrix, "copy": lambda: target.copy_(block)}, 5)
    return 2 * 4096 ** 3 / seconds["product"], 2 * 4 * len(block) / seconds["copy"]


def step():
    """The limit of a step, its time, their ratio; precisions and memory formats."""
    matrix_rate, copy_rate = rates()
    print(f"matrix product {matrix_rate / 1e9:.0f} GFLOP/s, copy {copy_rate / 1e9:.1f} GB/s")
    for size in (DEFAULTS["size"], 256):
        ways = {"fp32, NCHW": (False, torch.contiguous_format), "fp32, channels_last": (False, torch.channels_last)}
        if BF16:
            ways |= {"bf16, NCHW": (True, torch.contiguous_format), "bf16, channels_last": (True, torch.channels_last)}
        steps = {name: training_step(size, *way) for name, way in ways.items()}
        used = steps[f"{'bf16' if BF16 else 'fp32'}, channels_last"]
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            for part in used.values():
                part()
        operations, moved = flops.get_total_flops(), traffic.total
        limit = max(operations / matrix_rate, moved / copy_rate)
        print(f"\n{size} x {size}, mini-batch {BATCH}: {operations / 1e9:.1f} GFLOP, {moved / 1e9:.2f} GB: "
              f"{operations / matrix_rate:.3f} s and {moved / copy_rate:.3f} s, limit {limit:.3f} s")
        seconds = median_times({name: lambda parts=parts: [part() for part in parts.values()]
                                for name, parts in steps.items()})
        for name, value in seconds.items():
            print(f"  {name:20s} {value:7.3f} s a step, {value / limit:5.2f} x the limit")


def parts():
    """Where the time of a default run goes."""
    size, pictures = DEFAULTS["size"], data.phantoms(BATCH)
    arguments = {**DEFAULTS, "noise": 0.5}
    seconds = median_times(training_step(size))
    total = sum(seconds.values())
    print(f"a step at {size} x {size}: {total:.3f} s")
    for name, value in seconds.items():
        print(f"  {name:20s} {value:7.4f} s {value / total:6.1%}")
    unet, qam = evaluation.build(arguments, data.CLASSES, DEVICE)
    small = data.resize(pictures[0], size), data.resize(pictures[1], size)
    images, labels = (torch.from_numpy(array).to(DEVICE) for array in small)
    cases = data.Cases([str(i) for i in range(BATCH)], *small, small[1], [""] * BATCH, np.zeros(BATCH, dtype=int))
    rows = evaluation.label_rows(unet, qam, cases, DEVICE, 2.0)
    jobs = {"draw phantoms": lambda: data.phantoms(BATCH),
            "corrupt labels": lambda: data.corrupt_labels(pictures[1], 1.0, (5, 13), 0),
            "resize": lambda: [data.resize(array, size) for array in pictures],
            "predict": lambda: evaluation.predict(unet, images),
            "score labels": lambda: evaluation.score_labels(unet, qam, images, labels),
            "pictures of a run": lambda: (evaluation.sample_sheet(unet, cases, DEVICE),
                                          evaluation.suspect_sheet(unet, cases, rows, [*range(12)], DEVICE))}
    for name, value in median_times(jobs, 3).items():
        each = "" if name.startswith("pictures") else f", {BATCH / value:7.0f} a second"
        print(f"{name:20s} {value:7.3f} s{each}")


def scaling(counts=(200, 2000)):
    """Time per image and memory of a whole run of one epoch as the data grow."""
    watch = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
             "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, ROOT / "train.py", "--data", f"phantoms:{count}", "--epochs", "1", "--out",
                       Path(folder) / "run"]
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True)
            seconds = time.perf_counter() - begun
        memory = int(done.stdout)  # KiB
        print(f"{count:6d} phantoms, one epoch: {seconds:7.1f} s, {1000 * seconds / count:6.1f} ms an image, "
              f"{memory / 1024:7.0f} MiB at most, {memory / count:6.0f} KiB an image")


def morphology():
    """Our erosion and dilation against scipy's distance transform, which must give the same masks."""
    masks = data.phantoms(8)[1].reshape(-1, 256, 256)
    try:
        from scipy.ndimage import distance_transform_edt as distance
    except ImportError:
        distance = None
        print("scipy is not installed: our times only")
    for n in (1, 5, 8, 13):
        for name, ours, route in (("dilate", data.dilate, lambda mask: distance(~mask) <= n),
                                  ("erode", data.erode, lambda mask: distance(mask) > n)):
            jobs = {"ours": lambda: [ours(mask, n) for mask in masks]}
            if distance:
                jobs["scipy"] = lambda: [route(mask) for mask in masks]
            seconds = {name: 1000 * value / len(masks) for name, value in median_times(jobs, 3).items()}
            line = f"{name:6s} {n:2d} pixels: {seconds['ours']:.3f} ms a mask"
            if distance:
                same = all(np.array_equal(ours(mask, n), route(mask)) for mask in masks)
                line += f", scipy {seconds['scipy']:.3f} ms, {seconds['scipy'] / seconds['ours']:.1f} times ours; " \
                        + ("the same masks" if same else "OTHER MASKS")
            print(line)


def start():
    """How long a user waits before anything happens."""
    commands = {name: [sys.executable, "-c", f"import {name}"] for name in ("data", "pal", "eval", "train")}
    commands |= {f"{name} --help": [sys.executable, f"{name}.py", "--help"] for name in ("train", "eval")}
    jobs = {name: lambda command=command: subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            for name, command in commands.items()}
    for name, value in median_times(jobs, 3).items():
        print(f"{name:14s} {value:6.2f} s")


if __name__ == "__main__":
    counts = tuple(int(word) for word in sys.argv[1:] if word.isdigit())
    everything = ("step", "parts", "scaling", "morphology", "start")
    chosen = [word for word in sys.argv[1:] if not word.isdigit()] or everything
    train.keep_memory()
    print(f"{DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}, {'bf16' if BF16 else 'fp32'}")
    for name in chosen:
        print(f"\n== {name}: {globals()[name].__doc__}")
        scaling(counts or (200, 2000)) if name == "scaling" else globals()[name]()
