'''Spectra of maps, against sums written out, waves whose frequency is known, and real networks.'''
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_image
from literal import Network
from PIL import Image
from zennit.attribution import Gradient
from zennit.composites import BetaSmooth

from zennit_dc import Balanced, NotInPlace, SplitCAM, SplitGrad
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.methods import attributor


ndimage = pytest.importorskip('scipy.ndimage', reason='the extra "evaluation" is not installed')
stats = pytest.importorskip('scipy.stats', reason='the extra "evaluation" is not installed')

from zennit_dc.evaluation.spectra import (  # noqa: E402
    expected_frequency,
    frequency_gap,
    gap_profile,
    gradient_gap,
    published_expected_frequency,
    radial_profile,
    ranks,
    spectral_tail,
)


DATA = Path(__file__).parents[2] / 'shared' / 'data'


def maps_with_ties(height, width, count=3, seed=0):
    '''Random maps, in which a third of the values are zero and some others equal.'''
    generator = np.random.default_rng(seed)
    maps = generator.normal(size=(count, height, width)) * (generator.random((count, height, width)) > .3)
    return np.where(generator.random(maps.shape) > .8, np.round(maps), maps)


def literal_ranks(map):
    '''How many values are smaller, and half of those that are equal.'''
    values = map.ravel()
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return ((below + (equal + 1) / 2) / values.size).reshape(map.shape)


def literal_spectrum(map):
    '''Energies and frequencies, coefficient by coefficient.'''
    height, width = map.shape
    rows, columns = np.indices(map.shape)
    for u in range(height):
        for v in range(width):
            wave = np.exp(-2j * np.pi * (u * rows / height + v * columns / width))
            vertical, horizontal = min(u, height - u) / height, min(v, width - v) / width
            yield math.hypot(vertical, horizontal), abs((map * wave).sum()) ** 2 / map.size


def literal_frequency(map):
    found = [each for each in literal_spectrum(map - map.mean())][1:]
    return sum(rho * energy for rho, energy in found) / sum(energy for _, energy in found)


