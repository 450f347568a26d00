"""Join models that ``imaging train`` made of one data set, such as its folds, into one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.imaging.models.model_folder import ImagingModel, read_manifest, torch_network, write_model
from apps.imaging.models.networks import registry
from apps.imaging.models.networks.ensemble import MOST_MEMBERS, mean_of
from common.engines.base import NETWORK
from common.errors import UsageError
from common.files import scratch_directory

SAME = ("network", "arguments", "channels", "spacing", "orientation", "intensities", "patch", "labels", "inference")
"""Fields in which members agree."""


def check_members(models: Sequence[ImagingModel]) -> None:
    """Refuse models that are no members of one ensemble.

    Raises
    ------
    UsageError
        Too few or too many, an imported model, an ensemble, or models that differ in a field of ``SAME``.
    """
    if not 1 < len(models) <= MOST_MEMBERS:
        raise UsageError(f"an ensemble has 2 to {MOST_MEMBERS} models, not {len(models)}")
    first, *others = models
    for model in models:
        if model.network not in registry.NETWORKS or model.convention != "monai" or "members" in model.arguments:
            raise UsageError(f"{model.directory}: not a single network of imaging train, as members of an ensemble are")
    for model in others:
        for name in SAME:
            if getattr(model, name) != getattr(first, name):
                raise UsageError(f"{model.directory}: its {name} differ from those of {first.directory}")
        if model.weights_sha256 == first.weights_sha256:
            raise UsageError(f"{model.directory} and {first.directory} are the same model")


def write_ensemble(models: Sequence[ImagingModel], directory: Path) -> Mapping[str, Any]:
    """Write the model folder of the ensemble.

    Parameters
    ----------
    models
        As ``check_members`` takes them.
    directory
        The folder; a model in it is replaced.

    Returns
    -------
    mapping
        ``cross_validation`` of the members.
    """
    from apps.imaging.models.onnx_export import export_onnx

    first = models[0]
    network = mean_of([torch_network(model.directory, "logits") for model in models]).eval()
    arguments = {**first.arguments, "members": len(models)}
    if registry.RESHAPED in arguments:
        layers = arguments[registry.RESHAPED].items()
        numbers = range(len(models))
        arguments[registry.RESHAPED] = {f"members.{one}.{name}": sizes for one in numbers for name, sizes in layers}
    manifests: list[dict[str, Any]] = [{**read_manifest(model.directory)} for model in models]
    trainings = [manifest.get("training", {}) for manifest in manifests]
    validated = cross_validation(trainings)
    directory.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory, NETWORK) as draft:
        export_onnx(
            first.network, network, draft / NETWORK, tile=registry.smallest_tile(first.network, first.arguments)
        )
        (draft / NETWORK).replace(directory / NETWORK)
    write_model(
        directory,
        network=first.network,
        arguments=arguments,
        state={name: tensor.detach().half().numpy() for name, tensor in registry.weights(network).items()},
        channels=first.channels,
        spacing=first.spacing,
        orientation=first.orientation,
        intensity=first.intensity,
        patch=first.patch,
        head=None,
        labels=first.labels,
        card=card(first, trainings, validated),
        extra={
            "mirror": first.mirror,
            "training": {"members": trainings, "cross_validation": validated},
            **({"further_intensity": first.further_intensity} if first.further_intensity else {}),
        },
    )
    return validated


def cross_validation(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dice of each class over the held-out cases of all folds, each by the network that has not seen it.

    Parameters
    ----------
    trainings
        The field ``training`` of each member: ``fold`` and ``metrics``.

    Returns
    -------
    dict
        ``cases``, ``mean_dice`` and ``per_class``; empty unless the members are all folds of one division.

    Examples
    --------
    >>> of = lambda fold, dice, cases: {"fold": [fold, 2], "metrics": {"per_class": {"liver": dice}, "cases": cases}}
    >>> cross_validation([of(0, 0.9, 3), of(1, 0.8, 1)])
    {'cases': 4, 'mean_dice': 0.875, 'per_class': {'liver': 0.875}}
    >>> cross_validation([of(0, 0.9, 3), of(0, 0.8, 1)])
    {}
    """
    folds = sorted(tuple(one.get("fold") or ()) for one in trainings)
    if folds != [(number, len(trainings)) for number in range(len(trainings))]:
        return {}
    metrics = [one["metrics"] for one in trainings]
    cases = sum(one["cases"] for one in metrics)
    per_class = {
        name: round(sum(one["per_class"][name] * one["cases"] for one in metrics) / cases, 4)
        for name in metrics[0]["per_class"]
    }
    return {"cases": cases, "mean_dice": round(sum(per_class.values()) / len(per_class), 4), "per_class": per_class}


def card(model: ImagingModel, trainings: Sequence[Mapping[str, Any]], validated: Mapping[str, Any]) -> str:
    """The model card in Markdown: the members with their Dice, and the cross-validation."""
    classes = [label.name for label in model.labels[1:]]
    rows = [(_named(one, number), one.get("metrics") or {}) for number, one in enumerate(trainings)]
    rows += [("cross-validation", validated)] if validated else []
    lines = [
        f"| {name} | {found.get('cases', 0)} | "
        + " | ".join(f"{found.get('per_class', {}).get(one, float('nan')):.4f}" for one in classes)
        + f" | {found.get('mean_dice', float('nan')):.4f} |"
        for name, found in rows
    ]
    return "\n".join(
        [
            "# An ensemble of segmentation models",
            "",
            "For research only. Not a medical device; not for diagnosis or treatment.",
            "",
            f"{len(trainings)} networks of kind {model.network}, whose logits are averaged.",
            "",
            "## Dice of the members on the cases that each held out",
            f"| member | cases | {' | '.join(classes)} | mean |",
            "| --- " * (len(classes) + 3) + "|",
            *lines,
            "",
            "The ensemble itself is not measured by these: each of its members has seen most of the cases.",
            "",
        ]
    )


def _named(training: Mapping[str, Any], number: int) -> str:
    fold = training.get("fold")
    return f"fold {fold[0]}/{fold[1]}" if fold else f"model {number}"
