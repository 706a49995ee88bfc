from __future__ import annotations

import numpy as np
import pytest
from grid_systems import centres, drawn, matrix_of, observed_order, relative_l2, solve

from forebay.pipeline.errors import StudyError
from forebay.solvers.problems.convection_diffusion import ConvectionDiffusion, face_velocities


def manufactured_error(n, peclet=20.0):
    """u = sin πx sin πy in the flow of ψ = sin(πx) cos(y) + x y."""
    y, x = centres(n)
    corners_y, corners_x = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing="ij")
    faces_y, faces_x = face_velocities(np.sin(np.pi * corners_x) * np.cos(corners_y) + corners_x * corners_y)
    vx, vy = -np.sin(np.pi * x) * np.sin(y) + x, -np.pi * np.cos(np.pi * x) * np.cos(y) - y
    u = np.sin(np.pi * x) * np.sin(np.pi * y)
    u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(np.pi * y), np.pi * np.sin(np.pi * x) * np.cos(np.pi * y)
    draw = {"faces_x": faces_x, "faces_y": faces_y, "parameters": np.array([peclet])}
    forcing = 2 * np.pi**2 * u + peclet * (vx * u_x + vy * u_y)
    return relative_l2(solve(ConvectionDiffusion(size=n), draw, forcing), u)


def test_upwinding_converges_at_first_order_to_a_manufactured_solution():
    slope, errors = observed_order(manufactured_error, (32, 64, 128))
    assert abs(slope - 1) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 0.03


def test_without_convection_the_order_is_two():
    slope, errors = observed_order(lambda n: manufactured_error(n, peclet=1e-9), (12, 24, 48))
    assert abs(slope - 2) < 0.2, f"observed order {slope:.2f} from errors {errors}"
    assert errors[-1] < 1e-3


def test_what_flows_into_a_cell_flows_out_of_it():
    draw = drawn(ConvectionDiffusion(size=32))
    fx, fy = draw["faces_x"], draw["faces_y"]
    assert np.abs(fx[:, 1:] - fx[:, :-1] + fy[1:] - fy[:-1]).max() < 1e-13
    np.testing.assert_allclose(max(np.abs(fx).max(), np.abs(fy).max()), 1.0, rtol=1e-14)


def test_the_stored_velocity_is_the_mean_over_the_faces_of_a_cell():
    draw = drawn(ConvectionDiffusion(size=32))
    np.testing.assert_allclose(draw["vx"][4, 7], (draw["faces_x"][4, 7] + draw["faces_x"][4, 8]) / 2, rtol=1e-14)
    np.testing.assert_allclose(draw["vy"][4, 7], (draw["faces_y"][4, 7] + draw["faces_y"][5, 7]) / 2, rtol=1e-14)


def test_velocities_turn_with_the_stream_function():
    corners_y, corners_x = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 9), indexing="ij")
    faces_y, faces_x = face_velocities(3 * corners_y + 5 * corners_x)
    np.testing.assert_allclose(faces_x, np.full((8, 9), 3.0), rtol=1e-12)
    np.testing.assert_allclose(faces_y, np.full((9, 8), -5.0), rtol=1e-12)


def test_the_matrix_is_a_nonsymmetric_m_matrix_at_any_peclet_number():
    problem = ConvectionDiffusion(size=12)
    matrix, _ = matrix_of(problem, drawn(problem) | {"parameters": np.array([1e4])})
    dense = matrix.toarray()
    off = dense - np.diag(np.diag(dense))
    assert np.abs(dense - dense.T).max() > 1
    assert off.max() <= 0
    assert np.linalg.inv(dense).min() >= 0
    # Rows and columns of inner cells balance: constants are transported unchanged, and nothing is lost.
    inner = np.ravel_multi_index(np.meshgrid(range(1, 11), range(1, 11), indexing="ij"), (12, 12)).ravel()
    np.testing.assert_allclose(dense.sum(axis=1)[inner], 0, atol=1e-10)
    np.testing.assert_allclose(dense.sum(axis=0)[inner], 0, atol=1e-10)


def test_concentration_is_carried_downstream():
    n = 32
    draw = {"faces_x": np.ones((n, n + 1)), "faces_y": np.zeros((n + 1, n)), "parameters": np.array([100.0])}
    u = solve(ConvectionDiffusion(size=n), draw)
    at = (np.arange(n) + 0.5) / n
    assert (u.sum(axis=0) * at).sum() / u.sum() > 0.6


def test_an_empty_range_of_peclet_numbers_is_refused():
    with pytest.raises(StudyError, match=r"problem.peclet_low = 2000.0 must be below problem.peclet_high = 1000.0"):
        ConvectionDiffusion(peclet_low=2000.0)
