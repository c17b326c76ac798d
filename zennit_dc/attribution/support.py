'''Whether a map is about what the network uses: what becomes of the class where the map's largest part is hidden.'''
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .layers import require_evaluation
from .relevance import Target, class_relevance, require_scores


BLUR = .1
'''The standard deviation of the blur, as a part of the image's shorter side.'''
SPREAD = .05
'''How far a pixel of several with the same value in the map sees the others, as a part of the shorter side.'''
GOLDEN = (math.sqrt(5.) - 1.) / 2.


@dataclass(frozen=True, eq=False)
class Support:
    '''What hiding a part of each image does to its class.

    All but the share are tensors in double precision on the CPU, with one entry for each image. Log-odds are those of
    the class against all others, log p / (1 − p).

    Parameters
    ----------
    share : float
        The share of the pixels that is hidden.
    log_odds : :py:class:`torch.Tensor`
        The log-odds of the whole image, of shape (batch,).
    red, blue : :py:class:`torch.Tensor`
        The log-odds where the pixels with the map's largest and smallest values are hidden, of shape (batch,). Both are
        not a number for a constant map, which has no order; ``blue`` is not for a map without negative values, either.
    random : :py:class:`torch.Tensor`
        The log-odds where random places are hidden, of shape (batch, draws). Not a number for a constant map.
    '''
    share: float
    log_odds: torch.Tensor
    red: torch.Tensor
    blue: torch.Tensor
    random: torch.Tensor

    @property
    def red_fall(self) -> Tensor:
        '''By how much hiding the red part lowers the log-odds, of shape (batch,).'''
        return self.log_odds - self.red

    @property
    def blue_fall(self) -> Tensor:
        '''By how much hiding the blue part lowers the log-odds, of shape (batch,).'''
        return self.log_odds - self.blue

    @property
    def random_fall(self) -> Tensor:
        '''By how much hiding a random part lowers the log-odds, the mean over the draws, of shape (batch,).'''
        return self.log_odds - self.random.mean(1)

    @property
    def margin(self) -> Tensor:
        '''By how much more hiding the red part lowers the log-odds than hiding a random one: the map's support, of
        shape (batch,). It is 0 for a constant map, whose red part could be any.'''
        return torch.where(self.is_constant, 0., self.red_fall - self.random_fall)

    @property
    def is_constant(self) -> Tensor:
        '''Whether the map is the same everywhere, and so has no red part, of shape (batch,).'''
        return self.red.isnan()

    @property
    def fails(self) -> Tensor:
        '''Whether the map is not to be trusted, of shape (batch,): where hiding the red part lowers the log-odds no
        more than a random part does in the mean, or less than the blue part does; or where the map is constant.'''
        return ~(self.margin > 0.) | (self.blue_fall > self.red_fall)

    @property
    def probabilities(self) -> dict[str, Tensor]:
        '''The probabilities of the class by what is hidden: ``'nothing'``, ``'red'``, ``'random'`` and ``'blue'``, each
        of shape (batch,). That of ``'random'`` belongs to the mean of the log-odds.'''
        log_odds = {
            'nothing': self.log_odds, 'red': self.red, 'random': self.random.mean(1), 'blue': self.blue
        }
        return {name: each.sigmoid() for name, each in log_odds.items()}

    def numbers(self, index: int = 0) -> dict[str, Any]:
        '''All that is known of an image, as a dict that JSON can hold: what is not a number is None.'''
        def known(value: float) -> float | None:
            return None if math.isnan(value) else value

        log_odds = {'nothing': self.log_odds, 'red': self.red, 'random': self.random.mean(1), 'blue': self.blue}
        return {
            'share': self.share, 'draws': self.random.shape[1],
            'probability': {name: known(each[index].item()) for name, each in self.probabilities.items()},
            'log_odds': {name: known(each[index].item()) for name, each in log_odds.items()},
            'random_log_odds': [known(each) for each in self.random[index].tolist()],
            'support': self.margin[index].item(), 'fails': bool(self.fails[index]),
        }

    def sentence(self, index: int = 0, names: tuple[str, str] = ('red', 'blue'), separator: str = '; ') -> str:
        '''What hiding does to the class of an image, in one line.

        Parameters
        ----------
        index : int, optional
            The index of the image in the batch.
        names : tuple[str, str], optional
            What the parts with the largest and smallest values are called.
        separator : str, optional
            What stands between the parts of the sentence.

        Returns
        -------
        str
            Such as 'hiding the red fifth: 96 % → 12 %; a random fifth: 96 % → 91 %; the blue fifth: 96 % → 97 %'.
        '''
        if self.is_constant[index]:
            return 'the map is the same everywhere: nothing to hide'
        part, own = part_name(self.share), {name: each[index].item() for name, each in self.probabilities.items()}
        parts = {'red': f'hiding the {names[0]}', 'random': 'a random', 'blue': f'the {names[1]}'}
        return separator.join(
            f'{words} {part}: {percent(own["nothing"])} → {percent(own[name])}' for name, words in parts.items()
            if not math.isnan(own[name])
        )

    def reason(self, index: int = 0, names: tuple[str, str] = ('red', 'blue')) -> str | None:
        '''Why the map of an image fails, in words that may follow its name, or None if it does not fail. See
        :py:meth:`sentence`.'''
        if not self.fails[index]:
            return None
        if self.is_constant[index]:
            return 'the map is the same everywhere'
        part = part_name(self.share)
        red, random, blue = (each[index].item() for each in (self.red_fall, self.random_fall, self.blue_fall))
        other = f'a random {part} ({random:.2f})' if not red > random else f'the {names[1]} {part} ({blue:.2f})'
        return f'hiding the {names[0]} {part} lowers the log-odds of the class less ({red:.2f}) than {other}'


