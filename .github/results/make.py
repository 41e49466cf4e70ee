"""Make the tables and the chart of the results again, from the reports beside this file.

    python .github/results/make.py              # writes them into README.md and the page here
    python .github/results/make.py --check      # changes nothing; exit code 1 where they differ
    python .github/results/make.py summary      # prints a table; also: full, picks, trust, early
    python .github/results/make.py shares nuclei bloodcells   # prints one of these folders
    python .github/results/make.py chart FILE   # draws Dice over the share of noisy labels
    python .github/results/make.py phantoms-without-hearts FOLDER   # writes images and masks

In both pages a table stands below the command that prints it: `<!-- python ... -->`.
"""
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))
import data  # noqa: E402
import eval as evaluation  # noqa: E402

PAGES = (ROOT / "README.md", HERE / "README.md")
TABLE = re.compile(r"(<!-- (python .*?) -->\n)((?:\|.*\n)*)")  # a command, and the table below it
SETTINGS = [(0.0, "5-13"), (0.25, "1-8"), (0.5, "1-8"), (0.75, "1-8"),
            (0.25, "5-13"), (0.5, "5-13"), (0.75, "5-13"), (0.9, "5-13")]


def read(folder):
    """Read all reports of a folder here: (settings, metrics, run folder) of each run."""
    reports = []
    for path in sorted((HERE / folder).glob("*/config.json")):
        settings = json.loads(path.read_text())["arguments"]
        metrics = json.loads((path.parent / "metrics.json").read_text())
        reports.append((settings, metrics, path.parent))
    return reports


def runs_of(noise, band, strategy, folder="jsrt-128", kind="erode-dilate"):
    """List the (metrics, run folder) of one setting, one for each seed."""
    runs = []
    for settings, metrics, run in read(folder):
        same = (settings["noise"], settings["strategy"]) == (noise, strategy)
        if noise:
            same = same and (settings["band"], settings["noise_kind"]) == (band, kind)
        if same:
            runs.append((metrics, run))
    return runs


def mean_of(values):
    """Write the mean as text, or "-" if there are no values."""
    return f"{sum(values) / len(values):.3f}" if values else "-"


def setting_text(noise, band):
    """Write a setting as the title of a row."""
    return f"{noise:.0%}, {band} pixels" if noise else "none"


def print_summary():
    """Print the average Dice of the strategies beside the paper's QAM+OCM; means over seeds."""
    rows = [["noise", "baseline", "QAM+OCM", "oracle", "paper, QAM+OCM"]]
    for noise, band in SETTINGS:
        row = [setting_text(noise, band)]
        for strategy in ("baseline", "qam+ocm", "oracle"):
            runs = runs_of(noise, band, strategy)
            row.append(mean_of([metrics["dice"]["average"] for metrics, _ in runs]))
        paper = evaluation.PAPER.get((noise, band if noise else "", "qam+ocm"))
        rows.append(row + [evaluation.cell(paper[-1] if paper else None)])
    evaluation.print_table(rows)


def print_full(folder="jsrt-128"):
    """Print the table of eval.py with the paper's Dice of each class in brackets, AUROC by label
    quality (softmin), and of unseen labels.
    """
    groups, varied = evaluation.group_runs(HERE / folder)
    rows = []
    for group in groups:
        _, settings, metrics = group[0]
        paper = evaluation.paper_row(settings, metrics["dice"])
        row = [str(settings[name]) for name in ("noise", "band", *varied, "strategy")]
        for c, name in enumerate(metrics["dice"]):
            dice = evaluation.cell(*[metrics["dice"][name] for _, _, metrics in group])
            row.append(f"{dice} ({paper[c]:.3f})" if paper else dice)
        for ranking in ("score", "loss", "ranks", "softmin"):
            row.append(evaluation.auroc_cell(group, ranking))
        row.append(evaluation.auroc_cell(group, "score", "unseen"))
        row.append(" ".join(str(settings["seed"]) for _, settings, _ in group))
        rows.append(row)
    kinds = [f"--{name.replace('_', '-')}" for name in varied]
    classes = list(groups[0][0][2]["dice"])
    titles = ["noise", "band", *kinds, "strategy", *classes, "AUROC by score", "by loss",
              "by mean rank", "by softmin", "by score, unseen", "seeds"]
    evaluation.print_table([titles, *rows])


def wrong_share(metrics, ranking):
    """Return the share of noisy labels among the best by a ranking, as many as are clean."""
    audit = metrics["audit"]["training"]
    noisy = audit["random"]["recall"]  # of all labels
    return (1 - audit[ranking]["recall"]) * noisy / (1 - noisy)


