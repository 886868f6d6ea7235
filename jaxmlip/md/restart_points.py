"""Restart points of a long run: what they hold, and how a run goes on from one.

A plan (`simulate.Plan`) says where they are, which files belong to them, and what must agree.
"""

from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np

from jaxmlip.bins import ListPlan
from jaxmlip.errors import JaxmlipError, UsageError
from jaxmlip.md.files.sets import cut_back, lengths
from jaxmlip.md.listing import Neighbors
from jaxmlip.md.run import Block, started
from jaxmlip.restart import newest_state, restore_state, save_state

LIST = "['motion'].list"  # in the names of what a restart point holds


def save_point(plan, block: Block, sums) -> None:
    """A restart point; the files that belong to it are on disk before."""
    position = {
        "settings": plan.settings,
        "neighbors": asdict(block.run.neighbors),
        "lengths": lengths(plan.files),
        "sums": {name: [list(x.shape), str(x.dtype)] for name, x in sums.items()},
    }
    state = {"motion": block.motion, "sums": sums}
    save_state(plan.restarts, state, position, step=int(block.motion.step))


def restored(run, motion, plan, saved, *, warn):
    """(run, motion, sums) of a restart point, (arrays, record) as `newest_state` finds it."""
    arrays, position = saved
    _check_same(position["settings"], plan)
    run = replace(run, neighbors=_neighbors(position["neighbors"]))
    template = {"motion": started(run, replace(motion, list=())), "sums": _zeros(position["sums"])}
    if not _same_list(template, arrays):
        warn(UserWarning("neighbours were saved by an older version: they are searched anew"))
        template["motion"] = replace(template["motion"], list=())
        arrays = _without_list(arrays)
    state = restore_state(template, arrays)
    cut_back(plan.files, position["lengths"], step=int(state["motion"].step))
    return run, started(run, state["motion"]), jax.tree.map(np.asarray, state["sums"])


def last_good(plan) -> Any:
    """Positions, velocities and cell of the newest restart point, as {name: array}; or None."""
    try:
        saved = newest_state(plan.restarts)
    except JaxmlipError:
        return None
    if saved is None:
        return None
    names = ("positions", "velocities", "cell")
    find = lambda name: next(v for k, v in saved[0].items() if k.endswith(f"['motion'].{name}"))
    return {name: find(name) for name in names}


def _same_list(template, arrays) -> bool:
    """Whether the neighbour list was saved as it is kept now; names are `00005['motion'].list`."""
    leaves = jax.tree_util.tree_leaves_with_path(template)
    wanted = {jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
    saved = {name[5:]: x.shape for name, x in arrays.items()}
    of_list = lambda names: {k: v for k, v in names.items() if k.startswith(LIST)}
    return of_list(wanted) == of_list(saved)


def _without_list(arrays) -> dict:
    kept = [name for name in sorted(arrays) if not name[5:].startswith(LIST)]
    return {f"{i:05d}{name[5:]}": arrays[name] for i, name in enumerate(kept)}


def _zeros(shapes):
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}


def _neighbors(saved) -> Neighbors:
    """The list sizes that were saved."""
    tuples = lambda x: tuple(map(tuples, x)) if isinstance(x, list) else x
    plan = ListPlan(**{k: tuples(v) for k, v in saved["plan"].items()})
    return Neighbors(**{k: tuples(v) for k, v in saved.items() if k != "plan"}, plan=plan)


def _check_same(saved, plan):
    asked = plan.settings
    names = sorted(k for k in saved.keys() | asked.keys() if saved.get(k) != asked.get(k))
    if names:
        told = "; ".join(f"{k} was {saved.get(k)}, is {asked.get(k)}" for k in names)
        raise UsageError(
            f"the restart belongs to other settings: {told}",
            where=str(plan.restarts),
            code="JM103",
            fix="undo the change, or begin anew in another folder",
        )
