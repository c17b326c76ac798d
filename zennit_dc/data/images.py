'''Images that a user names: files, folders and arrays.'''
import errno
import hashlib
import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .files import IMG_EXTENSIONS, UnreadableImage, is_image_name, require_local
from .imagenet import wordnet_ids


# errors that are the image's own, and not of the disk or the process, so that they will be the same tomorrow
OWN_ERRORS = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
LONGEST = 100
DEPTHS = (8, 10, 12, 14, 16)  # the numbers of bits that cameras and scanners have
TOLD = set()  # those of which a warning was given
SAMPLE = 4096


def read_image(path, mode='RGB'):
    '''Read an image file, the right way up.

    Gray values of more than 8 bits are scaled to 8 by their number of bits. It is the least of 8, 10, 12, 14 and 16
    that has room for the brightest pixel, as a scanner's 12 bits in a file of 16 would otherwise be black. Where it is
    not 16, a warning says so, once for each number of bits. Colors of 16 bits keep the upper 8, as Pillow reads them.

    Parameters
    ----------
    path : str or path
        The file.
    mode : str, optional
        Pillow's name of the color mode to convert to.

    Returns
    -------
    :py:class:`PIL.Image.Image`
        The image. Where it is transparent, it is laid on white.

    Raises
    ------
    UnreadableImage
        If there is no such file, or if it is not an image, is truncated, has values below 0 or above 65535, is more
        than 100 times as long as it is wide, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    '''
    require_local(path)
    try:
        with opened(path) as image:
            image = ImageOps.exif_transpose(image)
            if max(image.size) > LONGEST * min(image.size):
                raise ValueError(
                    f'it has {image.size[0]} × {image.size[1]} pixels, one side more than {LONGEST} times the other'
                )
            if image.mode == 'F':
                raise ValueError('the range of its values is not known (mode F)')
            return on_white(of_eight_bits(image, path)).convert(mode)
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(f'{path} cannot be read as an image: {error}') from error


def of_eight_bits(image, path):
    '''An image of which gray values of more bits are scaled to 8.'''
    if not image.mode.startswith('I'):
        return image
    values = np.asarray(image)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= 2 ** 16:
        raise ValueError(f'its values are from {least} to {most}, and not of 16 bits without sign (mode {image.mode})')
    bits = next(each for each in DEPTHS if most < 2 ** each)
    if bits < 16 and most and bits not in TOLD:
        TOLD.add(bits)
        warnings.warn(
            f'{path} has no value above {most}, and is read as an image of {bits} bits, as are all others of its kind:'
            ' save images with 8 bits to choose another scale', stacklevel=3
        )
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def opened(path):
    '''An image file, of which no pixel is read yet.'''
    with warnings.catch_warnings():
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        try:
            return Image.open(path)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(
                f'it has more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels: make it smaller'
            ) from error


def on_white(image):
    '''An image on white, if it has an alpha channel or a transparent color.'''
    if not (image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info):
        return image
    image = image.convert('LA' if image.mode == 'La' else 'RGBA').convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)


