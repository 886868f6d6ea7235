"""Where a run begins that goes on from a potential: card, parameters, what moves, properties."""
