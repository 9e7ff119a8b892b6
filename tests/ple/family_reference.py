"""The other kinds in plain NumPy float64, one expert at a time, straight from their equations.

Each function takes the parameters of an ``Extraction`` by name, the feature vectors and the levels,
and gives the task streams and the gates of every level.
"""

import numpy as np
from ple_reference import Array, Parameters, expert, gate, gated_sum, mlp, softmax

from ple import LevelSpec

Result = tuple[list[Array], list[list[Array]]]
Levels = list[LevelSpec]


def experts(p: Parameters, at: str, owner: str, count: int, x: Array, act: str) -> list[Array]:
    return [expert(p, f"{at}experts.{owner}.", e, x, act) for e in range(count)]


def single_task(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    return [experts(p, "levels.0.", f"task_{k}", 1, x, act)[0] for k, x in enumerate(xs)], []


def shared_bottom(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    (bottom,) = experts(p, "levels.0.", "shared", 1, xs[0], act)
    return [bottom] * len(levels[0].task_experts), []


def moe(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    stream, gates = xs[0], []
    for number, level in enumerate(levels):
        at = f"levels.{number}."
        pool = experts(p, at, "shared", level.shared_experts, stream, act)
        gates.append([gate(p, f"{at}gates.shared.", stream, len(pool), act)])
        stream = gated_sum(gates[-1][0], pool)
    return [stream] * len(levels[0].task_experts), gates


def mmoe(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    x, gates = xs[0], []
    streams = [x]
    for number, level in enumerate(levels):
        at = f"levels.{number}."
        if number == 0:
            pool = experts(p, at, "shared", level.shared_experts, x, act)
        else:
            pool = [experts(p, at, f"expert_{e}", 1, s, act)[0] for e, s in enumerate(streams)]
        last = number == len(levels) - 1
        readers = len(level.task_experts) if last else levels[number + 1].shared_experts
        kind = "task" if last else "expert"
        gates.append([gate(p, f"{at}gates.{kind}_{r}.", x, len(pool), act) for r in range(readers)])
        streams = [gated_sum(weights, pool) for weights in gates[-1]]
    return streams, gates


def adatt(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    tasks = len(levels[0].task_experts)
    streams, gates = xs * (tasks + 1), []
    for number, level in enumerate(levels):
        at = f"levels.{number}."
        own = [
            experts(p, at, f"task_{k}", level.task_experts[k], streams[k], act)
            for k in range(tasks)
        ]
        own.append(experts(p, at, "shared", level.shared_experts, streams[tasks], act))
        pool = [output for unit in own for output in unit]
        units = tasks + (f"{at}gates.shared.logits.out.weight" in p)
        level_gates, new = [], []
        for u in range(units):
            key = f"task_{u}" if u < tasks else "shared"
            level_gates.append(gate(p, f"{at}gates.{key}.", streams[u], len(pool), act))
            native = p.get(f"{at}native_weights.{key}", np.ones(len(own[u])))
            residual = sum(w * output for w, output in zip(native, own[u], strict=True))
            new.append(gated_sum(level_gates[u], pool) + residual)
        streams = new if units > tasks else [*new, np.full_like(new[0], np.nan)]
        gates.append(level_gates)
    return streams[:tasks], gates


def stem(p: Parameters, xs: list[Array], levels: Levels, act: str) -> Result:
    tasks = len(levels[0].task_experts)
    streams, gates = xs, []
    for number, level in enumerate(levels):
        at = f"levels.{number}."
        pool = []
        for k in range(tasks):
            pool += experts(p, at, f"task_{k}", level.task_experts[k], streams[k], act)
        pool += experts(p, at, "shared", level.shared_experts, streams[tasks], act)
        level_gates = [
            gate(p, f"{at}gates.task_{k}.", streams[k] + streams[tasks], len(pool), act)
            for k in range(tasks)
        ]
        if number < len(levels) - 1:
            level_gates.append(gate(p, f"{at}gates.shared.", streams[tasks], len(pool), act))
        streams = [gated_sum(weights, pool) for weights in level_gates]
        gates.append(level_gates)
    return streams[:tasks], gates


def feature_gate(p: Parameters, at: str, v: Array) -> Array:
    maps = sum(f"{at}factors.downs." in name for name in p)
    factors = [
        2.0 / (1.0 + np.exp(-(v @ p[f"{at}factors.downs.{i}"].T @ p[f"{at}factors.ups.{i}"].T)))
        for i in range(maps)
    ]
    if maps == 1:
        return v * factors[0]
    weights = softmax(v @ p[f"{at}gate.out.weight"].T)
    return v * sum(weights[:, [i]] * factor for i, factor in enumerate(factors))


def self_gated(p: Parameters, prefix: str, selector: Array, own: list[Array], act: str) -> Array:
    logits = mlp(p, f"{prefix}logits.", selector, act)
    weights = 1.0 / (1.0 + np.exp(-logits)) if len(own) == 1 else softmax(logits)
    return gated_sum(weights, own)


def home(p: Parameters, xs: list[Array], levels: Levels, act: str, groups=((0, 2), (1,))) -> Result:
    v, (meta, last), count = xs[0], levels, len(groups)
    at = "levels.0."
    units = [(f"group_{g}", meta.group_experts[g]) for g in range(count)]
    units.append(("shared", meta.shared_experts))
    own = [
        experts(p, at, key, m, feature_gate(p, f"{at}feature_gates.{key}.", v), act)
        for key, m in units
    ]
    pools = [own[g] + own[count] for g in range(count)]
    pools.append([output for unit in own for output in unit])
    meta_gates, z = [], []
    for u, (key, _) in enumerate(units):
        meta_gates.append(gate(p, f"{at}gates.{key}.", v, len(pools[u]), act))
        z.append(
            gated_sum(meta_gates[u], pools[u])
            + self_gated(p, f"{at}self_gates.{key}.", v, own[u], act)
        )
    at = "levels.1."
    scaled = {
        key: feature_gate(p, f"{at}feature_gates.{key}.", stream)
        for key, stream in [
            *((f"group_{g}", z[g]) for g in range(count)),
            *((f"task_{k}", z[g]) for g, members in enumerate(groups) for k in members),
            ("shared", z[count]),
        ]
    }
    of_group = [
        experts(p, at, f"group_{g}", last.group_experts[g], scaled[f"group_{g}"], act)
        for g in range(count)
    ]
    shared = experts(p, at, "shared", last.shared_experts, scaled["shared"], act)
    streams, gates = [], []
    for k, m in enumerate(last.task_experts):
        g = next(g for g, members in enumerate(groups) if k in members)
        of_task = experts(p, at, f"task_{k}", m, scaled[f"task_{k}"], act)
        pool = of_task + of_group[g] + shared
        selector = np.concatenate([z[g], z[count]], axis=1)
        gates.append(gate(p, f"{at}gates.task_{k}.", selector, len(pool), act))
        streams.append(
            gated_sum(gates[k], pool)
            + self_gated(p, f"{at}self_gates.task_{k}.", z[g], of_task, act)
        )
    return streams, [meta_gates, gates]


KINDS = {
    "single_task": single_task,
    "shared_bottom": shared_bottom,
    "moe": moe,
    "mmoe": mmoe,
    "adatt": adatt,
    "home": home,
    "stem": stem,
}
