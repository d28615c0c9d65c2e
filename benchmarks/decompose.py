"""The leading singular directions of a large weight: the whole SVD against the search that methods use.

    python benchmarks/decompose.py [--rows 4096] [--columns 11008] [--rank 16] [--device cpu]

The weight is noise, of which both are hardest to tell apart: no spectrum is flatter.
"""

import argparse
from time import perf_counter

import torch

from loratory.adapters.spectrum import exact_svd, krylov_svd

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=11008)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    rank, random = options.rank, torch.Generator().manual_seed(0)
    weight = torch.randn(options.rows, options.columns, generator=random).to(options.device)
    torch.linalg.svd(weight[:64, :64])  # what the first call loads is no part of the second
    place = f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{options.rows} x {options.columns}, rank {rank}, {place}")
    found = {}
    for name, solve in {"search": krylov_svd, "whole": exact_svd}.items():
        started = perf_counter()
        left, values, right = solve(weight, rank)
        error = float((weight - left[:, :rank] * values[:rank] @ right[:rank]).norm())  # waits for the device
        found[name] = perf_counter() - started, error, values[:rank]
        print(f"{name}: {found[name][0]:.2f} s", flush=True)
    (fast, near, values), (slow, best, exact) = found["search"], found["whole"]
    print(f"{slow / fast:.1f} times as fast; error {near / best - 1:.1e} above the best one's, ", end="")
    print(f"singular values within {float(((values - exact).abs() / exact).max()):.1e}")
