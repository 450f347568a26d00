"""``recsys serve``: a model over HTTP, inside the ceiling."""

from collections.abc import Mapping
from types import FrameType
from typing import Any

from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.requests import ServeRequest
from apps.recsys.serving.http import application
from apps.recsys.serving.service import RecommenderService
from common.cli import interrupts
from common.cli.session import CommandSession
from common.errors import UsageError


def execute(session: CommandSession[ServeRequest, AnswerWorkload]) -> Mapping[str, Any]:
    """Serve until SIGINT or SIGTERM, which end it with exit code 0; a second SIGINT waits for no open request.

    Raises
    ------
    UsageError
        The address cannot be listened on.
    """
    import socket

    import uvicorn

    from apps.recsys.serving.connections import BoundedProtocol

    host, port = session.request.host, session.request.port
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not interrupts.is_copy(sig):
                super().handle_exit(sig, frame)

    # uvicorn stops on a signal and then raises it again: deferred, so that the record is still written.
    with listener, session.deferred_signals(), session.phase("answer"):
        app = application(RecommenderService(session.request.model, session.workload.manifest))
        host, port = listener.getsockname()[:2]
        session.say(f"serving on http://{host}:{port} (stop with Ctrl-C)")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", http=BoundedProtocol, ws="none"
        )
        Server(config).run(sockets=[listener])
    return {}
