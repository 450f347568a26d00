"""A bundle's transforms after the network, translated to our model folder's ``inference``.

They are read as steps of one state: the network's output (``logits``), its activation (``softmax``, ``sigmoid``), masks
of classes that may overlap (``masks``), or labels. ``Invertd`` says which of them is resampled to the image's grid.
"""

import ast
import math
import re
from dataclasses import dataclass, field
from typing import Any

from apps.imaging.importers.monai_transforms import HARMLESS, Arguments, Blockers, flag, number, take, transform_name
from common.errors import BadInput

MOST_MASKS = 16
"""Classes that may overlap, each a bit of a label of two bytes."""


@dataclass(slots=True)
class Restoring:
    """The way from the network's output to labels on the image's grid."""

    state: str = "logits"
    restored: str = ""
    """Values that are resampled to the image's grid: ``logits``, ``softmax``, ``sigmoid`` or ``labels``; empty before
    an ``Invertd``."""
    activation: str = "logits"
    threshold: float = 0.0
    """Logit from which a mask is true."""
    regions: list[int] = field(default_factory=list)
    """Label that each channel's mask writes."""
    order: list[int] = field(default_factory=list)
    """Channels in the order in which they write, later ones over earlier ones."""
    asked: bool = False
    """True if the label is the class of the largest logit, where that is above zero."""
    merged: bool = False
    """True if each mask writes its channel's number, earlier ones over later ones."""
    largest: list[int] | None = None
    """Labels of which the largest component is kept; empty: all."""
    largest_first: bool = False
    """True if that is done on the network's grid."""
    interpolated: bool = False
    """True if labels are interpolated to the image's grid, not the nearest taken."""

    def inference(self, channels: int) -> dict[str, Any]:
        """Fields of the model folder for a network of so many output channels.

        Raises
        ------
        BadInput
            Masks or regions that such a network does not have.
        """
        fields: dict[str, Any] = {"restored": self.restored or "logits"}
        if self.state == "masks":
            if channels == 1:
                self.regions, self.order = [1], [0]
            elif self.merged:  # the first writes nothing, because its number is that of the background
                self.regions, self.order = [*range(channels)], [0, *range(channels - 1, 0, -1)]
            fields |= {"decision": "regions" if self.regions else "bits", "threshold": self.threshold}
            if len(self.regions) not in (0, channels) or (not self.regions and channels > MOST_MASKS):
                raise BadInput(
                    f"{channels} masks of classes; regions of {len(self.regions)}, at most {MOST_MASKS} masks"
                )
        if self.regions:
            fields |= {"regions": self.regions, "order": self.order}
        if self.largest is not None:
            fields |= {"largest": self.largest, "largest_first": self.largest_first}
        if self.interpolated:
            fields["interpolated"] = True
        return fields


def restoring(transforms: list[Arguments]) -> Restoring:
    """Translate a bundle's transforms after the network.

    Raises
    ------
    BadInput
        All transforms that are not read, or an output that is neither labels nor masks.
    """
    found, blockers = Restoring(), Blockers()
    for arguments in transforms:
        with blockers.gathering():
            target = arguments.pop("_target_", None)
            name = transform_name(target)
            if name in HARMLESS | {"SaveImage"}:
                continue
            if name not in STEPS:
                raise BadInput(f"the transform {target!r} is not read after the network")
            try:
                STEPS[name](found, arguments)
            except BadInput as error:
                raise BadInput(f"{target}: {error}") from None
    blockers.raise_any()
    if found.state not in ("labels", "masks"):
        raise BadInput("no AsDiscreted with argmax or threshold: neither labels nor masks")
    return found


def _activate(found: Restoring, arguments: Arguments) -> None:
    chosen = [name for name in ("softmax", "sigmoid") if flag(arguments, name, False)]
    if arguments.get("other") is not None or len(chosen) > 1 or found.state != "logits":
        raise BadInput("only softmax or sigmoid of the network's output are read")
    if chosen:
        found.state = found.activation = chosen[0]


def _decide(found: Restoring, arguments: Arguments) -> None:
    largest = flag(arguments, "argmax", False)
    threshold = take(arguments, "threshold", None)
    if arguments.get("rounding") or arguments.get("to_onehot") or largest == (threshold is not None):
        raise BadInput("only argmax or a threshold is read, without to_onehot or rounding")
    if found.state in ("labels", "masks"):
        raise BadInput("comes after another one")
    if largest:
        found.state = "labels"
        return
    limit = number({"threshold": threshold}, "threshold")
    if found.state == "softmax" or (found.state == "sigmoid" and not 0 < limit < 1):
        raise BadInput(f"a threshold of {limit:g} is read of sigmoids and of the network's output alone")
    found.threshold = math.log(limit / (1 - limit)) if found.state == "sigmoid" else limit
    found.state = "masks"


