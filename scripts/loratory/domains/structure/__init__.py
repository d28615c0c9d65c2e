"""Protein chains with their backbones: what folding bases learn from, and what they are judged by."""
