"""Make the tables and the chart of the results again, from the reports beside this file.

    python .github/results/make.py               # writes them into README.md and the page here
    python .github/results/make.py --check       # changes nothing; exit code 1 where they differ
    python .github/results/make.py table FOLDER  # prints a table; the others: see COMMANDS
    python .github/results/make.py phantoms-without-hearts FOLDER   # writes images and masks

In both pages a table stands below the command that prints it: `<!-- python ... -->`.
"""
import contextlib
import csv
import io
import json
import re
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]
import charts  # noqa: E402
import data  # noqa: E402
import train  # noqa: E402
from eval import print_table  # noqa: E402

PAGES = (ROOT / "README.md", HERE / "README.md")
COMMAND = "python .github/results/make.py"
TABLE = re.compile(rf"(<!-- {re.escape(COMMAND)} (.*?) -->\n)((?:\|.*\n)*)")  # and what is below it
SETTINGS = [(0.0, "5-13"), (0.25, "1-8"), (0.5, "1-8"), (0.75, "1-8"),
            (0.25, "5-13"), (0.5, "5-13"), (0.75, "5-13"), (0.9, "5-13")]
# Table 1 of the paper, by noise and band: Dice of lungs, heart, clavicles, and their average.
TABLE_1 = {  # baseline, QAM, QAM+OCM
    (0.00, ""): ((.943, .941, .862, .915), (.939, .923, .831, .898), (.941, .940, .852, .911)),
    (0.25, "1-8"): ((.868, .888, .538, .765), (.925, .926, .748, .866), (.936, .925, .823, .895)),
    (0.50, "1-8"): ((.873, .884, .539, .765), (.922, .925, .726, .857), (.936, .929, .828, .898)),
    (0.75, "1-8"): ((.820, .828, .512, .720), (.898, .825, .536, .753), (.937, .939, .809, .895)),
    (0.25, "5-13"): ((.865, .857, .422, .715), (.893, .835, .615, .781), (.935, .935, .801, .890)),
    (0.50, "5-13"): ((.755, .807, .393, .652), (.828, .853, .491, .714), (.942, .942, .853, .912)),
    (0.75, "5-13"): ((.745, .738, .381, .621), (.770, .772, .366, .636), (.938, .937, .801, .892)),
}
PAPER = {(*setting, strategy): dice for setting, row in TABLE_1.items()
         for strategy, dice in zip(("baseline", "qam", "qam+ocm"), row)}


# -------------------------------------------------------------------------------------- the reports

def read(folder):
    """Read all reports of a folder here: (settings, metrics, run folder) of each run."""
    reports = []
    for path in sorted((HERE / folder).glob("*/config.json")):
        settings = json.loads(path.read_text())["arguments"]
        metrics = json.loads((path.parent / "metrics.json").read_text())
        if settings["noise"] == 0:  # then there is no band and no kind of it
            settings["band"] = settings["noise_kind"] = "-"
        reports.append((settings, metrics, path.parent))
    return reports


def runs_of(noise, band, strategy, folder="jsrt-128", kind="erode-dilate"):
    """List the (metrics, run folder) of one setting, one for each seed."""
    wanted = (noise, strategy, band if noise else "-", kind if noise else "-")
    return [(metrics, run) for settings, metrics, run in read(folder)
            if (settings["noise"], settings["strategy"], settings["band"],
                settings["noise_kind"]) == wanted]


def group_runs(folder):
    """Group the runs of a folder over seeds -> list of lists, and the options that vary in it."""
    reports, groups = read(folder), {}
    varied = []
    for name in ("noise", "band", "noise_kind", "clean", "exclude", "lam"):
        if len({str(settings[name]) for settings, _, _ in reports} - {"-"}) > 1:
            varied.append(name)
    for report in reports:
        settings = report[0]
        key = [settings["noise"], train.STRATEGIES.index(settings["strategy"])]
        key += [str(settings[name]) for name in varied]
        groups.setdefault(tuple(key), []).append(report)
    return [groups[key] for key in sorted(groups)], varied


def paper_row(settings, classes):
    """Return the paper's Dice of lungs, heart, clavicles, average; None if it has no such row."""
    noise, kind = settings["noise"], settings["noise_kind"]
    if tuple(classes) != (*data.CLASSES, "average") or settings["data"].startswith("phantoms"):
        return None
    if noise and kind != "erode-dilate":
        return None
    return PAPER.get((noise, settings["band"] if noise else "", settings["strategy"]))