@pytest.mark.parametrize('shape', [(9, 9), (8, 11), (12, 7)])
def test_everything_against_sums_written_out(shape):
    maps, references = maps_with_ties(*shape), maps_with_ties(*shape, seed=1)
    literal = np.stack([literal_ranks(map) for map in maps])
    np.testing.assert_allclose(ranks(maps), literal, rtol=0, atol=1e-14)
    for ranked, used in ((True, literal), (False, maps)):
        expected = [literal_frequency(map) for map in used]
        np.testing.assert_allclose(expected_frequency(maps, ranked), expected, rtol=1e-10)
        mirrors = [np.block([[map, map[:, ::-1]], [map[::-1], map[::-1, ::-1]]]) for map in used]
        expected = [literal_frequency(map) for map in mirrors]
        np.testing.assert_allclose(expected_frequency(maps, ranked, mirror=True), expected, rtol=1e-10)
        spectra = [[each for each in literal_spectrum(map - map.mean())][1:] for map in used]
        expected = [sum(energy for rho, energy in each if rho >= .3) / sum(energy for _, energy in each)
                    for each in spectra]
        np.testing.assert_allclose(spectral_tail(maps, .3, ranked), expected, rtol=1e-10)
        frequencies, energies = radial_profile(maps, ranked)
        for map, own in zip(spectra, energies):
            rings = {}
            for rho, energy in map:
                rings.setdefault(round(rho * max(shape)), []).append((rho, energy))
            expected = [np.mean(rings[ring], 0) for ring in sorted(rings)]
            np.testing.assert_allclose(np.stack([frequencies, own], 1), expected, rtol=1e-10, atol=1e-13)
    gaps = []
    for map, reference in zip(maps, references):
        scale = (map * reference).sum() / (map ** 2).sum()
        gaps.append(((scale * map - reference) ** 2).sum() / (reference ** 2).sum())
        edges = [0., .1, .25, .5, .71]
        spectrum = list(literal_spectrum((scale * map - reference) / np.linalg.norm(reference)))
        between = itertools.pairwise(edges)
        expected = [sum(energy for rho, energy in spectrum if low <= rho < high) for low, high in between]
        np.testing.assert_allclose(gap_profile(map[None], reference[None], edges)[0], expected, atol=1e-12)
    np.testing.assert_allclose(gradient_gap(maps, references), gaps, rtol=1e-10)
    expected = np.abs([literal_frequency(a) - literal_frequency(literal_ranks(b)) for a, b in zip(literal, references)])
    np.testing.assert_allclose(frequency_gap(maps, references), expected, rtol=0, atol=1e-12)
    published = []
    for map in literal:
        rings, (height, width) = {}, map.shape
        coefficients = np.fft.fft2(map)
        for u in range(height):
            for v in range(width):
                signed = [each - size * (each >= (size + 1) // 2) for each, size in ((u, height), (v, width))]
                rings.setdefault(math.isqrt(sum(each ** 2 for each in signed)), []).append(abs(coefficients[u, v]) ** 2)
        means = np.array([np.mean(rings[ring]) for ring in range(len(rings))])
        published.append((means / means.sum() * np.arange(len(means)) / (len(means) - 1)).sum() / len(means))
    np.testing.assert_allclose(published_expected_frequency(maps), published, rtol=1e-10)


@pytest.mark.parametrize('shape, wave', [
    ((16, 24), (3, 5)), ((16, 24), (0, 1)), ((16, 24), (8, 12)), ((15, 9), (7, 4)), ((16, 24), (8, 0)),
    ((9, 32), (2, 16)),
])
def test_a_wave_has_its_own_frequency(shape, wave):
    (height, width), (u, v) = shape, wave
    rows, columns = np.indices(shape)
    map = np.cos(2 * np.pi * (u * rows / height + v * columns / width) + .7)[None]
    frequency = math.hypot(u / height, v / width)
    assert expected_frequency(map, ranked=False)[0] == pytest.approx(frequency, abs=1e-12)
    assert spectral_tail(map, frequency - 1e-9, ranked=False) == pytest.approx(1.)
    assert spectral_tail(map, frequency + 1e-9, ranked=False) == pytest.approx(0., abs=1e-12)


def test_energies_sum_to_the_variance():
    maps = maps_with_ties(12, 17)
    _, energies = radial_profile(maps, ranked=False)
    frequencies = np.hypot(np.fft.fftfreq(12)[:, None], np.fft.fftfreq(17)).ravel()[1:]
    counts = np.unique(np.rint(17 * frequencies), return_counts=True)[1]
    np.testing.assert_allclose(energies @ counts, ((maps - maps.mean((1, 2), keepdims=True)) ** 2).sum((1, 2)), 1e-10)


def test_what_changes_nothing():
    maps, references = maps_with_ties(14, 10), maps_with_ties(14, 10, seed=1)
    for ranked in (True, False):
        for factor, constant in ((3., -2.), (-.1, 5.), (1e-200, 0.), (1e200, 0.)):
            # the ranks of negative values are others where there are ties, but for a constant that is added
            np.testing.assert_allclose(
                expected_frequency(factor * maps + constant, ranked), expected_frequency(maps, ranked), atol=1e-12
            )
    np.testing.assert_allclose(expected_frequency(np.exp(maps)), expected_frequency(maps), atol=1e-12)
    moves = (
        lambda each: each.transpose(0, 2, 1), lambda each: each[:, ::-1], lambda each: np.roll(each, (3, 4), (1, 2))
    )
    for move in moves:
        np.testing.assert_allclose(expected_frequency(move(maps)), expected_frequency(maps), atol=1e-12)
        np.testing.assert_allclose(
            gradient_gap(move(maps), move(references)), gradient_gap(maps, references), atol=1e-12
        )
        np.testing.assert_allclose(
            gap_profile(move(maps), move(references), [0., .3, .71]), gap_profile(maps, references, [0., .3, .71]),
            atol=1e-12
        )


def test_noise_and_blur():
    noise = np.random.default_rng(0).normal(size=(40, 224, 224))
    sparse = noise * (np.random.default_rng(1).random(noise.shape) > .9)
    expected = (math.sqrt(2.) + math.log(1. + math.sqrt(2.))) / 6.
    for ranked in (True, False):
        assert expected_frequency(noise[:8], ranked).mean() == pytest.approx(expected, abs=.002)
    assert expected_frequency(sparse[:8]).mean() == pytest.approx(expected, abs=.002)
    checkerboard = np.indices((1, 8, 8)).sum(0) % 2
    assert expected_frequency(checkerboard) == pytest.approx(math.sqrt(.5), abs=1e-12)
    blurred = ndimage.gaussian_filter(noise[:8], (0, 2, 2), mode='wrap')
    assert expected_frequency(blurred).mean() == pytest.approx(.074, abs=.003)
    # what is published does not tell a blur from zeros
    assert published_expected_frequency(noise).mean() * 1e5 == pytest.approx(.332, abs=.003)
    assert published_expected_frequency(sparse).mean() * 1e5 == pytest.approx(.089, abs=.003)
    blurred = ndimage.gaussian_filter(noise[:8], (0, 1, 1), mode='wrap')
    assert published_expected_frequency(blurred).mean() * 1e5 == pytest.approx(.207, abs=.003)


def test_gaps():
    maps, references = maps_with_ties(9, 12), maps_with_ties(9, 12, seed=1)
    gaps = gradient_gap(maps, references)
    assert ((0. < gaps) & (gaps <= 1.)).all()
    for factor in (2., -.3, 1e-180):
        assert gradient_gap(maps, factor * maps).max() < 1e-12
        np.testing.assert_allclose(gradient_gap(maps, factor * references), gaps, atol=1e-12)
    np.testing.assert_allclose(gap_profile(maps, references, np.linspace(0., .71, 6)).sum(1), gaps, atol=1e-12)
    volumes = np.stack([maps, references], 1)
    assert gradient_gap(volumes, volumes[:, ::-1].copy()).shape == (3,)
    assert np.isnan(gradient_gap(0. * maps, references)).all() and np.isnan(gradient_gap(maps, 0. * references)).all()


def test_each_number_is_of_its_own_map():
    maps, references = maps_with_ties(11, 8, 5), maps_with_ties(11, 8, 5, seed=1)
    for function in (
        expected_frequency, spectral_tail, published_expected_frequency, lambda each: radial_profile(each)[1]
    ):
        np.testing.assert_array_equal(function(maps), [function(map[None])[0] for map in maps])
    for function in (frequency_gap, gradient_gap):
        alone = [function(map[None], reference[None])[0] for map, reference in zip(maps, references)]
        np.testing.assert_array_equal(function(maps, references), alone)
    assert np.array_equal(expected_frequency(torch.from_numpy(maps)), expected_frequency(maps))


def test_what_has_no_spectrum():
    for constant in (0., .1, 1e300):
        maps = np.stack([np.full((7, 5), constant), maps_with_ties(7, 5)[0]])
        for function in (expected_frequency, spectral_tail):
            for ranked in (True, False):
                assert np.isnan(function(maps, ranked=ranked)).tolist() == [True, False]
        assert np.isnan(frequency_gap(maps, maps[::-1])).all()
    maps = maps_with_ties(7, 5)
    maps[1, 2, 3] = np.inf
    functions = (ranks, expected_frequency, spectral_tail, radial_profile, published_expected_frequency)
    for function in functions:
        with pytest.raises(FloatingPointError, match='not finite'):
            function(maps)
        for wrong in (maps[0], maps[None], maps[:0]):
            with pytest.raises(ValueError, match='shape'):
                function(wrong)
    maps = maps_with_ties(7, 5)
    for function in (frequency_gap, gradient_gap, lambda *each: gap_profile(*each, [0., .71])):
        with pytest.raises(ValueError, match='the references'):
            function(maps, maps[:, :4])
        with pytest.raises(FloatingPointError, match='not finite'):
            function(maps, np.where(maps == maps[0, 0, 0], np.nan, maps))
    for edges in ([.1], [.2, .1], .3):
        with pytest.raises(ValueError, match='edges'):
            gap_profile(maps, maps, edges)
    with pytest.raises(ValueError, match='one pixel'):
        published_expected_frequency(np.ones((1, 1, 1)))


def test_without_a_shift_of_the_gradient_there_is_no_gap():
    network, image = Network().eval(), random_image(3, 3, 16, 16)
    target = torch.eye(network(image).shape[1], dtype=image.dtype)[[2, 0, 1]]
    gradient = Gradient(network)(image, target)[1]
    map = Gradient(network, SplitGrad(.5))(image, target)[1]
    assert gradient_gap(map, gradient).max() <= 1e-12
    assert frequency_gap(map.sum(1), gradient.sum(1)).max() <= 1e-12


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'{DATA} is not there')


@pytest.fixture(scope='module', name='squeezenet')
def fixture_squeezenet():
    return load_classifier('squeezenet1_0', DATA / 'weights' / 'squeezenet1_0_imagenet.pt')


def images_of(classifier, *classes):
    '''Photographs of classes, and these as relevance.'''
    paths = [next((DATA / 'imagenet').glob(f'{number:03}_*.JPEG')) for number in classes]
    return torch.stack([classifier.preprocessing(Image.open(path).convert('RGB')) for path in paths]), torch.eye(1000)[
        list(classes)]


@needs_data
def test_frequencies_on_photographs(squeezenet):
    images, targets = images_of(squeezenet, 84, 172, 284, 294, 484, 574, 748, 852)

    def frequency(composite=None):
        return expected_frequency(Gradient(squeezenet.model, composite)(images, targets)[1].sum(1)).mean()

    assert frequency() == pytest.approx(.32, abs=.01)
    assert frequency() > frequency(SplitGrad(.4)) > frequency(SplitGrad(0.))
    layers = [frequency(SplitCAM(f'features.{layer}', .4)) for layer in (1, 4, 7, 12)]
    assert layers == sorted(layers, reverse=True)
    assert layers[0] == pytest.approx(.103, abs=.01) and layers[-1] == pytest.approx(.0114, abs=.001)


@needs_data
@pytest.mark.long
@pytest.mark.slow(100)
@pytest.mark.parametrize('layer', ['features.4', 'features.7', 'features.9'])
def test_the_gap_predicts_pixel_flipping(squeezenet, layer):
    from zennit_dc.evaluation.metrics import pixel_flipping

    images, targets = images_of(squeezenet, 84, 172, 284, 294, 484, 574)
    model = squeezenet.model
    methods = [
        *(attributor(name, squeezenet, layer=layer) for name in ('layercam', 'gradcam')),
        *(Gradient(model, SplitCAM(layer, alpha)) for alpha in (.5, .45, .4, .35, .3, 0., Balanced()))
    ]
    reference = methods[2](images, targets)[1].sum(1)
    gaps, flipped = [], []
    for method in methods:
        map = method(images, targets)[1].sum(1)
        gaps.append(gradient_gap(map, reference).mean())
        flipped.append(pixel_flipping(model, images, targets.argmax(1), map, (.05,)).mean())
    assert stats.spearmanr(gaps, flipped)[0] <= -.7


@needs_data
def test_beta_smooth_needs_activations_that_are_not_in_place(squeezenet):
    model, (images, targets) = squeezenet.model, images_of(squeezenet, 84, 748)
    gradient = Gradient(model)(images, targets)[1]
    state = [module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU)]
    gap, without = (
        gradient_gap(Gradient(model, BetaSmooth(1000., canonizers=canonizers))(images, targets)[1], gradient)
        for canonizers in ([NotInPlace()], [])
    )
    assert gap.max() <= 1e-3 and without.min() >= .9  # which documents the pitfall
    assert all(state) and state == [module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU)]
    with pytest.raises(KeyError), BetaSmooth(1., canonizers=[NotInPlace()]).context(model):
        assert not any(getattr(module, 'inplace', False) for module in model.modules())
        raise KeyError
    assert state == [module.inplace for module in model.modules() if isinstance(module, torch.nn.ReLU)]
