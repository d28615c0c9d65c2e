"""Low-rank and other small additions to a frozen base.

`core` puts adapters on linear layers, `deltas` is what they amount to and how it is stored, `methods/` holds one file
per way of parameterising, initialising and training them.
"""
