"""pal.py in other people's training loops: the blocks of PORTING.md, run as printed."""
import contextlib
import os
import re

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import data
import pal
import train

PAGE = (ROOT / ".github" / "PORTING.md").read_text(encoding="utf-8")
LOOP, *RECIPES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
for recipe in RECIPES:
    exec(recipe)  # gather, distributed_loss, accumulated_step, exclusive_losses, note_losses


def networks(classes=3):
    """A small U-Net and QAM in float64, the same ones in every process, with scores that differ.

    eval(): batch normalization then uses running statistics, as if SyncBatchNorm joined the parts.
    """
    torch.manual_seed(0)
    unet, qam = pal.UNet(classes, width=2).double().eval(), pal.QAM(classes).double().eval()
    torch.nn.init.normal_(qam.score.weight)
    return unet, qam


def mini_batch(n=8):
    """Images (n, 1, 32, 32) in float64 and bool labels (n, 3, 32, 32) of different areas."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, 32, 32, generator=rng, dtype=torch.float64)
    shares = torch.linspace(0.1, 0.6, n).reshape(n, 1, 1, 1)
    return images, torch.rand(n, 3, 32, 32, generator=rng) < shares


def gradients(*modules):
    """All gradients of the networks in one vector."""
    return torch.cat([parameter.grad.flatten() for network in modules
                      for parameter in network.parameters()])


def exact_gradients(images, labels):
    """The gradients of U-Net and QAM when one process has the whole mini-batch."""
    unet, qam = networks()
    losses = pal.sample_losses(unet(images), labels)
    pal.pick_and_learn(losses, labels, qam(images, labels))[0].backward()
    return gradients(unet), gradients(qam)


def difference(vector, expected):
    """How far two vectors are apart, as a share of the expected one's length."""
    return ((vector - expected).norm() / expected.norm()).item()


# ------------------------------------------------------------------------------ the training loop

def test_the_training_loop_tells_clean_from_noisy_labels(capsys):
    torch.manual_seed(0)
    images, masks = data.phantoms(64, 3, size=64)
    noisy, operation, _ = data.corrupt_labels(masks, 0.5, (3, 4), seed=1)
    images, labels = torch.from_numpy(images)[:, None], torch.from_numpy(noisy)
    dataset = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, 16, shuffle=True, drop_last=True)
    names = {"torch": torch, "pal": pal, "my_unet": pal.UNet(), "loader": loader, "epochs": 24}
    exec(LOOP, names)
    scores = names["qam"].eval()(pal.standardize(images), labels)
    clean = torch.tensor([name == "" for name in operation])
    assert (scores[clean][:, None] > scores[~clean]).float().mean() > 0.8  # AUROC
    spread = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert spread[0] < 1.2 and spread[-1] > 5  # weights leave 1/N


def test_weights_stay_equal_if_the_loss_is_built_from_the_returned_weights(capsys):
    """What the page says one sees: largest / smallest stays 1.0, since the QAM learns nothing."""
    right = "loss.backward()"
    assert right in LOOP
    for line in (right, "pal.weighted_loss(losses, weights).backward()"):
        names = {"torch": torch, "pal": pal, "my_unet": pal.UNet(width=2), "epochs": 3,
                 "loader": [mini_batch()] * 4}
        exec(LOOP.replace(right, line), names)
        assert capsys.readouterr().out.endswith("smallest 1.0\n") == (line != right)


def test_a_nan_loss_spoils_the_qam_for_good_and_one_can_see_it_before():
    unet, qam = networks()
    images, labels = mini_batch()
    images_with_nan = images.index_fill(0, torch.tensor(3), torch.nan)
    losses = pal.sample_losses(unet(images_with_nan), labels)
    loss = pal.pick_and_learn(losses, labels, qam(images, labels))[0]
    assert losses.isnan().any(dim=1).sum() == 1 and not loss.isfinite()
    loss.backward()
    assert gradients(qam).isnan().all()


