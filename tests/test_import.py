"""Foreign weights come in whole and tested, or not at all; published ones with hash and licence."""

import errno
import http.server
import io
import json
import os
import pickle
import sys
import threading
import types
import zipfile

import jax
import numpy as np
import pytest
from structures import KEY

import jaxmlip
from jaxmlip.cli.main import main
from jaxmlip.errors import ModelError, ResourceError, UsageError
from jaxmlip.interfaces import weights
from jaxmlip.models import checkpoint
from jaxmlip.pretrained import imports, published, pull

FIELDS = {
    "elements": [1, 8],
    "cutoff": 3.0,
    "channels": 2,
    "hidden_l": 0,
    "l_max": 1,
    "correlation": 1,
    "n_layers": 1,
    "n_radial": 2,
    "radial_widths": [2],
}
CARD = {"architecture": "MACE", "fields": FIELDS, "reference_energies": {8: -432.0, 1: -13.0}}


@pytest.fixture(scope="module")
def params():
    """Random weights of a MACE that compiles in a moment."""
    system = imports.small_cluster([1, 8], 3.0)
    shapes, random = jax.eval_shape(checkpoint.build(CARD).init, KEY, system), 0
    random = np.random.default_rng(random)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype("float32"), shapes)


def as_bytes(card, params) -> bytes:
    """The foreign format of these tests: a word, a card and arrays in an npz."""
    flat = {"/".join(k.key for k in path): v for path, v in jax.tree.leaves_with_path(params)}
    file = io.BytesIO()
    np.savez(file, card=np.frombuffer(json.dumps(card).encode(), np.uint8), **flat)
    return b"toy format" + file.getvalue()


def read_toy(path, head=None):
    flat = dict(np.load(io.BytesIO(path.read_bytes()[10:]), allow_pickle=False))
    card = json.loads(flat.pop("card").tobytes())
    if head not in (None, "one"):
        raise ModelError(f"there is no head '{head}'", where="toy", fix="one")
    params = {}
    for name, value in flat.items():
        *place, last = name.split("/")
        inner = params
        for key in place:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return card, params


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """A format of which everything is known, a cache and a folder of its own."""
    module = types.ModuleType("toy")
    module.matches = lambda path: path.read_bytes()[:10] == b"toy format"
    module.read = read_toy
    monkeypatch.setitem(sys.modules, f"{weights.__name__}.toy", module)
    monkeypatch.setitem(weights.FORMATS, "toy", "Toy")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return module


@pytest.fixture
def foreign(params, tmp_path):
    path = tmp_path / "water.model"
    path.write_bytes(as_bytes(CARD, params))
    return path


def left_behind(tmp_path):
    """Every file but those of compilation."""
    files = [p for p in tmp_path.rglob("*") if p.is_file() and "jaxlib" not in str(p)]
    return sorted(p.name for p in files)


# --- what comes in -------------------------------------------------------------------------------


