"""A run whose truth is known, for trying stopping rules without a model: worlds, what is measured in them, and how well
the real rules (`factory/stopping`) decide from that."""
