"""The pages of results: tables, plots, and the list of runs in .github/results."""
import json
import sys

import numpy as np
import pytest
from conftest import ROOT

import data
import train

sys.path.append(str(ROOT / ".github" / "results"))
import charts  # noqa: E402
import make  # noqa: E402
import runs  # noqa: E402


def test_tables_are_what_their_commands_print():
    assert make.stale_pages() == []
    readme, page = [page.read_text(encoding="utf-8") for page in make.PAGES]
    assert len(make.TABLE.findall(readme)) == 1 and len(make.TABLE.findall(page)) >= 10


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
