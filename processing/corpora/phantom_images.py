"""Chest-like frontal and lateral pictures of findings: soft shapes in a unit square, x to the right, y down.

As on a film, the patient's right is on the left of a frontal; on a lateral the patient looks to the left.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from processing.corpora.phantom_findings import SLOTS, Findings


__all__ = ["Anatomy", "draw_anatomy", "draw_view"]

EDGE = 0.008  # width of a soft edge
AIR, LUNG, TISSUE, FLUID, HEART, BONE, METAL = 0.02, 0.2, 0.56, 0.62, 0.68, 0.14, 0.3
SIDES = {"right": -1, "left": 1}
NODULE_RADII = (0.0, 0.055, 0.09)
EFFUSION_LEVELS = (0.0, 0.1, 0.25)  # above the dome of the diaphragm
PNEUMOTHORAX_GAPS = (0.0, 0.18, 0.38)  # share of the lung's radius
FRONTAL_NODULES = {
    "right upper zone": (-0.55, 0.3),
    "left mid zone": (0.75, 0.5),
}
LATERAL_NODULES = {
    "behind the heart": (0.6, 0.58),
    "right upper zone": (0.47, 0.3),
    "left mid zone": (0.46, 0.48),
}


@dataclass(frozen=True)
class Anatomy:
    """How a patient is built; lengths are shares of the picture's side."""

    lung_width: float
    lung_top: float
    right_dome: float
    left_dome: float
    heart_width: float
    heart_height: float
    rib_spacing: float
    rib_start: float
    depth: float
    tissue: float
    texture_seed: int