def cell(values):
    """Write a number as text, several as their mean ± standard deviation, None as "-"."""
    if not values or None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def mean_of(values):
    """Write the mean as text, or "-" if there are no values."""
    return f"{sum(values) / len(values):.3f}" if values else "-"


def setting_text(noise, band):
    """Write a setting as the title of a row."""
    return f"{noise:.0%}, {band} pixels" if noise else "none"


# --------------------------------------------------------------------------------------- the tables

def print_summary():
    """Print the average Dice of the strategies beside the paper's QAM+OCM; means over seeds."""
    rows = [["noise", "baseline", "loss", "QAM+OCM", "oracle", "paper, QAM+OCM"]]
    for noise, band in SETTINGS:
        row = [setting_text(noise, band)]
        for strategy in ("baseline", "loss", "qam+ocm", "oracle"):
            runs = runs_of(noise, band, strategy)
            row.append(mean_of([metrics["dice"]["average"] for metrics, _ in runs]))
        paper = PAPER.get((noise, band if noise else "", "qam+ocm"))
        rows.append(row + [f"{paper[-1]:.3f}" if paper else "-"])
    print_table(rows)


def print_folder(folder):
    """Print a line for each setting of a folder: mean and deviation over seeds of Dice, with the
    paper's in brackets, and of the AUROC of each ranking, and by score of unseen labels.
    """
    groups, varied = group_runs(folder)
    rows = []
    for group in groups:
        settings, metrics, _ = group[0]
        paper = paper_row(settings, metrics["dice"])
        row = [str(settings[name]) for name in varied] + [settings["strategy"]]
        classes = list(metrics["dice"])
        for c, name in enumerate(classes if len(classes) > 2 else ["average"]):
            dice = cell([metrics["dice"][name] for _, metrics, _ in group])
            row.append(f"{dice} ({paper[c]:.3f})" if paper else dice)
        for part, ranking in (("training", "score"), ("training", "loss"), ("training", "ranks"),
                              ("training", "softmin"), ("unseen", "score")):
            audits = [metrics["audit"][part] or {} for _, metrics, _ in group]
            row.append(cell([audit.get(ranking, {}).get("auroc") for audit in audits]))
        rows.append(row + [" ".join(str(settings["seed"]) for settings, _, _ in group)])
    options = [name if name in ("noise", "band") else f"--{name.replace('_', '-')}"
               for name in varied]
    titles = [*options, "strategy", *(classes if len(classes) > 2 else ["Dice"]), "AUROC by score",
              "by loss", "by mean rank", "by softmin", "by score, unseen", "seeds"]
    shown = [c for c in range(len(titles)) if any(row[c] != "-" for row in rows)]
    print_table([[row[c] for c in shown] for row in [titles, *rows]])


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
    cases = [("jsrt-128", noise, band, "erode-dilate") for noise, band in SETTINGS if noise]
    cases += [("jsrt-128", 0.4, "5-13", kind) for kind in ("dilate", "erode")]
    cases += [("kinds", 0.5, "5-13", kind) for kind in ("shift", "omit", "swap")]
    cases += [("coin", 0.5, "9-11", "dilate")]
    for folder in ("no-area-trend", "cross-entropy", "paper"):
        cases += [(folder, noise, "5-13", "erode-dilate") for noise in (0.25, 0.5, 0.75, 0.9)]
    rows = [["noise"] + [title for title, _, _ in columns]]
    for folder, noise, band, kind in cases:
        title = f"{noise:.0%}, {band}, {kind}"
        row = [title if folder in ("jsrt-128", "kinds", "coin") else f"{title}, {folder}"]
        for _, strategy, ranking in columns:
            runs = runs_of(noise, band, strategy, folder, kind)
            row.append(mean_of([wrong_share(metrics, ranking) for metrics, _ in runs]))
        if row[1] != "-":
            rows.append(row)
    print_table(rows)


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
    print_table(rows)


def print_early():
    """Print AUROC of scores and losses, and weights times N, during training: lowest - highest."""
    columns = ["lam", "auroc", "loss_auroc", "weight_clean_mean", "weight_noisy_mean",
               "weight_clean_variance", "weight_noisy_variance"]
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
    print_table(rows)


