"""Lets the tests import the scripts beside this folder, and shares what several test files need."""
import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = "--data phantoms:30 --size 64 --epochs 5 --batch 4 --qam-lr 0.02 --noise 0.5 --out"

sys.path.insert(0, str(ROOT))
import train  # noqa: E402


def run(script, options, **more):
    """The finished process of `python script options`, its output as text."""
    command = [sys.executable, str(ROOT / script), *shlex.split(options)]
    return subprocess.run(command, capture_output=True, text=True, **more)


def train_here(options):
    """Do what train.py does, in this process: importing PyTorch anew takes seconds."""
    train.train(train.parse_arguments(options.split()))


def read_metrics(folder):
    """The metrics of a run folder."""
    return json.loads((Path(folder) / "metrics.json").read_text())


def read_csv(path):
    """The rows of a CSV file as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_folder(root, images, **classes):
    """A folder of PNGs as users have them: images/ and one folder of masks (0 or 255) per class."""
    for name, arrays in {"images": images, **classes}.items():
        (root / name).mkdir(parents=True)
        for i, array in enumerate(arrays):
            image = array.astype(np.uint8) * 255 if array.dtype == bool else array
            iio.imwrite(root / name / f"case{i}.png", image)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A new working folder, so that run folders have short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run folder, not to be changed, and what train.py printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = run("train.py", f"{TINY} tiny", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "tiny", done.stdout
