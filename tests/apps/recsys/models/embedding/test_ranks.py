"""Embeddings that two ranks train follow the course of one process, also where a rank has nothing of a batch."""

import json
from pathlib import Path

from tests.ranks import over_ranks

STEPS = """
import json
from dataclasses import replace
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig, RATES
from apps.recsys.models.embedding.model import largest_batch, make_step

def trained(config, group):
    torch.manual_seed(2)
    network, _, step = make_step(config, micro_batch=2, group=group)
    losses = []
    for number in range(6):
        torch.manual_seed(number)
        batch = largest_batch(config)
        windows = batch.windows.clone()
        windows[:, 0] = torch.randint(1, config.targets + 1, (len(windows),))
        kept = 1 if number == 3 else len(windows)  # the last batch of an epoch may be smaller than there are ranks
        losses.append(float(step(replace(batch, windows=windows[:kept]))))
    tables = [torch.from_numpy(table.dense()).double() for table in network.tables]
    return losses, tables

worst = 0.0
sizes = dict(items=40, factors=8, batch=5, negatives=12, window=6)
for more in (dict(users=9, loss="ccl", learning_rate=RATES["learned"]), dict(loss="softmax", tables=2)):
    (alone, own), (shared, others) = (trained(EmbeddingConfig(**sizes, **more), one) for one in (ALONE, group))
    worst = max(worst, *(abs(a - b) / abs(a) for a, b in zip(alone, shared)))
    worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(own, others)))
    assert all(len(table) and table.abs().max() > 0 for table in own)
print(json.dumps(worst))
"""


def test_two_ranks_follow_the_course_of_one_process(tmp_path: Path) -> None:
    for output in over_ranks(STEPS, 2, tmp_path):
        assert json.loads(output) <= 1e-5, output
