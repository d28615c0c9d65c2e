"""Trainings of one sweep in one pass: our sweep against as many jobs of Hugging Face's Trainer with PEFT, one by one.

    python benchmarks/runs_together.py [runs] [steps]

On a GPU: a Llama of SmolLM2-135M's shape (random weights, bf16), LoRA of rank 8 on all linear layers, bf16 autocast,
16 examples of 128 tokens a step, one learning rate and as many seeds as runs. Seconds from a process's start to its
end, summed over the jobs of an arm. Ours once with all runs in one pass, once in turn. An arm counts only where its
held-out losses are the others'. On a CPU nothing is gained; a tiny shape shows there that it runs.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

ROWS, LENGTH, RATE, RANK, HELD_OUT = 16, 128, 1e-3, 8, 64
SAME = 0.05  # largest difference of the arms' mean held-out losses, in nats


def write_inputs(folder: Path) -> None:
    """The base and what is learnt: unequally frequent tokens, so that there is something to learn."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    large = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = large | {"num_key_value_heads": 3} if torch.cuda.is_available() else small
    config = LlamaConfig(**sizes, vocab_size=49152, max_position_embeddings=LENGTH, tie_word_embeddings=True)
    config.pad_token_id = None
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "base")
    random, frequencies = np.random.default_rng(0), 1 / np.arange(1, 200)
    rows = random.choice(np.arange(3, 202), (2000 + HELD_OUT, LENGTH), p=frequencies / frequencies.sum())
    (folder / "rows.json").write_text(json.dumps(rows.tolist()))


def load_inputs(folder: Path):
    import torch
    from transformers import LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).to(device)
    rows = json.loads((folder / "rows.json").read_text())
    return model, rows[HELD_OUT:], rows[:HELD_OUT]


def write_outcome(out: Path, losses: list[float]) -> None:
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    out.write_text(json.dumps({"losses": losses, "peak": peak}))


def run_peer(folder: Path, out: Path, steps: int, seeds: list[int]) -> None:
    """One job of the Trainer."""
    import peft
    import torch
    from transformers import Trainer, TrainingArguments

    model, rows, held_out = load_inputs(folder)
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seeds[0])
    model = peft.get_peft_model(model, config)
    arguments = TrainingArguments(
        folder / "trainer",
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        bf16=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=seeds[0],
    )

    def collate(chosen):
        ids = torch.tensor([row["input_ids"] for row in chosen])
        return {"input_ids": ids, "labels": ids}

    Trainer(model, arguments, train_dataset=[{"input_ids": row} for row in rows], data_collator=collate).train()
    model.save_pretrained(folder / f"peft{seeds[0]}")
    ids = torch.tensor(held_out, device=model.device)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        write_outcome(out, [float(model.eval()(input_ids=ids, labels=ids).loss)])


def run_ours(folder: Path, out: Path, steps: int, seeds: list[int], together: bool) -> None:
    from types import SimpleNamespace

    from loratory.adapters import deltas
    from loratory.bases.core import Encoded
    from loratory.bases.families.causal import Family
    from loratory.config import adapter_entry
    from loratory.training import sweep
    from loratory.training.job import Job

    model, rows, held_out = load_inputs(folder)
    tokenizer = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    base = Family("", {"weights_sha256": ""}, model.requires_grad_(False).eval(), tokenizer)
    encoded = [[Encoded(row, row, len(row)) for row in split] for split in (rows, held_out)]
    training = {"steps": steps, "batch_tokens": ROWS * LENGTH, "precision": "bf16", "learning_rates": [RATE]}
    entry = adapter_entry({"method": "lora", "rank": RANK, "alpha": 16, "training": training})
    sets = dict(zip(("train", "valid"), encoded))
    jobs = {(seed, RATE): Job(str(base.device), folder / "checkpoints" / out.stem, f"seed {seed}") for seed in seeds}
    if together:
        found = sweep.train_alongside(base, sets, entry, jobs)
    else:
        found = {pair: sweep.train_one(base, sets, entry, *pair, job) for pair, job in jobs.items()}
    for (seed, _), trial in found.items():
        deltas.save_adapter(folder / f"ours{seed}", trial["adapter"], causal=True, transposed=False)
    write_outcome(out, [trial["valid_loss"] for trial in found.values()])


JOBS = {
    "peer": run_peer,
    "turn": lambda *given: run_ours(*given, together=False),
    "together": lambda *given: run_ours(*given, together=True),
}


def seconds_of(arm: str, folder: Path, steps: int, groups: list[list[int]]) -> tuple[float, list[float], float | None]:
    """Seconds, held-out losses and peak MiB of an arm's processes, one for each group of seeds."""
    seconds, outcomes = 0.0, []
    for number, seeds in enumerate(groups):
        out = folder / f"{arm}{number}.json"
        started = perf_counter()
        subprocess.run([sys.executable, __file__, arm, folder, out, str(steps), *map(str, seeds)], check=True)
        seconds += perf_counter() - started
        outcomes.append(json.loads(out.read_text()))
    return seconds, [loss for each in outcomes for loss in each["losses"]], outcomes[0]["peak"]


def main(runs: int, steps: int) -> None:
    seeds, means, results = list(range(runs)), [], {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for arm, groups in (("together", [seeds]), ("turn", [seeds]), ("peer", [[seed] for seed in seeds])):
            seconds, losses, peak = seconds_of(arm, folder, steps, groups)
            results[arm] = seconds, peak
            means.append(sum(losses) / len(losses))
            shown = f", peak {peak:.0f} MiB" if peak else ""
            print(f"{arm}: {runs} runs of {steps} steps in {seconds:.1f} s, held-out loss {means[-1]:.4f}{shown}")
    if max(means) - min(means) > SAME:
        raise SystemExit("the arms learned differently: no ratio")
    (fast, peak), (turn, _), (slow, single) = (results[arm] for arm in ("together", "turn", "peer"))
    memory = f"; memory {peak / single:.2f} of one job's" if peak else ""
    print(f"ratio {slow / fast:.2f} to Trainer and PEFT, {turn / fast:.2f} to our own in turn{memory}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in JOBS:
        arm, folder, out, steps, *seeds = sys.argv[1:]
        JOBS[arm](Path(folder), Path(out), int(steps), list(map(int, seeds)))
    else:
        main(*map(int, sys.argv[1:] or (8, 100)))
