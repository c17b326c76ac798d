'''Small pictures of textured shapes, drawn with numpy alone, with the exact mask of the object.

Places are complex numbers, x + iy in pixels, with y pointing down. A shape is a function from a place, in units of the
shape's outer radius, to its distance to the outline, which is negative inside.
'''
from functools import partial
from typing import NamedTuple

import numpy as np


SIZE = 64
PIXELS = np.arange(SIZE) + 1j * np.arange(SIZE)[:, None]
LUMA = np.array([.299, .587, .114])


class Drawing(NamedTuple):
    '''A picture of one object.

    Attributes
    ----------
    image : :py:class:`numpy.ndarray`
        RGB values from 0 to 255, of shape (64, 64, 3) and dtype uint8.
    mask : :py:class:`numpy.ndarray`
        Whether the center of the pixel is in the object, of shape (64, 64) and dtype bool. The hole of a ring is not.
    label : int
        The index of the object's class in :py:data:`CLASSES`.
    '''
    image: np.ndarray
    mask: np.ndarray
    label: int


def disk(place):
    '''The distance to the unit circle.'''
    return np.abs(place) - 1


def ring(place):
    '''The distance to a ring, whose hole is about half as wide.'''
    return np.abs(np.abs(place) - .74) - .26


def polygon(corners, notch, place):
    '''The distance to a regular polygon or star with corners at radius 1, and between them corners at radius notch.'''
    half = np.pi / corners
    angle = np.abs((np.angle(place) + half) % (2 * half) - half)
    edge = notch * np.exp(1j * half) - 1
    return ((np.abs(place) * np.exp(1j * angle) - 1) * np.conj(-1j * edge / np.abs(edge))).real


def striped(place):
    '''Stripes of period 1: a wave, positive on the stripes.'''
    return np.cos(2 * np.pi * place.real)


def checkered(place):
    '''Checks 0.8 wide: a wave, positive on every other check.'''
    return np.cos(np.pi / .8 * place.real) * np.cos(np.pi / .8 * place.imag)


SHAPES = {
    'disk': disk, 'square': partial(polygon, 4, np.cos(np.pi / 4)), 'triangle': partial(polygon, 3, .5), 'ring': ring,
    'star': partial(polygon, 5, .5),
}
TEXTURES = {'striped': striped, 'checkered': checkered}
CLASSES = tuple(f'{texture} {shape}' for shape in SHAPES for texture in TEXTURES)


def draw(seed, index):
    '''Draw a picture, which depends on these two numbers alone.

    The object has a shape and a texture, which together are its class; it lies anywhere in the picture, as a whole.
    Around it are plain shapes, and a blob of each texture, so that the class needs both at one place.

    Parameters
    ----------
    seed : int
        The number of a series of pictures, not negative. The package's network was trained on series 0.
    index : int
        The picture's number in the series, not negative. Its last digit is the class.

    Returns
    -------
    :py:class:`Drawing`
        The picture.

    Raises
    ------
    ValueError
        If a number is negative.
    '''
    generator = np.random.default_rng([seed, index])
    label = index % len(CLASSES)
    texture, shape = CLASSES[label].split()
    radius = generator.uniform(11, 16)
    center = place_inside(generator, radius + .5)
    distance = outline(generator, SHAPES[shape], center, radius)

    canvas = background(generator)
    things = [(center, radius)]
    for name in generator.choice(list(SHAPES), generator.integers(2, 4), replace=False):
        radius = generator.uniform(5, 10)
        things.append((free_place(generator, things, radius), radius))
        fill = color(generator.random(), generator.uniform(.2, .9), .25)
        canvas = blend(canvas, fill, outline(generator, SHAPES[name], *things[-1]))
    for name in generator.permutation(list(TEXTURES)):
        radius = generator.uniform(7, 10)
        things.append((free_place(generator, things, radius), radius))
        canvas = blend(canvas, fabric(generator, name), outline(generator, blob(generator), *things[-1]))

    canvas = blend(canvas, fabric(generator, texture), distance)
    return Drawing(np.rint(canvas * 255).astype(np.uint8), distance <= 0, label)


