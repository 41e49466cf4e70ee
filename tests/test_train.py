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
from conftest import ROOT, TINY, read_csv, read_metrics, run, train_here, write_folder

import data
import eval as evaluation
import pal
import train


def small_training():
    """Networks, optimizer, schedule, images and labels for `train_epoch`."""
    torch.manual_seed(0)
    unet, qam = pal.UNet(width=2), pal.QAM()
    torch.nn.init.normal_(qam.score.weight)  # at zero all weights would be equal
    images, masks = data.phantoms(6, size=32)
    masks[:3, 1] = False
    optimizer = torch.optim.SGD([*unet.parameters(), *qam.parameters()], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    return unet, qam, optimizer, schedule, torch.from_numpy(images), torch.from_numpy(masks)


def cases_of(operation):
    """Cases of which only the operation is known ("" is clean)."""
    cases = data.Cases(*[None] * len(data.Cases._fields))
    return cases._replace(names=list(range(len(operation))), operation=operation, known=True)


def weights_of(strategy, losses, labels, scores, clean):
    """The weights (4,) of a mini-batch by a strategy, as the paper or its line in --help says."""
    if strategy in ("baseline", "oracle"):
        chosen = clean if strategy == "oracle" else torch.ones(4)
        return chosen / chosen.sum()
    if strategy == "loss":
        own = losses.mean(dim=1) - pal.area_trend(losses, labels, torch.zeros(4))
        scores = ((own.mean() - own) / (own.std() + 1e-6)).detach()
    bounded = scores if strategy == "qam" else 2 * scores.tanh()
    return bounded.exp() / bounded.exp().sum()


@pytest.mark.parametrize("options", ["qam+ocm", "qam+ocm --no-area-trend", "qam", "baseline",
                                     "loss", "oracle"])
def test_an_epoch_steps_down_the_gradient_of_equation_1(options):
    """Equation (1) written out for the only mini-batch: four of six labels."""
    operation = ["", "erode", "", "dilate", "", "erode"]
    arguments = train.parse_arguments(f"--strategy {options} --batch 4 --no-augment".split())
    recipe = train.make_recipe(arguments, cases_of(operation), torch.device("cpu"), False)
    trained = small_training()
    results = train.train_epoch(*trained, torch.Generator().manual_seed(1), recipe)

    unet, qam, optimizer, _, images, labels = small_training()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))[:4]
    inputs, labels = pal.standardize(images[order][:, None]), labels[order]
    losses, scores = pal.sample_losses(unet(inputs), labels), qam(inputs, labels)
    clean = torch.tensor([operation[i] == "" for i in order]).float()
    weights = weights_of(arguments.strategy, losses, labels, scores, clean)
    of_samples = losses.mean(dim=1)
    if options in ("qam+ocm", "qam"):
        of_samples = of_samples - pal.area_trend(losses, labels, scores)
    (weights * of_samples).sum().backward()
    optimizer.step()

    losses = losses.masked_fill(~labels.any(dim=(2, 3)), math.nan)  # of empty labels: no losses
    expected = {0: scores, 1: 4 * weights, 2: losses} if "qam" in options else {1: 4 * weights}
    for part, values in expected.items():
        assert torch.allclose(results[part][order], values, atol=1e-5, equal_nan=True)
        assert results[part].isnan().sum() == 2 * values[0].numel() + values.isnan().sum()
    for network, other in zip(trained, (unet, qam)):
        for parameter, moved in zip(network.parameters(), other.parameters()):
            assert torch.allclose(parameter, moved, atol=1e-5)
    with pytest.raises(ValueError, match="3 images do not fill a mini-batch of 4"):
        train.train_epoch(*trained[:4], images[:3], labels[:3], None, recipe)


@pytest.mark.parametrize("words, highest", [("--qam-lr 0.125", [0.01, 0.125]),
                                            ("--paper", [1e-4, 1e-4])])
