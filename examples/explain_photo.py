'''Explain what a classifier of torchvision sees in photographs: one row per photograph, one column per method.

    python explain_photo.py dog.jpg cat.jpg --out figure.png
    python explain_photo.py dog.jpg --model vgg16 --layer features.26 --alpha 0.3 --out figure.png

Red speaks for the class and blue against it; with SplitLRP, red is relevance in the positive stream and blue in the
negative one. Each map is colored by its own largest absolute value, and is also saved as an image of its own, in a
folder next to the figure. Without a photograph, a cup of coffee is explained.
'''
import argparse
import sys
import textwrap
from functools import partial
from pathlib import Path

import torch
import torchvision
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonGammaBox
from zennit.image import imgify, imsave
from zennit.torchvision import ResNetCanonizer

from zennit_dc import SplitCAM, SplitGrad, SplitLRP


# resize to 256, crop the center of 224 and normalize with ImageNet's mean and standard deviation
USUAL_PREPROCESSING = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()


def load_model(name, weights):
    '''A model with the weights of torchvision (``'DEFAULT'``) or of a file, its preprocessing and class names.'''
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f'torchvision has no classifier named {name!r}')
    default = torchvision.models.get_model_weights(name).DEFAULT
    if weights == 'DEFAULT':
        return torchvision.models.get_model(name, weights=default), default.transforms(), default.meta['categories']
    model = torchvision.models.get_model(name, weights=None)
    try:
        model.load_state_dict(torch.load(weights, map_location='cpu', weights_only=True))
    except Exception as error:
        raise ValueError(f'{weights} cannot be loaded into {name}: {error}') from error
    return model, USUAL_PREPROCESSING, default.meta['categories']


def read_photo(path):
    '''Read an image file as RGB, the right way up.'''
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('RGB')
    except Exception as error:
        raise ValueError(f'{path} cannot be read as an image: {error}') from error


def attribute(model, composite, input, relevance):
    '''The map of a composite, or of the plain gradient for None, summed over channels.'''
    _, attribution = Gradient(model, composite)(input, relevance)
    return attribution.sum(1)


def canonizers(model):
    '''Zennit's canonizers for a model of torchvision.'''
    if isinstance(model, torchvision.models.DenseNet):
        return []  # its batch norms stand before the convolutions
    return [ResNetCanonizer() if isinstance(model, torchvision.models.ResNet) else SequentialMergeBatchNorm()]


