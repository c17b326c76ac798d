'''What the commands make of their options: models, classes and files, and the checks before anything takes long.

What takes long to be imported is imported in functions, so that a command's help is there at once.
'''
import os
from pathlib import Path

import click
from click.core import ParameterSource

from ..data.files import images_in, require_local
from ..methods import METHODS, attributor, recentering_named
from .options import WORDS


def require_compute(device, dtype, seed):
    '''The device and dtype of their names, after seeding PyTorch.'''
    import torch

    from ..data.processes import local_device

    torch.manual_seed(seed)
    return local_device(device), getattr(torch, dtype)


def parameters_of(method, layer, given):
    '''The parameters of a method: the ones among the given options that it has.

    Parameters
    ----------
    method : str
        The method's name.
    layer : str or None
        Its layer.
    given : dict
        The options of ``method_options`` but for the layer.
    '''
    chosen = METHODS[method]
    streams = [stream for stream in given['streams'] if stream in chosen.streams]
    if len(streams) > 1:
        raise click.UsageError(f'{chosen.title} has one --stream, but was given {" and ".join(streams)}')
    values = {
        'layer': layer, 'stream': streams[0] if streams else None,
        **{name: given[name] for name in (
            'alpha', 'epsilon', 'pooling', 'input_split', 'grid', 'penalty', 'margin', 'classes'
        )}
    }
    parameters = {name: value for name, value in values.items() if value is not None and name in chosen.parameters}
    if given['recentering'] is not None and 'recentering' in chosen.parameters:
        parameters['recentering'] = recentering_named(given['recentering'])
    if given['canonizers'] and 'canonizers' in chosen.parameters:
        parameters['canonizers'] = canonizers_of(given['canonizers'])
    return parameters


def canonizers_of(names):
    '''The canonizers of their names, as composites take them.'''
    from ..core.needs import OPTIONS

    require_once('--canonizer', names)
    alone = next((name for name in names if name not in OPTIONS), None)
    if alone is not None and len(names) > 1:
        raise click.UsageError(f'--canonizer {alone} can be given with no other')
    return {'auto': 'auto', 'none': None}[alone] if alone else [OPTIONS[name]() for name in names]


def require_used(methods, given):
    '''Raise if an option was given that none of the methods has.'''
    for stream in given['streams']:
        if not any(stream in METHODS[method].streams for method in methods):
            raise click.UsageError(f'{titles(methods)} has no --stream {stream}')
    for name, value in given.items():
        if name == 'streams' or value in (None, ()):
            continue
        if not any(name in METHODS[method].parameters for method in methods):
            raise click.UsageError(f'{titles(methods)} has no --{option_name(name)}')


def option_name(parameter):
    '''The name of the option for a parameter.'''
    return {'canonizers': 'canonizer'}.get(parameter, parameter.replace('_', '-'))


def require_once(name, values):
    '''Raise if an option or argument was given the same value twice.'''
    twice = next((each for each in values if list(values).count(each) > 1), None)
    if twice is not None:
        raise click.UsageError(f'{name} {twice} was given twice')


def against_of(against, count, classifier):
    '''What a class is explained against, as :py:func:`~zennit_dc.methods.saliency_map` takes it.'''
    if len(against) == 1 and against[0] in ('none', 'others', 'likely'):
        if count == 1 and against[0] != 'none':
            raise click.UsageError('the model has one class, and no other to explain it against: give --against none')
        return against[0]
    from ..data.categories import find_class

    chosen = [find_class(each, count, classifier.categories) for each in against]
    require_once('--against', chosen)
    return chosen


def tell_classes(name, given, count, classifier):
    '''Say what the numbers that an option was given were taken for, where classes have names.'''
    from ..data.categories import choice_of

    for each in given:
        choice = choice_of(each, count, classifier.categories)
        if choice is not None:
            click.echo(f'{name} {each}: {choice}')


def require_weights(weights):
    '''Raise if a file of weights was named that is not there.'''
    if weights is not None and weights != 'DEFAULT':
        require_local(weights)
        if not os.path.isfile(weights):
            raise click.UsageError(f'there is no file of weights {weights}')


def require_known_classes(model, categories, name, given):
    '''Raise if a class was given to an option that a model does not have, as far as its classes are known before
    anything is imported that takes long.

    Parameters
    ----------
    model : str
        The model's name.
    categories : path or None
        A file with the names of its classes.
    name : str
        The option's name.
    given : sequence of str
        What it was given.
    '''
    from ..data.categories import find_class, load_categories
    from ..data.imagenet import imagenet_classes

    if categories is not None:
        names = load_categories(categories)
    elif ':' in model or model == 'demo':
        return
    else:
        names = [each for _, each in imagenet_classes()]
    for each in given:
        if each not in WORDS:
            try:
                find_class(each, len(names), names)
            except ValueError as error:
                raise click.UsageError(f'{name}: {error}') from error