def _invert(found: Restoring, arguments: Arguments) -> None:
    nearest = flag(arguments, "nearest_interp", True)
    decided = found.state in ("labels", "masks")
    if found.restored:
        raise BadInput("comes twice")
    if found.state == "masks" and not nearest:
        raise BadInput("masks would be interpolated (nearest_interp)")
    found.interpolated = decided and not nearest
    found.restored = "labels" if nearest or decided else found.state


def _keep_largest(found: Restoring, arguments: Arguments) -> None:
    if found.state != "labels" or found.largest is not None:
        raise BadInput("is read once, for labels")
    labels = arguments.pop("applied_labels", None)
    labels = labels if isinstance(labels, list) else [] if labels is None else [labels]
    if not all(isinstance(label, int) and 0 < label <= 65_535 for label in labels):
        raise BadInput(f"applied_labels {labels!r} are no labels")
    if not flag(arguments, "independent", True) and len(labels) != 1:
        raise BadInput("labels whose components count together (independent) are not read")
    for key, read in (("is_onehot", (None, False)), ("connectivity", (None, 3)), ("num_components", (1,))):
        take(arguments, key, read[0], *read)
    found.largest, found.largest_first = labels, not found.restored


def _nested(found: Restoring, arguments: Arguments) -> None:
    """Read ``lambda x: torch.where(x[[2]] > 0, 4, torch.where(...))`` as regions; it is never run."""
    text = str(arguments.get("func", ""))
    if found.state == "labels" and re.fullmatch(r"\$lambda (\w+): torch\.nan_to_num\(\1, nan=\d+\)", text):
        return  # labels are all numbers
    if found.state != "masks" or found.regions or found.merged:
        raise BadInput("only a choice among masks is read")
    try:
        function = ast.parse(text.removeprefix("$").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BadInput("its function is not an expression") from None
    if not isinstance(function, ast.Lambda) or len(function.args.args) != 1:
        raise BadInput("its function is not a lambda of one mask")
    ranks: dict[int, int] = {}
    chosen: ast.expr = function.body
    while True:
        match chosen:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="where"), args=[test, value, other]):
                ranks[_channel(test, function.args.args[0].arg)] = _label(value)
                chosen = other
            case ast.Constant(value=0):
                break
            case _:
                raise BadInput(
                    f"{ast.unparse(chosen)[:80]!r} is not read; nested torch.where(x[[i]] > 0, label, ...) are"
                )
    if sorted(ranks) != list(range(len(ranks))):
        raise BadInput("does not choose among all masks")
    found.regions = [ranks[channel] for channel in range(len(ranks))]
    found.order = list(reversed(ranks))


def _merge(found: Restoring, arguments: Arguments) -> None:
    if found.state != "masks" or found.regions or found.merged:
        raise BadInput("only masks are merged, once")
    found.merged = True


def _asked(found: Restoring, arguments: Arguments) -> None:
    """The class of the largest logit, if it is above zero; the background's is zero."""
    if found.state != "logits":
        raise BadInput("only the network's output is decided")
    found.asked, found.state = True, "labels"


def _channel(test: ast.expr, name: str) -> int:
    match test:
        case ast.Compare(
            left=ast.Subscript(value=ast.Name(id=mask), slice=ast.List(elts=[ast.Constant(value=int() as channel)])),
            ops=[ast.Gt()],
            comparators=[ast.Constant(value=0)],
        ) if mask == name and not isinstance(channel, bool):
            return channel
    raise BadInput(f"{ast.unparse(test)[:80]!r} is not read; {name}[[i]] > 0 is")


def _label(value: ast.expr) -> int:
    match value:
        case ast.Constant(value=int() as label) if 0 < label <= 65_535:
            return label
    raise BadInput(f"{ast.unparse(value)[:80]!r} is no label")


STEPS = {
    "Activations": _activate,
    "AsDiscrete": _decide,
    "Invert": _invert,
    "KeepLargestConnectedComponent": _keep_largest,
    "Lambda": _nested,
    "MergeClasses": _merge,
    "VistaPostTransform": _asked,
}
