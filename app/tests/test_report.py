"""Which mistakes a report shows, and that what it shows cannot do anything."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightbox import report


@given(st.data(), st.integers(1, 60))
def test_the_worst_mistakes_are_wrong_and_the_most_confident_come_first(data, size):
    scores = data.draw(arrays(float, size, elements=st.floats(0, 1)))
    labels = data.draw(arrays(int, size, elements=st.integers(0, 1)))
    rows, wrong = report.worst(labels, scores)
    assert wrong == int(((scores >= 0.5) != labels).sum())
    assert len(rows) == min(wrong, report.MOST)
    assert all((scores[row] >= 0.5) != labels[row] for row in rows)
    far = np.abs(scores[rows] - 0.5)
    assert (np.diff(far) <= 0).all()
    others = np.setdiff1d(np.flatnonzero((scores >= 0.5) != labels), rows)
    assert not others.size or np.abs(scores[others] - 0.5).max() <= far.min()


def test_of_several_labels_the_one_with_the_highest_score_is_called():
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]])
    rows, wrong = report.worst([0, 0, 0], scores)
    assert (rows.tolist(), wrong) == ([1, 2], 2)


def test_a_file_name_is_no_markup(bundle):
    contract = json.loads((bundle / "model.json").read_text())
    shown = report.Mistake("<script>alert(1)</script>.png", "Normal", "Pneumonia", "90%", "data:,", None, None)
    page = report.render(contract, [shown], 1, "test")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "All wrong verdicts on the test images" in page


def test_a_model_without_mistakes_says_so(bundle):
    page = report.render(json.loads((bundle / "model.json").read_text()), [], 0, "test")
    assert "Every verdict on the test images is right." in page
