'''Interpolation, sampling at a grid, and the sum of patches.'''
import pytest
import torch
from helpers import random_image
from jacobians import IMAGE, require_relevance, require_sensitivities, require_streams
from torch.nn import functional as F

from zennit_dc import SplitTensor


GRID = random_image(2, 3, 5, 2, seed=8)
RESAMPLED = {
    'nearest': (IMAGE, lambda x: F.interpolate(x, scale_factor=2)),
    'bilinear': (IMAGE, lambda x: F.interpolate(x, (9, 8), mode='bilinear', align_corners=True)),
    'antialiased': (IMAGE, lambda x: F.interpolate(x, (3, 4), mode='bilinear', antialias=True)),
    'bicubic': (IMAGE, lambda x: F.interpolate(x, (9, 4), mode='bicubic')),
    'bicubic by a number': (IMAGE, lambda x: F.interpolate(x, 9, mode='bicubic', align_corners=True)),
    'bicubic by a scale': (IMAGE, lambda x: F.interpolate(x, scale_factor=(1.7, .6), mode='bicubic')),
    'bicubic of a size by the scale': (
        (2, 1, 5, 7), lambda x: F.interpolate(x, scale_factor=1.3, mode='bicubic', recompute_scale_factor=True)
    ),
    'bicubic antialiased': (IMAGE, lambda x: F.interpolate(x, (3, 4), mode='bicubic', antialias=True)),
    'grid': (IMAGE, lambda x: F.grid_sample(x, GRID, align_corners=False)),
    'grid of nearest values': (IMAGE, lambda x: F.grid_sample(x, GRID, 'nearest', 'border', True)),
    'fold': ((2, 12, 9), lambda x: F.fold(x, (4, 4), 2)),
    'fold of patches': (IMAGE, lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1)),
}


if hasattr(torch._C._nn, '_upsample_lanczos2d_aa'):  # which older versions of torch lack
    RESAMPLED['lanczos'] = IMAGE, lambda x: F.interpolate(x, (3, 4), mode='lanczos', antialias=True)


@pytest.mark.parametrize('name', RESAMPLED)
def test_streams(name):
    require_streams(*RESAMPLED[name])


@pytest.mark.parametrize('name', RESAMPLED)
def test_sensitivities(name):
    require_sensitivities(*RESAMPLED[name])


@pytest.mark.parametrize('name', RESAMPLED)
def test_relevance(name):
    require_relevance(*RESAMPLED[name])


def test_axes():
    output = F.fold(F.unfold(SplitTensor.of(torch.zeros(1, 2, 4, 4)), 2), (4, 4), 2)
    assert output.axis('batch') == -4


@pytest.mark.parametrize('function, message', [
    (lambda x: F.grid_sample(x, GRID, 'bicubic'), 'bicubic.*bilinear'),
    (lambda x: F.grid_sample(x, x.movedim(1, -1)[..., :2]), 'depends on the input'),
])
def test_refused(function, message):
    with pytest.raises(NotImplementedError, match=message):
        function(SplitTensor.of(random_image(*IMAGE)))
