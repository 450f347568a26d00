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
    from apps.recsys.serving.live import Gauge, Live
    from apps.recsys.serving.server import Server, listen, shown
    from apps.recsys.serving.web.application import Application

    request = session.request
    # uvicorn stops on a signal and then raises it again: deferred, so that the record is still written.
    with listen(request.host, request.port) as listener, session.deferred_signals(), session.phase("answer"):
        gauge = Gauge.of(session.budget.host_bytes, session.plan)
        application = Application(Live(request.model, session.workload.manifest, gauge))
        session.say(f"serving on http://{shown(*listener.getsockname()[:2])} (stop with Ctrl-C)")
        Server(application, request.connections).serve_on(listener)
    return {}
