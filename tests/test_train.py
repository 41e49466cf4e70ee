"""train.py: the loop against slow specifications, and the script as a user runs it."""
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, read_csv, run, write_folder

import data
import pal
import train


# --------------------------------------------------------------------------------------- the loop

def small_training(count=6, size=32, seed=0):
    """Networks, optimizer, schedule, images and labels for `train_epoch`."""
    torch.manual_seed(seed)
    unet, qam = pal.UNet(width=2), pal.QAM()
    torch.nn.init.normal_(qam.score.weight)  # at zero all weights would be equal
    images, masks = data.phantoms(count, seed, size)
    optimizer = torch.optim.SGD([*unet.parameters(), *qam.parameters()], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    return unet, qam, optimizer, schedule, torch.from_numpy(images), torch.from_numpy(masks)


def one_epoch(parts, recipe=train.Recipe()):
    """What `train_epoch` returns for mini-batches of four, in the same random order each time."""
    rng = torch.Generator().manual_seed(1)
    return train.train_epoch(*parts, rng, recipe._replace(batch=4, augmented=False))


def first_mini_batch():
    """Networks, optimizer, losses, scores and labels of the only mini-batch of `one_epoch`."""
    unet, qam, optimizer, _, images, labels = small_training()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:4]
    inputs = pal.standardize(images[order][:, None])
    losses = pal.sample_losses(unet(inputs), labels[order])
    return unet, qam, optimizer, losses, qam(inputs, labels[order]), labels[order], order


def test_an_epoch_is_equation_1_written_out():
    scores, weights, losses = one_epoch(small_training())
    *_, expected_losses, expected_scores, _, order = first_mini_batch()
    bounded = [2 * math.tanh(t) for t in expected_scores.tolist()]
    expected = [4 * math.exp(s) / sum(map(math.exp, bounded)) for s in bounded]
    assert scores[order].tolist() == pytest.approx(expected_scores.tolist(), abs=1e-6)
    assert weights[order].tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(losses[order], expected_losses, atol=1e-6)
    for values in (scores, weights, losses[:, 0]):
        assert values.isnan().sum() == 2  # which filled no mini-batch


@pytest.mark.parametrize("step", [pal.pick_and_learn, train.step_without_trend])
def test_an_epoch_steps_down_the_gradient_of_equation_1(step):
    trained = small_training()
    one_epoch(trained, train.Recipe(step=step))
    unet, qam, optimizer, losses, scores, labels, _ = first_mini_batch()
    of_samples = losses.mean(dim=1)
    if step is pal.pick_and_learn:
        of_samples = of_samples - pal.area_trend(losses, labels, scores)
    (torch.softmax(2 * torch.tanh(scores), dim=0) * of_samples).sum().backward()
    optimizer.step()
    for network, other in zip(trained, (unet, qam)):
        for parameter, expected in zip(network.parameters(), other.parameters()):
            assert torch.allclose(parameter, expected, atol=1e-6)


def test_a_step_of_ones_own_trains_the_network():
    def step(losses, labels, scores, lam):
        assert (losses.shape, labels.shape, scores.shape, lam) == ((4, 3), (4, 3, 32, 32), (4,), 2)
        return losses[0].sum(), torch.tensor([1.0, 0, 0, 0])
    weights = one_epoch(small_training(), train.Recipe(step=step))[1]
    assert sorted(weights[weights.isfinite()].tolist()) == [0, 0, 0, 4]


def cases_of(operation):
    """Cases of which only the operation is known ("" is clean)."""
    cases = data.Cases(*[None] * len(data.Cases._fields))
    return cases._replace(names=list(range(len(operation))), operation=operation, known=True)


def recipe_of(strategy, operation=("",) * 6):
    """The Recipe of a strategy for six labels."""
    arguments = train.parse_arguments(["--strategy", strategy])
    return train.make_recipe(arguments, cases_of(operation), torch.device("cpu"), False)


