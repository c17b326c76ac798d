'''Images with masks, and the choice of settings.'''
import json

import numpy as np
import pytest
import torch
from PIL import Image

from zennit_dc.attribution import Sparsity
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier, load_classifier
from zennit_dc.data.files import UnreadableImage
from zennit_dc.demo import draw
from zennit_dc.evaluation.data import Drawings, ImageNetS, Polygons, split
from zennit_dc.evaluation.settings import grid


CLASSIFIER = Classifier('', None, IMAGENET_PREPROCESSING(resize_size=32, crop_size=24))


def test_drawings():
    drawings = Drawings(load_classifier('demo'), 20, seed=3)
    sample = drawings.sample(13)
    expected = draw(5, 13)
    assert (sample.mask.numpy() == expected.mask).all() and sample.label == expected.label == 3
    assert sample.input.shape == (3, 64, 64) and len(drawings) == 20


@pytest.fixture(name='folder')
def fixture_folder(tmp_path):
    '''Two classes in the layout of ImageNet-S, of white rectangles on black.'''
    for name in ('n01', 'n02'):
        for kind in ('validation', 'validation-segmentation'):
            (tmp_path / kind / name).mkdir(parents=True)
        object = np.zeros((48, 64), bool)
        object[10:30, 20:50] = True
        Image.fromarray(np.uint8(255) * object).save(tmp_path / 'validation' / name / 'one.JPEG', quality=95)
        Image.fromarray(np.uint8(255) * object).save(tmp_path / 'validation-segmentation' / name / 'one.png')
    return tmp_path


def segmentation(path, values):
    '''Save class indices as ImageNet-S does.'''
    Image.fromarray(np.stack([values % 256, values // 256, 0 * values], -1).astype(np.uint8)).save(path)


def test_masks_lie_over_what_the_model_sees(folder):
    images = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})
    assert images.names == ['n01/one.JPEG', 'n02/one.JPEG'] and images.labels == [7, 9]
    sample = images.sample(1)
    bright = CLASSIFIER.pixels(sample.input).mean(-1) > .5
    assert sample.label == 9 and (bright != sample.mask).float().mean() < .06  # bilinear against nearest, at the border
    assert sample.mask.float().mean() > .3


def test_classes_in_masks(folder):
    images = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})
    values = np.zeros((48, 64), int)
    values[:, 20:32] = 2
    values[:, 40:] = 1000
    path = folder / 'validation-segmentation' / 'n02' / 'one.png'
    segmentation(path, values)
    alone = images.sample(1).mask
    values[:, 32:40] = 300  # another class beside it
    segmentation(path, values)
    assert torch.equal(images.sample(1).mask, alone) and 0 < alone.sum() < alone.numel()
    values[values == 2] = 7
    segmentation(path, values)
    with pytest.raises(ValueError, match='has the classes 7, 300, but not 2'):
        images.sample(1)
    before = images.fingerprint()
    (folder / 'validation-segmentation' / 'n00').mkdir()
    assert ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9}).fingerprint() != before
    segmentation(path, (values == 7).T)
    with pytest.raises(ValueError, match='48 × 64 pixels, but the image, the right way up, has 64 × 48'):
        images.sample(1)
    segmentation(path, 0 * values)
    with pytest.raises(ValueError, match='not in the part'):
        images.sample(1)
    path.write_text('no image')
    with pytest.raises(UnreadableImage):
        images.sample(1)
    with pytest.raises(ValueError, match='no class for the folder n02'):
        ImageNetS(CLASSIFIER, folder, {'n01': 7})
    with pytest.raises(ValueError, match='no folder .*test, .*name --outlines'):
        ImageNetS(CLASSIFIER, folder, {}, 'test')


def masked(mask):
    '''An image of a palette, in which white is before black.'''
    image = Image.fromarray(np.uint8(~mask)).convert('P')
    image.putpalette([255, 255, 255, 0, 0, 0])
    return image


def colored(mask, mode, color):
    '''An image of a mode, with a color where there is an object, and black elsewhere.'''
    image = Image.new(mode, mask.shape[::-1])
    image.paste(color, mask=Image.fromarray(np.uint8(255) * mask))
    return image


