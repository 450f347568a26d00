"""Continue an interrupted training from its checkpoint, or say why it starts from the beginning.

A checkpoint holds the settings that decide the result of its training. It is continued only by a training with the same
settings, so that an interrupted training ends with the weights of an undisturbed one.
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
        All that decides the result of the training that starts now, as values that JSON can hold.
    read_settings
        Reads the settings from the checkpoint; ``None`` if they cannot be read. It need not load the tensors.
    load
        Loads the state, called only where the settings are the same; ``None`` if it is damaged.
    progress
        How far a state is, for the message: ``"after step 120"``.
    output
        The model folder, for the error message.
    required
        Whether the user insists on continuing (``--resume``).
    say
        Prints one line for the user.

    Returns
    -------
    State or None
        What ``load`` returned; ``None`` where the training starts from the beginning.

    Raises
    ------
    BadInput
        If ``required``, and there is no checkpoint, or it is damaged.
    UsageError
        If ``required``, and the checkpoint is of a training with other settings.

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
    """Names of the settings that two trainings do not have in common.

    Parameters
    ----------
    settings
        Of the training that starts; compared in the form that JSON gives them, tuples as lists.
    stored
        Of the checkpoint, read from JSON.

    Examples
    --------
    >>> differing({"patch": (32, 32, 32), "seed": 1}, {"patch": [32, 32, 32], "seed": 0})
    ['seed']
    """
    asked: Mapping[str, Any] = json.loads(json.dumps(settings))
    absent = object()
    return [name for name in {**asked, **stored} if asked.get(name, absent) != stored.get(name, absent)]


def nothing_to_resume(output: Path) -> BadInput:
    """The error of ``--resume`` where the model folder ``output`` has no checkpoint."""
    return BadInput(f"{output}: nothing to resume", public="nothing to resume")
