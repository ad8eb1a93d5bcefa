"""The part of the visual field that a mask covers."""

import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.stimuli.degrees import pixels_per_degree
from neurorecon.stimuli.screen_area import screen_area

PER_DEGREE = pixels_per_degree(64, width_cm=56.5, distance_cm=15.0)


def test_a_whole_screen_is_the_solid_angle_of_its_rectangle():
    area = screen_area(np.ones((36, 64), bool), per_degree=PER_DEGREE)
    half_width, half_height = 56.5 / 2, 56.5 * 36 / 64 / 2
    # Of a rectangle seen from above its centre: 4 asin(sin(a) sin(b)), a and b its half angles.
    expected = 4 * np.arcsin(np.sin(np.arctan(half_width / 15)) * np.sin(np.arctan(half_height / 15)))
    assert area.square_degrees == pytest.approx(np.degrees(np.degrees(expected)), rel=2e-3)
    assert area.share == 1
    assert area.width == pytest.approx(2 * np.degrees(np.arctan(half_width / 15)))
    assert area.height == pytest.approx(2 * np.degrees(np.arctan(half_height / 15)))


def test_pixels_shrink_towards_the_border():
    middle, corner = np.zeros((2, 36, 64), bool)
    middle[17:19, 31:33] = corner[:2, :2] = True
    inside, outside = (screen_area(mask, per_degree=PER_DEGREE) for mask in (middle, corner))
    assert inside.square_degrees == pytest.approx((2 / PER_DEGREE) ** 2, rel=0.01)
    assert outside.square_degrees < 0.2 * inside.square_degrees and outside.share == inside.share
    assert screen_area(np.zeros((4, 4), bool), per_degree=1.0) == (0, 0, 0, 0)
    with pytest.raises(NeuroreconError, match="booleans"):
        screen_area(np.ones((4, 4)), per_degree=1.0)
