"""What a run keeps of its images when it is resumed with others."""

# ruff: noqa: F401, F811 (fixtures)

from tiny_training import one_thread, run_here, tiny

from run.record import read_record


def test_which_images_were_chosen_is_unknown_once_others_were(tiny, tmp_path):
    words = tiny, tmp_path / "run", "validate_every=0", "checkpoint_every=1"
    first = read_record(run_here(*words, "steps=1"))
    assert (first.max_images, first.num_found, first.data_dir) == (300, 10_000, None)
    assert read_record(run_here(*words, "steps=2", "resume=latest")) == first
    assert read_record(run_here(*words, "steps=3", "resume=latest", "data.max_images=200")).max_images is None
    assert read_record(run_here(*words, "steps=4", "resume=latest")).max_images is None
