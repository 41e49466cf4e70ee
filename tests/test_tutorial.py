"""tutorial.ipynb: it runs (here without Jupyter and far smaller), its outputs are whole, its exercises can be solved.

After a change of the notebook, or of a function that it shows, make its outputs again:

    jupyter nbconvert --to notebook --execute --inplace tutorial.ipynb
"""
import ast
import base64
import json
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
TEXT = ["".join(cell["source"]) for cell in CELLS]
CODE = [(cell, text) for cell, text in zip(CELLS, TEXT) if cell["cell_type"] == "code"]
SETTINGS = "# The settings of the lesson"
CLAIMS = "# The claims above, asserted; skip me"
SMALL = dict(PHANTOMS=18, SIZE=32, BATCH=4, WIDTH=2, EPOCHS=2, LONG=3, SHORT=2, FULL=False)
FOLDED = re.compile(r"<details><summary>Solution[^<]*</summary>\n\n```python\n(.*?)```\n</details>", re.DOTALL)
SOLUTIONS = [solution for text in TEXT for solution in FOLDED.findall(text)]
STUBS = [text for _, text in CODE if "\n# The check" in text]


def functions(code):
    """The names of the functions that a piece of code begins with, up to its check."""
    return [node.name for node in ast.parse(code.split("\n# The check")[0]).body if isinstance(node, ast.FunctionDef)]


def solved(solution):
    """The exercise cell that `solution` belongs to, its stubs replaced."""
    cell, = (text for text in STUBS if functions(text) == functions(solution))
    return solution + "\n# The check" + cell.split("\n# The check")[1]


@pytest.fixture(scope="module")
def lesson():
    """All code cells executed in order with small settings: the names they define, and what they displayed."""
    shown, stand_in = [], types.ModuleType("IPython.display")
    stand_in.display = shown.append
    stand_in.Image = stand_in.Markdown = lambda data: data
    package = types.ModuleType("IPython")
    package.display = stand_in
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.chdir(ROOT)
        patched.setitem(sys.modules, "IPython", package)
        patched.setitem(sys.modules, "IPython.display", stand_in)
        names = {"__name__": "lesson"}
        for number, (_, code) in enumerate(CODE, 1):
            exec(compile(code, f"code cell {number}", "exec"), names)
            if code.startswith(SETTINGS):
                assert set(SMALL) <= set(names)
                names.update(SMALL)
        yield names, shown


def test_every_cell_runs_at_a_small_size(lesson):
    names, shown = lesson
    assert names["PHANTOMS"] == len(names["training"].names) + len(names["test"].names) == SMALL["PHANTOMS"]
    assert not names["FULL"] and names["ours"].weights.shape == (SMALL["EPOCHS"], len(names["training"].names))
    pictures = [data for data in shown if isinstance(data, bytes)]
    assert len(pictures) >= 10 and all(data.startswith(b"\x89PNG") for data in pictures)


def test_predictions_come_before_what_they_predict(lesson):
    guessed = [number for _, code in CODE for number in re.findall(r"^guess_(\d+) = None$", code, re.MULTILINE)]
    assert guessed == [str(k + 1) for k in range(len(guessed))] and len(guessed) >= 8
    whole = "\n".join(code for _, code in CODE)
    for number in guessed:
        asked, answered = whole.index(f"guess_{number} = None"), whole.index(f"reveal({number}, ")
        assert asked < answered and re.search(rf"reveal\({number}, [^#]*?guess_{number}\)", whole[answered:])
        assert sum(f"**Predict {number}.**" in text for text in TEXT) == 1
    assert sorted(lesson[0]["GUESSES"]) == [int(number) for number in guessed]


def test_open_exercises_say_not_yet(lesson):
    asked = re.findall(r"\*\*Exercise (\d+)\.\*\*", "\n".join(TEXT))
    assert asked == [str(k + 1) for k in range(len(asked))] and len(asked) >= 6
    names = [name for stub in STUBS for name in functions(stub) if name.startswith("my_")]
    assert len(names) == len(asked)
    checks = lesson[0]["CHECKS"]
    assert len(checks) >= len(asked) and not any(checks.values())


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda text: "+".join(functions(text)))
def test_folded_solutions_pass_every_check(lesson, solution, capsys):
    names = {**lesson[0], "CHECKS": {}}
    names["check"] = types.FunctionType(names["check"].__code__, names, closure=names["check"].__closure__)
    exec(solved(solution), names)
    assert names["CHECKS"] and all(names["CHECKS"].values())
    assert capsys.readouterr().out.count("right") == len(names["CHECKS"])


