"""Tables of results in Markdown, from the lines of JSON that the benchmarks write.

    python -m benchmarks.table results.jsonl > benchmarks/RESULTS.md

No number is typed by hand. Of two lines that measure the same the later one counts.
"""

import json
import sys
from pathlib import Path

HEAD = """# Results

Written by `python -m benchmarks.table`, not by hand. What is measured, and how: README.md here.
Times are CPU milliseconds of one call, the least of the repeats, unless said otherwise; in brackets
how many times slower than jaxmlip. `allocator`: timing.py. Random weights.
"""
TITLES = {
    "energy": "Energy and forces, and stress of crystals",
    "hessian": "Hessian",
    "training": "One training step, energies and forces of five copies",
}
SETTING = ("task", "model", "dtype", "allocator", "cores", "channels", "cutoff", "processor")
SETTING += ("l_max", "hidden_l", "correlation", "n_layers")


def main(paths):
    lines = [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]
    compared = [r for r in lines if "against" not in r and r["task"] in TITLES]
    print(HEAD)
    for table in (*comparisons(compared), *first_calls(lines), *scaling(lines), *profiles(lines)):
        print(table + "\n")
    print("## Commands\n")
    for command in dict.fromkeys(r["command"] for r in lines):
        print(f"    {command}")


def comparisons(lines):
    """A table for each setting: structures down, codes across."""
    for setting, some in grouped(lines, SETTING).items():
        peers = list(dict.fromkeys(r["peer"] for r in some))
        cells = {(r["system"], r["peer"]): r for r in some}
        systems = list(dict.fromkeys(r["system"] for r in some))
        rows = [row_of(s, [cells.get((s, p), {}) for p in peers]) for s in systems]
        more = [[s, *[details(cells.get((s, p), {})) for p in peers]] for s in systems]
        yield "\n\n".join(
            [
                heading(setting, some),
                markdown(["system", "atoms, edges", *peers], rows),
                "First call (CPU s), temporary memory and peak of the process (MB), parameters:",
                markdown(["system", *peers], more),
            ]
        )


def heading(setting, lines):
    values = dict(zip(SETTING, setting, strict=True))
    codes = {r["peer"]: r["version"] for r in lines if "version" in r}
    dates = sorted({r["date"] for r in lines})
    load = max((r["load"] for r in lines if "load" in r), default=0)
    title = f"## {TITLES[values['task']]}: {values['model']}, {values['dtype']}, "
    title += f"{values['n_layers']} layers, l_max {values['l_max']}, hidden l {values['hidden_l']}"
    cores = values["cores"] or "all"
    facts = f"{values['channels']} channels, cutoff {values['cutoff']} Å, allocator: "
    facts += (
        f"{values['allocator']}, cores: {cores}, {values['processor']}, {dates[-1]}; load up to "
    )
    facts += f"{load:.1f}; " + ", ".join(f"{k} {v}" for k, v in codes.items())
    jax = {r["jax"] for r in lines if "jax" in r}
    return f"{title}\n\n{facts}; jax {', '.join(sorted(jax))}"


def row_of(system, results):
    ours = results[0].get("cpu_ms") if results[0].get("peer") == "jaxmlip" else None
    sizes = next((r for r in results if "n_atoms" in r), {})
    return [system, f"{sizes.get('n_atoms', '')}, {sizes.get('n_edges', '')}"] + [
        time_in(r, ours) for r in results
    ]


def time_in(result, ours):
    if "cpu_ms" not in result:
        return "— " + result.get("skipped", "").removeprefix("failed: benchmarks.worker.Skip: ")
    text = number(result["cpu_ms"])
    if ours and result["peer"] != "jaxmlip":
        text += f" ({result['cpu_ms'] / ours:.1f})"
    return text


def details(result):
    keys = ("first_cpu_s", "temporary_mb", "peak_rss_mb", "n_parameters")
    return ", ".join(number(result.get(key)) for key in keys)


def first_calls(lines):
    """Compile times of whole models."""
    lines = [r for r in lines if r["task"] == "first_call"]
    rows = [
        [r["model"], r.get("n_atoms", ""), *(first_call(r, k) for k in ("forces", "hessian"))]
        for r in lines
    ]
    if rows:
        yield "## Trace and compile, CPU s: packaged and imported models, float64\n\n" + markdown(
            ["model", "atoms", "energy + forces", "Hessian"], rows
        )


def first_call(result, function):
    return number(result.get(f"{function}_compile_cpu_s"))


def scaling(lines):
    for setting, some in grouped(
        [r for r in lines if "against" in r],
        ("against", "peer", "dtype", "allocator", "cores", "processor"),
    ).items():
        rows = [scaling_row(r) for r in some]
        head = ["system", "edges", "channels", "ms", "µs/atom", "µs/edge", "first call s"]
        head += ["temporary MB", "peak MB", "KB/atom"]
        against, peer, dtype, allocator, cores, processor = setting
        title = f"## Scaling with {against}: {peer}, {dtype}, allocator: {allocator}, "
        yield title + f"cores: {cores or 'all'}, {processor}\n\n" + markdown(head, rows)


def scaling_row(r):
    n, e = r.get("n_atoms", 1), r.get("n_edges", 1)
    ms = r.get("cpu_ms")
    per = lambda x: number(1e3 * ms / x) if ms else "—"
    memory = r.get("temporary_mb")
    return [
        r["system"],
        number(r.get("n_edges")),
        str(r["channels"]),
        number(ms) if ms else f"— {r.get('skipped', '')}",
        per(n),
        per(e),
        number(r.get("first_cpu_s")),
        number(memory),
        number(r.get("peak_rss_mb")),
        number(memory * 1024 / n if memory else None),
    ]


def profiles(lines):
    lines = [r for r in lines if r["task"] == "profile"]
    for setting, some in grouped(lines, ("system", "model", "dtype", "channels", "cores")).items():
        machine = next(r for r in some if r["part"] == "machine")
        title = f"## Parts of our MACE: {', '.join(map(str, setting[:3]))}, "
        title += f"{setting[3]} channels, cores: {setting[4]}"
        rates = f"Matrix product {number(machine['gemm_gflops'])} GFLOP/s, copy "
        rates += f"{number(machine['copy_gbytes'])} GB/s: the limits. "
        rates += "FLOP and bytes counted from the sizes (work.py, profile.py), and FLOP by XLA "
        rates += "(which counts the body of a loop once)."
        head = ["part", "forward ms", "of limit", "with backward ms", "of limit"]
        head += ["GFLOP", "by XLA", "GB", "temporary MB", "compile s"]
        rows = [profile_row(r) for r in some if r["part"] != "machine"]
        yield f"{title}\n\n{rates}\n\n{markdown(head, rows)}"


def profile_row(r):
    keys = ("gflop", "xla_gflop", "gbyte", "temporary_mb", "compile_s")
    share = lambda key: f"{100 * r[key]:.0f} %" if key in r else ""
    both = [number(r["both_ms"]), share("both_of_limit")]
    forward = [number(r.get("forward_ms")), share("forward_of_limit")]
    return [r["part"], *forward, *both, *[number(r.get(f"both_{key}")) for key in keys]]


def grouped(lines, keys):
    """{values of the keys: lines}, the later of two lines of the same measurement alone."""
    same = ("peer", "system", "part", "cutoff", "channels", "against")
    out = {}
    for line in lines:
        group = out.setdefault(tuple(line.get(k) for k in keys), {})
        group[tuple(line.get(k) for k in same)] = line
    return {k: list(group.values()) for k, group in out.items()}


def number(x):
    """Three digits, no exponents."""
    if x is None:
        return "—"
    return f"{x:,.0f}".replace(",", " ") if abs(x) >= 100 else f"{x:.3g}"


def markdown(head, rows):
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


if __name__ == "__main__":
    main(sys.argv[1:])
