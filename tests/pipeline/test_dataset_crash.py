"""Processes that write are killed at every kind of moment; what was published stays whole, and the run goes on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from dataset_samples import (
    ATTRIBUTES,
    make_block,
    make_dataset,
    sample_arrays,
    sample_record,
    store_and_commit,
    transient_schema,
    without_fsync,
)

from forebay.pipeline import chunks
from forebay.pipeline.dataset import DatasetCoordinator, DatasetReader, DatasetWriter
from forebay.pipeline.records import ChunkPlan
from forebay.pipeline.verify import verify

SCHEMA = transient_schema()
PLAN = ChunkPlan("train", 7, 3)


class _Doomed:
    """Counts the steps in which a process touches the disk and kills the process before one of them."""

    def __init__(self, last_step: int) -> None:
        self.steps, self.last_step = 0, last_step
        self._mkdir, self._replace, self._open = os.mkdir, os.replace, open
        os.mkdir = self._before(os.mkdir)
        os.replace = self._before(os.replace)
        os.fsync = self._before(lambda descriptor: None)
        chunks.open = self._open_for_halves

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, call):
        def wrapped(*args, **options):
            self.step()
            return call(*args, **options)

        return wrapped

    def _open_for_halves(self, *args):
        self.step()
        file = self._open(*args)
        write = file.write

        def write_in_halves(data):
            write(data[: len(data) // 2])
            file.flush()
            self.step()
            write(data[len(data) // 2 :])

        return _Wrapped(file, write_in_halves)


class _Wrapped:
    def __init__(self, file, write) -> None:
        self.file, self.write = file, write
        self.flush, self.fileno = file.flush, file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()


def _run_until_killed(path: Path, last_step: int) -> tuple[int, int]:
    """In a forked process: store, commit and publish block after block; returns (last report, steps) of the process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            doomed = _Doomed(last_step)
            coordinator = DatasetCoordinator.open(path, SCHEMA, PLAN)
            writer = DatasetWriter(path, SCHEMA, PLAN)
            for chunk in range(PLAN.chunks):
                store_and_commit(writer, coordinator, SCHEMA, [chunk])
                os.write(writing, f"published {coordinator.publish()}\n".encode())
            os.write(writing, f"steps {doomed.steps}\n".encode())
            os._exit(0)
        finally:
            os._exit(70)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        said = [line.split() for line in pipe]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the writing process failed: {status}"
    published = [int(number) for what, number in said if what == "published"]
    steps = [int(number) for what, number in said if what == "steps"]
    return (published or [0])[-1], (steps or [0])[-1]


