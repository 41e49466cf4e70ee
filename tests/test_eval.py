"""eval.py: metrics against slow, obvious counts; files, tables and images as it leaves them."""
import io
import itertools
import math
import os
import shutil
import sys
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import read_csv, read_metrics, write_folder
from PIL import Image

import data
import eval as evaluation
import pal


def slow_auroc(bad, good):
    """The share of pairs that are in the right order, ties counted half."""
    wins = [(one > other) + (one == other) / 2 for one in bad for other in good]
    return sum(wins) / len(wins)


@pytest.fixture(scope="session")
def trained(finished):
    """The finished run: its folder, what train.py printed, networks, Cases, metrics."""
    unet, qam, settings = evaluation.load_networks(finished[0])
    training, test = data.load(data.options_of(SimpleNamespace(**settings)))
    return SimpleNamespace(out=finished[0], printed=finished[1], unet=unet, qam=qam,
                           training=training, test=test, metrics=read_metrics(finished[0]))


@pytest.mark.parametrize("error, code, words", [
    (data.BadInput("no\nsuch folder"), 2, "no such folder"), (FileNotFoundError("gone"), 2, "gone"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory."), 2, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
    (MemoryError(), 2, "out of memory"), (KeyboardInterrupt(), 130, "interrupted"),
    (RuntimeError("unsupported memory format"), None, "")])  # a fault, with its traceback
def test_scripts_end_with_one_line(error, code, words, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit if code else RuntimeError) as stopped:
        evaluation.run_main(main)
    printed = capsys.readouterr().err
    assert getattr(stopped.value, "code", None) == code and words in printed
    assert printed.count("\n") == (code is not None)


@pytest.mark.parametrize("stream", [
    SimpleNamespace(write=len, flush=int), None, io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_streams_of_notebooks_and_of_narrow_consoles_do(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    evaluation.run_main(lambda: print("\u80ba is a lung", flush=True))
    if isinstance(stream, io.TextIOWrapper):
        assert stream.buffer.getvalue().strip() == b"? is a lung"


@pytest.mark.parametrize("arguments, words", [
    ("", "give a run folder, or --table"), ("RUN --table RUN", "give a run folder, or --table"),
    ("RUN --data phantoms:3", "--out"), ("RUN --out new", "--data FOLDER goes with"),
    ("--table RUN --data phantoms:3 --out new", "goes with a run"), ("RUN --masks x", "--masks"),
    ("--nonsense", "unrecognized"), ("nowhere", "checkpoint"), ("--table nowhere", "no finished"),
    ("RUN --skip-unpaired", "a run has its own"),
    ("RUN --data phantoms:3 --out RUN", "exists already")])
def test_bad_arguments_get_one_line(arguments, words, trained, here):
    with pytest.raises(data.BadInput, match=words) as refused:
        evaluation.main([word.replace("RUN", str(trained.out)) for word in arguments.split()])
    assert "\n" not in str(refused.value) and not list(here.iterdir())


def test_a_failed_write_leaves_the_old_file_as_it_was_written(tmp_path):
    rows = [{"name": "a, \"b\"", "score": "0.1"}, {"name": "肺\n", "score": "1e-09"}]
    evaluation.write_csv(tmp_path / "rows.csv", rows)
    (tmp_path / "rows.csv.new").mkdir()  # so that nothing can be written there
    with pytest.raises(OSError):
        evaluation.write_csv(tmp_path / "rows.csv", rows[:1])
    assert read_csv(tmp_path / "rows.csv") == rows


def test_damaged_checkpoints_and_changed_data_are_refused(trained, here):
    whole = evaluation.read_checkpoint(trained.out)
    for content, cut, words in (
            ({**whole, "digest": "of other data"}, None, "no longer those of this run"),
            ({"weights": torch.zeros(3)}, None, "no checkpoint of this version"),
            (whole, 9999, "no checkpoint of this version")):
        torch.save(content, "checkpoint.pt")
        if cut:
            os.truncate("checkpoint.pt", cut)
        with pytest.raises(data.BadInput, match=words):
            evaluation.main(["."])


def test_eval_prints_the_same_metrics_again_and_writes_nothing(trained, here, capsys):
    shutil.copy(trained.out / "checkpoint.pt", here)
    evaluation.main(["."])
    printed = capsys.readouterr().out
    assert "AUROC" in printed and printed[printed.index("| Dice"):] in trained.printed
    assert [path.name for path in here.iterdir()] == ["checkpoint.pt"]


def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    expected = slow_auroc(values[positive], values[~positive])
    assert evaluation.auroc(values, positive) == pytest.approx(expected)
    assert math.isnan(evaluation.auroc(values, np.ones(60, bool)))


def test_the_mean_rank_is_that_of_three_rankings_or_of_two():
    scores, losses, softmin = np.array([1, 2, 2, 4]), np.array([4, 3, 2, 1]), np.array([1, 9, 5, 5])
    by_loss, by_softmin = np.array([0, 1 / 3, 2 / 3, 1]), np.array([0, 1, 0.5, 0.5])
    three, two = (np.array([0, 0.5, 0.5, 1]) + by_loss + by_softmin) / 3, (by_loss + by_softmin) / 2
    assert evaluation.mean_rank(scores, losses, softmin) == pytest.approx(three)
    assert evaluation.mean_rank(np.zeros(4), losses, softmin) == pytest.approx(two)


def test_softmin_quality_is_a_mean_that_bad_pixels_dominate():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    labels = torch.tensor([[[[True, True], [False, False]]]])
    given = [1 / (1 + math.exp(-z)) for z in (2, -1, -0.5, 3)]
    weights = [math.exp((1 - p) / 0.1) for p in given]
    expected = sum(p * w for p, w in zip(given, weights)) / sum(weights)
    assert evaluation.softmin_quality(logits, labels).item() == pytest.approx(expected)


def test_dice_is_of_the_images_that_have_the_class_and_the_others_are_counted(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 6, 3, 8, 8)) < 0.5
    truth[:4, 1], truth[:, 2], prediction[0, 1] = False, False, False
    monkeypatch.setattr(evaluation, "predict", lambda *_: torch.from_numpy(prediction))
    test = SimpleNamespace(images=np.zeros((6, 8, 8), np.uint8), clean=truth, classes="abc")
    metrics = evaluation.dice_metrics(None, test)
    values = pal.dice(torch.from_numpy(prediction), torch.from_numpy(truth)).numpy()
    first, second = values[:, 0].mean(), values[4:, 1].mean()
    assert metrics["dice"] == {"a": pytest.approx(first), "b": pytest.approx(second), "c": None,
                               "average": pytest.approx((first + second) / 2)}
    evaluation.print_dice(metrics, known=False)
    printed = capsys.readouterr().out
    assert "4 images without b, nothing predicted in 1\n" in printed
    assert "no test label has c: left out of the average\n6 images without c, nothing" in printed


def test_scores_do_not_depend_on_the_labels_beside_them(trained):
    images = torch.from_numpy(trained.training.images)
    labels = torch.from_numpy(trained.training.labels)
    together = evaluation.score_labels(trained.unet, trained.qam, images, labels)[0]
    alone = evaluation.score_labels(trained.unet, trained.qam, images[:1], labels[:1])[0]
    assert together[0] == pytest.approx(alone[0], abs=1e-5) and np.ptp(together) > 1e-3


def test_suspects_agree_with_the_metrics(trained):
    rows, audit = read_csv(trained.out / "suspects.csv"), trained.metrics["audit"]["training"]
    assert list(rows[0]) == [
        "place", "name", "noisy", "operation", "pixels", "score", "weight", "loss", "loss_lungs",
        "loss_heart", "loss_clavicles", "stands_out", "softmin", "mean_rank"]
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]
               if name not in ("name", "operation", "stands_out")}
    noisy, weights = columns["noisy"] == 1, columns["weight"]
    ranks = evaluation.mean_rank(columns["score"], columns["loss"], columns["softmin"])
    assert columns["place"].tolist() == list(range(1, len(rows) + 1))
    assert columns["mean_rank"].tolist() == ranks.tolist() == sorted(ranks)
    badness = {"score": -columns["score"], "loss": columns["loss"], "ranks": -ranks,
               "softmin": -columns["softmin"]}
    for name, values in badness.items():
        assert audit[name]["auroc"] == pytest.approx(slow_auroc(values[noisy], values[~noisy]))
        worst = sorted(range(len(rows)), key=lambda i: -values[i])[:noisy.sum()]
        assert audit[name]["recall"] == pytest.approx(noisy[worst].mean())
    per_class = [columns[f"loss_{name}"] for name in data.CLASSES]
    assert columns["loss"] == pytest.approx(np.mean(per_class, axis=0))
    assert weights.sum() == pytest.approx(len(rows))
    expected = weights.sum() ** 2 / sum(weight * weight for weight in weights)
    assert trained.metrics["effective_sample_size"] == pytest.approx(expected)


def test_the_class_that_stands_out_is_far_above_its_own_mean():
    losses = np.array([[0.1, 0.1, 0.1, 0.4], [0.2, 1.8, 0.2, 1.2]])
    assert evaluation.outstanding_class(losses, ["easy", "hard"])[1::2] == ["hard", "easy"]


@pytest.mark.parametrize("strategy", ["baseline", "loss", "qam+ocm", "oracle"])
def test_labels_have_the_weights_that_their_strategy_gives_them(strategy, trained):
    qam = pal.QAM() if strategy == "baseline" else trained.qam  # a baseline does not train it
    rows = evaluation.label_rows(trained.unet, qam, trained.training, 1.5, strategy)
    scores = torch.tensor([row["score"] for row in rows])
    if strategy == "loss":
        losses = torch.tensor([[row[f"loss_{name}"] for name in data.CLASSES] for row in rows])
        labels = torch.from_numpy(trained.training.labels)
        own = losses.mean(dim=1) - pal.area_trend(losses, labels, torch.zeros(len(rows)))
        scores = (own.mean() - own) / own.std()
    expected = torch.softmax(1.5 * torch.tanh(scores), dim=0).numpy() * len(rows)
    if strategy == "oracle":
        expected = np.array([2 * (row["noisy"] == 0) for row in rows])  # half of them are noisy
    assert [row["weight"] for row in rows] == pytest.approx(expected, rel=1e-3)
    assert (np.ptp(expected) > 0.01) == (strategy != "baseline")


def test_other_images_get_masks_of_their_own_size_and_dice_if_they_have_labels(
        trained, here, capsys):
    images, masks = data.phantoms(2, size=96)
    images, masks = images[:, :80], dict(zip(data.CLASSES, masks[:, :, :80].swapaxes(0, 1)))
    write_folder(here / "plain", images)
    write_folder(here / "labeled", images, **masks)
    write_folder(here / "single", images[:1], **{name: mask[:1] for name, mask in masks.items()})
    files = {"metrics.json", "suspects.csv", "suspects.html"}
    for folder, count in (("plain", 0), ("labeled", 2), ("single", 1)):
        evaluation.main([str(trained.out), "--data", folder, "--out", f"{folder}-out"])
        made = {path.name for path in (here / f"{folder}-out").iterdir()}
        assert made == {*data.CLASSES, *(files if count else ())}
        if count:
            rows = read_csv(f"{folder}-out/suspects.csv")
            assert len(rows) == count and not {"noisy", "split"} & set(rows[0])
            assert "Dice on test labels (as given)" in capsys.readouterr().out
    paths = [f"plain/images/case{i}.png" for i in range(2)]
    resized = torch.from_numpy(data.read_images(paths, 64))  # as users make them for `predict`
    logits = trained.unet(pal.standardize(resized[:, None])).detach().numpy()
    for i, c in itertools.product(range(2), range(3)):
        mask = iio.imread(f"plain-out/{data.CLASSES[c]}/case{i}.png")
        # Pillow's bilinear enlargement is an independent one.
        large = np.asarray(Image.fromarray(logits[i, c]).resize((96, 80), Image.BILINEAR))
        assert mask.shape == (80, 96) and set(np.unique(mask)) <= {0, 255}
        assert ((mask > 0) == (large > 0)).mean() > 0.999 and (c > 0 or mask.any())
    (here / "labeled" / "heart").rename("labeled/spleen")
    with pytest.raises(data.BadInput, match="spleen"):
        evaluation.main([str(trained.out), "--data", "labeled", "--out", "none"])
    assert not (here / "none").exists()


def write_run(folder, average, digest):
    """config.json and metrics.json of a finished run with this average Dice."""
    settings = {"strategy": "qam+ocm", "noise": 0.5, "seed": 0}
    dice = {"lungs": 0.9, "heart": 0.8, "clavicles": None, "average": average}
    (folder / "masks").mkdir(parents=True)  # as eval.py --data --out leaves it
    evaluation.write_json(folder / "config.json", {"arguments": settings, "digest": digest})
    for place in (folder, folder / "masks"):
        evaluation.write_json(place / "metrics.json", {"dice": dice})


def test_the_table_has_a_line_a_run_and_names_the_data(tmp_path):
    write_run(tmp_path / "a", 0.5, "abcdef0")
    write_run(tmp_path / "b" / "again", 0.7, "123456789")  # the folder was changed since
    _, first, second = evaluation.table_of(tmp_path)
    classes = "lungs 0.900, heart 0.800, clavicles -"
    assert first == ["a", "qam+ocm", "0.5", "0", "abcdef", "0.500", classes]
    assert second == [os.path.join("b", "again"), "qam+ocm", "0.5", "0", "123456", "0.700", classes]
    (tmp_path / "a" / "config.json").write_text('{"arguments": null}')
    with pytest.raises(data.BadInput, match="not a run of train.py"):
        evaluation.table_of(tmp_path)