@dataclass(frozen=True)
class Grid:
    """Coordinates of the pixels, each of shape `(size, size)`."""

    x: np.ndarray
    y: np.ndarray


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A patient."""
    return Anatomy(
        lung_width=rng.uniform(0.155, 0.185),
        lung_top=rng.uniform(0.1, 0.14),
        right_dome=rng.uniform(0.7, 0.75),
        left_dome=rng.uniform(0.73, 0.78),
        heart_width=rng.uniform(0.105, 0.12),
        heart_height=rng.uniform(0.12, 0.15),
        rib_spacing=rng.uniform(0.085, 0.105),
        rib_start=rng.uniform(0.0, 0.08),
        depth=rng.uniform(0.23, 0.27),
        tissue=rng.uniform(-0.05, 0.05),
        texture_seed=int(rng.integers(2**31)),
    )


def draw_view(anatomy: Anatomy, found: Findings, view: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """
    Picture one view.

    Args:
        anatomy ([`Anatomy`]): of the patient.
        found (`dict`): what to show.
        view (`str`): "frontal" or "lateral".
        size (`int`): side in pixels.
        rng (`np.random.Generator`): source of the position, the exposure and the noise of the film; the findings take
            nothing from it, so that with the same source they alone change pixels.

    Returns:
        `np.ndarray` of shape `(size, size)`, 8-bit grey.
    """
    grid = _positioned(size, rng)
    paint = {"frontal": _paint_frontal, "lateral": _paint_lateral}[view]
    film = paint(anatomy, found, grid) + _texture(size, anatomy.texture_seed, view)
    film = np.clip(film * rng.uniform(0.92, 1.08), 0, 1) ** rng.uniform(0.9, 1.1)
    film += rng.normal(0, 0.012, film.shape)
    return (255 * np.clip(film, 0, 1)).round().astype(np.uint8)


def _positioned(size: int, rng: np.random.Generator) -> Grid:
    x, y = _pixel_grid(size)
    zoom, angle = rng.uniform(0.97, 1.03), rng.uniform(-0.04, 0.04)
    shift_x, shift_y = rng.uniform(-0.015, 0.015, 2)
    x, y = zoom * (x - 0.5) + shift_x, zoom * (y - 0.5) + shift_y
    return Grid(0.5 + np.cos(angle) * x - np.sin(angle) * y, 0.5 + np.sin(angle) * x + np.cos(angle) * y)


@lru_cache(maxsize=4)
def _pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size) + 0.5) / size
    return tuple(np.meshgrid(axis, axis))


@lru_cache(maxsize=8)
def _texture(size: int, seed: int, view: str) -> np.ndarray:
    """Smooth grain that a patient keeps: vessels and soft tissue."""
    coarse = np.random.default_rng([seed, len(view)]).normal(0, 0.02, (17, 17))
    place = np.linspace(0, 16 - 1e-6, size)
    low, share = place.astype(int), place % 1
    rows = coarse[low] * (1 - share[:, None]) + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _paint_frontal(anatomy: Anatomy, found: Findings, grid: Grid) -> np.ndarray:
    film = _body(grid, 0.5, 0.44, anatomy)
    for side, sign in SIDES.items():
        film = _paint_lung(film, anatomy, found, grid, side, sign)
    film += BONE * 0.8 * _disc(grid, 0.5, 0.5, 0.03, 0.6) * (grid.y < 0.95)
    film = _over(film, _frontal_heart(anatomy, _size(found, "cardiomegaly"), grid), HEART)
    film = _over(film, _disc(grid, 0.5, 0.3, 0.06, 0.2), FLUID)
    film += 0.5 * BONE * _line(grid, ((0.14, 0.17), (0.34, 0.13), (0.47, 0.17)), 0.014)
    film += 0.5 * BONE * _line(grid, ((0.86, 0.17), (0.66, 0.13), (0.53, 0.17)), 0.014)
    for place, (offset, y) in FRONTAL_NODULES.items():
        x = 0.5 + np.sign(offset) * 0.2 + (offset - np.sign(offset) * 0.6) * anatomy.lung_width
        film = _paint_nodule(film, grid, x, y, _size(found, "nodule", place))
    return _paint_frontal_devices(film, found, grid)


def _paint_lung(film, anatomy, found, grid, side, sign):
    x, half_height = 0.5 + sign * 0.205, 0.5 * (0.92 - anatomy.lung_top)
    cavity = _disc(grid, x, anatomy.lung_top + half_height, anatomy.lung_width, half_height)
    dome = anatomy.right_dome if side == "right" else anatomy.left_dome
    across = (grid.x - x) / anatomy.lung_width
    diaphragm = dome + 0.07 * across**2 + 0.05 * np.maximum(sign * across, 0) ** 2
    lung = cavity * _below(diaphragm, grid.y)
    film = _over(film, lung, LUNG)
    film += lung * _ribs(anatomy, grid, sign)
    film = _paint_pneumothorax(film, lung, across, anatomy, grid, _size(found, "pneumothorax", side))
    return _paint_effusion(film, lung, dome, sign * across, grid, _size(found, "pleural effusion", side))


def _paint_pneumothorax(film, lung, across, anatomy, grid, size):
    """Air between the chest wall and a lung that has shrunk towards its lower pole: black, without ribs' haze."""
    if not size:
        return film
    shrink = 1 - PNEUMOTHORAX_GAPS[size]
    height = (grid.y - 0.62) / (0.62 - anatomy.lung_top)
    radius = np.sqrt(across**2 + np.minimum(height, 0) ** 2)
    edge = EDGE / anatomy.lung_width
    film = _over(film, lung * _sigmoid((radius - shrink) / edge), AIR + 0.03)
    return film + 0.22 * lung * np.exp(-(((radius - shrink) / (2 * edge)) ** 2))


def _paint_effusion(film, lung, dome, outwards, grid, size):
    """Fluid that fills the lung's base and climbs the chest wall."""
    if not size:
        return film
    surface = dome + 0.06 - EFFUSION_LEVELS[size] - 0.09 * np.clip(outwards, 0, 1) ** 3
    return _over(film, lung * _sigmoid((grid.y - surface) / (1.5 * EDGE)), FLUID)


def _frontal_heart(anatomy: Anatomy, size: int, grid: Grid) -> np.ndarray:
    width = anatomy.heart_width * (1 + 0.38 * size)
    return _disc(grid, 0.535 + 0.038 * size, 0.66, width, anatomy.heart_height * (1 + 0.1 * size))


def _paint_frontal_devices(film, found, grid):
    if _size(found, "endotracheal tube"):
        film = film + METAL * _line(grid, ((0.5, 0.0), (0.5, 0.3)), 0.012)
    if _size(found, "central venous line"):
        film = film + METAL * _line(grid, ((0.33, 0.02), (0.39, 0.16), (0.455, 0.24), (0.46, 0.48)), 0.011)
    return film


