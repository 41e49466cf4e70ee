"""Pick-and-Learn (Zhu, Shi, Wu, MICCAI 2019): the two networks, the weights, the loss. Needs torch alone.

The heart of a training step in another code base:

    losses = sample_losses(unet(images).float(), labels)        # (N, classes)
    weights = quality_weights(qam(images, labels).float())      # (N,), eq. (2) and softmax
    trend = area_trend(losses, labels, weights)                 # (N,), not in the paper: None leaves it out
    pick_and_learn_loss(losses, weights, trend).backward()      # eq. (1): both networks learn from it

N is the mini-batch, H and W the picture in pixels; labels are bool or 0..1. Losses and weights need float32 or float64,
hence .float() after networks that may run in half precision. Section and equation numbers are the paper's.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


# ------------------------------------------------------------------------------------------------------ the networks

def conv3x3(inputs, outputs, pool=False):
    """3 x 3 convolution, batch normalisation, leaky ReLU: (N, inputs, H, W) -> (N, outputs, H, W); pool halves H and W.

    The networks that the paper names have no normalisation; without it the scores of a mini-batch drift together to
    where tanh is flat and its gradient gone. The ReLU is leaky because with a plain one a class could stay empty for
    good: where all its last features are zero, no gradient passes. Pooling comes before both: that makes them cheaper.
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *[nn.MaxPool2d(2)] * pool,
                         nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): `width` channels at full size, doubled at each of `depth` halvings.

    The paper names no width. Convolutions are padded, up-convolutions are a 1 x 1 convolution and nearest-neighbour
    enlargement, and at full size, where each costs most, there is one convolution and not two. H and W must be
    multiples of 2^depth; ValueError says which are near.
    """

    def __init__(self, classes=3, width=8, depth=4, in_channels=1):
        super().__init__()
        widths = [width * 2 ** level for level in range(depth + 1)]
        block = lambda inputs, here: nn.Sequential(conv3x3(inputs, here), *[conv3x3(here, here)] * (here > width))
        self.down = nn.ModuleList(block(before, here) for before, here in zip([in_channels] + widths, widths))
        pairs = list(zip(widths[1:], widths))[::-1]  # (below, here), from the bottom up
        self.narrow = nn.ModuleList(nn.Conv2d(below, here, 1, bias=False) for below, here in pairs)
        self.up = nn.ModuleList(block(2 * here, here) for _, here in pairs)
        self.head = nn.Conv2d(width, classes, 1)
        self.multiple = 2 ** depth  # of H and W

    def forward(self, images):
        """images (N, in_channels, H, W) -> logits (N, classes, H, W), one sigmoid per class: organs may overlap."""
        check_size(images.shape[-2:], self.multiple)
        features, skips = images, []
        for level, block in enumerate(self.down):
            features = block(F.max_pool2d(features, 2) if level else features)  # (N, width 2^level, H / 2^level, ...)
            skips.append(features)
        skips.pop()
        for narrow, block in zip(self.narrow, self.up):
            features = F.interpolate(narrow(features), scale_factor=2, mode="nearest")  # twice H, W; half the channels
            features = block(torch.cat([skips.pop(), features], dim=1))
        return self.head(features)


class QAM(nn.Module):
    """Quality awareness module (section 2.1): a VGG-style network that looks at an image and its label together.

    3 x 3 convolutions in `stages` pooled stages, then "a one-channel average pooling layer". Ours is small: one
    convolution a stage, an eighth of VGG's channels, no fully connected layers. Left open by the paper: the map that
    is averaged is linear (after a ReLU no score could be negative, and half of tanh would be lost) and starts at zero,
    so that training starts from equal weights. H and W must be multiples of 2^stages; ValueError says which are near.
    """

    def __init__(self, classes=3, width=8, stages=5, in_channels=1):
        super().__init__()
        widths = [in_channels + classes] + [width * 2 ** min(k, 3) for k in range(stages)]  # VGG: 64 128 256 512 512
        self.features = nn.Sequential(*(conv3x3(before, after, pool=True) for before, after in zip(widths, widths[1:])))
        self.score = nn.Conv2d(widths[-1], 1, 1)
        self.multiple = 2 ** stages  # of H and W
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, images, labels):
        """images (N, in_channels, H, W), labels (N, classes, H, W) in 0..1 -> raw scores t (N,), of either sign."""
        check_size(images.shape[-2:], self.multiple)
        features = self.features(torch.cat([images, labels.to(images.dtype)], dim=1))  # (N, C, H / 2^stages, ...)
        return self.score(features).mean(dim=(1, 2, 3))  # global average pooling


def check_size(size, multiple):
    """ValueError, naming the nearest sizes that do, when H or W in pixels is not a multiple of `multiple`."""
    for length in size:
        if length % multiple or not length:
            below = length // multiple * multiple
            near = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(f"pictures of {size[0]} x {size[1]} pixels: the network halves them down to 1/{multiple}, "
                             f"and {length} is no multiple of {multiple}; use {near}")


# ----------------------------------------------------------------------------------------------- scores and weights

def overfitting_control(scores, lam=2.0):
    """Overfitting control module (section 2.2): raw scores t of any shape -> scores within -lam and lam.

    Eq. (2):  Phi(t) = lam tanh(t)
    """
    return lam * torch.tanh(scores)


def quality_weights(scores, lam=2.0):
    """Raw scores t (N,) -> weights (N,), not negative, sum 1, by a softmax over the mini-batch (section 2.1).

    With the OCM no weight is more than e^(2 lam) times another; lam=None leaves the OCM out (the paper's "QAM" rows).
    A weight is relative to its mini-batch, and a single sample always weighs 1. Where a mini-batch is split over
    processes, gather the scores, with their gradients, before the softmax.
    """
    return torch.softmax(scores if lam is None else overfitting_control(scores, lam), dim=0)


# --------------------------------------------------------------------------------------------------------- the loss

def sample_losses(logits, labels):
    """L_i of eq. (1), one per sample and class: logits and labels (N, classes, H, W) -> (N, classes).

    BCE + soft Dice loss; L_i is its mean over classes. The paper does not name its loss. As long as the U-Net knows
    nothing and predicts little everywhere, BCE is lower for small labels and Dice for large ones; together they mislead
    the QAM less. One sigmoid per class, since organs overlap.
    """
    labels = labels.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=(2, 3))
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * labels).sum(dim=(2, 3))  # (N, classes)
    total = probabilities.sum(dim=(2, 3)) + labels.sum(dim=(2, 3))
    return bce + 1 - (2 * overlap + 1) / (total + 1)  # + 1 pixel: never 0 / 0


def area_trend(losses, labels, weights):
    """The part of L_i that the area of the label predicts: losses (N, classes), labels (N, classes, H, W), weights
    (N,), the ones of `pick_and_learn_loss`, which sum to 1 -> (N,). Not in the paper.

    The method is circular: weights come from losses, and losses from a network trained with the weights. Before the
    U-Net has learnt shapes, its losses tell labels apart by their area (the BCE of a constant prediction is linear in
    it), and the QAM would settle on all eroded or on all dilated labels and keep them. So a line is fitted per class c
    to the losses in the mini-batch over the labels' foreground fractions a, by weighted least squares,

        trend_i = mean over c of  slope_c (a_ic - sum_j weight_j a_jc)

    and subtracted from the loss that the QAM sees, in the manner of a control variate: what a known quantity explains
    is taken out of the signal. To the U-Net it is a constant, and its weighted sum is 0, so that the value of eq. (1)
    and the U-Net's gradient stay; the QAM's gradient changes, which is the purpose. It is detached: the weighted sum
    is 0 whatever the weights are, so that as a function of them it would teach nothing.

    The fit trusts labels as the QAM does, and less the further their area is from the weighted mean (Cauchy's weight
    function, one half at two standard deviations): where all bad labels are too large, they must not bend the line
    until it explains them away. As long as predictions are constant BCE lies on one line, which every such fit finds,
    and soft Dice nearly does. Limit: a mini-batch of two is explained entirely by its line.
    """
    losses, weights = losses.detach(), weights.detach()[:, None]
    areas = labels.to(losses.dtype).mean(dim=(2, 3))  # (N, classes)
    centred = areas - (weights * areas).sum(dim=0)
    variance = (weights * centred.square()).sum(dim=0).clamp_min(1e-12)  # (classes,)
    trust = weights / (1 + centred.square() / (4 * variance))
    distance = areas - (trust * areas).sum(dim=0) / trust.sum(dim=0)
    slopes = (trust * distance * losses).sum(dim=0) / (trust * distance.square()).sum(dim=0).clamp_min(1e-12)
    return (slopes * centred).mean(dim=1)  # slopes are (classes,)


def pick_and_learn_loss(losses, weights, trend=None):
    """The one loss of both networks: losses (N, classes), weights (N,) that sum to 1, trend (N,) or None -> a scalar.

    Eq. (1):  Loss = sum_i  weight_i L_i

    It lowers the bounded score s = Phi(t) of a sample whose loss, less its trend, is above Loss: dLoss/ds_i =
    weight_i (L_i - trend_i - Loss), with the `area_trend` that is taken from L_i. Weights 1 / N make it the plain mean:
    the baseline.
    """
    if weights.shape != losses.shape[:1]:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: one per sample is needed, ({len(losses)},)")
    per_sample = losses.mean(dim=1)
    return (weights * (per_sample if trend is None else per_sample - trend)).sum()


# ------------------------------------------------------------------------------------------------------- the metric

def dice(prediction, truth):
    """Dice of bool masks (N, classes, H, W) -> (N, classes) float; 1 where both are empty: nothing was there nor found.

    Eq. (3):  Dice = 2 |V_pred and V_gt| / (|V_pred| + |V_gt|)
    """
    if prediction.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"dice takes bool masks, not {prediction.dtype} and {truth.dtype}")
    overlap = (prediction & truth).sum(dim=(2, 3))
    total = prediction.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return torch.where(total == 0, 1.0, 2.0 * overlap / total.clamp_min(1))
