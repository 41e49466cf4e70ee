"""The scripts as a user runs them, on a tiny set."""
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

import data
import eval as evaluation

ROOT = Path(__file__).parent.parent
TINY = ["--data", "phantoms:30", "--size", "64", "--epochs", "2", "--batch", "8", "--seed", "3"]


def run(script, *arguments, cwd=None):
    """The finished process of `python script arguments`, its output as text."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run folder, and what train.py printed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train.py", *TINY, "--noise", "0.5", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_run_folder_is_complete(finished):
    out, printed = finished
    assert {p.name for p in out.iterdir()} == {"config.json", "log.csv", "labels.csv", "metrics.json", "checkpoint.pt",
                                               "curves.png", "samples.png"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["lungs", "heart", "clavicles", "average"]
    assert metrics["dice"]["average"] == pytest.approx(np.mean([metrics["dice"][name] for name in data.CLASSES]))
    assert set(metrics["pick"]) == {"auroc", "precision", "random_precision", "loss_auroc"}
    assert metrics["seconds"]["total"] >= metrics["seconds"]["train"] > 0
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["noise"] == 0.5 and config["arguments"]["band"] == "5-13" and config["torch"]
    for name in ("curves.png", "samples.png"):
        assert iio.imread(out / name).std() > 5
    for word in ("0.942", "this run", "s left", "AUROC", "10 of 20 labels changed"):
        assert word in printed


def test_tables_agree_with_the_metrics(finished):
    out, _ = finished
    metrics = json.loads((out / "metrics.json").read_text())
    rows, log = (list(csv.DictReader(open(out / name))) for name in ("labels.csv", "log.csv"))
    assert len(rows) == 20 and len(log) == 2
    clean = np.array([row["noisy"] == "0" for row in rows])
    scores, losses = (np.array([float(row[name]) for row in rows]) for name in ("score", "loss"))
    pairs = [(a > b) + (a == b) / 2 for a in scores[clean] for b in scores[~clean]]
    assert metrics["pick"]["auroc"] == pytest.approx(np.mean(pairs))
    pairs = [a < b for a in losses[clean] for b in losses[~clean]]
    assert metrics["pick"]["loss_auroc"] == pytest.approx(np.mean(pairs))
    best = sorted(range(20), key=lambda i: -scores[i])[:10]
    assert metrics["pick"]["precision"] == pytest.approx(np.mean([clean[i] for i in best]))
    assert metrics["pick"]["random_precision"] == 0.5
    assert float(log[-1]["dice_average"]) == metrics["dice"]["average"]
    weights = [float(row["weight"]) for row in rows]
    assert sum(weights) == pytest.approx(20) and max(weights) / min(weights) <= math.exp(4) + 1e-6
    assert all((row["operation"] == "") == (row["pixels"] == "0") for row in rows)


def test_eval_recomputes_the_same_figures_from_the_checkpoint_alone(finished, tmp_path):
    out, printed = finished
    alone = tmp_path / "copy"
    alone.mkdir()
    (alone / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes())
    done = run("eval.py", alone)
    assert done.returncode == 0, done.stderr
    table = printed[printed.index("Dice, clean test labels"):].strip()
    assert table in done.stdout
    assert (alone / "labels.csv").read_text() == (out / "labels.csv").read_text()
    assert (alone / "curves.png").exists() and (alone / "samples.png").exists()


def test_same_seed_same_run_and_resume_shows_a_finished_one(finished, tmp_path):
    out, printed = finished
    again = run("train.py", *TINY, "--noise", "0.5", "--out", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again" / "labels.csv").read_text() == (out / "labels.csv").read_text()
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    shown = run("train.py", *TINY, "--noise", "0.5", "--out", out, "--resume")
    assert shown.returncode == 0 and "is finished" in shown.stdout
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("strategy", ["baseline", "qam"])
def test_other_strategies(strategy, tmp_path):
    done = run("train.py", *TINY, "--noise", "0.25", "--band", "1-8", "--strategy", strategy, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    weights = [float(row["weight"]) for row in csv.DictReader(open(tmp_path / "run" / "labels.csv"))]
    assert (max(weights) - min(weights) == 0) == (strategy == "baseline")


def test_folder_with_one_class_and_labels_as_they_are(tmp_path):
    images, masks = data.phantoms(12, size=80)
    for folder, arrays in (("images", images), ("masks", masks[:, 1].astype(np.uint8) * 255)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i, array in enumerate(arrays):
            iio.imwrite(tmp_path / "set" / folder / f"case{i}.png", array)
    done = run("train.py", "--data", tmp_path / "set", "--noise", "0", "--size", "64", "--epochs", "1",
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["masks", "average"] and metrics["pick"]["auroc"] is None
    other = run("eval.py", tmp_path / "run", "--data", tmp_path / "set")
    assert other.returncode == 0, other.stderr


def test_paper_settings():
    import train
    options = train.parse_arguments(["--paper", "--batch", "16"])
    assert (options.size, options.lr, options.qam_lr, options.lam, options.warm_up) == (256, 1e-4, 1e-4, 2.0, 0)
    assert (options.schedule, options.area_neutral, options.shift, options.batch) == ("constant", False, 0.0, 16)


def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert evaluation.auroc(values, positive) == pytest.approx(np.mean(pairs))
    assert math.isnan(evaluation.auroc(values, np.ones(60, bool)))


@pytest.mark.parametrize("arguments, message", [
    (["--noise", "1.5"], "--noise: 1.5 is not a number from 0 to 1"), (["--noise", "nan"], "nan"),
    (["--band", "13-5"], "13-5"), (["--band", "0-3"], "0-3"), (["--band", "5"], "--band"),
    (["--size", "100"], "96 or 128"),
    (["--data", "phantoms:2"], "phantoms:2"), (["--data", "nowhere"], "no such folder"), (["--batch", "1"], "--batch"),
    (["--strategy", "best"], "qam+ocm"),
    (["--device", "tpu9"], "tpu9"), (["--epochs", "0"], "--epochs"), (["--nose", "0.5"], "--nose")])
def test_bad_arguments_get_one_line_and_leave_nothing(arguments, message, tmp_path):
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and not any(tmp_path.iterdir())


def test_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    done = run("train.py", *TINY, "--out", tmp_path / "mine")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--resume" in done.stderr
    assert not any((tmp_path / "mine").iterdir())
