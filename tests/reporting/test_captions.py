from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
WILDCARDS = {
    "workflow": {},
    "domain_table": {"domain": "protein", "base": "mini-lm"},
    "errors": {"domain": "speech", "base": "mini-whisper"},
    "ranks": {"base": "mini-whisper"},
    "curves": {"base": "mini-lm"},
    "folding": {"base": "mini-fold"},
    "calibration": {"base": "mini-fold"},
    "summary": {"mixture": "xlora_all"},
    "routing": {"mixture": "xlora_all"},
    "transfer": {"mixture": "xlora_all"},
    "methods": {"base": "mini-lm"},
    "costs": {"base": "mini-lm"},
    "rates": {"base": "mini-lm"},
    "pareto": {"base": "mini-lm"},
    "mixers": {"base": "mini-lm"},
    "splits": {"base": "mini-lm"},
    "stage": {"stage": "in_turn"},
    "throughput": {"base": "mini-lm"},
    "layers": {"mixture": "xlora_all"},
    "tokens": {"mixture": "xlora_all"},
}


def test_every_caption_is_tested():
    assert {path.stem for path in CAPTIONS.glob("*.rst")} == set(WILDCARDS)


@pytest.mark.parametrize(("name", "wildcards"), WILDCARDS.items())
def test_caption_renders_with_its_wildcards_and_is_sound_markup(name, wildcards):
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string((CAPTIONS / f"{name}.rst").read_text())
    text = template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(**wildcards), config={}))
    body = publish_parts(text, writer="html", settings_overrides={"halt_level": 2, "report_level": 2})["html_body"]
    assert all(f"<strong>{value}</strong>" in body for value in wildcards.values())
