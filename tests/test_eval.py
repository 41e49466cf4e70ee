"""eval.py: figures against slow, obvious counts; files, tables and pictures as it leaves them."""
import itertools
import json
import math
import re
import shutil
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

import data
import eval as evaluation
import pal
from conftest import ROOT, TINY, read_csv, run, write_folder


def slow_auroc(bad, good):
    """The share of pairs that are in the right order, ties counted half."""
    wins = 0.0
    for one, other in itertools.product(bad, good):
        if one > other:
            wins += 1
        if one == other:
            wins += 0.5
    return wins / (len(bad) * len(good))


def slow_ranks(values):
    """Rank of each value: how many are smaller, and half of the others that equal it."""
    found = []
    for value in values:
        smaller = sum(other < value for other in values)
        equal = sum(other == value for other in values) - 1
        found.append((smaller + equal / 2) / (len(values) - 1))
    return found


def one_line(done, code=2):
    """Whether a finished process ended with this exit code and one line of explanation."""
    return done.returncode == code and done.stderr.count("\n") == 1


def cases_of(labels, clean, operation=None):
    """Cases with these labels and clean labels, and empty images."""
    count, size = len(labels), labels.shape[-1]
    names, images = [f"case{i}" for i in range(count)], np.zeros((count, size, size), np.uint8)
    return data.Cases(names, images, labels, clean, operation or [""] * count, np.zeros(count, int))


def has_colour(picture, colour):
    """Whether a pixel has this colour, or nearly so where edges are smooth."""
    return bool((np.abs(np.asarray(picture).astype(int) - colour).sum(axis=-1) < 30).any())


# ------------------------------------------------------------------------------------- command line

@pytest.mark.parametrize("error, code, words", [
    (data.BadInput("no\nsuch folder"), 2, "no such folder"), (FileNotFoundError("gone"), 2, "gone"),
    (MemoryError(), 2, "out of memory"), (RuntimeError("CUDA out of memory."), 2, "out of memory"),
    (KeyboardInterrupt(), 130, "interrupted")])
def test_scripts_end_with_one_line(error, code, words, capsys):
    def main():
        raise error
    with pytest.raises(SystemExit) as stopped:
        evaluation.run_main(main)
    printed = capsys.readouterr().err
    assert stopped.value.code == code and words in printed and printed.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="of ours"):
        evaluation.run_main(main)


def test_a_console_that_cannot_print_a_name_prints_a_question_mark():
    program = "import eval; eval.run_main(lambda: print('\\u80ba is a lung'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={"PYTHONIOENCODING": "ascii", "PATH": ""})
    assert done.returncode == 0 and done.stdout == "? is a lung\n", done.stderr


@pytest.mark.parametrize("arguments", [
    ["--full"], ["--chart", "x.png"], [], ["--masks", "there"], ["--nonsense"], ["nowhere"],
    ["--table", "nowhere"], ["nowhere", "--data", "phantoms:3"]])
def test_bad_arguments_of_eval_get_one_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.BadInput) as refused:
        evaluation.main(arguments)
    assert str(refused.value) and "\n" not in str(refused.value)


