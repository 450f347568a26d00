"""Copy a model folder to where its user wants it."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from common.errors import UsageError
from common.model_folder import MANIFEST


def copy_model(source: Path, target: Path, *, application: str) -> None:
    """Copy a model folder, so that all of it appears at once; a model of the same application is replaced.

    Raises
    ------
    UsageError
        If something else is there, or nothing can be written.
    """
    if not _replaceable(target, application):
        raise UsageError(f"{target}: is there, and is not a model of {application!r}; choose another folder")
    target = Path(os.path.abspath(target))
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{name}") for name in ("part", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, draft, ignore=shutil.ignore_patterns(".*"))
        if target.exists():
            target.rename(old)
        draft.rename(target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror}") from None
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def _replaceable(target: Path, application: str) -> bool:
    """True if a model may be written there: nothing, an empty folder, or a model of the application."""
    if not target.exists():
        return True
    with suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["application"] == application)
    return target.is_dir() and not any(target.iterdir())
