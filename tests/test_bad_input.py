"""Every bad file is refused with a code, the place and the value; never with an error of a parser.

The table is: name of the file, its content, class of the error, its code, what the message says.
"""

import gc
import gzip
import time
from functools import partial

import ase.build
import ase.io
import numpy as np
import pytest
from ase import Atoms

from jaxmlip.errors import DataError, JaxmlipError, ModelError
from jaxmlip.interfaces.check import check_elements, check_structure
from jaxmlip.interfaces.extxyz import iter_frames, read_frames
from jaxmlip.interfaces.read import read_structure, read_structures

WATER = "3\n\nO 0.0 0.0 0.1\nH 0.0 0.8 -0.5\nH 0.0 -0.8 -0.5\n"
FORCES = "Properties=species:S:1:pos:R:3:forces:R:3"
LONG = "192\n\n" + "".join(f"H {i} 0 0\n" for i in range(57))
CIF = """data_x
_cell_length_a 5
_cell_length_b 5
_cell_length_c 5
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
"""
SITES = (
    CIF
    + """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cl1 Cl 0.5 0.5 0.5 1.0
K1 K 0 0 0 0.5
Na1 Na 0 0 0 0.5
"""
)
POSCAR = "salt\n1.0\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
LAMMPS = "salt\n\n1 atoms\n1 atom types\n0 4 xlo xhi\n0 4 ylo yhi\n0 4 zlo zhi\n\nAtoms\n\n"

