import json
import math

import pytest
from suites.fake_run import BLOCK, STREAM_S, FakeRun, arm, record, validation_line

from forebay.pipeline.errors import RunError
from forebay.pipeline.records import Outcome
from forebay.pipeline.summary import status_text, summarise, what_reuse_means
from forebay.pipeline.summary_text import duration, percent, quantity


@pytest.fixture
def fake(tmp_path):
    run = FakeRun(tmp_path / "run")
    yield run
    run.close()


def test_a_complete_run_has_its_exact_figures(fake):
    summary = summarise(fake.complete().folder)
    assert (summary.name, summary.status, summary.reason) == ("darcy-test", "complete", "")
    assert (summary.executor, summary.cores, summary.solvers, summary.learner_threads) == ("ray", 2, 1, 1)
    assert summary.commands == ("forebay run darcy.toml",)
    assert summary.elapsed_s == pytest.approx(27.75, abs=1e-6)
    assert summary.streaming_s == pytest.approx(21.0, abs=1e-6)
    assert (summary.batches, summary.batches_planned, summary.frames_trained) == (80, 80, 1280)
    assert summary.loss == pytest.approx(0.9 * 0.96**80 + 0.01)
    assert (summary.frames_ingested, summary.frames_per_sample) == (237, 1.0)
    assert (summary.spilled_bytes, summary.lost) == (0, {})
    assert math.isnan(summary.remaining_s)


def test_samples_are_counted_by_split_and_outcome_with_advice(fake):
    summary = summarise(fake.complete().folder)
    assert (summary.train.requested, summary.train.solved, summary.train.valid, summary.train.dropped) == (
        240,
        240,
        237,
        3,
    )
    assert (summary.validation_samples.requested, summary.validation_samples.valid) == (30, 30)
    unconverged, raised = summary.dropped
    assert (unconverged.outcome, unconverged.count, unconverged.sample_ids) == ("MAX_ITERATIONS", 1, (3,))
    assert unconverged.advice == Outcome.MAX_ITERATIONS.advice
    assert (raised.outcome, raised.count, raised.sample_ids, raised.split) == ("PROBLEM_RAISED", 2, (57, 58), "train")
    assert raised.message == "ValueError: conductivity < 0 & not finite"


def test_the_solver_table_sums_up_both_splits_by_method(fake):
    direct, krylov = summarise(fake.complete().folder).methods
    records = [record(i) for i in range(240)] + [record(i, "validation") for i in range(30)]
    for row, mine in (
        (direct, [r for r in records if r.method == "direct:petsc-cholesky"]),
        (krylov, [r for r in records if r.method == "cg+gamg"]),
    ):
        assert row.method == mine[0].method
        assert (row.count, row.valid) == (len(mine), sum(r.valid for r in mine))
        assert row.iterations_mean == pytest.approx(sum(r.iterations for r in mine) / len(mine))
        assert row.iterations_max == max(r.iterations for r in mine)
        assert row.seconds_mean == pytest.approx(sum(r.seconds for r in mine) / len(mine))
        assert row.seconds_total == pytest.approx(sum(r.seconds for r in mine))
        assert row.residual_max == max(r.residual for r in mine if r.valid)
    assert (direct.count, krylov.count, krylov.iterations_max) == (203, 67, 17)


def test_stages_have_their_rates_and_the_slower_one_is_the_bottleneck(fake):
    summary = summarise(fake.complete().folder)
    solvers, writer, learner, evaluation = summary.stages
    assert (solvers.processed, solvers.busy_s, solvers.waiting_s) == (240, pytest.approx(3.0), pytest.approx(3.0))
    assert (solvers.rate_busy, solvers.rate_wall) == (pytest.approx(80.0), pytest.approx(240 / 21))
    assert (writer.processed, writer.busy_s, writer.rate_busy) == (270, 0.75, 360.0)
    assert (learner.processed, learner.busy_s, learner.waiting_s) == (1280, pytest.approx(17.0), 1.0)
    assert learner.rate_busy == pytest.approx(1280 / 17)
    assert (evaluation.processed, evaluation.busy_s) == (4 * 30, 0.5)
    assert summary.overlap_efficiency == pytest.approx(17.5 / 21)
    assert summary.bottleneck == "learner"
    assert summary.bottleneck_reason == (
        "The learner: it worked 83 % of the streaming time, while the solver worked 14 % and waited 14 % for requests."
    )


def test_validation_and_reuse_are_reported(fake):
    summary = summarise(fake.complete().folder)
    assert [point.batch for point in summary.validation] == [20, 40, 60, 80]
    assert [point.wall_s for point in summary.validation] == pytest.approx([12.5, 17.5, 22.5, 27.5])
    assert summary.best == summary.latest == summary.validation[-1]
    assert summary.best.mean == validation_line(80)["mean"]
    assert summary.reuse_histogram == (7, 30, 120, 80)
    assert summary.reuse_mean == pytest.approx((30 + 240 + 240) / 237)


def test_the_best_evaluation_need_not_be_the_last_and_is_never_nan(fake):
    fake.begin()
    fake.produce(range(1))
    for batch, mean in ((20, float("nan")), (40, 0.2), (60, 0.3), (80, float("nan"))):
        fake.measure("validation", 10.0 + batch, batch=batch, mean=mean, p99=1.0, max=2.0, seconds=0.1)
    summary = summarise(fake.folder)
    assert (summary.best.batch, summary.best.mean) == (40, 0.2)
    assert math.isnan(summary.latest.mean)
    assert "mean unknown" in status_text(summary).plain


def test_a_run_that_was_killed_and_resumed_counts_nothing_twice(fake):
    fake.begin()
    fake.validation_set()
    fake.produce(range(3))
    fake.flow(9.5, writer_busy_s=0.5, spilled_bytes=3)
    fake.train(0, 40)  # until 17.5 s; the checkpoint of batch 20 is the last one
    fake.event("checkpoint", 12.5, batch=20, path="checkpoints/000020")
    fake.begin(attempt=2, at_s=100.0)
    fake.event("block_ingested", 2.0, split="train", chunk=0, frames=12)
    fake.event("block_ingested", 2.0, split="train", chunk=1, frames=0)
    fake.produce(range(2, 6), begin_s=3.0)  # chunk 2 was stored but is stored again
    fake.flow(8.0, writer_busy_s=0.25, spilled_bytes=4)
    fake.train(20, 80, begin_s=3.0)
    fake.event("training_ended", 18.5, batches=80)
    fake.event("run_finished", 19.0, status="complete", reason="")
    fake.close()
    summary = summarise(fake.folder)
    assert (summary.status, summary.attempts) == ("complete", 2)
    assert summary.commands == ("forebay run darcy.toml", "forebay resume runs/darcy-test")
    assert (summary.train.solved, summary.train.valid) == (240, 237)
    assert (summary.stage("solvers").processed, summary.stage("solvers").busy_s) == (240, pytest.approx(3.0))
    assert summary.stage("writer").busy_s == 0.75
    assert (summary.frames_trained, summary.frames_ingested, summary.spilled_bytes) == (1280, 237, 7)
    assert [point.batch for point in summary.validation] == [20, 40, 60, 80]
    assert summary.stage("evaluation").busy_s == 0.5
    # 6.5 s to the last sign of life at 17.5 s, then 2 s to the end of training at 18.5 s
    assert summary.streaming_s == pytest.approx(11.0 + 16.5, abs=1e-6)
    assert summary.elapsed_s == pytest.approx(17.5 + 19.0, abs=1e-6)
    assert "in 2 attempts" in status_text(summary).plain


def test_work_that_a_kill_lost_leaves_no_trace_in_the_curves(fake):
    fake.begin()
    fake.train(0, 40)
    fake.begin(attempt=2, at_s=100.0)
    fake.train(10, 20)
    summary = summarise(fake.folder)
    assert summary.batches == 20
    assert [(point.batch, point.wall_s > 100) for point in summary.validation] == [(20, True)]
    assert summary.stage("learner").busy_s == pytest.approx(20 * 0.2125)


def test_an_evaluation_that_a_kill_lost_is_gone_before_it_is_made_again(fake):
    fake.begin()
    fake.train(0, 40)
    fake.begin(attempt=2, at_s=100.0)
    fake.train(20, 25)
    summary = summarise(fake.folder)
    assert summary.batches == 25
    assert [(point.batch, point.wall_s < 100) for point in summary.validation] == [(20, True)]


def test_the_estimate_follows_the_speed_of_late(fake):
    fake.begin()
    fake.train(0, 20, batch_s=1.0)
    fake.train(20, 40, begin_s=STREAM_S + 21.0)
    assert summarise(fake.folder).remaining_s == pytest.approx(40 * 0.25, abs=1e-6)


def test_a_running_run_says_how_long_it_still_takes(fake):
    fake.begin()
    fake.validation_set()
    fake.produce(range(3))
    fake.train(0, 40)
    summary = summarise(fake.folder)
    assert (summary.status, summary.reason) == ("running", "")
    # 40 batches of 0.25 s are left, and 120 samples at 40 samples a second
    assert summary.remaining_s == pytest.approx(10.0, abs=1e-6)
    assert "about 10 s left" in status_text(summary).plain


