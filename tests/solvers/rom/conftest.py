"""What several files of tests of reduced models share."""

import shutil

import pytest
from suites.solid_blocks import SAMPLES, make

from forebay.solvers.compose import LIBRARY


@pytest.fixture(scope="session")
def stream(tmp_path_factory):
    """A whole stream in one block: the folder, the block, and every sample solved again."""
    folder = tmp_path_factory.mktemp("stream")
    solver = make(folder)
    block = solver.solve_block("train", 0)
    again = [solver.resolve("train", sample) for sample in range(SAMPLES)]
    solver.destroy()
    return folder, block, again


@pytest.fixture
def trained(stream, tmp_path):
    """A copy of what that stream has learned, to be changed."""
    folder, _, _ = stream
    shutil.copytree(folder / LIBRARY, tmp_path / LIBRARY)
    return tmp_path
