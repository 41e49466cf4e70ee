"""The scripts as a user runs them, on a tiny set."""
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

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
                                               "curves.png", "samples.png", "suspects.csv", "suspects.png"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["lungs", "heart", "clavicles", "average"]
    assert metrics["dice"]["average"] == pytest.approx(np.mean([metrics["dice"][name] for name in data.CLASSES]))
    assert set(metrics["pick"]) == {"auroc", "precision", "random_precision", "loss_auroc"}
    assert set(metrics["audit"]) == {"training", "unseen"}
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
    assert metrics["audit"]["training"]["score"]["auroc"] == pytest.approx(np.mean(pairs))
    pairs = [a < b for a in losses[clean] for b in losses[~clean]]
    assert metrics["audit"]["training"]["loss"]["auroc"] == pytest.approx(np.mean(pairs))
    best = sorted(range(20), key=lambda i: -scores[i])[:10]
    assert metrics["pick"]["precision"] == pytest.approx(np.mean([clean[i] for i in best]))
    assert metrics["pick"]["random_precision"] == 0.5
    for mine, name in (("auroc", "score"), ("loss_auroc", "loss")):  # clean found by a high, noisy by a low score
        assert metrics["pick"][mine] == pytest.approx(metrics["audit"]["training"][name]["auroc"])
    assert float(log[-1]["dice_average"]) == metrics["dice"]["average"]
    assert sum(float(row["weight"]) for row in rows) == pytest.approx(20)
    assert all((row["operation"] == "") == (row["pixels"] == "0") for row in rows)


def test_eval_recomputes_the_same_figures_from_the_checkpoint_alone(finished, tmp_path):
    out, printed = finished
    alone = tmp_path / "copy"
    alone.mkdir()
    (alone / "checkpoint.pt").write_bytes((out / "checkpoint.pt").read_bytes())
    done = run("eval.py", alone)
    assert done.returncode == 0, done.stderr
    table = printed[printed.index("Dice, test labels"):].strip()
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
    assert list(metrics["dice"]) == ["foreground", "average"] and metrics["audit"]["training"] is None
    other = run("eval.py", tmp_path / "run", "--data", tmp_path / "set")
    assert other.returncode == 0, other.stderr


def test_paper_settings():
    import train
    options = train.parse_arguments(["--paper", "--batch", "16"])
    assert (options.size, options.lr, options.qam_lr, options.lam, options.beta2) == (256, 1e-4, 1e-4, 2.0, 0.999)
    assert (options.schedule, options.area_neutral, options.shift, options.batch) == ("constant", False, 0.0, 16)
    assert (options.zoom, options.turn) == (0.0, 0.0)


def test_augmentation_moves_an_image_and_its_label_alike():
    import train
    rows = torch.arange(64.0).expand(64, 64)  # each pixel is its own column's number
    images = torch.stack([rows, rows.T])[:, None] / 63
    labels = torch.cat([images > 0.25, images > 0.5], dim=1)

    def one(shift=0, zoom=0, turn=0, seed=0):
        return train.augment(images, labels, shift, zoom, turn, torch.Generator().manual_seed(seed))
    same, label = one()
    assert torch.allclose(same, images, atol=1e-4) and torch.equal(label, labels.float())
    for kind, most in (("shift", 0.25), ("zoom", 0.5), ("turn", 90)):
        moved = [one(**{kind: most}, seed=seed) for seed in range(20)]
        for image, label in moved:
            assert ((image > 0.5) == label[:, 1:].bool()).float().mean() > 0.97
        assert torch.equal(one(**{kind: most}, seed=3)[0], moved[3][0])  # the same generator, the same picture
        middle = torch.stack([image[0, 0, 32] for image, _ in moved]) * 63  # of the picture of column numbers
        if kind == "shift":  # in pixels
            moves = middle[:, 32] - 32
            assert 10 < moves.abs().max() <= 16 + 0.1 and moves.min() < 0 < moves.max()
        if kind == "zoom":  # columns per pixel
            steps = middle[:, 40] - middle[:, 39]
            assert 1 / 1.5 - 0.01 < steps.min() < 0.8 and 1.25 < steps.max() < 1.5 + 0.01
        if kind == "turn":
            steps = middle[:, 40] - middle[:, 39]  # the cosine of the angle
            assert -0.01 < steps.min() < 0.3 and steps.max() <= 1.01


