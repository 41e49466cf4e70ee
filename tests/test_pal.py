"""The method against slow and obvious computations of the same quantities."""
import math

import pytest
import torch

import pal


def random_batch(n=5, classes=3, size=16, seed=0):
    """Logits and bool labels (n, classes, size, size)."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(n, classes, size, size, generator=rng, dtype=torch.float64),
            torch.rand(n, classes, size, size, generator=rng) < 0.3)


def losses_and_scores(n=4, classes=3):
    """Losses (n, classes) and scores (n,) with gradient, bool labels (n, classes, 8, 8)."""
    logits, labels = random_batch(n, classes, size=8)
    scores = torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_()
    return pal.sample_losses(logits.requires_grad_(), labels), labels, scores


# ------------------------------------------------------------------------------ scores and weights

@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_weights_are_the_softmax_of_equation_2(lam):
    scores = torch.tensor([-1.5, 0.0, 0.2, 4.0], dtype=torch.float64)
    bounded = scores.tolist()
    if lam is not None:
        bounded = [lam * (math.exp(t) - math.exp(-t)) / (math.exp(t) + math.exp(-t))
                   for t in bounded]
    total = sum(math.exp(s) for s in bounded)
    weights = pal.quality_weights(scores, lam)
    assert weights.tolist() == pytest.approx([math.exp(s) / total for s in bounded])
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("lam", [0.5, 2.0, 4.0])
def test_ratio_of_two_weights_never_exceeds_e_to_the_2_lambda(lam):
    scores = torch.tensor([-1e4, 1e4, 0.0, -30.0, 30.0], dtype=torch.float64)
    weights = pal.quality_weights(scores, lam)
    assert (weights.max() / weights.min()).item() == pytest.approx(math.exp(2 * lam))  # reached
    assert torch.equal(pal.quality_weights(scores), pal.quality_weights(scores, 2.0))  # the paper's


# ---------------------------------------------------------------------------------------- the loss

def test_sample_losses_by_hand():
    logits, labels = random_batch(n=2, classes=2, size=4)
    for i in range(2):
        for c in range(2):
            bce = overlap = p_sum = y_sum = 0.0
            for logit, y in zip(logits[i, c].flatten().tolist(), labels[i, c].flatten().tolist()):
                p = 1 / (1 + math.exp(-logit))
                bce -= math.log(p if y else 1 - p) / 16
                overlap, p_sum, y_sum = overlap + p * y, p_sum + p, y_sum + y
            expected = bce + 1 - (2 * overlap + 1) / (p_sum + y_sum + 1)
            assert pal.sample_losses(logits, labels)[i, c].item() == pytest.approx(expected)


def test_equation_1_and_uniform_weights():
    losses = torch.tensor([[1.0, 3.0], [5.0, 7.0]])  # two samples, two classes: L = 2 and 6
    weights = torch.tensor([0.75, 0.25])
    assert pal.weighted_loss(losses, weights).item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    less = pal.weighted_loss(losses, weights, trend=torch.tensor([0.5, -1.0]))
    assert less.item() == pytest.approx(0.75 * 1.5 + 0.25 * 7)
    uniform = pal.weighted_loss(losses, pal.quality_weights(torch.zeros(2)))
    assert uniform.item() == pytest.approx(4)  # the plain mean


@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_loss_and_gradient_of_the_scores(lam):
    """dLoss/dt_i = w_i (L_i - Loss) lam (1 - tanh^2 t_i), by hand and by finite differences."""
    losses, labels, scores = losses_and_scores()
    loss, weights = pal.pick_and_learn(losses, labels, scores, lam)
    trend = pal.area_trend(losses, labels, scores)
    assert not trend.requires_grad and not weights.requires_grad and trend.abs().max() > 1e-3
    assert torch.equal(weights, pal.quality_weights(scores, lam).detach())
    left = (losses.mean(dim=1) - trend).detach()
    assert loss.item() == pytest.approx((weights * left).sum().item())
    loss.backward()
    slope = 1 if lam is None else lam * (1 - torch.tanh(scores.detach()) ** 2)
    assert torch.allclose(scores.grad, weights * (left - loss.detach()) * slope)
    for i, step in enumerate(1e-6 * torch.eye(4, dtype=torch.float64)):
        above = (pal.quality_weights(scores.detach() + step, lam) * left).sum()
        below = (pal.quality_weights(scores.detach() - step, lam) * left).sum()
        assert scores.grad[i].item() == pytest.approx(((above - below) / 2e-6).item(), abs=1e-7)


def test_both_networks_learn_from_one_backward_pass():
    """The gradients of both networks are those of eq. (1) with the weights or the losses fixed."""
    torch.manual_seed(0)
    unet, qam = pal.UNet(width=2).double().eval(), pal.QAM().double().eval()
    torch.nn.init.normal_(qam.score.weight, std=0.1)
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    labels = torch.rand(4, 3, 32, 32) < 0.3
    losses, scores = pal.sample_losses(unet(images), labels), qam(images, labels)
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, scores)
    per_sample = losses.mean(dim=1)
    for_unet = (weights.detach() * per_sample).sum()
    paid = weights * (per_sample - trend - (weights * per_sample).sum())
    for_qam = (paid.detach() * 2 * torch.tanh(scores)).sum()
    by_hand = torch.autograd.grad(for_unet, unet.parameters(), retain_graph=True)
    by_hand += torch.autograd.grad(for_qam, qam.parameters(), retain_graph=True)
    pal.pick_and_learn(losses, labels, scores)[0].backward()
    for parameter, gradient in zip([*unet.parameters(), *qam.parameters()], by_hand):
        assert torch.allclose(parameter.grad, gradient, atol=1e-14)
    assert sum(p.grad.abs().sum() for p in qam.parameters()) > 1e-4 and trend.abs().max() > 1e-4


# ---------------------------------------------------------------------------------- the area trend

def test_area_trend_is_a_robust_least_squares_line_per_class():
    logits, labels = random_batch(n=6, size=8)
    scores = torch.linspace(-1, 2, 6, dtype=torch.float64)
    weights = torch.softmax(2 * torch.tanh(scores), dim=0)
    losses, areas = pal.sample_losses(logits, labels), labels.double().mean(dim=(2, 3))
    expected = torch.zeros(6, dtype=torch.float64)
    for c in range(3):
        design = torch.stack([areas[:, c], torch.ones(6, dtype=torch.float64)], dim=1)
        distance = areas[:, c] - (weights * areas[:, c]).sum()
        spread = (weights * distance ** 2).sum()
        cauchy = 1 / (1 + distance ** 2 / (4 * spread))  # Cauchy's weight function
        root = (weights * cauchy).sqrt()
        fit = torch.linalg.lstsq(root[:, None] * design, (root * losses[:, c])[:, None])
        line = (design @ fit.solution)[:, 0]
        expected += (line - (weights * line).sum()) / 3
    trend = pal.area_trend(losses, labels, scores)
    assert torch.allclose(trend, expected) and (weights * trend).sum().abs() < 1e-12


def test_empty_labels_have_their_own_mean_and_leave_the_line_alone():
    """One class: the others' line is the one that they have without the empty labels."""
    losses = torch.tensor([[0.3], [1.1], [0.4], [0.9], [0.7]], dtype=torch.float64)
    areas = torch.tensor([0.1, 0, 0.2, 0, 0.4], dtype=torch.float64).reshape(5, 1, 1, 1)
    scores = torch.tensor([0.5, -0.2, 0.1, 0.3, -0.4], dtype=torch.float64)
    trend, full = pal.area_trend(losses, areas, scores), areas.flatten() > 0
    weights = torch.softmax(2 * torch.tanh(scores), dim=0)
    mean_of_all = (weights * losses[:, 0]).sum()
    for group in (full, ~full):
        mean_of_group = (weights * losses[:, 0])[group].sum() / weights[group].sum()
        level = mean_of_group - mean_of_all
        alone = pal.area_trend(losses[group], areas[group], scores[group])
        assert torch.allclose(trend[group], level + alone)


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


