"""README.md: its commands run, and its tables are what their commands print."""
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run, write_folder

import data

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"python (train|eval)\.py", line)]


def marked(name):
    """The command below the mark <!-- name -->."""
    return re.search(rf"<!-- {name} -->\n```\n(.*)\n```", README)[1]


def test_the_two_commands_set_up_and_run():
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python"
    assert marked("run") == f"{setup} train.py --noise 0.5 --band 5-13"
    assert marked("test") == f"{setup} -m pytest -q tests"


def small(words, out):
    """The words of a training command, made to end in seconds."""
    if "--data" not in words:
        words = [*words, "--data", "phantoms:9"]
    if "--out" not in words:
        words = [*words, "--out", str(out)]
    words = [word for word in words if word != "--resume"]
    return [*words, "--size", "64", "--epochs", "1", "--batch", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with FOLDER, OTHER and TRUTH, as a reader of the README would have them."""
    folder = tmp_path_factory.mktemp("readme")
    images, masks = data.phantoms(9, size=64)
    for name in ("FOLDER", "OTHER", "TRUTH"):
        write_folder(folder / name, images, **dict(zip(data.CLASSES, np.swapaxes(masks, 0, 1))))
    done = run("train.py", *small(["--noise", "0.5"], folder / "runs" / "first"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, place):
    _, script, *words = shlex.split(command)
    if script == "train.py" and "--help" not in words:
        words = small(words, place / "runs" / str(COMMANDS.index(command)))
    words = [re.sub(r"^(RUN|runs/\S+-seed0)$", "runs/first", word) for word in words]
    done = run(script, *words, cwd=place)
    assert done.returncode == 0, done.stderr


def test_run_folders_named_in_the_readme_are_those_of_its_commands():
    import train
    arguments = train.parse_arguments(["--noise", "0.5", "--band", "5-13"])
    assert f"runs/{train.folder_name(arguments, vars(arguments))} " in README


def test_tables_are_what_their_commands_print():
    command = [sys.executable, str(ROOT / ".github" / "results" / "make.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / ".github" / "results" / "README.md").read_text(encoding="utf-8")
    assert README.count("<!-- python ") == 1 and page.count("<!-- python ") >= 5


def test_pictures_and_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
