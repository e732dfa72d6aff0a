"""Points that prompt a SAM with a region: the pixel of the region that is farthest from its border."""

import numpy as np
from scipy import ndimage


def interior_points(labels: np.ndarray) -> np.ndarray:
    """The pixel of each region that is farthest from every other region and from the border of the map.

    The centroid of a region may lie outside of it; this pixel never does.

    Args:
        labels: (h, w) ids 0..S-1, or -1 for no region.

    Returns:
        (S, 2) column and row; NaN for an id that does not occur.
    """
    points = np.full((int(labels.max()) + 1, 2), np.nan)
    for number, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None:
            continue
        distance = ndimage.distance_transform_edt(np.pad(labels[box] == number, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        points[number] = column + box[1].start, row + box[0].start
    return points
