"""Which images does the demo train and test on?"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = 10
TEST_IMAGES = 500


class Digits(NamedTuple):
    """Images [count, channels, size, size] in float32, of mean 0 and deviation 1, and their labels [count] in int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_images(size: int, channels: int) -> Digits:
    """Load scikit-learn's 1,797 handwritten digits, 8x8 and grey, resized and repeated to `channels`.

    1,297 are for training and 500 for testing, the classes in equal shares; the split is always the same. Mean and
    deviation are those of the training images.
    """
    from sklearn.datasets import load_digits  # only here: an extra, whose absence `check_settings` explains
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(torch.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    images = (images - images[train].mean()) / images[train].std()
    if size != images.shape[-1]:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    images = images.repeat(1, channels, 1, 1)
    return Digits(images[train], labels[train], images[test], labels[test])
