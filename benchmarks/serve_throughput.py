"""Thousands of adapters on one base: requests a second, first tokens and memory, beside PEFT's two ways.

    python benchmarks/serve_throughput.py [--device cpu|cuda] [--adapters 1 10 100 1000 2000] [--draw uniform|power]

A Llama shape of random weights with LoRAs of rank 16 on q, k, v and o; greedy, no request ends early. Each request's
adapter is drawn anew, evenly or by a power law (share ~ 1 / place). `cuda`: 1.1 B weights (16 layers, width 2048),
bf16, prompts of 64 to 256 tokens; `cpu`: 29 M weights, fp32, prompts of 8 to 32 tokens, one thread.

1. All arms answer the same requests for 10 adapters in fp32, and the program ends if a token differs.
2. Each number of adapters: the engine answers all requests, which come at once (requests a second); then again, coming
   at random at half of that rate (first tokens). No adapter is on the device when either begins.
3. Up to `--peers` adapters: fewer requests and tokens, the same for both arms: the engine beside PEFT's mixed batch
   (`adapter_names`), and beside PEFT with one adapter after another merged, asked for its rows and unmerged.

Each arm runs once before it counts (a peer for one token; one that takes longer for that than `--seconds` is not asked
again). A few adapters are written and each has many names: every arm holds each name's weights by themselves. vLLM is
not measured here.
"""

import gc
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import peft  # noqa: E402
import torch  # noqa: E402
from random_models import random_adapter, random_base  # noqa: E402

from loratory.adapters import deltas  # noqa: E402
from loratory.bases.core import pad_rows  # noqa: E402
from loratory.bases.decoding import decode_batch, empty_cache  # noqa: E402
from loratory.serving.engine import Engine  # noqa: E402
from loratory.serving.throughput import Arrival, Throughput, measure_throughput  # noqa: E402

RANK, TARGETS, DISTINCT = 16, ("q_proj", "k_proj", "v_proj", "o_proj"), 16


@dataclass(frozen=True)
class Setup:
    device: str
    dtype: torch.dtype
    sizes: dict
    vocabulary: int
    requests: int
    prompt: tuple[int, int]
    tokens: int
    rows: int
    peer_requests: int
    peer_tokens: int


SMALL = {"hidden_size": 512, "intermediate_size": 1360, "num_hidden_layers": 8, "num_attention_heads": 8}
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SETUPS = {
    "cpu": Setup("cpu", torch.float32, SMALL, 4096, 32, (8, 32), 8, 16, 16, 4),
    "cuda": Setup("cuda", torch.bfloat16, LARGE, 32000, 256, (64, 256), 64, 128, 128, 16),
}


def write_adapters(setup: Setup, root: Path) -> list[Path]:
    """A few folders; the adapter of any name is one of them."""
    model = random_base(setup.sizes, setup.vocabulary, "meta", setup.dtype)
    for number in range(DISTINCT):
        adapter = random_adapter(model, RANK, number, TARGETS, setup.dtype)
        deltas.save_adapter(root / str(number), adapter, causal=True)
    return [root / str(number) for number in range(DISTINCT)]


def draw_arrivals(setup: Setup, adapters: int, draw: str, requests: int, tokens: int) -> list[Arrival]:
    """Requests that come at once."""
    random = torch.Generator().manual_seed(adapters)
    shares = torch.ones(adapters) if draw == "uniform" else 1 / torch.arange(1, adapters + 1)
    chosen = torch.multinomial(shares, requests, replacement=True, generator=random).tolist()
    lengths = torch.randint(setup.prompt[0], setup.prompt[1] + 1, (requests,), generator=random).tolist()
    texts = [torch.randint(3, setup.vocabulary, (length,), generator=random).tolist() for length in lengths]
    return [Arrival(ids, f"a{place}", tokens) for ids, place in zip(texts, chosen)]


def spread_arrivals(arrivals: list[Arrival], rate: float) -> list[Arrival]:
    """So many a second, at random (a Poisson process)."""
    random = torch.Generator().manual_seed(0)
    pauses = torch.empty(len(arrivals)).exponential_(rate, generator=random)
    return [replace(one, seconds=at) for one, at in zip(arrivals, pauses.cumsum(0).tolist())]


def open_engine(setup: Setup, folders: dict[str, Path]) -> Engine:
    """A pool for as many rows as run at once, and the adapters of as many that wait."""
    model = random_base(setup.sizes, setup.vocabulary, setup.device, setup.dtype)
    base = SimpleNamespace(model=model, fingerprint="", context=setup.prompt[1] + setup.tokens, end_id=-1)
    one = Engine(base, {name: folders[name] for name in [*folders][:1]}, pages=1)
    adapter_pages, parts = one.adapters.pages["a0"], one.steps.parts
    one.close()
    pages = setup.rows * (base.context * parts + 2 * adapter_pages)
    return Engine(base, folders, pages, most_adapters=setup.rows, most_rows=setup.rows)


def answer_cold(engine: Engine, arrivals: list[Arrival]) -> Throughput:
    """With no adapter in the pool at the start."""
    engine.adapters.make_room(engine.pool.pages)
    return measure_throughput(engine, arrivals)


def measure_engine(setup: Setup, engine: Engine, arrivals: list[Arrival]) -> tuple[Throughput, Throughput]:
    """All at once, and at half of the rate at which those were answered."""
    answer_cold(engine, arrivals)
    at_once = answer_cold(engine, arrivals)
    spread = spread_arrivals(arrivals, at_once.requests_per_second / 2)
    answer_cold(engine, spread)  # steps of other sizes
    return at_once, answer_cold(engine, spread)


def open_peer(setup: Setup, folders: dict[str, Path]) -> peft.PeftModel:
    model = random_base(setup.sizes, setup.vocabulary, setup.device, setup.dtype)
    options = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
    wrapped = peft.PeftModel.from_pretrained(model, str(folders["a0"]), adapter_name="a0", **options)
    for name in [*folders][1:]:
        wrapped.load_adapter(str(folders[name]), adapter_name=name, **options)
    return wrapped.eval()


def write_batch(model: torch.nn.Module, arrivals: list[Arrival], **options: object) -> list[list[int]]:
    """What requests write in one batch, padded on the left."""
    device = next(model.parameters()).device
    ids = pad_rows([one.ids for one in arrivals], 0, device, left=True)
    mask = pad_rows([[1] * len(one.ids) for one in arrivals], 0, device, left=True)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    def forward(inputs: dict, cache: object) -> object:
        return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, **options)

    return decode_batch(forward, inputs, empty_cache(model), (), arrivals[0].limit)


def answer_mixed(model: peft.PeftModel, arrivals: list[Arrival]) -> list[list[int]]:
    return write_batch(model, arrivals, adapter_names=[one.adapter for one in arrivals])


def answer_merged(model: peft.PeftModel, arrivals: list[Arrival]) -> list[list[int]]:
    written: dict[int, list[int]] = {}
    for name in dict.fromkeys(one.adapter for one in arrivals):
        rows = [row for row, one in enumerate(arrivals) if one.adapter == name]
        model.set_adapter(name)
        model.merge_adapter()
        written |= zip(rows, write_batch(model, [arrivals[row] for row in rows]))
        model.unmerge_adapter()
    return [written[row] for row in range(len(arrivals))]


PEERS = {"PEFT adapter_names": answer_mixed, "PEFT merge and unmerge": answer_merged}


def measure_peer(answer: Callable, model: peft.PeftModel, arrivals: list[Arrival]) -> tuple[float, list[list[int]]]:
    """Seconds, and what was written."""
    started = perf_counter()
    written = answer(model, arrivals)  # lists of numbers: the device is done
    return perf_counter() - started, written


def compare_tokens(setup: Setup, draw: str) -> None:
    """Ends the program if arms write different tokens in fp32."""
    small = replace(setup, dtype=torch.float32, sizes=setup.sizes | {"num_hidden_layers": 4})
    with TemporaryDirectory() as folder:
        folders = name_adapters(write_adapters(small, Path(folder)), 10)
        arrivals = draw_arrivals(small, 10, draw, 24, 8)
        engine = open_engine(small, folders)
        ours = [answer_cold(engine, arrivals).written for _ in range(2)]
        engine.close()
        model = open_peer(small, folders)
        theirs = {name: answer(model, arrivals) for name, answer in PEERS.items()}
    same = {name: written == ours[1] for name, written in theirs.items()}
    kinds = len({id for row in ours[1] for id in row})
    print(f"fp32, 4 layers, 24 requests of 10 adapters, 8 tokens ({kinds} different ids): equal {same}", flush=True)
    if ours[0] != ours[1] or not all(same.values()):
        raise SystemExit("different tokens, so no ratio")


