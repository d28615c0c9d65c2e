"""Training: the loop (`fit`), its checkpoints, and what is trained with it: bases, adapters, gates."""
