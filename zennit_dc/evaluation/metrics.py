'''The paper's metrics (section 5.2) for maps of a batch of images, each with one score for an image.

Quantus 0.6 computes what it computes as the paper describes it; where it does not, the function's documentation says
what is different. A map is taken as it is: nothing is normalized, and there is no absolute value but in
:py:func:`max_sensitivity`. The score of an image never depends on the other images of the batch. Quantus' own
preprocessing is not used, as it is of the batch: it divides by the largest absolute value of all maps, and raises if,
and only if, all of them are constant or negative.
'''
import time
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from ..attribution import map_cosine, runner_up, support
from .spectra import expected_frequency, frequency_gap, gradient_gap


try:
    from .faithfulness import PixelFlipping, Selectivity, pixel_flipping, selectivity
    from .localisation import (
        attribution_localisation,
        grid_pointing_game,
        negative_localisation,
        object_auc,
        pointing_game,
    )
    from .randomisation import similarities
    from .robustness import MaxSensitivity, max_sensitivity
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'{error}: the metrics need Quantus, pip install "zennit-dc[evaluation]"', name=error.name
    ) from error


__all__ = [
    'METRICS',
    'Explained',
    'MaxSensitivity',
    'Metric',
    'PixelFlipping',
    'Selectivity',
    'attribution_localisation',
    'grid_pointing_game',
    'max_sensitivity',
    'negative_localisation',
    'object_auc',
    'pixel_flipping',
    'pointing_game',
    'selectivity',
    'similarities',
]


@dataclass
class Explained:
    '''A map of one image, with all that a metric may need to score it.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    input : :py:class:`torch.Tensor`
        The image of shape (1, channels, height, width).
    mask : :py:class:`torch.Tensor`
        The mask of the object, or of a mosaic's quadrant, of shape (1, height, width).
    target : :py:class:`torch.Tensor`
        The class, of shape (1,).
    map : :py:class:`torch.Tensor`
        The map of shape (1, height, width).
    absolute : bool
        Whether the map is an absolute value.
    explain, explain_randomised : callable
        The method, from inputs and targets to maps; for the model, and for the model with randomised layers.
    attribute, reference : callable
        The method, and the gradient at the method's layer, from inputs and targets to attributions in the input's
        shape.
    seed : int
        The seed of random numbers.
    selectivity_patch : int
        The height and width of Selectivity's patches in pixels.
    flipping_step : int
        The number of pixels in a step of Pixel Flipping.
    sensitivity_samples : int
        The number of noisy images of Max Sensitivity.
    timed : callable
        The method as its time is measured, from inputs and targets to maps. Default is ``explain``.
    by_itself : callable
        The method without a contrast, from inputs and targets to maps. Default is ``explain``, which has none then.
    '''
    model: torch.nn.Module
    input: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor
    map: torch.Tensor
    absolute: bool
    explain: object
    explain_randomised: object
    attribute: object = None
    reference: object = None
    seed: int = 0
    selectivity_patch: int = 8
    flipping_step: int = 112
    sensitivity_samples: int = 25
    timed: object = None
    by_itself: object = None

    @cached_property
    def flipping(self):
        '''The two areas of Pixel Flipping.'''
        return pixel_flipping(
            self.model, self.input, self.target, self.map, (.05, .2), self.flipping_step
        )[:, 0]

    @cached_property
    def randomised(self):
        '''The similarities to the map of the model with randomised layers.'''
        other = self.explain_randomised(self.input, self.target)[0]
        return similarities(self.map[0], other.abs() if self.absolute else other)

    @cached_property
    def gradient(self):
        '''The gradient of what is explained by the input; or, at a layer, gradient times activation, summed over
        channels and not rectified. It has the input's shape.'''
        return self.reference(self.input, self.target)

    def gap_to_gradient(self):
        '''The gap to the gradient: over all channels of the input, or of sums over channels where the map is its
        absolute value.'''
        if self.absolute:
            return gradient_gap(self.map, self.gradient.sum(1))
        return gradient_gap(self.attribute(self.input, self.target), self.gradient)

    def agreement(self):
        '''The cosine of the maps of the class and of the likeliest other one, each by itself: contrasts of two classes
        with each other differ by their construction. See :py:func:`zennit_dc.attribution.class_agreement`.'''
        with torch.no_grad():
            other = runner_up(self.model(self.input)[0], int(self.target))
        if other is None:
            raise ValueError('the model has one class alone, which agrees with none')
        explain = self.by_itself or self.explain
        own = explain(self.input, self.target) if self.by_itself else self.map
        map = explain(self.input, [other])
        return map_cosine(own, map) if not self.absolute else map_cosine(own.abs(), map.abs())

    def support(self):
        '''By how much more hiding the fifth where the map is largest lowers the log-odds of the class than hiding a
        random fifth, see :py:func:`zennit_dc.attribution.support`.'''
        return support(self.model, self.input, self.map, self.target, seed=self.seed).margin[0]

    def milliseconds(self):
        '''The time that a map takes.'''
        timed = self.timed or self.explain
        start = self.now()
        timed(self.input, self.target)
        return 1000. * (self.now() - start)

    def now(self):
        '''The time in seconds, after all work of the device.'''
        if self.input.device.type == 'cuda':
            torch.cuda.synchronize(self.input.device)
        return time.perf_counter()


