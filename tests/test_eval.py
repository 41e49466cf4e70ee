"""eval.py: metrics against slow, obvious counts; files, tables and images as it leaves them."""
import io
import itertools
import math
import shutil
import sys
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import read_csv, write_folder
from PIL import Image

import data
import eval as evaluation
import pal

OPTIONS = {"data": "phantoms:18", "size": 64, "noise": 0.5, "band": "5-13", "seed": 3,
           "noise_kind": "erode-dilate"}  # of data.load
SETTINGS = {**dict.fromkeys(data.LOAD), **OPTIONS, "skip_unpaired": False, "width": 4,
            "strategy": "qam+ocm", "epochs": 4, "batch": 4, "lam": "auto"}


def slow_auroc(bad, good):
    """The share of pairs that are in the right order, ties counted half."""
    wins = [(one > other) + (one == other) / 2 for one in bad for other in good]
    return sum(wins) / len(wins)


def slow_ranks(values):
    """Rank of each value: how many are smaller, and half of the others that equal it."""
    result = []
    for value in values:
        smaller = sum(other < value for other in values)
        equal = sum(other == value for other in values) - 1
        result.append((smaller + equal / 2) / (len(values) - 1))
    return result


def slow_dice(prediction, truth):
    """Dice of two masks (H, W), from their sets of pixels."""
    one, other = set(np.flatnonzero(prediction)), set(np.flatnonzero(truth))
    return 2 * len(one & other) / (len(one) + len(other))


def unknown(cases):
    """The same Cases, if nobody knew which labels are clean."""
    count = len(cases.names)
    return cases._replace(clean=cases.labels, operation=[""] * count, pixels=np.zeros(count, int),
                          known=False)


def has_color(image, color):
    """Whether a pixel has this color, or nearly so where edges are smooth."""
    return bool((np.abs(np.asarray(image).astype(int) - color).sum(axis=-1) < 30).any())


