"""The jitted step, the loop around it, and its checkpoints."""
