"""The course of a training."""

import json
import math
from pathlib import Path

import pytest

from apps.imaging.training.journal import ENTRIES, Journal


def test_entries_are_means_and_their_number_is_bounded() -> None:
    journal, steps = Journal(), 1000
    for step in range(1, steps + 1):
        journal.add(float(step), step=step, progress=step / steps, rate=0.1)
    assert len(journal.entries) == ENTRIES
    assert journal.entries[-1]["step"] == steps
    last = journal.entries[-2]["step"] + 1
    assert journal.entries[-1]["loss"] == pytest.approx((last + steps) / 2)


def test_the_best_validation_and_those_since() -> None:
    journal = Journal()
    assert [journal.validated(dice, step=step) for step, dice in enumerate((0.2, 0.5, 0.5, 0.4))] == [1, 1, 0, 0]
    assert (journal.best_dice, journal.best_step, journal.worse) == (0.5, 1, 2)
    assert journal.shown == {"dice": "0.400"}
    assert not journal.validated(math.nan, step=4)


def test_a_dice_of_no_class_is_no_entry_and_never_the_best() -> None:
    journal = Journal()
    assert not journal.validated(math.nan, step=1) and journal.worse == 1 and journal.shown == {}
    assert journal.validated(0.0, step=2) and journal.best_step == 2
    json.dumps(journal.state(), allow_nan=False)


def test_a_continued_journal_is_the_undisturbed_one() -> None:
    whole, part = Journal(), Journal()
    for step in range(1, 51):
        if step == 21:
            state = json.loads(json.dumps(part.state()))
            part = Journal()
            part.load(state)
        for each in (whole, part):
            each.add(1 / step, step=step, progress=step / 50, rate=0.1)
            if step % 10 == 0:
                each.validated(step / 100, step=step)
    assert part.entries == whole.entries and part.best_step == whole.best_step == 50


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    journal = Journal(tmp_path / "events")
    for step in range(1, ENTRIES + 1):
        journal.add(2.0, step=step, progress=step / ENTRIES, rate=0.5)
    journal.validated(0.75, step=ENTRIES)
    journal.close()
    (file,) = (tmp_path / "events").iterdir()
    content, values = file.read_bytes(), {}
    while content:  # TFRecord: length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    assert values["loss", 1] == 2.0 and values["learning_rate", ENTRIES] == 0.5 and values["dice", ENTRIES] == 0.75
