"""The method against slow and obvious computations of the same quantities."""
import math

import pytest
import torch
import torch.nn.functional as F

import pal


def random_batch(n=5, classes=3, size=16, seed=0):
    """Logits and bool labels (n, classes, size, size)."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(n, classes, size, size, generator=rng, dtype=torch.float64),
            torch.rand(n, classes, size, size, generator=rng) < 0.3)


# ------------------------------------------------------------------------------ scores and weights

def test_overfitting_control_is_equation_2():
    for t in (-5.0, -0.3, 0.0, 0.7, 9.0):
        expected = 2 * (math.exp(t) - math.exp(-t)) / (math.exp(t) + math.exp(-t))
        bounded = pal.overfitting_control(torch.tensor(t), 2.0)
        assert bounded.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("lam", [0.5, 2.0, None])
def test_weights_are_a_softmax(lam):
    scores = torch.tensor([-1.5, 0.0, 0.2, 4.0], dtype=torch.float64)
    bounded = scores.tolist()
    if lam is not None:
        bounded = [lam * math.tanh(t) for t in bounded]
    total = sum(math.exp(s) for s in bounded)
    weights = pal.quality_weights(scores, lam)
    assert weights.tolist() == pytest.approx([math.exp(s) / total for s in bounded])
    assert weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("lam", [0.5, 2.0, 4.0])
def test_ratio_of_two_weights_never_exceeds_e_to_the_2_lambda(lam):
    scores = torch.tensor([-1e4, 1e4, 0.0, -30.0, 30.0], dtype=torch.float64)
    weights = pal.quality_weights(scores, lam)
    assert (weights.max() / weights.min()).item() == pytest.approx(math.exp(2 * lam))  # reached


def test_a_common_shift_of_the_scores_changes_nothing_in_softmax_but_much_in_tanh():
    scores = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(pal.quality_weights(scores + 7, None), pal.quality_weights(scores, None))
    shifted = pal.quality_weights(scores + 7, 2.0)
    assert torch.allclose(shifted, torch.ones(3, dtype=torch.float64) / 3, atol=1e-5)  # saturated
    assert not torch.allclose(pal.quality_weights(scores, 2.0), shifted, atol=0.1)


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
    weighted = pal.pick_and_learn_loss(losses, torch.tensor([0.75, 0.25]))
    assert weighted.item() == pytest.approx(0.75 * 2 + 0.25 * 6)
    uniform = pal.pick_and_learn_loss(losses, pal.quality_weights(torch.zeros(2)))
    assert uniform.item() == pytest.approx(4)  # the plain mean


@pytest.mark.parametrize("lam", [2.0, None])
def test_gradient_with_respect_to_the_scores(lam):
    """dLoss/dt_i = w_i (L_i - Loss) lam (1 - tanh^2 t_i), by hand and by finite differences."""
    losses = torch.tensor([[0.3], [1.2], [0.7], [2.0]], dtype=torch.float64)
    scores = torch.tensor([0.5, -0.2, 1.1, 0.0], dtype=torch.float64, requires_grad=True)
    loss = pal.pick_and_learn_loss(losses, pal.quality_weights(scores, lam))
    loss.backward()
    weights = pal.quality_weights(scores.detach(), lam)
    slope = 1
    if lam is not None:
        slope = lam * (1 - torch.tanh(scores.detach()) ** 2)
    assert torch.allclose(scores.grad, weights * (losses[:, 0] - loss.detach()) * slope)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = 1e-6
        above = pal.pick_and_learn_loss(losses, pal.quality_weights(scores.detach() + step, lam))
        below = pal.pick_and_learn_loss(losses, pal.quality_weights(scores.detach() - step, lam))
        assert scores.grad[i].item() == pytest.approx(((above - below) / 2e-6).item(), abs=1e-7)


def test_both_networks_learn_from_one_backward_pass():
    """The gradients of both networks are those of eq. (1) with the weights or the losses fixed."""
    torch.manual_seed(0)
    unet = pal.UNet(width=4, depth=2).double().eval()
    qam = pal.QAM(width=4, stages=2).double().eval()
    torch.nn.init.normal_(qam.score.weight, std=0.1)
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    labels = torch.rand(4, 3, 16, 16) < 0.3
    losses, scores = pal.sample_losses(unet(images), labels), qam(images, labels)
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    per_sample = losses.mean(dim=1)
    for_unet = (weights.detach() * per_sample).sum()
    paid = weights * (per_sample - trend - (weights * per_sample).sum())
    for_qam = (paid.detach() * pal.overfitting_control(scores)).sum()
    by_hand = torch.autograd.grad(for_unet, unet.parameters(), retain_graph=True)
    by_hand += torch.autograd.grad(for_qam, qam.parameters(), retain_graph=True)
    pal.pick_and_learn_loss(losses, weights, trend).backward()
    for parameter, gradient in zip([*unet.parameters(), *qam.parameters()], by_hand):
        assert torch.allclose(parameter.grad, gradient, atol=1e-14)
    assert sum(p.grad.abs().sum() for p in qam.parameters()) > 1e-4 and trend.abs().max() > 1e-4


def test_area_trend_is_subtracted_from_the_loss_that_the_qam_sees():
    logits, labels = random_batch()
    losses = pal.sample_losses(logits.requires_grad_(), labels)
    scores = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    assert not trend.requires_grad
    loss = pal.pick_and_learn_loss(losses, weights, trend)
    loss.backward()
    expected = weights * (losses.mean(dim=1) - trend - loss) * 2 * (1 - torch.tanh(scores) ** 2)
    assert torch.allclose(scores.grad, expected.detach()) and trend.abs().max() > 1e-3
    assert loss.item() == pytest.approx(pal.pick_and_learn_loss(losses, weights).item())


def test_area_trend_is_zero_where_areas_are_equal_or_labels_empty():
    losses = torch.rand(4, 2)
    for labels in (torch.zeros(4, 2, 8, 8), torch.ones(4, 2, 8, 8)):
        trend = pal.area_trend(losses, labels, torch.full((4,), 0.25))
        assert torch.equal(trend, torch.zeros(4))


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
        cauchy = 1 / (1 + distance ** 2 / (4 * spread))  # Cauchy's weight function
        root = (weights * cauchy).sqrt()
        fit = torch.linalg.lstsq(root[:, None] * design, (root * losses[:, c])[:, None])
        line = (design @ fit.solution)[:, 0]
        expected += (line - (weights * line).sum()) / 3
    trend = pal.area_trend(losses, labels, weights)
    assert torch.allclose(trend, expected)
    assert (weights * trend).sum().abs() < 1e-12  # so that the value of eq. (1) stays


def test_area_trend_is_not_bent_by_bad_labels_that_are_all_too_large():
    """Clean labels have loss 1 and areas near 0.2, a third has loss 2 and areas near 0.5."""
    areas = torch.cat([torch.linspace(0.15, 0.25, 20), torch.linspace(0.45, 0.55, 10)])
    labels = (torch.arange(1000) < 1000 * areas[:, None]).reshape(30, 1, 1, 1000)
    noisy = areas > 0.4
    losses = torch.where(noisy, 2.0, 1.0)
    weights = torch.where(noisy, 0.1, 1.0) / (20 + 0.1 * 10)  # the QAM trusts them less already
    centred = areas - (weights * areas).sum()
    slope = (weights * centred * losses).sum() / (weights * centred ** 2).sum()
    left = losses - pal.area_trend(losses[:, None], labels, weights)
    left_by_plain_line = losses - slope * centred
    gap = left[noisy].mean() - left[~noisy].mean()
    plain_gap = left_by_plain_line[noisy].mean() - left_by_plain_line[~noisy].mean()
    assert gap > 0.4 and gap > 2 * plain_gap > 0


def test_area_explains_all_bce_of_a_network_that_knows_nothing():
    """A constant prediction: BCE is exactly linear in area, and nothing is left for the QAM."""
    shares = torch.arange(1, 7)[:, None, None, None] / 20
    labels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) < shares
    logits = torch.full(labels.shape, -2.0, dtype=torch.float64)
    bce = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    bce = bce.mean(dim=(2, 3))
    weights = torch.softmax(torch.arange(6.0, dtype=torch.float64), dim=0)
    left = bce.mean(dim=1) - pal.area_trend(bce, labels, weights)
    assert bce.mean(dim=1).std() > 0.1
    assert left.std() < 1e-12


# -------------------------------------------------------------------------------------- the metric

def test_dice_by_sets():
    prediction = random_batch(n=3, size=6, seed=1)[1]
    truth = random_batch(n=3, size=6, seed=2)[1]
    values = pal.dice(prediction, truth)
    for i in range(3):
        for c in range(3):
            a, b = foreground(prediction[i, c]), foreground(truth[i, c])
            assert values[i, c].item() == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def foreground(mask):
    """The positions of a mask's pixels, as a set of tuples."""
    return {tuple(position) for position in mask.nonzero().tolist()}