def with_alpha(mask):
    '''A mask whose alpha channel is opaque everywhere.'''
    return Image.fromarray(np.stack([np.uint8(255) * mask, np.full(mask.shape, 255, np.uint8)], -1))


def cut_out(mask):
    '''A mask of the color 7, which is transparent around the object.'''
    image = np.zeros((*mask.shape, 4), np.uint8)
    image[..., 1], image[mask] = 99, (7, 0, 0, 255)
    return Image.fromarray(image)


@pytest.mark.parametrize('save', [
    lambda mask: masked(mask), lambda mask: Image.fromarray(mask), with_alpha, cut_out,
    lambda mask: Image.fromarray(np.uint8(mask)), lambda mask: Image.fromarray(np.uint16(40000) * mask),
    lambda mask: masked(mask).convert('RGB'), lambda mask: colored(mask, 'RGB', (2, 0, 0)).quantize(),
    lambda mask: colored(mask, 'RGB', (44, 1, 0)).quantize(), lambda mask: masked(mask).convert('RGBA'),
], ids=['white first', 'bits', 'alpha', 'transparent', 'one', '16 bits', 'RGB', 'palette of classes', '300', 'RGBA'])
def test_masks_of_all_kinds(folder, save):
    expected = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9}).sample(1).mask
    path = folder / 'validation-segmentation' / 'n02' / 'one.png'
    mask = np.asarray(Image.open(path)) > 0
    save(mask).save(path)
    assert torch.equal(ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9}).sample(1).mask, expected)


@pytest.mark.parametrize('ending', ['PNG', 'jpg', 'JPEG', 'bmp', 'tif', 'webp'])
def test_masks_with_the_name_of_any_image(folder, ending):
    before = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})
    path = folder / 'validation-segmentation' / 'n02' / 'one.png'
    image = Image.open(path)
    image.load()
    path.unlink()
    image.save(path.with_suffix(f'.{ending}'))
    after = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})
    assert after.names == before.names and before.sample(0).mask.equal(after.sample(1).mask)
    image.save(path)
    with pytest.raises(ValueError, match='n02/one.JPEG has several masks'):
        ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})


def test_images_without_a_mask_are_counted(folder):
    (folder / 'validation-segmentation' / 'n02' / 'one.png').unlink()
    with pytest.warns(UserWarning, match='1 of 2 images .* left out, n02/one.JPEG among them'):
        assert ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9}).names == ['n01/one.JPEG']


def test_masks_that_tell_no_object(folder):
    images = ImageNetS(CLASSIFIER, folder, {'n01': 7, 'n02': 9})
    path = folder / 'validation-segmentation' / 'n02' / 'one.png'
    mask = np.asarray(Image.open(path)) > 0
    for image, format, message in (
        (colored(mask, 'RGB', (2, 200, 0)), 'jpeg', 'compression with loss'),
        (Image.fromarray(np.uint8(100) * mask), 'jpeg', 'compression with loss'),
        (Image.fromarray(np.stack([np.uint8(120) * mask] * 4, -1)), 'png', 'partly transparent'),
        (Image.fromarray(mask.astype(np.float32)), 'tiff', 'not of mode F'),
    ):
        image.save(path, format)
        with pytest.raises(UnreadableImage, match=message):
            images.sample(1)


def test_polygons(tmp_path):
    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    outlines = tmp_path / 'outlines.json'
    outlines.write_text(json.dumps({'a.png': {'class': 3, 'polygons': [[[0, 0], [.5, 0], [.5, 1], [0, 1]]]}}))
    sample = Polygons(CLASSIFIER, tmp_path, outlines).sample(0)
    assert sample.label == 3 and sample.mask[:, :12].all() and not sample.mask[:, 13:].any()
    first = Polygons(CLASSIFIER, tmp_path, outlines).fingerprint()
    triangle = [[0, 0], [.6, 0], [.5, 1]]
    outlines.write_text(json.dumps({'a.png': {'class': 3, 'polygons': [triangle]}}))
    assert Polygons(CLASSIFIER, tmp_path, outlines).fingerprint() != first
    for polygons in ([], [[[0, 0], [50, 0], [50, 50]]], [triangle, [[0, 0], [.5, 0]]]):
        outlines.write_text(json.dumps({'a.png': {'class': 3, 'polygons': polygons}}))
        with pytest.raises(ValueError, match=r'polygons of a.png must be three or more points in \[0, 1\]'):
            Polygons(CLASSIFIER, tmp_path, outlines)
    outlines.write_text(json.dumps({'b.png': {'class': 3, 'polygons': [triangle]}}))
    with pytest.raises(ValueError, match='no image b.png'):
        Polygons(CLASSIFIER, tmp_path, outlines)
    outlines.write_text(json.dumps({'a.png': {'polygons': []}}))
    with pytest.raises(ValueError, match='cannot be read as outlines'):
        Polygons(CLASSIFIER, tmp_path, outlines)


