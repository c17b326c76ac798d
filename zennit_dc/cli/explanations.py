'''What the command explain computes and saves.'''
import json
import math
import os
import re
from typing import NamedTuple

import click
import numpy as np
import torch

from ..attribution import map_cosine, require_scores, runner_up, support
from ..attribution.support import blurred
from ..data.categories import find_class
from ..data.images import read_image
from ..data.parts import atomic_write
from ..data.progress import progress_bar
from ..figures import Bar, blend, caption, color, largest_shown, number, save, side_by_side
from ..methods import METHODS, replaying, saliency_map
from ..rules import Balanced
from .arguments import against_of, attributor_of, parameters_of, require_once


SAME = .95
'''The cosine of two classes\' maps above which a map is not about the class.'''
LEVEL = .1
'''The part of a map's largest absolute value below which nobody sees a color.'''
SLIGHT = .001
'''The part of a map's largest absolute value by which it changes if a contrast matters to the method at all.'''
UNSIGNED = (
    'saliency', 'layercam', 'gradcam++', 'cafo', 'caso', 'smooth-cafo', 'smooth-caso', 'binary-mask', 'image-center'
)
'''The methods whose maps are never negative.'''
SENSITIVITIES = ('gradient', 'splitgrad', 'guided-backprop', 'deconvolution', 'guided-gradcam')
'''The methods whose maps at the input say by their sign in which direction a pixel should change, and by their absolute
value that it matters.'''
GRAINY = (
    *SENSITIVITIES, 'saliency', 'input-x-gradient', 'integrated-gradients', 'gradient-shap', 'deeplift', 'cafo', 'caso',
    'smooth-cafo', 'smooth-caso'
)
'''The methods whose maps at the input change from pixel to pixel, as gradients do.'''
FOR_THE_CLASS = (None, 'positive', 'combined', 'g', '+g')
'''The streams whose red is for the class.'''
RED_AND_BLUE = ('bwr', 'france', 'seismic')
'''The color maps that end in blue and red.'''
FOOTER = (
    'Each map has its own scale. The numbers at a color bar are values of single pixels: no shares of the score, to'
    ' which they need not add up.'
)
'''What a figure says of its color bars.'''
FAILURES = (ArithmeticError, RuntimeError, ValueError)
'''What a method raises that has no map of an image.'''


class Look(NamedTuple):
    '''How maps are drawn.

    Parameters
    ----------
    cmap : str
        Zennit's name of the color map.
    overlay : bool or None
        Whether to lay maps over the images. None is for maps at a layer alone.
    percentile : float or None
        The percentile of the absolute values that gets the color map's end. None is 99 at the input and 100 at a layer.
    smoothing : float or None
        The standard deviation of the blur in pixels. None is a hundredth of the shorter side for grainy maps at the
        input, and 0 for others.
    '''
    cmap: str = 'bwr'
    overlay: bool | None = None
    percentile: float | None = None
    smoothing: float | None = None


def explain_images(images, out, folder, explanations, heading, look, save_arrays, place):
    '''Save the figure and the maps of images, and how good they are in the file ``support.json`` in their folder. Where
    a method has no map of an image, the figure says why, and so does an error at the end.

    Parameters
    ----------
    images : sequence of path
        The files.
    out, folder : path
        The figure, and the folder of the maps.
    explanations : :py:class:`Explanations`
        What to compute.
    heading : str
        The figure's heading.
    look : :py:class:`Look`
        How maps are drawn.
    save_arrays : bool
        Whether to save the maps as arrays, too.
    place : dict
        Where and in which dtype to compute, as :py:meth:`torch.Tensor.to` takes it.

    Returns
    -------
    int
        The number of maps.

    Raises
    ------
    Exception
        What the first map raised that failed, if there is none of the first image.
    '''
    classifier, rows, bars, notes = explanations.classifier, [], [], []
    inputs = [classifier.preprocessing(read_image(path, classifier.mode))[None].to(**place) for path in images]
    with progress_bar(total=len(inputs) * explanations.most, desc='maps', unit='map') as bar:
        for path, name, input in zip(images, distinct([shortened(path.stem) for path in images]), inputs, strict=True):
            for target, text, ending, saliencies in explanations.of(path, input, bar):
                folder.mkdir(parents=True, exist_ok=True)
                photo = classifier.pixels(input[0]).numpy()
                shown = {title: explanations.drawn(title, saliency, photo, look)
                         for title, saliency in saliencies.items()}
                for title, (images_of, _, _) in shown.items():
                    save_map(folder / f'{name}{ending}_{file_name(title)}', images_of, saliencies[title], save_arrays)
                bar.set_postfix_str('hiding parts')
                found = explanations.notes(path, input, target, ending, saliencies, look.cmap)
                pictures = {title: [*images_of.values()][-1] for title, (images_of, _, _) in shown.items()}
                rows.append((text, photo, explanations.by_column(pictures, 'no map, see the error')))
                bars.append(explanations.by_column({title: bar for title, (_, bar, _) in shown.items()}))
                notes.append(explanations.by_column({
                    title: '\n'.join(filter(None, [said, found.get(title)])) for title, (_, _, said) in shown.items()
                }))
    save_supports(folder / 'support.json', explanations)
    save(side_by_side(rows, heading, bars, look.cmap, notes, FOOTER), out)
    return sum(map(len, bars))