def support(
    model: Module, input: Tensor, map: Tensor, target: Target = None, share: float = .2, draws: int = 8, seed: int = 0,
    blur: float = BLUR, batch_size: int | None = None
) -> Support:
    '''Ask whether maps are about what the network uses: hide the part of each image where its map is largest, and
    compare with hiding a random part of the same size, and the part where the map is smallest.

    What is hidden is replaced by a blurred copy of the image, so that its colors stay and its content goes. Always the
    same number of pixels is hidden. Of pixels of equal value in the map, those with larger values around them come
    first, so that a region with ties grows at its edges, rather than in reading order.

    A random part is the red one at another place: moved by a random distance around the edges of the image (as if
    opposite edges met), and mirrored at random. It has the area, the outlines and the sizes of patches of the red part,
    whatever they are: single pixels of a gradient, or the smooth regions of a map that was upsampled from a layer. What
    many small holes do to a network beyond what one large hole does is thus not taken for the map's merit: against
    random smooth regions, white noise would pass on every photograph. Each pixel is hidden with a probability of
    ``share``. The distances of an image's draws are spread evenly (a lattice with a random start), which makes their
    mean vary less. They depend on the image's values and the seed alone, and are the same for all maps of an image.

    A map passes if it finds a better place than chance does. That is necessary, and not sufficient: objects are in the
    middle of photographs, and so is the map of another photograph, which passes on half of them. Over several images
    the mean of ``margin`` tells these from right maps. A fifth is one point of the curve of Pixel Flipping, see
    :py:func:`zennit_dc.evaluation.metrics.pixel_flipping`.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model in evaluation mode, from images to logits of shape (batch, classes). One logit is the log-odds of the
        only class. Nothing is differentiated.
    input : :py:class:`torch.Tensor`
        The images of shape (batch, channels, height, width), where the model is and in its dtype.
    map : :py:class:`torch.Tensor`
        The maps of shape (batch, height, width): attributions, summed over the channels.
    target : int, :py:class:`torch.Tensor` or None, optional
        The class, or one for each image, of shape (batch,). Default is the class with the largest logit.
    share : float, optional
        The share of the pixels to hide, in (0, 0.5].
    draws : int, optional
        The number of random parts.
    seed : int, optional
        The seed of their places.
    blur : float, optional
        The standard deviation of the blur by a Gaussian, as a part of the image's shorter side.
    batch_size : int, optional
        The number of masked copies of an image in a forward pass. Default is 4 on the CPU, where more are slower, and
        else 64.

    Returns
    -------
    :py:class:`Support`
        The log-odds before and after, for each image. They do not depend on the other images.

    Raises
    ------
    ValueError
        If a shape, class, share, or number does not fit.
    RuntimeError
        If the model is in training mode.
    FloatingPointError
        If a map or a logit is not finite.
    '''
    require_evaluation(model)
    require_fitting(input, map, target)
    require_range(share, draws, blur, batch_size, input.shape[2] * input.shape[3])
    input, map = input.detach(), map.detach().cpu().double()
    if not torch.isfinite(map).all():
        raise FloatingPointError('the map is not finite: check the input and the weights, or use a higher precision')
    size = batch_size or (4 if input.device.type == 'cpu' else 64)
    targets = [None] * len(input) if target is None else torch.as_tensor(target).expand(len(input)).tolist()
    found = []
    for image, own, index in zip(input, map, targets, strict=True):
        masks = hidden_parts(own, round(share * own.numel()), draws, image_seed(image, seed))
        hidden = blurred(image, blur * min(own.shape))
        log_odds = log_odds_of(model, image, hidden, torch.stack([*masks.values()]), index, size)
        found.append(dict(zip(masks, log_odds)))
    missing = torch.tensor(torch.nan, dtype=torch.float64)

    def column(name: str | int) -> Tensor:
        return torch.stack([each.get(name, missing) for each in found])

    random = torch.stack([column(number) for number in range(draws)], 1)
    return Support(share, column('nothing'), column('red'), column('blue'), random)


