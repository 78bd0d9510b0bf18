"""Stripes: kernels that lost positions, as smaller dense convolutions."""
