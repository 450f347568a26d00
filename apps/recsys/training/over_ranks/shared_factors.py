"""Train ``ials`` over ranks: each has a range of the users' factors and of the items', and solves these rows.

A block of rows needs the other side's factors at its interactions only, and their Gramian. The Gramian is added up over
the ranks. The factors go round in a ring: in step ``s`` a rank asks the one ``s`` places on for rows, and is asked by
the one ``s`` places back. The solver computes the Gramian of the rows that it is given, so as many rows as there are
factors follow them, to which no interaction points, and with which the Gramian is that of all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from apps.recsys.models import weights
from apps.recsys.models.als import als_matrices, ials
from apps.recsys.models.als.factor_state import FactorState
from apps.recsys.training.checkpoint import FactorCheckpoint
from apps.recsys.training.fit_factors import FactorTrainer
from apps.recsys.training.over_ranks.shared_tables import streamed_rows
from common.errors import BadInput
from common.files import atomic_file
from common.training.distributed.group import Group, LostRank, watched
from common.training.distributed.row_files import BLOCK_BYTES, SharedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from apps.recsys.data.csr_store import History
    from apps.recsys.data.splits import Kept
    from apps.recsys.models.als.als_matrices import Side, Sides

DRAWN = 1 << 14
"""Rows of first factors that are drawn at a time."""


class SharedFactorTrainer(FactorTrainer):
    """Trains ``ials`` over ranks; the interactions of all are on each rank's disk."""

    def _sides(self, history: History, kept: Kept) -> als_matrices.Sides:
        config, block = self.config, int(self.session.plan["fit_block"])
        return als_matrices.on_disk(
            config.directory, history, kept, items=config.items, hyper=config.hyper, block=block
        )

    def _fit_sides(self, sides: Sides, evaluated: object) -> Mapping[str, Any]:
        config, session, group = self.config, self.session, self.session.group
        rows = (sides.users.rows, sides.items.rows)
        state = first_state(rows, factors=config.factors, seed=config.seed, group=group)
        assert config.checkpoint is not None
        saved = SharedCheckpoint(config.checkpoint, config.settings, rows, group)
        found = self._continued(saved) if group.leads else None
        done = group.of_leader(None if found is None else [found.sweep, found.row])
        if done is not None:
            saved.fill(state)
            state.sweep, state.row = done
        last = 2 * config.hyper["iterations"]
        with session.progress(total=last, unit="sweep", label="fit") as bar:
            bar.update(state.sweep)
            try:
                while state.sweep < last:
                    self._sweep(sides, state)
                    state.sweep, state.row = state.sweep + 1, 0
                    bar.update()
                    due = group.sums([float(group.leads and saved.due())])[0]
                    if due:
                        saved.save(state)
            except LostRank as error:
                after = f"stopped after {state.sweep} sweeps; the same command continues from the last checkpoint"
                raise LostRank(f"{error}: {after}") from None
        if not np.isfinite(group.sums([float(state.items.sum(dtype=np.float64))])[0]):
            raise ArithmeticError("the factors are not finite; try a larger regularization")
        return {weights.ITEMS: streamed_rows(SharedRows.of(torch.from_numpy(state.items), rows[1], group))}

    def _sweep(self, sides: Sides, state: FactorState) -> None:
        """Solve this rank's rows of one side; raises ``KeyboardInterrupt`` on all ranks if one has to stop."""
        by_item = state.sweep % 2
        side, other = (sides.items, sides.users) if by_item else (sides.users, sides.items)
        solved, fixed = (state.items, state.users) if by_item else (state.users, state.items)
        sweep(
            side,
            solved,
            fixed,
            other.rows,
            done=state.row,
            hyper=self.config.hyper,
            threads=self.session.threads,
            group=self.session.group,
            stopping=lambda: self.session.stopping,
        )