def test_default_noise_and_run_folders_are_those_of_the_readme(tmp_path, monkeypatch):
    import train
    monkeypatch.chdir(tmp_path)  # no run folders here
    text = (ROOT / "README.md").read_text()
    for words, noise in (("--noise 0.5 --band 5-13", 0.5), ("--data FOLDER --noise 0", 0), ("", 0.5),
                         ("--data phantoms:9", 0.5), ("--data phantoms_of_mine", 0)):
        options = train.parse_arguments(words.split())
        assert options.noise == noise
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "resume", "paper")}
        if words.startswith(("--noise", "--data FOLDER")):
            assert str(train.run_folder(options, settings)) in text
    options = train.parse_arguments(["--shift", "0"])
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "resume", "paper")}
    assert str(train.run_folder(options, settings)) == "runs/phantoms-qam+ocm-0.5-5-13-seed0-shift0.0"


def test_training_learns_to_segment_and_to_tell_clean_from_noisy(tmp_path):
    done = run("train.py", "--data", "phantoms:72", "--size", "64", "--epochs", "20", "--batch", "16", "--noise", "0.5",
               "--out", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert done.returncode == 0 and metrics["dice"]["lungs"] > 0.85
    assert metrics["audit"]["training"]["score"]["auroc"] > 0.75


def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert evaluation.auroc(values, positive) == pytest.approx(np.mean(pairs))
    assert math.isnan(evaluation.auroc(values, np.ones(60, bool)))


@pytest.mark.parametrize("arguments, message", [
    (["--noise", "1.5"], "--noise: 1.5 is not a number from 0 to 1"), (["--noise", "nan"], "nan"),
    (["--noise-kind", "erode-melt"], "erode-melt"),
    (["--band", "13-5"], "13-5"), (["--band", "0-3"], "0-3"), (["--band", "5"], "--band"),
    (["--size", "100"], "96 or 128"),
    (["--data", "phantoms:3", "--width", "10000000"], "out of memory; choose"),
    (["--data", "phantoms:2"], "phantoms:2"), (["--data", "nowhere"], "no such folder"), (["--batch", "1"], "--batch"),
    (["--strategy", "best"], "qam+ocm"),
    (["--device", "tpu9"], "tpu9"), (["--epochs", "0"], "--epochs"), (["--nose", "0.5"], "--nose")])
def test_bad_arguments_get_one_line_and_leave_nothing(arguments, message, tmp_path):
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and not any(tmp_path.iterdir())


def test_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.txt").write_text("precious")
    for resume in ([], ["--resume"]):
        done = run("train.py", *TINY, "--out", tmp_path / "mine", *resume)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "choose another --out" in done.stderr
        assert [p.name for p in (tmp_path / "mine").iterdir()] == ["config.txt"]


def test_data_that_changed_since_are_refused(finished, tmp_path):
    """A new split would turn training images into test images."""
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    checkpoint["names"][0] = "another"
    torch.save(checkpoint, out / "checkpoint.pt")
    (out / "metrics.json").unlink()
    for script, *arguments in (("eval.py", out), ("train.py", *TINY, "--noise", "0.5", "--out", out, "--resume")):
        done = run(script, *arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no longer what" in done.stderr


# ---------------------------------------------------------------------------------------------------------- the audit

def test_suspects_are_ranked_by_score_worst_first(finished):
    out, printed = finished
    rows, suspects = (list(csv.DictReader(open(out / name))) for name in ("labels.csv", "suspects.csv"))
    by_score = sorted(rows, key=lambda row: float(row["score"]))
    assert [row["name"] for row in suspects] == [row["name"] for row in by_score]
    assert [row["rank"] for row in suspects] == [str(k + 1) for k in range(20)]
    audit = json.loads((out / "metrics.json").read_text())["audit"]["training"]
    noisy = np.array([row["noisy"] == "1" for row in suspects])
    assert audit["score"]["precision_10"] == audit["score"]["recall"] == noisy[:10].mean()  # 10 of 20 are noisy
    assert audit["random"] == {"auroc": 0.5, "precision_10": 0.5, "recall": 0.5}
    assert "noisy labels found, unseen" in printed
    assert iio.imread(out / "suspects.png").std() > 5


def test_label_quality_is_a_mean_that_bad_pixels_dominate():
    logits, labels = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]]), torch.tensor([[[[True, True], [False, False]]]])
    given = [1 / (1 + math.exp(-z)) for z in (2, -1, -0.5, 3)]
    weights = [math.exp((1 - p) / 0.1) for p in given]
    expected = sum(p * w for p, w in zip(given, weights)) / sum(weights)
    assert evaluation.label_quality(logits, labels).item() == pytest.approx(expected)


