"""A model as one ONNX file: from histories to the best items, as ``recsys export --as onnx`` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.models import weights
from apps.recsys.models.coded import stored as coded
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.linear import ease
from apps.recsys.models.linear.coded import read_codes
from apps.recsys.models.linear.filter import item_power, user_power
from apps.recsys.models.linear.log import Log, user_powers
from apps.recsys.models.linear.readers import POPULAR
from apps.recsys.models.linear.spectral import Spectrum, powers, response, spectral_scorer
from apps.recsys.models.manifest import spectrum_bits
from apps.recsys.models.scoring_graph import users, wire
from apps.recsys.models.scoring_graph.graph import HISTORY, IR_VERSION, OPSET, ROWS, SCORES, VALUES, Graph, Histories, K
from apps.recsys.models.scoring_graph.wire import Weight
from common.compression.codes import BLOCK_ROWS, Codes
from common.compression.row_codes import RowCodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VECTORS = "item_vectors"
"""Name of the tensor whose products with a user's vector are the scores."""


def uses_values(manifest: Mapping[str, Any]) -> bool:
    """True for a model that needs the values of a history, not only its items."""
    return bool(manifest["kind"] == "ials" and manifest["hyper"]["weight"] != "binary")


def write(directory: Path, manifest: Mapping[str, Any], path: Path, ids: str) -> None:
    """Write the file.

    Parameters
    ----------
    directory
        The model folder.
    manifest
        Its ``model.json``.
    path
        The file.
    ids
        Name of the table of the items' ids, for the description.

    Raises
    ------
    BadInput
        The model's files are damaged.
    """
    from onnx import TensorProto, helper

    graph = Graph()
    histories = Histories.of(graph)
    scores = _scores(graph, histories, directory, manifest)
    histories.best(graph, scores, manifest["items"])
    pairs = ["users", "length"]
    inputs = [
        helper.make_tensor_value_info(HISTORY, TensorProto.INT64, pairs),
        *([helper.make_tensor_value_info(VALUES, TensorProto.FLOAT, pairs)] if uses_values(manifest) else []),
        helper.make_tensor_value_info(K, TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info(ROWS, TensorProto.INT64, ["users", "best"]),
        helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["users", "best"]),
    ]
    made = helper.make_graph(graph.nodes, "recommender", inputs, outputs, graph.small)
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="peakline",
        doc_string="From the items that users had to the best other items.",
    )
    helper.set_model_props(model, describe(manifest, ids))
    wire.write(path, model, graph.weights)


def describe(manifest: Mapping[str, Any], ids: str) -> dict[str, str]:
    """The file's metadata as JSON: kind, numbers of items and factors, hyper-parameters, table of ids, conventions."""
    fields: dict[str, Any] = {
        "kind": manifest["kind"],
        "items": manifest["items"],
        "factors": manifest["factors"],
        "hyper": manifest["hyper"],
        "ids": ids,
        "convention": {
            HISTORY: "row of each item that a user had, each once, as in the table of ids; -1 after the last",
            **({VALUES: "value of each, as trained on; any number after the last"} if uses_values(manifest) else {}),
            K: "number of items wanted",
            ROWS: "the best rows that are not in the history, the best first",
            SCORES: "their scores; -inf where no more are left",
        },
    }
    return {name: json.dumps(value) for name, value in fields.items()}


