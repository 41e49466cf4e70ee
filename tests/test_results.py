"""The pages of results: tables, plots, and the list of runs in .github/results."""
import json
import math
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import ROOT

import data
import eval as evaluation
import train

sys.path.append(str(ROOT / ".github" / "results"))
import charts  # noqa: E402
import make  # noqa: E402
import runs  # noqa: E402


def has_color(image, color):
    """Whether a pixel has this color, or nearly so where edges are smooth."""
    return bool((np.abs(np.asarray(image).astype(int) - color).sum(axis=-1) < 30).any())


# ------------------------------------------------------------------------------------ the tables

def test_tables_are_what_their_commands_print():
    assert make.stale_pages() == []
    readme, page = [page.read_text(encoding="utf-8") for page in make.PAGES]
    assert len(make.TABLE.findall(readme)) == 1 and len(make.TABLE.findall(page)) >= 10


def test_a_table_that_is_not_what_its_command_prints_is_noticed(tmp_path, monkeypatch):
    wrong = make.PAGES[1].read_text(encoding="utf-8").replace("| baseline ", "| baselime ", 1)
    (tmp_path / "page.md").write_text(wrong, encoding="utf-8")
    monkeypatch.setattr(make, "PAGES", (tmp_path / "page.md",))
    assert make.stale_pages() == [tmp_path / "page.md"]


def test_a_row_is_mean_and_deviation_over_seeds():
    assert make.cell([0.5, 0.7]) == "0.600 ± 0.141" and make.cell([0.5]) == "0.500"
    assert make.cell([0.5, None]) == make.cell([]) == "-"
    groups, varied = make.group_runs("jsrt-128")
    assert varied == ["noise", "band", "noise_kind"]
    for group in groups:
        assert len({settings["seed"] for settings, _, _ in group}) == len(group)
        assert len({settings["strategy"] for settings, _, _ in group}) == 1


def test_all_reports_are_listed_and_those_of_a_folder_are_of_one_commit_and_machine():
    listed, origins = {(folder, runs.name_of(options)) for folder, _, options in runs.RUNS}, {}
    assert len(listed) == len(runs.RUNS)
    for path in make.HERE.glob("*/*/config.json"):
        folder, config = path.parent.parent.name, json.loads(path.read_text())
        assert (folder, path.parent.name) in listed, path
        origin = [config[name] for name in ("commit", "cpu", "threads", "bf16")]
        assert origins.setdefault(folder, origin) == origin, path
    for _, _, options in runs.RUNS:
        assert train.parse_arguments(options.split()).seed in runs.SEEDS


@pytest.mark.parametrize("average, changes", [
    (0.912, {}), (0.911, {"noise": 0, "noise_kind": "-"}), (None, {"noise_kind": "shift"}),
    (None, {"strategy": "oracle"}), (None, {"data": "phantoms"})])
def test_the_papers_row_stands_only_beside_its_own_noise(average, changes):
    settings = {"data": "JSRT", "noise": 0.5, "band": "5-13", "strategy": "qam+ocm",
                "noise_kind": "erode-dilate", **changes}
    assert (make.paper_row(settings, (*data.CLASSES, "average")) or [None])[-1] == average
    assert make.paper_row(settings, ("lungs", "average")) is None


def test_the_papers_averages_are_those_of_its_classes():
    assert len(make.PAPER) == 21
    for key, (lungs, heart, clavicles, average) in make.PAPER.items():
        if key != (0.5, "5-13", "qam"):  # printed so, with classes whose mean is 0.724
            assert (lungs + heart + clavicles) / 3 == pytest.approx(average, abs=0.0015)


# ------------------------------------------------------------------------------ plots and images

def test_dots_lie_where_the_axes_say_and_ticks_are_round():
    colors, spots = (charts.RED, charts.GREEN, charts.SKY), ((0, 0), (5, 1), (10, 2))
    series = [charts.Series("dot", color, np.array([float(x)]), np.array([float(y)]), dots=True)
              for color, (x, y) in zip(colors, spots)]
    image = np.asarray(charts.chart("title", series, "x", "y"))[:, :555]  # without the legend
    assert charts.ticks(-0.3, 1.7, 5) == pytest.approx(np.arange(-0.5, 2.1, 0.5))
    first, middle, last = [np.argwhere(np.abs(image.astype(int) - color).sum(axis=-1) < 60)
                           .mean(axis=0) for color in colors]
    assert middle == pytest.approx((first + last) / 2, abs=1) and first[0] > last[0]
    line = image[round(middle[0]), 52:, 0]  # the grid line of 1, from the first dot to the last
    assert [first[1], last[1]] == pytest.approx(52 + np.flatnonzero(line < 250)[[0, -1]], abs=1.5)


def test_curves_show_what_is_known(finished):
    log = evaluation.read_checkpoint(finished[0])["log"]
    known = charts.training_curves(log, data.CLASSES)
    less = charts.training_curves([{"lam": 2.0, "loss": 1.0, "dice_heart": None}] * 4, ["heart"])
    assert known.height > 1.9 * less.height and known.width > 1.9 * less.width
    weights = np.asarray(known)[known.height // 2:, :known.width // 2]
    assert has_color(weights, charts.BLUE) and has_color(weights, charts.RUST)


def test_the_film_has_a_frame_an_epoch_and_keeps_the_last_known_weight(tmp_path):
    weights, frames = np.random.default_rng(0).random((8, 40)) * 3, []
    for missing in (False, True):
        weights[3:5, 7] = math.nan if missing else weights[2, 7]
        charts.weights_film(tmp_path / "film.gif", weights, ["", "erode", "dilate", ""] * 10)
        frames.append(iio.imread(tmp_path / "film.gif"))
    assert np.array_equal(*frames) and frames[0].shape[:3] == (8, 360, 560)
    for color in (charts.BLUE, charts.RUST, charts.GREEN):
        assert has_color(frames[0][0], color) and has_color(frames[0][-1], color)