def test_dice_of_empty_masks():
    empty = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    full = ~empty
    assert pal.dice(empty, empty) == 1 and pal.dice(full, full) == 1
    assert pal.dice(empty, full) == 0 and pal.dice(full, empty) == 0


# ------------------------------------------------------------------------------------ the networks

@pytest.mark.parametrize("classes, width, depth, size", [
    (1, 4, 2, (8, 12)), (3, 8, 4, (32, 16)), (20, 4, 1, (6, 6))])
def test_unet_gives_logits_of_the_size_of_the_image(classes, width, depth, size):
    torch.manual_seed(0)
    logits = pal.UNet(classes, width, depth)(torch.randn(2, 1, *size))
    assert logits.shape == (2, classes, *size)
    assert logits.min() < 0 < logits.max()


def test_unet_has_one_convolution_each_way_at_full_size_and_two_elsewhere():
    kernels = [p.shape for p in pal.UNet(depth=4).parameters() if p.ndim == 4 and p.shape[-1] == 3]
    assert len(kernels) == 1 + 2 * 4 + 2 * 3 + 1  # first, down, up, the last up


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


@pytest.mark.parametrize("size, near", [
    ((100, 96), "100 x 96 .* multiples of 16, and 100 .* 96 or 112"),
    ((16, 5), "16 x 5 .* and 5 .* 16 or 32"), ((0, 16), "and 0 .* 16 or 32")])