def test_unet_and_qam_learn_at_their_own_rates(words, highest):
    networks, rates = (pal.UNet(width=2), pal.QAM()), []
    optimizer, schedule = train.make_optimizer(*networks, train.parse_arguments(words.split()), 10)
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert np.max(rates, axis=0) == pytest.approx(highest)
    assert (np.ptp(rates) == 0) == (words == "--paper")
    for group, network in zip(optimizer.param_groups, networks):
        assert all(map(torch.equal, group["params"], network.parameters()))


EVEN = torch.linspace(0.8, 1.25, 80)
TWO_GROUPS = torch.where(torch.arange(80) < 20, 4.0, 1.0) * EVEN


@pytest.mark.parametrize("losses, share, lam, words", [
    (TWO_GROUPS, 0.25, 0.5, "about 25% of the labels form a group of their own"),
    (EVEN, 0, 0, "no group of bad labels"),
    (EVEN.masked_fill(torch.arange(80) < 20, math.nan), 0, 0, "no group"),  # rightly empty labels
    (EVEN.masked_fill(torch.arange(80) < 21, math.nan), None, 2, "too few labels to tell"),
    (torch.full((80,), math.nan), None, 2, "too few"), (TWO_GROUPS[:59], None, 2, "too few")])
def test_lambda_is_chosen_from_the_mean_losses_of_some_epochs(losses, share, lam, words, capsys):
    epochs = [losses[:, None].clone() for _ in range(3)]
    epochs[0][23:30] = math.nan  # were in no mini-batch
    assert train.choose_lambda(epochs, 2.0, is_auto=True) == (share, lam)
    printed = capsys.readouterr().out
    assert printed.startswith(f"halfway: {words}") and f"; lambda {lam} from here on" in printed
    assert train.choose_lambda(epochs, 1.7, is_auto=False)[1] == 1.7


@pytest.mark.parametrize("epochs", [1, 5])
def test_lambda_is_2_until_halfway_and_then_what_the_share_says(epochs, here, capsys):
    train_here(f"--data phantoms:93 --size 32 --noise 0.5 --epochs {epochs} --out run")
    metrics, printed = read_metrics("run"), capsys.readouterr().out
    last = 2 if epochs == 1 else pal.auto_lambda(metrics["rejected_share"])  # of 62 labels
    lam = [float(row["lam"]) for row in read_csv("run/log.csv")]
    assert lam == [2, 2, last, last, last][:epochs]
    assert metrics["lam"] == evaluation.read_checkpoint("run")["lam"] == last  # as trained with
    assert printed.count("halfway: ") == 1 and f"lambda {last:.2g} from here on" in printed


def moved_columns(monkeypatch, **amounts):
    """Twenty augmented images in which each pixel is its column's number: middle rows (20, 64)."""
    for motion in ("SHIFT", "ZOOM", "TURN"):
        monkeypatch.setattr(train, motion, amounts.get(motion, 0.0))
    images = torch.arange(64.0).expand(20, 1, 64, 64) / 63
    moved, labels = train.augment(images, images > 0.5, torch.Generator().manual_seed(0))
    assert ((moved > 0.5) == labels.bool()).float().mean() > 0.97  # labels move with their images
    return moved[:, 0, 32] * 63


def test_augmentation_shifts_zooms_and_turns_by_up_to_its_amounts(monkeypatch):
    assert torch.allclose(moved_columns(monkeypatch), torch.arange(64.0).expand(20, 64), atol=1e-2)
    moves = moved_columns(monkeypatch, SHIFT=0.25)[:, 32] - 32  # in pixels
    assert 10 < moves.abs().max() <= 16.1 and moves.min() < 0 < moves.max()
    steps = moved_columns(monkeypatch, ZOOM=0.5)[:, 39:41].diff()  # columns per pixel
    assert 1 / 1.51 < steps.min() < 0.8 and 1.25 < steps.max() < 1.51
    steps = moved_columns(monkeypatch, TURN=90.0)[:, 39:41].diff()  # the cosine of the angle
    assert -0.01 < steps.min() < 0.3 and steps.max() <= 1.01


