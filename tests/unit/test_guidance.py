"""What a gang's halves do to a session's guiders."""

from __future__ import annotations

import gc
import weakref

from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance

from pipeline.parallel.guidance import GuidanceGroup


def test_a_guider_that_is_split_goes_with_its_session() -> None:
    """Some keep predictions: on a GPU these aren't to wait for Python's collector of cycles."""
    guider = ClassifierFreeGuidance()
    gone = weakref.ref(guider)
    gc.disable()
    try:
        GuidanceGroup(half=0).split_guiders([guider])
        del guider
        assert gone() is None
    finally:
        gc.enable()
