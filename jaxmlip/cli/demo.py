"""`jaxmlip demo`: the shortest way to see that everything works."""

from pathlib import Path

from jaxmlip.cli import ir, options
from jaxmlip.cli.options import Dtype
from jaxmlip.cli.output import note, plan, write_text

ETHANOL = """9
ethanol as drawn: bond lengths and angles are only roughly right
C   -1.25   0.20   0.05
C    0.05  -0.60  -0.05
O    1.20   0.25   0.00
H   -1.30   0.90  -0.80
H   -2.15  -0.45   0.00
H   -1.30   0.75   1.00
H    0.10  -1.30   0.85
H    0.05  -1.20  -0.95
H    2.00  -0.30  -0.10
"""


def demo(
    model: options.Model = "organic",
    json: options.Json = None,
    out: options.Out = Path("jaxmlip-demo"),
    overwrite: options.Overwrite = False,
    dtype: options.Precision = Dtype.float64,
):
    """The infrared spectrum of a roughly drawn ethanol (cm⁻¹, km/mol), in a folder of its own."""
    from jaxmlip.cli import session

    file = str(out / "ethanol.xyz")
    output = plan(
        file,
        ["ir.png", "relaxed.xyz"],
        out=out,
        json_file=json,
        overwrite=overwrite,
        default_json="ir.json",
    )
    session.start(x64=True)
    opened = session.open_model(model, dtype, needs_dipole=True)
    write_text(Path(file), ETHANOL)
    ir.run(file, opened, output)
    note(
        f"look at {output.paths['ir.png']}; next: jaxmlip ir YOUR.xyz, jaxmlip modes YOUR.xyz, "
        "jaxmlip models show"
    )