def print_shares(*folders):
    """Print the share of bad labels that QAM+OCM estimates, seed by seed, beside the true one."""
    groups = {}
    for folder in folders:
        for settings, metrics, _ in read(folder):
            if settings["strategy"] == "qam+ocm" and settings["lam"] == "auto":
                key = (folder, settings["noise"], settings["band"], settings["noise_kind"])
                groups.setdefault(key, []).append((settings["seed"], metrics))
    rows = [["data", "noise", "band", "kind", "true share", "estimated share", "seeds"]]
    for key in sorted(groups):
        runs = sorted(groups[key], key=lambda run: run[0])
        estimated, true = [], []
        for _, metrics in runs:
            audit, share = metrics["audit"]["training"], metrics["rejected_share"]
            true.append(f"{audit['random']['recall']:.2f}" if audit else "0.00")
            estimated.append("-" if share is None else f"{share:.2f}")
        rows.append([*map(str, key), " ".join(true), " ".join(estimated),
                     " ".join(str(seed) for seed, _ in runs)])
    print_table(rows)


def print_empty():
    """Print Dice where there is a heart, and how many images without one stay empty, by seed."""
    rows = [["strategy", "Dice of images with a heart", "nothing predicted without one", "seeds"]]
    for group in group_runs("empty")[0]:
        dice = " ".join(f"{metrics['dice']['heart']:.3f}" for _, metrics, _ in group)
        counts = [metrics["empty"]["heart"] for _, metrics, _ in group]
        empty = ", ".join(f"{count['predicted_empty']} of {count['images']}" for count in counts)
        seeds = " ".join(str(settings["seed"]) for settings, _, _ in group)
        rows.append([group[0][0]["strategy"], dice, empty, seeds])
    print_table(rows)


# ------------------------------------------------------------------------- the chart, and phantoms

def draw_results(path, folder="jsrt-128", band="5-13"):
    """Draw the average Dice over the share of labels eroded or dilated by `band`: curves with
    standard deviations over seeds, and the paper's as dots.
    """
    colors = {"baseline": charts.RUST, "qam": charts.PURPLE, "qam+ocm": charts.BLUE,
              "oracle": charts.GREEN}
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
        band_of_mean = (mean - deviation, mean + deviation)
        series.append(charts.Series(label, color, noise, mean, band_of_mean))
        paper = [(noise, row[-1]) for (noise, paper_band, name), row in PAPER.items()
                 if paper_band in ("", band) and name == strategy]
        if paper:
            noise, mean = np.transpose(paper)
            label = f"paper, {label} (dots)"
            series.append(charts.Series(label, color, noise, mean, dots=True))
    lowest = min(one.y.min() for one in series)
    charts.chart(f"JSRT, labels eroded or dilated by {band} pixels", series,
                 "share of noisy labels", "average Dice on clean test labels", (700, 440),
                 y_range=(lowest, 1)).save(path)


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


# ---------------------------------------------------------------------------------------- the pages

COMMANDS = {"summary": print_summary, "table": print_folder, "picks": print_picks,
            "trust": print_trust, "early": print_early, "empty": print_empty,
            "shares": print_shares, "phantoms-without-hearts": write_phantoms_without_hearts}


def remade(page):
    """Return the text of a page with the table below each command as the command prints it now."""
    text = page.read_text(encoding="utf-8")
    for match in TABLE.finditer(text):
        name, *words = match[2].split()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            COMMANDS[name](*words)
        text = text.replace(match[0], match[1] + printed.getvalue())
    return text


def stale_pages():
    """List the pages whose tables are not what their commands print."""
    return [page for page in PAGES if remade(page) != page.read_text(encoding="utf-8")]


def main(words):
    """Print one table, or make all of them and the chart again; see the module's docstring."""
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](*words[1:])
    if words not in ([], ["--check"]):
        sys.exit(f"{' '.join(words)}: no such table; there are {', '.join(COMMANDS)}")
    pages = stale_pages()
    if words == ["--check"]:
        names = ", ".join(page.relative_to(ROOT).as_posix() for page in pages)
        sys.exit(f"not what their commands print: {names}" if pages else 0)
    for page in pages:
        page.write_text(remade(page), encoding="utf-8")
    draw_results(ROOT / ".github" / "figures" / "results.png")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    main(sys.argv[1:])