def _scores(graph: Graph, histories: Histories, directory: Path, manifest: Mapping[str, Any]) -> str:
    """Scores of all items, shape (users, items)."""
    import numpy as np

    kind, hyper, path = manifest["kind"], manifest["hyper"], directory / weights.WEIGHTS
    if kind == "linear":
        return _linear(graph, histories, directory, manifest)
    factors = _matrix(path, manifest, weights.ITEMS)
    prior = None
    if kind == "popularity":
        popular = graph.weight("popularity", np.ascontiguousarray(factors[:, 0]))
        nothing = graph.add("Mul", histories.count, graph.constant(0))
        return graph.add("Add", nothing, popular)
    if kind == "embedding":
        cosine = hyper["loss"] != "bpr"
        lengths = user_encoders.normalise(factors) if cosine else None
        graph.weight(VECTORS, factors)
        if hyper.get("user_vectors", "history") == "learned":
            prior = weights.read_prior(path) if hyper.get("prior") else None
            vector = users.gradient(graph, histories, VECTORS, len(factors), hyper, prior)
        elif hyper["tables"] == 2:
            table = graph.weight("user_side", _matrix(path, manifest, weights.USER_SIDE))
            vector = users.sum_of_items(graph, histories, table, None, cosine=cosine)
        else:
            vector = users.sum_of_items(graph, histories, VECTORS, lengths, cosine=cosine)
    else:
        graph.weight(VECTORS, factors)
        if kind == "bpr":
            compared = weights.read_compared(path, len(factors))
            vector = users.newton(graph, histories, VECTORS, factors.shape[1], compared, hyper)
        else:
            vector = users.least_squares(graph, histories, VECTORS, factors, hyper)
    scores = graph.add("Gemm", vector, VECTORS, transB=1)
    return scores if prior is None else graph.add("Add", scores, graph.weight("prior", prior))


