"""X-LoRA generation: stacked experts and two caches against PEFT's XLora, equal tokens, one thread.

    python benchmarks/xlora_generate.py [new tokens]

A Llama shape of 29 M random weights (8 layers, width 512), four rank-8 experts on all seven linear layers, a gate of
depth 1, batch 4, prompt 32; greedy. CPU seconds of the process, ours and PEFT's in turn.
"""

import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import peft  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from loratory.adapters import core, deltas  # noqa: E402
from loratory.adapters.methods.lora import Method  # noqa: E402
from loratory.bases.decoding import decode  # noqa: E402
from loratory.mixers.core import MixedLinear, Mixture  # noqa: E402
from loratory.mixers.kinds.xlora import Mixer  # noqa: E402

EXPERTS, BATCH, PROMPT, ROUNDS = 4, 4, 32, 2


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1360, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=4096, max_position_embeddings=512, use_cache=False)
    config.eos_token_id = None
    return LlamaForCausalLM(config).eval()


def expert(seed: int) -> deltas.Adapter:
    base = model()
    core.attach(base, Method(rank=8), seed)
    random = torch.Generator().manual_seed(seed)
    for module in base.modules():
        if isinstance(module, core.AdaptedLinear):
            module.adapter["B"].data.normal_(0, 0.05, generator=random)
    return core.export(base, (), {})


def both_models(folder: Path):
    """PEFT's model and ours with the same experts and the same gate."""
    experts = {str(i): expert(i) for i in range(EXPERTS)}
    for name, adapter in experts.items():
        deltas.save_peft(folder / name, adapter, causal=True)
    paths = {name: str(folder / name) for name in experts}
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=512, adapters=paths, xlora_depth=1, layerwise_scalings=True
    )
    theirs = peft.get_peft_model(model(), config).eval()
    ours = Mixture(model(), experts, Mixer(depth=1, layerwise=True)).eval()
    slots = [name for name, module in ours.model.named_modules() if isinstance(module, MixedLinear)]
    order = [slots.index(name) for name in sorted(slots)]  # PEFT counts layers in the model's order
    torch.manual_seed(1)
    for mine, its in zip(ours.gate.parameters(), theirs.base_model.internal_xlora_classifier.parameters()):
        its.data.normal_(0, 0.3)
        mine.data.copy_(its.data.unflatten(0, (-1, EXPERTS))[order].flatten(0, 1))
    return theirs, ours


@torch.no_grad()
def main(tokens: int) -> None:
    torch.set_num_threads(1)
    prompt = torch.randint(3, 4096, (BATCH, PROMPT), generator=torch.Generator().manual_seed(2))
    with TemporaryDirectory() as folder:
        theirs, ours = both_models(Path(folder))
    mask = torch.ones_like(prompt)
    start = {"input_ids": prompt, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}

    def run_theirs():
        done = theirs.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        return done[:, PROMPT:].tolist()

    def run_ours():
        def step(inputs, cache):
            return ours(**inputs, past_key_values=cache, use_cache=True)

        return decode(step, start, ours.new_cache(), end=-1, limit=tokens)

    seconds, written = {"peft": [], "loratory": []}, {}
    for turn in range(ROUNDS):
        for name, run in list({"loratory": run_ours, "peft": run_theirs}.items())[:: 1 if turn % 2 else -1]:
            before = process_time()
            written[name] = run()
            seconds[name].append(process_time() - before)
    if written["peft"] != written["loratory"]:
        raise SystemExit("the two wrote different tokens: no ratio")
    slow, fast = median(seconds["peft"]), median(seconds["loratory"])
    print(f"{tokens} new tokens: peft {slow:.1f} s, loratory {fast:.2f} s, ratio {slow / fast:.1f} (equal tokens)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
