"""What stands in a picture, read back from its axes: bars, heat maps, error bars, legends, captions."""

import numpy as np
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex


def caption(figure) -> str:
    """Without the breaks of its lines."""
    return " ".join(figure.get_supxlabel().split())


def title(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def seen(axis, names) -> dict:
    """Where every tick of the "x" or "y" axis stands -> its label."""
    ticks = getattr(axis, f"{names}axis")
    labels = [label.get_text() for label in ticks.get_ticklabels()]
    return dict(zip(np.asarray(ticks.get_ticklocs()).tolist(), labels, strict=True))


def upright(axis) -> list[tuple]:
    """(middle, bottom, top, colour) of every bar."""
    return [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_y() + bar.get_height(),
             to_hex(bar.get_facecolor())) for bar in axis.patches]


def lying(axis) -> list[tuple]:
    """(middle, left, right, colour) of every horizontal bar."""
    return [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_x() + bar.get_width(),
             to_hex(bar.get_facecolor())) for bar in axis.patches]


def scatters(axis) -> list[tuple]:
    """(label, points as [x, y], the colours of the points) of every scatter."""
    return [(points.get_label(), np.asarray(points.get_offsets()).tolist(),
             [to_hex(color) for color in np.atleast_2d(points.get_facecolor())])
            for points in axis.collections if isinstance(points, PathCollection)]


def segments(axis) -> list[list]:
    """[[x, y], [x, y]] of the lines of every collection: error bars, hlines; without those of an unknown end."""
    return [[segment.tolist() for segment in lines.get_segments() if len(segment) and np.isfinite(segment).all()]
            for lines in axis.collections if isinstance(lines, LineCollection)]


def lines(axis) -> list[tuple]:
    """(x, y, colour) of every line."""
    return [(np.atleast_1d(line.get_xdata()).tolist(), np.atleast_1d(line.get_ydata()).tolist(),
             to_hex(line.get_color())) for line in axis.lines]


def heat_map(axis) -> tuple[np.ndarray, np.ndarray, QuadMesh]:
    """The values behind the colours and the texts on them, both (rows, columns) as seen from the top; the mesh."""
    (mesh,) = [each for each in axis.collections if isinstance(each, QuadMesh)]
    values: np.ndarray = np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for text in axis.texts:
        column, row = text.get_position()
        assert column % 1 == row % 1 == 0.5, "in the middle of a cell"
        texts[int(row), int(column)] = text.get_text()
    low, high = axis.get_ylim()
    return (values, texts, mesh) if low > high else (values[::-1], texts[::-1], mesh)


def legend(holder) -> dict:
    """Text -> colour of the legend of an axis, or of the only one of a figure."""
    [found] = getattr(holder, "legends", None) or [holder.get_legend()]
    return {text.get_text(): _color(handle)
            for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)}


def _color(handle) -> str:
    """Of a line, error bars, points or a patch."""
    found = handle.get_color() if hasattr(handle, "get_color") else handle.get_facecolor()
    return to_hex(found if isinstance(found, str) else np.atleast_2d(found)[0])