def test_an_imported_file_gives_the_energies_of_its_source(foreign, params, capsys):
    assert main(["models", "import", str(foreign), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    source = found["card"]["source"]
    assert source["file"] == "water.model" and source["size"] == foreign.stat().st_size
    assert source["sha256"] == weights.sha256(foreign) and source["format"] == "Toy"
    assert "not stated in the file" in found["card"]["licence"] and "water.safetensors" in err
    assert found["card"]["elements"] == [1, 8] and found["card"]["name"] == "water"
    potential, weights_ = jaxmlip.load("water.safetensors")
    system = imports.small_cluster([1, 8], 3.0)
    bare = jax.jit(checkpoint.build(CARD).apply)(params, system)["energy"]
    total = jax.jit(potential.apply)(weights_, system)["energy"]
    counts = np.bincount(system.numbers, minlength=9)
    expected = bare - 13.0 * counts[1] - 432.0 * counts[8]
    np.testing.assert_allclose(total, expected, rtol=1e-6)  # float32 weights
    assert main(["models", "import", str(foreign)]) == 2  # never replaced
    assert "already there" in capsys.readouterr().err


def test_foreign_weights_work_wherever_a_model_is_named(foreign, tmp_path):
    potential, _ = jaxmlip.load(foreign)
    assert potential.cutoff == 3.0
    kept = list((tmp_path / "cache").rglob("*.safetensors"))
    before = kept[0].stat().st_mtime_ns
    jaxmlip.load(str(foreign))
    assert len(kept) == 1 and kept[0].stat().st_mtime_ns == before  # imported once


def imported(tmp_path):
    return sorted((tmp_path / "cache").rglob("imported/*.safetensors"))


def test_what_is_kept_of_an_import_never_goes_stale(foreign, tmp_path, monkeypatch):
    """Neither with the file beside the weights, nor with the code, nor in the wrong place."""
    calls = []
    monkeypatch.setattr(imports, "verify", lambda *args, **kwargs: calls.append(1))
    monkeypatch.setitem(imports.BESIDE, "toy", ("settings.json",))
    settings = foreign.with_name("settings.json")
    for text in ("1", "1", "2"):
        settings.write_text(text)
        pull.on_the_fly(foreign)
    assert len(calls) == 2 and len(imported(tmp_path)) == 2
    first, second = (checkpoint.read(p)[0]["source"]["beside"] for p in imported(tmp_path))
    assert first != second
    monkeypatch.setattr(imports, "version", lambda: "another")
    kept = pull.on_the_fly(foreign)
    assert len(calls) == 3
    card, arrays = checkpoint.read(kept)
    params = {"params": {}}
    for name, value in arrays.items():
        inner, (_, *place, last) = params["params"], name.split("/")
        for key in place:
            inner = inner.setdefault(key, {})
        inner[last] = value
    checkpoint.save(kept, card | {"source": {"sha256": "0" * 64}}, params)
    pull.on_the_fly(foreign)
    assert len(calls) == 4 and checkpoint.read(kept)[0]["source"] == card["source"]


def test_what_others_could_have_put_there_is_not_trusted(foreign, tmp_path):
    folder = tmp_path / "cache" / "jaxmlip" / "models"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(ResourceError, match="others can write"):
        jaxmlip.load(foreign)


def test_the_name_and_the_head_can_be_chosen(foreign, capsys):
    arguments = ["models", "import", str(foreign), "--name", "mine", "--head"]
    assert main([*arguments, "two"]) == 6
    assert "no head 'two'" in capsys.readouterr().err and not os.listdir()
    assert main([*arguments, "one"]) == 0
    assert checkpoint.read("mine.safetensors")[0]["name"] == "mine"


def test_a_format_without_heads_says_so(foreign, toy):
    toy.read = lambda path: read_toy(path)
    with pytest.raises(UsageError, match="no heads"):
        weights.read(foreign, head="one")


# --- what is refused -----------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def zipped(**members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


BAD = {
    "empty": (b"", "empty"),
    "random bytes": (np.random.default_rng(0).bytes(5000), "no weights that are known"),
    "text": (b"energy = 3\n", "a text"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG"),
    "web page": (b"<!DOCTYPE html><html>not found</html>", "web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
    "zip of something": (zipped(hello="world"), "zip"),
    "truncated zip": (zipped(**{"model/data.pkl": bytes(3000)})[:1500], "zip"),
    "pickle bomb": (pickle.dumps(Bomb()), ""),
    "bomb in a torch file": (
        zipped(
            **{"m/data.pkl": pickle.dumps(Bomb(), 2), "m/version": "3", "m/byteorder": "little"}
        ),
        "",
    ),
    "header of nequix": (b'{"cutoff": 6.0}\n' + bytes(100), ""),
    "truncated toy": (b"toy format" + zipped(card="{}")[:20], "cannot be read"),
    "safetensors": (b"\x10" + bytes(7) + b'{"a": 1}', "needs no import"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_another_kind_is_refused_and_nothing_runs(name, tmp_path, capsys):
    data, message = BAD[name]
    path = tmp_path / "bad.model"
    path.write_bytes(data)
    assert main(["models", "import", str(path)]) == 6
    err = capsys.readouterr().err
    assert "error: JM5" in err and "bad.model" in err and message in err
    assert left_behind(tmp_path) == ["bad.model"] and not os.path.exists("exploded")
    with pytest.raises(ModelError):
        jaxmlip.load(path)


def test_a_folder_and_a_missing_file_are_refused(tmp_path, capsys):
    assert main(["models", "import", str(tmp_path)]) == 6
    assert main(["models", "import", "absent.model"]) == 6
    err = capsys.readouterr().err
    assert "folder" in err and "no such file" in err


def broken(params, change):
    return change(jax.tree.map(np.array, params)["params"])


CHANGES = {
    "shape": (lambda p: p["embedding"].update(weight=np.ones((3, 3))), "expected"),
    "missing": (lambda p: p.pop("embedding"), "is missing"),
    "surplus": (lambda p: p.update(bias=np.ones(1)), "has no place"),
    "NaN": (lambda p: p["embedding"]["weight"].fill(np.nan), "not finite"),
    "integers": (lambda p: p["embedding"].update(weight=np.ones((2, 2), int)), "holds int"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_do_not_fit_the_architecture_are_refused(name, params):
    change, message = CHANGES[name]
    changed = {"params": jax.tree.map(np.array, params)["params"]}
    change(changed["params"])
    with pytest.raises(ModelError, match=message):
        imports.verify(CARD, changed)


FIELDS_OF_NONE = [
    {"cutoff": float("inf")},
    {"cutoff": float("nan")},
    {"cutoff": -4.0},
    {"cutoff": 0.0},
    {"cutoff": "far"},
    {"elements": [1, 300]},
    {"elements": []},
]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("fields", FIELDS_OF_NONE, ids=str)
def test_fields_that_make_no_potential_are_refused_without_a_word_of_numpy(fields, params):
    card = {"architecture": "MACE", "fields": FIELDS | fields}
    with pytest.raises(ModelError, match="report the file") as raised:
        imports.verify(card, params)
    assert raised.value.code in ("JM511", "JM512")


def test_the_command_refuses_such_fields_as_a_bad_model(params, tmp_path, capsys):
    path = tmp_path / "bad.model"
    path.write_bytes(as_bytes(CARD | {"fields": FIELDS | {"cutoff": float("inf")}}, params))
    assert main(["models", "import", str(path)]) == 6
    err = capsys.readouterr().err
    assert "JM51" in err and "fix:" in err and "RuntimeWarning" not in err and not os.listdir()


def test_an_element_without_reference_energy_is_refused(params):
    with pytest.raises(ModelError, match=r"reference energy for atomic numbers \[8\]"):
        imports.verify(CARD | {"reference_energies": {1: -13.0}}, params)


def test_an_energy_whose_slope_is_not_the_force_is_refused(params, monkeypatch):
    """A term of the energy that no derivative sees."""

    def hiding(card):
        potential = real(card)

        def apply(params, system):
            out = potential.apply(params, system)
            hidden = 1e-4 * jax.lax.stop_gradient(system.positions).sum()
            return out | {"energy": out["energy"] + hidden}

        return potential._replace(apply=apply)

    real = checkpoint.potential_of
    monkeypatch.setattr(checkpoint, "potential_of", hiding)
    with pytest.raises(ModelError, match="force_error"):
        imports.verify(CARD, params)


@pytest.mark.parametrize("energy", [True, False])
def test_a_dipole_that_does_not_turn_with_the_molecule_is_refused(energy, monkeypatch):
    def fixed(card):
        potential = real(card)

        def apply(params, system):
            out = potential.apply(params, system)
            return out | {"dipole": out["dipole"] + np.array([0.0, 0.0, 1e-3])}

        return potential._replace(apply=apply)

    card = {"architecture": "MACE", "fields": FIELDS | {"dipole": True, "energy": energy}}
    shapes = jax.eval_shape(checkpoint.build(card).init, KEY, imports.small_cluster([1, 8], 3.0))
    params = jax.tree.map(lambda x: np.full(x.shape, 0.5), shapes)
    assert imports.verify(card, params)["dipole_rotation_error_eA"] < 1e-12
    real = checkpoint.potential_of
    monkeypatch.setattr(checkpoint, "potential_of", fixed)
    with pytest.raises(ModelError, match="dipole_rotation_error"):
        imports.verify(card, params)


def test_weights_that_predict_nothing_are_refused(params):
    fields = FIELDS | {"energy": False}
    readouts = ("energy_0",)
    kept = {k: v for k, v in params["params"].items() if k not in readouts}
    with pytest.raises(ModelError, match="neither an energy"):
        imports.verify({"architecture": "MACE", "fields": fields}, {"params": kept})


def test_a_disk_that_fails_leaves_nothing(foreign, tmp_path, monkeypatch, capsys):
    def full(path, data):
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert main(["models", "import", str(foreign)]) == 5
    assert "No space left" in capsys.readouterr().err
    assert left_behind(tmp_path) == ["water.model"]


# --- published potentials ------------------------------------------------------------------------


@pytest.fixture
def server(foreign, monkeypatch):
    """A publisher on this machine: {path: (bytes, promised length)}."""
    monkeypatch.setenv("no_proxy", "*")
    files, requests = {"/water.model": (foreign.read_bytes(), None)}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            data, length = files.get(self.path, (None, 0))
            if data is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(length or len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    served.files, served.requests = files, requests
    served.address = f"http://127.0.0.1:{served.server_port}"
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def entry(monkeypatch, foreign):
    """Publishes 'water-1' at an address, with or without its hash, under a licence."""

    def publish(address, *, known=True, licence=published.MIT):
        sha256 = weights.sha256(foreign) if known else None
        found = published.Published({f"{address}/water.model": sha256}, licence, "none", "no one")
        monkeypatch.setitem(published.PUBLISHED, "water-1", found)

    return publish


def test_a_published_potential_is_pulled_once_and_then_has_a_name(server, entry, capsys):
    entry(server.address)
    with pytest.raises(ModelError, match="jaxmlip models pull water-1"):
        jaxmlip.load("water-1")
    assert main(["models", "pull", "water-1", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    card = json.loads(out)["card"]
    assert "licence MIT" in err and "as published" in err
    assert card["licence"] == "MIT" and card["citation"] == "no one"
    assert card["origin"] == f"{server.address}/water.model"
    potential, _ = jaxmlip.load("water-1")
    assert potential.cutoff == 3.0
    assert main(["models", "list", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "water-1" in found["pulled"] and "water-1" in found["models"]
    assert "nequix-mp-1" in found["to_be_pulled"]
    assert main(["models", "pull", "water-1"]) == 0 and len(server.requests) == 1
    assert main(["models", "pull", "water-1", "--head", "one"]) == 2  # another one
    assert "--overwrite" in capsys.readouterr().err and len(server.requests) == 1
    entry(server.address, known=False)
    assert main(["models", "pull", "water-1", "--accept-unverified", "--overwrite"]) == 0
    assert len(server.requests) == 2


def test_what_an_older_importer_made_is_pulled_anew(server, entry, monkeypatch, capsys):
    entry(server.address)
    version = imports.version()
    monkeypatch.setattr(imports, "version", lambda: "older")
    path, card = pull.pull("water-1")
    assert pull.pull("water-1")[1] == card and len(server.requests) == 1
    monkeypatch.setattr(imports, "version", lambda: version)
    assert main(["singlepoint", "H2O", "--model", "water-1"]) == 0
    assert "jaxmlip models pull water-1" in capsys.readouterr().err
    assert pull.outdated(card) and not pull.outdated(pull.pull("water-1")[1])
    assert len(server.requests) == 2
    server.files.clear()  # what fails leaves the older one
    monkeypatch.setattr(imports, "version", lambda: "newer")
    with pytest.raises(ResourceError):
        pull.pull("water-1")
    assert path.is_file()


def test_a_file_that_is_at_hand_needs_no_network(entry, foreign):
    entry("http://127.0.0.1:9")  # where no one listens
    path, card = pull.pull("water-1", source=foreign)
    assert path.is_file() and card["source"]["sha256"] == weights.sha256(foreign)


def test_a_file_that_is_not_the_published_one_is_refused(server, entry, tmp_path, capsys):
    entry(server.address)
    data = server.files["/water.model"][0]
    server.files["/water.model"] = (data[:-1] + b"x", None)
    assert main(["models", "pull", "water-1"]) == 6
    assert "not the published file" in capsys.readouterr().err
    assert left_behind(tmp_path) == ["water.model"]


@pytest.mark.parametrize("known", [True, False])
def test_a_download_that_is_cut_leaves_nothing(server, entry, tmp_path, capsys, known):
    entry(server.address, known=known)
    data = server.files["/water.model"][0]
    server.files["/water.model"] = (data[: len(data) // 2], len(data))
    assert main(["models", "pull", "water-1", "--accept-unverified"]) == 5
    assert "JM405" in capsys.readouterr().err
    assert left_behind(tmp_path) == ["water.model"]


def test_an_address_that_does_not_answer_says_how_to_do_without(entry, server):
    entry(f"{server.address}/elsewhere")
    with pytest.raises(ResourceError, match="404") as raised:
        pull.pull("water-1")
    assert "--from FILE" in str(raised.value)


def test_an_interrupt_leaves_nothing(server, entry, tmp_path, monkeypatch):
    entry(server.address)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "_copied", interrupted)
    assert main(["models", "pull", "water-1"]) == 130
    assert left_behind(tmp_path) == ["water.model"]


def test_a_licence_that_restricts_is_asked_for_before_the_download(entry, server, capsys):
    entry(server.address, licence=published.ASL)
    server.files.clear()  # a request would fail
    assert main(["models", "pull", "water-1"]) == 2
    err = capsys.readouterr().err
    assert "no commercial use" in err and "--accept-licence" in err


def test_a_file_without_a_known_hash_is_taken_only_on_demand(server, entry, capsys):
    entry(server.address, known=False, licence=published.ASL)
    assert main(["models", "pull", "water-1", "--accept-licence"]) == 2
    assert "--accept-unverified" in capsys.readouterr().err
    assert main(["models", "pull", "water-1", "--accept-licence", "--accept-unverified"]) == 0
    err = capsys.readouterr().err
    assert "not verified against a known hash" in err
    card = checkpoint.read(pull.pulled()["water-1"])[0]
    assert card["licence"] == published.ASL
    assert card["origin_sha256"] == {"water.model": card["source"]["sha256"]}
    assert card["origin_verified"] == "not verified against a known hash"


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ModelError, match="Did you mean 'nequix-mp-1'"):
        pull.pull("nequix-mp1")


def test_every_published_potential_says_where_from_and_under_what_terms():
    for name, entry in published.PUBLISHED.items():
        assert name == name.lower() and entry.licence in published.TERMS and entry.citation
        for address, sha256 in entry.files.items():
            assert address.startswith("https://") and (sha256 is None or len(sha256) == 64)
    assert published.PUBLISHED["nequix-mp-1"].verified
    assert not published.PUBLISHED["mace-off23-small"].permissive


def test_a_published_file_is_recognised_by_its_hash(foreign, entry):
    entry("http://127.0.0.1:9")
    card = imports.import_weights(foreign, "out.safetensors")
    assert card["licence"] == "MIT" and card["name"] == "water-1"


def test_a_published_file_with_other_settings_beside_it_is_another():
    (first, second) = published.PUBLISHED["so3lr"].files.values()
    settings = {"hyperparameters.json": second}
    assert published.known_file(first, settings)["name"] == "so3lr"
    for other in (None, {}, {"hyperparameters.json": "0" * 64}):
        assert published.known_file(first, other) is None
    assert published.known_file(second) is None


def test_usual_endings_are_no_part_of_a_name():
    assert imports.stem("a/params.pkl") == "params" and imports.stem("mace.model") == "mace"
