"""One file for each family of bases; the file's name is the family's name in the config.

Each file defines one class `Family(Base)`: see `loratory.bases.core` for what it declares. It is imported by the jobs
that open or check a base, never while the config is read, so it may import torch at its top.
"""
