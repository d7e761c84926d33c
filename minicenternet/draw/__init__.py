"""Pictures: boxes over images, heatmaps, an explanation of one detection, the curves of a run, ideas; and `show`.

One look: cividis for heatmaps, the colours of Okabe and Ito, told apart by the colour-blind, for classes, and dashes
where there are more classes than colours. All is drawn into memory, without a screen, by matplotlib's Agg; every
function returns its picture, (H, W, 3) uint8, and writes it to `path` if one is given.

In an image's axes (x, y) are its pixels' outer edges, as in boxes: pixel column 3 reaches from x = 3 to x = 4.
"""

from .curves import draw_comparison, draw_curves, draw_precision_recall
from .detections import draw_boxes, draw_explanation, draw_grid, draw_heatmap, draw_sampling_points, draw_targets
from .lessons import draw_access_pattern, draw_filmstrip, draw_gaussians, draw_graph, draw_peaks, draw_surface
from .look import COLOURS, DASHES, HEAT, save_picture, show

__all__ = [
    "COLOURS",
    "DASHES",
    "HEAT",
    "draw_access_pattern",
    "draw_boxes",
    "draw_comparison",
    "draw_curves",
    "draw_explanation",
    "draw_filmstrip",
    "draw_gaussians",
    "draw_graph",
    "draw_grid",
    "draw_heatmap",
    "draw_peaks",
    "draw_precision_recall",
    "draw_sampling_points",
    "draw_surface",
    "draw_targets",
    "save_picture",
    "show",
]
