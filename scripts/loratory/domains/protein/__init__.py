"""Protein sequences: causal language models write them and masked ones read them; folding judges what was written."""
