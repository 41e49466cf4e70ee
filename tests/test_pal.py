"""The method against slow and obvious computations of the same quantities."""
import math

import pytest
import torch

import pal


def random_batch(*shape):
    """Logits and bool labels of this shape: (N, classes, H, W) or (N, classes, D, H, W)."""
    rng = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=rng, dtype=torch.float64),
            torch.rand(shape, generator=rng) < 0.3)


def losses_and_scores():
    """Losses (4, 3) and scores (4,) with gradient, bool labels (4, 3, 8, 8)."""
    logits, labels = random_batch(4, 3, 8, 8)
    scores = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_()
    return pal.sample_losses(logits.requires_grad_(), labels), labels, scores


@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_weights_are_the_softmax_of_equation_2(lam):
    scores = [-30.0, -1.5, 0.2, 30.0]
    bounded = scores if lam is None else [lam * math.tanh(t) for t in scores]
    total = sum(math.exp(s) for s in bounded)
    weights = pal.quality_weights(torch.tensor(scores, dtype=torch.float64), lam)
    assert weights.tolist() == pytest.approx([math.exp(s) / total for s in bounded])
    largest_ratio = (weights.max() / weights.min()).item()
    assert largest_ratio == pytest.approx(math.exp(2 * (lam or 30)))


@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (2, 2, 2, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_sample_losses_by_hand(shape, dtype):
    logits, labels = random_batch(*shape)
    losses = pal.sample_losses(logits, labels.to(dtype))
    for i in range(2):
        for c in range(2):
            bce = overlap = p_sum = y_sum = 0.0
            for logit, y in zip(logits[i, c].flatten().tolist(), labels[i, c].flatten().tolist()):
                p = 1 / (1 + math.exp(-logit))
                bce -= math.log(p if y else 1 - p) / 16
                overlap, p_sum, y_sum = overlap + p * y, p_sum + p, y_sum + y
            expected = bce + 1 - (2 * overlap + 1) / (p_sum + y_sum + 1)
            assert losses[i, c].item() == pytest.approx(expected)


@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_loss_and_gradient_of_the_scores(lam):
    """The gradient by finite differences, with the trend as a constant."""
    losses, labels, scores = losses_and_scores()
    loss, weights = pal.pick_and_learn(losses, labels, scores, lam)
    trend = pal.area_trend(losses, labels, scores)
    assert not trend.requires_grad and not weights.requires_grad and trend.abs().max() > 1e-3
    assert torch.equal(weights, pal.quality_weights(scores, lam).detach())
    left = (losses.mean(dim=1) - trend).detach()
    assert loss.item() == pytest.approx((weights * left).sum().item())
    without_trend = (weights * losses.mean(dim=1)).sum().item()
    assert pal.weighted_loss(losses, weights).item() == pytest.approx(without_trend)
    loss.backward()
    for i, step in enumerate(1e-6 * torch.eye(4, dtype=torch.float64)):
        above = (pal.quality_weights(scores.detach() + step, lam) * left).sum()
        below = (pal.quality_weights(scores.detach() - step, lam) * left).sum()
        assert scores.grad[i].item() == pytest.approx(((above - below) / 2e-6).item(), abs=1e-7)


def test_equal_scores_without_gradient_are_the_baseline():
    """The reverse, losses without gradient beside scores with one, is a mistake: see below."""
    losses, labels, scores = losses_and_scores()
    loss, weights = pal.pick_and_learn(losses, labels, torch.zeros_like(scores.detach()))
    loss.backward()
    assert weights.tolist() == pytest.approx([1 / 4] * 4)
    assert loss.item() == pytest.approx(losses.mean().item())  # a trend of mean 0 adds nothing


def line_over_areas(areas, losses, weights):
    """A line by robust weighted least squares: its values (N,), less their weighted mean."""
    distance = areas - weights @ areas
    cauchy = 1 / (1 + distance ** 2 / (4 * weights @ distance ** 2))  # Cauchy's weight function
    root = (weights * cauchy).sqrt()[:, None]
    design = torch.stack([areas, torch.ones_like(areas)], dim=1)
    fit = torch.linalg.lstsq(root * design, root * losses[:, None])
    line = (design @ fit.solution)[:, 0]
    return line - weights @ line


def test_area_trend_is_a_line_per_class_and_empty_labels_have_their_own_mean():
    logits, labels = random_batch(6, 3, 8, 8)
    labels[2:4, 0] = labels[5, 1] = False
    scores = torch.linspace(-1, 2, 6, dtype=torch.float64)
    weights = torch.softmax(2 * torch.tanh(scores), dim=0)
    losses, areas = pal.sample_losses(logits, labels), labels.double().mean(dim=(2, 3))
    expected = torch.zeros(6, dtype=torch.float64)
    for c in range(3):
        full = areas[:, c] > 0
        for group in (full, ~full):
            mean_of_group = (weights * losses[:, c])[group].sum() / weights[group].sum()
            expected[group] += (mean_of_group - weights @ losses[:, c]) / 3
        weights_of_full = weights[full] / weights[full].sum()
        expected[full] += line_over_areas(areas[full, c], losses[full, c], weights_of_full) / 3
    assert expected.abs().max() > 1e-2 and abs(weights @ expected) < 1e-12
    areas = areas[:, :, None, None]
    for same in (labels, labels.reshape(6, 3, 2, 4, 8), areas, 1e-7 * areas):  # tiny objects, too
        assert torch.allclose(pal.area_trend(losses, same, scores), expected)
    in_float32 = pal.area_trend(losses.float(), 1e-7 * areas.float(), scores.float())
    assert torch.allclose(in_float32, expected.float(), atol=1e-4)


def test_limits_of_the_area_trend():
    """Two labels, or the only one of another area, are explained entirely; equal areas never."""
    losses = torch.tensor([1.0, 2.0, 3.0, 9.0], dtype=torch.float64)
    scores = torch.zeros(4, dtype=torch.float64)
    areas = torch.tensor([0.2, 0.2, 0.2, 0.3], dtype=torch.float64).reshape(4, 1, 1, 1)
    left = losses - pal.area_trend(losses, areas, scores)
    assert left[3].item() == pytest.approx(left[:3].mean().item())  # 9 looks like 1, 2, 3
    left = losses[2:] - pal.area_trend(losses[2:], areas[2:], scores[2:])
    assert left[0].item() == pytest.approx(left[1].item())
    for equal in (torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8), 0.2 + 1e-8 * (areas - 0.2)):
        assert pal.area_trend(losses, equal, scores).abs().max() < 1e-3


