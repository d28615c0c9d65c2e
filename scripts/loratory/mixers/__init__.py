"""Weighing several adapters of one base per token and layer.

`layers` stacks the experts, `core` runs the passes, `methods/` holds one file per way of choosing the weights, `store`
saves a trained mixture whole, `generation` writes with it.
"""
