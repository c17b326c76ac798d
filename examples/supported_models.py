'''Run the models of a library in split form, and tell how exact they are.

    python supported_models.py --library torchvision --out models
    python supported_models.py --library timm resnet vision_transformer
    python supported_models.py --library transformers ViT ResNet

The models have random weights, with batch norms calibrated on random images, and the smallest images that they take. Of
torchvision, these are all classifiers, segmentation and video models; of timm, the smallest model of every family (a
module of ``timm.models``) in which it has at most 60 million parameters; of transformers, those that classify images,
from small configurations. The table says which options ``canonizers='auto'`` has taken, the default, whether the
output was bit-identical, by how much it deviates else, in parts of the spread of the logits, and which methods gave a
map at their defaults: SplitGrad and SplitLRP at the input, and SplitCAM at the last module that has spatial axes. With
--out, it is a CSV file of the library's name in this folder, and the page beside it, models.md, gets the counts; what
you write around them is kept.
'''
import argparse
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torchvision

from zennit_dc import Logits, SplitCAM, SplitCanonizer, SplitGrad, SplitLRP
from zennit_dc.core.errors import SUMS
from zennit_dc.core.needs import relative_deviation
from zennit_dc.evaluation.pages import command_line, page_beside, read_csv, save_csv, table, update_page


FAMILIES = {
    'classification': torchvision.models, 'segmentation': torchvision.models.segmentation,
    'video': torchvision.models.video,
}
# the smallest sizes that run, where 64 pixels do not
SIZES = {'alexnet': 80, 'inception_v3': 80, 'maxvit_t': 224, 'mvit_v1_b': 224, 'mvit_v2_s': 224, 's3d': 224}
LARGEST = 60e6  # parameters of a model of timm
TITLES = {'attention': 'constants', 'activations': 'constant ratios'}


def models_of(family):
    '''The names of a family's models.'''
    return torchvision.models.list_models(module=FAMILIES[family])


def build(name, family, frames=16):
    '''A model of torchvision with random weights, and an input for it; a video model's input has some frames.'''
    torch.manual_seed(0)
    size, options = SIZES.get(name, 64), {'weights': None}
    if name.startswith('vit'):
        options['image_size'] = size = 56 if name == 'vit_h_14' else 64
    if name in ('googlenet', 'inception_v3'):
        options['init_weights'] = False
    if family == 'segmentation':
        options['weights_backbone'] = None
    model = torchvision.models.get_model(name, **options)
    return prepared(model, (3, *([frames] if family == 'video' else []), size, size))


def build_timm(name):
    '''A model of timm with random weights, and an input of the smallest size that it takes.'''
    import timm

    torch.manual_seed(0)
    for options, size in (({}, 64), ({'img_size': 64}, 64), ({}, 128), ({'img_size': 128}, 128), ({}, None)):
        try:
            model = timm.create_model(name, num_classes=1000, **options).eval()
            if size and not options and model.default_cfg.get('fixed_input_size'):
                continue  # which may take another one all the same, and resize it
            channels, *sides = model.default_cfg['input_size']
            shape = channels, *(sides if size is None else (size, size))
            with torch.no_grad():
                model(torch.randn(1, *shape))
            return prepared(model, shape)
        except (TypeError, RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError):
            if size is None:
                raise
    raise AssertionError('the last size is the model\'s own')


def build_transformers(name):
    '''A model of transformers with random weights, and an input for it.'''
    import transformer_models

    model, image = transformer_models.build(name)
    return prepared(Logits(model), image.shape[1:])


def smallest_of_timm(module):
    '''The name of the model of a module of timm that has the fewest parameters, if these are not too many.'''
    import timm

    counts = {}
    for name in timm.list_models(module=module):
        if not name.startswith('test_'):
            with torch.device('meta'), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                counts[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    smallest = min(counts, key=counts.get, default=None)
    return smallest if smallest is not None and counts[smallest] <= LARGEST else None


def entries_of(library, chosen):
    '''What is to be examined of a library, all of it or what was chosen by names: a group, a title, and a function that
    builds the model and an input.'''
    if library == 'torchvision':
        found = [(family, name, name, partial(build, name, family))
                 for family in FAMILIES for name in models_of(family)]
    elif library == 'transformers':
        import transformer_models

        found = [('classification', name, name, partial(build_transformers, name)) for name in transformer_models.NAMES]
    else:
        import timm

        modules = [module for module in timm.list_modules() if not chosen or module in chosen]
        names = {module: smallest_of_timm(module) for module in modules}
        found = [('classification', module, f'{module}: {name}', partial(build_timm, name))
                 for module, name in names.items() if name is not None]
    return [(group, title, make) for group, name, title, make in found if not chosen or name in chosen]


def prepared(model, shape):
    '''A model in evaluation mode, without weights of zeros and with calibrated batch norms, and an input for it.'''
    model.eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=.02)
    calibrate(model, torch.randn(2, *shape))
    return model, torch.randn(1, *shape)


