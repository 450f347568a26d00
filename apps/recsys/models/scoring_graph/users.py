"""Users' vectors from histories as ONNX operators: what ``user_encoders`` computes, for several users at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from apps.recsys.models.als import ials
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.embedding.user_encoders import FIRST_STEP, GRADIENT_STEPS, NEWTON_STEPS
from apps.recsys.models.linear.spectral import powers
from apps.recsys.models.scan.rows import LEAST_LENGTH
from apps.recsys.models.scoring_graph.graph import VALUES, Graph, Histories, solved

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def least_squares(
    graph: Graph, histories: Histories, vectors: str, factors: NDArray[np.float32], hyper: Mapping[str, Any]
) -> str:
    """Vectors of ``ials`` (``ials.fold_in``); ``vectors`` is the tensor of ``factors``, shape (items, factors)."""
    import numpy as np

    items, width = factors.shape
    alpha = graph.constant(hyper["alpha"])
    if hyper["weight"] == "binary":
        confidences = graph.add("Mul", histories.there, alpha)
    else:
        one = graph.constant(1)
        weights = graph.add("Log", graph.add("Add", VALUES, one)) if hyper["weight"] == "log" else VALUES
        confidences = graph.add("Mul", graph.add("Mul", weights, alpha), histories.there)
    beyond = graph.add("Sub", confidences, histories.there)
    rows = graph.add("Gather", vectors, histories.rows, axis=0)
    weighted = graph.add("Mul", rows, graph.wider(beyond, 2))
    own = graph.add("MatMul", graph.turned(rows), weighted)
    weight = graph.add("Div", graph.sum(beyond, 1, keep=True), graph.constant(items))
    scale = graph.add(
        "Pow", graph.add("Add", weight, graph.constant(1)), graph.constant(hyper.get("frequency_scaling", 0.0))
    )
    ridge = graph.wider(graph.add("Mul", scale, graph.constant(hyper["regularization"])), 2)
    system = graph.add("Add", own, graph.constant(ials.gramian(factors)))
    system = graph.add("Add", system, graph.add("Mul", ridge, graph.constant(np.eye(width))))
    return solved(graph, system, histories.sum_of(graph, vectors, confidences), width)


def newton(
    graph: Graph, histories: Histories, vectors: str, width: int, compared: NDArray[np.int32], hyper: Mapping[str, Any]
) -> str:
    """Vectors of ``bpr`` (``user_encoders.fold_in_newton``), with a last number of 1 for the bias."""
    import numpy as np

    free = width - 1
    negatives = graph.add("Gather", vectors, graph.constant(compared, "int64"), axis=0)
    left, right = graph.axes(0), graph.axes(free)
    negative_vectors = graph.add("Slice", negatives, left, right, graph.axes(1))
    positives = graph.add("Gather", vectors, histories.rows, axis=0)
    positive_vectors = graph.add("Slice", positives, left, right, graph.axes(2))
    one, half, ridge = graph.constant(1), graph.constant(0.5), graph.constant(hyper["user_regularization"])
    count = graph.add("Max", graph.add("Mul", histories.count, graph.constant(len(compared))), one)
    pairs, there = graph.wider(count, 2), graph.wider(histories.there, 2)
    bias = graph.add("Div", count, count)
    own = graph.add("Mul", bias, graph.constant(np.zeros((1, free))))
    ridges = graph.add("Mul", ridge, graph.constant(np.eye(free)))
    some = graph.add("Greater", histories.count, graph.constant(0))
    for _ in range(NEWTON_STEPS):
        vector = graph.add("Concat", own, bias, axis=1)
        scores = graph.add("MatMul", vector, graph.add("Transpose", negatives, perm=[1, 0]))
        better = graph.add("MatMul", positives, graph.wider(vector, 2))
        margin = graph.add("Mul", graph.add("Sub", better, graph.wider(scores, 1)), half)
        wrong = graph.add("Sub", half, graph.add("Mul", graph.add("Tanh", margin), half))
        wrong = graph.add("Mul", wrong, there)
        weight = graph.add("Div", graph.add("Mul", wrong, graph.add("Sub", one, wrong)), pairs)
        wrong = graph.add("Div", wrong, pairs)
        pull = graph.add("MatMul", graph.sum(wrong, 1), negative_vectors)
        push = graph.add("MatMul", graph.wider(graph.sum(wrong, 2), 1), positive_vectors)
        gradient = graph.add("Add", graph.add("Mul", own, ridge), pull)
        gradient = graph.add("Sub", gradient, graph.add("Squeeze", push, graph.axes(1)))
        across = graph.turned(positive_vectors)
        mixed = graph.add("MatMul", across, graph.add("MatMul", weight, negative_vectors))
        of_positives = graph.add("Mul", positive_vectors, graph.sum(weight, 2, keep=True))
        of_negatives = graph.add("Mul", negative_vectors, graph.wider(graph.sum(weight, 1), 2))
        hessian = graph.add("Add", ridges, graph.add("MatMul", across, of_positives))
        turned = graph.add("Transpose", negative_vectors, perm=[1, 0])
        hessian = graph.add("Add", hessian, graph.add("MatMul", turned, of_negatives))
        hessian = graph.add("Sub", graph.add("Sub", hessian, mixed), graph.turned(mixed))
        step = solved(graph, hessian, gradient, free)
        own = graph.add("Where", some, graph.add("Sub", own, step), own)
    return graph.add("Concat", own, bias, axis=1)


def sum_of_items(
    graph: Graph, histories: Histories, table: str, lengths: NDArray[np.float32] | None, *, cosine: bool
) -> str:
    """Vectors of an embedding (``user_encoders.sum_of_items``): rows of ``table`` times ``lengths``."""
    shares = histories.there
    if lengths is not None:
        each = graph.add("Gather", graph.weight("lengths", lengths), histories.rows, axis=0)
        shares = graph.add("Mul", shares, each)
    total = histories.sum_of(graph, table, shares)
    least = graph.constant(LEAST_LENGTH)
    size = graph.length(total) if cosine else graph.add("Max", graph.add("Sqrt", histories.count), least)
    return graph.add("Div", total, size)


def gradient(
    graph: Graph,
    histories: Histories,
    vectors: str,
    items: int,
    hyper: Mapping[str, Any],
    prior: NDArray[np.float32] | None,
) -> str:
    """Vectors of an embedding with learned users (``user_encoders.fold_in_gradient``), without the prior's number."""
    chosen, offsets = user_encoders.compared(items, hyper, prior)
    negatives = graph.add("Gather", vectors, graph.constant(chosen, "int64"), axis=0)
    turned = graph.add("Transpose", negatives, perm=[1, 0])
    one = graph.constant(1)
    total = histories.sum_of(graph, vectors, histories.there)
    mean = graph.add("Div", total, graph.add("Max", histories.count, one))
    vector = graph.add("Div", mean, graph.length(mean))
    for step in range(GRADIENT_STEPS):
        scores = graph.add("MatMul", vector, turned)
        if hyper["loss"] == "softmax":
            sharp = graph.add("Mul", scores, graph.constant(1 / hyper["temperature"]))
            shares = graph.add("Softmax", graph.add("Add", sharp, graph.constant(offsets)), axis=1)
        else:
            above = graph.add("Cast", graph.add("Greater", scores, graph.constant(hyper["margin"])), to=1)
            shares = graph.add("Mul", above, graph.constant(hyper["negative_weight"] / len(chosen)))
        slope = graph.add("Sub", graph.add("MatMul", shares, negatives), mean)
        along = graph.sum(graph.add("Mul", slope, vector), 1, keep=True)
        slope = graph.add("Sub", slope, graph.add("Mul", along, vector))
        rate = graph.add("Div", graph.constant(FIRST_STEP * (1 - step / GRADIENT_STEPS)), graph.length(slope))
        vector = graph.add("Sub", vector, graph.add("Mul", rate, slope))
        vector = graph.add("Div", vector, graph.length(vector))
    return vector


def spectral(
    graph: Graph, histories: Histories, vectors: str, counts: NDArray[np.int32], hyper: Mapping[str, Any]
) -> str:
    """Vectors of a spectrum alone (``spectral.encoder``)."""
    shares = graph.weight("shares", powers(counts, -2 * float(hyper["degree_power"])))
    each = graph.add("Gather", shares, histories.rows, axis=0)
    return histories.sum_of(graph, vectors, graph.add("Mul", histories.there, each))
