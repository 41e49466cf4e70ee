"""Lets the tests import the scripts beside this folder, and shares what several test files need."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--data", "phantoms:30", "--size", "64", "--epochs", "2", "--batch", "8", "--seed", "3"]

sys.path.insert(0, str(ROOT))


def run(script, *arguments, cwd=None):
    """The finished process of `python script arguments`, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run folder, not to be changed, and what train.py printed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train.py", *TINY, "--noise", "0.5", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout
