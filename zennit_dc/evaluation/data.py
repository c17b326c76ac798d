'''Images with masks of the explained object, and their division into a validation and a test split.'''
import hashlib
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from ..data.files import UnreadableImage
from ..data.images import image_names, read_image, sampled
from ..demo import CLASSES, draw
from ..demo.drawing import SIZE


IGNORED = 1000
LOSSY = ('JPEG', 'MPO', 'JPEG2000', 'WEBP')
NOISE = 64  # the largest change of a value by compression


class Sample(NamedTuple):
    '''An image with its mask.

    Parameters
    ----------
    name : str
        The image's name.
    input : :py:class:`torch.Tensor`
        The model's input of shape (channels, height, width).
    mask : :py:class:`torch.Tensor`
        Where the object is in the input, as Boolean values of shape (height, width).
    label : int
        The class.
    '''
    name: str
    input: torch.Tensor
    mask: torch.Tensor
    label: int


class MaskedImages:
    '''Base class of images with masks: of length ``len(names)``, with a ``sample`` for each index.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier, whose preprocessing is applied to images and masks.
    names : list[str]
        The names of the images.
    labels : list[int]
        The class of each.
    '''
    def __init__(self, classifier, names, labels):
        self.classifier = classifier
        self.names, self.labels = names, labels

    def __len__(self):
        return len(self.names)

    def picture(self, index):
        '''The image of an index, as an image of Pillow.'''
        raise NotImplementedError

    def mask(self, index, size):
        '''The mask of an index in the input, of a size (height, width), as Boolean values.'''
        raise NotImplementedError

    def files(self, index):
        '''The files that an image and its mask are read from.'''
        return ()

    def fingerprint(self):
        '''A hash of the names, the labels, and the sizes, beginnings and ends of the files.'''
        digest = hashlib.sha256(json.dumps([self.names, self.labels]).encode())
        for index in range(len(self)):
            for path in self.files(index):
                digest.update(sampled(path))
        return digest.hexdigest()

    def sample(self, index):
        '''The sample of an index.

        Raises
        ------
        UnreadableImage
            If the image or its mask cannot be read.
        ValueError
            If the mask is empty in the part of the image that the model sees.
        '''
        input = self.classifier.preprocessing(self.picture(index))
        mask = torch.from_numpy(np.array(self.mask(index, tuple(input.shape[1:])), bool))
        if mask.shape != input.shape[1:]:
            raise ValueError(f'the mask of {self.names[index]} has the shape {tuple(mask.shape)} in an input of shape'
                             f' {tuple(input.shape)}')
        if not mask.any():
            raise ValueError(f'the object of {self.names[index]} is not in the part that the model sees')
        return Sample(self.names[index], input, mask, self.labels[index])

    def cropped(self, mask, index, size):
        '''A mask of a whole image, as an image of Pillow, where the preprocessing leaves it.'''
        whole = self.picture(index).size
        if mask.size != whole:
            raise ValueError(
                f'the mask of {self.names[index]} has {mask.size[0]} × {mask.size[1]} pixels, but the image, the right'
                f' way up, has {whole[0]} × {whole[1]}: save both alike'
            )
        shorter = max(self.classifier.preprocessing.resize_size)
        return center_crop(resize(mask, [shorter], InterpolationMode.NEAREST), list(size))


