"""tutorial.ipynb: it runs (here without Jupyter and far smaller), its outputs are whole and hold
what the text claims, its exercises can be solved, and wrong answers are refused.

After a change of the notebook, or of a function that it shows, make its outputs again:

    jupyter nbconvert --to notebook --execute --inplace tutorial.ipynb
"""
import ast
import base64
import json
import math
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import pal

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
SMALL = {"PHANTOMS": 18, "SIZE": 32, "BATCH": 4, "WIDTH": 2, "EPOCHS": 2, "LONG": 3, "SHORT": 2}
FOLDED = re.compile(r"<details><summary>Solution.*?```python\n(.*?)```\n</details>", re.DOTALL)


def text_of(cell):
    return "".join(cell["source"])


def text_cells():
    return [text_of(cell) for cell in CELLS if cell["cell_type"] == "markdown"]


def code_cells():
    return [cell for cell in CELLS if cell["cell_type"] == "code"]


def printed(cell):
    """What a committed cell printed."""
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def pictures(cell):
    """The pictures, as PNG, that a committed cell showed."""
    found = []
    for output in cell["outputs"]:
        if "image/png" in output.get("data", {}):
            found.append(base64.b64decode("".join(output["data"]["image/png"])))
    return found


def exercise_cells():
    return [text_of(cell) for cell in code_cells() if "\n# The check" in text_of(cell)]


def solutions():
    found = []
    for text in text_cells():
        found += FOLDED.findall(text)
    return found


def functions(code):
    """The names of the functions that a piece of code defines."""
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]


def stubs(exercise):
    """The names of the functions that an exercise cell leaves to the student."""
    return functions(exercise.split("\n# The check")[0])


def solved(solution):
    """The exercise cell of a solution, its stubs replaced."""
    for exercise in exercise_cells():
        if stubs(exercise) == functions(solution):
            return solution + "\n# The check" + exercise.split("\n# The check")[1]
    raise AssertionError(f"no exercise for {functions(solution)}")


class Lesson(NamedTuple):
    names: dict   # what the cells have defined
    shown: list   # for each code cell, what it displayed
    checks: dict  # name of a check -> whether it was passed, before any exercise is solved


@pytest.fixture(scope="module")
def lesson():
    """All code cells executed in order with small settings."""
    displayed = []
    display = types.ModuleType("IPython.display")
    display.display = displayed.append
    display.Image = dict
    display.Markdown = str
    package = types.ModuleType("IPython")
    package.display = display
    names, shown = {"__name__": "lesson"}, []
    with pytest.MonkeyPatch().context() as patch:
        patch.chdir(ROOT)
        patch.setitem(sys.modules, "IPython", package)
        patch.setitem(sys.modules, "IPython.display", display)
        for number, cell in enumerate(code_cells(), 1):
            exec(compile(text_of(cell), f"code cell {number}", "exec"), names)
            if cell["metadata"].get("tags") == ["settings"]:
                assert set(SMALL) <= set(names)
                names.update(SMALL)
            shown.append(displayed.copy())
            displayed.clear()
    return Lesson(names, shown, dict(names["CHECKS"]))


def passed_checks(lesson, exercise):
    """Runs an exercise cell: the name of each check -> whether it was passed."""
    lesson.names["CHECKS"].clear()
    exec(exercise, lesson.names)
    return dict(lesson.names["CHECKS"])


# --------------------------------------------------------------------------- it runs

def test_every_cell_runs_at_a_small_size(lesson):
    names = lesson.names
    assert len(names["training"].names) + len(names["test"].names) == SMALL["PHANTOMS"]
    assert names["ours"].weights.shape == (SMALL["EPOCHS"], len(names["training"].names))
    shown = [item["data"] for items in lesson.shown for item in items if isinstance(item, dict)]
    assert len(shown) >= 12
    for picture in shown:
        assert picture.startswith(b"\x89PNG")


def test_its_runs_are_those_of_the_program(lesson):
    names = lesson.names
    weights = names["ours"].weights
    assert np.nanmax(weights) < SMALL["BATCH"] and np.nanmin(weights) > 0
    assert np.allclose(names["baseline"].weights, 1)
    assert names["ours"].bounds == [2.0, 2.0] and names["unbounded"].bounds == [None, None]
    assert all(0.5 <= bound <= 2 for bound in names["automatic"].bounds)
    source, = (text_of(cell) for cell in code_cells() if "def learn(" in text_of(cell))
    assert "train.train_epoch(" in source and "backward" not in source