@pytest.mark.parametrize("share", [1.0, 1e-7])
def test_the_area_trend_is_the_same_for_objects_of_any_size(share):
    """A tenth of a millionth of a volume has a trend, too: areas count relative to the largest."""
    losses, labels, scores = losses_and_scores()
    areas = labels.double().mean(dim=(2, 3), keepdim=True)
    trend = pal.area_trend(losses, labels, scores)
    assert torch.allclose(pal.area_trend(losses, share * areas, scores), trend)
    assert torch.allclose(pal.area_trend(losses.float(), share * areas.float(), scores.float()),
                          trend.float(), atol=1e-4) and trend.abs().max() > 1e-2


# --------------------------------------------------------------------- lambda from labels' losses

def slow_two_groups(losses):
    """Try every split of the sorted logarithms, and take the one with the least variance within."""
    logs = sorted(math.log(loss) for loss in losses)
    mean = sum(logs) / len(logs)
    total = sum((x - mean) ** 2 for x in logs)
    best = (math.inf, 0)
    for k in range(1, len(logs)):
        within = 0
        for group in (logs[:k], logs[k:]):
            center = sum(group) / len(group)
            within += sum((x - center) ** 2 for x in group)
        best = min(best, (within, 1 - k / len(logs)))
    return best[1], 1 - best[0] / total


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_is_otsus_threshold(seed):
    losses = torch.rand(40, generator=torch.Generator().manual_seed(seed)) + 0.05
    assert pal.two_groups(losses) == pytest.approx(slow_two_groups(losses.tolist()), abs=1e-6)