def calibrate(model, images):
    '''Give batch norms the statistics of images, so that activations neither vanish nor explode.'''
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.
    if norms:
        with torch.no_grad():
            model(images)
    model.eval()


def logit(output):
    '''One unit of an output.'''
    output = output['out'] if isinstance(output, dict) else output
    return output.flatten(1)[:, 1].sum()


def last_layers(model, image):
    '''The modules that are called once and whose output has spatial axes or may have them as tokens, the last first.'''
    calls = {}

    def hook(name):
        return lambda module, args, output: calls.setdefault(name, []).append(output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return [
        name for name, outputs in calls.items() if len(outputs) == 1 and isinstance(outputs[0], torch.Tensor)
        and outputs[0].ndim in (3, image.ndim)
        and (max(outputs[0].shape[2:]) if outputs[0].ndim == image.ndim else outputs[0].shape[1]) > 1
    ][::-1]


def explain(composite, model, image):
    '''The output in a composite's context, what was chosen for the model, and whether sums of pairs were needed for
    products. Raises if there is no map, or a map of zeros.'''
    image = image.clone().requires_grad_()
    with composite.context(model):
        output = model(image)
        map, = torch.autograd.grad(logit(output), image)
        canonizer, = (handle for handle in composite.handles if isinstance(handle, SplitCanonizer))
    if not map.any():
        raise ValueError('the map is zero')
    return output, canonizer.choices.chosen.get(model, {}), SUMS in canonizer.choices.known[model]


def try_layers(model, image, layers):
    '''SplitCAM at the first layer that has a map.'''
    error = ValueError('no module has spatial axes')
    for layer in layers[:40]:
        try:
            return explain(SplitCAM(layer), model, image)
        except ValueError as current:
            error = current
    raise error


def examine(title, make):
    '''The row of a model, which a function builds with an input.'''
    model, image = make()
    plain = model(image.clone().requires_grad_())  # as torch's attention rounds otherwise without a graph
    found, cells = [title, '', ''], []
    for method in (
        lambda: explain(SplitGrad(), model, image),
        lambda: explain(SplitLRP(), model, image),
        lambda: try_layers(model, image, last_layers(model, image)),
    ):
        try:
            output, chosen, products = method()
            needs = ' and '.join(TITLES.get(name, name) for name in chosen)
            needs = needs or ('exact, with products' if products else 'exact')
            deviation = relative_deviation(output, plain)
            found = [title, needs, f'{deviation:.0e}' if deviation else 'bit-identical']
            cells.append('yes')
        except (ValueError, NotImplementedError, FloatingPointError) as error:
            cells.append(f'no: {error}'.split(', called in')[0])
    return [*found, *cells]


LIBRARIES = 'torchvision', 'timm', 'transformers'
METHODS = ['SplitGrad', 'SplitLRP', 'SplitCAM']
COLUMNS = ['group', 'model', 'split form', 'output', *METHODS]


def parts(folder):
    '''The table of the page, of the models in a folder: of each library and group how many run, and how.'''
    rows = []
    for library in LIBRARIES:
        if (folder / f'{library}.csv').is_file():
            for group, own in read_csv(folder / f'{library}.csv').groupby('group', sort=False):
                exact = own['split form'].str.startswith('exact', na=False)
                explained = (own[METHODS].map(lambda cell: cell.startswith('yes'))).all(axis=1)
                rows.append((f'{library}, {group}', len(own), explained.sum(), exact.sum(),
                             (explained & ~exact).sum(), own['output'].eq('bit-identical').sum()))
    return {'models': table(['models', 'all', 'maps', 'exact', 'constants', 'identical'], rows)}


def main():
    '''Print the table, and a summary.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help='names of models, or of families of timm (default: all)')
    parser.add_argument('--library', choices=LIBRARIES, default='torchvision')
    parser.add_argument('--out', type=Path, help='a folder for the table, whose page is beside it')
    args = parser.parse_args()
    warnings.simplefilter('ignore')  # what is chosen for a model is in the table
    rows = []
    entries = entries_of(args.library, args.models)
    for place, (group, title, make) in enumerate(entries, 1):
        start = time.perf_counter()
        row = examine(title, make)
        rows.append((group, *row))
        seconds = time.perf_counter() - start
        print(f'{place} of {len(entries)}: {", ".join(row)}, {seconds:.1f} s', file=sys.stderr, flush=True)
    found = pd.DataFrame(rows, columns=COLUMNS)
    print(found.to_csv(index=False), end='')
    if args.out is not None:
        save_csv(args.out / f'{args.library}.csv', found)
        update_page(page_beside(args.out), 'Models in split form', command_line(), parts(args.out))
        print(parts(args.out)['models'])


if __name__ == '__main__':
    main()
