"""The records of an evaluation as tables: for each feature space, with a row for each set of images, and the rest."""

from typing import NamedTuple


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def make_tables(records: list[dict]) -> list[Table]:
    """Tables of records as `results.json` holds them."""
    spaces = dict.fromkeys(record["feature_space"] for record in records if "feature_space" in record)
    tables = [_feature_table(space, [r for r in records if r.get("feature_space") == space]) for space in spaces]
    others = [record for record in records if "feature_space" not in record]
    if others:
        rows = [[record["metric"].replace("_", " "), _number(record), _remarks(record)] for record in others]
        tables.append(Table("Other measurements", ["measurement", "value", "of"], rows, []))
    return tables


def markdown(table: Table) -> str:
    """The table for a model card."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([f"**{table.title}**", text, *table.notes])


def _feature_table(space: str, records: list[dict]) -> Table:
    metrics = list(dict.fromkeys(record["metric"] for record in records))
    about, notes, rows = records[-1], [], []
    reference = f"{about['dataset']}, {about['split']}"
    for images in dict.fromkeys(record["images"] for record in records):
        own = {record["metric"]: record for record in records if record["images"] == images}
        cells = []
        for metric in metrics:
            signs = ""
            for note in _notes(own[metric], reference) if metric in own else []:
                if note not in notes:
                    notes.append(note)
                signs += f" [{notes.index(note) + 1}]"
            cells.append(_number(own[metric]) + signs if metric in own else "")
        first = next(iter(own.values()))
        rows.append([images, f"{first['num_images']:,}", str(first.get("nfe", "")), *cells])
    size = f"{about['feature_dimension']} features of {about['resolution']} images"
    header = ["images", "number", "NFE", *(metric.replace("_", " ") for metric in metrics)]
    numbered = [f"[{k}] {note}" for k, note in enumerate(notes, 1)]
    return Table(f"{space} ({size}), against {reference}", header, rows, numbered)


def _notes(record: dict, reference: str) -> list[str]:
    """What a reader has to know about one number."""
    own = f"{record['dataset']}, {record['split']}"
    other = None if own == reference else f"against {record['num_reference']:,} images of {own}"
    return [note for note in (record.get("refused"), record.get("mark"), other) if note]


def _number(record: dict) -> str:
    if record["value"] is None:
        return "refused"
    text = f"{record['value']:.4g}"
    if "interval_95" in record:
        text += " ({:.4g} to {:.4g})".format(*record["interval_95"])
    error = record.get("standard_error")
    if isinstance(error, dict):
        error = error["total"]
    return text if error is None else f"{text} ± {error:.2g}"


def _remarks(record: dict) -> str:
    if record["metric"] == "bits_per_dim":
        errors = {name: error for name, error in record["standard_error"].items() if error is not None}
        parts = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
        given = ", given the class" if record["given_class"] else ""
        return (
            f"{record['num_images']:,} images of {record['dataset']}, {record['split']}{given}; "
            f"NFE {record['nfe']:.0f}; standard errors: {parts}"
        )
    if record["metric"] == "images_per_second":
        return (
            f"{record['device']}, {record['threads']} threads in each of {record['processes']} processes, batches of "
            f"{record['batch_size']}, NFE {record['nfe']}"
        )
    if record["metric"] == "exact_copies":
        median = f"median distance {record['median_of_samples']:.3g}"
        return f"{record['num_images']:,} samples, in {record['space']}; {median}"
    return (
        f"{record['num_images']:,} samples against {record['num_test_images']:,} test images, in {record['space']}; "
        f"median distance {record['median_of_samples']:.3g} against {record['median_of_test_images']:.3g}"
    )