def test_uniform_and_normal_logarithms_explain_what_the_docstring_says():
    evenly = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    assert pal.two_groups(evenly.exp())[1] == pytest.approx(3 / 4, abs=1e-3)
    normal = torch.distributions.Normal(0, 1).icdf(evenly)
    assert pal.two_groups(normal.exp())[1] == pytest.approx(2 / math.pi, abs=5e-3)


def test_rejected_share_is_that_of_a_group_of_high_losses():
    spread = torch.linspace(0.8, 1.25, 60)
    bad = torch.arange(60) < 15
    losses = torch.where(bad, 4 * spread, spread)
    assert pal.rejected_share(losses) == pal.rejected_share(losses[:, None]) == 0.25
    assert pal.rejected_share(torch.stack([losses, losses / 3], dim=1)) == 0.25
    assert pal.rejected_share(spread) == pal.rejected_share(torch.ones(9)) == 0
    half = torch.where(torch.arange(60) % 2 == 0, losses, math.nan)  # one process of two
    assert pal.rejected_share(half) == pytest.approx(8 / 60)  # of all 60 labels
    losses[45:] = math.nan  # but the second class is never empty
    assert pal.rejected_share(torch.stack([losses, torch.ones(60)], dim=1)) == 0.25


@pytest.mark.parametrize("losses", [torch.ones(0), torch.ones(1), torch.full((5, 2), math.nan),
                                    torch.tensor([1.0, 2.0, math.inf]),
                                    torch.tensor([-0.9, -0.8, -0.1])])  # minus Dice
def test_a_share_of_nothing_or_of_infinite_or_negative_losses_is_refused(losses):
    with pytest.raises(ValueError, match="two or more are needed, finite and >= 0"):
        pal.rejected_share(losses)


@pytest.mark.parametrize("tiny", [0.0, 1e-7])
def test_one_tiny_loss_or_a_class_that_says_nothing_makes_no_group(tiny):
    losses = torch.linspace(0.8, 1.25, 165)
    silent = torch.stack([losses, torch.full((165,), math.nan)], dim=1)
    losses[0] = tiny
    assert pal.rejected_share(losses) == pal.rejected_share(silent) == 0


@pytest.mark.parametrize("share, lam", [(0, 0), (0.01, 0.5), (0.25, 0.5), (0.3, 0.5), (0.4, 1),
                                        (0.5, 1.5), (0.6, 2), (1, 2)])
def test_auto_lambda_is_the_table_of_its_docstring(share, lam):
    assert pal.auto_lambda(share) == pytest.approx(lam)
    with pytest.raises(ValueError, match="a share of 50: 0 to 1 is needed"):
        pal.auto_lambda(50)


# -------------------------------------------------------------------------------------- the metric

def test_dice_by_sets():
    prediction = random_batch(n=3, size=6, seed=1)[1]
    truth = random_batch(n=3, size=6, seed=2)[1]
    values = pal.dice(prediction, truth)
    for i in range(3):
        for c in range(3):
            a = {tuple(position) for position in prediction[i, c].nonzero().tolist()}
            b = {tuple(position) for position in truth[i, c].nonzero().tolist()}
            assert values[i, c].item() == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def test_dice_of_empty_masks():
    empty = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    full = ~empty
    assert pal.dice(empty, empty) == 1 and pal.dice(full, full) == 1
    assert pal.dice(empty, full) == 0 and pal.dice(full, empty) == 0


# ------------------------------------------------------------------------------------ the networks

@pytest.mark.parametrize("classes, width, size", [(1, 4, (16, 32)), (3, 8, (32, 16))])
def test_unet_gives_logits_of_the_size_of_the_image(classes, width, size):
    torch.manual_seed(0)
    logits = pal.UNet(classes, width=width)(torch.randn(2, 1, *size))
    assert logits.shape == (2, classes, *size) and logits.min() < 0 < logits.max()


def test_every_layer_of_the_unet_takes_part():
    torch.manual_seed(0)
    unet = pal.UNet()
    unet(torch.randn(2, 1, 32, 32)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in unet.parameters())