class ImageFolder:
    '''The images below a folder, in the order of their paths.

    An image's label is looked up in the label map: by its class's name or WordNet ID, or else its index. Looked up is
    what the first group of ``label_regex`` matches in the image's path relative to the folder; or without one, the name
    of the folder in which the image lies, the uppermost one. Images without a folder of their own have no label.

    Parameters
    ----------
    folder : path
        The folder.
    label_map : list[dict]
        The classes, see :py:func:`label_map`.
    label_regex : str, optional
        A regular expression with a group.

    Raises
    ------
    ValueError
        If there is no such folder, no image in it, a bad regular expression, or a label that is not in the label map.
    '''
    def __init__(self, folder, label_map, label_regex=None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f'there is no folder {folder}')
        self.names = sorted(image_names(self.folder))
        if not self.names:
            raise ValueError(f'there is no image in the folder {folder} ({", ".join(IMG_EXTENSIONS)})')
        for name in self.names:
            if '\n' in name or name != name.encode(errors='replace').decode():
                raise ValueError(f'the name of the image {name!r} has characters that cannot be stored: rename it')
        self.labels = find_labels(self.names, label_map, label_regex)
        tops = [] if label_regex is not None else [name.partition('/')[0] for name in self.names]
        self.folders = {label: top for label, top in zip(self.labels, tops) if label is not None}

    def __len__(self):
        return len(self.names)

    def image(self, index, mode='RGB'):
        '''Read an image.

        Raises
        ------
        UnreadableImage
            If the image itself cannot be read.
        OSError
            If the disk or the process is the reason.
        '''
        try:
            return read_image(self.folder / self.names[index], mode)
        except UnreadableImage as error:
            number = getattr(error.__cause__, 'errno', None)
            if number is None or (number in OWN_ERRORS and self.folder.is_dir()):
                raise
            raise OSError(str(error)) from error

    def fingerprint(self):
        '''A hash of the names, the labels, and the sizes, beginnings and ends of the files.'''
        digest = hashlib.sha256(json.dumps([self.names, self.labels]).encode())
        for name in self.names:
            digest.update(sampled(self.folder / name))
        return digest.hexdigest()


class ImageArray:
    '''The images of an array.

    Parameters
    ----------
    images : :py:class:`numpy.ndarray`
        Images of shape (number, height, width, 3) or (number, height, width), as integers of 8 bits without sign.
    labels : :py:class:`numpy.ndarray`, optional
        The class index of each, of shape (number,).

    Raises
    ------
    ValueError
        If the arrays are of other shapes or types.
    '''
    folder = folders = None

    def __init__(self, images, labels=None):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
            raise ValueError(
                'images must be of type uint8 and shape (number, height, width[, 3]), but are of type'
                f' {images.dtype} and shape {images.shape}'
            )
        if not len(images):
            raise ValueError('there are no images in the array')
        if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu'):
            raise ValueError(f'labels must be {len(images)} integers, but are of type {labels.dtype} and shape'
                             f' {labels.shape}')
        self.images = images
        self.labels = [None if labels is None else int(labels[index]) for index in range(len(images))]
        self.names = [str(index) for index in range(len(images))]

    @classmethod
    def load(cls, path):
        '''Load a file of NumPy (``.npz``) with the images under ``x`` and, optionally, their labels under ``y``.'''
        if not Path(path).is_file():
            raise ValueError(f'there is no file {path}')
        try:
            with open(path, 'rb') as file:  # which np.load leaves open where the file is no archive
                arrays = np.load(file, allow_pickle=False)
                if isinstance(arrays, np.ndarray):
                    raise ValueError('it holds a single array without a name')
                if 'x' not in arrays:
                    raise ValueError(f'it has no array x, but {", ".join(arrays)}')
                return cls(arrays['x'], arrays.get('y'))
        except MemoryError:
            raise
        except Exception as error:  # what is wrong with a file can come from any of zipfile, zlib, tokenize ...
            raise ValueError(f'{path} cannot be read as images: {error}') from error

    def __len__(self):
        return len(self.images)

    def image(self, index, mode='RGB'):
        '''The image of an index.'''
        return Image.fromarray(self.images[index]).convert(mode)

    def fingerprint(self):
        '''A hash of the images and labels.'''
        digest = hashlib.sha256(json.dumps([self.images.shape, self.labels]).encode())
        for image in self.images:
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()


def sampled(path):
    '''The size, beginning and end of a file, by which it is told from others without reading all of it.'''
    try:
        with open(path, 'rb') as file:
            beginning, size = file.read(SAMPLE), file.seek(0, os.SEEK_END)
            file.seek(max(size - SAMPLE, 0))
            return beginning + file.read() + str(size).encode()
    except OSError as error:
        return f'error {error.errno}'.encode()


