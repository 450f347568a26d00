"""``recsys serve``: a model over HTTP, inside the ceiling."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from apps.recsys.models.manifest import RecommenderManifest
from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.baselines import warm_up_for
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.service.workload import ServeWorkload
from common.cli.session import CommandSession
from common.errors import BadInput
from common.memory.costs.store import CostStore
from common.memory.plan.plan import Plan
from common.memory.process import glibc
from common.memory.process.budget import MemoryBudget, format_size


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
    BadInput
        The token cannot be read; as ``Live``.
    """
    from apps.recsys.serving import workers
    from apps.recsys.serving.lines import Lines
    from apps.recsys.serving.live import Live, Log
    from apps.recsys.serving.server import Server, listen, shown
    from apps.recsys.serving.service import TRIED
    from apps.recsys.serving.web.access import Access, hosts_for, read_token
    from apps.recsys.serving.web.application import Application
    from apps.recsys.serving.web.metrics import Metrics

    glibc.one_arena()
    request, lines = session.request, Lines(session.say, as_json=session.request.log == "json")
    token = None if request.token_file is None else read_token(request.token_file)
    named = token is None and not request.open
    access = Access(token, hosts_for(request.host, request.allowed_hosts) if named or request.allowed_hosts else None)
    # uvicorn stops on a signal and then raises it again: deferred, so that the record is still written.
    with listen(request.host, request.port) as listener, session.deferred_signals(), session.phase("answer"):
        log = None if request.feedback is None else Log(request.feedback, request.events, request.sync)
        live = Live(request.model, partial(_price, session), log, mapped=request.workers > 1)
        if live.mended:
            cut = f"{request.feedback}: the last line was not whole; its {live.mended:,} bytes were cut off"
            lines.event("mended", cut)
        if live.feedback is not None and live.feedback.skipped:
            skipped = f"{request.feedback}: {live.feedback.skipped:,} events of items that the model does not have"
            lines.event("skipped", skipped)
        if live.service().recommender.scans:
            half, longest = (1e3 * seconds for seconds in live.service().tried())
            took = f"half of {TRIED} lists took {half:.1f} ms at most, the longest {longest:.1f}"
            lines.event("scan", f"{live.manifest['items']:,} items stay on disk, and lists are exact; {took}")
        metrics = Metrics(request.workers)

        def serve(place: int = 0, replaces: bool = False) -> None:
            metrics.worker = place
            application = Application(live, lines, access=access, metrics=metrics)
            connections = -(-request.connections // request.workers)
            Server(application, connections, watch=request.watch, behind=replaces).serve_on(listener)

        def work(place: int, replaces: bool) -> None:
            if live.feedback is not None:
                live.feedback.journal.reopen()
            serve(place, replaces)

        address = f"http://{shown(*listener.getsockname()[:2])}"
        lines.event("serving", f"serving on {address} (stop with Ctrl-C)")
        if request.workers == 1:
            serve()
        else:
            workers.run(request.workers, work, lines)
    return {"changes": live.changes}


def _price(session: CommandSession[ServeRequest, ServeWorkload], manifest: RecommenderManifest) -> Any:
    """The gauge of a model that is to be served: of the one that was planned, or of another version.

    Raises
    ------
    BadInput
        It needs more than the ceiling, or libraries that are not loaded.
    """
    from apps.recsys.serving.live import Gauge

    request, ceiling = session.request, session.budget.host_bytes
    if manifest == session.workload.manifest:
        return Gauge.of(ceiling, session.plan)
    work = ServeWorkload(request, manifest)
    probes = work.probes({})
    costs = CostStore().cached(probes)
    if warm_up_for(manifest, request.warm_up) != warm_up_for(session.workload.manifest, request.warm_up):
        raise BadInput(f"{request.model}: a model of another kind: start the server again", public="another kind")
    if len(costs) < len(probes):
        raise BadInput(f"{request.model}: its memory is not known: start the server again", public="not priced")
    settings = sorted(work.settings(), key=work.seconds)
    plans = [Plan(work.name, tuple(sorted(one.items())), work.footprint(one, costs)) for one in settings]
    plan = next((plan for plan in plans if plan.needed_bytes <= ceiling), plans[-1])
    if plan.needed_bytes > ceiling:
        raise BadInput(
            f"{request.model}: needs {format_size(plan.feasible_bytes)}, and the ceiling is {format_size(ceiling)}",
            public="the model does not fit",
        )
    return Gauge.of(ceiling, plan)
