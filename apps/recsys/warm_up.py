"""Warm-ups: load all libraries of a command and run them once on tiny data (``common.memory.costs.baseline``).

The memory after a warm-up is the baseline that a plan starts from. A library that a command loads later would be
missing in it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _command_line() -> None:
    """Load what every command has: its parser, and the library of progress bars."""
    import tqdm

    from apps.recsys import cli

    cli.parser()
    del tqdm


def sizing() -> None:
    """Warm up ``size``, which computes with Python's numbers only."""
    _command_line()


def reading() -> None:
    """Warm up reading: NumPy, and Arrow's CSV and Parquet readers and kernels."""
    _command_line()
    import io
    import tempfile

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    from apps.recsys.data import arrow_numpy
    from apps.recsys.data.formats import kinds
    from apps.recsys.data.id_index import Vocabulary

    text = b"user,item,value\n" + b"".join(b"%d,%d,1\n" % (n % 7, n) for n in range(64))
    types = {"user": pa.string(), "item": pa.string(), "value": pa.float64()}
    for batch in pyarrow.csv.open_csv(
        io.BytesIO(text),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types),
    ):
        user = kinds.ids(batch["user"], trim=True)
        good = kinds.present(user)
        kinds.numbers(batch["item"])
        kinds.times(arrow_numpy.text(["2024-01-01 10:00", "2024-01-01T10:00:00.123456789+02:00", ""]))
        with tempfile.TemporaryDirectory() as folder:
            vocabulary = Vocabulary(Path(folder), "user")
            codes = vocabulary.encode(pc.filter(user, arrow_numpy.mask(good)))
            (ids,) = vocabulary.ids(np.ones(len(vocabulary), bool))
            vocabulary.close()
        np.lexsort((codes, codes))
        np.add.reduceat(np.bincount(codes), [0])
    file = io.BytesIO()
    pq.write_table(pa.table({"id": ids}), file, compression="none", use_dictionary=False)
    arrow_numpy.read_parquet(pa.BufferReader(file.getvalue()))
    np.random.default_rng([0, 1]).permutation(3)


def folding() -> tuple[Any, Any]:
    """Warm up the vector of a user: the solver and matrix products; returns factors and a function that makes one."""
    _command_line()
    import numpy as np

    from apps.recsys.models.als.confidence import confidence
    from apps.recsys.models.als.ials import fold_in, gramian

    factors = np.ones((1024, 64), np.float32)
    shared = gramian(factors)
    hyper = {"alpha": 2.0, "weight": "log", "regularization": 1.0}

    def vector(items: Any, values: Any) -> Any:
        return fold_in(shared, factors, items, confidence(values, hyper), hyper)

    vector(np.arange(8), np.ones(8, np.float32)) @ factors.T
    return factors, vector


def scoring() -> None:
    """Warm up evaluation: the solver, matrix products and the pool of threads."""
    factors, vector = folding()
    import numpy as np

    from apps.recsys.evaluation.full_ranking import evaluate
    from apps.recsys.evaluation.metrics import Tally
    from apps.recsys.models.scorers import FactorScorer

    users = [(np.arange(8), np.ones(8, np.float32), np.arange(9, 12))] * 8
    tally = Tally(len(factors))
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    evaluate(iter(users), FactorScorer(factors, vector), block=8, threads=threads, tally=tally)
    tally.means()
    tally.intervals()


def answering() -> None:
    """Warm up ``recommend`` and ``similar``: scoring, and Arrow for ids and titles."""
    scoring()
    _looking_up()


def exporting() -> None:
    """Warm up ``export --as onnx``: scoring, Arrow for ids, and ONNX with a graph."""
    answering()
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Identity", ["y"], ["x"])
    graph = helper.make_graph([node], "g", [], [value], [numpy_helper.from_array(np.ones(2, np.float32), "y")])
    helper.make_model(graph).SerializeToString()


def _looking_up() -> None:
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from apps.recsys.data import arrow_numpy
    from apps.recsys.data.id_table import IdTable
    from apps.recsys.models.catalogue_search import Catalogue

    rows = np.arange(2, dtype=np.int32)
    for ids in (arrow_numpy.text(["1", "b"]), arrow_numpy.numbers(np.arange(2))):
        file = io.BytesIO()
        pq.write_table(pa.table({"id": ids, "title": arrow_numpy.text(["a", "b"])}), file)
        source: Any = pa.BufferReader(file.getvalue())
        table = IdTable(source)
        table.rows([str(table.id(table.row("1") or 0)), table.title(1)])
        table.ids(rows), table.titles(rows)
    vectors = np.eye(64, dtype=np.float32)
    Catalogue(vectors).best(vectors[:8], (np.arange(8), np.arange(8, dtype=np.int32)), 3)


