"""Pick-and-Learn (Zhu, Shi, Wu, MICCAI 2019): two networks, the weights, the loss. Needs torch.

A training step in another code base:

    losses = sample_losses(unet(images).float(), labels)  # L_i per class, (N, classes)
    scores = qam(images, labels).float()                  # raw scores t, (N,)
    loss, weights = pick_and_learn(losses, labels, scores)
    loss.backward()                                       # both networks learn from eq. (1)

N is the size of the mini-batch. Images are float (N, channels, H, W), see `standardize`; labels are
bool or 0..1, (N, classes, H, W). Section and equation numbers are the paper's. For volumes
(N, channels, D, H, W), replace 2d with 3d in this file. Mistakes raise ValueError or TypeError.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

TREND_LAMBDA = 2.0  # of the area trend whatever the step's is: bad labels must not bend the line

# ------------------------------------------------------------------------------------ the networks

def standardize(images):
    """Scale each channel of each image to mean 0 and standard deviation 1: (N, channels, H, W).

    Takes tensors or arrays of any dtype, returns float32, in 2D in the channels_last memory
    format. The paper does not say how it scales images.
    """
    if images.ndim < 4:
        raise ValueError(f"images of shape {tuple(images.shape)}: (N, channels, H, W) is needed; "
                         "for one image standardize(image[None])[0]")
    images, space = torch.as_tensor(images).float(), tuple(range(2, images.ndim))
    deviation, mean = torch.std_mean(images, dim=space, keepdim=True)
    tiny = 1e-6 * images.abs().amax(dim=space, keepdim=True) + 1e-30  # constant images: no 0 / 0
    images = (images - mean) / (deviation + tiny)
    if images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # faster convolutions
    return images


def conv3x3(inputs, outputs):
    """3 x 3 convolution, batch normalization, leaky ReLU: (N, inputs, H, W) -> (N, outputs, H, W).

    The cited U-Net and VGG have plain ReLUs and no normalization. Without normalization scores
    drift to where tanh is flat; with plain ReLUs a class could stay empty for good.
    """
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                         nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1, inplace=True))


class Down(nn.Sequential):
    """Max pooling, then two convolutions: (N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""

    def __init__(self, inputs, outputs):
        super().__init__(nn.MaxPool2d(2), conv3x3(inputs, outputs), conv3x3(outputs, outputs))


class Up(nn.Module):
    """Upsample the features, concatenate the skip connection, convolve once or twice."""

    def __init__(self, inputs, outputs, convolutions=2):
        super().__init__()
        self.reduce = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.convolve = nn.Sequential(conv3x3(2 * outputs, outputs))
        if convolutions == 2:
            self.convolve.append(conv3x3(outputs, outputs))

    def forward(self, features, skip):
        """features (N, inputs, H / 2, W / 2), skip (N, outputs, H, W) -> (N, outputs, H, W)."""
        features = F.interpolate(self.reduce(features), scale_factor=2, mode="nearest")
        return self.convolve(torch.cat([skip, features], dim=1))


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with one logit per class and pixel.

    Lighter than the original: 8 channels instead of 64 at full size (`width`); padded convolutions;
    one convolution instead of two on either side at full size, where they cost most; a 1 x 1
    convolution and nearest-neighbor upsampling instead of the up-convolution. 16 divides H and W.
    """

    def __init__(self, classes=3, *, width=8, in_channels=1):
        super().__init__()
        self.first = conv3x3(in_channels, width)
        self.down1 = Down(width, 2 * width)
        self.down2 = Down(2 * width, 4 * width)
        self.down3 = Down(4 * width, 8 * width)
        self.down4 = Down(8 * width, 16 * width)
        self.up4 = Up(16 * width, 8 * width)
        self.up3 = Up(8 * width, 4 * width)
        self.up2 = Up(4 * width, 2 * width)
        self.up1 = Up(2 * width, width, convolutions=1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images):
        """images (N, in_channels, H, W) -> logits (N, classes, H, W), for a sigmoid per class."""
        check_images(images, self.first[0], multiple=16)
        x0 = self.first(images)  # (N, 8, H, W)
        x1 = self.down1(x0)      # (N, 16, H / 2, W / 2)
        x2 = self.down2(x1)      # (N, 32, H / 4, W / 4)
        x3 = self.down3(x2)      # (N, 64, H / 8, W / 8)
        x4 = self.down4(x3)      # (N, 128, H / 16, W / 16)
        x = self.up4(x4, x3)     # (N, 64, H / 8, W / 8)
        x = self.up3(x, x2)      # (N, 32, H / 4, W / 4)
        x = self.up2(x, x1)      # (N, 16, H / 2, W / 2)
        x = self.up1(x, x0)      # (N, 8, H, W)
        return self.head(x)


def stage(inputs, outputs):
    """One stage of the QAM: (N, inputs, H, W) -> (N, outputs, H / 2, W / 2)."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    # Pooling before the normalization makes the normalization four times cheaper.
    return nn.Sequential(convolution, nn.MaxPool2d(2), nn.BatchNorm2d(outputs),
                         nn.LeakyReLU(0.1, inplace=True))


class QAM(nn.Module):
    """Quality awareness module (section 2.1): a VGG-style network that sees an image and its label.

    Smaller than VGG: one convolution a stage, an eighth of the channels, no dense layers. The score
    is the mean of a one-channel map without ReLU, so it may be negative; that layer starts at zero:
    equal weights. In training a score depends on the whole mini-batch, by batch normalization.
    """

    def __init__(self, classes=3, in_channels=1):
        super().__init__()
        self.classes = classes
        self.features = nn.Sequential(stage(in_channels + classes, 8), stage(8, 16), stage(16, 32),
                                      stage(32, 64), stage(64, 64))  # VGG: 64 128 256 512 512
        self.score = nn.Conv2d(64, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, images, labels):
        """images (N, in_channels, H, W), labels (N, classes, H, W) in 0..1 -> raw scores t (N,)."""
        check_images(images, self.features[0][0], self.classes, smallest=32)
        check_shape("labels", labels, (len(images), self.classes, *images.shape[2:]))
        both = torch.cat([images, as_floats(labels, images.dtype)], dim=1)
        score_map = self.score(self.features(both))  # (N, 1, H / 32, W / 32)
        return score_map.flatten(1).mean(dim=1)  # "one-channel average pooling layer"


# ----------------------------------------------------------------------- losses, weights, eq. (1)

def sample_losses(logits, labels):
    """Compute L_i of eq. (1), split by class: logits and labels (N, classes, H, W) -> (N, classes).

    loss = BCE + 1 - (2 |p y| + 1) / (|p| + |y| + 1),  p = sigmoid(logit), y the label, |.| a sum

    The paper names no loss. Early in training BCE is lower for small labels, soft Dice loss for
    large ones; their sum depends less on the area.
    """
    check_precision("logits", logits)
    check_shape("labels", labels, logits.shape)
    logits, labels = pixels(logits), pixels(as_floats(labels, logits.dtype))
    bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=2)
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * labels).sum(dim=2)  # (N, classes)
    total = probabilities.sum(dim=2) + labels.sum(dim=2)
    return bce + 1 - (2 * overlap + 1) / (total + 1)  # + 1 pixel: never 0 / 0


