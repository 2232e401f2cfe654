"""Corpus and stores -> what reading the answer is worth (the paper's protocol)."""