def test_contradictions_of_eval_get_one_line(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = str(finished[0])
    for arguments in ([out, "--table", out], ["--table", out, "--data", "phantoms:3"]):
        with pytest.raises(data.BadInput, match="--table goes without a run and without --data"):
            evaluation.main(arguments)
    with pytest.raises(data.BadInput, match="no images in it"):  # not the run's own
        evaluation.main([out, "--data", ""])


# ---------------------------------------------------------------------------- files of a run folder

def test_a_failed_write_leaves_the_old_file(tmp_path):
    def write_half(path):
        path.write_text("half")
        raise OSError("no space left")
    path = tmp_path / "metrics.json"
    evaluation.write_json(path, {"dice": 0.5})
    with pytest.raises(data.BadInput, match="no space left"):
        evaluation.write_atomically(path, write_half)
    assert json.loads(path.read_text()) == {"dice": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_csv_files_are_read_as_they_were_written(tmp_path):
    rows = [{"name": "a, \"b\"", "score": 0.1}, {"name": "肺\n", "score": 1e-9}]
    evaluation.write_csv(tmp_path / "rows.csv", rows)
    read = read_csv(tmp_path / "rows.csv")
    assert [{"name": row["name"], "score": float(row["score"])} for row in read] == rows


@pytest.mark.parametrize("damage", ["truncated", "not ours", "text", "missing"])
def test_damaged_checkpoints_are_refused(damage, finished, tmp_path):
    good = (finished[0] / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    if damage == "not ours":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "truncated":
        path.write_bytes(good[:len(good) // 2])
    elif damage == "text":
        path.write_bytes(b"hello")
    with pytest.raises(data.BadInput, match="checkpoint"):
        evaluation.main([str(tmp_path)])


def test_changed_cases_are_named():
    rng = np.random.default_rng(0)
    labels = rng.random((30, 1, 8, 8)) < 0.5
    before = cases_of(labels, labels)
    checkpoint = {"digests": evaluation.case_digests(before), "arguments": {"data": "FOLDER"}}
    evaluation.check_unchanged(checkpoint, before)
    changed = labels.copy()
    changed[[3, 17], 0, 2, 2] ^= True
    with pytest.raises(data.BadInput, match=r"FOLDER .*case17, case3\)"):
        evaluation.check_unchanged(checkpoint, cases_of(changed, changed))
    with pytest.raises(data.BadInput, match=r"\(([^,]*, ){10}[^,]*case\d+ and 20 more") as refused:
        evaluation.check_unchanged(checkpoint, cases_of(~labels, ~labels))
    assert len(re.findall(r"case\d", str(refused.value))) == 10
    with pytest.raises(data.BadInput, match=r"case29\)"):
        evaluation.check_unchanged(checkpoint, cases_of(labels[:29], labels[:29]))


def test_data_that_changed_since_are_refused(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    checkpoint["digests"]["phantom00007"] = "another"
    torch.save(checkpoint, out / "checkpoint.pt")
    (out / "metrics.json").unlink()
    evaluated = run("eval.py", out)
    resumed = run("train.py", *TINY, "--noise", "0.5", "--out", out, "--resume")
    for done in (evaluated, resumed):
        assert one_line(done), done.stderr
        assert "no longer what" in done.stderr and "phantom00007" in done.stderr


# ------------------------------------------------------------------------------------------ figures

def test_auroc_counts_pairs_and_halves_ties():
    rng = np.random.default_rng(0)
    values, positive = rng.integers(0, 5, 60), rng.random(60) < 0.4
    expected = slow_auroc(values[positive], values[~positive])
    assert evaluation.auroc(values, positive) == pytest.approx(expected)
    assert math.isnan(evaluation.auroc(values, np.ones(60, bool)))


def test_ranks_count_smaller_values_and_halve_ties():
    values = np.random.default_rng(1).integers(0, 9, 40).astype(float)
    assert evaluation.ranks(values) == pytest.approx(slow_ranks(values))
    assert evaluation.ranks(np.array([3.0])) == [0.0]


def test_the_combined_ranking_is_the_mean_of_three_ranks_or_of_two():
    rng = np.random.default_rng(2)
    scores, losses, quality = rng.normal(size=(3, 25))
    by_score, by_loss, by_quality = slow_ranks(-scores), slow_ranks(losses), slow_ranks(-quality)
    three = [(a + b + c) / 3 for a, b, c in zip(by_score, by_loss, by_quality)]
    two = [(b + c) / 2 for b, c in zip(by_loss, by_quality)]
    assert evaluation.combined_ranking(scores, losses, quality) == pytest.approx(three)
    assert evaluation.combined_ranking(np.zeros(25), losses, quality) == pytest.approx(two)


def test_effective_sample_size_counts_the_labels_that_share_the_weight():
    assert evaluation.effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert evaluation.effective_sample_size(np.array([0, 0, 5.0])) == pytest.approx(1)
    assert evaluation.effective_sample_size(np.array([3.0, 1.0])) == pytest.approx(16 / 10)


def test_label_quality_is_a_mean_that_bad_pixels_dominate():
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    labels = torch.tensor([[[[True, True], [False, False]]]])
    given = [1 / (1 + math.exp(-z)) for z in (2, -1, -0.5, 3)]
    weights = [math.exp((1 - p) / 0.1) for p in given]
    expected = sum(p * w for p, w in zip(given, weights)) / sum(weights)
    assert evaluation.label_quality(logits, labels).item() == pytest.approx(expected)


def test_scores_do_not_depend_on_the_labels_beside_them():
    settings = {"seed": 0, "width": 8, "size": 64}
    unet, qam = evaluation.build_networks(settings, data.CLASSES, torch.device("cpu"))
    torch.nn.init.normal_(qam.score.weight)  # it starts at zero, and so would the scores
    images, masks = (torch.from_numpy(array) for array in data.phantoms(5, size=64))
    together, alone = (evaluation.score_labels(unet, qam, images[:n], masks[:n])[0] for n in (5, 1))
    assert together[0] == pytest.approx(alone[0], abs=1e-5)
    assert np.ptp(together) > 1e-3


def test_tables_agree_with_the_metrics(finished):
    out, _ = finished
    metrics = json.loads((out / "metrics.json").read_text())
    rows, log = read_csv(out / "labels.csv"), read_csv(out / "log.csv")
    assert len(rows) == 20 and len(log) == 2
    assert {"dice", "audit", "effective_sample_size", "lam"} <= set(metrics)
    noisy = np.array([row["noisy"] == "1" for row in rows])

    def column(name):
        return np.array([float(row[name]) for row in rows])
    badness = {"score": -column("score"), "loss": column("loss"), "softmin": -column("quality"),
               "ranks": column("rank")}
    audit = metrics["audit"]["training"]
    assert audit.pop("random") == {"auroc": 0.5, "precision_10": 0.5, "recall": 0.5}
    assert list(audit) == list(badness)
    for name, values in badness.items():
        assert audit[name]["auroc"] == pytest.approx(slow_auroc(values[noisy], values[~noisy]))
        worst = sorted(range(20), key=lambda i: -values[i])[:10]  # 10 of 20 are noisy
        share = sum(noisy[i] for i in worst) / 10
        assert audit[name]["precision_10"] == audit[name]["recall"] == share
    three = [slow_ranks(badness[name]) for name in ("score", "loss", "softmin")]
    assert column("rank") == pytest.approx(np.mean(three, axis=0))
    weights = column("weight").tolist()
    assert sum(weights) == pytest.approx(20)
    squares = sum(weight * weight for weight in weights)
    assert metrics["effective_sample_size"] == pytest.approx(sum(weights) ** 2 / squares)
    assert float(log[-1]["dice_average"]) == metrics["dice"]["average"]
    assert all((row["operation"] == "") == (row["pixels"] == "0") for row in rows)


def test_ties_at_the_limit_count_in_part():
    noisy = np.array([True, True, False, False, False])
    share = evaluation.share_among_worst
    assert share(noisy, np.zeros(5), 2) == share(noisy[::-1], np.zeros(5), 2) == 0.4
    assert share(noisy, np.array([3.0, 1, 2, 1, 0]), 2) == 0.5
    assert share(noisy, np.array([3.0, 1, 2, 1, 0]), 3) == pytest.approx((1 + 0 + 0.5) / 3)


def test_suspects_are_sorted_by_the_combined_ranking(finished):
    out, printed = finished
    rows, suspects = read_csv(out / "labels.csv"), read_csv(out / "suspects.csv")
    by_rank = sorted(rows, key=lambda row: -float(row["rank"]))
    assert [row["name"] for row in suspects] == [row["name"] for row in by_rank]
    assert [row["place"] for row in suspects] == [str(k + 1) for k in range(20)]
    assert "noisy labels found, unseen" in printed and "ranks" in printed


def test_eval_recomputes_the_same_figures_from_the_checkpoint_alone(finished, tmp_path):
    out, printed = finished
    alone = tmp_path / "copy"
    alone.mkdir()
    shutil.copy(out / "checkpoint.pt", alone)
    done = run("eval.py", alone)
    assert done.returncode == 0, done.stderr
    table = printed[printed.index("Dice, test labels"):printed.index("effective")].strip()
    assert table in done.stdout
    assert (alone / "labels.csv").read_text() == (out / "labels.csv").read_text()
    assert (alone / "curves.png").exists() and (alone / "samples.png").exists()


# -------------------------------------------------------------------------- images of other folders

def test_images_without_labels_get_predicted_masks(finished, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    shutil.copy(finished[0] / "checkpoint.pt", run_folder)
    images = data.phantoms(3, size=64)[0]
    write_folder(tmp_path / "new", images)
    done = run("eval.py", run_folder, "--data", tmp_path / "new")
    assert done.returncode == 0 and "predicted masks" in done.stdout, done.stderr
    out = run_folder / "on-new"
    assert {path.name for path in out.iterdir()} == {"predictions.png", "source.txt", *data.CLASSES}
    _, unet, _ = evaluation.open_run(run_folder, torch.device("cpu"))
    names, pictures = data.load_images(tmp_path / "new", 64)
    expected = evaluation.predict(unet, torch.from_numpy(pictures)).numpy()
    assert expected.any() and names == ["case0", "case1", "case2"]
    for i, c in itertools.product(range(3), range(3)):
        mask = iio.imread(out / data.CLASSES[c] / f"case{i}.png")
        assert np.array_equal(mask, np.where(expected[i, c], 255, 0))


def test_another_folder_with_labels_gets_figures(finished, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    shutil.copy(finished[0] / "checkpoint.pt", run_folder)
    images, masks = data.phantoms(4, size=64)
    write_folder(tmp_path / "other", images, **dict(zip(data.CLASSES, masks.swapaxes(0, 1))))
    done = run("eval.py", run_folder, "--data", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert "this run" in done.stdout and "the paper" not in done.stdout
    assert len(read_csv(run_folder / "on-other" / "suspects.csv")) == 4
    shutil.move(tmp_path / "other", tmp_path / "elsewhere/other")
    done = run("eval.py", run_folder, "--data", tmp_path / "elsewhere/other")
    assert one_line(done) and f"on-other is of {tmp_path}/other; move it away" in done.stderr


def test_a_folder_may_be_said_in_several_ways(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    for first in ("../set", "phantoms:3"):
        evaluation.make_folder(evaluation.folder_for(tmp_path / "run", first), first)
    for way in (".", str(tmp_path / "set")):
        evaluation.folder_for(tmp_path / "run", way)
    monkeypatch.chdir(tmp_path)
    for way in ("set", "phantoms:3"):
        evaluation.folder_for(tmp_path / "run", way)


def test_data_of_other_classes_are_refused(finished, tmp_path):
    images, masks = data.phantoms(4, size=64)
    write_folder(tmp_path, images, spleen=masks[:, 1])
    done = run("eval.py", finished[0], "--data", tmp_path)
    assert one_line(done) and "spleen" in done.stderr


# ----------------------------------------------------------------------------------------- warnings

def warnings_for(count=200, dice=0.9, noise=0.0, epochs=40, trusted=None, contradicted=None):
    """The warnings of a run with one class, of which a quarter of each picture is foreground."""
    masks = np.zeros((count, 1, 8, 8), bool)
    masks[:, :, :4, :4] = True
    settings = {"noise": noise, "epochs": epochs, "batch": 16}
    metrics = {"dice": {"cells": dice, "average": dice}, "effective_sample_size": trusted or count}
    training, test = cases_of(masks, masks), cases_of(masks[:5], masks[:5])
    return evaluation.warnings_of(settings, metrics, training, test, contradicted)


@pytest.mark.parametrize("changes, words", [
    ({"trusted": 99}, "rest on 99 of 200 labels"), ({"epochs": 20}, "240 training steps"),
    ({"count": 59, "epochs": 400}, "59 training"), ({"dice": 0.4}, "Dice 0.400 of cells"),
    ({"contradicted": 0.41}, "41% of the labels contradict")])
def test_each_warning_is_one_line(changes, words):
    assert warnings_for() == [] and warnings_for(trusted=100, contradicted=0.4, dice=0.41) == []
    found = warnings_for(**changes)
    assert len(found) == 1 and words in found[0] and "\n" not in found[0]


def test_few_trusted_labels_are_no_surprise_where_noise_was_added():
    assert warnings_for(trusted=60, noise=0.5) == []


def test_the_trivial_prediction_is_the_better_of_everything_and_nothing():
    rng = np.random.default_rng(0)
    clean = rng.random((6, 2, 8, 8)) < rng.random((6, 1, 1, 1))
    clean[:5, 1] = False  # of the second class most masks are empty
    truth = torch.from_numpy(clean)
    everywhere = pal.dice(torch.ones_like(truth), truth).mean(dim=0)
    nowhere = pal.dice(torch.zeros_like(truth), truth).mean(dim=0)
    assert everywhere[0] > nowhere[0] and everywhere[1] < nowhere[1]
    expected = torch.maximum(everywhere, nowhere).numpy()
    assert evaluation.trivial_dice(clean) == pytest.approx(expected, abs=1e-6)


def test_differences_from_the_clean_labels_are_counted(capsys):
    clean = np.zeros((4, 1, 8, 8), bool)
    clean[:, :, :4] = True  # 32 pixels
    labels = clean.copy()
    labels[1, :, 3] = False  # 24: Dice 2 * 24 / 56
    labels[2, :, 0, 0] = False  # 31: Dice 62 / 63
    cases = cases_of(labels, clean, ["", "given", "", ""])
    evaluation.print_clean_differences(cases, 0.9)
    printed = capsys.readouterr().out
    assert "1 of 4 labels have a Dice below 0.9" in printed and "1 differ by less" in printed
    assert f"lowest {48 / 56:.3f} (case1)" in printed


# ------------------------------------------------------------------------------------------- tables

def write_run(folder, finished, settings, average):
    """config.json and metrics.json of a finished run with other settings and another Dice."""
    folder.mkdir(parents=True)
    config = json.loads((finished[0] / "config.json").read_text())
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    config["arguments"] |= settings
    metrics["dice"]["average"] = average
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def table_of(folder, capsys, *options):
    """What eval.py --table prints: the rows as dicts."""
    evaluation.main(["--table", str(folder), *options])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.strip().splitlines()]
    return [dict(zip(lines[0], cells)) for cells in lines[2:]]


def test_a_row_of_the_table_is_mean_and_spread_over_seeds(finished, tmp_path, capsys):
    write_run(tmp_path / "a", finished, {"seed": 0, "data": "JSRT"}, 0.5)
    write_run(tmp_path / "b", finished, {"seed": 1, "data": "JSRT"}, 0.7)
    (row,) = table_of(tmp_path, capsys)
    assert list(row) == ["noise", "band", "strategy", "average", "paper", "AUROC by score",
                         "by loss", "by mean rank", "seeds"]
    assert (row["average"], row["paper"], row["seeds"]) == ("0.600 ± 0.141", "0.912", "0 1")
    (full,) = table_of(tmp_path, capsys, "--full")
    assert {*data.CLASSES, "by softmin", "by score, unseen"} == set(full) - set(row)


def test_the_papers_numbers_do_not_stand_beside_phantoms(finished, tmp_path, capsys):
    write_run(tmp_path / "a", finished, {"data": "phantoms:30"}, 0.5)
    (row,) = table_of(tmp_path, capsys)
    assert row["paper"] == "-"


def test_settings_that_vary_have_a_column_and_an_order(finished, tmp_path, capsys):
    for batch, strategy in itertools.product((16, 4), ("qam+ocm", "oracle", "baseline")):
        settings = {"batch": batch, "strategy": strategy}
        write_run(tmp_path / f"{batch}{strategy}", finished, settings, 0.5)
    rows = table_of(tmp_path, capsys)
    assert [(row["strategy"], row["--batch"]) for row in rows] == [
        ("baseline", "4"), ("baseline", "16"), ("qam+ocm", "4"), ("qam+ocm", "16"),
        ("oracle", "4"), ("oracle", "16")]


def test_columns_of_one_name_do_not_replace_each_other(finished, tmp_path, capsys):
    for paper in (True, False):
        settings = {"data": "JSRT", "paper": paper}
        write_run(tmp_path / "flag" / str(paper), finished, settings, 0.5)
    rows = table_of(tmp_path / "flag", capsys)
    assert [(row["paper"], row["--paper"]) for row in rows] == [
        ("0.912", "False"), ("0.912", "True")]
    metrics = write_run(tmp_path / "classes" / "run", finished, {}, 0.5)
    metrics["dice"] = {"noise": 0.1, "seeds": 0.2, "average": 0.15}
    (tmp_path / "classes" / "run" / "metrics.json").write_text(json.dumps(metrics))
    evaluation.main(["--table", str(tmp_path / "classes"), "--full"])
    cells = capsys.readouterr().out.splitlines()[2].strip("| ").split(" | ")
    assert cells[:6] == ["0.5", "5-13", "qam+ocm", "0.100", "0.200", "0.150"]


@pytest.mark.parametrize("name, content", [
    ("metrics.json", "{}"), ("metrics.json", "[]"), ("config.json", '{"arguments": {}}'),
    ("config.json", '{"arguments": null}'), ("config.json", "hello")])
def test_reports_of_something_else_are_refused(name, content, finished, tmp_path):
    write_run(tmp_path / "run", finished, {}, 0.5)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(data.BadInput, match="is not of train.py, or damaged"):
        evaluation.main(["--table", str(tmp_path)])


def test_what_only_some_runs_know_has_no_column(finished, tmp_path, capsys):
    write_run(tmp_path / "old", finished, {"gone": 0, "seed": 0}, 0.5)
    metrics = write_run(tmp_path / "new", finished, {"seed": 1}, 0.5)
    del metrics["audit"]["training"]["ranks"]  # as in reports of an older version
    (tmp_path / "new" / "metrics.json").write_text(json.dumps(metrics))
    (row,) = table_of(tmp_path, capsys)
    assert "gone" not in row and row["seeds"] == "0 1" and row["by mean rank"] == "-"


def test_the_papers_row_is_shown_only_beside_its_own_noise():
    settings = {"noise": 0.5, "band": "5-13", "strategy": "qam+ocm", "noise_kind": "erode-dilate"}

    def row(classes=(*data.CLASSES, "average"), **changes):
        return evaluation.paper_row({**settings, **changes}, classes)
    assert row()[3] == 0.912 and row(noise=0, noise_kind="shift")[3] == 0.911
    assert row(noise_kind="shift") is None and row(clean="TRUTH") is None
    assert row(strategy="oracle") is None and row(classes=("lungs", "average")) is None


def test_the_papers_averages_are_those_of_its_organs():
    assert len(evaluation.PAPER) == 21
    for key, (lungs, heart, clavicles, average) in evaluation.PAPER.items():
        if key != (0.5, "5-13", "qam"):  # printed so, with organs whose mean is 0.724
            assert (lungs + heart + clavicles) / 3 == pytest.approx(average, abs=0.0015)


def test_the_chart_shows_the_runs_that_share_most_settings(finished, tmp_path, monkeypatch,
                                                           capsys):
    for noise, strategy, seed, dice in ((0.5, "oracle", 0, 0.8), (0.5, "oracle", 1, 0.9),
                                        (0, "baseline", 0, 0.7)):
        settings = {"noise": noise, "strategy": strategy, "seed": seed, "data": "JSRT"}
        write_run(tmp_path / f"{noise}{seed}", finished, settings, dice)
    write_run(tmp_path / "other", finished, {"data": "phantoms:99"}, 0.1)
    write_run(tmp_path / "band", finished, {"band": "1-8"}, 0.2)
    shown = {}

    def keep(title, ours, papers):
        shown.update(title=title, ours=ours, papers=papers)
    monkeypatch.setattr(evaluation, "draw_results", keep)
    evaluation.results_chart(tmp_path)
    assert "chart: 3 of 4 runs" in capsys.readouterr().out
    assert list(shown["ours"]) == ["baseline", "oracle"]
    assert shown["ours"]["baseline"] == [(0, 0.7, 0.0)]
    assert shown["ours"]["oracle"][0] == pytest.approx((0.5, 0.85, 0.1 / 2 ** 0.5))
    assert shown["papers"]["qam"] == [(0, .898), (0.25, .781), (0.5, .714), (0.75, .636)]
    write_run(tmp_path / "phantoms" / "a", finished, {}, 0.9)
    evaluation.results_chart(tmp_path / "phantoms")
    assert shown["papers"] == {}
    monkeypatch.undo()
    evaluation.main(["--table", str(tmp_path), "--chart", str(tmp_path / "chart.png")])
    picture = iio.imread(tmp_path / "chart.png")
    assert picture.shape[1] == 700
    assert has_colour(picture, evaluation.NOISY) and has_colour(picture, evaluation.GREEN)


def test_error_bars_stay_in_the_chart(monkeypatch):
    made, axes = [], evaluation.axes

    def remembered(*arguments):
        made.append(axes(*arguments))
        return made[-1]
    monkeypatch.setattr(evaluation, "axes", remembered)
    evaluation.draw_results("title", {"qam": [(0.0, 0.9, 0.06), (0.5, 0.92, 0.09)]}, {})
    low, high = made[0].y_range
    assert low <= 0.83 and high >= 1.01


# ------------------------------------------------------------------------------------------- charts

@pytest.mark.parametrize("low, high", [(0, 1), (-0.3, 2.7), (0.912, 0.934), (5, 5), (1, 4000)])
def test_ticks_are_round_and_around_the_values(low, high):
    found = evaluation.ticks(low, high, 5)
    values = [value for value, _ in found]
    steps = np.diff(values)
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9 and 3 <= len(values) <= 12
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"  # its first digit
    assert [float(text) for _, text in found] == pytest.approx(values)


def empty_panel():
    """A chart without curves: x from 0 to 10, y from 0 to 2."""
    entries, x_ticks = [("a", evaluation.CLEAN, "dot")], [(0, "0"), (10, "10")]
    y_ticks = [(0.0, "0"), (2.0, "2")]
    return evaluation.axes("title", entries, "x", "y", x_ticks, y_ticks, (0, 10), (300, 200))


def test_points_lie_where_the_axes_say():
    panel = empty_panel()
    left, top, right, bottom = panel.box
    corners = evaluation.pixels(panel, [0, 10, 5], [0, 2, 1])
    assert corners == [(left, bottom), (right, top), ((left + right) / 2, (top + bottom) / 2)]
    evaluation.draw_dots(panel, np.array([5]), np.array([1]), evaluation.PURPLE)
    found = np.argwhere((np.asarray(panel.canvas) == evaluation.PURPLE).all(axis=-1)).mean(axis=0)
    assert found == pytest.approx(corners[2][::-1], abs=1)


def test_a_long_legend_makes_a_chart_higher():
    curves = [("a class with a rather long name", np.ones(3), evaluation.CLEAN)]
    few = evaluation.line_chart("title", curves, "x", "y")
    many = evaluation.line_chart("title", 20 * curves, "x", "y")
    assert few.size == (640, 420) and many.width == 640 and many.height > 550


def test_dashes_cover_the_line_at_even_gaps():
    points = [(0.0, 0.0), (30.0, 40.0), (30.0, 150.0)]  # 50 and 110 long
    found = evaluation.dashes(points, length=20, gap=30)
    assert len(found) == 4 and np.allclose(found[0], [(0, 0), (12, 16)])
    assert np.allclose(found[2], [(30, 90), (30, 110)])  # 100 to 120 along the way
    assert np.allclose(found[3], [(30, 140), (30, 150)])  # the end cuts the last one


@pytest.mark.parametrize("lowest, below", [(-math.inf, 0.5), (0, 0.2)])
def test_a_band_is_cut_at_the_lowest_value_alone(lowest, below):
    y, spread = np.full(10, 0.2), np.full(10, 0.5)
    chart = evaluation.line_chart("title", [("a", y, evaluation.NOISY, spread)], "x", "y",
                                  y_range=(0, 1), lowest=lowest)
    column = np.asarray(chart)[60:, 400].astype(int)  # below the legend
    rows = np.flatnonzero(column[:, 0] - column[:, 2] > 20)  # reddish: the band and its line
    line = np.flatnonzero(np.abs(column - evaluation.NOISY).sum(axis=1) < 60).mean()
    assert line - rows[0] == pytest.approx((rows[-1] - line) * 0.5 / below, abs=6)
    assert len(rows) > 100


def test_line_chart_takes_gaps_single_points_and_nothing_at_all():
    y = np.array([math.nan, 0.5, math.nan])
    purple, size = evaluation.PURPLE, (300, 200)
    one = evaluation.line_chart("title", [("a", y, purple)], "x", "y", size)
    assert one.size == size and has_colour(np.asarray(one)[70:], purple)
    none = evaluation.line_chart("title", [("a", y[:1], purple)], "x", "y", size)
    assert not has_colour(np.asarray(none)[70:], purple)


def test_scatter_chart_draws_dots_and_lines():
    x = np.arange(4.0)
    dots, line = ("dots", x, x ** 2, evaluation.NOISY), ("line", x, 9 - x, evaluation.CLEAN)
    chart = np.asarray(evaluation.scatter_chart("title", [dots], "x", "y", lines=[line]))[70:]
    assert has_colour(chart, evaluation.NOISY) and has_colour(chart, evaluation.CLEAN)


def test_curves_show_every_kind_of_noise_in_the_log():
    row = {"loss": 1.0, "loss_clean": 1.0, "loss_noisy": math.nan, "auroc": math.nan,
           "dice_cells": 0.5, "dice_average": 0.5, "weight_clean_mean": 1.0,
           "weight_clean_variance": 0.1}
    noise = {"loss_noisy": 2.0, "auroc": 0.9, "weight_omit_mean": 0.5, "weight_omit_variance": 0.1}
    for rows, expected in (([row] * 3, False), ([row | noise] * 3, True)):
        curves = np.asarray(evaluation.training_curves(rows, ["cells"]))
        weights = curves[curves.shape[0] // 2:, :curves.shape[1] // 2]  # below, on the left
        assert has_colour(weights, evaluation.KIND_COLOURS["clean"])
        assert has_colour(weights, evaluation.KIND_COLOURS["omit"]) == expected


# --------------------------------------------------------------------------------------------- film

def test_the_film_has_a_frame_an_epoch_and_keeps_the_last_known_weight(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.random((40, 165)) * 3
    unknown = rng.random(weights.shape) < 0.1
    filled = weights.copy()
    for epoch, i in np.argwhere(unknown):  # in the order of epochs
        filled[epoch, i] = filled[epoch - 1, i] if epoch else math.nan
    weights[unknown] = math.nan
    operations = [["", "erode", "dilate"][k] for k in rng.integers(3, size=165)]
    evaluation.weights_film(tmp_path / "weights.gif", weights, operations)
    evaluation.weights_film(tmp_path / "filled.gif", filled, operations)
    assert (tmp_path / "weights.gif").read_bytes() == (tmp_path / "filled.gif").read_bytes()
    assert (tmp_path / "weights.gif").stat().st_size < 400_000
    frames = iio.imread(tmp_path / "weights.gif")
    assert len(frames) == 40 and frames.shape[2] == 560
    for kind in ("clean", "erode", "dilate"):
        shade = np.rint(np.array(evaluation.KIND_COLOURS[kind]) / 51) * 51
        assert has_colour(frames[0, 70:], shade) and has_colour(frames[-1, 70:], shade)


# ----------------------------------------------------------------------------------------- pictures

def test_boundary_is_where_a_4_neighbour_is_background():
    speckled = np.random.default_rng(0).random((30, 40)) < 0.7
    lungs = data.phantoms(1, size=64)[1][0, 0]
    for mask in (speckled, lungs):
        expected = np.zeros_like(mask)
        for y, x in np.argwhere(mask):
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in near if 0 <= v < mask.shape[0] and 0 <= u < mask.shape[1]]
            expected[y, x] = not all(mask[place] for place in inside)
        assert expected.any() and np.array_equal(evaluation.boundary(mask), expected)


def test_overlay_outlines_each_class_on_the_enlarged_image():
    image, masks = np.full((16, 16), 99, np.uint8), np.zeros((2, 16, 16), bool)
    masks[0, 2:9, 2:9] = True
    masks[1, 9:14, 2:9] = True  # touches the first
    picture = np.asarray(evaluation.overlay(image, evaluation.class_outlines(masks)))
    assert picture.shape == (32, 32, 3)
    assert has_colour(picture, evaluation.OUTLINES[0])
    assert has_colour(picture, evaluation.OUTLINES[1])
    plain = (picture == 99).all(axis=-1)
    assert plain[8:14, 8:14].all() and not plain[17, 8:14].any()


@pytest.mark.parametrize("count", [1, 3])
def test_suspects_are_drawn_in_one_colour_a_class(count):
    images, masks = data.phantoms(5, size=64)
    classes, masks = data.CLASSES[:count], masks[:, :count]
    cpu, settings = torch.device("cpu"), {"seed": 0, "width": 4, "size": 64}
    unet, qam = evaluation.build_networks(settings, classes, cpu)
    cases = cases_of(masks, masks)._replace(images=images)
    rows = evaluation.label_rows(unet, qam, cases, cpu, 2.0)
    picture = evaluation.suspect_sheet(unet, cases, classes, rows, [4, 0, 1, 2, 3], cpu)
    shown = [has_colour(picture, colour) for colour in evaluation.OUTLINES]
    assert shown == [k < count for k in range(len(evaluation.OUTLINES))]
    assert isinstance(picture, Image.Image) and picture.width == 4 * 128 + 3 * 6 + 2 * 6
