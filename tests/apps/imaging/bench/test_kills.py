"""What the suite ``imaging`` counts when it kills a run at random moments."""

import sys
from pathlib import Path

from apps.imaging.bench.robustness import kills


def test_a_lost_and_a_partial_output_would_be_seen(tmp_path: Path) -> None:
    """The counting itself, on a command that leaves half a file and never ends."""
    out = tmp_path / "out"
    script = f"import pathlib, time; p = pathlib.Path({str(out)!r}); p.mkdir(exist_ok=True)\n"
    script += "flag = p.parent / 'flag'\n"
    script += "if not flag.exists(): flag.touch(); (p / 'study-0001.nii.gz').write_bytes(b'half'); time.sleep(60)\n"
    found = kills.disturb([sys.executable, "-c", script], out, 1, 1.0, {"study-0001.nii.gz": "whole"})
    assert found["kills"] == 1 and found["partial"] >= 1
