"""The config's reference, made from its models: `python -m loratory.reference` writes both files.

`config/README.md` keeps what stands above the mark; the rest and the JSON schema are generated, and a test fails when
either differs from the models.
"""

import json
import re
from pathlib import Path
from typing import Any

from loratory.config import config_model

ROOT = Path(__file__).parents[2]
README, SCHEMA = ROOT / "config" / "README.md", ROOT / "workflow" / "schemas" / "config.schema.json"
MARK = "<!-- From here on: written by `python -m loratory.reference`. -->\n"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
MOST_LINKED = 4  # kinds of an entry that a cell names one by one
BAR = r"\|"  # a bare one would end the cell
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def schema_text() -> str:
    """The JSON schema of the config file."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema = config_model().model_json_schema()
    for group in ("domains", "general"):  # besides a domain's own name, any that has a second part
        entries = schema["$defs"][group]
        entries["patternProperties"] = {
            f"^{name}-[a-z0-9_]{{1,64}}$": node for name, node in entries["properties"].items()
        }
    return json.dumps(dialect | schema, indent=2, ensure_ascii=False) + "\n"


def readme_text(current: str) -> str:
    """`config/README.md`: its own introduction, then every key."""
    return current.partition(MARK)[0] + MARK + "\n" + reference_text(config_model().model_json_schema())


def reference_text(schema: dict[str, Any]) -> str:
    """Markdown with one table for each group of keys, in the order of the config."""
    places = config_paths(schema)
    headings = {name: group_heading(schema["$defs"][name], paths[0]) for name, paths in places.items()}
    parts = ["## Top level", group_table(schema, headings)]
    for name, paths in places.items():
        group, others = schema["$defs"][name], list(dict.fromkeys(paths[1:]))
        also = f"The same at {', '.join(f'`{path}`' for path in others)}." if others else ""
        parts += [f"## {headings[name]}", group.get("description", ""), also, group_table(group, headings)]
    return "\n\n".join(filter(None, parts)) + "\n"


def config_paths(schema: dict[str, Any]) -> dict[str, list[str]]:
    """{group of keys: the config paths where it stands}, both in the order of the config."""
    places: dict[str, list[str]] = {}

    def collect_paths(node: dict[str, Any], path: str) -> None:
        if "$ref" in node:
            name = definition_name(node)
            places.setdefault(name, []).append(path)
            if len(places[name]) == 1:
                collect_paths(schema["$defs"][name], path)
        for child in schema_variants(node):
            collect_paths(child, path)
        for key, child in node.get("properties", {}).items():
            collect_paths(child, f"{path}.{key}".lstrip("."))
        for child in value_schemas(node):
            collect_paths(child, f"{path}.<name>")

    collect_paths(schema, "")
    return places


def definition_name(node: dict[str, Any]) -> str:
    return node["$ref"].rpartition("/")[2]


def schema_variants(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Schemas of which one holds."""
    return node.get("anyOf", []) + node.get("oneOf", [])


def value_schemas(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Schemas of the values of a mapping whose keys are the user's names."""
    extra = node.get("additionalProperties")
    return [*node.get("patternProperties", {}).values(), *([extra] if isinstance(extra, dict) else [])]


def group_heading(group: dict[str, Any], path: str) -> str:
    """The path, and the key that says which of several groups stands there."""
    chosen = [f"{key}: {child['const']}" for key, child in group["properties"].items() if "const" in child]
    return f"`{path}`" + "".join(f" with `{choice}`" for choice in chosen)


def group_table(group: dict[str, Any], headings: dict[str, str]) -> str:
    required = group.get("required", [])
    rows = [
        table_row(f"`{key}`", type_text(node, headings), default_text(node, key in required), description_text(node))
        for key, node in group["properties"].items()
    ]
    return "\n".join([table_row("key", "type", "default", "meaning"), "|---|---|---|---|", *rows])


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def type_text(node: dict[str, Any], headings: dict[str, str]) -> str:
    if "$ref" in node:
        text = headings[definition_name(node)]
        return f"[{text.partition(' with ')[2] or 'keys'}](#{heading_anchor(text)})"
    if "discriminator" in node and len(node["oneOf"]) > MOST_LINKED:
        first, key = headings[definition_name(node["oneOf"][0])], node["discriminator"]["propertyName"]
        return f"[`{key}: …`](#{heading_anchor(first)}), a table for each below"
    if schema_variants(node):
        return " or ".join(type_text(variant, headings) for variant in schema_variants(node))
    if "enum" in node or "const" in node:
        return " or ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node["type"] == "array":
        return f"list of {type_text(node['items'], headings)}"
    if node["type"] == "object":
        inside = [type_text(child, headings) for child in value_schemas(node)]
        return f"{{name: {inside[0]}}}" if inside else "mapping"
    if "pattern" in node:
        return "name"
    bounds = [f"{sign} {node[bound]:g}" for bound, sign in BOUNDS.items() if bound in node]
    return " ".join([TYPES[node["type"]], ", ".join(bounds)]).strip()


def default_text(node: dict[str, Any], required: bool) -> str:
    if required or "const" in node:
        return "**required**"
    if "$ref" in node:
        return "none" if node.get("default") is None else "its own"
    return f"`{json.dumps(node['default'], ensure_ascii=False)}`"


def description_text(node: dict[str, Any]) -> str:
    return node.get("description", "").replace("<", "&lt;")  # or it would be read as HTML


def heading_anchor(text: str) -> str:
    """The fragment that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def main() -> None:
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    README.write_text(readme_text(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
