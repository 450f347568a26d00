"""States that are shared out train as those of one process, and are saved for any number of ranks."""

import json
from pathlib import Path

from tests.ranks import over_ranks

STEPS = """
import json
from pathlib import Path
from common.training import checkpoint, optimizers
from common.training.distributed import sharding
from common.training.losses import CrossEntropy, InBatchSoftmax
from common.training.step import TrainingStep

sharding.UNIT = 20

class Pair(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 4))
        self.key = torch.nn.Linear(5, 4)
        self.register_buffer("seen", torch.zeros(2))
    def forward(self, rows):
        return self.net(rows), self.key(rows)

class Logits(Pair):
    def forward(self, rows):
        return self.net(rows) + self.key(rows)

def made(kind, name, group):
    torch.manual_seed(3)
    network = kind().double()
    if group.several:
        sharding.share_out(network, group)
    return network, optimizers.build(name, network.parameters(), learning_rate=0.05)

def trained(network, optimizer, loss, samples, micro_batch, clip, group, steps):
    step = TrainingStep(network, optimizer, loss, micro_batch, clip=clip, group=group)
    losses = []
    for number in steps:
        drawn = torch.Generator().manual_seed(number)
        rows = torch.randn(samples, 5, generator=drawn, dtype=torch.float64)
        targets = torch.randint(-1, 4, (samples,), generator=drawn)
        share = group.share(samples)
        losses.append(float(step([rows[share.start : share.stop], targets[share.start : share.stop]])))
    return losses, network

worst = {}
for name in sharding.OPTIMIZERS:
    for loss, kind in ((CrossEntropy(), Logits), (InBatchSoftmax(temperature=0.5, ids=1), Pair)):
        for samples, micro_batch, clip in ((12, 8, 0.0), (12, 1, 0.1), (12, 2, 0.2), (7, 8, 0.0)):
            alone = trained(*made(kind, name, ALONE), loss, samples, micro_batch, clip, ALONE, range(4))
            shared = trained(*made(kind, name, group), loss, samples, micro_batch, clip, group, range(4))
            found = sharding.whole(dict(shared[1].named_parameters()))
            of_losses = max(abs(a - b) for a, b in zip(alone[0], shared[0]))
            of_weights = max(float((found[n] - p.detach()).abs().max()) for n, p in alone[1].named_parameters())
            worst[name] = max(worst.get(name, 0.0), of_losses, of_weights)

loss, path = CrossEntropy(), Path(folder) / "some.safetensors"
network, optimizer = made(Logits, "adamw", group)
trained(network, optimizer, loss, 12, 2, 0.0, group, range(3))
more = {"average": next(network.parameters()).detach().clone()}
sharding.save(path, network=network, optimizer=optimizer, state={"step": 3}, more=more, group=group)
expected = trained(network, optimizer, loss, 12, 2, 0.0, group, range(3, 6))[0]
again, other = made(Logits, "adamw", group)
kept = {"average": torch.zeros_like(more["average"])}
sharding.load(path, network=again, optimizer=other, more=kept, group=group)
assert torch.equal(kept["average"].to_local(), more["average"].to_local())
assert trained(again, other, loss, 12, 2, 0.0, group, range(3, 6))[0] == expected
if group.leads:  # one process continues it, and saves what the ranks continue
    one, optimizer = made(Logits, "adamw", ALONE)
    assert checkpoint.read_state(path) == {"step": 3}
    checkpoint.restore(path, network=one, optimizer=optimizer)
    checkpoint.save(Path(folder) / "one", network=one, optimizer=optimizer, state={}, more=checkpoint.more_of(
        checkpoint.read_tensors(path)))
    continued = trained(one, optimizer, loss, 12, 2, 0.0, ALONE, range(3, 6))[0]
    worst["continued"] = max(abs(a - b) for a, b in zip(expected, continued))
again, other = made(Logits, "adamw", group)
sharding.load(Path(folder) / "one", network=again, optimizer=other, more=kept, group=group)
assert trained(again, other, loss, 12, 2, 0.0, group, range(3, 6))[0] == expected
states = [p.to_local() for p in again.parameters()] + [
    v.to_local() for s in other.state.values() for v in s.values() if v.dim()]
whole = 3 * 8 * sum(p.numel() for p in again.parameters())
print(json.dumps({"worst": worst, "share": sum(8 * s.numel() for s in states) / whole}))
"""


def test_steps_and_checkpoints_are_those_of_one_process(tmp_path: Path) -> None:
    """Masked targets, coupled losses, accumulation, clipping and uneven shares; parts of one row or none."""
    for output in over_ranks(STEPS, 4, tmp_path):
        found = json.loads(output)
        assert max(found["worst"].values()) <= 1e-9, found
        assert found["share"] <= 0.35, found