def test_sizes_that_do_not_divide_are_named_with_the_nearest_that_do(size, near):
    with pytest.raises(ValueError, match=near):
        pal.UNet(depth=4)(torch.randn(1, 1, *size))
    with pytest.raises(ValueError, match=near):
        pal.QAM(stages=4)(torch.randn(1, 1, *size), torch.zeros(1, 3, *size))


def test_size_error_names_all_lengths_of_a_volume():
    with pytest.raises(ValueError, match="32 x 48 x 40 .* and 40 .* 32 or 48"):
        pal.UNet(depth=4, dims=3)(torch.randn(1, 1, 32, 48, 40))


def test_size_error_survives_compilation():
    """backend="eager" needs no compiler, but traces the network in the same way."""
    torch._dynamo.reset()
    unet = pal.UNet(width=4, depth=2).eval()
    compiled, images = torch.compile(unet, backend="eager"), torch.randn(2, 1, 8, 12)
    assert torch.allclose(compiled(images), unet(images), atol=1e-6)
    with pytest.raises(ValueError, match="8 x 9 .* 8 or 12"):
        compiled(torch.randn(2, 1, 8, 9))


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
    """Labels with a square have twice the loss: a few steps of eq. (1) give them less weight."""
    torch.manual_seed(0)
    qam, images = pal.QAM(classes=1), torch.randn(8, 1, 32, 32)
    labels = torch.zeros(8, 1, 32, 32)
    labels[4:, :, 8:24, 8:24] = 1
    losses = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    optimiser = torch.optim.Adam(qam.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        pal.pick_and_learn_loss(losses, pal.quality_weights(qam(images, labels))).backward()
        optimiser.step()
    weights = pal.quality_weights(qam(images, labels))
    assert weights[:4].min() > 2 * weights[4:].max()


def central_slices(network, flat):
    """Gives a 3D network the weights of the 2D network `flat`, in the middle of its kernels."""
    for volume, plane in zip(network.parameters(), flat.parameters()):
        with torch.no_grad():
            if volume.ndim == 5:
                volume.zero_()
                volume[:, :, volume.shape[2] // 2] = plane
            else:
                volume.copy_(plane)


def test_3d_networks_do_to_equal_slices_what_2d_networks_do_to_one():
    torch.manual_seed(0)
    unet, qam = pal.UNet(width=4, depth=2).eval(), pal.QAM(width=4, stages=2).eval()
    torch.nn.init.normal_(qam.score.weight)
    unet_3d = pal.UNet(width=4, depth=2, dims=3).eval()
    qam_3d = pal.QAM(width=4, stages=2, dims=3).eval()
    central_slices(unet_3d, unet)
    central_slices(qam_3d, qam)
    images, labels = torch.randn(2, 1, 8, 12), torch.rand(2, 3, 8, 12) < 0.3
    volumes = images[:, :, None].expand(-1, -1, 4, -1, -1)
    volume_labels = labels[:, :, None].expand(-1, -1, 4, -1, -1)
    logits = unet_3d(volumes)
    assert logits.shape == (2, 3, 4, 8, 12)
    for z in range(4):
        assert torch.allclose(logits[:, :, z], unet(images), atol=1e-5)
    assert torch.allclose(qam_3d(volumes, volume_labels), qam(images, labels), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (4, 6, 8)])
def test_standardised_images_have_mean_0_and_standard_deviation_1(size):
    images = torch.randint(20, 200, (3, *size), dtype=torch.uint8)
    standardised = pal.standardise(images)
    assert standardised.shape == (3, 1, *size) and standardised.dtype == torch.float32
    for image, values in zip(images.double().flatten(1), standardised.flatten(1)):
        mean = image.sum() / len(image)
        deviation = ((image - mean).square().sum() / (len(image) - 1)).sqrt()
        assert torch.allclose(values.double(), (image - mean) / deviation, atol=1e-5)


# ----------------------------------------------- mistakes of those who call pal from their own code

def losses_and_scores(n=4, classes=3):
    """Losses (n, classes), bool labels (n, classes, 8, 8), scores (n,) with gradient."""
    logits, labels = random_batch(n, classes, size=8)
    scores = torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_()
    return pal.sample_losses(logits, labels), labels, scores


def value_and_gradient(losses, scores):
    """Eq. (1) and its gradient with respect to the scores."""
    loss = pal.pick_and_learn_loss(losses, pal.quality_weights(scores))
    return loss.item(), torch.autograd.grad(loss, scores)[0]


def test_further_axes_of_losses_are_averaged():
    """As MONAI's (N, classes, 1, 1), or maps of losses (N, classes, H, W)."""
    losses, labels, scores = losses_and_scores()
    value, gradient = value_and_gradient(losses, scores)
    assert value > 0.1 and gradient.abs().max() > 1e-4
    maps = losses[:, :, None, None] * torch.tensor([[0.5, 1.5], [0.0, 2.0]], dtype=torch.float64)
    weights = pal.quality_weights(scores)
    for same in (losses[:, :, None, None], maps, losses.mean(dim=1)):
        same_value, same_gradient = value_and_gradient(same, scores)
        assert same_value == pytest.approx(value)
        assert torch.allclose(same_gradient, gradient)
    for same in (losses[:, :, None, None], maps):
        trend = pal.area_trend(same, labels, weights)
        assert torch.allclose(trend, pal.area_trend(losses, labels, weights))


def test_losses_of_one_class_need_no_axis_for_it():
    losses, labels, scores = losses_and_scores(classes=1)
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses[:, 0], labels, weights)
    assert torch.equal(trend, pal.area_trend(losses, labels, weights)) and trend.abs().max() > 1e-3


