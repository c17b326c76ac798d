'''Images as files, and their labels.'''
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import folder

from zennit_dc.data import images
from zennit_dc.data.files import IMG_EXTENSIONS, UnreadableImage, images_in
from zennit_dc.data.images import ImageFolder, find_labels, label_map, read_image


def test_images_of_all_kinds(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / '16.png')
    assert (np.array(read_image(tmp_path / '16.png', 'L')) == ramp >> 8).all()
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / 'float.tif')
    with pytest.raises(UnreadableImage, match='mode F'):
        read_image(tmp_path / 'float.tif')
    Image.new('L', (1, 1000)).save(tmp_path / 'long.png')
    with pytest.raises(UnreadableImage, match='1 × 1000'):
        read_image(tmp_path / 'long.png')
    for mode, ending in (('1', 'png'), ('P', 'png'), ('LA', 'png'), ('RGBA', 'png'), ('CMYK', 'jpg'), ('YCbCr', 'jpg')):
        path = tmp_path / f'{mode}.{ending}'
        Image.new('RGB', (8, 8), (255, 0, 0)).convert(mode).save(path)
        assert read_image(path).mode == 'RGB'
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / '.hidden').mkdir()
    (tmp_path / '.hidden' / 'x.png').touch()
    assert len(ImageFolder(tmp_path, []).names) == 9


KINDS = {  # the mode in which Pillow opens a file, its ending, and the type of what is written
    'I;16': ('.png', '<u2'), 'I;16B': ('.tif', '>u2'), 'I': ('.tif', '<i4'),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_more_than_eight_bits(kind, bits, tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'TOLD', set())
    path = tmp_path / f'x{KINDS[kind][0]}'
    ramp = np.linspace(0, 2 ** bits - 1, 64 * 64).reshape(64, 64).astype(np.int32)
    save_gray(ramp, kind, path)
    assert Image.open(path).mode in (kind, 'I')  # which is what it was for PNG in early versions of Pillow
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        read = [np.array(read_image(path, mode)) for mode in ('L', 'RGB')]
    assert (read[0] == ramp >> bits - 8).all() and read[0].min() == 0 and read[0].max() == 255
    assert (read[1] == read[0][..., None]).all()
    expected = f'{path} has no value above {2 ** bits - 1}, and is read as an image of {bits} bits'
    assert [str(each.message).partition(', as')[0] for each in said] == ([] if bits == 16 else [expected])


def save_gray(values, kind, path):
    '''Write gray values such that Pillow opens the file in a mode, as it does not write all of them itself.'''
    if kind != 'I;16B':
        Image.fromarray(values.astype(KINDS[kind][1])).save(path)
        return
    height, width = values.shape
    tags = (  # ImageWidth, ImageLength, BitsPerSample, Compression, PhotometricInterpretation, StripOffsets ...
        (256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
        (279, 2 * values.size),
    )
    content = values.astype('>u2').tobytes()
    entries = b''.join(struct.pack('>HHII', tag, 4, 1, value) for tag, value in tags)
    header = b'MM' + struct.pack('>HI', 42, 8 + len(content))
    path.write_bytes(header + content + struct.pack('>H', len(tags)) + entries + bytes(4))


@pytest.mark.parametrize('least, most', [(-1, 255), (0, 2 ** 16)])
def test_values_that_16_bits_cannot_hold(least, most, tmp_path):
    Image.fromarray(np.array([[least, most]], np.int32)).save(tmp_path / 'x.tif')
    with pytest.raises(UnreadableImage, match=f'from {least} to {most}'):
        read_image(tmp_path / 'x.tif')


@pytest.mark.parametrize('value', [0, 1, 2047, 65535])
def test_images_of_one_gray(value, tmp_path, monkeypatch):
    monkeypatch.setattr(images, 'TOLD', {8, 12})
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / 'x.png')
    expected = {0: 0, 1: 1, 2047: 2047 >> 4, 65535: 255}[value]
    assert read_image(tmp_path / 'x.png', 'L').getcolors() == [(16, expected)]


def test_images_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match='no image in the folder'):
        images_in(tmp_path)
    (tmp_path / 'sub.png').mkdir()
    for name in ('b.PNG', 'a.jpg', '.hidden.png', 'c.txt', 'sub.png/d.png'):
        (tmp_path / name).touch()
    assert images_in(tmp_path) == [tmp_path / 'a.jpg', tmp_path / 'b.PNG']


def test_labels_of_images(tmp_path):
    for name in ('n01', '2', 'Tiger Cat'):
        (tmp_path / name / 'deeper').mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path / name / 'deeper' / 'x_0.png')
    entries = [
        {'index': 0, 'word_net_id': 'n01', 'name': 'tench'}, {'index': 1, 'word_net_id': 'n02', 'name': 'tiger cat'},
        {'index': 2, 'word_net_id': 'n03', 'name': 'crane'}, {'index': 3, 'word_net_id': 'n04', 'name': 'crane'},
    ]
    images = ImageFolder(tmp_path, entries)
    assert dict(zip(images.names, images.labels)) == {
        'n01/deeper/x_0.png': 0, '2/deeper/x_0.png': 2, 'Tiger Cat/deeper/x_0.png': 1
    }
    assert ImageFolder(tmp_path, entries, r'x_(\d)').labels == [0, 0, 0]
    (tmp_path / '2').rename(tmp_path / 'crane')
    with pytest.raises(ValueError, match='several classes'):
        ImageFolder(tmp_path, entries)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_transparent_images_lie_on_white(mode, tmp_path):
    if mode == 'P':
        image = Image.new('P', (4, 4), 0)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(1, (0, 0, 2, 4))
        image.save(tmp_path / 'x.png', transparency=1)
    else:
        image = Image.new('RGBA', (4, 4), (0, 0, 0, 255))
        image.paste((0, 0, 0, 0), (0, 0, 2, 4))
        image.convert(mode).save(tmp_path / 'x.png')
    read = read_image(tmp_path / 'x.png')
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((3, 3)) == (0, 0, 0)


def test_a_half_transparent_gray_is_lighter(tmp_path):
    Image.new('LA', (2, 2), (100, 51)).save(tmp_path / 'x.png')
    assert abs(read_image(tmp_path / 'x.png', 'L').getpixel((0, 0)) - (.2 * 100 + .8 * 255)) <= 1


@pytest.mark.parametrize('times', [1.5, 3.])  # Pillow warns of the one, and refuses the other
def test_huge_images_are_refused(times, tmp_path, monkeypatch):
    Image.new('L', (1000, 1000)).save(tmp_path / 'x.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1e6 / times)
    with pytest.raises(UnreadableImage, match='million pixels: make it smaller'):
        read_image(tmp_path / 'x.png')


def test_a_url_is_no_file():
    with pytest.raises(ValueError, match='https://example.org/x.png is a URL: download it first'):
        read_image(Path('https://example.org/x.png'))


@pytest.mark.parametrize('names, expected', [
    (['1', '2', '3', '4', '5'], {'1': 0, '3': 2, '5': 4, '0': 0, '03': 2}),
    (['0', '1', '10', '2'], {'0': 0, '1': 1, '10': 2, '2': 3, '3': 3}),
    (['01', '02', '03', '10'], {'1': 0, '3': 2, '03': 2, '10': 3}),
], ids=['grades', 'sorted', 'padded'])
def test_a_folder_named_as_a_class_is_not_one_of_that_index(names, expected):
    assert find_labels([f'{folder}/a.png' for folder in expected], label_map(names)) == [*expected.values()]


def test_names_of_images_are_those_of_torchvision():
    assert IMG_EXTENSIONS == folder.IMG_EXTENSIONS
