"""tutorial.ipynb: it runs (here without Jupyter and far smaller), solved or not; its checks refuse
wrong answers and say what is wrong; its committed outputs are whole and hold what the text claims.

After a change of the notebook, or of a function that it shows, make its outputs again as
.github/TEACHING.md says.
"""
import ast
import base64
import contextlib
import io
import json
import math
import re
import sys
import types
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import pal

ROOT = Path(__file__).parent.parent
PATH = ROOT / "tutorial.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
SEEDS = 6
SMALL = {"PHANTOMS": 24, "SIZE": 32, "BATCH": 4, "EPOCHS": 3}
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
CODES = ["".join(cell["source"]) for cell in CODE]
PROSE = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell not in CODE)


def functions(code):
    """The functions that a piece of code defines at its top level: name -> (first, last line)."""
    nodes = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    return {node.name: (node.lineno, node.end_lineno) for node in nodes}


SOLUTIONS = {}  # name of a function -> its code
for block in re.findall(r"(?s)<summary>Solution.*?```python\n(.*?)```\s*</details>", PROSE):
    for name, (first, last) in functions(block).items():
        SOLUTIONS[name] = "\n".join(block.splitlines()[first - 1:last])


def answered(code, answers):
    """The code of a cell, its stubs replaced by the answers that there are."""
    lines = code.splitlines()
    for name, (first, last) in reversed(functions(code).items()):
        if name in answers and lines[last - 1].strip() == "...":
            lines[first - 1:last] = answers[name].splitlines()
    return "\n".join(lines)


# What the cells have defined; of each code cell: the images that it showed, its Markdown, its text.
Lesson = namedtuple("Lesson", "names images said printed")


def run_lesson(answers=None, show=True):
    """Execute all code cells in order, with small settings, without IPython."""
    package, shown = types.ModuleType("IPython"), []
    package.display = types.SimpleNamespace(
        Image=dict, Markdown=str, display=lambda thing, **options: shown.append(thing))
    names, images, said, printed = {"__name__": "lesson"}, [], [], []
    with pytest.MonkeyPatch().context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])  # the lesson adds the folder of charts.py
        patch.setattr(data, "progress", data.progress)  # and silences this
        patch.setitem(sys.modules, "IPython", package)
        patch.setitem(sys.modules, "IPython.display", package.display)
        for number, code in enumerate(CODES, 1):
            if CODE[number - 1]["metadata"].get("tags") == ["settings"]:
                for name, value in {**SMALL, "SHOW": show}.items():
                    code, count = re.subn(rf"(?m)^{name} = .*?  #", f"{name} = {value}  #", code)
                    assert count == 1, name
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(answered(code, answers or {}), f"code cell {number}", "exec"), names)
            images.append([item for item in shown if isinstance(item, dict) and "data" in item])
            said.append([item for item in shown if isinstance(item, str)])
            shown.clear()
            printed.append(out.getvalue())
    return Lesson(names, images, said, printed)


@pytest.fixture(scope="module")
def unsolved():
    return run_lesson()


def test_it_runs_with_nothing_solved_and_the_project_steps_in(unsolved):
    names, text = unsolved.names, "".join(unsolved.printed)
    assert names["first"].weights.shape == (SMALL["EPOCHS"], len(names["labels"]))
    assert names["CHECKS"] and not any(names["CHECKS"].values())
    assert text.count("nothing returned yet") == len(names["CHECKS"])
    assert re.findall(r"Exercise (\d) is not solved yet: (\w+) of the project steps in", text) == [
        ("5", "step_without_trend"), ("6", "pick_and_learn"), ("7", "small_loss_step")]
    assert np.allclose(names["baseline"].weights, 1)
    assert len(names["SECONDS"]) == 11 and "Eleven trainings, ten in class" in PROSE
    assert text.count("epochs: about ") == 11  # the expected time of each training
    _, eroded, dilated = [members.sum() for _, members, _ in names["KINDS"]]
    assert eroded == dilated == len(names["labels"]) / 4


