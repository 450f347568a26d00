"""Warm-ups: functions that load a command's libraries and run each once on tiny data, before the soft wall is set.

The same function in a child measures the command's baseline (``common.memory.costs.baseline``). They are called by
their names in ``apps.imaging.planning.baselines``; no module of the application imports this one.
"""

from typing import Any


def _command_line() -> None:
    """The parser, and the progress bar's library with its lock (multiprocessing), which every command has loaded."""
    from tqdm import tqdm

    from apps.imaging import cli

    cli.parser()
    tqdm.get_lock()


def _nifti_header() -> None:
    """nibabel's header arithmetic."""
    import nibabel
    import numpy as np

    header: Any = nibabel.Nifti1Header
    header().set_qform(np.eye(4))


def _images() -> None:
    """Reading and writing of images."""
    _command_line()
    import gzip
    import zlib

    import numpy as np
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont
    import pydicom
    import pydicom.pixels
    import safetensors.numpy

    import apps.imaging.dicom.series
    import apps.imaging.inference.running.several
    import apps.imaging.inference.writing.preview

    block = np.ones((256, 256), np.float32)
    block = block @ block  # starts the BLAS threads
    gzip.decompress(gzip.compress(zlib.compress(bytes(1 << 16))))
    _nifti_header()
    picture = PIL.Image.fromarray(np.zeros((16, 16, 3), np.uint8)).resize((32, 32))
    PIL.ImageDraw.Draw(picture).text((0, 0), "x", font=PIL.ImageFont.load_default(12))
    del pydicom, safetensors, apps


