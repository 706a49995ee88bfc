import json
import logging
import math
import os
import resource
import signal
import threading

import numpy as np
import pytest

from forebay.pipeline.errors import RunError
from forebay.pipeline.journal import (
    DURABLE_EVENTS,
    Journal,
    JsonLines,
    is_being_written,
    read_events,
    read_journal,
    read_lines,
    records_from_columns,
    records_to_columns,
)
from forebay.pipeline.records import Outcome, SolveRecord


def refuse_constant(text):
    raise AssertionError(f"{text} is no strict JSON")


def write_three(path):
    with Journal(path) as journal:
        for chunk in range(3):
            journal.append("block_requested", split="train", chunk=chunk, solver="solver-0")


def test_events_come_back_in_order_with_their_fields_and_time(tmp_path):
    path = tmp_path / "runs" / "journal.jsonl"
    write_three(path)
    events = list(read_journal(path))
    assert [event["chunk"] for event in events] == [0, 1, 2]
    assert {event["event"] for event in events} == {"block_requested"}
    assert all(1.7e9 < event["t"] < 1e10 for event in events)
    assert path.read_bytes().count(b"\n") == 3


def test_a_reopened_journal_is_appended_to(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    write_three(path)
    assert [event["chunk"] for event in read_journal(path)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("-inf")])
