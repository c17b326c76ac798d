'''Run every classifier, segmentation and video model of torchvision in split form, and tell how exact it is.

    python supported_models.py --out supported_models.md
    python supported_models.py resnet18 vit_b_16

The models have random weights, with batch norms calibrated on random images, and the smallest images that they take.
Each is tried as it is; with smooth activations replaced (tolerance 0.001); with constant attention weights and
statistics; and with both. The table says which of these was needed, whether the output was bit-identical, by how much
it deviates else (relative to its largest entry), and which methods gave a map at their defaults: SplitGrad and SplitLRP
at the input, and SplitCAM at the last module that has spatial axes.
'''
import argparse
import sys
import time
from pathlib import Path

import torch
import torchvision

from zennit_dc import DetachedAttention, SmoothReplacement, SplitCAM, SplitCanonizer, SplitGrad, SplitLRP


FAMILIES = {
    'classification': torchvision.models, 'segmentation': torchvision.models.segmentation,
    'video': torchvision.models.video,
}
# the smallest sizes that run, where 64 pixels do not
SIZES = {'alexnet': 80, 'inception_v3': 80, 'maxvit_t': 224, 'mvit_v1_b': 224, 'mvit_v2_s': 224, 's3d': 224}


def models_of(family):
    '''The names of a family's models.'''
    return torchvision.models.list_models(module=FAMILIES[family])


def build(name, family, frames=16):
    '''A model with random weights, and an input for it; a video model's input has some frames.'''
    torch.manual_seed(0)
    size, options = SIZES.get(name, 64), {'weights': None}
    if name.startswith('vit'):
        options['image_size'] = size = 56 if name == 'vit_h_14' else 64
    if name in ('googlenet', 'inception_v3'):
        options['init_weights'] = False
    if family == 'segmentation':
        options['weights_backbone'] = None
    model = torchvision.models.get_model(name, **options).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=.02)
    shape = (3, *([frames] if family == 'video' else []), size, size)
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


def last_layer(model, image):
    '''The last module that is called once and whose output has as many axes as the image and is not a single pixel.'''
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
        and outputs[0].ndim == image.ndim and max(outputs[0].shape[2:]) > 1
    ][::-1]


def explain(composite, model, image):
    '''The output in a composite's context, and whether sums of pairs were needed for products. Raises if there is no
    map, or a map of zeros.'''
    image = image.clone().requires_grad_()
    with composite.context(model):
        output = model(image)
        map, = torch.autograd.grad(logit(output), image)
        products = any(handle.needs_sums for handle in composite.handles if isinstance(handle, SplitCanonizer))
    if not map.any():
        raise ValueError('the map is zero')
    return output, products


def try_layers(model, image, layers, canonizers):
    '''SplitCAM at the first layer that has a map.'''
    error = ValueError('no module has spatial axes')
    for layer in layers[:12]:
        try:
            return explain(SplitCAM(layer, canonizers=canonizers), model, image)
        except ValueError as current:
            error = current
    raise error


def examine(name, family, frames=16):
    '''The row of a model.'''
    model, image = build(name, family, frames)
    plain = model(image)
    for title, make in (
        ('exact', list), ('replacement', lambda: [SmoothReplacement()]), ('constants', lambda: [DetachedAttention()]),
        ('replacement and constants', lambda: [DetachedAttention(), SmoothReplacement()]),
    ):
        canonizers = make()
        try:
            output, products = explain(SplitGrad(canonizers=canonizers), model, image)
            break
        except NotImplementedError as error:
            title = f'not supported: {error}'
    if title.startswith('not'):
        return [name, title, '', '', '', '']
    if title == 'exact' and products:
        title = 'exact, with products'
    difference = (logit_tensor(output) - logit_tensor(plain)).abs().max() / logit_tensor(plain).abs().max()
    deviation = 'bit-identical' if difference == 0 else f'{difference.item():.0e}'
    cells = ['yes']
    for method in (
        lambda: explain(SplitLRP(canonizers=canonizers), model, image),
        lambda: try_layers(model, image, last_layer(model, image), canonizers),
    ):
        try:
            method()
            cells.append('yes')
        except (ValueError, NotImplementedError, FloatingPointError) as error:
            cells.append(f'no: {str(error).split(":")[0]}')
    return [name, title, deviation, *cells]


def logit_tensor(output):
    '''The tensor of an output that is explained.'''
    return (output['out'] if isinstance(output, dict) else output).detach()


def main():
    '''Print the table, and a summary.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help='names of models (default: all of the families)')
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument('--out', type=Path, help='a file for the table')
    args = parser.parse_args()
    lines, counts = [], {}
    for family in args.families:
        names = [name for name in models_of(family) if not args.models or name in args.models]
        for place, name in enumerate(names, 1):
            start = time.perf_counter()
            try:
                row = examine(name, family)
            except FloatingPointError as error:
                row = [name, f'no map: {error}', '', '', '', '']
            all_three = row[3:] == ['yes'] * 3
            counts.setdefault(family, []).append(all_three)
            lines.append('| ' + ' | '.join(row) + ' |')
            seconds = time.perf_counter() - start
            print(f'{place} of {len(names)}: {lines[-1]} {seconds:.1f} s', file=sys.stderr, flush=True)
    table = ['| model | split form | output | SplitGrad | SplitLRP | SplitCAM |', '|---|' + '---|' * 5, *lines, '']
    table += [f'{sum(given)} of {len(given)} {family} models give maps with all three methods.'
              for family, given in counts.items()]
    text = '\n'.join(table)
    print(text)
    if args.out is not None:
        args.out.write_text(text + '\n')


if __name__ == '__main__':
    main()
