"""pal.py in other people's training loops: the blocks of PORTING.md, run as printed."""
import contextlib
import os
import re

import pytest
import torch
import torch.distributed.nn
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


def networks():
    """A small U-Net and QAM in float64, the same ones in every process, with scores that differ."""
    torch.manual_seed(0)
    unet, qam = pal.UNet(width=2).double().eval(), pal.QAM().double().eval()  # as SyncBatchNorm
    torch.nn.init.normal_(qam.score.weight)
    return unet, qam


def mini_batch(n=8):
    """Images (n, 1, 32, 32) in float64 and bool labels (n, 3, 32, 32) of different areas."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, 32, 32, generator=rng, dtype=torch.float64)
    shares = torch.linspace(0.1, 0.6, n).reshape(n, 1, 1, 1)
    return images, torch.rand(n, 3, 32, 32, generator=rng) < shares


def gradients(*modules):
    """The gradient of each network as one vector."""
    return [torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
            for network in modules]


def exact_gradients(images, labels):
    """The gradients of U-Net and QAM when one process has the whole mini-batch."""
    unet, qam = networks()
    losses = pal.sample_losses(unet(images), labels)
    pal.pick_and_learn(losses, labels, qam(images, labels))[0].backward()
    return gradients(unet, qam)


def difference(vectors, expected):
    """How far vectors are from the expected ones, as a share of their length: the largest."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(vectors, expected))


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


def test_note_losses():
    all_losses, labels = torch.full((5, 2), torch.nan), torch.zeros(2, 2, 4, 4)
    labels[0, 0, 0, 0] = labels[1, 1] = 1  # of the second sample, the first class is empty
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    note_losses(all_losses, torch.tensor([4, 1]), losses, labels)
    assert all_losses[4, 0] == 1 and all_losses[1, 1] == 4 and all_losses.isnan().sum() == 8


def sum_gradients(part):
    """What Lightning's all_gather(sync_grads=True) does: gradients of all processes are added."""
    return torch.cat(torch.distributed.nn.functional.all_gather(part.contiguous()))

# How parts are collected, and what the recipe's loss is multiplied by: two right ways, two wrong
RIGHT = {"as printed": (gather, 1), "Lightning, no factor": (sum_gradients, 1 / 2)}
WRONG = {"no factor": (gather, 1 / 2), "each process by itself": (torch.clone, 1 / 2)}


def process(rank, folder):
    """One of two processes: save the gradients that it gets in each of these ways."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, labels = mini_batch()
    own = slice(4 * rank, 4 * rank + 4)
    results = {}
    for way, (collect, factor) in (RIGHT | WRONG).items():
        globals()["gather"] = collect  # which distributed_loss calls
        unet, qam = networks()
        unet_ddp, qam_ddp = DistributedDataParallel(unet), DistributedDataParallel(qam)
        (factor * distributed_loss(unet_ddp, qam_ddp, images[own], labels[own])).backward()
        results[way] = gradients(unet, qam)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # the other process may still need this one
    os._exit(0)  # an orderly end was seen to abort now and then, while gloo's threads still ran


def test_several_processes(tmp_path):
    torch.multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    exact = exact_gradients(*mini_batch())
    for rank in range(2):
        for way, found in torch.load(tmp_path / f"{rank}.pt").items():
            if way in RIGHT:
                assert difference(found, exact) < 1e-13
            else:
                assert difference(found[1:], exact[1:]) > 0.1  # the QAM's
    unet, qam = networks()
    distributed_loss(unet, qam, *mini_batch()).backward()  # one process takes the same path
    assert difference(gradients(unet, qam), exact) == 0


@pytest.mark.parametrize("size", [1, 3, 8])
def test_gradient_accumulation(size):
    unet, qam = networks()
    accumulated_step(unet, qam, *mini_batch(), size)
    assert difference(gradients(unet, qam), exact_gradients(*mini_batch())) < 1e-13


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
    by_hand = -(weights * pal.area_trend(losses, labels, qam(images, labels))).sum()
    for i in range(5):
        valid = label_map[i] != 255
        logs = torch.log_softmax(logits[i][:, valid], dim=0)
        by_hand = by_hand - weights[i] * logs.gather(0, label_map[i][valid][None].long()).mean()
    assert loss.item() == pytest.approx(by_hand.item())
    loss.backward()
    assert all(vector.norm() > 0 for vector in gradients(unet, qam))


class MetaTensor(torch.Tensor):
    """As MONAI's: a subclass of Tensor."""


