"""Train with one thing changed that is no option of train.py; the rest of the line is train.py's.

    python .github/results/variants.py no-image OPTIONS       # the QAM sees the label alone
    python .github/results/variants.py cross-entropy OPTIONS  # the loss is BCE, without soft Dice
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import eval as evaluation  # noqa: E402
import pal  # noqa: E402
import train  # noqa: E402


def without_image(qam, images, labels, forward=pal.QAM.forward):
    """Call the QAM with zeros in the image's place."""
    return forward(qam, torch.zeros_like(images), labels)


def cross_entropy(logits, labels):
    """Compute BCE alone: logits and labels (N, classes, H, W) -> (N, classes)."""
    bce = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return bce.mean(dim=(2, 3))


if __name__ == "__main__":
    variant = sys.argv.pop(1)
    if variant == "no-image":
        pal.QAM.forward = without_image
    elif variant == "cross-entropy":
        train.sample_losses = pal.sample_losses = cross_entropy
    else:
        sys.exit(f"{variant}: no such variant; there are no-image and cross-entropy")
    evaluation.run_main(lambda: train.train(train.parse_arguments()))