@pytest.mark.parametrize("size", [(48, 97), (32, 100)])
def test_qam_takes_any_size_from_32_on(size):
    qam = pal.QAM().eval()
    torch.nn.init.normal_(qam.score.weight)
    images, labels = torch.randn(2, 1, *size), torch.rand(2, 3, *size) < 0.5
    assert qam(images, labels).isfinite().all() and qam(images, labels).std() > 0
    assert qam.features(torch.zeros(2, 4, *size)).shape == (2, 64, size[0] // 32, size[1] // 32)


def test_qam_starts_with_equal_weights_and_gives_scores_of_both_signs():
    torch.manual_seed(0)
    qam, images, labels = pal.QAM(), torch.randn(8, 1, 32, 32), torch.rand(8, 3, 32, 32) < 0.5
    assert qam.features[0][0].in_channels == 4
    assert torch.equal(qam(images, labels), torch.zeros(8))
    for sign in (-1, 1):
        torch.nn.init.constant_(qam.score.weight, float(sign))
        scores = qam(images, labels)
        assert scores.shape == (8,) and (sign * scores > 0).all()


def test_qam_sees_image_and_label():
    torch.manual_seed(0)
    qam = pal.QAM().eval()
    torch.nn.init.normal_(qam.score.weight)
    images, labels = torch.randn(1, 1, 32, 32), torch.rand(1, 3, 32, 32) < 0.5
    assert qam(images, labels) != qam(images + 1, labels)
    for c in range(3):
        other = labels.clone()
        other[:, c] = ~other[:, c]
        assert qam(images, labels) != qam(images, other)


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


# ----------------------------------------------- mistakes of those who call pal from their own code

def test_further_axes_of_losses_are_averaged():
    """As MONAI's (N, classes, 1, 1), or maps of losses (N, classes, H, W); one class needs none."""
    losses, labels, scores = losses_and_scores(classes=1)
    loss, _ = pal.pick_and_learn(losses, labels, scores)
    maps = losses[:, :, None, None] * torch.tensor([[0.5, 1.5], [0.0, 2.0]], dtype=torch.float64)
    for same in (losses[:, :, None, None], maps, losses[:, 0]):
        assert pal.pick_and_learn(same, labels, scores)[0].item() == pytest.approx(loss.item())


def test_volumes_are_images_of_more_rows():
    """Nothing in losses, trend and Dice depends on how the pixels lie."""
    logits, labels = random_batch()
    volume, volume_labels = logits.reshape(5, 3, 4, 8, 8), labels.reshape(5, 3, 4, 8, 8)
    losses, scores = pal.sample_losses(logits, labels), torch.zeros(5, dtype=torch.float64)
    assert torch.allclose(pal.sample_losses(volume, volume_labels), losses)
    assert torch.allclose(pal.area_trend(losses, volume_labels, scores),
                          pal.area_trend(losses, labels, scores))
    assert torch.equal(pal.dice(volume > 0, volume_labels), pal.dice(logits > 0, labels))


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
    "pal.pick_and_learn(losses, labels, scores[:, None])": r"scores of shape \(4, 1\)",
    "pal.area_trend(losses, labels[:1], scores)": r"losses of .*: tensor \(1, 3\) is needed",
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
    "pal.dice(logits, labels)": "dice takes bool masks, not torch.float64",
    "pal.pick_and_learn(losses[:2], labels[:2], scores[:2])": "mini-batch of 2: .* accumulate",
    # PyTorch's own words would be about something else
    "pal.sample_losses([logits, logits], labels)": "logits are list: a .* tensor is needed",
    "pal.sample_losses({'out': logits}, labels)": "logits are dict: a .* tensor is needed",
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
             "logits": random_batch(4, size=8)[0], "weights": pal.quality_weights(scores),
             "trend": pal.area_trend(losses, labels, scores), "images": torch.randn(4, 1, 32, 32),
             "masks": torch.ones(4, 3, 32, 32)}
    with pytest.raises((ValueError, TypeError), match=MISTAKES[call]):
        eval(call, names)


def test_equal_scores_without_gradient_are_the_baseline():
    """The reverse of losses without gradient beside scores with one is right."""
    losses, labels, scores = losses_and_scores()
    loss, weights = pal.pick_and_learn(losses, labels, torch.zeros_like(scores.detach()))
    loss.backward()
    assert torch.allclose(weights, torch.full_like(weights, 1 / 4))
    assert loss.item() == pytest.approx(losses.mean().item())  # a trend of mean 0 adds nothing


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_lie_between_0_and_1(dtype):
    logits, labels = random_batch(n=3, size=32)
    images, qam = torch.randn(3, 1, 32, 32), pal.QAM().eval()
    torch.nn.init.normal_(qam.score.weight)
    numbers = labels.to(dtype)
    assert torch.equal(pal.sample_losses(logits, numbers), pal.sample_losses(logits, labels))
    assert torch.equal(qam(images, numbers), qam(images, labels))
    for factor, message in {255: "0 to 255, .* labels > 0", 2: "0 to 2, .* PORTING.md"}.items():
        with pytest.raises(ValueError, match=message):
            pal.sample_losses(logits, factor * numbers)
        with pytest.raises(ValueError, match=message):
            qam(images, factor * numbers)
