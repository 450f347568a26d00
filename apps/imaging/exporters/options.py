"""Options of ``imaging export`` on the command line, checked; no library is loaded."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

FORMS = ("onnx", "bundle", "nnunet")
PRECISIONS = ("float32", "int8")
"""Of an ONNX file: int8 with QuantizeLinear and DequantizeLinear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """A model in the form that other programs read.

    Attributes
    ----------
    model
        The model folder, nnU-Net folder or MONAI bundle.
    output
        File for ``onnx``, folder for ``bundle``.
    form
        One of ``FORMS``.
    precision
        One of ``PRECISIONS``, for ``onnx``; ``None``: int8 if the model has that.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        An output of another kind, or a form that is not written.
    """

    model: Path
    output: Path
    form: str
    threads: int
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.form == "nnunet":
            raise UsageError(
                "--as nnunet: nnU-Net turns, resamples and blends images in its own way, not as imaging train does;"
                " --as bundle and --as onnx write what MONAI and ONNX Runtime load"
            )
        if self.precision is not None and self.form != "onnx":
            raise UsageError(f"--precision {self.precision}: only --as onnx has precisions; a bundle is in float32")
        if self.form == "onnx" and (self.output.suffix != ".onnx" or self.output.is_dir()):
            raise UsageError(f"-o {self.output}: expected a file NAME.onnx")
        if self.form == "bundle" and self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise UsageError(f"-o {self.output}: exists; expected a new folder, or an empty one")
        if self.model.resolve() in (self.output.resolve(), *self.output.resolve().parents):
            raise UsageError(f"-o {self.output}: is in the model's folder; choose another")