def log_of(epochs, known):
    """A log as train.py keeps it."""
    row = {"lam": 2.0, "loss": 1.0, "dice_lungs": math.nan, "dice_heart": None,
           "dice_clavicles": 0.4}
    if known:
        row |= {"loss_clean": 1.0, "loss_noisy": 2.0, "auroc": 0.9, "loss_auroc": 0.8}
        for kind in ("clean", "erode"):
            row |= {f"weight_{kind}_mean": 1.0, f"weight_{kind}_variance": 0.1}
    return [{"epoch": epoch + 1, **row} for epoch in range(epochs)]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder as train.py leaves it, of a U-Net trained for a moment and a random QAM."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    out.mkdir()
    classes, training, test = data.load(**{name: SETTINGS[name] for name in data.LOAD})
    unet, qam = evaluation.build_networks(SETTINGS, classes, "cpu")
    torch.nn.init.normal_(qam.score.weight)  # it starts at zero, and so would the scores
    images, labels = torch.from_numpy(training.images), torch.from_numpy(training.labels)
    optimizer = torch.optim.Adam(unet.parameters(), 1e-2)
    for _ in range(30):
        loss = pal.sample_losses(unet(pal.standardize(images[:, None])), labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metrics, rows = evaluation.evaluate(unet, qam, classes, training, test, "cpu", 2.0, "qam+ocm")
    metrics["warnings"], metrics["rejected_share"] = [], 0.25
    evaluation.write_csv(out / "suspects.csv", rows)
    state = dict.fromkeys(evaluation.CHECKPOINT)
    state |= {"arguments": SETTINGS, "classes": list(classes), "lam": 2.0, "share": 0.25,
              "log": log_of(4, known=True), "digest": data.digest(training, test),
              "unet": unet.state_dict(), "qam": qam.state_dict()}
    evaluation.save_checkpoint(out / "checkpoint.pt", state)
    return SimpleNamespace(out=out, unet=unet, qam=qam, classes=classes, training=training,
                           test=test, metrics=metrics, rows=rows)


@pytest.fixture
def folder(tmp_path):
    """A folder of two images with masks, 80 x 96 pixels, and the same without masks."""
    images, masks = data.phantoms(2, size=96)
    images, masks = images[:, :80], masks[:, :, :80]
    write_folder(tmp_path / "labeled", images, **dict(zip(data.CLASSES, masks.swapaxes(0, 1))))
    write_folder(tmp_path / "plain", images)
    return tmp_path


# ------------------------------------------------------------------------------ the command line

@pytest.mark.parametrize("error, code, words", [
    (data.BadInput("no\nsuch folder"), 2, "no such folder"), (FileNotFoundError("gone"), 2, "gone"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory."), 2, "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
    (MemoryError(), 2, "out of memory"), (KeyboardInterrupt(), 130, "interrupted")])
def test_scripts_end_with_one_line(error, code, words, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as stopped:
        evaluation.run_main(main)
    printed = capsys.readouterr().err
    assert stopped.value.code == code and words in printed and printed.count("\n") == 1


def test_other_errors_keep_their_traceback_even_if_they_speak_of_memory():
    def main():
        raise RuntimeError("unsupported memory format")
    with pytest.raises(RuntimeError, match="memory format"):
        evaluation.run_main(main)


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
    ("RUN --data phantoms:3 --out RUN", "exists already")])
def test_bad_arguments_get_one_line(arguments, words, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.BadInput, match=words) as refused:
        evaluation.main([word.replace("RUN", str(trained.out)) for word in arguments.split()])
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


# --------------------------------------------------------------------- the files of a run folder

def test_a_failed_write_leaves_the_old_file_as_it_was_written(tmp_path):
    rows = [{"name": "a, \"b\"", "score": "0.1"}, {"name": "肺\n", "score": "1e-09"}]
    evaluation.write_csv(tmp_path / "rows.csv", rows)
    (tmp_path / "rows.csv.new").mkdir()  # so that nothing can be written there
    with pytest.raises(OSError):
        evaluation.write_csv(tmp_path / "rows.csv", rows[:1])
    assert read_csv(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize("damage", ["truncated", "other keys", "missing", "other data"])
def test_damaged_checkpoints_and_changed_data_are_refused(damage, trained, tmp_path):
    path, words = tmp_path / "checkpoint.pt", "no checkpoint of this version"
    if damage == "missing":
        words = "no run folder of train.py"
    if damage == "truncated":
        path.write_bytes((trained.out / "checkpoint.pt").read_bytes()[:9999])
    if damage == "other keys":
        torch.save({"weights": torch.zeros(3)}, path)
    if damage == "other data":
        words = "no longer those of this run"
        checkpoint = evaluation.read_checkpoint(trained.out / "checkpoint.pt")
        evaluation.save_checkpoint(path, {**checkpoint, "digest": data.digest(trained.test)})
    with pytest.raises(data.BadInput, match=words):
        evaluation.main([str(tmp_path)])


# --------------------------------------------------------------------------------------- metrics

def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    expected = slow_auroc(values[positive], values[~positive])
    assert evaluation.auroc(values, positive) == pytest.approx(expected)
    assert math.isnan(evaluation.auroc(values, np.ones(60, bool)))


def test_the_combined_ranking_is_the_mean_of_three_ranks_or_of_two():
    rng = np.random.default_rng(2)
    scores, losses, quality = rng.integers(0, 9, (3, 25)).astype(float)
    by_score, by_loss, by_quality = slow_ranks(-scores), slow_ranks(losses), slow_ranks(-quality)
    three = [(a + b + c) / 3 for a, b, c in zip(by_score, by_loss, by_quality)]
    two = [(b + c) / 2 for b, c in zip(by_loss, by_quality)]
    assert evaluation.combined_ranking(scores, losses, quality) == pytest.approx(three)
    assert evaluation.combined_ranking(np.zeros(25), losses, quality) == pytest.approx(two)


def test_label_quality_is_a_mean_that_bad_pixels_dominate():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    labels = torch.tensor([[[[True, True], [False, False]]]])
    given = [1 / (1 + math.exp(-z)) for z in (2, -1, -0.5, 3)]
    weights = [math.exp((1 - p) / 0.1) for p in given]
    expected = sum(p * w for p, w in zip(given, weights)) / sum(weights)
    assert evaluation.label_quality(logits, labels).item() == pytest.approx(expected)


def test_ties_at_the_cut_off_count_in_part():
    noisy, share = np.array([True, True, False, False, False]), evaluation.share_among_worst
    assert share(noisy, np.zeros(5), 2) == share(noisy[::-1], np.zeros(5), 2) == 0.4
    assert share(noisy, np.array([3.0, 1, 2, 1, 0]), 3) == pytest.approx((1 + 0 + 0.5) / 3)


def test_dice_is_averaged_over_the_images_that_have_the_class(trained):
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 6, 3, 8, 8)) < 0.5
    truth[:4, 1], truth[:, 2], prediction[0, 1] = False, False, False
    dice = evaluation.mean_dice(torch.from_numpy(prediction), torch.from_numpy(truth), "abc")
    first = np.mean([slow_dice(prediction[i, 0], truth[i, 0]) for i in range(6)])
    second = np.mean([slow_dice(prediction[i, 1], truth[i, 1]) for i in (4, 5)])
    assert dice == {"a": pytest.approx(first), "b": pytest.approx(second), "c": None,
                    "average": pytest.approx((first + second) / 2)}