def draw_batch(count, seed, start=0):
    '''Draw consecutive pictures of a series.

    Parameters
    ----------
    count : int
        Their number.
    seed : int
        The number of the series.
    start : int, optional
        The number of the first picture.

    Returns
    -------
    tuple of :py:class:`numpy.ndarray`
        Images of shape (count, 64, 64, 3) and dtype uint8, masks of shape (count, 64, 64) and dtype bool, and labels
        of shape (count,) and dtype int64, as in :py:class:`Drawing`.

    Raises
    ------
    ValueError
        If a number is negative.
    '''
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    masks = np.empty((count, SIZE, SIZE), bool)
    labels = np.empty(count, np.int64)
    for row in range(count):
        images[row], masks[row], labels[row] = draw(seed, start + row)
    return images, masks, labels


def place_inside(generator, margin):
    '''A place at least this many pixels from the borders.'''
    return complex(*generator.uniform(margin, SIZE - 1 - margin, 2))


def free_place(generator, things, radius):
    '''The place, of some, with the widest gap to the nearest of the things there are, pairs of center and radius.'''
    places = [place_inside(generator, radius / 2) for _ in range(12)]
    return max(places, key=lambda place: min(abs(place - center) - other for center, other in things))


def outline(generator, shape, center, radius):
    '''The distance of each pixel to a randomly rotated shape, in pixels.'''
    return shape((PIXELS - center) * np.exp(2j * np.pi * generator.random()) / radius) * radius


def blob(generator):
    '''An irregular shape, with bumps and dents.'''
    waves = generator.uniform(.1, .3, 4) * np.exp(2j * np.pi * generator.random(4))

    def shape(place):
        radius = np.abs(place)
        bumps = np.polyval([*waves, 0, 0], place / radius).real
        return radius - .8 * np.clip(1 + bumps, .3, 1.4)

    return shape


def fabric(generator, texture):
    '''Colors of shape (64, 64, 3), two in alternation.'''
    period = generator.uniform(4.5, 6.5)
    place = PIXELS * np.exp(2j * np.pi * generator.random()) / period + complex(*generator.random(2))
    hue = generator.random()
    dark = color(hue, generator.uniform(.15, .35), .25)
    light = color(hue + generator.uniform(.25, .75), generator.uniform(.75, .9), .25)
    if generator.random() < .5:
        dark, light = light, dark
    share = np.clip(.5 + TEXTURES[texture](place) * period / (2 * np.pi), 0, 1)
    return dark + share[..., None] * (light - dark)


def color(hue, luma, chroma):
    '''RGB values from 0 to 1, of shape (3,), from a hue (1 is a full turn), a brightness and how colorful it is.'''
    wave = np.cos(2 * np.pi * (hue - np.arange(3) / 3))
    return np.clip(luma + chroma * (wave - wave @ LUMA), 0, 1)


def background(generator):
    '''Clouds of two colors with arcs across, of shape (64, 64, 3).'''
    hue = generator.random()
    first = color(hue, generator.uniform(.35, .5), .12)
    second = color(hue + generator.uniform(-.25, .25), generator.uniform(.55, .7), .12)
    share = np.clip(.5 + .5 * clouds(generator, 4) + .25 * clouds(generator, 9), 0, 1)
    canvas = first + share[..., None] * (second - first)
    for _ in range(generator.integers(3, 6)):
        radius = generator.uniform(15, 90)
        middle = place_inside(generator, 0) + radius * np.exp(2j * np.pi * generator.random())
        distance = np.abs(np.abs(PIXELS - middle) - radius) - generator.uniform(.3, 1.2)
        canvas = blend(canvas, color(generator.random(), generator.uniform(.3, .75), .15), distance)
    return np.clip(canvas + generator.normal(0, .015, canvas.shape), 0, 1)


def clouds(generator, cells):
    '''Smooth noise around 0, of shape (64, 64), from random values at the corners of some cells a side.'''
    place = np.linspace(0, cells, SIZE)[:, None]
    weights = np.cos(np.pi / 2 * np.clip(np.abs(place - np.arange(cells + 1)), 0, 1)) ** 2
    return weights @ generator.uniform(-1, 1, (cells + 1, cells + 1)) @ weights.T


def blend(canvas, fill, distance):
    '''Fill a shape on a canvas of shape (64, 64, 3), with smooth edges a pixel wide.'''
    return canvas + np.clip(.5 - distance, 0, 1)[..., None] * (fill - canvas)