def require_fitting(input: Tensor, map: Tensor, target: Target) -> None:
    '''Raise a ValueError if images, maps or classes do not fit.'''
    if input.ndim != 4 or not input.is_floating_point() or not input.numel():
        raise ValueError(
            'the input must be floating point numbers of shape (batch, channels, height, width), not'
            f' {tuple(input.shape)} of type {input.dtype}'
        )
    expected = (len(input), *input.shape[2:])
    if map.shape != expected:
        raise ValueError(
            f'the map must have the shape {expected} of the images, not {tuple(map.shape)}: sum an attribution over its'
            ' channels, and upsample a map of a layer'
        )
    if target is not None and torch.as_tensor(target).shape not in ((), (len(input),)):
        raise ValueError(
            f'the target must be one class, or one for each of {len(input)} images, not of shape'
            f' {tuple(torch.as_tensor(target).shape)}'
        )


def require_range(share: float, draws: int, blur: float, batch_size: int | None, pixels: int) -> None:
    '''Raise a ValueError if a number is not in its range.'''
    if not 0. < share <= .5 or not round(share * pixels):
        raise ValueError(
            f'the share of pixels to hide must be in (0, 0.5], and at least one of the {pixels} pixels, not {share!r}'
        )
    if not 0. < blur < math.inf:
        raise ValueError(f'the blur must be positive and finite, not {blur!r}')
    for name, number in (('draws', draws), ('batch_size', 1 if batch_size is None else batch_size)):
        if number < 1:
            raise ValueError(f'{name} must be positive, not {number!r}')


def image_seed(image: Tensor, seed: int) -> int:
    '''A seed from the values of an image of shape (channels, height, width), and another seed.'''
    values = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(b'%d ' % seed + values).digest()[:7], 'big')


def hidden_parts(map: Tensor, count: int, draws: int, seed: int) -> dict[str | int, Tensor]:
    '''The masks of what is hidden, by name, each of the map's shape (height, width): true for none or ``count`` pixels.

    They are ``'nothing'``, and but for a constant map ``'red'``, the numbers of the random parts, and, for a map with
    negative values, ``'blue'``.
    '''
    masks: dict[str | int, Tensor] = {'nothing': torch.zeros(map.shape, dtype=torch.bool)}
    if map.min() < map.max():
        masks['red'] = largest(map, count)
        masks.update(enumerate(moved(masks['red'], draws, seed)))
        if map.min() < 0.:
            masks['blue'] = largest(-map, count)
    return masks


