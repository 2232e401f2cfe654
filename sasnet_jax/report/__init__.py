"""Everything that the other commands wrote -> one HTML page."""
