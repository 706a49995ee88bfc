"""The choice of a solver while solving: a safe start, a policy, and rules that bound what learning may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from forebay.solvers.krylov.arm_record import ArmRecord
from forebay.solvers.krylov.contextual import Contextual, Prediction, require_context
from forebay.solvers.krylov.trial import Outlook, Reason, Rules, Trial
from forebay.solvers.krylov.tsallis_inf import TsallisInf, require_arms, require_loss, require_same_arms

Policy = Literal["optimistic", "tsallis", "squarecb"]

CELLS = 4
"""Intervals of each feature; samples in the same ones are like."""
SURPRISE = 1.5
"""Ratio of new cost to old estimate, or its inverse, beyond which a slow arm's history is dropped."""


class ArmSelector:
    """Which of several ways to solve the next sample, learned from seconds alone.

    A caller goes, for each sample: `arm = choose(context)`; solve, for at most `cap(arm)` seconds;
    `observe(arm, seconds, converged=...)`; while it has not converged, the same with the first arm of `ranking()`,
    unless none is left.

    1. Each arm is tried once, in order, so put the safest first: it alone has no cap, the others are stopped when they
       have taken as long as the best so far.  Then each has a second try, stopped at `Rules.behind` times the best; its
       cost replaces the first, which paid for setting up.  Second tries wait for the budget when they add up.
    2. Then the policy chooses among all arms that are not parked.  An arm not chosen for `Rules.patience` samples,
       parked or not, is tried again if the budget allows, each time after twice as many samples; when its cost has
       changed its history is dropped, so that drift is noticed.
    3. A failure costs the time spent and the time of the arms that then solved the sample.  An arm that failed on two
       like samples (same cell of the context; without features, any) is not tried there again.  When several arms were
       tried and none solved a sample, the sample is to blame, and nothing is learned.

    Policies: "optimistic" takes the arm with the smallest lower confidence bound of its cost, with features by
    regression (see `Contextual.predict`); "tsallis" see `TsallisInf`; "squarecb" see `Contextual`.  Measured by
    simulation: total cost above the best fixed arm in hindsight over 500 samples, learning included, as median / 95th
    percentile / worst of 150 tables of 4 to 8 arms, 1.05 to 100 times the best, the first within 5 (60 for the ladder):

    | costs                                     | optimistic         | squarecb           | tsallis             |
    |-------------------------------------------|--------------------|--------------------|---------------------|
    | 10 % noise                                | 3.3 / 5.9 / 11.7 % | 4.3 / 6.9 / 12.8 % | 5.3 / 12.5 / 20.3 % |
    | first solve of an arm 1 to 3 times as dear | 4.0 / 9.0 / 13.6 % | 4.9 / 9.2 / 13.9 % | 6.5 / 13.6 / 24.4 % |
    | 30 % noise                                | 3.7 / 6.5 / 19.8 % | 4.6 / 8.1 / 11.9 % | 7.3 / 15.8 / 23.5 % |
    | ladder of six arms in steps of 5 %        | 1.4 / 2.1 / 2.9 %  | 4.5 / 5.2 / 5.8 %  | 9.0 / 11.0 / 13.4 % |

    After its start "optimistic" is nearly greedy, which is best where costs are random but stationary, and it leaves an
    arm that slows down within some samples.  Against costs that an adversary sets only "tsallis" has a guarantee.
    A safe arm r times as dear as the best costs about r samples once, on top.
    """

    def __init__(
        self,
        arms: int,
        *,
        seed: int,
        features: int = 0,
        policy: Policy = "optimistic",
        rules: Rules | None = None,
    ) -> None:
        require_arms(arms)
        if policy not in ("optimistic", "tsallis", "squarecb"):
            raise ValueError(f"policy = {policy!r} does not exist; choose 'optimistic', 'tsallis' or 'squarecb'")
        if policy == "tsallis" and features:
            raise ValueError(f"policy 'tsallis' cannot use {features} features; take 'optimistic' or 'squarecb'")
        self.arms, self.features, self.policy = arms, features, policy
        self.rules = rules or Rules()
        self.samples = 0
        self.seconds = 0.0
        """Of all attempts."""
        self.experiments_s = 0.0
        """What experiments cost beyond the best arm, by estimate."""
        self._records = [ArmRecord(patience=self.rules.patience) for _ in range(arms)]
        self._regression = Contextual(arms, features, seed=seed) if features or policy == "squarecb" else None
        self._tsallis = TsallisInf(arms, seed=seed) if policy == "tsallis" else None
        self._sample: Trial | None = None

    def choose(self, context: Sequence[float] = ()) -> int:
        """The arm to solve the next sample with; its context has `features` entries scaled to [-1, 1].

        Raises:
            ValueError: a context of another length, or with NaN or inf.
        """
        require_context(context, self.features)
        self._close_unsolved()
        self.samples += 1
        outlook = self._outlook(tuple(float(feature) for feature in context))
        arm, reason = self._decide(outlook)
        best, expected = _known(outlook.best), _known(outlook.expected[arm])
        multiple = 1.0 if reason == "first try" else self.rules.behind
        cap = None if best is None or arm == outlook.leader else multiple * best
        self._sample = Trial(outlook.context, outlook.cell, arm, reason, best, cap, expected)
        return arm

    def cap(self, arm: int) -> float | None:
        """Seconds that an attempt by this arm may take; None for the best known arm, rescues and second goes."""
        sample = self._sample
        return sample.cap if sample is not None and arm == sample.arm and not sample.attempts else None

    @property
    def chosen(self) -> int | None:
        """What the last `choose` answered."""
        return None if self._sample is None else self._sample.arm

    @property
    def reason(self) -> Reason | None:
        """Why the last `choose` answered what it did."""
        return None if self._sample is None else self._sample.reason

    def ranking(self) -> list[int]:
        """Arms left for the sample in hand, cheapest first, untried ones after them.

        Without those that failed on it or twice on like ones; arms that were stopped at their cap come last, because
        a sample that only they can solve must not be lost.
        """
        sample = self._sample
        outlook = self._outlook((0.0,) * self.features if sample is None else sample.context)
        went = [] if sample is None else [arm for arm, _, _ in sample.attempts]
        left = sorted(outlook.usable, key=lambda arm: (outlook.expected[arm], arm))
        again = [sample.arm] if sample is not None and sample.stopped and went.count(sample.arm) == 1 else []
        return [arm for arm in left if arm not in went] + again

    def observe(self, arm: int, seconds: float, *, converged: bool = True) -> None:
        """What an attempt on the sample in hand took, set-up included.

        Raises:
            ValueError: no such arm, seconds that no clock shows, or a sample that is not in hand or already solved.
        """
        require_loss(seconds)
        if not 0 <= arm < self.arms:
            raise ValueError(f"there is no arm {arm}; this choice is between arms 0 to {self.arms - 1}")
        sample = self._sample
        if sample is None or sample.solved:
            raise ValueError(f"arm {arm} was observed without a sample in hand; call `choose` first, once a sample")
        sample.attempts.append((arm, seconds, converged))
        if converged:
            self._close(sample)

    # Deciding

    def _outlook(self, context: tuple[float, ...]) -> Outlook:
        cell = tuple(min(CELLS - 1, max(0, int((feature + 1.0) * 0.5 * CELLS))) for feature in context)
        usable = tuple(arm for arm in range(self.arms) if self._records[arm].faults.get(cell, 0) < 2)
        known: list[ArmRecord | Prediction] = list(self._records)
        if self._regression is not None:
            for arm, prediction in enumerate(self._regression.predict(context)):
                if math.isfinite(prediction.expected):
                    known[arm] = prediction
        usable = usable or tuple(range(self.arms))
        expected = tuple([one.expected for one in known])
        leader = min(usable, key=expected.__getitem__)
        # Arms with few tries cannot know their scatter; they have at least the leader's.
        scatter = known[leader].scatter
        sigma = tuple(
            [one.sigma * max(1.0, scatter / one.scatter) if one.scatter < math.inf else math.inf for one in known]
        )
        return Outlook(context, cell, usable, expected, sigma, leader)

    def _decide(self, outlook: Outlook) -> tuple[int, Reason]:
        records, best = self._records, outlook.best
        new = [arm for arm in outlook.usable if records[arm].tries < 2]
        for arm in sorted(new, key=lambda arm: (records[arm].tries, outlook.expected[arm])):
            if not records[arm].tries:
                return arm, "first try"
            near = outlook.expected[arm] <= self.rules.behind * best
            if near or self._affordable(arm, outlook, self.rules.start):
                return arm, "second try"
        due = [arm for arm in outlook.usable if records[arm].due <= self.samples and arm != outlook.leader]
        for arm in sorted(due, key=lambda arm: records[arm].due):
            if self._affordable(arm, outlook):
                return arm, "another try"
        return self._by_policy(outlook), "policy"

    def _by_policy(self, outlook: Outlook) -> int:
        active = [arm for arm in outlook.usable if arm == outlook.leader or not self._parked(arm, outlook)]
        if self._tsallis is not None:
            return self._tsallis.choose(active)
        if self.policy == "squarecb" and self._regression is not None:
            return self._regression.choose(outlook.context, active)
        width = self.rules.optimism * math.sqrt(math.log(self.samples + 1))
        return min(active, key=lambda arm: outlook.expected[arm] * math.exp(-width * outlook.sigma[arm]))

    def _parked(self, arm: int, outlook: Outlook) -> bool:
        return outlook.expected[arm] * math.exp(-outlook.sigma[arm]) > self.rules.behind * outlook.best

    def _affordable(self, arm: int, outlook: Outlook, credit: float = 0.0) -> bool:
        extra = min(outlook.expected[arm] - outlook.best, self.rules.behind * outlook.best)
        return self.experiments_s + extra <= self.rules.budget * self.seconds + credit * outlook.best

    # Learning

    def _close_unsolved(self) -> None:
        """A sample that nothing solved: one arm alone is to blame itself, several are not."""
        sample = self._sample
        if sample is None or sample.solved or not sample.attempts:
            return
        if len({arm for arm, _, _ in sample.attempts}) == 1:
            self._close(sample)
            return
        self.seconds += math.fsum(seconds for _, seconds, _ in sample.attempts)
        for arm, _, _ in sample.attempts:
            self._records[arm].last_try = self.samples

    def _close(self, sample: Trial) -> None:
        """Learn from a finished sample; an attempt costs the time from its start to the certified end."""
        cost = 0.0 if sample.solved else sample.best or 0.0
        for position in reversed(range(len(sample.attempts))):
            cost += sample.attempts[position][1]
            self._learn(sample, position, cost)
        self.seconds += math.fsum(seconds for _, seconds, _ in sample.attempts)
        if sample.reason != "policy" and sample.best is not None:
            self.experiments_s += max(0.0, cost - sample.best)

    def _learn(self, sample: Trial, position: int, cost: float) -> None:
        """From one attempt; the first was made by the arm that had been chosen."""
        arm, _, converged = sample.attempts[position]
        chosen, record = position == 0 and arm == sample.arm, self._records[arm]
        record.tries += 1
        record.last_try = self.samples
        if converged:
            record.solved += 1
        elif chosen and sample.stopped:
            record.cut_offs += 1
        else:
            record.failures += 1
            record.faults[sample.cell] = record.faults.get(sample.cell, 0) + 1
        if chosen:
            self._renew_patience(record, sample.reason)
            if sample.reason == "another try" and _changed(sample, cost):
                self._forget(arm)
        record.add(cost)
        if self._regression is not None and record.tries > 1:
            self._regression.observe(arm, cost, sample.context)
        if self._tsallis is not None and chosen and sample.reason == "policy":
            self._tsallis.observe(arm, cost)

    def _renew_patience(self, record: ArmRecord, reason: Reason) -> None:
        if reason == "policy":
            record.patience = self.rules.patience
        elif reason == "another try":
            record.patience *= 2

    def _forget(self, arm: int) -> None:
        self._records[arm].restart()
        self._records[arm].patience = self.rules.patience
        if self._regression is not None:
            self._regression.forget(arm)

    # Reporting

    def table(self, context: Sequence[float] | None = None) -> list[dict[str, Any]]:
        """What is known of each arm, the cheapest first, as plain JSON values; in the middle of the features' ranges.

        "arm"; "tries"; "failures" (another arm solved the sample); "cut_offs" (experiments stopped at their cap);
        "median_s" and "expected_s" per certified sample, None before the first; "share" of all samples that this arm
        solved; "parked": beyond `Rules.behind`; "given_up": kinds of samples on which it failed twice.
        """
        outlook = self._outlook((0.0,) * self.features if context is None else tuple(context))
        return [
            {
                "arm": arm,
                "tries": record.tries,
                "failures": record.failures,
                "cut_offs": record.cut_offs,
                "median_s": record.median,
                "expected_s": outlook.expected[arm] if record.tries else None,
                "share": record.solved / self.samples if self.samples else 0.0,
                "parked": record.tries > 0 and arm != outlook.leader and self._parked(arm, outlook),
                "given_up": sum(count >= 2 for count in record.faults.values()),
            }
            for arm, record in sorted(enumerate(self._records), key=lambda pair: (outlook.expected[pair[0]], pair[0]))
        ]

    def state(self) -> dict[str, Any]:
        """Everything, as plain JSON values; `restore` continues with the same choices."""
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "experiments_s": self.experiments_s,
            "records": [record.state() for record in self._records],
            "regression": None if self._regression is None else self._regression.state(),
            "tsallis": None if self._tsallis is None else self._tsallis.state(),
            "sample": None if self._sample is None else self._sample.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of a selector with the same arms, features and policy.

        Raises:
            ValueError: the state is of another kind.
        """
        require_same_arms(len(state["records"]), self.arms)
        for name, mine in (("regression", self._regression), ("tsallis", self._tsallis)):
            if (state[name] is None) != (mine is None):
                raise ValueError(f"the saved state is of another policy than {self.policy!r} ({name}); use the same")
            if mine is not None:
                mine.restore(state[name])
        self.samples, self.seconds, self.experiments_s = state["samples"], state["seconds"], state["experiments_s"]
        self._records = [ArmRecord.restored(record) for record in state["records"]]
        self._sample = None if state["sample"] is None else Trial.restored(state["sample"])


def _known(cost: float) -> float | None:
    """None for what cannot be a cost to compare with."""
    return cost if 0.0 < cost < math.inf else None


def _changed(sample: Trial, cost: float) -> bool:
    """Is the chosen arm's cost too far from the expected one to be chance?"""
    return sample.expected is not None and not 1.0 / SURPRISE < cost / sample.expected < SURPRISE
