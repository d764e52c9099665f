"""The dataset card (README.md): what is in a dataset and what may be done with it, for people and for the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kiwi import storage
from kiwi.configuration import CurationSettings
from kiwi.dataset.licences import added_up, forbidden, identifier, terms_of
from kiwi.dataset.manifest import CARD
from kiwi.dataset.statistics import SIZES

_ABOUT = {
    "position": "place of the pair in its source's listing, from 0",
    "iid": "identity of the sample: hash of both clips and the instruction",
    "pair_id": "the source's own id",
    "source_dataset": "where the pair comes from",
    "license": "licence of the source",
    "edit_type": "the source's own word for the edit",
    "task": "the same in one taxonomy for all sources",
    "media": "`video` or `image` (a pair of stills)",
    "prompt": "the editing instruction",
    "needs_reference": "the instruction alone does not say what to make",
    "src_video": "the clip before the edit: `SHARD::MEMBER`, empty if it could not be read",
    "tgt_video": "the clip after the edit",
    "src_sha256": "hash of the source clip's file",
    "tgt_sha256": "hash of the target clip's file",
    "width": "pixels, rotation applied",
    "height": "pixels, rotation applied",
    "frames": "frames of the clip",
    "fps": "frames a second",
    "status": "`kept`, `rejected` or `failed` on the way to a quadruplet",
    "stage": "the stage that decided it",
    "reason": "the typed reason, empty if kept",
    "detail": "the reason in words, with the figures",
    "trains_as": "`quadruplet`, `instruction` (fit to train on without a reference) or `nothing`",
    "split": "`train` or `benchmark` (held out)",
    "ref_image_bytes": "the reference image as PNG",
    "ref_origin": "how the reference came about: `given`, or the method that made it",
    "curator": "who judged, by stage, with versions (JSON)",
    "parameters_hash": "hash of the parameters it was judged under",
    "dup_of": "the sample that this one repeats",
}
GUESSED = "keyword_heuristic"  # as kiwi/sources/pairs.py says it
_FAMILIES = {
    "score_": "the scorer",
    "region_": "the grounder (boxes are shares of the frame)",
    "mask_crop_": "the synthesizer (pixels)",
    "mask_": "the segmenter",
    "verify_": "the verifier",
    "dup_": "the deduplicator",
}
_BAR = 20
_VALUES = 40  # of a column that are named one by one
_KINDS = {  # by stage, the setting that chooses its curator
    "score": "scorer",
    "ground": "grounder",
    "segment": "segmenter",
    "synthesize": "synthesizer",
    "verify": "verifier",
    "deduplicate": "deduplicator",
}
_MODELS = {  # by setting and choice, the setting that names its model
    ("scorer", "vlm"): "vlm_score",
    ("grounder", "vlm"): "vlm_ground",
    ("verifier", "vlm"): "vlm_verify",
    ("segmenter", "sam3"): "sam3",
    ("synthesizer", "qwen_image_edit"): "qwen_image_edit",
    ("deduplicator", "clip"): "clip",
}
_PORTION = ("device", "batch", "offload", "prompt")  # how the work was done, not what was asked
_DECIDING = ("min_", "max_", "duplicate_", "only_", "unique_", "score_fps", "pixel_budget")
_DECIDES = {
    "min_score": "score, 0 to 10, from which a pair trains at all",
    "min_verify": "agreement of reference and target, 0 to 1",
    "max_aspect": "longer side of a reference over its shorter",
    "min_reference_side": "pixels",
    "max_reference_side": "pixels",
    "min_quadruplets": "fewer stop the run",
    "min_training_pairs": "fewer stop the run",
}


def write_card(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Writes <folder>/README.md atomically and returns its path."""
    path = folder / CARD
    storage.write_bytes(path, dataset_card(manifest).encode())
    return path


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """The card of a dataset, from its manifest alone, as Markdown with the Hub's YAML header."""
    parts = [
        _header(manifest),
        _summary(manifest),
        _funnel(manifest),
        _balances(manifest),
        _media(manifest),
        _measurements(manifest),
        _limits(manifest),
        _licences(manifest),
        _loading(),
        _columns(manifest),
        _curators(manifest),
        _thresholds(manifest),
        _provenance(manifest),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _header(manifest: Mapping[str, Any]) -> str:
    """The Hub's front matter: what its search and its licence notice go by."""
    rows = int(manifest["pairs"])
    bounds = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    size = next((name for bound, name in bounds if rows < bound), "1M<n<10M" if rows < 10_000_000 else "n>10M")
    licences = manifest["statistics"]["licenses"]
    licence = identifier(licences)
    lines = ["---", "pretty_name: Reference-guided video editing dataset", f"license: {licence}"]
    if licence == "other":
        names = " and ".join(sorted(name or "none stated" for name in licences)) or "none stated"
        lines += [f"license_name: {json.dumps(names, ensure_ascii=False)}", "license_link: README.md"]
    return "\n".join(
        [
            *lines,
            "task_categories: [video-to-video, image-to-image]",
            "tags: [video-editing, reference-guided, instruction-following]",
            f"size_categories: ['{size}']",
            "configs:",
            "- config_name: default",
            "  data_files: rows/*.parquet",
            "---",
        ]
    )


def _summary(manifest: Mapping[str, Any]) -> str:
    pairs, quadruplets = int(manifest["pairs"]), int(manifest["quadruplets"])
    instruction, statistics = int(manifest["instruction"]), manifest["statistics"]
    unused = pairs - quadruplets - instruction
    origins = ", ".join(f"{name} {count:,}" for name, count in statistics["ref_origins"].items())
    held_out = statistics["splits"].get("benchmark", 0)
    lines = [
        "# Reference-guided video editing dataset",
        f"{pairs:,} editing pairs were listed. **{quadruplets:,} became quadruplets** (source, instruction, reference, "
        f"target); {instruction:,} more train as instruction pairs; {unused:,} are kept on record, with the reason, "
        "and train as nothing.",
        _table(
            ["", "rows", "of all"],
            [
                ["quadruplets", f"{quadruplets:,}", _share(quadruplets, pairs)],
                ["instruction pairs", f"{instruction:,}", _share(instruction, pairs)],
                ["not used", f"{unused:,}", _share(unused, pairs)],
                ["**listed**", f"**{pairs:,}**", ""],
            ],
        ),
    ]
    if origins:
        lines.append(f"References by origin: {origins}.")
    if held_out:
        lines.append(
            f"{held_out:,} of the rows in use are held out as split `benchmark`; none of their source clips is"
        )
        lines[-1] += " in split `train`."
    return "\n\n".join(lines)


def _funnel(manifest: Mapping[str, Any]) -> str:
    body = []
    for stage in manifest["funnel"]:
        if stage["stage"] == "unique_crops" and stage["kept"] == stage["rows_in"]:
            continue  # an early exit that was off
        reasons = [(name, count, "failed") for name, count in stage["failed"].items()]
        reasons += [(name, count, "") for name, count in stage["rejected"].items()]
        reasons.sort(key=lambda each: (-each[1], each[0]))
        told = ", ".join(f"`{name}` {count:,}{' (failed)' if failed else ''}" for name, count, failed in reasons)
        left = stage["rows_in"] - stage["kept"]
        body.append([stage["stage"], f"{stage['rows_in']:,}", f"{stage['kept']:,}", f"{left:,}", told or "–"])
    return (
        "## The funnel\n\nThe way to a quadruplet. At every stage rows in = kept + left, and every row that left says "
        "why.\n\n" + _table(["stage", "in", "kept", "left", "because"], body)
    )


def _balances(manifest: Mapping[str, Any]) -> str:
    parts = ["## Balance"]
    statistics = manifest["statistics"]
    for title, key in (("Task", "tasks"), ("Edit type", "edit_types"), ("Source", "source_datasets")):
        counts = statistics[key]
        total = sum(each["rows"] for each in counts.values())
        body = [
            [
                _code(name),
                f"{each['rows']:,}",
                f"{each['quadruplet']:,}",
                f"{each['instruction']:,}",
                f"{each['nothing']:,}",
                _bar(each["rows"], total),
            ]
            for name, each in list(counts.items())[:_VALUES]
        ]
        if len(counts) > _VALUES:
            rest = list(counts.values())[_VALUES:]
            amounts = [sum(each[key] for each in rest) for key in ("rows", "quadruplet", "instruction", "nothing")]
            body.append([f"{len(rest):,} others", *(f"{amount:,}" for amount in amounts), _bar(amounts[0], total)])
        parts.append(_table([title, "rows", "quadruplet", "instruction", "nothing", "share"], body))
    return "\n\n".join(parts)


def _media(manifest: Mapping[str, Any]) -> str:
    statistics = manifest["statistics"]
    media = ", ".join(f"{count:,} {name} pairs" for name, count in statistics["media"].items())
    hours = statistics["seconds_total"] / 3600
    played = f"{hours:.1f} hours" if hours >= 1 else f"{statistics['seconds_total']:,.1f} seconds"
    parts = [
        "## Durations, resolutions, instructions",
        f"Of the rows in use: {media or 'none'}; {played} of source video.",
        _spread(
            [
                ("seconds", statistics["seconds"]),
                ("frames", statistics["frames"]),
                ("frames a second", statistics["fps"]),
                ("words an instruction", statistics["prompt_words"]),
            ]
        ),
    ]
    sizes = statistics["resolutions"]
    total = sum(sizes.values())
    body = [[name.replace("x", " × "), f"{count:,}", _bar(count, total)] for name, count in sizes.items()]
    more = f" The {len(sizes)} most frequent:" if len(sizes) >= SIZES else ""
    parts.append(f"Resolutions, as the sources have them.{more}")
    parts.append(_table(["width × height", "rows", "share"], body))
    prompts = statistics["examples"].items()
    examples = [[f"`{task}`", prompt if len(prompt) <= 160 else f"{prompt[:159]}…"] for task, prompt in prompts]
    parts.append(f"{statistics['distinct_prompts']:,} distinct instructions; the first of each task:")
    parts.append(_table(["task", "instruction"], examples))
    return "\n\n".join(parts)


def _measurements(manifest: Mapping[str, Any]) -> str:
    measured = manifest["statistics"]["measurements"]
    if not measured:
        return ""
    curators = ", ".join(f"`{name}`" for name in dict.fromkeys(manifest["curators"].values())) or "unnamed curators"
    return (
        f"## Measurements\n\nEvery score is stored, so that another threshold is a query. Measured by {curators}. "
        "`score_overall` and the score's parts are explained by `score_name`; it lies in 0 to 10, `verify_consistency` "
        "in 0 to 1, areas are shares of the frame.\n\n"
        + _spread([(f"`{name}`", spread) for name, spread in measured.items()])
    )


def _limits(manifest: Mapping[str, Any]) -> str:
    return "## Known limits\n\n" + "\n".join(f"- {sentence}" for sentence in known_limits(manifest))


def known_limits(manifest: Mapping[str, Any]) -> list[str]:
    """What a dataset's makers could not see or do, one sentence each; names are in backticks."""
    said = []
    if any(name.startswith("classical") for name in manifest["curators"].values()):
        said.append(
            "Curators called `classical` are algorithms without weights. Their score is a heuristic over the pixels: "
            "it tells a broken or absent edit from a clean one, and cannot tell whether the instruction was followed."
        )
        said.append("Their regions come from what changed, not from reading the instruction.")
    if any(name.startswith("inpaint") for name in manifest["statistics"]["ref_origins"]):
        said.append("Backgrounds of origin `inpaint_classical` are smeared where the foreground stood.")
    if any(name.startswith("crop") for name in manifest["statistics"]["ref_origins"]):
        said.append("References cut from the target show the subject in the very pose in which the target has it.")
    if manifest.get("parameters", {}).get("curation", {}).get("duplicate_scope") == "quadruplet":
        said.append(
            "Two quadruplets may have like references: dropped were those whose reference and target both repeat, "
            "where the paper goes by the reference alone."
        )
    said.append("Regions, masks and references are of a clip's first frame; what appears later is in none of them.")
    if any(name.startswith(GUESSED) for name in manifest["statistics"]["edit_types"]):
        said.append(f"Edit types `{GUESSED}:…` were guessed from words of the instruction; the source named none.")
    return said


def _licences(manifest: Mapping[str, Any]) -> str:
    used = licences_in_use(manifest)
    sentences = "\n".join(f"- {_cell(sentence)}" for sentence in added_up(used)) if used else "- No rows are in use."
    parts = ["## Licences, added up", _licence_table(manifest), f"For all rows in use together:\n\n{sentences}"]
    denied = forbidden(used)
    if denied:
        listed = "\n".join(f"- {what}" for what in denied)
        parts.append(f"So, unless whoever holds the rights says otherwise, one may not:\n\n{listed}")
    parts.append("This is a reading of the licences' names, not legal advice; rows of one licence can be taken alone.")
    return "\n\n".join(parts)


def licences_in_use(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Rows in use by licence: what kiwi.dataset.licences adds up."""
    counts = manifest["statistics"]["licenses"]
    in_use = {name: each["quadruplet"] + each["instruction"] for name, each in counts.items()}
    return {name: rows for name, rows in in_use.items() if rows}


def licence_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows by licence and source, with what the licence asks for in words; "" for terms that are not known.

    By licence alone where an older manifest tells no more.
    """
    statistics = manifest["statistics"]
    rows = statistics.get("sources") or [
        {"license": name, "source_dataset": "", **each} for name, each in statistics["licenses"].items()
    ]
    told = [{**each, "asks": _terms(each["license"])} for each in rows]
    return sorted(told, key=lambda each: (each["license"], -each["rows"]))


def _licence_table(manifest: Mapping[str, Any]) -> str:
    body = [
        [
            each["license"] or "(none)",
            each["source_dataset"] or "–",
            f"{each['rows']:,}",
            f"{each['quadruplet']:,}",
            f"{each['instruction']:,}",
            each["asks"] or "**unknown**",
        ]
        for each in licence_rows(manifest)
    ]
    return _table(["licence", "source", "rows", "quadruplets", "instruction pairs", "asks for"], body)


def _terms(licence: str) -> str:
    terms = terms_of(licence)
    asked = [
        ("non-commercial", not terms.commercial),
        ("no derivatives", not terms.derivatives),
        ("share alike", terms.share_alike),
        ("attribution", terms.attribution),
    ]
    return (", ".join(name for name, holds in asked if holds) or "nothing") if terms.known else ""


def _loading() -> str:
    return """## How to load it

With kiwi, from the folder of this file:

```python
from kiwi.dataset.reader import open_media, read_split
from kiwi.media import decode, decode_image

rows = read_split(".", "train")                               # a polars DataFrame
row = rows.filter(rows["trains_as"] == "quadruplet").row(0, named=True)
source = decode(open_media(".", row["src_video"])).frames      # uint8 [T, H, W, 3], RGB
target = decode(open_media(".", row["tgt_video"])).frames
reference = decode_image(row["ref_image_bytes"])               # uint8 [H, W, 3], RGB
```

Without kiwi: the rows are Parquet (`polars.read_parquet("rows/*.parquet")`, pandas, DuckDB, `datasets`), the media are
plain tar files (`tar -xf media/media-00000.tar`); what follows `::` in an address is the member's name.

`kiwi data verify` checks every hash, count and clip."""


def _columns(manifest: Mapping[str, Any]) -> str:
    columns: Mapping[str, str] = manifest["columns"]
    body = [[f"`{name}`", kind, _ABOUT[name]] for name, kind in columns.items() if name in _ABOUT]
    parts = ["## Columns", _table(["column", "type", "what it holds"], body)]
    others = [name for name in columns if name not in _ABOUT]
    families: dict[str, list[str]] = {}
    for name in others:
        maker = next(maker for start, maker in _FAMILIES.items() if name.startswith(start))
        families.setdefault(maker, []).append(f"`{name}`")
    measured = [[f"by {maker}", ", ".join(families[maker])] for maker in _FAMILIES.values() if maker in families]
    if measured:
        parts.append(_table(["measured", "columns"], measured))
    parts.append("`iid`, `prompt`, `src_video`, `tgt_video`, `ref_image_bytes` are the columns of the released RefVIE.")
    return "\n\n".join(parts)


def curator_rows(manifest: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(stage, name-version, model, parameters) of who judged; model and parameters are "" for an algorithm."""
    settings = manifest.get("parameters", {}).get("curation", {})
    told = []
    for stage, name in manifest["curators"].items():
        kind = _KINDS.get(stage, "")
        asked = settings.get(_MODELS.get((kind, str(settings.get(kind, ""))), ""), {})
        others = [f"{key} {value}" for key, value in asked.items() if key not in ("model", *_PORTION) and value]
        told.append((stage, str(name), str(asked.get("model", "")), ", ".join(others)))
    return told


def _curators(manifest: Mapping[str, Any]) -> str:
    body = [
        [stage, _code(name), _code(model) if model else "none: an algorithm", parameters or "–"]
        for stage, name, model, parameters in curator_rows(manifest)
    ]
    table = _table(["stage", "curator and version", "model", "asked with"], body)
    return f"## Curators and models\n\n{table if body else 'None is named in the rows.'}"


def _thresholds(manifest: Mapping[str, Any]) -> str:
    """The settings that decided, each in words."""
    settings = manifest.get("parameters", {}).get("curation", {})
    fields = CurationSettings.model_fields
    body = [
        [f"`curation.{name}`", str(settings[name]), field.description or _DECIDES.get(name, "")]
        for name, field in fields.items()
        if name in settings and name.startswith(_DECIDING)
    ]
    if not body:
        return ""
    return (
        f"## Thresholds\n\n{_table(['setting', 'value', ''], body)}\n\nScores are stored, so another threshold is a "
        "query: `kiwi data funnel --dataset . --set score.overall=8`."
    )


def _provenance(manifest: Mapping[str, Any]) -> str:
    entries = manifest["files"]
    shards = [entry for entry in entries if entry["path"].endswith(".tar")]
    parts = [entry for entry in entries if entry["path"].endswith(".parquet")]
    body = [
        ["rows", f"{len(parts):,}", _size(parts), f"{sum(each['entries'] for each in parts):,} rows"],
        ["media", f"{len(shards):,}", _size(shards), f"{sum(each['entries'] for each in shards):,} clips"],
    ]
    return (
        f"## Files\n\n{_table(['', 'files', 'size', 'holds'], body)}\n\n"
        f"Digest `{manifest['digest']}`: the same pairs under the same parameters give it again, bit for bit.\n\n"
        "All parameters and the files' hashes are in `manifest.json`."
    )


def _spread(spreads: Iterable[tuple[str, Mapping[str, float] | None]]) -> str:
    body = [
        [name, *(_figure(spread[key]) for key in ("p00", "p05", "p25", "p50", "p75", "p95", "p100", "mean"))]
        for name, spread in spreads
        if spread is not None
    ]
    return _table(["", "min", "5%", "25%", "median", "75%", "95%", "max", "mean"], body) if body else ""


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = [list(head), *([_cell(str(cell)) for cell in row] for row in body)]
    numeric = [
        len(rows) > 1 and all(not row[place] or row[place].strip("*")[:1].isdigit() for row in rows[1:])
        for place in range(len(head))
    ]
    rule = ["---:" if right and place else "---" for place, right in enumerate(numeric)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def _cell(text: str) -> str:
    """`text` on one line and within its cell; what looks like HTML is shown, never obeyed."""
    text = text.replace("|", "\\|").replace("\n", " ").replace("\r", " ")
    return text if text.startswith("`") else text.replace("&", "&amp;").replace("<", "&lt;")


def _code(name: str) -> str:
    """A name of the source's own, as code: it cannot end the code, nor the cell."""
    return f"`{name.replace('`', chr(39))}`" if name else "(none)"


def _bar(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f"{'█' * max(1 if count else 0, round(share * _BAR))} {share:.1%}"


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "–"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _size(entries: Sequence[Mapping[str, Any]]) -> str:
    size = float(sum(entry["bytes"] for entry in entries))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
