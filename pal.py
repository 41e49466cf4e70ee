"""Pick-and-Learn (Zhu, Shi, Wu, MICCAI 2019): two networks, the weights, the loss. Needs torch.

The heart of a training step in another code base:

    losses = sample_losses(unet(images).float(), labels)      # (N, classes)
    weights = quality_weights(qam(images, labels).float())    # (N,), eq. (2) and softmax
    trend = area_trend(losses, labels, weights)               # (N,), or None: not in the paper
    pick_and_learn_loss(losses, weights, trend).backward()    # eq. (1): both networks learn from it

N is the mini-batch, H and W the picture in pixels; labels are bool or 0..1. Losses and weights need
float32 or float64, hence .float() after networks that may run in half precision. Section and
equation numbers are the paper's.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


# ------------------------------------------------------------------------------------ the networks

def standardise(images):
    """Grey images (N, H, W) -> (N, 1, H, W) float, each of mean 0 and standard deviation 1."""
    images = images[:, None].float()
    deviation, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    return ((images - mean) / (deviation + 1e-6)).contiguous(memory_format=torch.channels_last)


def conv3x3(inputs, outputs, pool=False):
    """3 x 3 convolution, batch normalisation, leaky ReLU: (N, inputs, H, W) -> (N, outputs, H, W).

    With pool, H and W are halved before the normalisation, which is then cheaper.
    Not in the paper's networks: the normalisation (without it scores drift to where tanh is flat)
    and the leak (without it a class could stay empty for good).
    """
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    layers += [nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


def convolutions(inputs, outputs, times=2):
    """One or two (`times`) `conv3x3` in a row: (N, inputs, H, W) -> (N, outputs, H, W)."""
    both = [conv3x3(inputs, outputs), conv3x3(outputs, outputs)]
    return nn.Sequential(*both[:times])  # drawn but unused: a seed gives the networks of our results


class Down(nn.Module):
    """One level down: max pooling, then two convolutions."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.convolve = convolutions(inputs, outputs)

    def forward(self, features):
        """features (N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""
        return self.convolve(self.pool(features))


class Up(nn.Module):
    """One level up: enlarges the features, puts the skip connection beside them, convolves."""

    def __init__(self, channels, times):
        super().__init__()
        self.convolve = convolutions(2 * channels, channels, times)

    def forward(self, features, skip):
        """features (N, channels, H / 2, W / 2), skip (N, channels, H, W) -> (N, channels, H, W)."""
        features = F.interpolate(features, scale_factor=2, mode="nearest")
        return self.convolve(torch.cat([skip, features], dim=1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): `width` channels, doubled at each of `depth` halvings.

    Lighter than the original: padded convolutions, only one at full size, where each costs most;
    up-convolutions are a 1 x 1 convolution and nearest-neighbour enlargement. H and W must be
    multiples of 2^depth; ValueError says which are near.
    """

    def __init__(self, classes=3, width=8, depth=4, in_channels=1):
        super().__init__()
        widths = [width * 2 ** level for level in range(depth + 1)]  # 8, 16, 32, 64, 128
        self.multiple = 2 ** depth  # H and W must be multiples of it
        self.first = convolutions(in_channels, width, times=1)
        self.down, self.halve, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            self.down.append(Down(widths[level], widths[level + 1]))
        for level in reversed(range(depth)):
            self.halve.append(nn.Conv2d(widths[level + 1], widths[level], 1, bias=False))
        for level in reversed(range(depth)):
            self.up.append(Up(widths[level], times=1 if level == 0 else 2))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        """images (N, in_channels, H, W) -> logits (N, classes, H, W), for a sigmoid per class."""
        check_size(images.shape[2:], self.multiple)
        features = self.first(images)
        skips = []
        for down in self.down:
            skips.append(features)
            features = down(features)
        for halve_channels, up, skip in zip(self.halve, self.up, reversed(skips)):
            features = up(halve_channels(features), skip)
        return self.head(features)


class QAM(nn.Module):
    """Quality awareness module (section 2.1): a VGG-style network that sees an image and its label.

    Small: `stages` of one convolution and pooling, an eighth of VGG's channels, no dense layers.
    The averaged map is linear, so that scores may be negative, and starts at zero: equal weights.
    H and W must be multiples of 2^stages; ValueError says which are near.
    """

    def __init__(self, classes=3, width=8, stages=5, in_channels=1):
        super().__init__()
        self.multiple = 2 ** stages  # H and W must be multiples of it
        self.features = nn.Sequential()
        channels = in_channels + classes
        for stage in range(stages):
            wider = width * 2 ** min(stage, 3)  # 8, 16, 32, 64, 64; VGG: 64, 128, 256, 512, 512
            self.features.append(conv3x3(channels, wider, pool=True))
            channels = wider
        self.score = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, images, labels):
        """images (N, in_channels, H, W), labels (N, classes, H, W) in 0..1 -> raw scores t (N,)."""
        check_size(images.shape[2:], self.multiple)
        features = self.features(torch.cat([images, labels.to(images.dtype)], dim=1))
        return self.score(features).mean(dim=(1, 2, 3))  # "one-channel average pooling layer"


