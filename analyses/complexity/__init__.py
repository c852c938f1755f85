"""Sample complexity of learning a G-invariant function: curves, gains, exponents and a verdict."""
