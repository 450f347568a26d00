"""``recsys serve``: a model over HTTP, inside the ceiling."""

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.baselines import warm_up_for
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.service.workload import ServeWorkload
from common.cli.session import CommandSession
from common.memory.process.budget import MemoryBudget


def workload(request: ServeRequest, budget: MemoryBudget) -> ServeWorkload:
    """Read the model's manifest; raises as ``recommender.load_manifest``."""
    return ServeWorkload(request, load_manifest(request.model))


def warm_up(request: ServeRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), request.warm_up)


def execute(session: CommandSession[ServeRequest, ServeWorkload]) -> Mapping[str, Any]:
    """Serve until SIGINT or SIGTERM, which end it with exit code 0; a second SIGINT waits for no open request.

    Raises
    ------
    UsageError
        The address cannot be listened on.
    """
    from apps.recsys.serving.live import Gauge, Live, Log
    from apps.recsys.serving.server import Server, listen, shown
    from apps.recsys.serving.web.application import Application

    request = session.request
    # uvicorn stops on a signal and then raises it again: deferred, so that the record is still written.
    with listen(request.host, request.port) as listener, session.deferred_signals(), session.phase("answer"):
        gauge = Gauge.of(session.budget.host_bytes, session.plan)
        log = None if request.feedback is None else Log(request.feedback, request.events, request.sync)
        live = Live(request.model, session.workload.manifest, gauge, log)
        if live.mended:
            session.say(f"{request.feedback}: the last line was not whole; its {live.mended:,} bytes were cut off")
        if live.feedback is not None and live.feedback.skipped:
            session.say(f"{request.feedback}: {live.feedback.skipped:,} events of items that the model does not have")
        application = Application(live)
        session.say(f"serving on http://{shown(*listener.getsockname()[:2])} (stop with Ctrl-C)")
        Server(application, request.connections).serve_on(listener)
    return {}
