"""Seeds, generators and designs: the same sample whoever draws it, wherever, in whatever order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from scipy.stats import qmc

from forebay.pipeline.records import Schema

DesignKind = Literal["random", "sobol", "latin_hypercube"]


class _NoEntropy(np.random.bit_generator.ISeedSequence):
    """Seeds nothing: the key is set afterwards."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.zeros(n_words, dtype)


_NO_ENTROPY = _NoEntropy()
_ZEROS = np.zeros(4, np.uint64)


def sample_seed(run_seed: int, stream: str, sample_id: int) -> int:
    """The 64-bit key word of a sample's generator: BLAKE2b of (run seed, stream name, sample id).

    A hash of the three, not a sum: neighbouring runs share no streams, and the value is the same on every machine and
    in every version of Python.  Source: RFC 7693; the text hashed is "run_seed/stream/sample_id", personalised
    "forebay".
    """
    text = f"{run_seed}/{stream}/{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"forebay").digest(), "little")


def sample_generator(run_seed: int, stream: str, sample_id: int) -> np.random.Generator:
    """Philox generator (Salmon et al., SC 2011, doi:10.1145/2063384.2063405) keyed by `sample_seed`.

    It has no seed sequence, so it cannot `spawn`: a sample has one stream.
    """
    return keyed_generator(sample_seed(run_seed, stream, sample_id))


def keyed_generator(seed: int) -> np.random.Generator:
    """The generator of a sample whose `sample_seed` is known."""
    # Philox(key=...) asks the system for entropy first, and throws it away; numpy's stubs lack ISeedSequence.
    bits = np.random.Philox(_NO_ENTROPY)  # type: ignore[arg-type]
    bits.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": np.array([seed, 0], np.uint64)},
        "buffer": _ZEROS,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.random.Generator(bits)


def draw_stream(split: str, draw: int) -> str:
    """Stream name of a sample's n-th draw: the split itself for the first, 0."""
    return f"{split}/redraw-{draw}" if draw else split


def draw_number(run_seed: int, split: str, sample_id: int, seed: int, *, most: int = 64) -> int:
    """Which draw of a sample the recorded seed stands for.

    Raises:
        ValueError: none of the first `most`, so the record belongs to another run.
    """
    for draw in range(most):
        if sample_seed(run_seed, draw_stream(split, draw), sample_id) == seed:
            return draw
    raise ValueError(
        f"seed {seed} of sample {sample_id} in split {split!r} is none of its first {most} draws with run seed "
        f"{run_seed}; the record is of another run"
    )


@dataclass(frozen=True, slots=True)
class Design:
    """How `samples` points fill the unit cube of `dimension` parameters; a pure function of its fields.

    - random: independent uniform points;
    - sobol: scrambled Sobol sequence (Owen 1998); balanced best when `samples` is a power of two;
    - latin_hypercube: one point in each of `samples` strata of every axis (McKay, Beckman, Conover 1979).

    Sobol and Latin hypercube are made as a whole at the first `point` and kept per process, 8 · samples · dimension
    bytes.  A Sobol design of more samples extends a smaller one; a Latin hypercube of more samples is another design.

    Raises:
        ValueError: an unknown kind, or no samples.
    """

    kind: DesignKind
    run_seed: int
    stream: str
    samples: int
    dimension: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(DesignKind):
            raise ValueError(f"design {self.kind!r} is unknown; choose one of {', '.join(get_args(DesignKind))}")
        if self.samples < 1 or self.dimension < 0:
            raise ValueError(
                f"a design of {self.samples} samples in {self.dimension} dimensions is empty; "
                f"it needs at least 1 sample, and dimensions from 0"
            )

    def point(self, sample_id: int, draw: int = 0) -> np.ndarray:
        """Point of the unit cube [0, 1)^dimension, shape (dimension,).

        What is drawn anew (`draw` > 0) is a random point whatever the kind: a design has no second place for it.

        Raises:
            IndexError: a sample that the design does not have.
        """
        if not 0 <= sample_id < self.samples:
            raise IndexError(f"sample {sample_id} of a design of {self.samples}; ids are 0 ... {self.samples - 1}")
        if self.dimension == 0:
            return np.empty(0)
        if self.kind == "random" or draw:
            stream = f"{draw_stream(self.stream, draw)}/parameters"
            return sample_generator(self.run_seed, stream, sample_id).random(self.dimension)
        return _points(self)[sample_id]


def draw_parameters(schema: Schema, design: Design, sample_id: int, draw: int = 0) -> np.ndarray:
    """The scalar parameters of a sample, float64 (p,): the design's point through each parameter's distribution."""
    point = design.point(sample_id, draw)
    if not point.size:
        return point
    return np.array([p.quantile(float(u)) for p, u in zip(schema.parameters, point, strict=True)], dtype=np.float64)


@lru_cache(maxsize=8)
def _points(design: Design) -> np.ndarray:
    """All points of a design that is made as a whole, read-only."""
    # scipy spawns children from the generator, which a Philox made from a bare key cannot do.
    rng = np.random.Generator(np.random.Philox(sample_seed(design.run_seed, f"{design.stream}/design", 0)))
    if design.kind == "sobol":
        power = max(0, (design.samples - 1).bit_length())  # whole powers of two keep the sequence balanced
        points = qmc.Sobol(design.dimension, scramble=True, rng=rng).random_base2(power)[: design.samples]
    else:
        points = qmc.LatinHypercube(design.dimension, rng=rng).random(design.samples)
    points.setflags(write=False)
    return points
