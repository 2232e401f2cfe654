"""Corpus and stores -> how well their embeddings hold sentiment and category."""
