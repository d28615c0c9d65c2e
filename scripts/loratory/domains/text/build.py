"""Files of rows → prompts and answers, of which no two that say nearly the same stand in two splits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from loratory.data import splits
from loratory.data.files import require_distinct_files
from loratory.data.ledger import Ledger
from loratory.data.records import Records, spill_records
from loratory.data.sampling import file_and_record, text_digest
from loratory.data.shingles import find_similar, link_similar, shingle_hashes, split_words
from loratory.domains.contract import exact_overlap, random_split
from loratory.domains.text.layouts import parse_row, read_rows
from loratory.domains.text.sources import Dataset, Files
from loratory.errors import InputError

DISTINCT = ""
COLUMNS = {
    "prompt": "string",
    "answer": "string",
    "choices": pa.list_(pa.string()),  # two, sorted; none of a completion
    "unit": "string",  # the group that the row names
    "compared": "string",  # words of the prompt without those that open or close all prompts; see `compared_words`
}
FOUND = pa.schema(  # before it is known what all prompts share
    {"id": "string", **COLUMNS, "where": "string", "digest": pa.binary(16)}
)
ALIKE = 0.5  # Jaccard index that is worth a line beside the one that separates splits
split = partial(random_split, "text")


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields the rows that are kept, of one question all; of equal rows the one with the smallest id.

    Raises:
        InputError: a malformed row (with `on_error: fail`), or rows of two questions.
    """
    files, template = files.expand_patterns(), Template()  # what all prompts share is known when all are read
    require_distinct_files(("records", path) for path in files.records)
    found = spill_records(read_question(files, dataset, template, ledger), FOUND)
    for record in found.select(unique_rows(found, ledger)):
        del record["digest"]
        yield record | {"compared": " ".join(compared_words(record, template))}


def read_question(files: Files, dataset: Dataset, template: "Template", ledger: Ledger) -> Iterator[dict]:
    """Yields the records that put the question of the first one, with a `digest` of prompt and answer."""
    first: dict | None = None
    for record in read_records(files, dataset, ledger):
        first = first or record
        if record["choices"] != first["choices"]:
            ledger.note_error(other_question_error(record, first), record["id"])
            continue
        template.add_words(split_words(record["prompt"]))
        yield record | {"digest": text_digest(f"{record['prompt']}\0{record['answer']}")}


def unique_rows(found: Records, ledger: Ledger) -> np.ndarray:
    """Places of the records of which none with a smaller id has the same prompt and answer, ascending."""
    ids, digests, places = (found.column(name).to_pylist() for name in ("id", "digest", "where"))
    first: dict[bytes, str] = {}
    for id, digest in sorted(zip(ids, digests)):
        first.setdefault(digest, id)
    for id, digest, where in zip(ids, digests, places):
        if first[digest] != id:
            ledger.drop_record(*file_and_record(where), id, "duplicate", f"same as {first[digest]}")
    return np.flatnonzero([first[digest] == id for id, digest in zip(ids, digests)])


