"""The request of ``recsys compress``: one immutable value, checked when it is made, before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.recsys.models import manifest as manifests
from apps.recsys.models.coded import implicit_file
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.scan import stored as scan_files
from common.compression.book_layout import smallest_bytes
from common.compression.row_codes import SCALE_BYTES, row_bytes
from common.compression.row_levels import MOST_BITS
from common.errors import UsageError

BITS = (1, 2, 3, 4, 8)
"""Values of ``--bits``."""
ROUNDS = 1
"""Times that users and items of ``ials`` are solved again by default. Three ranked no better (MovieLens-1M at 8 to 64
bytes an item, Gowalla at 64)."""
LAYERS = {"scalar": 0, "product": 1, "residual": 2}
"""Values of ``--codes``, and how many entries of code books are added in each group of dimensions."""
SCALAR = "scalar"
PRIOR_BYTES = 4
"""Bytes of an item's prior, which stays a float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressRequest:
    """A model folder whose item vectors become codes.

    Attributes
    ----------
    model
        The model folder, or a file of factors that ``implicit`` saved.
    output
        The folder of the new model, or the new file.
    target_bytes
        Most bytes of an item, with its scale; ``None``: ``bits`` says.
    bits
        Mean bits of a number of the dimensions that there are, one of ``BITS``.
    dimensions
        Most dimensions; ``None``: as many as get a bit.
    codes
        One of ``LAYERS``: levels of each dimension, or code books.
    rounds
        Times that users and items of ``ials`` are solved again; ``None``: ``ROUNDS``.
    scan
        True to write the files by which a large catalogue is scanned.
    seed, threads
        Seed of what is sampled; threads of the computation.

    Raises
    ------
    UsageError
        The output is the model itself or in its folder, or of the other kind.
    """

    model: Path
    output: Path
    target_bytes: int | None = None
    bits: int | None = None
    dimensions: int | None = None
    codes: str = SCALAR
    rounds: int | None = None
    scan: bool = False
    seed: int = 0
    threads: int

    def __post_init__(self) -> None:
        if self.output.absolute() == self.model.absolute() or (
            self.output.exists() and self.model.exists() and self.output.samefile(self.model)
        ):
            raise UsageError(f"-o {self.output}: is the model; a compressed model is written beside it")
        if not self.of_file and self.model.resolve() in self.output.resolve().parents:
            raise UsageError(f"-o {self.output}: is in the model's folder; choose another")
        if not self.of_file and self.output.suffix == implicit_file.SUFFIX:
            raise UsageError(
                f"-o {self.output}: of a model folder, a folder is made; name it without {implicit_file.SUFFIX}"
            )
        if self.of_file and (self.output.suffix != implicit_file.SUFFIX or self.output.is_dir()):
            raise UsageError(f"-o {self.output}: of factors in a file, a file {implicit_file.SUFFIX} is made")

    @classmethod
    def of(cls, args: argparse.Namespace) -> CompressRequest:
        """Read the command line; raises as the constructor."""
        return cls(
            model=args.model,
            output=args.output,
            target_bytes=args.target_bytes,
            bits=args.bits,
            dimensions=args.dimensions,
            codes=args.codes,
            rounds=args.rounds,
            scan=args.scan,
            seed=args.seed,
            threads=args.threads,
        )

    def row_bytes(self, manifest: Mapping[str, Any]) -> dict[str, int]:
        """Bytes of a row of each matrix that becomes codes, without its scale, by its name.

        Raises
        ------
        UsageError
            The model has no item vectors, or they are codes already; more dimensions than it has; a target below what
            any code takes.
        """
        if self.rounds is not None and (manifest["kind"] != "ials" or self.of_file):
            raise UsageError("--rounds: only for model folders of kind ials, whose users and items are solved again")
        if self.codes != SCALAR and manifest["kind"] == "linear":
            raise UsageError(f"--codes {self.codes}: not for linear, whose spectrum has levels (--codes {SCALAR})")
        if self.scan and self.of_file:
            raise UsageError("--scan: only for model folders, which answer questions")
        if self.scan and (manifest["kind"] == "linear" or not scan_files.supports(manifest["kind"], manifest["hyper"])):
            raise UsageError("--scan: only for ials, bpr and embedding with user_vectors=history")
        if self.scan and manifest["items"] < scan_files.LEAST_ITEMS:
            count, least = manifest["items"], scan_files.LEAST_ITEMS
            raise UsageError(f"--scan: {self.model} has {count:,} items, which are scanned from {least:,} on")
        matrices, prior = _matrices(self.model, manifest), PRIOR_BYTES * bool(manifest["hyper"].get("prior"))
        factors = manifest["factors"]
        if self.dimensions is not None and self.dimensions > factors:
            raise UsageError(f"--dimensions {self.dimensions}: {self.model} has {factors}")
        least = self._least_bytes(manifest)
        if self.bits is not None:
            each = -(-self.bits * (self.dimensions or factors) // 8)
            if each + SCALE_BYTES < least:
                raise UsageError(
                    f"--bits {self.bits}: {each + SCALE_BYTES} bytes a vector, of which code books alone take"
                    f" {least - row_bytes(1)} or more of so few; --codes {SCALAR} has none"
                )
            return dict.fromkeys(matrices, each)
        assert self.target_bytes is not None
        smallest = len(matrices) * least + prior
        if self.target_bytes < smallest:
            books = f", and {least - row_bytes(1)} for its share of the code books" if least > row_bytes(1) else ""
            raise UsageError(
                f"--target-bytes {self.target_bytes}: the smallest is {smallest} bytes an item: a scale and 8 bits"
                + (" in its vector" if len(matrices) == 1 else f" in each of its {len(matrices)} vectors")
                + books
                + (f", and {prior} of its prior" if prior else "")
            )
        each = (self.target_bytes - prior) // len(matrices) - SCALE_BYTES
        if self.codes == SCALAR:  # so many take MOST_BITS of every number
            each = min(each, (self.dimensions or factors) * MOST_BITS // 8)
        return dict.fromkeys(matrices, each)

    def _least_bytes(self, manifest: Mapping[str, Any]) -> int:
        """The smallest bytes of a row of a matrix, with its scale and its share of code books."""
        layers = LAYERS[self.codes]
        if not layers:
            return row_bytes(1)
        return smallest_bytes(self.dimensions or manifest["factors"], rows=manifest["items"], layers=layers)

    def resume_settings(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the codes, as values of JSON."""
        files = {name: entry["sha256"] for name, entry in manifest["files"].items() if name != "card.md"}
        rounds = ROUNDS if self.rounds is None else self.rounds
        return {
            "files": files,
            "bytes": self.row_bytes(manifest),
            "dimensions": self.dimensions,
            "codes": self.codes,
            "rounds": rounds,
            "hyper": manifest["hyper"],
        }

    @property
    def of_file(self) -> bool:
        """True if factors that ``implicit`` saved are compressed."""
        return self.model.suffix == implicit_file.SUFFIX

    def file_bytes(self, factors: int, rows: int) -> int:
        """Bytes of a row of either side of a file of factors, without its scale; ``rows`` of the shorter side.

        Raises
        ------
        UsageError
            As ``row_bytes``.
        """
        given: Any = {"kind": "ials", "hyper": {}, "factors": factors, "items": rows}
        return self.row_bytes(given)["item_factors"]


def _matrices(model: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the model's matrices of item vectors."""
    kind, hyper = manifest["kind"], manifest["hyper"]
    if is_coded(manifest):
        raise UsageError(f"{model}: is compressed already; compress the model that it was made of")
    form = hyper["form"] if kind == "linear" else ""
    if kind not in manifests.CODED or not manifest["factors"] or form == "ease":
        what = f"{kind}, form {form}," if form else kind
        raise UsageError(
            f"{model}: a model of kind {what} has no item vectors to compress; ials, bpr, embedding and linear with a"
            " spectrum have"
        )
    if manifests.spectrum_bits(manifest) < 32:
        raise UsageError(
            f"{model}: its spectrum has {manifests.spectrum_bits(manifest)} bits a number already (--set bits); train"
            " with 32 bits and compress that model"
        )
    both = kind == "embedding" and hyper["tables"] == 2
    return manifests.CODED[kind][: 2 if both else 1]