def training() -> None:
    """Warm up ``ials``: scoring, SciPy and ``implicit`` with its threads. Arrow is not needed after reading."""
    import numpy as np
    import scipy.sparse

    from apps.recsys.models.als import als_matrices, ials

    scoring()
    ones = np.ones(256, np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (np.arange(256) % 16, np.arange(256) // 16)))
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    sides = als_matrices.Sides(als_matrices.InMemory(matrix), als_matrices.InMemory(matrix.T.tocsr()))
    state = ials.first_state(sides, factors=64, seed=0)
    for scaling in (0.0, 1.0):  # by implicit, and by our own solver
        state.sweep = 0
        hyper = {**ials.HYPER, "iterations": 1, "frequency_scaling": scaling}
        ials.fit(sides, state, hyper=hyper, threads=threads, after_block=lambda state: None)


def pairing() -> None:
    """Warm up ``bpr``: scoring, SciPy and ``implicit`` with its threads."""
    import numpy as np
    import scipy.sparse

    from apps.recsys.models import bpr
    from apps.recsys.models.embedding import user_encoders

    scoring()
    ones = np.ones(256, np.float32)
    pairs = bpr.Pairs.of(scipy.sparse.csr_matrix((ones, (np.arange(256) % 16, np.arange(256) // 16))))
    state = bpr.first_state(pairs, items=16, factors=64, seed=0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    hyper = {**bpr.HYPER, "iterations": 1}
    bpr.fit(pairs, state, hyper=hyper, threads=threads, seed=0, after_epoch=lambda state: None)
    user_encoders.of_kind("bpr", state.items, hyper, negatives=pairs.compared())(np.arange(8), ones[:8])


def filtering() -> None:
    """Warm up the training of a linear model: scoring, SciPy, and a spectrum of a few interactions."""
    import tempfile

    import numpy as np

    from apps.recsys.data.csr_store import NpyWriter
    from apps.recsys.models.linear.filter import FilterScorer
    from apps.recsys.models.linear.log import Log
    from apps.recsys.models.linear.spectral import Spectrum
    from apps.recsys.models.linear.spectrum import spectrum

    scoring()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, values in (("indptr", "<i8", range(0, 513, 8)), ("items", "<i4", [*range(64)] * 8)):
            with NpyWriter(Path(folder) / f"history.{name}.npy", kind) as writer:
                writer.append(np.array(values))
        log = Log(Path(folder), 64)
        counts = log.counts()
        made = Spectrum(*spectrum(log, counts, 16, seed=0))
        scorer = FilterScorer(log, counts, degree_power=0.4, spectrum=made)
        scorer.scores([(np.arange(8), np.ones(8, np.float32))] * 8, scorer.workspace(8))


def filter_answering() -> None:
    """Warm up ``recommend`` and ``similar`` with a linear model."""
    answering()
    filtering()


def learning() -> None:
    """Warm up an embedding: reading, scoring, and torch with one step of the network."""
    import safetensors.torch
    import torch

    from apps.recsys.models.embedding.embedding_config import EmbeddingConfig
    from apps.recsys.models.embedding.model import largest_batch, make_step
    from apps.recsys.training import fit_embedding

    reading()
    scoring()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = EmbeddingConfig(items=64, factors=64, batch=16, negatives=32, window=4)
    network, _, step = make_step(config, micro_batch=8)
    step(largest_batch(config))
    fit_embedding.tensors(network, None)
    del safetensors


def learning_over_ranks() -> None:
    """Warm up an embedding that several ranks train."""
    from common.training.distributed.group import rehearse

    learning()
    rehearse()


def training_over_ranks() -> None:
    """Warm up ``ials`` that several ranks train: PyTorch moves the factors between them."""
    import torch

    import apps.recsys.training.over_ranks.shared_factors
    from common.training.distributed.group import rehearse

    training()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rehearse()
    del apps


def filtering_over_ranks() -> None:
    """Warm up a linear model that several ranks train."""
    import torch

    import apps.recsys.training.over_ranks.shared_ease
    from common.training.distributed.group import rehearse

    filtering()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rehearse()
    del apps


def tracing() -> None:
    """Load what an embedding's traced step needs; no operator runs then, so none has to run here."""
    import torch

    import apps.recsys.models.embedding.model

    del torch, apps


def serving() -> None:
    """Warm up ``serve``: vectors, ids, and some requests to a model that is not there, by the server's own loop.

    A server runs for long, so what only its start needs of the libraries leaves memory, after each of them. What
    answers need is then in memory again.
    """
    _one_by_one(folding, _looking_up, _requests)


def _one_by_one(*parts: Callable[[], object]) -> None:
    from common.memory.process import file_pages

    for part in parts:
        part()
        file_pages.release()
    for part in parts:
        part()


def _requests() -> None:
    import asyncio

    import uvloop

    from apps.recsys.serving import server
    from apps.recsys.serving.lines import Lines
    from apps.recsys.serving.web.application import Application

    nobody: Any = _Nobody()
    application = Application(nobody, Lines(lambda line: None))
    server.warm(application)

    async def ask(method: str, path: str, body: bytes = b"") -> None:
        address, _, query = path.encode().partition(b"?")
        scope = {"type": "http", "method": method, "raw_path": address, "query_string": query, "headers": []}

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: object) -> None:
            pass

        await application(scope, receive, send)

    async def ask_all() -> None:
        for method, path, body in (
            ("GET", "/recommend?user=1&k=2&where=a%3D1", b""),
            ("POST", "/recommend", b'{"users": [1], "k": 3}'),
            ("GET", "/openapi.json", b""),
        ):
            await ask(method, path, body)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask_all())
    application.close()


class _Nobody:
    """A model without users, for the warm-up."""

    def service(self) -> Any:
        from common.errors import BadInput

        raise BadInput("nobody", public="unknown user")


def filter_serving() -> None:
    """Warm up ``serve`` with a linear model."""
    _one_by_one(folding, _looking_up, _requests, filtering)
