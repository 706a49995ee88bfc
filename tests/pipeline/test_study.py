"""Study files: what is accepted, what is refused, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.pipeline.errors import StudyError
from forebay.pipeline.plan import make_plan, resolved
from forebay.pipeline.records import Field, Parameter, Schema
from forebay.pipeline.study import load_study, study_from_dict

MINIMAL = """
name = "tiny"
samples = 40
[problem]
name = "darcy"
size = 64
"""


@pytest.fixture
def study_file(tmp_path):
    def write(text: str):
        path = tmp_path / "study.toml"
        path.write_text(text)
        return path

    return write


def test_a_minimal_study_gets_defaults_and_keeps_the_problem_options(study_file):
    study = load_study(study_file(MINIMAL))
    assert study.problem.options == {"size": 64}
    assert (study.solver.rtol, study.buffer.policy, study.run.executor) == (1e-8, "reservoir", "ray")


def test_overrides_replace_values_and_make_tables(study_file):
    study = load_study(
        study_file(MINIMAL), ["learner.lr=3e-3", "buffer.policy=fifo", "problem.size=32", "learner.model.name=mlp"]
    )
    assert study.learner.lr == 3e-3
    assert study.buffer.policy == "fifo"
    assert study.problem.options == {"size": 32}
    assert study.learner.model.name == "mlp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampels = 3\n" + MINIMAL, r"sampels = 3 is not a known key; did you mean 'samples'\?"),
        (MINIMAL + "[learner]\nlearningrate = 1.0\n", r"learner.learningrate = 1.0 is not a known key; known .*lr"),
        (MINIMAL.replace("40", "0"), r"samples = 0 is not allowed: it should be greater than or equal to 1"),
        (MINIMAL.replace("40", '"many"'), r'samples = "many" is not allowed: it should be a whole number'),
        (MINIMAL.replace("40", "1.5"), r"samples = 1.5 is not allowed: it should be a whole number"),
        (MINIMAL.replace("40", "true"), r"samples: true is no number; give one, or leave the key out"),
        (MINIMAL + "[solver]\nrecycle = true\n", r"solver.recycle: true is no number"),
        (MINIMAL + "[learner]\nclip = false\n", r"learner.clip: false is no number"),
        (MINIMAL + "[learner]\nlr = 'fast'\n", r"learner.lr = \"fast\" is not allowed: it should be a number$"),
        (MINIMAL + "[solver]\nsort = 'maybe'\n", r"solver.sort = \"maybe\" is not allowed: .* true or false"),
        (MINIMAL + "[solver]\noptions = 3\n", r"solver.options = 3 is not allowed: it should be a table such as { key"),
        ("faults = 3\n" + MINIMAL, r"faults = 3 is not allowed: it should be a table; write its keys below"),
        (
            MINIMAL + "[cluster]\npartition = 'a b'\n",
            r'partition = "a b" is not allowed: it should be a word of letters',
        ),
        (MINIMAL + "[cluster]\ntime = '1h'\n", r'time = "1h" is not allowed: it should be a time as "hours:minutes:s'),
        (
            MINIMAL + "[cluster]\ntime = 1979-05-27\n",
            r"cluster.time = .* is not allowed: it should be a text in quotes",
        ),
        (MINIMAL + "[solver]\nrtol = 0.0\n", r"solver.rtol = 0.0 is not allowed: it should be greater than 0"),
        (MINIMAL + "[buffer]\npolicy = 'lifo'\n", r"buffer.policy = \"lifo\" is not allowed: .* 'fifo', 'firo'"),
        (MINIMAL + "[buffer]\ncapacity = 8\nthreshold = 8\n", r"threshold 8 must be below capacity 8.*use at most 7"),
        (MINIMAL + "[solver.rom]\ntolerance = 1.5\n", r"solver.rom.tolerance = 1.5 is not allowed: .* less than 1"),
        (MINIMAL + "[solver.rom]\ntolerance = 0.0\n", r"solver.rom.tolerance = 0.0 is not allowed: .*than 0"),
        (MINIMAL + "[solver.rom]\ntraining = 1\n", r"solver.rom.training = 1 is not allowed: .*equal to 2"),
        (MINIMAL + "[solver.rom]\naudit = 1.5\n", r"solver.rom.audit = 1.5 is not allowed: .*less than or equal to 1"),
        (MINIMAL + "[solver.rom]\ncubature = 1.0\n", r"solver.rom.cubature = 1.0 is not allowed: .*less than 1"),
        (MINIMAL + "[solver.rom]\ntest_modes = 33\n", r"solver.rom.test_modes = 33 is not allowed: .*equal to 32"),
        (MINIMAL + "[solver.rom]\nranks = 0\n", r"solver.rom.ranks = 0 is not allowed: .*equal to 1"),
        (MINIMAL + "[solver.rom]\ntolerence = 0.1\n", r"solver.rom.tolerence = 0.1 .*did you mean 'tolerance'\?"),
        (
            MINIMAL + "[learner]\nfields = 'u'\n",
            r"learner.fields = \"u\" is not allowed: it should be a list in brackets",
        ),
        ("name = 'x'\n", r"problem is missing; add it to the study"),
        ("name = tiny", r"is not valid TOML: .*strings need quotes"),
        (MINIMAL.replace('"tiny"', '"../up"'), r"name = \"../up\" is not allowed"),
    ],
)
def test_a_refused_study_says_key_value_and_remedy(study_file, text, message):
    with pytest.raises(StudyError, match=message):
        load_study(study_file(text))


def test_every_fault_is_listed_at_once(study_file):
    with pytest.raises(StudyError) as caught:
        load_study(study_file(MINIMAL.replace("40", "0") + "[learner]\nlr = -1.0\n"))
    assert "samples = 0" in str(caught.value)
    assert "learner.lr = -1.0" in str(caught.value)


def test_a_missing_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(StudyError, match=r"does not exist; make one with `forebay init"):
        load_study(tmp_path / "nothing.toml")


@pytest.mark.parametrize("override", ["learner.lr", "=3", "name.x=3"])
def test_a_malformed_override_is_refused(study_file, override):
    with pytest.raises(StudyError, match=r"--set"):
        load_study(study_file(MINIMAL), [override])


def schema(steps=0, side=16):
    return Schema(
        parameters=(Parameter("k", 1.0, 2.0),),
        inputs=(Field("a", ("y", "x"), (side, side)),),
        outputs=(Field("u", ("y", "x"), (side, side)),),
        times=tuple(float(t) for t in range(1, steps + 1)),
    )


def study(**changes):
    return study_from_dict({"name": "tiny", "samples": 40, "problem": {"name": "darcy"}} | changes)


def test_the_plan_fills_what_the_study_leaves_open():
    plan = make_plan(study(dataset={"block_samples": 16}), schema(), cores=2)
    assert plan.chunks["train"].chunks == 3
    assert list(plan.chunks["train"].sample_ids(2)) == list(range(32, 40))
    assert (plan.capacity, plan.batches, plan.solvers, plan.learner_threads) == (40, 2, 1, 1)


def test_a_transient_problem_counts_frames_not_samples():
    plan = make_plan(study(), schema(steps=10), cores=2)
    assert plan.frames == 400
    assert plan.frame_bytes == 4 * (2 * 256 + 1 + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer": {"memory_gib": 1e-6}}, r"buffer.memory_gib = 1e-06 holds 0 frames .* give at least"),
        ({"buffer": {"capacity": 10**9}}, r"buffer.capacity = 1000000000 needs .* lower the capacity to"),
        ({"buffer": {"capacity": 4}}, r"buffer.capacity = 4 is below learner.batch_size = 16"),
        ({"buffer": {"threshold": 40}}, r"buffer.threshold = 40 must be below the capacity of 40 .*use at most 39"),
    ],
)
def test_sizes_that_cannot_work_together_are_refused_with_a_remedy(changes, message):
    with pytest.raises(StudyError, match=message):
        make_plan(study(**changes), schema(), cores=2)


@given(samples=st.integers(16, 5000), cores=st.integers(1, 64), size=st.integers(1, 200))
def test_a_resolved_study_plans_to_itself(samples, cores, size):
    first = study(samples=samples, dataset={"block_samples": size})
    plan = make_plan(first, schema(), cores=cores)
    again = study_from_dict(resolved(first, plan))
    assert make_plan(again, schema()) == plan
    assert resolved(again, plan) == resolved(first, plan)


def bar_schema():
    nodes, cells = Field("u", ("node", "component"), (6, 3)), Field("p", ("cell",), (5,))
    return Schema((Parameter("k", 1.0, 2.0),), (Field("a", ("node",), (6,)),), (nodes, cells), times=(0.5, 1.0))


def test_a_schema_of_some_outputs_keeps_everything_else_and_their_order():
    schema = bar_schema()
    assert schema.only(()) is schema
    only = schema.only(("p",))
    assert [field.name for field in only.outputs] == ["p"]
    assert (only.parameters, only.inputs, only.times) == (schema.parameters, schema.inputs, schema.times)
    assert [field.name for field in schema.only(["p", "u"]).outputs] == ["p", "u"]
    with pytest.raises(KeyError, match="q"):
        schema.only(("p", "q"))


@pytest.mark.parametrize(("fields", "numbers"), [((), 18 + 5), (("u",), 18), (("p",), 5), (("p", "u"), 18 + 5)])
def test_the_ring_holds_the_fields_that_are_learned_and_the_data_set_all(fields, numbers):
    plan = make_plan(study(learner={"fields": fields}), bar_schema(), cores=2)
    assert plan.frame_bytes == 4 * (numbers + 6 + 1 + 1)
    assert plan.block_bytes == plan.chunks["train"].size * 4 * (6 + 2 * (18 + 5))


def test_a_field_to_learn_that_is_not_there_is_refused_with_those_that_are():
    message = "learner.fields names 'sigma', which the problem does not put out; it has u, p"
    with pytest.raises(StudyError, match=message):
        make_plan(study(learner={"fields": ["p", "sigma"]}), bar_schema(), cores=2)


@pytest.mark.parametrize(("cores", "ranks", "solvers"), [(2, 1, 1), (9, 1, 8), (9, 2, 4), (9, 3, 2), (2, 4, 1)])
def test_a_solver_of_several_ranks_takes_as_many_cores(cores, ranks, solvers):
    plan = make_plan(study(solver={"rom": {"ranks": ranks}}), schema(), cores=cores)
    assert plan.solvers == solvers
    assert make_plan(study(solver={"rom": {"ranks": ranks}, "actors": 7}), schema(), cores=cores).solvers == 7


def test_words_of_a_batch_system_need_no_quotes(study_file):
    changes = ["cluster.time=12:00:00", "cluster.account=12345", "cluster.partition=gpu"]
    cluster = load_study(study_file(MINIMAL), changes).cluster
    assert (cluster.time, cluster.account, cluster.partition) == ("12:00:00", "12345", "gpu")