def test_the_baseline_weighs_all_labels_equally_and_does_not_run_the_qam():
    parts = small_training()
    before = [parameter.clone() for parameter in parts[1].parameters()]
    weights = one_epoch(parts, recipe_of("baseline"))[1]
    assert set(weights[weights.isfinite()].tolist()) == {1.0}
    assert all(map(torch.equal, before, parts[1].parameters()))


def test_the_baseline_is_the_mean_loss():
    trained = small_training()
    one_epoch(trained, recipe_of("baseline"))
    unet, _, optimizer, losses, *_ = first_mini_batch()
    losses.mean().backward()
    optimizer.step()
    for parameter, expected in zip(trained[0].parameters(), unet.parameters()):
        assert torch.allclose(parameter, expected, atol=1e-6)


def test_the_oracle_weighs_only_labels_known_to_be_clean():
    operation = ["", "erode", "", "dilate", "", "erode"]
    weights = one_epoch(small_training(), recipe_of("oracle", operation))[1]
    clean = torch.tensor([name == "" for name in operation])
    known = weights.isfinite()
    assert (weights[known & ~clean] == 0).all()
    assert weights[known & clean].sum() == pytest.approx(4) and weights[known & clean].std() == 0


def test_strategy_loss_trusts_labels_of_small_loss_without_the_area_trend():
    _, weights, losses = one_epoch(small_training(), recipe_of("loss"))
    *_, labels, order = first_mini_batch()
    own = losses[order].mean(dim=1) - pal.area_trend(losses[order], labels, torch.zeros(4))
    t = (own.mean() - own) / own.std()
    assert torch.allclose(weights[order], 4 * torch.softmax(2 * torch.tanh(t), 0), atol=1e-3)


def test_the_losses_of_empty_labels_are_left_out():
    *parts, labels = small_training()
    labels[:, 1] = False
    losses = one_epoch((*parts, labels))[2]
    assert losses[:, 1].isnan().all() and losses[:, 0].isfinite().sum() == 4


def test_fewer_images_than_a_mini_batch_are_refused():
    with pytest.raises(ValueError, match="3 images do not fill a mini-batch of 4"):
        one_epoch(small_training(count=3))


def test_the_qam_learns_at_its_own_rate():
    options = train.parse_arguments(["--qam-lr", "0.125"])
    unet, qam = pal.UNet(width=2), pal.QAM()
    optimizer, _ = train.make_optimizer(unet, qam, options, steps=10)
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[parameter] = group["max_lr"]
    assert {rates[parameter] for parameter in qam.parameters()} == {0.125}
    assert {rates[parameter] for parameter in unet.parameters()} == {options.lr}


# ------------------------------------------------------------------------- lambda, decided half-way

def test_lambda_is_chosen_from_the_mean_losses_of_some_epochs():
    losses = torch.where(torch.arange(80) < 20, 4.0, 1.0) * torch.linspace(0.8, 1.25, 80)
    epochs = [losses[:, None].clone() for _ in range(3)]
    epochs[0][3:30] = math.nan  # were in no mini-batch
    share, lam = train.choose_lambda(epochs, 2.0, is_auto=True)
    assert share == pytest.approx(0.25) and lam == 0.5
    assert train.choose_lambda(epochs, 1.7, is_auto=False)[1] == 1.7
    assert train.choose_lambda([torch.linspace(1, 1.5, 80)[:, None]], 2.0, True) == (0, 0)


@pytest.mark.parametrize("losses", [torch.cat([torch.ones(30), 9 * torch.ones(29)]),
                                    torch.cat([torch.ones(59), torch.full((40,), math.nan)]),
                                    torch.full((80,), math.nan)])
def test_with_fewer_than_sixty_labels_that_are_not_empty_lambda_stays_2(losses):
    assert train.choose_lambda([losses[:, None]], 2.0, is_auto=True) == (None, 2.0)


def test_rightly_empty_labels_are_no_group_of_bad_ones():
    """Predicted falsely, they would have a far higher loss than the others; one class."""
    labels = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    labels[:30] = False
    losses = torch.linspace(0.8, 1.25, 100)[:, None].clone()
    losses[:30] *= 5
    assert pal.rejected_share(losses) == pytest.approx(0.3)
    known = losses.masked_fill(~labels.flatten(2).any(dim=2), math.nan)  # as in train_epoch
    assert train.choose_lambda([known], 2.0, is_auto=True) == (0, 0)


