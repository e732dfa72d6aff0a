"""Draws targets, predictions and superpixels on pictures (h, w, 3) uint8 of the gallery."""

import base64
import io

import numpy as np
from PIL import Image

SIDE = 320
PREDICTED = np.array([255, 140, 0], dtype=float)
TARGET = np.array([0, 229, 255], dtype=float)
SUPERPIXEL = np.array([255, 221, 51], dtype=float)


def enlarge(array: np.ndarray) -> np.ndarray:
    """Resize to SIDE pixels on the longest side: bicubic for pictures, nearest neighbour for masks and labels."""
    height, width = array.shape[:2]
    scale = SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    return np.asarray(Image.fromarray(array.astype(np.int32)).resize(size, Image.Resampling.NEAREST))


def draw(picture: np.ndarray, target: np.ndarray, prediction: np.ndarray | None) -> np.ndarray:
    """The picture with the prediction tinted, the rest faded, and the target outlined."""
    canvas = enlarge(picture).astype(float)
    if prediction is not None:
        mask = enlarge(prediction).astype(bool)
        grey = canvas.mean(axis=-1, keepdims=True)
        canvas = np.where(mask[..., None], 0.3 * canvas + 0.7 * PREDICTED, 0.35 * canvas + 0.35 * grey + 76)
    canvas[_boundaries(enlarge(target), radius=4)] = 20
    canvas[_boundaries(enlarge(target), radius=2)] = TARGET
    return canvas.astype(np.uint8)


def outline_labels(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The picture with the boundaries between labels."""
    canvas = enlarge(picture).astype(float)
    size = (canvas.shape[1], canvas.shape[0])
    enlarged = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    halo = _boundaries(enlarged, radius=2)
    canvas[halo] = 0.4 * canvas[halo]
    canvas[_boundaries(enlarged, radius=1)] = SUPERPIXEL
    return canvas.astype(np.uint8)


def _boundaries(labels: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) bool: pixels with another label within `radius` rows or columns; the image border is not a boundary."""
    edges = np.zeros(labels.shape, dtype=bool)
    for step in range(1, radius + 1):
        for marked, shifted in ((edges, labels), (edges.T, labels.T)):
            differs = shifted[step:] != shifted[:-step]
            marked[step:] |= differs
            marked[:-step] |= differs
    return edges


def encode(canvas: np.ndarray) -> str:
    """The picture as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
