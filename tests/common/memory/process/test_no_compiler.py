"""PyTorch's compiler stays out of a command's process, changes nothing there, and comes where it is let in."""

import subprocess
import sys

STEPS = """
import sys
import torch
from common.memory.process import no_compiler
from common.training import optimizers
from common.training.losses import CrossEntropy
from common.training.step import TrainingStep
from torch.utils.checkpoint import checkpoint

class Recomputed(torch.nn.Linear):
    def forward(self, rows):
        return checkpoint(super().forward, rows, use_reentrant=False)

def weights():
    found = []
    for name in optimizers.NAMES:
        torch.manual_seed(0)
        net = torch.nn.Sequential(Recomputed(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        optimizer = optimizers.build(name, net.parameters(), learning_rate=1e-2)
        step = TrainingStep(net, optimizer, CrossEntropy(), 3)
        for _ in range(3):
            step([torch.randn(7, 5), torch.randint(0, 3, (7,))])
        optimizer.load_state_dict(optimizer.state_dict())
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return torch.cat(found)

no_compiler.leave_out()
without = weights()
loaded = {name for name in sys.modules if name.startswith(("torch._dynamo", "sympy"))}
assert loaded == {"torch._dynamo", "torch._dynamo.config"}, loaded
without.numpy().tofile(sys.argv[1])
"""


def test_training_has_the_same_bits_without_it(tmp_path):
    subprocess.run([sys.executable, "-c", STEPS, tmp_path / "without"], check=True)
    with_it = STEPS.replace("no_compiler.leave_out()\n", "", 1).replace("assert loaded ==", "assert loaded >")
    subprocess.run([sys.executable, "-c", with_it, tmp_path / "with"], check=True)
    assert (tmp_path / "without").read_bytes() == (tmp_path / "with").read_bytes()


COMPILED = """
import sys
from common.memory.process import no_compiler
no_compiler.leave_out()
assert "torch" not in sys.modules
import torch
assert torch._dynamo.config.recompile_limit > 0 and "torch._dynamo.eval_frame" not in sys.modules
no_compiler.let_in()
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
no_compiler.leave_out()  # too late: it stays
assert torch._dynamo.eval_frame.__name__ == "torch._dynamo.eval_frame"
"""


def test_code_that_compiles_lets_it_in():
    subprocess.run([sys.executable, "-c", COMPILED], check=True)
