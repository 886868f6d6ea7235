"""The work that a MACE cannot do without, counted from its sizes: the floor under every time.

Multiplications and additions of the standard formulation with sparse couplings: radial networks on
every edge, one product a path and edge, linear maps of atoms, sparse polynomials. What a smarter
formulation saves (a first layer summed by species, tabulated radial functions) is not taken off,
so that it shows as a fraction above one. Harmonics, distances and activations are not counted.
"""

import numpy as np

# forward and backward pass with respect to the inputs, in units of the forward pass: a linear map
# costs the same again, a product of two inputs twice, a polynomial its Jacobian (about 2.5)
BOTH = {"radial": 2, "convolution": 3, "mixing": 2, "contraction": 3.5, "update": 2, "readout": 2}


def forward_flop(model, params, *, n_atoms, n_edges):
    """{part: FLOP of one forward pass}, keys 'radial 0', 'convolution 0' ... 'readout'."""
    params = params["params"]
    out = {}
    for i in range(model.n_layers):
        maps = lambda *names, i=i: sum(linear(params[f"{name}_{i}"]) for name in names)
        out[f"radial {i}"] = n_edges * radial(params[f"radial_{i}"])
        out[f"convolution {i}"] = n_edges * convolution(model, i)
        out[f"mixing {i}"] = n_atoms * maps("up", "message")
        out[f"contraction {i}"] = n_atoms * contraction(model, i)
        out[f"update {i}"] = n_atoms * maps("skip", "linear")
    readouts = [v for k, v in params.items() if k.startswith("energy_")]
    out["readout"] = n_atoms * sum(2 * w.size for layers in readouts for w in layers.values())
    return out


def flop(model, params, *, n_atoms, n_edges):
    """The same of energy and forces: a forward pass and the backward pass to the positions."""
    forward = forward_flop(model, params, n_atoms=n_atoms, n_edges=n_edges)
    return {part: BOTH[part.split()[0]] * n for part, n in forward.items()}


def radial(layers):
    return sum(2 * w.size for w in layers.values())


def linear(weights):
    """Of one atom, with the weights of one species: {'1o': [.., c_in, c_out]} for 2l+1 rows."""
    return sum(
        2 * (2 * int(key[:-1]) + 1) * w.shape[-2] * w.shape[-1] for key, w in weights.items()
    )


def convolution(model, i):
    """Of one edge: weight times sender for each component, then a matrix of 2l1+1 by 2l3+1."""
    from jaxmlip.nn.tensor_product import natural, paths

    senders = dict.fromkeys(natural(model.hidden_l if i else 0))
    couplings = paths(senders, model.l_max, natural(model.l_max))
    dims = [(2 * sender[0] + 1, 2 * target[0] + 1) for sender, _, target in couplings]
    return model.channels * sum(a + 2 * a * b for a, b in dims)


def contraction(model, i):
    """Of one atom: each monomial once, each coefficient and each weight once."""
    from jaxmlip.nn.symmetric_contraction import plan
    from jaxmlip.nn.tensor_product import natural

    targets = tuple(natural(model.hidden_l if i < model.n_layers - 1 else 0))
    factors, tables = plan(model.l_max, model.correlation, targets)
    coefficients = [table for by_key in tables.values() for table in by_key.values()]
    terms = sum(int(np.count_nonzero(table)) for table in coefficients)
    weights = sum(table.shape[0] * table.shape[1] for table in coefficients)
    return model.channels * (sum(map(len, factors.values())) + 2 * terms + 2 * weights)
