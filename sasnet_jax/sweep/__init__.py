"""Corpus, stores and a declared space -> the best settings for train."""
