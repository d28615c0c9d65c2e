"""Many adapters on one base: rows of one batch belong to different adapters.

`rows` says whose each row is; `layers` computes them; `adapters` puts a set of adapters on a base, and says which
cannot be in one.
"""
