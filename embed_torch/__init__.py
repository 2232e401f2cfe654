"""Review texts in, one embedding per review out, as NumPy memory maps (PyTorch, run once)."""

__version__ = "0.1.0"