def print_picks():
    """Print what a pick of labels contains: by chance, small loss, or the rankings of QAM+OCM."""
    columns = [("at random", "qam+ocm", "random"), ("loss, baseline", "baseline", "loss"),
               ("softmin, baseline", "baseline", "softmin"), ("loss, QAM+OCM", "qam+ocm", "loss"),
               ("score, QAM+OCM", "qam+ocm", "score"), ("mean rank, QAM+OCM", "qam+ocm", "ranks")]
    rows = [["noise"] + [title for title, _, _ in columns]]
    cases = [(noise, band, "erode-dilate") for noise, band in SETTINGS if noise]
    for noise, band, kind in cases + [(0.4, "5-13", "dilate"), (0.4, "5-13", "erode")]:
        row = [f"{noise:.0%}, {band}, {kind}"]
        for _, strategy, ranking in columns:
            runs = runs_of(noise, band, strategy, kind=kind)
            row.append(mean_of([wrong_share(metrics, ranking) for metrics, _ in runs]))
        rows.append(row)
    evaluation.print_table(rows)


def print_trust():
    """Print how many of 165 labels carry the weight (effective sample size), and Dice, by seed."""
    rows = [["noise", "QAM: labels", "QAM: Dice", "QAM+OCM: labels", "QAM+OCM: Dice"]]
    for noise, band in SETTINGS:
        row = [setting_text(noise, band)]
        for strategy in ("qam", "qam+ocm"):
            runs = [metrics for metrics, _ in runs_of(noise, band, strategy)]
            row.append(" ".join(f"{metrics['effective_sample_size']:.0f}" for metrics in runs))
            row.append(" ".join(f"{metrics['dice']['average']:.3f}" for metrics in runs))
        if row[1]:  # the QAM was not run at 90 %
            rows.append(row)
    evaluation.print_table(rows)


def print_early():
    """Print AUROC of scores and losses, and weights times N, during training: lowest - highest."""
    columns = ["lam", "auroc", "loss_auroc", "weight_clean_mean", "weight_erode_mean",
               "weight_dilate_mean", "weight_clean_variance"]
    rows = [["noise", "epoch"] + [name.replace("_", " ") for name in columns]]
    for noise in (0.5, 0.75, 0.9):
        logs = []
        for _, run in runs_of(noise, "5-13", "qam+ocm"):
            with open(run / "log.csv", newline="", encoding="utf-8") as file:
                logs.append(list(csv.DictReader(file)))
        for epoch in (3, 5, 10, 20, 40):
            row = [f"{noise:.0%}", str(epoch)]
            for name in columns:
                values = [float(log[epoch - 1][name]) for log in logs]
                row.append(f"{min(values):.2f} - {max(values):.2f}")
            rows.append(row)
    evaluation.print_table(rows)


def print_shares(folders):
    """Print the share of bad labels that QAM+OCM tells, seed by seed, beside the true one."""
    groups = {}
    for folder in folders:
        for settings, metrics, _ in read(folder):
            if settings["strategy"] == "qam+ocm" and "rejected_share" in metrics:
                band = settings["band"] if settings["noise"] else ""
                kind = settings["noise_kind"] if settings["noise"] else ""
                key = (folder, settings["noise"], band, kind, str(settings["lam"]))
                groups.setdefault(key, []).append((settings["seed"], metrics))
    rows = [["data", "noise", "band", "kind", "--lam", "true share", "share told", "seeds"]]
    for key in sorted(groups):
        runs = sorted(groups[key], key=lambda run: run[0])
        told, true = [], []
        for _, metrics in runs:
            audit, share = metrics["audit"]["training"], metrics["rejected_share"]
            true.append(f"{audit['random']['recall']:.2f}" if audit else "0.00")
            told.append("-" if share is None else f"{share:.2f}")
        seeds = " ".join(str(seed) for seed, _ in runs)
        rows.append([str(value) or "-" for value in key]
                    + [" ".join(true), " ".join(told), seeds])
    evaluation.print_table(rows)


def print_machines():
    """Print the average Dice of the same commands on two machines."""
    rows = [["noise", "strategy", "Xeon, AMX", "EPYC, AVX-512", "largest difference of a seed"]]
    for noise, strategy in ((0.0, "baseline"), (0.75, "baseline"), (0.75, "oracle")):
        dice = []
        for folder in ("jsrt-128", "machine"):
            runs = runs_of(noise, "5-13", strategy, folder)
            dice.append(np.array([metrics["dice"]["average"] for metrics, _ in runs]))
        difference = f"{np.abs(dice[0] - dice[1]).max():.3f}"
        rows.append([setting_text(noise, "5-13"), strategy, evaluation.cell(*dice[0]),
                     evaluation.cell(*dice[1]), difference])
    evaluation.print_table(rows)


