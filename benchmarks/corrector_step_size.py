"""The corrector's step size as the paper's text has it and as its code has it, on VP models: what difference it makes.

    python benchmarks/corrector_step_size.py

Algorithm 5 of arXiv 2011.13456 takes Langevin steps of 2 alpha_i (snr |z| / |score|)^2. In the text alpha_i is the
cumulative product of 1 - beta_j, that is alpha(t)^2; in the code it is 1 - beta_i itself. Here both sample Gaussian
images whose score is known exactly, 10,000 pixels of deviation 0.5 and 0.1 (the paper's VP SDE, its default snr).
Prints a table in Markdown: the deviation of what is drawn over that of the data.
"""

import math
import sys
from pathlib import Path

import torch

from sde_diffusers import ScoreSdePredictorCorrectorScheduler

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exact_variance import drawn_variance  # noqa: E402

PIXELS, STEPS, DEVIATIONS = 10_000, (50, 200, 1000), (0.5, 0.1)


class AsInTheText(ScoreSdePredictorCorrectorScheduler):
    """With the cumulative product in the corrector."""

    def _plan(self, n):
        plan = super()._plan(n)
        times = plan[0][:: self.corrections + self.predictions]
        self._langevin_scale = (self.sde.alpha(times) ** 2).tolist()
        return plan


def main():
    kinds = {
        "none": (ScoreSdePredictorCorrectorScheduler, "none"),
        "1 - beta_i (code)": (ScoreSdePredictorCorrectorScheduler, "langevin"),
        "cumulative (text)": (AsInTheText, "langevin"),
    }
    columns = [(n, deviation) for n in STEPS for deviation in DEVIATIONS]
    print("| predictor | corrector's alpha_i | " + " | ".join(f"{n} steps, deviation {d}" for n, d in columns) + " |")
    print("|" + "---|" * (2 + len(columns)))
    for predictor in ("reverse_diffusion", "ancestral"):
        for name, (cls, corrector) in kinds.items():
            row = []
            for n, deviation in columns:
                scheduler = cls(sde="vp", predictor=predictor, corrector=corrector)
                generator = torch.Generator().manual_seed(0)
                row.append(math.sqrt(drawn_variance(scheduler, deviation**2, n, PIXELS, generator)) / deviation)
            print(f"| {predictor} | {name} | " + " | ".join(f"{ratio:.3f}" for ratio in row) + " |", flush=True)


if __name__ == "__main__":
    main()
