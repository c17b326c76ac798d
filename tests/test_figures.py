'''Figures: colored maps, galleries of prototypes, and pictures of both streams.'''
import numpy as np
import pytest
import torch
from helpers import explain

from zennit_dc import SplitGrad
from zennit_dc.demo import demo_network, demo_preprocessing
from zennit_dc.figures import blend, color, concept_gallery, side_by_side, stream_overlay
from zennit_dc.data.classifiers import Classifier


def test_maps_of_zeros_and_of_nothing():
    (count, white), = color(torch.zeros(4, 4)).convert('RGB').getcolors()
    assert count == 16 and min(white) > 250
    with pytest.raises(FloatingPointError):
        color(torch.full((4, 4), torch.nan))


# figure 5

def test_concept_gallery():
    classifier = Classifier('demo', demo_network(), demo_preprocessing(), [f'name {index}' for index in range(10)])
    inputs = torch.randn(2, 3, 64, 64)
    figure = concept_gallery(classifier, inputs, 3)
    axes = figure.get_axes()
    assert len(axes) == 6 and figure.get_suptitle() == 'Prototypes of name 3, α = Balanced(kappa=0.1)'
    assert [axis.get_title() for axis in axes[1:3]] == ['gradient of g', 'gradient of h']
    for row, input in enumerate(inputs):
        np.testing.assert_allclose(axes[3 * row].get_images()[0].get_array(), classifier.pixels(input))
        for column, stream in ((1, 'g'), (2, 'h')):
            map = explain(SplitGrad(stream=stream), classifier.model, inputs, 3)[row].sum(0)
            shown = axes[3 * row + column].get_images()[0].get_array()
            assert np.array_equal(shown, np.asarray(color(map).convert('RGB')))
    figure.canvas.draw()


def test_concept_gallery_says_what_is_not_about_the_class():
    classifier = Classifier('demo', demo_network(), demo_preprocessing(), [f'name {index}' for index in range(10)])
    inputs = torch.randn(2, 3, 64, 64)
    assert 'not about this class' in concept_gallery(classifier, inputs, 3, alpha=0.).get_suptitle()
    heading = concept_gallery(classifier, inputs, 3, against=[4, 5]).get_suptitle()
    assert 'not about this class' not in heading


def test_blend_shows_the_photograph_where_the_map_is_zero():
    photo = torch.rand(4, 4, 3).numpy()
    saliency = torch.zeros(4, 4)
    gray = np.round(255. * photo.mean(2, keepdims=True)).repeat(3, 2)
    assert np.abs(np.asarray(blend(photo, saliency), float) - gray).max() <= 1.
    saliency[1, 2], saliency[3, 0] = 2., -2.
    image = np.asarray(blend(photo, saliency, strength=1.))
    assert image[1, 2].tolist() == [255, 0, 0] and image[3, 0].tolist() == [0, 0, 255]
    assert np.abs(image[0].astype(float) - gray[0]).max() <= 1.


def test_legends_say_what_the_ends_mean():
    row = ('caption', np.zeros((4, 4, 3)), {'one': color(torch.eye(4)), 'two': color(-torch.eye(4))})
    figure = side_by_side([row, row], legends={'two': ('against', 'for')})
    figure.canvas.draw()
    bars = [axis for axis in figure.get_axes() if axis.get_label() == '<colorbar>' and axis.get_visible()]
    assert [[label.get_text() for label in bar.get_xticklabels()] for bar in bars] == [['against', '0', 'for']]


def test_concept_gallery_names_what_is_wrong():
    classifier = Classifier('demo', demo_network(), demo_preprocessing())
    with pytest.raises(ValueError, match=r'must have the shape \(count, channels, height, width\).*not \(3, 64, 64\)'):
        concept_gallery(classifier, torch.zeros(3, 64, 64), 0)
    with pytest.raises(ValueError, match='there is no class 10'):
        concept_gallery(classifier, torch.zeros(1, 3, 64, 64), 10)


# figures 3 and 8

def test_stream_overlay():
    image = torch.tensor([[0., 1.], [.5, .5]])
    g, h = torch.tensor([[1., 0.], [.1, .4]]), torch.tensor([[.5, 0.], [-9., .4]])
    colors = stream_overlay(image, g, h, threshold=.2, decay=.25)
    # ranks: 0 and 1 at the first pixel, 2 and 3 at the last; the pixel between is below the threshold
    opacity = torch.exp(-torch.arange(4, dtype=torch.float64))
    for row, column, red, blue in ((0, 0, opacity[0], opacity[1]), (1, 1, opacity[2], opacity[3])):
        rest = image[row, column] * (1. - red) * (1. - blue)
        both = 1. - (1. - red) * (1. - blue)
        expected = torch.stack([rest + both * red / (red + blue), rest, rest + both * blue / (red + blue)])
        torch.testing.assert_close(colors[row, column], expected, rtol=1e-12, atol=0.)
    assert colors[0, 1].tolist() == [1., 1., 1.] and colors[1, 0].tolist() == [.5, .5, .5]


def test_stream_overlay_by_one_scale():
    '''Compared with larger maps, nothing may be above the threshold.'''
    image, map = torch.rand(5, 5, dtype=torch.float64), torch.rand(5, 5)
    gray = image[:, :, None].expand(-1, -1, 3)
    torch.testing.assert_close(stream_overlay(image, map, map, largest=6.), gray, rtol=0., atol=0.)
    assert not torch.equal(stream_overlay(image, map, map), gray)
    for nothing in (torch.zeros(5, 5), -map):
        torch.testing.assert_close(stream_overlay(image, nothing, nothing, threshold=0.), gray, rtol=0., atol=0.)
    assert (stream_overlay(image, map, -map)[:, :, 2] <= image + 1e-12).all()


def test_stream_overlay_names_what_is_wrong():
    maps = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=r'one shape \(height, width\), not \(4, 4\), \(4, 4\) and \(1, 4, 4\)'):
        stream_overlay(maps[0], maps[1], maps[:1])
    with pytest.raises(ValueError, match='threshold must be in'):
        stream_overlay(*maps, threshold=2.)
    with pytest.raises(ValueError, match='decay positive'):
        stream_overlay(*maps, decay=0.)
    with pytest.raises(FloatingPointError, match='not finite'):
        stream_overlay(maps[0], maps[1], maps[2] / 0.)