def test_run_folder_is_complete(finished):
    out, printed = finished
    assert {path.name for path in out.iterdir()} == {
        "config.json", "log.csv", "suspects.csv", "metrics.json", "checkpoint.pt", "suspects.html"}
    metrics, config = read_metrics(out), json.loads((out / "config.json").read_text())
    assert metrics["seconds"]["total"] > 0 and metrics["rejected_share"] is None  # of 20 labels
    assert config["arguments"]["noise"] == 0.5 and config["torch"] and config["cpu"]
    assert len(config["digest"]) == 64 and (config["commit"] or not (ROOT / ".git").exists())
    for word in ("s left", "AUROC", "10 of 20 labels changed", "tiny/suspects.html"):
        assert word in printed.replace("\\", "/")


def test_log_holds_means_per_kind_of_label():
    scores, weights = torch.tensor([1.0, -2, -3, math.nan]), torch.tensor([2, 0.5, 0.5, math.nan])
    losses = torch.tensor([[0.1, 0.1], [0.3, 0.5], [0.9, math.nan], [math.nan, math.nan]])
    cases = cases_of(["", "erode", "dilate", ""])
    row = train.epoch_row(7, scores, weights, losses, cases, lam=1.5)
    assert (row["epoch"], row["lam"], row["auroc"], row["loss_auroc"]) == (7, 1.5, 1, 1)
    assert row["loss"] == pytest.approx((2 * 0.1 + 0.5 * 0.4 + 0.5 * 0.9) / 3)
    assert row["loss_noisy"] == pytest.approx(0.65) and row["loss_clean"] == pytest.approx(0.1)
    assert row["weight_clean_mean"] == 2 and row["weight_noisy_variance"] == 0


def test_training_learns_to_segment_and_to_tell_clean_from_noisy(here):
    train_here("--data phantoms:72 --size 64 --epochs 20 --noise 0.5 --out run")
    metrics = read_metrics("run")
    assert metrics["dice"]["lungs"] > 0.85
    assert metrics["audit"]["training"]["score"]["auroc"] > 0.75


def test_labels_as_they_are_are_not_called_clean_and_all_of_them_are_ranked(here, capsys):
    images, masks = data.phantoms(5, size=80)  # three of them are the fewest to train on
    write_folder(here / "set", images, masks=masks[:, 1])
    train_here("--data set --size 64 --epochs 1 --batch 7 --strategy loss --out run")
    metrics, rows = read_metrics("run"), read_csv("run/suspects.csv")
    assert list(metrics["dice"]) == ["foreground", "average"]
    assert metrics["audit"] == {"training": None, "unseen": None}
    text = capsys.readouterr().out.replace("which labels are clean is not known", "")
    text += " ".join([*rows[0], *read_csv("run/log.csv")[0]])
    assert "clean" not in text and "noisy" not in text and "operation" not in text
    assert sorted(row["name"] for row in rows) == [f"case{i}" for i in range(5)]
    weights = [float(row["weight"]) for row in rows if row["split"] == "train"]
    assert len(weights) == 3 and min(weights) < 0.9  # by the losses, not all 1
    means = [float(row["mean_rank"]) for row in rows]
    assert means == sorted(means) and [row["place"] for row in rows] == list("12345")


@pytest.mark.parametrize("changes, words", [
    ({"effective": 99}, "rest on 99 of 200 labels"), ({"epochs": 20}, "240 training steps"),
    ({"count": 59, "epochs": 400}, "59 training labels"), ({"dice": 0.4}, "Dice 0.400 of cells"),
    ({"share": 0.41}, "41% of the labels contradict"),
    ({"effective": 100, "share": 0.4, "dice": 0.41}, None), ({"dice": None}, None),
    ({"effective": 60, "share": 0.5, "noise": 0.5}, None)])  # noise added on purpose
