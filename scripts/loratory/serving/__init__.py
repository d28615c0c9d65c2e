"""Many adapters on one base: rows of one batch belong to different adapters.

`rows` says whose each row is; `layers` computes them, `kernels` do on a GPU; `adapters` puts a set of adapters on a
base, and says which cannot be in one; `mixtures` adds rows that a mixture weighs. `pool` is memory in pages; `paging`
keeps adapters in it while they are used; `scheduling` says which requests run; `steps` are passes in place; `engine`
answers requests that come and go, `throughput` measures it. `catalog` says what models there are on a base and which
of them share batches; `server` answers for all of them on a thread of its own; `texts` reads tokens as they come.
"""
