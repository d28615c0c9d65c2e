"""The graph of jobs that a config makes, asked of Snakemake in this process; nothing is run."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)
from studies import ABSENT, ROOT, changed, pretrained, shipped, snakemake, written

DEMO = pretrained()
JOBS = {
    "fetch_source": 8,  # four domains, each once to study and once to pretrain on
    "build_dataset": 8,
    "audit_split": 8,
    "prepare_base": 3,
    "train_sweep": 6,  # four domains on the shared base, lncrna and speech on their own as well
    "train_mixture": 1,
    "predict_baselines": 4,
    "predict": 12,  # and once more on general data, for what adaptation cost
    "score": 12,
    "tabulate_domain": 6,
    "summarise_mixture": 1,
    "gather_routing": 1,
    "measure_recovery": 1,
    "draw_routing": 1,
    "draw_transfer": 1,
    "draw_curves": 3,
    "list_errors": 2,  # transcripts of a causal base and of Whisper
    "tabulate_errors": 2,
    "tabulate_speed": 2,
    "show_records": 6,
    "write_site": 1,
    "all": 1,
}
NEEDS = {  # rule: the rules whose outputs it reads
    "fetch_source": set(),
    "build_dataset": {"fetch_source", "build_dataset"},  # of what bases have learnt from
    "audit_split": {"build_dataset"},
    "prepare_base": {"fetch_source", "build_dataset", "audit_split", "prepare_base"},  # recordings stay as fetched
    "train_sweep": {"fetch_source", "build_dataset", "audit_split", "prepare_base"},
    "train_mixture": {"fetch_source", "build_dataset", "prepare_base", "train_sweep"},
    "list_errors": {"build_dataset", "predict"},
    "tabulate_errors": {"list_errors"},
    "tabulate_speed": {"predict"},
    "predict_baselines": {"build_dataset"},
    "predict": {"fetch_source", "build_dataset", "prepare_base", "train_sweep", "train_mixture"},
    "score": {"build_dataset", "predict", "predict_baselines"},
    "tabulate_domain": {"audit_split", "prepare_base", "score"},
    "summarise_mixture": {"prepare_base", "train_mixture", "score", "gather_routing", "measure_recovery"},
    "gather_routing": {"predict"},
    "measure_recovery": {"build_dataset", "predict", "predict_baselines"},
    "draw_routing": {"gather_routing"},
    "draw_transfer": {"summarise_mixture"},
    "draw_curves": {"train_sweep", "train_mixture"},
    "all": {"tabulate_domain", "summarise_mixture", "draw_routing", "draw_transfer", "draw_curves"}
    | {"tabulate_errors", "tabulate_speed", "write_site", "prepare_base", "train_sweep", "train_mixture"},
    "write_site": {"build_dataset", "audit_split", "prepare_base", "score", "tabulate_domain", "tabulate_errors"}
    | {"summarise_mixture", "draw_routing", "draw_transfer", "draw_curves", "show_records"},
    "show_records": {"fetch_source", "build_dataset", "predict", "predict_baselines", "score"},
}
COMPARISON = {"compare": {"base": "mini_lm"}}
EMPTY = '{"domain": "", "base": "", "control": null, "rows": [], "seeds": []}'  # what the end of a run can print
SNAKEFILE = ROOT / "workflow" / "Snakefile"
TRAINING = {"prepare_base", "train_sweep", "train_mixture"}


class Plan:
    """The jobs of a config, each behind those that it needs, and which of them would run."""

    def __init__(
        self, config: dict, folder: Path, executor: str = "dryrun", force: bool = False, targets: Iterable[str] = ()
    ):
        quiet = OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False, dryrun=executor == "dryrun")
        settings = ConfigSettings(configfiles=[written(config, folder)])
        for base in config["bases"].values():  # a plan wants what is given to be there, not to be opened
            if "path" in base and "{" not in base["path"]:
                (folder / base["path"]).mkdir(parents=True, exist_ok=True)
        with SnakemakeApi(quiet) as api:
            flow = api.workflow(ResourceSettings(cores=2), settings, snakefile=SNAKEFILE, workdir=folder)
            flow.dag(DAGSettings(forceall=force, targets={*targets})).execute_workflow(executor=executor)
            dag = flow._workflow.dag
            self.rules = [rule for rule in flow._workflow.rules if rule.script]
            self.jobs = [job for level in dag.toposorted() for job in level]
            self.edges = {(job.rule.name, needed.rule.name) for job in dag.jobs for needed in dag.dependencies[job]}
            self.due = Counter(told(job) for job in dag.jobs if dag.needrun(job))
        self.counts = Counter(job.rule.name for job in self.jobs)


def told(job) -> str:
    return " ".join([job.rule.name, *map(str, job.wildcards_dict.values())])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Plan(DEMO, tmp_path_factory.mktemp("demo"))


@pytest.fixture
def plan(tmp_path):
    return lambda changes: Plan(changed(DEMO, changes), tmp_path)


def test_the_demo_makes_these_jobs(demo):
    assert demo.counts == JOBS


def test_the_graph_of_rules_is_this_one(demo):
    assert demo.edges == {(rule, needed) for rule, all_needed in NEEDS.items() for needed in all_needed}


def test_nothing_learns_from_test_records(demo):
    learners = [job for job in demo.jobs if job.rule.name in TRAINING]
    assert len(learners) == 10
    assert not [path for job in learners for path in job.input if Path(path).name == "test.parquet"]
    gates = [path for job in learners for path in job.input if job.rule.name == "train_mixture"]
    assert {Path(path).name for path in gates if path.endswith(".parquet")} == {"gate.parquet", "valid.parquet"}


def test_every_rule_says_what_it_needs(demo):
    assert {rule.name for rule in demo.rules} >= {*JOBS} - {"all"}
    for rule in demo.rules:
        assert rule.log, rule.name
        assert rule.benchmark, rule.name
        assert rule.conda_env, rule.name
        assert {"mem_mb", "runtime"} <= {*rule.resources}, rule.name
        assert rule.params.code, rule.name


def test_a_second_attempt_asks_every_machine_for_twice_as_much_and_knows_that_it_is_the_second(demo):
    assert all(job.rule.script for job in demo.jobs if job.rule.name != "all")
    for job in (job for job in demo.jobs if job.rule.script):
        first = dict(job.resources)
        job.attempt = 2
        second = dict(job.resources)
        job.attempt = 1
        assert (first["attempt"], second["attempt"]) == (1, 2), job.rule.name
        assert all(second[name] == 2 * first[name] for name in ("mem_mb", "runtime")), job.rule.name


def test_every_profile_tries_again():
    for path in ROOT.glob("profiles/*/config.yaml"):
        assert yaml.safe_load(path.read_text())["retries"] == 1, path


def test_a_stage_waits_for_all_bases_that_it_needs(tmp_path):
    given = {key: shipped("test")[key] for key in ("adapters", "evaluation", "resources")}
    stage = {
        "procedure": "trans_lora",
        "base": "mini_lm",
        "target": "twin",
        "domains": ["protein"],
        "adapter": "one_rate",
    }
    twin = {"bases.twin": DEMO["bases"]["mini_lm"], "lifecycle": {"moved": stage}}
    found = Plan(changed(DEMO, given | twin | {"mixtures": ABSENT}), tmp_path, targets=["run_stages"])
    [job] = [job for job in found.jobs if job.rule.name == "run_stage"]
    for name in ("mini_lm", "twin"):
        assert {f"results/bases/{name}", f"results/bases/{name}/base.json"} <= {*map(str, job.input)}
    assert {*job.params.further} == {"twin"}


def test_an_adapter_more_is_a_training_more(demo, plan):
    wide = {"adapters.wide": {"method": "lora", "rank": 32}, "domains.recsys.adapters.mini_lm": ["lora", "wide"]}
    assert plan(wide).counts - demo.counts == {"train_sweep": 1}


def test_beside_a_masked_base_stand_no_controls_that_read_one_side_alone(plan):
    masked = {"bases.esm": {"family": "masked", "path": "esm"}, "domains.protein.adapters.esm": ["lora"]}
    found = plan(masked | {"compare": {"base": "esm"}})
    compared = [job for job in found.jobs if job.rule.name in ("score", "contrast_methods")]
    with_controls = {told(job) for job in compared if any("baselines" in path for path in job.input)}
    assert "score data protein mini_lm" in with_controls
    assert {told(job) for job in compared} - with_controls >= {
        "score data protein esm",
        "contrast_methods protein esm",
    }


def test_a_seed_more_is_no_job_more_as_every_job_does_all_seeds_on_one_loaded_base(demo, plan):
    assert plan({"seeds": [0, 1]}).counts == demo.counts


def test_a_mixture_more_adds_its_training_and_what_is_shown_of_it(demo, plan):
    pair = {"mixer": "xlora", "base": "mini_lm", "experts": {"protein": "lora", "lncrna": "lora"}}
    shown = {"gather_routing": 1, "measure_recovery": 1, "summarise_mixture": 1, "draw_routing": 1, "draw_transfer": 1}
    assert plan({"mixtures.pair": pair}).counts - demo.counts == {"train_mixture": 1, **shown}


def test_a_domain_less_takes_its_jobs_along(demo, plan):
    less = {"domains.recsys": ABSENT, "mixtures.xlora.experts.recsys": ABSENT}
    gone = {"fetch_source": 1, "build_dataset": 1, "audit_split": 1, "train_sweep": 1, "predict_baselines": 1}
    gone |= {"predict": 2, "score": 2, "tabulate_domain": 1, "show_records": 1}
    assert demo.counts - plan(less).counts == gone


def test_records_that_may_not_be_shown_are_read_for_no_page(demo, plan):
    silent = plan({"domains.speech.show_records": False})
    assert demo.counts - silent.counts == {"show_records": 2, "list_errors": 2, "tabulate_errors": 2}
    (site,) = (job for job in silent.jobs if job.rule.name == "write_site")
    assert (
        not [path for path in site.input if "views/speech" in path]
        and "results/views/recsys/mini_lm.json" in site.input
    )


def test_tables_need_no_figure(tmp_path):
    counts = Plan(DEMO, tmp_path, targets=["tables"]).counts
    assert counts["gather_routing"] and not [rule for rule in counts if rule.startswith("draw_")]


def test_without_mixtures_only_what_domains_show_is_left(demo, plan):
    gone = {"train_mixture": 1, "gather_routing": 1, "measure_recovery": 1}
    gone |= {"summarise_mixture": 1, "draw_routing": 1, "draw_transfer": 1}
    assert demo.counts - plan({"mixtures": {}}).counts == gone


def test_a_given_base_that_hears_learns_it_from_general_speech(plan):
    audio = {"encoder": "mini_whisper", "corpus": "speech"}
    gpt = {"bases.gpt": {"family": "causal", "path": "gpt", "audio": audio}, "domains.speech.adapters.gpt": ["lora"]}
    job = next(job for job in plan(gpt).jobs if told(job) == "prepare_base gpt")
    learnt = {"general/speech/train.parquet", "general/speech/audit.json", "bases/mini_whisper/base.json"}
    learnt |= {"bases/mini_whisper", "raw/general/speech", "raw/general/speech/files.json"}
    assert set(job.input) == {f"results/{path}" for path in learnt}


def test_a_base_that_learns_on_reads_general_data_and_the_base_that_it_begins_as(demo, plan):
    continued = {"base": "mini_lm", "corpus": "protein", "adapter": "lora"}
    changes = {"bases.mini_lm.audio": ABSENT, "domains.speech": ABSENT, "mixtures": {}}
    changes |= {"bases.mini_lm.pretrain.domains": ["protein", "lncrna"]}
    changes |= {"bases.on": {"family": "causal", "continued": continued}, "domains.protein.adapters.on": ["lora"]}
    found = plan(changes)
    [job] = [job for job in found.jobs if job.rule.name == "continue_base"]
    read = {str(Path(path).relative_to("results")) for path in job.input}
    data = {f"general/protein/{file}" for file in ("train.parquet", "valid.parquet", "audit.json")}
    assert read == data | {"bases/mini_lm/base.json", "bases/mini_lm"}
    assert job.output == ["results/bases/on/base.json", "results/bases/on"]
    assert {("continue_base", "prepare_base"), ("train_sweep", "continue_base")} <= found.edges


def test_a_published_base_is_made_of_the_files_under_bases_root_or_of_none(plan, tmp_path):
    (tmp_path / "models" / "gpt").mkdir(parents=True)
    (tmp_path / "models" / "gpt" / "config.json").write_text("{}")
    gpt = {"bases.gpt": {"family": "causal", "hub": "a/gpt", "revision": "0" * 40}, "domains.recsys.adapters.gpt": []}
    for root, inputs, folder in ((None, [], None), ("models", ["models/gpt/config.json"], "models/gpt")):
        job = next(job for job in plan(gpt | {"bases_root": root}).jobs if told(job) == "prepare_base gpt")
        assert list(job.input) == inputs and job.params.folder == folder


def test_general_data_are_asked_of_the_base_and_the_domains_own_adapters_on_test_alone(demo):
    asked = {told(job): job for job in demo.jobs if job.rule.name == "predict"}
    studied, general = (asked[f"predict {corpus} speech mini_lm"] for corpus in ("data", "general"))
    assert [*studied.params.adapters[0]] == ["lora@speech", "lora@protein", "lora@lncrna", "lora@recsys"]
    assert [*studied.params.mixtures[0]] == ["xlora"] and {*studied.params.asked} == {
        "test",
        "valid",
        "sample",
        "rank",
    }
    assert [*general.params.adapters[0]] == ["lora@speech"]
    assert general.params.mixtures == {0: {}} and [*general.params.asked] == ["test"]
    assert {Path(path).parent for path in general.input.data} == {Path("results/general/speech")}
    table = next(job for job in demo.jobs if told(job) == "tabulate_domain speech mini_lm")
    assert [path.split("/")[2] for path in table.input.metrics] == ["data", "general"]


def test_a_sweep_declares_a_folder_and_one_file_in_it_for_each_seed(plan):
    job = next(job for job in plan({"seeds": [0, 1]}).jobs if told(job) == "train_sweep recsys mini_lm lora")
    made = {str(Path(path).relative_to("results/adapters/recsys/mini_lm/lora")) for path in job.output}
    assert made == {"runs.parquet", "seed0", "seed0/run.json", "seed1", "seed1/run.json"}


def test_a_mixture_declares_a_folder_and_one_file_in_it_for_each_seed_and_reads_the_experts_of_all_seeds(plan):
    job = next(job for job in plan({"seeds": [0, 1]}).jobs if told(job) == "train_mixture xlora")
    made = {str(Path(path).relative_to("results/mixtures/xlora")) for path in job.output}
    assert made == {"runs.parquet", "seed0", "seed0/mixture.json", "seed1", "seed1/mixture.json"}
    experts = [tuple(Path(path).parts[2:6]) for path in job.input.experts]
    pairs = [(domain, f"seed{seed}") for domain in DEMO["mixtures"]["xlora"]["experts"] for seed in (0, 1)]
    assert experts == [(domain, "mini_lm", "lora", seed) for domain, seed in pairs]


def test_curves_are_drawn_of_every_adapter_and_of_mixtures_that_learn(plan):
    even = {"mixer": "uniform", "base": "mini_lm", "experts": {"protein": "lora", "lncrna": "lora"}}
    job = next(job for job in plan({"mixtures.even": even}).jobs if told(job) == "draw_curves mini_lm")
    folders = {f"lora@{domain}": f"adapters/{domain}/mini_lm/lora" for domain in DEMO["mixtures"]["xlora"]["experts"]}
    folders["xlora"] = "mixtures/xlora"
    assert job.params.runs == {n: f"results/{f}/runs.parquet" for n, f in folders.items()}


def test_learned_ranks_are_drawn_where_a_method_learns_them(demo, plan):
    adapters = {"mini_lm": ["lora"], "mini_whisper": ["lora", "shared"]}
    planned = plan({"adapters.shared": {"method": "s2_lora"}, "domains.speech.adapters": adapters})
    assert planned.counts["draw_ranks"] == 1 and "draw_ranks" not in demo.counts
    drawn = next(job for job in planned.jobs if job.rule.name == "draw_ranks")
    assert drawn.params.runs == {"shared@speech": {0: "results/adapters/speech/mini_whisper/shared/seed0/run.json"}}


def test_without_general_data_nothing_is_asked_of_them(plan):
    bare = plan({"general": ABSENT, "bases": shipped("config")["bases"]})
    assert {job.wildcards.corpus for job in bare.jobs if job.rule.name in ("predict", "score")} == {"data"}
    assert bare.counts["predict"] == bare.counts["score"] == 6


def test_a_comparison_pairs_the_methods_of_each_domain_of_its_base(demo, plan):
    added = plan(COMPARISON).counts - demo.counts
    assert added == {"contrast_methods": 4, "tabulate_methods": 1, "draw_rates": 1, "draw_pareto": 1}


def test_a_comparison_reads_the_runs_of_its_base_in_the_configs_order(plan):
    wide = {"adapters.wide": {"method": "lora", "rank": 32}, "domains.recsys.adapters.mini_lm": ["wide", "lora"]}
    job = next(job for job in plan(COMPARISON | wide | {"seeds": [0, 1]}).jobs if job.rule.name == "tabulate_methods")
    assert [name for name, _ in job.params.runs] == ["lora"] * 8 + ["wide"] * 2
    assert [path.split("/")[4] for _, path in job.params.runs] == [name for name, _ in job.params.runs]
    folder = "results/adapters/recsys/mini_lm/wide"
    assert [*job.input.runs][-2:] == [f"{folder}/seed{seed}/run.json" for seed in (0, 1)]


def test_the_shipped_comparison_is_one_job_a_sweep(tmp_path):
    config = shipped("methods")
    found = Plan(config, tmp_path).counts
    assert found["train_sweep"] == len(config["domains"]) * len(config["adapters"])
    assert found["predict"] == found["contrast_methods"] == len(config["domains"])
    assert found["tabulate_methods"] == found["draw_rates"] == found["draw_pareto"] == 1


FOLDING = {"bases.esm": {"family": "folding", "path": "models/esmfold"}, "folding": "esm"}
CHAINS = {"domains.structure": {"source": {"kind": "simulate"}}}


def test_a_folding_base_folds_what_generates(demo, plan):
    assert plan(FOLDING).counts - demo.counts == {"prepare_base": 1, "fold": 1}


def test_a_folding_base_is_judged_where_true_structures_are(demo, plan):
    judged = plan(FOLDING | CHAINS)
    data = {"fetch_source": 1, "build_dataset": 1, "audit_split": 1}
    shown = {"assess_folding": 1, "tabulate_folding": 1, "draw_calibration": 1}
    assert judged.counts - demo.counts == {"prepare_base": 1, "fold": 1} | data | shown
    [fold] = [job for job in judged.jobs if job.rule.name == "fold"]
    assert {"results/data/structure/test.parquet", "results/predictions/data/protein/baselines.parquet"} < set(
        fold.input
    )


def test_a_pretrained_folding_base_is_judged_without_what_it_learnt(plan):
    learnt = {"family": "folding", "pretrain": {"domains": ["structure"], "architecture": {}}}
    general = {"general.structure": {"source": {"kind": "simulate"}}}
    jobs = plan(FOLDING | CHAINS | general | {"bases.esm": learnt}).jobs
    [job] = [job for job in jobs if job.rule.name == "assess_folding"]
    assert "results/general/structure/train.parquet" in job.input


def test_a_base_that_nothing_is_trained_on_has_tables_and_no_curves(demo, plan):
    planned = plan({"bases.other": DEMO["bases"]["mini_lm"], "domains.protein.adapters.other": []})
    more = planned.counts - demo.counts
    assert more["tabulate_domain"] == 1 and "draw_curves" not in more


def test_one_adapter_is_tabulated_under_several_ways_to_split(demo, plan):
    weak = {"source": {"kind": "simulate"}, "dataset": {"protocol": "random"}, "adapters": {"mini_bert": ["lora"]}}
    compare = {"base": "mini_bert", "adapter": "lora", "entries": ["lncrna-random", "lncrna"]}
    planned = plan({"domains.lncrna-random": weak, "compare_splits": compare})
    assert (planned.counts - demo.counts)["tabulate_splits"] == 1
    [job] = [job for job in planned.jobs if job.rule.name == "tabulate_splits"]
    folder = "results/data/lncrna-random"
    assert {f"{folder}/audit.json", f"{folder}/card.json", "results/metrics/data/lncrna/mini_bert.json"} <= {
        *job.input
    }


def test_throughput_is_measured_only_if_it_is_asked_for_and_count_by_count(demo, tmp_path):
    config = changed(DEMO, {"serve_throughput": {"base": "mini_lm", "adapters": [1, 10]}})
    assert Plan(config, tmp_path).counts == demo.counts
    asked = Plan(config, tmp_path, targets=["serve_throughput"])
    assert asked.counts["measure_throughput"] == 2 and asked.counts["tabulate_throughput"] == 1
    needed = {rule for rule, other in asked.edges if other == "measure_throughput"}
    assert needed == {"tabulate_throughput"} and "predict" not in asked.counts
    assert {other for rule, other in asked.edges if rule == "measure_throughput"} == {"prepare_base", "train_sweep"}


def test_systems_and_baselines_of_another_entry_of_the_domain_are_tested_on_one_that_trains_none(demo, plan):
    cow = {"source": {"kind": "simulate", "genes": 60}, "adapters": {"mini_bert": []}, "transfer": ["lncrna"]}
    planned = plan({"domains.lncrna-cow": cow})
    rules = (
        "fetch_source",
        "build_dataset",
        "audit_split",
        "predict_baselines",
        "predict",
        "score",
        "tabulate_domain",
        "show_records",
    )
    assert planned.counts - demo.counts == dict.fromkeys(rules, 1)
    inputs = {
        job.rule.name: {*map(str, job.input)} for job in planned.jobs if "lncrna-cow" in job.wildcards_dict.values()
    }
    assert "results/adapters/lncrna/mini_bert/lora/seed0/run.json" in inputs["predict"]
    human = "results/data/lncrna/train.parquet"
    assert human in inputs["audit_split"] & inputs["predict_baselines"] and human not in inputs["build_dataset"]
    assert "results/general/lncrna/train.parquet" in inputs["build_dataset"]


def write_outputs(planned: Plan, folder: Path) -> None:
    """Puts a file, or a folder, where each output of a plan would be."""
    for path, is_folder in {(str(path), path.is_directory) for job in planned.jobs for path in job.output}:
        (folder / path if is_folder else (folder / path).parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            (folder / path).write_text(EMPTY)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which everything seems made: files stand where outputs would, and Snakemake believes in them."""
    wide = {"adapters.wide": {"method": "lora", "rank": 4}, "domains.lncrna.adapters.mini_bert": ["lora", "wide"]}
    config, folder = changed(DEMO, wide), tmp_path_factory.mktemp("finished")
    for path, is_folder in {
        (str(path), path.is_directory) for job in Plan(config, folder).jobs for path in job.output
    }:
        (folder / path if is_folder else (folder / path).parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            (folder / path).write_text(EMPTY)
    Plan(config, folder, "touch", force=True)
    assert not Plan(config, folder).due
    return lambda changes: Plan(changed(config, changes), folder).due


def test_a_changed_rank_retrains_its_adapter_and_what_hangs_on_it(finished):
    due = finished({"adapters.wide.rank": 64})
    shown = {"tabulate_domain lncrna mini_bert", "show_records lncrna mini_bert"}
    shown |= {"draw_curves mini_bert", "write_site", "all"}
    assert {*due} == {
        "train_sweep lncrna mini_bert wide",
        *(f"predict {corpus} lncrna mini_bert" for corpus in ("data", "general")),
        *(f"score {corpus} lncrna mini_bert" for corpus in ("data", "general")),
        *shown,
    }


@pytest.mark.parametrize("change", [{"resamples": 500}, {"min_records": 2}, {"min_groups": 2}])
def test_other_bootstrap_resamples_and_another_floor_only_score_again(finished, change):
    changes = {f"evaluation.{key}": value for key, value in change.items()}
    rules = {job.partition(" ")[0] for job in finished(changes)}
    shown = {"tabulate_domain", "show_records", "summarise_mixture", "draw_transfer", "write_site", "all"}
    assert rules == {"score", "measure_recovery"} | shown


def test_more_memory_runs_nothing_again(finished):
    assert not finished({"resources.mem_mb": 9000, "resources.runtime": 30})


def test_another_dataset_option_rebuilds_one_dataset_and_retrains_on_it(finished):
    due = finished({"domains.recsys.dataset.k_core": 3})
    remade = {job for job in due if job.split()[0] in {"fetch_source", "build_dataset", "audit_split", "train_sweep"}}
    assert remade == {"build_dataset data recsys", "audit_split data recsys", "train_sweep recsys mini_lm lora"}
    assert "predict data recsys mini_lm" in due
    assert "train_mixture xlora" in due
    assert not [job for job in due if "mini_bert" in job or "mini_whisper" in job or "prepare_base" in job]


def test_another_general_task_retrains_the_bases_that_read_it(finished):
    due = finished({"general.lncrna.task.window": 150})
    assert {job for job in due if job.startswith("prepare_base")} == {"prepare_base mini_lm", "prepare_base mini_bert"}


def test_a_wrong_config_stops_a_plan(plan):
    with pytest.raises(WorkflowError, match=r"study\.yaml: adapters\.lora: unknown key \(rnak\); .*mean `rank`\?"):
        plan({"adapters.lora.rnak": 8})


def test_a_wrong_config_stops_snakemake_with_one_line(tmp_path):
    done = snakemake(tmp_path, changed(DEMO, {"adapters.lora.rnak": 8}), "-n")
    assert done.returncode == 1
    allowed = "alpha, dropout, lr_ratio, method, rank, target_modules, training"
    told = f"adapters.lora: unknown key (rnak); expected one of {allowed}; fix: did you mean `rank`?"
    assert done.stdout.splitlines()[-1] == f"error: {tmp_path}/study.yaml: {told}"
    assert "Traceback" not in done.stdout


def test_a_cluster_to_which_no_cores_are_given_starts_without_a_forecast(tmp_path):
    """There is no cluster here: the job that is to be handed over is as far as this comes."""
    pytest.importorskip("snakemake_executor_plugin_slurm")
    cluster = ["--workflow-profile", "none", "--executor", "slurm", "--jobs", "1"]
    cluster += ["--slurm-init-seconds-before-status-checks", "1"]
    done = snakemake(tmp_path, shipped("config"), *cluster, "results/bases/mini_lm/base.json")
    assert "Execute 1 jobs" in done.stdout, done.stdout
    assert "This study takes" not in done.stdout


CHECKS = {
    "snakemake --lint": ["snakemake", "--lint"],
    "snakefmt": ["snakefmt", "--check", "workflow"],
    "ruff check": ["ruff", "check"],
    "ruff format": ["ruff", "format", "--check"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_style(check):
    done = subprocess.run([sys.executable, "-m", *CHECKS[check]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
