"""The study that `forebay init` writes."""

from __future__ import annotations

from pathlib import Path

from forebay.pipeline.errors import StudyError

STUDY = """# A study: a parametric PDE, a tolerance, a surrogate.  Every key that is left out has a default;
# `forebay check FILE` prints the plan that follows, `forebay run FILE` does it.

name = "{name}"
seed = 2026
samples = 1000                # simulations to solve, keep and train on
design = "random"             # or "sobol", "latin_hypercube": how scalar parameters fill their ranges

[problem]                     # `forebay problems` lists names and options
name = "{name}"{options}

[solver]
{solver}

[validation]
samples = 128                 # with seeds of their own, solved first
every = 250                   # batches between two evaluations

[buffer]
policy = "reservoir"          # or "fifo", "firo"

[learner]{fields}
loss = "relative_l2"
batch_size = 16
batches = 1500                # length of training and of the schedule
lr = 2e-3
schedule = "one_cycle"

[learner.model]               # `forebay models` lists names and options
name = "{model}"

[run]
executor = "ray"              # or "local": one process
"""

_LINEAR = """method = "direct"             # or "cg", "gmres" with a preconditioner, or "auto"
rtol = 1e-8                   # true relative residual that certifies a sample"""
_SOLID = """method = "rom"                # a reduced model that learns from the first samples; or "full"

[solver.rom]
tolerance = 0.03              # estimated relative error up to which a sample stays reduced"""
_SOLIDS = ("necked_bar", "blade")
_WITHOUT_PLANE = ("heat", "darcy3d", "helmholtz3d", "darcy_fem", "elasticity", *_SOLIDS)
"""Problems in space or on a mesh, which `fno` does not take, and some that a few numbers drive."""


def write_study(path: Path, problem: str) -> None:
    """Write a study for a built-in problem.

    Raises:
        StudyError: unknown problem, or a file that exists already.
    """
    from forebay.solvers.problems import describe_problems

    known = {entry.name: entry for entry in describe_problems()}
    if problem not in known:
        raise StudyError(f"--problem {problem!r} is not a built-in problem; choose from {', '.join(sorted(known))}")
    if path.exists():
        raise StudyError(f"{path} exists already and is not overwritten; name another file")
    model = "mlp" if problem in _WITHOUT_PLANE else "fno"
    options = "".join(f"\n# {option.name} = {option.default}" for option in known[problem].options)
    solver, fields = (_SOLID, '\nfields = ["u"]                # or ["p"]') if problem in _SOLIDS else (_LINEAR, "")
    study = STUDY.format(name=problem, model=model, options=options, solver=solver, fields=fields)
    path.write_text(study, encoding="utf-8")
