"""The network made ready for tiles, and what makes labels of its values."""

from dataclasses import dataclass
from typing import cast

from apps.imaging.inference.labeling.decision import LogitsToLabels
from apps.imaging.inference.phases import OPEN
from apps.imaging.inference.request import InferRequest
from apps.imaging.models.model_folder import TORCH_NETWORK
from common.cli.session import Session
from common.engines.base import Engine, Output, read_head
from common.engines.mirroring import MirrorEngine
from common.engines.registry import open_engine
from common.engines.timed import TimedEngine
from common.memory.plan.plan import Setting
from common.model_folder import shipped_note


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """The network made ready for tiles, and what makes labels of its values."""

    engine: Engine
    to_labels: LogitsToLabels

    @classmethod
    def of(cls, request: InferRequest, session: Session, setting: Setting) -> "OpenNetwork":
        """Load the network as the plan's setting has it."""
        choice, plan = request.model, setting
        model, device = choice.model, session.device
        with session.phase(OPEN), session.reserving():  # compiled code and scratch that is hardly touched
            engine = open_engine(
                model.directory,
                name=choice.engine,
                precision=choice.precision,
                tile=choice.tile,
                batch=int(plan["batch"]),
                threads=session.threads,
                output=cast(Output, plan["space"]),
                head=model.head,
                builder=TORCH_NETWORK,
                device=device.name if device and choice.engine == "torch" else "cpu",
                heap=plan["allocator"] == "heap",
            )
        engine = TimedEngine(engine, lambda seconds: count(session, "network_seconds", seconds))
        if choice.mirror:
            engine = MirrorEngine(engine, ["xyz".index(axis) for axis in choice.mirror], batch=int(plan["batch"]))
        head = read_head(model.directory, model.head) if model.head and plan["space"] == "features" else None
        kept = [label.value for label in request.outputs.labels]
        rule = model.inference
        to_labels = LogitsToLabels(
            model.written,
            head,
            kept,
            decision=rule.decision,
            order=rule.order,
            threshold=rule.threshold,
            inclusive=model.convention == "bundle",
        )
        return cls(engine, to_labels)


def announce(request: InferRequest, session: Session) -> None:
    """Say which model and engine were chosen, where the command line does not."""
    choice = request.model
    if note := shipped_note(choice.model.directory):
        session.say(note)
    if request.options.engine == "auto" and choice.engine != "openvino" and session.device is None:
        session.say(f"imaging infer: OpenVINO is not installed, using {choice.engine}")


def count(session: Session, name: str, more: float) -> None:
    """Add to a number in the record."""
    session.results[name] = session.results.get(name, 0) + more