def quality_weights(scores, lam=2.0):
    """Turn raw scores t (N,) into weights (N,) of sum 1: OCM, then softmax (sections 2.1, 2.2).

    No weight is more than e^(2 lam) times another. lam=None leaves the OCM out: the paper's "QAM".
    """
    check_precision("scores", scores)
    check_shape("scores", scores, (scores.numel(),))  # one axis
    if can_look(scores) and (scores >= 0).all() and abs(scores.sum().item() - 1) < 1e-6:
        raise ValueError("scores that sum to 1: if they are weights, give the QAM's raw scores")
    if lam is not None:
        if not 0 <= lam < float("inf"):
            raise ValueError(f"lambda is {lam}: 0 or more is needed, or None for no bound")
        scores = lam * torch.tanh(scores)  # overfitting control, eq. (2): Phi(t) = lam tanh(t)
    return torch.softmax(scores, dim=0)


def area_trend(losses, labels, scores):
    """Predict each label's loss from its area alone, less the mean prediction; not in the paper.

    trend_i = mean over classes c of  level_ic + slope_c (a_ic - mean a_c) - mean L_c

    Before shapes are learned, a loss depends on the label's area a, and the QAM would sort labels
    by area. Per class, a line of losses (N, classes) over the areas of nonempty labels is fitted;
    level is their mean loss, or that of the empty labels, which have no slope. Means are weighted;
    that of the trend is 0. labels: masks (N, classes, H, W) or areas (N, classes, 1, 1); scores:
    raw t (N,). Returns (N,) without gradient. Its limits: .github/PAPER.md.
    """
    losses = per_class(losses).detach()
    areas = pixels(labels).mean(dim=2, dtype=losses.dtype)  # (N, classes)
    check_shape("losses", losses, areas.shape)
    check_shape("scores", scores, losses.shape[:1])
    areas = areas / areas.amax(dim=0).clamp_min(1e-30)  # 0..1 for tiny objects, too
    weights = quality_weights(scores.detach(), TREND_LAMBDA)[:, None].expand_as(losses)
    empty = areas == 0
    nonempty = weights.masked_fill(empty, 0)
    centered = (areas - weighted_mean(areas, nonempty)).masked_fill(empty, 0)
    variance = weighted_mean(centered.square(), nonempty).clamp_min(1e-12)  # equal areas: no 0 / 0
    # Leverage weights, of Cauchy's form: an area two deviations from the mean counts half.
    robust = nonempty / (1 + centered.square() / (4 * variance))
    # Weighted least squares: slope = covariance / variance, about the robust mean area.
    robust_centered = areas - weighted_mean(areas, robust)
    covariance = (robust * robust_centered * losses).sum(dim=0)
    slopes = covariance / (robust * robust_centered.square()).sum(dim=0).clamp_min(1e-12)
    # Only the slope is robust: so centered, the trend has a weighted mean of 0.
    mean_of_empty = weighted_mean(losses, weights.masked_fill(~empty, 0))
    level = torch.where(empty, mean_of_empty, weighted_mean(losses, nonempty))
    return (level - weighted_mean(losses, weights) + slopes * centered).mean(dim=1)


