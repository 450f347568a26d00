import subprocess
import sys
from pathlib import Path

from common.errors import UsageError
from common.files import sole_writer
from tests.messages import refused, says

HOLD = """
import sys, time
from pathlib import Path
from common.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with refused(UsageError, place, "writing"), sole_writer(place):
            pass
        other.kill()
    with sole_writer(place):  # the kernel let go of it
        (place / "file").touch()
    assert (place / "file").exists()


def test_a_directory_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with refused(UsageError, tmp_path / "file"), sole_writer(tmp_path / "file"):
        pass


def test_a_second_training_into_the_same_folder_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    events = tmp_path / "events.csv"
    events.write_text("user,item\n" + "".join(f"{user},{user * item % 7}\n" for user in range(20) for item in range(9)))
    command = ("apps.recsys", "train", events, "-o", tmp_path / "model", "--model", "ials", "--set", "iterations=2")
    with sole_writer(tmp_path / "model"):
        second = run(*command)
        assert second.code == 2
        says(second.err, tmp_path / "model", "writing")
        assert len(second.err.splitlines()) == 1 and not list((tmp_path / "model").iterdir())
        (tmp_path / "model" / "keep").touch()
    assert run(*command).code == 0