def test_the_page_tells_what_no_check_can_see():
    for words in ("shuffle=True", "gather index and losses first", "the QAM sees predictions",
                  "pick_and_learn(losses=..., labels=..., scores=...)", "the sum of its rates",
                  "once, halfway", "pixels to ignore (255)", "loss.isfinite()",
                  "loss built from the returned weights", "`standardize` in a dataset"):
        assert words in PAGE.replace("\n", " ")


def test_note_losses():
    all_losses, labels = torch.full((5, 2), torch.nan), torch.zeros(2, 2, 4, 4)
    labels[0, 0, 0, 0] = labels[1, 1] = 1  # of the second sample, the first class is empty
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    note_losses(all_losses, torch.tensor([4, 1]), losses, labels)
    assert all_losses[4, 0] == 1 and all_losses[1, 1] == 4 and all_losses.isnan().sum() == 8


# ------------------------------------------------------------------------------- several processes

class SumGradients(torch.autograd.Function):
    """What Lightning's all_gather(sync_grads=True) does: gradients of all processes are added."""

    @staticmethod
    def forward(context, part):
        parts = [torch.empty_like(part) for _ in range(2)]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(2)[torch.distributed.get_rank()]


def gathered_loss(unet, qam, images, labels, collect=SumGradients.apply):
    """The recipe with another gather, and without the factor."""
    losses, scores = pal.sample_losses(unet(images), labels), qam(images, labels)
    areas = labels.double().mean(dim=(2, 3), keepdim=True)
    return pal.pick_and_learn(collect(losses), gather(areas), collect(scores))[0]


def without_the_factor(unet, qam, images, labels):
    """A mistake: our gather, but the loss not multiplied by the number of processes."""
    return gathered_loss(unet, qam, images, labels, gather)


def per_process(unet, qam, images, labels):
    """A mistake: each process weighs its part by itself."""
    losses = pal.sample_losses(unet(images), labels)
    return pal.pick_and_learn(losses, labels, qam(images, labels))[0]


def process(rank, folder):
    """One of two processes: save the gradients that it gets with each variant of the loss."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, labels = mini_batch()
    own = slice(4 * rank, 4 * rank + 4)
    results = {}
    for variant in (distributed_loss, gathered_loss, without_the_factor, per_process):
        unet, qam = networks()
        unet_ddp, qam_ddp = DistributedDataParallel(unet), DistributedDataParallel(qam)
        variant(unet_ddp, qam_ddp, images[own], labels[own]).backward()
        results[variant.__name__] = gradients(unet), gradients(qam)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # the other process may still need this one
    os._exit(0)  # an orderly end was seen to abort now and then, while gloo's threads still ran


def test_several_processes(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    exact = exact_gradients(*mini_batch())
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for right in ("distributed_loss", "gathered_loss"):
            for gradient, expected in zip(results[right], exact):
                assert difference(gradient, expected) < 1e-13
        for wrong in ("without_the_factor", "per_process"):
            assert difference(results[wrong][1], exact[1]) > 0.1


def test_one_process_takes_the_same_path():
    unet, qam = networks()
    distributed_loss(unet, qam, *mini_batch()).backward()
    assert difference(gradients(unet, qam), torch.cat(exact_gradients(*mini_batch()))) == 0


# --------------------------------------------------------------------------- gradient accumulation

@pytest.mark.parametrize("size", [1, 3, 8])
def test_gradient_accumulation(size):
    images, labels = mini_batch()
    unet, qam = networks()
    accumulated_step(unet, qam, images, labels, size)
    assert difference(gradients(unet, qam), torch.cat(exact_gradients(images, labels))) < 1e-13


# ------------------------------------------------------------------------------- exclusive classes

@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_exclusive_classes_are_cross_entropy(dtype):
    rng = torch.Generator().manual_seed(2)
    images, label_map = mini_batch(5)[0], torch.randint(3, (5, 32, 32), generator=rng).to(dtype)
    label_map[:, :9], label_map[4, :20] = 255, 255
    unet, qam = networks()
    logits = unet(images)
    losses, labels = exclusive_losses(logits, label_map)
    assert labels.dtype == torch.bool and not labels[:, :, :9].any()
    loss, weights = pal.pick_and_learn(losses, labels, qam(images, labels), lam=1.0)
    trend = pal.area_trend(losses, labels, qam(images, labels))
    by_hand = -(weights * trend).sum()
    for i in range(5):
        valid = label_map[i] != 255
        logs = torch.log_softmax(logits[i][:, valid], dim=0)
        by_hand = by_hand - weights[i] * logs.gather(0, label_map[i][valid][None].long()).mean()
    assert loss.item() == pytest.approx(by_hand.item())
    loss.backward()
    assert gradients(unet).norm() > 0 and gradients(qam).norm() > 0


# ------------------------------------------------------------ other libraries, AMP, compilation, 3D

class MetaTensor(torch.Tensor):
    """As MONAI's: a subclass of Tensor."""


