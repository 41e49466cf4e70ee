"""suspects.html: names, order, captions, outlines, size."""
import html
import re
from types import SimpleNamespace
from urllib.request import urlopen  # decodes data: URLs

import numpy as np
import pytest
import torch
from conftest import read_csv, train_here, write_folder
from PIL import Image

import data
import eval as evaluation

ODD_NAMES = ["<b>bold", "it's \"quoted\"", "Übung ä", "two  words", "a&amp;b,", "肺", "<script>"]


# A name with an unescaped "<" does not fit, and its tile would be missed.
TILE = re.compile(r'<button><div class="(i\d+)"><img src="([^"]+)"></div>'
                  r"(<b>\d+\. <span>([^<]+)</span></b>[^<]+)</button>")


class Page:
    """A page's lists {title: tiles: name, text, outlines, class of the image}, and its images."""

    def __init__(self, path):
        self.source, self.views = path.read_text(encoding="utf-8"), {}
        self.images = {name: Image.open(urlopen(url)) for name, url in re.findall(
            r"\.(i\d+) { background-image: url\((\S+)\); }", self.source)}
        for title, content in re.findall('data-title="(.*?)">(.*?)</main>', self.source, re.DOTALL):
            self.views[title] = [
                SimpleNamespace(image=image, outlines=Image.open(urlopen(url)),
                                name=html.unescape(name),
                                text=html.unescape(re.sub("<.*?>", "", text)))
                for image, url, text, name in TILE.findall(content)]


def border(mask):
    """The pixels of a mask (H, W) beside one that is not in it."""
    near = np.pad(mask, 1, mode="edge")
    return mask & ~(near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:])


def make_page(path, known=True):
    """Write and read the page of six dilated labels: Page, rows, Cases, predictions."""
    images, clean = data.phantoms(6)
    labels = data.dilate(clean, 4)
    cases = SimpleNamespace(names=[f"case{i}" for i in range(6)], images=images, labels=labels,
                            clean=clean if known else labels, known=known, classes=data.CLASSES)
    rng, rows = np.random.default_rng(0), []
    what = {"noisy": 1, "operation": "dilate", "pixels": 4} if known else {"split": "test"}
    for place, i in enumerate(rng.permutation(6), start=1):
        rows.append({"place": place, "name": f"case{i}", **what, "score": -1.5, "loss": 2.25,
                     **{f"loss_{name}": rng.random() for name in data.CLASSES},
                     "stands_out": data.CLASSES[i % 3]})
    torch.manual_seed(0)
    unet = torch.nn.Conv2d(1, 3, 1)  # predicts bright or dark pixels
    evaluation.write_page(path, unet, rows, [cases])
    return Page(path), rows, cases, evaluation.predict(unet, torch.from_numpy(images)).numpy()


def test_names_pass_from_the_page_to_exclude(here):
    images, masks = data.phantoms(2 * len(ODD_NAMES), size=64)
    write_folder(here / "folder", images, heart=masks[:, 1])
    for path in sorted(here.glob("folder/*/case[0-6].png")):
        path.rename(path.with_name(f"{ODD_NAMES[int(path.stem[-1])]}.png"))
    options = "--data folder --size 32 --epochs 1 --width 4 --noise 0 --out"
    train_here(f"{options} all")
    (figures,) = Page(here / "all" / "suspects.html").views.values()  # one class, no menu
    rows, names = read_csv("all/suspects.csv"), [figure.name for figure in figures]
    assert names == [row["name"] for row in rows]
    bad = {row["name"] for row in rows if row["split"] == "train"} & set(ODD_NAMES)
    assert len(bad) > 3
    (here / "bad.txt").write_bytes("".join(f"{name}\n" for name in bad).encode())  # as saved
    train_here(f"{options} without --exclude bad.txt")
    assert {row["name"] for row in read_csv("without/suspects.csv")} == set(names) - bad


@pytest.mark.parametrize("known, what", [(True, "dilate 4"), (False, "test")])
def test_the_worst_are_listed_by_place_and_per_class(known, what, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "WORST", 4)
    page, rows, cases, prediction = make_page(tmp_path / "suspects.html", known)
    expected = {"the class that stands out": [(row, row["stands_out"]) for row in rows[:4]]}
    for name in data.CLASSES:
        order = sorted(rows, key=lambda row: row[f"loss_{name}"], reverse=True)
        expected[f"{name}, by its own loss"] = [(row, name) for row in order[:4]]
    assert list(page.views) == list(expected) and len(page.images) > 4  # not only those on top
    assert ("<span hidden>" in page.source) == (not known)  # clean labels, in the legend
    for title, pairs in expected.items():
        for figure, (row, name) in zip(page.views[title], pairs, strict=True):
            standing = ", stands out" if name == row["stands_out"] else ""
            assert figure.text.strip() == (
                f"{row['place']}. {row['name']}\nscore -1.50, loss 2.25\n"
                f"{name} {row[f'loss_{name}']:.2f}{standing}\n{what}")
            i, c = int(row["name"][-1]), data.CLASSES.index(name)
            outlines = np.zeros((256, 256, 4), np.uint8)
            if known:
                outlines[border(cases.clean[i, c])] = (*evaluation.RED, 255)
            outlines[border(prediction[i, c])] = (*evaluation.SKY, 255)
            outlines[border(cases.labels[i, c])] = (*evaluation.YELLOW, 255)
            assert (np.array(figure.outlines.convert("RGBA")) == outlines).all()
            assert np.abs(np.array(page.images[figure.image], int) - cases.images[i]).mean() < 4
    assert prediction[:, 1].any() and not prediction[:, 1].all()  # of the heart


def test_images_shrink_until_the_page_is_small(tmp_path, monkeypatch):
    whole = make_page(tmp_path / "suspects.html")[0]
    monkeypatch.setattr(evaluation, "PAGE_BYTES", len(whole.source) - 6000)
    for page, size in ((whole, 256), (make_page(tmp_path / "suspects.html")[0], 192)):
        assert {image.size for image in page.images.values()} == {(size, size)}
    assert not re.search("https?:|@import|<link", whole.source)  # one file, without network
    assert r'join("\n")' in whole.source  # a name a line; Python must not break JavaScript's text
