"""pal.py in other people's training loops: every recipe runs here, and its lines are to be copied.

Recipes stand between "# recipe" and "# end"; what is around them makes the data and checks the
result against one process that has the whole mini-batch.
"""
import contextlib
import os

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import eval as evaluation
import pal
import train


def networks(classes=3, dims=2):
    """A small U-Net and QAM in float64, the same ones in every process, with scores that differ.

    eval(): batch normalisation then uses running statistics, as if SyncBatchNorm joined the parts.
    """
    torch.manual_seed(0)
    unet = pal.UNet(classes, width=2, depth=2, dims=dims).double().eval()
    qam = pal.QAM(classes, width=2, stages=2, dims=dims).double().eval()
    torch.nn.init.normal_(qam.score.weight)
    return unet, qam


def mini_batch(n=8, size=(16, 16)):
    """Images (n, 1, *size) in float64 and bool labels (n, 3, *size) of different areas."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, *size, generator=rng, dtype=torch.float64)
    shares = torch.linspace(0.1, 0.6, n).reshape(n, *[1] * (1 + len(size)))
    return images, torch.rand(n, 3, *size, generator=rng) < shares


def gradients(*modules):
    """All gradients of the networks in one vector."""
    return torch.cat([parameter.grad.flatten() for network in modules
                      for parameter in network.parameters()])


def exact_gradients(images, labels):
    """The gradients of U-Net and QAM when one process has the whole mini-batch."""
    unet, qam = networks()
    losses = pal.sample_losses(unet(images), labels)
    weights = pal.quality_weights(qam(images, labels))
    trend = pal.area_trend(losses, labels, weights)
    pal.pick_and_learn_loss(losses, weights, trend).backward()
    return gradients(unet), gradients(qam)


def difference(found, expected):
    """How far two vectors are apart, as a share of the expected one's length."""
    return ((found - expected).norm() / expected.norm()).item()


# ------------------------------------------------------------------------------- several processes

# recipe: several processes
def gather(part):
    """(N / processes, ...) of each process -> (N, ...), of which the own part has a gradient."""
    own = part.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)  # needs equal parts
    parts[torch.distributed.get_rank()] = part
    return torch.cat(parts)


def distributed_loss(unet, qam, images, labels):
    """Eq. (1) over the parts (images, labels) of all processes, ready for .backward()."""
    losses = gather(pal.sample_losses(unet(images), labels))
    weights = pal.quality_weights(gather(qam(images, labels)))
    areas = gather(labels.to(losses.dtype).mean(dim=(2, 3), keepdim=True))  # (N, classes, 1, 1)
    trend = pal.area_trend(losses, areas, weights)
    loss = pal.pick_and_learn_loss(losses, weights, trend)
    return loss * torch.distributed.get_world_size()  # DistributedDataParallel averages gradients
# end


def without_the_number_of_processes(unet, qam, images, labels):
    """A mistake: the last line of the recipe forgotten."""
    return distributed_loss(unet, qam, images, labels) / torch.distributed.get_world_size()


def softmax_per_process(unet, qam, images, labels):
    """A mistake: each process weighs its part by itself."""
    losses = pal.sample_losses(unet(images), labels)
    weights = pal.quality_weights(qam(images, labels))
    trend = pal.area_trend(losses, labels, weights)
    return pal.pick_and_learn_loss(losses, weights, trend)


def trend_per_process(unet, qam, images, labels):
    """A mistake: losses and scores are gathered, but each process fits its own area line."""
    part = pal.sample_losses(unet(images), labels)
    weights = pal.quality_weights(gather(qam(images, labels)))
    own = weights.detach().chunk(2)[torch.distributed.get_rank()]
    trend = gather(pal.area_trend(part, labels, own / own.sum()))
    return 2 * pal.pick_and_learn_loss(gather(part), weights, trend)


MISTAKES = (without_the_number_of_processes, softmax_per_process, trend_per_process)


