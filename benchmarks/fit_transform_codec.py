"""Measures kiwi/model/transform_codec.json, the coefficients that the fixed transform codec keeps, beside a new fit.

Run: python benchmarks/fit_transform_codec.py [--write]
It prints the reconstruction PSNR on clips of another seed, over the frame and inside the edit region. The shipped
table was fitted on an earlier state of the procedural generator and stays as it is, so that models stay valid.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from kiwi.configuration import SourceSettings
from kiwi.model import codec
from kiwi.sources.procedural import KINDS, draw

TABLE = Path(codec.__file__).parent / codec.TABLE


def clips(seed: int, count: int) -> tuple[torch.Tensor, np.ndarray]:
    settings = SourceSettings(seed=seed)
    samples = [draw(settings, position, KINDS[position % len(KINDS)], settings.frames) for position in range(count)]
    frames = np.stack([sample.target for sample in samples])
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, np.stack(
        [sample.edit_mask for sample in samples]
    )


def ceiling(fitted: codec.TransformCodec) -> str:
    frames, masks = clips(8, 200)
    error = ((fitted.decode(fitted.encode(frames)).clamp(-1, 1) - frames) * 127.5).square().mean(1).numpy()
    inside = np.where(masks, error, 0).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    means = [np.mean(10 * np.log10(255**2 / np.maximum(value, 1e-6))) for value in (error.mean((1, 2, 3)), inside)]
    return f"{means[0]:.2f} dB over the frame, {means[1]:.2f} dB in the edit region"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace the shipped table: every trained model is void")
    options = parser.parse_args()
    table = codec.fit(clips(7, 1000)[0])
    print(f"shipped table: {ceiling(codec.TransformCodec())}")
    print(f"fitted now:    {ceiling(codec.TransformCodec(table))}")
    if options.write:
        TABLE.write_text(json.dumps(table) + "\n")


if __name__ == "__main__":
    main()