def test_a_network_without_normalisation_has_none(lesson):
    qam = lesson.names["qam_without_normalisation"]()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in qam.modules())
    assert qam(torch.randn(2, 1, 32, 32), torch.zeros(2, 3, 32, 32)).shape == (2,)


# --------------------------------------------------------------------------- predictions

def test_predictions_come_before_what_they_predict(lesson):
    code = "\n".join(text_of(cell) for cell in code_cells())
    guesses = re.findall(r"^guess_(\d+) = None$", code, re.MULTILINE)
    assert guesses == [str(k + 1) for k in range(len(guesses))] and len(guesses) >= 8
    for number in guesses:
        asked, answered = code.index(f"guess_{number} = None"), code.index(f"reveal({number}, ")
        assert asked < answered
        assert f"guess_{number}" in code[answered:answered + 200]
        assert len(re.findall(rf"\*\*Predict {number}[ .]", "\n".join(text_cells()))) == 1
    assert sorted(lesson.names["GUESSES"]) == [int(number) for number in guesses]


def test_a_number_waits_for_a_guess(lesson, monkeypatch, capsys):
    reveal = lesson.names["reveal"]
    monkeypatch.setitem(lesson.names, "SHOW", False)
    monkeypatch.setitem(lesson.names, "show", print)
    monkeypatch.setitem(lesson.names, "GUESSES", {})
    reveal(99, "how many", 0.1234, None, "the chart", "the table")
    text = capsys.readouterr().out
    assert "0.1234" not in text and "the chart" not in text and "the table" not in text
    assert not lesson.names["GUESSES"]
    reveal(99, "how many", 0.1234, 0.5, "the chart", "the table")
    text = capsys.readouterr().out
    for expected in ("0.1234", "0.5", "the chart", "the table"):
        assert expected in text
    monkeypatch.setitem(lesson.names, "SHOW", True)
    reveal(99, "how many", 0.1234, None)
    assert "0.1234" in capsys.readouterr().out


def test_the_core_of_the_hour_is_marked():
    text = "\n".join(text_cells())
    assert len(re.findall(r"\*\*Predict \d+ ★\.\*\*", text)) == 6
    assert len(re.findall(r"\*\*Exercise \d+ ★\.\*\*", text)) == 4


# --------------------------------------------------------------------------- exercises

def test_every_exercise_has_a_stub_and_a_folded_solution_below(lesson):
    asked = re.findall(r"\*\*Exercise (\d+)(?: ★)?\.\*\*", "\n".join(text_cells()))
    assert asked == [str(k + 1) for k in range(len(asked))] and len(asked) >= 6
    names = []
    texts = [text_of(cell) for cell in CELLS]
    for exercise in exercise_cells():
        names += stubs(exercise)
        below = texts[texts.index(exercise) + 1]
        assert functions(FOLDED.search(below)[1]) == stubs(exercise)
    assert len(names) == len(asked) and all(name.startswith("my_") for name in names)


@pytest.mark.parametrize("exercise", exercise_cells(), ids=stubs)
def test_an_open_exercise_says_what_came_and_what_was_expected(lesson, exercise, capsys):
    checks = passed_checks(lesson, exercise)
    assert checks and not any(checks.values())
    text = capsys.readouterr().out
    assert text.count("not yet") == text.count("came:     None") == len(checks)
    assert len(re.findall(r"expected: \[?-?\d", text)) == len(checks)


def test_an_error_in_an_answer_is_shown_in_full(lesson, capsys):
    def answer(number):
        raise ValueError("a long message, " * 20)

    lesson.names["check"]("an error", answer, (1,), 2.0)
    assert "ValueError: " + "a long message, " * 20 in capsys.readouterr().out
    assert not lesson.names["CHECKS"].pop("an error")


def test_an_answer_of_another_shape_is_not_right(lesson):
    same = lesson.names["same"]
    assert same(torch.tensor(2.0), 2.0) and same([1, 2], torch.tensor([1.0, 2.0]))
    assert not same(torch.tensor([2.0, 2.0]), 2.0) and not same(2.0, [2.0])
    assert not same(None, 2.0) and not same(2.001, 2.0)


