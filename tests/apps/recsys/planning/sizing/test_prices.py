"""What ``size`` says before there is data is what the planners say once they have read it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from apps.recsys import cli
from apps.recsys.bench import headline
from apps.recsys.commands import train
from apps.recsys.data import ingest
from apps.recsys.data.columns import Columns
from apps.recsys.data.ingest import Facts
from apps.recsys.data.splits import HeldOut
from apps.recsys.data.staging import Filters
from apps.recsys.models.linear.options import open_factors
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.planning.answer import AnswerWorkload
from apps.recsys.planning.evaluate import EvaluateWorkload
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest, RecommendRequest
from apps.recsys.planning.recommend_all import RecommendAllWorkload
from apps.recsys.planning.requests import EvaluateRequest
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.service.workload import ServeWorkload
from apps.recsys.planning.sizing import prices
from apps.recsys.planning.sizing.request import SizeRequest
from apps.recsys.planning.train import TrainWorkload
from common.errors import UsageError
from common.memory.costs.store import CostStore
from common.memory.plan.planner import Workload, leanest, plan
from common.memory.process.budget import GIB, MIB, MemoryBudget
from tests.apps.recsys.asked import train_request
from tests.messages import refused, says
from tests.promise import kept

Run = Callable[..., Any]
MODELS: dict[str, tuple[object, ...]] = {
    "ials 16": ("--model", "ials", "--factors", 16),
    "ials 64": (),
    "ials 256, own solver": ("--model", "ials", "--factors", 256, "--set", "frequency_scaling=1"),
    "bpr 64": ("--model", "bpr"),
    "popularity": ("--model", "popularity"),
    "linear": ("--model", "linear"),
    "spectral 32": ("--model", "linear", "--set", "form=spectral", "--factors", 32),
}
EMBEDDING = ("--model", "embedding", "--table", "int8", "--micro-batch", 64, "--set", "batch=64")
DATA = {
    "lastfm": ("plays.csv", "none"),
    "ml-1m": ("ratings.csv.gz", "user-holdout"),
    "gowalla": ("", "random"),
    "epinions": ("train.txt", "none"),
}
"""Real data sets: a file, and the split that is priced with it."""
MOST = MemoryBudget(200 * GIB, None, "the test")


@dataclass(frozen=True)
class Read:
    """A data set that was read: its facts, and the folder with ids and held-out items."""

    facts: Facts
    folder: Path
    split: str

    @property
    def title_letters(self) -> int:
        """Mean length of the titles in UTF-8; 0: there are none."""
        titles = pq.read_table(self.folder / "items.parquet").to_pydict().get("title", [])
        return round(sum(len((title or "").encode()) for title in titles) / len(titles)) if titles else 0

    def sized(self, *options: object) -> SizeRequest:
        """The request of ``size`` for this data."""
        facts, letters = self.facts, self.title_letters
        numbers = (("items", facts.items), ("users", facts.users), ("interactions", facts.interactions))
        words = [word for name, number in numbers for word in (f"--{name}", number)]
        words += ["--title-letters", letters] if letters else []
        command = ["size", *words, "--split", self.split, "--threads", 1, *options]
        return SizeRequest.of(cli.parser().parse_args([str(word) for word in command]))


@pytest.fixture(scope="module", params=DATA)
def data(request: Any, dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Read:
    """The data sets, each read once."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    file, split = DATA[name]
    titles = dataset(name) / "artists.csv" if name == "lastfm" else None
    path = dataset(name) / file if file else headline.source(name, folder)
    inputs = ingest.open_inputs((path,), Columns(), titles, Filters(), split, 0)
    return Read(ingest.ingest(inputs, folder), folder, split)


