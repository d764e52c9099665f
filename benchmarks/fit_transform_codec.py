"""Makes kiwi/model/transform_codec.json: the coefficients that the fixed transform codec keeps.

Run: python benchmarks/fit_transform_codec.py [--check]
It prints the reconstruction PSNR on clips of another seed, over the frame and inside the edit region.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the shipped table instead of writing it")
    options = parser.parse_args()
    table = codec.fit(clips(7, 1000)[0])
    if options.check:
        same = json.loads(TABLE.read_text()) == table
        print("the shipped table is what this command makes" if same else "the shipped table DIFFERS")
        raise SystemExit(0 if same else 1)
    TABLE.write_text(json.dumps(table) + "\n")
    frames, masks = clips(8, 200)
    fitted = codec.TransformCodec(table)
    error = ((fitted.decode(fitted.encode(frames)).clamp(-1, 1) - frames) * 127.5).square().mean(1).numpy()
    inside = np.where(masks, error, 0).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    for name, value in (("frame", error.mean((1, 2, 3))), ("edit region", inside)):
        print(f"{name}: {np.mean(10 * np.log10(255**2 / np.maximum(value, 1e-6))):.2f} dB")


if __name__ == "__main__":
    main()
