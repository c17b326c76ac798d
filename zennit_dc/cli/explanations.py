'''Which maps the command explain computes, and what it says of them.'''
import math

import click
import torch

from ..attribution import map_cosine, require_scores, runner_up, support
from ..data.categories import find_class
from ..figures import caption
from ..methods import METHODS, replaying, saliency_map
from ..rules import Balanced
from .arguments import against_of, attributor_of, parameters_of, require_once


SAME = .95
'''The cosine of two classes\' maps above which a map is not about the class.'''
LEVEL = .1
'''The part of a map's largest absolute value below which nobody sees a color.'''
SLIGHT = .001
'''The part of a map's largest absolute value by which it changes if a contrast matters to the method at all.'''
SENSITIVITIES = ('gradient', 'splitgrad', 'guided-backprop', 'deconvolution', 'guided-gradcam')
'''The methods whose maps at the input say by their sign in which direction a pixel should change, and by their absolute
value that it matters.'''
FOR_THE_CLASS = (None, 'positive', 'combined', 'g', '+g')
'''The streams whose red is for the class.'''
RED_AND_BLUE = ('bwr', 'france', 'seismic')
'''The color maps that end in blue and red.'''
FAILURES = (ArithmeticError, RuntimeError, ValueError)
'''What a method raises that has no map of an image.'''


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
    recorded : int, optional
        The number of images for whose maps calls may be recorded, see :py:func:`zennit_dc.methods.replaying`.
    '''
    def __init__(self, classifier, chosen, given, seed, targets, top, against, asks, recorded=0):
        self.classifier, self.targets, self.top = classifier, targets, top
        self.methods, self.given = by_title(chosen), given
        self.seed, self.asks = seed, asks
        self.own_streams = {
            title: parameters_of(*each, given).get('stream') for title, each in self.methods.items()
        }
        self.supports, self.distrusted, self.failed = [], [], []
        calls = recorded * (1 + max(len(targets) + (top or 0), 1))  # as each is compared with the map of another class
        self.attributors = {
            title: replaying(attributor_of(*each, classifier, given, seed), calls)
            for title, each in self.methods.items()
        }
        self.given_against, self.agreements = against, {}

    @property
    def most(self):
        '''The number of maps of an image, if no class of ``top`` is among the others.'''
        return len(self.attributors) * (len(self.targets) + (self.top or 0) or 1)

    def of(self, path, input, progress):
        '''The maps of an image.

        Parameters
        ----------
        path : path
            The image's file.
        input : :py:class:`torch.Tensor`
            The image of shape (1, channels, height, width).
        progress : :py:class:`tqdm.tqdm`
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
        progress.total -= self.most - len(self.attributors) * len(targets)
        for title in self.attributors:
            try:
                found = self.maps_by(title, input, targets, against, output, progress)
            except FAILURES as error:
                failures.append((path, title, error))
                continue
            for target, map in found.items():
                maps[target][title] = map
        self.failed += failures
        if len(self.failed) == len(self.attributors) and not any(maps.values()):
            raise failures[0][-1]
        for target in targets:
            ending = f'_{target}' if len(targets) > 1 else ''
            yield target, caption(self.classifier, output, target, against), ending, maps[target]

    def maps_by(self, title, input, targets, against, output, progress):
        '''The maps of classes of an image by a method, after one of them was compared with that of another class. The
        progress bar counts those that fail, too.'''
        progress.set_postfix_str(title)
        found = {}
        try:
            for target in targets:
                found[target] = self.map_of(title, input, target, against)
                progress.update()
            self.compare(title, input, targets, found[targets[0]], against, output)
        except FAILURES:
            progress.update(len(targets) - len(found))
            raise
        return found

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
            map, names = self.hidden(title, map, cmap)
            found = support(self.classifier.model, input, map[None], target, seed=self.seed)
            is_for_it = self.own_streams[title] in FOR_THE_CLASS
            reason = found.reason(names=names) if is_for_it else None
            lines[title] = found.sentence(names=names, separator='\n')
            if names[0] == 'least blue' and not found.is_constant[0]:
                lines[title] = f'{"hardly anything" if map.max() > 0. else "nothing"} is red\n{lines[title]}'
            if reason is not None:
                lines[title] += '\ndo not trust this map'
                category = f', {self.classifier.category(target)}' if ending else ''
                self.distrusted.append(f'{path.name}{category}, {self.named(title)}: {reason}: do not trust this map')
            method, layer = self.methods[title]
            self.supports.append({
                'file': str(path), 'class': target, 'category': self.classifier.category(target), 'method': method,
                'layer': layer, 'stream': self.own_streams[title], 'absolute': names[0] == 'strongest',
                'seed': self.seed, **found.numbers(), 'fails': bool(found.fails) if is_for_it else None,
            })
        return lines

    def hidden(self, title, map, cmap):
        '''The map whose largest and smallest values are hidden, and what the figure calls these parts.'''
        if self.is_at_input(title) and self.methods[title][0] in SENSITIVITIES:
            return map.abs(), ('strongest', 'weakest')
        if cmap not in RED_AND_BLUE:
            return map, ('highest', 'lowest')
        return map, ('red' if map.max() > LEVEL * map.abs().max() else 'least blue', 'blue')

    def is_at_input(self, title):
        '''Whether the maps of a title have the grid of the input.'''
        method, layer = self.methods[title]
        return layer is None or method == 'guided-gradcam'

    def named(self, title):
        '''The method of a title, and where its maps are read.'''
        method, layer = self.methods[title]
        return f'{METHODS[method].title} at {"the input" if layer is None else layer}'

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


def by_title(methods):
    '''The methods by their titles, with the layers where one title does not tell them apart.'''
    layers = {name: {own for other, own in methods if other == name} for name, _ in methods}
    return {
        f'{METHODS[name].title} {layer or "input"}' if len(layers[name]) > 1 else METHODS[name].title: (name, layer)
        for name, layer in methods
    }