class ImageNetS(MaskedImages):
    '''A folder in the layout of ImageNet-S: ``SPLIT/CLASS/NAME.JPEG`` and ``SPLIT-segmentation/CLASS/NAME.png``.

    A mask may have the name's ending of any image. Images without a mask are left out, and a warning counts them.

    A pixel's class in a mask is its red value plus 256 times its green one: 0 for none, 1000 for pixels to be ignored.
    The object is all that is of another class, or, where several classes are in one mask, of the class whose place in
    the sorted list of folders it is, counted from one. Gray masks are the object where they are not black, see
    :py:func:`read_mask`.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    folder : path
        The folder.
    labels : dict[str, int]
        The class index of each folder.
    split : str, optional
        The folder's own split.

    Raises
    ------
    ValueError
        If there is no such folder, or no image with a mask, or a folder that is not in ``labels``.
    '''
    def __init__(self, classifier, folder, labels, split='validation'):
        self.images, self.masks = Path(folder, split), Path(folder, f'{split}-segmentation')
        for each in (self.images, self.masks):
            if not each.is_dir():
                raise ValueError(
                    f'there is no folder {each}, as in the layout of ImageNet-S: for other folders, name --outlines'
                )
        names = self.find_masks()
        folders = [name.split('/')[0] for name in names]
        unknown = sorted(set(folders) - set(labels))
        if unknown:
            raise ValueError(
                f'there is no class for the folder {unknown[0]} of {self.images}: name a file with --label-map that has'
                ' its WordNet ID'
            )
        super().__init__(classifier, names, [labels[each] for each in folders])
        entries = [entry.name for each in (self.images, self.masks) for entry in each.iterdir() if entry.is_dir()]
        self.identities = {each: place for place, each in enumerate(sorted(set(entries)), 1)}

    def fingerprint(self):
        '''A hash of all that the samples depend on.'''
        return hashlib.sha256(json.dumps([super().fingerprint(), self.identities]).encode()).hexdigest()

    def find_masks(self):
        '''The names of the images that have a mask.'''
        self.mask_names, images = {}, sorted(image_names(self.images))
        for name in sorted(image_names(self.masks)):
            self.mask_names.setdefault(stem(name), []).append(name)
        names = [name for name in images if stem(name) in self.mask_names]
        if not names:
            raise ValueError(f'there is no image in {self.images} with a mask in {self.masks}')
        for name in names:
            if len(found := self.mask_names[stem(name)]) > 1:
                raise ValueError(f'{name} has several masks in {self.masks}: {", ".join(found)}: leave one of them')
        if left := [name for name in images if stem(name) not in self.mask_names]:
            warnings.warn(
                f'{len(left)} of {len(images)} images in {self.images} have no mask in {self.masks} and are left out,'
                f' {left[0]} among them', stacklevel=3
            )
        return names

    def mask_path(self, name):
        '''The file of an image's mask.'''
        return self.masks / self.mask_names[stem(name)][0]

    def picture(self, index):
        return read_image(self.images / self.names[index], self.classifier.mode)

    def files(self, index):
        return self.images / self.names[index], self.mask_path(self.names[index])

    def mask(self, index, size):
        name = self.names[index]
        values = read_mask(self.mask_path(name))
        if values.dtype != bool:
            present = set(np.unique(values).tolist()) - {0, IGNORED}
            identity = self.identities[name.split('/')[0]]
            if len(present) > 1 and identity not in present:
                raise ValueError(
                    f'{self.mask_path(name)} has the classes {", ".join(map(str, sorted(present)))}, but not'
                    f' {identity}, the place of its folder among {len(self.identities)}: keep all folders of the data'
                    ' set'
                )
            object = values == identity if len(present) > 1 else (values != 0) & (values != IGNORED)
        else:
            object = values
        return self.cropped(Image.fromarray(np.uint8(255) * object), index, size)


def stem(name):
    '''A file's name, with its folders, without its ending.'''
    return name.rpartition('.')[0]


def read_mask(path):
    '''Read a mask, the right way up, by its colors: those of a palette, not their places in it.

    Parameters
    ----------
    path : path
        The file of an image. Where it is wholly transparent, it is black.

    Returns
    -------
    :py:class:`numpy.ndarray`
        Of a gray mask of shape (height, width), where it is not black, as Boolean values; where it was compressed with
        loss, as in JPEG, where it is brighter than half. Of a colored mask red plus 256 times green, as integers.

    Raises
    ------
    UnreadableImage
        If the file cannot be read as an image, or its colors tell no object.
    '''
    try:
        with Image.open(path) as image:
            lossy = image.format in LOSSY or image.info.get('compression') == 'jpeg'
            image = ImageOps.exif_transpose(image)
            if image.mode in ('1', 'L', 'I', 'I;16', 'I;16B', 'I;16L') and 'transparency' not in image.info:
                values = np.asarray(image)[..., None]
            elif image.mode in ('L', 'P', 'RGB', 'LA', 'PA', 'RGBA'):
                values = opaque(np.asarray(image.convert('RGBA')))
            else:
                raise ValueError(f'masks are gray, have a palette, or are of RGB, not of mode {image.mode}')
            return without_noise(values) if lossy else by_color(values)
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(f'{path} cannot be read as an image of a mask: {error}') from error


def opaque(values):
    '''The colors of a mask with an alpha channel, black where it is transparent.'''
    alpha = values[..., 3:]
    if not np.isin(alpha, (0, 255)).all():
        raise ValueError('it is partly transparent: save it without transparency')
    return np.where(alpha == 0, 0, values[..., :3])


def by_color(values):
    '''Where a gray mask is not black, or the numbers of a colored one.'''
    if (values == values[..., :1]).all():
        return values[..., 0] != 0
    return values[..., 0].astype(int) + 256 * values[..., 1].astype(int)


