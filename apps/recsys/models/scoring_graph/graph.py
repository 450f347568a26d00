"""A graph of ONNX operators that is built node by node, and the parts that every model's graph has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apps.recsys.models.scoring_graph.wire import Weight

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

OPSET, IR_VERSION = 18, 8
"""Version of the operators, the first with ``ScatterElements`` of reductions ``min`` and ``max``, and of the format."""
HISTORY, VALUES, K = "history", "values", "k"
"""Inputs: rows of the items that each user had, int64 of shape (users, length), filled up with -1; their values,
float32 of the same shape, where they count; and how many items are wanted, int64 of shape (1,)."""
ROWS, SCORES = "rows", "scores"
"""Outputs: rows of the best items that are not in the history, int64 of shape (users, k), the best first, and their
scores, float32. Where fewer are left, the last scores are ``-inf``."""


class Graph:
    """Nodes and tensors of a graph.

    Parameters
    ----------
    around
        The graph of which this is the body of a loop, so that both have different names.
    """

    def __init__(self, around: Graph | None = None) -> None:
        self.nodes: list[Any] = []
        self.small: list[Any] = []
        """Tensors that stand among the nodes."""
        self.weights: list[Weight] = []
        """Tensors that are written from arrays."""
        self._names: Iterator[int] = itertools.count() if around is None else around._names

    def name(self) -> str:
        """A new name."""
        return f"n{next(self._names)}"

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; returns its name."""
        from onnx import helper

        out = self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [out], **attributes))
        return out

    def constant(self, value: ArrayLike, kind: str = "float32") -> str:
        """Add a small tensor."""
        import numpy as np
        from onnx import numpy_helper

        out = self.name()
        self.small.append(numpy_helper.from_array(np.array(value, kind), out))
        return out

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a large tensor, which is kept until the graph is written."""
        self.weights.append(Weight.of(name, array))
        return name

    def axes(self, *numbers: int) -> str:
        """Add a tensor of axes, or of a shape."""
        return self.constant(numbers, "int64")

    def sum(self, tensor: str, axis: int, *, keep: bool = False) -> str:
        """Sum over an axis."""
        return self.add("ReduceSum", tensor, self.axes(axis), keepdims=int(keep))

    def wider(self, tensor: str, axis: int) -> str:
        """Add an axis of 1."""
        return self.add("Unsqueeze", tensor, self.axes(axis))

    def turned(self, tensor: str) -> str:
        """Exchange the last two of three axes."""
        return self.add("Transpose", tensor, perm=[0, 2, 1])

    def length(self, tensor: str) -> str:
        """Lengths of the rows of a matrix, shape (rows, 1), at least ``LEAST_LENGTH``."""
        from apps.recsys.models.scan.rows import LEAST_LENGTH

        squares = self.sum(self.add("Mul", tensor, tensor), 1, keep=True)
        return self.add("Max", self.add("Sqrt", squares), self.constant(LEAST_LENGTH))


@dataclass(frozen=True, slots=True)
class Histories:
    """Histories as the parts of a graph that models of all kinds need.

    Attributes
    ----------
    rows
        int64 of shape (users, length), 0 where a history has ended.
    there
        1 where there is an item, 0 elsewhere, float32 of the same shape.
    count
        Numbers of items, float32 of shape (users, 1).
    """

    rows: str
    there: str
    count: str

    @classmethod
    def of(cls, graph: Graph) -> Histories:
        """Add what reads ``HISTORY``."""
        zero = graph.constant(0, "int64")
        there = graph.add("Cast", graph.add("GreaterOrEqual", HISTORY, zero), to=1)
        return cls(graph.add("Max", HISTORY, zero), there, graph.sum(there, 1, keep=True))

    def sum_of(self, graph: Graph, table: str, shares: str) -> str:
        """Sums of rows of a table, shape (n, factors), times shares of shape (users, length): (users, factors)."""
        gathered = graph.add("Gather", table, self.rows, axis=0)
        total = graph.add("MatMul", graph.wider(shares, 1), gathered)
        return graph.add("Squeeze", total, graph.axes(1))

    def best(self, graph: Graph, scores: str, items: int) -> None:
        """Add the outputs: the best of scores of shape (users, items), without those of the histories."""
        import numpy as np
        from onnx import helper

        taken = graph.add("Cast", self.there, to=9)
        limits = graph.add("Where", taken, graph.constant(-np.inf), graph.constant(np.inf))
        new = graph.add("ScatterElements", scores, self.rows, limits, axis=1, reduction="min")
        most = graph.add("Min", K, graph.constant([items], "int64"))
        graph.nodes.append(helper.make_node("TopK", [new, most], [SCORES, ROWS], axis=1))


def solved(graph: Graph, system: str, right: str, width: int) -> str:
    """Solve systems of equations, float32 of shape (users, width, width) and (users, width): shape (users, width).

    ONNX has no such operator. The matrices are positive definite, so Gauss and Jordan's elimination needs no search for
    pivots; it runs in double precision.
    """
    import numpy as np
    from onnx import TensorProto, helper

    both = graph.add("Concat", system, graph.wider(right, 2), axis=2)
    start = graph.add("Cast", both, to=TensorProto.DOUBLE)
    unit = graph.constant(np.eye(width), "float64")
    body, step, going, now = Graph(graph), graph.name(), graph.name(), graph.name()
    row = body.add("Gather", now, step, axis=1)
    column = body.add("Gather", now, step, axis=2)
    scaled = body.add("Div", row, body.wider(body.add("Gather", column, step, axis=1), 1))
    factor = body.add("Sub", column, body.add("Gather", unit, step, axis=0))
    after = body.add("Sub", now, body.add("Mul", body.wider(factor, 2), body.wider(scaled, 1)))
    still = body.add("Identity", going)
    inner = helper.make_graph(
        body.nodes,
        "elimination",
        [
            helper.make_tensor_value_info(step, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            helper.make_tensor_value_info(now, TensorProto.DOUBLE, [None, width, width + 1]),
        ],
        [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(after, TensorProto.DOUBLE, [None, width, width + 1]),
        ],
        body.small,
    )
    steps, first = graph.constant(width, "int64"), graph.constant(True, "bool")
    done = graph.add("Loop", steps, first, start, body=inner)
    found = graph.add("Gather", done, graph.constant(width, "int64"), axis=2)
    return graph.add("Cast", found, to=TensorProto.FLOAT)