@pytest.mark.parametrize("solution", solutions(), ids=functions)
def test_folded_solutions_pass_every_check(lesson, solution, capsys):
    checks = passed_checks(lesson, solved(solution))
    assert checks and all(checks.values())
    assert capsys.readouterr().out.count("right") == len(checks)


WRONG = [("2 * (prediction", "(prediction"), ("(b > a)", "(b < a)"),
         ("0.5 * (b == a)", "0 * (b == a)"), ("lam * torch.tanh", "2.0 * torch.tanh"),
         ("torch.tanh", "torch.sigmoid"),
         ("torch.softmax(my_overfitting_control(scores, lam)", "torch.softmax(scores"),
         ("weights * losses.mean(dim=1)", "losses.mean(dim=1)"), ("losses - (", "losses + ("),
         ("weights * (losses -", "(losses -"), ("argsort()", "argsort(descending=True)"),
         ("1 / (", "1 - ("), ("0.5 * math.log", "math.log"), ("share / (1 - share)", "share")]


@pytest.mark.parametrize("right, wrong", WRONG)
def test_checks_refuse_a_wrong_answer(lesson, right, wrong, capsys):
    solution, = (text for text in solutions() if right in text)
    checks = passed_checks(lesson, solved(solution.replace(right, wrong)))
    assert not all(checks.values())
    assert "came:" in capsys.readouterr().out


def test_the_slow_specifications_agree_with_the_project(lesson):
    names = lesson.names
    four, six = names["four"], names["six"]
    assert math.isclose(names["slow_dice"](four, six), 0.6)
    assert math.isclose(pal.dice(four[None, None], six[None, None]).item(), 0.6, rel_tol=1e-6)
    scores, losses = names["some_scores"], names["some_losses"]
    weights = pal.quality_weights(scores, 0.7)
    assert np.allclose(names["slow_overfitting_control"](scores, 0.7),
                       pal.overfitting_control(scores, 0.7))
    assert np.allclose(names["slow_quality_weights"](scores, 0.7), weights)
    assert math.isclose(names["slow_pick_and_learn_loss"](losses, weights),
                        pal.pick_and_learn_loss(losses, weights).item())
    bounded = pal.overfitting_control(scores, 2.0).requires_grad_()
    pal.pick_and_learn_loss(losses, torch.softmax(bounded, dim=0)).backward()
    slow = names["slow_score_gradient"](losses.mean(dim=1), bounded.detach())
    assert np.allclose(slow, bounded.grad, atol=1e-6)
    for share in (0.25, 0.5, 0.75, 0.9):
        lam = names["slow_fitting_lambda"](share, 0.1)
        assert math.isclose(lam, math.log(9 * share / (1 - share)) / 2, abs_tol=1e-6)
        assert math.isclose(names["weight_kept"](share, lam), 0.1, abs_tol=1e-6)
    raised = pal.quality_weights(scores + 1, None)
    assert torch.allclose(raised, pal.quality_weights(scores, None)), "softmax ignores a shift"
    assert not torch.allclose(pal.quality_weights(scores + 1), pal.quality_weights(scores))


def test_the_worked_example_of_the_gradient():
    """Section 7: two labels, s_1 raised by 0.1."""
    weights = torch.softmax(torch.tensor([0.1, 0.0]), dim=0)
    assert np.allclose(weights, [0.525, 0.475], atol=5e-4)
    assert math.isclose((weights * torch.tensor([1.0, 3.0])).sum().item(), 1.95, abs_tol=5e-4)


# --------------------------------------------------------------------------- committed outputs

def test_outputs_are_whole_and_in_order(lesson):
    counts = [cell["execution_count"] for cell in code_cells()]
    assert counts == [k + 1 for k in range(len(counts))]
    assert NOTEBOOK.stat().st_size < 3e6
    for cell, shown in zip(code_cells(), lesson.shown):
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
        expected = [item for item in shown if isinstance(item, dict)]
        assert len(pictures(cell)) == len(expected), text_of(cell)
        for picture in pictures(cell):
            assert picture.startswith(b"\x89PNG")
        if re.search(r"^(reveal|check|source|print)\(", text_of(cell), re.MULTILINE):
            assert printed(cell), text_of(cell)