def test_lambda_is_2_until_halfway_and_then_what_the_share_says(tmp_path):
    done = run("train.py", "--data", "phantoms:93", "--size", "32", "--epochs", "5",
               "--noise", "0.5", "--out", tmp_path / "run")  # 62 training labels
    assert done.returncode == 0, done.stderr
    lam = [float(row["lam"]) for row in read_csv(tmp_path / "run" / "log.csv")]
    share = json.loads((tmp_path / "run" / "metrics.json").read_text())["rejected_share"]
    assert lam[:2] == [2, 2] and lam[2:] == [pal.auto_lambda(share)] * 3
    assert done.stdout.count("halfway: ") == 1


def test_one_lambda_is_used_after_one_epoch_and_told_everywhere(tmp_path):
    done = run("train.py", "--data", "phantoms:93", "--size", "32", "--epochs", "1",
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lam = json.loads((tmp_path / "run" / "metrics.json").read_text())["lam"]
    assert lam == 2 and "lambda 2 from here on" in done.stdout  # no other was trained with
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["lam"] == lam


# -------------------------------------------------------------------------------- the augmentation

def moved_columns(monkeypatch, name, most):
    """Twenty augmented images in which each pixel is its column's number: middle rows (20, 64).

    Asserts on the way that the label moves with the image.
    """
    for motion in ("SHIFT", "ZOOM", "TURN"):
        monkeypatch.setattr(train, motion, most if motion == name else 0.0)
    images = torch.arange(64.0).expand(20, 1, 64, 64) / 63
    moved, labels = train.augment(images, images > 0.5, torch.Generator().manual_seed(0))
    assert ((moved > 0.5) == labels.bool()).float().mean() > 0.97
    again, _ = train.augment(images, images > 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)  # the same generator, the same image
    return moved[:, 0, 32] * 63


def test_without_motion_nothing_changes(monkeypatch):
    columns = moved_columns(monkeypatch, "SHIFT", 0.0)
    assert torch.allclose(columns, torch.arange(64.0).expand(20, 64), atol=1e-2)


def test_shift_zoom_and_turn_move_by_up_to_their_amount(monkeypatch):
    moves = moved_columns(monkeypatch, "SHIFT", 0.25)[:, 32] - 32  # in pixels
    assert 10 < moves.abs().max() <= 16.1 and moves.min() < 0 < moves.max()
    columns = moved_columns(monkeypatch, "ZOOM", 0.5)
    steps = columns[:, 40] - columns[:, 39]  # columns per pixel
    assert 1 / 1.51 < steps.min() < 0.8 and 1.25 < steps.max() < 1.51
    columns = moved_columns(monkeypatch, "TURN", 90.0)
    steps = columns[:, 40] - columns[:, 39]  # the cosine of the angle
    assert -0.01 < steps.min() < 0.3 and steps.max() <= 1.01


# --------------------------------------------------------------------------- the script, as it runs

def test_run_folder_is_complete(finished):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "config.json", "log.csv", "suspects.csv", "metrics.json", "checkpoint.pt", "suspects.html"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["lungs", "heart", "clavicles", "average"]
    organs = [metrics["dice"][name] for name in data.CLASSES]
    assert metrics["dice"]["average"] == pytest.approx(np.mean(organs))
    assert metrics["seconds"]["total"] > 0
    assert metrics["rejected_share"] is None  # of 20 labels
    config = json.loads((out / "config.json").read_text())
    assert config["arguments"]["noise"] == 0.5 and config["torch"] and config["cpu"]
    assert len(config["digest"]) == 64 and (config["commit"] or not (ROOT / ".git").exists())
    for word in ("s left", "AUROC", "10 of 20 labels changed", "halfway: too few labels to tell",
                 f"look at the worst labels in {out / 'suspects.html'}"):
        assert word in printed


def test_log_holds_means_per_kind_of_label():
    scores, weights = torch.tensor([1.0, -2, -3, math.nan]), torch.tensor([2, 0.5, 0.5, math.nan])
    losses = torch.tensor([[0.1, 0.1], [0.3, 0.5], [0.9, math.nan], [math.nan, math.nan]])
    cases = cases_of(["", "erode", "dilate", ""])
    row = train.epoch_row(7, scores, weights, losses, cases, lam=1.5)
    assert (row["epoch"], row["lam"], row["auroc"], row["loss_auroc"]) == (7, 1.5, 1, 1)
    assert row["loss"] == pytest.approx((2 * 0.1 + 0.5 * 0.4 + 0.5 * 0.9) / 3)
    assert row["loss_noisy"] == pytest.approx(0.65) and row["loss_clean"] == pytest.approx(0.1)
    assert row["weight_clean_mean"] == 2 and row["weight_noisy_variance"] == 0
    unknown = train.epoch_row(7, scores, weights, losses, cases._replace(known=False), lam=1.5)
    assert set(unknown) == {"epoch", "lam", "loss"}


def test_same_seed_same_run(finished, tmp_path):
    again = run("train.py", *TINY, "--noise", "0.5", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for name in ("suspects.csv", "metrics.json"):
        texts = [(folder / name).read_text().partition('"seconds"')[0]
                 for folder in (tmp_path / "again", finished[0])]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", ["baseline", "loss", "qam", "oracle"])
def test_other_strategies(strategy, tmp_path):
    done = run("train.py", *TINY, "--noise", "0.25", "--band", "1-8", "--strategy", strategy,
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "run" / "suspects.csv")
    weights = [float(row["weight"]) for row in rows]
    if strategy == "baseline":
        assert set(weights) == {1.0}
    elif strategy in ("qam", "loss"):
        assert len(set(weights)) > 2 and np.mean(weights) == pytest.approx(1)
    else:
        assert weights == [{"0": 20 / 15, "1": 0.0}[row["noisy"]] for row in rows]  # 5 are noisy


def test_training_learns_to_segment_and_to_tell_clean_from_noisy(tmp_path):
    done = run("train.py", "--data", "phantoms:72", "--size", "64", "--epochs", "20",
               "--noise", "0.5", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dice"]["lungs"] > 0.85
    assert metrics["audit"]["training"]["score"]["auroc"] > 0.75


def test_labels_as_they_are_are_not_called_clean(tmp_path):
    images, masks = data.phantoms(12, size=80)
    write_folder(tmp_path / "set", images, masks=masks[:, 1])
    done = run("train.py", "--data", tmp_path / "set", "--size", "64", "--epochs", "1",
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert list(metrics["dice"]) == ["foreground", "average"]
    assert metrics["audit"]["training"] is None
    assert "clean" not in done.stdout.replace("which labels are clean is not known", "")
    for name in ("log.csv", "suspects.csv"):
        header = (tmp_path / "run" / name).read_text().splitlines()[0]
        assert "clean" not in header and "noisy" not in header


@pytest.mark.parametrize("count, batch", [(3, 32), (5, 3), (12, 7)])
def test_few_images_and_odd_batches(count, batch, tmp_path):
    done = run("train.py", "--data", f"phantoms:{count}", "--size", "32", "--epochs", "1",
               "--batch", batch, "--out", tmp_path / "run")
    if count * 165 // 247 < 3:
        assert done.returncode == 2 and "three" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------- warnings

def warnings_for(count=200, dice=0.9, noise=0.0, epochs=40, effective=None, share=None):
    """The warnings of a run with one class, with foreground in a quarter of half of the masks."""
    masks = np.zeros((6, 1, 8, 8), bool)
    masks[:3, :, :4, :4] = True  # where the class is, foreground everywhere has Dice 0.4
    arguments = SimpleNamespace(noise=noise, epochs=epochs, batch=16)
    metrics = {"dice": {"cells": dice}, "effective_sample_size": effective or count,
               "rejected_share": share}
    training = SimpleNamespace(names=["a name"] * count, classes=("cells",))
    return train.warnings_of(arguments, metrics, training, SimpleNamespace(clean=masks))


@pytest.mark.parametrize("changes, words", [
    ({"effective": 99}, "rest on 99 of 200 labels"), ({"epochs": 20}, "240 training steps"),
    ({"count": 59, "epochs": 400}, "59 training labels"), ({"dice": 0.4}, "Dice 0.400 of cells"),
    ({"share": 0.41}, "41% of the labels contradict"),
    ({"effective": 100, "share": 0.4, "dice": 0.41}, None), ({"dice": None}, None),
    ({"effective": 60, "share": 0.5, "noise": 0.5}, None)])  # noise added on purpose
def test_each_warning_is_one_line_and_none_is_to_be_ignored(changes, words):
    warnings = warnings_for(**changes)
    assert len(warnings) == (words is not None)
    for warning in warnings:
        assert words in warning and "\n" not in warning


@pytest.mark.parametrize("share, words", [
    (None, "too few labels to tell"), (0.0, "no group of bad labels"),
    (0.253, "about 25% of the labels form a group of their own with a high loss")])
def test_the_share_of_bad_labels_in_words(share, words):
    assert train.share_text(share).startswith(words)


# ------------------------------------------------------------------------------------ command line

def test_paper_settings():
    options = train.parse_arguments(["--paper", "--batch", "16"])
    assert (options.size, options.lr, options.qam_lr, options.lam) == (256, 1e-4, 1e-4, 2.0)
    assert (options.augment, options.area_trend, options.batch) == (False, False, 16)
    optimizer, schedule = train.make_optimizer(pal.UNet(width=2), pal.QAM(), options, 10)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-4]
    assert optimizer.defaults["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("words, lam, trend", [
    ("", "auto", True), ("--strategy loss", "auto", None), ("--strategy qam", None, True),
    ("--strategy baseline", None, None), ("--lam 1 --no-area-trend", 1.0, False),
    ("--paper --area-trend --lam auto", "auto", True), ("--paper --strategy baseline", None, None),
    ("--paper --strategy qam", None, False)])
def test_a_strategy_has_the_lambda_and_the_trend_that_it_uses(words, lam, trend):
    arguments = train.parse_arguments(words.split())
    assert (arguments.lam, arguments.area_trend) == (lam, trend)


@pytest.mark.parametrize("words, noise", [
    ("", 0.5), ("--data phantoms:9", 0.5), ("--data phantoms_of_mine", 0),
    ("--data FOLDER --noise 0.25", 0.25)])
def test_phantoms_are_damaged_unless_told_otherwise_and_folders_are_not(words, noise):
    assert train.parse_arguments(words.split()).noise == noise


@pytest.mark.parametrize("words, name", [
    ("", "phantoms-qam+ocm-0.5-5-13-seed0"),
    ("--data a/JSRT --seed 3 --paper", "JSRT-qam+ocm-0-5-13-seed3-size-256-lam-2.0-paper-True"),
    ("--strategy qam --noise-kind swap", "phantoms-qam-0.5-5-13-seed0-noise-kind-swap")])
def test_run_folders_are_named_after_what_is_not_the_default(words, name):
    assert train.run_name(train.parse_arguments(words.split())) == name


@pytest.mark.parametrize("words, message", [
    ("--noise 1.5", "--noise 1.5: a share from 0 to 1"), ("--noise nan", "nan"),
    ("--noise-kind erode-melt", "--noise-kind erode-melt"), ("--band 13-5", "13-5"),
    ("--band 0-3", "0-3"), ("--band 5", "--band 5"), ("--lam -1", "--lam -1"),
    ("--lam nan", "--lam nan"), ("--size 100", "multiple of 16"), ("--size -1", "--size"),
    ("--size 512", "--size 512: a multiple of 16 from 32 to 256"), ("--size 16", "from 32"),
    ("--lam 1 --strategy qam", "--lam: --strategy qam has no lambda"),
    ("--no-area-trend --strategy baseline", "area-trend: --strategy baseline has no choice"),
    ("--data phantoms:3 --width 10000000", "--width 10000000: from 1 to 1024"),
    ("--data phantoms:2", "a split needs three"), ("--data nowhere", "nowhere"),
    ("--batch 2", "--batch 2"),
    ("--strategy best", "qam+ocm"),
    ("--data phantoms:9 --strategy oracle --noise 0", "choose --noise between 0 and 1"),
    ("--resume nowhere", "--resume nowhere: no run folder"), ("--lr inf", "--lr inf"),
    ("--resume nowhere --epochs 3", "beside it only --data"),
    ("--group [", "--group ["), ("--epochs 0", "--epochs 0"), ("--nose 0.5", "--nose")])
def test_bad_arguments_get_one_line_and_leave_nothing(words, message, tmp_path, capsys):
    """In-process, for speed; nothing is read before all arguments are checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["train.py"])
        if "phantoms" not in words:
            patch.setattr(data, "phantoms", None)
        with pytest.raises(SystemExit) as stopped:
            train.evaluation.run_main(lambda: train.train(train.parse_arguments(words.split())))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and message in error, error
    assert not any(tmp_path.iterdir())


def test_the_script_itself_ends_with_one_line_and_exit_code_2(tmp_path):
    done = run("train.py", "--noise", "2", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("train.py: --noise 2.0: ")
    assert done.stderr.count("\n") == 1 and not any(tmp_path.iterdir())


# -------------------------------------------------------- interruptions, and what must not be lost

def test_a_folder_that_exists_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.txt").write_text("precious")
    for words, message in ((["--out", tmp_path / "mine"], "choose another --out"),
                           (["--resume", tmp_path / "mine"], "it lacks config.json")):
        done = run("train.py", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.txt"]


def test_killed_run_resumes_to_the_same_weights(tmp_path):
    """kill -9 in the middle, --resume, and the end is bit for bit that of an undisturbed run."""
    arguments = [*TINY, "--epochs", "5", "--noise", "0.5"]
    whole = run("train.py", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    for line in process.stdout:
        if "epoch   3/5" in line:  # printed before its checkpoint is saved
            process.kill()
            break
    process.wait()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = run("train.py", "--resume", tmp_path / "killed")
    assert resumed.returncode == 0 and "epoch   2/5" not in resumed.stdout, resumed.stderr
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                  for name in ("whole", "killed"))
    for network in ("unet", "qam"):
        assert all(torch.equal(one[network][key], other[network][key]) for key in one[network])
    texts = [(tmp_path / name / "suspects.csv").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    seconds = [float(row["seconds"]) for row in read_csv(tmp_path / "killed" / "log.csv")]
    assert seconds == sorted(seconds)  # the time before the kill counts, too


def test_what_a_user_marked_in_suspects_csv_is_never_overwritten(tmp_path, finished):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "suspects.html").unlink()  # as if the run had been stopped before
    (tmp_path / "run" / "suspects.csv").write_text("name\nmarked by me\n")
    done = run("train.py", "--resume", tmp_path / "run")
    assert done.returncode == 0 and "epoch " not in done.stdout, done.stderr
    assert "suspects.csv is kept as it is" in done.stdout
    assert (tmp_path / "run" / "suspects.html").exists()
    done = run("eval.py", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "suspects.csv").read_text() == "name\nmarked by me\n"


def test_resume_follows_the_data_and_refuses_labels_corrected_since(tmp_path):
    images, masks = data.phantoms(9, size=64)
    write_folder(tmp_path / "set", images, lungs=masks[:, 0])
    done = run("train.py", "--data", tmp_path / "set", "--size", "32", "--epochs", "1",
               "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "set").rename(tmp_path / "moved")
    again = ("train.py", "--resume", tmp_path / "run", "--data", tmp_path / "moved")
    assert run(*again).returncode == 0
    corrected = data.dilate(masks[4, 0], 3).astype(np.uint8) * 255
    iio.imwrite(tmp_path / "moved" / "lungs" / "case4.png", corrected)
    done = run(*again)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "the data are no longer those of this run" in done.stderr


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
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