def first_state(rows: tuple[int, int], *, factors: int, seed: int, group: Group) -> FactorState:
    """This rank's rows of ``ials.first_state``: all are drawn, some at a time.

    Parameters
    ----------
    rows
        Numbers of users and of items.
    factors
        Numbers per row.
    seed
        Seed of the random numbers.
    group
        The ranks.
    """
    random = np.random.default_rng(seed)

    def own(count: int) -> NDArray[np.float32]:
        share = group.share(count)
        drawn = np.empty((len(share), factors), np.float32)
        for first in range(0, count, DRAWN):
            block = ials.uniform(random, min(DRAWN, count - first), factors)
            start, stop = max(first, share.start), min(first + len(block), share.stop)
            if start < stop:
                drawn[start - share.start : stop - share.start] = block[start - first : stop - first]
        drawn *= ials.FIRST_SCALE
        return drawn

    return FactorState(own(rows[0]), own(rows[1]))


def sweep(
    side: Side,
    solved: NDArray[np.float32],
    fixed: NDArray[np.float32],
    fixed_rows: int,
    *,
    done: int = 0,
    hyper: Mapping[str, Any],
    threads: int,
    group: Group,
    stopping: Any = lambda: False,
) -> None:
    """Solve all rows of a side, each rank its own.

    Parameters
    ----------
    side
        The confidences.
    solved, fixed
        This rank's factors of the side, which are replaced, and of the other one.
    fixed_rows
        Rows of the other side.
    done
        Rows that a single process, which was interrupted, has solved.
    hyper
        As ``ials.HYPER``.
    threads
        Threads of the solver.
    group
        The ranks.
    stopping
        Returns true if this rank has to stop.

    Raises
    ------
    KeyboardInterrupt
        A rank has to stop; rows that are solved stay so.
    LostRank
        Another rank has ended.
    """
    import implicit.cpu.als  # noqa: F401  BLAS must be loaded before it can be limited
    from threadpoolctl import threadpool_limits

    own, fixed_own = group.share(side.rows), group.share(fixed_rows)
    solve = ials.solver(hyper, threads, fixed_rows)
    gramian = group.added(torch.from_numpy((fixed.T @ fixed).astype(np.float64))).numpy()
    touched, position = np.zeros(fixed_rows, bool), np.zeros(fixed_rows, np.int32)
    blocks: Iterator[Any] = side.blocks(max(own.start, min(done, own.stop)), own.stop)
    with threadpool_limits(1, "blas"):
        while True:
            start, stop, block = next(blocks, (0, 0, None))
            working, stopped = group.sums([float(block is not None), float(stopping())])
            if stopped:
                raise KeyboardInterrupt
            if not working:
                return
            needed = np.zeros(0, np.int64)
            if block is not None:
                touched[block.indices] = True
                needed = touched.nonzero()[0]
                touched[needed] = False
                position[needed] = np.arange(len(needed), dtype=np.int32)
                block.indices = position[block.indices]
            compact = np.empty((len(needed) + len(gramian), solved.shape[1]), np.float32)
            _gather(compact, needed, fixed, fixed_own, group, fixed_rows)
            if block is not None:
                compact[len(needed) :] = _rest(gramian, compact[: len(needed)])
                solve(block, solved[start - own.start : stop - own.start], compact)
            del block, compact  # before the next ones


