"""The documented recipe in PyTorch, as a user of PyTorch would write it: the same network, images and epochs.

    python benchmarks/documented_recipe_torch.py FOLDER --epochs 2 --seed 0

Pixels are held as uint8 and scaled batch by batch; weights and images have the memory format `channels_last`, Adam is
the fused one, and weights begin as Keras's do. Nothing is tracked.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__: list[str] = []


def load(labelled: list[tuple[Path, int]], size_px: int) -> TensorDataset:
    """Return pictures, uint8 (num_images, 3, size, size) in `channels_last`, with their labels."""
    pictures = []
    for path, _ in labelled:
        with Image.open(path) as image:
            picture = image.convert("RGB").resize((size_px, size_px), Image.Resampling.NEAREST)
            pictures.append(torch.from_numpy(np.array(picture)))
    pixels = torch.stack(pictures).permute(0, 3, 1, 2)  # rows of pixels in memory are `channels_last` as they are
    return TensorDataset(pixels, torch.tensor([label for _, label in labelled]))


def build(size_px: int) -> nn.Sequential:
    """Return the documented network; the softmax is part of the loss."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * (size_px // 4) ** 2, 128),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(128, 2),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model.to(memory_format=torch.channels_last)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Return float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)


def evaluate(model: nn.Sequential, batches: DataLoader[tuple[torch.Tensor, ...]]) -> tuple[float, float]:
    """Return loss and accuracy."""
    model.eval()
    loss, num_right, num = 0.0, 0, 0
    for pixels, labels in batches:
        with torch.inference_mode():
            logits = model(scaled(pixels))
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        num_right += int((logits.argmax(1) == labels).sum())
        num += len(labels)
    return loss / num, num_right / num


def train_epoch(
    model: nn.Sequential, optimizer: torch.optim.Optimizer, batches: DataLoader[tuple[torch.Tensor, ...]]
) -> float:
    """Train one epoch and return its mean loss."""
    model.train()
    losses = []
    for pixels, labels in batches:
        loss = nn.functional.cross_entropy(model(scaled(pixels)), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return sum(losses) / len(losses)


def main() -> None:
    """Load, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=300)
    options = parser.parse_args()
    labelled = [
        (path, label)
        for label, name in enumerate(("fake", "real"))
        for path in sorted((options.folder / name).iterdir())
    ]
    random.Random(options.seed).shuffle(labelled)
    torch.manual_seed(options.seed)
    cut = int(0.8 * len(labelled))
    train = DataLoader(load(labelled[:cut], options.image_size), batch_size=32, shuffle=True)
    test = DataLoader(load(labelled[cut:], options.image_size), batch_size=32)
    model = build(options.image_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-7, fused=True)
    for epoch in range(1, options.epochs + 1):
        loss = train_epoch(model, optimizer, train)
        val_loss, val_accuracy = evaluate(model, test)
        print(f"epoch {epoch}: loss {loss:.4f}, val_loss {val_loss:.4f}, val_accuracy {val_accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
