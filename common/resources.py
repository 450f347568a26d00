"""Files that are installed with the program: the catalogue of data sets, and trained models."""

from pathlib import Path


def data_folder() -> Path:
    """The folder ``data``: inside the installed package, or at the top of a checkout.

    An editable install runs the checkout's modules, so it reads the checkout's folder.
    """
    from importlib import resources  # 200 KiB, which most commands never need

    installed = Path(str(resources.files("common"))) / "data"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "data"
