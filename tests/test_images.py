'''Images as files, and their labels.'''
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zennit_dc.data.images import ImageFolder, UnreadableImage, read_image


def test_images_of_all_kinds(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / '16.png')
    assert np.abs(np.array(read_image(tmp_path / '16.png', 'L'), int) - (ramp >> 8)).max() <= 1
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
