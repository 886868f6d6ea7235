"""Weights of a mace-torch model in the layout of our `MACE`: layer by layer, no approximation.

Linear maps differ in layout and normalisation only. Many-body polynomials are the exception:
mace-torch has a weight for every coupling (they are linearly dependent once the factors are
interchanged), here there is one for every independent polynomial, so weights are projected on the
new basis; the projection loses nothing, and this is checked.
"""

from math import sqrt

import numpy as np

from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.mace_torch_readouts import readout_params
from jaxmlip.interfaces.weights.module_tree import (
    check_activation,
    check_gate,
    irreps,
    linear_map,
    members,
    refuse,
    species_map,
    unit,
)
from jaxmlip.nn.linear import name_of
from jaxmlip.nn.symmetric_contraction import equivariant_polynomials, monomials, tensor_weights
from jaxmlip.nn.tensor_product import natural, paths


def params_of(model, fields, head: int) -> dict:
    """Params of `MACE(**fields)` from the tree of a model; `head` is the index of its head."""
    params = {"embedding": {"weight": _embedding(model.part("node_embedding", "linear"))}}
    if fields.get("state"):
        params |= _state(model, fields, head)
    blocks, products = model.part("interactions").parts(), model.part("products").parts()
    for i, (block, product) in enumerate(zip(blocks, products, strict=True)):
        params |= _interaction(model, block, fields, i)
        params |= _product(product, fields, i)
    params |= readout_params(model, fields, head)
    dtype = model.part("node_embedding", "linear").array("weight").dtype
    return _cast(params, dtype)


def _cast(tree, dtype):
    if isinstance(tree, dict):
        return {k: _cast(v, dtype) for k, v in tree.items()}
    return np.array(tree, dtype, order="C")


def _embedding(part):
    matrix = linear_map(part).blocks[0, 0]
    return matrix * sqrt(len(matrix))


def _by_name(blocks, keys):
    return {name_of(key): unit(blocks[key]) for key in keys if key in blocks}


def _state(model, fields, head):
    part, out = model.part("joint_embedding"), {}
    inverse = {"charge": "total_charge", "spin": "total_spin"}
    for name, _, classes, _, _ in fields["state"]:
        embedder = part.part("embedders", inverse[name])
        if classes:
            out[name] = embedder.array("weight")
            continue
        for ours, theirs in (("hidden", "0"), ("out", "2")):
            out[f"{name}_{ours}"] = _dense(embedder.part(theirs))
    out["project"] = _dense(part.part("project", "0"))
    params = {"state": out}
    if fields["state_readout"]:
        matrix = linear_map(model.part("embedding_readout", "linear")).blocks[0, 0]
        params["state_energy"] = {"out": unit(matrix[:, [head if matrix.shape[1] > 1 else 0]])}
    return params


def _dense(part):
    """A torch Linear."""
    out = {"kernel": part.array("weight").T}
    return out | ({"bias": part.array("bias")} if "bias" in part.names() else {})


# --- interactions ---------------------------------------------------------------------------------


def _interaction(model, block, fields, i):
    up, c = linear_map(block.part("linear_up")), fields["channels"]
    before = [key for _, key in irreps(block.get("node_feats_irreps"))]
    sent = {key: m for key, m in up.by_key().items() if key in before}
    couplings, columns, rows = _paths(block.part("conv_tp"), sent, fields["l_max"])
    ratio = _basis_ratio(model, fields)
    mixing = linear_map(block.part("linear_1" if fields["gated"] else "linear"))
    into = lambda key: mixing.into(
        key, [r for r, c in zip(rows, couplings, strict=True) if c[2] == key]
    )
    params = {
        f"up_{i}": _by_name(sent, before),
        f"message_{i}": {name_of(k): unit(into(k)) for k in natural(fields["l_max"])},
        f"skip_{i}": _skip(block, fields, i),
    }
    if fields["gated"]:
        tables = _species_tables(block)
        radial = _species_mlp(block.part("conv_tp_weights"), fields, tables, ratio)
        last = max(k for k in radial if k.startswith("layer_"))
        radial[last] = radial[last][:, columns]
        radial[last.replace("layer", "bias")] = radial[last.replace("layer", "bias")][columns]
        density = _species_mlp(block.part("density_fn"), fields, tables, ratio)
        own = linear_map(block.part("linear_res")).by_key()
        after = linear_map(block.part("linear_2")).by_key()
        kept = {k: sent[k] @ own[k] if k in sent else np.zeros((c, c)) for k in before}
        gate = {"own": _by_name({k: m for k, m in kept.items() if k[0] <= fields["l_max"]}, before)}
        gate |= {"linear": _by_name(after, natural(fields["l_max"]))}
        gate |= {k: block.array(k).reshape(1) for k in ("alpha", "beta")}
        check_gate(block.part("equivariant_nonlin"), "silu", "sigmoid")
        return params | {f"radial_{i}": radial, f"density_{i}": density, f"gate_{i}": gate}
    layers = _perceptron(block.part("conv_tp_weights"), ratio)
    layers[f"layer_{len(layers) - 1}"] = layers[f"layer_{len(layers) - 1}"][:, columns]
    params[f"radial_{i}"] = layers
    if fields["density"]:
        params[f"density_{i}"] = _perceptron(block.part("density_fn"), ratio)
    if params[f"up_{i}"]["0e"].shape[0] != c:
        refuse(block, "features of another number of channels")
    return params


