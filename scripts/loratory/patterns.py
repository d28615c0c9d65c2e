"""Regular expressions of wildcards."""

import re
from collections import defaultdict
from collections.abc import Iterable


def names_pattern(names: Iterable[str]) -> str:
    """A pattern of these names and nothing else, short where many are alike.

    Snakemake writes it into the path of each output of a rule, and reads that path for each file of each job.

    >>> names_pattern(["dora", "lora1", "lora2", "lora24"])
    '(?:dora|lora(?:1|2(?:4)?))'
    """
    names = {*names}
    if not names:
        return "(?!)"  # nothing at all
    tails: dict[str, list[str]] = defaultdict(list)  # {first letter: what follows it}
    for name in sorted(names - {""}):
        tails[name[0]].append(name[1:])
    letters: dict[str, list[str]] = defaultdict(list)  # {pattern of what follows: first letters}
    for letter, rests in tails.items():
        letters[names_pattern(rests)].append(re.escape(letter))
    choices = [(first[0] if len(first) == 1 else f"[{''.join(first)}]") + rest for rest, first in letters.items()]
    pattern = "|".join(choices)
    optional = "?" if pattern and "" in names else ""
    return f"(?:{pattern}){optional}" if optional or len(choices) > 1 else pattern
