"""From curated rows to the finished dataset of a run: the last task of curation before a version is published."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from kiwi import storage
from kiwi.configuration import RunConfiguration
from kiwi.curation.errors import CurationError
from kiwi.curation.keys import curation_key, effective_settings
from kiwi.curation.plan import curation_root
from kiwi.dataset.assemble import assembled, check_enough, write_dataset
from kiwi.dataset.manifest import MANIFEST
from kiwi.dataset.split import TRAIN, all_train, hold_out
from kiwi.tracking import TaskRun
from kiwi.workspace import Workspace


def assemble(configuration: RunConfiguration, task: TaskRun) -> dict[str, Any]:
    """Makes the run's dataset folder of what deduplication left; finds a finished one again.

    The user's own pairs and collections give a share to the split `benchmark`; procedural rows all train, for their
    benchmark is drawn from another seed.

    Returns:
        {path, digest, pairs, quadruplets, instruction, splits, rejected{}, failed{}, funnel[]}.

    Raises:
        CurationError: deduplication is not finished.
        TooFewSamples: fewer quadruplets or training pairs than curation.min_quadruplets and min_training_pairs.
    """
    folder = dataset_folder(configuration)
    root, settings = curation_root(configuration), configuration.curation
    enough = {"min_quadruplets": settings.min_quadruplets, "min_training_pairs": settings.min_training_pairs}
    if (folder / MANIFEST).exists():
        task.note("reused")
        found = assembled(folder)
        check_enough(found["quadruplets"], found["splits"].get(TRAIN, 0), found["pairs"], found["funnel"], **enough)
        return found
    deduplicated = storage.join(root, curation_key(configuration), "deduplicated")
    if not storage.exists(storage.join(deduplicated, "books.json")):
        raise CurationError(f"{deduplicated}: deduplication is not finished", "run the curation stages first")
    parts = [name for name in storage.list_files(deduplicated) if name.endswith(".parquet")]
    drawn = configuration.source.kind == "procedural"
    result = write_dataset(
        folder,
        [storage.join(deduplicated, name) for name in parts],
        root,
        parameters=parameters_of(configuration),
        split=all_train if drawn else partial(hold_out, share=configuration.benchmark.share),
        **enough,
        progress=lambda done, total: task.progress(done, total, "clips"),
    )
    task.metrics({name: result[name] for name in ("pairs", "quadruplets", "instruction")})
    task.tags({"dataset_digest": result["digest"]})
    return result


def dataset_folder(configuration: RunConfiguration) -> Path:
    """Where the run's dataset is made, on this machine."""
    return Workspace.of(configuration).curation(curation_key(configuration)) / "dataset"


def parameters_of(configuration: RunConfiguration) -> dict[str, Any]:
    """What a dataset was made with: nothing of where it was made, nor of the portions in which.

    What the user's own pairs are, the rows and media say themselves.
    """
    source = configuration.source
    said: dict[str, Any] = {"kind": source.kind}
    if source.kind == "procedural":
        said = source.model_dump(mode="json", exclude={"pairs", "listing_sha256", "collections"})
    elif source.kind == "collections":
        said["collections"] = [{"adapter": each.adapter, "limit": each.limit} for each in source.collections]
    return {
        "source": said,
        "curation": effective_settings(configuration),
        "benchmark_share": 0.0 if source.kind == "procedural" else configuration.benchmark.share,
        "seed": configuration.seed,
    }
