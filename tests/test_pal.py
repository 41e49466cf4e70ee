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


# ----------------------------------------------------------------------------------------------- scores and weights

def test_overfitting_control_is_equation_2():
    for t in (-5.0, -0.3, 0.0, 0.7, 9.0):
        expected = 2 * (math.exp(t) - math.exp(-t)) / (math.exp(t) + math.exp(-t))
        assert pal.overfitting_control(torch.tensor(t), 2.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_weights_are_a_softmax(lam):
    scores = torch.tensor([-1.5, 0.0, 0.2, 4.0], dtype=torch.float64)
    bounded = [t if lam is None else lam * math.tanh(t) for t in scores.tolist()]
    total = sum(math.exp(s) for s in bounded)
    weights = pal.quality_weights(scores, lam)
    assert weights.tolist() == pytest.approx([math.exp(s) / total for s in bounded])
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("lam", [0.5, 2.0, 4.0])
def test_ratio_of_two_weights_never_exceeds_e_to_the_2_lambda(lam):
    weights = pal.quality_weights(torch.tensor([-1e4, 1e4, 0.0, -30.0, 30.0], dtype=torch.float64), lam)
    assert (weights.max() / weights.min()).item() == pytest.approx(math.exp(2 * lam))  # reached


def test_a_common_shift_of_the_scores_changes_nothing_in_softmax_but_much_in_tanh():
    scores = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(pal.quality_weights(scores + 7, None), pal.quality_weights(scores, None))
    shifted = pal.quality_weights(scores + 7, 2.0)
    assert torch.allclose(shifted, torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-5)  # saturated: nearly uniform
    assert not torch.allclose(pal.quality_weights(scores, 2.0), shifted, atol=0.1)


# --------------------------------------------------------------------------------------------------------- the loss

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
    assert pal.pick_and_learn_loss(losses, torch.tensor([0.75, 0.25])).item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert pal.pick_and_learn_loss(losses, pal.quality_weights(torch.zeros(2))).item() == pytest.approx(4)  # plain mean


@pytest.mark.parametrize("lam", [2.0, None])
def test_gradient_with_respect_to_the_scores(lam):
    """dLoss/dt_i = w_i (L_i - Loss) lam (1 - tanh^2 t_i), by hand and by finite differences."""
    losses = torch.tensor([[0.3], [1.2], [0.7], [2.0]], dtype=torch.float64)
    scores = torch.tensor([0.5, -0.2, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    loss = pal.pick_and_learn_loss(losses, pal.quality_weights(scores, lam))
    loss.backward()
    weights = pal.quality_weights(scores.detach(), lam)
    slope = 1 if lam is None else lam * (1 - torch.tanh(scores.detach()) ** 2)
    assert torch.allclose(scores.grad, weights * (losses[:, 0] - loss.detach()) * slope)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-6
        above, below = (pal.pick_and_learn_loss(losses, pal.quality_weights(scores.detach() + s, lam))
                        for s in (step, -step))
        assert scores.grad[i].item() == pytest.approx(((above - below) / 2e-6).item(), abs=1e-7)


def test_both_networks_learn_from_one_backward_pass():
    """The gradients of both networks are those of eq. (1), written out with the weights or the losses held fixed."""
    torch.manual_seed(0)
    unet, qam = pal.UNet(width=4, depth=2).double().eval(), pal.QAM(width=4, stages=2).double().eval()
    torch.nn.init.normal_(qam.score.weight, std=0.1)
    images, labels = torch.randn(4, 1, 16, 16, dtype=torch.float64), torch.rand(4, 3, 16, 16) < 0.3
    losses, scores = pal.sample_losses(unet(images), labels), qam(images, labels)
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    by_hand = torch.autograd.grad((weights.detach() * losses.mean(dim=1)).sum(), unet.parameters(), retain_graph=True)
    paid = weights.detach() * (losses.mean(dim=1) - trend - (weights * losses.mean(dim=1)).sum()).detach()
    by_hand += torch.autograd.grad((paid * pal.overfitting_control(scores)).sum(), qam.parameters(), retain_graph=True)
    pal.pick_and_learn_loss(losses, weights, trend).backward()
    for parameter, gradient in zip([*unet.parameters(), *qam.parameters()], by_hand):
        assert torch.allclose(parameter.grad, gradient, atol=1e-14)
    assert sum(p.grad.abs().sum() for p in qam.parameters()) > 1e-4 and trend.abs().max() > 1e-4


def test_area_trend_is_subtracted_from_the_loss_that_the_qam_sees():
    logits, labels = random_batch()
    losses, scores = pal.sample_losses(logits, labels), torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    loss = pal.pick_and_learn_loss(losses, weights, trend)
    loss.backward()
    expected = weights * (losses.mean(dim=1) - trend - loss) * 2 * (1 - torch.tanh(scores) ** 2)
    assert torch.allclose(scores.grad, expected.detach()) and trend.abs().max() > 1e-3
    assert loss.item() == pytest.approx(pal.pick_and_learn_loss(losses, weights).item())


def test_area_trend_is_zero_where_areas_are_equal_or_labels_empty():
    losses = torch.rand(4, 2)
    for labels in (torch.zeros(4, 2, 8, 8), torch.ones(4, 2, 8, 8)):
        assert torch.equal(pal.area_trend(losses, labels, torch.full((4,), 0.25)), torch.zeros(4))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="one per sample"):
        pal.pick_and_learn_loss(torch.rand(4, 3), torch.full((4, 1), 0.25))


def test_default_lambda_is_the_papers():
    weights = pal.quality_weights(torch.tensor([-9.0, 9.0]))
    assert (weights[1] / weights[0]).item() == pytest.approx(math.exp(4))


def test_area_trend_is_a_robust_least_squares_line_per_class():
    logits, labels = random_batch(n=6, size=8)
    weights = torch.softmax(torch.linspace(-1, 2, 6, dtype=torch.float64), dim=0)
    losses, areas = pal.sample_losses(logits, labels), labels.double().mean(dim=(2, 3))
    expected = torch.zeros(6, dtype=torch.float64)
    for c in range(3):
        design = torch.stack([areas[:, c], torch.ones(6, dtype=torch.float64)], dim=1)
        distance = areas[:, c] - (weights * areas[:, c]).sum()
        spread = (weights * distance ** 2).sum()
        root = (weights / (1 + distance ** 2 / (4 * spread))).sqrt()[:, None]  # Cauchy's weight function
        line = (design @ torch.linalg.lstsq(root * design, root * losses[:, c:c + 1]).solution).flatten()
        expected += (line - (weights * line).sum()) / 3
    trend = pal.area_trend(losses, labels, weights)
    assert torch.allclose(trend, expected)
    assert (weights * trend).sum().abs() < 1e-12  # so that the value of eq. (1) stays


def test_area_trend_is_not_bent_by_bad_labels_that_are_all_too_large():
    """Clean labels of loss 1 and areas around 0.2, a third of areas around 0.5 and loss 2: what is left must tell."""
    areas = torch.cat([torch.linspace(0.15, 0.25, 20), torch.linspace(0.45, 0.55, 10)])
    labels = (torch.arange(1000) < 1000 * areas[:, None]).reshape(30, 1, 1, 1000)
    losses, noisy = torch.where(areas > 0.4, 2.0, 1.0)[:, None], areas > 0.4
    weights = torch.where(noisy, 0.1, 1.0) / (20 + 0.1 * 10)  # the QAM trusts them less already
    centred = areas - (weights * areas).sum()
    line = (weights * centred * losses[:, 0]).sum() / (weights * centred ** 2).sum() * centred  # not robust
    gap, plain_gap = (left[noisy].mean() - left[~noisy].mean() for left in
                      (losses[:, 0] - pal.area_trend(losses, labels, weights), losses[:, 0] - line))
    assert gap > 0.4 and gap > 2 * plain_gap > 0


def test_area_explains_all_bce_of_a_network_that_knows_nothing():
    """A constant prediction: BCE is exactly linear in area, so that nothing is left to pay the QAM for."""
    shares = torch.arange(1, 7)[:, None, None, None] / 20
    labels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) < shares
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.full(labels.shape, -2.0, dtype=torch.float64), labels.double(), reduction="none").mean(dim=(2, 3))
    left = bce.mean(dim=1) - pal.area_trend(bce, labels, torch.softmax(torch.arange(6.0, dtype=torch.float64), dim=0))
    assert bce.mean(dim=1).std() > 0.1
    assert left.std() < 1e-12


