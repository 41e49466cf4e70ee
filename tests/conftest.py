"""Lets the tests import the scripts beside this folder, and shares what several test files need."""
import csv
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--data", "phantoms:30", "--size", "64", "--epochs", "2", "--batch", "8", "--seed", "3"]

sys.path.insert(0, str(ROOT))


def run(script, *arguments, cwd=None):
    """The finished process of `python script arguments`, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run folder, not to be changed, and what train.py printed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train.py", *TINY, "--noise", "0.5", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout
