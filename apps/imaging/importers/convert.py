"""Convert models of other programs, once, into a model folder in the cache.

Nothing in their files is run: JSON is parsed, names are looked up in tables, weights are read by
``torch.load(weights_only=True)``, which makes only tensors and plain containers. The conversion runs in a child behind
a soft wall, and is refused beforehand if the ceiling is too small for it.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.importers import monai_bundle, nnunet
from apps.imaging.importers.nnunet_results import is_results
from common import __version__
from common.errors import EXIT_OK, EXIT_UNFORESEEN, BadInput, DoesNotFit, UsageError
from common.files import scratch_directory, sha256, write_text
from common.memory.costs.store import cache_directory
from common.memory.process import child, glibc, guard
from common.memory.process.budget import MIB, MemoryBudget
from common.memory.process.meter import anonymous
from common.model_folder import MANIFEST

if TYPE_CHECKING:
    import torch

LIBRARIES_BYTES = 400 * MIB
"""Interpreter, torch and its exporter: 251 MiB with a checkpoint of 100 kB, and tracing grows with the layers."""
COPIES = 5
"""Copies of the weights at once, while the exporter writes its file (906 MiB with weights of 119 MiB, 251 MiB with
those of 0.1 MiB)."""
STATES = {b"momentum_buffer": 1, b"exp_avg_sq": 2}
"""What a checkpoint's table of contents has where it also holds an optimiser's state -> copies of the weights in it."""
LONGEST_CONTENTS = 16 * MIB
LONGEST_SECONDS = 600
CHILD = "apps.imaging.importers.convert"
"""The module that converts: this one."""


def converted_model(directory: Path, budget: MemoryBudget, weights: nnunet.Weights | None = None) -> Path:
    """The model folder of an nnU-Net model or a MONAI bundle; ``directory`` itself if it is neither.

    A conversion is kept in the cache and used again while the model's files stay the same.

    Parameters
    ----------
    weights
        The checkpoints of a model of nnU-Net; ``None``: its default.

    Raises
    ------
    BadInput
        A model that cannot be read, or is not supported.
    UsageError
        If checkpoints are chosen that the model does not have.
    DoesNotFit
        If the ceiling is too small for the conversion.
    """
    chosen = weights or nnunet.Weights()
    if nnunet.is_nnunet(directory):
        nnunet.read_plan(directory)
        files = [directory / nnunet.PLANS, directory / nnunet.DATASET, *nnunet.checkpoints(directory, chosen)]
    elif chosen != nnunet.Weights():
        raise UsageError(f"--folds and --checkpoint choose weights of nnU-Net's models, and {directory} is none")
    elif monai_bundle.is_bundle(directory):
        files = monai_bundle.files(directory, monai_bundle.read_plan(directory))
    else:
        nnunet.refuse_others(directory)
        if is_results(directory):
            message = "a folder of results; choose the folder of one model in it, or --task total"
            raise BadInput(f"{directory}: {message}", public="folder of several models")
        return directory
    converted = cache_directory().parent / "models" / _key(directory, files)
    if not (converted / MANIFEST).is_file():
        _convert(directory, converted, budget, price(files), [chosen.checkpoint, *chosen.folds])
    return converted


def price(files: list[Path]) -> int:
    """Bytes that a conversion needs; all folds are in one network."""
    return LIBRARIES_BYTES + COPIES * sum(map(weights_bytes, files))


def weights_bytes(path: Path) -> int:
    """Size of a file without the state of an optimiser, if it is a checkpoint of PyTorch that has one.

    Nothing in it is unpickled: its table of contents is searched for names.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            (contents,) = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if contents.file_size > LONGEST_CONTENTS:
                return size
            text = archive.read(contents)
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, NotImplementedError):
        return size
    return size // (1 + sum(copies for name, copies in STATES.items() if name in text))


def _key(directory: Path, files: list[Path]) -> str:
    """Digest of the files' content. Hashing weights takes seconds, so it is stored with their sizes and times."""
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    note = cache_directory().parent / "models" / f"{_digest([__version__, seen])}.seen"
    if note.is_file():
        return note.read_text("utf-8")
    key = _digest([__version__, directory.resolve().name, *(sha256(path) for path in files)])
    write_text(note, key)
    return key


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _convert(directory: Path, target: Path, budget: MemoryBudget, needed: int, weights: list[str]) -> None:
    """Convert in a child, into a scratch folder that is then renamed to ``target``."""
    from common.memory.footprint import Footprint, Term
    from common.memory.plan.plan import Plan

    if needed > budget.host_bytes:
        terms = [
            Term("interpreter and libraries", LIBRARIES_BYTES, "measured", ("import",)),
            Term("weights, converted", needed - LIBRARIES_BYTES, "analytic", ("import",)),
        ]
        smallest = Plan("imaging infer (import of the model)", (), Footprint.of(terms))
        raise DoesNotFit(ceiling=budget.host_bytes, smallest=smallest)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(target.parent, target.name) as draft:
        done = child.run_module(
            CHILD,
            [str(directory), str(draft), *weights],
            ceiling=budget.host_bytes - guard.SUPERVISOR_BYTES - anonymous(),
            variables=glibc.environment(1),
            timeout=LONGEST_SECONDS,
        )
        if done.exit.status != EXIT_OK:
            raise _failure(directory, done)
        os.rename(draft, target)


def _failure(directory: Path, done: child.Finished) -> Exception:
    """The exception for a conversion that failed; it is the model's fault if the child raised an exception."""
    if done.exit.timed_out:
        return BadInput(f"{directory}: not imported after {LONGEST_SECONDS} s", public="import failed")
    if done.exit.out_of_memory:
        return MemoryError(f"{directory}: the process that converts the model {done.exit}")
    if done.exit.status != EXIT_UNFORESEEN:
        return child.ChildFailed(f"{directory}: the process that converts the model {done.exit}")
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    unsafe = [line for line in lines if "unsupported" in line.lower()]
    why = unsafe[0] if unsafe else done.last_line or str(done.exit)
    return BadInput(f"{directory}: cannot be imported ({why[:300]})", public="model cannot be imported")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values; NumPy's scalars are allowed, because nnU-Net's logs have them, and
    arrays, because DiNTS's codes are some."""
    import numpy as np
    import torch

    made: Any = np._core.multiarray  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u1", "?")]
    older = [(one, f"numpy.core.multiarray.{one.__name__}") for one in (made.scalar, made._reconstruct)]
    with torch.serialization.safe_globals([made.scalar, made._reconstruct, np.ndarray, np.dtype, *kinds, *older]):
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def convert_bundle(directory: Path, out: Path) -> None:
    """Write the model folder of a MONAI bundle; called in the child."""
    from apps.imaging.models.model_folder import labels_from_names
    from apps.imaging.models.networks import registry
    from apps.imaging.models.networks.monai_bundle import CODES

    plan = monai_bundle.read_plan(directory)
    state: Any = read_checkpoint(plan.weights)
    for name in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    arguments = {**plan.arguments}
    if plan.codes is not None:
        codes = read_checkpoint(plan.codes)
        arguments |= {key: [[int(one) for one in row] for row in codes[key]] for key in CODES}
    network = registry.build(plan.network, arguments)
    tensors = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if plan.clicks:
        tensors = _of_images(tensors, network.state_dict(), 1 + plan.clicks)
    if plan.network == monai_bundle.VISTA:
        from apps.imaging.models.networks.vista3d import automatic

        tensors = automatic(tensors, plan.values[1:])
    network.load_state_dict(tensors)
    multiples = registry.divisors(plan.network, arguments)
    x, y, z = (max(2 * size, 8) for size in multiples)
    patch = plan.inferer.patch or (x, y, z)
    named = zip(labels_from_names(list(plan.labels)), plan.values, strict=True)
    _write(
        out,
        plan,
        network,
        arguments=arguments,
        patch=patch,
        labels=[replace(label, value=value) for label, value in named],
        card=f"# Imported from a MONAI bundle\n\n{plan.network}. Research use only.\n",
        extra={
            "convention": "bundle",
            "further_intensity": plan.further_intensity,
            "inference": {
                "overlap": plan.inferer.overlap,
                "importance": plan.inferer.importance,
                "padding": plan.inferer.padding,
                **({} if plan.inferer.patch else {"whole": True}),
                **plan.inference,
            },
        },
    )


def _of_images(tensors: dict[str, Any], expected: dict[str, Any], channels: int) -> dict[str, Any]:
    """Weights of a network without its further input channels, which are zero.

    Parameters
    ----------
    expected
        Of the network of one channel.
    channels
        Of the network that has these weights.
    """
    found = dict(tensors)
    for key in expected.keys() & tensors.keys():
        have, want = tensors[key].shape, expected[key].shape
        if len(have) == 5 and have[1] == channels and (have[0], 1, *have[2:]) == tuple(want):
            found[key] = tensors[key][:, :1].clone()
    return found


def _write(out: Path, plan: Any, network: "torch.nn.Module", *, arguments: Any = None, **fields: Any) -> None:
    """Export the network as ONNX, then write the model folder around it."""
    import torch

    from apps.imaging.models.model_folder import write_model
    from apps.imaging.models.networks import registry
    from apps.imaging.models.onnx_export import export_onnx

    arguments = plan.arguments if arguments is None else arguments
    x, y, z = (max(2 * size, 8) for size in registry.divisors(plan.network, arguments))
    if registry.is_static(plan.network):
        x, y, z = fields["patch"]
    with torch.no_grad():
        output = export_onnx(plan.network, network, out / "network.onnx", tile=(x, y, z))
    head = registry.split_head(plan.network, network) if output == "features" else None
    name = registry.head_name(plan.network, network)
    write_model(
        out,
        network=plan.network,
        arguments=arguments,
        state={key: tensor.detach().numpy() for key, tensor in registry.weights(network).items()},
        channels=plan.channels,
        spacing=plan.spacing,
        orientation=plan.orientation,
        intensity=plan.intensity,
        head={"weight": f"{name}.weight", "bias": f"{name}.bias"} if head else None,
        **fields,
    )


def convert_nnunet(directory: Path, out: Path, weights: nnunet.Weights) -> None:
    """Write the model folder of an nnU-Net model; called in the child."""
    from apps.imaging.models.model_folder import labels_from_names
    from apps.imaging.models.networks import registry

    plan, states = nnunet.read_plan(directory), []
    axes: Sequence[int] = ()
    arguments: dict[str, Any] = {**plan.arguments}
    trainer = ""
    for path in nnunet.checkpoints(directory, weights):
        checkpoint = read_checkpoint(path)
        trained = checkpoint.get("init_args", {}).get("configuration", plan.configuration)
        if trained != plan.configuration:
            raise BadInput(f"{path.name} is of {trained}, and the folder's name of {plan.configuration}")
        states.append(checkpoint["network_weights"])
        axes = checkpoint.get("inference_allowed_mirroring_axes") or ()
        trainer = str(checkpoint.get("trainer_name", ""))
        del checkpoint
    if any(name.endswith("running_mean") for name in states[0]):  # as nnUNetTrainerBN has it, whatever the plan says
        arguments |= {"norm_op": "BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    arguments["members"] = len(states)
    network = registry.build(plan.network, arguments)
    members = [network] if len(states) == 1 else list(network.members)  # type: ignore[arg-type]
    for member, state in zip(members, states, strict=True):
        _load(member, state, flat=plan.flat, trainer=trainer)
    states.clear()
    labels = labels_from_names(list(plan.labels))
    _write(
        out,
        plan,
        network,
        arguments=arguments,
        patch=plan.patch,
        labels=[replace(label, value=value) for label, value in zip(labels, plan.labels.values(), strict=True)],
        card=f"# Imported from nnU-Net\n\n{plan.network}, {len(members)} fold(s). Research use only.\n",
        extra={
            "convention": "nnunet",
            **({"previous": list(plan.previous)} if plan.previous else {}),
            "mirror": "".join("xyz"[int(axis) + plan.flat] for axis in axes),
            "further_intensity": plan.further_intensity,
            "inference": dict(plan.inference),
        },
    )


def _load(network: "torch.nn.Module", state: dict[str, Any], *, flat: bool, trainer: str) -> None:
    """Load nnU-Net's weights, whose names begin with ``_orig_mod.`` if the network was compiled.

    Parameters
    ----------
    flat
        True for kernels of two dimensions, which get a depth of one voxel.
    trainer
        nnU-Net's class that trained them.

    Raises
    ------
    BadInput
        Weights of another network than the plan's.
    """
    tensors = {key.removeprefix("_orig_mod."): tensor for key, tensor in state.items()}
    if flat:
        tensors = {key: tensor[:, :, None] if tensor.ndim == 4 else tensor for key, tensor in tensors.items()}
    expected = network.state_dict()
    differ = {*expected} ^ {*tensors} or {key for key in expected if expected[key].shape != tensors[key].shape}
    if differ:
        by = f" ({trainer} may build another)" if trainer not in ("", "nnUNetTrainer") else ""
        raise BadInput(f"weights do not fit the network of the plan{by}: {min(differ)} and {len(differ) - 1} more")
    network.load_state_dict(tensors)


def main() -> None:
    """Convert in the child: ``python -m apps.imaging.importers.convert MODEL OUT CHECKPOINT [FOLD ...]``."""
    directory, out = Path(sys.argv[1]), Path(sys.argv[2])
    weights = nnunet.Weights(tuple(sys.argv[4:]), sys.argv[3])
    glibc.pin_thresholds()
    import torch  # before the walls are set, because what it reserves is not data

    torch.set_num_threads(1)
    child.Walls.of_this_process().stand()
    if nnunet.is_nnunet(directory):
        convert_nnunet(directory, out, weights)
    else:
        convert_bundle(directory, out)


if __name__ == "__main__":
    child.run_work(main)