def image_names(folder):
    '''Yield the paths of the images below a folder, relative to it. Names with a dot in front are left out.'''
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name for name in folders
            if not name.startswith('.') and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        for name in names:
            if is_image_name(name):
                yield Path(parent, name).relative_to(folder).as_posix()


def label_map(categories, folders=None):
    '''The label map of ViRelAy for classes.

    Parameters
    ----------
    categories : sequence of str
        The names of the classes by index.
    folders : dict[int, str], optional
        The names of the folders in which the images of the classes lie, by index.

    Returns
    -------
    list[dict]
        For each class its ``index``, ``word_net_id`` and ``name``. The WordNet ID is what ViRelAy finds a class by: it
        is the folder's name; or else, of ImageNet's classes, the one in WordNet; or else the index with five digits.
    '''
    ids = {**dict(enumerate(wordnet_ids(categories) or ())), **(folders or {})}
    return [
        {'index': index, 'word_net_id': ids.get(index, f'{index:05d}'), 'name': name}
        for index, name in enumerate(categories)
    ]


def class_folders(folder):
    '''The names of the folders in a folder, in the order of torchvision's class indices.'''
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def load_label_map(path):
    '''Load a label map: a JSON file with a list of ``{"index": 0, "word_net_id": "n01440764", "name": "tench"}``.'''
    try:
        entries = json.loads(Path(path).read_text(encoding='utf-8'))
        entries = [
            {'index': int(entry['index']), 'word_net_id': str(entry['word_net_id']), 'name': str(entry['name'])}
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} cannot be read as a label map: {type(error).__name__} {error}') from error
    for key in ('index', 'word_net_id'):
        values = [entry[key] for entry in entries]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f'the label map {path} has several classes with the {key} {twice[0]!r}')
    for entry in entries:
        if entry['word_net_id'] in ('', '.') or '/' in entry['word_net_id'] or '\0' in entry['word_net_id']:
            raise ValueError(f'the label map {path} has the word_net_id {entry["word_net_id"]!r}, which names no group')
    return entries


def find_labels(names, labels, regex=None):
    '''The class index of each image, or None for those without a folder of their own.'''
    try:
        pattern = None if regex is None else re.compile(regex)
    except re.error as error:
        raise ValueError(f'{regex!r} is not a regular expression: {error}') from error
    if pattern is not None and pattern.groups < 1:
        raise ValueError(f'{regex!r} has no group that would tell the label')
    known = {}
    for entry in labels:
        for key in (entry['name'], plain(entry['name']), entry['word_net_id']):
            known.setdefault(key, set()).add(entry['index'])
    numbers = {}
    for entry in labels:
        if re.fullmatch(r'0\d+', entry['name']):
            numbers.setdefault(entry['name'].lstrip('0') or '0', set()).add(entry['index'])
    indices = {str(entry['index']): {entry['index']} for entry in labels}
    known = {**indices, **numbers, **known}  # a name goes before an index
    return [label_of(name, pattern, known) for name in names]


def label_of(name, pattern, known):
    '''The class index of one image.'''
    if pattern is None:
        key, _, rest = name.partition('/')
        if not rest:
            return None
    else:
        match = pattern.search(name)
        if match is None or match.group(1) is None:
            raise ValueError(f'the regular expression {pattern.pattern!r} finds no label in {name!r}')
        key = match.group(1)
    for candidate in (key, plain(key), key.lstrip('0') or '0'):
        indices = known.get(candidate, ())
        if len(indices) > 1:
            raise ValueError(f'the label {key!r} of {name!r} belongs to several classes: {sorted(indices)}')
        if indices:
            return next(iter(indices))
    raise ValueError(
        f'the label {key!r} of {name!r} is not a class\'s index, WordNet ID or name: name a file with --label-map, or'
        ' tell where the label is in the path with --label-regex'
    )


def plain(name):
    '''A class name without what folders are often named without.'''
    return re.sub(r'[\W_]+', '_', name.lower())
