"""How far the intervals of posterior samples can be believed: simulation-based calibration (arXiv 1804.06788).

An image is drawn from the prior, measured, and the rank of each of its pixels among K posterior samples of the same
pixel noted. Where the samples are the posterior's all K + 1 ranks are equally likely, so that the interval between the
j-th least and the j-th largest sample holds the true value with probability 1 - 2 j / (K + 1), exactly, for any K: 19
samples are the fewest whose range is a 90 % interval.

    test images       what a user asks: network, method and sampler together
    the network's own images that the network drew: they have its prior, so that what is off is the method's and the
                      sampler's

Pixels that were not measured, out of those that vary in the data (deviation above 0.1); values in 8 bits, ties at
random. Pixels of an image are not independent: standard errors are those over images.
"""

import statistics

import matplotlib
import torch
from posterior_methods import OURS, generator
from restored_images import ImageProblem, score_network, tasks, test_images
from side_by_side import write_results
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

TASK = "75 % missing"
SAMPLES, COUNTS = 19, (2, 4, 9, 19)  # samples of each image; how many of them estimate a deviation
VARYING, OTHERS = 0.1, 1000
CONTENDERS = [("test images", name) for name in ("MMPS", "Pi-GDM", "DiffPIR")] + [("the network's own images", "MMPS")]


def ranks(samples, truth, generator):
    """How many of the samples (K, P) are below the truth (P,), integers; ties are broken at random: (P,)."""
    below, equal = (samples < truth).sum(0), (samples == truth).sum(0)
    return below + (torch.rand(truth.shape, generator=generator) * (equal + 1)).long()


def within_range(ranks, j):
    """Share of the true values between the j-th least and the j-th largest of SAMPLES."""
    return ((ranks >= j) & (ranks <= SAMPLES - j)).double().mean().item()


def within_deviations(samples, truth, count):
    """Share of the true values within mean +- 1.645 deviations of the first samples, a Gaussian's 90 % interval."""
    some = samples[:count].double()
    return ((truth - some.mean(0)).abs() <= 1.645 * some.std(0)).double().mean().item()


def over_images(shares):
    """Mean and standard error."""
    return statistics.fmean(shares), statistics.stdev(shares) / len(shares) ** 0.5


def eight_bits(images):
    return (255 * images.clamp(0, 1)).round().long()


def calibration_table(arguments, folder):
    pipe = score_network(arguments)
    data, others = test_images(arguments, OTHERS)
    varies = (others.float() / 255).std(0) > VARYING
    drawn = pipe(len(data), num_inference_steps=50, generator=generator(2**31), output_type="pt").images
    records = []
    for prior, name in CONTENDERS:
        images = data.float() / 255 if prior == "test images" else drawn
        operator, ties = tasks(images.shape)[TASK], generator()
        by_range, by_deviations = [], []
        for first in tqdm(range(0, len(images), arguments.batch), desc=f"{name}, {prior}"):
            problem = ImageProblem(pipe, operator, 2 * images - 1, slice(first, first + arguments.batch), SAMPLES)
            samples = eight_bits(OURS[name](problem, arguments.steps) / 2 + 0.5).unflatten(0, (-1, SAMPLES))
            for k, own in enumerate(samples):
                asked = operator.mask[first + k] & varies
                own, truth = own[:, asked], eight_bits(images[first + k])[asked]
                rank = ranks(own, truth, ties)
                by_range.append([within_range(rank, j) for j in range(1, SAMPLES // 2 + 1)])
                by_deviations.append([within_deviations(own, truth, count) for count in COUNTS])
        record = {"prior": prior, "method": name, "range": list(map(over_images, zip(*by_range, strict=True)))}
        record["deviations"] = list(map(over_images, zip(*by_deviations, strict=True)))
        records.append(record)
        results = {"images": len(images), "steps": arguments.steps, "samples": SAMPLES, "records": records}
        write_results(folder, "calibration", results, calibration_lines(records), calibration_figure(records))
    print(calibration_lines(records))


def label(record):
    return record["method"] if record["prior"] == "test images" else f"{record['method']}, {record['prior']}"


def calibration_lines(records) -> str:
    """Rows of 90 % intervals: the range of 19 samples, and mean +- 1.645 deviations of fewer and as many."""
    heads = [f"+- 1.645 deviations of {count}" for count in COUNTS]
    lines = [f"| | range of {SAMPLES} samples | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for record in records:
        cells = [
            f"{100 * mean:.1f} +- {100 * error:.1f} %" for mean, error in (record["range"][0], *record["deviations"])
        ]
        lines.append(f"| {label(record)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def calibration_figure(records):
    """Share of true values in intervals against what it should be."""
    figure, axis = plt.subplots(figsize=(5, 4.2), constrained_layout=True)
    nominal = [100 * (1 - 2 * j / (SAMPLES + 1)) for j in range(1, SAMPLES // 2 + 1)]
    axis.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    for record in records:
        mean, error = ([100 * value for value in values] for values in zip(*record["range"], strict=True))
        own = record["prior"] != "test images"
        axis.errorbar(nominal, mean, error, marker=".", linestyle="--" if own else "-", label=label(record))
    axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="interval (%)", ylabel="true pixels within it (%)", title=TASK)
    axis.legend(frameon=False, fontsize=8)
    return figure
