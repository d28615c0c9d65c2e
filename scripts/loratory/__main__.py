"""The command line: `loratory init`, `check`, `plan`, `run`, `report`, `audit`, `add-domain`, `export`, `serve`.

What is made, Snakemake makes. `check`, `plan`, `run` and `report` take config files, the later ones on top of the
earlier; targets and options that they do not know go to Snakemake.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from loratory.config import PROJECT, Study, check_library_options, entries_by_name, read_config, require_inputs
from loratory.data.files import atomic_write
from loratory.domains.contract import FilesOptions
from loratory.errors import InputError
from loratory.registry import base_families, load_module, registered_names, unknown_name_error
from loratory.strict_yaml import load_yaml

DEMO = PROJECT / "config" / "config.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status, 0, or 1 after an error of one line; does not return from Snakemake."""
    given, options = command_parser().parse_known_args(arguments)
    try:
        if options and given.command not in (plan_study, run_study, make_report):
            raise InputError("command line", "unknown option", options[0], fix="see `loratory COMMAND --help`")
        return int(given.command(given, options) or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def command_parser() -> ArgumentParser:
    parser = ArgumentParser("loratory", description="From raw domain data to adapters, mixtures and tables.")
    commands = parser.add_subparsers(required=True, metavar="command")
    init = commands.add_parser("init", help="write a config for your files")
    init.add_argument("domain", help="such as protein, lncrna, speech, recsys, text")
    init.add_argument("files", nargs="*", metavar="KEY=FILE", help="of the domain's source, such as fasta=my.fasta")
    init.add_argument("--hub", metavar="OWNER/NAME", help="a published base instead of a small one that is shipped")
    init.add_argument("--revision", help="the published base's commit")
    init.add_argument("--family", help="the base's family (default: the domain's first)")
    init.add_argument("--out", default="config.yaml", help="the config to write (default: %(default)s)")
    init.set_defaults(command=write_config)
    audit = commands.add_parser("audit", help="what test files share with train files, split by whomever")
    audit.add_argument("domain", help="such as protein, lncrna, speech, recsys, text")
    for part in ("train", "test"):
        audit.add_argument(f"--{part}", nargs="+", required=True, metavar="KEY=FILE", help="such as fasta=my.fasta")
    audit.add_argument("--dataset", nargs="+", default=[], metavar="KEY=VALUE", help="options of the domain's dataset")
    audit.set_defaults(command=audit_split_files)
    add = commands.add_parser("add-domain", help="write a package with a domain to begin with")
    add.add_argument("name", help="what configs will call it")
    add.set_defaults(command=add_domain)
    export = commands.add_parser(
        "export", help="a trained adapter or mixture as a folder for others, with a model card"
    )
    export.add_argument("source", help="…/seed0 of an adapter or a mixture among the results")
    export.add_argument("target", help="the folder to write")
    form = export.add_mutually_exclusive_group()
    engines = ("peft", "vllm", "lorax", "tgi")
    form.add_argument("--for", dest="form", default="peft", choices=engines, help="who loads it")
    form.add_argument(
        "--merged", dest="form", action="store_const", const="merged", help="the whole model, with the change in it"
    )
    export.set_defaults(command=export_folder)
    serve = commands.add_parser("serve", help="answer as a base and what was trained on it")
    serve.add_argument("base", help="…/bases/BASE among the results")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    serve.add_argument("--port", default=8000, type=int, help="(default: %(default)s)")
    serve.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    gigabytes = "GB for texts and adapters in use (default: %(default)s)"
    serve.add_argument("--memory", default=2.0, type=float, help=gigabytes)
    serve.set_defaults(command=serve_models)
    for name, command, text in (
        ("check", check_config, "is the config right, and is everything there that it names"),
        ("plan", plan_study, "what would be done, and how long it takes"),
        ("run", run_study, "make everything, or the targets that are named"),
        ("report", make_report, "make the pages of the report, and whatever is missing for them"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("names", nargs="+", metavar="CONFIG", help="YAML files; other names are Snakemake's targets")
        each.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="instead of what the files say")
        each.set_defaults(command=command)
    return parser


def add_domain(given: Namespace, options: Sequence[str]) -> None:
    from loratory.new_domain import write_domain

    folder = write_domain(given.name)
    print(f"{folder} is written; next: pip install --editable ./{folder}; python -m pytest {folder}")


def export_folder(given: Namespace, options: Sequence[str]) -> None:
    from loratory.export import export_trained

    export_trained(given.source, given.target, given.form)
    print(f"{given.target} is written; read its README.md, and say its licence there, before you hand it on")


def serve_models(given: Namespace, options: Sequence[str]) -> None:
    try:
        from loratory.endpoint import serve_base
    except ModuleNotFoundError as error:
        raise InputError("serve", "a package is missing", error.name, fix="pip install 'loratory[serve]'") from None
    serve_base(given.base, given.host, given.port, given.device, given.memory)


def check_config(given: Namespace, options: Sequence[str]) -> None:
    study = read_study(given)
    where = config_files(given)[-1]
    require_inputs(study, where)
    check_library_options(study, where, study.pathvars.results)
    domains = entries_by_name(study.domains)
    adapters = [name for domain in domains.values() for names in domain.adapters.values() for name in names]
    parts = (f"{len(domains)} domains", f"{len(study.bases)} bases", f"{len(adapters)} adapters to train")
    print("right, and all is there:", ", ".join((*parts, f"{len(study.mixtures)} mixtures")))


def plan_study(given: Namespace, options: Sequence[str]) -> None:
    from loratory.forecast import study_forecast
    from loratory.reporting.overview import WIDTH

    study = read_study(given)
    require_inputs(study, config_files(given)[-1])
    print(fill(study_forecast(study, len(os.sched_getaffinity(0))), WIDTH), flush=True)
    become_snakemake(given, ["--dry-run", "--quiet", "rules", *options])


def run_study(given: Namespace, options: Sequence[str]) -> None:
    become_snakemake(given, options)


def make_report(given: Namespace, options: Sequence[str]) -> None:
    become_snakemake(given, options, [f"{read_study(given).pathvars.results}/report"])


def audit_split_files(given: Namespace, options: Sequence[str]) -> int:
    """Prints what is shared. Returns 1 if a train record resembles a test record."""
    from loratory.domains.dataset import audit_files

    train, test = (read_entry(given.domain, pairs, given.dataset) for pairs in (given.train, given.test))
    found, shared = audit_files(given.domain, train.source, test.source, train.dataset)
    for id, source in sorted(found.items()):
        print(f"train {id} resembles test {source}")
    print(f"{len(found)} train records resemble test records")
    for name, of in shared.items():
        print(f"{of['records']} test records share with train: {name}")
    return int(bool(found))


def become_snakemake(given: Namespace, options: Sequence[str], targets: Sequence[str] = ()) -> None:
    """Runs this project's workflow in the current folder, in place of this process, so that Ctrl-C and other signals
    are Snakemake's to answer."""
    targets = targets or [name for name in given.names if name not in config_files(given)]
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(PROJECT / "workflow" / "Snakefile")]
    command += ["--workflow-profile", str(PROJECT / "profiles" / "default"), "--configfile", *config_files(given)]
    command += ["--config", *given.config] if given.config else []
    os.execv(sys.executable, [*command, *options])


def config_files(given: Namespace) -> list[str]:
    """Those of the names that are config files.

    Raises:
        InputError: there is none.
    """
    files = [name for name in given.names if Path(name).suffix in (".yaml", ".yml")]
    if not files:
        raise InputError("command line", "no config file is named", given.names[0], "a file that ends in .yaml")
    return files


def read_study(given: Namespace) -> Study:
    """The study of the config files and of what the command line says instead."""
    from snakemake.utils import update_config

    raw: dict[str, Any] = {}
    for path in config_files(given):
        update_config(raw, load_yaml(path))
    instead = keyed_values(given.config)
    update_config(raw, instead)
    return read_config(raw, config_files(given)[-1], instead)


def read_entry(domain: str, files: Sequence[str], dataset: Sequence[str]) -> Any:
    """A domain's entry in a config that has nothing else, from `KEY=VALUE` texts.

    Raises:
        InputError: as `read_config`, or a file is not there.
    """
    entry = {
        "source": {"kind": "files"} | file_values(domain, files),
        "dataset": keyed_values(dataset),
        "adapters": {},
    }
    study = read_config({"domains": {domain: entry}, "bases": load_yaml(DEMO)["bases"]}, "command line")
    require_inputs(study, "command line")
    return entries_by_name(study.domains)[domain]


def file_values(domain: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The files of a domain's source from `KEY=VALUE` texts.

    Raises:
        InputError: as `keyed_values`; what keys there are is said where one is left out.
    """
    bare = next((pair for pair in pairs or ["FILE"] if "=" not in pair), None)
    if bare is not None and domain in registered_names("domain"):
        keys = load_module("domain", domain, "sources").Files.model_fields.keys() - FilesOptions.model_fields.keys()
        what = "no key is given" if pairs else "no file is given"
        raise InputError("command line", what, bare, f"KEY={bare} with one of {', '.join(sorted(keys))}")
    return keyed_values(pairs)


def keyed_values(pairs: Sequence[str]) -> dict[str, Any]:
    """{key: its value as YAML; a list where the key is given several times} of `KEY=VALUE` texts."""
    found: dict[str, list] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise InputError("command line", "no value is given", pair, "KEY=VALUE")
        found.setdefault(key, []).append(yaml.safe_load(value))
    return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def write_config(given: Namespace, options: Sequence[str]) -> None:
    """Writes a study of one domain on some files, put as the demo puts it, with a grid of rates.

    Raises:
        InputError: no such domain, a file is not there, keys are missing, or `--out` exists.
    """
    demo = load_yaml(DEMO)
    if given.domain not in registered_names("domain"):
        raise unknown_name_error("command line", "domain", given.domain, registered_names("domain"))
    if Path(given.out).exists():
        raise InputError(given.out, "the file exists", fix="name another by --out, or remove it")
    entry = demo["domains"].get(given.domain, {})
    family = given.family or next(iter(base_families(given.domain)))
    shipped = {base["family"]: name for name, base in reversed(demo["bases"].items())}
    if given.hub:
        name, base = "published", {"family": family, "hub": given.hub, "revision": given.revision}
    elif family in shipped:
        name, base = shipped[family], demo["bases"][shipped[family]]
    else:
        raise unknown_name_error("command line", "family of the shipped bases", family, shipped)
    raw = {
        "title": f"{given.domain} from {', '.join(given.files)}",
        "seeds": [0, 1, 2],
        "domains": {
            given.domain: {
                "source": {"kind": "files"} | file_values(given.domain, given.files),
                "task": entry.get("task", {}),
                "adapters": {name: ["lora"]},
            }
        },
        "bases": {name: base},
        "adapters": {
            "lora": {
                "method": "lora",
                "rank": 8,
                "alpha": 16,
                "training": {"steps": 200, "learning_rates": [0.0003, 0.001, 0.003]},
            }
        },
    }
    require_inputs(read_config(raw, given.out), given.out)
    text = "# Written by `loratory init`. What every key means, and what else there is: config/README.md\n"
    with atomic_write(given.out) as aside:
        aside.write_text(
            text + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)
        )
    steps = "; ".join(f"loratory {step} {given.out}" for step in ("check", "plan", "run"))
    print(f"{given.out} is written; next: {steps}")


if __name__ == "__main__":
    sys.exit(main())