def largest(map: Tensor, count: int) -> Tensor:
    '''A mask of the largest values of a map; of equal ones, those with larger values around them come first.'''
    scaled = map / map.abs().max()
    around = blurred(scaled[None], SPREAD * min(map.shape))[0]
    order = around.flatten().argsort(descending=True, stable=True)
    order = order[map.flatten()[order].argsort(descending=True, stable=True)]
    mask = torch.zeros(map.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.reshape(map.shape)


def moved(mask: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    '''A mask at random places: moved around the edges and mirrored, as often as there are draws.'''
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    mirrored = torch.randint(2, (draws, 2), generator=generator).tolist()
    for number, axes in enumerate(mirrored):
        places = (start[0] + number / draws) % 1., (start[1] + number * GOLDEN) % 1.
        steps = [int(place * side) for place, side in zip(places, mask.shape)]
        yield mask.flip([axis for axis in (0, 1) if axes[axis]]).roll(steps, (0, 1))


def blurred(image: Tensor, width: float) -> Tensor:
    '''An image of shape (channels, height, width), blurred by a Gaussian with a standard deviation in pixels. At the
    edges the weights of what lies outside are shared by what lies inside.'''
    dtype = torch.promote_types(image.dtype, torch.float32)
    rows, columns = (gaussian(side, width).to(image.device, dtype) for side in image.shape[1:])
    return (rows @ image.to(dtype) @ columns.T).to(image.dtype)


def gaussian(side: int, width: float) -> Tensor:
    '''The weights of a blur along a side, of shape (side, side). Each row sums to one.'''
    places = torch.arange(side, dtype=torch.float64)
    return (-.5 * ((places[:, None] - places) / width) ** 2).softmax(1)


@torch.no_grad()
def log_odds_of(
    model: Module, image: Tensor, hidden: Tensor, masks: Tensor, target: int | None, batch_size: int
) -> Tensor:
    '''The log-odds of a class of an image where parts of it are hidden.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    image, hidden : :py:class:`torch.Tensor`
        The image, and what takes its place, of shape (channels, height, width).
    masks : :py:class:`torch.Tensor`
        What is hidden, of shape (number, height, width). The first one is to hide nothing.
    target : int or None
        The class. None is the likeliest one where nothing is hidden.
    batch_size : int
        The number of images in a forward pass.

    Returns
    -------
    :py:class:`torch.Tensor`
        The log-odds of shape (number,), in float64 on the CPU.
    '''
    logits = torch.cat([
        require_scores(model(torch.where(own[:, None], hidden, image))).cpu().double()
        for own in masks.to(image.device).split(batch_size)
    ])
    if not torch.isfinite(logits).all():
        raise FloatingPointError('a logit is not finite: check the input and the weights, or use a higher precision')
    own = class_relevance(target)(logits[:1]).expand_as(logits) > 0.
    chosen = logits[own]
    if logits.shape[1] == 1:
        return chosen
    return chosen - logits.masked_fill(own, -torch.inf).logsumexp(1)


def part_name(share: float) -> str:
    '''A share of the pixels in words.'''
    return {.2: 'fifth', .25: 'quarter', .1: 'tenth', .5: 'half'}.get(share, f'{100. * share:.3g} %')


def percent(probability: float) -> str:
    '''A probability in percent, with as many digits as it takes to tell it from 0 and 1, up to three.'''
    rest = min(probability, 1. - probability)
    if rest < 5e-6:
        return '< 0.001 %' if probability < .5 else '> 99.999 %'
    digits = max(0, math.ceil(-math.log10(rest)) - 2)
    return f'{100. * probability:.{digits}f} %'
