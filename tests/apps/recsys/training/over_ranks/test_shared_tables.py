"""Tables whose rows are shared out train as those of one process, and are saved and written as theirs."""

import json
from pathlib import Path

from tests.ranks import over_ranks

STEPS = """
import json
from pathlib import Path
from apps.recsys.models import streamed, weights
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig
from apps.recsys.models.embedding.model import EmbeddingBatch, make_step
from apps.recsys.training import fit_embedding
from apps.recsys.training.over_ranks import shared_tables
from common.training import checkpoint

ITEMS, USERS, STEPS = 203, 31, 5

def batches(config):
    for number in range(STEPS):
        made = torch.Generator().manual_seed(number)
        rows = torch.randperm(ITEMS, generator=made)[:60].sort().values
        users = torch.randperm(USERS, generator=made)[:9].sort().values if config.users else torch.zeros(0).long()
        windows = torch.cat([
            torch.randint(1, config.targets + 1, (11, 1), generator=made),
            torch.randint(len(users) or 1, (11, 1), generator=made),
            torch.randint(60, (11, config.width), generator=made),
        ], 1)
        negatives = torch.randint(60, (7,), generator=made)
        yield EmbeddingBatch(rows, users, windows, negatives, torch.zeros(7), torch.zeros(60))

def trained(config, double, group, shared):
    torch.manual_seed(3)
    network, optimizer, step = make_step(config, micro_batch=3, group=group, shared=shared)
    if double:
        network.double()
    return network, [float(step(batch)) for batch in batches(config)]

def apart(table, alone):
    own = table.form.own
    return max(
        float((getattr(table.form, part).float() - getattr(alone.form, part)[own.start : own.stop].float()).abs().max())
        for part in ("codes", "state", "scales") if getattr(table.form, part) is not None
    ) if len(own) else 0.0

worst = {}
for kind, more in (("full", {}), ("int8", {}), ("int4", {"tables": 2}), ("full", {"users": USERS, "loss": "ccl"})):
    config = EmbeddingConfig(ITEMS, 6, table=kind, batch=11, negatives=7, window=5, learning_rate=0.1, **more)
    for double in (True, False):
        if double and kind != "full":
            continue
        alone, expected = trained(config, double, ALONE, False)
        network, losses = trained(config, double, group, True)
        assert len(network.items.form.codes) == len(group.share(ITEMS)) < ITEMS
        differences = [abs(a - b) / abs(a) for a, b in zip(expected, losses)]
        key = f"{kind} {'float64' if double else 'float32'} {more.get('loss', '')}"
        # Codes may differ by one where the last digit of a gradient does.
        of_tables = [apart(*pair) for pair in zip(network.tables, alone.tables)] if kind == "full" else []
        worst[key] = max(*differences, *of_tables, worst.get(key, 0.0))
        path = Path(folder) / f"{kind}.safetensors"
        shared_tables.save(path, network, {"progress": 1}, group)
        again, _ = trained(config, double, group, True)
        for table in again.tables:
            table.form.codes.zero_(); table.form.state.zero_()
        shared_tables.load(path, again, group)
        for one, other in zip(again.tables, network.tables):
            assert torch.equal(one.form.codes, other.form.codes) and torch.equal(one.form.state, other.form.state)
        if group.leads and not double:  # one process continues it
            assert checkpoint.read_state(path) == {"progress": 1}
            optimizer = make_step(config, micro_batch=3)[1]
            checkpoint.restore(path, network=alone, optimizer=optimizer)
            assert apart(network.items, alone.items) == 0
        if not double:
            named = fit_embedding.tensors(network, None)
            if group.leads:
                weights.write(Path(folder) / "weights", named)
                found = weights.read_all(Path(folder) / "weights")
                expected = fit_embedding.tensors(alone, None)
                assert found.keys() == expected.keys()
                assert all((found[name] == expected[name]).all() for name in found)
            else:
                streamed.send(named)
print(json.dumps(worst))
"""


def test_steps_and_files_are_those_of_one_process(tmp_path: Path) -> None:
    """Float64 to 1e-9, float32 and codes to 1e-3; saved by ranks, continued by one process, and written as by one."""
    for output in over_ranks(STEPS, 3, tmp_path):
        for name, worst in json.loads(output).items():
            assert worst <= (1e-9 if "float64" in name else 1e-3), (name, worst)
