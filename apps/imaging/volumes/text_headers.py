"""NRRD and MetaImage: a header of lines, and planes behind it or in another file of the same folder.

Both are read strictly: what would change the meaning of the voxels and is not understood is refused by its name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.imaging.volumes.stored import FileVolume, check_length
from apps.imaging.volumes.volume import Affine
from common.errors import BadInput

MOST_HEADER = 1 << 20
"""Most bytes of a header."""
NRRD_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    "float": "f4",
    "double": "f8",
}
META_TYPES: Mapping[str, str] = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
SPACES: Mapping[str, tuple[int, int, int]] = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
"""NRRD's spaces, and the signs that take them to right, anterior, superior."""
PACKINGS = {"raw": "", "gzip": "gz", "gz": "gz", "bzip2": "bz2", "bz2": "bz2"}


def open_text_header(path: Path) -> FileVolume:
    """Read and check the header of ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Raises
    ------
    BadInput
        A file that is missing, damaged, too short, not three-dimensional, or has something that is not read; one whose
        voxels would be outside its folder.
    """
    kind = "NRRD" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImage"
    if not path.is_file():
        raise BadInput(f"{path}: no such file", public="no such file")
    try:
        return _nrrd(path) if kind == "NRRD" else _meta(path)
    except BadInput as error:
        reason = str(error).removeprefix(f"{path}: ")  # which a message about the file of the voxels has already
        raise BadInput(f"{path}: {reason}", public=error.public) from None
    except KeyError as error:
        raise BadInput(f"{path}: its header has no {error}", public=f"{kind} header") from None
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a readable {kind} header ({error})", public=f"{kind} header") from None


def _header(path: Path, kind: str, ends: Callable[[str], bool]) -> tuple[list[str], int]:
    """The lines of a header and its bytes."""
    lines, size = [], 0
    with path.open("rb") as stream:
        while size < MOST_HEADER:
            line = stream.readline(MOST_HEADER)
            size += len(line)
            text = line.decode("utf-8").strip()
            if line and not ends(text):
                lines.append(text)
                continue
            if text:
                lines.append(text)
            return lines, size
    raise BadInput(f"a header of more than {MOST_HEADER} bytes", public=f"{kind} header")


def _refused(kind: str, name: str, value: Any, read: str) -> BadInput:
    return BadInput(f"{name} {value!r} is not read; {read}", public=f"{kind} {name}")


def _beside(path: Path, name: str, kind: str) -> Path:
    """The file of the voxels, which has to be in the header's folder."""
    if re.fullmatch(r"LIST( \d+)?", name):
        raise BadInput("its voxels are in a list of files; one file is read", public=f"{kind} of several files")
    if not name or Path(name).name != name or name in (".", "..") or "\\" in name or "%" in name:
        message = f"its voxels would be in {name!r}; one file in the folder of the header is read"
        raise BadInput(message, public=f"{kind} points elsewhere")
    other = path.with_name(name)
    if other.resolve().parent != path.resolve().parent:
        message = f"its voxels would be in {other.resolve()}, outside its folder"
        raise BadInput(message, public=f"{kind} points elsewhere")
    if not other.is_file():
        raise BadInput(f"its voxels are in {name}, which is not there", public="file of voxels missing")
    return other


def _numbers(text: str, count: int) -> list[float]:
    found = [float(part) for part in re.split(r"[\s,()]+", text) if part]
    if len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"{text!r} instead of {count} numbers")
    return found


def _sizes(text: str, dimension: int, kind: str) -> list[int]:
    sizes = [int(part) for part in text.split()]
    if dimension != 3 or len(sizes) != 3 or min(sizes) < 1:
        raise BadInput(f"not a three-dimensional image (its sizes are {text})", public=f"{kind} not 3D")
    return sizes


def _volume(path: Path, kind: str, dtype: str, big: bool, sizes: list[int], affine: Affine, **data: Any) -> FileVolume:
    place, packing = data["data"] or path, data["packing"]
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise BadInput("its axes have no inverse", public=f"{kind} geometry")
    stored = np.dtype((">" if big else "<") + dtype)
    voxels = sizes[0] * sizes[1] * sizes[2] * stored.itemsize
    if data["plain"] == -1:  # the voxels are the end of the file
        data["plain"] = place.stat().st_size - voxels
    if data["plain"] < 0 or place.stat().st_size < data["plain"]:
        raise BadInput("truncated: it ends before its last voxel", public=f"{kind} truncated")
    check_length(place, data["plain"] + voxels if not packing else voxels, packing, kind)
    shape = (sizes[0], sizes[1], sizes[2])
    return FileVolume(path, shape, affine, stored, 1.0, 0.0, None, 0, kind=kind, **data)


