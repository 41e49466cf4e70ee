"""Morphology, noise, sizes, split and phantoms against brute force and counts."""
import numpy as np
import pytest

import data


def brute_dilate(mask, n):
    """Every pixel looks at every pixel of the mask."""
    points = np.argwhere(mask)
    out = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        out[y, x] = any((y - v) ** 2 + (x - u) ** 2 <= n * n for v, u in points)
    return out


def brute_erode(mask, n):
    """A pixel stays when no background pixel inside the picture lies within n."""
    background = np.argwhere(~mask)
    out = np.zeros_like(mask)
    for y, x in np.ndindex(*mask.shape):
        out[y, x] = all((y - v) ** 2 + (x - u) ** 2 > n * n for v, u in background)
    return out


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 13, 40])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_morphology_is_the_euclidean_disc(n, share):
    mask = np.random.default_rng(n).random((19, 23)) < share
    before = mask.copy()
    assert np.array_equal(data.dilate(mask, n), brute_dilate(mask, n))
    assert np.array_equal(data.erode(mask, n), brute_erode(mask, n))
    assert np.array_equal(mask, before)


def test_border_neither_grows_nor_eats():
    full, corner = np.ones((9, 9), bool), np.zeros((9, 9), bool)
    corner[:5, :5] = True
    assert data.erode(full, 4).all()
    assert data.erode(corner, 2)[:3, :3].all() and not data.erode(corner, 2)[3:].any()


def test_morphology_takes_stacks():
    masks = np.random.default_rng(0).random((2, 3, 12, 14)) < 0.1
    assert np.array_equal(data.dilate(masks, 2)[1, 2], data.dilate(masks[1, 2], 2))


@pytest.mark.parametrize("noise, band", [
    (0.0, (5, 13)), (0.25, (1, 8)), (0.5, (5, 13)), (0.75, (3, 3)), (1.0, (1, 2))])
def test_noise_touches_exactly_the_given_share(noise, band):
    clean = data.phantoms(11, size=64)[1]
    noisy, operation, pixels = data.corrupt_labels(clean, noise, band, seed=3)
    assert (pixels > 0).sum() == round(noise * 11) == sum(o != "" for o in operation)
    for i in range(11):
        if operation[i]:
            assert band[0] <= pixels[i] <= band[1]
            for c in range(3):
                damage = data.erode if operation[i] == "erode" else data.dilate
                assert np.array_equal(noisy[i, c], damage(clean[i, c], int(pixels[i])))
        else:
            assert pixels[i] == 0 and np.array_equal(noisy[i], clean[i])


def test_noise_is_drawn_once_from_the_seed_and_uses_the_whole_band():
    clean = np.zeros((400, 1, 4, 4), bool)
    first = data.corrupt_labels(clean, 1.0, (5, 13), 0)[1:]
    second = data.corrupt_labels(clean, 1.0, (5, 13), 0)[1:]
    other = data.corrupt_labels(clean, 1.0, (5, 13), 1)[1:]
    assert first[0] == second[0] and np.array_equal(first[1], second[1])
    assert first[0] != other[0]
    assert set(first[1]) == set(range(5, 14))
    assert 150 < first[0].count("erode") < 250


def test_other_kinds_of_noise_do_what_their_names_say():
    clean = data.phantoms(6)[1]
    kinds = {kind: data.corrupt_labels(clean, 1.0, (6, 6), 0, kind)[0] for kind in data.DAMAGE}
    assert np.array_equal(kinds["erode"], data.erode(clean, 6))
    assert np.array_equal(kinds["dilate"], data.dilate(clean, 6))
    for before, after in zip(clean, kinds["shift"]):  # all classes 6 pixels away in one direction
        moves = set()
        for old, new in zip(before, after):
            move = np.argwhere(new).mean(axis=0) - np.argwhere(old).mean(axis=0)
            moves.add(tuple(np.round(move).astype(int)))
        assert len(moves) == 1 and 5 <= np.hypot(*moves.pop()) <= 7
        assert after.sum() == before.sum()
    assert ((kinds["omit"].any(axis=(2, 3)).sum(axis=1)) == 2).all()
    assert ((kinds["omit"] == clean).all(axis=(2, 3)).sum(axis=1) == 2).all()
    rim = kinds["dilate"] & ~kinds["erode"]
    assert (kinds["ragged"] == clean)[~rim].all()  # off by no more than n
    assert 0.3 < kinds["ragged"][rim].mean() < 0.7
    assert (kinds["ragged"] != clean).any(axis=(2, 3)).all()
    _, operation, pixels = data.corrupt_labels(clean, 1.0, (6, 6), 0, "shift-omit-ragged")
    assert set(operation) == {"shift", "omit", "ragged"}
    assert [n == 0 for n in pixels] == [kind == "omit" for kind in operation]  # it has no radius


def test_noise_is_made_on_the_256_grid_at_every_size():
    small, large = (data.load("phantoms:6", size, 1.0, "8-8", 0)[1] for size in (64, 128))
    assert small.operation == large.operation and np.array_equal(small.pixels, large.pixels)
    halved = data.resize(large.labels, 64)
    assert 2 * (small.labels & halved).sum() / (small.labels.sum() + halved.sum()) > 0.98


def test_split_has_the_papers_proportion():
    train, test = data.split(247, 0)
    assert (len(train), len(test)) == (165, 82)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(247))
    assert not np.array_equal(train, data.split(247, 1)[0])


@pytest.mark.parametrize("old, new", [(256, 128), (100, 64), (50, 80), (7, 7)])
def test_resize_keeps_constants_ramps_and_areas(old, new):
    assert (data.resize(np.full((old, old), 77, np.uint8), new) == 77).all()
    ramp = data.resize(np.tile(np.arange(old, dtype=np.uint8), (old, 1)), new)[0].astype(float)
    middle = slice(new // 4, -new // 4)
    expected = (np.arange(new) + 0.5) * old / new - 0.5
    assert np.abs(ramp - expected)[middle].max() <= 0.51  # rounding to uint8
    y, x = np.mgrid[:old, :old]
    disc = (y - old / 2) ** 2 + (x - old / 2) ** 2 < (old / 3) ** 2
    assert data.resize(disc, new).mean() == pytest.approx(disc.mean(), abs=2 / new)


def test_phantoms_are_reproducible_and_complete():
    images, masks = data.phantoms(20)
    again = data.phantoms(10)
    assert np.array_equal(images[:10], again[0]) and np.array_equal(masks[:10], again[1])
    assert images.shape == (20, 256, 256) and images.dtype == np.uint8
    assert masks.shape == (20, 3, 256, 256) and masks.dtype == bool
    assert masks.any(axis=(2, 3)).all()
    share = masks.mean(axis=(0, 2, 3))  # of the picture, near JSRT's 31 %, 9 % and 2 %
    assert 0.25 < share[0] < 0.37 and 0.06 < share[1] < 0.12 and 0.01 < share[2] < 0.03
    lungs, clavicles = masks[:, 0], masks[:, 2]
    assert (lungs & clavicles).sum() / clavicles.sum() > 0.7  # classes overlap
    assert images[lungs].mean() < images[~lungs].mean() - 30  # lungs are dark
