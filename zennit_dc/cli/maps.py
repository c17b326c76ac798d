'''Commands that make pictures: explain, concept-gallery, layers and demo.'''
import math
import re
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm
from zennit.image import CMAPS

from ..attribution import map_cosine, require_scores, runner_up
from ..data.categories import find_class
from ..data.classifiers import last_layer, load_classifier
from ..data.classifiers import layers as layers_of
from ..data.images import read_image
from ..data.parts import written
from ..figures import SAME, blend, caption, color, concept_gallery, save, side_by_side
from ..methods import BASELINES, METHODS, saliency_map
from .options import (
    Alpha, against_of, against_option, attributor_of, classes_option, compute_options, method_options, model_option,
    model_options, option, require_compute, require_format, require_once, require_used, target_options,
)


LAST = '*last*'  # stands for the last layer with height and width, and is no module's name
UNSIGNED = ('saliency', 'layercam', 'gradcam++', 'binary-mask')
'''The methods whose maps are never negative.'''


@click.command()
@click.argument('images', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='IMAGE...')
@option(
    '--method', 'methods', multiple=True, metavar='NAME[@LAYER]',
    help=f'One of {", ".join(METHODS)}; can be given several times. @LAYER takes precedence over --layer, and @input'
    ' is the input.  [default: splitgrad@input, and splitcam and splitlrp at --layer]'
)
@option('--compare', is_flag=True, help=f'Add the baselines: {", ".join(BASELINES)}.')
@model_option
@model_options
@classes_option
@method_options
@target_options
@against_option('likely')
@option(
    '--overlay/--no-overlay', default=None,
    help='Lay the maps over the image.  [default: those at a layer]', show_default=False
)
@option('--save-arrays', is_flag=True, help='Save every map as an array of NumPy, too (.npy, float32).')
@option('--cmap', default='bwr', type=click.Choice(list(CMAPS)), help='Zennit\'s color map.')
@option('--out', default='explanation.png', type=click.Path(path_type=Path), help='The figure.')
@compute_options
def explain(images, methods, compare, model, weights, size, mean, std, classes, layer, targets, top, against, overlay,
            save_arrays, cmap, out, device, dtype, seed, **given):
    '''Explain what a classifier sees in images.

    Writes a figure with a row for each image and class and a column for each method, and every map as a PNG image of
    its own in a folder beside it. With the default colors red speaks for the class and blue against it, rather than for
    the classes of --against; a color bar says where it is otherwise. Each map is colored by its own largest absolute
    value. A map that says nearly the same of another class is reported.

    \b
    zennit-dc explain dog.jpg
    zennit-dc explain dog.jpg --top 3 --compare
    zennit-dc explain dog.jpg --target beagle --target collie --against others
    zennit-dc explain dog.jpg --model vgg16 --method splitcam --layer features.26 --alpha 0.3 --stream g
    zennit-dc explain dog.jpg --model my_package.models:build --weights best.pt --classes names.txt
    '''
    device, dtype = require_compute(device, dtype, seed)
    require_format(out)
    named = methods or ('splitgrad@input', 'splitcam', f'splitlrp@{layer or LAST}')
    named = [*(BASELINES if compare else ()), *named]
    require_once('--method', methods)
    require_once('IMAGE', [str(path) for path in images])
    chosen = list(dict.fromkeys(parse(method, layer) for method in named))
    heading = heading_of(model, layer, against, given)
    require_used([method for method, _ in chosen], {'layer': layer, **given})
    if not set(given['streams']) & set(METHODS['splitlrp'].streams):
        given['streams'] += ('positive',)  # the sign of the combined relevance at the input is the pixel's
    if layer is not None and layer not in {own for _, own in chosen}:
        raise click.UsageError(f'--layer {layer} belongs to none of the methods')
    classifier = load_classifier(model, weights, size, mean, std, classes).to(device, dtype)
    if LAST in {own for _, own in chosen}:
        last = last_layer(classifier, device, dtype)
        click.echo(f'maps at layer {last}, the last one with height and width; --layer chooses another')
        chosen = list(dict.fromkeys((name, last if own == LAST else own) for name, own in chosen))
    maps = Explanations(classifier, chosen, given, seed, targets, top, against)
    inputs = [classifier.preprocessing(read_image(path, classifier.mode))[None].to(device, dtype) for path in images]
    folder = out.with_name(f'{out.stem}_maps')
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tqdm(total=len(inputs), desc='images', unit='image', disable=None) as bar:
        for name, input in zip(distinct([path.stem for path in images]), inputs, strict=True):
            for text, ending, saliencies in maps.of(input):
                photo = classifier.pixels(input[0]).numpy()
                shown = {
                    title: save_map(folder / f'{name}{ending}_{file_name(title)}', photo, saliency, cmap, save_arrays,
                                    maps.is_at_layer(title) if overlay is None else overlay)
                    for title, saliency in saliencies.items()
                }
                rows.append((text, photo, shown))
            bar.update()
    save(side_by_side(rows, heading, maps.legends(), cmap), out)
    for warning in maps.warnings():
        click.echo(warning, err=True)
    click.echo(f'{out} and {len(rows) * len(chosen)} maps in {folder}')


