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
    from .localisation import attribution_localisation, grid_pointing_game, pointing_game
    from .randomisation import similarities
    from .robustness import MaxSensitivity, max_sensitivity
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}: the metrics need Quantus, pip install "zennit-dc[evaluation]"', name=error.name
    ) from error


__all__ = [
    'METRICS', 'MaxSensitivity', 'Metric', 'PixelFlipping', 'Selectivity', 'attribution_localisation',
    'grid_pointing_game', 'max_sensitivity', 'pixel_flipping', 'pointing_game', 'selectivity', 'similarities',
]


class Metric(NamedTuple):
    '''A metric.

    Parameters
    ----------
    title : str
        Its name for people, as in the paper's tables.
    larger_is_better : bool
        Whether a larger score is better.
    needs_mosaic : bool
        Whether its maps are of mosaics.
    needs_random : bool
        Whether it compares the map with that of a model with randomised layers.
    of_absolute : bool
        Whether its score of a map and that of the map's absolute value are the same.
    table : str
        The name of the table in which it is reported.
    '''
    title: str
    larger_is_better: bool
    needs_mosaic: bool = False
    needs_random: bool = False
    of_absolute: bool = False
    table: str = 'table'


METRICS = {
    'selectivity': Metric('Select.', False),
    'attribution_localisation': Metric('Attr. Loc.', True),
    'pointing_game': Metric('Point.', True),
    'pixel_flipping_5': Metric('Pixel Fl. AUC@5', True),
    'pixel_flipping_20': Metric('Pixel Fl. AUC@20', True),
    'max_sensitivity': Metric('Max Sens.', False, of_absolute=True),
    'grid_pointing_game': Metric('Grid Point.', True, needs_mosaic=True, table='mosaics'),
    'hog': Metric('HOG', False, needs_random=True, table='randomisation'),
    'spearman': Metric('Spearman', False, needs_random=True, table='randomisation'),
    'ssim': Metric('SSIM', False, needs_random=True, table='randomisation'),
    'time': Metric('Time [ms]', False, of_absolute=True, table='time'),
}