def test_images_without_a_class_are_counted_beside_the_dice(trained, capsys):
    test = trained.test._replace(clean=trained.test.clean.copy())
    test.clean[:4, 1] = False
    metrics = evaluation.dice_metrics(trained.unet, test, trained.classes, "cpu")
    prediction = evaluation.predict(trained.unet, torch.from_numpy(test.images)).numpy()
    nothing = sum(not mask.any() for mask in prediction[:4, 1])
    assert metrics["empty"] == {"heart": {"images": 4, "predicted_empty": nothing}}
    evaluation.print_dice(metrics, known=False)
    printed = capsys.readouterr().out
    assert "Dice on test labels (as given)" in printed
    assert f"4 images without heart, nothing predicted in {nothing}" in printed


def test_scores_do_not_depend_on_the_labels_beside_them(trained):
    images, labels = [torch.from_numpy(array) for array in trained.training[1:3]]
    together = evaluation.score_labels(trained.unet, trained.qam, images, labels)[0]
    alone = evaluation.score_labels(trained.unet, trained.qam, images[:1], labels[:1])[0]
    assert together[0] == pytest.approx(alone[0], abs=1e-5) and np.ptp(together) > 1e-3


def test_suspects_agree_with_the_metrics(trained):
    rows, audit = read_csv(trained.out / "suspects.csv"), trained.metrics["audit"]["training"]
    assert list(rows[0]) == [
        "place", "name", "noisy", "operation", "pixels", "score", "weight", "loss", "loss_lungs",
        "loss_heart", "loss_clavicles", "stands_out", "quality", "mean_rank"]
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]
               if name not in ("name", "operation", "stands_out")}
    noisy, weights = columns["noisy"] == 1, columns["weight"]
    ranks = evaluation.combined_ranking(columns["score"], columns["loss"], columns["quality"])
    assert columns["place"].tolist() == list(range(1, len(rows) + 1))
    assert columns["mean_rank"].tolist() == (1 - ranks).tolist() == sorted(1 - ranks)
    badness = {"score": -columns["score"], "loss": columns["loss"], "ranks": ranks,
               "softmin": -columns["quality"]}
    for name, values in badness.items():
        assert audit[name]["auroc"] == pytest.approx(slow_auroc(values[noisy], values[~noisy]))
        worst = sorted(range(len(rows)), key=lambda i: -values[i])
        for key, count in (("precision_10", 10), ("recall", noisy.sum())):
            assert audit[name][key] == pytest.approx(noisy[worst[:count]].mean())
    per_class = [columns[f"loss_{name}"] for name in data.CLASSES]
    assert columns["loss"] == pytest.approx(np.mean(per_class, axis=0))
    assert weights.sum() == pytest.approx(len(rows))
    expected = weights.sum() ** 2 / sum(weight * weight for weight in weights)
    assert trained.metrics["effective_sample_size"] == pytest.approx(expected)


def test_if_nobody_knows_which_labels_are_clean_all_of_them_are_ranked(trained):
    training, test = unknown(trained.training), unknown(trained.test)
    metrics, rows = evaluation.evaluate(trained.unet, trained.qam, trained.classes, training, test,
                                        "cpu", 2.0, "qam+ocm")
    assert metrics["audit"] == {"training": None, "unseen": None}
    assert not {"noisy", "operation", "pixels"} & set(rows[0]) and list(rows[0])[2] == "split"
    for split, cases in (("train", training), ("test", test)):
        names = [row["name"] for row in rows if row["split"] == split]
        assert sorted(names) == sorted(cases.names)
    means = [row["mean_rank"] for row in rows]
    assert means == sorted(means) and [row["place"] for row in rows] == list(range(1, 19))


