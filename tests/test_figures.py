'''Figures: colored maps side by side, and pictures of both streams.'''
import itertools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from zennit_dc.data.classifiers import Classifier
from zennit_dc.demo import demo_network, demo_preprocessing
from zennit_dc.figures import Bar, blend, caption, color, largest_shown, side_by_side, stream_overlay


def test_maps_of_zeros_and_of_nothing():
    (count, white), = color(torch.zeros(4, 4)).convert('RGB').getcolors()
    assert count == 16 and min(white) > 250
    with pytest.raises(FloatingPointError):
        color(torch.full((4, 4), torch.nan))


def test_the_color_s_end_is_a_percentile():
    saliency = torch.arange(-100., 0.).reshape(10, 10)
    assert [largest_shown(saliency, each) for each in (100., 99., 50.)] == [100., 99., 50.]
    assert largest_shown(torch.zeros(4, 4), 50.) == 0. and largest_shown(torch.eye(4), 50.) == 1.
    image = np.asarray(color(saliency, largest=50.).convert('RGB'))
    assert (image[:5] == image[0, 0]).all() and (image[9] != image[0, 0]).any(1).all()
    for wrong in (0., -1., 101., float('nan')):
        with pytest.raises(ValueError, match='percentile'):
            largest_shown(saliency, wrong)
    with pytest.raises(FloatingPointError):
        largest_shown(saliency / 0., 50.)


def test_what_is_beyond_the_end_lies_over_the_photograph_alike():
    saliency = torch.tensor([[4., 2., 1., 0.]])
    image = np.asarray(blend(np.full((1, 4, 3), .5), saliency, largest=2.), int)
    assert (image[0, 0] == image[0, 1]).all() and (image[0, 1] != image[0, 2]).any()
    assert image[0, 3].tolist() == [128, 128, 128]


def test_blend_shows_the_photograph_where_the_map_is_zero():
    photo = torch.rand(4, 4, 3).numpy()
    saliency = torch.zeros(4, 4)
    gray = np.round(255. * photo.mean(2, keepdims=True)).repeat(3, 2)
    assert np.abs(np.asarray(blend(photo, saliency), float) - gray).max() <= 1.
    saliency[1, 2], saliency[3, 0] = 2., -2.
    image = np.asarray(blend(photo, saliency, strength=1.))
    assert image[1, 2].tolist() == [255, 0, 0] and image[3, 0].tolist() == [0, 0, 255]
    assert np.abs(image[0].astype(float) - gray[0]).max() <= 1.


def bars_of(figure):
    '''The texts and places of the ticks of a figure's color bars.'''
    figure.canvas.draw()
    bars = [axis for axis in figure.get_axes() if axis.get_label() == '<colorbar>' and axis.get_visible()]
    return [([label.get_text() for label in bar.get_xticklabels()], bar.get_xticks().tolist()) for bar in bars]


def test_color_bars_say_the_values_and_what_the_ends_mean():
    row = ('caption', np.zeros((4, 4, 3)), {'one': color(torch.eye(4)), 'two': color(-torch.eye(4))})
    bars = [{'two': Bar(.0321, 'against', 'for')}, {'one': Bar(7., '', 'matters', True)}]
    assert bars_of(side_by_side([row, row], bars=bars)) == [
        (['−0.032\nagainst', '0', '0.032\nfor'], [-.0321, 0., .0321]), (['0', '7\nmatters'], [0., 7.])
    ]
    assert bars_of(side_by_side([row])) == []


LONG = 'SplitCAM\nat features.denseblock4.denselayer16.norm2\nstream positive'


@pytest.mark.parametrize('rows, columns', [(1, 1), (2, 2), (3, 5)])
def test_texts_do_not_collide(rows, columns):
    maps = {f'{LONG if index % 2 else "Gradient"} {index}': color(torch.eye(224)) for index in range(columns)}
    caption = 'great white shark, 84%\nrather than hammerhead, tiger shark,\nelectric ray ...'
    note = '\n'.join(4 * ['hiding the strongest fifth: 84 % → 0.05 %'])
    figure = side_by_side(
        [(caption, np.zeros((224, 224, 3)), maps) for _ in range(rows)], 'a long heading, ' * 12,
        [{title: Bar(1.2e-5, 'negative stream', 'positive stream', True) for title in maps} for _ in range(rows)],
        notes=[{title: note for title in maps} for _ in range(rows)], footer='what the numbers are, ' * 9
    )
    width = figure.get_window_extent().width
    FigureCanvasAgg(figure).draw()  # which puts texts into their places
    boxes = [
        (text.get_text(), text.get_window_extent()) for text in figure.findobj(Text)
        if text.get_text() and text.get_visible() and getattr(text.axes, 'get_visible', lambda: True)()
    ]
    assert len(boxes) > rows * (1 + 4 * columns)
    assert all(0. <= box.x0 and box.x1 <= width and box.y0 >= 0. for _, box in boxes)
    boxes += [('image', axis.get_window_extent()) for axis in figure.get_axes() if axis.get_images()]
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        assert not one.shrunk(.98, .9).overlaps(other.shrunk(.98, .9)), (first, second)
    bars = [axis.get_window_extent() for axis in figure.get_axes() if axis.get_label() == '<colorbar>']
    for one, other in itertools.combinations(bars, 2):
        assert not one.overlaps(other)


def test_captions_name_the_classes_that_one_is_explained_against():
    classifier = Classifier('demo', demo_network(), demo_preprocessing(), list('abcdef'))
    output = torch.tensor([5., 4., 3., 2., 1., 0.])
    for against, said in (
        (None, None), ('none', None), ('others', 'rather than all others'), ('likely', 'rather than b, c, d ...'),
        ([4], 'rather than e'), ([4, 1, 2], 'rather than e, b, c')
    ):
        assert caption(classifier, output, 0, against).split('\n')[1:] == ([] if said is None else [said])
    assert caption(classifier, output, 1, 'likely').split('\n')[-1] == 'rather than a, c, d ...'


def test_a_map_that_is_missing_leaves_its_place():
    row = ('caption', np.zeros((4, 4, 3)), {'one': color(torch.eye(4)), 'two': 'no map'})
    figure = side_by_side([row], bars=[{'one': Bar(1., '', 'matters')}])
    assert [text.get_text() for axis in figure.get_axes() for text in axis.texts] == ['no map']
    assert len(bars_of(figure)) == 1


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