def squares(values):
    """The sum of squared distances from the mean."""
    return sum((x - sum(values) / len(values)) ** 2 for x in values)


def slow_two_groups(losses):
    """Try every split of the sorted logarithms, and take the one with the least variance within."""
    logs = sorted(math.log(loss) for loss in losses)
    within, k = min((squares(logs[:k]) + squares(logs[k:]), k) for k in range(1, len(logs)))
    return 1 - k / len(logs), 1 - within / squares(logs)


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_is_otsus_threshold(seed):
    losses = torch.rand(40, generator=torch.Generator().manual_seed(seed)) + 0.05
    assert pal.two_groups(losses) == pytest.approx(slow_two_groups(losses.tolist()), abs=1e-6)


def test_rejected_share_is_that_of_a_group_of_high_losses():
    spread = torch.linspace(0.8, 1.25, 60)
    losses = torch.where(torch.arange(60) < 15, 4 * spread, spread)
    silent = torch.full((60,), math.nan)  # a class whose labels are all empty
    assert pal.rejected_share(losses) == pal.rejected_share(losses[:, None]) == 0.25
    for other_class in (losses / 3, silent):
        assert pal.rejected_share(torch.stack([losses, other_class], dim=1)) == 0.25
    half = torch.where(torch.arange(60) % 2 == 0, losses, math.nan)  # one process of two
    assert pal.rejected_share(half) == pytest.approx(8 / 60)  # of all 60 labels
    losses[45:] = math.nan  # but the second class is never empty
    assert pal.rejected_share(torch.stack([losses, torch.ones(60)], dim=1)) == 0.25
    for first in (0.8, 1e-7, 0.0):  # one tiny loss makes no group
        spread[0] = first
        assert pal.rejected_share(spread) == pal.rejected_share(torch.ones(9)) == 0


@pytest.mark.parametrize("share, lam", [(0, 0), (0.01, 0.5), (0.25, 0.5), (0.3, 0.5), (0.4, 1),
                                        (0.5, 1.5), (0.6, 2), (1, 2)])
