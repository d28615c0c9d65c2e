"""One package per domain. A domain is these five modules; nothing else names it.

What each of them defines, with arguments, shapes and errors, is a Protocol of `loratory.domains.contract`, and
`registry.load_module("domain", name, "build")` has its type. A domain defines every member: one that it has no use for
is given its default.

module         Protocol            default of a member without use
`sources.py`   SourcesModule       `AUDIO = False`, `FOLDED = False`
`build.py`     BuildModule         `split = partial(random_split, "name of the domain")`, `find_leaks = None`,
                                   `count_overlaps = no_overlaps`
`task.py`      TaskModule          `baselines = no_baselines`
`metrics.py`   MetricsModule
`simulate.py`  SimulateModule

More is needed of `task.py` where "sample" is among the outputs (SamplingTaskModule) and where samples are folded
(FoldedTaskModule), and of `metrics.py` where bases fold (FoldingMetricsModule).
"""