def save_supports(path, explanations):
    '''Save how good maps are as JSON, or remove what an earlier run has left where this one does not ask.'''
    if not explanations.asks:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump(explanations.supports, file, indent=1, ensure_ascii=False, allow_nan=False)


def save_map(path, images, saliency, as_array):
    '''Save a map as images by the endings of their names, and as an array if asked.'''
    for ending, image in images.items():
        with atomic_write(path.with_name(f'{path.name}{ending}.png')) as temporary:
            image.save(temporary, 'png')
    if as_array:
        with atomic_write(path.with_name(f'{path.name}.npy')) as temporary, open(temporary, 'wb') as file:
            np.save(file, saliency.detach().float().cpu().numpy(), allow_pickle=False)


class Explanations:
    '''The maps of a command for each image and class.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    chosen : list[tuple[str, str or None]]
        The methods and their layers.
    given : dict
        The options of ``method_options`` but for the layer.
    seed : int
        The seed of methods that draw random numbers.
    targets : sequence of str
        The indices or names of the classes. Without any, and without ``top``, it is the predicted class.
    top : int or None
        The number of likeliest classes to explain, too.
    against : sequence of str
        What the command was given for the classes to explain against.
    asks : bool
        Whether to ask how good the maps are, see :py:func:`~zennit_dc.attribution.support`.
    images : int, optional
        The number of images for whose maps calls may be recorded, see :py:func:`zennit_dc.methods.replaying`.
    '''
    def __init__(self, classifier, chosen, given, seed, targets, top, against, asks, images=0):
        self.classifier, self.targets, self.top = classifier, targets, top
        self.methods, self.given = titles_of(chosen), given
        self.seed, self.asks = seed, asks
        self.own_streams = {
            title: parameters_of(*each, given).get('stream') for title, each in self.methods.items()
        }
        self.supports, self.distrusted, self.failed = [], [], []
        calls = images * (1 + max(len(targets) + (top or 0), 1))  # as each is compared with the map of another class
        self.attributors = {
            title: replaying(attributor_of(*each, classifier, given, seed), calls)
            for title, each in self.methods.items()
        }
        self.given_against, self.agreements = against, {}

    @property
    def most(self):
        '''The number of maps of an image, if no class of ``top`` is among the others.'''
        return len(self.attributors) * (len(self.targets) + (self.top or 0) or 1)

    def of(self, path, input, bar):
        '''The maps of an image.

        Parameters
        ----------
        path : path
            The image's file.
        input : :py:class:`torch.Tensor`
            The image of shape (1, channels, height, width).
        bar : :py:class:`tqdm.tqdm`
            The progress bar of maps, which shows the method.

        Yields
        ------
        tuple[int, str, str, dict[str, :py:class:`torch.Tensor`]]
            For each class its index, a caption, the ending of its files, and the maps of shape (height, width) by their
            titles, but for those that failed.
        '''
        with torch.no_grad():
            output = require_scores(self.classifier.model(input.clone()))[0]
        against = against_of(self.given_against, len(output), self.classifier)
        targets = targets_of(self.targets, self.top, output, self.classifier)
        maps = {target: {} for target in targets}
        failures = []
        bar.total -= self.most - len(self.attributors) * len(targets)
        for title in self.attributors:
            bar.set_postfix_str(title)
            made = 0
            try:
                found = {}
                for target in targets:
                    found[target] = self.map_of(title, input, target, against)
                    bar.update()
                    made += 1
                self.compare(title, input, targets, found[targets[0]], against, output)
            except FAILURES as error:
                failures.append((path, title, error))
                bar.update(len(targets) - made)
                continue
            for target, map in found.items():
                maps[target][title] = map
        self.failed += failures
        if len(self.failed) == len(self.attributors) and not any(maps.values()):
            raise failures[0][-1]
        for target in targets:
            ending = f'_{target}' if len(targets) > 1 else ''
            yield target, caption(self.classifier, output, target, against), ending, maps[target]

    def map_of(self, title, input, target, against):
        '''The map of a class of an image by a method, of shape (height, width).'''
        own = None if METHODS[self.methods[title][0]].explains_loss else against
        return saliency_map(self.attributors[title], input, target, own)[1][0]

    def compare(self, title, input, targets, shown, against, output):
        '''Keep how much the map of a class agrees with that of another one, each class by itself: contrasts of two
        classes with each other differ by their construction.'''
        other = targets[1] if len(targets) > 1 else runner_up(output, targets[0])
        if other is None:
            return
        is_itself = against == 'none' or METHODS[self.methods[title][0]].explains_loss
        itself = shown if is_itself else self.map_of(title, input, targets[0], None)
        value = map_cosine(itself[None], self.map_of(title, input, other, None)[None]).item()
        changes = (itself - shown).abs().max().item() > SLIGHT * itself.abs().max().item()
        self.agreements.setdefault(title, []).append((value, targets[0], other, changes))

    def drawn(self, title, saliency, photo, look):
        '''The images of a map by the endings of their names, of which the last one is shown, its color bar, and what
        was done to draw it.'''
        method, layer = self.methods[title]
        at_input = layer is None or method == 'guided-gradcam'
        width = look.smoothing
        if width is None:
            width = .01 * min(saliency.shape) if at_input and method in GRAINY else 0.
        is_absolute = width > 0. and at_input and method in SENSITIVITIES
        said = ''
        if width > 0.:
            saliency = blurred((saliency.abs() if is_absolute else saliency)[None], width)[0]
            said = f'{"absolute values, " if is_absolute else ""}blurred by {number(width)} pixels'
        percentile = (99. if at_input else 100.) if look.percentile is None else look.percentile
        largest = largest_shown(saliency, percentile)
        images = {'': color(saliency, look.cmap, largest)}
        if layer is not None if look.overlay is None else look.overlay:
            images['_overlay'] = blend(photo, saliency, look.cmap, largest=largest)
        ends = ('', 'matters') if is_absolute else self.ends(title)
        return images, Bar(largest, *ends, largest < saliency.abs().max().item()), said

    def notes(self, path, input, target, ending, maps, cmap):
        '''What hiding parts of an image does to a class, by the titles of its maps, in lines for the figure. It is kept
        for the file, and failures for the warnings.

        Parameters
        ----------
        path : path
            The image's file.
        input : :py:class:`torch.Tensor`
            The image of shape (1, channels, height, width).
        target : int
            The class.
        ending : str
            What its files end with, which is empty if it is the only class.
        maps : dict[str, :py:class:`torch.Tensor`]
            The maps of shape (height, width) by their titles.
        cmap : str
            Zennit's name of the color map.
        '''
        lines = {}
        for title, map in maps.items() if self.asks else ():
            method, layer = self.methods[title]
            names = ('red', 'blue') if cmap in RED_AND_BLUE else ('highest', 'lowest')
            if method in SENSITIVITIES and (layer is None or method == 'guided-gradcam'):
                map, names = map.abs(), ('strongest', 'weakest')
            found = support(self.classifier.model, input, map[None], target, seed=self.seed)
            if names[0] == 'red' and not map.max() > LEVEL * map.abs().max():
                names = ('least blue', 'blue')
            reason = found.reason(names=names) if self.own_streams[title] in FOR_THE_CLASS else None
            lines[title] = found.sentence(names=names, separator='\n')
            if names[0] == 'least blue' and not found.is_constant[0]:
                lines[title] = f'{"hardly anything" if map.max() > 0. else "nothing"} is red\n{lines[title]}'
            if reason is not None:
                lines[title] += '\ndo not trust this map'
                category = f', {self.classifier.category(target)}' if ending else ''
                self.distrusted.append(f'{path.name}{category}, {self.named(title)}: {reason}: do not trust this map')
            self.supports.append({
                'file': str(path), 'class': target, 'category': self.classifier.category(target), 'method': method,
                'layer': layer, 'stream': self.own_streams[title], 'absolute': names[0] == 'strongest',
                'seed': self.seed, **found.numbers(),
                'fails': bool(found.fails) if self.own_streams[title] in FOR_THE_CLASS else None,
            })
        return lines

    def by_column(self, found, missing=None):
        '''What is known by titles, by the titles of the figure's columns, which name the layer and a stream that was
        chosen; with what stands for those that are not known, if that is given.'''
        columns = {}
        for title, (method, layer) in self.methods.items():
            if title in found or missing is not None:
                place, stream = 'the input' if layer is None else layer, self.own_streams[title]
                chosen = '' if stream is None else f'\nstream {stream}'
                columns[f'{METHODS[method].title}\nat {place}{chosen}'] = found.get(title, missing)
        return columns

    def named(self, title):
        '''The method of a title, and where its maps are read.'''
        method, layer = self.methods[title]
        return f'{METHODS[method].title} at {"the input" if layer is None else layer}'

    def ends(self, title):
        '''What the ends of the colors mean.'''
        method, stream = self.methods[title][0], self.own_streams[title]
        if method in UNSIGNED:
            return '', 'matters'
        if stream == 'combined':
            return 'negative stream', 'positive stream'
        if stream == 'negative':
            return 'against', 'for, by the\nnegative stream'
        if stream not in FOR_THE_CLASS:
            return f'lowers {stream[-1]}', f'raises {stream[-1]}'
        return 'against the class', 'for it'

    def warnings(self):
        '''A line for each map that fails, and for each method whose maps are nearly the same for two classes.'''
        yield from self.distrusted
        for title, found in self.agreements.items():
            value, *rest = max(found, key=lambda each: -1. if math.isnan(each[0]) else each[0])
            if value > SAME:
                yield self.of_two_classes(title, value, *rest)

    def of_two_classes(self, title, value, target, other, changes):
        '''What is said of a method whose maps are nearly the same for two classes, each by itself. It matters least
        where a contrast changes the map, since this is the map that is shown.'''
        names = [self.classifier.category(index) for index in (other, target)]
        method, layer = self.methods[title]
        is_asked = self.given_against == ('none',) and not METHODS[method].explains_loss
        by_itself = 'by itself, ' if changes else ''
        said = (
            f'{self.named(title)}: {by_itself}{names[0]!r} has nearly the same map as {names[1]!r}'
            f' (cosine {value:.2f}): '
        )
        if changes:
            said += 'what is shown is what sets them apart'
        elif is_asked:
            said += 'without a contrast, it does not tell them apart'
        else:
            said += 'it does not explain the class'
        *others, last = [*self.advice(method, layer, not changes and not is_asked)] or ['']
        advice = ', '.join([*others, f'or {last}']) if others else last
        return f'{said}; try {advice}' if advice else said

    def advice(self, method, layer, is_blind):
        '''What may help a method whose maps are nearly the same for two classes, of the options that it has; and
        another layer or method, if what is shown is not about the class.'''
        chosen, given = METHODS[method], self.given
        if 'alpha' in chosen.parameters and given['alpha'] is not None and not isinstance(given['alpha'], Balanced):
            yield '--alpha balanced'
        if 'recentering' in chosen.parameters and given['recentering'] not in (None, 'relative'):
            yield '--recentering relative'
        if is_blind and 'layer' in chosen.parameters:
            yield f'a layer, as in --method {method}@LAYER' if layer is None else 'another layer'
        if is_blind:
            yield 'another method'

    def failure(self):
        '''What is said of the maps that failed, or None if there are none.'''
        if not self.failed:
            return None
        path, title, error = self.failed[0]
        count = '' if len(self.failed) == 1 else f' ({len(self.failed)} failed)'
        return f'{path.name}, {self.named(title)}: {error}{count}'