def test_scores_do_not_depend_on_the_labels_beside_them(finished):
    out, _ = finished
    checkpoint = evaluation.read_checkpoint(out / "checkpoint.pt", "cpu")
    unet, qam = evaluation.build(checkpoint["arguments"], data.CLASSES, torch.device("cpu"))
    qam.load_state_dict(checkpoint["qam"])
    torch.nn.init.normal_(qam.score.weight)  # two epochs hardly move it from zero
    images, masks = (torch.from_numpy(array) for array in data.phantoms(5, size=64))
    together, alone = (evaluation.score_labels(unet, qam, images[:n], masks[:n])[0] for n in (5, 1))
    assert together[0] == pytest.approx(alone[0], abs=1e-5)
    assert np.ptp(together) > 1e-3


def test_the_papers_row_is_shown_only_beside_its_own_noise():
    classes, arguments = (*data.CLASSES, "average"), {"noise": 0.5, "band": "5-13", "strategy": "qam+ocm"}
    assert evaluation.paper_row({**arguments, "noise_kind": "erode-dilate", "clean": None}, classes)[3] == 0.912
    assert evaluation.paper_row({**arguments, "noise_kind": "shift"}, classes) is None
    assert evaluation.paper_row({**arguments, "clean": "TRUTH"}, classes) is None
    assert evaluation.paper_row(arguments, ("lungs", "average")) is None


def test_table_of_runs_of_different_versions_has_no_column_for_what_only_some_know(finished, tmp_path):
    out, _ = finished
    for name, more in (("old", {"gone": 0, "seed": 0}), ("new", {"seed": 1})):
        (tmp_path / name).mkdir()
        config = json.loads((out / "config.json").read_text())
        config["arguments"] |= more
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "metrics.json").write_bytes((out / "metrics.json").read_bytes())
    lines = run("eval.py", "--table", tmp_path).stdout.strip().splitlines()
    assert len(lines) == 3 and "gone" not in lines[0] and lines[2].endswith("| 0 1 |")


