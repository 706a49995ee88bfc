"""Faults planted in kernels, one at a time: each must be caught by the checks on the host.

All mutants of a source are compiled into one library and chosen when it runs: `before` becomes a choice between
`before` and `after`, an expression or (where it ends in ; or }) a statement.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    family: str
    """Whose checks must catch it (`kernel_families`)."""
    context: str
    """Text that occurs once in the source with its includes in place."""
    before: str
    """Text that occurs once in the context."""
    after: str
    """What takes its place; empty for a statement that is missing."""
    source: str | None = None
    """Which of the family's sources; None: its only one."""

    @property
    def name(self):
        """Of the parametrised test: the fault and, where that is not telling, where it is."""
        short = " ".join(self.context.split())[-60:]
        return (
            f"{self.family}: {' '.join(self.before.split())} -> {' '.join(self.after.split()) or 'nothing'} in {short}"
        )


def misplaced(text, mutant):
    """Why a mutant cannot be planted, or None: whoever edits a kernel then adapts its row here."""
    places, choices = text.count(mutant.context), mutant.context.count(mutant.before)
    return None if places == choices == 1 else f"{places} places have its context, {choices} in it can be changed"


def plant(text, mutants):
    """The source with all mutants in it; number k, from 1, is active where shim::state.mutant is k."""
    for number, mutant in enumerate(mutants, start=1):
        chosen = f"(shim::state.mutant == {number})"
        if mutant.before.rstrip()[-1] in ";}":
            choice = f"{{ if {chosen} {{ {mutant.after} }} else {{ {mutant.before} }} }}"
        else:
            choice = f"({chosen} ? ({mutant.after}) : ({mutant.before}))"
        text = text.replace(mutant.context, mutant.context.replace(mutant.before, choice))
    return text


