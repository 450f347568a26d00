"""Ranks compute what one process computes, and notice when one of them is gone."""

import json
from pathlib import Path

from tests.ranks import over_ranks

MOVED = """
own, rows = group.rows([torch.arange(3 * (rank + 1), dtype=torch.float64).view(rank + 1, 3) + 10 * rank])
assert rows[0][own].shape == (rank + 1, 3) and rows[0].shape == (sum(range(1, size + 1)), 3)
assert (rows[0][own][0] == torch.arange(3) + 10 * rank).all()
assert group.all_of({"rank": rank, "text": "x" * rank}) == [{"rank": r, "text": "x" * r} for r in range(size)]
assert group.of_leader([rank, "word"]) == [0, "word"]
kinds = {"a": torch.full((2, 3), 7, dtype=torch.bfloat16), "b": torch.tensor(True), "c": torch.empty(0)}
kinds["d"] = torch.tensor(5)
got = group.tensors_of_leader(kinds if group.leads else {})
assert all(torch.equal(got[name], kinds[name]) and got[name].dtype == kinds[name].dtype for name in kinds)
count, share = group.summed(torch.tensor(rank + 1), torch.tensor(0.5))
assert (count.item(), count.dtype, share.item()) == (sum(range(1, size + 1)), torch.int64, size / 2)
assert group.sums([1.0, rank]) == [size, sum(range(size))]
"""
STEPS = """
import json
from common.training import optimizers
from common.training.losses import CrossEntropy, InBatchSoftmax
from common.training.step import TrainingStep

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        self.key = torch.nn.Linear(5, 4)
    def forward(self, rows):
        return self.net(rows), self.key(rows)

class Logits(Pair):
    def forward(self, rows):
        return self.net(rows) + self.key(rows)

def trained(loss, kind, samples, micro_batch, clip, group):
    torch.manual_seed(3)
    network = kind().double()
    optimizer = optimizers.build("sgd", network.parameters(), learning_rate=0.5)
    step = TrainingStep(network, optimizer, loss, micro_batch, clip=clip, group=group)
    losses = []
    for number in range(4):
        made = torch.Generator().manual_seed(number)
        rows = torch.randn(samples, 5, generator=made, dtype=torch.float64)
        targets = torch.randint(-1, 4, (samples,), generator=made)
        share = group.world.share(samples)
        losses.append(float(step([rows[share.start : share.stop], targets[share.start : share.stop]])))
    return losses, torch.cat([p.detach().flatten() for p in network.parameters()])

worst = 0.0
for loss, kind in ((CrossEntropy(), Logits), (InBatchSoftmax(temperature=0.5, ids=1), Pair)):
    for samples, micro_batch, clip in ((8, 8, 0.0), (7, 1, 0.1), (7, 2, 0.0), (5, 3, 0.2)):
        alone = trained(loss, kind, samples, micro_batch, clip, ALONE)
        shared = trained(loss, kind, samples, micro_batch, clip, group)
        of_losses = [abs(a - b) for a, b in zip(alone[0], shared[0])]
        worst = max(worst, float((alone[1] - shared[1]).abs().max()), *of_losses)
print(json.dumps(worst))
"""


def test_values_move_between_ranks_and_a_training_is_that_of_one_process(tmp_path: Path) -> None:
    """Masked targets, losses that couple samples, uneven shares and micro-batches, with and without clipping."""
    worst = [json.loads(output) for output in over_ranks(MOVED + STEPS, 3, tmp_path)]
    assert max(worst) <= 1e-9, worst


LOST = """
import time
from common.training.distributed.group import LostRank
if rank == 1:
    os._exit(0)
began = time.monotonic()
try:
    while True:
        group.sums([1.0])
except LostRank:
    print("lost" if time.monotonic() - began < 30 else "late")
"""


def test_a_rank_that_is_gone_is_noticed(tmp_path: Path) -> None:
    outputs = over_ranks(LOST, 2, tmp_path)
    assert outputs == ["lost\n", ""]