def test_each_warning_is_one_line_and_none_is_to_be_ignored(changes, words):
    run = {"count": 200, "dice": 0.9, "noise": 0, "epochs": 40, "share": None, **changes}
    masks = np.zeros((6, 1, 8, 8), bool)
    masks[:3, :, :4, :4] = True  # where the class is, foreground everywhere has Dice 0.4
    training = SimpleNamespace(names=["a name"] * run["count"], classes=("cells",), clean=masks)
    metrics = {"dice": {"cells": run["dice"]}, "rejected_share": run["share"],
               "effective_sample_size": run.get("effective", run["count"])}
    arguments = SimpleNamespace(noise=run["noise"], epochs=run["epochs"], batch=16)
    warnings = "\n".join(train.warnings_of(arguments, metrics, training, training))
    assert "\n" not in warnings and (words in warnings if words else not warnings)


@pytest.mark.parametrize("words, lam, trend", [
    ("", "auto", True), ("--strategy loss", "auto", None), ("--strategy qam", None, True),
    ("--strategy baseline", None, None), ("--lam 1 --no-area-trend", 1.0, False),
    ("--paper --area-trend --lam auto", "auto", True), ("--paper --strategy baseline", None, None),
    ("--paper --strategy qam", None, False), ("--paper --batch 16", 2.0, False)])
def test_a_strategy_has_the_lambda_and_the_trend_that_it_uses(words, lam, trend):
    options = train.parse_arguments(words.split())
    assert (options.lam, options.area_trend) == (lam, trend)
    if "--paper" in words:
        assert (options.size, options.lr, options.augment) == (256, 1e-4, False)
        assert options.batch == (16 if "--batch" in words else 32)  # what is typed wins


@pytest.mark.parametrize("words, name", [  # phantoms are damaged unless told otherwise
    ("", "phantoms-qam+ocm-0.5-5-13-seed0"),
    ("--data phantoms:9 --noise 0.25", "phantoms9-qam+ocm-0.25-5-13-seed0"),
    ("--data phantoms_of_mine", "phantoms_of_mine-qam+ocm-0-5-13-seed0"),
    ("--data a/JSRT --seed 3 --paper", "JSRT-qam+ocm-0-5-13-seed3-size-256-lam-2.0-paper-True"),
    ("--strategy qam --noise-kind swap", "phantoms-qam-0.5-5-13-seed0-noise-kind-swap")])
def test_run_folders_are_named_after_what_is_not_the_default(words, name):
    assert train.run_name(train.parse_arguments(words.split())) == name


@pytest.mark.parametrize("words, message", [
    ("--noise 1.5", "--noise 1.5: a share from 0 to 1"), ("--noise nan", "nan"),
    ("--noise-kind erode-melt", "--noise-kind erode-melt"), ("--band 13-5", "13-5"),
    ("--band 0-3", "0-3"), ("--band 5", "--band 5"), ("--lam -1", "--lam -1"),
    ("--lam nan", "--lam nan"), ("--size 100", "multiple of 16"), ("--size 16", "from 32"),
    ("--size 512", "--size 512: a multiple of 16 from 32 to 256"), ("--batch 2", "--batch 2"),
    ("--lam 1 --strategy qam", "--lam: --strategy qam has no lambda"), ("--nose 0.5", "--nose"),
    ("--no-area-trend --strategy baseline", "area-trend: --strategy baseline has no choice"),
    ("--data phantoms:3 --width 10000000", "--width 10000000: from 1 to 1024"),
    ("--data phantoms:2", "a split needs three"), ("--data phantoms:3", "three or more"),
    ("--data nowhere", "nowhere"), ("--strategy best", "qam+ocm"), ("--lr inf", "--lr inf"),
    ("--data phantoms:9 --strategy oracle --noise 0", "choose --noise between 0 and 1"),
    ("--resume nowhere", "--resume nowhere: no run folder"),
    ("--data phantoms:9 --group [", "--group ["),
    ("--resume nowhere --epochs 3", "beside it only --data"), ("--epochs 0", "--epochs 0"),
    ("--out mine", "choose another --out"), ("--resume mine", "it lacks config.json")])
