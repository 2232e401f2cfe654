"""Shared stage: what a regression knows of a user and of a business, from their reviews."""
