"""README.md: its commands and its code run, and its links lead somewhere."""
import re
import runpy
import shlex
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import ROOT, run, train_here, write_folder

import data
import eval as evaluation
import pal
import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if re.match(r"python \S+\.py", line)]
SETUP = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python"
FIRST = "--noise 0.5 --band 5-13"  # the options of the first run, into which others look
SMALL = "--size 64 --epochs 1 --batch 4"  # makes a training command end in seconds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder as a reader has it: FOLDER, OTHER, PATTERNS, bad.txt, and the first run."""
    folder = tmp_path_factory.mktemp("readme")
    images, masks = data.phantoms(9, size=64)
    lungs, heart, clavicles = np.swapaxes(masks, 0, 1)
    for name in ("FOLDER", "OTHER"):
        write_folder(folder / name, images, lungs=lungs, heart=heart, clavicles=clavicles)
    files = {"imgs/{}.jpg": images, "masks/{}_mask.gif": heart * np.uint8(255),
             "CXR/{}.png": images, "left/{}.png": lungs * np.uint8(255),
             "right/{}.png": lungs * np.uint8(255), "labels/{}.png": heart * np.uint8(85)}
    for pattern, arrays in files.items():
        (folder / "PATTERNS" / pattern).parent.mkdir(parents=True)
        for i, array in enumerate(arrays):
            iio.imwrite(folder / "PATTERNS" / pattern.replace("{}", f"case{i}"), array)
    (folder / "bad.txt").write_text("case3\n")
    out = f"runs/{train.run_name(train.parse_arguments(FIRST.split()))}"
    assert f"python eval.py {out}" in README
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_here(f"{FIRST} --data phantoms:9 {SMALL} --out {out}")
    return folder


def test_the_two_commands_set_up_and_run():
    marked = dict(re.findall(r"<!-- (run|test) -->\n```\n(.*)\n```", README))
    assert marked == {"run": f"{SETUP} train.py {FIRST}", "test": f"{SETUP} -m pytest -q tests"}
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_command_runs(number, place, monkeypatch):
    """In the order of the README, since some use what others made."""
    _, script, *words = shlex.split(COMMANDS[number])
    if "--images" in words and "FOLDER" in words:
        words[words.index("FOLDER")] = "PATTERNS"
    if script == "train.py" and "--resume" not in words:
        words += SMALL.split()
        if "--data" not in words:
            words += ["--data", "phantoms:9"]
        if "--out" not in words:
            words += ["--out", f"runs/{number}"]
    if any(f"python {script} " in command for command in COMMANDS[:number]):  # in this process
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / script), run_name="__main__")  # SystemExit if it fails
    else:
        done = run(script, shlex.join(words), cwd=place)
        assert done.returncode == 0, done.stderr


def test_networks_in_own_code(place, monkeypatch):
    """The lines of "Your data" on the run folder that the commands made."""
    monkeypatch.chdir(place)
    lines = re.search(r"```python\n(unet, qam, settings = .*?)```", README, re.DOTALL)[1]
    names = {"eval": evaluation, "data": data, "torch": torch,
             "paths": ["OTHER/images/case0.png", "OTHER/images/case1.png"]}
    exec(lines, names)
    assert names["masks"].shape == (2, 3, 64, 64) and names["settings"]["size"] == 64


def test_the_lines_to_port_train_both_networks():
    lines = re.search(r"```python\n(qam = pal.QAM.*?)```", README, re.DOTALL)[1]
    names = {"torch": torch, "pal": pal, "unet": pal.UNet(), "steps": 9,
             "images": torch.randn(4, 1, 32, 32), "labels": torch.rand(4, 3, 32, 32) < 0.3}
    exec(lines, names)
    learned = [*names["unet"].parameters(), names["qam"].score.bias]
    assert all(parameter.grad is not None for parameter in learned)


@pytest.mark.parametrize("page", ["README.md", *[f".github/{name}.md" for name in
                                                 ("PAPER", "DATA", "PORTING", "TEACHING")]])
def test_links_and_names_of_code_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https)([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for module, name in re.findall(r"`(pal|data|train|eval)\.(?!py)(\w+)`", text):
        source = (ROOT / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b|^{name} = ", source, re.MULTILINE), name
