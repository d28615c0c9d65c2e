"""Frozen pretrained models by family: how each encodes an example, its loss on it, and what it predicts.

`core` says what a family offers and opens a prepared folder (`load_base`); `families` holds one file for each family;
`audio` is the audio encoder and projector of a causal model; `decoding` writes token after token; `checks`, `prepare`
and `hub` bring in a published folder; `openai_whisper` reads and writes OpenAI's checkpoints; `options` is what the
config says of bases.
"""