def weighted_mean(values, weights):
    """Average values (N, classes) over the mini-batch: (classes,); 0 where all weights are 0."""
    return (weights * values).sum(dim=0) / weights.sum(dim=0).clamp_min(1e-12)


def weighted_loss(losses, weights, *, trend=None):
    """Compute eq. (1), the loss of both networks: losses (N, classes), weights (N,) -> a scalar.

    Loss = sum_i  weight_i L_i      L_i: the mean loss over the classes, less trend_i if given

    Its gradient for a bounded score s_i = Phi(t_i) is weight_i (L_i - Loss): the score of a label
    falls if its loss is above Loss, and rises if it is below. The trend is a constant to the U-Net,
    whose gradient stays that of eq. (1). Weights 1 / N: the baseline.
    """
    per_sample = per_class(losses).mean(dim=1)
    check_shape("weights", weights, per_sample.shape)
    if can_look(weights) and (weights < 0).any():
        raise ValueError("weights below 0: if they are raw scores, use quality_weights(scores)")
    if trend is not None:
        check_shape("trend", trend, per_sample.shape)
        per_sample = per_sample - trend
    return (weights * per_sample).sum()


def pick_and_learn(losses, labels, scores, lam=2.0):
    """Compute one training step's loss: the functions above, in order.

    losses (N, classes), labels (N, classes, H, W) or areas (N, classes, 1, 1), the QAM's raw scores
    t (N,). Returns the loss, and the weights (N,) without gradient. (weights * losses.mean(dim=1))
    .sum() is the loss for the log, without the trend. N is 3 or more: the trend explains any two.
    """
    weights = quality_weights(scores, lam)
    trend = area_trend(losses, labels, scores)
    if scores.requires_grad and len(scores) < 3:
        raise ValueError(f"a mini-batch of {len(scores)}: the QAM needs three, better 16: use "
                         "drop_last=True, or accumulate (.github/PORTING.md)")
    if scores.requires_grad and not losses.requires_grad:
        raise ValueError("losses without gradient: the U-Net would not learn; do not detach them")
    return weighted_loss(losses, weights, trend=trend), weights.detach()


# --------------------------------------------------------- lambda from the labels' losses, and Dice

def two_groups(losses):
    """Split losses (N,) into two groups: Otsu's threshold (1979) on their logarithms.

    Returns the upper group's share of the labels, and the share of the variance that the split
    explains: 3/4 for uniform logarithms, 2 / pi = 0.64 for normal ones, 1 for two distant groups.
    The lower group has a twentieth of the labels or more: one tiny loss makes no group.
    """
    logs = losses.cpu().double().clamp_min(1e-6).log().sort().values
    count = torch.arange(1, len(logs), dtype=logs.dtype)  # in the lower group
    lower = logs.cumsum(dim=0)[:-1] / count
    upper = (logs.sum() - count * lower) / (len(logs) - count)
    between = count * (len(logs) - count) * (upper - lower).square() / len(logs) ** 2
    between[count < len(logs) / 20] = 0
    best = between.argmax()
    explained = between[best] / logs.var(correction=0).clamp_min(1e-12)
    return 1 - count[best].item() / len(logs), explained.item()


def rejected_share(losses):
    """Estimate the share of labels that form a group of their own with a high loss; 0 if none do.

    losses (N, classes): L_i of all N labels, gathered from all processes, of one epoch or the mean
    of several; NaN for empty labels, whose loss only tells whether anything is predicted. A share
    of N; 0 if `two_groups` explains less than 3/4 of the variance (a cliff: half of all uniform log
    losses pass); too low before the losses have settled, and for mild noise; unusual images count.
    Fewer than 60 labels often show two groups by chance. Not in the paper.
    """
    losses = per_class(losses).detach()
    known = losses[~losses.isnan().all(dim=1)]  # without labels whose losses are all NaN
    known = known[:, ~known.isnan().all(dim=0)]  # and without such classes
    if len(known) < 2 or known.isinf().any() or (known < 0).any():
        raise ValueError(f"losses of {len(known)} labels: two or more are needed, finite and >= 0")
    mean_of_class = known.nanmean(dim=0)
    share, explained = two_groups(torch.where(known.isnan(), mean_of_class, known).mean(dim=1))
    return share * len(known) / len(losses) if explained >= 0.75 else 0.0