def read_records(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields well-formed records within the dataset's policy, with `where`."""
    repeated = len({Path(path).name for path in files.records}) < len(files.records)
    for path in files.records:
        for row in read_rows(path, files, ledger):
            id = row.where if repeated else Path(row.where).name
            try:
                id = row.text("id") if "id" in row.values else id
                unit = row.text("group") if "group" in row.values else ""
                record = {"id": id, "unit": unit, "where": row.where} | parse_row(row)
            except InputError as error:
                ledger.note_error(error, id)
                continue
            if excess := length_excess(record, dataset):
                ledger.drop_record(*file_and_record(row.where), id, "too_long", excess)
            else:
                yield record


def length_excess(record: dict, dataset: Dataset) -> str:
    """What is longer than the dataset's policy allows; "" if nothing is."""
    limits = {"prompt": dataset.max_prompt, "answer": dataset.max_completion}
    sizes = [(name, len(record[name]), limit) for name, limit in limits.items() if limit is not None]
    return ", ".join(f"{name} of {size} > {limit} characters" for name, size, limit in sizes if size > limit)


def other_question_error(record: dict, first: dict) -> InputError:
    """Of a row that puts another question than the first one."""
    asked, asked_first = ("/".join(each["choices"]) or "a completion" for each in (record, first))
    expected = f"{asked_first}, as at {first['where']}"
    fix = "put rows of each question into files, and an entry under `domains`, of their own"
    return InputError(record["where"], "a row of another question", asked, expected, fix, "question")


class Template:
    """The words that open, and those that close, every prompt; all prompts in the same words have none."""

    def __init__(self) -> None:
        self.opening: list[str] | None = None
        self.closing: list[str] = []
        self.is_whole = True  # as long as all prompts are the same words

    def add_words(self, words: list[str]) -> None:
        if self.opening is None:
            self.opening, self.closing = words, words[::-1]
            return
        self.is_whole = self.is_whole and words == self.opening
        self.opening = common_start(self.opening, words)
        self.closing = common_start(self.closing, words[::-1])

    def own_words(self, words: list[str]) -> list[str]:
        """A prompt's words between opening and closing."""
        start = len(self.opening or ())
        return words[start : max(start, len(words) - len(self.closing))]


def common_start(one: Sequence[str], other: Sequence[str]) -> list[str]:
    unequal = (place for place, (a, b) in enumerate(zip(one, other)) if a != b)
    return list(one[: next(unequal, min(len(one), len(other)))])


def compared_words(record: dict, template: Template) -> list[str]:
    """What tells a record apart: its prompt's own words or, where all prompts are the same, its answer's."""
    if template.is_whole:
        return split_words(record["answer"])
    return template.own_words(split_words(record["prompt"]))


def shingle_sets(texts: Iterable[str]) -> list[np.ndarray]:
    return [shingle_hashes(text.split()) for text in texts]


def group(records: Records, dataset: Dataset) -> list[str]:
    """Connected components of `same group` and `similar prompts`, named after their smallest id."""
    ids, units, texts = ([*records.texts(name)] for name in ("id", "unit", "compared"))
    links = splits.links_by_key(units, [f"={text}" for text in texts])
    first = {text: place for place, text in reversed([*enumerate(texts)])}
    places = sorted(first.values())  # equal texts are linked already
    similar = link_similar(shingle_sets(texts[place] for place in places), dataset.similarity)
    links += [(places[one], places[other]) for one, other in similar]
    return [ids[root] for root in splits.connected_components(len(records), links)]


def find_leaks(held_out: Records, others: Records, dataset: Dataset) -> dict[str, str]:
    """Others that are similar to a held-out record: all of them, where `group` sees what minhashes show.

    Those with the same words are, too: records of another dataset may have other words in common.
    """
    ids = [[*part.texts("id")] for part in (held_out, others)]
    words = [[" ".join(split_words(prompt)) for prompt in part.texts("prompt")] for part in (held_out, others)]
    known = dict(zip(words[0], ids[0]))
    found = {id: known[text] for id, text in zip(ids[1], words[1]) if text in known}
    pairs = find_similar(*compared_sets(held_out, others), dataset.similarity)
    return found | {ids[1][other]: ids[0][query] for query, other, _ in pairs}


def compared_sets(held_out: Records, others: Records) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return shingle_sets(held_out.texts("compared")), shingle_sets(others.texts("compared"))


def count_overlaps(held_out: Records, others: Records, dataset: Dataset) -> dict[str, dict]:
    """Records held out whose prompt, or most of it, stands among others."""
    best: dict[int, float] = {}
    levels = sorted({dataset.similarity, ALIKE}, reverse=True)
    for query, _, similarity in find_similar(*compared_sets(held_out, others), levels[-1]):
        best[query] = max(similarity, best.get(query, 0.0))
    found = {"the same prompt": exact_overlap(held_out.texts("prompt"), others.texts("prompt"))}
    for level in levels:
        count = sum(similarity >= level for similarity in best.values())
        found[f"{level:.0%} of runs of five words"] = {"records": count, "sensitivity": 1.0}
    return found


def proof(parts: Mapping[str, Records], dataset: Dataset) -> dict[str, int]:
    return {
        "groups_in_two_splits": splits.count_shared(parts, "group"),
        "named_groups_in_two_splits": splits.count_shared(parts, "unit"),
        "texts_in_two_splits": splits.count_shared(parts, "compared"),
    }


def summary(records: Records) -> dict:
    """Characters of prompts and answers (minimum, quartiles, maximum), and how often the commonest answers stand."""
    lengths = {name: [len(text) for text in records.texts(name)] for name in ("prompt", "answer")}
    answers = Counter(records.texts("answer"))
    return {
        "characters": {name: np.quantile(each, [0, 0.25, 0.5, 0.75, 1]).tolist() for name, each in lengths.items()},
        "answers": len(answers),
        "commonest": dict(sorted(answers.items(), key=lambda item: (-item[1], item[0]))[:5]),
        "choices": next(iter(records))["choices"],
    }