# ------------------------------------------------------------------------------------------------------- the metric

def test_dice_by_sets():
    prediction, truth = random_batch(n=3, size=6, seed=1)[1], random_batch(n=3, size=6, seed=2)[1]
    values = pal.dice(prediction, truth)
    for i in range(3):
        for c in range(3):
            a, b = (set(map(tuple, mask[i, c].nonzero().tolist())) for mask in (prediction, truth))
            assert values[i, c].item() == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def test_dice_of_empty_masks():
    empty, full = torch.zeros(1, 1, 2, 2, dtype=torch.bool), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    pairs = ((empty, empty), (empty, full), (full, empty), (full, full))
    assert [pal.dice(a, b).item() for a, b in pairs] == [1, 0, 0, 1]


# ------------------------------------------------------------------------------------------------------ the networks

@pytest.mark.parametrize("classes, width, depth, size", [(1, 4, 2, (8, 12)), (3, 8, 4, (32, 16)), (20, 4, 1, (6, 6))])
def test_unet_gives_logits_of_the_size_of_the_image(classes, width, depth, size):
    logits = pal.UNet(classes, width, depth)(torch.randn(2, 1, *size))
    assert logits.shape == (2, classes, *size)
    assert logits.min() < 0 < logits.max()


def test_skip_connections_carry_detail():
    """One pixel of noise on the image changes the logits beside it far more than elsewhere."""
    torch.manual_seed(0)
    unet, images = pal.UNet(classes=1, depth=3).eval(), torch.zeros(1, 1, 64, 64)
    images[0, 0, 32, 32] = 5
    change = (unet(images) - unet(torch.zeros(1, 1, 64, 64))).abs()[0, 0]
    assert change[30:35, 30:35].mean() > 5 * change.mean()


