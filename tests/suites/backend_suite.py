"""What every backend of `forebay.kernels.solve` must do; subclass with the fixtures `backend` and `device`."""

import numpy as np
import pytest
import torch
from suites.stencil_cases import SHAPES, field, fields, holes, stencils

from forebay.kernels import GridNetwork, Outcome, diffusion, prepare, solve
from forebay.kernels.reference import cg, dense
from forebay.kernels.stencil import Stencil, apply

RTOL = 1e-8


class BackendSuite:
    @pytest.fixture
    def solve(self, backend, device):
        """`solve` on the device; stencils, right-hand sides and results are on the CPU."""

        def run(coefficients, rhs, *, guess=None, **settings):
            guess = None if guess is None else guess.to(device)
            found, records = solve(
                coefficients.to(device), rhs.to(device), backend=backend, guess=guess, rtol=RTOL, **settings
            )
            assert found.device.type == device
            assert found.dtype == torch.float64
            assert all(record.backend == backend for record in records)
            return found.cpu(), records

        return run

    @staticmethod
    def certify(stencil, rhs, found, records, rtol=RTOL):
        """Every record says what scipy-free arithmetic in float64 finds."""
        inside = torch.ones_like(rhs) if stencil.active is None else stencil.active.expand_as(rhs).double()
        residual = (rhs - apply(stencil.to(dtype=torch.float64), found)) * inside
        length = (rhs * inside).flatten(1).norm(dim=1)
        relative = residual.flatten(1).norm(dim=1) / length
        # Where contrast is large, terms of A x that cancel are so much larger than b that two residuals differ by this.
        terms = (2 * stencil.diagonal().double() * found.abs() * inside).flatten(1).norm(dim=1)
        rounding = 0.25 * torch.finfo(torch.float64).eps * terms / length
        assert [record.outcome for record in records] == [Outcome.CONVERGED] * len(rhs)
        assert (relative <= rtol * (1 + 1e-6)).all()
        told = torch.tensor([record.residual for record in records], dtype=torch.float64)
        assert ((told - relative).abs() <= 1e-4 * relative + 1e-3 * rtol + rounding).all(), (told, relative)
        assert all(record.valid and record.message == "" for record in records)
        assert all(record.iterations > 0 and record.refinements > 0 for record in records)

    @pytest.mark.parametrize(
        ("shape", "preconditioner"),
        [
            *((shape, "multigrid") for shape in SHAPES),
            (SHAPES[0], "jacobi"),
            (SHAPES[3], "jacobi"),
            (SHAPES[1], "none"),
        ],
    )
    @pytest.mark.parametrize("kind", ["dirichlet", "mixed", "reaction", "masked"])
    def test_it_agrees_with_the_reference(self, solve, shape, kind, preconditioner):
        stencil, rhs = stencils(shape)[kind], fields(shape)
        found, records = solve(stencil, rhs, preconditioner=preconditioner, max_iterations=2000)
        self.certify(stencil, rhs, found, records)
        inside = 1.0 if stencil.active is None else stencil.active
        expected = cg(lambda u: apply(stencil, u), rhs * inside, rtol=1e-12, max_iterations=3000)
        torch.testing.assert_close(found, expected.fields * inside, rtol=0, atol=1e-5)
        assert {record.preconditioner for record in records} == {preconditioner}

    @pytest.mark.parametrize("contrast", [1e2, 1e4, 1e6])
    @pytest.mark.parametrize(("kind", "bound"), [("log_normal", 60), ("boxes", 20)])
    @pytest.mark.parametrize("shape", [(24, 22), (9, 8, 7)])
    def test_contrast_costs_few_iterations(self, solve, shape, kind, contrast, bound):
        stencil, rhs = diffusion(field(shape, contrast=contrast, kind=kind)), fields(shape)
        found, records = solve(stencil, rhs)
        self.certify(stencil, rhs, found, records)
        assert max(record.iterations for record in records) <= bound
        expected = torch.linalg.solve(dense(stencil), rhs.flatten(1)).reshape(rhs.shape)
        error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
        assert (error < 1e-3).all()

    @pytest.mark.parametrize(("shape", "contrast"), [((24, 24), 1e3), ((10, 10, 10), 10.0)])
    def test_refinement_costs_hardly_any_iterations(self, solve, shape, contrast):
        stencil, rhs = diffusion(field(shape, contrast=contrast)), fields(shape)
        double = cg(lambda u: apply(stencil, u), rhs, preconditioner=lambda r: r / stencil.diagonal())
        _, records = solve(stencil, rhs, preconditioner="jacobi")
        for count, record in zip(double.iterations.tolist(), records, strict=True):
            assert record.iterations <= 1.05 * count + 2

    def test_a_system_alone_is_what_it_is_in_a_batch(self, solve):
        a = torch.cat([field((20, 23), contrast=c, batch=1) for c in (1.5, 1e2, 1e5, 10.0)])
        rhs = fields((20, 23), batch=4)
        together, records = solve(diffusion(a), rhs)
        for row in range(4):
            alone, record = solve(diffusion(a[row : row + 1]), rhs[row : row + 1])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6 * float(alone.abs().max()))
            assert abs(record[0].iterations - records[row].iterations) <= 1
        counts = [record.iterations for record in records]
        assert counts[0] < counts[2]

    def test_it_is_repeatable_to_the_bit(self, solve):
        stencil, rhs = diffusion(field((21, 18), contrast=1e3)), fields((21, 18))
        (first, before), (second, after) = solve(stencil, rhs), solve(stencil, rhs)
        assert torch.equal(first, second)
        assert before == after

    def test_one_stencil_serves_many_right_hand_sides(self, backend, device):
        stencil, rhs = diffusion(field((15, 12), batch=1)), fields((15, 12), batch=5)
        prepared = prepare(stencil.to(device), backend=backend)
        assert prepared.backend == backend
        for part in (rhs, rhs[:2]):
            found, records = prepared.solve(part.to(device), rtol=RTOL)
            self.certify(stencil, part, found.cpu(), records)

    def test_systems_that_are_set_up_once_are_solved_again(self, backend, device):
        stencil, rhs = diffusion(field((14, 13))), fields((14, 13))
        prepared = prepare(stencil.to(device), backend=backend)
        for sign in (1.0, -2.0, 1.0):
            found, records = prepared.solve(sign * rhs.to(device), rtol=RTOL)
            self.certify(stencil, sign * rhs, found.cpu(), records)
            other, _ = solve(stencil.to(device), sign * rhs.to(device), backend=backend, rtol=RTOL)
            torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
        with_nan = rhs.clone()
        with_nan[1] = torch.nan
        found, records = prepared.solve(with_nan.to(device), rtol=RTOL)
        self.certify(stencil.select(torch.tensor([0, 2])), rhs[[0, 2]], found.cpu()[[0, 2]], (records[0], records[2]))

    def test_coefficients_stand_for_their_diffusion(self, solve):
        a, rhs = field((9, 8, 7)), fields((9, 8, 7))
        assert torch.equal(solve(a, rhs)[0], solve(diffusion(a), rhs)[0])

    def test_float32_arrays_are_solved_in_float64(self, solve):
        a, rhs = field((12, 14)).float(), fields((12, 14)).float()
        stencil = diffusion(a)
        found, records = solve(stencil, rhs)
        self.certify(stencil, rhs.double(), found, records)

    def test_a_good_guess_saves_iterations_and_is_left_alone(self, solve):
        stencil, rhs = diffusion(field((16, 16), contrast=1e3)), fields((16, 16))
        cold, before = solve(stencil, rhs)
        guess = cold * (1 + 1e-5)
        kept = guess.clone()
        warm, after = solve(stencil, rhs, guess=guess)
        self.certify(stencil, rhs, warm, after)
        assert all(b.iterations < a.iterations for a, b in zip(before, after, strict=True))
        assert torch.equal(guess, kept)

    def test_units_do_not_matter(self, solve):
        a, rhs = field((13, 11)), fields((13, 11))
        expected, records = solve(diffusion(a), rhs)
        for unit in (1e-50, 1e50):
            found, same = solve(diffusion(a * unit), rhs * unit**-1)
            torch.testing.assert_close(found * unit**2, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
            assert [r.iterations for r in same] == [r.iterations for r in records]

    # Bad input: one system pays, or one clear answer.

    def test_zero_right_hand_sides_take_no_iterations(self, solve):
        rhs = fields((10, 9))
        rhs[1] = 0
        found, records = solve(diffusion(field((10, 9))), rhs, guess=fields((10, 9)))
        assert torch.equal(found[1], torch.zeros(10, 9, dtype=torch.float64))
        assert (records[1].outcome, records[1].iterations, records[1].residual) == (Outcome.CONVERGED, 0, 0.0)
        assert records[0].iterations > 0

    @pytest.mark.parametrize("where", ["rhs", "coefficients", "guess"])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_costs_its_own_system_only(self, solve, where, value):
        a, rhs, guess = field((12, 9)), fields((12, 9)), fields((12, 9))
        clean, _ = solve(diffusion(a), rhs, guess=guess)
        {"rhs": rhs, "coefficients": a, "guess": guess}[where][1, 3, 4] = value
        found, records = solve(diffusion(a), rhs, guess=guess)
        assert [r.outcome for r in records] == [Outcome.CONVERGED, Outcome.NONFINITE_INPUT, Outcome.CONVERGED]
        assert torch.isnan(found[1]).all()
        assert "NaN or inf in" in records[1].message
        torch.testing.assert_close(found[[0, 2]], clean[[0, 2]], rtol=0, atol=1e-8)

    def test_nan_everywhere_is_answered_without_a_solve(self, solve):
        a = torch.full((2, 5, 6), torch.nan, dtype=torch.float64)
        found, records = solve(diffusion(a), fields((5, 6), batch=2))
        assert [r.outcome for r in records] == [Outcome.NONFINITE_INPUT] * 2
        assert torch.isnan(found).all()

    @pytest.mark.parametrize("shape", [(16, 13), (9, 6, 7)])
    def test_pure_neumann_with_a_solution_gives_the_one_of_zero_mean(self, solve, shape):
        stencil, rhs = diffusion(field(shape, contrast=1e3), "neumann"), fields(shape)
        rhs = rhs - rhs.flatten(1).mean(1).reshape(-1, *[1] * len(shape))
        found, records = solve(stencil, rhs, guess=torch.ones_like(rhs))
        self.certify(stencil, rhs, found, records)
        assert (found.flatten(1).mean(1).abs() < 1e-12 * found.abs().max()).all()
        # Of zero mean as the right-hand side is: the rows of ones make the matrix regular and change nothing else.
        expected = torch.linalg.solve(dense(stencil) + 1.0, rhs.flatten(1)).reshape(rhs.shape)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    def test_pure_neumann_without_a_solution_says_so(self, solve):
        a, rhs = field((12, 10)), fields((12, 10))
        rhs = rhs - rhs.flatten(1).mean(1)[:, None, None]
        rhs[1] += 0.1 * rhs[1].norm() / 120**0.5
        found, records = solve(diffusion(a, "neumann"), rhs)
        assert [r.outcome for r in records] == [Outcome.CONVERGED, Outcome.DIVERGED, Outcome.CONVERGED]
        assert "the constant part of its right-hand side is 0.0995 of its norm" in records[1].message
        assert "subtract the mean" in records[1].message
        assert torch.isnan(found[1]).all()
        assert torch.isfinite(found[[0, 2]]).all()

    def test_singular_and_regular_systems_share_a_batch(self, solve):
        a, rhs = field((11, 10)), fields((11, 10))
        rhs = rhs - rhs.flatten(1).mean(1)[:, None, None]
        reaction = torch.zeros_like(a)
        reaction[1] = 0.3
        stencil = diffusion(a, "neumann", reaction=reaction)
        found, records = solve(stencil, rhs)
        self.certify(stencil, rhs, found, records)

    def test_cells_left_out_are_zero_and_their_right_hand_side_is_ignored(self, solve):
        shape = (14, 11)
        active = holes(shape, batch=3)
        stencil = diffusion(field(shape), active=active, hole="dirichlet")
        rhs = fields(shape)
        rhs[~active] = torch.nan
        found, records = solve(stencil, rhs)
        assert torch.equal(found[~active], torch.zeros(int((~active).sum()), dtype=torch.float64))
        self.certify(stencil, torch.where(active, rhs, 0.0), found, records)

    def test_too_few_iterations_are_owned_up_to(self, solve):
        stencil, rhs = diffusion(field((30, 31), contrast=1e4)), fields((30, 31))
        found, records = solve(stencil, rhs, preconditioner="none", max_iterations=7)
        assert [(r.outcome, r.iterations) for r in records] == [(Outcome.MAX_ITERATIONS, 7)] * 3
        relative = (rhs - apply(stencil, found)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
        np.testing.assert_allclose([r.residual for r in records], relative, rtol=1e-4)
        assert "raise `max_iterations`" in records[0].message

    def test_what_float64_cannot_reach_is_not_called_converged(self, backend, device):
        stencil, rhs = diffusion(field((24, 24), contrast=1e6)), fields((24, 24))
        _, records = solve(stencil.to(device), rhs.to(device), rtol=1e-17, backend=backend, max_iterations=500)
        wanted = {Outcome.RESIDUAL_ABOVE_TOLERANCE, Outcome.MAX_ITERATIONS, Outcome.DIVERGED}
        assert all(r.outcome in wanted and r.residual > 1e-17 for r in records)

    def test_a_grid_without_conductances_ends_in_an_outcome(self, solve):
        faces = (torch.zeros(1, 2, 4, dtype=torch.float64), torch.zeros(1, 3, 3, dtype=torch.float64))
        rhs = fields((3, 4), batch=1)
        _, records = solve(Stencil(faces, torch.zeros(1, 3, 4, dtype=torch.float64)), rhs - rhs.mean())
        assert records[0].outcome is not Outcome.CONVERGED

    def test_a_single_cell_is_a_division(self, solve):
        found, records = solve(diffusion(torch.full((1, 1, 1), 2.0, dtype=torch.float64)), torch.full((1, 1, 1), 3.0))
        torch.testing.assert_close(found, torch.full((1, 1, 1), 3.0 / 16, dtype=torch.float64))
        assert records[0].valid

    @pytest.mark.parametrize("shape", [(40, 37), (13, 8, 9)])
    def test_learned_weights_are_used_or_replaced_and_the_record_says_which(self, solve, backend, device, shape):
        stencil, rhs = diffusion(field(shape, contrast=1e2)), fields(shape)
        network = GridNetwork(len(shape), generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            network.smoother_bias.fill_(2.0)  # s = 1.67, a little better than 1.6 here
        for preconditioner in (network, network.weights()):
            # Solved again and again, for else the longer set-up counts.
            often = prepare(stencil.to(device), preconditioner=preconditioner, backend=backend)
            found, records = often.solve(rhs.to(device))
            self.certify_learned(stencil, rhs, found.cpu(), records, self.better)
        with torch.no_grad():
            network.smoother_bias.fill_(-30.0)  # smooths by nearly nothing
        found, records = solve(stencil, rhs, preconditioner=network)
        self.certify_learned(stencil, rhs, found, records, "multigrid(guard)")
        # Set up once, a system is probed at once, and the reason is kept.
        found, records = prepare(stencil.to(device), preconditioner=network, backend=backend).solve(rhs.to(device))
        self.certify_learned(stencil, rhs, found.cpu(), records, "multigrid(guard)")
        assert all("contraction" in r.message for r in records)

    better = "learned"
    """What becomes of weights that beat the classical cycle of the torch backend by a little."""

    def certify_learned(self, stencil, rhs, found, records, label):
        """As `certify`, but for the message of the guard."""
        assert {r.preconditioner for r in records} == {label}
        assert all(r.valid for r in records)
        residual = (rhs - apply(stencil, found)).flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)
        assert (residual <= RTOL * (1 + 1e-6)).all()