def auto_lambda(share):
    """Choose lambda for the second half of the training by the rejected share p; not in the paper.

    share   0   0.01 - 0.3   0.4   0.5   0.6 - 1
    lambda  0   0.5          1.0   1.5   2.0         (5 p - 1 between 1/2 and 2; 0: no group seen)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}: 0 to 1 is needed")
    return min(max(5 * share - 1, 0.5), 2.0) if share > 0 else 0.0


def dice(prediction, truth):
    """Compute Dice of bool masks (N, classes, H, W): (N, classes); 1 where both are empty.

    Eq. (3):  Dice = 2 |V_pred and V_gt| / (|V_pred| + |V_gt|)
    """
    if prediction.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"dice takes bool masks, not {prediction.dtype} and {truth.dtype}")
    check_shape("truth", truth, prediction.shape)
    prediction, truth = pixels(prediction), pixels(truth)
    overlap = (prediction & truth).sum(dim=2)
    total = prediction.sum(dim=2) + truth.sum(dim=2)
    return torch.where(total == 0, 1.0, 2.0 * overlap / total.clamp_min(1))


# ------------------------------------------------------------------------ checks of likely mistakes

def can_look(tensor):
    """Tell whether values are at hand: a GPU would wait, compiled and fake tensors have none."""
    if torch.compiler.is_compiling():
        return False
    return "cpu" == tensor.device.type == tensor.untyped_storage().device.type


def pixels(masks):
    """Flatten (N, classes, H, W) or (N, classes, D, H, W) to (N, classes, pixels)."""
    if masks.ndim not in (4, 5):
        raise ValueError(f"shape {tuple(masks.shape)}: (N, classes, H, W) is needed, with D in 3D; "
                         "for one class add [:, None]")
    return masks.flatten(2)


def as_floats(labels, dtype):
    """Convert labels to floats; ValueError outside 0..1."""
    if labels.dtype == torch.bool or (labels.is_floating_point() and not can_look(labels)):
        return labels.to(dtype)
    if torch.compiler.is_compiling():
        raise TypeError(f"labels are {labels.dtype}: bool or float is needed while compiling")
    low, high = labels.min().item(), labels.max().item()
    if not (low >= 0 and high <= 1):  # or NaN
        raise ValueError(f"labels of {low:g} to {high:g}, not 0 to 1: labels > 0 for 0 and 255; "
                         "for class numbers, ignored pixels see PORTING.md; swapped with logits?")
    return labels.to(dtype)


def per_class(losses):
    """Average losses (N,), (N, classes) or (N, classes, ...) over further axes: (N, classes)."""
    check_precision("losses", losses)
    if losses.ndim == 0:
        raise ValueError('losses are one number: one per sample is needed; use reduction="none"')
    losses = losses[:, None] if losses.ndim == 1 else losses
    return losses if losses.ndim == 2 else losses.flatten(2).mean(dim=2)


def check_shape(name, tensor, shape):
    """Raise a ValueError for another shape: PyTorch might broadcast the tensor silently."""
    if not torch.is_tensor(tensor) or tensor.shape != shape:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: tensor {tuple(shape)} is needed")


def check_precision(name, tensor):
    """Raise a TypeError for less than float32: sums over many pixels and small areas need it."""
    dtype = getattr(tensor, "dtype", type(tensor).__name__)  # a list: outputs at several sizes?
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} are {dtype}: a float32 or float64 tensor is needed; use .float()")


def check_images(images, convolution, classes=0, multiple=1, smallest=1):
    """Raise an error for images that a network with this first convolution does not take."""
    is_float = torch.is_tensor(images) and images.is_floating_point()
    if not is_float or (images.dtype, convolution.weight.dtype) == (torch.float64, torch.float32):
        raise TypeError(f"images are {images.dtype}: a float32 tensor is needed; use standardize")
    shape, channels = tuple(images.shape), convolution.in_channels - classes
    if len(shape) != convolution.weight.ndim or shape[1] != channels:
        raise ValueError(f"images of shape {shape}: (N, {channels}, H, W), in 3D with D, is needed")
    if min(shape[2:]) < smallest or any(length % multiple for length in shape[2:]):
        raise ValueError(f"images of shape {shape}: each side must be a multiple of 16 for the "
                         "U-Net, 32 or more for the QAM")
