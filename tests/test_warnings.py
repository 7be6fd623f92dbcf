"""Warnings of this repository's own modules are errors in tests, those of libraries are not."""

import warnings

import pytest


@pytest.mark.parametrize(
    "module", ["sde_diffusers", "sde_diffusers.sdes", "train", "images.loading", "served_model", __name__]
)
def test_our_warnings_are_errors(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)


@pytest.mark.parametrize("module", ["torch.nn", "datasets", "dataclasses", "trainer"])
@pytest.mark.filterwarnings("ignore:old")
def test_those_of_libraries_are_not(module):
    warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)
