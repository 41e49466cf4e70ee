"""train.py: the loop against slow specifications, and the script as a user runs it."""
import json
import math
import os
import shutil
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_csv, run, write_folder

import data
import pal
import train


# ------------------------------------------------------------------------------------- the loop

def small_training(count=6, size=32, seed=0):
    """Networks, optimiser, schedule, images and labels for `train_epoch`."""
    torch.manual_seed(seed)
    unet, qam = pal.UNet(width=2), pal.QAM(width=2)
    torch.nn.init.normal_(qam.score.weight)  # at zero all weights would be equal
    images, masks = data.phantoms(count, seed, size)
    optimiser = torch.optim.SGD([*unet.parameters(), *qam.parameters()], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1)
    return unet, qam, optimiser, schedule, torch.from_numpy(images), torch.from_numpy(masks)


def one_epoch(parts, **options):
    """What `train_epoch` saw in mini-batches of four, with the same random order each time."""
    rng = torch.Generator().manual_seed(1)
    return train.train_epoch(*parts, batch=4, lam=2.0, rng=rng, augmented=False, **options)


def test_an_epoch_is_equation_1_written_out():
    seen = one_epoch(small_training())
    unet, qam, optimiser, _, images, labels = small_training()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:4]
    inputs = pal.standardise(images[order])
    losses = pal.sample_losses(unet(inputs), labels[order])
    scores = qam(inputs, labels[order])
    bounded = [2 * math.tanh(t) for t in scores.tolist()]
    weights = [math.exp(s) / sum(map(math.exp, bounded)) for s in bounded]
    assert seen[0, order].tolist() == pytest.approx(scores.tolist(), abs=1e-6)
    assert seen[1, order].tolist() == pytest.approx([4 * w for w in weights], abs=1e-5)
    assert seen[2, order].tolist() == pytest.approx(losses.mean(dim=1).tolist(), abs=1e-6)
    assert seen.isnan().all(dim=0).sum() == 2  # which filled no mini-batch


@pytest.mark.parametrize("area_neutral", [True, False])
def test_an_epoch_steps_down_the_gradient_of_equation_1(area_neutral):
    trained = small_training()
    one_epoch(trained, area_neutral=area_neutral)
    unet, qam, optimiser, _, images, labels = small_training()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:4]
    inputs = pal.standardise(images[order])
    losses = pal.sample_losses(unet(inputs), labels[order])
    weights = torch.softmax(2 * torch.tanh(qam(inputs, labels[order])), dim=0)
    of_samples = losses.mean(dim=1)
    if area_neutral:
        of_samples = of_samples - pal.area_trend(losses, labels[order], weights)
    (weights * of_samples).sum().backward()
    optimiser.step()
    for network, other in zip(trained, (unet, qam)):
        for parameter, expected in zip(network.parameters(), other.parameters()):
            assert torch.allclose(parameter, expected, atol=1e-6)


