"""The reference of the config and the JSON schema say what the models say."""

import re

import yaml

from loratory import reference
from loratory.config import config_model
from loratory.registry import registered_names

SCHEMA = config_model().model_json_schema()


def test_the_shipped_files_are_what_the_models_give():
    text = reference.README.read_text(encoding="utf-8")
    assert reference.readme_text(text) == text, "run: python -m loratory.reference"
    assert reference.SCHEMA.read_text(encoding="utf-8") == reference.schema_text(), "run: python -m loratory.reference"


def test_the_introduction_survives_and_the_rest_is_replaced():
    text = reference.readme_text(f"mine\n{reference.MARK}stale\n")
    assert text.startswith(f"mine\n{reference.MARK}")
    assert "stale" not in text


def test_every_key_of_every_group_is_listed_once():
    text = reference.reference_text(SCHEMA)
    groups = [SCHEMA, *(SCHEMA["$defs"][name] for name in reference.config_paths(SCHEMA))]
    keys = [key for group in groups for key in group["properties"]]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == keys
    assert {*reference.config_paths(SCHEMA)} == {*SCHEMA["$defs"]}


def test_links_lead_to_headings():
    text = reference.reference_text(SCHEMA)
    headings = [
        reference.heading_anchor(line.removeprefix("## ")) for line in text.splitlines() if line.startswith("## ")
    ]
    assert len({*headings}) == len(headings)
    assert {*re.findall(r"\]\(#([^)]+)\)", text)} <= {*headings}


def test_rows_have_four_cells():
    rows = [line for line in reference.reference_text(SCHEMA).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_a_key_the_demo_gives_is_in_the_reference():
    demo = yaml.safe_load((reference.ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    for key in demo:
        assert f"| `{key}` |" in reference.reference_text(SCHEMA)


def test_every_method_is_in_the_list_and_in_the_comparison_on_every_domain():
    listed = (reference.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    study = yaml.safe_load((reference.ROOT / "config" / "methods.yaml").read_text(encoding="utf-8"))
    methods = {*registered_names("method")}
    assert methods == {*re.findall(r"^\| `(\w+)`", listed, re.MULTILINE)}
    # mini_lm has no biases
    assert methods - {"bitfit"} == {entry["method"] for entry in study["adapters"].values()}
    for domain in study["domains"].values():
        assert domain["adapters"]["mini_lm"] == list(study["adapters"])
