"""The network: set attention over embedded reviews."""
