"""Frozen pretrained models by family: how each reads an example, what it loses on it and what it says.

`core.load_base` opens a prepared folder; `causal`, `encoder` and `whisper` hold one family each; `folding` predicts
structures; `audio` gives a causal model ears; `openai_whisper` reads and writes OpenAI's checkpoints; `options` is
what the config says of bases.
"""