def test_losses_of_other_shapes():
    """MONAI's Dice (N, classes, 1, 1), cross-entropy (N, classes, H, W); (N,) without classes."""
    images, labels = mini_batch(4)
    unet, qam = networks()
    masks, logits = (255 * labels.double()).as_subclass(MetaTensor) > 0, unet(images)
    losses, scores = pal.sample_losses(logits, masks), qam(images, masks)
    entropy = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
    dice = losses[:, :, None, None] - entropy.mean(dim=(2, 3), keepdim=True)
    expected = pal.pick_and_learn(losses, labels, scores)[0].item()
    for same in (pal.per_class(dice) + pal.per_class(entropy), dice + entropy):
        assert pal.pick_and_learn(same, masks, scores)[0].item() == pytest.approx(expected)
    areas = labels.any(dim=1, keepdim=True)
    one_class = pal.pick_and_learn(losses[:, :1], areas, scores)[0]
    assert pal.pick_and_learn(losses[:, 0], areas, scores)[0] == one_class


def test_compiled_step():
    """torch.compile may take the whole step, without breaks; "eager" needs no compiler."""
    torch._dynamo.reset()
    images, labels = mini_batch()
    compiled, plain = networks(), networks()

    def step(unet, qam, images, labels):
        logits = unet(images)
        losses, masks = exclusive_losses(logits, labels.sum(dim=1).clamp_max(2))
        exclusive = pal.pick_and_learn(losses, masks, qam(images, masks))[0]
        losses = pal.sample_losses(logits, labels)
        return exclusive + pal.pick_and_learn(losses, labels, qam(images, labels))[0]

    compiled_step = torch.compile(step, backend="eager", fullgraph=True)
    compiled_step(*compiled, images, labels).backward()
    step(*plain, images, labels).backward()
    assert difference(gradients(*compiled), gradients(*plain)) < 1e-12
    with pytest.raises(Exception, match="bool or float is needed while compiling"):
        compiled_step(*compiled, images, 255 * labels.byte())  # values cannot be looked at


def test_2d_replaced_by_3d_is_the_3d_version():
    """Noisy labels of volumes, which the losses betray, soon weigh less."""
    volumes = {}
    exec((ROOT / "pal.py").read_text(encoding="utf-8").replace("2d", "3d"), volumes)
    torch.manual_seed(0)
    images = volumes["standardize"](torch.randint(256, (8, 1, 32, 32, 32), dtype=torch.uint8))
    labels = images > 0
    labels[4:] = torch.rand(4, 1, 32, 32, 32) < 0.5  # noise
    unet, qam = volumes["UNet"](classes=1, width=2), volumes["QAM"](classes=1)
    optimizer = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=2e-2)
    for _ in range(15):
        losses = volumes["sample_losses"](unet(images), labels)
        loss, weights = volumes["pick_and_learn"](losses, labels, qam(images, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weights[:4].sum() > 0.7
    with pytest.raises(ValueError, match="28, 32, 32.*each side .* 32 or more for the QAM"):
        qam(images[:, :, :28], labels[:, :, :28])
    with pytest.raises(ValueError, match="in 3D with D, is needed"):
        qam(images[:, :, 0], labels[:, :, 0])  # single slices


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


def epoch(device, device_of_labels, step, bf16):
    """Train for one epoch: the U-Net, and what train_epoch returns."""
    with device:
        unet, qam = pal.UNet(), pal.QAM()
        optimizer = torch.optim.Adam([*unet.parameters(), *qam.parameters()], lr=1e-3)
        images = torch.randint(256, (5, 32, 32), dtype=torch.uint8)
        scores = None if step is pal.pick_and_learn else torch.rand(5)
    labels = torch.rand(5, 3, 32, 32, device=device_of_labels) < 0.3
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    recipe = train.Recipe(batch=4, step=step, fixed_scores=scores, bf16=bf16)
    return unet, train.train_epoch(unet, qam, optimizer, schedule, images, labels,
                                   torch.Generator(), recipe)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("step", [pal.pick_and_learn, train.oracle_step, train.loss_step])
def test_training_and_dice_stay_on_their_device(step, bf16):
    cpu = torch.device("cpu")
    with other_device() as device:
        unet, results = epoch(device, device, step, bf16)
        assert {result.device for result in results} == {cpu}
        for parameter in unet.parameters():
            assert parameter.grad.device == parameter.device != cpu
        with pytest.raises(RuntimeError, match="device"):  # the test can fail
            epoch(device, cpu, step, bf16)
        masks = torch.rand(4, 3, 32, 32, device=device) < 0.3
        assert pal.dice(masks, masks).device == masks.device
