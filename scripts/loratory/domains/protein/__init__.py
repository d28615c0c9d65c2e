"""Protein sequences: causal language models write them residue by residue; folding judges what they wrote."""