def test_every_exercise_has_a_folded_solution_below():
    assert sorted(map(functions, SOLUTIONS)) == sorted(
        [name for name in functions(stub) if name.startswith("my_")] for stub in STUBS)
    for solution in SOLUTIONS:
        stub, = (k for k, text in enumerate(TEXT) if text in STUBS and functions(text) == functions(solution))
        assert solution in TEXT[stub + 1]


@pytest.mark.parametrize("right, wrong", [
    ("2 * (prediction", "(prediction"), ("(b > a)", "(b < a)"), ("0.5 * (b == a)", "0 * (b == a)"),
    ("lam * torch.tanh", "2.0 * torch.tanh"), ("torch.tanh", "torch.sigmoid"),
    ("torch.softmax(my_overfitting_control(scores, lam)", "torch.softmax(scores"),
    ("weights * losses.mean(dim=1)", "losses.mean(dim=1)"), ("losses - (", "losses + ("),
    ("weights * (losses -", "(losses -"), ("argsort()", "argsort(descending=True)"), ("1 / (", "1 - (")])
def test_checks_refuse_a_wrong_answer(lesson, right, wrong):
    solution, = (text for text in SOLUTIONS if right in text)
    names = {**lesson[0], "CHECKS": {}}
    names["check"] = types.FunctionType(names["check"].__code__, names, closure=names["check"].__closure__)
    exec(solved(solution.replace(right, wrong)), names)
    assert not all(names["CHECKS"].values())


def test_outputs_are_whole_and_in_order():
    assert [cell["execution_count"] for cell, _ in CODE] == [*range(1, len(CODE) + 1)]
    assert NOTEBOOK.stat().st_size < 3e6
    for cell, code in CODE:
        outputs = cell["outputs"]
        assert not [output for output in outputs if output["output_type"] == "error"], code
        assert not [output for output in outputs if output.get("name") == "stderr"], code
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert all(base64.b64decode("".join(picture)).startswith(b"\x89PNG") for picture in pictures)
        assert len(pictures) == len(re.findall(r"^show\(", code, re.MULTILINE)), code
        if re.search(r"^(reveal|check|source|print)\(", code, re.MULTILINE):
            assert any(output["output_type"] == "stream" for output in outputs), code


def test_outputs_are_those_of_the_lesson_as_it_stands(lesson):
    """At full size, nothing solved or guessed beforehand, and the functions shown are the files' own."""
    names, printed = dict(lesson[0]), {}
    for cell, code in CODE:
        printed[code] = "".join("".join(output["text"]) for output in cell["outputs"] if "text" in output)
        for thing in re.findall(r"^source\((.*)\)$", code, re.MULTILINE):
            shown = names["textwrap"].dedent(names["inspect"].getsource(eval(thing, names)))
            assert shown in printed[code], f"{thing} has changed; make the outputs again"
    everything = "".join(printed.values())
    assert f"\n0 of {len(names['CHECKS'])} checks" in everything and everything.count("not yet") == len(names["CHECKS"])
    assert everything.count("your guess: none") == len(names["GUESSES"])
    settings, = (code for _, code in CODE if code.startswith(SETTINGS))
    assert re.search("^FULL = True", settings, re.MULTILINE)
    phantoms = re.search(r"^PHANTOMS = (\d+)", settings, re.MULTILINE)[1]
    assert f"{round(int(phantoms) * 165 / 247)} training" in everything


def test_claims_are_asserted_in_cells_to_skip():
    claims = [code for _, code in CODE if code.startswith(CLAIMS)]
    assert len(claims) >= 10 and all("assert " in code for code in claims)
    sections = [k for k, text in enumerate(TEXT) if re.match(r"## \d+\.", text)]
    assert sum(int(minutes) for text in TEXT for minutes in re.findall(r"^## .*\((\d+) minutes?\)$", text, re.M)) <= 45
    for begin, end in zip(sections, [*sections[1:], len(TEXT)]):
        number = int(re.match(r"## (\d+)\.", TEXT[begin])[1])
        assert number == 14 or any(text.startswith(CLAIMS) for text in TEXT[begin:end]), TEXT[begin][:40]


def test_no_machine_paths_and_few_imports():
    raw = NOTEBOOK.read_text(encoding="utf-8")
    readable = re.sub(r'"image/png": "[^"]*"', "", raw)
    assert not re.search(r"(?<![\w.])/(home|tmp|Users|root|work|usr|opt|var)/|[A-Z]:\\\\", readable)
    allowed = {"data", "eval", "pal", "train", "torch", "numpy", "imageio", "PIL", "IPython"} | sys.stdlib_module_names
    for _, code in CODE:
        for node in ast.walk(ast.parse(code)):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                       [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert {module.split(".")[0] for module in modules} <= allowed
        assert max(map(len, code.splitlines())) <= 110
