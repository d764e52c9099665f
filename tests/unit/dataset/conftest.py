"""A small curated set, as curation hands it over: rows of every status, and their clips in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from kiwi.dataset.rows import listed_id, sample_id
from kiwi.dataset.shards import member_address, write_shard
from kiwi.media import encode_video, png_bytes

LEFT = {
    3: ("rejected", "score", "no_visible_edit", "instruction"),
    5: ("rejected", "ground", "global_change", "instruction"),
    7: ("rejected", "deduplicate", "duplicate_reference", "instruction"),
    9: ("failed", "ingest", "source_missing", "nothing"),
}


def reference(position: int) -> bytes:
    """Grey by its position, over a last line of white."""
    image = np.full((8, 8, 3), position, np.uint8)
    image[-1] = 255
    return png_bytes(image)


@pytest.fixture(scope="session")
def clips() -> list[tuple[bytes, bytes]]:
    rng = np.random.default_rng(5)
    made = []
    for _ in range(10):
        frames = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
        made.append((encode_video(None, frames, 8, lossless=True), encode_video(None, 255 - frames, 8, lossless=True)))
    return made


@pytest.fixture
def curated(clips: list[tuple[bytes, bytes]]) -> Callable[..., pl.DataFrame]:
    def build(root: Path, count: int = 24, shards: int = 1) -> pl.DataFrame:
        """Rows by position, their media dealt over `shards` curation shards."""
        packed: dict[str, dict[str, bytes]] = {}
        rows: list[dict[str, Any]] = []
        for position in range(count):
            source, target = clips[position % len(clips)]
            left = LEFT.get(position % 10)
            status, stage, reason, trains_as = left or ("kept", "", "", "quadruplet")
            prompt = f"Make number {position} red | and round."
            hashes = hashlib.sha256(source).hexdigest(), hashlib.sha256(target).hexdigest()
            failed = status == "failed"
            identity = listed_id(position, "a", "b", prompt) if failed else sample_id(*hashes, prompt)
            shard = f"shards/{position % shards}/media-00000.tar"
            names = [f"{identity}.source.mp4", f"{identity}.target.mp4"]
            if not failed:
                packed.setdefault(shard, {}).update(zip(names, (source, target), strict=True))
            addresses = ["", ""] if failed else [member_address(shard, name) for name in names]
            rows.append(
                {
                    "position": position,
                    "iid": identity,
                    "pair_id": f"p{position}",
                    "source_dataset": "invented",
                    "license": "CC BY-NC-SA 4.0" if position % 3 else "CC BY 4.0",
                    "edit_type": "recolour",
                    "task": "local_change" if position % 2 else "background_change",
                    "media": "video",
                    "prompt": prompt,
                    "needs_reference": False,
                    "src_video": addresses[0],
                    "tgt_video": addresses[1],
                    "src_sha256": "" if failed else hashes[0],
                    "tgt_sha256": "" if failed else hashes[1],
                    "width": None if failed else 16,
                    "height": None if failed else 16,
                    "frames": None if failed else 3,
                    "fps": None if failed else 8.0,
                    "status": status,
                    "stage": stage,
                    "reason": reason,
                    "detail": "told in words" if left else "",
                    "trains_as": trains_as,
                    "ref_image_bytes": reference(position) if trains_as == "quadruplet" else None,
                    "ref_origin": "crop_classical" if trains_as == "quadruplet" else "",
                    "curator": '{"ground":"classical_ground-1","score":"classical_score-1"}',
                    "parameters_hash": "0123",
                    "score_overall": None if failed else 5.0 + position / 10,
                    "region_x1": 0.1,
                    "working_frame": b"left behind",
                }
            )
        for shard, members in packed.items():
            write_shard(root / shard, members.items())
        return pl.DataFrame(rows)

    return build
