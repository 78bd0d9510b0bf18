"""How does the demo train a model, and how well does it read digits?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import fxprune
from fxprune.demo.data import Digits
from fxprune.model import PreparedModel

BATCH_SIZE = 64
WEIGHT_DECAY = 1e-2


def train(model: nn.Module, digits: Digits, epochs: int, seed: int, title: str, learning_rate: float = 2e-3) -> None:
    """Train in place on the device of the images; a prepared model becomes sparse on the way.

    AdamW with one cycle of the learning rate. The batches are the same for the same seed, whatever the model.
    A progress bar with that title is shown on terminals.
    """
    torch.manual_seed(seed)
    steps = -(-len(digits.train_labels) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps * epochs)
    scheduler = None
    if isinstance(model, PreparedModel):
        scheduler = fxprune.Scheduler(model, optimizer, total_steps=steps * epochs)
    model.train()
    with tqdm(total=steps * epochs, desc=title, unit="step", disable=None) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(digits.train_labels)).to(digits.train_labels.device)
            for batch in order.split(BATCH_SIZE):
                loss = compute_loss(model, digits.train_images[batch], digits.train_labels[batch])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                rate.step()
                state = {"loss": f"{loss.item():.3f}"}
                if scheduler is not None:
                    state["masked"] = f"{scheduler.sparsity:.0%}"
                bar.set_postfix(state, refresh=False)
                bar.update()
    model.eval()


def compute_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of the model's first output, plus the penalty of a prepared model's method."""
    loss = F.cross_entropy(first_output(model(images)), labels)
    return loss + fxprune.penalty(model) if isinstance(model, PreparedModel) else loss


def first_output(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Take the logits out of the outputs: models with auxiliary heads give several in train mode."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the logits [count, classes] of all images, in eval mode."""
    model.eval()
    return torch.cat([first_output(model(batch)) for batch in images.split(100)])