def test_monais_losses_add_up():
    """Dice as (N, classes, 1, 1), cross-entropy as (N, classes, H, W); labels of a subclass."""
    images, labels = mini_batch(4)
    unet, qam = networks()
    masks, logits = (255 * labels.double()).as_subclass(MetaTensor) > 0, unet(images)
    entropy = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    losses, scores = pal.sample_losses(logits, masks), qam(images, masks)
    dice = losses[:, :, None, None] - entropy.mean(dim=(2, 3), keepdim=True)
    both = pal.per_class(dice) + pal.per_class(entropy)
    expected = pal.pick_and_learn(losses, labels, scores)[0].item()
    assert pal.pick_and_learn(both, masks, scores)[0].item() == pytest.approx(expected)


def test_mixed_precision():
    """Networks under autocast, .float() before the loss."""
    torch.manual_seed(0)
    images, labels = torch.randn(4, 1, 32, 32), torch.rand(4, 3, 32, 32) < 0.3
    unet, qam = pal.UNet().eval(), pal.QAM().eval()
    torch.nn.init.normal_(qam.score.weight)
    with torch.autocast("cpu", torch.bfloat16):
        logits, scores = unet(images), qam(images, labels)
    losses = pal.sample_losses(logits.float(), labels)
    weights = pal.pick_and_learn(losses, labels, scores.float())[1]
    assert logits.dtype == scores.dtype == torch.bfloat16
    assert torch.allclose(losses, pal.sample_losses(unet(images), labels), rtol=0.02)
    assert torch.allclose(weights, pal.quality_weights(qam(images, labels)), rtol=0.05)


@pytest.mark.parametrize("exclusive", [False, True])
def test_compiled_step(exclusive):
    """torch.compile may take the whole step, without breaks; "eager" needs no compiler."""
    torch._dynamo.reset()
    images, labels = mini_batch()
    compiled, plain = networks(), networks()

    def step(unet, qam, images, labels):
        if exclusive:
            losses, labels = exclusive_losses(unet(images), labels.sum(dim=1).clamp_max(2))
        else:
            losses = pal.sample_losses(unet(images), labels)
        return pal.pick_and_learn(losses, labels, qam(images, labels))[0]

    torch.compile(step, backend="eager", fullgraph=True)(*compiled, images, labels).backward()
    step(*plain, images, labels).backward()
    assert torch.allclose(gradients(*compiled), gradients(*plain), atol=1e-12)


def test_a_compiled_step_does_not_take_integers():
    """Values cannot be looked at while compiling: 0 to 255 would be taken as they are."""
    torch._dynamo.reset()
    images, labels = mini_batch()
    step = torch.compile(pal.sample_losses, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="bool or float is needed while compiling"):
        step(images.expand(8, 3, 32, 32), 255 * labels.byte())


VOLUMES = {}
exec((ROOT / "pal.py").read_text(encoding="utf-8").replace("2d", "3d"), VOLUMES)


