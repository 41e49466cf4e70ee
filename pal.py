"""Pick-and-Learn (Zhu, Shi, Wu, MICCAI 2019): two networks, the weights, the loss. Needs torch.

The heart of a training step in another code base:

    losses = sample_losses(unet(images).float(), labels)      # (N, classes)
    weights = quality_weights(qam(images, labels).float())    # (N,), eq. (2) and softmax
    trend = area_trend(losses, labels, weights)               # (N,), or None: not in the paper
    pick_and_learn_loss(losses, weights, trend).backward()    # eq. (1): both networks learn from it

N is the mini-batch; pictures are H x W pixels, or D x H x W voxels where dims=3. Labels are bool or
0..1. Section and equation numbers are the paper's.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of spatial axes, `dims`
POOLING = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMALISATION = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


# ------------------------------------------------------------------------------------ the networks

def standardise(images):
    """Grey images (N, H, W) -> (N, 1, H, W) float, each of mean 0 and standard deviation 1.

    The paper does not say how it scales grey values.
    """
    images = images[:, None].float()
    deviation, mean = torch.std_mean(images, dim=tuple(range(2, images.ndim)), keepdim=True)
    images = (images - mean) / (deviation + 1e-6)
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # faster convolutions
    return images


def conv3x3(inputs, outputs, dims, pool=False):
    """3 x 3 convolution, batch normalisation, leaky ReLU: (N, inputs, H, W) -> (N, outputs, H, W).

    The cited U-Net and VGG have plain ReLUs and no normalisation. Without normalisation scores
    drift to where tanh is flat; with plain ReLUs a class could stay empty for good.
    """
    layers = [CONVOLUTION[dims](inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(POOLING[dims](2))  # before the normalisation, which is then cheaper
    layers += [NORMALISATION[dims](outputs), nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


def convolutions(inputs, outputs, dims, times=2):
    """One or two (`times`) `conv3x3` in a row: (N, inputs, H, W) -> (N, outputs, H, W)."""
    layers = [conv3x3(inputs, outputs, dims)]
    if times == 2:
        layers.append(conv3x3(outputs, outputs, dims))
    return nn.Sequential(*layers)


class Down(nn.Sequential):
    """Max pooling, two convolutions: (N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""

    def __init__(self, inputs, outputs, dims):
        super().__init__(POOLING[dims](2), convolutions(inputs, outputs, dims))


class Up(nn.Module):
    """Enlarges the features, puts the skip connection beside them, convolves once or twice."""

    def __init__(self, inputs, outputs, dims, times):
        super().__init__()
        self.reduce = CONVOLUTION[dims](inputs, outputs, 1, bias=False)
        self.convolve = convolutions(2 * outputs, outputs, dims, times)

    def forward(self, features, skip):
        """features (N, inputs, H / 2, W / 2), skip (N, outputs, H, W) -> (N, outputs, H, W)."""
        features = F.interpolate(self.reduce(features), scale_factor=2, mode="nearest")
        return self.convolve(torch.cat([skip, features], dim=1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015): `width` channels, doubled at each of `depth` halvings.

    Lighter than the original: 8 channels, not 64; padded convolutions; at full size one convolution
    on the way down and one on the way up, not two, since they cost most there; a 1 x 1 convolution
    and nearest-neighbour enlargement in place of the up-convolution.
    """

    def __init__(self, classes=3, width=8, depth=4, in_channels=1, dims=2):
        super().__init__()
        self.multiple = 2 ** depth  # H and W must be multiples of it
        widths = [width * 2 ** level for level in range(depth + 1)]  # 8, 16, 32, 64, 128
        self.first = conv3x3(in_channels, width, dims)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level in range(depth):
            self.down.append(Down(widths[level], widths[level + 1], dims))
        for level in reversed(range(depth)):
            times = 1 if level == 0 else 2
            self.up.append(Up(widths[level + 1], widths[level], dims, times))
        self.head = CONVOLUTION[dims](width, classes, 1)

    def forward(self, images):
        """images (N, in_channels, H, W) -> logits (N, classes, H, W), for a sigmoid per class."""
        check_size(images.shape[2:], self.multiple)
        features = self.first(images)
        skips = []
        for down in self.down:
            skips.append(features)
            features = down(features)
        for up, skip in zip(self.up, reversed(skips)):
            features = up(features, skip)
        return self.head(features)


class QAM(nn.Module):
    """Quality awareness module (section 2.1): a VGG-style network that sees an image and its label.

    Smaller than VGG: one convolution a stage, an eighth of the channels, no dense layers. The score
    is the mean of a one-channel map without ReLU, so it may be negative; that layer starts at zero:
    equal weights. In training, batch normalisation lets a score depend on the whole mini-batch.
    """

    def __init__(self, classes=3, width=8, stages=5, in_channels=1, dims=2):
        super().__init__()
        self.multiple = 2 ** stages  # H and W must be multiples of it
        widths = [in_channels + classes]
        widths += [width * 2 ** min(stage, 3) for stage in range(stages)]  # VGG: 64 128 256 512 512
        self.features = nn.Sequential()
        for before, after in zip(widths, widths[1:]):
            self.features.append(conv3x3(before, after, dims, pool=True))
        self.score = CONVOLUTION[dims](widths[-1], 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, images, labels):
        """images (N, in_channels, H, W), labels (N, classes, H, W) in 0..1 -> raw scores t (N,)."""
        check_size(images.shape[2:], self.multiple)
        both = torch.cat([images, as_floats(labels, images.dtype)], dim=1)
        score_map = self.score(self.features(both))  # (N, 1, H / 2^stages, W / 2^stages)
        return score_map.flatten(1).mean(dim=1)  # "one-channel average pooling layer"


# ------------------------------------------------------------------------------ scores and weights

def overfitting_control(scores, lam=2.0):
    """Overfitting control module (section 2.2): raw scores t of any shape -> scores in -lam..lam.

    Eq. (2):  Phi(t) = lam tanh(t)
    """
    return lam * torch.tanh(scores)


def quality_weights(scores, lam=2.0):
    """Raw scores t (N,) -> weights (N,) of sum 1: OCM, then softmax over the mini-batch (2.1, 2.2).

    No weight is more than e^(2 lam) times another. lam=None leaves the OCM out: the paper's "QAM".
    A ValueError for one sample with gradient: its weight is always 1, so the QAM cannot learn.
    """
    check_precision("scores", scores)
    check_shape("scores", scores, (scores.numel(),))  # one axis
    if len(scores) == 1 and scores.requires_grad:
        raise ValueError("a mini-batch of one sample: its weight is 1 whatever its score, and the "
                         "QAM learns nothing; use two or more, and drop_last=True in a DataLoader")
    if lam is not None:
        if not lam >= 0:
            raise ValueError(f"lambda is {lam}: 0 or more is needed, or None for no bound")
        scores = overfitting_control(scores, lam)
    return torch.softmax(scores, dim=0)


def two_groups(losses):
    """Otsu's threshold (1979) on the logarithms of losses (N,) > 0: split them into two groups.

    Returns the share of the upper group, and how much of the variance the split explains, both
    0..1. A uniform distribution gives 3/4, a normal one 2 / pi = 0.64, two distant groups 1.
    """
    logs = losses.double().log().sort().values
    count = torch.arange(1, len(logs), dtype=torch.float64, device=logs.device)  # in the lower group
    lower = logs.cumsum(dim=0)[:-1] / count
    upper = (logs.sum() - count * lower) / (len(logs) - count)
    between = count * (len(logs) - count) * (upper - lower).square() / len(logs) ** 2
    best = between.argmax()
    explained = between[best] / logs.var(correction=0).clamp_min(1e-12)
    return 1 - count[best].item() / len(logs), explained.item()


def rejected_share(losses):
    """The share of labels that form a group of their own with a high loss; 0 if none does.

    losses (N,) or (N, classes): L_i of all labels, from one epoch or the mean of several. NaN: this
    class tells nothing about this label, as where label and prediction are both empty. Ours: the
    paper knows its share of noisy labels, a user does not. Where `two_groups` explains less than
    3/4 of the variance there are no two. This is no claim about the true share: mild noise is told
    too low, and unusual images count. ValueError for fewer than two labels.
    """
    losses = per_class(losses.detach())
    known = losses[~losses.isnan().all(dim=1)]  # without labels that no class tells about
    if len(known) < 2:
        raise ValueError(f"{len(known)} labels with losses: two or more are needed")
    typical = known.nanmean(dim=0)  # (classes,), in place of NaN
    share, explained = two_groups(torch.where(known.isnan(), typical, known).mean(dim=1))
    return share * len(known) / len(losses) if explained >= 0.75 else 0.0


def auto_lambda(share):
    """Lambda from the middle of the training on, for a rejected share p. Not in the paper.

    share   0   0.01 - 0.3   0.4   0.5   0.6 - 1      5 p - 1 between 1/2 and 2; all labels count
    lambda  0   0.5          1.0   1.5   2.0          the same where no group of bad labels is seen

    With bad labels at -lambda and the others at +lambda the bad ones keep the share
    p / (p + (1 - p) e^(2 lambda)) of the weight. The paper's lambda is 2, "empirically" (3.2).
    """
    if share == 0:
        return 0.0
    return min(max(5 * share - 1, 0.5), 2.0)


# ------------------------------------------------------------------------- the loss and the metric

def sample_losses(logits, labels):
    """L_i of eq. (1) per class: logits and labels (N, classes, H, W) -> losses (N, classes).

    loss = BCE + 1 - (2 |p y| + 1) / (|p| + |y| + 1),  p = sigmoid(logit), y the label, |.| a sum

    The paper names no loss. In an untrained U-Net BCE is lower for small labels and soft Dice loss
    for large ones; their sum misleads the QAM less.
    """
    check_precision("logits", logits)
    check_shape("labels", labels, logits.shape)
    logits, labels = pixels(logits), pixels(as_floats(labels, logits.dtype))
    bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=2)
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * labels).sum(dim=2)  # (N, classes)
    total = probabilities.sum(dim=2) + labels.sum(dim=2)
    return bce + 1 - (2 * overlap + 1) / (total + 1)  # + 1 pixel: never 0 / 0


def area_trend(losses, labels, weights):
    """What a label's area alone says about its loss: (N,), without gradient. Not in the paper.

    An untrained U-Net's loss depends on the area, and the QAM would sort labels by area. Per class
    a line of losses (N, classes) over areas is fitted; labels are masks (N, classes, H, W) or their
    areas (N, classes, 1, 1); weights (N,) should be those of lambda = 2 or more, lest bad labels
    bend it. It explains the only label of another area entirely, and so any two labels; areas
    within 1e-6 count as equal.
    """
    losses = per_class(losses.detach())
    areas = pixels(as_floats(labels, losses.dtype)).mean(dim=2)  # (N, classes), of the picture
    check_shape("losses", losses, areas.shape)
    check_shape("weights", weights, losses.shape[:1])
    weights = weights.detach()[:, None].expand_as(losses)  # (N, classes)
    empty = areas == 0
    on_line = weights.masked_fill(empty, 0)
    from_mean = (areas - weighted_mean(areas, on_line)).masked_fill(empty, 0)
    variance = weighted_mean(from_mean.square(), on_line).clamp_min(1e-12)  # equal areas: no 0 / 0
    # Unusual areas count less (Cauchy's weights): half at two standard deviations from the mean.
    robust = on_line / (1 + from_mean.square() / (4 * variance))
    # Weighted least squares: slope = covariance / variance, about the robust mean area.
    from_robust_mean = areas - weighted_mean(areas, robust)
    covariance = (robust * from_robust_mean * losses).sum(dim=0)
    slopes = covariance / (robust * from_robust_mean.square()).sum(dim=0).clamp_min(1e-12)
    # An empty label is not on the line: it has the mean of the empty labels.
    level = torch.where(empty, weighted_mean(losses, weights.masked_fill(~empty, 0)),
                        weighted_mean(losses, on_line))
    # Less the weighted mean of all, so that with these weights eq. (1) keeps its value.
    return (level - weighted_mean(losses, weights) + slopes * from_mean).mean(dim=1)


def weighted_mean(values, weights):
    """Means over the mini-batch of values (N, classes) -> (classes,); 0 where no weight is left."""
    return (weights * values).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)


def pick_and_learn_loss(losses, weights, trend=None):
    """Eq. (1), the loss of both networks: losses (N, classes), weights (N,) of sum 1 -> a scalar.

    Loss = sum_i  weight_i L_i      L_i: the mean loss over the classes, less trend_i if given

    Its gradient for a bounded score s_i = Phi(t_i) is weight_i (L_i - Loss): the score of a label
    falls where its loss is above Loss, and rises where it is below. Weights 1 / N: the baseline.
    """
    per_sample = per_class(losses).mean(dim=1)
    check_shape("weights", weights, per_sample.shape)
    if trend is not None:
        check_shape("trend", trend, per_sample.shape)
        per_sample = per_sample - trend
    return (weights * per_sample).sum()


def dice(prediction, truth):
    """Dice of bool masks (N, classes, H, W) -> (N, classes); 1 where both are empty.

    Eq. (3):  Dice = 2 |V_pred and V_gt| / (|V_pred| + |V_gt|)
    """
    if prediction.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"dice takes bool masks, not {prediction.dtype} and {truth.dtype}")
    check_shape("truth", truth, prediction.shape)
    prediction, truth = pixels(prediction), pixels(truth)
    overlap = (prediction & truth).sum(dim=2)
    total = prediction.sum(dim=2) + truth.sum(dim=2)
    return torch.where(total == 0, 1.0, 2.0 * overlap / total.clamp_min(1))


# ---------------------------------------------------------------------- what is taken, and refused

def pixels(masks):
    """(N, classes, H, W) or (N, classes, D, H, W) -> (N, classes, pixels), else a ValueError."""
    if masks.ndim not in (4, 5):
        raise ValueError(f"shape {tuple(masks.shape)}: (N, classes, H, W) is needed, with D in 3D; "
                         "for one class add [:, None]")
    return masks.flatten(2)


def as_floats(labels, dtype):
    """Labels as floats; ValueError for integers other than 0 and 1.

    Float labels are not checked (a look at values makes a GPU wait): divide 0..255 by 255 yourself.
    """
    if labels.dtype != torch.bool and not labels.is_floating_point():
        if labels.min() < 0 or labels.max() > 1:
            raise ValueError(f"labels of {labels.min()} to {labels.max()}: 0 and 1 are needed; use "
                             "labels > 0 for masks of 0 and 255, one_hot for numbers of classes")
    return labels.to(dtype)


def per_class(losses):
    """Losses (N,), (N, classes) or (N, classes, ...) -> (N, classes): further axes are averaged."""
    check_precision("losses", losses)
    if losses.ndim == 0:
        raise ValueError('losses are one number: one per sample is needed; use reduction="none"')
    if losses.ndim == 1:
        losses = losses[:, None]
    while losses.ndim > 2:
        losses = losses.mean(dim=-1)
    return losses


def check_shape(name, tensor, shape):
    """ValueError where the shape is another one: PyTorch might stretch the tensor silently."""
    if tensor.shape != shape:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: {tuple(shape)} is needed")


def check_precision(name, tensor):
    """TypeError for less than float32: sums over many pixels and small areas need it."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} are {tensor.dtype}: float32 or float64 is needed; use .float()")


def check_size(size, multiple):
    """ValueError where H or W is no multiple of `multiple`; the message names sizes that work."""
    for length in size:
        if length == 0 or length % multiple:
            lengths = " x ".join([str(length) for length in size])
            below = max(multiple, length // multiple * multiple)
            raise ValueError(f"pictures of {lengths} pixels: the network needs multiples of "
                             f"{multiple}, and {length} is none; use {below} or {below + multiple}")
