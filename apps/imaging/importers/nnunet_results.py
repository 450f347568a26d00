"""nnU-Net's results folders, ``DatasetNNN_NAME/TRAINER__PLANS__CONFIGURATION``, of which a task's models are found."""

from collections.abc import Sequence
from pathlib import Path

from apps.imaging.importers.nnunet import is_nnunet
from common.errors import BadInput


def is_results(directory: Path) -> bool:
    """True if a folder holds folders of data sets with trained models."""
    return any(is_nnunet(model) for model in directory.glob("Dataset[0-9]*/*__*__*"))


def task_models(results: Path, datasets: Sequence[str]) -> list[Path]:
    """The trained model of each data set, in order.

    Parameters
    ----------
    datasets
        ``Dataset291`` and so on.

    Raises
    ------
    BadInput
        If the folder is not there, or a data set has no model or several; all that are missing are named.
    """
    if not results.is_dir():
        raise BadInput(f"{results}: no such folder of results", public="no such model folder")
    found = {name: _models(results, name) for name in datasets}
    if missing := [name for name, models in found.items() if not models]:
        there = sorted(path.name for path in results.glob("Dataset[0-9]*"))
        held = f"; it has {', '.join(there)}" if there else "; it has no Dataset folder"
        raise BadInput(f"{results}: no trained model of {', '.join(missing)}{held}", public="models of a task missing")
    for name, models in found.items():
        if len(models) > 1:
            which = " and ".join(str(model.relative_to(results)) for model in models)
            raise BadInput(f"{results}: {name} has several models, {which}; keep one", public="several models")
    return [models[0] for models in found.values()]


def _models(results: Path, dataset: str) -> list[Path]:
    folders = [*results.glob(dataset), *results.glob(f"{dataset}_*")]
    return sorted(path for folder in folders for path in folder.glob("*__*__*") if is_nnunet(path))
