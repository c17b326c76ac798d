'''What the command explain computes and saves.'''
import json
import math
import re

import click
import numpy as np
import torch
from tqdm import tqdm

from ..attribution import map_cosine, require_scores, runner_up, support
from ..data.categories import find_class
from ..data.images import read_image
from ..data.parts import atomic_write
from ..figures import SAME, blend, caption, color, save, side_by_side
from ..methods import METHODS, saliency_map
from .options import against_of, attributor_of, parameters_of, require_once


UNSIGNED = ('saliency', 'layercam', 'gradcam++', 'cafo', 'caso', 'smooth-cafo', 'smooth-caso', 'binary-mask')
'''The methods whose maps are never negative.'''
SENSITIVITIES = ('gradient', 'splitgrad')
'''The methods whose maps at the input say by their sign in which direction a pixel should change, and by their absolute
value that it matters.'''
FOR_THE_CLASS = (None, 'positive', 'combined', 'g', '+g')
'''The streams whose red is for the class.'''
RED_AND_BLUE = ('bwr', 'france', 'seismic')
'''The color maps that end in blue and red.'''


def explain_images(images, out, folder, explanations, heading, cmap, overlay, save_arrays, place):
    '''Save the figure and the maps of images, and how good they are in the file ``support.json`` in their folder.

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
    cmap : str
        Zennit's name of the color map.
    overlay : bool or None
        Whether to lay the maps over the images. None is for maps at a layer alone.
    save_arrays : bool
        Whether to save the maps as arrays, too.
    place : dict
        Where and in which dtype to compute, as :py:meth:`torch.Tensor.to` takes it.

    Returns
    -------
    int
        The number of maps.
    '''
    classifier, rows, notes = explanations.classifier, [], []
    inputs = [classifier.preprocessing(read_image(path, classifier.mode))[None].to(**place) for path in images]
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(inputs), desc='maps', unit='image', disable=None) as bar:
        for path, name, input in zip(images, distinct([path.stem for path in images]), inputs, strict=True):
            for target, text, ending, saliencies in explanations.of(input, bar):
                photo = classifier.pixels(input[0]).numpy()
                shown = {
                    title: save_map(folder / f'{name}{ending}_{file_name(title)}', photo, saliency, cmap, save_arrays,
                                    explanations.is_at_layer(title) if overlay is None else overlay)
                    for title, saliency in saliencies.items()
                }
                rows.append((text, photo, explanations.by_column(shown)))
                bar.set_postfix_str('hiding parts')
                notes.append(explanations.by_column(explanations.notes(path, input, target, ending, saliencies, cmap)))
            bar.update()
    save_supports(folder / 'support.json', explanations)
    save(side_by_side(rows, heading, explanations.by_column(explanations.legends()), cmap, notes), out)
    return sum(len(shown) for *_, shown in rows)


def save_supports(path, explanations):
    '''Save how good maps are as JSON, or remove what an earlier run has left where this one does not ask.'''
    if not explanations.asks:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
        json.dump(explanations.supports, file, indent=1, ensure_ascii=False, allow_nan=False)


