'''Commands that make pictures, explain and concept-gallery; and layers, which lists where maps can be read.'''
import re
from pathlib import Path

import click
import torch
from tqdm import tqdm
from zennit.image import CMAPS

from ..data.classifiers import layers as layers_of
from ..data.classifiers import load_classifier
from ..data.images import read_image
from ..data.parts import written
from ..figures import caption, color, concept_gallery, save, side_by_side
from ..methods import BASELINES, METHODS, saliency_map
from .options import (
    Alpha, attributor_of, compute_options, method_options, model_option, model_options, option, require_compute,
    require_format, require_used,
)


@click.command()
@click.argument('images', nargs=-1, required=True, type=click.Path(path_type=Path), metavar='IMAGE...')
@option(
    '--method', 'methods', multiple=True, metavar='NAME[@LAYER]',
    default=('splitgrad@input', 'splitcam', 'splitlrp@input'),
    help=f'One of {", ".join(METHODS)}; can be given several times. @LAYER takes precedence over --layer, and @input'
    ' is the input.'
)
@option('--compare', is_flag=True, help=f'Add the baselines: {", ".join(BASELINES)}.')
@model_option
@model_options
@method_options
@option('--target', type=int, help='The index of the class to explain.  [default: the predicted class]')
@option('--cmap', default='bwr', type=click.Choice(list(CMAPS)), help='Zennit\'s color map.')
@option('--out', default='explanation.png', type=click.Path(path_type=Path), help='The figure.')
@compute_options
def explain(images, methods, compare, model, weights, size, mean, std, layer, target, cmap, out, device, dtype, seed,
            **given):
    '''Explain what a classifier sees in images.

    Writes a figure with a row for each image and a column for each method, and every map as a PNG image of its own in a
    folder beside it. With the default colors red speaks for the class and blue against it; with SplitLRP, red is
    relevance in the positive stream and blue in the negative one. Each map is colored by its own largest absolute
    value.

    \b
    zennit-dc explain dog.jpg cat.jpg --layer features.12 --compare
    zennit-dc explain dog.jpg --model vgg16 --method splitcam --layer features.26 --alpha 0.3 --stream g
    zennit-dc explain dog.jpg --model my_package.models:build --weights best.pt --layer blocks.3
    '''
    device, dtype = require_compute(device, dtype, seed)
    require_format(out)
    chosen = [parse(method, layer) for method in (*(BASELINES if compare else ()), *methods)]
    chosen = list(dict.fromkeys(chosen))
    require_used([method for method, _ in chosen], {'layer': layer, **given})
    if layer is not None and layer not in {own for _, own in chosen}:
        raise click.UsageError(f'--layer {layer} belongs to none of the methods')
    classifier = load_classifier(model, weights, size, mean, std).to(device, dtype)
    inputs = [classifier.preprocessing(read_image(path, classifier.mode))[None].to(device, dtype) for path in images]
    attributors = {
        title: attributor_of(*each, classifier, given, seed) for title, each in titles_of(chosen).items()
    }
    folder = out.with_name(f'{out.stem}_maps')
    rows = []
    with tqdm(total=len(inputs) * len(attributors), desc='maps', unit='map', disable=None) as bar:
        for name, input in zip(distinct([path.stem for path in images]), inputs, strict=True):
            maps = {}
            for title, attributor in attributors.items():
                output, saliency = saliency_map(attributor, input, target)
                maps[title] = color(saliency[0], cmap)
                folder.mkdir(parents=True, exist_ok=True)
                with written(folder / f'{name}_{file_name(title)}.png') as temporary:
                    maps[title].save(temporary, 'png')
                bar.update()
            explained = int(output.argmax()) if target is None else target
            rows.append((caption(classifier, output[0], explained), classifier.pixels(input[0]).numpy(), maps))
    parameters = {'layer': layer, **{name: ' '.join(map(str, value)) if isinstance(value, tuple) else value
                                     for name, value in given.items()}}
    heading = ', '.join([model, *(f'{name} {value}' for name, value in parameters.items() if value not in (None, ''))])
    save(side_by_side(rows, heading), out)
    click.echo(f'{out} and {len(rows) * len(attributors)} maps in {folder}')


def parse(method, layer):
    '''The name and layer of ``NAME[@LAYER]``.'''
    name, at, own = method.partition('@')
    if name not in METHODS:
        raise click.UsageError(f'there is no method {name!r}, but {", ".join(METHODS)}')
    takes_layer = 'layer' in METHODS[name].parameters
    if at and not takes_layer and own != 'input':
        raise click.UsageError(f'{METHODS[name].title} is computed at the input alone')
    if not takes_layer or own == 'input':
        return name, None
    return name, own if at else layer


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
@option('--target', type=int, required=True, help='The index of the class.')
@option('--alpha', type=Alpha(), default=.25, metavar='ALPHA|balanced[:KAPPA]', help='The shift of SplitGrad.')
@option('--out', default='concepts.png', type=click.Path(path_type=Path), help='The figure.')
@compute_options
def gallery(images, model, weights, size, mean, std, target, alpha, out, device, dtype, seed):
    '''See what a classifier has learned of a class.

    Writes a figure with the gradients of the streams g and h of the class's score at each image, which need not be of
    the class: they are prototypes of it.

    \b
    zennit-dc concept-gallery dragonfly.jpg flower.jpg --model vgg16 --target 319
    '''
    device, dtype = require_compute(device, dtype, seed)
    require_format(out)
    classifier = load_classifier(model, weights, size, mean, std).to(device, dtype)
    inputs = torch.stack([classifier.preprocessing(read_image(path, classifier.mode)) for path in images])
    save(concept_gallery(classifier, inputs.to(device, dtype), target, alpha), out)
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
