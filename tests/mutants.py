"""Folders that went wrong: copies with one thing changed at random, the same for the same seed."""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

VALUES = [
    *(None, True, False, 0, 1, -1, 2.5, 10**400, 1e300, float("nan"), float("inf"), "", "false", "q_proj", "../x"),
    *("(q+)+x", ".*(q|v)_proj", "pissa", "a" * 5000, [], [0], ["q_proj"], [["x"]], {}, {"q_proj": 3}, {"x": "y"}),
]


def mutate_folder(source: Path, folder: Path, seed: int) -> str:
    """Copies `source` to `folder` and changes one of its files; says how."""
    rng = random.Random(seed)
    shutil.copytree(source, folder)
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if rng.random() < 0.3:
        change = rng.choice([cut_short, flip_bit, empty, put_pointer])
    else:
        change = rng.choice(
            [change_value, drop_key, add_key] if path.suffix == ".json" else [drop, rename, reshape, spoil]
        )
    change(path, rng)
    return f"{seed}: {change.__name__} {path.relative_to(folder)}"


def cut_short(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(min(len(data), 2000))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def put_pointer(path: Path, rng: random.Random) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def change_value(path: Path, rng: random.Random) -> None:
    given = json.loads(path.read_text())
    given[rng.choice(sorted(given) or ["x"])] = rng.choice(VALUES)
    path.write_text(json.dumps(given))


def drop_key(path: Path, rng: random.Random) -> None:
    given = json.loads(path.read_text())
    given.pop(rng.choice(sorted(given) or ["x"]), None)
    path.write_text(json.dumps(given))


def add_key(path: Path, rng: random.Random) -> None:
    """A field of PEFT's, or one that nobody knows."""
    names = ["layer_replication", "exclude_modules", "layers_to_transform", "layers_pattern", "use_dora", "lora_bias"]
    names += ["init_lora_weights", "target_parameters", "trainable_token_indices", "hidden_size", "unheard_of"]
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | {rng.choice(names): rng.choice(VALUES)}))


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def drop(path: Path, rng: random.Random) -> None:
    change_tensors(path, lambda tensors: tensors.pop(rng.choice(sorted(tensors))))


def rename(path: Path, rng: random.Random) -> None:
    def change(tensors):
        name = rng.choice(sorted(tensors))
        other = rng.choice(["x", name[1:], name + ".x", name.replace("0", "9"), name.replace("q_proj", "lm_head")])
        tensors[other] = tensors.pop(name)

    change_tensors(path, change)


def reshape(path: Path, rng: random.Random) -> None:
    def change(tensors):
        name = rng.choice(sorted(tensors))
        tensor = tensors[name]
        others = [
            tensor[:1],
            tensor[..., :1],
            tensor[None],
            tensor.flatten(),
            tensor.mT if tensor.dim() > 1 else tensor,
            tensor[:0],
        ]
        tensors[name] = rng.choice(others).clone().contiguous()

    change_tensors(path, change)


def spoil(path: Path, rng: random.Random) -> None:
    """One number, or the type of all."""

    def change(tensors):
        name = rng.choice(sorted(tensors))
        tensors[name].view(-1)[0] = rng.choice([float("nan"), float("inf"), 1e30, 0.0])
        kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool]
        tensors[name] = tensors[name].to(rng.choice(kinds))

    change_tensors(path, change)