def save_map(path, photo, saliency, cmap, as_array, over_photo):
    '''Save a map as an image, over the photograph if asked, and as an array if asked; return what is to be shown.'''
    images = {'': color(saliency, cmap), **({'_overlay': blend(photo, saliency, cmap)} if over_photo else {})}
    for ending, image in images.items():
        with atomic_write(path.with_name(f'{path.name}{ending}.png')) as temporary:
            image.save(temporary, 'png')
    if as_array:
        with atomic_write(path.with_name(f'{path.name}.npy')) as temporary, open(temporary, 'wb') as file:
            np.save(file, saliency.detach().float().cpu().numpy(), allow_pickle=False)
    return images['_overlay' if over_photo else '']


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
    '''
    def __init__(self, classifier, chosen, given, seed, targets, top, against, asks):
        self.classifier, self.targets, self.top = classifier, targets, top
        self.methods = titles_of(chosen)
        self.streams, self.seed, self.asks = given['streams'], seed, asks
        self.own_streams = {
            title: parameters_of(*each, given).get('stream') for title, each in self.methods.items()
        }
        self.supports, self.failures = [], []
        self.attributors = {
            title: attributor_of(*each, classifier, given, seed) for title, each in self.methods.items()
        }
        self.given_against, self.agreements = against, {}

    def of(self, input, bar):
        '''The maps of an image.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The image of shape (1, channels, height, width).
        bar : :py:class:`tqdm.tqdm`
            The progress bar, which shows the method.

        Yields
        ------
        tuple[int, str, str, dict[str, :py:class:`torch.Tensor`]]
            For each class its index, a caption, the ending of its files, and the maps of shape (height, width) by their
            titles.
        '''
        with torch.no_grad():
            output = require_scores(self.classifier.model(input.clone()))[0]
        against = against_of(self.given_against, len(output), self.classifier)
        targets = targets_of(self.targets, self.top, output, self.classifier)
        other = targets[1] if len(targets) > 1 else runner_up(output, targets[0], against)
        maps = {target: {} for target in (*targets, *(() if other is None else (other,)))}
        for title, attributor in self.attributors.items():
            bar.set_postfix_str(title)
            for target, found in maps.items():
                own = None if METHODS[self.methods[title][0]].explains_loss else against
                found[title] = saliency_map(attributor, input, target, own)[1][0]
        for title in self.attributors if other is not None else ():
            value = map_cosine(maps[targets[0]][title][None], maps[other][title][None]).item()
            self.agreements.setdefault(title, []).append((value, targets[0], other))
        for target in targets:
            ending = f'_{target}' if len(targets) > 1 else ''
            yield target, caption(self.classifier, output, target), ending, maps[target]

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
            if method in SENSITIVITIES and layer is None:
                map, names = map.abs(), ('strongest', 'weakest')
            found = support(self.classifier.model, input, map[None], target, seed=self.seed)
            reason = found.reason(names=names) if self.own_streams[title] in FOR_THE_CLASS else None
            lines[title] = found.sentence(names=names, separator='\n')
            if reason is not None:
                lines[title] += '\ndo not trust this map'
                category = f', {self.classifier.category(target)}' if ending else ''
                self.failures.append(f'{path.name}{category}, {self.named(title)}: {reason}: do not trust this map')
            self.supports.append({
                'file': str(path), 'class': target, 'category': self.classifier.category(target), 'method': method,
                'layer': layer, 'stream': self.own_streams[title], 'absolute': names[0] == 'strongest',
                'seed': self.seed, **found.numbers(),
                'fails': bool(found.fails) if self.own_streams[title] in FOR_THE_CLASS else None,
            })
        return lines

    def by_column(self, found):
        '''What is known by titles, by the titles of the figure's columns, which name the layer.'''
        layers = {title: self.methods[title][1] for title in found}
        return {
            f'{title} {layers[title]}' if layers[title] and not title.endswith(f' {layers[title]}') else title: value
            for title, value in found.items()
        }

    def named(self, title):
        '''The method of a title, and where its maps are read.'''
        method, layer = self.methods[title]
        return f'{METHODS[method].title} at {"the input" if layer is None else layer}'

    def is_at_layer(self, title):
        '''Whether the maps of a title are read at a layer.'''
        return self.methods[title][1] is not None

    def legends(self):
        '''What the ends of the colors mean, by title.'''
        streams = {'positive': ('less', 'positive stream'),
                   'negative': ('less', 'negative stream'),
                   'combined': ('negative stream', 'positive stream')}
        stream = next((each for each in self.streams if each in streams), 'positive')
        return {
            title: streams[stream] if name == 'splitlrp' else ('', 'matters') if name in UNSIGNED
            else ('against the class', 'for it')
            for title, (name, _) in self.methods.items()
        }

    def warnings(self):
        '''A line for each map that fails, and for each method whose maps are nearly the same for two classes.'''
        yield from self.failures
        for title, found in self.agreements.items():
            value, target, other = max(found, key=lambda each: -1. if math.isnan(each[0]) else each[0])
            if value > SAME:
                names = [self.classifier.category(index) for index in (other, target)]
                yield (
                    f'{self.named(title)} says the same of {names[0]!r} as of {names[1]!r} (cosine {value:.2f}): it'
                    ' does not explain the class; try --alpha balanced, --against likely or --against others, or'
                    ' another layer'
                )


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


def file_name(title):
    '''A title as part of a file's name.'''
    return re.sub(r'[^\w.-]+', '-', title.replace('γ', 'gamma'))
