"""The ``recsys`` command line: options, and the functions that do the work. No heavy library is imported here."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.recsys.commands import bench, compress, evaluate, export, recommend, recommend_all, serve, size, train, update
from apps.recsys.commands.lists import merge
from apps.recsys.data import splits, staging
from apps.recsys.evaluation import metrics
from apps.recsys.models.embedding import embedding_config
from apps.recsys.planning import model_options
from apps.recsys.planning.compressing.request import BITS, LAYERS, ROUNDS, SCALAR, CompressRequest
from apps.recsys.planning.questions.export import FORMS, IDS, ExportRequest
from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest, RecommendRequest
from apps.recsys.planning.requests import PROTOCOLS, EvaluateRequest, SimilarRequest, split_ids
from apps.recsys.planning.service.limits import EVENTS, MOST_CONNECTIONS
from apps.recsys.planning.service.request import ServeRequest
from apps.recsys.planning.sizing.request import SizeRequest
from apps.recsys.planning.train_request import TrainRequest
from apps.recsys.planning.updating.request import UpdateRequest
from apps.recsys.training import tuning
from common import __version__
from common.cli import fetch_bench, job_scripts, main, ranks
from common.cli.arguments import IntermixedParser
from common.cli.main import Command
from common.compression import layouts

TABLE_HELP = (
    "how vectors are stored while they train (default full): full, int8 and int4 store a row per item; hash stores sums"
    " of shared rows in --set row_bytes. For comparison only, since they rank worse than hash and int8 at equal bytes:"
    " qr, tt, lowrank, pq, frequency. All but full, int8 and int4 are written as float32"
)

WHERE_HELP = (
    "choose items by their attributes, the columns of train's --items: 'genre in (Comedy, Drama) and year >= 1990';"
    " = != < <= > >= in, and, or, not, parentheses"
)


def parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    top = argparse.ArgumentParser(
        prog="recsys", description="Recommend inside a stated number of bytes.", epilog=main.EPILOG
    )
    top.add_argument("--version", action="version", version=f"peakline {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=IntermixedParser)
    _train(commands.add_parser("train", help="train a model on interactions"))
    _update(commands.add_parser("update", help="add interactions to a model, or forget users, without a new training"))
    _compress(commands.add_parser("compress", help="make a model's item vectors codes of a few bits"))
    _evaluate(commands.add_parser("evaluate", help="rank all items for held-out users, and report metrics"))
    _recommend(commands.add_parser("recommend", help="recommend items for a user, a history or all users"))
    merge.add(commands.add_parser("merge", help="join the lists of all parts of recommend --all-users --part"))
    _similar(commands.add_parser("similar", help="find the items nearest to one, or the users most like one"))
    _inspect(commands.add_parser("inspect", help="describe a model folder and check its digests"))
    _export(commands.add_parser("export", help="write item vectors and ids for an index, or an ONNX file"))
    _serve(commands.add_parser("serve", help="serve a model over HTTP"))
    _size(commands.add_parser("size", help="say what a model will need, before there is any data"))
    fetch_bench.add_fetch(commands, "recsys")
    bench.add(commands)
    return top


def _ids(text: str) -> list[str]:
    ids = split_ids(text)
    if not ids:
        raise argparse.ArgumentTypeError("expected ids separated by commas")
    return ids


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def _metrics(text: str) -> list[str]:
    try:
        return [metrics.checked(name) for name in _ids(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _depths(text: str) -> list[int]:
    return [main.positive(depth) for depth in _ids(text)]


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")


def _train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "interactions",
        nargs="+",
        type=Path,
        metavar="INTERACTIONS",
        help="text or JSON lines (also .gz, .bz2, .zst), Parquet or Arrow, one row per pair; folders of Parquet files",
    )
    add("-o", "--output", required=True, type=Path, metavar="MODEL_DIR")
    _kind(parser)
    tune = "ials, bpr, embedding: first try N settings on hidden items; settings on the command line are not searched"
    add("--tune", type=main.positive, default=0, metavar="N", help=tune)
    _columns(parser)
    add("--time-col", metavar="NAME", help="for --split leave-last and temporal; default: by common names")
    add("--items", type=Path, metavar="ITEMS.csv", help="a table with the items' ids, titles and attributes")
    add("--min-value", type=float, metavar="X", help="leave out rows with a smaller value")
    add("--min-user", type=main.positive, default=1, metavar="N", help="leave out users with fewer rows")
    add("--min-item", type=main.positive, default=1, metavar="N", help="leave out items with fewer rows")
    repeated = "what repeated rows of a user and an item count: their sum (the default), the last of them, or 1"
    add("--duplicates", choices=staging.DUPLICATES, default="sum", help=repeated)
    add("--split", choices=splits.KINDS, default="none", help="hold items out, and evaluate on them (default none)")
    resume = "ials, bpr, embedding: fail without a checkpoint; by default one is continued if it exists"
    add("--resume", action="store_true", help=resume)
    ranks.add_option(parser)
    main.add_common_options(parser)
    command = Command(
        "recsys train",
        TrainRequest.of,
        train.workload,
        train.warm_up,
        train.execute,
        train.record,
        tuning.section,
        alone=True,
    )
    parser.set_defaults(command=command)


def _update(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    add = parser.add_argument
    new = "new interactions, in any format that train reads, with the columns that the model was trained on"
    add("interactions", nargs="*", type=Path, metavar="INTERACTIONS", help=new)
    add("-o", "--output", required=True, type=Path, metavar="MODEL_DIR", help="the new model; may be the same folder")
    feedback = "a log of recsys serve --feedback, of which the events are added that the model does not contain yet"
    add("--feedback", type=Path, metavar="LOG.jsonl", help=feedback)
    forget = "a user whose rows leave the model, and whose id stays in none of its files; may be repeated"
    add("--forget", action="append", default=[], metavar="USER", help=forget)
    keep = "linear: keep the spectrum as it was, which takes a second, not half a minute, and is no longer exact"
    add("--keep-spectrum", action="store_true", help=keep)
    _columns(parser)
    add("--time-col", metavar="NAME", help="for models trained with --duplicates last; default: by common names")
    add("--items", type=Path, metavar="ITEMS.csv", help="a table with the items' ids and titles")
    main.add_common_options(parser)
    command = Command(
        "recsys update", UpdateRequest.of, update.workload, update.warm_up, update.execute, update.record, alone=True
    )
    parser.set_defaults(command=command)


def _compress(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    model = "a model with item vectors (ials, bpr, embedding, linear with a spectrum), or factors of implicit (.npz)"
    add("model", type=Path, metavar="MODEL", help=model)
    add("-o", "--output", required=True, type=Path, metavar="OUTPUT", help="the new model, or the new .npz")
    size = parser.add_mutually_exclusive_group(required=True)
    target = "mean bytes of an item with its scale; bits go to dimensions and rows by how much scores vary there"
    size.add_argument("--target-bytes", type=main.positive, metavar="N", help=target)
    bits = "instead: the mean bits of a number, shared out alike"
    size.add_argument("--bits", type=int, choices=BITS, help=bits)
    add("--dimensions", type=main.positive, metavar="D", help="most dimensions (default: all that get a bit)")
    codes = (
        f"form of the codes (default {SCALAR}: a level of each dimension): product, an entry of a code book for each"
        " group of dimensions; residual, two entries that are added. For comparison: of as many bytes they lose more in"
        " all that was measured but one (docs/techniques.md), so --target-bytes alone never takes them"
    )
    add("--codes", choices=tuple(LAYERS), default=SCALAR, help=codes)
    rounds = f"ials: times that users and items are solved again around the codes (default {ROUNDS})"
    add("--rounds", type=_not_negative, metavar="N", help=rounds)
    scan = "a large catalogue: also write the files by which it is scanned, a byte a number on disk and none in memory"
    add("--scan", action="store_true", help=scan)
    main.add_common_options(parser)
    command = Command(
        "recsys compress",
        CompressRequest.of,
        compress.workload,
        compress.warm_up,
        compress.execute,
        compress.record,
        alone=True,
    )
    parser.set_defaults(command=command)


def _kind(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and its settings."""
    add = parser.add_argument
    add(
        "--model",
        choices=model_options.KINDS,
        help=f"default {model_options.DEFAULT}, whose settings are chosen on hidden items, and"
        f" {model_options.FORMER_DEFAULT} with options that only that has; bpr: reproducible with --threads 1",
    )
    add(
        "--factors",
        type=_not_negative,
        metavar="N",
        help="linear: eigenvalues, 0 for none (default as many of 512 as fit); others: numbers per item (default 64)",
    )
    add("--epochs", type=main.positive, metavar="N", help="ials, bpr, embedding: passes over the data (15, 40, 20)")
    defaults = "; ".join(
        f"{kind}: " + ", ".join(f"{name}={value}" for name, value in hyper.items())
        for kind, hyper in model_options.DEFAULTS.items()
        if hyper
    )
    text = f"hyper-parameter of the model; names with defaults: {defaults}"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    _embedding(parser.add_argument_group("embedding").add_argument)