def test_it_runs_solved_and_trains_with_the_students_steps(unsolved):
    solved = run_lesson(SOLUTIONS)
    text = "".join(solved.printed)
    assert all(solved.names["CHECKS"].values()) and "not yet" not in text
    assert re.findall(r"Training with your (\w+)\.", text) == [
        "my_step", "my_step_with_trend", "my_rival"]
    for run in ("first", "second", "rival"):  # as with the project's own functions
        mine, project = solved.names[run].weights, unsolved.names[run].weights
        assert np.allclose(mine, project, atol=1e-3, equal_nan=True), run
    assert len(SOLUTIONS["my_step_with_trend"].splitlines()) + 1 == 6, "six lines, with a docstring"


def test_answers_wait_for_a_guess():
    hidden = run_lesson(show=False)
    text = "".join(hidden.printed)
    predictions = re.findall(r"^guess_(\d+) = None$", "\n".join(CODES), re.M)
    assert predictions == [str(k + 1) for k in range(len(predictions))]
    assert re.findall(r"^Prediction (\d+):", text, re.M) == predictions
    assert re.findall(r"\*\*Predict (\d+)", PROSE) == predictions
    assert text.count("Replace None with your guess") == len(predictions)
    assert "measured:" not in text and not hidden.names["GUESSES"] and not any(hidden.said)
    assert [image["alt"][:12] for images in hidden.images for image in images] == ["Six outlines"]


@pytest.mark.parametrize("number, guess, says", [
    (6, "dilated", "right"), (6, "clean", "not this one"), (6, "c", 'one of "clean", "eroded"'),
    (6, np.ones(3), 'one of "clean", "eroded"'), (4, 7.4, "e²"), (4, "50", "a number")])
def test_guesses_are_read_and_get_a_reply(unsolved, capsys, number, guess, says):
    measured, choices = {6: ("dilated", ["clean", "eroded", "dilated"]), 4: (54.6, [])}[number]
    unsolved.names["reveal"](number, measured, guess, choices=choices)
    assert says in capsys.readouterr().out


def checks_of(lesson, answers, capsys):
    """Run the exercise cells with these answers: check -> whether it passed, and the text."""
    names = {**lesson.names}
    for solution in SOLUTIONS.values():
        exec(solution, names)
    lesson.names["CHECKS"].clear()
    capsys.readouterr()
    for code in CODES:
        if answered(code, answers) != code:
            code = code.split("\nrival = learn(")[0]  # the cell of exercise 7 trains, too
            exec(answered(code, {**SOLUTIONS, **answers}), names)
    return dict(lesson.names["CHECKS"]), capsys.readouterr().out


def softmax(inside):
    return f"return torch.softmax({inside}, dim=0)"


