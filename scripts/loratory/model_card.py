"""The model card of an exported folder: README.md with the fields that a hub reads, and what was measured and how."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from loratory import __version__
from loratory.adapters.deltas import CONFIG
from loratory.data.files import read_json
from loratory.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loratory.export import Trained

MARKDOWN = re.compile(r"([\\`*_\[\]#|~!])")
TASKS = {"causal": "text-generation", "whisper": "automatic-speech-recognition", "encoder": "text-classification"}
LOADING = {
    "peft": "`PeftModel.from_pretrained(model, FOLDER)` of PEFT puts it on the base.",
    "vllm": "`vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules NAME=FOLDER`, then `NAME` as the "
    "`model` of a request. PEFT loads it too.",
    "lorax": 'LoRAX: `"adapter_source": "local", "adapter_id": "FOLDER"` of a request. PEFT loads it too.',
    "tgi": "`LORA_ADAPTERS=NAME=FOLDER text-generation-launcher --model-id BASE`, then NAME as the `adapter_id` of a "
    "request. PEFT loads it too.",
    "xlora": """PEFT puts it on the base, whose cache must be off, and is told where the experts lie. (PEFT 0.20 to
0.21.2 read a mixture whole, and save a part of it.)

```python
model.config.use_cache = False
config = PeftConfig.from_pretrained(FOLDER)
config.adapters = {place: f"{FOLDER}/{expert}" for place, expert in config.adapters.items()}
mixture = PeftModel.from_pretrained(model, FOLDER, config=config)
```""",
    "merged": "It is a whole model, base and change in one, in float32: what loads the base loads FOLDER.",
}
MOST_FILES = 4  # of a dataset that are named with their digests


def write_card(folder: Path, trained: Trained, form: str) -> None:
    """Writes `README.md` into an exported folder; `form` is a key of LOADING."""
    rows = [row for domain in trained.adapters for row in measured_rows(trained, domain)]
    parts = [
        f"# {plain_text(trained.system)} on {plain_text(trained.base['name'])}",
        introduction(trained, form),
        "## Load it",
        loading_text(folder, form),
        "## What was measured",
        *(metrics_text(rows) if rows else ["Nothing yet: no metrics of it lie among the results of its study."]),
        "## Trained on",
        text_table(
            ("dataset", "records", "licence", "files", "audit"), [data_row(trained, d) for d in trained.adapters]
        ),
        "## The base",
        text_table(("what", "value"), base_rows(trained.base)),
        "## How it was made",
        f"`loratory run CONFIG.yaml {target_name(trained)}`, by loratory {__version__}: CONFIG.yaml is the "
        "study's config, RESULTS its folder of results. What is known of its making:",
        "```json\n" + json.dumps(making(trained), indent=1, sort_keys=True).replace("`", "\\u0060") + "\n```",
    ]
    text = f"---\n{card_fields(trained, rows, form)}\n---\n\n" + "\n\n".join(parts) + "\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def loading_text(folder: Path, form: str) -> str:
    """How an exported folder is loaded."""
    if form != "vllm":
        return LOADING[form]
    rank = ENGINES[form].rank_of(read_json(folder / CONFIG)["r"])
    return LOADING[form].replace("RANK", str(rank))


def card_fields(trained: Trained, rows: Sequence[dict], form: str) -> str:
    """The YAML that stands above the text."""
    base, task = trained.base, TASKS.get(trained.base["family"])
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=row["domain"],
            dataset_name=f"{row['domain']} (test)",
            metric_type=row["metric"],
            metric_value=row["value"],
            metric_name=f"{row['metric']} {interval(row)}",
        )
        for row in rows
        if row["primary"] or row["loss"]
    ]
    data = ModelCardData(
        base_model=base["origin"] if base["revision"] else None,
        library_name="transformers" if form == "merged" else "peft",
        license="other",
        license_name="see-the-card",
        model_name=trained.system if results else None,
        pipeline_tag=task,
        tags=["loratory", form if form in ("xlora", "merged") else "lora", *trained.adapters],
        eval_results=results or None,
    )
    return data.to_yaml()


def introduction(trained: Trained, form: str) -> str:
    what = "A merger of adapters" if trained.is_mixture else "An adapter"
    kind = {"xlora": "An X-LoRA mixture of adapters", "merged": f"{what}, in its base's weights,"}.get(form, what)
    domains = ", ".join(map(plain_text, trained.adapters))
    return (
        f"{kind} for {domains}, trained and measured by Loratory. Its licence follows from those of the base and of "
        "the data below: whoever hands it on says which it is."
    )


def measured_rows(trained: Trained, domain: str) -> list[dict]:
    """Test metrics of what is exported in a domain, the primary one first, each with the base's and this seed's."""
    path = trained.results / "metrics" / "data" / domain / f"{trained.facts['base']}.json"
    if not path.is_file():
        return []
    report = read_json(path)
    rows = [row for row in report["rows"] if row["split"] == "test" and row["status"] == "ok"]
    base = {row["metric"]: row for row in rows if row["system"] == "base"}
    seed, seeds = report["seeds"].index(trained.facts["seed"]), report["seeds"]
    return [
        row | {"domain": domain, "base": base.get(row["metric"]), "seed": row["per_seed"][seed], "seeds": seeds}
        for row in sorted(rows, key=lambda row: not row["primary"])
        if row["system"] == trained.system
    ]


def metrics_text(rows: Sequence[dict]) -> list[str]:
    arrow = {"up": "↑", "down": "↓"}
    cells = [
        (
            row["domain"],
            f"{row['metric']}{' (' + row['unit'] + ')' if row['unit'] else ''} {arrow.get(row['direction'], '')}",
            f"{row['value']:.4g} {interval(row)}",
            f"{row['seed']:.4g}",
            f"{row['base']['value']:.4g} {interval(row['base'])}" if row["base"] else "–",
            row["n"],
        )
        for row in rows
    ]
    seeds = ", ".join(map(str, rows[0]["seeds"]))
    about = (
        f"On held-out test records: the mean over seeds ({seeds}), with its 95 % interval from whole groups of "
        "records. This folder holds one of the seeds. ↑: more is better."
    )
    return [about, text_table(("domain", "metric", "value", "this seed", "base", "records"), cells)]


def interval(row: dict) -> str:
    return f"[{row['low']:.4g}, {row['high']:.4g}]" if row["low"] is not None else "(no interval)"


def data_row(trained: Trained, domain: str) -> tuple[Any, ...]:
    folder = trained.results / "data" / domain
    card, audit, raw = (
        read_json(path) if path.is_file() else {}
        for path in (
            folder / "card.json",
            folder / "audit.json",
            trained.results / "raw" / "data" / domain / "files.json",
        )
    )
    digests = [f"{Path(name).name} (sha256 {digest})" for name, digest in raw.get("sha256", {}).items()]
    files = ", ".join(digests[:MOST_FILES]) + (f" and {len(digests) - MOST_FILES} more" * (len(digests) > MOST_FILES))
    if raw.get("simulated"):
        files = ": ".join(filter(None, ["simulated data, which says nothing about the world", files]))
    licence = card.get("source", {}).get("licence") or "not stated"
    records = ", ".join(f"{split} {count}" for split, count in card.get("records", {}).items())
    sound = "nothing of test leaks" if audit and not any(audit["counts"].values()) else "none"
    return domain, records or "–", licence, files or "–", sound


def base_rows(base: dict) -> list[tuple[str, Any]]:
    shown = {"name": base["name"], "family": base["family"], "licence": base["licence"] or "not stated"}
    shown |= {"from": f"{base['origin']} at {base['revision']}"} if base["revision"] else {}
    shown |= {"weights held in": base.get("precision", "fp32"), "weights, sha256": base["weights_sha256"]}
    return [*shown.items()]


def making(trained: Trained) -> dict[str, Any]:
    """What is known of the training, without what it was measured by and the machine's name."""
    if trained.is_mixture:
        return {key: value for key, value in trained.facts.items() if key != "seconds"}
    facts = trained.facts
    meta = {key: value for key, value in facts.get("meta_info", {}).items() if key != "system_info"}
    run = {key: facts["run_info"][key] for key in ("peft_config", "train_config") if key in facts.get("run_info", {})}
    return {"seed": facts["seed"], "learning_rate": facts["learning_rate"]} | run | meta


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([plain_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(value: object) -> str:
    """A value as text of one line that means nothing in Markdown or HTML."""
    return MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(value).split())))


def target_name(trained: Trained) -> str:
    """What Snakemake made."""
    file = trained.folder.relative_to(trained.results) / ("mixture.json" if trained.is_mixture else "run.json")
    return " ".join(f"RESULTS/{file}".replace("`", "'").split())
