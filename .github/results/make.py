"""Makes the tables and the chart of the results again, from the reports beside this file.

    python .github/results/make.py              # writes them into README.md and the page here
    python .github/results/make.py --check      # changes nothing; exit code 1 where they differ
    python .github/results/make.py summary      # prints one table: summary, picks, trust or early

In both pages a table stands below the command that prints it: `<!-- python ... -->`.
"""
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGES = (ROOT / "README.md", HERE / "README.md")
TABLE = re.compile(r"(<!-- (python .*?) -->\n)((?:\|.*\n)*)")  # a command, and the table below it
CHART = ["eval.py", "--table", ".github/results/jsrt-128", "--chart", ".github/figures/results.png"]
SETTINGS = [(0.0, "5-13"), (0.25, "1-8"), (0.5, "1-8"), (0.75, "1-8"),
            (0.25, "5-13"), (0.5, "5-13"), (0.75, "5-13"), (0.9, "5-13")]
PAPER = {(0.0, "5-13"): .911, (0.25, "1-8"): .895, (0.5, "1-8"): .898, (0.75, "1-8"): .895,
         (0.25, "5-13"): .890, (0.5, "5-13"): .912, (0.75, "5-13"): .892}  # QAM+OCM, Table 1


def reports(noise, band, strategy, folder="jsrt-128", kind="erode-dilate"):
    """The run folders of one setting, one for each seed."""
    found = []
    for path in sorted((HERE / folder).glob("*/config.json")):
        settings = json.loads(path.read_text())["arguments"]
        same = (settings["noise"], settings["strategy"]) == (noise, strategy)
        if noise:
            same = same and (settings["band"], settings["noise_kind"]) == (band, kind)
        if same:
            found.append(path.parent)
    return found


def mean_of(values):
    """The mean as text, or "-" of no values."""
    return f"{sum(values) / len(values):.3f}" if values else "-"


def print_rows(rows):
    """A Markdown table, the first row its titles."""
    for number, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if number == 0:
            print("|" + "---|" * len(row))


def print_summary():
    """Average Dice of the strategies beside the paper's QAM+OCM; means over seeds."""
    rows = [["noise", "baseline", "QAM+OCM", "oracle", "paper, QAM+OCM"]]
    for noise, band in SETTINGS:
        row = [f"{noise:.0%}, {band} pixels" if noise else "none"]
        for strategy in ("baseline", "qam+ocm", "oracle"):
            runs = reports(noise, band, strategy)
            metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
            row.append(mean_of([figures["dice"]["average"] for figures in metrics]))
        paper = PAPER.get((noise, band))
        rows.append(row + [f"{paper:.3f}" if paper else "-"])
    print_rows(rows)


def wrong_share(run, ranking):
    """The share of noisy labels among the best by a ranking, as many as are clean."""
    audit = json.loads((run / "metrics.json").read_text())["audit"]["training"]
    noisy = audit["random"]["recall"]  # of all labels
    return (1 - audit[ranking]["recall"]) * noisy / (1 - noisy)


def print_picks():
    """What a pick of labels contains: by chance, by small loss, by the rankings of QAM+OCM."""
    columns = [("at random", "qam+ocm", "random"), ("loss, baseline", "baseline", "loss"),
               ("softmin, baseline", "baseline", "softmin"), ("loss, QAM+OCM", "qam+ocm", "loss"),
               ("score, QAM+OCM", "qam+ocm", "score"), ("mean rank, QAM+OCM", "qam+ocm", "ranks")]
    rows = [["noise"] + [title for title, _, _ in columns]]
    cases = [(noise, band, "erode-dilate") for noise, band in SETTINGS if noise]
    for noise, band, kind in cases + [(0.4, "5-13", "dilate"), (0.4, "5-13", "erode")]:
        row = [f"{noise:.0%}, {band}, {kind}"]
        for _, strategy, ranking in columns:
            runs = reports(noise, band, strategy, kind=kind)
            row.append(mean_of([wrong_share(run, ranking) for run in runs]))
        rows.append(row)
    print_rows(rows)


def print_trust():
    """How many of 165 labels carry the weight (effective sample size), and Dice, of each seed."""
    rows = [["noise", "QAM: labels", "QAM: Dice", "QAM+OCM: labels", "QAM+OCM: Dice"]]
    for noise, band in SETTINGS:
        row = [f"{noise:.0%}, {band} pixels" if noise else "none"]
        for strategy in ("qam", "qam+ocm"):
            metrics = [json.loads((run / "metrics.json").read_text())
                       for run in reports(noise, band, strategy)]
            row.append(" ".join(f"{figures['effective_sample_size']:.0f}" for figures in metrics))
            row.append(" ".join(f"{figures['dice']['average']:.3f}" for figures in metrics))
        if row[1]:  # the QAM was not run at 90 %
            rows.append(row)
    print_rows(rows)


def print_early():
    """AUROC of scores and losses, weights times N, in the course of training: lowest - highest."""
    columns = ["lam", "auroc", "loss_auroc", "weight_clean_mean", "weight_erode_mean",
               "weight_dilate_mean", "weight_clean_variance"]
    rows = [["noise", "epoch"] + [name.replace("_", " ") for name in columns]]
    for noise in (0.5, 0.75, 0.9):
        logs = []
        for run in reports(noise, "5-13", "qam+ocm"):
            with open(run / "log.csv", newline="", encoding="utf-8") as file:
                logs.append(list(csv.DictReader(file)))
        for epoch in (3, 5, 10, 20, 40):
            row = [f"{noise:.0%}", str(epoch)]
            for name in columns:
                values = [float(log[epoch - 1][name]) for log in logs]
                row.append(f"{min(values):.2f} - {max(values):.2f}")
            rows.append(row)
    print_rows(rows)


def run(command):
    """What a command line "python ..." prints, run in the project's folder."""
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return done.stdout


def made_again(page):
    """The text of a page with the table below each command replaced by what it prints now."""
    text = page.read_text(encoding="utf-8")
    for match in TABLE.finditer(text):
        text = text.replace(match[0], match[1] + run(match[2]))
    return text


def main(words):
    tables = {"summary": print_summary, "picks": print_picks, "trust": print_trust,
              "early": print_early}
    if words and words[0] in tables:
        tables[words[0]]()
        return
    stale = []
    for page in PAGES:
        text = made_again(page)
        if text != page.read_text(encoding="utf-8"):
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in words:
                page.write_text(text, encoding="utf-8")
    if "--check" in words:
        sys.exit(f"not what their commands print: {', '.join(stale)}" if stale else 0)
    run("python " + shlex.join(CHART))


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main(sys.argv[1:])