BOUNDED, TREND = "lam * torch.tanh(scores)", "pal.area_trend(losses, labels, scores)"
SUMS, OVERLAP = "(prediction.sum() + truth.sum())", "(prediction & truth).sum()"
W = "w = my_quality_weights(scores, lam)\n    return "
OWN = "own = losses.detach().mean(1)\n    return my_step(losses, labels, "
MY_STEP = "\n    return my_step(losses, labels, scores, lam)"
LOST = "no gradient reaches the "
WRONG = {  # a function -> its wrong bodies -> what is said
    "my_dice": {
        f"return {OVERLAP} / (prediction | truth).sum()": "union (IoU)",
        f"return {OVERLAP} / {SUMS}": "a factor of 2",
        f"return 2 * {OVERLAP} / (prediction | truth).sum()": "the areas are added",
        f"return 2 * min(prediction.sum(), truth.sum()) / {SUMS}": "is not the overlap: use &",
        "return (prediction and truth).sum()": "& works on masks", "return 'fair'": "not a str"},
    "my_quality_weights": {
        softmax(BOUNDED) + ".detach()": LOST + "scores: the QAM would never learn",
        softmax(BOUNDED) + ".tolist()": LOST + "scores", softmax(BOUNDED)[7:]: "nothing returned",
        softmax(BOUNDED) + ".detach().numpy()": LOST + "scores",
        "return np.exp(lam * np.tanh(scores.numpy()))": "NumPy knows no gradient",
        softmax("lam * math.tanh(scores)"): "math works on one number",
        f"w = torch.exp({BOUNDED})\n    return w / w.sum().detach()": "a wrong gradient",
        softmax("lam * scores"): "no tanh", softmax("scores"): "this is the softmax alone",
        softmax("torch.tanh(lam * scores)"): "outside the tanh", f"return {BOUNDED}": "no softmax",
        softmax("torch.tanh(scores)"): "lambda is missing",
        softmax("2.0 * torch.tanh(scores)"): "lam is not used",
        "return lam * torch.tanh(torch.softmax(scores, dim=0))": "first the tanh, then",
        softmax(BOUNDED) + "[None]": "wrong shape: (1, 5), not (5,)"},
    "my_weighted_loss": {
        "return (weights * losses.mean(dim=1)).sum().item()": LOST + "losses",
        "return (weights.detach() * losses.mean(dim=1)).sum()": LOST + "weights: the QAM",
        "return (weights * losses.detach().mean(dim=1)).sum()": LOST + "losses: the U-Net",
        "return (weights * losses.sum(dim=1)).sum()": "the sum over the classes",
        "return (weights[:, None] * losses).mean()": "the weights sum to 1 already",
        "return weights * losses.mean(dim=1)": "one number is needed",
        "return losses.mean()": "not used", "return (weights * losses).sum()": "[:, None] makes"},
    "my_score_gradient": {
        "return -weights * (losses - (weights * losses).sum())": "opposite sign",
        "return losses - (weights * losses).sum()": "the factor w_i",
        "return weights * (losses - losses.mean())": "not the plain one",
        "return weights * (losses - weights * losses)": "a sum over all labels",
        "return weights * losses": "Loss is not subtracted"},
    "my_step": {
        W + "my_weighted_loss(losses.detach(), w), w": "the U-Net would never learn",
        W + "my_weighted_loss(losses, w.detach()), w": "the QAM would never learn",
        "return train.step_without_trend(losses, labels, scores.detach(), lam)": LOST + "scores",
        "return train.step_without_trend(losses, labels, scores, 2.0)": "ignore lam",
        W + "losses.mean(), w": "are equal", W + "my_weighted_loss(losses, w)": "two things",
        W + "w, my_weighted_loss(losses, w)": "the other way around: return loss, weights",
        W + "-my_weighted_loss(losses, w), w": "opposite sign",
        "return pal.pick_and_learn(losses, labels, scores, lam)": "belongs to exercise 6"},
    "my_step_with_trend": {
        f"losses = losses.detach() - {TREND}[:, None]{MY_STEP}": "the U-Net would never learn",
        f"losses = losses - {TREND}{MY_STEP}": "[:, None] makes", MY_STEP[5:]: "is not subtracted",
        f"losses = losses + {TREND}[:, None]{MY_STEP}": "the trend is added",
        f"losses = {TREND}[:, None]{MY_STEP}": "the trend alone",
        "return pal.pick_and_learn(losses, labels, scores, 2.0)": "ignore lam"},
    "my_rival": {
        OWN.replace(".detach()", "") + "(own.mean() - own) / own.std(), lam)": "a wrong gradient",
        OWN + "(own - own.mean()) / own.std(), lam)": "large losses get large weights",
        OWN + "-own, lam)": "not standardized", MY_STEP[5:]: "come from the QAM's scores",
        "return train.loss_step(losses, labels, scores, lam)": "the area trend is not asked for"},
    "my_auroc": {"return (noisy_losses > clean_losses[:, None]).float().mean()": "not zero",
                 "return (noisy_losses >= clean_losses[:, None]).float().mean()": "not one"},
    "my_suspects": {"return scores.argsort(descending=True)[:k]": "the highest scores"},
    "my_effective_number": {"return (weights > 0).sum()": "above zero are counted"},
    "my_lambda": {"return math.log(share / (1 - share) * (1 - kept) / kept)": "halve it"}}
CASES = [(name, *case) for name, cases in WRONG.items() for case in cases.items()]


@pytest.mark.parametrize("name, body, says", CASES)
def test_checks_say_what_is_wrong_with_an_answer(unsolved, capsys, name, body, says):
    answer = f"{SOLUTIONS[name].splitlines()[0]}\n    {body}"
    checks, text = checks_of(unsolved, {name: answer}, capsys)
    assert not all(checks.values()) and says in text


RIGHT = {"my_quality_weights": "    return F.softmax(lam * scores.tanh_(), dim=-1)",
         "my_weighted_loss": "    return losses.mean(1).mul_(weights).sum() / weights.sum()",
         "my_suspects": "    return torch.topk(scores, k, largest=False).indices.tolist()"}