def process(rank, folder):
    """One of two processes: saves the gradients that it finds with each variant of the loss."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, labels = mini_batch()
    own = slice(4 * rank, 4 * rank + 4)
    found = {}
    for variant in (distributed_loss, *MISTAKES):
        unet, qam = networks()
        unet_ddp, qam_ddp = DistributedDataParallel(unet), DistributedDataParallel(qam)
        loss = variant(unet_ddp, qam_ddp, images[own], labels[own])
        loss.backward()
        found[variant.__name__] = gradients(unet), gradients(qam)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # the other process may still need this one
    os._exit(0)  # an orderly end was seen to abort now and then, while gloo's threads still ran


def test_several_processes(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    unet, qam = exact_gradients(*mini_batch())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        unet_found, qam_found = found["distributed_loss"]
        assert difference(unet_found, unet) < 1e-13 and difference(qam_found, qam) < 1e-13
        for mistake in MISTAKES:
            assert difference(found[mistake.__name__][1], qam) > 0.1


# --------------------------------------------------------------------------- gradient accumulation

# recipe: gradient accumulation
def accumulated_step(unet, qam, images, labels, size):
    """Forward and backward pass of a mini-batch of which memory holds `size` samples at a time."""
    parts = list(zip(images.split(size), labels.split(size)))
    with torch.no_grad():  # first pass: losses and scores of all samples
        losses = torch.cat([pal.sample_losses(unet(image), label) for image, label in parts])
        scores = torch.cat([qam(image, label) for image, label in parts])
    scores.requires_grad_()
    weights = pal.quality_weights(scores)
    trend = pal.area_trend(losses, labels, weights)
    pal.pick_and_learn_loss(losses, weights, trend).backward()  # fills scores.grad
    weights, slopes = weights.detach().split(size), scores.grad.split(size)
    for (image, label), weight, slope in zip(parts, weights, slopes):  # second pass: gradients
        pal.pick_and_learn_loss(pal.sample_losses(unet(image), label), weight).backward()
        qam(image, label).backward(slope)
# end


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_gradient_accumulation(size):
    images, labels = mini_batch()
    unet, qam = networks()
    accumulated_step(unet, qam, images, labels, size)
    exact_unet, exact_qam = exact_gradients(images, labels)
    assert difference(gradients(unet), exact_unet) < 1e-13
    assert difference(gradients(qam), exact_qam) < 1e-13


def test_averaged_micro_batches_of_two_teach_the_qam_nothing():
    """The mistake that the recipe is for: a line explains two samples entirely."""
    images, labels = mini_batch()
    unet, qam = networks()
    for image, label in zip(images.split(2), labels.split(2)):
        losses = pal.sample_losses(unet(image), label)
        weights = pal.quality_weights(qam(image, label))
        trend = pal.area_trend(losses, label, weights)
        (pal.pick_and_learn_loss(losses, weights, trend) / 4).backward()
    exact_qam = exact_gradients(images, labels)[1]
    assert gradients(qam).norm() < 1e-9 * exact_qam.norm()


# ------------------------------------------------------------------------------- exclusive classes

# recipe: exclusive classes
def exclusive_losses(logits, label_map):
    """logits (N, classes, H, W), numbers of classes (N, H, W) -> losses and labels for the QAM."""
    labels = F.one_hot(label_map, logits.shape[1]).movedim(-1, 1)  # (N, classes, H, W)
    entropy = F.cross_entropy(logits, label_map, reduction="none")  # (N, H, W)
    return logits.shape[1] * entropy[:, None] * labels, labels  # the mean over classes is entropy
# end


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_exclusive_classes(size):
    rng = torch.Generator().manual_seed(2)
    images, label_map = mini_batch(5, size)[0], torch.randint(3, (5, *size), generator=rng)
    unet, qam = networks(dims=len(size))
    logits = unet(images)
    losses, labels = exclusive_losses(logits, label_map)
    weights = pal.quality_weights(qam(images, labels))
    trend = pal.area_trend(losses, labels, weights)
    loss = pal.pick_and_learn_loss(losses, weights, trend)
    loss.backward()
    by_hand = 0
    for i in range(5):
        chosen = torch.softmax(logits[i], dim=0).gather(0, label_map[i][None])
        by_hand += weights[i] * -chosen.log().mean()
    assert loss.item() == pytest.approx(by_hand.item())
    assert gradients(unet).norm() > 0 and gradients(qam).norm() > 0


def test_area_explains_all_entropy_of_a_network_that_knows_nothing():
    """What the split per class is for: with a constant softmax nothing is left for the QAM."""
    rng = torch.Generator().manual_seed(2)
    shares = torch.linspace(0.1, 0.8, 6)[:, None, None]
    label_map = (torch.rand(6, 16, 16, generator=rng) < shares).long()
    label_map += torch.rand(6, 16, 16, generator=rng) < shares
    constant = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)[:, None, None]
    losses, labels = exclusive_losses(constant.expand(6, -1, 16, 16), label_map)
    weights = torch.softmax(torch.arange(6.0, dtype=torch.float64), dim=0)
    per_sample = losses.mean(dim=(1, 2, 3))
    left = per_sample - pal.area_trend(losses, labels, weights)
    assert per_sample.std() > 0.1 and left.std() < 1e-12


# --------------------------------------------------------------------------------- 3D, AMP, compile

def test_3d():
    """dims=3 is all that a volume needs; noisy labels, which the losses betray, soon weigh less."""
    torch.manual_seed(0)
    images = torch.randn(8, 1, 8, 8, 8)
    labels = images > 0
    labels[4:] = torch.rand(4, 1, 8, 8, 8) < 0.5  # noise
    unet = pal.UNet(classes=1, width=4, depth=2, dims=3)
    qam = pal.QAM(classes=1, width=4, stages=2, dims=3)
    optimiser = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-2)
    for _ in range(30):
        losses = pal.sample_losses(unet(images), labels)
        weights = pal.quality_weights(qam(images, labels))
        trend = pal.area_trend(losses, labels, weights)
        optimiser.zero_grad()
        pal.pick_and_learn_loss(losses, weights, trend).backward()
        optimiser.step()
    assert weights[:4].sum() > 0.8


def test_mixed_precision():
    """Networks under autocast, .float() before the loss; without it there is an error."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 1, 32, 32), torch.rand(4, 3, 32, 32) < 0.3
    unet, qam = pal.UNet().eval(), pal.QAM().eval()
    torch.nn.init.normal_(qam.score.weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits, scores = unet(images), qam(images, labels)
    losses = pal.sample_losses(logits.float(), labels)
    weights = pal.quality_weights(scores.float())
    assert logits.dtype == scores.dtype == torch.bfloat16
    assert torch.allclose(losses, pal.sample_losses(unet(images), labels), rtol=0.02)
    assert torch.allclose(weights, pal.quality_weights(qam(images, labels)), rtol=0.05)
    with pytest.raises(TypeError, match="float"):
        pal.sample_losses(logits, labels)


def test_compiled_step():
    """torch.compile may take the whole step, without breaks; "eager" needs no compiler."""
    torch._dynamo.reset()
    images, labels = mini_batch()
    compiled, plain = networks(), networks()

    def step(unet, qam, images, labels):
        """The four lines of a training step."""
        losses = pal.sample_losses(unet(images), labels)
        weights = pal.quality_weights(qam(images, labels))
        return pal.pick_and_learn_loss(losses, weights, pal.area_trend(losses, labels, weights))
    torch.compile(step, backend="eager", fullgraph=True)(*compiled, images, labels).backward()
    step(*plain, images, labels).backward()
    assert torch.allclose(gradients(*compiled), gradients(*plain), atol=1e-12)


# --------------------------------------------------------------------------------------- the device

@contextlib.contextmanager
def other_device():
    """A device that is not the CPU: the GPU, or else a stand-in, "cpu:1", without values.

    Under FakeTensorMode PyTorch follows only shapes, types and devices. It raises an error where
    devices are mixed, as a GPU would, and where Python asks for a value, for which a GPU waits.
    The stand-in is not "cuda": a PyTorch built for the CPU cannot even index such tensors.
    """
    if torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        with FakeTensorMode():
            yield torch.device("cpu", 1)


def training_step(device, picking, reduced, planted=None):
    """A step on the device, from pictures to optimiser, and Dice; `planted` is on the CPU."""
    where = dict.fromkeys(("images", "labels", "weights", "trend", "truth"), device)
    where[planted] = torch.device("cpu")
    with device:
        unet, qam = pal.UNet(), pal.QAM()
        optimiser = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-3)
    pictures = torch.randint(256, (4, 32, 32), dtype=torch.uint8, device=where["images"])
    labels = torch.rand(4, 3, 32, 32, device=where["labels"]) < 0.3
    images, scores = pal.standardise(pictures), torch.zeros(4, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        logits = unet(images)
        if picking:
            scores = qam(images, labels)
    losses = pal.sample_losses(logits.float(), labels)
    weights = pal.quality_weights(scores.float()).to(where["weights"])
    trend = None
    if picking:
        trend = pal.area_trend(losses, labels, weights).to(where["trend"])
    loss = pal.pick_and_learn_loss(losses, weights, trend)
    loss.backward()
    optimiser.step()
    truth = torch.rand(4, 3, 32, 32, device=where["truth"]) < 0.3
    return loss, logits, pal.dice(logits > 0, truth)


@pytest.mark.parametrize("picking", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_training_step_stays_on_its_device(picking, reduced):
    with other_device() as device:
        for result in training_step(device, picking, reduced):
            assert result.device.type == device.type and result.device != torch.device("cpu")


@pytest.mark.parametrize("planted", ["images", "labels", "weights", "trend", "truth"])
def test_a_tensor_left_on_the_cpu_is_found(planted):
    """The test above can fail: with one tensor on the CPU there is an error."""
    with other_device() as device:
        with pytest.raises(RuntimeError, match="device|weight type"):
            training_step(device, picking=True, reduced=False, planted=planted)


@pytest.mark.parametrize("uniform", [False, True])
def test_train_epoch_stays_on_its_device(uniform):
    with other_device() as device:
        with device:
            unet, qam = pal.UNet(), pal.QAM()
            optimiser = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-3)
            images = torch.randint(256, (5, 32, 32), dtype=torch.uint8)
            labels = torch.rand(5, 3, 32, 32) < 0.3
            trusted = torch.rand(5) < 0.5 if uniform else None  # the oracle
        schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1)
        seen = train.train_epoch(unet, qam, optimiser, schedule, images, labels, batch=4, lam=2.0,
                                 rng=torch.Generator(), uniform=uniform, trusted=trusted)
        assert seen.shape == (3, 5) and seen.device == torch.device("cpu")
        for parameter in unet.parameters():
            assert parameter.grad.device == parameter.device != torch.device("cpu")
        assert evaluation.predict(unet, images).device == images.device
