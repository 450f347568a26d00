# %% [markdown]
# # What will a training step hold?
#
# `estimate` predicts the peak memory of any PyTorch step on the CPU, term by term, without running it. It needs neither
# of the two applications: the step is your own.

# %%
import torch
from torch import nn

from common import estimate

# %% [markdown]
# ## A step as you would write it

# %%
network = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))
optimizer = torch.optim.Adam(network.parameters())


def step(batch):
    inputs, classes = batch
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(inputs), classes)
    loss.backward()
    optimizer.step()
    return loss.item()


batch = torch.zeros(1024, 512), torch.zeros(1024, dtype=torch.int64)
found = estimate(step, batch)
print(found)

# %% [markdown]
# Adam keeps two numbers a parameter. The network and the optimiser are as they were: nothing was trained.

# %%
weights = sum(parameter.numel() * 4 for parameter in network.parameters())
assert abs(found["parameters"] / weights - 1) < 0.01
assert abs(found["optimizer states"] / (2 * weights) - 1) < 0.01
assert not optimizer.state and network[0].weight.grad is None

# %% [markdown]
# ## What would help?
#
# Plain SGD has no such numbers, and inference keeps nothing for a backward pass.

# %%
descent = torch.optim.SGD(network.parameters(), 0.1)
peaks = {
    "Adam": found.peak_bytes,
    "SGD": estimate((network, nn.functional.cross_entropy, descent), batch).peak_bytes,
    "inference": estimate(network, batch[0]).peak_bytes,
}
assert peaks["Adam"] > peaks["SGD"] > peaks["inference"]
{name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()}

# %% [markdown]
# ## The largest batch that fits
#
# By bisection, with tensors that have no data (`device="meta"`), so that nothing of the size is ever allocated here:
# how many volumes of 32x32x32 voxels can a small 3D network train on in 100 MiB beside what
# the process already holds? (`process_bytes` counts the process too.)

# %%
with torch.device("meta"):
    volumes = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(),
        nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 2, 1),
    )  # fmt: skip
adam = torch.optim.Adam(volumes.parameters())


def needs(samples):
    images = torch.zeros(samples, 1, 32, 32, 32, device="meta")
    classes = torch.zeros(samples, 32, 32, 32, dtype=torch.int64, device="meta")
    return estimate((volumes, nn.functional.cross_entropy, adam), (images, classes)).peak_bytes


limit = 100 * 2**20
fits, too_many = 1, 16
while too_many - fits > 1:
    middle = (fits + too_many) // 2
    fits, too_many = (middle, too_many) if needs(middle) <= limit else (fits, middle)
assert needs(fits) <= limit < needs(fits + 1) and 1 < fits < 15
fits