def real(read: Read, *options: object) -> Iterator[tuple[str, Workload]]:
    """The workloads of commands that read this data, and the model that it makes."""
    model, work = read.folder, TrainWorkload(train_request("--split", read.split, *options), read.facts)
    files = {path.name: {"bytes": path.stat().st_size} for path in model.glob("*.parquet")}
    manifest: Any = {**train._manifest_fields(work), "kind": work.request.model.kind, "files": files}
    if manifest["hyper"].get("form") == "auto":  # the training chooses it
        manifest["hyper"] = {**manifest["hyper"], "form": "filter"}
        pairs = read.facts.interactions - read.facts.held_interactions
        manifest["factors"] = min(manifest["factors"], open_factors("filter", read.facts.items, pairs))
    if scan_files.applies(manifest["kind"], manifest["hyper"], read.facts.items):  # the training writes them
        sizes = scan_files.sizes(read.facts.items, manifest["factors"])
        manifest["files"] |= {name: {"bytes": numbers} for name, numbers in sizes.items()}
    scored = read.facts.users if read.split == "none" else len(HeldOut(model))
    many = RecommendAllRequest(model=model, output=Path("lists"), threads=1)
    yield "train", work
    yield "evaluate", EvaluateWorkload(EvaluateRequest(model=model, threads=1), manifest, scored)
    yield "recommend --all-users", RecommendAllWorkload(many, manifest)
    yield "recommend --user", AnswerWorkload(RecommendRequest(model=model, user="1", threads=1), manifest)
    yield "serve", ServeWorkload(ServeRequest(model=model, threads=1), manifest)


def compare(data: Read, *options: object) -> None:
    """Both predictions within 5 %, with the longest history stated or assumed."""
    store, found = CostStore(), dict(real(data, *options))
    for longest in (("--longest", data.facts.longest), ()):
        request = data.sized(*options, *longest)
        costs = store.collect(prices.SizeWorkload(request).probes({}), ceiling=None)
        needs = {need.command: need for need in prices.needs(request, costs)}
        assert needs.keys() == found.keys()
        for command, work in found.items():
            for ours, right in ((needs[command].fastest, plan), (needs[command].least, leanest)):
                theirs = right(work, MOST, store)
                told = (command, longest, ours.footprint, theirs.footprint)
                assert ours.predicted_peak_bytes == pytest.approx(theirs.predicted_peak_bytes, rel=0.05), told


@pytest.mark.parametrize("model", MODELS)
def test_sizes_say_what_the_planners_say(data: Read, model: str) -> None:
    """28 settings of four data sets, five commands each."""
    compare(data, *MODELS[model])


@pytest.mark.parametrize("data", ["lastfm"], indirect=True)
def test_an_embedding_too(data: Read) -> None:
    compare(data, *EMBEDDING)


def test_on_the_command_line(run: Run, quick: Run) -> None:
    sizes = ("--items", 3706, "--users", 6040, "--interactions", 1_000_209)
    command = ("apps.recsys", "size", *sizes, "--longest", 2314, "--threads", 1)
    done = run(*command, "--memory", "400MiB", "--json")
    assert done.code == 0, done.err
    kept(done.record)
    assumed, found = done.record["results"]["assumed"], done.record["results"]["commands"]
    assert assumed["longest"] == 2314 and assumed["kind"] == "linear" and len(found) == 5
    for need in found:
        assert need["predicted_peak_bytes"] < need["ceiling_bytes"] >= need["least_ceiling_bytes"] > 40 * MIB
    shown = quick(*command)
    assert shown.code == 0 and len(shown.out.splitlines()) == 6
    says(shown.out, "train", "evaluate", "recommend --all-users", "serve")
    says(shown.err, "6,040 users", "2,314 of one user")
    large = quick(
        *command[:2], "--model", "ials", "--items", 10**9, "--users", 10**9, "--interactions", 10**11, "--json"
    )
    assert large.code == 0  # nothing of that size is allocated
    assert large.record["results"]["commands"][0]["least_ceiling_bytes"] > 4 * 64 * 10**9


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"interactions": 13}, ("--interactions 13", "12 pairs")),
        ({"interactions": 3}, ("--interactions 3", "every user")),
        ({"longest": 2}, ("--longest 2", "3", "at most 4")),
        ({"longest": 5}, ("--longest 5", "at most 4")),
        ({"table": "int8"}, ("--table", "embedding")),
        ({"set": "alpha=-1"}, ("alpha",)),
    ],
)
def test_sizes_that_cannot_be(options: dict[str, Any], facts: tuple[str, ...]) -> None:
    sizes = {"items": 4, "users": 3, "interactions": 9} | options
    words = [str(word) for name, value in sizes.items() for word in (f"--{name}", value)]
    with refused(UsageError, *facts):
        SizeRequest.of(cli.parser().parse_args(["size", *words]))