def test_auto_lambda_is_the_table_of_its_docstring(share, lam):
    assert pal.auto_lambda(share) == pytest.approx(lam)


@pytest.mark.parametrize("size", [(6, 6), (3, 4, 3)])
def test_dice_by_sets(size):
    logits, truth = random_batch(3, 3, *size)
    prediction = logits > 0
    prediction[0, 0] = truth[0, 0] = prediction[1, 1] = truth[2, 2] = False
    values = pal.dice(prediction, truth)
    for i in range(3):
        for c in range(3):
            a = {tuple(position) for position in prediction[i, c].nonzero().tolist()}
            b = {tuple(position) for position in truth[i, c].nonzero().tolist()}
            expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1
            assert values[i, c].item() == pytest.approx(expected)


@pytest.mark.parametrize("classes, width, size", [(1, 4, (16, 32)), (3, 8, (32, 16))])
def test_unet_gives_logits_to_which_every_layer_adds(classes, width, size):
    torch.manual_seed(0)
    unet = pal.UNet(classes, width=width)
    logits = unet(torch.randn(2, 1, *size))
    assert logits.shape == (2, classes, *size) and logits.min() < 0 < logits.max()
    logits.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in unet.parameters())


@pytest.mark.parametrize("size", [(32, 32), (48, 97), (32, 100)])
def test_qam_sees_image_and_label_of_any_size_from_32_on(size):
    torch.manual_seed(0)
    qam = pal.QAM().eval()
    images, labels = torch.randn(2, 1, *size), torch.rand(2, 3, *size) < 0.5
    assert torch.equal(qam(images, labels), torch.zeros(2))  # equal weights at first
    torch.nn.init.normal_(qam.score.weight)
    scores = qam(images, labels)
    assert scores.isfinite().all() and torch.equal(qam(images, labels.byte()), scores)
    assert (qam(images + 1, labels) != scores).all()
    for c in range(3):
        other = labels.clone()
        other[:, c] = ~other[:, c]
        assert (qam(images, other) != scores).all()
    assert qam.features(torch.zeros(2, 4, *size)).shape == (2, 64, size[0] // 32, size[1] // 32)
    qam.score.weight.data *= -1
    assert torch.allclose(qam(images, labels), -scores)  # scores of both signs


@pytest.mark.parametrize("shape", [(3, 1, 6, 8), (3, 3, 6, 8), (2, 2, 4, 6, 8)])
@pytest.mark.parametrize("unit", [1, 1e-9, 1000])
def test_standardized_images_have_mean_0_and_standard_deviation_1_in_each_channel(shape, unit):
    images = unit * torch.randint(20, 200, shape)
    standardized = pal.standardize(images)
    assert standardized.shape == shape and standardized.dtype == torch.float32
    channels = images.double().flatten(2).flatten(0, 1)
    for channel, values in zip(channels, standardized.flatten(2).flatten(0, 1)):
        mean = channel.sum() / len(channel)
        deviation = ((channel - mean).square().sum() / (len(channel) - 1)).sqrt()
        assert torch.allclose(values.double(), (channel - mean) / deviation, atol=1e-4)
    assert (pal.standardize(torch.full(shape, unit)) == 0).all()  # constant images: no 0 / 0


# What is called, with the names below, and what the error says.
MISTAKES = {
    # the order of the arguments, and what is given
    "pal.weighted_loss(losses, weights, trend)": "takes 2 positional arguments",
    "pal.weighted_loss(losses, trend, trend=weights)": "weights below 0",
    "pal.weighted_loss(losses, scores)": r"weights below 0: .* use quality_weights\(scores\)",
    "pal.pick_and_learn(losses.detach(), labels, scores)": "losses without gradient: the U-Net",
    "pal.pick_and_learn(losses, labels, weights)": "scores that sum to 1: .* raw scores",
    "pal.pick_and_learn(scores, labels, losses)": r"scores of shape \(4, 3\)",
    "pal.sample_losses(labels.double(), logits)": "labels of .*: .* swapped with logits",
    "pal.sample_losses(logits, logits * math.nan)": "labels of nan",
    "pal.UNet(1, 3)": "takes from 1 to 2 positional arguments",  # 3 channels wide?
    # shapes that PyTorch would broadcast
    "pal.pick_and_learn(losses.mean(), labels, scores)": 'one per sample .* reduction="none"',
    "pal.weighted_loss(losses, weights[:, None])": r"weights of shape \(4, 1\): tensor \(4,\)",
    "pal.weighted_loss(losses, weights, trend=trend[:, None])": r"trend of shape \(4, 1\)",
    "pal.area_trend(losses.mean(dim=1), labels, scores)": r"\(4, 1\): tensor \(4, 3\) is needed",
    "pal.dice(labels[:, 0], labels[:, 0])": r"\(N, classes, H, W\) is needed.* \[:, None\]",
    "pal.dice(labels, labels[:, :2])": r"tensor \(4, 3, 8, 8\) is needed",
    "pal.standardize(images[0])": r"\(1, 32, 32\): .* one image standardize\(image\[None\]\)",
    # values
    "pal.quality_weights(scores, -1)": "lambda is -1: 0 or more",
    "pal.quality_weights(scores, math.nan)": "lambda is nan",
    "pal.quality_weights(scores.bfloat16())": r"scores are .*16: a float32 .* use \.float\(\)",
    "pal.sample_losses(logits.half(), labels)": "logits are torch.float16: a float32",
    "pal.sample_losses(logits, 2.0 * labels - 1)": "labels of -1 to 1, not 0 to 1",
    "pal.sample_losses(logits, 255 * labels)": "labels of 0 to 255, .* labels > 0 for .*PORTING",
    "pal.QAM()(images, 255 * masks)": "labels of 255 to 255, .* labels > 0",
    "pal.dice(logits, labels)": "dice takes bool masks, not torch.float64",
    "pal.pick_and_learn(losses[:2], labels[:2], scores[:2])": "mini-batch of 2: .* accumulate",
    "pal.rejected_share(losses[:1])": "losses of 1 labels: two or more are needed",
    "pal.rejected_share(losses * math.nan)": "losses of 0 labels: two or more are needed",
    "pal.rejected_share(losses / 0)": "needed, finite and >= 0",
    "pal.rejected_share(-losses)": "needed, finite and >= 0",  # minus Dice
    "pal.auto_lambda(50)": "a share of 50: 0 to 1 is needed",
    # PyTorch's own words would be about something else
    "pal.sample_losses([logits, logits], labels)": "logits are list: a .* tensor is needed",
    "pal.sample_losses(logits, labels.numpy())": r"labels of shape .*: tensor \(4, 3, 8, 8\)",
    "pal.rejected_share([losses, losses])": "losses are list: a .* tensor is needed",
    "pal.pick_and_learn(losses, labels, scores.mean())": r"scores of shape \(\): tensor \(1,\)",
    "pal.UNet()(images[:, :, :24, :24])": "each side must be a multiple of 16 for the U-Net",
    "pal.QAM()(images[:, :, :28], masks[:, :, :28])": "28, 32.*: each side .* 32 or more",
    "pal.UNet()(images.expand(4, 3, 32, 32))": r"\(4, 3, 32, 32\): \(N, 1, H, W\)",
    "pal.UNet()(images[:, :, None])": r"1, 1, 32, 32\): \(N, 1, H, W\), in 3D with D",
    "pal.UNet()(images.double())": "images are torch.float64: .*float32 .* use standardize",
    "pal.UNet()(images.numpy())": "images are float32: a float32 tensor is needed",
    "pal.UNet()(images.byte())": "images are torch.uint8: .* use standardize",
    "pal.QAM()(images, masks.argmax(dim=1))": r"labels of .*32\): tensor \(4, 3, 32, 32\)",
}


@pytest.mark.parametrize("call", MISTAKES)
def test_mistakes_are_errors_that_say_what_to_do(call):
    losses, labels, scores = losses_and_scores()
    names = {"pal": pal, "math": math, "losses": losses, "labels": labels, "scores": scores,
             "logits": random_batch(4, 3, 8, 8)[0], "weights": pal.quality_weights(scores),
             "trend": pal.area_trend(losses, labels, scores), "images": torch.randn(4, 1, 32, 32),
             "masks": torch.ones(4, 3, 32, 32)}
    with pytest.raises((ValueError, TypeError), match=MISTAKES[call]):
        eval(call, names)
