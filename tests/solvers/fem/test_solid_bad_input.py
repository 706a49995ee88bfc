import pickle

import numpy as np
import pytest
from suites.solid_cases import PULL, SYMMETRY, alone, history, steps

from forebay.solvers.fem.solid import SolidModel, SolveError, Support, UnitLoad
from forebay.solvers.fem.solid_mesh import cube
from forebay.solvers.materials.chaboche import LinearElastic


def model_of(supports=SYMMETRY, loads=(PULL,), **options):
    return SolidModel(cube(alone(), 2), supports, loads, **options)


@pytest.mark.parametrize("components", ["", "xw", "xx", "X"])
def test_components_are_letters_of_xyz(components):
    with pytest.raises(ValueError, match=f"components '{components}' of the support on 'x_min' must be some of 'xyz'"):
        Support("x_min", components)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "gravity"}, "load 'f' has kind 'gravity'; the kinds are traction, pressure, centrifugal, body"),
        ({"kind": "traction", "vector": (1, 0, 0)}, "where = None: traction needs a boundary part"),
        ({"kind": "pressure"}, "where = None: pressure needs a boundary part"),
        ({"kind": "body", "where": "x_min", "vector": (1, 0, 0)}, "body acts on the whole body, not on a part"),
        ({"kind": "traction", "where": "x_min"}, "vector = None: traction needs a vector"),
        ({"kind": "pressure", "where": "x_min", "vector": (1, 0, 0)}, "pressure acts along the normal"),
        ({"kind": "body", "vector": (0, 0, 0)}, r"vector \(0, 0, 0\) of load 'f' must have three components, not all"),
        ({"kind": "centrifugal", "vector": (1, 0)}, r"vector \(1, 0\) of load 'f' must have three components"),
    ],
)
def test_loads_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnitLoad("f", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"supports": [Support("left")]}, "no boundary part 'left', only x_max, x_min"),
        ({"supports": [Support("x_min & x_max")]}, "no node lies on 'x_min & x_max': the parts do not meet"),
        ({"supports": []}, "the supports leave 6 of the 6 rigid motions free"),
        ({"supports": SYMMETRY[:2]}, "the supports leave 1 of the 6 rigid motions free: hold more"),
        ({"supports": [Support("x_min", "x")]}, "the supports leave 3 of the 6 rigid motions free"),
        (
            {"supports": [Support("x_min"), Support("y_min", "xy", "slide")]},
            "the support on 'y_min' prescribes 'xy' otherwise than an earlier support at 6 degrees of freedom",
        ),
        ({"loads": [PULL, PULL]}, r"loads \['pull', 'pull'\] must have different names"),
        ({"loads": [UnitLoad("f", "pressure", "top")]}, "no boundary part 'top', only x_max"),
        ({"rtol": 0.5}, "rtol = 0.5 must lie between 0 and 1e-2"),
        ({"linear": "hypre"}, "linear = 'hypre'; the solvers are mumps, gamg"),
        ({"order": 3}, "displacements of order 3 on a hexahedron mesh: orders 1 and 2"),
        ({"quadrature": 1}, "quadrature degree 1 leaves deformations of a hexahedron of order 1 without stress"),
    ],
)
def test_models_that_cannot_be_solved_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        model_of(**arguments)


def test_supports_that_agree_may_overlap():
    supports = [
        Support("x_min"),
        Support("y_min", "y"),
        Support("x_max", "x", "pull"),
        Support("x_max & z_min", "x", "pull"),
    ]
    assert model_of(supports).displacement_names == ("pull",)


def test_a_load_on_a_part_inside_the_body_exerts_no_force():
    import dataclasses

    mesh = cube(alone(), 2)
    inside = dataclasses.replace(mesh, names={**mesh.names, "inside": 99})
    with pytest.raises(ValueError, match="load 'f' exerts no force: 'inside' has no facet on the outside"):
        SolidModel(inside, SYMMETRY, [UnitLoad("f", "pressure", "inside")])


def test_histories_for_another_model_are_refused():
    model, law = model_of(), LinearElastic()
    with pytest.raises(ValueError, match="history has 0 columns of loads, but model 'solid' has 1: pull"):
        model.run(history(law, steps(2)))
    with pytest.raises(ValueError, match="history has 1 columns of displacements, but model 'solid' has 0: none"):
        model.run(history(law, steps(2), loads=[[0, 0, 0]], displacements=[[0, 0, 0]]))
    drive = history(law, steps(2), loads=[[0, 0, 0]])
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"there is no step {k}: the history has steps 1 to 2"):
            model.step(drive, k, model.initial(law))


def test_errors_of_a_solve_survive_pickling():
    error = pickle.loads(pickle.dumps(SolveError("step 3 did not", step=3, time=0.5, residual=1e-3)))
    assert (str(error), error.step, error.time, error.residual) == ("step 3 did not", 3, 0.5, 1e-3)


def test_states_survive_pickling():
    model, law = model_of(), LinearElastic()
    state, _ = model.step(history(law, [0.0, 1.0], loads=[[0.0, 5.0]]), 1, model.initial(law))
    again = pickle.loads(pickle.dumps(state))
    np.testing.assert_array_equal(again.displacement, state.displacement)
    np.testing.assert_array_equal(again.stress, state.stress)


def test_a_destroyed_model_has_given_its_matrix_back():
    model = model_of()
    model.destroy()
    assert not model._tangent.matrix