def targets_of(targets, top, output, classifier):
    '''The indices of the classes to be explained.'''
    chosen = [find_class(each, len(output), classifier.categories) for each in targets]
    require_once('--target', chosen)
    if top is not None:
        if top > len(output):
            raise click.UsageError(f'--top {top}, but the model has {len(output)} classes')
        chosen += [index for index in output.topk(top).indices.tolist() if index not in chosen]
    return chosen or [int(output.argmax())]


def titles_of(methods):
    '''The methods by their titles, with the layers where one title does not tell them apart.'''
    layers = {name: {own for other, own in methods if other == name} for name, _ in methods}
    return {
        f'{METHODS[name].title} {layer or "input"}' if len(layers[name]) > 1 else METHODS[name].title: (name, layer)
        for name, layer in methods
    }


def distinct(names):
    '''Names that are all different.'''
    chosen = []
    for index, name in enumerate(names, 1):
        candidates = [name] if names.count(name) == 1 else []
        endings = ('', *(f'-{number}' for number in range(len(names))))
        candidates += [f'{name}-{index}{ending}' for ending in endings]
        chosen.append(next(each for each in candidates if each not in {*chosen, *names[index:]}))
    return chosen


def shortened(name):
    '''A name, or its beginning, that leaves room for what is added in file systems whose names have 255 bytes.'''
    encoded = os.fsencode(name)
    return name if len(encoded) <= 150 else encoded[:150].decode(errors='ignore')


def file_name(title):
    '''A title as part of a file's name.'''
    return re.sub(r'[^\w.-]+', '-', title.replace('γ', 'gamma'))
