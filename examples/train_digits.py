"""Trains a small convolutional network on the handwritten digits that scikit-learn ships.

    mpirun -np 4 python examples/train_digits.py
    python examples/train_digits.py              # the same script as one process

Each line that a plain, single-process script would not have is marked `# ringreduce`.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import ringreduce as rr  # ringreduce

EPOCHS = 12
BATCH = 64  # over all ranks: the result does not depend on how many share the work
TEST_IMAGES = 360


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 images, shuffled: [N, 1, 8, 8] float32 in 0..1, and their labels [N]."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    return images[order], torch.from_numpy(digits.target)[order]


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def main() -> None:
    rr.init()  # ringreduce
    torch.set_num_threads(1)  # ringreduce: the ranks share the cores
    torch.manual_seed(0)

    images, labels = load()
    test_images, test_labels = images[:TEST_IMAGES], labels[:TEST_IMAGES]
    images, labels = images[TEST_IMAGES:], labels[TEST_IMAGES:]
    test_images, test_labels = (t[rr.rank() :: rr.size()] for t in (test_images, test_labels))  # ringreduce

    model = build_model()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rr.broadcast_parameters(model.state_dict(), root_rank=0)  # ringreduce
    optimizer = rr.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())  # ringreduce

    loss = torch.zeros(())
    progress = tqdm(range(EPOCHS), unit="epoch", disable=rr.rank() != 0)  # ringreduce: only rank 0 shows it
    for _ in progress:
        order = torch.randperm(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            batch = batch[rr.rank() :: rr.size()]  # ringreduce
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        loss = rr.allreduce(loss.detach())  # ringreduce
        progress.set_postfix(loss=f"{loss.item():.4f}")

    with torch.no_grad():
        correct = (model(test_images).argmax(1) == test_labels).sum()
    correct = rr.allreduce(correct, op=rr.Sum)  # ringreduce
    accuracy = correct.item() / TEST_IMAGES
    if rr.rank() == 0:  # ringreduce
        print(f"loss {loss.item():.4f}, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
