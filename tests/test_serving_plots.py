"""The figures of a server show what they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from i2ilib import I2IError
from i2ilib.plots import serving
from i2ilib.plots.serving import Load


def test_a_journey_is_as_long_as_its_stations():
    figure = serving.journey({"one": {"wire": 10.0, "network": 90.0}, "two": {"wire": 5.0, "merge": 20.0}}, title="t")
    (ax,) = figure.axes
    bars = [(round(b.get_x(), 6), b.get_width(), round(b.get_y() + b.get_height() / 2)) for b in ax.patches]
    assert [b for b in bars if b[1]] == [(0, 10, 0), (10, 90, 0), (0, 5, 1), (5, 20, 1)]
    assert {"  100 ms", "  25 ms", "90"} <= {text.get_text() for text in ax.texts}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["wire", "network", "merge"]
    assert "t" in (ax.get_title(), ax.get_title(loc="left"))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    plt.close(figure)


def test_load_shows_every_row_and_the_runner_alone():
    rows = [Load(1, 10.0, 100.0, 120.0), Load(4, 18.0, 220.0, 900.0)]
    figure = serving.load({"batch 8": rows}, alone=20.0)
    left, right = figure.axes
    alone, throughput = left.lines
    assert set(alone.get_ydata()) == {20.0} and np.array_equal(throughput.get_xydata(), [[1, 10], [4, 18]])
    assert [list(line.get_ydata()) for line in right.lines] == [[100, 220], [120, 900]]
    assert right.get_ylim() == pytest.approx((100, 1000)) and left.get_ylim()[1] > 20
    plt.close(figure)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: serving.journey({}),
        lambda: serving.journey({"a": {"x": -1.0}}),
        lambda: serving.load({}, alone=1.0),
        lambda: serving.load({"a": []}, alone=1.0),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(I2IError):
        draw()
