"""What to take for how many evaluations of the network: the picture at the head of docs/few_step_samplers.md.

python docs/make_few_step_figure.py docs/images/few_step_answer.png

It draws what was measured before: docs/sampler_distances.json (by benchmarks/sampler_distances.py),
docs/few_step_fits.json (by benchmarks/few_step_fits.py), and the distances of the consistency model (by
training/evaluate.py; the last table of that page).
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).parent
CONSISTENCY = {1: 0.150, 2: 0.110}  # of 5,000 images, where the others have 1,000


def curve(file, key, number, *names):
    """{evaluations: distance} of the samplers of these names."""
    rows = json.loads((DOCS / file).read_text(encoding="utf-8"))["rows"]
    return {row[number]: row["frechet"] for row in rows if row[key] in names}


def main():
    distances = lambda name: curve("sampler_distances.json", "sampler", "budget", name)  # noqa: E731
    fits = lambda name: curve("few_step_fits.json", "solver", "evaluations", name)  # noqa: E731
    curves = {
        "consistency model (5,000 images)": ("C4", CONSISTENCY),
        "fitted to the network": ("C3", fits("fitted")),
        "exponential, of the ODE": ("C0", fits("order 3, default grid") | distances("Exponential, order 3")),
        "exponential, of the SDE": ("C2", distances("Exponential SDE, order 2")),
        "the paper's predictor-corrector": ("0.3", distances("Predictor-corrector")),
    }
    real = json.loads((DOCS / "sampler_distances.json").read_text(encoding="utf-8"))["real"]["frechet"]
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for name, (color, values) in curves.items():
        axis.loglog(list(values), list(values.values()), marker="o", markersize=4, color=color, label=name)
    axis.axhline(real, color="0.6", linewidth=1, label="1,000 real test images")
    ticks = (1, 2, 3, 5, 8, 10, 20, 50, 200, 1000, 2000)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="evaluations of the network for each image", ylabel="Frechet distance from real images")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(sys.argv[1], dpi=150)


if __name__ == "__main__":
    main()