@pytest.mark.parametrize("name", RIGHT)
def test_checks_accept_other_right_answers_even_in_place(unsolved, capsys, name):
    answer = f"{SOLUTIONS[name].splitlines()[0]}\n{RIGHT[name]}"
    for _ in range(2):  # running a cell again changes nothing
        checks, text = checks_of(unsolved, {name: answer}, capsys)
        assert checks and all(checks.values()), text


def test_numbers_worked_out_by_hand_in_the_text():
    raised = torch.softmax(torch.tensor([0.1, 0.0]), dim=0)  # section 4
    assert np.allclose(raised, [0.525, 0.475], atol=5e-4)
    assert np.allclose((raised * torch.tensor([1.0, 3.0])).sum(), 1.95, atol=5e-4)
    label = torch.arange(400).view(1, 1, 20, 20) < 40  # section 5: a tenth of the image
    both = pal.sample_losses(torch.zeros(1, 1, 20, 20), label)
    assert np.allclose(both - math.log(2), 1 - 0.1 / 0.6, atol=5e-3)


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_outputs_are_whole_and_in_order(unsolved):
    assert [cell["execution_count"] for cell in CODE] == [k + 1 for k in range(len(CODE))]
    assert PATH.stat().st_size < 1.5e6
    for cell, images, said, text in zip(CODE, unsolved.images, unsolved.said, unsolved.printed):
        alts, texts = [], []
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            if "image/png" in output.get("data", {}):
                assert base64.b64decode(output["data"]["image/png"]).startswith(b"\x89PNG")
                alts.append(output["metadata"]["image/png"]["alt"])
            if "text/markdown" in output.get("data", {}):
                texts.append("".join(output["data"]["text/markdown"]))
        assert alts == [image["alt"] for image in images] and all(len(alt) > 40 for alt in alts)
        assert texts == said
        assert printed(cell) or not text or cell is CODE[-1]  # this one prints what does not hold
        if printed(cell).startswith("def train_epoch"):
            assert printed(cell) == text, "the function has changed: make the outputs again"


def test_the_claims_of_the_text_held_on_as_many_seeds_as_it_says():
    """A claim holds in every measured run, or its name says on how many of the seeds."""
    runs = NOTEBOOK["metadata"]["measured"]
    seeds = [f"seed {k}, threads 1" for k in range(SEEDS)]
    assert sorted(runs) == sorted([*seeds, "seed 0, threads 2"])
    stated = re.findall(r'^    "(\d+: .*)":', CODES[-1], re.M)
    measured = CODE[-1]["outputs"][-1]["metadata"]["claims"]
    assert sorted(measured) == sorted(stated) and len(stated) > 30
    for claim in stated:
        said = re.search(rf"\((\d) of {SEEDS} seeds\)$", claim)
        count = sum(runs[seed]["claims"][claim] for seed in seeds)
        assert count == (int(said[1]) if said else SEEDS), claim
        assert measured[claim] and runs["seed 0, threads 2"]["claims"][claim], claim


def test_it_fits_into_fifty_minutes(unsolved):
    minutes = [int(m) for m in re.findall(r"^## \d+\. .* \((\d+) minutes\)$", PROSE, re.M)]
    assert len(minutes) == 7 and sum(minutes) == 50
    told = [one.text for one in unsolved.names["TOLD"].values()]
    assert len(NOTEBOOK["cells"]) <= 58 and len("\n".join([PROSE, *told]).split()) <= 3100


def test_links_lead_somewhere_and_numbers_of_jsrt_are_those_of_the_results_page(unsolved):
    readable = re.sub(r'"image/png": "[^"]*"', "", PATH.read_text(encoding="utf-8"))
    assert not re.search(r"(?<![\w.])/(home|tmp|Users|root|work|usr|opt|var)/|[A-Z]:\\\\", readable)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PROSE):
        assert (ROOT / target).exists(), target
    page = (ROOT / ".github" / "results" / "README.md").read_text(encoding="utf-8")
    for told in unsolved.names["TOLD"].values():
        for number in re.findall(r"0\.\d{3}\b", told.text):
            assert number in page, told.text
    assert max(len(line) for code in CODES for line in code.splitlines()) <= 110
