"""The studies' figures: text stays text, nothing hides on a light or a dark page, colours differ for everyone."""

import io
import re

import numpy as np
import pytest

from neurorecon.reporting.study_figures import (
    COLOURS,
    TEXT,
    add_legend,
    dots_with_interval,
    line_with_interval,
    new_figure,
    study_style,
)

LIGHT, DARK = "#ffffff", "#14171a"  # of page.css


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def svg(figure) -> str:
    out = io.StringIO()
    with study_style():
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def drawn():
    figure, axes = new_figure(columns=1, rows=2)
    line_with_interval(axes[0, 0], [1, 2, 3], [0.1, np.nan, 0.3], [0, 0, 0], [1, 1, 1], label="several")
    line_with_interval(axes[0, 0], [2], [0.2], [0.1], [0.4], label="one", colour=COLOURS[1])
    add_legend(axes[0, 0])
    dots_with_interval(axes[1, 0], ["none", "strict"], [0.1, 0.2], [0, 0.1], [0.3, 0.4], singles=[[0.1], [0.2, 0.3]])
    axes[1, 0].set_xlabel("movie correlation")
    return figure, axes


@pytest.mark.parametrize("colour", [*COLOURS, TEXT])
def test_every_colour_stands_out_on_both_pages(colour) -> None:
    assert min(contrast(colour, LIGHT), contrast(colour, DARK)) >= 3


def test_text_stays_text_and_the_ground_is_transparent() -> None:
    figure, _ = drawn()
    text = svg(figure)
    assert "movie correlation" in text and "several" in text and "sans-serif" in text
    assert not re.search(r"(fill|stroke): ?(#000000|#ffffff|black|white)", text)
    assert text == svg(figure)


def test_rows_run_from_the_top() -> None:
    _, axes = drawn()
    bottom, top = axes[1, 0].get_ylim()
    assert [t.get_text() for t in axes[1, 0].get_yticklabels()] == ["none", "strict"] and bottom > top


def test_the_size_follows_the_panels() -> None:
    assert new_figure()[1].shape == (1, 1)
    figure, axes = new_figure(columns=2, width_mm=127, height_mm=63.5)
    assert axes.shape == (1, 2) and np.allclose(figure.get_size_inches(), (5, 2.5))
