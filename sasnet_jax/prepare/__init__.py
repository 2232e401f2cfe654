"""Raw reviews, or a generated world -> a corpus."""
