"""The report: what the other commands wrote, as one HTML page."""
