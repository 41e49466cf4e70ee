"""README.md: its commands and its code run, and its links lead somewhere."""
import re
import shlex

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import ROOT, run, write_folder

import data
import eval as evaluation
import pal
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"python \S+\.py", line)]
FIRST = "runs/phantoms-qam+ocm-0.5-5-13-seed0"  # the run folder of the first command


def marked(name):
    """The command below the mark <!-- name -->."""
    return re.search(rf"<!-- {name} -->\n```\n(.*)\n```", README)[1]


def test_the_two_commands_set_up_and_run():
    setup = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python"
    assert marked("run") == f"{setup} train.py --noise 0.5 --band 5-13"
    assert marked("test") == f"{setup} -m pytest -q tests"
    arguments = train.parse_arguments(["--noise", "0.5", "--band", "5-13"])
    assert FIRST == f"runs/{train.run_name(arguments)}" and f"python eval.py {FIRST}" in README


def small(words):
    """The words of a training command, made to end in seconds."""
    if "--data" not in words:
        words = [*words, "--data", "phantoms:9"]
    return [*words, "--size", "64", "--epochs", "1", "--batch", "4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as a reader has it: FOLDER, OTHER, PATTERNS, bad.txt, and the first run."""
    folder = tmp_path_factory.mktemp("readme")
    images, masks = data.phantoms(9, size=64)
    by_class = dict(zip(data.CLASSES, np.swapaxes(masks, 0, 1)))
    for name in ("FOLDER", "OTHER"):
        write_folder(folder / name, images, **by_class)
    files = {"imgs/{}.jpg": images, "masks/{}_mask.gif": masks[:, 1] * np.uint8(255),
             "CXR/{}.png": images, "left/{}.png": masks[:, 0] * np.uint8(255),
             "right/{}.png": masks[:, 0] * np.uint8(255),
             "labels/{}.png": masks[:, 1] * np.uint8(85)}
    for pattern, arrays in files.items():
        for i, array in enumerate(arrays):
            path = folder / "PATTERNS" / pattern.replace("{}", f"case{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path, array)
    (folder / "bad.txt").write_text("case3\n")
    done = run("train.py", *small(["--noise", "0.5", "--out", FIRST]), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_there_are_commands_to_test():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_command_runs(number, place):
    """In the order of the README, since some use what others made."""
    _, script, *words = shlex.split(COMMANDS[number])
    if "--images" in words and "FOLDER" in words:
        words[words.index("FOLDER")] = "PATTERNS"
    if script == "train.py" and "--resume" not in words:
        words = small(words)
        if "--out" not in words:
            words += ["--out", f"runs/{number}"]
    done = run(script, *words, cwd=place)
    assert done.returncode == 0, done.stderr


def test_networks_in_own_code(place, monkeypatch):
    """The lines of "Your data" on the run folder that the commands made."""
    monkeypatch.chdir(place)
    lines = re.search(r"```python\n(unet, qam, settings = .*?)```", README, re.DOTALL)[1]
    paths = [f"OTHER/images/case{i}.png" for i in range(2)]
    names = {"eval": evaluation, "data": data, "torch": torch, "paths": paths}
    exec(lines, names)
    assert names["masks"].shape == (2, 3, 64, 64) and names["settings"]["size"] == 64


def test_the_lines_to_port_train_both_networks():
    lines = re.search(r"```python\n(qam = pal.QAM.*?)```", README, re.DOTALL)[1]
    torch.manual_seed(0)
    unet, images, labels = pal.UNet(), torch.randn(4, 1, 32, 32), torch.rand(4, 3, 32, 32) < 0.3
    names = {"torch": torch, "pal": pal, "unet": unet, "steps": 9, "images": images,
             "labels": labels}
    exec(lines, names)
    assert all(parameter.grad is not None for parameter in unet.parameters())
    assert names["qam"].score.bias.grad is not None


@pytest.mark.parametrize("page", ["README.md", *[f".github/{name}.md" for name in
                                                 ("PAPER", "DATA", "PORTING", "TEACHING")]])
def test_images_and_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https)([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_names_of_code_in_the_readme_exist():
    for module, name in re.findall(r"`(pal|data|train|eval)\.(?!py)(\w+)`", README):
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b|^{name} = ", source, re.MULTILINE), name