def test_split():
    drawings = Drawings(load_classifier('demo'), 60)
    validation, test = split(drawings, 1 / 6, seed=1)
    assert sorted(validation + test) == list(range(60))
    assert sorted(drawings.labels[index] for index in validation) == list(range(10))
    assert split(drawings, 1 / 6, seed=1) == (validation, test) != split(drawings, 1 / 6, seed=2)
    for share in (0., 1.):
        with pytest.raises(ValueError):
            split(drawings, share)


def scores(table):
    '''Scores of two images, of which the means are those of a table.'''
    pd = pytest.importorskip('pandas', reason='the extra "evaluation" is not installed')
    return pd.DataFrame([
        (image, method, setting, metric, score + sign)
        for method, setting, metric, score in table for image, sign in (('a', 1.), ('b', -1.))
    ], columns=['image', 'method', 'setting', 'metric', 'score'])


METRICS = ('attribution_localisation', 'pointing_game', 'pixel_flipping_5', 'pixel_flipping_20')
TABLE = [
    ('CAM', setting, metric, value)
    for setting, values in {'one': (3., 1., 1., 1.), 'two': (2., 3., 1., 2.), 'three': (1., 2., 2., 3.)}.items()
    for metric, value in zip(METRICS, values)
] + [('LRP', 'only', metric, 9.) for metric in METRICS]


def test_winners():
    from zennit_dc.evaluation.selection import means, winners

    chosen = winners(scores(TABLE))
    assert [tuple(row) for row in chosen.itertuples(index=False)] == [
        ('CAM', 'localisation', 'two', 1.5), ('LRP', 'localisation', 'only', 1.),
        ('CAM', 'faithfulness', 'three', 1.), ('LRP', 'faithfulness', 'only', 1.)
    ]
    assert means(scores(TABLE)).loc[('CAM', 'one'), 'attribution_localisation'] == 3.
    smaller = winners(scores(TABLE), {'faithfulness': {'pixel_flipping_20': False}})
    assert smaller['setting'].tolist() == ['one', 'only']
    tie = [('CAM', setting, metric, 1.) for setting in ('z', 'a') for metric in METRICS]
    assert set(winners(scores(tie))['setting']) == {'z'}


def test_winners_of_incomplete_scores():
    from zennit_dc.evaluation.selection import winners

    complete = scores(TABLE)
    with pytest.raises(ValueError, match='several scores'):
        winners(scores(TABLE + TABLE[:1]))
    with pytest.raises(ValueError, match='CAM one has no score for some'):
        winners(complete.drop(index=0))
    with pytest.raises(ValueError, match='no scores for \'pointing_game\''):
        winners(complete[complete['metric'] != 'pointing_game'])
    with pytest.raises(ValueError, match='CAM one has no score in localisation'):
        winners(complete[(complete['metric'] != 'pointing_game') | (complete['setting'] != 'one')])


def test_settings_of_the_loss():
    settings = grid(['caso', 'smooth-cafo'], (False,), penalty=(Sparsity(.5), 1e-3), margin=(.1, 1.))
    assert [setting.name for setting in settings] == [
        *(f'penalty {penalty}, margin {margin}' for penalty in ('Sparsity(share=0.5)', '0.001') for margin in (.1, 1.)),
        'penalty Sparsity(share=0.5)', 'penalty 0.001'
    ]
    assert all(setting.against == 'none' for setting in settings)