def test_one_loss_for_the_whole_mini_batch_is_refused():
    losses, labels, scores = losses_and_scores()
    weights = pal.quality_weights(scores)
    with pytest.raises(ValueError, match='one per sample .* reduction="none"'):
        pal.pick_and_learn_loss(losses.mean(), weights)
    with pytest.raises(ValueError, match="one per sample"):
        pal.area_trend(losses.mean(), labels, weights)


def test_trend_and_weights_of_another_shape_are_refused():
    losses, labels, scores = losses_and_scores()
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    with pytest.raises(ValueError, match=r"trend of shape \(4, 1\): \(4,\) is needed"):
        pal.pick_and_learn_loss(losses, weights, trend[:, None])
    with pytest.raises(ValueError, match=r"weights of shape \(4, 1\)"):
        pal.pick_and_learn_loss(losses, weights[:, None], trend)
    with pytest.raises(ValueError, match=r"weights of shape \(4, 1\)"):
        pal.area_trend(losses, labels, weights[:, None])
    with pytest.raises(ValueError, match=r"losses of shape \(4, 3\): \(1, 3\) is needed"):
        pal.area_trend(losses, labels[:1], weights)
    with pytest.raises(ValueError, match=r"losses of shape \(4, 1\): \(4, 3\) is needed"):
        pal.area_trend(losses.mean(dim=1), labels, weights)
    with pytest.raises(ValueError, match=r"scores of shape \(4, 1\)"):
        pal.quality_weights(scores[:, None])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_labels_must_be_0_and_1(dtype):
    logits, labels = random_batch(n=2, size=8)
    images, qam, weights = torch.randn(2, 1, 8, 8), pal.QAM(stages=1).eval(), torch.ones(2) / 2
    torch.nn.init.normal_(qam.score.weight)
    losses, integers = pal.sample_losses(logits, labels), labels.to(dtype)
    assert torch.equal(pal.sample_losses(logits, integers), losses)
    assert torch.equal(qam(images, integers), qam(images, labels))
    assert torch.equal(pal.area_trend(losses, integers, weights),
                       pal.area_trend(losses, labels, weights))
    for wrong, message in ((255 * integers, "0 to 255: .* labels > 0"), (2 * integers, "0 to 2")):
        with pytest.raises(ValueError, match=message):
            pal.sample_losses(logits, wrong)
        with pytest.raises(ValueError, match=message):
            qam(images, wrong)
        with pytest.raises(ValueError, match=message):
            pal.area_trend(losses, wrong, weights)