def _matrix(path: Path, manifest: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    """A matrix of item vectors as float32, whatever it is stored as."""
    if coded.is_coded(manifest):
        codes = coded.read(path, name)
        return codes.decode(slice(0, len(codes)))
    return weights.read_user_side(path) if name == weights.USER_SIDE else weights.read(path, name)


def _linear(graph: Graph, histories: Histories, directory: Path, manifest: Mapping[str, Any]) -> str:
    import numpy as np

    hyper, path = manifest["hyper"], directory / weights.WEIGHTS
    counts, b = weights.read_counts(path), float(hyper["degree_power"])
    if hyper["form"] == "ease":
        rows = ease.RowsOnDisk(directory, len(counts))
        shape = (len(counts), len(counts))
        graph.weights.append(Weight("weights", "<f4", shape, lambda: (rows[item] for item in range(len(counts)))))
        popular = np.maximum(counts, 1).astype(np.float32) * np.float32(ease.POPULAR)
        scores = histories.sum_of(graph, "weights", histories.there)
        return graph.add("Add", scores, graph.weight("popularity", popular))
    spectrum = _spectrum(path, manifest)
    if hyper["form"] == "spectral":
        if isinstance(spectrum, Spectrum):
            saturation = float(hyper["saturation"])
            graph.weight(VECTORS, spectral_scorer(counts, spectrum, degree_power=b, saturation=saturation).item_factors)
        else:
            assert spectrum is not None
            _add_codes(graph, VECTORS, spectrum, powers(counts, b))
        return graph.add("Gemm", users.spectral(graph, histories, VECTORS, counts, hyper), VECTORS, transB=1)
    scores = _shared(graph, histories, directory, counts, hyper)
    if spectrum is None:
        return scores
    shares = graph.add("Gather", graph.weight("shares", powers(counts, -b)), histories.rows, axis=0)
    if isinstance(spectrum, Spectrum):
        graph.weight(VECTORS, spectrum.vectors)
        change = response(spectrum.eigenvalues, float(hyper["saturation"])) - spectrum.eigenvalues
    else:
        _add_codes(graph, VECTORS, spectrum, None)
        change = np.full(spectrum.width, -1, np.float32)
    coefficients = histories.sum_of(graph, VECTORS, graph.add("Mul", histories.there, shares))
    added = graph.add("Gemm", graph.add("Mul", coefficients, graph.constant(change)), VECTORS, transB=1)
    return graph.add("Add", scores, graph.add("Mul", added, graph.weight("raised", powers(counts, b))))


def _spectrum(path: Path, manifest: Mapping[str, Any]) -> Spectrum | Codes | RowCodes | None:
    """The spectrum of a linear model, as it is stored."""
    factors, bits = manifest["factors"], spectrum_bits(manifest)
    if coded.is_coded(manifest):
        return coded.read_levels(path, weights.SPECTRUM)
    if not factors:
        return None
    return read_codes(path, factors=factors, bits=bits) if bits < 32 else Spectrum(*weights.read_spectrum(path))


def _add_codes(graph: Graph, name: str, codes: Codes | RowCodes, factors: NDArray[np.float32] | None) -> None:
    """Add rows that are codes as float32, times a factor each; they are decoded while they are written."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        workspace = codes.workspace()
        for start in range(0, len(codes), BLOCK_ROWS):
            span = slice(start, min(start + BLOCK_ROWS, len(codes)))
            rows = codes.decode(span, workspace)
            if factors is not None:
                rows *= factors[span, None]
            yield rows

    graph.weights.append(Weight(name, "<f4", (len(codes), codes.width), blocks))


def _shared(
    graph: Graph, histories: Histories, directory: Path, counts: NDArray[np.int32], hyper: Mapping[str, Any]
) -> str:
    """Scores by the interactions, as ``filter.shared_scores``: sums over them, to the users and back to the items."""
    import numpy as np
    from onnx import numpy_helper

    log = Log(directory, len(counts), user_power=user_power(hyper))
    past, items = log.history, len(counts)
    degrees, a, b = np.maximum(counts, 1).astype(np.float32)[:, None], item_power(hyper), float(hyper["degree_power"])
    for name, blocks in (("interactions.items", _items), ("interactions.users", _users)):
        shape = (past.size, 1)
        graph.weights.append(Weight(name, "<i4", shape, lambda blocks=blocks: blocks(past)))  # type: ignore[misc]
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    asked = graph.add("Gather", graph.add("Shape", HISTORY), graph.axes(0), axis=0)

    def zeros(rows: int) -> str:
        shape = graph.add("Concat", graph.axes(rows), asked, axis=0)
        return graph.add("ConstantOfShape", shape, value=zero)

    def sums(rows: int, of: str, given: str) -> str:
        """Add up rows. ``ScatterND`` adds in several threads, and ONNX Runtime then loses some of those of one row."""
        places = graph.add("Expand", of, graph.add("Shape", given))
        return graph.add("ScatterElements", zeros(rows), places, given, axis=0, reduction="add")

    flat = graph.add("ConstantOfShape", graph.add("Concat", asked, graph.axes(items), axis=0), value=zero)
    had = graph.add("ScatterElements", flat, histories.rows, histories.there, axis=1, reduction="max")
    questions = graph.add("Transpose", had, perm=[1, 0])
    questions = graph.add("Mul", questions, graph.weight("asking", degrees ** np.float32(-b - a)))
    of_items, of_users = "interactions.items", "interactions.users"
    given = graph.add("Gather", questions, graph.add("Squeeze", of_items, graph.axes(1)), axis=0)
    shares = sums(past.rows, of_users, given)
    per_user = user_powers(np.diff(past.indptr), log.user_power)[:, None]
    shares = graph.add("Div", shares, graph.weight("powers", per_user))
    given = graph.add("Gather", shares, graph.add("Squeeze", of_users, graph.axes(1)), axis=0)
    out = sums(items, of_items, given)
    out = graph.add("Mul", out, graph.weight("answering", degrees ** np.float32(b - a)))
    out = graph.add("Add", out, graph.weight("popularity", degrees * np.float32(POPULAR)))
    return graph.add("Transpose", out, perm=[1, 0])


def _items(history: History) -> Iterator[NDArray[Any]]:
    """Items of all interactions, some users at a time."""
    for start, stop in history.blocks():
        yield history.items(start, stop)


def _users(history: History) -> Iterator[NDArray[Any]]:
    """Users of all interactions, some at a time."""
    import numpy as np

    for start, stop in history.blocks():
        yield np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(history.indptr[start : stop + 1]))