def _paths(product, sent, l_max):
    """Our couplings, the columns of radial weights in their order, and which output is whose."""
    senders, edges, targets = (
        [key for _, key in irreps(product.get(f"irreps_{k}"))] for k in ("in1", "in2", "out")
    )
    if product.kind != "TensorProduct":
        refuse(product, f"convolutions of class {product.record.kind} are not known")
    found, start = {}, 0
    for instruction in product.get("instructions"):
        i1, i2, o, mode, _, factor, shape = members(instruction)
        key = senders[i1], edges[i2][0], targets[o]
        if mode != "uvu" or abs(float(factor) - sqrt(2 * key[2][0] + 1)) > 1e-6:
            refuse(product, f"a convolution of mode {mode} or of another normalisation")
        found[key] = np.arange(start, start + shape[0]), o
        start += shape[0]
    couplings = paths(sent, l_max, natural(l_max))
    if not all(c in found for c in couplings):
        refuse(product, "a convolution that leaves out couplings")
    columns = np.concatenate([found[c][0] for c in couplings])
    return couplings, columns, [found[c][1] for c in couplings]


def _basis_ratio(model, fields):
    """Factor between the radial basis of the file and ours: constants in single precision."""
    basis = model.part("radial_embedding", "bessel_fn")
    if fields["radial_basis"] != "bessel":
        return 1.0
    return float(basis.array("prefactor")) / sqrt(2 / fields["cutoff"])


def _perceptron(part, ratio):
    """An e3nn FullyConnectedNet with silu."""
    n = len(part.get("hs")) - 1
    out = {f"layer_{j}": part.part(f"layer{j}").array("weight").astype(float) for j in range(n)}
    for j in range(n - 1):
        check_activation(part.part(f"layer{j}", "act"), "silu")
    return out | {"layer_0": out["layer_0"] * ratio}


def _species_tables(block):
    names = ("source_embedding", "target_embedding")
    return [linear_map(block.part(name)).blocks[0, 0] for name in names]


def _species_mlp(part, fields, tables, ratio):
    """A mace RadialMLP of (basis, embedding of the sender's species, of the receiver's)."""
    net, n, c = part.part("net"), fields["n_radial"], fields["channels"]
    linears = [p for p in net.parts() if p.kind == "Linear"]
    norms = [p for p in net.parts() if p.kind == "LayerNorm"]
    if len(norms) != len(linears) - 1 or any(float(p.get("eps")) != 1e-5 for p in norms):
        refuse(part, "a radial network of unknown build")
    first = linears[0].array("weight").T.astype(float)
    out = {"sender": tables[0] @ first[n : n + c], "receiver": tables[1] @ first[n + c :]}
    for j, p in enumerate(linears):
        out |= {f"layer_{j}": p.array("weight").T, f"bias_{j}": p.array("bias")}
    for j, p in enumerate(norms):
        out |= {f"scale_{j}": p.array("weight"), f"offset_{j}": p.array("bias")}
    return out | {"layer_0": first[:n] * ratio}