def _columns(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how files of interactions are read."""
    add = parser.add_argument
    add("--user-col", metavar="NAME", help="default: by common names, else the first column")
    add("--item-col", metavar="NAME", help="default: by common names, else the next column")
    add("--value-col", metavar="NAME", help="default: by common names, else every row counts 1")
    add("--delimiter", metavar="C", help="between columns: a character, tab, space, ::, or list for lists of ids")
    add("--decimal", choices=(".", ","), default=".", help="before decimals in text (default .)")
    add("--no-header", dest="header", action="store_false", help="the first line is data: user, item[, value[, time]]")


def _embedding(add: Callable[..., Any]) -> None:
    """Add the options of ``--model embedding``, without defaults, so that other models can refuse them."""
    add("--loss", choices=embedding_config.LOSSES, help="default softmax")
    add("--table", choices=layouts.KINDS, help=TABLE_HELP)
    add("--amp", choices=("off", "bf16"), help="dot products with negatives in bfloat16 (default off)")
    add("--micro-batch", type=main.positive, metavar="N", help="windows at a time (default: chosen by the plan)")
    add("--accumulate", type=main.positive, metavar="N", help="instead: micro-batches per step")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    add = parser.add_argument
    add("--test", nargs="+", type=Path, metavar="FILE", help="pairs to score, in any format that train reads")
    add("--negatives", type=Path, metavar="FILE", help="NCF's file: a positive pair and sampled negatives in each line")
    protocol = (
        "the model's --split (the default); with --test: split, or lightgcn for its recall; with --negatives: ncf"
    )
    add("--protocol", choices=PROTOCOLS, help=protocol)
    kinds = (*metrics.EACH, *metrics.TOGETHER)
    text = f"of {', '.join(kinds)}, with a depth as in ndcg@20 or at those of --k (default: as after a training)"
    add("--metrics", type=_metrics, action="extend", metavar="NAME,NAME,...", help=text)
    add("--k", type=_depths, action="extend", metavar="N,N,...", help="depths of the metrics without one (default 10)")
    parser.set_defaults(metric_kinds=kinds)
    against = "compare with this model on the same users: differences with 95%% intervals (paired bootstrap)"
    add("--against", type=Path, metavar="MODEL_DIR", help=against)
    _columns(parser)
    main.add_common_options(parser)
    command = Command(
        "recsys evaluate",
        EvaluateRequest.of,
        evaluate.workload,
        evaluate.warm_up,
        evaluate.execute,
        evaluate.record,
    )
    parser.set_defaults(command=command)


def _recommend(parser: argparse.ArgumentParser) -> None:
    for_one = Command(
        "recsys recommend", RecommendRequest.of, recommend.workload, recommend.warm_up, recommend.recommend
    )
    for_all = Command(
        "recsys recommend",
        RecommendAllRequest.of,
        recommend_all.workload,
        recommend_all.warm_up,
        recommend_all.execute,
        recommend_all.record,
    )
    _model(parser)
    add = parser.add_argument
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--user", metavar="ID", help="a user of the training data; an unknown one gets popular items")
    all_users = "all users of the training data, into a file (-o)"
    subject.add_argument("--all-users", action="store_const", dest="command", const=for_all, help=all_users)
    users = "these users, into a file (-o): an id a line, or a column of .csv, .tsv, .parquet, .arrow or .jsonl"
    subject.add_argument("--users", action=_Many, const=for_all, type=Path, metavar="FILE", help=users)
    histories = "these histories, into a file (-o): JSON lists or ids with commas, one history a line"
    subject.add_argument("--histories", action=_Many, const=for_all, type=Path, metavar="FILE", help=histories)
    history = "items of a history; an id with a comma stands in quotes, as in CSV"
    add("--history", type=_ids, action="extend", metavar="ID,ID,...", help=history)
    add("--item", action="append", metavar="ID", help="one item of a history, taken as it is; may be repeated")
    add("--history-file", type=Path, metavar="FILE", help="items of a history, in a file like that of --users")
    add("-k", type=main.positive, metavar="N", help="number of items (default 10; with --candidates all)")
    for option, text in (("--exclude", "items never to recommend"), ("--only", "items to choose from")):
        add(option, type=_ids, action="extend", metavar="ID,ID,...", help=text)
    add("--where", metavar="EXPRESSION", help=WHERE_HELP)
    diversity = "choose items that differ: maximal marginal relevance, from 0 (off, the default) to 1"
    add("--diversity", type=float, default=0.0, metavar="X", help=diversity)
    candidates = "rank the items of a file and no others, also those that the history has"
    add("--candidates", type=Path, metavar="FILE", help=candidates)
    add("--keep-seen", action="store_true", help="recommend items that the history has, too")
    add("--strict", action="store_true", help="refuse unknown ids; by default they are skipped and counted")
    explain = "name N items of the history that added most to each score (ials, linear, embedding)"
    add("--explain", type=main.positive, default=0, metavar="N", help=explain)
    output = "for many: user (or history, from 0), rank, item, score; .parquet, .csv or .jsonl"
    add("-o", "--output", type=Path, metavar="FILE", help=output)
    job_scripts.add_options(parser, "NAME.part-K-of-N.SUFFIX next to -o, with --all-users")
    main.add_common_options(parser)
    parser.set_defaults(command=for_one)


class _Many(argparse.Action):
    """Store a file of users or histories, and choose the command that writes lists for many."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: object, option: object = None) -> None:
        """Set both."""
        setattr(namespace, self.dest, values)
        namespace.command = self.const


def _similar(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--item", metavar="ID", help="find the items nearest to this one")
    subject.add_argument("--user", metavar="ID", help="find the users of the training data who are most like this one")
    parser.add_argument("-k", type=main.positive, default=10, metavar="N", help="number of items or users (default 10)")
    main.add_common_options(parser)
    command = Command("recsys similar", SimilarRequest.of, recommend.workload, recommend.warm_up, recommend.similar)
    parser.set_defaults(command=command)


def _inspect(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.set_defaults(run=recommend.inspect, name="recsys inspect")


def _size(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    for name, text in (("items", "items"), ("users", "users"), ("interactions", "distinct pairs of user and item")):
        add(f"--{name}", type=main.positive, required=True, metavar="N", help=f"number of {text}")
    longest = "items of the user with most (default: the root of the items times the mean)"
    add("--longest", type=main.positive, metavar="N", help=longest)
    _kind(parser)
    add("--split", choices=splits.KINDS, default="none", help="as for train (default none: evaluate all users)")
    add("--id-letters", type=main.positive, default=0, metavar="N", help="mean length of ids (default: numbers)")
    add("--title-letters", type=main.positive, default=0, metavar="N", help="mean length of titles (default: none)")
    add("-k", type=main.positive, default=10, metavar="N", help="items in a list (default 10)")
    main.add_common_options(parser)
    command = Command("recsys size", SizeRequest.of, size.workload, size.warm_up, size.execute)
    parser.set_defaults(command=command)


def _export(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    form = (
        "vectors (the default): item_vectors.npy, float32, whose product with a user's vector is the score; onnx: the"
        " whole way from histories to the best items, for any kind of model"
    )
    parser.add_argument("--as", dest="form", choices=FORMS, default="vectors", help=form)
    output = "folder for the vectors and the ids; with --as onnx NAME.onnx, beside which NAME.ids.csv is written"
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help=output)
    ids = "csv (the default) or parquet: row, id, title"
    parser.add_argument("--ids", choices=IDS, default="csv", help=ids)
    main.add_common_options(parser)
    command = Command("recsys export", ExportRequest.of, export.workload, export.warm_up, export.execute)
    parser.set_defaults(command=command)


def _serve(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=8000, help="default %(default)s; 0: any free port")
    connections = "most connections at a time, each with its memory in the plan (default %(default)s)"
    add("--connections", type=main.positive, default=MOST_CONNECTIONS, metavar="N", help=connections)
    add("--watch", action="store_true", help="serve a new version of the model once its folder changes, as on SIGHUP")
    workers = "processes that answer and share the model (default 1)"
    add("--workers", type=main.positive, default=1, metavar="N", help=workers)
    log = "lines on stderr: text (default), or json with a line for each request"
    add("--log", choices=("text", "json"), default="text", help=log)
    access = parser.add_argument_group("access").add_argument
    token = "a file with a token that requests must have (Authorization: Bearer TOKEN)"
    access("--token-file", type=Path, metavar="FILE", help=token)
    access("--open", action="store_true", help="listen on an address that others reach, without a token")
    host = "a name that requests may be sent to, besides those of this machine; may be repeated"
    access("--allow-host", action="append", default=[], metavar="NAME", help=host)
    feedback = parser.add_argument_group("feedback").add_argument
    log = "take feedback (POST /feedback), and append it to this log, which recsys update reads"
    feedback("--feedback", type=Path, metavar="LOG.jsonl", help=log)
    events = "most events since the model was made (default %(default)s); each has its memory in the plan"
    feedback("--feedback-events", type=main.positive, default=EVENTS, metavar="N", help=events)
    sync = "write each event to the disk before it is answered (default), or when the system does"
    feedback("--feedback-sync", choices=("always", "never"), default="always", help=sync)
    main.add_common_options(parser)
    command = Command("recsys serve", ServeRequest.of, serve.workload, serve.warm_up, serve.execute)
    # One thread: the products of a question are small, and two threads of BLAS took ten times as long for them.
    parser.set_defaults(command=command, threads=1)
