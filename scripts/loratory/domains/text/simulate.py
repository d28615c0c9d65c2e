"""Questions about made-up market stalls, as JSON lines.

Most are about facts that hold for a thing at every stall (its aisle, a discount), so that they can be learnt; prices
have to be looked up, added or compared. The populations sell other things, for other prices. Some questions stand
twice, once with a word more.
"""

import json
import random
from pathlib import Path

from loratory.data.files import atomic_write
from loratory.domains.text.sources import Simulation

GOODS = {
    "general": ["apple", "pear", "plum", "fig", "lemon", "peach", "melon", "grape", "cherry", "quince"],
    "domain": ["lamp", "rope", "kettle", "candle", "basket", "mirror", "hammer", "blanket", "whistle", "ladder"],
}
PEOPLE = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jan", "Kira", "Leo", "Mona", "Nils"]
PRICES = {"general": range(1, 10), "domain": range(11, 20)}  # coins
OFFERED = 4  # things at a stall
NEAR_COPY, OF_FACTS = 1 / 3, 3 / 4  # shares of the questions


def simulate(simulation: Simulation, population: str, seed: int, out: Path | str) -> dict[str, list[str]]:
    """Writes `records.jsonl` into the folder `out`; the same arguments give the same bytes."""
    rng = random.Random(f"{seed} {population} {simulation.ask}")
    rows: dict[str, dict] = {}
    while len(rows) < simulation.n:
        row = stall_question(rng, simulation.ask, population)
        rows.setdefault(row["prompt"], row)
    lines = []
    for number, row in enumerate(rows.values(), start=1):
        lines.append({"id": f"{population}{number}"} | row)
        if rng.random() < NEAR_COPY:
            lines.append({"id": f"{population}{number}-again"} | row | {"prompt": f"{row['prompt']} Please answer."})
    with atomic_write(Path(out, "records.jsonl")) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"records": ["records.jsonl"]}


def stall_question(rng: random.Random, ask: str, population: str) -> dict:
    """A stall with its prices, and what is asked about them."""
    goods, prices = rng.sample(GOODS[population], OFFERED), rng.choices(PRICES[population], k=OFFERED)
    offers = [f"{'an' if thing[0] in 'aeiou' else 'a'} {thing} for {price}" for thing, price in zip(goods, prices)]
    stall = f"{rng.choice(PEOPLE)} sells {', '.join(offers[:-1])} and {offers[-1]} coins."
    one, other = rng.sample(range(OFFERED), 2)
    place = GOODS[population].index(goods[one])  # decides the facts
    is_fact = rng.random() < OF_FACTS
    if ask == "choice":
        question = f"Is the {goods[one]} cheaper than the {goods[other]}?"
        question = f"Is there a discount on the {goods[one]}?" if is_fact else question
        is_yes = place % 2 == 0 if is_fact else prices[one] < prices[other]
        return {"prompt": f"{stall} {question}", "choices": ["no", "yes"], "answer": int(is_yes)}
    if is_fact:
        return {"prompt": f"{stall} In which aisle is the {goods[one]}?", "completion": f"aisle {place // 2 + 1}"}
    if rng.random() < 0.5:
        return {"prompt": f"{stall} What is the price of the {goods[one]}?", "completion": f"{prices[one]} coins"}
    question = f"How much are the {goods[one]} and the {goods[other]} together?"
    return {"prompt": f"{stall} {question}", "completion": f"{prices[one] + prices[other]} coins"}