ARROWS = {True: '↑', False: '↓', None: ''}


class Metric(NamedTuple):
    '''A metric.

    Parameters
    ----------
    title : str
        Its name for people, as in the paper's tables.
    larger_is_better : bool or None
        Whether a larger score is better, or None if neither a larger nor a smaller one is.
    score : callable
        A function of an :py:class:`Explained` that returns its score.
    needs_mosaic : bool
        Whether its maps are of mosaics.
    needs_random : bool
        Whether it compares the map with the map of a model with randomised layers.
    needs_other : bool
        Whether it compares maps of several classes.
    of_absolute : bool
        Whether a map and its absolute value have the same score.
    table : str
        The name of the table in which it is reported.
    '''
    title: str
    larger_is_better: bool | None
    score: object
    needs_mosaic: bool = False
    needs_random: bool = False
    needs_other: bool = False
    of_absolute: bool = False
    table: str = 'table'

    @property
    def is_of_map_alone(self):
        '''Whether the score is that of the map, whatever other maps are.'''
        return not (self.needs_random or self.needs_other)

    @property
    def heading(self):
        '''The title, with an arrow that shows where better is.'''
        return f'{self.title} {ARROWS[self.larger_is_better]}'.strip()


def mass_inside(explained):
    '''The share of the map's positive values that is inside the mask, which for a mosaic is a quadrant.'''
    return attribution_localisation(explained.map, explained.mask, positive=True)


METRICS = {
    'selectivity': Metric('Select.', False, lambda explained: selectivity(
        explained.model, explained.input, explained.target, explained.map, explained.selectivity_patch
    )),
    'attribution_localisation': Metric('Attr. Loc.', True, mass_inside),
    'negative_localisation': Metric(
        'Neg. Loc.', False, lambda explained: negative_localisation(explained.map, explained.mask)
    ),
    'object_auc': Metric('AUC Obj.', True, lambda explained: object_auc(explained.map, explained.mask)),
    'pointing_game': Metric('Point.', True, lambda explained: pointing_game(explained.map, explained.mask)),
    'pixel_flipping_5': Metric('Pixel Fl. AUC@5', True, lambda explained: explained.flipping[0]),
    'pixel_flipping_20': Metric('Pixel Fl. AUC@20', True, lambda explained: explained.flipping[1]),
    'support': Metric('Support', True, Explained.support),
    'max_sensitivity': Metric('Max Sens.', False, lambda explained: max_sensitivity(
        explained.model, explained.input, explained.target, explained.explain, explained.sensitivity_samples,
        explained.seed
    ), of_absolute=True),
    'grid_pointing_game': Metric('Grid Point.', True, mass_inside, needs_mosaic=True, table='mosaics'),
    'class_agreement': Metric('Class Agr.', False, Explained.agreement, needs_other=True),
    'hog': Metric('HOG', False, lambda explained: explained.randomised[0], needs_random=True, table='randomisation'),
    'spearman': Metric(
        'Spearman', False, lambda explained: explained.randomised[1], needs_random=True, table='randomisation'
    ),
    'ssim': Metric('SSIM', False, lambda explained: explained.randomised[2], needs_random=True, table='randomisation'),
    'expected_frequency': Metric(
        'Exp. Freq.', None, lambda explained: expected_frequency(explained.map), table='spectra'
    ),
    'frequency_gap': Metric('Freq. Gap', False, lambda explained: frequency_gap(
        explained.map, explained.gradient.sum(1)
    ), table='spectra'),
    'gradient_gap': Metric('Grad. Gap', False, Explained.gap_to_gradient, table='spectra'),
    'time': Metric('Time [ms]', False, Explained.milliseconds, of_absolute=True, table='time'),
}