def _skip(block, fields, i):
    hidden = natural(_hidden(fields, i))
    if fields["gated"]:
        return _by_name(linear_map(block.part("skip_tp")).by_key(), hidden)
    blocks = species_map(block.part("skip_tp"))[0]
    residual = fields["residual_rest"] if i else fields["residual_first"]
    kept = [key for key in (hidden if residual else natural(fields["l_max"])) if key in blocks]
    rows = lambda m: m.shape[0] * m.shape[1]
    return {name_of(key): blocks[key] * sqrt(rows(blocks[key])) for key in kept} | _absent(
        block, fields, hidden, kept, residual
    )


def _absent(block, fields, hidden, kept, residual):
    """Zeros for degrees that we pass on and the file does not, though the layer before has them."""
    before = [key for _, key in irreps(block.get("node_feats_irreps"))]
    z, c = len(fields["elements"]), fields["channels"]
    missing = [key for key in hidden if key in before and key not in kept] if residual else []
    return {name_of(key): np.zeros((z, c, c)) for key in missing}


def _hidden(fields, i):
    """As `MACE._hidden`."""
    if i < fields["n_layers"] - 1:
        return fields["hidden_l"]
    return 2 if fields.get("polarizability") else int(fields.get("dipole", False))


# --- many-body polynomials ------------------------------------------------------------------------


def _product(part, fields, i):
    contraction, l_max, c = part.part("symmetric_contractions"), fields["l_max"], fields["channels"]
    linear = linear_map(part.part("linear"))
    found = dict(
        zip([k for _, k in linear.inputs], contraction.part("contractions").parts(), strict=True)
    )
    n_species = len(fields["elements"]) if fields["species_product"] else 1
    wanted, blocks, product = natural(_hidden(fields, i)), linear.by_key(), {}
    for key in wanted:
        for degree in range(1, fields["correlation"] + 1):
            n = len(equivariant_polynomials(l_max, degree).get(key, ()))
            if n:
                weight = _polynomial_weights(found.get(key), l_max, degree, key)
                zeros = np.zeros((n_species, n, c))
                product[f"l{key[0]}_degree{degree}"] = zeros if weight is None else weight
    for key in set(found) - set(wanted):  # degrees that nothing reads
        for name in ("weights_max", *found[key].part("weights").names()):
            (found[key] if name == "weights_max" else found[key].part("weights")).array(name)
    zero = {key: np.zeros((c, c)) for key in wanted}
    return {f"product_{i}": product, f"linear_{i}": _by_name(zero | blocks, wanted)}


def _polynomial_weights(part, l_max, degree, key):
    """[n_species, n_polynomials, channels] of one degree, None where the file has none."""
    if part is None:
        return None
    rest = part.part("weights").names()
    rank = len(rest) + 1 - degree
    if rank < 0:
        return None
    weight = part.array("weights_max") if rank == 0 else part.part("weights").array(str(rank - 1))
    couplings = part.array(f"U_matrix_{degree}").astype(float)
    matrix = projection(couplings, l_max, degree, key)
    return np.einsum("rk,zkc->zrc", matrix, weight.astype(float))


def projection(couplings, l_max: int, degree: int, key) -> np.ndarray:
    """[n_polynomials, n_couplings] from mace's U [(2l+1,) components .., n_couplings] to ours.

    Entries whose indices are permutations of one another belong to one monomial and add up.
    Raises `ModelError` if the couplings are not in the span of the basis.
    """
    places = monomials(l_max, degree)
    basis = equivariant_polynomials(l_max, degree).get(key, np.zeros((0, 1, len(places))))
    n, m = (l_max + 1) ** 2, 2 * key[0] + 1
    tensors = couplings.reshape(m, n**degree, -1)
    place = np.array([places[tuple(sorted(i))] for i in np.ndindex(*(n,) * degree)])
    polynomials = np.zeros((m, len(places), tensors.shape[-1]))
    np.add.at(polynomials, (slice(None), place), tensors)
    weight = tensor_weights(l_max, degree)
    out = np.einsum("rmq,q,mqk->rk", basis, weight, polynomials) / m
    lost = np.abs(np.einsum("rk,rmq->mqk", out, basis) - polynomials).max(initial=0.0)
    if lost > 1e-5 * max(np.abs(polynomials).max(initial=0.0), 1.0):
        raise ModelError(
            f"couplings of degree {degree} to l = {key[0]} are not polynomials of "
            f"the basis (remainder {lost:.1e})",
            where="mace_torch",
        )
    return out