def test_numbers_that_json_lacks_survive_as_strings(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as lines:
        lines.append({"loss": value, "nested": [{"p99": value}], "array": np.array([1.5, value])})
    line = json.loads(path.read_text(), parse_constant=refuse_constant)
    for back in (line["loss"], line["nested"][0]["p99"], line["array"][1]):
        assert isinstance(back, str)
        assert float(back) == value or (math.isnan(float(back)) and math.isnan(value))
    assert line["array"][0] == 1.5


def test_a_text_that_reads_nan_stays_a_text(tmp_path):
    columns = records_to_columns([record(message="nan")])
    assert records_from_columns(json.loads(json.dumps(columns)))[0].message == "nan"


def test_what_json_has_no_form_for_is_refused_and_leaves_the_file_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        with pytest.raises(TypeError, match="set"):
            journal.append("odd", value={1, 2})
        journal.append("even", value=np.int64(2))
    assert [(event["event"], event.get("value")) for event in read_journal(path)] == [("even", 2)]


def test_a_closed_journal_refuses_to_append(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal.append("late")


def test_a_file_that_does_not_exist_has_no_lines(tmp_path):
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_a_line_torn_anywhere_is_left_out_and_cut_off_before_the_next(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for torn in (*range(last + 1, len(whole) - 2, 9), len(whole) - 2):
        path.write_bytes(whole[:torn])
        assert [event["chunk"] for event in read_journal(path)] == [0, 1]
        with Journal(path) as journal:
            journal.append("run_finished", status="stopped", reason="")
        assert [event["event"] for event in read_journal(path)] == ["block_requested"] * 2 + ["run_finished"]
    assert "left out a torn last line" in caplog.text
    assert "cut a torn last line" in caplog.text


def test_a_last_line_that_is_whole_but_for_its_newline_is_cut_because_it_was_never_promised(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert [event["chunk"] for event in read_journal(path)] == [0, 1]
    with Journal(path) as journal:
        journal.append("resumed")
    assert [event["event"] for event in read_journal(path)] == ["block_requested"] * 2 + ["resumed"]


def test_a_last_line_of_zero_bytes_is_cut(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\0" * 40 + b"\n")
    assert len(list(read_journal(path))) == 3
    Journal(path).close()
    assert path.stat().st_size == size


def test_a_whole_file_is_left_as_it_is_and_nothing_is_logged(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    before = path.read_bytes()
    with caplog.at_level(logging.DEBUG):
        Journal(path).close()
        assert len(list(read_journal(path))) == 3
    assert path.read_bytes() == before
    assert not caplog.records


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:-4]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=r"journal\.jsonl', line 2 is not a JSON object .* restore the file"):
        list(read_journal(path))


def test_lines_without_an_event_are_no_journal(tmp_path):
    path = tmp_path / "other.jsonl"
    with JsonLines(path) as lines:
        lines.append({"kind": "train"})
    with pytest.raises(RunError, match='entry 1 has no "event"; this file is not a run\'s journal'):
        list(read_journal(path))


def test_an_event_that_does_not_say_what_it_is_to_tell_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    with JsonLines(path) as lines:
        lines.append({"event": "run_started"})
        lines.append({"event": "block_stored", "split": "train", "records": {}})
    with pytest.raises(RunError, match="has an event block_stored without 'chunk'; restore the file from a copy"):
        list(read_events(path))


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(RunError, match="cannot be opened for appending: Is a directory"):
        Journal(tmp_path)


def test_only_durable_events_wait_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event in ("block_requested", "block_ingested", "solver_lost"):
            journal.append(event)
        assert synced == []
        for event in sorted(DURABLE_EVENTS):
            journal.append(event)
    assert len(synced) == len(DURABLE_EVENTS) == 3


def test_a_line_that_does_not_fit_leaves_no_torn_line_behind(tmp_path):
    path = tmp_path / "journal.jsonl"
    write_three(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        try:
            with pytest.raises(RunError, match=r"a line of \d+ bytes could not be appended .* make room and resume"):
                journal.append("block_stored", split="train", chunk=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        journal.append("block_stored", split="train", chunk=3)
    assert [event["chunk"] for event in read_journal(path)] == [0, 1, 2, 3]


def test_lines_of_several_writers_and_threads_do_not_mix(tmp_path):
    path = tmp_path / "metrics.jsonl"

    def write(lines, writer):
        for number in range(150):
            lines.append({"event": "train", "writer": writer, "number": number, "padding": "x" * (37 * writer)})

    with JsonLines(path) as one, JsonLines(path) as two:
        threads = [threading.Thread(target=write, args=(lines, w)) for w, lines in enumerate((one, one, two, two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = list(read_journal(path))
    assert len(lines) == 600
    for writer in range(4):
        assert [line["number"] for line in lines if line["writer"] == writer] == list(range(150))


def test_a_second_writer_does_not_cut_what_the_first_is_about_to_finish(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as one:
        one.append({"event": "train"})
        with path.open("ab") as file:
            file.write(b'{"event": "half')
        size = path.stat().st_size
        JsonLines(path).close()
        assert path.stat().st_size == size


def test_a_journal_counts_as_written_while_it_is_open(tmp_path):
    path = tmp_path / "journal.jsonl"
    assert not is_being_written(path)
    with Journal(path):
        assert is_being_written(path)
        assert is_being_written(path)
    assert not is_being_written(path)


def test_a_killed_writer_no_longer_counts(tmp_path):
    path = tmp_path / "journal.jsonl"
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            journal = Journal(path)
            journal.append("run_started")
            os.write(tell, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.read(ready, 1)
    assert is_being_written(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not is_being_written(path)
    assert [event["event"] for event in read_journal(path)] == ["run_started"]


def record(**changes):
    values = {
        "sample_id": 7,
        "seed": 2**64 - 3,
        "outcome": Outcome.CONVERGED,
        "method": "cg+gamg",
        "iterations": 23,
        "residual": 3.25e-9,
        "seconds": 0.0125,
        "message": "",
    }
    return SolveRecord(**(values | changes))


def test_records_survive_the_journal_exactly(tmp_path):
    records = [
        record(),
        record(sample_id=8, outcome=Outcome.DIVERGED, residual=math.inf, message='zero "pivot"\nat 3 \ud800 µ'),
        record(sample_id=9, outcome=Outcome.MAX_ITERATIONS, residual=0.1 + 0.2),
    ]
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("block_stored", split="train", chunk=0, records=records_to_columns(records))
        journal.append("block_stored", split="train", chunk=1, records=records_to_columns([]))
    first, second = read_journal(path)
    assert records_from_columns(first["records"]) == records
    assert first["records"]["outcome"] == ["CONVERGED", "DIVERGED", "MAX_ITERATIONS"]
    assert records_from_columns(second["records"]) == []


def test_a_residual_that_is_not_a_number_survives_the_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("block_stored", records=records_to_columns([record(residual=math.nan)]))
    (line,) = read_journal(path)
    assert math.isnan(records_from_columns(line["records"])[0].residual)


def test_columns_of_unequal_length_are_refused():
    columns = records_to_columns([record(), record(sample_id=8)])
    columns["seed"].pop()
    with pytest.raises(RunError, match=r"columns of unequal length .*'seed': 1.* journal line is damaged"):
        records_from_columns(columns)


def test_an_outcome_of_a_later_version_is_named():
    columns = records_to_columns([record()]) | {"outcome": ["ABDUCTED"]}
    with pytest.raises(RunError, match=r"outcome 'ABDUCTED' of sample 7 is unknown, .*CONVERGED, .* wrote it"):
        records_from_columns(columns)


def test_columns_of_reduced_models_are_written_only_where_one_was_asked():
    plain, reduced = record(), record(indicator=0.5, estimate=0.02)
    assert "estimate" not in records_to_columns([plain])
    columns = json.loads(json.dumps(records_to_columns([plain, reduced])))
    assert columns["estimate"] == [None, 0.02]
    assert records_from_columns(columns) == [plain, reduced]
    with pytest.raises(RunError, match="columns of unequal length"):
        records_from_columns(columns | {"indicator": [0.5]})