def tell_weights(classifier, weights):
    '''Say which weights a model of one's own has, what it is taken to need, and how its classes are named; and warn of
    random weights of any model.'''
    if weights is None:
        click.echo(
            f'zennit-dc: warning: the weights of {classifier.name} are random: maps show nothing that it has learned',
            err=True
        )
    if ':' not in classifier.name:
        return
    preprocessing, named = classifier.preprocessing, classifier.categories
    mean, std = (','.join(f'{each:.4g}' for each in values) for values in (preprocessing.mean, preprocessing.std))
    sides = preprocessing.resize_size[0], preprocessing.crop_size[0]
    own = 'as the function returns them, random ones if it loads none'
    held = {'DEFAULT': own, None: 'random'}.get(weights, f'of {weights}')
    names = 'classes have numbers, as no --categories FILE names them' if named is None else 'names of --categories'
    click.echo(
        f'{classifier.name}: weights {held} (--weights); images resized to {sides[0]} and cropped to {sides[1]} pixels'
        f' (--size), normalized by mean {mean} (--mean) and standard deviation {std} (--std); {names}'
    )


def possible_against(against, count):
    '''What a class is explained against where the option was given, or where its default can be: the only class of a
    model is explained by itself, which is said.'''
    default = click.get_current_context().get_parameter_source('against') is ParameterSource.DEFAULT
    if count > 1 or not default or against == ('none',):
        return against
    click.echo('the model has one class, which is explained by itself, as with --against none')
    return ('none',)


def count_classes(classifier, device, dtype, categories=None):
    '''The number of a model's classes, by running it on a black image.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    device, dtype
        Where the model is, and its floating point type.
    categories : path, optional
        A file with their names, of which there must be as many.
    '''
    import torch

    from ..attribution import require_scores
    from ..data.categories import require_names
    from ..data.classifiers import black_input

    with torch.no_grad():
        count = require_scores(classifier.model(black_input(classifier)[None].to(device, dtype))).shape[1]
    if categories is not None:
        require_names(classifier.categories, count, categories)
    return count


def image_files(paths):
    '''Image files, with those in a folder in its place.'''
    if not any(path.is_dir() for path in paths):
        return list(paths)
    return [file for path in paths for file in (images_in(path) if path.is_dir() else [path])]


def titles(methods):
    '''The titles of methods.'''
    return ', '.join(dict.fromkeys(METHODS[method].title for method in methods))


def attributor_of(method, layer, classifier, given, seed):
    '''The attributor of a method with the given options.'''
    own_seed = {'seed': seed} if 'seed' in METHODS[method].parameters else {}
    return attributor(method, classifier, **own_seed, **parameters_of(method, layer, given))


def require_format(path):
    '''Raise if a figure cannot be saved under a name.'''
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise click.UsageError(f'{path} does not end like a picture: {", ".join(f".{each}" for each in formats)}')


def require_output(out, inputs, *others):
    '''Raise if an output is a folder, or cannot be in one, or would take the place of an input.

    Parameters
    ----------
    out : path
        The file that a command writes.
    inputs : sequence of path or None
        The files that it reads.
    *others : path
        Files that it writes beside, or folders, in which no input may lie.
    '''
    if out.is_dir():
        raise click.UsageError(f'--out {out} is a folder: give it the name of a file')
    parent = next(folder for folder in out.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise click.UsageError(f'--out {out} cannot be written, as {parent} is no folder')
    for path in filter(None, inputs):
        for written in (out, *others):
            folder = Path(path).absolute().parent
            if is_same_file(path, written) or (written.is_dir() and is_same_file(folder, written)):
                raise click.UsageError(f'--out {out} would overwrite the input {path}: choose another name')


def is_same_file(first, second):
    '''Whether two paths lead to one file, by whatever names or links.'''
    try:
        return os.path.samefile(first, second)
    except OSError:  # one of them is not there
        return os.path.realpath(first) == os.path.realpath(second)


def hold(out):
    '''Hold an output for this command until it ends, or raise if another command holds it.'''
    from ..data.parts import held

    click.get_current_context().with_resource(held(out))


def classifier_of(model, weights, size, mean, std, output, input, categories=None):
    '''The classifier that the options name. While the command runs, an error of a map that is not finite says whether
    the weights are the reason, and one of the number of channels what to do.'''
    from ..data import channels, weights as files
    from ..data.classifiers import black_input, load_classifier

    output = int(output) if output is not None and output.removeprefix('-').isdecimal() else output
    classifier = load_classifier(model, weights, size, mean, std, categories, output, input)
    context = click.get_current_context()
    context.with_resource(files.diagnosed(classifier.model))
    context.with_resource(channels.diagnosed(classifier.model, black_input(classifier)[None]))
    return classifier
