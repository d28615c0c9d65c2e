"""One package per domain. A domain is these five modules; nothing else names it.

`sources.py`  (imported while the config is read: pydantic only, nothing heavy)
    Files        subclass of `contract.FilesOptions`: paths of raw public files and how to read them; with an option
                 `simulated` (a Simulation or None) the simulator's files are added to lists of locations
    Simulation   subclass of `contract.Options` with `kind: Literal["simulate"]`: size and traits of the simulator
    Dataset      subclass of `contract.DatasetOptions`: what is kept, how records are grouped
    Task         subclass of `contract.TaskOptions`: how a record is put to a model
    AUDIO        True if examples carry audio; optional
    FOLDED       True if samples are proteins to be folded; optional
    FAMILIES     {base family: outputs that are predicted there}; outputs are "nll", "choice", "text", "sample"
`build.py`
    COLUMNS      {column: Arrow type or its name} of a record beside `id` and `group`
    read(files, dataset, ledger) -> iterator of records (dicts with `id` and COLUMNS), validated; see `data.ledger`
    group(records, dataset) -> group of each record: what must not stand in two splits
    split(records, groups, dataset, seed) -> split of each record; optional, by default groups are hashed
    leaks(held_out, others, dataset) -> {id among others: id of the held-out record it resembles}; optional
    proof(splits, dataset) -> {name of a count that must be 0: count}
    summary(records) -> facts for the dataset card, from records that know their `split`; optional
`task.py`
    examples(records, task, family) -> list of `contract.Example`, one or more for a record, in the records' order
    samples(n, task, family) -> n Examples with an empty target, to be continued; only with the output "sample"
    chain(text) -> residues of a sample, or None; only if FOLDED
    baselines(train, held_out, task) -> {system: prediction rows of `held_out`}; optional, controls that need no
                 language model: they learn from train, and of a held-out record they see what a model may see
    sample_baselines(test, n, task) -> {system: rows of samples, with the ids of `samples`}; optional, likewise
`metrics.py`
    METRICS      tuple of `contract.Metric`
    VERSION      of their meaning, from 1: raise it when a metric changes what it means
    columns(rows, records, task) -> {column: array}, aligned with `rows`: what the metrics look at
`simulate.py`
    simulate(simulation, population, seed, out) -> dict of `Files` fields with paths relative to `out`;
                 writes raw files in the public formats. `population` is "general" (what bases are pretrained on) or
                 "domain" (what adapters learn): the two differ in distribution and share no record.
"""