def test_while_solving_is_slower_the_remaining_time_is_that_of_the_solvers(fake):
    fake.begin()
    fake.produce(range(2))
    fake.train(0, 40, batch_s=0.01)
    assert summarise(fake.folder).remaining_s == pytest.approx(160 / 40, abs=1e-6)


def test_a_run_asked_to_stop_says_so_until_it_has(fake):
    fake.begin()
    fake.event("stop_requested", 5.0, reason="SIGTERM")
    assert summarise(fake.folder).reason == "asked to stop: SIGTERM"
    fake.event("run_finished", 6.0, status="stopped", reason="SIGTERM")
    summary = summarise(fake.folder)
    assert (summary.status, summary.reason) == ("stopped", "SIGTERM")
    assert "forebay resume" in status_text(summary).plain


def test_a_run_whose_process_is_gone_is_interrupted_and_can_be_resumed(fake):
    fake.begin()
    fake.produce(range(1))
    fake.close()
    summary = summarise(fake.folder)
    assert summary.status == "interrupted"
    assert "killed" in summary.reason
    text = status_text(summary).plain
    assert "40 of 240 solved, 1 dropped" in text
    assert "forebay resume" in text


def test_a_torn_last_line_costs_that_line_alone(fake):
    fake.begin()
    fake.produce(range(2))
    fake.close()
    journal = fake.folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    (stored,) = [i for i, line in enumerate(lines) if b'"block_stored"' in line and b'"chunk":1' in line]
    journal.write_bytes(b"".join(lines[:stored]) + lines[stored][:-30])
    assert summarise(fake.folder).train.solved == BLOCK


def test_a_run_that_has_only_a_study_has_not_started(fake):
    fake.close()
    summary = summarise(fake.folder)
    assert summary.status == "not started"
    assert (summary.train.requested, summary.train.solved, summary.attempts) == (240, 0, 0)
    assert (summary.bottleneck, summary.best, summary.methods) == ("unknown", None, ())
    assert "0 of 240 solved" in status_text(summary).plain
    assert what_reuse_means(summary).startswith("What reuse costs can be said once")


def test_a_journal_without_a_study_is_summed_up_too(fake):
    fake.complete()
    (fake.folder / "study.json").unlink()
    summary = summarise(fake.folder)
    assert (summary.name, summary.batches_planned, summary.train.requested) == ("", 0, 240)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"holds neither study\.json nor journal\.jsonl, so it is no run folder"):
        summarise(tmp_path)


