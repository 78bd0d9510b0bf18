"""Where do batches come from? Arrays lie on the device and are cropped and flipped there; folders go by a loader.

All images become float32 [count, 3, height, width], normalised by the mean and deviation of the training images (of
folders, and where the recipe says so: ImageNet's); gray ones are repeated to three channels. The order and the crops of
an epoch follow from the seed and the epoch alone, so a run that is resumed sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset
from torchvision import datasets
from torchvision.transforms import v2

from command_line import Place
from ranks import Ranks
from recipes import Recipe

NAMED = {
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "fashion-mnist": datasets.FashionMNIST,
}
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPELLINGS = (("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels"))
Batches = Iterator[tuple[Tensor, Tensor]]


class Images(Protocol):
    """The images of a run. What is evaluated is dealt out over the ranks too, in order."""

    classes: int

    @property
    def steps(self) -> int:
        """The batches of an epoch."""
        ...

    def train(self, epoch: int) -> Batches:
        """Give this rank's share of each batch of that epoch."""
        ...

    def held_out(self) -> Batches:
        """Give this rank's share of the images kept for validation."""
        ...

    def test(self) -> Batches:
        """Give this rank's share of the test images."""
        ...


def load_images(recipe: Recipe, place: Place, ranks: Ranks) -> Images:
    """Load the recipe's data set; torchvision downloads what is not there."""
    if recipe.dataset in NAMED or recipe.dataset.endswith(".npz"):
        arrays = _download(recipe.dataset, place.data, ranks) if recipe.dataset in NAMED else _read(recipe.dataset)
        return ArrayImages(arrays, recipe, ranks)
    folder = Path(recipe.dataset) if Path(recipe.dataset).is_dir() else place.data / recipe.dataset
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise SystemExit(
            f"--dataset {recipe.dataset}: give {', '.join(NAMED)}, an .npz file, or a folder with train/ and val/; "
            f"there is no {folder}/train or no {folder}/val"
        )
    return FolderImages(folder, recipe, place, ranks)


class Arrays(NamedTuple):
    """uint8 images [count, height, width] or [count, height, width, channels], and labels [count]."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def _download(name: str, folder: Path, ranks: Ranks) -> Arrays:
    if ranks.is_first:
        NAMED[name](folder, download=True)
    ranks.wait()
    train, test = NAMED[name](folder, train=True), NAMED[name](folder, train=False)
    return Arrays(*(np.asarray(part) for part in (train.data, train.targets, test.data, test.targets)))


def _read(path: str) -> Arrays:
    with np.load(path) as file:
        for names in SPELLINGS:
            if all(name in file for name in names):
                return Arrays(*(file[name] for name in names))
        raise SystemExit(f"{path} holds {', '.join(file)}; it has to hold {' or '.join(map(', '.join, SPELLINGS))}")


@dataclass(frozen=True)
class Split:
    """Normalisable images on the device: uint8 [count, 3, height, width], and int64 labels [count]."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, part: slice) -> Split:
        return Split(self.images[part], self.labels[part])

    def __len__(self) -> int:
        return len(self.labels)