def test_table_of_runs(finished, tmp_path):
    out, _ = finished
    for seed, dice in ((0, 0.5), (1, 0.7)):
        run_folder = tmp_path / f"seed{seed}"
        run_folder.mkdir()
        config, metrics = (json.loads((out / name).read_text()) for name in ("config.json", "metrics.json"))
        config["arguments"] |= {"seed": seed, "data": "JSRT"}
        metrics["dice"]["average"] = dice
        (run_folder / "config.json").write_text(json.dumps(config))
        (run_folder / "metrics.json").write_text(json.dumps(metrics))
    done = run("eval.py", "--table", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 3 and "0.600 ± 0.141 (0.912)" in lines[2] and lines[2].endswith("| 0 1 |")


# ------------------------------------------------------------------------------------------- interruptions and damage

def test_killed_run_resumes_to_the_same_weights(tmp_path):
    """kill -9 in the middle, --resume, and the end is bit for bit that of the run that was never disturbed."""
    arguments = [*TINY, "--epochs", "5", "--noise", "0.5"]
    whole = run("train.py", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   2/5" in line:
            process.kill()
            break
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = run("train.py", *arguments, "--out", tmp_path / "killed", "--resume")
    assert resumed.returncode == 0 and "epoch   1/5" not in resumed.stdout, resumed.stderr
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    for network in ("unet", "qam"):
        assert all(torch.equal(one[network][key], other[network][key]) for key in one[network])
    assert (tmp_path / "whole" / "labels.csv").read_text() == (tmp_path / "killed" / "labels.csv").read_text()
    seconds = json.loads((tmp_path / "killed" / "metrics.json").read_text())["seconds"]
    assert seconds["total"] >= seconds["train"]  # the time before the kill counts in both


def test_resume_refuses_other_settings(finished):
    out, _ = finished
    done = run("train.py", *TINY, "--noise", "0.25", "--out", out, "--resume")
    assert done.returncode == 2 and "noise was 0.5, is 0.25" in done.stderr and done.stderr.count("\n") == 1


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    done = run("train.py", *TINY, "--epochs", "4", "--lr", "1e30", "--schedule", "constant", "--out", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "not finite" in done.stderr and "epoch" in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_gets_one_line(tmp_path):
    import resource
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--out", str(tmp_path / "run")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr, done.stderr
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("damage", ["truncated", "not ours", "text", "missing"])
def test_damaged_checkpoints_get_one_line(damage, finished, tmp_path):
    good = (finished[0] / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    if damage == "not ours":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage != "missing":
        path.write_bytes(good[:len(good) // 2] if damage == "truncated" else b"hello")
    done = run("eval.py", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "checkpoint" in done.stderr, done.stderr


def test_eval_refuses_data_of_other_classes(finished, tmp_path):
    images, masks = data.phantoms(4, size=64)
    for folder, arrays in (("images", images), ("spleen", masks[:, 1].astype(np.uint8))):
        (tmp_path / folder).mkdir()
        for i, array in enumerate(arrays):
            iio.imwrite(tmp_path / folder / f"{i}.png", array)
    done = run("eval.py", finished[0], "--data", tmp_path)
    assert done.returncode == 2 and "spleen" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_asked_for_and_absent(tmp_path):
    done = run("train.py", *TINY, "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--device cuda" in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("count, batch", [(3, 32), (4, 2), (12, 7)])
def test_few_images_and_odd_batches(count, batch, tmp_path):
    done = run("train.py", "--data", f"phantoms:{count}", "--size", "32", "--epochs", "1", "--batch", batch,
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_readme_runs(tmp_path):
    """In order, in a folder with FOLDER, OTHER and JSRT in it, on fewer and smaller pictures."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = [line.split("#")[0].split("&&")[-1].split() for block in blocks for line in block.splitlines()
                if re.search(r"(python|-m) (train\.py|eval\.py|tests/)", line)]
    commands += [command.split() for command in re.findall(r"`(python (?:train|eval)\.py [^`]*)`", text)]
    images, masks = data.phantoms(9, size=64)
    for folder in ("FOLDER", "OTHER", "JSRT"):
        for name, arrays in (("images", images), *zip(data.CLASSES, masks.swapaxes(0, 1).astype(np.uint8) * 255)):
            (tmp_path / folder / name).mkdir(parents=True)
            for i, array in enumerate(arrays):
                iio.imwrite(tmp_path / folder / name / f"{i}.png", array)
    ran = 0
    for _, script, *arguments in commands:
        if script == "train.py":
            arguments += ["--size", "64", "--epochs", "1", "--batch", "4", "--seed", "0"]
            arguments += [] if "--data" in arguments else ["--data", "phantoms:9"]
            arguments += ["--out", f"runs/{ran}"]
        if script in ("train.py", "eval.py"):
            arguments = [re.sub("^(RUN|runs/.*-seed0)$", "runs/0", word).replace(".github", str(ROOT / ".github"))
                         for word in arguments]
            done = run(script, *arguments, cwd=tmp_path)
            assert done.returncode == 0, (script, arguments, done.stderr)
            assert str(ROOT) not in " ".join(arguments) or done.stdout.strip() in text, f"{arguments}: another table"
            ran += 1
    assert ran > 8


def test_the_inline_scripts_of_the_readme_print_its_tables():
    text = (ROOT / "README.md").read_text()
    scripts = re.findall(r'^```\npython -c "\n(.*?)\n"\n```', text, re.DOTALL | re.MULTILINE)
    assert len(scripts) == 2
    for script in scripts:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert len(done.stdout.splitlines()) > 9 and done.stdout in text, done.stderr