def print_empty(folder="empty"):
    """Print Dice where there is a heart, and how many images without one stay empty, by seed."""
    rows = [["strategy", "Dice of images with a heart", "nothing predicted without one", "seeds"]]
    for strategy in evaluation.STRATEGIES:
        runs = [(settings["seed"], metrics) for settings, metrics, _ in read(folder)
                if settings["strategy"] == strategy]
        if not runs:
            continue
        dice = " ".join(f"{metrics['dice']['heart']:.3f}" for _, metrics in runs)
        counts = [metrics["empty"]["heart"] for _, metrics in runs]
        empty = ", ".join(f"{count['predicted_empty']} of {count['images']}" for count in counts)
        rows.append([strategy, dice, empty, " ".join(str(seed) for seed, _ in runs)])
    evaluation.print_table(rows)


def write_phantoms_without_hearts(folder, count=150, share=0.3):
    """Write phantoms with masks of the heart, which is painted over and unlabeled in some."""
    images, masks = data.phantoms(count, seed=50)
    rng = np.random.default_rng(57)
    without = rng.permutation(count)[:round(share * count)]
    for name in ("images", "heart"):
        (Path(folder) / name).mkdir(parents=True)
    for i, (image, heart) in enumerate(zip(images.astype(float), masks[:, 1])):
        noise = image - neighbors(image)
        if i in without:
            hole = data.dilate(heart, 4)
            image[hole] = image[data.dilate(hole, 2) & ~hole].mean()
            for _ in range(400):  # diffusion from the border
                image[hole] = neighbors(image)[hole]
            image[hole] += rng.choice(noise[~hole], hole.sum())
            heart = np.zeros_like(heart)
        pixels = {"images": image.clip(0, 255).astype(np.uint8), "heart": heart * np.uint8(255)}
        for name, array in pixels.items():
            iio.imwrite(Path(folder) / name / f"case{i:03d}.png", array)


def neighbors(image):
    """Average the four neighbors of each pixel of an image (H, W)."""
    return sum(np.roll(image, step, axis) for step in (-1, 1) for axis in (0, 1)) / 4


def draw_results(path, folder="jsrt-128", band="5-13"):
    """Draw the average Dice over the share of labels eroded or dilated by `band`: curves with
    standard deviations over seeds, and the paper's as dots.
    """
    colors = {"baseline": evaluation.RUST, "qam": evaluation.ORANGE, "qam+ocm": evaluation.BLUE,
              "oracle": evaluation.GREEN}
    series = []
    for strategy, color in colors.items():
        label = strategy.replace("qam", "QAM").replace("ocm", "OCM")
        points = []
        for noise in (0.0, 0.25, 0.5, 0.75, 0.9):
            dice = [metrics["dice"]["average"]
                    for metrics, _ in runs_of(noise, band, strategy, folder)]
            if dice:
                points.append((noise, np.mean(dice), np.std(dice, ddof=1)))
        noise, mean, deviation = np.transpose(points)
        series.append(evaluation.Series(label, color, noise, mean,
                                        (mean - deviation, mean + deviation)))
        paper = [(noise, row[-1]) for (noise, paper_band, name), row in evaluation.PAPER.items()
                 if paper_band in ("", band) and name == strategy]
        if paper:
            noise, mean = np.transpose(paper)
            label = f"paper, {label} (dots)"
            series.append(evaluation.Series(label, color, noise, mean, dots=True))
    lowest = min(one.y.min() for one in series)
    evaluation.chart(f"JSRT, labels eroded or dilated by {band} pixels", series,
                     "share of noisy labels", "average Dice on clean test labels", (700, 440),
                     y_range=(lowest, 1)).save(path)


def run(command):
    """Return what a command line "python ..." prints, run in the project's folder."""
    words = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    return done.stdout


def remade(page):
    """Return the text of a page with the table below each command as the command prints it now."""
    text = page.read_text(encoding="utf-8")
    for match in TABLE.finditer(text):
        text = text.replace(match[0], match[1] + run(match[2]))
    return text


def main(words):
    """Print one table, or make all of them and the chart again; see the module's docstring."""
    tables = {"summary": print_summary, "full": print_full, "picks": print_picks,
              "trust": print_trust, "early": print_early, "empty": print_empty,
              "machines": print_machines,
              "chart": draw_results, "phantoms-without-hearts": write_phantoms_without_hearts}
    if words and words[0] in tables:
        return tables[words[0]](*words[1:])
    if words and words[0] == "shares":
        return print_shares(words[1:])
    if words not in ([], ["--check"]):
        sys.exit(f"{' '.join(words)}: no such table; there are {', '.join([*tables, 'shares'])}")
    stale = []
    for page in PAGES:
        text = remade(page)
        if text != page.read_text(encoding="utf-8"):
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in words:
                page.write_text(text, encoding="utf-8")
    if "--check" in words:
        sys.exit(f"not what their commands print: {', '.join(stale)}" if stale else 0)
    draw_results(ROOT / ".github" / "figures" / "results.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main(sys.argv[1:])
