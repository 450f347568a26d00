"""Recommenders for Python: DataFrames in and out, each step inside a stated number of bytes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from apps.recsys import frames, runs
from apps.recsys.data.columns import Columns
from apps.recsys.models.recommender import load_manifest
from apps.recsys.planning.questions.answer_file import MODULE
from common.api import command
from common.api.copying import copy_model
from common.api.scratch import Scratch
from common.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    Id = int | str
    Ids = Iterable[Id]


class Recommender:
    """A trained recommender.

    Make one with ``Recommender.fit`` or ``Recommender.load``. Each method that computes runs a ``recsys`` command in a
    process of its own under the ceiling ``memory``; starting one takes about half a second, so ask for many users at
    once. The object itself holds no more than the name of its model folder.

    Attributes
    ----------
    folder : Path
        The model folder. After ``fit`` it is temporary, and goes with the object: ``save`` keeps it.
    memory : int or str
        Ceiling of every method's process: bytes, or text such as ``"400MiB"``, ``"50%"`` or ``"auto"``, which is most
        of what is free.
    record : Mapping
        Record of the training, as in ``run.json``: predicted and measured memory, metrics of the held-out items, more.

    Examples
    --------
    >>> import pandas as pd
    >>> from apps.recsys import Recommender
    >>> rows = [(user, item) for user in range(40) for item in range(20) if user % 2 == item % 2 and item != user % 20]
    >>> plays = pd.DataFrame(rows, columns=["user", "item"])
    >>> model = Recommender.fit(plays, memory="400MiB", factors=8)
    >>> best = model.recommend(3, k=1)  # user 3 had all odd items but one
    >>> int(best["item"].iloc[0])
    3
    """

    folder: Path
    memory: str | int
    record: Mapping[str, Any]

    def __init__(self, folder: str | os.PathLike[str], *, memory: str | int = "auto") -> None:
        command.budget_of(memory)
        self.folder, self.memory = Path(folder), memory
        self._manifest = load_manifest(self.folder)
        self._types = frames.read_types(self.folder)
        self._scratch: Scratch | None = None
        self.record = runs.record(self.folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, memory: str | int = "auto") -> Self:
        """Open a model folder that ``save`` or ``recsys train`` wrote.

        Raises
        ------
        BadInput
            If it is no complete model folder of a recommender.
        UsageError
            If ``memory`` is not a size.
        """
        return cls(folder, memory=memory)

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        memory: str | int = "auto",
        user: str | None = None,
        item: str | None = None,
        value: str | None = None,
        time: str | None = None,
        titles: pd.DataFrame | None = None,
        model: str | None = None,
        factors: int | None = None,
        epochs: int | None = None,
        settings: Mapping[str, object] | None = None,
        split: str = "none",
        tune: int = 0,
        min_value: float | None = None,
        min_user: int = 1,
        min_item: int = 1,
        duplicates: str = "sum",
        loss: str | None = None,
        table: str | None = None,
        amp: str | None = None,
        micro_batch: int | None = None,
        accumulate: int | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> Self:
        """Train on interactions, as ``recsys train`` does.

        Parameters
        ----------
        frame
            A row for each time that a user had an item. Ids are integers or text, and come back as they are. Rows
            without a user or an item are left out and counted in ``record["results"]["data"]["dropped"]``.
        memory
            Ceiling of the training, and of all later methods. The frame itself, in this process, is not part of it.
        user, item, value, time
            Names of columns; default: those with the usual names, else the first column is the user and the next one
            the item, every row counts 1, and rows are in order of time.
        titles
            Ids and titles of items; answers then have titles. Further columns are attributes, for ``where``.
        model
            ``"linear"``, ``"ials"``, ``"bpr"``, ``"embedding"`` or ``"popularity"``. By default ``"linear"``, or
            ``"ials"`` where an argument is given that ``"linear"`` does not have.
        factors, epochs
            Numbers of each item's vector (``"linear"``: eigenvalues, 0 for none); passes over the data, which
            ``"linear"`` and ``"popularity"`` do not make.
        settings
            Hyper-parameters by name: the ``--set`` of ``recsys train``, whose ``--help`` lists them.
        split
            ``"user-holdout"``, ``"leave-last"``, ``"temporal"``, ``"random"``: hold interactions out and evaluate on
            them; ``"none"``.
        tune
            Try so many settings first, on hidden items of the training data; ``"linear"`` chooses its settings anyway.
        min_value, min_user, min_item
            Leave out rows of a smaller value; users and items with fewer rows.
        duplicates
            What repeated rows of a user and an item count: ``"sum"`` of their values, the ``"last"``, or 1, ``"once"``.
        loss, table, amp, micro_batch, accumulate
            Options of ``model="embedding"``, as the command line has them.
        seed, threads
            Random seed; CPU threads, all by default.

        Returns
        -------
        Recommender
            With a temporary model folder below ``tempfile.gettempdir()``.

        Raises
        ------
        BadInput
            If the frame cannot be used; the message names the column.
        UsageError
            If an argument is wrong.
        DoesNotFit
            If no setting fits; ``smallest_feasible_bytes`` is the ceiling that would do.
        """
        named: dict[str, object] = {
            "model": model,
            "factors": factors,
            "epochs": epochs,
            "split": split,
            "tune": tune or None,
            "duplicates": duplicates,
        }
        named |= {"min-value": min_value, "min-user": min_user, "min-item": min_item, "seed": seed, "threads": threads}
        named |= {"loss": loss, "table": table, "amp": amp, "micro-batch": micro_batch, "accumulate": accumulate}
        options: list[object] = [f"--{name}={choice}" for name, choice in named.items() if choice is not None]
        options += [f"--set={name}={setting}" for name, setting in (settings or {}).items()]
        command.budget_of(memory)
        scratch = Scratch()
        try:
            record = runs.train(scratch.path, frame, Columns(user, item, value, time), titles, options, memory)
            made = cls(scratch.path / runs.MODEL, memory=memory)
        except BaseException:
            scratch.close()
            raise
        made._scratch, made.record = scratch, record
        return made

    def recommend(
        self,
        user: Id | Ids | None = None,
        *,
        history: Ids | Iterable[Ids] | None = None,
        k: int = 10,
        exclude: Ids | None = None,
        only: Ids | None = None,
        where: str | None = None,
        diversity: float = 0.0,
    ) -> pd.DataFrame:
        """The best items for a user or a history, without those that it has already.

        Parameters
        ----------
        user
            A user of the training data, or several.
        history
            Instead of a user: the items that somebody had, or several such lists. Each item counts 1.
        k
            Number of items.
        exclude, only
            Items never to recommend; items to choose from.
        where
            Attributes that items must have, such as ``"genre in (Comedy, Drama) and year >= 1990"``: the ``--where`` of
            ``recsys recommend``.
        diversity
            How far items should differ from each other: 0 not at all, to 1 (its ``--diversity``).

        Returns
        -------
        DataFrame
            Columns ``rank`` (from 1), ``item``, ``score``, and ``title`` where the model has titles. For several users
            or histories a column before them says whose line it is: ``user``, or ``history``, a number from 0.

        Raises
        ------
        UsageError
            If neither or both of user and history are given, or an argument is wrong.
        BadInput
            If a user or an item is not in the model, or its items have no such attribute; the message names it.
        DoesNotFit
            If the model does not fit.
        """
        if (user is None) == (history is None):
            raise UsageError("recommend: pass either a user or a history")
        limits = {"exclude": exclude, "only": only, "where": where, "diversity": diversity}
        if history is None:
            users = frames.several(user)
            asked = [user] if users is None else users
            return self._ask(
                "recommend", "user", [[id_] for id_ in asked], asked if users is not None else None, k, limits
            )
        items = frames.several(history)
        if items is None:
            raise UsageError(f"history: {history!r} is not a list of ids")
        many = bool(items) and frames.several(items[0]) is not None
        histories = [list(each) for each in items] if many else [items]
        if not all(histories):
            raise UsageError("history: expected ids")
        return self._ask("recommend", "history", histories, range(len(histories)) if many else None, k, limits)

    def similar(self, item: Id | Ids, *, k: int = 10) -> pd.DataFrame:
        """The items nearest to an item, by the cosine of their vectors.

        Parameters
        ----------
        item
            An item, or several.
        k
            Number of items.

        Returns
        -------
        DataFrame
            Columns as in ``recommend``; for several items the first column, ``query``, is the one asked for.

        Raises
        ------
        BadInput
            If an item is not in the model.
        UsageError, DoesNotFit
            As ``recommend``.
        """
        items = frames.several(item)
        asked = [item] if items is None else items
        return self._ask("similar", "item", [[id_] for id_ in asked], asked if items is not None else None, k, {})

    def _ask(
        self, what: str, by: str, questions: list[Any], whose: Iterable[Any] | None, k: int, limits: Mapping[str, Any]
    ) -> pd.DataFrame:
        """Answer questions in one process; ``whose`` names each, where there are several."""
        import numpy as np

        with Scratch() as scratch:
            asked, answers = scratch / "questions.arrow", scratch / "answers.arrow"
            largest = frames.write_questions(questions, asked)
            words: list[object] = [what, self.folder, asked, "-o", answers, "--by", by, "-k", k]
            words += ["--batch-bytes", largest]
            for name in ("where", "diversity"):
                words += [f"--{name}={limits[name]}"] if limits.get(name) is not None else []
            for name in ("exclude", "only"):
                if (ids := limits.get(name)) is not None:
                    listed = frames.several(ids)
                    if listed is None:
                        raise UsageError(f"{name}: {ids!r} is not a list of ids")
                    frames.write_questions(([id_] for id_ in listed), scratch / f"{name}.arrow")
                    words += [f"--{name}", scratch / f"{name}.arrow"]
            command.run(MODULE, words, memory=self.memory, name=f"recsys {what}", shown={})
            frame = frames.read_answers(answers, self._types)
        number = frame.pop("question")
        if whose is not None:
            column = {"item": "query"}.get(by, by)
            frame.insert(0, column, np.asarray(list(whose))[number])
        return frame

    def evaluate(self, test: pd.DataFrame | None = None) -> dict[str, float]:
        """Metrics of a full ranking, as ``recsys evaluate`` computes them.

        Parameters
        ----------
        test
            Users and the items that they should be recommended; default: what ``split`` held out.

        Returns
        -------
        dict
            Metric -> mean over users: ``"ndcg@10"``, ``"recall@20"``, ...

        Raises
        ------
        BadInput
            If nothing was held out, or no user of ``test`` is in the model.
        UsageError, DoesNotFit
            As ``recommend``.
        """
        with Scratch() as scratch:
            path = scratch / "test.arrow"
            words: list[object] = ["evaluate", self.folder]
            if test is not None:
                frames.write_interactions(test, Columns(), path)
                words += ["--test", path]
            record = command.run(
                "apps.recsys", words, memory=self.memory, name="recsys evaluate", shown={str(path): "test"}
            )
        return dict(record["results"]["metrics"])

    def update(
        self, frame: pd.DataFrame | None = None, *, forget: Id | Ids | None = None, memory: str | int | None = None
    ) -> Self:
        """Add interactions, and forget users, as ``recsys update`` does; this recommender stays as it is.

        Parameters
        ----------
        frame
            New rows, with the columns that the model was made from; ids may be new ones.
        forget
            A user, or several, whose rows leave the model.
        memory
            Ceiling of the update and of the new recommender's methods; default: that of this one.

        Returns
        -------
        Recommender
            With a temporary model folder, as after ``fit``.

        Raises
        ------
        BadInput
            If the frame has other columns or ids of another type than the model, or a user to forget is not in it.
        UsageError
            If there is neither a frame nor a user to forget.
        DoesNotFit
            If no setting fits; ``smallest_feasible_bytes`` is the ceiling that would do.
        """
        if frame is None and forget is None:
            raise UsageError("update: pass a frame, or users to forget")
        memory = self.memory if memory is None else memory
        command.budget_of(memory)
        one = frames.several(forget)
        users = [] if forget is None else [forget] if one is None else one
        scratch = Scratch()
        try:
            record = runs.update(self.folder, self._manifest, scratch.path, frame, users, memory)
            made = type(self)(scratch.path / runs.MODEL, memory=memory)
        except BaseException:
            scratch.close()
            raise
        made._scratch, made.record = scratch, record
        return made

    @property
    def items(self) -> pd.DataFrame:
        """The model's items: column ``item``, and ``title`` where the model has titles."""
        return frames.read_ids(self.folder, "item")

    @property
    def users(self) -> pd.DataFrame:
        """The users of the training data: column ``user``."""
        return frames.read_ids(self.folder, "user")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the model folder to a place that stays; ``load`` and all ``recsys`` commands read it.

        A recommender that is there already is replaced.

        Raises
        ------
        UsageError
            If something else is there, or nothing can be written.
        """
        target = Path(folder)
        copy_model(self.folder, target, application="recsys")
        return target

    def __repr__(self) -> str:
        kind, users, items = (self._manifest[name] for name in ("kind", "users", "items"))
        return f"<Recommender {kind}: {users:,} users, {items:,} items>"