def lrp_gamma(model, preprocessing, input, relevance):
    '''Layer-wise relevance propagation with the gamma rule, as Zennit has it.'''
    mean, std = (input.new_tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    low, high = (((value - mean) / std).expand_as(input) for value in (0., 1.))
    return attribute(model, EpsilonGammaBox(low=low, high=high, canonizers=canonizers(model)), input, relevance)


def layer_cam(model, layer, input, relevance):
    '''LayerCAM: the product of a layer's gradient and activation, summed over channels, rectified and upsampled.'''
    activations = []

    def hook(module, args, output):
        activations.append(output)
        return output.clone()  # which in-place operations may overwrite

    handle = model.get_submodule(layer).register_forward_hook(hook)
    try:
        output = model(input.detach().requires_grad_())
    finally:
        handle.remove()
    if len(activations) != 1 or activations[0].ndim != 4:
        raise ValueError(f'layer {layer!r} does not give one output with channels, height and width')
    activation, = activations
    gradient, = torch.autograd.grad(output, activation, relevance)
    saliency = (gradient * activation).sum(1, keepdim=True).relu().detach()
    return torch.nn.functional.interpolate(saliency, input.shape[2:], mode='bilinear')[:, 0]


def methods(model, preprocessing, args):
    '''The methods: a dictionary from titles to functions of the input and the output's relevance.'''
    split_layer = args.layer if args.at_layer else None
    return {
        'Gradient': partial(attribute, model, None),
        'LayerCAM': partial(layer_cam, model, args.layer),
        'LRP-γ': partial(lrp_gamma, model, preprocessing),
        'SplitGrad': partial(attribute, model, SplitGrad(args.alpha, args.stream, layer=split_layer)),
        'SplitCAM': partial(attribute, model, SplitCAM(args.layer, args.alpha, args.stream)),
        'SplitLRP': partial(attribute, model, SplitLRP(layer=split_layer)),
    }


def caption(probabilities, target, categories):
    '''Name the predicted class, and the explained one if it is another.'''
    predicted = int(probabilities.argmax())
    lines = [f'{categories[predicted]}, {probabilities[predicted]:.0%}']
    if target != predicted:
        lines.append(f'explained: {categories[target]}, {probabilities[target]:.1%}')
    return '\n'.join(textwrap.fill(line, 24) for line in lines)


def color(saliency):
    '''Color a map: blue below zero, white at zero, red above.'''
    return imgify(saliency, symmetric=True, cmap='bwr')


def draw(rows, heading):
    '''A figure of rows, each of which is a caption, a photograph and a dictionary from titles to colored maps.'''
    columns = 1 + len(rows[0][2])
    figure = Figure(figsize=(2.2 * columns, 2.5 * len(rows) + .4), layout='constrained')
    figure.suptitle(heading)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (text, photo, maps), row in zip(rows, axes, strict=True):
        for axis, title, image in zip(row, [text, *maps], [photo, *maps.values()], strict=True):
            axis.imshow(image.convert('RGB') if isinstance(image, Image.Image) else image)
            axis.set_title(title, fontsize='medium')
            axis.set(xticks=[], yticks=[])
    return figure


def explain(args):
    '''Explain the photographs, and save the maps and the figure.'''
    model, preprocessing, categories = load_model(args.model, args.weights)
    model = model.eval().to(args.device)
    if not args.layer or args.layer not in dict(model.named_modules()):
        raise ValueError(f'{args.model} has no layer named {args.layer!r}')
    if args.target is not None and not 0 <= args.target < len(categories):
        raise ValueError(f'there is no class {args.target}, but those from 0 to {len(categories) - 1}')
    functions = methods(model, preprocessing, args)
    stems = [path.stem for path in args.images]
    names = [stem if stems.count(stem) == 1 else f'{stem}-{index}' for index, stem in enumerate(stems, 1)]
    inputs = [preprocessing(read_photo(path))[None].to(args.device) for path in args.images]
    folder = args.out.with_name(f'{args.out.stem}_maps')
    folder.mkdir(parents=True, exist_ok=True)

    rows = []
    for name, input in zip(names, inputs, strict=True):
        with torch.no_grad():
            probabilities = model(input).softmax(1)[0]
        target = int(probabilities.argmax()) if args.target is None else args.target
        relevance = torch.eye(len(categories))[[target]].to(input)
        maps = {title: color(function(input, relevance)[0].cpu()) for title, function in functions.items()}
        for title, image in maps.items():
            imsave(folder / f'{name}_{title.replace("γ", "gamma")}.png', image)
        photo = input[0].cpu().permute(1, 2, 0) * torch.tensor(preprocessing.std) + torch.tensor(preprocessing.mean)
        rows.append((caption(probabilities, target, categories), photo.clamp(0., 1.), maps))
    split = 'CAMs, SplitGrad and SplitLRP' if args.at_layer else 'CAMs'
    draw(rows, f'{args.model}, {split} at {args.layer}, α = {args.alpha}, {args.stream}').savefig(args.out, dpi=110)


def main():
    '''Parse the arguments, and end with one line if they cannot be used.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='*', type=Path, default=[Path(__file__).with_name('coffee.jpg')])
    parser.add_argument('--model', default='squeezenet1_0', help='a classifier of torchvision')
    parser.add_argument('--weights', default='DEFAULT', help='the file of a state dict, or DEFAULT for torchvision\'s')
    parser.add_argument('--layer', default='features.12', help='the module at whose output the CAMs are computed')
    parser.add_argument('--at-layer', action='store_true', help='compute SplitGrad and SplitLRP at this layer as well')
    parser.add_argument('--alpha', type=float, default=.4, help='the shift of SplitGrad and SplitCAM, in [0, 0.5]')
    parser.add_argument('--stream', default='g', choices=('+g', '-g', 'g', '+h', '-h', 'h'))
    parser.add_argument('--target', type=int, help='the index of the class to explain (default: the predicted one)')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, default=Path('explanation.png'), help='the figure to be saved')
    try:
        explain(parser.parse_args())
    except (ArithmeticError, AssertionError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f'explain_photo.py: {textwrap.shorten(str(error), 300, placeholder=" ...")}')


if __name__ == '__main__':
    main()