def _nrrd(path: Path) -> FileVolume:
    lines, size = _header(path, "NRRD", lambda text: not text)
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise BadInput("not an NRRD file of versions 1 to 5", public="NRRD header")
    stated = (line for line in lines[1:] if ": " in line and not line.startswith("#") and ":=" not in line)
    pairs = (line.split(": ", 1) for line in stated)
    fields = {name.strip().lower(): value.strip() for name, value in pairs}
    sizes = _sizes(fields["sizes"], int(fields["dimension"]), "NRRD")
    kind, encoding = fields["type"].lower(), fields["encoding"].lower()
    if kind not in NRRD_TYPES:
        raise _refused("NRRD", "type", kind, "whole and real numbers are")
    if encoding not in PACKINGS:
        raise _refused("NRRD", "encoding", encoding, "raw, gzip and bzip2 are")
    if fields.get("line skip", fields.get("lineskip", "0")) != "0":
        raise _refused("NRRD", "line skip", fields.get("line skip"), "0 is")
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", ""}
    if units:
        raise _refused("NRRD", "space units", ", ".join(sorted(units)), "mm is")
    space = fields.get("space", "").lower()
    if space not in SPACES:
        raise _refused("NRRD", "space", space, f"{', '.join(name for name in SPACES if '-' in name)} are")
    directions = re.findall(r"\([^)]*\)|none", fields["space directions"])
    if len(directions) != 3 or "none" in directions:
        raise _refused("NRRD", "space directions", fields["space directions"], "three vectors are")
    axes, signs = np.array([_numbers(one, 3) for one in directions]).T, np.array(SPACES[space], float)
    affine = np.eye(4)
    affine[:3, :3] = axes * signs[:, None]
    affine[:3, 3] = np.array(_numbers(fields.get("space origin", "(0,0,0)"), 3)) * signs
    name = fields.get("data file", fields.get("datafile"))
    data = None if name is None else _beside(path, name, "NRRD")
    skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
    if skip < -1 or (skip and PACKINGS[encoding]):
        raise _refused("NRRD", "byte skip", skip, "0 is, and -1 or more without compression")
    dtype, endian = NRRD_TYPES[kind], fields.get("endian", "little").lower()
    if endian not in ("little", "big") or (dtype[1] != "1" and "endian" not in fields):
        raise _refused("NRRD", "endian", fields.get("endian"), "little and big are")
    plain = -1 if skip == -1 else skip + (size if data is None else 0)
    place: dict[str, Any] = {"data": data, "packing": PACKINGS[encoding], "plain": plain}
    return _volume(path, "NRRD", dtype, endian == "big", sizes, affine, **place)


def _meta(path: Path) -> FileVolume:
    lines, size = _header(path, "MetaImage", lambda text: text.startswith("ElementDataFile"))
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    fields = {name.strip(): value.strip() for name, value in pairs}
    if fields.get("ObjectType", "Image") != "Image" or "ElementDataFile" not in fields:
        raise BadInput("not the header of an image", public="MetaImage header")
    sizes = _sizes(fields["DimSize"], int(fields["NDims"]), "MetaImage")
    kind = fields["ElementType"].upper()
    if kind not in META_TYPES:
        raise _refused("MetaImage", "ElementType", kind, "whole and real numbers are")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise _refused("MetaImage", "ElementNumberOfChannels", fields["ElementNumberOfChannels"], "1 is")
    if not _true(fields.get("BinaryData", "True")):
        raise _refused("MetaImage", "BinaryData", fields["BinaryData"], "True is")
    matrix = fields.get("TransformMatrix", fields.get("Rotation", fields.get("Orientation", "1 0 0 0 1 0 0 0 1")))
    offset = fields.get("Offset", fields.get("Position", fields.get("Origin", "0 0 0")))
    edges = fields.get("ElementSpacing", fields.get("ElementSize", "1 1 1"))
    # A row of the matrix is an axis of the image; its space is left, posterior, superior.
    axes, signs = np.array(_numbers(matrix, 9)).reshape(3, 3).T * _numbers(edges, 3), np.array([-1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3] = axes * signs[:, None]
    affine[:3, 3] = np.array(_numbers(offset, 3)) * signs
    name = fields["ElementDataFile"]
    data = None if name.upper() == "LOCAL" else _beside(path, name, "MetaImage")
    packed, skip = _true(fields.get("CompressedData", "False")), int(fields.get("HeaderSize", "0"))
    if skip < -1 or (skip and (packed or data is None)):
        raise _refused("MetaImage", "HeaderSize", skip, "0 is, and -1 or more for another file without compression")
    big = _true(fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")))
    place: dict[str, Any] = {"data": data, "packing": "zlib" if packed else "", "plain": skip if data else size}
    return _volume(path, "MetaImage", META_TYPES[kind], big, sizes, affine, **place)


def _true(text: str) -> bool:
    return text.lower() in ("true", "1")