def test_the_class_that_stands_out_is_far_above_its_own_mean():
    losses = np.array([[0.1, 0.1, 0.1, 0.4], [0.2, 1.8, 0.2, 1.2]])
    assert evaluation.outstanding_class(losses, ["easy", "hard"])[1::2] == ["hard", "easy"]


def test_the_oracle_weighs_the_clean_labels_alone(trained):
    rows = evaluation.label_rows(trained.unet, trained.qam, trained.classes, trained.training,
                                 "cpu", None, "oracle")
    clean = sum(row["noisy"] == 0 for row in rows)
    for row in rows:
        assert row["weight"] == (0 if row["noisy"] else pytest.approx(len(rows) / clean))


def test_eval_gives_the_same_metrics_again_from_the_checkpoint_alone(trained, tmp_path, capsys):
    evaluation.print_results(SETTINGS, trained.metrics, known=True)
    before = capsys.readouterr().out.split("effective")[0]
    shutil.copy(trained.out / "checkpoint.pt", tmp_path)
    evaluation.main([str(tmp_path)])
    assert before in capsys.readouterr().out
    suspects = (tmp_path / "suspects.csv").read_text()
    assert suspects == (trained.out / "suspects.csv").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt", "suspects.csv", "suspects.png", "samples.png", "curves.png"}


# -------------------------------------------------------------------------- other images

def test_images_get_masks_of_their_own_size(trained, folder, capsys):
    out = folder / "out"
    evaluation.main([str(trained.out), "--data", str(folder / "plain"), "--out", str(out)])
    assert {path.name for path in out.iterdir()} == set(data.CLASSES)
    source, _ = data.load_all(folder / "plain", 64)
    images = torch.from_numpy(data.resize(source.images, 64))
    with torch.no_grad():
        logits = trained.unet.eval()(pal.standardize(images[:, None])).numpy()
    for i, c in itertools.product(range(2), range(3)):
        mask = iio.imread(out / data.CLASSES[c] / f"case{i}.png")
        # Pillow's bilinear enlargement is an independent one.
        large = np.asarray(Image.fromarray(logits[i, c]).resize((96, 80), Image.BILINEAR))
        assert mask.shape == (80, 96) and set(np.unique(mask)) <= {0, 255}
        assert ((mask > 0) == (large > 0)).mean() > 0.999
    assert iio.imread(out / "lungs" / "case0.png").any()


def test_images_with_labels_get_dice_and_suspects_as_well(trained, folder, capsys):
    for out, count in (("two", 2), ("one", 1)):  # a single image is enough
        evaluation.main([str(trained.out), "--data", str(folder / "labeled"),
                         "--out", str(folder / out)])
        assert {path.name for path in (folder / out).iterdir()} == {
            *data.CLASSES, "metrics.json", "suspects.csv", "suspects.png"}
        rows = read_csv(folder / out / "suspects.csv")
        assert len(rows) == count and not {"noisy", "split"} & set(rows[0])
        for part in ("images", *data.CLASSES):
            (folder / "labeled" / part / "case1.png").unlink(missing_ok=True)
    printed = capsys.readouterr().out
    assert "Dice on test labels (as given)" in printed and "the paper" not in printed
    (folder / "labeled" / "heart").rename(folder / "labeled" / "spleen")
    with pytest.raises(data.BadInput, match="spleen"):
        evaluation.main([str(trained.out), "--data", str(folder / "labeled"),
                         "--out", str(folder / "none")])
    assert not (folder / "none").exists()


# ----------------------------------------------------------------------- warnings, text, tables