BAD = [
    # extended XYZ: frames that are not whole
    ("cut.xyz", WATER + LONG, "JM206", "cut.xyz:64 frame 1", "expected 192 atoms, found 57"),
    ("cut_row.xyz", WATER[:-12], "JM204", "cut_row.xyz:5 frame 0 atom 2", "interrupted write"),
    ("only_count.xyz", "3\n", "JM206", "only_count.xyz:1 frame 0", "expected 3 atoms, found 0"),
    (
        "inner.xyz",
        WATER.replace("H 0.0 0.8 -0.5\n", "") + WATER,
        "JM206",
        "inner.xyz:4 frame 0",
        "expected 3 atoms, found 2; line 5 starts the next frame",
    ),
    # counts
    ("negative.xyz", WATER.replace("3", "-3", 1), "JM205", "negative.xyz:1 frame 0", "'-3'"),
    ("word.xyz", WATER + "three\n", "JM205", "word.xyz:6 frame 1", "'three'"),
    ("huge.xyz", "99999999999999999999999\n\nH 0 0 0\n", "JM205", "huge.xyz:1", "9999"),
    ("zero.xyz", "0\n\n", "JM205", "zero.xyz:1 frame 0", "'0'"),
    ("few.xyz", WATER.replace("3", "2", 1), "JM205", "few.xyz:5 frame 1", "'H 0.0 -0.8 -0.5'"),
    # elements
    (
        "symbol.xyz",
        WATER * 3 + WATER.replace("O", "Qq"),
        "JM201",
        "symbol.xyz:18:1 frame 3 atom 0",
        "'Qq' is not a chemical symbol",
    ),
    ("label.xyz", WATER.replace("O", "Oh"), "JM201", "label.xyz:3:1 frame 0", "Did you mean"),
    ("number.xyz", WATER.replace("O", "8"), "JM201", "number.xyz:3:1", "Write the symbol"),
    ("dummy.xyz", WATER.replace("O", "X"), "JM201", "dummy.xyz:3:1 frame 0 atom 0", "'X'"),
    ("z.xyz", "1\nProperties=Z:I:1:pos:R:3\n119 0 0 0\n", "JM201", "z.xyz:3:1 frame 0", "119"),
    # numbers
    ("token.xyz", WATER.replace("0.8", "x", 1), "JM204", "token.xyz:4:7 frame 0 atom 1", "'x'"),
    ("fortran.xyz", WATER.replace("0.8", "8.0D-1", 1), "JM204", "fortran.xyz:4:7", "'8.0D-1'"),
    (
        "nan.xyz",
        WATER + WATER.replace("-0.8", "NaN"),
        "JM203",
        "nan.xyz:10:7 frame 1 atom 2",
        "'NaN' (pos) is not finite",
    ),
    ("inf.xyz", WATER.replace("0.1", "-inf"), "JM203", "inf.xyz:3:11 frame 0 atom 0", "'-inf'"),
    ("overflow.xyz", WATER.replace("0.1", "1e400"), "JM203", "overflow.xyz:3:11", "'1e400'"),
    (
        "forces.xyz",
        f"1\n{FORCES}\nO 0 0 0 1 nan 3\n",
        "JM203",
        "forces.xyz:3:11 frame 0 atom 0",
        "'nan' (forces)",
    ),
    (
        "flag.xyz",
        "1\nProperties=species:S:1:pos:R:3:on:L:1\nO 0 0 0 yes\n",
        "JM204",
        "flag.xyz:3:9",
        "'yes' (on) is not T or F",
    ),
    # columns and comment line
    (
        "short_row.xyz",
        WATER.replace("0.0 0.8 -0.5", "0.0 0.8"),
        "JM204",
        "short_row.xyz:4 frame 0 atom 1",
        "3 columns, expected 4",
    ),
    (
        "long_row.xyz",
        f"1\n{FORCES}\nO 0 0 0 1 2 3 4\n",
        "JM204",
        "long_row.xyz:3 frame 0 atom 0",
        "8 columns, expected 7",
    ),
    (
        "columns.xyz",
        "1\nProperties=species:S:1:pos:R\nO 0 0 0\n",
        "JM205",
        "columns.xyz:2 frame 0",
        "triples",
    ),
    (
        "case.xyz",
        '1\nlattice="5 0 0 0 5 0 0 0 5"\nO 0 0 0\n',
        "JM205",
        "case.xyz:2 frame 0",
        "must be written 'Lattice'",
    ),
    (
        "lattice.xyz",
        '1\nLattice="5 0 0 0 x 0 0 0 5"\nO 0 0 0\n',
        "JM207",
        "lattice.xyz:2 frame 0",
        "Lattice",
    ),
    # files
    ("empty.xyz", "", "JM202", "empty.xyz", "the file is empty"),
    ("blank.xyz", "\n\n  \n", "JM202", "blank.xyz", "no frames"),
    ("garbage.xyz", b"\x00\x80\xff\x13" * 100, "JM205", "garbage.xyz:1", "number of atoms"),
    ("cut.xyz.gz", gzip.compress(WATER.encode() * 500)[:60], "JM207", "cut.xyz.gz", "cut off"),
    ("notes.txt", "to do\n", "JM211", "notes.txt", "format of this file is not known"),
    # crystals
    ("empty.cif", CIF, "JM202", "empty.cif", "no structure"),
    ("mixed.cif", SITES, "JM209", "mixed.cif", "K 0.5, Na 0.5"),
    ("question.cif", SITES.replace("0.5 0.5 0.5", "0.5 ? 0.5"), "JM207", "question.cif", "as cif"),
    ("garbage.cif", "garbage", "JM207", "garbage.cif", "as cif"),
    (
        "POSCAR",
        POSCAR.replace("0.5 0.5 0.5\n", ""),
        "JM206",
        "POSCAR",
        "file has 1 coordinate line(s), 2 expected (line 10)",
    ),
    ("POSCAR_token", POSCAR.replace("0.5", "half", 1), "JM204", "POSCAR_token:10", "'half'"),
    ("POSCAR_nan", POSCAR.replace("0 0 4\n", "0 0 nan\n"), "JM203", "POSCAR_nan:5", "'nan'"),
    ("POSCAR_element", POSCAR.replace("Cl", "Qq"), "JM201", "POSCAR_element:6", "'Qq'"),
    ("POSCAR_counts", POSCAR.replace("1 1\n", "1\n"), "JM205", "POSCAR_counts:7", "2 elements"),
    ("POSCAR_vasp4", POSCAR.replace("Na Cl\n", ""), "JM207", "POSCAR_vasp4", "symbols"),
    ("POSCAR_short", "salt\n1.0\n", "JM206", "POSCAR_short", "at least 8 lines"),
    ("flat.vasp", POSCAR.replace("0 0 4\n", "0 4 0\n"), "JM210", "flat.vasp", "flat"),
    ("types.lmp", LAMMPS + "1 1 0 0 0\n", "JM201", "types.lmp", "Masses"),
    # formats of ASE
    ("old.traj", b"\x80\x02cposix\nsystem\nq\x00.", "JM207", "old.traj", "not an ASE trajectory"),
    ("cut.traj", b"- of UlmASE-Trajectory", "JM207", "cut.traj", "as traj"),
    ("a.json", '{"a": 1', "JM207", "a.json", "as json"),
    (
        "a.db",
        "not sqlite, but long enough to be looked at as a database file" * 20,
        "JM207",
        "a.db",
        "as db",
    ),
    ("a.gen", "2 C\nO H\n1 1 0 0 0\n", "JM206", "a.gen", "expected 2 atoms, found 1"),
    ("b.gen", "2 S\nO H\n1 1 0 0 0\n", "JM207", "b.gen", "as gen"),
    (
        "b.sdf",
        "m\n\n\n  2  0  0\n    0.0000    0.0000    0.0000 O   0  0\n",
        "JM206",
        "b.sdf",
        "expected 2 atoms, found 1",
    ),
    ("a.mol", "water\n", "JM207", "a.mol", "as mol"),
    ("a.pdb", "HELLO\n", "JM202", "a.pdb", "no atoms"),
    (
        "twins.xyz",
        WATER + WATER.replace("H 0.0 -0.8", "H 0.0  0.8"),
        "JM208",
        "twins.xyz frame 1",
        "atoms 1 (H) and 2 (H) are 0.000 Å apart",
    ),
    ("charge.xyz", WATER.replace("\n\n", "\ncharge=plus\n"), "JM213", "charge.xyz", "'plus'"),
    ("nocell.xyz", WATER.replace("\n\n", '\npbc="T T T"\n'), "JM210", "nocell.xyz", "is zero"),
]


