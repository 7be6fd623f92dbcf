"""When a run is said to learn its images by heart."""

from run.overfitting import overfits_since


def records(validation, training):
    """Lines of a log: a training loss at every step, a validation loss at every tenth."""
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(training, 1)]
    lines += [{"step": 10 * k, "validation_loss": loss} for k, loss in enumerate(validation, 1)]
    return sorted(lines, key=lambda line: line["step"])


FALLING = [1 - step / 100 for step in range(70)]


def test_a_rise_over_three_validations_while_training_falls_is_seen():
    assert overfits_since(records([0.9, 0.7, 0.71, 0.72, 0.73], FALLING[:50])) == 20
    assert overfits_since(records([0.9, 0.7, 0.71, 0.72], FALLING[:40])) is None  # not yet
    assert overfits_since(records([0.7, 0.75, 0.8, 0.85], FALLING[:40])) == 10


def test_other_courses_are_not():
    assert overfits_since([]) is None
    assert overfits_since(records([0.9, 0.8, 0.7, 0.6, 0.5], FALLING[:50])) is None
    assert overfits_since(records([0.9, 0.7, 0.72, 0.71, 0.705], FALLING[:50])) is None  # falls again
    assert overfits_since(records([0.9, 0.7, 0.7, 0.7, 0.7], FALLING[:50])) is None  # has come to its end
    assert overfits_since(records([0.9, 0.7, 0.71, 0.72, 0.73], FALLING[:50][::-1])) is None  # both rise