def test_bad_arguments_get_one_line_and_change_nothing(words, message, here, monkeypatch, capsys):
    (here / "mine").mkdir()
    (here / "mine" / "config.txt").write_text("precious")
    if "phantoms" not in words:
        monkeypatch.setattr(data, "phantoms", None)  # nothing is read before all is checked
    with pytest.raises(SystemExit) as stopped:
        evaluation.run_main(lambda: train_here(words))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and message in error, error
    assert list(here.rglob("*")) == [here / "mine", here / "mine" / "config.txt"]


def test_killed_run_resumes_to_the_same_weights(here, finished):
    """kill -9 in the middle, --resume, and the end is bit for bit that of an undisturbed run."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY.split(), "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, cwd=here)
    for line in process.stdout:
        if "epoch   2/5" in line:  # printed before its checkpoint is saved
            process.kill()
            break
    process.wait()
    assert not (here / "killed" / "metrics.json").exists()
    resumed = run("train.py", "--resume killed", cwd=here)
    assert resumed.returncode == 0 and "epoch   1/5" not in resumed.stdout, resumed.stderr
    one, other = (evaluation.read_checkpoint(folder) for folder in ("killed", finished[0]))
    for network in ("unet", "qam"):
        assert all(torch.equal(one[network][key], other[network][key]) for key in one[network])
    for name in ("suspects.csv", "metrics.json"):
        texts = [(folder / name).read_text().partition('"seconds"')[0]
                 for folder in (here / "killed", finished[0])]
        assert texts[0] == texts[1]
    seconds = [row["seconds"] for row in one["log"]]
    assert seconds == sorted(seconds)  # the time before the kill counts, too


def test_what_a_user_marked_in_suspects_csv_is_never_overwritten(here, finished, capsys):
    shutil.copytree(finished[0], "run")
    (here / "run" / "suspects.html").unlink()  # as if the run had been stopped before
    (here / "run" / "suspects.csv").write_text("name\nmarked by me\n")
    train_here("--resume run")
    printed = capsys.readouterr().out
    assert "suspects.csv is kept as it is" in printed and "epoch " not in printed
    assert (here / "run" / "suspects.html").exists()
    evaluation.main(["run"])
    assert (here / "run" / "suspects.csv").read_text() == "name\nmarked by me\n"


def test_resume_follows_the_data_and_refuses_labels_corrected_since(here):
    images, masks = data.phantoms(9, size=64)
    write_folder(here / "set", images, lungs=masks[:, 0])
    train_here("--data set --size 32 --epochs 1 --out run")
    (here / "set").rename("moved")
    train_here("--resume run --data moved")
    corrected = data.dilate(masks[4, 0], 3).astype(np.uint8) * 255
    iio.imwrite("moved/lungs/case4.png", corrected)
    with pytest.raises(data.BadInput, match="the data are no longer those of this run"):
        train_here("--resume run --data moved")


def test_loss_that_is_not_finite_stops_the_run(here):
    with pytest.raises(data.BadInput, match="epoch . gave numbers that are not finite"):
        train_here(f"{TINY} run --lr 1e30")
    assert not (here / "run" / "metrics.json").exists()


def limit_file_size():
    """In the child process: no file may become larger than 100 kB, as on a full disk."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize("options, words", [(f"{TINY} run", "File too large"),
                                            ("--noise 2", "--noise 2.0: ")])
def test_full_disks_and_bad_arguments_end_the_script_with_one_line(options, words, here):
    done = run("train.py", options, cwd=here, preexec_fn=limit_file_size)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stderr.startswith("train.py: ") and not list(here.glob("run/checkpoint.pt"))
