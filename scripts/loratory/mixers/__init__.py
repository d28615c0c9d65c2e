"""Weighing several adapters of one base per token and layer.

`core` stacks the experts and runs the two passes, `kinds/` holds one file per way of choosing the weights, `store`
saves a trained mixture whole.
"""
