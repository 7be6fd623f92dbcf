"""How far random probes scatter, drawn anew on the way or the same all the way, for one pipeline:

    python benchmarks/probe_errors.py FOLDER [--pipeline pretrained/fashion-mnist-subvp] [--images 8] [--draws 8]

For each image of the test split, the same dequantization noise and `--draws` estimates of its bits/dim by both ways;
their deviation is that of one probe's error. At equal cost it counts times the root of the evaluations. Writes
`probe_errors.json` and `.md`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from numpy import stack
from side_by_side import write_results

from sde_diffusers import ScoreSdePipeline
from sde_diffusers.likelihood.probes import rademacher

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pipeline", default=str(ROOT / "pretrained" / "fashion-mnist-subvp"))
    parser.add_argument("--dataset", default=str(ROOT / "data" / "fashion_mnist"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()
    pipe = ScoreSdePipeline.from_pretrained(arguments.pipeline)
    pictures = load_dataset(arguments.dataset, split="test")[: arguments.images]["image"]
    images = torch.from_numpy(stack(pictures))[:, None]
    same = rademacher((arguments.draws, *images.shape), generator=torch.Generator().manual_seed(1)).double()
    records = []
    for name, probes in (("the same all the way", same), ("drawn anew", arguments.draws)):
        output = pipe.bits_per_dim(
            images,
            [torch.Generator().manual_seed(k) for k in range(len(images))],
            dequantize="truncated_normal" if pipe.unet.config.get("pixel_levels") else "uniform",
            probes=probes,
            rtol=arguments.tolerance,
            atol=arguments.tolerance,
        )
        deviation = output.estimates[0].var(0).mean().sqrt().item()
        records.append({"probes": name, "deviation": deviation, "nfe": output.nfe})
    first = records[0]
    lines = ["| probes | deviation of one, bits/dim | evaluations | at equal cost |", "|---|---|---|---|"]
    for record in records:
        record["at_equal_cost"] = record["deviation"] / first["deviation"] * (record["nfe"] / first["nfe"]) ** 0.5
        cells = record["probes"], f"{record['deviation']:.4f}", record["nfe"], f"{record['at_equal_cost']:.2f}"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    results = {"pipeline": arguments.pipeline, "tolerance": arguments.tolerance, "records": records}
    write_results(arguments.folder, "probe_errors", results, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