@pytest.mark.parametrize("name, content, code, where, says", BAD, ids=[row[0] for row in BAD])
def test_a_bad_file_is_refused_by_name(tmp_path, name, content, code, where, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        read_structures(path)
    error = caught.value
    assert error.code == code and error.exit_code == 3
    assert error.where.removeprefix(f"{tmp_path}/").startswith(where)
    assert says in error.what or says in error.fix
    assert str(path) in str(error)


def test_places_that_are_no_structures(tmp_path):
    with pytest.raises(DataError, match="this is a folder"):
        read_structure(tmp_path)
    with pytest.raises(DataError, match="JM212.*no such file, and no molecule.*'CH3CH2OH'"):
        read_structure("ch3ch2oh")
    (tmp_path / "water.xyz").write_text(WATER)
    with pytest.raises(DataError, match="Did you mean 'water.xyz'"):
        read_structure(tmp_path / "watre.xyz")
    with pytest.raises(DataError, match="format 'pickle' is not read"):
        read_structure(tmp_path / "water.xyz", format="pickle")


def test_bad_frames_can_be_left_out(tmp_path):
    path = tmp_path / "a.xyz"
    cut = WATER.replace("H 0.0 0.8 -0.5\n", "")
    path.write_text(WATER + cut + WATER + WATER.replace("O", "Qq") + WATER + LONG)
    errors = []
    frames = read_frames(path, on_bad=errors.append)
    assert [len(atoms) for atoms in frames] == [3, 3, 3]
    assert [e.code for e in errors] == ["JM206", "JM201", "JM206"]
    assert [e.where.split("frame ")[1].split()[0] for e in errors] == ["1", "3", "5"]


@pytest.mark.parametrize(
    "content",
    [
        WATER.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + WATER.encode(),
        WATER.encode("utf-16"),
        WATER.replace(" ", "\t").encode(),
        WATER.encode()[:-1],
        WATER.encode() + b"\n\n",
        b"\n" + WATER.encode(),
        WATER.replace("\n\n", "\nÅngström\n").encode("latin-1"),
        WATER.replace("O 0.0 0.0 0.1", "o 0.0 0.0 0.1 -0.8 more").encode(),
        gzip.compress(WATER.encode()),
    ],
    ids=[
        "crlf",
        "bom",
        "utf-16",
        "tabs",
        "no last newline",
        "blank end",
        "blank begin",
        "latin-1",
        "more columns",
        "gzip",
    ],
)
def test_unusual_but_whole_files_are_read(tmp_path, content):
    path = tmp_path / "a.xyz"
    path.write_bytes(content)
    (atoms,) = read_frames(path)
    assert str(atoms.symbols) == "OH2"
    assert atoms.positions[1].tolist() == [0.0, 0.8, -0.5]


def test_frames_after_a_blank_line_are_not_lost(tmp_path):
    (tmp_path / "a.xyz").write_text(WATER + "\n" + WATER)
    assert len(read_frames(tmp_path / "a.xyz")) == 2  # ase.io.read finds one


def test_cell_vectors_after_the_atoms_are_read(tmp_path):
    text = WATER + "VEC1 5 0 0\nVEC2 0 6 0\nVEC3 0 0 7\n"
    (tmp_path / "a.xyz").write_text(text + WATER)
    first, second = read_frames(tmp_path / "a.xyz")
    assert first.cell.lengths().tolist() == [5, 6, 7] and first.pbc.all()
    assert not second.pbc.any()


def test_frames_are_what_ase_reads(tmp_path):
    generator = np.random.default_rng(0)
    frames = [ase.build.bulk("NaCl", "rocksalt", a=5.6) * (2, 2, 1), ase.build.molecule("H2O")]
    for atoms in frames:
        atoms.arrays["REF_forces"] = generator.normal(size=(len(atoms), 3))
        atoms.info.update(REF_energy=-1.5, REF_stress=np.eye(3).ravel(), note="a b", charge=1)
    ase.io.write(tmp_path / "a.xyz", frames)
    ours, theirs = read_frames(tmp_path / "a.xyz"), ase.io.read(tmp_path / "a.xyz", ":")
    assert ours == theirs
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.info.keys() == other.info.keys() and mine.info["charge"] == 1
        assert np.array_equal(mine.arrays["REF_forces"], other.arrays["REF_forces"])


def test_the_check_costs_less_than_the_parser(tmp_path):
    """Least CPU time of three, taken in turns."""
    atoms = ase.build.bulk("Cu", cubic=True) * (8, 8, 8)
    atoms.arrays["forces"] = atoms.positions.copy()
    path = tmp_path / "a.xyz"
    ase.io.write(path, [atoms] * 5)
    theirs = partial(ase.io.read, path, ":")
    times = [(seconds(partial(read_frames, path)), seconds(theirs)) for _ in range(3)]
    ours, parser = map(min, zip(*times, strict=True))
    assert ours < 3 * parser


def seconds(call):
    """CPU time without the garbage of other tests."""
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        call()
        return time.process_time() - start
    finally:
        gc.enable()


def test_damaged_text_never_raises_anything_else(tmp_path):
    """Bytes are changed, dropped and cut at random; only our errors may come out."""
    generator = np.random.default_rng(0)
    path = tmp_path / "a.xyz"
    text = f'2\nLattice="5 0 0 0 5 0 0 0 5" {FORCES} pbc="T T F"\nO 0 0 0 1 2 3\nH 0 1 0 1 2 3\n'
    for seed in (text * 2, WATER * 2, POSCAR, SITES):
        name = {POSCAR: "POSCAR", SITES: "a.cif"}.get(seed, "a.xyz")
        path = tmp_path / name
        for _ in range(60):
            data = bytearray(seed.encode())
            for at in generator.integers(0, len(data), 2):
                data[at] = generator.choice(list(b'0x-\n "=:\xff9'))
            path.write_bytes(data[: generator.integers(1, len(data) + 1)])
            try:
                read_structures(path)
            except JaxmlipError:
                pass


# --- structures that did not come from a file ----------------------------------------------------


def test_elements_outside_a_model():
    numbers = [26] * 12 + [8, 26]
    with pytest.raises(ModelError) as caught:
        check_elements(numbers, ["H", "C", "N", "O"], model="organic")
    assert caught.value.exit_code == 6
    assert caught.value.what == (
        "model 'organic' knows H, C, N, O; structure has Fe (atoms 0-11, 13)"
    )
    check_elements([8, 1, 0], [1, 8], model="water")  # 0 is padding


@pytest.mark.parametrize(
    "atoms, code, says",
    [
        (Atoms(), "JM202", "no atoms"),
        (Atoms("H2", [[0, 0, 0], [0, np.nan, 1]]), "JM203", "atom 1 (H)"),
        (Atoms("H2", [[0, 0, 0], [0, 1e9, 1]]), "JM203", "1.0e+09 Å from the origin"),
        (Atoms("HX", [[0, 0, 0], [0, 0, 1]]), "JM201", "atom 1 has atomic number 0"),
        (
            Atoms("HO", [[0, 0, 0], [0, 0, 1e-9]]),
            "JM208",
            "atoms 0 (H) and 1 (O) are 0.000 Å apart",
        ),
        (
            Atoms("HO", [[0, 0, 0], [0, 0, 4.9]], cell=[5] * 3, pbc=True),
            "JM208",
            "periodic boundary",
        ),
        (Atoms("H", pbc=True), "JM210", "axis 0, but that cell vector is zero"),
        (
            Atoms("H", cell=[[5, 0, 0], [0, 5, 0], [5, 5, 1e-4]], pbc=True),
            "JM210",
            "the cell is flat",
        ),
        (Atoms("H", cell=[5, 5, np.inf], pbc=True), "JM210", "not finite"),
        (Atoms("H", info={"spin": 0}), "JM213", "at least 1"),
        (Atoms("H", info={"field": [0, 0]}), "JM213", "expected 3"),
        (Atoms("H", info={"charge": np.nan}), "JM213", "expected 1"),
    ],
    ids=lambda x: x if isinstance(x, str) and x.startswith("JM") else "",
)
def test_structures_that_cannot_be_meant(atoms, code, says):
    with pytest.raises(DataError) as caught:
        check_structure(atoms, where="here")
    assert caught.value.code == code and caught.value.where == "here"
    assert says in caught.value.what


def test_unusual_structures_are_let_pass():
    left_handed = Atoms("H", cell=[[0, 3, 0], [3, 0, 0], [0, 0, 3]], pbc=True)
    wire = Atoms("H", cell=[[0, 0, 0], [0, 0, 0], [0, 0, 2]], pbc=[False, False, True])
    skewed = Atoms("H", cell=[[3, 0, 0], [9, 3, 0], [0, 0, 3]], pbc=True)
    for atoms in (Atoms("H"), left_handed, wire, skewed):
        check_structure(atoms)


def test_a_long_file_is_read_frame_by_frame(tmp_path):
    (tmp_path / "a.xyz").write_text(WATER * 50 + "garbage\n")
    frames = iter_frames(tmp_path / "a.xyz")
    assert len(next(frames)) == 3  # the error at the end has not been met
    with pytest.raises(DataError, match="a.xyz:251"):
        list(frames)
