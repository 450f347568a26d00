"""``recsys serve``: the model over HTTP, inside the ceiling."""

import argparse
import socket
from collections.abc import Mapping
from typing import Any

from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.serving.http import application
from apps.recsys.serving.service import RecommenderService
from common.cli.session import CommandSession
from common.errors import UsageError


def execute(session: CommandSession[argparse.Namespace, Any]) -> Mapping[str, Any]:
    """Serve until SIGINT or SIGTERM."""
    args = session.request
    import uvicorn

    assert isinstance(session.workload, AnswerWorkload)
    try:
        listener = socket.create_server((args.host, args.port))
    except OSError as error:
        raise UsageError(f"cannot listen on {args.host}:{args.port}: {error.strerror}; choose another --port") from None
    # uvicorn stops on a signal and then raises it again: deferred, so that the record is still written.
    with listener, session.deferred_signals(), session.phase("answer"):
        app = application(RecommenderService(session.workload.directory, session.workload.manifest))
        host, port = listener.getsockname()[:2]
        session.say(f"serving on http://{host}:{port} (stop with Ctrl-C)")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
    return {}