BLOCK_SUM = (
    # context, before, after: common.cuh
    ("= value[k];\n    }\n    __syncthreads();\n#pragma", "__syncthreads();", ""),
    ("lane < warps ? scratch[32 * k + lane]", "lane < warps", "lane <= warps"),
)
DECISIONS = (
    # scalars.cuh
    ("__syncthreads();\n    if (ticket[0]", "__syncthreads();", ""),
    ("ticket[0] != blocks - 1", "blocks - 1", "blocks - 2"),
    ("if (threadIdx.x == 0) tickets[system] = 0;", "tickets[system] = 0;", ""),
    ("b < blocks; b += blockDim.x", "b < blocks", "b + 1 < blocks"),
    ("partial[block * N + k] = value[k];", "block * N + k", "(block + 1) * N + k"),
    ("norm2 <= scalars[TARGET]", "norm2 <= scalars[TARGET]", "norm2 < 0"),
    (
        "iterations >= flags[MOST_ITERATIONS]",
        "iterations >= flags[MOST_ITERATIONS]",
        "iterations > flags[MOST_ITERATIONS]",
    ),
    ("rho / scalars[RHO] : 0", "rho / scalars[RHO]", "scalars[RHO] / rho"),
    ("double step = scalars[RHO] / curvature", "scalars[RHO]", "scalars[NORM2]"),
)
STENCILS = (
    # grid.cuh
    ("if (c.x > 0) sum += off[i - 1]", "c.x > 0", "c.x > 1"),
    ("sum += off[i - 1] * (u(0, 0, -1)", "off[i - 1]", "off[i]"),
    ("if (c.x + 1 < n.x) sum += off[i] * (u(0, 0, 1)", "c.x + 1 < n.x", "c.x + 2 < n.x"),
    ("if (c.z + 1 < n.z) sum", "c.z + 1 < n.z", "c.z < n.z"),
    ("sum += along_z[i - plane] * (u(-1, 0, 0)", "along_z[i - plane]", "along_z[i]"),
    ("(u(0, 0, 1) - here)", "u(0, 0, 1) - here", "u(0, 0, 1)"),
    ("(u(-1, 0, 0) - here)", "u(-1, 0, 0) - here", "u(-1, 0, 0)"),
    ("k == 0 || !d.inside(n)", "!d.inside(n)", "false"),
    ("(k - 1) * cells + i : (-k - 1) * cells + d.in(n)", "d.in(n)", "i"),
    ("if (!above.inside(coarse)) continue;", "!above.inside(coarse)", "false"),
    ("c.x / 2 + d}", "c.x / 2 + d", "c.x / 2"),
    ("place(c.z - 2 * above.z,", "c.z - 2 * above.z", "2 * above.z - c.z"),
    ("prolong[k * cells + j]) * t(dz", "prolong[k * cells + j]", "prolong[(OFFSETS - 1 - k) * cells + j]"),
)
LARGE_GRID = (
    ("last = min(n.z, first + chunk)", "min(n.z, first + chunk)", "first + chunk"),
    ("matrices == 1 ? 0 : system", "matrices == 1", "matrices == 0"),
    ("if (!mine[ACTIVE]) return;\n    const long long cells", "if (!mine[ACTIVE]) return;", ""),
    ("const real above = z + 1 < n.z", "z + 1 < n.z", "z + 2 < n.z"),
    ("below = p[i - plane];", "p[i - plane]", "p[i]"),
    ("link_below * (below - here)", "below - here", "below"),
    ("(p[i + 1] - here)", "p[i + 1] - here", "here - p[i + 1]"),
    ("reaction[i] * here + link", "reaction[i] * here", "reaction[i] * above"),
    ("        link_below = link_above;", "link_above", "link_below"),
    ("if (x > 0) value += off[i - 1] * (p[i - 1]", "off[i - 1]", "off[i]"),
    ("if (x + 1 < n.x) value +=", "x + 1 < n.x", "x < n.x"),
    ("if (x >= n.x || y >= n.y ||", "x >= n.x", "x > n.x"),
    ("r[vector + i] - step * q[vector + i]", "step * q[vector + i]", "step * p[vector + i]"),
    ("i < cells; i += gridDim.x * BLOCK) {\n        x[vector", "i < cells", "i <= cells"),
    ("z[vector + i] + turn * p[vector + i]", "turn * p[vector + i]", "turn * z[vector + i]"),
    ("const real value = m[matrix + i] * r", "m[matrix + i]", "m[i]"),
    ("z % 2 == 0) continue;\n        __syncthreads();", "__syncthreads();", ""),
    ("2 * tile.x - 1 + k % WIDE", "2 * tile.x - 1", "2 * tile.x"),
    ("+ 2 * tile.lane_x + 1;", "2 * tile.lane_x + 1", "2 * tile.lane_x"),
    ("for (int z = 2 * tile.first - 1;", "2 * tile.first - 1", "2 * tile.first"),
    ("for (int k = threadIdx.x; k < WIDE * DEEP;", "k < WIDE * DEEP", "k < WIDE * DEEP - 1"),
    ("ahead <= tile.first) continue;\n        __syncthreads();", "__syncthreads();", ""),
    ("for (int ahead = tile.first - 1;", "tile.first - 1", "tile.first"),
    ("tile.x - 1 + k % BROAD", "tile.x - 1", "tile.x"),
    ("const real value = y(0, 0, 0) + m[i]", "y(0, 0, 0)", "y(0, 0, 1)"),
    ("right[i] = r[i];\n    __syncthreads();", "__syncthreads();", ""),
    ("inverse[j * cells + i] * right[j]", "right[j]", "right[i]"),
    ("flow(faces_x, here, x[i - 1], fx - 1)", "fx - 1", "fx"),
    ("flow(faces_z, here, x[i - plane], i - plane)", "x[i - plane]", "x[i]"),
    ("if (cx + 1 < nx) value += flow", "cx + 1 < nx", "cx < nx"),
)
LARGE_GRID_3D = (
    ("off[cells + i - n.x] * (u(0, -1, 0)", "off[cells + i - n.x]", "off[cells + i]"),
    ("(u(0, 1, 0) - here)", "u(0, 1, 0) - here", "u(0, 1, 0)"),
    ("(p[i + n.x] - here)", "p[i + n.x] - here", "p[i + n.x]"),
    ("if (c.y + 1 < n.y) sum", "c.y + 1 < n.y", "c.y < n.y"),
    ("value += along_y[i - n.x] * (p[i - n.x]", "p[i - n.x]", "p[i - 1]"),
    ("y = blockIdx.x / across * TILE_Y", "blockIdx.x / across", "blockIdx.x % across"),
    ("2 * tile.y - 1 + k / WIDE", "2 * tile.y - 1", "2 * tile.y"),
    ("tile.y - 1 + k / BROAD", "tile.y - 1", "tile.y"),
    ("flow(faces_y, here, x[i - nx], fy - nx)", "fy - nx", "fy - 1"),
    ("z % 2 == 0) continue;\n        __syncthreads();", "__syncthreads();", ""),
    ("ahead <= tile.first) continue;\n        __syncthreads();", "__syncthreads();", ""),
)
SELL = (
    ("e < end; e += 32", "e < end", "e <= end"),
    ("a.slices[slice] + (row & 31)", "row & 31", "row & 15"),
    ("const S factor = sign *", "sign", "S(1)"),
    ("* weight(column);", "weight(column)", "weight(row)"),
    (
        "static_cast<long long>(column) * NRHS",
        "static_cast<long long>(column) * NRHS",
        "static_cast<long long>(column)",
    ),
    ("const soft kept = 1 - a.diagonal[row] * a.smoother[row]", "a.diagonal[row] * a.smoother[row]", "a.diagonal[row]"),
    ("spread * sum[k];\n}\n\n// coarse_r", "spread * sum[k]", "sum[k] + 1e-3f * spread"),
    ("a.smoother[row] * r[first + k] + spread", "r[first + k]", "r[first]"),
    ("sum[k] = r[first + k] - diagonal * y[first + k]", "diagonal * y[first + k]", "y[first + k]"),
    (
        "inverse[static_cast<long long>(j) * n + row]",
        "static_cast<long long>(j) * n + row",
        "static_cast<long long>(j) * n",
    ),
    ("if (step[k] == 0) continue;", "step[k] == 0", "false"),
    ("const real left = r[i] - static_cast<real>(step[k]) * q[i]", "q[i]", "p[i]"),
    ("static_cast<real>(turn[k]) * p[i]", "turn[k]", "turn[0]"),
    ("if (flags[FLAGS * k + ACTIVE]) decision(", "flags[FLAGS * k + ACTIVE]", "true"),
    ("return row < n ? row : -1;", "row < n", "row <= n"),
    ("flags[FLAGS * k + ACTIVE] ? scalars[SCALARS * k + STEP]", "flags[FLAGS * k + ACTIVE]", "true"),
)
SELL_SMALL = (
    ("__syncthreads();\n    if (threadIdx.x == 0) {\n        const unsigned blocks", "__syncthreads();", ""),
    ("*static_cast<volatile unsigned*>(barrier) < last", "last", "0u"),
    ("partial + (turn ^= 1) * (", "turn ^= 1", "turn"),
    ("own[blockIdx.x * NRHS + k] = value[k];\n    grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("b < gridDim.x; b += BLOCK", "b < gridDim.x", "b + 1 < gridDim.x"),
    ("RESIDUAL), row);\n        grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("RIGHT), row);\n        grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("* ENTRIES;\n        grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("ITERATE), row);\n        grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("turn_row(factor, z, p, row);\n        grid_sync(barrier);", "grid_sync(barrier);", ""),
    ("decide(decision, sum, state, marks);\n        __syncthreads();", "__syncthreads();", ""),
    ("marks[i] = flags[i];\n    __syncthreads();", "__syncthreads();", ""),
)
ON_CHIP = (
    ("x = i - row * level.nx;", "i - row * level.nx", "i - row * level.nx + 1"),
    ("return k == 0 ? 1 : k == 1 ? level.nx", "k == 0", "k == 2"),
    ("(at(u, i + stride) - here)", "i + stride", "i"),
    ("(at(u, i - stride) - here)", "i - stride", "i"),
    ("(i >= stride) sum += __ldg(off + i - stride) * (at(", "off + i - stride", "off + i"),
    ("__ldg(level.smoother + down) * at(r, down)", "level.smoother + down", "level.smoother + i"),
    ("* u[i + stride];", "i + stride", "i"),
    ("* u[i - stride];", "i - stride", "i + 1 - stride"),
    ("if (up < level.cells) sum -=", "up < level.cells", "up <= level.cells"),
    ("fx = 2 * x + place % 3 - 1, fy", "2 * x + place % 3 - 1", "2 * x + place % 3"),
    ("9 * plane + place) * coarse.cells + i", "9 * plane + place", "9 * plane + 8 - place"),
    ("if (fx >= level.nx || fy >= level.ny) continue;", "fx >= level.nx", "fx > level.nx"),
    ("if (px > cx || py > cy", "px > cx", "px < cx"),
    ("x + px >= coarse.nx ||", "x + px >= coarse.nx", "x + px > coarse.nx"),
    ("+ cx - 2 * px + 1;", "cx - 2 * px + 1", "cx + 1"),
    ("column < level.cells; column += 32", "column < level.cells", "column + 1 < level.cells"),
    ("* level.residual[i];\n            __syncthreads();", "__syncthreads();", ""),
    ("- full(level, level.iterate, i);\n        __syncthreads();", "__syncthreads();", ""),
    ("* value;\n        }\n        __syncthreads();", "__syncthreads();", ""),
    ("levels[last].iterate);\n    __syncthreads();", "__syncthreads();", ""),
    ("level.iterate[j] += value; });\n        __syncthreads();", "__syncthreads();", ""),
    ("* value);\n        }\n        __syncthreads();", "__syncthreads();", ""),
    ("+ defect));\n    }\n    system_sync();", "system_sync();", ""),
    ("= value;\n#endif\n    }\n    system_sync();", "system_sync();", ""),
    ("energy / before", "energy / before", "before / energy"),
    ("part[1] / part[0]", "part[1]", "part[0]"),
    ("r.own[here] - alpha * t.own[here]", "t.own[here]", "p.own[here]"),
    ("const int most = budget[system];", "budget[system]", "budget[0]"),
    ("goal = target[system] * target[system];", "target[system] * target[system]", "target[system]"),
    ("kind == MULTIGRID, shared_matrix ? 0 : system", "shared_matrix", "1"),
    ("position >= system_count", "position >= system_count", "position > system_count"),
    ("const int system = systems[position]", "systems[position]", "position"),
    ("turn ^= 1;", "turn ^= 1;", ""),
    ("by_x[face_x - 1] *", "face_x - 1", "face_x"),
    ("if (y + 1 < ny) value +=", "y + 1 < ny", "y < ny"),
    ("field[i] += weight *", "weight", "1.0"),
)
ON_CHIP_CLUSTER = (
    ("cluster_rank() - 1)[here + slab.stride];", "here + slab.stride", "here + slab.stride - 1"),
    ("cluster_rank() + 1)[here - slab.stride];", "here - slab.stride", "here - slab.stride + 1"),
    ("mine[1] = value[1];\n    cluster_sync();", "cluster_sync();", ""),
    ("theirs = cluster_map(mine, rank)", "rank", "cluster_rank()"),
    ("cluster_map(coarse.residual, rank)[i] = value", "rank", "cluster_rank()"),
    ("+ defect));\n    }\n    system_sync();", "system_sync();", ""),
    ("= value;\n#endif\n    }\n    system_sync();", "system_sync();", ""),
    ("*cluster_map(next, rank) = taken", "cluster_map(next, rank)", "next"),
    ("#endif\n    }\n    system_sync();\n    return *next;", "system_sync();", ""),
)
ON_CHIP_3D = (
    ("(dz * level.ny + dy) * level.nx + dx;", "dz * level.ny + dy", "dz * level.nx + dy"),
    ("if (fz < 0 || fz >= level.nz) continue;", "fz >= level.nz", "fz > level.nz"),
    ("2 * z + plane - 1;", "2 * z + plane - 1", "2 * z + plane"),
    ("if (fz >= level.nz) break;", "fz >= level.nz", "false"),
    ("cz - 2 * pz + 1;", "cz - 2 * pz + 1", "cz + 1"),
    ("by_y[face_y - nx] *", "face_y - nx", "face_y"),
)


def _of(family, rows, source=None):
    return tuple(Mutant(family, *row, source=source) for row in rows)


MUTANTS = (
    *_of("grid_2d", (*BLOCK_SUM, *DECISIONS, *STENCILS, *LARGE_GRID)),
    *_of("grid_3d", LARGE_GRID_3D),
    *_of("on_chip_2d", ON_CHIP),
    *_of("on_chip_2d_cluster", ON_CHIP_CLUSTER),
    *_of("on_chip_3d", ON_CHIP_3D),
    *_of("sell", SELL, "sell"),
    *_of("sell", SELL_SMALL, "sell_small"),
)