def test_a_damaged_study_is_named(fake):
    (fake.folder / "study.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"study\.json' is not JSON .* restore it"):
        summarise(fake.folder)


def test_json_of_a_summary_is_strict(fake):
    def refuse(text):
        raise AssertionError(f"{text} is no strict JSON")

    tree = json.loads(summarise(fake.complete().folder).to_json(), parse_constant=refuse)
    assert tree["train"] == {"requested": 240, "solved": 240, "valid": 237}
    assert tree["remaining_s"] == "NaN"


def test_several_solvers_share_the_busy_time(fake):
    fake.begin(solvers=2)
    fake.produce(range(6), block_s=2.0)
    fake.event("training_ended", 12.5, batches=0)
    summary = summarise(fake.folder)
    solvers = summary.stage("solvers")
    assert (solvers.lanes, solvers.busy_s, solvers.rate_busy) == (2, pytest.approx(6.0), pytest.approx(40.0))
    assert summary.overlap_efficiency == pytest.approx(1.0)
    assert summary.bottleneck == "solvers"
    assert summary.bottleneck_reason.startswith(
        "The solvers: each solver worked 100 % of the streaming time, while the"
    )


def test_a_slow_disk_is_found_out(fake):
    fake.begin()
    fake.produce(range(6))
    fake.flow(12.5, writer_busy_s=5.5)
    summary = summarise(fake.folder)
    assert summary.bottleneck == "writer"
    assert "The data-set writer: it worked 92 % of the streaming time" in summary.bottleneck_reason


def test_when_no_stage_is_busy_the_bottleneck_is_none_of_them(fake):
    fake.begin()
    fake.produce(range(2), block_s=0.25)
    summary = summarise(fake.folder)
    assert summary.bottleneck == "none"
    assert "No stage: the busiest, the solvers, worked only 25 % of the streaming time" in summary.bottleneck_reason


def test_reuse_is_explained_when_the_solvers_are_faster(fake):
    text = what_reuse_means(summarise(fake.complete().folder))
    assert text == (
        "While they work, the solvers make 80 samples a second and the learner consumes 75.3. In this run each sample "
        "was used 2.2 times on average, although the solvers are 1.1 times as fast: with `samples = 1280` every draw "
        "would be of a fresh sample, and the solvers would work 16 s while the learner works 17 s."
    )


def test_reuse_is_explained_when_the_learner_is_faster(fake):
    fake.begin()
    fake.produce(range(6), block_s=1.6)  # 25 samples a second, a third of what the learner consumes
    fake.train(0, 80)
    text = what_reuse_means(summarise(fake.folder))
    assert "the solvers make 25 samples a second and the learner consumes 75.3" in text
    assert "used 2.2 times on average, fewer than the 3.0 times that keep the learner busy" in text
    assert "with 3.0 times as many solvers" in text


def test_fresh_samples_are_called_fresh(fake):
    fake.begin()
    fake.produce(range(6), block_s=0.25)
    fake.train(0, 15)
    fake.measure("reuse", 20.0, batch=15, histogram=[3, 234])
    text = what_reuse_means(summarise(fake.folder))
    assert "used 1.0 times on average: every sample was fresh" in text
    assert "2.1 times as many in the learner's time" in text


def test_frames_of_a_transient_problem_are_counted_as_frames(fake):
    fake.begin()
    for chunk in range(2):
        fake.produce(range(chunk, chunk + 1), begin_s=6.5 + chunk)
        valid = 39 if chunk == 0 else 38
        fake.event("block_ingested", 7.5 + chunk, split="train", chunk=chunk, frames=10 * valid)
    fake.train(0, 80)
    summary = summarise(fake.folder)
    assert (summary.frames_per_sample, summary.frames_ingested) == (10.0, 770)
    assert "the solvers make 800 frames a second" in what_reuse_means(summary)
    assert "with `samples = 128`" in what_reuse_means(summary)


def test_spilling_and_lost_solvers_show_in_the_status(fake):
    fake.begin()
    fake.event("solver_lost", 3.0, solver="solver-0", reason="killed [by the kernel]")
    fake.flow(4.0, spilled_bytes=5 * 2**20, writer_busy_s=0.0)
    text = status_text(summarise(fake.folder)).plain
    assert "Ray spilled 5 MiB to disk" in text
    assert "1 solver lost and started again" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (99.4, "99.4 s"), (125, "2 min 5 s"), (7260, "2 h 1 min"), (float("nan"), "unknown")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (412.3, "412"),
        (-123456.7, "-123,457"),
        (2.345, "2.35"),
        (-1.2e-7, "-1.20e-07"),
        (math.inf, "unknown"),
    ],
)
def test_quantities_have_three_digits_that_matter(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.02346, "2.35 %"), (0.834, "83 %"), (1.0, "100 %"), (math.nan, "unknown")]
)
def test_shares_read_as_per_cent(share, text):
    assert percent(share) == text


def test_what_every_solver_learned_in_every_attempt_is_added_up(fake):
    fake.begin(solvers=2)
    fake.choose(0, 7.0, "solver-0", (10.0, 6.0), [arm("cg+gamg", 5, 1, 2, 0.05), arm("direct", 20, 0, 0, 0.01)])
    fake.choose(1, 8.0, "solver-0", (12.0, 3.0), [arm("cg+gamg", 7, 1, 3, 0.04), arm("direct", 60, 0, 0, 0.02)])
    fake.choose(2, 8.5, "solver-1", (8.0, 6.0), [arm("cg+gamg", 2, 0, 4, 0.06), arm("direct", 30, 1, 0, 0.03)])
    fake.begin(attempt=2, at_s=20.0, solvers=2)
    fake.choose(3, 4.0, "solver-0", (10.0, 5.0), [arm("direct", 40, 0, 0, 0.04), arm("gmres+ilu", 0, 2, 1, None)])
    summary = summarise(fake.folder)
    assert summary.sorted_path == pytest.approx(20 / 40)
    direct, multigrid, never = summary.arms
    assert (direct.method, direct.solved, direct.failures, direct.cut_offs) == ("direct", 130, 1, 0)
    assert direct.median_s == 0.03
    assert (multigrid.method, multigrid.solved, multigrid.failures, multigrid.cut_offs) == ("cg+gamg", 9, 1, 7)
    assert multigrid.median_s == pytest.approx(0.05)
    assert (never.method, never.solved, never.failures, never.cut_offs) == ("gmres+ilu", 0, 2, 1)
    assert math.isnan(never.median_s)


def test_a_run_with_one_method_in_the_order_of_numbers_has_no_choices_and_no_path(fake):
    summary = summarise(fake.complete().folder)
    assert summary.arms == ()
    assert math.isnan(summary.sorted_path)
