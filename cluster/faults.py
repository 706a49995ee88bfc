"""What is done about a fault: a pure function of the study's `[faults]` table and of what happened.

| what happened                                   | at first            | when it goes on                           |
|-------------------------------------------------|---------------------|-------------------------------------------|
| a solver is lost, nobody knows at which sample  | another try, marked | `restarts` in a row: the run ends         |
| a solver is lost at a sample                    | another try, marked | `sample_losses`: another draw of it       |
| the same, drawn `redraws` times already         | another try, marked | `sample_losses`: the sample is given up   |
| the writer or the learner is lost               | a fresh one         | `restarts` in a row: the run ends         |
| samples fail                                    | kept by outcome     | above `failures` of them: the run ends    |

A run that ends keeps all that is stored and can be resumed, with another `[faults]` table if need be.
"""

from __future__ import annotations

from forebay.pipeline.losses import Failures, Loss, Remedy
from forebay.pipeline.study import FaultsTable


def decide(policy: FaultsTable, what: Loss | Failures) -> Remedy:
    """The remedy; depends on nothing but its arguments."""
    if isinstance(what, Failures):
        hopeless = what.of >= policy.failures_after and what.failed > policy.failures * what.of
        return Remedy.GIVE_UP_RUN if hopeless else Remedy.RETRY
    if what.at_sample >= policy.sample_losses:
        return Remedy.REDRAW if what.draw < policy.redraws else Remedy.GIVE_UP_SAMPLE
    borne = policy.restarts + (policy.sample_losses if what.at_sample else 0)  # a suspect gets its chance to be found
    return Remedy.GIVE_UP_RUN if what.in_a_row > borne else Remedy.RETRY
