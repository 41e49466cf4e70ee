"""Make the reports in this folder: train every run of the tables that has none here yet.

    python .github/results/runs.py DATA [WORKERS]   # all, WORKERS (2) processes of one thread each
    python .github/results/runs.py --list           # the command of each run

DATA has the folders JSRT, nuclei, nuclei_fixed, bloodcells, facade, and without-hearts
(`make.py phantoms-without-hearts`). A run's checkpoint and plots stay in DATA/runs; its reports,
config.json and metrics.json, are copied here. A run that was interrupted begins anew.
"""
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CELLS = '--masks nucleus=labels/{}.png=255 cytoplasm=labels/{}.png=128'
STREETS = ('--images images/{}.jpg --masks building=labels/{}.png=#800000 '
           'car=labels/{}.png=#800080 road=labels/{}.png=#804000 sky=labels/{}.png=#008080 '
           'vegetation=labels/{}.png=#008000')
FIXED = "../nuclei_fixed/masks/{}.png"
SEEDS = (0, 1, 2)
RUNS = []  # (folder of the report, variant or None, options)


def add(folder, options, strategies=("",), seeds=SEEDS, variant=None):
    """Add a run for each strategy and seed."""
    for seed in seeds:
        for strategy in strategies:
            chosen = f"--strategy {strategy} " if strategy else ""
            RUNS.append((folder, variant, f"{options} {chosen}--seed {seed}"))


# Table 1 and its neighbors, the most important rows first
for noise in (0.5, 0.75, 0.25):
    add("jsrt-128", f"--data JSRT --noise {noise} --band 5-13",
        ("baseline", "loss", "qam", "qam+ocm", "oracle"))
add("jsrt-128", "--data JSRT --noise 0", ("baseline", "qam", "qam+ocm"))
add("jsrt-128", "--data JSRT --noise 0.9 --band 5-13", ("baseline", "loss", "qam+ocm", "oracle"))
# What the QAM looks at, and which loss needs the area trend
add("no-image", "--data JSRT --noise 0.5 --noise-kind swap", variant="no-image")
add("no-image", "--data JSRT --noise 0.75", variant="no-image")
add("no-image", "--data JSRT --noise 0.5 --band 1-8", variant="no-image")
add("kinds", "--data JSRT --noise 0.5 --noise-kind swap", ("baseline", "qam+ocm"))
for noise in (0.5, 0.75, 0.9):
    add("cross-entropy", f"--data JSRT --noise {noise} --no-area-trend --lam 2",
        variant="cross-entropy")
for noise in (0.25, 0.5, 0.75):
    add("no-area-trend", f"--data JSRT --noise {noise} --no-area-trend --lam 2")
for noise in (0.5, 0.75, 0.25):
    add("jsrt-128", f"--data JSRT --noise {noise} --band 1-8", ("baseline", "qam", "qam+ocm"))
add("facade", f"--data facade {STREETS}", ("baseline", "qam+ocm"))
add("facade", f"--data facade {STREETS} --noise 0.5", ("baseline", "qam+ocm"))
for folder, reading in (("nuclei", "--data nuclei"), ("bloodcells", f"--data bloodcells {CELLS}")):
    for noise in (0, 0.5):
        add(folder, f"{reading} --noise {noise}", ("baseline", "loss", "qam+ocm"))
    add(folder, f"{reading} --noise 0 --lam 2")
add("nuclei-corrected", f"--data nuclei --clean {FIXED}", ("baseline", "qam+ocm"))
add("empty", "--data without-hearts", ("baseline", "qam+ocm"))
for kind in ("dilate", "erode"):
    add("jsrt-128", f"--data JSRT --noise 0.4 --noise-kind {kind}", ("baseline", "qam+ocm"))
for kind in ("shift", "omit"):
    add("kinds", f"--data JSRT --noise 0.5 --noise-kind {kind}", ("baseline", "qam+ocm"))
add("phantoms", "--noise 0.5", ("baseline", "qam", "qam+ocm"))
for noise in (0, 0.25, 0.5, 0.75, 0.9):
    add("lambda", f"--data JSRT --noise {noise} --lam 2")
add("lambda", "--data JSRT --noise 0.75 --lam 1")
add("coin", "--data JSRT --noise 0.5 --band 9-11 --noise-kind dilate", ("baseline", "qam+ocm"))
add("no-augment", "--data JSRT --noise 0.75 --no-augment")
# The paper's own settings, until the baseline no longer rises
for noise in (0.75, 0.5, 0.25):
    add("paper", f"--data JSRT --noise {noise} --paper --size 128 --epochs 1000",
        ("baseline", "qam+ocm", "qam"), seeds=(0,))
# The paper's size
for noise in (0.75, 0.5, 0.25):
    add("jsrt-256", f"--data JSRT --noise {noise} --size 256", ("baseline", "qam", "qam+ocm"))
add("jsrt-256", "--data JSRT --noise 0 --size 256", ("baseline", "qam", "qam+ocm"), (0,))
for noise in (0.75, 0.5, 0.25):
    add("jsrt-256", f"--data JSRT --noise {noise} --band 1-8 --size 256",
        ("baseline", "qam", "qam+ocm"), (0,))


def name_of(options):
    """Name a run after its options, without what says how a folder is read."""
    words = options.replace(STREETS, "").replace(CELLS, "").replace(FIXED, "")
    name = "".join(words.replace("--data ", "--").split())[2:].replace("--", "-")
    return name if "--data" in options else f"phantoms-{name}"


def train(run, place):
    """Train one run in the folder `place`, unless its report is here already."""
    folder, variant, options = run
    name = name_of(options)
    report, out = HERE / folder / name, place / "runs" / folder / name
    if (report / "metrics.json").exists():
        return
    script = [str(ROOT / "train.py")] if not variant else [str(HERE / "variants.py"), variant]
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, *script, *options.split(), "--out", str(out)]
    done = subprocess.run(command, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    print(f"{folder}/{name}: {done.stderr or 'done'}".strip(), flush=True)
    if done.returncode == 0:
        report.mkdir(parents=True)
        files = ["config.json", "metrics.json"]
        if folder == "jsrt-128" and "5-13 --strategy qam+ocm" in options:
            files.append("log.csv")  # for the table of early scores
        for file in files:
            shutil.copy(out / file, report)


def main(words):
    """Print the commands, or train what is missing; see the module's docstring."""
    if words == ["--list"]:
        for folder, variant, options in RUNS:
            script = f".github/results/variants.py {variant}" if variant else "train.py"
            print(f"python {script} {options}  # {folder}/{name_of(options)}")
        return
    with ThreadPoolExecutor(int(words[1]) if len(words) > 1 else 2) as workers:
        list(workers.map(lambda run: train(run, Path(words[0]).resolve()), RUNS))


if __name__ == "__main__":
    main(sys.argv[1:])
