"""SASNet: how a user will like a business, from two sets of embedded reviews (JAX and Flax)."""

__version__ = "0.1.0"