def save_map(path, photo, saliency, cmap, as_array, over_photo):
    '''Save a map as an image, over the photograph if asked, and as an array if asked; return what is to be shown.'''
    images = {'': color(saliency, cmap), **({'_overlay': blend(photo, saliency, cmap)} if over_photo else {})}
    for ending, image in images.items():
        with written(path.with_name(f'{path.name}{ending}.png')) as temporary:
            image.save(temporary, 'png')
    if as_array:
        with written(path.with_name(f'{path.name}.npy')) as temporary, open(temporary, 'wb') as file:
            np.save(file, saliency.detach().float().cpu().numpy(), allow_pickle=False)
    return images['_overlay' if over_photo else '']


def heading_of(model, layer, against, given):
    '''The heading of a figure: the model and the options.'''
    options = {'layer': layer, 'against': ', '.join(against), **given}
    values = {name: ' '.join(map(str, value)) if isinstance(value, tuple) else value for name, value in options.items()}
    return ', '.join([model, *(f'{name} {value}' for name, value in values.items() if value not in (None, ''))])


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
    '''
    def __init__(self, classifier, chosen, given, seed, targets, top, against):
        self.classifier, self.targets, self.top = classifier, targets, top
        self.methods = titles_of(chosen)
        self.streams = given['streams']
        self.attributors = {
            title: attributor_of(*each, classifier, given, seed) for title, each in self.methods.items()
        }
        self.given_against, self.agreements = against, {}

    def of(self, input):
        '''The maps of an image.

        Parameters
        ----------
        input : :py:class:`torch.Tensor`
            The image of shape (1, channels, height, width).

        Yields
        ------
        tuple[str, str, dict[str, :py:class:`torch.Tensor`]]
            For each class a caption, the ending of its files, and the maps of shape (height, width) by their titles.
        '''
        with torch.no_grad():
            output = require_scores(self.classifier.model(input.clone()))[0]
        against = against_of(self.given_against, len(output), self.classifier)
        targets = targets_of(self.targets, self.top, output, self.classifier)
        other = targets[1] if len(targets) > 1 else runner_up(output, targets[0], against)
        maps = {
            target: {title: saliency_map(each, input, target, against)[1][0]
                     for title, each in self.attributors.items()}
            for target in dict.fromkeys([*targets, *(() if other is None else (other,))])
        }
        for title in self.attributors if other is not None else ():
            value = map_cosine(maps[targets[0]][title][None], maps[other][title][None]).item()
            self.agreements.setdefault(title, []).append((value, targets[0], other))
        for target in targets:
            ending = f'_{target}' if len(targets) > 1 else ''
            yield caption(self.classifier, output, target), ending, maps[target]

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
        '''A line for each method whose maps are nearly the same for two classes.'''
        for title, found in self.agreements.items():
            value, target, other = max(found, key=lambda each: -1. if math.isnan(each[0]) else each[0])
            if value > SAME:
                names = [self.classifier.category(index) for index in (other, target)]
                layer = self.methods[title][1]
                yield (
                    f'{METHODS[self.methods[title][0]].title} at {"the input" if layer is None else layer} says the'
                    f' same of {names[0]!r} as of {names[1]!r} (cosine {value:.2f}): it does not explain the class; try'
                    ' --alpha balanced, --against likely or --against others, or another layer'
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


def parse(method, layer):
    '''The name and layer of ``NAME[@LAYER]``; the layer is ``LAST`` if one is needed and none was named.'''
    name, at, own = method.partition('@')
    if name not in METHODS:
        raise click.UsageError(f'there is no method {name!r}, but {", ".join(METHODS)}')
    takes_layer = 'layer' in METHODS[name].parameters
    if at and not takes_layer and own != 'input':
        raise click.UsageError(f'{METHODS[name].title} is computed at the input alone')
    if not takes_layer or own == 'input':
        return name, None
    return name, own if at else layer or (LAST if METHODS[name].needs_layer else None)


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


@click.command('concept-gallery')
@click.argument('images', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='IMAGE...')
@model_option
@model_options
@classes_option
@option('--target', required=True, help='The index or name of the class.')
@against_option('none')
@option('--alpha', type=Alpha(), default='balanced', metavar='ALPHA|balanced[:KAPPA]', help='The shift of SplitGrad.')
@option('--out', default='concepts.png', type=click.Path(path_type=Path), help='The figure.')
@compute_options
def gallery(images, model, weights, size, mean, std, classes, target, against, alpha, out, device, dtype, seed):
    '''See what a classifier has learned of a class.

    Writes a figure with the gradients of the streams g and h of the class's score at each image, which need not be of
    the class: they are prototypes of it. With the paper's --alpha 0.25 they can be the same for all classes of a deep
    network; the figure says so where they are.

    \b
    zennit-dc concept-gallery dragonfly.jpg flower.jpg --model vgg16 --target 319
    zennit-dc concept-gallery dragonfly.jpg --target "Siamese cat" --against others
    '''
    device, dtype = require_compute(device, dtype, seed)
    require_format(out)
    classifier = load_classifier(model, weights, size, mean, std, classes).to(device, dtype)
    inputs = torch.stack([classifier.preprocessing(read_image(path, classifier.mode)) for path in images])
    inputs = inputs.to(device, dtype)
    with torch.no_grad():
        count = require_scores(classifier.model(inputs[:1].clone())).shape[1]
    target, against = find_class(target, count, classifier.categories), against_of(against, count, classifier)
    save(concept_gallery(classifier, inputs, target, alpha, against), out)
    click.echo(out)


@click.command()
@click.argument('model')
@model_options
@compute_options
def layers(model, weights, size, mean, std, device, dtype, seed):
    '''List the modules of a model that can be given as a layer, and their output shapes.

    Weights do not matter here, so that none are loaded unless you name a file.

    \b
    zennit-dc layers vgg16
    zennit-dc layers my_package.models:build --size 32
    '''
    device, dtype = require_compute(device, dtype, seed)
    classifier = load_classifier(model, None if weights == 'DEFAULT' else weights, size, mean, std).to(device, dtype)
    found = layers_of(classifier, device, dtype)
    if not found:
        raise ValueError(f'no module of {model} gives a tensor of shape (batch, channels, height, width)')
    width = max(len(name) for name, _, _ in found)
    click.echo(f'{"layer":{width}}  {"channels × height × width":25}  module')
    for name, kind, shape in found:
        click.echo(f'{name:{width}}  {" × ".join(map(str, shape)):25}  {kind}')