def name_adapters(paths: list[Path], number: int) -> dict[str, Path]:
    return {f"a{i}": paths[i % len(paths)] for i in range(number)}


def print_engine(adapters: int, opened: float, at_once: Throughput, spread: Throughput) -> None:
    memory = f"pool {at_once.pool_bytes / 2**30:.2f} GiB"
    if at_once.device_bytes is not None:
        memory += f"  device {max(at_once.device_bytes, spread.device_bytes) / 2**30:.2f} GiB"
    print(
        f"{adapters:5} adapters  {at_once.requests_per_second:8.2f} requests/s"
        f"  {at_once.tokens_per_second:8.0f} tokens/s"
        f"  first token at once {at_once.median_first_token:.3f} s, p95 {at_once.p95_first_token:.3f} s"
        f"  at half the rate {spread.median_first_token:.3f} s, p95 {spread.p95_first_token:.3f} s"
        f"  {memory}  opened in {opened:.1f} s",
        flush=True,
    )


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run_engine(setup: Setup, options: Namespace, adapters: int, folders: dict[str, Path]) -> Engine:
    """Prints the engine's figures."""
    started = perf_counter()
    engine = open_engine(setup, folders)
    opened = perf_counter() - started
    arrivals = draw_arrivals(setup, adapters, options.draw, setup.requests, setup.tokens)
    print_engine(adapters, opened, *measure_engine(setup, engine, arrivals))
    return engine


def run_peers(setup: Setup, options: Namespace, folders: dict[str, Path], engine: Engine) -> None:
    """Prints what each peer answers in a second beside the engine, and how many of all tokens are the engine's.

    Each arm first writes one token and so warms up; a slow peer, and the engine beside it, are asked for fewer.
    """
    model = open_peer(setup, folders)
    for name, answer in PEERS.items():
        few = draw_arrivals(setup, len(folders), options.draw, setup.peer_requests, 1)
        once, first = measure_peer(answer, model, few)
        tokens = max(1, min(setup.peer_tokens, int(options.seconds / once)))
        few = [replace(one, limit=tokens) for one in few]
        answer_cold(engine, few)
        ours = answer_cold(engine, few)
        seconds, theirs = (once, first) if once > options.seconds else measure_peer(answer, model, few)
        pairs = [(a, b) for one, other in zip(ours.written, theirs) for a, b in zip(one, other)]
        same, distinct = sum(a == b for a, b in pairs) / len(pairs), len({one.adapter for one in few})
        print(
            f"      {distinct} of {len(folders)} adapters, {len(few)} requests, {tokens} tokens:"
            f" engine {ours.seconds:.3f} s, {name} {seconds:.3f} s (one token {once:.3f} s),"
            f" {seconds / ours.seconds:.1f} x, equal tokens {same:.2f}",
            flush=True,
        )


def time_copies(device: str) -> None:
    """What a small copy that is waited for costs here: PEFT's mixed batches make three for each adapter and layer."""
    started = perf_counter()
    for _ in range(50):
        torch.tensor([1, 2, 3], device=device)
    print(f"a small copy to the device takes {(perf_counter() - started) * 20:.3f} ms", flush=True)


@torch.no_grad()
def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--device", choices=sorted(SETUPS), default="cpu")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 10, 100, 1000, 2000])
    parser.add_argument("--peers", type=int, default=100, help="the most adapters that peers are asked for")
    parser.add_argument("--draw", choices=["uniform", "power"], default="uniform")
    parser.add_argument("--seconds", type=float, default=30, help="about as long as a peer may take")
    parser.add_argument("--requests", type=int, help="of the engine")
    options = parser.parse_args()
    setup = SETUPS[options.device]
    setup = replace(setup, requests=options.requests or setup.requests)
    if setup.device == "cpu":
        torch.set_num_threads(1)
    compare_tokens(setup, options.draw)
    time_copies(setup.device)
    free_memory()
    with TemporaryDirectory() as folder:
        paths = write_adapters(setup, Path(folder))
        for adapters in options.adapters:
            folders = name_adapters(paths, adapters)
            engine = run_engine(setup, options, adapters, folders)
            if adapters <= options.peers:
                run_peers(setup, options, folders, engine)
            engine.close()
            del engine
            free_memory()


if __name__ == "__main__":
    main()