def warnings_for(count=200, dice=0.9, noise=0.0, epochs=40, effective=None, share=None):
    """The warnings of a run with one class, with foreground in a quarter of half of the masks."""
    masks = np.zeros((6, 1, 8, 8), bool)
    masks[:3, :, :4, :4] = True  # where the class is, foreground everywhere has Dice 0.4
    settings = {"noise": noise, "epochs": epochs, "batch": 16, "strategy": "qam+ocm"}
    metrics = {"dice": {"cells": dice}, "effective_sample_size": effective or count}
    training, test = SimpleNamespace(names=["a name"] * count), SimpleNamespace(clean=masks)
    return evaluation.warnings_of(settings, metrics, training, test, share)


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
def test_a_run_ends_with_the_share_of_bad_labels(share, words, trained, capsys):
    evaluation.print_results(SETTINGS, {**trained.metrics, "rejected_share": share}, known=True)
    assert words in capsys.readouterr().out.splitlines()[-1]


def write_run(folder, average, audit=None, **settings):
    """config.json and metrics.json of a finished run with these settings and average Dice."""
    folder.mkdir(parents=True)
    dice = {"lungs": 0.9, "heart": 0.8, "clavicles": None, "average": average}
    evaluation.write_json(folder / "config.json", {"arguments": {**SETTINGS, **settings}})
    evaluation.write_json(folder / "metrics.json",
                          {"dice": dice, "audit": {"training": audit, "unseen": None}})


def test_a_row_of_the_table_is_mean_and_deviation_over_seeds(tmp_path):
    audit = {"score": {"auroc": 0.9}, "loss": {"auroc": 0.8}}  # without "ranks"
    write_run(tmp_path / "a", 0.5, audit, seed=0, data="JSRT", band="5-13")
    write_run(tmp_path / "b", 0.7, audit, seed=10, data="JSRT", gone=1)  # only one run knows it
    titles, row = evaluation.table_of(tmp_path)
    assert dict(zip(titles, row)) == {
        "noise": "0.5", "band": "5-13", "strategy": "qam+ocm", "run": "seeds 0 10",
        "Dice lungs": "0.900 ± 0.000", "Dice heart": "0.800 ± 0.000",
        "Dice average": "0.600 ± 0.141", "the paper's": "0.912",
        "AUROC by score": "0.900 ± 0.000", "AUROC by loss": "0.800 ± 0.000"}


def test_other_settings_are_other_rows_and_named(tmp_path):
    for batch, strategy in itertools.product((16, 4), ("oracle", "baseline")):
        write_run(tmp_path / f"{strategy}{batch}", 0.5, batch=batch, strategy=strategy)
    titles, *rows = evaluation.table_of(tmp_path)
    assert titles[2:4] == ["strategy", "--batch"] and "the paper's" not in titles  # of phantoms
    assert [row[2:4] + row[-1:] for row in rows] == [
        ["baseline", "16", "baseline16"], ["baseline", "4", "baseline4"],
        ["oracle", "16", "oracle16"], ["oracle", "4", "oracle4"]]
    (tmp_path / "oracle16" / "config.json").write_text('{"arguments": null}')
    with pytest.raises(data.BadInput, match="not a run of train.py"):
        evaluation.table_of(tmp_path)


def test_the_papers_row_stands_only_beside_its_own_noise():
    def average(classes=(*data.CLASSES, "average"), **changes):
        row = evaluation.paper_row({**SETTINGS, "data": "JSRT", **changes}, classes)
        return row and row[3]
    assert average() == 0.912 and average(noise=0, noise_kind="shift") == 0.911
    assert average(noise_kind="shift") is None and average(clean="TRUTH") is None
    assert average(strategy="oracle") is None and average(classes=("lungs", "average")) is None
    assert average(data="phantoms") is None


def test_the_papers_averages_are_those_of_its_classes():
    assert len(evaluation.PAPER) == 21
    for key, (lungs, heart, clavicles, average) in evaluation.PAPER.items():
        if key != (0.5, "5-13", "qam"):  # printed so, with classes whose mean is 0.724
            assert (lungs + heart + clavicles) / 3 == pytest.approx(average, abs=0.0015)


# ------------------------------------------------------------------------------ plots and images