def check_size(size, multiple):
    """ValueError, naming the nearest sizes that do, where a length is no multiple of `multiple`."""
    for length in size:
        if length % multiple or not length:
            below = length // multiple * multiple
            near = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(
                f"pictures of {size[0]} x {size[1]} pixels: the network halves them down to "
                f"1/{multiple}, and {length} is no multiple of {multiple}; use {near}")


# ------------------------------------------------------------------------------ scores and weights

def overfitting_control(scores, lam=2.0):
    """Overfitting control module (section 2.2): raw scores t of any shape -> scores in -lam..lam.

    Eq. (2):  Phi(t) = lam tanh(t)
    """
    return lam * torch.tanh(scores)


def quality_weights(scores, lam=2.0):
    """Raw scores t (N,) -> weights (N,) of sum 1: a softmax over the mini-batch (section 2.1).

    With the OCM no weight is more than e^(2 lam) times another; lam=None leaves the OCM out (the
    paper's "QAM" rows). A weight is relative to its mini-batch: gather the scores of several
    processes, with their gradients, before the softmax.
    """
    if lam is not None:
        scores = overfitting_control(scores, lam)
    return torch.softmax(scores, dim=0)


# ---------------------------------------------------------------------------------------- the loss

def sample_losses(logits, labels):
    """L_i of eq. (1) per class: logits and labels (N, classes, H, W) -> losses (N, classes).

    BCE + soft Dice loss; the paper names none. Before the U-Net has learnt shapes, BCE favours
    small labels and Dice large ones: together they mislead the QAM less.
    """
    labels = labels.to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=(2, 3))
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * labels).sum(dim=(2, 3))  # (N, classes)
    total = probabilities.sum(dim=(2, 3)) + labels.sum(dim=(2, 3))
    return bce + 1 - (2 * overlap + 1) / (total + 1)  # + 1 pixel: never 0 / 0


def area_trend(losses, labels, weights):
    """What the areas of labels alone predict of their losses. Not in the paper: see the README.

    losses (N, classes), labels (N, classes, H, W), weights (N,) of sum 1 -> (N,), without gradient.
    Each class has a line of losses over areas a, by least squares that trust unusual areas less:
    trend_i = mean over classes of  slope (a_i - sum_j weight_j a_j); its weighted sum is 0.
    """
    losses, weights = losses.detach(), weights.detach()[:, None]
    areas = labels.to(losses.dtype).mean(dim=(2, 3))  # (N, classes), as a share of the picture
    centred = areas - (weights * areas).sum(dim=0)
    variance = (weights * centred.square()).sum(dim=0).clamp_min(1e-12)  # (classes,)
    trust = weights / (1 + centred.square() / (4 * variance))  # halved at 2 standard deviations
    distance = areas - (trust * areas).sum(dim=0) / trust.sum(dim=0)
    covariance = (trust * distance * losses).sum(dim=0)
    slopes = covariance / (trust * distance.square()).sum(dim=0).clamp_min(1e-12)  # (classes,)
    return (slopes * centred).mean(dim=1)


def pick_and_learn_loss(losses, weights, trend=None):
    """losses (N, classes), weights (N,) of sum 1, trend (N,) or None -> the loss of both networks.

    Eq. (1):  Loss = sum_i  weight_i L_i

    A score s = Phi(t) sinks where a loss, less its trend, is above Loss: dLoss/ds_i = weight_i
    (L_i - trend_i - Loss). Weights of 1 / N make it the plain mean: the baseline.
    """
    if weights.shape != losses.shape[:1]:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: "
                         f"one per sample is needed, ({len(losses)},)")
    per_sample = losses.mean(dim=1)
    if trend is not None:
        per_sample = per_sample - trend
    return (weights * per_sample).sum()


# -------------------------------------------------------------------------------------- the metric

def dice(prediction, truth):
    """Dice of bool masks (N, classes, H, W) -> (N, classes); 1 where both are empty.

    Eq. (3):  Dice = 2 |V_pred and V_gt| / (|V_pred| + |V_gt|)
    """
    if prediction.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"dice takes bool masks, not {prediction.dtype} and {truth.dtype}")
    overlap = (prediction & truth).sum(dim=(2, 3))
    total = prediction.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return torch.where(total == 0, 1.0, 2.0 * overlap / total.clamp_min(1))