def _rest(gramian: NDArray[np.float64], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows whose Gramian and that of ``rows`` add up to ``gramian``."""
    spectrum, axes = np.linalg.eigh(gramian - rows.T @ rows)
    rest: NDArray[np.float64] = np.sqrt(np.maximum(spectrum, 0))[:, None] * axes.T
    return rest


def _gather(
    out: NDArray[np.float32],
    needed: NDArray[np.int64],
    own: NDArray[np.float32],
    share: range,
    group: Group,
    rows: int,
) -> None:
    """Write the rows ``needed``, increasing, of all ranks' factors into the first rows of ``out``."""
    rank, size = group.world.rank, group.world.size
    bounds = np.searchsorted(needed, [part.start for part in group.world.shares(rows)] + [rows])
    wanted = group.all_of(np.diff(bounds).tolist())
    step = max(1, BLOCK_BYTES // (4 * out.shape[1]))
    mine = slice(bounds[rank], bounds[rank + 1])
    out[mine] = own[needed[mine] - share.start]
    for shift in range(1, size):
        owner, asker = (rank + shift) % size, (rank - shift) % size
        asked = torch.empty(wanted[asker][rank], dtype=torch.int64)
        ids = torch.from_numpy(needed[bounds[owner] : bounds[owner + 1]])
        _swapped([ids] if len(ids) else [], owner, [asked] if len(asked) else [], asker)
        places = asked.numpy() - share.start
        first, last = int(bounds[owner]), int(bounds[owner + 1])
        for at in range(0, max(len(places), last - first), step):
            sent = [torch.from_numpy(own[places[at : at + step]])] if at < len(places) else []
            room = torch.from_numpy(out[first + at : min(first + at + step, last)])
            _swapped(sent, asker, [room] if len(room) else [], owner)


def _swapped(sent: list[torch.Tensor], to: int, received: list[torch.Tensor], source: int) -> None:
    with watched():
        works = [dist.irecv(tensor, source) for tensor in received] + [dist.isend(tensor, to) for tensor in sent]
        for work in works:
            assert work is not None
            work.wait()


class SharedCheckpoint(FactorCheckpoint):
    """The file of ``FactorCheckpoint``, written and read by the leader for ranks that have some rows each.

    Parameters
    ----------
    rows
        Numbers of users and of items.
    group
        The ranks.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], rows: tuple[int, int], group: Group) -> None:
        super().__init__(path, settings)
        self._rows, self._group = rows, group

    def save(self, state: FactorState) -> None:
        """Write the state atomically; all ranks call it."""
        began, matrices = time.monotonic(), self._shared(state)
        if not self._group.leads:
            for matrix in matrices:
                for _ in matrix.blocks():
                    pass
            return
        with atomic_file(self.path) as part, part.open("wb") as stream:
            stream.write(self.head(state))
            for matrix in matrices:
                header = {"descr": "<f4", "fortran_order": False, "shape": matrix.shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for block in matrix.blocks():
                    block.numpy().tofile(stream)
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def load(self) -> FactorState | None:
        """The progress in the file, without factors, which ``fill`` reads; ``None`` if the file is damaged."""
        try:
            with self.path.open("rb") as stream:
                head = json.loads(stream.readline())
                self._offsets(stream)
            nothing = np.zeros((0, 0), np.float32)
            return FactorState(nothing, nothing, sweep=int(head["sweep"]), row=int(head["row"]))
        except (ValueError, KeyError, TypeError, EOFError, BadInput):
            return None

    def fill(self, state: FactorState) -> None:
        """Read the factors into the state; all ranks call it."""
        if not self._group.leads:
            for matrix in self._shared(state):
                matrix.fill(lambda start, stop: torch.zeros(0))
            return
        with self.path.open("rb") as stream:
            stream.readline()
            for matrix, offset in zip(self._shared(state), self._offsets(stream), strict=True):
                width = 4 * matrix.shape[1]

                def rows(start: int, stop: int, offset: int = offset, width: int = width) -> torch.Tensor:
                    data = bytearray(os.pread(stream.fileno(), width * (stop - start), offset + width * start))
                    return torch.frombuffer(data, dtype=torch.float32).view(stop - start, -1)

                matrix.fill(rows)

    def _shared(self, state: FactorState) -> list[SharedRows]:
        pairs = zip((state.users, state.items), self._rows, strict=True)
        return [SharedRows.of(torch.from_numpy(own), rows, self._group) for own, rows in pairs]

    def _offsets(self, stream: Any) -> list[int]:
        """Where the numbers of both matrices begin; the stream stands at the first one."""
        offsets = []
        for rows in self._rows:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise BadInput("not a matrix")
            shape, columns_first, kind = np.lib.format.read_array_header_1_0(stream)
            if columns_first or kind != np.float32 or len(shape) != 2 or shape[0] != rows:
                raise BadInput("another matrix")
            offsets.append(stream.tell())
            stream.seek(4 * shape[0] * shape[1], 1)
        if stream.tell() > os.fstat(stream.fileno()).st_size:
            raise BadInput("cut off")
        return offsets