class ArrayImages:
    """Small images, all of them on the device, where they are cropped and flipped."""

    def __init__(self, arrays: Arrays, recipe: Recipe, ranks: Ranks) -> None:
        self.recipe, self.ranks = recipe, ranks
        self.classes = int(arrays.y_train.max()) + 1
        train = _as_split(arrays.x_train, arrays.y_train, ranks.device)
        self._held_out = train[len(train) - recipe.held_out :]
        self._train = train[: len(train) - recipe.held_out][: recipe.train_limit]
        self._test = _as_split(arrays.x_test, arrays.y_test, ranks.device)[: recipe.test_limit]
        _check_counts(recipe, len(self._train), len(self._test))
        deviation, mean = torch.std_mean(train.images.float(), (0, 2, 3), correction=0, keepdim=True)
        if recipe.colours == "imagenet":
            mean, deviation = (
                255 * mean.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_DEVIATION)
            )
        self._mean, self._deviation = mean, deviation

    @property
    def steps(self) -> int:
        return -(-len(self._train) // self.recipe.batch_size)

    def train(self, epoch: int) -> Batches:
        recipe, ranks = self.recipe, self.ranks
        generator = torch.Generator().manual_seed(_mix(recipe.seed, epoch))
        order = torch.randperm(len(self._train), generator=generator)
        draws = torch.randint(0, 2**31, (len(order), 3), generator=generator)
        for batch in torch.arange(len(order)).split(recipe.batch_size):
            mine = batch[ranks.rank :: ranks.count] if len(batch) >= ranks.count else batch
            index = order[mine].to(ranks.device)
            images = self._augment(self._train.images[index].float(), draws[mine].to(ranks.device))
            yield self._normalise(images), self._train.labels[index]

    def held_out(self) -> Batches:
        return self._in_order(self._held_out)

    def test(self) -> Batches:
        return self._in_order(self._test)

    def _in_order(self, split: Split) -> Batches:
        mine = split[slice(self.ranks.rank, None, self.ranks.count)]
        for images, labels in zip(mine.images.split(500), mine.labels.split(500), strict=True):
            yield self._normalise(images.float()), labels

    def _augment(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip each image by its own three draws, int64 [count, 3] of 31 bits."""
        recipe, (height, width) = self.recipe, images.shape[2:]
        if recipe.flip:
            flipped = (draws[:, 0] % 2).bool().view(-1, 1, 1, 1)
            images = torch.where(flipped, images.flip(3), images)
        if recipe.padding:
            images = F.pad(images, [recipe.padding] * 4, mode=recipe.padding_mode)
            corner = draws[:, 1:] % (2 * recipe.padding + 1)
            rows = corner[:, 0, None] + torch.arange(height, device=images.device)
            columns = corner[:, 1, None] + torch.arange(width, device=images.device)
            images = images.gather(2, rows[:, None, :, None].expand(-1, 3, -1, images.shape[3]))
            images = images.gather(3, columns[:, None, None, :].expand(-1, 3, height, -1))
        return images

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._deviation


def _as_split(images: np.ndarray, labels: np.ndarray, device: torch.device) -> Split:
    pixels = torch.from_numpy(images)
    if pixels.dtype != torch.uint8 or pixels.dim() not in (3, 4):
        raise SystemExit(
            f"images of {pixels.dtype} and shape {tuple(pixels.shape)}: give uint8 [count, height, width, 3]"
        )
    pixels = pixels.unsqueeze(3) if pixels.dim() == 3 else pixels
    pixels = pixels.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    return Split(pixels.contiguous().to(device), torch.from_numpy(labels).reshape(-1).long().to(device))


def _check_counts(recipe: Recipe, train: int, test: int) -> None:
    if not train or not test:
        raise SystemExit(
            f"--held-out {recipe.held_out}, --train-limit {recipe.train_limit}, --test-limit {recipe.test_limit} leave "
            f"{train} training and {test} test images"
        )


def _mix(seed: int, epoch: int) -> int:
    """One number for a seed and an epoch, no two alike in any run of sane length."""
    return seed * 1_000_003 + epoch


class FolderImages:
    """Large images in one folder a class, decoded and augmented by the processes of a loader."""

    def __init__(self, folder: Path, recipe: Recipe, place: Place, ranks: Ranks) -> None:
        self.recipe, self.place, self.ranks = recipe, place, ranks
        size = recipe.image_size
        flip = [v2.RandomHorizontalFlip()] if recipe.flip else []
        as_tensor = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_DEVIATION),
        ]
        augment = v2.Compose([v2.RandomResizedCrop(size), *flip, *as_tensor])
        centre = v2.Compose([v2.Resize(size * 256 // 224), v2.CenterCrop(size), *as_tensor])
        train = datasets.ImageFolder(folder / "train", augment)
        self.classes = len(train.classes)
        shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        count = len(train) - recipe.held_out
        self._train = Subset(train, shuffled[:count][: recipe.train_limit])
        self._held_out = Subset(datasets.ImageFolder(folder / "train", centre), shuffled[count:])
        test = datasets.ImageFolder(folder / "val", centre)
        self._test = Subset(test, range(len(test))[: recipe.test_limit])
        _check_counts(recipe, len(self._train), len(self._test))

    @property
    def steps(self) -> int:
        return len(self._loader(0))

    def train(self, epoch: int) -> Batches:
        yield from self._move(self._loader(epoch))

    def held_out(self) -> Batches:
        return self._in_order(self._held_out)

    def test(self) -> Batches:
        return self._in_order(self._test)

    def _loader(self, epoch: int) -> DataLoader[Any]:
        sampler: DistributedSampler[Any] = DistributedSampler(
            self._train, self.ranks.count, self.ranks.rank, seed=self.recipe.seed
        )
        sampler.set_epoch(epoch)
        return DataLoader(
            self._train,
            -(-self.recipe.batch_size // self.ranks.count),
            sampler=sampler,
            num_workers=self.place.workers,
            generator=torch.Generator().manual_seed(_mix(self.recipe.seed, epoch)),
            pin_memory=self.ranks.device.type == "cuda",
        )

    def _in_order(self, images: Subset[Any]) -> Batches:
        mine = Subset(images, range(self.ranks.rank, len(images), self.ranks.count))
        return self._move(DataLoader(mine, 100, num_workers=self.place.workers))

    def _move(self, loader: DataLoader[Any]) -> Batches:
        for images, labels in loader:
            yield images.to(self.ranks.device, non_blocking=True), labels.to(self.ranks.device, non_blocking=True)
