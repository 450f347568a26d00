# %% [markdown]
# # A segmentation in 300 MiB
#
# `segment` labels an image with a model, in a process of its own that may hold as much memory as you say: interpreter,
# libraries, network and all. Here it is the hippocampus in a T1-weighted MR volume, by a model that is installed with
# the program. For research; not a medical device.
#
# The images are those of the Medical Segmentation Decathlon (`imaging fetch msd-hippocampus`, 28 MB).

# %%
import nibabel as nib
import numpy as np

from apps.imaging import segment
from common import datasets
from common.errors import DoesNotFit

folder = datasets.find("msd-hippocampus")
assert folder is not None, "imaging fetch msd-hippocampus"
path = sorted((folder / "imagesTr").glob("*.nii*"))[0]  # one that the model was not trained on
path.name

# %% [markdown]
# ## From a file

# %%
found = segment(path, "hippocampus", memory="300MiB")
assert found.names == {0: "background", 1: "Anterior", 2: "Posterior"}
assert found.record["measured"]["peak_bytes"] <= 300 * 2**20
found

# %% [markdown]
# The labels are on the image's own grid, as an array that is mapped from disk. Volumes in millilitres:

# %%
voxel = abs(np.linalg.det(found.affine[:3, :3])) / 1000
volumes = {name: float((found.labels == value).sum() * voxel) for value, name in found.names.items() if value}
assert all(0.5 < volume < 4 for volume in volumes.values())
volumes

# %% [markdown]
# How well it agrees with the reference, as Dice overlap:

# %%
reference = np.asarray(nib.load(folder / "labelsTr" / path.name).dataobj)
dice = {
    name: 2
    * float(((found.labels == value) & (reference == value)).sum())
    / float((found.labels == value).sum() + (reference == value).sum())
    for value, name in found.names.items()
    if value
}
assert min(dice.values()) > 0.8
dice

# %% [markdown]
# ## From an image of nibabel
#
# Any image with an affine will do, changed in this process or made here. Results can be saved like other images.

# %%
image = nib.load(path)
noisy = np.asarray(image.dataobj) + np.random.default_rng(0).normal(0, 5, image.shape)
other = segment(nib.Nifti1Image(noisy.astype(np.float32), image.affine), "hippocampus", memory="300MiB")
assert (other.labels == found.labels).mean() > 0.99
nib.save(other.image, "noisy-labels.nii.gz")
assert np.array_equal(nib.load("noisy-labels.nii.gz").affine, image.affine)

# %% [markdown]
# ## What does not fit is refused
#
# At once, with a ceiling that would do.

# %%
try:
    segment(path, "hippocampus", memory="100MiB")
except DoesNotFit as error:
    refusal = error
print(refusal)

# %%
least = segment(path, "hippocampus", memory=refusal.smallest_feasible_bytes)
assert least.record["measured"]["peak_bytes"] <= refusal.smallest_feasible_bytes
assert np.array_equal(least.labels, found.labels)
