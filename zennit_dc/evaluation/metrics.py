'''The paper's metrics (section 5.2) for maps of a batch of images, each with one score for an image.

Quantus 0.6 computes what it computes as the paper describes it; where it does not, the function's documentation says
what is different. A map is taken as it is: nothing is normalized, and there is no absolute value but in
:py:func:`max_sensitivity`. The score of an image never depends on the other images of the batch. Quantus' own
preprocessing is not used, as it is of the batch: it divides by the largest absolute value of all maps, and raises if,
and only if, all of them are constant or negative.
'''
from typing import NamedTuple

try:
    from .faithfulness import PixelFlipping, Selectivity, pixel_flipping, selectivity
    from .localisation import (
        Mosaics, attribution_localisation, grid_pointing_game, mosaic, mosaic_members, mosaics, pointing_game,
        require_any_size,
    )
    from .robustness import MaxSensitivity, max_sensitivity
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}: the metrics need Quantus, pip install "zennit-dc[evaluation]"', name=error.name
    ) from error


__all__ = [
    'METRICS', 'MaxSensitivity', 'Metric', 'Mosaics', 'PixelFlipping', 'Selectivity', 'attribution_localisation',
    'grid_pointing_game', 'max_sensitivity', 'mosaic', 'mosaic_members', 'mosaics', 'pixel_flipping', 'pointing_game',
    'require_any_size', 'selectivity',
]


class Metric(NamedTuple):
    '''A metric.

    Parameters
    ----------
    title : str
        Its name for people, as in the paper's tables.
    larger_is_better : bool
        Whether a larger score is better.
    needs_mask : bool
        Whether it compares the map with a mask of the object.
    needs_explain : bool
        Whether it computes maps of its own.
    needs_mosaic : bool
        Whether its maps are of mosaics.
    '''
    title: str
    larger_is_better: bool
    needs_mask: bool = False
    needs_explain: bool = False
    needs_mosaic: bool = False


METRICS = {
    'selectivity': Metric('Select.', False),
    'attribution_localisation': Metric('Attr. Loc.', True, needs_mask=True),
    'pointing_game': Metric('Point.', True, needs_mask=True),
    'pixel_flipping_5': Metric('Pixel Fl. AUC@5', True),
    'pixel_flipping_20': Metric('Pixel Fl. AUC@20', True),
    'max_sensitivity': Metric('Max Sens.', False, needs_explain=True),
    'grid_pointing_game': Metric('Grid Point.', True, needs_mosaic=True),
}