def openvino() -> None:
    """Inference with OpenVINO."""
    from base64 import b64decode

    import numpy as np

    from common.engines.openvino import import_openvino

    ov = import_openvino()
    _images()
    core = ov.Core()
    compiled = core.compile_model(core.read_model(b64decode(TINY_ONNX)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled(np.ones((1, 1, 8, 8, 8), np.float32))


def compress() -> None:
    """Quantisation: OpenVINO and NNCF."""
    from common.engines.quantization import import_nncf

    openvino()
    import_nncf()


TINY_ONNX = (
    "CAg6sAEKMQoBcxIBayIPQ29uc3RhbnRPZlNoYXBlKhgKBXZhbHVlKgwIARABIgQAAIA/QgCgAQQKJgoBeAoBaxIBeSIEQ29udioVCgRwYWRzQAFA"
    "AUABQAFAAUABoAEHEgFnKg4IBRAHOgUIAQMDA0IBc1ofCgF4EhoKGAgBEhQKAggBCgIIAQoCCAgKAggICgIICGIfCgF5EhoKGAgBEhQKAggBCgII"
    "CAoCCAgKAggICgIICEIECgAQEQ=="
)
"""One convolution, (1, 1, 8, 8, 8) -> (1, 8, 8, 8, 8), made by ``onnx``, whose import would add to the baseline."""


def onnxruntime() -> None:
    """Inference with ONNX Runtime."""
    from base64 import b64decode

    import numpy as np
    import onnxruntime as library

    _images()
    session = library.InferenceSession(b64decode(TINY_ONNX), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones((1, 1, 8, 8, 8), np.float32)})


def torch() -> None:
    """Inference with PyTorch."""
    import numpy as np
    import torch as library

    from apps.imaging.models.networks.monai import import_monai

    _images()
    import_monai()
    with library.inference_mode():
        library.nn.Conv3d(1, 8, 3, padding=1)(library.from_numpy(np.ones((1, 1, 8, 8, 8), np.float32)))


def export_onnx() -> None:
    """Export of an ONNX file."""
    _command_line()
    from base64 import b64decode

    import onnx
    import safetensors.numpy
    from onnx import helper

    import apps.imaging.exporters.onnx_file

    network = onnx.load_from_string(b64decode(TINY_ONNX))
    helper.set_model_props(network, {"name": "value"})
    onnx.checker.check_model(network)
    network.SerializeToString()
    del safetensors, apps


def export_bundle() -> None:
    """Export of a MONAI bundle: a network is built and written."""
    _command_line()
    import io

    import safetensors.torch
    import torch as library

    import apps.imaging.exporters.monai_bundle
    from apps.imaging.models.networks import registry

    network = registry.build("segresnet", registry.arguments("segresnet", {}, in_channels=1, out_channels=2))
    library.save(network.state_dict(), io.BytesIO())
    del safetensors, apps


def ensemble() -> None:
    """Export of several networks as one: a tiny one is exported."""
    _command_line()
    import tempfile
    from pathlib import Path

    import safetensors.numpy
    import safetensors.torch

    import apps.imaging.models.ensemble
    from apps.imaging.models.networks import registry
    from apps.imaging.models.onnx_export import export_onnx

    arguments = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    network = registry.build("segresnet", registry.arguments("segresnet", arguments, in_channels=1, out_channels=2))
    with tempfile.TemporaryDirectory() as folder:
        export_onnx("segresnet", network, Path(folder) / "network.onnx", tile=(4, 4, 4))
    del safetensors, apps


def shrink_on_images() -> None:
    """A smaller network, of which images decide what goes."""
    _images()
    shrink()


def shrink() -> None:
    """A smaller network: a tiny one is cut and exported."""
    ensemble()
    import torch as library

    import apps.imaging.compression.shrinking
    from apps.imaging.models.networks import registry
    from common.compression.networks import importance, low_rank, pruning
    from common.compression.networks.channels import channels_of

    small = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    network = registry.build("segresnet", registry.arguments("segresnet", small, in_channels=1, out_channels=2)).eval()
    image = library.ones(2, 1, 8, 8, 8)
    layout = channels_of(network, image)
    found = pruning.Channels(layout, registry.weights(network), dict(network.named_modules()))
    pruning.prune(found, found.norms(), 0.1)
    importance.block_effects(network, lambda: [image])
    importance.taylor(network, found, lambda: [image[:1]], lambda logits: logits.sum())
    for name, spectrum in low_rank.spectra(found.layers, found.weights).items():
        low_rank.factors(found.layers[name], name, found.weights, spectrum.ranks(0.5))
    del apps


def evaluate() -> None:
    """Comparison of segmentations."""
    _command_line()
    import numpy as np
    from scipy.spatial import cKDTree

    import apps.imaging.evaluation.pairing
    import apps.imaging.importers.monai_bundle
    import apps.imaging.importers.nnunet
    import apps.imaging.models.label_map
    import apps.imaging.planning.evaluate

    cKDTree(np.eye(3)).query(np.eye(3))
    _nifti_header()
    del apps


def fingerprint() -> None:
    """One pass over a labelled data set."""
    _command_line()
    import gzip

    import numpy as np

    import apps.imaging.planning.fingerprint

    gzip.decompress(gzip.compress(bytes(1 << 16)))
    _nifti_header()
    values = np.arange(8, dtype=np.float32)
    np.percentile(values, [1.0]), np.unique(values, return_counts=True), np.median(values)
    del apps


def trace() -> None:
    """Networks and steps that are only traced; since no operator runs then, none has to run here."""
    import torch

    import apps.imaging.training.recipe
    from apps.imaging.models.networks.monai import import_monai

    import_monai()
    del torch, apps


def train() -> None:
    """Training: a step, a validation and a checkpoint of tiny networks, through every kind of kernel."""
    _command_line()
    import numpy as np
    import torch as library
    from safetensors.torch import save

    from apps.imaging.models.networks.registry import arguments
    from apps.imaging.training.data.patch_sampling import Sampler, Volumes
    from apps.imaging.training.recipe import Recipe, make_step
    from apps.imaging.training.validation import validate
    from apps.imaging.volumes.geometry import AxisMapping
    from common.memory.costs import cpu

    volumes, side = Volumes(), (16, 16, 16)
    volumes.add(np.ones((1, *side), np.float32), np.ones(side, np.uint8))
    draw = Sampler(volumes, side, 2, 0)
    # With single samples in float32, some layers are matrix products and all others oneDNN's; recomputing loads code.
    lower = "bf16" if "bf16" in cpu.precisions("torch") else "off"  # emulated without kernels, and refused, elsewhere
    kinds = (("off", 1, "none"), ("off", 2, "blocks"), (lower, 2, "cheap"), ("off", 1, "4/8"))
    for name in ("segresnet", "dynunet", "unet"):  # these have all layers of the table of networks
        recipe = Recipe(
            network=name,
            arguments=arguments(name, {}, in_channels=1, out_channels=2),
            patch=side,
            batch=2,
            steps=1,
            seconds=None,
            learning_rate=1e-3,
            weight_decay=0.0,
            clip=1.0,
            mirror="xyz",
            validation_cases=1,
            fold=None,
            seed=0,
        )
        for amp, micro_batch, checkpoint in kinds:
            network, _, step = make_step(recipe, micro_batch=micro_batch, amp=amp, checkpoint=checkpoint)
            step(draw(0))
    for number in range(8):  # so that every augmentation has run
        draw(number)
    validate(network, volumes, [0], side, 2, lower)
    save(network.state_dict())
    AxisMapping.between(np.eye(4), "RAS")
    library.manual_seed(0)


def train_over_ranks() -> None:
    """Training over several ranks."""
    from common.training.distributed.group import rehearse

    train()
    rehearse()


def train_over_ranks_with_events() -> None:
    """Training over several ranks, with TensorBoard's event files."""
    from common.training.distributed.group import rehearse

    train_with_events()
    rehearse()


def train_with_events() -> None:
    """Training with TensorBoard's event files."""
    train()
    import tempfile

    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_scalar("loss", 1.0, 0)