def test_2d_replaced_by_3d_is_the_3d_version():
    """Noisy labels of volumes, which the losses betray, soon weigh less."""
    torch.manual_seed(0)
    images = VOLUMES["standardize"](torch.randint(256, (8, 1, 32, 32, 32), dtype=torch.uint8))
    labels = images > 0
    labels[4:] = torch.rand(4, 1, 32, 32, 32) < 0.5  # noise
    unet, qam = VOLUMES["UNet"](classes=1, width=2), VOLUMES["QAM"](classes=1)
    optimizer = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=2e-2)
    for _ in range(15):
        losses = VOLUMES["sample_losses"](unet(images), labels)
        loss, weights = VOLUMES["pick_and_learn"](losses, labels, qam(images, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weights[:4].sum() > 0.7


def test_a_thin_axis_and_single_slices_are_refused_in_3d():
    qam, thin = VOLUMES["QAM"](), torch.randn(2, 1, 28, 64, 64)
    with pytest.raises(ValueError, match="28, 64, 64.*each side .* 32 or more for the QAM"):
        qam(thin, torch.zeros(2, 3, 28, 64, 64))
    with pytest.raises(ValueError, match="in 3D with D, is needed"):
        qam(thin[:, :, 0], torch.zeros(2, 3, 64, 64))


# --------------------------------------------------------------------------------------- the device

@contextlib.contextmanager
def other_device():
    """A device that is not the CPU: the GPU, or else a stand-in, "cpu:1", without values.

    Under FakeTensorMode PyTorch follows only shapes, types and devices. It raises an error if
    devices are mixed, as a GPU would, and if Python asks for a value, for which a GPU waits.
    The stand-in is not "cuda": a PyTorch built for the CPU cannot even index such tensors.
    """
    if torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        with FakeTensorMode():
            yield torch.device("cpu", 1)


def training_step(device, reduced, planted=None):
    """A step on the device, from images to optimizer, and Dice; `planted` is on the CPU."""
    place = dict.fromkeys(("images", "labels", "scores", "truth"), device)
    place[planted] = torch.device("cpu")
    with device:
        unet, qam = pal.UNet(), pal.QAM()
        optimizer = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-3)
    images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8, device=place["images"])
    labels = torch.rand(4, 3, 32, 32, device=place["labels"]) < 0.3
    images = pal.standardize(images)
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        logits, scores = unet(images), qam(images, labels).to(place["scores"])
    losses = pal.sample_losses(logits.float(), labels)
    loss, weights = pal.pick_and_learn(losses, labels, scores.float())
    loss.backward()
    optimizer.step()
    truth = torch.rand(4, 3, 32, 32, device=place["truth"]) < 0.3
    return loss, weights, logits, pal.dice(logits > 0, truth)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_training_step_stays_on_its_device(reduced):
    with other_device() as device:
        for result in training_step(device, reduced):
            assert result.device.type == device.type and result.device != torch.device("cpu")
        for planted in ("images", "labels", "scores", "truth"):  # the test can fail
            with pytest.raises(RuntimeError, match="device|weight type"):
                training_step(device, reduced, planted)


@pytest.mark.parametrize("step", [pal.pick_and_learn, train.oracle_step, train.loss_step])
def test_train_epoch_stays_on_its_device(step):
    with other_device() as device:
        with device:
            unet, qam = pal.UNet(), pal.QAM()
            optimizer = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-3)
            images = torch.randint(256, (5, 32, 32), dtype=torch.uint8)
            labels = torch.rand(5, 3, 32, 32) < 0.3
            scores = None if step is pal.pick_and_learn else torch.rand(5)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
        recipe = train.Recipe(batch=4, step=step, fixed_scores=scores)
        results = train.train_epoch(unet, qam, optimizer, schedule, images, labels,
                                    torch.Generator(), recipe)
        assert [result.shape for result in results] == [(5,), (5,), (5, 3)]
        assert {result.device for result in results} == {torch.device("cpu")}
        for parameter in unet.parameters():
            assert parameter.grad.device == parameter.device != torch.device("cpu")