def test_outputs_are_those_of_the_lesson_as_it_stands(lesson):
    """At full size, nothing solved or guessed, and the functions shown are the files' own."""
    names = lesson.names
    for cell in code_cells():
        for thing in re.findall(r"^source\((.*)\)$", text_of(cell), re.MULTILINE):
            source = names["inspect"].getsource(eval(thing, names))
            shown = names["textwrap"].dedent(source)
            assert shown in printed(cell), f"{thing} has changed; make the outputs again"
    assert pal.__doc__ in "".join(printed(cell) for cell in code_cells())
    everything = "".join(printed(cell) for cell in code_cells())
    assert f"\n0 of {len(lesson.checks)} checks" in everything
    assert everything.count("not yet") == len(lesson.checks)
    assert everything.count("your guess: None") == len(names["GUESSES"])
    settings, = (text_of(cell) for cell in code_cells()
                 if cell["metadata"].get("tags") == ["settings"])
    assert re.search("^SHOW = True", settings, re.MULTILINE)
    phantoms = re.search(r"^PHANTOMS = (\d+)", settings, re.MULTILINE)[1]
    assert f"{round(int(phantoms) * 165 / 247)} training" in everything


def measured():
    """The figures that the last cell of the committed notebook has printed."""
    return json.loads(printed(code_cells()[-1]))


def test_section_1_and_2_damage():
    found = measured()
    assert 3 < found["growth"] < 5
    clean, eroded, dilated = found["clavicles"]
    assert clean == 1 and eroded < 0.1 and 0.3 < dilated < 0.6
    assert found["vanished"][0] == 0 and found["vanished"][1] > 0.8 and found["vanished"][2] == 0


def test_section_3_it_memorises():
    found = measured()
    given, clean = np.array(found["to given"]), np.array(found["to clean"])
    early = found["early"]
    assert early < 2 * len(given) // 3
    assert clean[early] > given[early] + 0.03, "nearer to the label that was never shown"
    assert min(given[early], clean[early]) > found["between"], "above the grey line"
    assert given[-1] > clean[-1] + 0.15 and clean[-1] < found["between"] + 0.06, "a copy"
    loss = {organ: found["clean dice"][organ] - found["noisy dice"][organ]
            for organ in ("lungs", "heart", "clavicles", "average")}
    assert loss["average"] > 0.05 and loss["clavicles"] > max(loss["lungs"], loss["heart"])


def test_section_4_the_window_narrows_and_does_not_shut():
    found = measured()
    lungs, every = np.array(found["lungs auroc"]), np.array(found["all auroc"])
    assert abs(lungs[0] - 0.5) < 0.2 and abs(every[0] - 0.5) < 0.2
    assert lungs.max() > 0.85 and every.max() < lungs.max()
    for curve in (lungs, every):
        assert 0.55 < curve[-5:].mean() < curve.max() - 0.05