def _paint_lateral(anatomy: Anatomy, found: Findings, grid: Grid) -> np.ndarray:
    film = _body(grid, 0.5, 0.36, anatomy)
    half_height = 0.5 * (0.95 - anatomy.lung_top)
    cavity = _disc(grid, 0.5, anatomy.lung_top + half_height, anatomy.depth, half_height)
    dome = 0.5 * (anatomy.right_dome + anatomy.left_dome) - 0.02
    backwards = (grid.x - 0.5) / anatomy.depth
    lung = cavity * _below(dome + 0.15 * np.maximum(backwards, 0) ** 2 + 0.04 * np.minimum(backwards, 0) ** 2, grid.y)
    film = _over(film, lung, LUNG)
    heart = _size(found, "cardiomegaly")
    width = anatomy.heart_width * (1 + 0.3 * heart)
    film = _over(film, _disc(grid, 0.385 + 0.03 * heart, 0.62, width, anatomy.heart_height), HEART)
    film = _paint_spine(film, anatomy, grid)
    for place, (x, y) in LATERAL_NODULES.items():
        film = _paint_nodule(film, grid, x, y, _size(found, "nodule", place))
    return _paint_lateral_fluid(film, found, lung, dome, backwards, grid)


def _paint_spine(film, anatomy, grid):
    x = 0.5 + anatomy.depth * 0.92 + 0.04 * np.sin(2.2 * grid.y)
    bodies = 0.75 + 0.25 * np.sign(np.sin(2 * np.pi * (grid.y + anatomy.rib_start) / 0.07))
    film = film + BONE * 1.3 * bodies * np.exp(-(((grid.x - x) / 0.035) ** 4))
    return film + BONE * _line(grid, ((0.5 - anatomy.depth, 0.18), (0.47 - anatomy.depth, 0.55)), 0.012)


def _paint_lateral_fluid(film, found, lung, dome, backwards, grid):
    sides = max(_size(found, "pleural effusion", side) for side in SIDES)
    film = _paint_effusion(film, lung, dome + 0.02, backwards, grid, sides)
    size = _size(found, "pleural effusion", "posterior")
    if size:
        surface = dome + 0.07 - 0.1 * size - 0.12 * (backwards - 0.6)
        corner = _sigmoid((backwards - 0.75 + 0.4 * size) / 0.04) * _sigmoid((grid.y - surface) / EDGE)
        film = _over(film, lung * corner, FLUID)
    return film


def _paint_nodule(film, grid, x, y, size):
    if not size:
        return film
    radius = NODULE_RADII[size]
    return film + 0.34 * _disc(grid, x, y, radius, radius)


def _body(grid: Grid, x: float, width: float, anatomy: Anatomy) -> np.ndarray:
    outline = ((grid.x - x) / width) ** 4 + (np.maximum(0.3 - grid.y, 0) / 0.36) ** 2
    return AIR + (TISSUE + anatomy.tissue) * _sigmoid((1 - outline) / 0.06)


def _ribs(anatomy: Anatomy, grid: Grid, sign: int) -> np.ndarray:
    outwards = sign * (grid.x - 0.5)
    phase = (grid.y - anatomy.rib_start + 1.1 * (outwards - 0.16) ** 2 - 0.35 * outwards) / anatomy.rib_spacing
    return BONE * _sigmoid((np.cos(2 * np.pi * phase) - 0.45) / 0.15)


def _size(found: Findings, kind: str, place: str | None = None) -> int:
    """Size of a finding, 0 where it is not there."""
    return max((found.get(slot, 0) for slot in SLOTS if slot.kind == kind and place in (None, slot.place)), default=0)


def _over(film: np.ndarray, mask: np.ndarray, level: float) -> np.ndarray:
    return film + mask * (level - film)


def _disc(grid: Grid, x: float, y: float, width: float, height: float) -> np.ndarray:
    radius = np.sqrt(((grid.x - x) / width) ** 2 + ((grid.y - y) / height) ** 2)
    return _sigmoid((1 - radius) * min(width, height) / EDGE)


def _line(grid: Grid, points: tuple[tuple[float, float], ...], width: float) -> np.ndarray:
    """A soft line through points."""
    distance = np.full(grid.x.shape, np.inf)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((grid.x - x0) * (x1 - x0) + (grid.y - y0) * (y1 - y0)) / length, 0, 1)
        distance = np.minimum(distance, np.hypot(grid.x - x0 - along * (x1 - x0), grid.y - y0 - along * (y1 - y0)))
    return np.exp(-((distance / width) ** 2))


def _below(edge: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _sigmoid((edge - y) / EDGE)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * values)