def test_the_qam_learns_at_its_own_rate():
    options = train.parse_arguments(["--qam-lr", "0.125"])
    unet, qam = pal.UNet(width=2), pal.QAM(width=2)
    optimiser, _ = train.make_optimiser(unet, qam, options, steps=10)
    rates = {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            rates[parameter] = group["max_lr"]
    assert {rates[parameter] for parameter in qam.parameters()} == {0.125}
    assert {rates[parameter] for parameter in unet.parameters()} == {options.lr}


def test_an_epoch_trains_both_networks_and_the_baseline_only_the_unet():
    for uniform in (False, True):
        parts = small_training()
        before = [parameter.clone() for network in parts[:2] for parameter in network.parameters()]
        seen = one_epoch(parts, uniform=uniform)
        after = [parameter for network in parts[:2] for parameter in network.parameters()]
        moved = [not torch.equal(one, other) for one, other in zip(before, after)]
        of_unet = len(list(parts[0].parameters()))
        assert all(moved[:of_unet]) and any(moved[of_unet:]) != uniform
        assert (seen[1].nan_to_num(1.0) == 1).all() == uniform  # weights times the mini-batch


def test_the_oracle_weighs_only_labels_known_to_be_clean():
    trusted = torch.tensor([True, False, True, False, True, False])
    weights = one_epoch(small_training(), uniform=True, trusted=trusted)[1]
    known = weights.isfinite()
    assert (weights[known & ~trusted] == 0).all()
    assert weights[known & trusted].sum() == pytest.approx(4)
    assert weights[known & trusted].std() == 0


# ----------------------------------------------------------------------------- the augmentation

def moved_columns(monkeypatch, name, most):
    """Twenty augmented pictures in which each pixel is its column's number, (20, 64) middle rows.

    Asserts on the way that the label moves with the image.
    """
    for motion in ("SHIFT", "ZOOM", "TURN"):
        monkeypatch.setattr(train, motion, most if motion == name else 0.0)
    images = torch.arange(64.0).expand(20, 1, 64, 64) / 63
    moved, labels = train.augment(images, images > 0.5, torch.Generator().manual_seed(0))
    assert ((moved > 0.5) == labels.bool()).float().mean() > 0.97
    again, _ = train.augment(images, images > 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)  # the same generator, the same picture
    return moved[:, 0, 32] * 63


def test_without_motion_nothing_changes(monkeypatch):
    columns = moved_columns(monkeypatch, "SHIFT", 0.0)
    assert torch.allclose(columns, torch.arange(64.0).expand(20, 64), atol=1e-2)


def test_shift_moves_by_up_to_its_share_of_the_size(monkeypatch):
    moves = moved_columns(monkeypatch, "SHIFT", 0.25)[:, 32] - 32  # in pixels
    assert 10 < moves.abs().max() <= 16.1
    assert moves.min() < 0 < moves.max()


def test_zoom_scales_by_up_to_its_share(monkeypatch):
    columns = moved_columns(monkeypatch, "ZOOM", 0.5)
    steps = columns[:, 40] - columns[:, 39]  # columns per pixel
    assert 1 / 1.51 < steps.min() < 0.8 and 1.25 < steps.max() < 1.51


def test_turn_rotates_by_up_to_its_degrees(monkeypatch):
    columns = moved_columns(monkeypatch, "TURN", 90.0)
    steps = columns[:, 40] - columns[:, 39]  # the cosine of the angle
    assert -0.01 < steps.min() < 0.3 and steps.max() <= 1.01


# ------------------------------------------------------------------------------ the script, run

def test_run_folder_is_complete(finished):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "config.json", "log.csv", "labels.csv", "suspects.csv", "metrics.json", "checkpoint.pt",
        "curves.png", "samples.png", "suspects.png", "weights.gif"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["lungs", "heart", "clavicles", "average"]
    organs = [metrics["dice"][name] for name in data.CLASSES]
    assert metrics["dice"]["average"] == pytest.approx(np.mean(organs))
    assert metrics["seconds"]["total"] >= metrics["seconds"]["train"] > 0
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["noise"] == 0.5 and config["torch"]
    for word in ("0.942", "this run", "s left", "AUROC", "10 of 20 labels changed"):
        assert word in printed


def test_log_holds_means_per_kind_of_label():
    record = torch.tensor([[1.0, -2, -3, math.nan], [2.0, 0.5, 0.5, math.nan],
                           [0.1, 0.4, 0.9, math.nan]], dtype=torch.float64)
    nothing = np.zeros(4)
    operation = ["", "erode", "dilate", ""]
    cases = data.Cases(list("abcd"), nothing, nothing, nothing, operation, nothing)
    row = train.epoch_row(7, record, cases, lam=1.5)
    assert (row["epoch"], row["lam"], row["auroc"], row["loss_auroc"]) == (7, 1.5, 1, 1)
    assert row["loss"] == pytest.approx((2 * 0.1 + 0.5 * 0.4 + 0.5 * 0.9) / 3)
    assert row["loss_noisy"] == pytest.approx(0.65) and row["loss_erode"] == pytest.approx(0.4)
    assert row["weight_clean_mean"] == 2 and row["weight_noisy_variance"] == 0
    assert row["contradicted"] == pytest.approx(2 / 3)
    assert train.epoch_row(7, record, cases, lam=None)["contradicted"] is None


def test_lambda_follows_the_contradicted_share(finished):
    first, second = read_csv(finished[0] / "log.csv")
    assert float(first["lam"]) == 1.5
    assert float(second["lam"]) == pal.fitting_lambda(float(first["contradicted"]), 1 / 2)


def test_same_seed_same_run_and_resume_shows_a_finished_one(finished, tmp_path):
    out, printed = finished
    again = run("train.py", *TINY, "--noise", "0.5", "--out", tmp_path / "again")
    assert again.returncode == 0
    assert (tmp_path / "again" / "labels.csv").read_text() == (out / "labels.csv").read_text()
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    shown = run("train.py", *TINY, "--noise", "0.5", "--out", out, "--resume")
    assert shown.returncode == 0 and "is finished" in shown.stdout
    assert printed[printed.index("Dice, test labels"):].strip() in shown.stdout
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize("strategy", ["baseline", "qam", "oracle"])
def test_other_strategies(strategy, tmp_path):
    done = run("train.py", *TINY, "--noise", "0.25", "--band", "1-8", "--strategy", strategy,
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "run" / "labels.csv")
    weights = [float(row["weight"]) for row in rows]
    if strategy == "baseline":
        assert set(weights) == {1.0}
    elif strategy == "qam":
        assert len(set(weights)) > 2
    else:
        assert weights == [{"0": 20 / 15, "1": 0.0}[row["noisy"]] for row in rows]  # 5 are noisy


def test_oracle_needs_to_know_the_noise(tmp_path):
    done = run("train.py", *TINY, "--noise", "0", "--strategy", "oracle", "--out", tmp_path / "run")
    assert done.returncode == 2 and "add --noise or --clean" in done.stderr
    assert not (tmp_path / "run").exists()


def test_training_learns_to_segment_and_to_tell_clean_from_noisy(tmp_path):
    done = run("train.py", "--data", "phantoms:72", "--size", "64", "--epochs", "20",
               "--noise", "0.5", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dice"]["lungs"] > 0.85
    assert metrics["audit"]["training"]["score"]["auroc"] > 0.75


def test_folder_with_one_class_and_labels_as_they_are(tmp_path):
    images, masks = data.phantoms(12, size=80)
    write_folder(tmp_path / "set", images, masks=masks[:, 1])
    done = run("train.py", "--data", tmp_path / "set", "--size", "64", "--epochs", "1",
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["foreground", "average"]
    assert metrics["audit"]["training"] is None
    other = run("eval.py", tmp_path / "run", "--data", tmp_path / "set")
    assert other.returncode == 0, other.stderr


@pytest.mark.parametrize("count, batch", [(3, 32), (5, 3), (12, 7)])
def test_few_images_and_odd_batches(count, batch, tmp_path):
    done = run("train.py", "--data", f"phantoms:{count}", "--size", "32", "--epochs", "1",
               "--batch", batch, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------- command line

def test_paper_settings():
    options = train.parse_arguments(["--paper", "--batch", "16"])
    assert (options.size, options.lr, options.qam_lr, options.lam) == (256, 1e-4, 1e-4, 2.0)
    assert (options.augment, options.area_neutral, options.batch) == (False, False, 16)
    unet, qam = pal.UNet(width=2), pal.QAM(width=2)
    optimiser, schedule = train.make_optimiser(unet, qam, options, 10)
    for _ in range(10):
        optimiser.step()
        schedule.step()
    assert [group["lr"] for group in optimiser.param_groups] == [1e-4, 1e-4]
    assert optimiser.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("words, noise", [
    ("", 0.5), ("--data phantoms:9", 0.5), ("--data phantoms_of_mine", 0),
    ("--data FOLDER --noise 0.25", 0.25)])
def test_phantoms_are_damaged_unless_told_otherwise_and_folders_are_not(words, noise):
    assert train.parse_arguments(words.split()).noise == noise


def folder_name(*words):
    """The name of the run folder for a command line."""
    arguments = train.parse_arguments(words)
    return train.folder_name(arguments, vars(arguments))


def test_run_folders_are_named_after_the_settings():
    assert folder_name() == "phantoms-qam+ocm-0.5-5-13-seed0"
    assert folder_name("--no-augment") == "phantoms-qam+ocm-0.5-5-13-seed0-augmentFalse"
    assert folder_name("--paper") == "phantoms-qam+ocm-0.5-5-13-seed0-paper"
    assert folder_name("--paper", "--size", "128").endswith("-paper-size128")


@pytest.mark.parametrize("arguments, message", [
    (["--noise", "1.5"], "--noise: 1.5 is not a number from 0 to 1"),
    (["--noise", "nan"], "nan"),
    (["--noise-kind", "erode-melt"], "erode-melt"),
    (["--band", "13-5"], "13-5"),
    (["--band", "0-3"], "0-3"),
    (["--band", "5"], "--band"),
    (["--lam", "-1"], "--lam"),
    (["--size", "100"], "96 or 128"),
    (["--data", "phantoms:3", "--width", "10000000"], "out of memory; choose"),
    (["--data", "phantoms:2"], "phantoms:2"),
    (["--data", "nowhere"], "no such folder"),
    (["--batch", "2"], "--batch"),
    (["--strategy", "best"], "qam+ocm"),
    (["--device", "tpu9"], "tpu9"),
    (["--device", "hpu"], "--device hpu"),
    (["--size", "32000000000"], "--size: 32000000000 is not a whole number from 1 to 10000"),
    (["--width", "99999999999999999999"], "--width"),
    (["--lr", "1e38"], "--lr"),
    (["--epochs", "0"], "--epochs"),
    (["--nose", "0.5"], "--nose")])
def test_bad_arguments_get_one_line_and_leave_nothing(arguments, message, tmp_path):
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_asked_for_and_absent(tmp_path):
    done = run("train.py", *TINY, "--device", "cuda", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--device cuda" in done.stderr and not any(tmp_path.iterdir())


# -------------------------------------------------------- interruptions, and what must not be lost

@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_that_is_no_run_is_not_touched(resume, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.txt").write_text("precious")
    done = run("train.py", *TINY, "--out", tmp_path / "mine", *resume)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "choose another --out" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.txt"]


def test_killed_run_resumes_to_the_same_weights(tmp_path):
    """kill -9 in the middle, --resume, and the end is bit for bit that of an undisturbed run."""
    arguments = [*TINY, "--epochs", "5", "--noise", "0.5"]
    whole = run("train.py", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch   2/5" in line:
            process.kill()
            break
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = run("train.py", *arguments, "--out", tmp_path / "killed", "--resume")
    assert resumed.returncode == 0 and "epoch   1/5" not in resumed.stdout, resumed.stderr
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                  for name in ("whole", "killed"))
    for network in ("unet", "qam"):
        assert all(torch.equal(one[network][key], other[network][key]) for key in one[network])
    assert (tmp_path / "whole" / "labels.csv").read_text() == (
        tmp_path / "killed" / "labels.csv").read_text()
    seconds = json.loads((tmp_path / "killed" / "metrics.json").read_text())["seconds"]
    assert seconds["total"] >= seconds["train"]  # the time before the kill counts in both


def test_a_run_folder_in_use_is_refused_and_a_left_lock_is_not(tmp_path):
    (tmp_path / "lock").write_text("process 1 since long ago")  # of a process that is no more
    lock = train.lock_folder(tmp_path)
    with pytest.raises(data.BadInput, match=f"in use by process {os.getpid()} since"):
        train.lock_folder(tmp_path)
    lock.close()
    train.lock_folder(tmp_path).close()


def test_a_folder_with_a_left_lock_alone_can_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("process 1 since long ago")
    done = run("train.py", *TINY, "--epochs", "1", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr


def test_drives_that_know_no_locks_are_no_obstacle(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(38, "Function not implemented")
    monkeypatch.setattr("fcntl.flock", unknown)
    train.lock_folder(tmp_path).close()


def test_a_run_stopped_while_drawing_is_drawn_by_resume(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    for name in ("suspects.csv", "curves.png"):
        (tmp_path / "run" / name).unlink()
    done = run("train.py", *TINY, "--noise", "0.5", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 0 and "epoch " not in done.stdout, done.stderr
    assert (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "suspects.csv").read_text() == (
        finished[0] / "suspects.csv").read_text()


def test_resume_refuses_networks_of_another_version(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    del checkpoint["unet"]["head.bias"]
    torch.save(checkpoint, tmp_path / "run" / "checkpoint.pt")
    done = run("train.py", *TINY, "--noise", "0.5", "--out", tmp_path / "run", "--resume")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "networks of another version of pal.py" in done.stderr


def test_resume_refuses_other_settings(finished):
    done = run("train.py", *TINY, "--noise", "0.25", "--out", finished[0], "--resume")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "noise was 0.5, is 0.25" in done.stderr


def test_resume_refuses_labels_that_were_corrected_since(tmp_path):
    images, masks = data.phantoms(9, size=64)
    write_folder(tmp_path / "set", images, lungs=masks[:, 0])
    command = ["--data", tmp_path / "set", "--size", "32", "--epochs", "1",
               "--out", tmp_path / "run"]
    assert run("train.py", *command).returncode == 0
    corrected = data.dilate(masks[4, 0], 3).astype(np.uint8) * 255
    iio.imwrite(tmp_path / "set" / "lungs" / "case4.png", corrected)
    for finished in (True, False):
        done = run("train.py", *command, "--resume")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "case4" in done.stderr and "case3" not in done.stderr
        if finished:
            (tmp_path / "run" / "metrics.json").unlink()


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    done = run("train.py", *TINY, "--epochs", "4", "--lr", "1e30", "--out", tmp_path / "run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "not finite" in done.stderr and "epoch" in done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()


def limit_file_size():
    """In the child process: no file may become larger than 100 kB, as on a full disk."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_full_disk_gets_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "--out", tmp_path / "run"]
    done = subprocess.run(command, preexec_fn=limit_file_size, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stderr
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