def _assert_whole(path: Path, promised: int) -> None:
    reader = DatasetReader(path)
    assert reader.samples >= promised, "what publish returned for is visible"
    assert reader.samples in (0, 3, 6, 7)
    expected = np.stack([sample_arrays(SCHEMA, i)["temperature"] for i in range(7)])
    assert reader.column("temperature").tobytes() == expected[: reader.samples].tobytes()
    for chunk in range(-(-reader.samples // 3)):
        assert reader.read_block(chunk).records == [sample_record(i) for i in PLAN.sample_ids(chunk).tolist()]
    # Readers that ignore the group's metadata may be ahead of it, but never see anything unfinished.
    own = zarr.open_array(str(path / "temperature"), mode="r")
    assert own.shape[0] >= reader.samples
    assert own[:].tobytes() == expected[: own.shape[0]].tobytes()
    assert not [f for f in verify(path).findings if not f.flaw.is_note]


def _assert_can_be_finished(path: Path) -> None:
    with DatasetCoordinator.open(path, SCHEMA, PLAN) as coordinator:
        store_and_commit(DatasetWriter(path, SCHEMA, PLAN), coordinator, SCHEMA, range(PLAN.chunks))
    report = verify(path, lambda i: sample_arrays(SCHEMA, i), samples=7)
    assert report.findings == ()
    assert report.samples == 7
    reader = DatasetReader(path)
    for chunk in range(PLAN.chunks):
        assert reader.read_block(chunk).records == [sample_record(i) for i in PLAN.sample_ids(chunk).tolist()]


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    with without_fsync():
        return make_dataset(tmp_path_factory.mktemp("empty") / "d.zarr", SCHEMA, PLAN, chunks=[])


def _kill_at(steps, empty: Path, folder: Path) -> None:
    with without_fsync():
        for step in steps:
            path = folder / f"{step}.zarr"
            shutil.copytree(empty, path)
            promised, _ = _run_until_killed(path, step)
            _assert_whole(path, promised)
            _assert_can_be_finished(path)


@pytest.fixture(scope="module")
def step_count(empty, tmp_path_factory):
    path = tmp_path_factory.mktemp("count") / "d.zarr"
    shutil.copytree(empty, path)
    promised, steps = _run_until_killed(path, -1)
    assert promised == 7
    assert steps > 200
    return steps


def test_a_process_killed_between_or_during_writes_leaves_a_whole_data_set(empty, step_count, tmp_path):
    _kill_at(range(5, step_count, 19), empty, tmp_path)


@pytest.mark.slow
def test_a_process_killed_before_any_single_write_leaves_a_whole_data_set(empty, step_count, tmp_path):
    _kill_at(range(1, step_count + 1), empty, tmp_path)


WRITER = """
import sys
sys.path[:0] = sys.argv[4:]
from pathlib import Path
from dataset_samples import make_block, transient_schema
from forebay.pipeline.dataset import DatasetWriter
from forebay.pipeline.records import ChunkPlan
schema, plan = transient_schema(), ChunkPlan("train", 1600, 5)
writer = DatasetWriter(Path(sys.argv[1]), schema, plan)
for chunk in range(int(sys.argv[2]), plan.chunks, int(sys.argv[3])):
    writer.store(make_block(schema, plan, chunk))
    print(chunk, flush=True)
"""


def _start_writer(path: Path, first: int, stride: int) -> subprocess.Popen:
    folders = [str(Path(__file__).parent.parent)]
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(stride), *folders]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_writers_killed_in_full_swing_lose_nothing_that_they_reported(tmp_path):
    path, plan = tmp_path / "d.zarr", ChunkPlan("train", 1600, 5)  # so many that none is done before it is killed
    rng = np.random.default_rng(977)
    with DatasetCoordinator.create(path, SCHEMA, plan, ATTRIBUTES) as coordinator:
        writers = [_start_writer(path, first, 2) for first in range(2)]
        for writer in writers:
            for _ in range(int(rng.integers(3, 12))):
                _commit(coordinator, plan, int(writer.stdout.readline()))
            coordinator.publish()
            writer.kill()
        for writer in writers:
            assert writer.wait() == -signal.SIGKILL
            for line in writer.stdout:  # what it reported before it died, and nobody had read
                _commit(coordinator, plan, int(line))
            writer.stdout.close()
        published = coordinator.publish()
        assert 15 <= published < 1600, "the writers were killed before they were done"
        assert verify(path).ok
    with DatasetCoordinator.open(path, SCHEMA, plan) as coordinator:
        missing = [chunk for chunk in range(plan.chunks) if not coordinator.is_committed(chunk)]
        with without_fsync():
            store_and_commit(DatasetWriter(path, SCHEMA, plan), coordinator, SCHEMA, missing)
    report = verify(path, lambda i: sample_arrays(SCHEMA, i), samples=20)
    assert report.findings == ()
    assert (report.samples, report.chunk_files) == (1600, 640)


def _commit(coordinator, plan, chunk):
    block = make_block(SCHEMA, plan, chunk)
    coordinator.commit(chunk, block.records, block.arrays["parameters"])


COORDINATOR = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from dataset_samples import store_and_commit, transient_schema
from forebay.pipeline.dataset import DatasetCoordinator, DatasetWriter
from forebay.pipeline.records import ChunkPlan
schema, plan, path = transient_schema(), ChunkPlan("train", 60, 2), Path(sys.argv[1])
coordinator = DatasetCoordinator.open(path, schema, plan)
for chunk in range(plan.chunks):
    if not coordinator.is_committed(chunk):
        store_and_commit(DatasetWriter(path, schema, plan), coordinator, schema, [chunk])
        print(coordinator.publish(), flush=True)
coordinator.close()
"""


def test_a_coordinator_killed_again_and_again_finishes_in_the_end(tmp_path):
    path = tmp_path / "d.zarr"
    DatasetCoordinator.create(path, SCHEMA, ChunkPlan("train", 60, 2), ATTRIBUTES).close()
    rng = np.random.default_rng(733)
    command = [sys.executable, "-c", COORDINATOR, str(path), str(Path(__file__).parent.parent)]
    promised = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(int(rng.integers(2, 8))):
            promised = int(process.stdout.readline())
        process.kill()
        process.wait()
        process.stdout.close()
        assert promised <= DatasetReader(path).samples < 60
        assert verify(path).ok
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "60"
    assert verify(path, lambda i: sample_arrays(SCHEMA, i), samples=60).findings == ()
