"""The numbers of `training_cost.py` as Markdown tables: counted, measured, computed."""

GIB = 2**30


def measured(rows, compiled=None):
    """The rows without an error; only (un)compiled ones unless `compiled` is None."""
    return [row for row in rows if "error" not in row and compiled in (None, row["compiled"])]


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def gib(num_bytes):
    return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"


def hours(number):
    return f"{number:,.1f}" if number >= 10 else f"{number:.2g}"


def markdown(results):
    """The tables as a page can hold them."""
    entries, state_bytes = results["configurations"], results["state_bytes_per_parameter"]
    state = sum(state_bytes.values())
    counted = table(
        ["network", "parameters (10^6)", "GFLOP forward", "GFLOP step", "GiB of state"],
        [
            [
                f"`{name}`",
                f"{entry['parameters'] / 1e6:.2f}",
                f"{entry['flops_forward'] / 1e9:.4g}",
                f"{entry['flops_step'] / 1e9:.4g}",
                gib(state * entry["parameters"]),
            ]
            for name, entry in entries.items()
        ],
    )
    parts = [
        "Counted: operations of the forward, and of the forward and backward pass for one image. Computed: the state, "
        f"{state} bytes per parameter ({', '.join(state_bytes)}).\n",
        counted,
    ]
    rows = [(name, row) for name, entry in entries.items() for row in entry["rows"]]
    if rows:
        parts += [measured_heading(results), table(*measured_rows(rows))]
        growth = [
            f"`{name}` {entry['activation_bytes_per_image'] / 2**20:.1f} MiB"
            for name, entry in entries.items()
            if entry["activation_bytes_per_image"]
        ]
        if growth:
            parts.append(f"Each image of a batch adds, not compiled, {', '.join(growth)} to the peak of memory.\n")
    costs = [(name, cost) for name, entry in entries.items() for cost in entry["schedule_cost"]]
    if costs:
        schedules = "; ".join(
            f"`{name}`: {entry['schedule']['steps']:,} steps of {entry['schedule']['batch_size']} images "
            f"({entry['schedule']['source']})"
            for name, entry in entries.items()
        )
        parts += [
            f"Computed. Schedules: {schedules}. Assumed: a ring all-reduce of float32 gradients at "
            f"{results['assumed']['link_gb_per_s']:g} GB/s, not overlapped with anything. The memory is "
            "that of a GPU's share without micro-batches.\n",
            table(*cost_rows(costs)),
        ]
    if results["not_measured"]:
        parts.append(f"Not measured, for want of time: {'; '.join(results['not_measured'])}.\n")
    return "\n".join(parts)


def measured_heading(results):
    matmul = results["matmul_flops_per_second"]
    yardstick = f" A bfloat16 matrix product of side 8192 reached {matmul / 1e12:.0f} TFLOP/s." if matmul else ""
    return (
        f"Measured on {results['device']}, torch {results['torch']}: {results['precision']}, channels_last; medians "
        f"of {results['rounds']} rounds (all of them in brackets).{yardstick}\n"
    )


def measured_rows(rows):
    head = ["network", "batch", "compiled", "images/s", "ms per step", "TFLOP/s", "peak GiB"]
    lines = []
    for name, row in rows:
        line = [f"`{name}`", row["batch_size"], "yes" if row["compiled"] else "no"]
        if "error" in row:
            lines.append([*line, row["error"].replace("|", r"\|"), "", "", ""])
            continue
        slowest, fastest = (row["batch_size"] / seconds(row["rounds"]) for seconds in (max, min))
        lines.append(
            [
                *line,
                f"{row['images_per_second']:.1f} ({slowest:.1f} to {fastest:.1f})",
                f"{row['seconds_per_step'] * 1e3:.1f}",
                f"{row['flops_per_second'] / 1e12:.4g}",
                gib(row["peak_bytes"]),
            ]
        )
    return head, lines


def cost_rows(costs):
    head = ["network", "GPUs", "images per GPU", "micro-batch", "compiled", "ms compute", "ms all-reduce", "hours"]
    lines = [
        [
            f"`{name}`",
            cost["gpus"],
            cost["images_per_gpu"],
            cost["micro_batch"],
            "yes" if cost["compiled"] else "no",
            f"{cost['compute_seconds_per_step'] * 1e3:.1f}",
            f"{cost['all_reduce_seconds']['float32'] * 1e3:.1f}",
            hours(cost["hours"]),
            hours(cost["hours_at_highest_rate"]),
            gib(cost["memory_bytes"]),
        ]
        for name, cost in costs
    ]
    return [*head, "hours at the highest rate", "GiB"], lines