def test_dots_lie_where_the_axes_say_and_ticks_are_round():
    colors, spots = (evaluation.RED, evaluation.GREEN, evaluation.SKY), ((0, 0), (5, 1), (10, 2))
    series = [evaluation.Series("dot", color, np.array([float(x)]), np.array([float(y)]), dots=True)
              for color, (x, y) in zip(colors, spots)]
    image = np.asarray(evaluation.chart("title", series, "x", "y"))[:, :555]  # without the legend
    assert evaluation.ticks(-0.3, 1.7, 5) == pytest.approx(np.arange(-0.5, 2.1, 0.5))
    first, middle, last = [np.argwhere(np.abs(image.astype(int) - color).sum(axis=-1) < 60)
                           .mean(axis=0) for color in colors]
    assert middle == pytest.approx((first + last) / 2, abs=1) and first[0] > last[0]
    line = image[round(middle[0]), 52:, 0]  # the grid line of 1, from the first dot to the last
    assert [first[1], last[1]] == pytest.approx(52 + np.flatnonzero(line < 250)[[0, -1]], abs=1.5)


def test_curves_show_what_is_known():
    known = evaluation.training_curves(log_of(4, known=True), data.CLASSES)
    unknown_labels = evaluation.training_curves(log_of(4, known=False), data.CLASSES)
    assert known.height > 1.9 * unknown_labels.height and known.width == unknown_labels.width
    weights = np.asarray(known)[known.height // 2:, :known.width // 2]
    assert has_color(weights, evaluation.BLUE) and has_color(weights, evaluation.RUST)


def test_the_film_has_a_frame_an_epoch_and_keeps_the_last_known_weight(tmp_path):
    weights = np.random.default_rng(0).random((8, 40)) * 3
    filled = weights.copy()
    weights[3:5, 7], filled[3:5, 7] = math.nan, weights[2, 7]
    frames = []
    for values in (weights, filled):
        evaluation.weights_film(tmp_path / "film.gif", values, ["", "erode", "dilate", ""] * 10)
        frames.append(iio.imread(tmp_path / "film.gif"))
    assert np.array_equal(*frames) and frames[0].shape[:3] == (8, 360, 560)
    for color in (evaluation.BLUE, evaluation.RUST, evaluation.GREEN):
        assert has_color(frames[0][0], color) and has_color(frames[0][-1], color)


def test_an_outline_is_where_a_4_neighbor_is_background():
    mask = np.random.default_rng(0).random((30, 40)) < 0.7
    drawn = np.asarray(evaluation.overlay(np.zeros((30, 40), np.uint8), [(mask, (9, 8, 7))], 1))
    for y, x in itertools.product(range(30), range(40)):
        near = [(v, u) for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                if 0 <= v < 30 and 0 <= u < 40]
        on_edge = mask[y, x] and not all(mask[place] for place in near)
        assert tuple(drawn[y, x]) == ((9, 8, 7) if on_edge else (0, 0, 0))


def test_samples_show_clean_labels_only_if_they_are_known(trained):
    for cases in (trained.training, unknown(trained.training)):
        image = evaluation.sample_image(trained.unet, cases, "cpu")
        assert image.width == 3 * (256 + 6) and has_color(image, evaluation.YELLOW)
        last = np.asarray(image)[50:, -256:]  # below the legend: the predictions
        assert has_color(last, evaluation.RED) == cases.known


@pytest.mark.parametrize("known", [True, False])
def test_suspects_are_captioned_and_drawn_in_one_color_a_class(known, trained, monkeypatch):
    rows, drawn, grid = [dict(row) for row in trained.rows[:5]], [], evaluation.grid
    if not known:
        for row in rows:
            del row["noisy"], row["operation"], row["pixels"]

    def remembering_grid(tiles, captions, **options):
        drawn.extend(captions)
        return grid(tiles, captions, **options)
    monkeypatch.setattr(evaluation, "grid", remembering_grid)
    image = evaluation.suspects_image(trained.unet, trained.classes, rows,
                                      [trained.test, trained.training], "cpu")
    shown = [has_color(image, color) for color in (*evaluation.OUTLINES[:3], evaluation.SKY)]
    assert all(shown) and not has_color(image, evaluation.RED)
    for row, caption in zip(trained.rows, drawn):
        assert caption.startswith(f"{row['place']}. {row['name']}\n")
        assert f"stands out: {row['stands_out']}" in caption
        kinds = [kind for kind in data.DAMAGE if kind in caption]
        assert kinds == ([row["operation"]] if known and row["noisy"] else [])