def test_qam_pools_in_every_stage():
    assert pal.QAM(stages=5).features(torch.zeros(2, 4, 64, 96)).shape == (2, 64, 2, 3)


def test_dice_refuses_probabilities():
    with pytest.raises(TypeError, match="bool"):
        pal.dice(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2) > 0.5)


@pytest.mark.parametrize("network, size, near", [
    (lambda x: pal.UNet(depth=4)(x), (100, 96), "96 or 112"), (lambda x: pal.UNet(depth=4)(x), (16, 5), "use 16"),
    (lambda x: pal.QAM(stages=5)(x, x.expand(-1, 3, -1, -1)), (64, 48), "32 or 64")])
def test_sizes_that_do_not_divide_are_named_with_the_nearest_that_do(network, size, near):
    with pytest.raises(ValueError, match=near):
        network(torch.randn(1, 1, *size))


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


def test_qam_learns_to_prefer_the_cheap_samples():
    """Labels with a square have twice the loss: a few steps of eq. (1) must give them less weight."""
    torch.manual_seed(0)
    qam, images = pal.QAM(classes=1), torch.randn(8, 1, 32, 32)
    labels = torch.zeros(8, 1, 32, 32)
    labels[4:, :, 8:24, 8:24] = 1
    losses, optimiser = torch.tensor([[1.0]] * 4 + [[2.0]] * 4), torch.optim.Adam(qam.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        pal.pick_and_learn_loss(losses, pal.quality_weights(qam(images, labels))).backward()
        optimiser.step()
    weights = pal.quality_weights(qam(images, labels))
    assert weights[:4].min() > 2 * weights[4:].max()
