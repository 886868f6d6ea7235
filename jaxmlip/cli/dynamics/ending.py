"""What is written and told after a run."""

from jaxmlip.cli.dynamics.ensembles import RECIPES
from jaxmlip.cli.output import table, task, write, write_extxyz, write_text


def save_last_good(work, atoms, o):
    from jaxmlip.cli.dynamics import job
    from jaxmlip.md.restart_points import last_good

    found = last_good(work)
    if found is None:
        return None
    path = work.restarts.with_name(work.restarts.name.replace("_restart", "_last_good.xyz"))
    write_extxyz(path, job.structures(found, atoms, o["replicas"], moving=o["beads"] == 1))
    return path


def finish(outcome, atoms, opened, o, output, work, source):
    from jaxmlip.cli import analysis, session
    from jaxmlip.cli.dynamics import job, ladders, summary
    from jaxmlip.md.files import read_table

    moving = o["beads"] == 1
    ends = job.structures(outcome.motion, atoms, o["replicas"], moving=moving)
    for tag, final in zip(job.tags(o), ends, strict=True):
        write_extxyz(output.paths[f"md{tag}_final.xyz"], final)
    tables = [read_table(one.table) for one in work.files if one.table is not None]
    if o["ladder"] is None:
        found = summary.summarize(tables, len(atoms))
    else:
        found = ladders.results(o, outcome.motion, tables)
    for text in ladders.warnings_of(found):
        output.warn(text)
    title = f"{atoms.get_chemical_formula()}, {o['ensemble']}"
    if o["plot"]:
        bath = ladders.targets(o) if RECIPES[o["ensemble"]].bath else None
        with task("plotting"):
            write(
                output.paths["md.png"],
                lambda p: summary.draw(p, tables, len(atoms), title=title, temperature=bath),
            )
    if o["rdf"]:
        text = summary.pair_distributions(
            outcome.sums, atoms.numbers, o["replicas"], opened.potential.cutoff
        )
        write_text(output.paths["md_rdf.csv"], text)
    shown = [*summary.rows(found), *ladders.rows(found)]
    output.console.print(table({"dynamics": "left", "": "right"}, shown, title=title))
    output.finish(
        {
            "command": "md",
            "structure": source,
            "formula": atoms.get_chemical_formula(),
            **opened.summary,
            **session.versions(),
            **analysis.geometry(job.structures(outcome.motion, atoms, 1)[0]),
            "ensemble": str(o["ensemble"]),
            "timestep_fs": o["timestep"],
            "target_temperature_K": o["temp"] if o["ladder"] is None else None,
            "target_pressure_GPa": o["pressure"] if RECIPES[o["ensemble"]].cell else None,
            "n_steps": int(outcome.motion.step),
            "replicas": 1 if o["beads"] > 1 or o["ladder"] else o["replicas"],
            "beads": o["beads"],
            "seed": o["seed"],
            **found,
            "seconds": outcome.seconds,
        }
    )