def test_negative_labels_are_refused():
    logits, labels = random_batch(n=2, size=8)
    with pytest.raises(ValueError, match="-1 to 0"):
        pal.sample_losses(logits, -labels.int())


def test_masks_of_another_shape_are_refused():
    logits, labels = random_batch()
    for other in (labels[:1], labels[:, :1], labels.reshape(5, 3, 8, 32), labels[:, 0]):
        with pytest.raises(ValueError, match=r"\(5, 3, 16, 16\) is needed"):
            pal.sample_losses(logits, other)
        with pytest.raises(ValueError, match=r"\(5, 3, 16, 16\) is needed"):
            pal.dice(labels, other)
    with pytest.raises(ValueError, match=r"\(5, 16, 16\): \(N, classes, H, W\)"):
        pal.sample_losses(logits[:, 0], labels[:, 0])
    with pytest.raises(ValueError, match=r"\(5, 16, 16\): \(N, classes, H, W\)"):
        pal.dice(labels[:, 0], labels[:, 0])


def test_volumes_are_pictures_of_more_rows():
    """Nothing in losses, trend and Dice depends on how the pixels lie."""
    logits, labels = random_batch()
    volume, volume_labels = logits.reshape(5, 3, 4, 8, 8), labels.reshape(5, 3, 4, 8, 8)
    losses, weights = pal.sample_losses(logits, labels), torch.ones(5, dtype=torch.float64) / 5
    volume_losses = pal.sample_losses(volume, volume_labels)
    trend = pal.area_trend(losses, labels, weights)
    assert volume_losses.shape == (5, 3) and torch.allclose(volume_losses, losses)
    assert torch.allclose(pal.area_trend(losses, volume_labels, weights), trend)
    assert torch.equal(pal.dice(volume > 0, volume_labels), pal.dice(logits > 0, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_what_to_do(dtype):
    logits, labels = random_batch()
    losses, weights = pal.sample_losses(logits, labels), torch.ones(5) / 5
    with pytest.raises(TypeError, match=r"logits are .*float16: float32 .* \.float\(\)"):
        pal.sample_losses(logits.to(dtype), labels)
    with pytest.raises(TypeError, match="scores"):
        pal.quality_weights(torch.zeros(5, dtype=dtype))
    with pytest.raises(TypeError, match="losses"):
        pal.area_trend(losses.to(dtype), labels, weights)
    with pytest.raises(TypeError, match="losses"):
        pal.pick_and_learn_loss(losses.to(dtype), weights)


def test_learning_from_a_single_sample_is_refused_but_weighing_it_is_not():
    scores = torch.tensor([0.7], requires_grad=True)
    with pytest.raises(ValueError, match="one sample.*drop_last=True"):
        pal.quality_weights(scores)
    assert pal.quality_weights(scores.detach()).tolist() == [1]
    assert pal.quality_weights(torch.zeros(1), None).tolist() == [1]  # the baseline's


def test_area_trend_takes_areas_in_place_of_labels():
    losses, labels, scores = losses_and_scores()
    areas = labels.double().mean(dim=(2, 3), keepdim=True)  # (N, classes, 1, 1)
    weights = pal.quality_weights(scores)
    assert torch.allclose(pal.area_trend(losses, areas, weights),
                          pal.area_trend(losses, labels, weights))


def test_limits_of_the_area_trend():
    """The only label of another area is explained entirely; a hundred-millionth counts as equal."""
    losses = torch.tensor([1.0, 2.0, 3.0, 9.0], dtype=torch.float64)
    weights = torch.ones(4, dtype=torch.float64) / 4
    areas = torch.tensor([0.2, 0.2, 0.2, 0.3], dtype=torch.float64).reshape(4, 1, 1, 1)
    left = losses - pal.area_trend(losses, areas, weights)
    assert left[3].item() == pytest.approx(left[:3].mean().item())  # 9 looks like 1, 2, 3
    nearly_equal = 0.2 + 1e-8 * (areas - 0.2)
    assert pal.area_trend(losses, nearly_equal, weights).abs().max() < 1e-3


# ------------------------------------------------------------------ lambda that fits the noise

def test_contradicted_share_counts_labels_that_both_networks_reject():
    losses = torch.tensor([0.2] + [0.29] * 4 + [0.31] * 4 + [5.0])  # the best tenth: 0.2
    scores = torch.tensor([1.0, -1, -1, -1, -1, -0.56, -0.56, -0.54, 1, -1])
    counted = 0
    for score, loss in zip(scores.tolist(), losses.tolist()):
        if math.tanh(score) < -0.5 and loss > 1.5 * 0.2:
            counted += 1
    assert counted == 3
    assert pal.contradicted_share(scores, losses) == pytest.approx(0.3)


def test_nothing_is_contradicted_where_losses_are_equal_or_scores_positive():
    assert pal.contradicted_share(-torch.ones(7), torch.ones(7)) == 0
    assert pal.contradicted_share(torch.ones(7), torch.arange(7.0)) == 0


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_fitting_lambda_leaves_bad_labels_a_seventh_of_the_weight_or_less(share):
    lam = pal.fitting_lambda(share, 1.0)
    bad = share * math.exp(-lam)
    assert bad / (bad + (1 - share) * math.exp(lam)) < 1 / 7


@pytest.mark.parametrize("share, progress, lam", [
    (0, 0, 1.5), (0, 0.5, 1), (0, 1, 0.5), (0.3, 1, 0.5), (0.5, 0, 1.5), (0.5, 1, 1.5),
    (0.55, 0, 1.75), (0.6, 1, 2), (1, 0, 2)])
def test_fitting_lambda_lies_between_a_falling_line_and_the_papers_2(share, progress, lam):
    assert pal.fitting_lambda(share, progress) == pytest.approx(lam)
