"""A plain training script for CIFAR-10 and a small CNN: decode everything to float32, loop over batches, Adam.

It has no ceiling. It is a favourable version of such a script: the images are converted in place, so that no second
copy of them ever exists. ``python -m common.bench.cifar.plain --epochs 10`` ends with one JSON line: losses, accuracy,
seconds, peak, baseline.
"""

import argparse
import json
import sys
import time

import torch
from torch.nn import functional

from common.bench.cifar import dataset
from common.bench.cifar.networks import small
from common.bench.cifar.train import report, warm_up
from common.memory.process import meter


def load(part: str, limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images, float32 (N, 3, 32, 32), and labels, int64 (N,)."""
    images = dataset.Images(part, decode=False, limit=limit)
    return dataset.normalise(torch.from_numpy(images[range(len(images))])), torch.from_numpy(images.labels).long()


def main() -> None:
    """Train and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use only so many images")
    args = parser.parse_args()
    warm_up()  # only so that both runs are measured above the same baseline
    baseline = meter.lifetime_peak()
    meter.reset_peak()

    images, labels = load("train", args.limit)
    test_images, test_labels = load("test", args.limit)
    load_peak = meter.lifetime_peak()
    meter.reset_peak()

    torch.manual_seed(args.seed)
    network = small()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    curve: dict[str, list[float]] = {"losses": [], "accuracies": [], "seconds": [], "cpu_seconds": []}
    for epoch in range(args.epochs):
        began, busy = time.perf_counter(), time.process_time()
        total = 0.0
        order = torch.from_numpy(dataset.order(len(images), seed=args.seed, epoch=epoch))
        for batch in torch.split(order, args.batch):
            loss = functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            batches = zip(torch.split(test_images, args.batch), torch.split(test_labels, args.batch), strict=True)
            correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
        curve["losses"].append(total / len(images))
        curve["accuracies"].append(correct / len(test_images))
        curve["seconds"].append(time.perf_counter() - began)
        curve["cpu_seconds"].append(time.process_time() - busy)
        sys.stderr.write(f"{epoch + 1}: {', '.join(f'{name} {values[-1]:.4f}' for name, values in curve.items())}\n")
    peak = meter.lifetime_peak()
    training = {"training_above_floor_bytes": peak - baseline}
    sys.stdout.write(json.dumps(report(curve, peak=max(peak, load_peak), baseline=baseline) | training) + "\n")


if __name__ == "__main__":
    main()
