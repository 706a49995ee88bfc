"""What set-ups cost is measured once a device and counted in wherever weights are learned."""

import json
import math
import statistics

import pytest
import torch
from grid_levels import rough_stencil

from forebay.kernels import cuda_backend, set_up_costs, torch_backend
from forebay.kernels.arrays import ArraySolver
from forebay.kernels.grid_network import GridNetwork
from forebay.kernels.guard import Costs
from forebay.kernels.pcg import prepare, solve
from forebay.kernels.set_up_costs import costs_of, measured

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache on disk and none in memory."""
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    set_up_costs._costs_of.cache_clear()
    yield tmp_path / "kernels"
    set_up_costs._costs_of.cache_clear()


@pytest.fixture
def counted(monkeypatch):
    """What is measured, without measuring."""
    calls = []

    def measure(backend, device, dimension):
        calls.append((backend, str(device), dimension))
        return Costs(3.0, 3.0 + len(calls))

    monkeypatch.setattr(set_up_costs, "measured", measure)
    return calls


def test_every_kind_is_measured_once_and_kept_for_later_processes(folder, counted):
    first = costs_of("torch", CPU, 2)
    assert costs_of("torch", CPU, 2) is first
    set_up_costs._costs_of.cache_clear()  # as in another process
    assert costs_of("torch", CPU, 2) == first == Costs(3.0, 4.0)
    assert costs_of("torch", CPU, 3) == Costs(3.0, 5.0)
    assert counted == [("torch", "cpu", 2), ("torch", "cpu", 3)]
    assert len(list(folder.glob("set-up-costs-torch-?d-*.json"))) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps({"classical": 3})])
def test_a_damaged_file_is_measured_again(folder, counted, text):
    costs_of("torch", CPU, 2)
    (path,) = folder.iterdir()
    path.write_text(text)
    set_up_costs._costs_of.cache_clear()
    assert costs_of("torch", CPU, 2) == Costs(3.0, 5.0)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, folder, counted):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "file"))
    assert costs_of("torch", CPU, 2) == Costs(3.0, 4.0)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_network_takes_longer_to_set_up(monkeypatch, dimension):
    monkeypatch.setattr(set_up_costs, "_SHAPES", {2: (2, 32, 32), 3: (2, 10, 10, 10)})
    costs = [measured("torch", CPU, dimension) for _ in range(5)]
    assert all(0 < cost.classical < math.inf for cost in costs)
    # At this size a tenth apart, which a busy machine hides now and then.
    assert 1 < statistics.median(cost.learned / cost.classical for cost in costs) < math.inf


@pytest.fixture
def asked(monkeypatch):
    """Whoever asks for costs is told that nothing learned pays."""
    calls = []

    def costs(backend, device, dimension):
        calls.append((backend, dimension))
        return Costs(1.0, 1e6)

    for home in (torch_backend, cuda_backend):
        monkeypatch.setattr(home, "costs_of", costs)
    return calls


def systems(batch):
    rhs = torch.randn(batch, 40, 40, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return rough_stencil((40, 40), batch=batch, contrast=1e6), rhs


def network():
    """A little better than the classical cycle."""
    made = GridNetwork(2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        made.smoother_bias.fill_(2.0)
    return made


def labels(records):
    return {record.preconditioner for record in records}


def test_systems_that_are_solved_once_pay_for_their_set_up(asked):
    stencil, rhs = systems(3)
    assert labels(solve(stencil, rhs, preconditioner=network(), backend="torch")[1]) == {"multigrid(guard)"}
    assert asked == [("torch", 2)]
    once = prepare(stencil, preconditioner=network(), backend="torch", solves=1)
    assert labels(once.solve(rhs)[1]) == {"multigrid(guard)"}
    one = stencil.select(slice(0, 1))
    assert labels(solve(one, rhs, preconditioner=network(), backend="torch")[1]) == {"multigrid(guard)"}


def test_systems_that_are_solved_again_and_again_do_not(asked):
    stencil, rhs = systems(2)
    often = prepare(stencil, preconditioner=network(), backend="torch")
    assert labels(often.solve(rhs)[1]) == {"learned"}
    assert asked == []


@pytest.mark.parametrize(("matrices", "label"), [(2, "multigrid(guard)"), (1, "learned")])
def test_blocks_pay_unless_one_matrix_serves_them_all(asked, matrices, label):
    stencil, rhs = systems(2)
    solver = ArraySolver("torch")
    solver.use(network().weights())
    some = stencil.select(slice(0, matrices))
    solver.setup(tuple(face.numpy() for face in some.faces), some.reaction.numpy())
    x = rhs.flatten(1).numpy().copy()
    records = solver.solve(rhs.flatten(1).numpy(), x, rtol=1e-8, guess=None, max_iterations=99)
    assert labels(records) == {label}


def test_classical_cycles_ask_for_nothing(asked):
    stencil, rhs = systems(2)
    solve(stencil, rhs, backend="torch")
    assert asked == []