def test_section_8_weights_and_losses_teach_each_other():
    found = measured()
    assert abs(found["area fit"]) > 0.9, "before any training, losses follow the area"
    assert abs(found["clean weight"][0] - found["noisy weight"][0]) < 0.25
    assert found["clean weight"][-1] > 1.5 and found["noisy weight"][-1] < 0.5
    spread = found["clean spread"]
    assert spread[0] < 0.2 and spread[-1] > spread[0] + 0.2, "unlike in the paper it grows"
    noisy = found["noisy spread"]
    assert max(noisy) > noisy[0] + 0.2 and max(noisy) > noisy[-1] + 0.1, "and shrinks again"
    score, loss = np.array(found["score auroc"]), np.array(found["loss auroc"])
    early = slice(len(score) // 3)
    assert score[early].mean() > loss[early].mean(), "scores are ahead at first"
    assert loss[-5:].mean() > np.mean(found["baseline auroc"][-5:]), "the window stays open"


def test_section_9_suspects():
    found = measured()
    assert found["suspects"] >= 10 and 0 < found["dilated suspects"] < found["suspects"]
    clean, eroded, dilated = found["kinds' weight"]
    assert clean > 1.5 and max(eroded, dilated) < 0.7


def test_section_10_strategies_and_bounds():
    found = measured()
    dice, spread = found["dice"], found["spread"]
    assert dice["QAM+OCM"]["average"] > dice["baseline"]["average"] + 0.02
    assert dice["QAM"]["average"] > dice["baseline"]["average"] + 0.02
    assert spread["QAM"][0] > math.exp(4) >= spread["QAM+OCM"][0] * 0.9999
    assert spread["QAM"][1] > spread["QAM+OCM"][1], "the surprise"
    assert found["auto dice"]["average"] > dice["baseline"]["average"] + 0.02
    assert all(0.7 <= bound <= 1.6 for bound in found["bounds"]), "half of the labels are bad"
    assert 0.3 < max(found["shares"]) < 0.55, "on the careful side of one half"
    assert found["auto spread"][1] > spread["QAM+OCM"][1]


def test_section_11_failures():
    found = measured()
    slopes = found["slopes"]
    assert slopes["as in section 8"] > 0.9 and slopes["no normalisation"] > 0.9
    assert slopes["fast QAM"] < 0.2 and slopes["both"] < 0.001
    assert found["both positive"] in (0, 1) and 0 < found["fast positive"] < 1
    eroded, dilated = found["constant"][1], found["constant"][2]  # at the logits -1 and 0
    assert eroded[0] < found["constant"][0][0] < dilated[0], "eroded labels are cheapest"
    assert eroded[1] > found["constant"][0][1] > dilated[1], "and then dilated ones"
    weights, early = found["shortcut weight"], found["early losses"]
    assert weights["clean"] < 0.7 and max(weights["eroded"], weights["dilated"]) > 1.5
    winner = max(weights, key=weights.get)
    assert ["clean", "eroded", "dilated"][int(np.argmin(early))] == winner
    assert found["shortcut dice"]["average"] < found["dice"]["baseline"]["average"]
    assert found["majority auroc"] < 0.3


def test_section_12_what_we_found(lesson):
    found = measured()
    assert np.mean(found["without line"]) < found["with line"] - 0.1
    ours, paper = lesson.names["ours_mean"], lesson.names["paper_mean"]
    best, worst = (0.0, "", "baseline"), (0.75, "5-13", "baseline")
    assert ours[best] - ours[worst] < 0.6 * (paper[best] - paper[worst])
    for noise, band, strategy in paper:
        if strategy == "qam+ocm" and noise > 0:
            qam = (noise, band, "qam")
            assert paper[best] > paper[noise, band, strategy] > paper[qam]
            assert abs(ours[noise, band, strategy] - ours[qam]) < 0.03, "it changes little"


def test_section_12_shows_the_results_as_they_are_now(lesson, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    cells = code_cells()
    starts = [text_of(cell).split("(")[0] for cell in cells]
    table, findings = starts.index("def finished_runs"), starts.index("ours_mean = {key: np.mean")
    assert lesson.shown[table] == ["".join(cells[table]["outputs"][0]["data"]["text/markdown"])]
    exec(text_of(cells[findings]), lesson.names)
    assert printed(cells[findings]) == capsys.readouterr().out


# --------------------------------------------------------------------------- form

def test_every_section_has_minutes_and_closes_with_one_line():
    sections = [text for text in text_cells() if text.startswith("## ")]
    titles = [text.splitlines()[0] for text in sections]
    minutes = [int(re.fullmatch(r"## \d+\. .* \((\d+) minutes?\)", title)[1]) for title in titles]
    assert len(titles) == 14 and sum(minutes) <= 60
    recaps = re.findall(r"\*In one line: [^*]+\*", "\n".join(text_cells()))
    assert len(recaps) == len(titles) - 1, "all but the closing questions"


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", "\n".join(text_cells())):
        assert (ROOT / target).exists(), target


def test_no_machine_paths_few_imports_and_short_lines():
    raw = NOTEBOOK.read_text(encoding="utf-8")
    readable = re.sub(r'"image/png": "[^"]*"', "", raw)
    machine = r"(?<![\w.])/(home|tmp|Users|root|work|usr|opt|var)/|[A-Z]:\\\\"
    assert not re.search(machine, readable)
    allowed = {"data", "eval", "pal", "train", "torch", "numpy", "imageio", "IPython"}
    allowed |= sys.stdlib_module_names
    for cell in code_cells():
        for node in ast.walk(ast.parse(text_of(cell))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in modules:
                assert module.split(".")[0] in allowed
        assert max(len(line) for line in text_of(cell).splitlines()) <= 100