def without_noise(values):
    '''Where a mask that was compressed with loss is white.'''
    values = values.astype(int)
    light = values.mean(-1)
    if (values.max(-1) - values.min(-1)).max() > NOISE or ((light > NOISE) & (light < 255 - NOISE)).mean() > .05:
        raise ValueError('compression with loss changes numbers, so that such masks must be black and white: save PNG')
    return light > 127.5


class Polygons(MaskedImages):
    '''The images of a folder whose outlines are in a JSON file: for each file's name its ``class`` and its
    ``polygons``, lists of points [x, y] in [0, 1] of what the model sees.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    folder : path
        The folder.
    outlines : path
        The JSON file.

    Raises
    ------
    ValueError
        If the file cannot be read as outlines, or an image is missing.
    '''
    def __init__(self, classifier, folder, outlines):
        self.folder, self.outlines = Path(folder), Path(outlines)
        try:
            entries = json.loads(Path(outlines).read_text(encoding='utf-8'))
            names = sorted(entries)
            labels = [int(entries[name]['class']) for name in names]
            self.polygons = [
                [[(float(x), float(y)) for x, y in polygon] for polygon in entries[name]['polygons']] for name in names
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{outlines} cannot be read as outlines: {type(error).__name__} {error}') from error
        for name, polygons in zip(names, self.polygons):
            if not polygons or not all(len(polygon) > 2 and 0. <= np.min(polygon) <= np.max(polygon) <= 1.
                                       for polygon in polygons):
                raise ValueError(
                    f'{outlines}: the polygons of {name} must be three or more points in [0, 1], as shares of the width'
                    ' and height of what the model sees'
                )
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing or not names:
            raise ValueError(f'there is no image {missing[0]} in {folder}' if missing else f'{outlines} has no outline')
        super().__init__(classifier, names, labels)

    def picture(self, index):
        return read_image(self.folder / self.names[index], self.classifier.mode)

    def files(self, index):
        return self.folder / self.names[index],

    def fingerprint(self):
        '''A hash of all that the samples depend on.'''
        return hashlib.sha256(json.dumps([super().fingerprint(), self.polygons]).encode()).hexdigest()

    def mask(self, index, size):
        height, width = size
        image = Image.new('1', (width, height))
        for polygon in self.polygons[index]:
            ImageDraw.Draw(image).polygon([(x * width, y * height) for x, y in polygon], fill=1)
        return image


class Drawings(MaskedImages):
    '''The demo's drawings, whose masks are exact.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The demo's classifier.
    count : int
        The number of drawings.
    seed : int, optional
        Their seed, counted on from the seeds of the training and test drawings.

    Raises
    ------
    ValueError
        If the classifier is another one.
    '''
    def __init__(self, classifier, count, seed=0):
        if classifier.name != 'demo' or list(classifier.preprocessing.crop_size) != [SIZE]:
            raise ValueError(f'the drawings are for the demo\'s classifier (--model demo), not for {classifier.name}')
        self.seed = 2 + seed
        labels = [index % len(CLASSES) for index in range(count)]
        super().__init__(classifier, [f'{seed}-{index:05d}' for index in range(count)], labels)

    def picture(self, index):
        return Image.fromarray(draw(self.seed, index).image)

    def mask(self, index, size):
        return draw(self.seed, index).mask


def split(images, share=0.25, seed=0):
    '''Divide images into a validation and a test split (section 5.1, where the former has one image of each class).

    Parameters
    ----------
    images : :py:class:`MaskedImages`
        The images.
    share : float, optional
        The share of the validation split, in (0, 1).
    seed : int, optional
        The seed.

    Returns
    -------
    tuple of list[int]
        The indices of the validation and of the test split, both sorted and neither empty. The validation split takes
        one image of every class before it takes a second one of any; which ones, the seed decides.
    '''
    if not 0. < share < 1. or len(images) < 2:
        raise ValueError(f'{len(images)} images cannot be divided with a share of {share}')
    order = np.random.default_rng(seed).permutation(len(images))
    labels = np.array(images.labels)[order]
    # the k-th image of a class comes before the (k + 1)-th of any other
    turns = np.array([(labels[:place] == label).sum() for place, label in enumerate(labels)])
    order = order[np.argsort(turns, kind='stable')]
    count = min(max(round(share * len(images)), 1), len(images) - 1)
    return sorted(order[:count].tolist()), sorted(order[count:].tolist())
