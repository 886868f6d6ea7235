"""What the loop tells of a run as it goes: events as dicts, and one line an epoch for a person."""

import sys

import jax
import numpy as np


def introduction(run, state, at) -> dict:
    """The event `start`: sizes of data, model and batches."""
    size = sum(x.size for x in jax.tree.leaves(state.params))
    shapes = [[b.n_atoms, b.n_graphs, b.n_neighbors] for b in run.buckets]
    return {
        "event": "start",
        "n_train": len(run.train),
        "n_valid": len(run.valid),
        "n_parameters": size,
        "steps": run.steps,
        "step": at.step,
        "epoch": at.epoch,
        "buckets": shapes,
        "padding": run.padding,
        "fields": run.card["fields"],
        "reference_energies": run.card["reference_energies"],
    }


def step_event(run, at, metrics, rate) -> dict:
    """The event `step`."""
    return {
        "event": "step",
        "step": at.step,
        "steps": run.steps,
        "epoch": at.epoch + 1,
        "loss": float(metrics["loss"]),
        "learning_rate": rate,
        "seconds": at.seconds,
    }


def to_stderr(event: dict) -> None:
    """One line an epoch."""
    kind = event["event"]
    if kind == "start":
        line = (
            f"{event['n_train']} training and {event['n_valid']} validation structures, "
            f"{event['n_parameters']} parameters, {event['steps']} steps, "
            f"{100 * event['padding']:.0f} % padding; compiling {len(event['buckets'])} "
            f"shape(s), the first step can take a minute"
        )
    elif kind == "epoch":
        errors = "  ".join(
            f"{k.replace('_mae_', ' ')} {v:.4g}" for k, v in event["valid"].items() if "_mae_" in k
        )
        line = (
            f"epoch {event['epoch']}  loss {event['train_loss'] or np.nan:.4g}  "
            f"valid {event['valid_loss']:.4g}{'*' if event['best'] else ' '}  {errors}  "
            f"lr {event['learning_rate']:.2e}  {event['seconds']:.0f} s"
        )
    elif kind in ("warning", "uncertainty", "done"):
        line = event.get("message") or f"done: {event['model']}"
    else:
        return
    print(line, file=sys.stderr, flush=True)
