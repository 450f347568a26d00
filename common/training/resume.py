"""Resume an interrupted training from its checkpoint, or say why it starts from the beginning.

A checkpoint contains the settings that determine the result of its training. Only a training with the same settings
resumes from it, so that an interrupted training ends with the weights of an undisturbed one.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from common.errors import BadInput, UsageError

State = TypeVar("State")


def resume(
    checkpoint: Path,
    settings: Mapping[str, Any],
    *,
    read_settings: Callable[[Path], Mapping[str, Any] | None],
    load: Callable[[Path], State | None],
    progress: Callable[[State], str],
    output: Path,
    required: bool,
    say: Callable[[str], None],
) -> State | None:
    """Load the state of an interrupted training, if there is a checkpoint with the same settings.

    Parameters
    ----------
    checkpoint
        The file that the interrupted training wrote.
    settings
        The settings that determine the result of the present training, as values that JSON can represent.
    read_settings
        Reads the settings from the checkpoint; ``None`` if they cannot be read. It need not load the tensors.
    load
        Loads the state; called only if the settings are the same; returns ``None`` if the checkpoint is damaged.
    progress
        Describes the progress of a state, for the message: ``"after step 120"``.
    output
        The model folder, for the error message.
    required
        Raise instead of starting from the beginning (``--resume``).
    say
        Prints one line for the user.

    Returns
    -------
    State or None
        The result of ``load``; ``None`` if the training starts from the beginning.

    Raises
    ------
    BadInput
        The checkpoint is required, and it is missing or damaged.
    UsageError
        The checkpoint is required and belongs to a training with other settings.

    Examples
    --------
    >>> resume(Path("absent"), {"seed": 0}, read_settings=dict, load=dict, progress=str, output=Path("model"),
    ...        required=False, say=print)
    """
    if not checkpoint.is_file():
        if required:
            raise nothing_to_resume(output)
        return None
    stored = read_settings(checkpoint)
    names = differing(settings, stored) if stored is not None else []
    if names:
        other = f"the checkpoint is of a training with other settings ({', '.join(names)})"
        if required:
            raise UsageError(f"--resume: {other}")
        say(f"{other}; starting from the beginning")
        return None
    state = load(checkpoint) if stored is not None else None
    if state is None:
        if required:
            raise BadInput(f"{checkpoint}: the checkpoint is damaged", public="checkpoint damaged")
        say("the checkpoint is damaged; starting from the beginning")
        return None
    say(f"continuing {progress(state)}")
    return state


def differing(settings: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings in which two trainings differ.

    Parameters
    ----------
    settings
        Settings of the present training; they are compared in their JSON form, tuples as lists.
    stored
        Settings of the checkpoint, read from JSON.

    Examples
    --------
    >>> differing({"patch": (32, 32, 32), "seed": 1}, {"patch": [32, 32, 32], "seed": 0})
    ['seed']
    """
    asked: Mapping[str, Any] = json.loads(json.dumps(settings))
    absent = object()
    return [name for name in {**asked, **stored} if asked.get(name, absent) != stored.get(name, absent)]


def nothing_to_resume(output: Path) -> BadInput:
    """Return the error of ``--resume`` for a model folder without checkpoint."""
    return BadInput(f"{output}: nothing to resume", public="nothing to resume")
